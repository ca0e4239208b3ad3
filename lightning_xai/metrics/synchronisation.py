"""Synchronisation of the states of any number of metrics between processes: sums are reduced, not gathered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

import torch
from torch import Tensor, distributed
from torchmetrics.utilities import dim_zero_max, dim_zero_sum

from lightning_xai.metrics.base import ExplanationMetric

_Name = TypeVar("_Name", bound=Hashable)
_OPERATIONS = {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX}


def compute_together(
    metrics: Mapping[_Name, ExplanationMetric],
    *,
    alone: bool = False,
    failed: MutableMapping[_Name, str] | None = None,
    on_error: Callable[[_Name, Exception], None] | None = None,
) -> dict[_Name, dict[str, Tensor]]:
    """Compute every metric over the data of all processes, whose states are exchanged at once.

    Each metric's own ``compute()`` gives the same, but gathers its states one by one. Every process must call it, with
    the same metrics in the same order; a process whose metrics were never updated gets the results of the others.
    States that are sums or maxima are reduced, so that memory does not grow with the number of processes.

    Args:
        metrics: The metrics by name.
        alone: Leave the other processes out of it: the results over this process' data.
        failed: The causes by name of the metrics that failed in this process. They have no result in any process, and
            those that failed in another are added; unless given, states that do not fit are an error.
        on_error: Called with the name of a metric that cannot be computed, and the error; unless given, it is raised.

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
    causes: MutableMapping[_Name, str] = {} if failed is None else failed
    computes: dict[_Name, Callable[[], dict[str, Tensor]]]
    if not (distributed.is_available() and distributed.is_initialized()):
        computes = {name: metric.compute for name, metric in metrics.items() if name not in causes}
        return _results(computes, on_error)
    if alone:
        computes = {name: _computing(metric, None) for name, metric in metrics.items() if name not in causes}
        return _results(computes, on_error)
    for name, metric in metrics.items():
        if metric.process_group is not None:
            causes[name] = (
                f"metric {name!r} has a process group of its own: call its compute(), or leave the group out."
            )
            if failed is None:
                raise ValueError(causes[name])
    everywhere = _exchange_layouts(metrics, causes)
    for name in metrics:
        found = [layouts[name] for layouts in everywhere]
        elsewhere = [f"in process {rank}: {cause}" for rank, cause in enumerate(found) if isinstance(cause, str)]
        shapes = [layout for layout in found if isinstance(layout, tuple)]
        if elsewhere:
            causes.setdefault(name, "; ".join(elsewhere))
            if failed is None:
                raise ValueError(f"{name}: {causes[name]}")
        elif any(layout != shapes[0] for layout in shapes):
            causes[name] = _OTHER_SHAPES
            if failed is None:
                raise ValueError(_OTHER_SHAPES)
    taking_part = {name: metric for name, metric in metrics.items() if name not in causes}
    layout = {name: next(filter(_is_layout, (some[name] for some in everywhere)), None) for name in taking_part}
    exchanged = _exchange_states(taking_part, layout)
    computes = {name: _computing(metric, exchanged[name]) for name, metric in taking_part.items() if exchanged[name]}
    results = _results(computes, on_error)
    if any(some[name] is None and layout[name] for some in everywhere for name in taking_part):
        results = _share(results, everywhere, taking_part)
    never_updated = {name: _computing(taking_part[name], None) for name in taking_part if layout[name] is None}
    return results | _results(never_updated, on_error)


_OTHER_SHAPES = (
    "the metrics' states have other shapes in another process: means over the data need inputs of one size and every "
    "process the same metrics. Resize the inputs, or use one metric per size."
)


@dataclass(frozen=True)
class _State:
    """One tensor that a metric exchanges; its shape is None where it may differ between processes."""

    operation: Literal["sum", "max", "gather"]
    dtype: torch.dtype
    shape: torch.Size | None

    def blank(self) -> Tensor:
        """The neutral state that a process without data contributes."""
        assert self.shape is not None
        lowest = -torch.inf if self.dtype.is_floating_point else 0
        return torch.full(self.shape, lowest if self.operation == "max" else 0, dtype=self.dtype)


_Layout = tuple[_State, ...]


def _is_layout(found: _Layout | str | None) -> TypeGuard[_Layout]:
    return isinstance(found, tuple)


def _exchange_layouts(
    metrics: Mapping[_Name, ExplanationMetric], causes: Mapping[_Name, str]
) -> list[dict[_Name, _Layout | str | None]]:
    """Tell every process what each has of each metric: the layout of its states, why it failed, or None for no data."""
    mine: dict[_Name, _Layout | str | None] = {}
    for name, metric in metrics.items():
        try:
            states = _states(metric) if metric.update_called and name not in causes else []
        except Exception as error:  # to be told to the others, who would wait
            mine[name] = f"{type(error).__name__}: {error}"
        else:
            mine[name] = causes.get(name) or (tuple(state for state, _ in states) or None)
    everywhere: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, mine)
    if any(list(layouts) != list(mine) for layouts in everywhere):
        raise ValueError(_OTHER_SHAPES)
    return everywhere


def _states(metric: ExplanationMetric) -> list[tuple[_State, Tensor]]:
    """List what a metric exchanges, in its order."""
    operations: dict[Any, str] = {dim_zero_sum: "sum", dim_zero_max: "max"}
    fixed = {
        id(getattr(metric, name)): operations.get(reduction, "gather")
        for name, reduction in metric._reductions.items()
        if isinstance(getattr(metric, name), Tensor)
    }
    found: list[tuple[_State, Tensor]] = []

    def see(state: Tensor, **_group: Any) -> list[Tensor]:
        operation: Any = fixed.get(id(state), "gather")
        shape = state.shape if id(state) in fixed else None
        found.append((_State(operation, state.dtype, shape), state))
        return [state]

    metric.sync(dist_sync_fn=see, distributed_available=lambda: True)
    metric.unsync()
    return found


def _exchange_states(
    metrics: Mapping[_Name, ExplanationMetric], layouts: Mapping[_Name, _Layout | None]
) -> dict[_Name, list[list[Tensor]]]:
    """Reduce or gather every state over the processes; for each what torchmetrics is to reduce, a list of tensors."""
    backend = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    slots: dict[_Name, list[list[Tensor]]] = {}
    reduced: dict[tuple[str, torch.dtype], list[tuple[list[Tensor], Tensor]]] = {}
    gathered: list[tuple[list[Tensor], Tensor | None]] = []
    for name, metric in metrics.items():
        slots[name] = []
        own = [tensor for _, tensor in _states(metric)] if metric.update_called else None
        for index, state in enumerate(layouts[name] or ()):
            slot: list[Tensor] = []
            slots[name].append(slot)
            if state.operation == "gather":
                gathered.append((slot, None if own is None else own[index]))
            else:
                tensor = state.blank().to(metric.device) if own is None else own[index]
                reduced.setdefault((state.operation, state.dtype), []).append((slot, tensor))
    for (operation, _), parts in sorted(reduced.items(), key=lambda part: str(part[0])):
        flat = torch.cat([tensor.detach().to(backend).flatten() for _, tensor in parts])
        distributed.all_reduce(flat, _OPERATIONS[operation])
        split = torch.split(flat, [tensor.numel() for _, tensor in parts])
        for (slot, tensor), values in zip(parts, split, strict=True):
            slot.append(values.view(tensor.shape).to(tensor.device))
    if gathered:
        everywhere: list[Any] = [None] * distributed.get_world_size()
        # A view would be sent with all the memory that it is cut from, so each is copied.
        mine = [None if tensor is None else tensor.detach().cpu().clone() for _, tensor in gathered]
        distributed.all_gather_object(everywhere, mine)
        for (slot, own_tensor), tensors in zip(gathered, zip(*everywhere, strict=True), strict=True):
            device = "cpu" if own_tensor is None else own_tensor.device
            slot.extend(tensor.to(device) for tensor in tensors if tensor is not None)
    return {name: found if metrics[name].update_called else [] for name, found in slots.items()}


def _computing(metric: ExplanationMetric, exchanged: Iterable[list[Tensor]] | None) -> Callable[[], dict[str, Tensor]]:
    """Return the function that computes a metric in this process alone, or with states that were exchanged before."""

    def compute() -> dict[str, Tensor]:
        before = metric.distributed_available_fn, metric.dist_sync_fn
        metric.distributed_available_fn = lambda: exchanged is not None
        if exchanged is not None:  # torchmetrics asks for the states in the order in which they were listed
            states = iter(exchanged)
            metric.dist_sync_fn = lambda *_, **_group: next(states)
        try:
            found: dict[str, Tensor] = metric.compute()
        finally:
            metric.distributed_available_fn, metric.dist_sync_fn = before
        return found

    return compute


def _results(
    computes: Mapping[_Name, Callable[[], dict[str, Tensor]]], on_error: Callable[[_Name, Exception], None] | None
) -> dict[_Name, dict[str, Tensor]]:
    found = {}
    for name, compute in computes.items():
        try:
            found[name] = {key: torch.as_tensor(value) for key, value in compute().items()}
        except Exception as error:
            if on_error is None:
                raise
            on_error(name, error)
    return found


def _share(
    results: dict[_Name, dict[str, Tensor]],
    everywhere: list[dict[_Name, _Layout | str | None]],
    metrics: Mapping[_Name, ExplanationMetric],
) -> dict[_Name, dict[str, Tensor]]:
    """Hand results to processes that had no data, by the first process that had some."""
    for rank in range(len(everywhere)):
        names = [name for name in metrics if next((r for r, some in enumerate(everywhere) if some[name]), None) == rank]
        if not names:
            continue
        on_cpu = {name: {key: value.cpu() for key, value in results[name].items()} for name in names if name in results}
        box: list[Any] = [on_cpu if distributed.get_rank() == rank else None]
        distributed.broadcast_object_list(box, src=rank)
        for name, found in box[0].items():
            results.setdefault(name, found)
    return {name: results[name] for name in metrics if name in results}
