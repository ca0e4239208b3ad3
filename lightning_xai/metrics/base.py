"""What the metrics share: run, then accumulate, so that metrics that need the same sweep can share it."""

from __future__ import annotations

import csv
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_xai.perturbation.sweep import CaptureRequest, Pairing, Plan, Request, SweepResult, check_sweep, sweep
from lightning_xai.regions import BoundRegions, Regions, Segments
from lightning_xai.scores import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Means per class are kept up to this many numbers (1,000 classes of 224 x 224 are over it).
_MOST_CLASS_CELLS = 2**24


@dataclass(frozen=True)
class BatchExplanation:
    """What one metric found for a batch.

    Attributes:
        tensors: Per-sample tensors [N, ...] by name.
        target: The explained classes [N].
        prediction: The predicted classes [N].
        nonfinite: How many values of each sample are not numbers [N].
        classes: The number of classes.
        totals: Sums over the samples by name, of what is not known per sample.
    """

    tensors: dict[str, Tensor]
    target: Tensor
    prediction: Tensor
    nonfinite: Tensor
    classes: int
    totals: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: slice) -> BatchExplanation:
        """The same for some of the samples; of totals, what is theirs if all samples have the same."""
        share = len(self.target[rows]) / max(len(self.target), 1)
        return replace(
            self,
            totals={name: total * share for name, total in self.totals.items()},
            tensors={name: tensor[rows] for name, tensor in self.tensors.items()},
            target=self.target[rows],
            prediction=self.prediction[rows],
            nonfinite=self.nonfinite[rows],
        )


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        columns: The names.
        rows: As many entries each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int | float | str, ...], ...]

    def write_csv(self, path: str | Path) -> None:
        """Write the names, then the rows; folders are made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(self.rows)


class ExplanationMetric(Metric, ABC):
    """A torchmetrics metric of explanations: ``update`` is :meth:`run`, then :meth:`accumulate`.

    Its states are sums and counts; their size is that of the results and does not grow with the data.

    Class attributes:
        pictured: The per-sample maps worth drawing, and their titles.
        formula: The definition, in LaTeX.
        reading: What its values mean, for people who look at a report.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    map_titles: ClassVar[dict[str, str]] = {}
    formula: ClassVar[str] = ""
    reading: ClassVar[str] = ""

    samples: Tensor
    nonfinite: Tensor
    excluded: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fingerprint()  # the first state, as torchmetrics 1.5 compares no other
        for name in ("samples", "nonfinite", "excluded"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def run(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> BatchExplanation:
        """Explain a batch; changes nothing.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, *S], or a table [N, F].
            target: Class indices [N], one index for all, or ``"predicted"``.
            sample_ids: The samples' ids [N]; 0..N-1 unless given.
        """

    def check(self, model: nn.Module, inputs: Tensor, target: Target) -> None:
        """Raise what :meth:`run` would refuse of a batch, at the cost of its first sample."""
        self.run(model, inputs[:1], target[:1] if isinstance(target, Tensor) else target)

    @abstractmethod
    def add(self, found: BatchExplanation) -> None:
        """Add what was found to the states."""

    def accumulate(self, found: BatchExplanation) -> None:
        """Count what :meth:`run` found."""
        self._update_count += 1
        self._computed = None
        self._accumulate(found)

    def update(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> None:
        """Explain a batch and count it; the arguments are those of :meth:`run`."""
        self._accumulate(self.run(model, inputs, target, sample_ids))

    def exclude(self, count: int) -> None:
        """Count samples that could not be explained."""
        self.excluded = self.excluded + count

    def plot(self, val: Mapping[str, Any] | None = None, ax: Any = None) -> tuple[Figure, Any]:  # noqa: ARG002 - as torchmetrics has it
        """A figure of the results, and its axes: curves, heat maps, maps per class.

        Args:
            val: Results to draw; those of ``compute()`` unless given.
            ax: Not used: a result has several panels.
        """
        from lightning_xai import figures

        figure = figures.draw_result(self.compute() if val is None else val, type(self).__name__)
        return figure, figure.axes

    def charts(self, result: dict[str, Any], title: str) -> dict[str, Figure]:  # noqa: ARG002 - for those with some
        """Further figures of the results, by what they show; none unless a metric has some."""
        return {}

    def tables(self, result: dict[str, Any]) -> dict[str, Table]:  # noqa: ARG002 - for those with some
        """Tables of the results, by what they list; none unless a metric has some."""
        return {}

    def _accumulate(self, found: BatchExplanation) -> None:
        with torch.no_grad():
            self.add(found)  # first, as it is what refuses inputs of another size
            self.samples = self.samples + len(found.target)
            self.nonfinite = self.nonfinite + found.nonfinite.sum()

    def add_sum_state(self, *names: str) -> None:
        """States that start as the number 0 and take the shape and precision of what is first added."""
        for name in names:
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def add_to_state(self, name: str, values: Tensor) -> None:
        """Add values summed over the samples to a state, in double precision where the device has it."""
        before = getattr(self, name)
        if before.ndim and before.shape != values.shape:
            raise ValueError(
                f"means over the data need inputs of one size: {name} was {list(before.shape)} so far and is "
                f"{list(values.shape)} now. Resize the inputs, or use one metric per size."
            )
        setattr(self, name, before.to(values.device) + values)

    def fingerprint(self, *configuration: Any) -> None:
        """Keep a ``MetricCollection`` from taking two metrics for one because their first results agree."""
        code = zlib.crc32(_written_out((type(self).__name__, configuration)).encode())
        bits = torch.tensor([code >> bit & 1 for bit in range(32)], dtype=torch.uint8)
        self.add_state("configuration", bits, dist_reduce_fx="max")

    def _counts(self) -> dict[str, Tensor]:
        return {"samples": self.samples, "nonfinite": self.nonfinite, "excluded": self.excluded}


class SweepMetric(ExplanationMetric, ABC):
    """A metric of chapter 1: it asks a sweep for what it needs.

    Attributes:
        plan: The regions and how they are swept.
        requests: What the metric needs of the sweep.
        captures: What it needs to see inside the model on the way.
    """

    plan: Plan
    requests: list[Request]
    captures: Sequence[CaptureRequest] = ()

    @abstractmethod
    def explained(self, swept: SweepResult) -> BatchExplanation:
        """What the metric makes of a sweep that holds its requests."""

    def run(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> BatchExplanation:
        """Sweep a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        return self.explained(sweep(model, inputs, target, self.requests, self.plan, sample_ids, self.captures))

    def check(self, model: nn.Module, inputs: Tensor, target: Target) -> None:
        """Raise what a sweep of a batch would refuse."""
        check_sweep(model, inputs, target, self.requests, self.plan, self.captures)

    def _explained(self, swept: SweepResult, tensors: dict[str, Tensor]) -> BatchExplanation:
        """``tensors`` with the sweep's importances that are not numbers counted, where there is one to be expected."""
        nonfinite = torch.stack([self._missing(swept, request) for request in self.requests]).sum(0)
        score = self.requests[0].score
        return BatchExplanation(tensors, swept.target[score], swept.prediction[score], nonfinite, swept.classes[score])

    @staticmethod
    def _missing(swept: SweepResult, request: Request) -> Tensor:
        local = swept.local(request)
        missing: Tensor = ~local.isfinite() & _expected(swept.regions, request.pairing).to(local.device)
        return missing.sum(1)


class MapMetric(ExplanationMetric, ABC):
    """A metric whose main result is a signed map over the input: its means, per class, and how peaked it is."""

    map_sum: Tensor
    map_abs_sum: Tensor
    map_count: Tensor
    class_sum: Tensor
    class_count: Tensor
    mean_abs_sum: Tensor
    gini_sum: Tensor
    top_share_sum: Tensor
    measured: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_sum_state("map_sum", "map_abs_sum", "map_count", "class_sum", "class_count")
        self.add_sum_state("mean_abs_sum", "gini_sum", "top_share_sum", "measured")

    def add(self, found: BatchExplanation) -> None:
        """Add the maps [N, *S] of ``found.tensors["map"]``."""
        values = precise(found.tensors["map"])
        number = values.isfinite()
        values = torch.where(number, values, 0.0)
        self.add_to_state("map_sum", values.sum(0))
        self.add_to_state("map_abs_sum", values.abs().sum(0))
        self.add_to_state("map_count", number.sum(0))
        if found.classes and found.classes * values[:1].numel() <= _MOST_CLASS_CELLS:
            blank = values.new_zeros(found.classes, *values.shape[1:])
            self.add_to_state("class_sum", blank.index_add(0, found.target, values))
            self.add_to_state("class_count", blank.index_add(0, found.target, number.to(values)))
        sizes, cells = values.abs().flatten(1), number.flatten(1)
        self.add_to_state("mean_abs_sum", (sizes.sum(1) / cells.sum(1).clamp(min=1)).sum())
        self.add_to_state("gini_sum", gini(sizes, cells).sum())
        self.add_to_state("top_share_sum", top_share(sizes, cells).sum())
        self.add_to_state("measured", cells.any(1).sum())

    def _maps(self) -> dict[str, Tensor]:
        found = {
            **self._counts(),
            "map": self.map_sum / self.map_count,
            "map_abs": self.map_abs_sum / self.map_count,
            "mean_abs": self.mean_abs_sum / self.measured,
            "gini": self.gini_sum / self.measured,
            "top_share": self.top_share_sum / self.measured,
        }
        if self.class_sum.ndim:
            found["per_class"] = self.class_sum / self.class_count
        return found


def update_together(
    metrics: Mapping[str, ExplanationMetric],
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    sample_ids: Tensor | Sequence[int] | None = None,
    *,
    count: bool = True,
) -> dict[str, BatchExplanation]:
    """Update metrics so that those over the same regions share one sweep.

    Args:
        metrics: The metrics by name.
        model: The network; left as it was.
        inputs: Inputs [N, C, *S], or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.
        count: Whether the samples count. If not, the states only take the shapes they would have: a process without
            samples of its own needs them to synchronise with the others.

    Returns:
        What each metric found, per sample.

    Raises:
        ValueError: If the inputs, the target or the regions do not fit each other or the model.

    >>> from lightning_xai.metrics import Importance, Synergy
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> windows, zero = Windows(2), kinds.Constant(0.0)
    >>> metrics = {"importance": Importance(windows, zero), "synergy": Synergy(windows, zero)}
    >>> found = update_together(metrics, nn.Linear(6, 4), torch.randn(5, 6), "predicted")
    >>> found["importance"].tensors["local"].shape, found["synergy"].tensors["joint"].shape
    (torch.Size([5, 3]), torch.Size([5, 3, 3]))
    """
    found = {
        name: metric.run(model, inputs, target, sample_ids)
        for name, metric in metrics.items()
        if not isinstance(metric, SweepMetric)
    }
    for plan, sharing in shared_sweeps(metrics):
        requests = list(dict.fromkeys(request for metric in sharing.values() for request in metric.requests))
        captures = list(dict.fromkeys(capture for metric in sharing.values() for capture in metric.captures))
        swept = sweep(model, inputs, target, requests, plan, sample_ids, captures)
        found.update((name, metric.explained(swept)) for name, metric in sharing.items())
    for name, metric in metrics.items():
        metric.accumulate(found[name] if count else found[name].rows(slice(0)))
    return found


def shared_sweeps(metrics: Mapping[str, ExplanationMetric]) -> list[tuple[Plan, dict[str, SweepMetric]]]:
    """Which metrics share a sweep, and how it is made: over the same regions, in the smallest chunks asked for."""
    found: dict[tuple[Regions, str], dict[str, SweepMetric]] = {}
    for name, metric in metrics.items():
        if isinstance(metric, SweepMetric):
            found.setdefault((metric.plan.regions, metric.plan.engine), {})[name] = metric
    sweeps = []
    for (regions, engine), sharing in found.items():
        sizes = [metric.plan.chunk_size for metric in sharing.values() if metric.plan.chunk_size is not None]
        sweeps.append((Plan(regions, min(sizes, default=None), engine), sharing))
    return sweeps


def gini(magnitudes: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Gini coefficient of non-negative numbers: 0 if all are equal, near 1 if one holds everything.

    .. math:: G = \frac{\sum_i (2i - n - 1)\, a_{(i)}}{n \sum_i a_{(i)}}

    0 if all are 0. Source: :cite:`hurley2009`.

    Args:
        magnitudes: :math:`a` [..., n].
        present: Which of them count, Boolean [..., n]; the others must be 0.

    >>> gini(torch.tensor([[0.0, 0.0, 0.0, 8.0], [2.0, 2.0, 2.0, 2.0]]))
    tensor([0.7500, 0.0000])
    """
    ordered = magnitudes.sort(-1).values
    length = ordered.shape[-1]
    count = torch.full_like(ordered[..., :1], length) if present is None else present.sum(-1, keepdim=True)
    # What does not count is 0 and comes first, so the ranks of the others start after it.
    ranks = torch.arange(1, length + 1, device=ordered.device) - (length - count)
    total = ordered.sum(-1)
    share = ((2 * ranks - count - 1) * ordered).sum(-1) / (count.squeeze(-1) * total)
    return torch.where(total > 0, share, 0.0)


def top_share(magnitudes: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Share of the total that the strongest tenth of the cells holds, :math:`\lceil n / 10 \rceil` of them.

    0 if all are 0.

    Args:
        magnitudes: Non-negative numbers [..., n].
        present: Which of them count, Boolean [..., n]; the others must be 0.

    >>> top_share(torch.tensor([1.0, 1.0, 2.0, 4.0]))
    tensor(0.5000)
    """
    ordered = magnitudes.sort(-1, descending=True).values
    length = ordered.shape[-1]
    count = torch.full_like(ordered[..., :1], length) if present is None else present.sum(-1, keepdim=True)
    strongest = torch.arange(length, device=ordered.device) < (count / 10).ceil()
    total = ordered.sum(-1)
    return torch.where(total > 0, (ordered * strongest).sum(-1) / total, 0.0)


def _written_out(value: Any) -> str:
    """Like ``repr``, but with every number of a tensor."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{value.dtype}{list(value.shape)}{zlib.crc32(raw.numpy().tobytes())}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{part.name}={_written_out(getattr(value, part.name))}" for part in fields(value))
        return f"{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written_out, value))}]"
    return repr(value)


def precise(values: Tensor) -> Tensor:
    """In double precision, except on devices that have none."""
    return values if values.device.type == "mps" else values.double()


def check_shared(regions: Regions | None, who: str) -> None:
    """Refuse regions that differ from sample to sample: of such features there are no means over the data.

    Raises:
        ValueError: If their labels are a function of the inputs.
    """
    if isinstance(regions, Segments) and callable(regions.labels):
        raise ValueError(f"{who} needs regions that are the same in every sample: give Segments a label map.")


def _expected(regions: BoundRegions, pairing: Pairing) -> Tensor:
    """Which features or pairs a sample has, Boolean [N, F] or [1, F]: no pair of a feature with itself."""
    present = regions.present()
    if present is None:
        present = torch.ones(1, regions.count, dtype=torch.bool)
    if pairing == "all":
        first, second = torch.triu_indices(regions.count, regions.count, offset=1)
        return present[:, first] & present[:, second]
    if isinstance(pairing, int):
        others = torch.arange(regions.count, device=present.device) != pairing
        return present & present[:, pairing, None] & others
    return present
