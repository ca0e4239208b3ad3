"""Arguments that say how long the samples are, as those of packed sequences do: what lies beyond is padding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._guard import forward
from lightning_xai.inputs.bound_model import Arguments, Binding, BoundModel
from lightning_xai.network_facts import NetworkFacts, question_of
from lightning_xai.rows import rows_of
from lightning_xai.sites import Key, Place

# Whether what lies beyond the lengths that an argument may hold is read, by network and argument.
_read: NetworkFacts[bool] = NetworkFacts()


def present_by_lengths(
    network: nn.Module, arguments: Arguments, place: Place | None, explained: Tensor, told: bool
) -> Tensor | None:
    r"""Find the cells of what is explained, [N, C, \*S] or [N, F], that lie within the length of their sample.

    An argument of integers [N] holds lengths along an axis if nothing that the model returns for a sample, or for its
    positions within the length, changes with the cells beyond. That is found by two passes, once for a network.

    Args:
        network: The network, inside :func:`lightning_xai._guard.isolated_eval`.
        arguments: Its arguments.
        place: The place that is explained; None for an argument.
        explained: What is explained.
        told: Whether it is said what is absent, so that an argument that is called so but holds none does not matter.

    Returns:
        Boolean [N, \*S]; None if all cells lie within, or there are no lengths.
    """
    model = BoundModel(network, Binding(arguments, place))
    spatial = range(1 if explained.ndim == 2 else 2, explained.ndim)
    present = torch.ones_like(explained[:, 0] if explained.ndim > 2 else explained, dtype=torch.bool)
    for key, value in arguments.values.items():
        lengths = _integers(value) if key in arguments.following else None
        if lengths is None or bool((lengths < 1).any()):
            continue
        found = False
        for axis in spatial:
            within = torch.arange(explained.shape[axis]) < lengths.cpu().unsqueeze(1)
            fits = not within.all() and int(lengths.max()) <= explained.shape[axis]
            if fits and not _reads_beyond(model, explained, within.to(explained.device), axis, key):
                cells = within.to(explained.device)
                present &= cells.view(len(cells), *[1] * (axis - spatial[0]), -1, *[1] * (explained.ndim - 1 - axis))
                found = True
        if not found and not told and "len" in str(key).lower() and len(set(lengths.tolist())) > 1:
            warnings.warn(
                f"{key!r} may say how long the samples are, but what lies beyond is read or not known, so that all "
                f"cells count: say with Inputs(..., absent=...) which are padding.",
                UserWarning,
                stacklevel=2,
            )
    return None if bool(present.all()) else present


def _integers(value: Any) -> Tensor | None:
    """Integers [N], as a tensor; None for anything else."""
    if isinstance(value, list | tuple) and value and all(type(part) is int for part in value):
        value = torch.tensor(value)
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    return value.long() if whole and value.ndim == 1 and value.dtype != torch.bool else None


def _reads_beyond(model: BoundModel, explained: Tensor, within: Tensor, axis: int, key: Key) -> bool:
    """Tell whether the output depends on the cells beyond along an axis, other than at positions beyond."""
    known, question = _read.of(model), (key, axis, question_of(model, explained))
    if question not in known:
        noise = torch.randn(explained.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = noise.to(explained.device, explained.dtype) * explained.abs().amax() + explained.mean()
        mask = within.view(len(within), *[1] * (axis - 1), -1, *[1] * (explained.ndim - 1 - axis))
        rows = torch.arange(len(explained))
        outputs = [forward(model, values) for values in (explained, torch.where(mask, explained, noise))]
        clean, other = (rows_of(output, len(explained), rows) for output in outputs)
        same = bool(clean) and [part.shape for part in clean] == [part.shape for part in other]
        known[question] = not same or any(_differs(*pair, within) for pair in zip(clean, other, strict=True))
    return known[question]


def _differs(one: Tensor, other: Tensor, within: Tensor) -> bool:
    """Tell whether two outputs [N, ...] differ, and not only beyond the lengths along any one axis."""
    off = (one != other) & ~(one.isnan() & other.isnan())
    if not off.any():
        return False
    longest = int(within.sum(1).max())

    def differs_within(axis: int) -> bool:
        there = within[:, : off.shape[axis]].to(off.device)
        return bool((off.movedim(axis, 1).reshape(*there.shape, -1).any(2) & there).any())

    axes: Sequence[int] = [axis for axis in range(1, one.ndim) if one.shape[axis] in (within.shape[1], longest)]
    return all(differs_within(axis) for axis in axes)
