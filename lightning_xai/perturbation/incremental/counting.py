"""The multiplications of operations, and what moving numbers costs beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning_xai.operations.multiplications import count_multiplications, shape_of
from lightning_xai.perturbation.incremental.record import Call, Record
from lightning_xai.perturbation.incremental.trees import Ref

# What else costs time, in multiplications that take as long on a CPU: making a number, moving one, calling a function.
MADE, MOVED, CALLED = 12, 30, 1_000_000


@dataclass(frozen=True)
class Cost:
    """What a pass costs per row.

    Attributes:
        multiplications: Of convolutions, linear layers and matrix products.
        total: With all else, in multiplications that take as long.
        calls: How many functions are called, once for all rows.
        largest: The most numbers that one operation takes or makes.
    """

    multiplications: float = 0.0
    total: float = 0.0
    calls: int = 0
    largest: float = 0.0

    @classmethod
    def mean(cls, costs: Sequence[Cost]) -> Cost:
        """The mean of what passes cost; of the largest operations the largest one."""
        multiplied, total = (sum(getattr(cost, name) for cost in costs) for name in ("multiplications", "total"))
        calls, largest = max(cost.calls for cost in costs), max(cost.largest for cost in costs)
        return cls(multiplied / len(costs), total / len(costs), calls, largest)


def multiplications(call: Call, record: Record) -> float:
    """The multiplications of a call for one row."""
    if not call.outputs:
        return 0
    made = math.prod(record.shapes[call.outputs[0]])
    return count_multiplications(call.func, call.args, call.kwargs, made, partial(_shape, record)) / record.rows


def numbers(call: Call, record: Record) -> float:
    """The numbers that a call makes for one row."""
    return sum(math.prod(record.shapes[output]) for output in call.outputs) / record.rows


def _shape(record: Record, leaf: Any) -> tuple[int, ...]:
    return record.shapes[leaf.index] if isinstance(leaf, Ref) else shape_of(record.tensor(leaf))
