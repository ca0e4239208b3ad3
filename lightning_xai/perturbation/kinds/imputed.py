"""Perturbations that fill cells from those that are left."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai.perturbation.kinds.base import Keys, MaskPerturbation
from lightning_xai.perturbation.kinds.random import draw_per_sample

_ACCURACY = 1e-13
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class NoisyLinear(MaskPerturbation):
    r"""Fill cells by the mean of their neighbours, and add noise: the imputation of ROAD.

    .. math:: v_p \sum_o w_o = \sum_o w_o\, v_{p+o}, \qquad w_o = 1 / \|o\|_1,
       \quad o \in \{-1, 0, 1\}^{axes} \setminus 0

    for all replaced cells at once, over the neighbours inside the input; then an :math:`n \sim N(0, noise^2)` per cell
    of a sample, the same whatever is replaced. Where everything is replaced a channel becomes its mean. The columns of
    a table count as a line, though they have no neighbours.

    Args:
        noise: The standard deviation of the noise.
        seed: Keys the draws together with the samples' ids.

    Raises:
        ValueError: If ``noise`` is negative.

    Source: :cite:`rong2022`.

    Between 1 and 4 lie 2 and 3:

    >>> values, mask = torch.tensor([[[1.0, 9.0, 9.0, 4.0]]]), torch.tensor([[False, True, True, False]])
    >>> NoisyLinear(noise=0.0).replaced(values, mask, Keys((0,)))
    tensor([[[1., 2., 3., 4.]]])
    """

    strength: ClassVar[str | None] = "noise"

    noise: float = 0.01
    seed: int = 0

    def check(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}.")

    def fill(self, values: Tensor, mask: Tensor, keys: Keys) -> Tensor:
        precise = values if values.device.type == "mps" else values.double()
        smooth = _smooth(precise, mask.unsqueeze(1)).to(values)
        if self.noise == 0:
            return smooth
        return smooth + self.noise * draw_per_sample(values, keys, self.seed, torch.randn)


def _smooth(values: Tensor, mask: Tensor) -> Tensor:
    """Solve for the cells of a mask [N, 1, *S] by conjugate gradients; the matrix is symmetric and positive."""
    inside, whole = mask.to(values), mask.flatten(1).all(1)
    degree = _neighbours(torch.ones_like(values[:1, :1]))
    start = values.flatten(2).mean(2).view(*values.shape[:2], *[1] * (values.ndim - 2)).expand_as(values)
    axes = tuple(range(2, values.ndim))

    def apply(v: Tensor) -> Tensor:
        return inside * (degree * v - _neighbours(v))

    v = inside * start
    residual = inside * _neighbours(torch.where(mask, 0.0, values)) - apply(v)
    # A sample without a kept cell has no solution but a constant: it starts, and stays, at the mean.
    residual = torch.where(whole.view(-1, *[1] * (values.ndim - 1)), 0.0, residual)
    direction, size = residual, (residual**2).sum(axes, keepdim=True)
    enough = (_ACCURACY**2) * (values**2).sum(axes, keepdim=True)
    for _ in range(_MOST_STEPS):
        if bool((size <= enough).all()):
            break
        image = apply(direction)
        step = _ratio(size, (direction * image).sum(axes, keepdim=True))
        v, residual = v + step * direction, residual - step * image
        before, size = size, (residual**2).sum(axes, keepdim=True)
        direction = residual + _ratio(size, before) * direction
    return torch.where(mask, v, values)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)


def _neighbours(v: Tensor) -> Tensor:
    """Sum the neighbours inside the input, by weight."""
    found, sizes = torch.zeros_like(v), v.shape[2:]
    for offset in itertools.product((-1, 0, 1), repeat=len(sizes)):
        if any(offset):
            steps = list(zip(offset, sizes, strict=True))
            here: tuple[Any, ...] = (..., *(slice(max(0, -step), size - max(0, step)) for step, size in steps))
            there: tuple[Any, ...] = (..., *(slice(max(0, step), size - max(0, -step)) for step, size in steps))
            found[here] += v[there] / sum(map(abs, offset))
    return found
