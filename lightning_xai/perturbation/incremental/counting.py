"""The multiplications of operations, and what moving numbers costs beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_xai.operation_kinds import arguments
from lightning_xai.perturbation.incremental.record import Call, Record, Ref, leaves

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


def multiplications(call: Call, record: Record) -> float:
    """The multiplications of a call for one row."""
    if not call.outputs:
        return 0
    made = math.prod(record.shapes[call.outputs[0]]) / record.rows
    given = arguments(call.func, call.args, call.kwargs)
    weight = _shape(given.get("weight"), record)
    if call.name.startswith("conv_transpose"):
        entering = math.prod(_shape(given["input"], record)) / record.rows
        return entering * math.prod(weight[1:])
    if call.name.startswith("conv") and weight:
        return made * math.prod(weight[1:])
    if call.name == "linear":
        return made * weight[-1]
    if call.name == "scaled_dot_product_attention":
        query, key = _shape(given["query"], record), _shape(given["key"], record)
        return 2 * math.prod(query) * key[-2] / record.rows
    if call.name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
        first = [leaf for leaf in leaves(call.args) if isinstance(leaf, Ref | Tensor)][-2]
        return made * _shape(first, record)[-1]
    return 0


def numbers(call: Call, record: Record) -> float:
    """The numbers that a call makes for one row."""
    return sum(math.prod(record.shapes[output]) for output in call.outputs) / record.rows


def _shape(leaf: Any, record: Record) -> tuple[int, ...]:
    if isinstance(leaf, Ref):
        return record.shapes[leaf.index]
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else ()
