"""An operation of a recorded pass as the entries of the table meet it, and what an entry makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_xai.operations.kinds import arguments
from lightning_xai.perturbation.incremental.gathering import Layout, Rows, Window, table
from lightning_xai.perturbation.incremental.geometry import Boxes, union
from lightning_xai.perturbation.incremental.record import Call, PerRow, Record, Ref, leaves, mapped


@dataclass(frozen=True, eq=False)
class Patch:
    """A value of which only boxes have changed.

    Attributes:
        boxes: Where.
        layout: The axes of the whole value.
    """

    boxes: Boxes
    layout: Layout


class State:
    """The tensors of one pass over changed rows.

    Attributes:
        clean: The record whose values are kept.
        patches: The changed boxes of values.
        whole: Values of which every cell is at hand.
    """

    def __init__(self, clean: Record, tables: dict[tuple[int, float], Tensor]) -> None:
        self.clean = clean
        self.patches: dict[int, Tensor] = {}
        self.whole: dict[int, Tensor] = {}
        self._tables = tables

    def table(self, index: int, layout: Layout, fill: float) -> Tensor:
        """The clean cells of a value with a row of padding, made when they are first read."""
        key = index, fill
        if key not in self._tables:
            self._tables[key] = table(self.clean.values[index], layout, fill)
            # The value itself from now on is a view of its table, so that it is held once.
            self.clean.values[index] = layout.from_cells(self._tables[key][:-1], layout.positions)
        return self._tables[key]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads windows of a value whose boxes have changed."""

    index: int
    patch: Patch
    window: Window | None
    fill: float = 0.0

    def __call__(self, state: State) -> Tensor:
        """The windows [R, ...] in the layout of the value."""
        own = state.patches[self.index]
        if self.window is None:
            return own
        layout = self.patch.layout
        cells = self.window.read(state.table(self.index, layout, self.fill), layout.to_cells(own))
        return layout.from_cells(cells, self.window.lengths)

    def clean(self, state: State) -> Tensor:
        """The same windows as they were."""
        layout, window = self.patch.layout, self.window
        assert window is not None
        return layout.from_cells(window.read_clean(state.table(self.index, layout, self.fill)), window.lengths)

    @property
    def moved(self) -> int:
        """How many numbers of a row are moved."""
        if self.window is None:
            return 0
        return (self.patch.boxes.cells + math.prod(self.window.lengths)) * math.prod(self.patch.layout.channels)


@dataclass(frozen=True, eq=False)
class Step:
    """A call on changed boxes.

    Attributes:
        outputs: What it makes of each value; None for a value of which every cell is at hand afterwards.
        run: Makes the values.
        readers: What it reads.
        owns: Whether the values lie in memory of their own.
    """

    outputs: Sequence[Patch | None]
    run: Callable[[State], Sequence[Tensor]]
    readers: Sequence[Reader] = ()
    owns: bool = True


@dataclass(frozen=True, eq=False)
class Operation:
    """A call of which some inputs have changed in boxes.

    Attributes:
        call: The call.
        tree: Its arguments, by position and by name.
        patches: The changed inputs.
        record: The clean pass, of whose values those are kept that do not depend on the input.
        own: The values whose memory no other value shares.
        rows: The rows of the passes to be made.
        count: How many rows these are.
    """

    call: Call
    tree: tuple[Any, Any]
    patches: Mapping[int, Patch]
    record: Record
    rows: Rows
    count: int
    own: set[int] = field(default_factory=set)

    def arguments(self, order: str = "") -> dict[str, Any]:
        """The arguments by their names; ``order`` names those by position if it is given."""
        args, kwargs = self.tree
        if order:
            return {**dict(zip(order.split(), args, strict=False)), **kwargs}
        return arguments(self.call.func, args, kwargs)

    def patch(self, leaf: Any) -> Patch | None:
        """What has changed of an argument; None for one that is the same, or no tensor."""
        return self.patches.get(leaf.index) if isinstance(leaf, Ref) else None

    def constant(self, leaf: Any) -> Any:
        """An argument that has not changed."""
        if isinstance(leaf, Ref):
            return self.record.values[leaf.index]
        return leaf

    def is_constant(self, *leaves: Any) -> bool:
        """Tell whether none of some arguments has changed."""
        return all(self.patch(leaf) is None for leaf in leaves)

    def shape(self, output: int = 0) -> tuple[int, ...]:
        """The shape of a whole result without its rows."""
        return self.record.shapes[self.call.outputs[output]][1:]

    def window(self, leaf: Any, coordinates: Sequence[Tensor], fill: float = 0.0) -> Reader:
        """A reader of windows of a changed argument."""
        return read_window(leaf.index, self.patches[leaf.index], coordinates, self.rows, fill)

    def box(self, leaf: Any) -> Reader:
        """A reader of the changed boxes of an argument, as they are and as they were."""
        patch = self.patches[leaf.index]
        return Reader(leaf.index, patch, Window(patch.boxes, patch.boxes.coordinates(), self.rows))

    def moved_axes(self) -> tuple[int, ...]:
        """The axes of the first argument in the order that the call gives them."""
        args, kwargs = self.tree
        axes = len(self.patches[args[0].index].layout.shape) + 1
        # A tensor whose sizes tell its axes shows where they go.
        moved: Tensor = self.call.func(torch.empty(*range(1, axes + 1)), *args[1:], **kwargs)
        return tuple(size - 1 for size in moved.shape)

    def resolved(self, values: Mapping[int, Tensor]) -> tuple[Any, Any]:
        """The arguments for the rows at hand, with changed values put in."""
        return resolve(self.tree, values, self.record, self.count)

    def patched(self, boxes: Boxes, spatial: Sequence[int], output: int = 0) -> Patch:
        """A result of which boxes change."""
        return Patch(boxes, Layout(self.shape(output), tuple(spatial)))


def read_window(index: int, patch: Patch, coordinates: Sequence[Tensor], rows: Rows, fill: float = 0.0) -> Reader:
    """A reader of windows of a changed value."""
    own = patch.boxes.coordinates()
    if all(axis.shape == its.shape and torch.equal(axis, its) for axis, its in zip(coordinates, own, strict=True)):
        return Reader(index, patch, None, fill)
    return Reader(index, patch, Window(patch.boxes, coordinates, rows), fill)


def resolve(tree: tuple[Any, Any], values: Mapping[int, Tensor], record: Record, rows: int) -> tuple[Any, Any]:
    """Arguments with values put in for references, and the number of rows for what follows it."""

    def put(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return values[leaf.index] if leaf.index in values else record.values[leaf.index]
        return leaf.slope * rows + leaf.base if isinstance(leaf, PerRow) else leaf

    args, kwargs = mapped(tree, put)
    return args, kwargs


Entry = Callable[[Operation], Step | None]
"""Makes a step of an operation; None if it cannot be made on boxes, so that whole maps are put together."""

TABLE: dict[str, Entry] = {}


def entry(names: str) -> Callable[[Entry], Entry]:
    """Enter a function for operations of some names, in which ``#`` stands for 1, 2 and 3."""

    def enter(function: Entry) -> Entry:
        TABLE.update({name.replace("#", axes): function for name in names.split() for axes in "123"})
        return function

    return enter


def per_axis(value: Any, axes: int) -> list[int]:
    """One number per axis."""
    if isinstance(value, int):
        return [value] * axes
    return [*value] * axes if len(value) == 1 else [*value]


def maps_behind_channels(patch: Patch | None) -> bool:
    """Tell whether a value is [N, C, *S]."""
    return patch is not None and patch.layout.spatial == tuple(range(2, len(patch.layout.shape) + 1))


def constants(op: Operation) -> list[Tensor]:
    """The tensors among the arguments that have not changed."""
    found = []
    for leaf in leaves(op.tree):
        if isinstance(leaf, Tensor) or (isinstance(leaf, Ref) and leaf.index not in op.patches):
            found.append(op.constant(leaf))
    return found


def on_union(op: Operation, spatial: tuple[int, ...], *, owns: bool = True) -> Step:
    """Run a call as it is on the union of the boxes of its arguments."""
    boxes = union([patch.boxes for patch in op.patches.values()])
    readers = [op.window(Ref(index), boxes.coordinates()) for index in op.patches]
    results = [op.patched(boxes, spatial, output) for output in range(len(op.call.outputs))]

    def run(state: State) -> Sequence[Tensor]:
        values = {reader.index: reader(state) for reader in readers}
        return call_with(op, values)

    return Step(results, run, readers, owns)


def call_with(op: Operation, values: dict[int, Tensor]) -> Sequence[Tensor]:
    """What a call makes of other values of its arguments."""
    if op.call.in_place:
        first = op.tree[0][0].index
        if first not in op.own:  # others may see the same memory
            values = {**values, first: values[first].clone()}
    args, kwargs = op.resolved(values)
    # The maps that are put together need not lie in memory as the clean ones do.
    func = torch.reshape if op.call.name == "view" and not isinstance(args[-1], torch.dtype) else op.call.func
    if func is torch.reshape and not isinstance(args[1], tuple | list):
        args = (args[0], args[1:])
    result = func(*args, **kwargs)
    if op.call.returns_first:
        return [args[0]]
    return [result] if isinstance(result, Tensor) else list(result)


def alone(op: Operation) -> Patch | None:
    """The one argument that has changed, if it is the first one and no other has."""
    first = op.patch(op.tree[0][0]) if op.tree[0] else None
    return first if len(op.patches) == 1 else None


def axis_in(axis: int, patch: Patch) -> int:
    """The number of an axis, counted from the front."""
    return axis % (len(patch.layout.shape) + 1)
