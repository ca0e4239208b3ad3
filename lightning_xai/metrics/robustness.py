"""Robustness of an attribution over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.evaluation.robustness import check_radius, map_changes
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.measures import MeasureMetric, measure_results
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target, as_score

MEASURES = {
    "max_sensitivity": Number(
        "largest change of a map", "share of the map", "How far a map moves.", "max-sensitivity", better="lower"
    ),
    "avg_sensitivity": Number(
        "mean change of a map", "share of the map", "How far a map moves.", "max-sensitivity", better="lower"
    ),
    "lipschitz": Number(
        "largest change of a map", "per step", "How far a map moves per length.", "lipschitz", better="lower"
    ),
    "ris": Number(
        "relative input stability",
        "ill-conditioned",
        "Change per step of the input.",
        "relative-stability",
        better="lower",
    ),
    "ros": Number(
        "relative output stability",
        "ill-conditioned",
        "Change per step of the output.",
        "relative-stability",
        better="lower",
    ),
}


class Robustness(MeasureMetric):
    r"""Average how far maps move when inputs move a little: five measures of one set of T further maps.

    Args:
        attribution: What is measured.
        radius: r, in units of the input; one per channel if it is a sequence.
        draws: T.
        seed: Keys the draws together with the samples' ids.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, or an argument is of the wrong type.
        ValueError: If ``draws`` is less than 1, or the radius negative.

    Example:
        A linear score has the same gradient everywhere:

        >>> import torch
        >>> from lightning_xai.relevance import Saliency
        >>> metric = Robustness(Saliency(), draws=2)
        >>> metric.update(torch.nn.Linear(3, 2), torch.ones(4, 3), 0)
        >>> metric.compute()["max_sensitivity"]
        tensor(0., dtype=torch.float64)
    """

    formula: ClassVar[str] = r"\max_t \frac{\|a(x + \delta_t) - a(x)\|}{\|a(x)\|}"
    interpretation: ClassVar[str] = "Low: the map stays when the input hardly moves. A map that ignores the input is 0."

    results: Mapping[str, Result] = {**ExplanationMetric.results, **measure_results(MEASURES)}

    def __init__(
        self,
        attribution: Attribution,
        *,
        radius: float | Sequence[float] = 0.02,
        draws: int = 10,
        seed: int = 0,
        **options: Any,
    ) -> None:
        an_attribution(attribution)
        check_radius(radius)
        super().__init__(MEASURES, **options)
        self.radius = radius
        self.draws, self.seed = as_integer("draws", draws, least=1), as_integer("seed", seed)
        self.ask(attribution, radius, draws, seed)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain a batch and its moved copies; the arguments are those of :meth:`ExplanationMetric.run`."""
        clean = explain_once(self.attribution, model, inputs, target, sample_ids)
        how: dict[str, Any] = {"radius": self.radius, "draws": self.draws, "seed": self.seed, "sample_ids": sample_ids}
        found = map_changes(model, inputs, target, self.attribution, **how)
        tensors = {name: getattr(found, name) for name in self.measures}
        nonfinite = (~clean.map.isfinite()).flatten(1).sum(1)
        is_value = isinstance(as_score(self.attribution.score), RawOutput)
        about = (clean.target, clean.prediction, nonfinite, clean.classes)
        return BatchExplanation(tensors, *about, score=clean.score, is_value=is_value)
