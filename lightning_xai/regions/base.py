"""The base classes of regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import Tensor


class BoundRegions(ABC):
    """Regions laid over inputs of one shape [N, C, *S].

    Attributes:
        count: J, the number of features.
        spatial: The spatial shape S.
    """

    count: int
    spatial: tuple[int, ...]

    @abstractmethod
    def paint(self, values: Tensor) -> Tensor:
        """Values [N, J] laid out over the cells [N, *S].

        The mean where regions overlap, over those whose value is a number; NaN where none reaches.
        """

    @abstractmethod
    def cells(self, inputs: Tensor, feature: int) -> Iterator[tuple[slice, Tensor]]:
        """The cells of one feature: for blocks of samples, the rows [n] and the values [n, C, cells]."""

    @abstractmethod
    def write(self, target: Tensor, source: Tensor, feature: int) -> None:
        """Copy the cells of one feature from ``source`` to ``target``, both [N, C, *S]."""

    @abstractmethod
    def put(self, target: Tensor, rows: slice, values: Tensor, feature: int) -> None:
        """Write values [n, C, cells], ordered as :meth:`cells` gave them, to one feature of ``target``."""

    def rows(self, rows: slice | Tensor) -> BoundRegions:  # noqa: ARG002 - unless a sample has regions of its own
        """Return these regions for some of the samples."""
        return self

    def present(self) -> Tensor | None:
        """Find the features that have cells in each sample, Boolean [N, J]; None if all have."""
        return None

    def extents(self) -> Tensor | None:
        """Find boxes that hold the cells of the features: per axis (start, stop), [N, J, axes, 2], or [1, ...] for all.

        None if no boxes are known.
        """
        return None

    def fills(self, sizes: Sequence[int], features: Sequence[int]) -> bool:  # noqa: ARG002 - unless they are boxes
        """Tell whether every one of some features consists of all cells of a box of these sizes."""
        return False

    def _check(self, values: Tensor) -> None:
        if values.ndim != 2 or values.shape[1] != self.count:
            raise ValueError(f"values must be [samples, {self.count}] for these regions, got {list(values.shape)}.")


class Regions(ABC):
    """A way to cut inputs into features."""

    @abstractmethod
    def bind(self, inputs: Tensor | Sequence[int]) -> BoundRegions:
        """These regions over inputs [N, C, *S] (or a table [N, F]), or over that shape."""
