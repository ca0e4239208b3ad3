"""What looking at units costs beside the passes that are made anyway: ratios of one run.

Run ``python tests/benchmarks/units.py [--quick]``; needs torchvision.

- Re-activation together with importance against importance alone, both as metrics over the same windows, from new
  metrics to their results, of one batch and of the 64 images that a monitor explains by default in four: to be at most
  1.2 times as much.
- Thresholds of 1,000 images at all convolutions of ResNet-18 against the plain forward passes of the same batches: at
  most 1.3 times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from timing import ratio, seconds
from torch import Tensor, nn
from torchvision.models import resnet18

from lightning_xai.app.models import DemoCNN
from lightning_xai.metrics import Importance, Reactivation, update_together
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.perturbation import Windows, kinds
from lightning_xai.units import activation_threshold


def re_activation(
    name: str, model: nn.Module, layer: str, batches: Sequence[Tensor], regions: Windows, rounds: int
) -> None:
    """Print what re-activation adds to importance."""
    zero = kinds.Constant(0.0)

    def epoch(metrics: dict[str, ExplanationMetric]) -> None:
        for batch in batches:
            update_together(metrics, model, batch, "predicted")
        for metric in metrics.values():
            metric.compute()

    def importance() -> None:
        epoch({"importance": Importance(regions, zero)})

    def both() -> None:
        epoch({"importance": Importance(regions, zero), "reactivation": Reactivation(layer, regions, zero)})

    print(f"{name}: importance and re-activation / importance {ratio(both, importance, rounds):.3f}", flush=True)


def thresholds(images: int, batch_size: int) -> None:
    """Print what thresholds at all convolutions add to forward passes, made of every batch before it is handed out."""
    model = resnet18().eval()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    generator = torch.Generator().manual_seed(0)
    forward, elsewhere = 0.0, 0.0

    def plain(inputs: Tensor) -> None:
        with torch.inference_mode():
            model(inputs)

    def batches() -> Iterator[Tensor]:
        nonlocal forward, elsewhere
        for _ in range(images // batch_size):
            start = time.perf_counter()
            coarse = torch.randn(batch_size, 3, 14, 14, generator=generator)
            inputs = nn.functional.interpolate(coarse, size=(224, 224), mode="bilinear")
            forward += seconds(partial(plain, inputs))
            elsewhere += time.perf_counter() - start
            yield inputs

    def found() -> None:
        count = images // batch_size * batch_size
        activation_threshold(model, batches(), layers=layers, activation="relu", samples=count)

    plain(torch.randn(batch_size, 3, 224, 224))
    with_thresholds = seconds(found) - elsewhere
    print(f"ResNet-18, {images} images: thresholds / forward passes {with_thresholds / forward:.3f}", flush=True)


def main() -> None:
    """Compare on the demonstration network and on ResNet-18."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, fewer images")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    demo = DemoCNN().eval()
    for layer in ("net.0", "net.3"):
        for count in (1, 4):
            batches = [torch.rand(16, 1, 28, 28) for _ in range(count)]
            name = f"demo CNN, {layer}, {16 * count} images"
            re_activation(name, demo, layer, batches, Windows(4), (15 if quick else 60) // count)
    model, x = resnet18().eval(), torch.randn(4, 3, 224, 224)
    for layer in ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.1.conv1"):
        re_activation(f"ResNet-18, {layer}", model, layer, [x], Windows(56), 1 if quick else 4)
    thresholds(64 if quick else 1000, 32)


if __name__ == "__main__":
    main()
