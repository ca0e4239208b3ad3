"""What the metrics share: run, then accumulate, so that metrics that need the same sweep can share it."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_xai.perturbation.regions import BoundRegions
from lightning_xai.perturbation.sweep import Partner, Plan, Request, Swept, check_sweep, sweep
from lightning_xai.targets import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Means per class are kept up to this many numbers (1,000 classes of 224 x 224 are over it).
_MOST_CLASS_CELLS = 2**24


@dataclass(frozen=True)
class Explained:
    """What one metric found for a batch.

    Attributes:
        tensors: Per-sample tensors [N, ...] by name.
        target: The explained classes [N].
        prediction: The predicted classes [N].
        nonfinite: How many values of each sample are not numbers [N].
        classes: The number of classes.
    """

    tensors: dict[str, Tensor]
    target: Tensor
    prediction: Tensor
    nonfinite: Tensor
    classes: int

    def rows(self, rows: slice) -> Explained:
        """The same for some of the samples."""
        return replace(
            self,
            tensors={name: tensor[rows] for name, tensor in self.tensors.items()},
            target=self.target[rows],
            prediction=self.prediction[rows],
            nonfinite=self.nonfinite[rows],
        )


class ExplanationMetric(Metric, ABC):
    """A torchmetrics metric of explanations: ``update`` is :meth:`run`, then :meth:`accumulate`.

    Its states are sums and counts; their size is that of the results and does not grow with the data.

    Class attributes:
        pictured: The per-sample maps worth drawing, and their titles.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    pictured: ClassVar[dict[str, str]] = {}

    samples: Tensor
    nonfinite: Tensor
    left_out: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("samples", "nonfinite", "left_out"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def run(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> Explained:
        """Explain a batch; changes nothing.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, *S], or a table [N, F].
            target: Class indices [N], one index for all, or ``"predicted"``.
            sample_ids: The samples' ids [N]; 0..N-1 unless given.
        """

    @abstractmethod
    def check(self, model: nn.Module, inputs: Tensor, target: Target) -> None:
        """Raise what :meth:`run` would refuse of a batch, at the cost of a forward pass of its first sample."""

    @abstractmethod
    def add(self, found: Explained) -> None:
        """Add what was found to the states."""

    def accumulate(self, found: Explained) -> None:
        """Count what :meth:`run` found."""
        self._update_count += 1
        self._computed = None
        self._accumulate(found)

    def update(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> None:
        """Explain a batch and count it; the arguments are those of :meth:`run`."""
        self._accumulate(self.run(model, inputs, target, sample_ids))

    def leave_out(self, count: int) -> None:
        """Count samples that could not be explained."""
        self.left_out = self.left_out + count

    def plot(self, val: Mapping[str, Any] | None = None, ax: Any = None) -> tuple[Figure, Any]:  # noqa: ARG002
        """A figure of the results, and its axes: curves, heat maps, maps per class.

        Args:
            val: Results to draw; those of ``compute()`` unless given.
            ax: Not used: a result has several panels.
        """
        from lightning_xai import figures

        figure = figures.draw_result(self.compute() if val is None else val, type(self).__name__)
        return figure, figure.axes

    def _accumulate(self, found: Explained) -> None:
        with torch.no_grad():
            self.add(found)  # first, as it is what refuses inputs of another size
            self.samples = self.samples + len(found.target)
            self.nonfinite = self.nonfinite + found.nonfinite.sum()

    def _sums(self, *names: str) -> None:
        """States that start as the number 0 and take the shape and precision of what is first added."""
        for name in names:
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def _plus(self, name: str, values: Tensor) -> None:
        """Add values summed over the samples to a state, in double precision where the device has it."""
        before = getattr(self, name)
        if before.ndim and before.shape != values.shape:
            raise ValueError(
                f"means over the data need inputs of one size: {name} was {list(before.shape)} so far and is "
                f"{list(values.shape)} now. Resize the inputs, or use one metric per size."
            )
        setattr(self, name, before.to(values.device) + values)

    def _identify(self, *configuration: Any) -> None:
        """Keep a ``MetricCollection`` from taking two metrics for one because their first results agree."""
        code = zlib.crc32(repr((type(self).__name__, configuration)).encode())
        bits = torch.tensor([code >> bit & 1 for bit in range(32)], dtype=torch.uint8)
        self.add_state("configuration", bits, dist_reduce_fx="max")

    def _counts(self) -> dict[str, Tensor]:
        return {"samples": self.samples, "nonfinite": self.nonfinite, "left_out": self.left_out}


class SweepMetric(ExplanationMetric, ABC):
    """A metric of chapter 1: it asks a sweep for what it needs.

    Attributes:
        plan: The regions and how they are swept.
        requests: What the metric needs of the sweep.
    """

    plan: Plan
    requests: list[Request]

    @abstractmethod
    def explained(self, swept: Swept) -> Explained:
        """What the metric makes of a sweep that holds its requests."""

    def run(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> Explained:
        """Sweep a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        return self.explained(sweep(model, inputs, target, self.requests, replace(self.plan, sample_ids=sample_ids)))

    def check(self, model: nn.Module, inputs: Tensor, target: Target) -> None:
        """Raise what a sweep of a batch would refuse."""
        check_sweep(model, inputs, target, self.requests, self.plan)

    def _explained(self, swept: Swept, request: Request, values: Tensor, tensors: dict[str, Tensor]) -> Explained:
        """``tensors`` with the values [N, F] of a request, whose NaN are counted where a value is to be expected."""
        missing = ~values.isfinite() & _expected(swept.regions, request.partner).to(values.device)
        score = request.score
        target, prediction = swept.target[score], swept.prediction[score]
        return Explained(tensors, target, prediction, missing.flatten(1).sum(1), swept.classes[score])


class MapMetric(SweepMetric, ABC):
    """A metric whose main result is a signed map over the input: its means, per class, and how peaked it is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sums("map_sum", "map_abs_sum", "map_count", "class_sum", "class_count")
        self._sums("mean_abs_sum", "gini_sum", "top_share_sum", "measured")

    def add(self, found: Explained) -> None:
        """Add the maps [N, *S] of ``found.tensors["map"]``."""
        values = _precise(found.tensors["map"])
        number = values.isfinite()
        values = torch.where(number, values, 0.0)
        self._plus("map_sum", values.sum(0))
        self._plus("map_abs_sum", values.abs().sum(0))
        self._plus("map_count", number.sum(0))
        if found.classes * values[:1].numel() <= _MOST_CLASS_CELLS:
            one_hot = nn.functional.one_hot(found.target, found.classes).to(values)
            self._plus("class_sum", torch.einsum("nc,n...->c...", one_hot, values))
            self._plus("class_count", torch.einsum("nc,n...->c...", one_hot, number.to(values)))
        cells = [sample[kept] for sample, kept in zip(values.abs(), number, strict=True) if kept.any()]
        self._plus("mean_abs_sum", _total([sample.mean() for sample in cells], values))
        self._plus("gini_sum", _total([gini(sample) for sample in cells], values))
        self._plus("top_share_sum", _total([top_share(sample) for sample in cells], values))
        self._plus("measured", values.new_tensor(float(len(cells))))

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

    map_sum: Tensor
    map_abs_sum: Tensor
    map_count: Tensor
    class_sum: Tensor
    class_count: Tensor
    mean_abs_sum: Tensor
    gini_sum: Tensor
    top_share_sum: Tensor
    measured: Tensor


def update_together(
    metrics: Mapping[str, ExplanationMetric],
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    sample_ids: Tensor | Sequence[int] | None = None,
    *,
    count: bool = True,
) -> dict[str, Explained]:
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
    """
    plans: dict[Plan, dict[str, SweepMetric]] = {}
    found: dict[str, Explained] = {}
    for name, metric in metrics.items():
        if isinstance(metric, SweepMetric):
            plans.setdefault(metric.plan, {})[name] = metric
        else:
            found[name] = metric.run(model, inputs, target, sample_ids)
    for plan, sharing in plans.items():
        requests = list(dict.fromkeys(request for metric in sharing.values() for request in metric.requests))
        swept = sweep(model, inputs, target, requests, replace(plan, sample_ids=sample_ids))
        found.update((name, metric.explained(swept)) for name, metric in sharing.items())
    for name, metric in metrics.items():
        metric.accumulate(found[name] if count else found[name].rows(slice(0)))
    return found


def gini(magnitudes: Tensor) -> Tensor:
    r"""Gini coefficient of non-negative numbers: 0 if all are equal, near 1 if one holds everything.

    .. math:: G = \frac{\sum_i (2i - n - 1)\, a_{(i)}}{n \sum_i a_{(i)}}

    0 if all are 0. Source: :cite:`hurley2009`.

    >>> gini(torch.tensor([0.0, 0.0, 0.0, 8.0]))
    tensor(0.7500)
    """
    ordered = magnitudes.sort().values
    count = len(ordered)
    ranks = 2 * torch.arange(1, count + 1, device=ordered.device, dtype=ordered.dtype) - count - 1
    total = ordered.sum()
    return torch.where(total > 0, (ranks * ordered).sum() / (count * total), 0.0)


def top_share(magnitudes: Tensor) -> Tensor:
    r"""Share of the total that the strongest tenth of the cells holds, :math:`\lceil n / 10 \rceil` of them.

    0 if all are 0.

    >>> top_share(torch.tensor([1.0, 1.0, 2.0, 4.0]))
    tensor(0.5000)
    """
    strongest = magnitudes.topk(-(-len(magnitudes) // 10)).values.sum()
    total = magnitudes.sum()
    return torch.where(total > 0, strongest / total, 0.0)


def _expected(regions: BoundRegions, partner: Partner) -> Tensor:
    """Which features or pairs a sample has, Boolean [N, F] or [1, F]: no pair of a feature with itself."""
    present = regions.present()
    if present is None:
        present = torch.ones(1, regions.count, dtype=torch.bool)
    if partner == "all":
        first, second = torch.triu_indices(regions.count, regions.count, offset=1)
        return present[:, first] & present[:, second]
    if isinstance(partner, int):
        others = torch.arange(regions.count, device=present.device) != partner
        return present & present[:, partner, None] & others
    return present


def _precise(values: Tensor) -> Tensor:
    """In double precision, except on devices that have none."""
    return values if values.device.type == "mps" else values.double()


def _total(numbers: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(numbers).sum() if numbers else like.new_zeros(())
