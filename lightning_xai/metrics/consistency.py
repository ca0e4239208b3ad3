"""Consistency and sufficiency of an attribution over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_number
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.consistency import codes, consistency, sufficiency
from lightning_xai.evaluation.features import ExplainedBatch
from lightning_xai.evaluation.refusals import an_attribution, disjoint
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.kept import KeptSamples, means_of
from lightning_xai.metrics.measures import ComparableMetric, measure_results
from lightning_xai.metrics.sweeps import check_shared
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target, as_score

_UNIT = "share of the others"
MEASURES = {
    "consistency": Number(
        "consistency", _UNIT, "Whether the strongest features tell the prediction.", "consistency", better="higher"
    ),
    "sufficiency": Number(
        "sufficiency", _UNIT, "Whether similar maps go with one prediction.", "sufficiency", better="higher"
    ),
}
COUNTS = {"compared_samples": Number("samples compared", "samples", "How many samples are kept.", "consistency")}
_PREDICTION, _FEATURES = 1, 2  # columns of what is kept of a sample


class Consistency(ComparableMetric, KeptSamples):
    r"""Average how often samples that are explained alike have the same prediction.

    Alike are, for the consistency, samples with the same strongest features and signs of these; for the sufficiency,
    samples whose maps have a large cosine. Samples are compared with each other whatever batch and process they are
    of: those of the M smallest ids, so batches need ``sample_ids`` of the data set. A sample without another one that
    is alike is undefined.

    The state is M (J + 2) numbers in double precision.

    Args:
        attribution: What is measured.
        regions: The features j; they must not overlap.
        count: k, how many of the strongest features must be the same.
        threshold: :math:`\tau`, the cosine from which on maps are similar.
        samples: M.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, or an argument is of the wrong type.
        ValueError: If the regions overlap or differ from sample to sample, or a number makes no sense.

    Source: :cite:`dasgupta2022`.

    Example:
        Two of three samples are explained by their first feature, and both are of class 0:

        >>> import torch
        >>> from lightning_xai.relevance import GradientXInput
        >>> model = nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> metric = Consistency(GradientXInput(), 1, count=1)
        >>> metric.update(model, torch.tensor([[2.0, 1.0], [3.0, 1.0], [1.0, 4.0]]), "predicted")
        >>> found = metric.compute()
        >>> found["consistency"], found["consistency_undefined"]
        (tensor(1., dtype=torch.float64), tensor(1))
    """

    formula: ClassVar[str] = r"P(\hat y_m = \hat y_n \mid K_m = K_n)"
    interpretation: ClassVar[str] = (
        "Near 1: samples that are explained alike are predicted alike, so the explanation tells the prediction. "
        "Compare with a random map, and see how many samples have no other that is explained alike."
    )
    results: Mapping[str, Result] = {**ExplanationMetric.results, **measure_results(MEASURES), **COUNTS}

    about: ClassVar[int] = _FEATURES

    def __init__(
        self,
        attribution: Attribution,
        regions: RegionsLike,
        *,
        count: int = 2,
        threshold: float = 0.9,
        samples: int = 2048,
        **options: Any,
    ) -> None:
        an_attribution(attribution)
        check_number("threshold", threshold)
        super().__init__(MEASURES, samples=samples, **options)
        self.regions = disjoint(as_regions(regions))
        check_shared(self.regions, "Consistency")
        self.count, self.threshold = as_integer("count", count, least=1), float(threshold)
        self.ask(attribution, self.regions, self.count, self.threshold, samples)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        clean = explain_once(self.attribution, model, inputs, target, sample_ids)
        batch = ExplainedBatch.of(model, inputs, target, clean, sample_ids)
        return BatchExplanation(
            {},
            clean.target,
            clean.prediction,
            (~clean.map.isfinite()).flatten(1).sum(1),
            clean.classes,
            kept={"rows": self.rows_of(batch, self.regions, clean.prediction)},
            score=clean.score,
            is_value=isinstance(as_score(self.attribution.score), RawOutput),
        )

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        rows = self.rows
        prediction, features = rows[:, _PREDICTION].long(), rows[:, _FEATURES:]
        values = {
            "consistency": consistency(codes(features, self.count), prediction),
            "sufficiency": sufficiency(features, prediction, threshold=self.threshold),
        }
        return {**self.sample_counts(), **means_of(values), "compared_samples": features.new_tensor(len(rows)).long()}
