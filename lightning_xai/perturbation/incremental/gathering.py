"""Reads windows out of maps in which a box has changed: unchanged cells from the record, the others from the patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_xai.perturbation.incremental.geometry import Boxes


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


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a pass: every position for the same number of samples, position by position.

    Attributes:
        samples: The samples of each position's rows, [P, m], or [1, m] if they are the same for all.
        total: How many samples the record has.
    """

    samples: Tensor
    total: int

    def per_row(self, positions: int) -> Tensor:
        """The sample of every row [P * m]."""
        return self.samples.expand(positions, -1).flatten()


@dataclass(frozen=True, eq=False)
class Window:
    """Windows of a map in which boxes have changed: where every cell comes from.

    Args:
        boxes: What has changed.
        coordinates: Per axis the cells that are read at every position, [P, length]; outside the map for padding.
        rows: The rows of the pass.
    """

    boxes: Boxes
    coordinates: Sequence[Tensor]
    rows: Rows

    @property
    def lengths(self) -> tuple[int, ...]:
        """Per axis the cells of a window."""
        return tuple(axis.shape[1] for axis in self.coordinates)

    @cached_property
    def _inside(self) -> Tensor:
        """The cells that lie in the box [P, cells]."""
        boxes = self.boxes
        spans = zip(self.coordinates, boxes.starts, boxes.sizes, strict=True)
        return _outer([(axis >= o.unsqueeze(1)) & (axis < o.unsqueeze(1) + n) for axis, o, n in spans])

    @cached_property
    def _clean(self) -> Tensor:
        """The row of the table of every cell [R * cells]; the last one, which holds the padding, for outside."""
        spatial = self.boxes.spatial
        total = math.prod(spatial)
        place = _flat(self.coordinates, spatial)
        within = _outer([(axis >= 0) & (axis < n) for axis, n in zip(self.coordinates, spatial, strict=True)])
        samples = self.rows.samples.unsqueeze(2) * total
        padding = self.rows.total * total
        return torch.where(within.unsqueeze(1), place.unsqueeze(1) + samples, padding).flatten()

    @cached_property
    def _changed(self) -> tuple[Tensor, Tensor | None]:
        """The cells [R * cells] that the patch fills, and the patch's cells for them; None if these are all."""
        boxes, inside, many = self.boxes, self._inside, self.rows.samples.shape[1]
        offsets = [axis - start.unsqueeze(1) for axis, start in zip(self.coordinates, boxes.starts, strict=True)]
        position, cell = inside.nonzero().unbind(1)
        own = _flat(offsets, boxes.sizes)[position, cell]
        # What the samples of a position share is found once: [P, 1, cells] where boxes lie in their windows, else
        # [1, cells of all positions], in an order of its own.
        every = bool((inside.sum(1) == boxes.cells).all()) and bool((own.view(len(inside), -1).diff(dim=1) > 0).all())
        shape = (len(inside), 1, boxes.cells) if every else (1, -1)
        sample = torch.arange(many).view(1, -1, 1) if every else torch.arange(many).unsqueeze(1)
        row = (position * many).view(shape) + sample
        target = (row * inside.shape[1] + cell.view(shape)).flatten()
        return target, None if every else (row * boxes.cells + own.view(shape)).flatten()

    @property
    def bytes(self) -> int:
        """The memory of the indices, which are kept."""
        cells = self.boxes.count * self.rows.samples.shape[1] * math.prod(self.lengths)
        return 24 * cells

    def to(self, device: torch.device) -> None:
        """Make the indices, on a device."""
        target, source = self._changed
        moved = (self._clean.to(device), target.to(device), None if source is None else source.to(device))
        self.__dict__["_indices"] = moved
        for name in ("_inside", "_clean", "_changed"):
            self.__dict__.pop(name, None)

    def read(self, table: Tensor, patch: Tensor) -> Tensor:
        """Read the cells [R * cells, channels] from a table of clean cells and a patch's cells."""
        if "_indices" not in self.__dict__:
            self.to(table.device)
        clean, target, source = self.__dict__["_indices"]
        cells = table.index_select(0, clean)
        return cells.index_copy_(0, target, patch if source is None else patch.index_select(0, source))

    def read_clean(self, table: Tensor) -> Tensor:
        """Read the cells as they were."""
        if "_indices" not in self.__dict__:
            self.to(table.device)
        return table.index_select(0, self.__dict__["_indices"][0])


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


def table(clean: Tensor, layout: Layout, fill: float) -> Tensor:
    """The cells of clean maps, and one more row of padding."""
    moved = clean.permute(layout.order())
    channels = math.prod(layout.channels)
    found = clean.new_full((clean.numel() // channels + 1, channels), fill)
    found[:-1].view(moved.shape).copy_(moved)
    return found
