"""Perturbations that look at the cells around, or at all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai.perturbation.kinds.base import Keys, Perturbation, WindowPerturbation, check_positive


@dataclass(frozen=True)
class Blur(Perturbation):
    r"""A Gaussian filter of standard deviation ``sigma`` (in cells) over the spatial axes.

    The kernel reaches :math:`4 \sigma`; its weights are renormalised at the border, so a constant stays as it is, and
    an infinite :math:`\sigma` gives the mean.

    Raises:
        ValueError: If ``sigma`` is not positive.

    >>> Blur(sigma=1.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.2446,  0.5000,  1.2446]]])
    """

    strength: ClassVar[str | None] = "sigma"

    sigma: float = 3.0

    def check(self) -> None:
        check_positive("sigma", self.sigma)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        # Shifted sums, not a convolution: devices round those to TF32, and a constant would not stay one.
        for axis in range(2, values.ndim):
            values = self._along(values, axis)
        return values

    def _along(self, values: Tensor, axis: int) -> Tensor:
        length = values.shape[axis]
        reach = math.ceil(min(4 * self.sigma, length - 1))
        total, weight = torch.zeros_like(values), values.new_zeros(length)
        for shift in range(-reach, reach + 1):
            steps = shift / self.sigma
            share, start, size = math.exp(-steps * steps / 2), max(0, -shift), length - abs(shift)
            total.narrow(axis, start, size).add_(values.narrow(axis, start + shift, size), alpha=share)
            weight.narrow(0, start, size).add_(share)
        return total / weight.view(-1, *[1] * (values.ndim - 1 - axis))


@dataclass(frozen=True)
class LocalMean(WindowPerturbation):
    """The mean of the window's own cells, per channel.

    >>> LocalMean().arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0.5000, 0.5000, 0.5000]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)


@dataclass(frozen=True)
class ChannelMean(Perturbation):
    """The mean of the sample, per channel.

    >>> ChannelMean().arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0.5000, 0.5000, 0.5000]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)
