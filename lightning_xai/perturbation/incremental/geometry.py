"""Which cells of a map a changed box can reach: per axis a start for every position, and one size for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one size in maps of one shape, one per position.

    Attributes:
        starts: Per axis the first cell of every position, [P].
        sizes: Per axis the number of cells.
        spatial: The shape of the maps.
    """

    starts: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    spatial: tuple[int, ...]

    @property
    def count(self) -> int:
        """P, the number of positions."""
        return len(self.starts[0])

    @property
    def cells(self) -> int:
        """The number of cells of a box."""
        return math.prod(self.sizes)

    @property
    def coverage(self) -> float:
        """The share of the map that a box covers."""
        return self.cells / math.prod(self.spatial)

    def same_as(self, other: Boxes) -> bool:
        """Tell whether the boxes are the same."""
        pairs = zip(self.starts, other.starts, strict=True)
        return self.sizes == other.sizes and all(own is its or torch.equal(own, its) for own, its in pairs)

    def coordinates(self) -> list[Tensor]:
        """Per axis the cells of every box, [P, size]."""
        return [span(start, size) for start, size in zip(self.starts, self.sizes, strict=True)]


def span(start: Tensor, length: int) -> Tensor:
    """``length`` cells from every start on, [P, length]."""
    return start.unsqueeze(1) + torch.arange(length)


def enclose(reached: Sequence[tuple[Tensor, Tensor]], spatial: Sequence[int]) -> Boxes:
    """The boxes that hold, per axis, the cells from the first to the last ones, as far as they lie in the map.

    A box that would reach over the border starts before its first cell: what it holds more is as it was.

    >>> enclose([(torch.tensor([-1, 3]), torch.tensor([1, 6]))], [6])
    Boxes(starts=(tensor([0, 3]),), sizes=(3,), spatial=(6,))
    """
    starts, sizes = [], []
    for (first, last), length in zip(reached, spatial, strict=True):
        first = first.clamp(min=0)
        size = max(1, int((last.clamp(max=length - 1) - first).max()) + 1)
        starts.append(first.clamp(max=length - size))
        sizes.append(size)
    return Boxes(tuple(starts), tuple(sizes), tuple(spatial))


def union(boxes: Sequence[Boxes]) -> Boxes:
    """The smallest boxes that hold all the boxes of each position."""
    first = boxes[0]
    if all(first.same_as(other) for other in boxes[1:]):
        return first
    axes = range(len(first.spatial))
    firsts = [torch.stack([box.starts[axis] for box in boxes]).amin(0) for axis in axes]
    lasts = [torch.stack([box.starts[axis] + box.sizes[axis] for box in boxes]).amax(0) - 1 for axis in axes]
    return enclose(list(zip(firsts, lasts, strict=True)), first.spatial)


def reach_window(
    start: Tensor, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    r"""The first and last output of a window operation that reads a box of one axis.

    .. math:: \left\lceil \frac{o + p - (k - 1) d}{s} \right\rceil \;\dots\;
        \left\lfloor \frac{o + n - 1 + p}{s} \right\rfloor

    >>> reach_window(torch.tensor([4]), 2, kernel=3, stride=2, padding=1, dilation=1)
    (tensor([2]), tensor([3]))
    """
    return ceil_div(start + padding - (kernel - 1) * dilation, stride), floor_div(start + size - 1 + padding, stride)


def reach_transposed(
    start: Tensor, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    r"""The first and last output of a transposed convolution that reads a box of one axis.

    .. math:: o s - p \;\dots\; (o + n - 1) s - p + (k - 1) d
    """
    return start * stride - padding, (start + size - 1) * stride - padding + (kernel - 1) * dilation


def reach_rows(reads: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first and last output that reads a box of one axis; ``reads`` [out, in] marks what each output reads.

    >>> reach_rows(torch.tensor([[1, 1, 0], [0, 1, 1]]).bool(), torch.tensor([0, 2]), 1)
    (tensor([0, 1]), tensor([0, 1]))
    """
    until = torch.nn.functional.pad(reads.long().cumsum(1), (1, 0))
    hit = (until[:, start + size] > until[:, start]).T
    last = hit.shape[1] - 1 - hit.flip(1).long().argmax(1)
    return hit.long().argmax(1), torch.where(hit.any(1), last, 0)


def floor_div(number: Tensor, by: int) -> Tensor:
    """Divide integers and round down."""
    return torch.div(number, by, rounding_mode="floor")


def ceil_div(number: Tensor, by: int) -> Tensor:
    """Divide integers and round up."""
    return -torch.div(-number, by, rounding_mode="floor")
