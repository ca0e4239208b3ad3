"""Operations that copy or average cells along each axis by itself: padding, slices, interpolation, mean pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.perturbation.incremental.gathering import Layout
from lightning_xai.perturbation.incremental.geometry import Boxes, enclose, reach_rows, span
from lightning_xai.perturbation.incremental.operations.base import (
    Operation,
    Patch,
    State,
    Step,
    alone,
    entry,
    maps_behind_channels,
    per_axis,
)


def copied(op: Operation, patch: Patch, sources: Sequence[Tensor], fill: float = 0.0, channels: Any = None) -> Step:
    """Copy cells: per axis the cell [out] that every output cell is a copy of, one outside for ``fill``."""
    boxes = _reached([source.unsqueeze(1) == torch.arange(n) for source, n in _per_axis(sources, patch)], op, patch)
    coordinates = [source[axis] for source, axis in zip(sources, boxes.coordinates(), strict=True)]
    reader = op.window(op.tree[0][0], coordinates, fill)

    def run(state: State) -> Sequence[Tensor]:
        made = reader(state)
        return [made if channels is None else made[channels]]

    return Step([op.patched(boxes, patch.layout.spatial)], run, [reader], owns=False)


def averaged(op: Operation, patch: Patch, weights: Sequence[Tensor]) -> Step:
    """Take weighted sums along each axis: per axis the weights [out, in]."""
    reads = [matrix != 0 for matrix in weights]
    boxes = _reached(reads, op, patch)
    coordinates, factors = [], []
    for axis, matrix, read in zip(boxes.coordinates(), weights, reads, strict=True):
        first = read.long().argmax(1)[axis].amin(1)
        last = (read.shape[1] - 1 - read.flip(1).long().argmax(1))[axis].amax(1)
        cells = span(first, int((last - first).max()) + 1)
        inside = cells < matrix.shape[1]
        part = matrix[axis].gather(2, cells.clamp(max=matrix.shape[1] - 1).unsqueeze(1).expand(-1, axis.shape[1], -1))
        factors.append(torch.where(inside.unsqueeze(1), part, 0.0))
        coordinates.append(cells)
    reader = op.window(op.tree[0][0], coordinates)
    positions = patch.boxes.count

    def run(state: State) -> Sequence[Tensor]:
        made = reader(state)
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        with torch.autocast(made.device.type, enabled=False):
            for axis, factor in zip(patch.layout.spatial, factors, strict=True):
                made = made.movedim(axis, -1)
                rows = made.reshape(positions, -1, made.shape[-1])
                made = (rows @ factor.mT.to(made)).view(*made.shape[:-1], -1).movedim(-1, axis)
        return [made]

    return Step([op.patched(boxes, patch.layout.spatial)], run, [reader])


def _per_axis(parts: Sequence[Tensor], patch: Patch) -> list[tuple[Tensor, int]]:
    return list(zip(parts, patch.layout.positions, strict=True))


def _reached(reads: Sequence[Tensor], op: Operation, patch: Patch) -> Boxes:
    reached = [
        reach_rows(read, start, size)
        for read, start, size in zip(reads, patch.boxes.starts, patch.boxes.sizes, strict=True)
    ]
    return enclose(reached, Layout(op.shape(), patch.layout.spatial).positions)


@entry("pad")
def padding(op: Operation) -> Step | None:
    """Copy cells, as the way of padding says which."""
    given = {"mode": "constant", "value": None, **op.arguments()}
    patch = alone(op)
    if not maps_behind_channels(patch):
        return None
    assert patch is not None
    axes, amounts = len(patch.layout.spatial), list(given["pad"])
    if any(amounts[2 * axes :]):  # channels, too
        return None
    amounts = [*amounts, *[0] * (2 * axes)][: 2 * axes]
    sources = []
    for axis, length in enumerate(patch.layout.positions):
        before, after = amounts[2 * (axes - axis - 1)], amounts[2 * (axes - axis - 1) + 1]
        if given["mode"] == "constant":
            sources.append(torch.arange(-before, length + after))
            continue
        cells = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
        sources.append(functional.pad(cells, (before, after), mode=given["mode"]).flatten().long())
    return copied(op, patch, sources, 0.0 if given["value"] is None else float(given["value"]))


@entry("getitem")
def slices(op: Operation) -> Step | None:
    """Copy cells and channels that slices of every axis name."""
    patch, index = alone(op), op.tree[0][1]
    index = index if isinstance(index, tuple) else (index,)
    if patch is None or not all(isinstance(part, slice) or part is Ellipsis for part in index):
        return None
    axes = len(patch.layout.shape) + 1
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (axes - len(index) + 1), *index[at + 1 :])
    index = (*index, *[slice(None)] * (axes - len(index)))
    if index[0] != slice(None) or len(op.shape()) != len(patch.layout.shape) or 0 in op.shape():
        return None
    spatial = patch.layout.spatial
    sources = [torch.arange(n)[index[axis]] for axis, n in zip(spatial, patch.layout.positions, strict=True)]
    channels = tuple(slice(None) if axis in spatial else part for axis, part in enumerate(index))
    return copied(op, patch, sources, channels=channels)


@entry("flip")
def flipped(op: Operation) -> Step | None:
    """Copy cells in reverse."""
    patch, axes = alone(op), op.arguments("input dims").get("dims")
    if patch is None or not isinstance(axes, tuple | list) or len(op.tree[0]) > 2:
        return None
    turned = {axis % (len(patch.layout.shape) + 1) for axis in axes}
    if not turned <= set(patch.layout.spatial):
        return None
    sources = [
        torch.arange(n).flip(0) if axis in turned else torch.arange(n)
        for axis, n in zip(patch.layout.spatial, patch.layout.positions, strict=True)
    ]
    return copied(op, patch, sources)


_INTERPOLATE = "input size scale_factor mode align_corners recompute_scale_factor antialias"
_LINEAR = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "bicubic", "area": "area"}


@entry("interpolate")
def interpolation(op: Operation) -> Step | None:
    """Copy cells for the nearest ones, average them else."""
    patch, given = alone(op), op.arguments(_INTERPOLATE)
    if not maps_behind_channels(patch) or given.get("antialias"):
        return None
    assert patch is not None
    axes, mode = len(patch.layout.spatial), given.get("mode", "nearest")
    sizes, scales = (None if given.get(key) is None else _list(given[key], axes) for key in ("size", "scale_factor"))
    how = {key: given[key] for key in ("align_corners", "recompute_scale_factor") if given.get(key) is not None}
    parts = []
    for axis, length in enumerate(patch.layout.positions):
        one: dict[str, Any] = {"size": sizes[axis]} if sizes else {"scale_factor": scales[axis]} if scales else {}
        if mode in ("nearest", "nearest-exact"):
            cells = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
            parts.append(functional.interpolate(cells, mode=mode, **one, **how).flatten().long())
        elif mode == "bicubic":
            eye = torch.eye(length, dtype=torch.float64).view(1, length, length, 1)
            two: dict[str, Any] = {**{key: (value, 1) for key, value in one.items()}, **how}
            parts.append(functional.interpolate(eye, mode=mode, **two)[0, :, :, 0].T)
        elif mode in _LINEAR:
            eye = torch.eye(length, dtype=torch.float64).unsqueeze(0)
            parts.append(functional.interpolate(eye, mode=_LINEAR[mode], **one, **how)[0].T)
        else:
            return None
    if [len(part) for part in parts] != list(Layout(op.shape(), patch.layout.spatial).positions):
        return None
    return copied(op, patch, parts) if mode.startswith("nearest") else averaged(op, patch, parts)


def _list(value: Any, axes: int) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value] * axes


_AVERAGE = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"


@entry("avg_pool#d")
def average_pool(op: Operation) -> Step | None:
    """Average cells along each axis."""
    patch, given = alone(op), op.arguments(_AVERAGE)
    if not maps_behind_channels(patch) or given.get("divisor_override"):
        return None
    assert patch is not None
    axes = len(patch.layout.spatial)
    kernel = per_axis(given["kernel_size"], axes)
    stride = per_axis(given.get("stride") or kernel, axes)
    edge = per_axis(given.get("padding", 0), axes)
    how = bool(given.get("ceil_mode", False)), bool(given.get("count_include_pad", True))

    def pool(eye: Tensor, axis: int) -> Tensor:
        return functional.avg_pool1d(eye, kernel[axis], stride[axis], edge[axis], *how)

    return _pooled(op, patch, pool)


@entry("adaptive_avg_pool#d")
def adaptive_pool(op: Operation) -> Step | None:
    """Average cells along each axis."""
    patch, given = alone(op), op.arguments("input output_size")
    if not maps_behind_channels(patch):
        return None
    assert patch is not None
    sizes = Layout(op.shape(), patch.layout.spatial).positions
    if "output_size" not in given:
        return None
    return _pooled(op, patch, lambda eye, axis: functional.adaptive_avg_pool1d(eye, sizes[axis]))


@entry("mean")
def mean(op: Operation) -> Step | None:
    """Average over all positions, and nothing else."""
    patch, given = alone(op), op.arguments("input dim keepdim")
    axes = given.get("dim")
    if patch is None or axes is None or given.get("dtype") is not None:
        return None
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if {axis % (len(patch.layout.shape) + 1) for axis in axes} != set(patch.layout.spatial):
        return None
    return _mean(op, patch)


def _pooled(op: Operation, patch: Patch, pool: Callable[[Tensor, int], Tensor]) -> Step:
    weights = []
    for axis, length in enumerate(patch.layout.positions):
        weights.append(pool(torch.eye(length, dtype=torch.float64).unsqueeze(0), axis)[0].T)
    # Of a window beyond the map the padding may count, too.
    if all(len(matrix) == 1 and bool(((matrix * matrix.shape[1] - 1).abs() < 1e-12).all()) for matrix in weights):
        return _mean(op, patch)
    return averaged(op, patch, weights)


def _mean(op: Operation, patch: Patch) -> Step:
    """Add the mean change of the box to the clean mean."""
    reader = op.box(op.tree[0][0])
    total, result = math.prod(patch.layout.positions), op.call.outputs[0]

    def run(state: State) -> Sequence[Tensor]:
        change = (state.patches[reader.index] - reader.clean(state)).sum(patch.layout.spatial) / total
        before = state.rows(result)
        return [before + change.view(before.shape)]

    return Step([None], run, [reader])
