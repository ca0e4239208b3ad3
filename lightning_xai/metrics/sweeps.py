"""Metrics of chapter 1 and how they share a sweep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids, precise
from lightning_xai.metrics.explanations import shared_explanations
from lightning_xai.perturbation.pairing import Pairing
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request, SweepResult, check_sweep, sweep
from lightning_xai.regions import BoundRegions, Regions, Segments
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target
from lightning_xai.sites import Site


class SweepUse(Protocol):
    """The requests to the sweep of one batch, and the reading of its result."""

    @property
    def requests(self) -> list[Request]:
        """The perturbations and scores that the sweep must hold."""

    @property
    def captures(self) -> Sequence[CaptureRequest]:
        """The layers that are read on the way."""

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compute the explanation of the batch from a sweep that holds the requests."""


class SweepMetric(ExplanationMetric, ABC):
    """Computes a quantity from a sweep that several metrics can share.

    Attributes:
        plan: The regions and how they are swept.
        requests: What the metric needs of the sweep.
        captures: What it needs to see inside the model on the way.
        own_evaluations: How many perturbed inputs of a sample it needs at most beside its requests.
    """

    results: Mapping[str, Result] = {
        **ExplanationMetric.results,
        "pass_share": Number(
            "multiplications made",
            "share of those of dense passes",
            "How much of every pass is made: 1 by dense passes, less by incremental ones and by those from a site on.",
        ),
    }
    pass_share_sum: Tensor

    plan: Plan
    requests: list[Request]
    captures: Sequence[CaptureRequest] = ()
    own_evaluations: int = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_sum_state("pass_share_sum")

    def sample_counts(self) -> dict[str, Tensor]:
        """Return the results of every metric, and the mean share of the multiplications of dense passes."""
        return {**super().sample_counts(), "pass_share": self.pass_share_sum / self.samples}

    def _accumulate(self, found: BatchExplanation) -> None:
        super()._accumulate(found)
        each = precise(torch.ones((), device=found.target.device)) * found.made["share"]
        self.add_to_state("pass_share_sum", len(found.target) * each)

    @abstractmethod
    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compute the explanation of a batch from a sweep that holds the metric's requests."""

    @property
    def reads(self) -> Site | None:
        """The module whose output the scores read; None for the model's own."""
        return next((request.score.reads for request in self.requests), None)

    def prepare(
        self,
        model: nn.Module,  # noqa: ARG002 - needed by metrics whose requests depend on the batch
        inputs: Tensor,  # noqa: ARG002
        target: Target = None,  # noqa: ARG002
        sample_ids: Ids = None,  # noqa: ARG002
    ) -> SweepUse:
        """Return what the sweep of a batch must hold: the metric itself, unless that depends on the batch."""
        return self

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Sweep a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        model, inputs = bind(model, inputs)
        use = self.prepare(model, inputs, target, sample_ids)
        return use.explained(sweep(model, inputs, target, use.requests, self.plan, sample_ids, use.captures))

    def check(self, model: nn.Module, inputs: InputsLike, target: Target = None) -> int:
        """Raise the errors that a sweep of a batch would raise; return the number of classes."""
        return check_sweep(model, inputs, target, self.requests, self.plan, self.captures)

    def _explained(self, swept: SweepResult, tensors: dict[str, Tensor]) -> BatchExplanation:
        """Put ``tensors`` together with the count of importances that should be finite and are not."""
        nonfinite = torch.stack([self._count_nonfinite(swept, request) for request in self.requests]).sum(0)
        return self._scored(swept, tensors, nonfinite)

    def _scored(
        self, swept: SweepResult, tensors: dict[str, Tensor], nonfinite: Tensor, **parts: Any
    ) -> BatchExplanation:
        """Put together what a sweep found, with the clean score of the first request."""
        score = self.requests[0].score
        about = (swept.target[score], swept.prediction[score], nonfinite, swept.classes[score])
        is_value = isinstance(score, RawOutput)
        return BatchExplanation(tensors, *about, score=swept.clean[score], is_value=is_value, made=swept.made, **parts)

    @staticmethod
    def _count_nonfinite(swept: SweepResult, request: Request) -> Tensor:
        local = swept.local(request)
        missing: Tensor = ~local.isfinite() & _expected(swept.regions, request.pairing).to(local.device)
        return missing.sum(1)


def update_together(
    metrics: Mapping[str, ExplanationMetric],
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    sample_ids: Ids = None,
    *,
    masks: Tensor | None = None,
    count: bool = True,
    on_error: Callable[[str, Exception], None] | None = None,
) -> dict[str, BatchExplanation]:
    r"""Update metrics so that those over the same regions share one sweep.

    Args:
        metrics: The metrics by name.
        model: The network; left as it was.
        inputs: Inputs [N, C, *S], or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``; not needed for an output with one column.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.
        masks: Where the objects of the samples are, Boolean [N, \*S], for the metrics that look for them.
        count: Whether the samples count. If not, the states only take the shapes they would have: a process without
            samples of its own needs them to synchronise with the others.
        on_error: Called with the name of a metric that fails and the error; the others go on. Unless given, it is
            raised. If ``on_error`` raises while the batch is explained, no metric is updated.

    Returns:
        What each metric found, per sample; nothing of those that failed.

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
    model, inputs = bind(model, inputs)
    found: dict[str, BatchExplanation] = {}
    handle = on_error or _reraise
    with shared_explanations():
        for name, metric in metrics.items():
            if not isinstance(metric, SweepMetric):
                try:
                    found[name] = metric.run(model, inputs, target, sample_ids, **metric.masked(masks))
                except Exception as error:
                    handle(name, error)
        for plan, sharing in shared_sweeps(metrics):
            uses: dict[str, SweepUse] = {}
            for name, metric in sharing.items():
                try:
                    uses[name] = metric.prepare(model, inputs, target, sample_ids)
                except Exception as error:
                    handle(name, error)
            requests = list(dict.fromkeys(request for use in uses.values() for request in use.requests))
            captures = list(dict.fromkeys(capture for use in uses.values() for capture in use.captures))
            apart: Mapping[str, SweepUse] = {}
            try:
                if uses:
                    swept = sweep(model, inputs, target, requests, plan, sample_ids, captures)
                    found.update((name, use.explained(swept)) for name, use in uses.items())
            except Exception as error:
                if len(uses) == 1 or on_error is None:
                    handle(next(iter(uses)), error)
                else:
                    apart = uses
            # Out of the handler, whose traceback keeps the tensors of the failed sweep alive.
            for name, use in apart.items():  # each alone, to tell which of them fails
                try:
                    swept = sweep(model, inputs, target, use.requests, plan, sample_ids, use.captures)
                    found[name] = use.explained(swept)
                except Exception as error:
                    found.pop(name, None)
                    handle(name, error)
    for name in list(found):
        try:
            metrics[name].accumulate(found[name] if count else found[name].without_samples())
        except Exception as error:
            del found[name]
            handle(name, error)
    return found


def _reraise(_name: str, error: Exception) -> NoReturn:
    raise error


def shared_sweeps(metrics: Mapping[str, ExplanationMetric]) -> list[tuple[Plan, dict[str, SweepMetric]]]:
    """Group the metrics over the same regions, which share a sweep in the smallest chunks asked for."""
    found: dict[tuple[Any, ...], dict[str, SweepMetric]] = {}
    for name, metric in metrics.items():
        if isinstance(metric, SweepMetric):
            found.setdefault((metric.plan.regions, metric.plan.engine, metric.reads), {})[name] = metric
    sweeps = []
    for (regions, engine, _), sharing in found.items():
        sizes = [metric.plan.chunk_size for metric in sharing.values() if metric.plan.chunk_size is not None]
        sweeps.append((Plan(regions, min(sizes, default=None), engine), sharing))
    return sweeps


class FeatureLabels(Sequence[str]):
    """Names features by their number and first cell, when one is asked for.

    Args:
        regions: The features, bound to one sample.

    >>> from lightning_xai.perturbation import Windows
    >>> FeatureLabels(Windows(2).bind((1, 1, 4, 6)))[4]
    '4 at 2/2'
    """

    def __init__(self, regions: BoundRegions) -> None:
        self.regions = regions

    def __len__(self) -> int:
        return self.regions.count

    def __getitem__(self, feature: Any) -> Any:
        if isinstance(feature, slice):
            return [self[index] for index in range(len(self))[feature]]
        alone = torch.full((1, len(self)), float("nan"))
        alone[0, feature] = 1.0
        first = self.regions.paint(alone)[0].isfinite().nonzero()[0].tolist()
        return f"{feature} at {'/'.join(map(str, first))}"


def check_shared(regions: Regions | None, who: str) -> None:
    """Refuse regions that differ from sample to sample, as their features have no means over the data.

    Raises:
        ValueError: If their labels are a function of the inputs.
    """
    if isinstance(regions, Segments) and callable(regions.labels):
        raise ValueError(f"{who} needs regions that are the same in every sample: give Segments a label map.")


def _expected(regions: BoundRegions, pairing: Pairing) -> Tensor:
    """Mark the features or pairs that a sample has, Boolean [N, F] or [1, F]; no feature pairs with itself."""
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
