"""The plan of a pass over changed boxes: which calls are made on boxes, where whole maps are put together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_xai.perturbation.incremental.counting import MADE, MOVED, Cost, multiplications, numbers
from lightning_xai.perturbation.incremental.gathering import Layout
from lightning_xai.perturbation.incremental.geometry import Boxes
from lightning_xai.perturbation.incremental.operations import (
    BY_CELL,
    TABLE,
    Operation,
    Patch,
    Reader,
    State,
    Step,
    apart,
    narrow,
)
from lightning_xai.perturbation.incremental.operations.base import call_with, read_window
from lightning_xai.perturbation.incremental.record import Call, Record
from lightning_xai.perturbation.incremental.trees import PerRow, Ref, leaves

# Boxes that cover more of a map than this are put together to whole maps: the windows would cost what they save.
_COVERAGE = 0.85


@dataclass(frozen=True, eq=False)
class _Planned:
    """A call with the way it is made: a step on boxes, or None for whole values.

    Of whole values ``apart`` is the one whose channels are laid apart before.
    """

    call: Call
    tree: tuple[Any, Any]
    step: Step | None
    whole: Sequence[Reader] = ()
    free: Sequence[int] = ()
    apart: int | None = None


class Plan:
    """A pass over rows of which boxes have changed. It holds no tensor of a network, and serves any samples.

    Args:
        record: A clean pass; of its values those are read that do not depend on the input.
        trees: The arguments of its calls, integers that follow the rows marked.
        boxes: What changes of the inputs.
        wanted: The values that are wanted.
    """

    def __init__(
        self,
        record: Record,
        trees: Sequence[tuple[Any, Any]],
        boxes: Boxes,
        wanted: Collection[int],
    ) -> None:
        self.boxes, self.wanted = boxes, list(wanted)
        self._dtypes, self._from_input = record.dtypes, record.from_input
        shape = record.shapes[0]
        self.input = Patch(boxes, Layout(shape[1:], tuple(range(len(shape) - len(boxes.spatial), len(shape)))))
        self._patches: dict[int, Patch] = {0: self.input}
        self._whole: set[int] = set()
        self._put_together: dict[int, Reader] = {}
        self.steps: list[_Planned] = []
        uses = _last_uses(record, self.wanted)
        fresh: set[int] = {0}
        for position, (call, tree) in enumerate(zip(record.calls, trees, strict=True)):
            if position not in uses:
                continue
            self._add(record, call, tree, fresh, uses[position])
        for index in self.wanted:
            if index in self._patches:
                self._together(index)
        self.cost = self._cost(record)

    def _add(self, record: Record, call: Call, tree: tuple[Any, Any], fresh: set[int], free: Sequence[int]) -> None:
        inputs = call.inputs()
        patches = {index: self._patches[index] for index in inputs if index in self._patches}
        whole = [index for index in inputs if index in self._whole]
        follows_rows = any(isinstance(leaf, PerRow) for leaf in leaves(tree))
        if not patches and not whole and not follows_rows:
            return
        step: Step | None = None
        if patches and not whole and call.name in TABLE and (not follows_rows or call.name in ("view", "reshape")):
            own = {index for index in patches if index in fresh and index not in self.wanted}
            step = TABLE[call.name](Operation(call, tree, patches, record, own))
        if step is not None and all(made is None or made.boxes.coverage < _COVERAGE for made in step.outputs):
            for index, made in zip(call.outputs, step.outputs, strict=True):
                if made is None:
                    self._whole.add(index)
                else:
                    self._patches[index] = made
            if step.owns:
                fresh.update(call.outputs)
            self.steps.append(_Planned(call, tree, step, (), free))
            return
        readers = [self._together(index) for index in patches if index not in self._whole]
        self._whole.update(call.outputs)
        slow = bool(inputs) and narrow(Operation(call, tree, {}, record), record.shapes[call.outputs[0]][-1:])
        self.steps.append(_Planned(call, tree, None, readers, free, inputs[0] if slow else None))

    def _together(self, index: int) -> Reader:
        """The reader that puts whole maps together."""
        if index not in self._put_together:
            patch = self._patches[index]
            every = [torch.arange(length).expand(patch.boxes.count, -1) for length in patch.layout.positions]
            self._put_together[index] = read_window(index, patch, every)
        return self._put_together[index]

    @property
    def bytes(self) -> int:
        """The memory of the indices of all windows."""
        readers = [*self._put_together.values()]
        readers += [reader for planned in self.steps if planned.step for reader in planned.step.readers]
        return sum(reader.window.bytes for reader in readers if reader.window is not None)

    def read_by_any(self) -> set[int]:
        """The values whose clean numbers this plan may read, or one of fewer positions, whose boxes are smaller."""
        found = {0, *self.wanted}
        for planned in self.steps:
            inputs = {index for index in planned.call.inputs() if self._from_input[index]}
            by_cell = TABLE.get(planned.call.name) in BY_CELL
            if planned.step is None or len(inputs) > 1 or not by_cell:
                found |= inputs
            if planned.step is None:
                found.update(planned.call.outputs)
        return found

    @property
    def first_whole(self) -> str | None:
        """The first call that is made on whole maps."""
        return next((str(planned.call) for planned in self.steps if planned.step is None), None)

    def run(self, state: State, patch: Tensor) -> list[Tensor]:
        """Return the wanted values, whole, for changed boxes [R, C, *sizes] of the inputs."""
        state.patches[0] = patch
        for planned in self.steps:
            if planned.step is not None:
                made = planned.step.run(state)
                for index, values, kept in zip(planned.call.outputs, made, planned.step.outputs, strict=True):
                    # Under autocast some operations choose their type by themselves.
                    values = values.to(self._dtypes[index])
                    (state.whole if kept is None else state.patches)[index] = values
            else:
                self._run_whole(planned, state)
            for index in planned.free:
                state.patches.pop(index, None)
                state.whole.pop(index, None)
        return [self.whole(index, state) for index in self.wanted]

    def whole(self, index: int, state: State) -> Tensor:
        """A whole value; one that a perturbation does not reach is the clean one."""
        if index not in state.whole and index in state.patches:
            state.whole[index] = self._together(index)(state)
        if index in state.whole:
            return state.whole[index]
        return state.rows(index)

    def _run_whole(self, planned: _Planned, state: State) -> None:
        call = planned.call
        for reader in planned.whole:
            if reader.index not in state.whole:
                state.whole[reader.index] = reader(state)
        values = {index: state.whole[index] for index in call.inputs() if index in state.whole}
        if planned.apart in values:
            values[planned.apart] = apart(values[planned.apart])
        own = set(values) - set(self.wanted)
        state.whole.update(zip(call.outputs, call_with(call, planned.tree, values, own, state), strict=True))

    def _cost(self, record: Record) -> Cost:
        """What the pass costs per row."""
        multiplied, total, largest = 0.0, 0.0, 0.0
        for planned in self.steps:
            share, moved = 1.0, float(sum(reader.moved for reader in planned.whole))
            if planned.step is not None:
                first = planned.step.outputs[0]
                share = 0.0 if first is None else first.boxes.coverage
                moved = float(sum(reader.moved for reader in planned.step.readers))
            times, made = multiplications(planned.call, record) * share, numbers(planned.call, record) * share
            multiplied += times
            total += times + MADE * made + MOVED * moved
            largest = max(largest, made, moved)
        return Cost(multiplied, total, len(self.steps), largest)


def dense_cost(record: Record, wanted: Collection[int]) -> Cost:
    """What a pass through the whole network costs per row."""
    uses = _last_uses(record, wanted)
    calls = [call for position, call in enumerate(record.calls) if position in uses]
    calls = [call for call in calls if any(record.from_input[index] for index in call.inputs())]
    multiplied = [multiplications(call, record) for call in calls]
    made = [numbers(call, record) for call in calls]
    return Cost(sum(multiplied), sum(multiplied) + MADE * sum(made), len(calls), max(made, default=0.0))


def _last_uses(record: Record, wanted: Collection[int]) -> dict[int, list[int]]:
    """The calls that the wanted values need, by their place, with the values that nothing needs after them."""
    needed, kept = set(wanted), set(wanted)
    found: dict[int, list[int]] = {}
    for position in reversed(range(len(record.calls))):
        call = record.calls[position]
        if not needed & set(call.outputs):
            continue
        inputs = set(call.inputs())
        found[position] = sorted((inputs - needed) | (set(call.outputs) - needed - kept))
        needed |= inputs
    return dict(sorted(found.items()))


def output_values(record: Record) -> list[int]:
    """The values that the model returns."""
    return [leaf.index for leaf in leaves(record.output) if isinstance(leaf, Ref)]
