"""Means of coordinates without what is NaN: along axes, and over the windows of convolutions and poolings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# A position is where the middle of its kernel lies: a tap counts 1/16 of its neighbour that is nearer to the middle.
# A flat kernel would give all cells of a 2 x 2 map the same mean.
_FALLOFF = 16.0
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = ("stride", "padding", "output_padding", "dilation")


def mean(values: Tensor, axis: int) -> Tensor:
    """The mean along an axis, which is kept, without what is NaN."""
    return values.narrow(axis, 0, 1) if values.stride(axis) == 0 else values.nanmean(axis, keepdim=True)


def compact(values: Tensor) -> Tensor:
    """The values without the copies that an expansion shows."""
    for axis, stride in enumerate(values.stride()):
        values = values.narrow(axis, 0, 1) if stride == 0 and values.shape[axis] > 1 else values
    return values


def filled(values: Tensor, others: Tensor) -> Tensor:
    """The values, with others where they are NaN."""
    values, others = compact(values), compact(others)
    return torch.where(values.isnan(), others, values)


def marginal(values: Tensor, axis: int) -> Tensor:
    """The mean over all axes but one."""
    others = [other for other in range(values.ndim) if other != axis % values.ndim]
    return compact(values).nanmean(others) if others else values


def spread(values: Tensor) -> float:
    """The largest value minus the smallest, 0 if there is none."""
    values = compact(values)
    there = values[values.isfinite()]
    return float(there.max() - there.min()) if there.numel() else 0.0


def varies(values: Tensor, axis: int) -> bool:
    """Whether the mean over the other axes changes along an axis."""
    return spread(marginal(values, axis)) > 1e-6


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A number, or one per axis, as one per axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * axes if len(values) == 1 else values


def valid_mean(values: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
    """A weighted mean over what is not NaN, by a linear map with weights that are not negative."""
    there = values.isfinite()
    return combine(values.nan_to_num(0.0)) / combine(there.to(values.dtype))


def expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of a shape can be expanded to another one."""
    tail = list(to)[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(one in (1, other) for one, other in zip(shape, tail, strict=True))


def _taps(kernel: Sequence[int], like: Tensor) -> Tensor:
    """The weights of a kernel [1, 1, *kernel], which fall off from its middle."""
    weights = torch.ones((1, 1), dtype=like.dtype, device=like.device)
    for length in kernel:
        away = (torch.arange(length, dtype=like.dtype, device=like.device) - (length - 1) / 2).abs()
        weights = weights.unsqueeze(-1) * _FALLOFF ** -(away - away.min())
    return weights


Combine = Callable[[Tensor, list[int]], Tensor]
"""Takes values [M, 1, *lengths] and which spatial axes these are."""


def along_space(values: Tensor, shape: Sequence[int], combine: Combine) -> Tensor:
    """Combine windows along the spatial axes that hold more than copies; along the others the result is constant."""
    values = compact(values)
    live = [axis for axis in range(values.ndim - 2) if values.shape[2 + axis] > 1]
    if live:
        found = combine(values.reshape(-1, 1, *(values.shape[2 + axis] for axis in live)), live)
        lengths = dict(zip(live, found.shape[2:], strict=True))
        values = found.view(*values.shape[:2], *(lengths.get(axis, 1) for axis in range(values.ndim - 2)))
    return values.expand(shape)


def windows(shape: Sequence[int], kernel: Sequence[int], given: dict[str, Any]) -> Combine:
    """Weighted means over the windows of a convolution or a pooling, without the padding."""
    stride, dilation = (per_axis(given.get(key, 1), len(kernel)) for key in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        padding = [(k - 1) * d // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    before = per_axis(padding, len(kernel))

    def combine(values: Tensor, live: list[int]) -> Tensor:
        pads: list[int] = []
        for place, axis in reversed(list(enumerate(live))):  # the last axis is padded first
            reach = (shape[2 + axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
            pads += [before[axis], reach - values.shape[2 + place] - before[axis]]
        weight, step = _taps([kernel[axis] for axis in live], values), [stride[axis] for axis in live]
        convolve = partial(_CONVOLUTIONS[len(live)], stride=step, dilation=[dilation[axis] for axis in live])
        return valid_mean(functional.pad(values, pads, value=float("nan")), lambda part: convolve(part, weight))

    return combine


def spread_windows(_shape: Sequence[int], kernel: Sequence[int], given: dict[str, Any]) -> Combine:
    """Weighted means over what a transposed convolution adds up."""
    steps = {key: per_axis(given[key], len(kernel)) for key in _TRANSPOSED if key in given}

    def combine(values: Tensor, live: list[int]) -> Tensor:
        weight = _taps([kernel[axis] for axis in live], values)
        own = {key: [step[axis] for axis in live] for key, step in steps.items()}
        convolve = getattr(functional, f"conv_transpose{len(live)}d")
        return valid_mean(values, lambda part: convolve(part, weight, **own))

    return combine


def pool(values: Tensor, size: Sequence[int]) -> Tensor:
    """Means over windows that fill the values, as many as a size says."""
    pooled: Tensor = getattr(functional, f"adaptive_avg_pool{len(size)}d")(values, size)
    return pooled


def resized(shape: Sequence[int], change: Callable[[Tensor, Sequence[int]], Tensor]) -> Combine:
    """Values at another size, by :func:`pool` or interpolation."""

    def combine(values: Tensor, live: list[int]) -> Tensor:
        return valid_mean(values, lambda part: change(part, [shape[2 + axis] for axis in live]))

    return combine
