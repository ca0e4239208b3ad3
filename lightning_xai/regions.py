r"""The features :math:`j \in J` of an input: windows of a regular grid, or the segments of a label map."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, check_fields, spatial_shape

Span: TypeAlias = tuple[int, int]
RegionsLike: TypeAlias = "Regions | int | Sequence[int]"

_REMAINDERS = ("partial", "center", "left", "right")


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

    def _check(self, values: Tensor) -> None:
        if values.ndim != 2 or values.shape[1] != self.count:
            raise ValueError(f"values must be [samples, {self.count}] for these regions, got {list(values.shape)}.")


class Regions(ABC):
    """A way to cut inputs into features."""

    @abstractmethod
    def bind(self, inputs: Tensor | Sequence[int]) -> BoundRegions:
        """These regions over inputs [N, C, *S] (or a table [N, F]), or over that shape."""


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
        painted = self._spread(torch.where(finite, values, 0.0))
        return painted / self._spread(finite.to(values.dtype))

    def _spread(self, values: Tensor) -> Tensor:
        """The sum over the windows that cover a cell, one axis after the other.

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

    @cached_property
    def _extents(self) -> Tensor:
        return torch.tensor([[[(part.start, part.stop) for part in box] for box in self.boxes]])

    def _window(self, inputs: Tensor, feature: int) -> Tensor:
        window: tuple[Any, ...] = (..., *self.boxes[feature])
        return inputs[window]


@dataclass(frozen=True, eq=False)
class Segments(Regions):
    """The segments of an integer label map: superpixels, spectral bands, groups of columns.

    Args:
        labels: Labels 0..J-1 [*S], one map for all samples; or a function ``inputs -> labels [N, *S]`` for one map
            per sample. Cells labelled -1 belong to no feature. Feature j of a sample without cells labelled j is NaN.

    Raises:
        ValueError: If the labels are not integers from -1 on, or name no feature.

    >>> bands = Segments(torch.tensor([0, 0, 1, -1])).bind((1, 2, 4))
    >>> bands.paint(torch.tensor([[3.0, 5.0]]))
    tensor([[3., 3., 5., nan]])
    """

    labels: Tensor | Sequence[int] | Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.labels):
            labels = torch.as_tensor(self.labels)
            _check_labels(labels)
            object.__setattr__(self, "labels", labels)

    def bind(self, inputs: Tensor | Sequence[int]) -> BoundSegments:
        """The segments over inputs [N, C, *S] or [N, F]; a function of the inputs needs the inputs themselves."""
        spatial = spatial_shape(inputs)
        if callable(self.labels):
            if not isinstance(inputs, Tensor):
                raise ValueError("labels is a function of the inputs: bind the inputs, not their shape.")
            labels = self.labels(inputs)
            if not isinstance(labels, Tensor):
                raise TypeError(f"labels must return a tensor, got {type(labels).__name__}.")
            _check_labels(labels)
            needed = [len(inputs), *spatial]
        else:
            labels, needed = torch.as_tensor(self.labels), [*spatial]
        if list(labels.shape) != needed:
            raise ValueError(
                f"labels are {list(labels.shape)}, the inputs need {needed}; one map per sample is made by a function "
                f"of the inputs."
            )
        labels = labels.reshape(-1, *spatial)
        if isinstance(inputs, Tensor):
            labels = labels.to(inputs.device)
        return BoundSegments(labels.long(), int(labels.max()) + 1, spatial)


@dataclass(frozen=True, eq=False)
class BoundSegments(BoundRegions):
    """A label map [N, *S], or [1, *S] for all samples.

    Attributes:
        labels: The feature of each cell, -1 for none.
        count: J, the number of features.

    >>> list(Segments([0, 1, 0]).bind((1, 1, 3)).cells(torch.tensor([[[5.0, 6.0, 7.0]]]), 0))
    [(slice(None, None, None), tensor([[[5., 7.]]]))]
    """

    labels: Tensor
    count: int
    spatial: tuple[int, ...]

    def paint(self, values: Tensor) -> Tensor:
        self._check(values)
        values = torch.where(values.isfinite(), values, float("nan"))
        labels = self.labels.to(values.device).expand(values.shape[0], *self.spatial)
        painted = values.gather(1, labels.flatten(1).clamp(min=0)).view_as(labels)
        return torch.where(labels >= 0, painted, float("nan"))

    def cells(self, inputs: Tensor, feature: int) -> Iterator[tuple[slice, Tensor]]:
        masks = (self.labels == feature).flatten(1)
        flat = inputs.flatten(2)
        if masks.shape[0] == 1:
            yield slice(None), flat[:, :, masks[0]]
            return
        for row, mask in enumerate(masks):
            yield slice(row, row + 1), flat[row : row + 1, :, mask]

    def write(self, target: Tensor, source: Tensor, feature: int) -> None:
        target.copy_(torch.where((self.labels == feature).unsqueeze(1), source, target))

    def put(self, target: Tensor, rows: slice, values: Tensor, feature: int) -> None:
        mask = self.rows(rows).labels == feature
        # Every sample of the block has the same cells, so the mask of the first one orders the values of all.
        target[rows].masked_scatter_(mask.unsqueeze(1), values)

    def rows(self, rows: slice | Tensor) -> BoundSegments:
        return self if self.labels.shape[0] == 1 else replace(self, labels=self.labels[rows])

    def present(self) -> Tensor:
        labels = self.labels.flatten(1) + 1
        found = torch.zeros(len(labels), self.count + 1, dtype=torch.bool, device=labels.device)
        return found.scatter_(1, labels, True)[:, 1:]

    def extents(self) -> Tensor:
        labels = self.labels.flatten(1).cpu() + 1
        axes = []
        for axis, length in enumerate(self.spatial):
            place = torch.arange(length).view(-1, *[1] * (len(self.spatial) - axis - 1)).expand(self.spatial)
            cells = place.flatten().expand(len(labels), -1)
            empty = torch.zeros(len(labels), self.count + 1, dtype=torch.long)
            first, last = (empty.scatter_reduce(1, labels, cells, how, include_self=False) for how in ("amin", "amax"))
            axes.append(torch.stack([first, last + 1], 2)[:, 1:])
        return torch.stack(axes, 2)


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
    if isinstance(regions, int | Sequence) and not isinstance(regions, str):
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
    entries: Sequence[Any] = [scope] if all(isinstance(bound, int) for bound in scope) else scope
    pairs = [tuple(entry) for entry in entries if isinstance(entry, Sequence)]
    if len(pairs) != len(entries) or not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"scope must be (start, stop) or one such pair per spatial axis, got {scope!r}.")
    return tuple((int(start), int(stop)) for start, stop in pairs)


def _check_labels(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if labels.numel() == 0 or int(labels.min()) < -1 or int(labels.max()) < 0:
        raise ValueError("labels must run from 0 (-1 marks cells of no feature) and name at least one feature.")
