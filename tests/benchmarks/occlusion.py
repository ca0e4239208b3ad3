"""Occlusion sweeps against a plain batched loop and captum: ratios of one run, in equal values.

Run ``python tests/benchmarks/occlusion.py [--quick]``; needs the extra ``test``, and torchvision for ResNet-18.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from captum.attr import Occlusion
from timing import medians
from torch import Tensor, nn

from lightning_xai.app.models import DemoCNN
from lightning_xai.perturbation import Windows, importance, kinds


def plain_loop(model: nn.Module, x: Tensor, target: Tensor, size: int, stride: int, chunk: int) -> Tensor:
    """What one writes by hand: copies of the batch with one window zeroed each, ``chunk`` inputs at a time."""
    with torch.inference_mode():
        rows = torch.arange(len(x))
        clean = model(x).softmax(1)[rows, target]
        starts = range(0, x.shape[-1] - size + 1, stride)
        windows = [(h, w) for h in starts for w in starts]
        step = max(1, chunk // len(x))
        scores = []
        for first in range(0, len(windows), step):
            some = windows[first : first + step]
            batch = x.repeat(len(some), 1, 1, 1)
            for index, (h, w) in enumerate(some):
                batch[index * len(x) : (index + 1) * len(x), :, h : h + size, w : w + size] = 0
            output = model(batch).softmax(1).view(len(some), len(x), -1)
            scores.append(output[:, rows, target])
        return clean - torch.cat(scores)


def captum_occlusion(model: nn.Module, x: Tensor, target: Tensor, size: int, stride: int, per_pass: int) -> Tensor:
    """The same by captum."""
    with torch.no_grad():
        method = Occlusion(lambda batch: model(batch).softmax(1))
        return method.attribute(
            x,
            sliding_window_shapes=(x.shape[1], size, size),
            strides=(x.shape[1], stride, stride),
            target=target,
            perturbations_per_eval=per_pass,
        )


def ours(model: nn.Module, x: Tensor, target: Tensor, size: int, stride: int) -> Tensor:
    """The same by this package, as it comes."""
    return importance(model, x, target, regions=Windows(size, stride), perturbation=kinds.Constant(0.0))


def compare(
    name: str, model: nn.Module, x: Tensor, size: int, stride: int, chunks: list[int], passes: list[int], rounds: int
) -> None:
    """Print the ratios for one model; the peers at the best of the given settings."""
    target = model(x).argmax(1)
    job = (model, x, target, size, stride)
    plain = {f"plain loop, {chunk} inputs": partial(plain_loop, *job, chunk) for chunk in chunks}
    captum = {f"captum, {count} per pass": partial(captum_occlusion, *job, count) for count in passes}
    found = medians({"ours": partial(ours, *job), **plain, **captum}, rounds)
    error = (ours(*job).T - plain_loop(*job, chunks[0])).abs().max()
    print(f"{name} (largest difference to the plain loop {error:.1e})")
    for contender, median in found.items():
        print(f"  {contender:24} {median * 1e3:8.1f} ms")
    best_plain, best_captum = (min(found[key] for key in peers) for peers in (plain, captum))
    print(f"  ours / best plain loop {found['ours'] / best_plain:.3f}")
    print(f"  best captum / ours {best_captum / found['ours']:.2f}")


def main() -> None:
    """Compare on the demonstration network and on ResNet-18."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and the small network only")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    compare(
        "demo CNN, 28 px, window 4",
        DemoCNN().eval(),
        torch.rand(16, 1, 28, 28),
        size=4,
        stride=4,
        chunks=[16, 32, 64],
        passes=[1, 2, 4],
        rounds=5 if quick else 60,
    )
    if not quick:
        from torchvision.models import resnet18

        compare(
            "ResNet-18, 224 px, window 32, stride 16",
            resnet18().eval(),
            torch.randn(2, 3, 224, 224),
            size=32,
            stride=16,
            chunks=[2, 4, 8],
            passes=[1, 2, 4],
            rounds=3,
        )


if __name__ == "__main__":
    main()
