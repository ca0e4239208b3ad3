"""Synchronisation of the states of any number of metrics in one exchange between processes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lightning_xai.metrics.base import ExplanationMetric

_Name = TypeVar("_Name", bound=Hashable)

# Every state starts at a multiple of this, so that it can be read as numbers of any type.
_ALIGNMENT = 16


def compute_together(
    metrics: Mapping[_Name, ExplanationMetric], *, alone: bool = False
) -> dict[_Name, dict[str, Tensor]]:
    """Compute every metric over the data of all processes, whose states are exchanged at once.

    Each metric's own ``compute()`` gives the same, but exchanges its states one by one. Every process must call it,
    with the same metrics in the same order.

    Args:
        metrics: The metrics by name.
        alone: Leave the other processes out of it: the results over this process' data.

    Returns:
        What ``compute()`` of each metric gives.

    Raises:
        ValueError: If a metric has a process group of its own, or the states have other shapes in another process, e.g.
            because its inputs were larger.

    >>> from lightning_xai.metrics import Importance
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> metrics = {"zero": Importance(Windows(2), kinds.Constant(0.0), score="value")}
    >>> metrics["zero"].update(torch.nn.Flatten(), torch.tensor([[1.0, 2.0, 4.0]]), 1)
    >>> compute_together(metrics)["zero"]["map"]
    tensor([2., 2., 0.], dtype=torch.float64)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return {name: metric.compute() for name, metric in metrics.items()}
    if alone:
        return {name: _compute(metric, lambda: False) for name, metric in metrics.items()}
    for name, metric in metrics.items():
        if metric.process_group is not None:
            raise ValueError(
                f"metric {name!r} has a process group of its own: call its compute(), or leave the group out."
            )
    states = {name: _states(metric) for name, metric in metrics.items()}
    gathered = _gather([state for found in states.values() for state in found])
    results = {}
    for name, metric in metrics.items():
        own = iter([next(gathered) for _ in states[name]])
        results[name] = _compute(metric, lambda: True, partial(_next, own))
    return results


def _states(metric: ExplanationMetric) -> list[tuple[Tensor, bool]]:
    """List the tensors that a metric exchanges, in its order, and whether their length may differ between processes."""
    found: list[Tensor] = []
    fixed = [state for state in (getattr(metric, name) for name in metric._reductions) if isinstance(state, Tensor)]

    def see(state: Tensor, **_group: Any) -> list[Tensor]:
        found.append(state)
        return [state]

    metric.sync(dist_sync_fn=see, distributed_available=lambda: True)
    metric.unsync()
    return [(state, all(state is not other for other in fixed)) for state in found]


def _next(gathered: Iterator[list[Tensor]], _state: Tensor, **_group: Any) -> list[Tensor]:
    """Return the state that torchmetrics asks for, as all processes have it."""
    return next(gathered)


def _compute(
    metric: ExplanationMetric, together: Callable[[], bool], exchange: Callable[..., list[Tensor]] | None = None
) -> dict[str, Tensor]:
    """Compute a metric in one process, or with states that have been exchanged already."""
    before = metric.distributed_available_fn, metric.dist_sync_fn
    metric.distributed_available_fn, metric.dist_sync_fn = together, exchange
    try:
        found: dict[str, Tensor] = metric.compute()
    finally:
        metric.distributed_available_fn, metric.dist_sync_fn = before
    return found


def _gather(states: Sequence[tuple[Tensor, bool]]) -> Iterator[list[Tensor]]:
    """Gather the states of every process as bytes in one collective, after one that compares their shapes.

    If some may differ in length, one more tells the lengths.
    """
    device = states[0][0].device
    kinds = [(state.dtype, state.ndim, tuple(state.shape[varies:])) for state, varies in states]
    same = torch.tensor([zlib.crc32(repr(kinds).encode())], device=device)
    if len({int(other) for other in _all(same)}) > 1:
        raise ValueError(
            "the metrics' states have other shapes in another process: means over the data need inputs of one size and "
            "every process the same metrics. Resize the inputs, or use one metric per size."
        )
    lengths = torch.tensor([len(state) for state, varies in states if varies], dtype=torch.long, device=device)
    everywhere = [found.tolist() for found in (_all(lengths) if len(lengths) else [lengths] * _world())]
    layouts = [_layout([state for state, _ in states], [varies for _, varies in states], own) for own in everywhere]
    pieces = []
    for state, _ in states:
        raw = state.detach().contiguous().reshape(-1).view(torch.uint8)
        pieces += [raw, raw.new_zeros(-len(raw) % _ALIGNMENT)]
    packed = torch.cat(pieces)
    longest = max(layout[-1][1] for layout in layouts)
    processes = _all(torch.cat([packed, packed.new_zeros(longest - len(packed))]))
    for index, (state, _) in enumerate(states):
        found = []
        for raw, layout in zip(processes, layouts, strict=True):
            start, _, shape = layout[index]
            size = math.prod(shape) * state.element_size()
            found.append(raw[start : start + size].view(state.dtype).view(shape))
        yield found


def _layout(
    states: Sequence[Tensor], varies: Sequence[bool], lengths: Sequence[int]
) -> list[tuple[int, int, tuple[int, ...]]]:
    """Compute where each state of a process begins and ends among its bytes, and its shape."""
    own = iter(lengths)
    layout, start = [], 0
    for state, vary in zip(states, varies, strict=True):
        shape = (next(own), *state.shape[1:]) if vary else tuple(state.shape)
        size = math.prod(shape) * state.element_size()
        layout.append((start, start + size + -size % _ALIGNMENT, shape))
        start = layout[-1][1]
    return layout


def _world() -> int:
    return distributed.get_world_size()


def _all(tensor: Tensor) -> list[Tensor]:
    found = [torch.empty_like(tensor) for _ in range(_world())]
    distributed.all_gather(found, tensor)
    return found
