"""Which windows of a grid are evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, check_fields


class Selection(ABC):
    """A choice of windows of a grid; they are counted row by row, the last axis fastest."""

    @abstractmethod
    def mask(self, count: int) -> Tensor:
        """Mark the windows out of ``count`` that are evaluated, Boolean [count]."""


@dataclass(frozen=True)
class Slice(Selection):
    """The windows ``start``, ``start + step``, ... before ``stop``, as of a Python slice.

    Raises:
        TypeError: If a field is not an integer.
        ValueError: If ``start`` is negative, or ``stop`` or ``step`` less than 1.

    >>> Slice(start=1, step=2).mask(5)
    tensor([False,  True, False,  True, False])
    """

    start: int = 0
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("stop", 1), ("step", 1)):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), least)

    def mask(self, count: int) -> Tensor:
        mask = torch.zeros(count, dtype=torch.bool)
        mask[self.start : self.stop : self.step] = True
        return mask


@dataclass(frozen=True)
class Fraction(Selection):
    r"""The first :math:`\lfloor p J \rfloor` windows.

    Raises:
        ValueError: If p is not above 0, or above 1.

    >>> Fraction(0.5).mask(5)
    tensor([ True,  True, False, False, False])
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.p <= 1:
            raise ValueError(f"p must be above 0 and at most 1, got {self.p}.")

    def mask(self, count: int) -> Tensor:
        return torch.arange(count) < int(self.p * count)


@dataclass(frozen=True)
class Random(Fraction):
    r"""A seeded draw of :math:`\lfloor p J \rfloor` windows, the same everywhere.

    Raises:
        ValueError: If p is not above 0, or above 1.

    >>> int(Random(0.4, seed=3).mask(10).sum())
    4
    """

    p: float = 0.5
    seed: int = 0

    def mask(self, count: int) -> Tensor:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return torch.zeros(count, dtype=torch.bool).index_fill(0, order[: int(self.p * count)], True)


@dataclass(frozen=True)
class Custom(Selection):
    """The windows whose entry is true.

    >>> Custom([1, 0, 1]).mask(3)
    tensor([ True, False,  True])
    """

    keep: Sequence[bool]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(map(bool, self.keep)))

    def mask(self, count: int) -> Tensor:
        if len(self.keep) != count:
            raise ValueError(f"keep has {len(self.keep)} entries, the grid has {count} windows.")
        return torch.tensor(self.keep)
