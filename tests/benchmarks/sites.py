"""Explanations at a site inside a network, with passes that begin there and with whole ones: ratios of one run.

Run ``python tests/benchmarks/sites.py [--quick]``; needs torchvision. Beside the ratio of times stands the share of the
multiplications of whole passes that is left, which no machine changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import medians
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from lightning_xai import Inputs, Windows
from lightning_xai.inputs.binding import bind
from lightning_xai.perturbation import importance, kinds
from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients, SmoothGrad, composites

Explain = Callable[[nn.Module, Tensor, int], Tensor]

TOKENS = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "logit"}
METHODS: dict[str, Explain] = {
    "importance": partial(importance, **TOKENS),
    "integrated gradients, 32 steps": IntegratedGradients(steps=32),
    "SmoothGrad, 16 draws": SmoothGrad(draws=16),
    "AttnLRP": LRP(composites.AttnLRP()),
    "gradient x input": GradientXInput(),
}


def vision_transformer(pixels: int) -> nn.Module:
    """Make a vision transformer of twelve blocks, 384 wide, as DeiT-small is."""
    return VisionTransformer(pixels, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)


def compare(name: str, model: nn.Module, x: Tensor, at: str, methods: dict[str, Explain], rounds: int) -> None:
    """Print the ratios for the methods at one site."""
    bound, values = bind(model.eval(), Inputs(x, at=at))
    print(f"{name} at {at}: multiplications left {bound.share:.2f}")
    for method, explain in methods.items():
        shorter, whole = (partial(explain, network, values, 0) for network in (bound, bound.whole()))
        error = float((shorter() - whole()).abs().max())
        found = medians({"shorter": shorter, "whole": whole}, rounds)
        print(f"  {method}: whole / shorter {found['whole'] / found['shorter']:.2f}, largest difference {error:.0e}")


def main() -> None:
    """Compare on a vision transformer and a convolutional network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller images and fewer repetitions")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    pixels, rounds = (64, 1) if quick else (224, 5)
    x = torch.randn(2, 3, pixels, pixels)
    blocks = [f"encoder.layers.encoder_layer_{block}" for block in (10, 5)]
    for at in blocks:
        compare("vision transformer", vision_transformer(pixels), x, at, METHODS, rounds)
    maps = {
        "importance": partial(importance, regions=Windows(2), perturbation=kinds.Constant(0.0), score="logit"),
        "integrated gradients, 32 steps": METHODS["integrated gradients, 32 steps"],
    }
    compare("ResNet-18", resnet18(), x, "layer3", maps, rounds)


if __name__ == "__main__":
    main()
