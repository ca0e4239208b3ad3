"""Windows of a regular grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, spatial_shape
from lightning_xai.regions.base import BoundRegions, Regions
from lightning_xai.regions.selection import Selection

Span: TypeAlias = tuple[int, int]
RegionsLike: TypeAlias = "Regions | int | Sequence[int]"

_REMAINDERS = ("partial", "center", "left", "right")


@dataclass(frozen=True)
class Windows(Regions):
    r"""Windows of a regular grid over one to three spatial axes, or over the columns of a table.

    Window :math:`g` of an axis starts at ``scope start + g * stride``; windows are numbered row by row, the last
    axis fastest.

    Args:
        size: Cells per window, one number for every axis or one per axis.
        stride: Distance of the windows' starts; ``size`` unless given.
        scope: Where the grid lies, ``(start, stop)`` per axis in cells; one pair for an input of one axis. Everything
            unless given.
        remainder: What becomes of cells that do not fill a window: ``partial`` cuts the last window; ``center``,
            ``left`` and ``right`` leave them out, on the side named; ``center`` puts the odd one first.
        select: Which windows of the grid are evaluated; all unless given.

    Raises:
        ValueError: On binding, if the grid does not fit the input.

    >>> grid = Windows(size=2, remainder="center").bind((1, 3, 7))
    >>> grid.count
    3
    >>> grid.paint(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[nan, 1., 1., 2., 2., 3., 3.]])
    """

    size: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    scope: Sequence[int] | Sequence[Sequence[int]] | None = None
    remainder: str = "partial"
    select: Selection | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _sizes("size", self.size))
        object.__setattr__(self, "stride", self.size if self.stride is None else _sizes("stride", self.stride))
        if self.scope is not None:
            object.__setattr__(self, "scope", _pairs(self.scope))
        if self.remainder not in _REMAINDERS:
            raise ValueError(f"remainder must be one of {', '.join(_REMAINDERS)}, got {self.remainder!r}.")
        if self.select is not None and not isinstance(self.select, Selection):
            raise TypeError(f"select must be e.g. regions.Slice(step=2), got {type(self.select).__name__}.")

    def bind(self, inputs: Tensor | Sequence[int]) -> BoundWindows:
        """The grid over inputs [N, C, *S] or [N, F], or over that shape."""
        spatial = spatial_shape(inputs)
        axes = len(spatial)
        sizes = _per_axis("size", self.size, axes)
        strides = _per_axis("stride", self.size if self.stride is None else self.stride, axes)
        scope = tuple((0, length) for length in spatial) if self.scope is None else _pairs(self.scope)
        if len(scope) != axes:
            raise ValueError(
                f"scope has {len(scope)} (start, stop) pairs, the input has {axes} spatial axes {spatial}."
            )
        spans = tuple(map(self._axis, range(axes), spatial, sizes, strides, scope))
        total = math.prod(len(span) for span in spans)
        mask = torch.ones(total, dtype=torch.bool) if self.select is None else self.select.mask(total)
        grid = itertools.product(*([slice(*span) for span in axis] for axis in spans))
        boxes = list(itertools.compress(grid, mask.tolist()))
        if not boxes:
            raise ValueError(f"select={self.select} leaves none of the {total} windows.")
        return BoundWindows(spatial, spans, mask, boxes, len(boxes))

    def _axis(self, axis: int, length: int, size: int, stride: int, scope: Span) -> tuple[Span, ...]:
        start, stop = scope
        if not 0 <= start < stop <= length:
            raise ValueError(f"scope ({start}, {stop}) of axis {axis} must lie within 0 and {length}.")
        extent = stop - start
        if size > extent:
            raise ValueError(f"size {size} of axis {axis} is larger than the {extent} cells there.")
        if self.remainder == "partial":
            count = min(-((size - extent) // stride) + 1, -(-extent // stride))
            offset = 0
        else:
            count = (extent - size) // stride + 1
            excluded = extent - (count - 1) * stride - size
            offset = {"left": excluded, "right": 0, "center": (excluded + 1) // 2}[self.remainder]
        starts = (start + offset + stride * index for index in range(count))
        return tuple((first, min(first + size, stop)) for first in starts)


@dataclass(frozen=True, eq=False)
class BoundWindows(BoundRegions):
    """A grid over one spatial shape.

    Attributes:
        spans: Per axis the (start, stop) of each window along it.
        mask: Which windows of the grid are evaluated.
        boxes: The cells of each of these.
    """

    spatial: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    mask: Tensor
    boxes: list[tuple[slice, ...]]
    count: int

    def paint(self, values: Tensor) -> Tensor:
        self._check(values)
        finite = values.isfinite()
        painted = self.cell_sums(torch.where(finite, values, 0.0))
        return painted / self.cell_sums(finite.to(values.dtype))

    def cell_sums(self, values: Tensor) -> Tensor:
        r"""Sum values [N, J] over the windows that cover a cell, [N, \*S], one axis after the other.

        Without matrix products, which autocast and TF32 round.
        """
        grid = values.new_zeros(values.shape[0], self.mask.numel())
        grid[:, self.mask.to(values.device)] = values
        grid = grid.view(-1, *(len(axis) for axis in self.spans))
        for axis, (spans, length) in enumerate(zip(self.spans, self.spatial, strict=True), start=1):
            wider = grid.new_zeros(*grid.shape[:axis], length, *grid.shape[axis + 1 :])
            for window, (start, stop) in zip(torch.split(grid, 1, axis), spans, strict=True):
                wider.narrow(axis, start, stop - start).add_(window)
            grid = wider
        return grid

    def cells(self, inputs: Tensor, feature: int) -> Iterator[tuple[slice, Tensor]]:
        yield slice(None), self._window(inputs, feature).flatten(2)

    def write(self, target: Tensor, source: Tensor, feature: int) -> None:
        self._window(target, feature).copy_(self._window(source, feature))

    def put(self, target: Tensor, rows: slice, values: Tensor, feature: int) -> None:
        window = self._window(target[rows], feature)
        window.copy_(values.reshape(window.shape))

    def extents(self) -> Tensor:
        return self._extents

    def fills(self, sizes: Sequence[int], features: Sequence[int]) -> bool:
        own = self._extents[0, list(features)]
        return bool((own[..., 1] - own[..., 0] == torch.tensor(sizes)).all())

    @cached_property
    def _extents(self) -> Tensor:
        return torch.tensor([[[(part.start, part.stop) for part in box] for box in self.boxes]])

    def _window(self, inputs: Tensor, feature: int) -> Tensor:
        window: tuple[Any, ...] = (..., *self.boxes[feature])
        return inputs[window]


def as_regions(regions: RegionsLike) -> Regions:
    """Regions, or the size of windows that cover the input.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is a size that is not positive.

    >>> as_regions(4)
    Windows(size=4, stride=4, scope=None, remainder='partial', select=None)
    """
    if isinstance(regions, Regions):
        return regions
    if isinstance(regions, Integral | Sequence) and not isinstance(regions, str):
        return Windows(regions)
    raise TypeError(
        f"regions must be Windows(...), Segments(...) or the size of windows, got {type(regions).__name__}."
    )


def _sizes(name: str, value: int | Sequence[int]) -> int | tuple[int, ...]:
    try:
        if not isinstance(value, Sequence):
            return as_integer(name, value, least=1)
        sizes = tuple(as_integer(name, number, least=1) for number in value)
        if not sizes:
            raise ValueError(f"{name} is empty.")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a positive integer or one per spatial axis, got {value!r}.") from error
    return sizes


def _per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"{name} {tuple(value)} has {len(value)} entries, the input has {axes} spatial axes.")
    return tuple(value)


def _pairs(scope: Sequence[int] | Sequence[Sequence[int]]) -> tuple[Span, ...]:
    entries: Sequence[Any] = [scope] if all(isinstance(bound, Integral) for bound in scope) else scope
    pairs = [tuple(entry) for entry in entries if isinstance(entry, Sequence)]
    if len(pairs) != len(entries) or not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"scope must be (start, stop) or one such pair per spatial axis, got {scope!r}.")
    return tuple((int(start), int(stop)) for start, stop in pairs)
