"""An operation of a recorded pass as the entries of the table meet it, and what an entry makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_xai.operations.kinds import arguments
from lightning_xai.perturbation.incremental.gathering import Layout, Table, Window
from lightning_xai.perturbation.incremental.geometry import Boxes, union
from lightning_xai.perturbation.incremental.record import Call, Record
from lightning_xai.perturbation.incremental.trees import Held, PerRow, Ref, leaves, mapped


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

    Args:
        clean: The record whose values are kept.
        tables: The tables of clean cells that were made.
        samples: The samples of each position's rows, [P, m], or [1, m] if they are the same for all.
        positions: P.

    Attributes:
        patches: The changed boxes of values.
        whole: Values of which every cell is at hand.
        count: The number of rows.
    """

    def __init__(self, clean: Record, tables: dict[int, Table], samples: Tensor, positions: int) -> None:
        self.clean, self.samples = clean, samples
        self.patches: dict[int, Tensor] = {}
        self.whole: dict[int, Tensor] = {}
        self.count = positions * samples.shape[1]
        self._tables, self._positions = tables, positions

    def table(self, index: int, layout: Layout) -> Table:
        """The clean cells of a value, made when they are first read."""
        if index not in self._tables:
            self._tables[index] = Table(self.clean.values[index], layout)
            # The value itself from now on is a view of its table, so that it is held once.
            self.clean.values[index] = self._tables[index].clean
        return self._tables[index]

    def rows(self, index: int) -> Tensor:
        """The clean value of the sample of every row."""
        return self.clean.values[index].index_select(0, self.samples.expand(self._positions, -1).flatten())

    def resolve(self, tree: tuple[Any, Any], values: Mapping[int, Tensor]) -> tuple[Any, Any]:
        """Arguments with tensors put in for marks, and the number of rows for what follows it."""

        def put(leaf: Any) -> Any:
            if isinstance(leaf, Ref) and leaf.index in values:
                return values[leaf.index]
            return leaf.at(self.count) if isinstance(leaf, PerRow) else self.clean.tensor(leaf)

        args, kwargs = mapped(tree, put)
        return args, kwargs


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads windows of a value whose boxes have changed."""

    index: int
    patch: Patch
    window: Window | None

    def __call__(self, state: State) -> Tensor:
        """The windows [R, ...] in the layout of the value."""
        own = state.patches[self.index]
        if self.window is None:
            return own
        return self._read(state, self.window, self.patch.layout.to_cells(own))

    def clean(self, state: State) -> Tensor:
        """The same windows as they were."""
        assert self.window is not None
        return self._read(state, self.window, None)

    def _read(self, state: State, window: Window, patch: Tensor | None) -> Tensor:
        layout = self.patch.layout
        cells = window.read(state.table(self.index, layout), patch, state.samples)
        return layout.from_cells(cells, window.lengths)

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

    Steps outlive it: what they keep of it is geometry, and they read tensors off the state of a pass.

    Attributes:
        call: The call.
        tree: Its arguments, by position and by name.
        patches: The changed inputs.
        record: The clean pass, of whose values those are kept that do not depend on the input.
        own: The values whose memory no other value shares.
    """

    call: Call
    tree: tuple[Any, Any]
    patches: Mapping[int, Patch]
    record: Record
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
        """An argument that has not changed, as it is in the clean pass at hand."""
        return self.record.tensor(leaf)

    def is_constant(self, *leaves: Any) -> bool:
        """Tell whether none of some arguments has changed."""
        return all(self.patch(leaf) is None for leaf in leaves)

    def shape_of(self, leaf: Any) -> tuple[int, ...]:
        """The shape of an argument that is a tensor."""
        return self.record.shapes[leaf.index] if isinstance(leaf, Ref) else tuple(self.record.tensor(leaf).shape)

    def shape(self, output: int = 0) -> tuple[int, ...]:
        """The shape of a whole result without its rows."""
        return self.record.shapes[self.call.outputs[output]][1:]

    def window(self, leaf: Any, coordinates: Sequence[Tensor], fill: float = 0.0) -> Reader:
        """A reader of windows of a changed argument."""
        return read_window(leaf.index, self.patches[leaf.index], coordinates, fill)

    def box(self, leaf: Any) -> Reader:
        """A reader of the changed boxes of an argument, as they are and as they were."""
        patch = self.patches[leaf.index]
        return Reader(leaf.index, patch, Window(patch.boxes, patch.boxes.coordinates()))

    def moved_axes(self) -> tuple[int, ...]:
        """The axes of the first argument in the order that the call gives them."""
        args, kwargs = self.tree
        axes = len(self.patches[args[0].index].layout.shape) + 1
        # A tensor whose sizes tell its axes shows where they go.
        moved: Tensor = self.call.func(torch.empty(*range(1, axes + 1)), *args[1:], **kwargs)
        return tuple(size - 1 for size in moved.shape)

    def patched(self, boxes: Boxes, spatial: Sequence[int], output: int = 0) -> Patch:
        """A result of which boxes change."""
        return Patch(boxes, Layout(self.shape(output), tuple(spatial)))


def read_window(index: int, patch: Patch, coordinates: Sequence[Tensor], fill: float = 0.0) -> Reader:
    """A reader of windows of a changed value."""
    own = patch.boxes.coordinates()
    if all(axis.shape == its.shape and torch.equal(axis, its) for axis, its in zip(coordinates, own, strict=True)):
        return Reader(index, patch, None)
    return Reader(index, patch, Window(patch.boxes, coordinates, fill))


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
        if isinstance(leaf, Held) or (isinstance(leaf, Ref) and leaf.index not in op.patches):
            found.append(op.constant(leaf))
    return found


def on_union(op: Operation, spatial: tuple[int, ...], *, owns: bool = True) -> Step:
    """Run a call as it is on the union of the boxes of its arguments."""
    boxes = union([patch.boxes for patch in op.patches.values()])
    readers = [op.window(Ref(index), boxes.coordinates()) for index in op.patches]
    results = [op.patched(boxes, spatial, output) for output in range(len(op.call.outputs))]

    call, tree, own = op.call, op.tree, op.own

    def run(state: State) -> Sequence[Tensor]:
        return call_with(call, tree, {reader.index: reader(state) for reader in readers}, own, state)

    return Step(results, run, readers, owns)


def call_with(
    call: Call, tree: tuple[Any, Any], values: dict[int, Tensor], own: Collection[int], state: State
) -> Sequence[Tensor]:
    """What a call makes of other values of its arguments; it may write into those that are its ``own``."""
    if call.in_place:
        first = tree[0][0].index
        if first not in own:  # others may see the same memory
            values = {**values, first: values[first].clone()}
    args, kwargs = state.resolve(tree, values)
    # The maps that are put together need not lie in memory as the clean ones do.
    func = torch.reshape if call.name == "view" and not isinstance(args[-1], torch.dtype) else call.func
    if func is torch.reshape and not isinstance(args[1], tuple | list):
        args = (args[0], args[1:])
    result = func(*args, **kwargs)
    if call.returns_first:
        return [args[0]]
    return [result] if isinstance(result, Tensor) else list(result)


def alone(op: Operation) -> Patch | None:
    """The one argument that has changed, if it is the first one and no other has."""
    first = op.patch(op.tree[0][0]) if op.tree[0] else None
    return first if len(op.patches) == 1 else None


def axis_in(axis: int, patch: Patch) -> int:
    """The number of an axis, counted from the front."""
    return axis % (len(patch.layout.shape) + 1)
