"""The incremental engine against a plain batched loop, captum and dense passes: ratios of one run, in equal values.

Run ``python tests/benchmarks/engine.py [--quick] [NETWORK ...]``; needs the extra ``test``, and torchvision. Beside the
ratio of times stands the share of the multiplications of dense passes that is left, which no machine changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from occlusion import captum_occlusion, plain_loop
from timing import medians
from torch import Tensor, nn
from torchvision import models

from lightning_xai.app.models import DemoCNN
from lightning_xai.perturbation import Windows, importance, kinds, speed, synergy
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request, sweep
from lightning_xai.scores import Probability
from lightning_xai.units.change import LayerChange

ZERO = kinds.Constant(0.0)


def cifar_resnet() -> nn.Module:
    """ResNet-18 as it is used for images of 32 px."""
    network = models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network


@dataclass(frozen=True)
class Case:
    """A network, its inputs [N, C, H, W], the windows, and the chunks and passes from which the peers get the best."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    size: int
    stride: int
    chunks: tuple[int, ...] = (4, 8)
    passes: tuple[int, ...] = (4,)


CASES = {
    "demo": Case(DemoCNN, (16, 1, 28, 28), 4, 2, (16, 32, 64), (1, 4)),
    "cifar": Case(cifar_resnet, (4, 3, 32, 32), 4, 2, (4, 32), (4,)),
    "resnet18": Case(models.resnet18, (1, 3, 224, 224), 16, 16),
    "mobilenet": Case(models.mobilenet_v2, (1, 3, 224, 224), 16, 16),
    "vgg16": Case(models.vgg16, (1, 3, 224, 224), 16, 16),
}


def calibrated(make: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    """A network whose batch norms have seen inputs."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        network(torch.randn(4, *x.shape[1:]))
    return network.eval()


def ours(engine: str, model: nn.Module, x: Tensor, target: Tensor, size: int, stride: int) -> Tensor:
    """Importance by an engine."""
    windows = Windows(size, stride, remainder="right")
    return importance(model, x, target, regions=windows, perturbation=ZERO, engine=engine)


def compare(name: str, case: Case, rounds: int) -> None:
    """Print the ratios for one network; the peers at the best of the given settings."""
    x = torch.randn(case.shape)
    model = calibrated(case.make, x)
    target = model(x).argmax(1)
    job = (model, x, target, case.size, case.stride)
    contenders = {engine: partial(ours, engine, *job) for engine in ("incremental", "dense", "auto")}
    plain = {f"plain loop, {chunk}": partial(plain_loop, *job, chunk) for chunk in case.chunks}
    captum = {f"captum, {count}": partial(captum_occlusion, *job, count) for count in case.passes}
    found = medians({**contenders, **plain, **captum}, rounds)
    error = float((ours("incremental", *job) - ours("dense", *job)).abs().max())
    windows = Windows(case.size, case.stride, remainder="right")
    asked = [Request(ZERO, Probability())]
    left, chosen = (sweep(model, x, target, asked, Plan(windows, engine=engine)) for engine in ("incremental", "auto"))
    best_plain, best_captum = (min(found[key] for key in peers) for peers in (plain, captum))
    print(
        f"{name}: multiplications left {left.share:.2f}, largest difference to dense {error:.0e}, "
        f"auto is {chosen.engine}\n"
        f"  best plain loop / incremental {best_plain / found['incremental']:.2f}, best captum / incremental "
        f"{best_captum / found['incremental']:.2f}, dense / incremental {found['dense'] / found['incremental']:.2f}, "
        f"auto / better of both {found['auto'] / min(found['incremental'], found['dense']):.2f}",
        flush=True,
    )


def quantities(rounds: int) -> None:
    """Print the ratios of dense passes to incremental ones for what else is asked of a sweep, on ResNet-18."""
    x = torch.randn(1, 3, 224, 224)
    model = calibrated(models.resnet18, x)
    layer = CaptureRequest(ZERO, LayerChange("layer2.1.conv1"))
    states = [kinds.Negative(delta) for delta in (0.1, 0.2, 0.3, 0.4, 0.5)]

    def all_pairs(engine: str) -> object:
        return synergy(model, x, 0, regions=Windows(32), perturbation=ZERO, engine=engine)

    def slopes(engine: str) -> object:
        return speed(model, x, 0, regions=Windows(16), perturbations=states, engine=engine)

    def changes(engine: str) -> object:
        return sweep(model, x, 0, [], Plan(Windows(16), engine=engine), captures=[layer])

    for name, quantity in {"re-activation at layer2": changes, "speed": slopes, "all pairs": all_pairs}.items():
        found = medians({engine: partial(quantity, engine) for engine in ("dense", "incremental")}, rounds)
        print(f"{name}: dense / incremental {found['dense'] / found['incremental']:.2f}", flush=True)


def main() -> None:
    """Compare on the networks that are named, or on all, and on other quantities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"any of {', '.join(CASES)}, quantities; all unless given")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and the small network only")
    given = parser.parse_args()
    for name in given.networks or (["demo"] if given.quick else [*CASES, "quantities"]):
        rounds = 3 if given.quick or name not in ("demo", "cifar") else 15
        quantities(1) if name == "quantities" else compare(name, CASES[name], rounds)


if __name__ == "__main__":
    main()
