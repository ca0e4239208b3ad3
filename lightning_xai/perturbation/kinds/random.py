"""Perturbations that draw, keyed by seed and sample id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai.perturbation.kinds.base import Keys, Perturbation, WindowPerturbation, check_range
from lightning_xai.present import draws_of_present


def draw_per_sample(values: Tensor, keys: Keys, seed: int, sample: Callable[..., Tensor]) -> Tensor:
    """A draw per sample, shaped like ``values``; always single precision, so that the dtype does not change it."""
    generators = keys.of(seed)
    if not generators:
        return torch.empty_like(values)
    return draws_of_present(values.shape[1:], keys.absent, generators, sample).to(values)


@dataclass(frozen=True)
class RandomScale(WindowPerturbation):
    r""":math:`(v + b)\, u`, one :math:`u \sim U(low, high)` per sample and window.

    Raises:
        ValueError: If ``low`` exceeds ``high``.

    >>> scaled = RandomScale(low=0.5, high=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))
    >>> scaled[0]
    tensor([[[-0.5000,  0.2500,  1.0000]]])
    """

    strength: ClassVar[str | None] = "high"

    low: float = 0.0
    high: float = 1.0
    bias: float = 0.0
    seed: int = 0

    def check(self) -> None:
        check_range(self.low, self.high)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        one = values.flatten(1)[:, :1].view(-1, *[1] * (values.ndim - 1))
        factor = draw_per_sample(one, keys, self.seed, torch.rand)
        return (values + self.bias) * (self.low + (self.high - self.low) * factor)


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    r""":math:`v + b + n`, an :math:`n \sim N(mean, std^2)` per cell, keyed by the sample's id.

    Raises:
        ValueError: If ``std`` is negative.

    >>> from lightning_xai.perturbation.kinds import Keys
    >>> noise, values = GaussianNoise(seed=1), torch.zeros(2, 1, 3)
    >>> torch.equal(noise.arms(values, Keys((4, 7)))[0, 1], noise.arms(values[:1], Keys((7,)))[0, 0])
    True
    """

    strength: ClassVar[str | None] = "std"

    mean: float = 0.0
    std: float = 1.0
    bias: float = 0.0
    seed: int = 0

    def check(self) -> None:
        if self.std < 0:
            raise ValueError(f"std must not be negative, got {self.std}.")

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        noise = draw_per_sample(values, keys, self.seed, torch.randn)
        return values + self.bias + self.mean + self.std * noise


@dataclass(frozen=True)
class UniformNoise(Perturbation):
    r""":math:`v + b + u`, a :math:`u \sim U(low, high)` per cell.

    Raises:
        ValueError: If ``low`` exceeds ``high``.

    >>> UniformNoise(low=0.25, high=0.25).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.7500,  0.7500,  2.2500]]])
    """

    strength: ClassVar[str | None] = "high"

    low: float = -1.0
    high: float = 1.0
    bias: float = 0.0
    seed: int = 0

    def check(self) -> None:
        check_range(self.low, self.high)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        noise = draw_per_sample(values, keys, self.seed, torch.rand)
        return values + self.bias + self.low + (self.high - self.low) * noise


@dataclass(frozen=True)
class Permute(WindowPerturbation):
    """The window's own cells in a random order, the same for every channel.

    >>> Permute(seed=2).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0].sort().values
    tensor([[[-1.0000,  0.5000,  2.0000]]])
    """

    seed: int = 0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        flat = values.flatten(2)
        if flat.shape[0] == 0:
            return values
        orders = [torch.randperm(flat.shape[2], generator=generator) for generator in keys.of(self.seed)]
        order = torch.stack(orders).to(values.device).unsqueeze(1)
        return flat.gather(2, order.expand_as(flat)).view_as(values)
