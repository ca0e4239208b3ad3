"""Integrated gradients and Grad-CAM against the passes that they are made of: ratios of one run.

Run ``python tests/benchmarks/gradients.py [--quick]``; needs torchvision without ``--quick``. Every contender is called
in turn, so that a slow moment of the machine meets all of them; do not quote ratios of a busy machine.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from functools import partial

import torch
from timing import medians
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_xai.app.models import DemoCNN
from lightning_xai.relevance import GradCAM, IntegratedGradients

STEPS = 50


def forward_backward(model: nn.Module, x: Tensor, target: Tensor, times: int = 1) -> None:
    """A plain pass forward and back to the inputs, a number of times; no gradients of parameters."""
    for _ in range(times):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        score = model(leaf).gather(1, target.unsqueeze(1)).sum()
        torch.autograd.grad(score, leaf)


def fused(model: nn.Module) -> nn.Module:
    """The best plain form: batch norm folded into the convolution before it, channels last."""
    model = deepcopy(model).eval()
    for module in list(model.modules()):
        previous = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and previous is not None:
                setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(module, name, nn.Identity())
            previous = (name, child) if isinstance(child, nn.Conv2d) else None
    return model.to(memory_format=torch.channels_last)


def compare(name: str, model: nn.Module, x: Tensor, rounds: int) -> None:
    """Print the ratios for one model."""
    best, last = fused(model), x.contiguous(memory_format=torch.channels_last)
    target = model(x).argmax(1)
    with torch.no_grad():
        error = (best(last) - model(x)).abs().max()
    found = medians(
        {
            "Grad-CAM": partial(GradCAM(), model, x, target),
            "Grad-CAM, fused": partial(GradCAM(), best, last, target),
            "forward + backward": partial(forward_backward, model, x, target),
            "forward + backward, fused": partial(forward_backward, best, last, target),
        },
        rounds,
    )
    found |= medians(
        {
            "integrated gradients": partial(IntegratedGradients(STEPS), model, x, target),
            "integrated gradients, fused": partial(IntegratedGradients(STEPS), best, last, target),
            "steps": partial(forward_backward, model, x, target, STEPS),
            "steps, fused": partial(forward_backward, best, last, target, STEPS),
        },
        max(1, rounds // 10),
    )
    print(f"{name} (fusing changes the output by {error:.1e})")
    for contender, median in found.items():
        print(f"  {contender:28} {median * 1e3:9.1f} ms")
    for fusion in ("", ", fused"):
        cam, once = found[f"Grad-CAM{fusion}"], found[f"forward + backward{fusion}"]
        integrated, steps = found[f"integrated gradients{fusion}"], found[f"steps{fusion}"]
        print(f"  Grad-CAM / forward + backward{fusion}: {cam / once:.3f} (at most 0.9)")
        print(f"  integrated gradients / {STEPS} x forward + backward{fusion}: {integrated / steps:.3f} (at most 1.05)")


def main() -> None:
    """Compare on the demonstration network, ResNet-18, VGG-16 and MobileNetV2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and the small network only")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    compare("demo CNN, 28 px, batch 8", DemoCNN().eval(), torch.rand(8, 1, 28, 28), rounds=10 if quick else 100)
    if not quick:
        from torchvision import models

        for name, rounds in {"resnet18": 20, "vgg16": 10, "mobilenet_v2": 20}.items():
            model = getattr(models, name)().eval()
            compare(f"{name}, 224 px, batch 8", model, torch.randn(8, 3, 224, 224), rounds)


if __name__ == "__main__":
    main()
