"""Agreement of an attribution with the importance of every feature, over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.features import ExplainedBatch, FeatureMap
from lightning_xai.evaluation.refusals import an_attribution, disjoint, one_score, sets_fit
from lightning_xai.evaluation.single import single_drops_of
from lightning_xai.inputs import InputsLike
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.measures import MeasureMetric, measure_results
from lightning_xai.metrics.sweeps import SweepMetric
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.kinds.base import as_perturbation
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request, SweepResult
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, ScoreLike, Target, as_score

MEASURES = {
    "faithfulness_estimate": Number(
        "correlation with importance",
        "-1 … 1, 0 chance",
        "Whether a map says LI.",
        "faithfulness-estimate",
        better="higher",
    ),
    "monotonicity_correlation": Number(
        "correlation of ranks with importance",
        "-1 … 1, 0 chance",
        "Whether magnitudes have its order.",
        "monotonicity-correlation",
        better="higher",
    ),
    "non_sensitivity": Number(
        "features that matter by one only",
        "0 … 1",
        "Whether both leave out the same.",
        "non-sensitivity",
        better="lower",
    ),
}


class ImportanceAgreement(MeasureMetric, SweepMetric):
    r"""Average how far maps agree with the importance of every feature alone.

    The sweep is that of :class:`Importance`: beside it, over the same regions, this costs nothing but the map.

    Args:
        attribution: What is measured.
        regions: The features j; they must not overlap.
        perturbation: R.
        score: s.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"`` or ``"dense"``.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, or an argument is of the wrong type.
        ValueError: If the perturbation, the score or the regions do not fit.

    Example:
        >>> import torch
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> from lightning_xai.relevance import GradientXInput
        >>> metric = ImportanceAgreement(GradientXInput(), Windows(1), kinds.Constant(0.0), score="logit")
        >>> metric.update(torch.nn.Linear(5, 2), torch.randn(4, 5), 0)
        >>> round(metric.compute()["monotonicity_correlation"].item(), 6)
        1.0
    """

    formula: ClassVar[str] = r"\operatorname{corr}_j(A_j, LI_j)"
    interpretation: ClassVar[str] = "Near 1: the map says of every feature what losing it costs."

    results: Mapping[str, Result] = {**SweepMetric.results, **measure_results(MEASURES)}

    def __init__(
        self,
        attribution: Attribution,
        regions: RegionsLike,
        perturbation: str | Perturbation,
        *,
        score: ScoreLike = "probability",
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        an_attribution(attribution)
        super().__init__(MEASURES, **options)
        self.plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
        self.requests = [Request(sets_fit(as_perturbation(perturbation)), one_score(as_score(score)))]
        self.ask(attribution, self.plan.regions, self.requests)

    def prepare(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> AgreementUse:
        """Explain a batch; the sweep is that of importance."""
        explanation = explain_once(self.attribution, model, inputs, target, sample_ids)
        batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
        batch.check(self.requests)
        return AgreementUse(self.requests, batch.features(self.plan.regions))

    def check(self, model: nn.Module, inputs: InputsLike, target: Target = None) -> int:
        """Raise the errors that :meth:`run` would raise for a batch, at the cost of its first sample."""
        return ExplanationMetric.check(self, model, inputs, target)

    def explained(self, swept: SweepResult) -> BatchExplanation:  # noqa: ARG002 - the maps are missing
        """Refuse a sweep without maps."""
        raise TypeError("ImportanceAgreement compares a sweep with maps: call prepare(...).explained(swept).")


@dataclass(frozen=True, eq=False)
class AgreementUse:
    """The maps of one batch, to be compared with a sweep.

    Attributes:
        requests: What the sweep holds.
        features: The maps over the features.
    """

    requests: list[Request]
    features: FeatureMap

    @property
    def captures(self) -> tuple[CaptureRequest, ...]:
        """Nothing is read inside the model."""
        return ()

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compare the maps with the importances of a sweep."""
        (request,) = self.requests
        score = request.score
        found = single_drops_of(self.features, swept.clean[score], swept.arms[request].mean(0))
        tensors = {
            "faithfulness_estimate": found.estimate,
            "monotonicity_correlation": found.monotonicity_correlation,
            "non_sensitivity": found.non_sensitivity,
        }
        about = (swept.target[score], swept.prediction[score], self.features.nonfinite, swept.classes[score])
        is_value = isinstance(score, RawOutput)
        return BatchExplanation(tensors, *about, score=swept.clean[score], is_value=is_value, made=swept.made)
