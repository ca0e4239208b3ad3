"""Synchronisation of the states of any number of metrics in one exchange between processes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, distributed

from lightning_xai.metrics.base import ExplanationMetric

_Name = TypeVar("_Name", bound=Hashable)


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

    >>> import torch
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
    gathered = _gather([state for metric in metrics.values() for state in _states(metric)])
    # torchmetrics asks for the states in the order in which they were listed.
    return {
        name: _compute(metric, lambda: True, lambda *_, **_group: next(gathered)) for name, metric in metrics.items()
    }


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
    """Gather the states of every process in one exchange, each as the list of what the processes have."""
    layout = [(state.dtype, state.ndim, state.shape[varies:]) for state, varies in states]
    everywhere: list[Any] = [None] * distributed.get_world_size()
    # A view would be sent with all the memory that it is cut from, so each is copied.
    distributed.all_gather_object(everywhere, (layout, [state.detach().cpu().clone() for state, _ in states]))
    if any(other != layout for other, _ in everywhere):
        raise ValueError(
            "the metrics' states have other shapes in another process: means over the data need inputs of one size and "
            "every process the same metrics. Resize the inputs, or use one metric per size."
        )
    for index, (state, _) in enumerate(states):
        yield [tensors[index].to(state.device) for _, tensors in everywhere]
