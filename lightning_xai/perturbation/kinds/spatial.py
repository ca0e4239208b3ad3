"""Perturbations that look at the cells around, or at all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.perturbation.kinds.base import Keys, Perturbation, WindowPerturbation, check_positive


@dataclass(frozen=True)
class Blur(Perturbation):
    r"""A Gaussian filter of standard deviation ``sigma`` (in cells) over the spatial axes.

    The kernel reaches :math:`4 \sigma`; its weights are renormalised at the border, so a constant stays as it is.
    """

    strength: ClassVar[str | None] = "sigma"

    sigma: float = 3.0

    def check(self) -> None:
        check_positive("sigma", self.sigma)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        for axis in range(2, values.ndim):
            lines = values.movedim(axis, -1)
            radius = min(math.ceil(4 * self.sigma), lines.shape[-1] - 1)
            steps = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
            kernel = (-(steps**2) / (2 * self.sigma**2)).exp().view(1, 1, -1)
            flat = lines.reshape(-1, 1, lines.shape[-1])
            weight = functional.conv1d(torch.ones_like(flat[:1]), kernel, padding=radius)
            smooth = functional.conv1d(flat, kernel, padding=radius) / weight
            values = smooth.view(lines.shape).movedim(-1, axis)
        return values


@dataclass(frozen=True)
class LocalMean(WindowPerturbation):
    """The mean of the window's own cells, per channel."""

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)


@dataclass(frozen=True)
class ChannelMean(Perturbation):
    """The mean of the sample, per channel."""

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)
