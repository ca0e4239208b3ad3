"""Reads windows out of maps in which a box has changed: unchanged cells from the record, the others from the patch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_xai.perturbation.incremental.geometry import Boxes

# Windows that reach over the left border by no more cells are read as strips.
_MARGIN = 64


@dataclass(frozen=True)
class Layout:
    """Which axes of a tensor [rows, ...] are positions; the others hold channels.

    Attributes:
        shape: The shape without the rows.
        spatial: The axes of the positions, counted with that of the rows.
    """

    shape: tuple[int, ...]
    spatial: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the map."""
        return tuple(self.shape[axis - 1] for axis in self.spatial)

    @property
    def channels(self) -> tuple[int, ...]:
        """The sizes of the other axes."""
        return tuple(size for axis, size in enumerate(self.shape, start=1) if axis not in self.spatial)

    def order(self) -> tuple[int, ...]:
        """The axes: rows, positions, channels."""
        others = (axis for axis in range(1, len(self.shape) + 1) if axis not in self.spatial)
        return (0, *self.spatial, *others)

    def to_cells(self, values: Tensor) -> Tensor:
        """The cells [rows * cells, channels] of such a tensor; a view if its channels lie next to each other."""
        return values.permute(self.order()).reshape(-1, math.prod(self.channels))

    def from_cells(self, cells: Tensor, lengths: Sequence[int]) -> Tensor:
        """The tensor with maps of some lengths that has these cells."""
        order = self.order()
        back = [order.index(axis) for axis in range(len(order))]
        return cells.view(-1, *lengths, *self.channels).permute(back)


class Table:
    """The cells of clean maps, channel by channel, sample by sample.

    Args:
        clean: The maps.
        layout: Their axes.
    """

    def __init__(self, clean: Tensor, layout: Layout) -> None:
        moved = clean.permute(layout.order())
        channels = math.prod(layout.channels)
        # A strip may begin before the first cell, or end behind the last one; what it reads there is never used.
        self._cells = clean.new_zeros(clean.numel() // channels + 2 * _MARGIN, channels)
        inside = self._cells[_MARGIN:-_MARGIN]
        inside.view(moved.shape).copy_(moved)
        self.clean = layout.from_cells(inside, layout.positions)
        self.cells = math.prod(layout.positions)

    def read(self, first: Tensor, width: int) -> Tensor:
        """Read ``width`` cells from every first one on."""
        total, channels = self._cells.shape
        # Strips overlap in memory, so that each is one copy of what lies next to each other.
        strips = self._cells.as_strided((total - width + 1, width * channels), (channels, 1))
        return strips.index_select(0, first + _MARGIN)


@dataclass(frozen=True)
class _Run:
    """Positions in a row whose boxes lie at the same place of their windows: what is padding, what the boxes fill."""

    outside: Sequence[tuple[Any, ...]]
    into: tuple[Any, ...]
    out_of: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Window:
    """Windows of a map in which boxes have changed. They hold geometry only, so that they serve any samples.

    Args:
        boxes: What has changed.
        coordinates: Per axis the cells that are read at every position, [P, length]; outside the map for padding.
        fill: The padding.
    """

    boxes: Boxes
    coordinates: Sequence[Tensor]
    fill: float = 0.0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Per axis the cells of a window."""
        return tuple(axis.shape[1] for axis in self.coordinates)

    @cached_property
    def _width(self) -> int:
        """The cells that lie next to each other in every strip."""
        last, size = self.coordinates[-1], self.boxes.spatial[-1]
        near = int(last.min()) >= -_MARGIN and int(last.max()) < size + _MARGIN
        return last.shape[1] if near and _is_span(last) else 1

    @cached_property
    def _firsts(self) -> Tensor:
        """The first cell of every strip [P, strips], counted from that of the map."""
        parts = [axis.clamp(0, n - 1) for axis, n in zip(self.coordinates, self.boxes.spatial, strict=True)]
        if self._width > 1:
            parts[-1] = self.coordinates[-1][:, :1]
        return _flat(parts, self.boxes.spatial)

    @cached_property
    def _runs(self) -> list[_Run] | None:
        """What is written over clean cells; None if windows are no boxes."""
        if not all(map(_is_span, self.coordinates)):
            return None
        columns = []
        for axis, start, size, n in zip(
            self.coordinates, self.boxes.starts, self.boxes.sizes, self.boxes.spatial, strict=True
        ):
            length, shift = axis.shape[1], start - axis[:, 0]
            into = shift.clamp(0, length), (shift + size).clamp(0, length)
            columns += [*into, into[0] - shift, into[1] - shift]
            columns += [(-axis[:, 0]).clamp(0, length), (n - axis[:, 0]).clamp(0, length)]
        table = torch.stack(columns, 1)
        ends = ((table[1:] != table[:-1]).any(1).nonzero().flatten() + 1).tolist()
        return [
            self._run(first, end, table[first].tolist()) for first, end in itertools.pairwise([0, *ends, len(table)])
        ]

    def _run(self, first: int, end: int, columns: Sequence[int]) -> _Run:
        """A run of positions: per axis where the box lies in the window and what of it, and where the map lies."""
        own = (slice(first, end), slice(None))
        into, out_of, outside = [], [], []
        for axis, length in enumerate(self.lengths):
            place = columns[6 * axis : 6 * axis + 6]
            into.append(slice(place[0], place[1]))
            out_of.append(slice(place[2], place[3]))
            for side in (slice(0, place[4]), slice(place[5], length)):
                if side.start < side.stop:
                    outside.append((*own, *[slice(None)] * axis, side))
        return _Run(outside, (*own, *into), (*own, *out_of))

    @cached_property
    def _scattered(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The positions, cells of windows and cells of boxes that boxes fill; the cells that are padding [P, cells]."""
        boxes = self.boxes
        spans = zip(self.coordinates, boxes.starts, boxes.sizes, strict=True)
        inside = _outer([(axis >= o.unsqueeze(1)) & (axis < o.unsqueeze(1) + n) for axis, o, n in spans])
        offsets = [axis - start.unsqueeze(1) for axis, start in zip(self.coordinates, boxes.starts, strict=True)]
        position, cell = inside.nonzero().unbind(1)
        within = _outer([(axis >= 0) & (axis < n) for axis, n in zip(self.coordinates, boxes.spatial, strict=True)])
        return position, cell, _flat(offsets, boxes.sizes)[position, cell], None if bool(within.all()) else ~within

    @property
    def bytes(self) -> int:
        """The memory of the indices, which are kept."""
        strips = math.prod(self.lengths) // self._width
        scattered = 4 * math.prod(self.lengths) if self._runs is None else 0
        return 8 * self.boxes.count * (strips + scattered)

    def read(self, table: Table, patch: Tensor | None, samples: Tensor) -> Tensor:
        """Read the cells [R * cells, channels]: clean ones, and those of the patch over them.

        Args:
            table: The clean cells.
            patch: The cells of the boxes; None for windows as they were.
            samples: The samples of each position's rows, [P, m], or [1, m] if they are the same for all.
        """
        device, count = samples.device, self.boxes.count
        firsts = self._firsts.to(device).unsqueeze(1) + samples.unsqueeze(2) * table.cells
        found = table.read(firsts.flatten(), self._width)
        made = found.view(count, samples.shape[1], *self.lengths, -1)
        if self._runs is None:
            self._scatter(made, patch)
        else:
            own = None if patch is None else patch.view(count, samples.shape[1], *self.boxes.sizes, -1)
            for run in self._runs:
                for part in run.outside:
                    made[part].fill_(self.fill)
                if own is not None:
                    made[run.into].copy_(own[run.out_of])
        return made.view(-1, made.shape[-1])

    def _scatter(self, made: Tensor, patch: Tensor | None) -> None:
        """Write padding and the cells of a patch into windows [P, m, *lengths, channels] that are no boxes."""
        outside = self._scattered[3]
        cells = made.view(len(made), made.shape[1], -1, made.shape[-1])
        if outside is not None:
            cells.masked_fill_(outside.to(made.device).view(len(made), 1, -1, 1), self.fill)
        if patch is not None:
            position, cell, own = (part.to(made.device) for part in self._scattered[:3])
            many = made.shape[1]
            row = position * many + torch.arange(many, device=made.device).unsqueeze(1)
            source = patch.index_select(0, (row * self.boxes.cells + own).flatten())
            cells.view(-1, made.shape[-1]).index_copy_(0, (row * cells.shape[2] + cell).flatten(), source)


def _is_span(coordinates: Tensor) -> bool:
    """Tell whether the cells of every position [P, length] follow each other."""
    return bool((coordinates.diff(dim=1) == 1).all())


def _outer(masks: Sequence[Tensor]) -> Tensor:
    """Where the masks [P, length] of all axes hold, [P, cells]."""
    found = masks[0]
    for mask in masks[1:]:
        found = (found.unsqueeze(2) & mask.unsqueeze(1)).flatten(1)
    return found


def _flat(coordinates: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The place of every cell in a map of this shape, row by row, [P, cells]."""
    found = coordinates[0]
    for axis, length in zip(coordinates[1:], shape[1:], strict=True):
        found = (found.unsqueeze(2) * length + axis.unsqueeze(1)).flatten(1)
    return found
