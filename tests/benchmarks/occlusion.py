"""Occlusion sweeps against a plain batched loop and captum: ratios of one run, in equal values.

Run ``python tests/benchmarks/occlusion.py [--quick]``; needs the extra ``test``, and torchvision for ResNet-18.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from captum.attr import Occlusion
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


def seconds(contender: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    contender()
    return time.perf_counter() - start


def ratio(numerator: Callable[[], object], denominator: Callable[[], object], pairs: int) -> float:
    """Median ratio of times, the two called in turn."""
    numerator(), denominator()
    return statistics.median(seconds(numerator) / seconds(denominator) for _ in range(pairs))


def fastest(contenders: dict[int, Callable[[], object]]) -> int:
    """The setting of the fastest contender, the best of two calls each."""
    return min(contenders, key=lambda setting: min(seconds(contenders[setting]) for _ in range(2)))


def compare(name: str, model: nn.Module, x: Tensor, size: int, stride: int, pairs: int) -> None:
    """Print the ratios for one model."""
    target = model(x).argmax(1)
    job = (model, x, target, size, stride)
    chunks = fastest({chunk: partial(plain_loop, *job, chunk) for chunk in (8, 16, 32, 64, 256, 1024)})
    passes = fastest({count: partial(captum_occlusion, *job, count) for count in (1, 4, 16, 64)})
    plain, captum = partial(plain_loop, *job, chunks), partial(captum_occlusion, *job, passes)
    error = (ours(*job).T - plain()).abs().max()
    print(
        f"{name}: ours / best plain loop (chunk {chunks}) {ratio(partial(ours, *job), plain, pairs):.3f}   "
        f"captum (perturbations_per_eval {passes}) / ours {ratio(captum, partial(ours, *job), pairs):.2f}   "
        f"largest difference {error:.1e}",
        flush=True,
    )


def main() -> None:
    """Compare on the demonstration network and on ResNet-18."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and the small network only")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    compare("demo CNN, 28 px, window 4", DemoCNN().eval(), torch.rand(16, 1, 28, 28), 4, 4, 3 if quick else 15)
    if not quick:
        from torchvision.models import resnet18

        compare("ResNet-18, 224 px, window 32/16", resnet18().eval(), torch.randn(2, 3, 224, 224), 32, 16, 5)


if __name__ == "__main__":
    main()
