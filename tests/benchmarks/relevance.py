"""LRP against one plain forward and backward pass, and against zennit: ratios of one run, in equal values.

Run ``python tests/benchmarks/relevance.py [--quick]``; needs the extra ``test``. The plain pass is the best plain form
of the model: batch norm folded, channels last, gradients of the input alone. Beside the ratio of times stands that of
the multiplications that convolutions and matrix products make, which is the same on every machine.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import zennit.composites
import zennit.torchvision
from timing import medians
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_xai.relevance import LRP, composites

LOW, HIGH = [-2.2, -2.1, -1.9], [2.3, 2.5, 2.7]


class Multiplications(TorchDispatchMode):
    """Counts the multiplications of convolutions and matrix products; torch's own counter hooks into autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make an operation, and count."""
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.count += count(*args, **(kwargs or {}), out_val=found)
        return found


def multiplications(run: Callable[[], object]) -> int:
    """How many a call makes once it has made its weights."""
    run()
    with Multiplications() as seen:
        run()
    return seen.count


def calibrated(model: nn.Module) -> nn.Module:
    """The model in eval mode, batch norms with the statistics of noise, so that activations have some size."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 224, 224))
    return model.eval()


def plain(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """One forward and backward pass of the best plain form."""
    best = fuse(copy.deepcopy(model)) if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else model
    best = copy.deepcopy(best).requires_grad_(False).to(memory_format=torch.channels_last)

    def run() -> Tensor:
        leaf = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        return torch.autograd.grad(best(leaf)[:, 1].sum(), leaf)[0]

    return run


def by_zennit(model: nn.Module, x: Tensor, composite: type, canonizer: type, *given: object) -> Callable[[], Tensor]:
    """The same map by zennit."""

    def run() -> Tensor:
        with composite(*given, canonizers=[canonizer()]).context(model) as changed:
            leaf = x.detach().clone().requires_grad_()
            output = changed(leaf)
            seed = torch.zeros_like(output)
            seed[:, 1] = output[:, 1].detach()
            return torch.autograd.grad(output, leaf, seed)[0]

    return run


def compare(name: str, model: nn.Module, x: Tensor, canonizer: type | None, rounds: int) -> None:
    """Print the ratios for one model."""
    bounds = [torch.tensor(bound).view(1, 3, 1, 1) for bound in (LOW, HIGH)]
    presets: dict[str, tuple[composites.Composite, type | None, list[Tensor]]] = {
        "EpsilonPlusFlat": (composites.EpsilonPlusFlat(), zennit.composites.EpsilonPlusFlat, []),
        "EpsilonGammaBox": (composites.EpsilonGammaBox(LOW, HIGH), zennit.composites.EpsilonGammaBox, bounds),
        "EpsilonAlpha2Beta1": (composites.EpsilonAlpha2Beta1(), zennit.composites.EpsilonAlpha2Beta1, []),
    }
    if canonizer is None:
        presets = {"AttnLRP": (composites.AttnLRP(), None, [])}
    print(name)
    for preset, (ours, theirs, given) in presets.items():
        contenders: dict[str, Callable[[], object]] = {
            "plain": plain(model, x),
            "ours": lambda ours=ours: LRP(ours)(model, x, 1),
        }
        if theirs is not None and canonizer is not None:
            contenders["zennit"] = by_zennit(model, x, theirs, canonizer, *given)
        found = medians(contenders, rounds)
        work = multiplications(contenders["ours"]) / multiplications(contenders["plain"])
        line = (
            f"  {preset:20} ours / forward + backward {found['ours'] / found['plain']:.2f} (multiplications {work:.2f})"
        )
        if "zennit" in found:
            line += f"   zennit / ours {found['zennit'] / found['ours']:.2f}"
        print(line)


def main() -> None:
    """Compare on ResNet-18, VGG-16, MobileNetV2 and a small vision transformer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of two images each")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    models = torchvision.models
    x = torch.randn(2 if quick else 8, 3, 224, 224)
    rounds = 1 if quick else 15
    resnet, vgg = zennit.torchvision.ResNetCanonizer, zennit.torchvision.VGGCanonizer
    compare("ResNet-18", calibrated(models.resnet18()), x, resnet, rounds)
    compare("VGG-16", calibrated(models.vgg16()), x, vgg, rounds)
    compare("MobileNetV2", calibrated(models.mobilenet_v2()), x, vgg, rounds)
    compare("ViT-tiny", timm.create_model("vit_tiny_patch16_224").eval(), x, None, rounds)


if __name__ == "__main__":
    main()
