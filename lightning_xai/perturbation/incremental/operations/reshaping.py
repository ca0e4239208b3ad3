"""Operations that move axes or split channels and leave the positions together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_xai.perturbation.incremental.operations.base import (
    Operation,
    State,
    Step,
    alone,
    axis_in,
    entry,
    on_union,
)
from lightning_xai.perturbation.incremental.trees import Ref


@entry("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split")
def split(op: Operation) -> Step | None:
    """Split channels."""
    patch, axis = alone(op), op.arguments("input size dim").get("dim", 0)
    if patch is None or axis_in(axis, patch) in (0, *patch.layout.spatial):
        return None
    return on_union(op, patch.layout.spatial, owns=False)


@entry("permute transpose swapaxes swapdims movedim moveaxis")
def permutation(op: Operation) -> Step | None:
    """Move axes; the rows stay the first one."""
    patch = alone(op)
    if patch is None or op.call.in_place:
        return None
    order = op.moved_axes()
    if order[0] != 0:
        return None
    spatial = tuple(order.index(axis) for axis in patch.layout.spatial)
    if spatial != tuple(sorted(spatial)):
        return None
    return on_union(op, spatial, owns=False)


@entry("view reshape flatten unflatten")
def reshape(op: Operation) -> Step | None:
    """Reshape channels in front of the positions."""
    patch, shape = alone(op), op.shape()
    if patch is None:
        return None
    positions, axes = patch.layout.positions, len(patch.layout.spatial)
    behind = patch.layout.spatial == tuple(range(len(patch.layout.shape) - axes + 1, len(patch.layout.shape) + 1))
    if not behind or len(shape) <= axes or tuple(shape[-axes:]) != positions:
        return None
    if op.record.shapes[op.call.outputs[0]][0] != op.record.rows:
        return None
    spatial = tuple(range(len(shape) - axes + 1, len(shape) + 1))
    result = op.patched(patch.boxes, spatial)
    reader = op.window(Ref(next(iter(op.patches))), patch.boxes.coordinates())

    def run(state: State) -> Sequence[Tensor]:
        return [reader(state).reshape(-1, *shape[:-axes], *patch.boxes.sizes)]

    return Step([result], run, [reader], owns=False)
