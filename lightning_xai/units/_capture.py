"""What a layer gives: its output beside the model's, samples a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai._checks import named_layer
from lightning_xai._guard import forward_context, hook_outputs
from lightning_xai.operations import largest_activation

_ACTIVATION_BYTES = 64 * 2**20
_MOST_SAMPLES = 64


class CaptureResult(NamedTuple):
    """One forward pass.

    Attributes:
        output: What the model returned.
        maps: What the layer gave, [N, K] or [N, K, *P].
    """

    output: Any
    maps: Tensor


def capture(model: nn.Module, inputs: Tensor, layer: str) -> CaptureResult:
    """Run the model, inside :func:`lightning_xai._guard.isolated_eval`, and keep what a layer gives.

    Raises:
        ValueError: If there is no such layer, it does not run exactly once, or its output is not one row per sample.
    """
    seen: list[Tensor] = []
    # A copy, as an in-place activation that follows would change what was seen.
    with hook_outputs(model, {layer: lambda output: seen.append(output.clone())}), forward_context():
        output = model(inputs.clone())
    if len(seen) != 1:
        raise ValueError(f"layer {layer!r} {_runs(len(seen))}; name one that runs once, such as a block around it.")
    return CaptureResult(output, rows_of_units(seen[0], layer, len(inputs)))


def rows_of_units(maps: Tensor, layer: str, samples: int) -> Tensor:
    """The output of a layer, after a look at its shape.

    Raises:
        ValueError: If it is not [N, K] or [N, K, *P].
    """
    if maps.ndim < 2 or maps.shape[0] != samples:
        raise ValueError(
            f"layer {layer!r} returns {list(maps.shape)} for {samples} samples; units need [N, K] or [N, K, *P]."
        )
    return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps


def with_positions(maps: Tensor, layer: str) -> Tensor:
    """The maps of a convolutional layer [N, K, *P].

    Raises:
        ValueError: If there are no positions, or more than three axes of them.
    """
    if not 3 <= maps.ndim <= 5:
        raise ValueError(
            f"layer {layer!r} returns {list(maps.shape)}, which is no map of positions [N, K, *P]; name a convolution, "
            f"or what follows it."
        )
    return maps


def all_finite(maps: Tensor, layer: str, ids: tuple[int, ...]) -> Tensor:
    """The maps, if all are numbers.

    Raises:
        ValueError: If not; the samples are named.
    """
    broken = ~maps.isfinite().flatten(1).all(1)
    if broken.any():
        rows = [ids[row] for row in broken.nonzero().flatten().tolist()]
        raise ValueError(f"layer {layer!r} is NaN or infinite in the samples {rows}; leave those out.")
    return maps


def chunks(model: nn.Module, inputs: Tensor, layer: str, chunk_size: int | None) -> Iterator[slice]:
    """Some samples at a time, so that activations stay small.

    Raises:
        ValueError: If there is no such layer, or ``chunk_size`` is not positive.
    """
    named_layer(model, layer)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    if chunk_size is None:
        with forward_context():
            largest = largest_activation(model, inputs[:1])
        chunk_size = min(max(_ACTIVATION_BYTES // largest, 1), _MOST_SAMPLES)
    for start in range(0, len(inputs), chunk_size):
        yield slice(start, start + chunk_size)


def _runs(times: int) -> str:
    return f"runs {times} times in a forward pass" if times else "does not run in a forward pass"
