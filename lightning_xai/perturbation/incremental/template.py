"""What the passes of a network have in common whatever their rows and numbers, and whether a pass is one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor

from lightning_xai.perturbation.incremental.record import Call, NotReplayable, Record, Tap
from lightning_xai.perturbation.incremental.trees import Held, PerRow, Ref, leaves, mapped


@dataclass(frozen=True, eq=False)
class Template:
    """The structure of the passes of a network. It holds no tensor, so that it can be kept from call to call.

    Attributes:
        calls: The operations.
        trees: Their arguments, integers that follow the rows marked.
        dtypes: The types of the values.
        from_input: Which values depend on the input.
        output: The output.
        taps: The values at the places that were asked for.
        held: The tensors that were there before the pass, weakly, with their shapes.
    """

    calls: Sequence[Call]
    trees: Sequence[tuple[Any, Any]]
    dtypes: Sequence[Any]
    from_input: Sequence[bool]
    output: Any
    taps: dict[Tap, int]
    held: Sequence[tuple[ref[Tensor], tuple[int, ...]]]

    @classmethod
    def of(cls, record: Record, other: Record) -> Template:
        """The structure that two passes of different numbers of rows have in common.

        Raises:
            NotReplayable: If they differ in more than integers that follow the rows.
        """
        _same_number(record.calls, other.calls)
        trees = []
        for call, peer in zip(record.calls, other.calls, strict=True):
            own, its = _leaves_of_both(call, peer)
            marked = [_follow(leaf, mate, record, other, call) for leaf, mate in zip(own, its, strict=True)]
            trees.append(mapped((call.args, call.kwargs), partial(_next, iter(marked))))
        held = [(ref(tensor), tuple(tensor.shape)) for tensor in record.held]
        return cls(record.calls, trees, record.dtypes, record.from_input, record.output, record.taps, held)

    def check(self, record: Record) -> None:
        """Compare a pass with this structure.

        Raises:
            NotReplayable: If it has another one.
        """
        _same_number(record.calls, self.calls)
        for call, peer, tree in zip(record.calls, self.calls, self.trees, strict=True):
            own, _ = _leaves_of_both(call, peer)
            for leaf, mark in zip(own, leaves(tree), strict=True):
                wanted = mark.at(record.rows) if isinstance(mark, PerRow) else mark
                if not _equal(leaf, wanted):
                    raise NotReplayable(f"{call} takes {leaf!r} and {wanted!r} in two passes")
        for tensor, (known, shape) in zip(record.held, self.held, strict=True):
            if known() is not tensor or tuple(tensor.shape) != shape:
                raise NotReplayable("an operation takes a tensor that is made anew in every pass")
        same = record.dtypes == self.dtypes and record.taps == self.taps and record.output == self.output
        if not same or record.from_input != self.from_input:
            raise NotReplayable("its values are of other types, or come from elsewhere, in another pass")


def _same_number(own: Sequence[Call], its: Sequence[Call]) -> None:
    if len(own) != len(its):
        raise NotReplayable("its operations depend on the number of rows or on what it has seen before")


def _leaves_of_both(call: Call, other: Call) -> tuple[list[Any], list[Any]]:
    own, its = call.leaves, other.leaves
    if call.func != other.func or call.outputs != other.outputs or len(own) != len(its):
        raise NotReplayable(f"{call} is {other} in another pass")
    return own, its


def _next(rest: Iterator[Any], _leaf: Any) -> Any:
    return next(rest)


def _equal(own: Any, its: Any) -> bool:
    if own is its:
        return True
    if type(own) is not type(its):
        return False
    return bool(own == its) or (isinstance(own, float) and math.isnan(own) and math.isnan(its))


def _follow(own: Any, its: Any, record: Record, other: Record, call: Call) -> Any:
    if isinstance(own, Ref) or isinstance(its, Ref):
        if own != its:
            raise NotReplayable(f"{call} takes other tensors in another pass")
        return own
    if isinstance(own, Held) and isinstance(its, Held):
        if record.held[own.index] is not other.held[its.index] or own != its:
            raise NotReplayable(f"{call} takes a tensor that is made anew in every pass")
        return own
    if isinstance(own, int) and isinstance(its, int) and not isinstance(own, bool) and own != its:
        slope, rest = divmod(own - its, record.rows - other.rows)
        if rest:
            raise NotReplayable(f"{call} takes a number that does not follow the rows")
        return PerRow(slope, own - slope * record.rows)
    if not _equal(own, its):
        raise NotReplayable(f"{call} takes {own!r} and {its!r} in two passes")
    return own
