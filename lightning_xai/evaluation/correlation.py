"""Correlations of rows of numbers, some of which may be left out."""

from __future__ import annotations

import torch
from torch import Tensor

UNDEFINED = float("nan")


def is_constant(values: Tensor, there: Tensor, tolerance: float, scale: Tensor) -> Tensor:
    """Tell of which rows [N, n] the numbers that are there differ by no more than ``tolerance * scale``."""
    high = torch.where(there, values, -torch.inf).amax(1)
    low = torch.where(there, values, torch.inf).amin(1)
    return ~(high - low > tolerance * scale)


def pearson(first: Tensor, second: Tensor, there: Tensor) -> Tensor:
    r"""Correlate rows [N, n] over the entries that are there; NaN where a side does not vary.

    .. math:: \frac{\sum_i (a_i - \bar a)(b_i - \bar b)}{\sqrt{\sum_i (a_i - \bar a)^2 \sum_i (b_i - \bar b)^2}}

    >>> everywhere = torch.ones(1, 3, dtype=torch.bool)
    >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]]), everywhere)
    tensor([1.])
    """
    a, b = _centred(first, there), _centred(second, there)
    size = (a**2).sum(1) * (b**2).sum(1)
    found = (a * b).sum(1) / torch.where(size > 0, size, 1.0).sqrt()
    return torch.where(size > 0, found.clamp(-1, 1), UNDEFINED)


def spearman(first: Tensor, second: Tensor, there: Tensor) -> Tensor:
    """Correlate the ranks of rows [N, n] over the entries that are there; NaN where a side does not vary.

    >>> everywhere = torch.ones(1, 4, dtype=torch.bool)
    >>> spearman(torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[1.0, 8.0, 27.0, 28.0]]), everywhere)
    tensor([1.], dtype=torch.float64)
    """
    return pearson(ranks(first, there), ranks(second, there), there)


def ranks(values: Tensor, there: Tensor) -> Tensor:
    """Rank the entries of rows [N, n] from 1 on, in double precision; equal ones share the mean of their ranks.

    torchmetrics' ranks are counted in 32 bits, whose sums overflow where more than 65,535 cells are equal.

    >>> ranks(torch.tensor([[5.0, 1.0, 5.0, 7.0]]), torch.tensor([[True, True, True, False]]))
    tensor([[2.5000, 1.0000, 2.5000,    nan]], dtype=torch.float64)
    """
    keys = torch.where(there, values, torch.inf)
    ordered, order = keys.sort(dim=1, stable=True)
    places = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=torch.float64).expand_as(ordered)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = new.long().cumsum(1) - 1
    count = places.new_zeros(values.shape).scatter_add_(1, group, torch.ones_like(places))
    mean = places.new_zeros(values.shape).scatter_add_(1, group, places) / count.clamp(min=1)
    found = torch.empty_like(places).scatter_(1, order, mean.gather(1, group))
    return torch.where(there, found, UNDEFINED)


def _centred(values: Tensor, there: Tensor) -> Tensor:
    kept = torch.where(there, values, 0.0)
    mean = kept.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    return torch.where(there, kept - mean, 0.0)
