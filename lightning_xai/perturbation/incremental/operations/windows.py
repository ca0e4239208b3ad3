"""Convolutions and maximum pooling on changed boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.perturbation.incremental.gathering import Layout
from lightning_xai.perturbation.incremental.geometry import (
    ceil_div,
    enclose,
    floor_div,
    reach_transposed,
    reach_window,
    span,
)
from lightning_xai.perturbation.incremental.operations.base import (
    Operation,
    Patch,
    Reader,
    State,
    Step,
    entry,
    maps_behind_channels,
    per_axis,
)

# What makes a convolution slow on a CPU, see `narrow`.
_MANY_CHANNELS, _FEW_POSITIONS = 256, 4


def _filters(op: Operation) -> tuple[dict[str, Any], Patch, tuple[int, ...]] | None:
    """The arguments of a convolution, its changed input and its kernel; None where weights are not constant."""
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": None, **op.arguments()}
    patch = op.patch(given["input"])
    if patch is None or not maps_behind_channels(patch) or not op.is_constant(given["weight"], given["bias"]):
        return None
    return given, patch, op.shape_of(given["weight"])[2:]


@entry("conv#d")
def convolution(op: Operation) -> Step | None:
    """Run on windows with their halo, without padding."""
    filters = _filters(op)
    if filters is None:
        return None
    given, _patch, kernel = filters
    axes = len(kernel)
    stride, dilation = per_axis(given["stride"], axes), per_axis(given["dilation"], axes)
    if given["padding"] == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    else:
        padding = [0] * axes if given["padding"] == "valid" else per_axis(given["padding"], axes)
    reader, result = _windows(op, given["input"], kernel, stride, padding, dilation, 0.0)
    function, slow = getattr(functional, op.call.name), narrow(op, result.boxes.sizes)

    def run(state: State) -> Sequence[Tensor]:
        weight, bias = state.clean.tensor(given["weight"]), state.clean.tensor(given["bias"])
        windows = apart(reader(state)) if slow else reader(state)
        return [function(windows, weight, bias, stride, 0, dilation, given["groups"])]

    return Step([result], run, [reader])


def narrow(op: Operation, sizes: Sequence[int]) -> bool:
    """Tell whether a convolution to maps of these sizes is slow on a CPU if the channels lie together.

    To maps of 4 x 4 from 512 channels oneDNN makes 45 multiplications in the time of 75.
    """
    if op.call.name != "conv2d":
        return False
    _, channels, *kernel = op.shape_of(op.arguments()["weight"])
    return sizes[-1] <= _FEW_POSITIONS and channels >= _MANY_CHANNELS and math.prod(kernel) > 1


def apart(maps: Tensor) -> Tensor:
    """Lay the channels of maps apart on a CPU."""
    return maps.contiguous() if maps.device.type == "cpu" else maps


@entry("max_pool#d")
def max_pool(op: Operation) -> Step | None:
    """Run on windows with their halo; what lies outside the map never is the largest."""
    given = {"stride": None, "padding": 0, "dilation": 1, **op.arguments()}
    patch = op.patch(given["input"])
    if not maps_behind_channels(patch) or given.get("return_indices"):
        return None
    assert patch is not None
    axes = len(patch.layout.spatial)
    kernel = per_axis(given["kernel_size"], axes)
    stride = per_axis(given["stride"] or kernel, axes)
    padding, dilation = per_axis(given["padding"], axes), per_axis(given["dilation"], axes)
    reader, result = _windows(op, given["input"], kernel, stride, padding, dilation, float("-inf"))

    def run(state: State) -> Sequence[Tensor]:
        return [_maximum(reader(state), result.boxes.sizes, kernel, stride, dilation)]

    return Step([result], run, [reader])


def _maximum(
    values: Tensor, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The maximum over every window, one axis after the other: torch's own looks for indices, too, and takes longer."""
    for axis, (size, k, s, d) in enumerate(zip(sizes, kernel, stride, dilation, strict=True), start=2):
        before = (slice(None),) * axis
        parts = [values[(*before, slice(i * d, i * d + (size - 1) * s + 1, s))] for i in range(k)]
        values = parts[0] if k == 1 else torch.maximum(parts[0], parts[1])
        for part in parts[2:]:
            torch.maximum(values, part, out=values)
    return values


def _windows(
    op: Operation,
    leaf: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    fill: float,
) -> tuple[Reader, Patch]:
    """The windows that an operation reads to make the boxes that it reaches, and these boxes."""
    patch = op.patches[leaf.index]
    spatial = patch.layout.spatial
    each = list(zip(kernel, stride, padding, dilation, strict=True))
    reached = [
        reach_window(start, size, *axis)
        for start, size, axis in zip(patch.boxes.starts, patch.boxes.sizes, each, strict=True)
    ]
    boxes = enclose(reached, Layout(op.shape(), spatial).positions)
    coordinates = [
        span(start * s - p, (size - 1) * s + (k - 1) * d + 1)
        for start, size, (k, s, p, d) in zip(boxes.starts, boxes.sizes, each, strict=True)
    ]
    return op.window(leaf, coordinates, fill), op.patched(boxes, spatial)


@entry("conv_transpose#d")
def transposed_convolution(op: Operation) -> Step | None:
    """Run on windows that hold all that some outputs are made of, and cut these outputs out."""
    filters = _filters(op)
    if filters is None:
        return None
    given, patch, kernel = filters
    axes, spatial = len(kernel), patch.layout.spatial
    each = list(zip(kernel, *(per_axis(given[name], axes) for name in ("stride", "padding", "dilation")), strict=True))
    reached = [
        reach_transposed(start, size, *axis)
        for start, size, axis in zip(patch.boxes.starts, patch.boxes.sizes, each, strict=True)
    ]
    boxes = enclose(reached, Layout(op.shape(), spatial).positions)
    coordinates, cuts, extra = [], [], []
    for start, size, (k, s, p, d) in zip(boxes.starts, boxes.sizes, each, strict=True):
        # Outputs below `lost` also take inputs before the window.
        lost = max(0, (k - 1) * d - s + 1)
        first = floor_div(start + p - lost, s)
        length = int((ceil_div(start + size + p, s) - first).max())
        coordinates.append(span(first, length))
        cuts.append(span(start + p - first * s, size))
        extra.append(max(0, s - 1 - (k - 1) * d))
    reader = op.window(given["input"], coordinates)
    function, strides, dilations = getattr(functional, op.call.name), [a[1] for a in each], [a[3] for a in each]
    positions = torch.arange(patch.boxes.count).view(-1, *[1] * axes)
    index = [cut.view(-1, *[1] * axis, cut.shape[1], *[1] * (axes - axis - 1)) for axis, cut in enumerate(cuts)]

    def run(state: State) -> Sequence[Tensor]:
        weight, bias = state.clean.tensor(given["weight"]), state.clean.tensor(given["bias"])
        made = function(reader(state), weight, bias, strides, 0, extra, given["groups"], dilations)
        cut = made.unflatten(0, (len(positions), -1))[(positions, slice(None), slice(None), *index)]
        return [cut.movedim((-2, -1), (1, 2)).flatten(0, 1)]  # indices with slices between them come first

    return Step([op.patched(boxes, spatial)], run, [reader])
