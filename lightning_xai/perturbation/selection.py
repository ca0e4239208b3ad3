r"""Which windows of a grid are evaluated: a Boolean mask over the features :math:`j = 0..J-1`, without state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Selection(ABC):
    """A choice of windows. Windows are counted row by row, the last axis fastest."""

    @abstractmethod
    def mask(self, count: int) -> Tensor:
        """Which of ``count`` windows stay, Boolean [count]."""


@dataclass(frozen=True)
class All(Selection):
    """Every window.

    >>> All().mask(3)
    tensor([True, True, True])
    """

    def mask(self, count: int) -> Tensor:
        return torch.ones(count, dtype=torch.bool)


@dataclass(frozen=True)
class First(Selection):
    """The first ``n`` windows.

    Raises:
        ValueError: If ``n`` is less than 1.

    >>> First(2).mask(3)
    tensor([ True,  True, False])
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}.")

    def mask(self, count: int) -> Tensor:
        return torch.arange(count) < self.n


@dataclass(frozen=True)
class FirstFraction(Selection):
    r"""The first :math:`\lfloor` fraction :math:`\cdot J \rfloor` windows.

    Raises:
        ValueError: If the fraction is not above 0, or above 1.

    >>> FirstFraction(0.5).mask(5)
    tensor([ True,  True, False, False, False])
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def mask(self, count: int) -> Tensor:
        return torch.arange(count) < int(self.fraction * count)


@dataclass(frozen=True)
class EveryOther(Selection):
    """Every other window, from window ``start`` (0 or 1) on.

    Raises:
        ValueError: If ``start`` is neither 0 nor 1.

    >>> EveryOther(start=1).mask(4)
    tensor([False,  True, False,  True])
    """

    start: int = 0

    def __post_init__(self) -> None:
        if self.start not in (0, 1):
            raise ValueError(f"start must be 0 or 1, got {self.start}.")

    def mask(self, count: int) -> Tensor:
        return torch.arange(count) % 2 == self.start


@dataclass(frozen=True)
class Even(Selection):
    """The windows 0, 2, 4, ...

    >>> Even().mask(3)
    tensor([ True, False,  True])
    """

    def mask(self, count: int) -> Tensor:
        return torch.arange(count) % 2 == 0


@dataclass(frozen=True)
class Odd(Selection):
    """The windows 1, 3, 5, ...

    >>> Odd().mask(3)
    tensor([False,  True, False])
    """

    def mask(self, count: int) -> Tensor:
        return torch.arange(count) % 2 == 1


@dataclass(frozen=True)
class Random(Selection):
    r"""A seeded draw of :math:`\lfloor` fraction :math:`\cdot J \rfloor` windows, the same everywhere.

    Raises:
        ValueError: If the fraction is not above 0, or above 1.

    >>> int(Random(0.4, seed=3).mask(10).sum())
    4
    """

    fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def mask(self, count: int) -> Tensor:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        mask = torch.zeros(count, dtype=torch.bool)
        mask[order[: int(self.fraction * count)]] = True
        return mask


@dataclass(frozen=True)
class Custom(Selection):
    """The windows whose entry is true.

    >>> Custom([1, 0, 1]).mask(3)
    tensor([ True, False,  True])
    """

    keep: Sequence[bool]

    def __post_init__(self) -> None:
        keep = self.keep.tolist() if isinstance(self.keep, Tensor) else self.keep
        object.__setattr__(self, "keep", tuple(bool(entry) for entry in keep))

    def mask(self, count: int) -> Tensor:
        if len(self.keep) != count:
            raise ValueError(f"keep has {len(self.keep)} entries, the grid has {count} windows.")
        return torch.tensor(self.keep)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}.")
