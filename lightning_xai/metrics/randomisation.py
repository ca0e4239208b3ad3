"""How an attribution depends on parameters and class, over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_flag, as_integer, check_known
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.randomisation import ORDERS, emprt, mprt, random_logit
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.evaluation.similarity import check_similarity
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids, precise
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.measures import MeasureMetric, measure_results
from lightning_xai.results import Labels, Number, PerLayer, Result
from lightning_xai.scores import RawOutput, Target, as_score

SIMILARITY = "similarity, 1 unchanged"
MEASURES = {
    "mprt": Number("map under new parameters", SIMILARITY, "The mean over the stages.", "mprt", better="lower"),
    "emprt": Number(
        "rise of the entropy under new parameters", "share", "How much a map loses its order.", "emprt", better="higher"
    ),
    "random_logit": Number(
        "map of another class", SIMILARITY, "Whether the class matters.", "random-logit", better="lower"
    ),
}

STAGES = {
    "mprt_by_layer": PerLayer("map under new parameters", SIMILARITY, "From the first stage to the last.", "mprt")
}


class Randomisation(MeasureMetric):
    r"""Average how alike maps stay under new parameters, and for another class.

    A map per layer, one for all parameters, and one for the other class. Parameters are new for a stage only, and those
    of the network at the end, bit by bit, whatever fails.

    Args:
        attribution: What is measured.
        order: ``"top_down"``, ``"bottom_up"`` or ``"independent"``.
        similarity: ``"spearman"``, ``"cosine"`` or ``"ssim"``.
        absolute: Compare magnitudes, which hides a flipped sign.
        seed: Keys the parameters by name, and the other class by the sample's id.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, or an argument is of the wrong type.
        ValueError: If an order or similarity is unknown.

    Example:
        >>> from lightning_xai.relevance import GradientXInput
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
        >>> metric = Randomisation(GradientXInput())
        >>> metric.update(model, torch.ones(4, 3), 0)
        >>> metric.compute()["random_logit"]
        tensor(-1., dtype=torch.float64)
    """

    formula: ClassVar[str] = r"\frac{1}{L} \sum_l \operatorname{sim}(a_\theta, a_{\theta_l})"
    interpretation: ClassVar[str] = (
        "A map that stays when the network forgets what it has learned shows the input, not the network."
    )

    results: Mapping[str, Result] = {**ExplanationMetric.results, **measure_results(MEASURES), **STAGES}

    def __init__(
        self,
        attribution: Attribution,
        *,
        order: str = "top_down",
        similarity: str = "spearman",
        absolute: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        an_attribution(attribution)
        check_known("order", order, ORDERS)
        check_similarity(similarity)
        super().__init__(MEASURES, **options)
        self.how: Mapping[str, Any] = {"similarity": similarity, "absolute": as_flag("absolute", absolute)}
        self.order, self.seed = order, as_integer("seed", seed)
        self.layers: tuple[str, ...] = ()
        self.add_sum_state("stage_sum", "stage_count")
        self.ask(attribution, order, similarity, absolute, seed)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain a batch under new parameters; the arguments are those of :meth:`ExplanationMetric.run`."""
        clean = explain_once(self.attribution, model, inputs, target, sample_ids)
        keys: dict[str, Any] = {"seed": self.seed, "sample_ids": sample_ids}
        how: dict[str, Any] = {**self.how, **keys}
        stages = mprt(model, inputs, clean.target, self.attribution, order=self.order, **how)
        tensors = {
            "mprt": stages.mean,
            "emprt": emprt(model, inputs, clean.target, self.attribution, **keys),
            "random_logit": random_logit(model, inputs, clean.target, self.attribution, **how),
        }
        nonfinite = (~clean.map.isfinite()).flatten(1).sum(1)
        about = (clean.target, clean.prediction, nonfinite, clean.classes)
        return BatchExplanation(
            tensors,
            *about,
            kept={"stages": stages.similarity},
            constants={"layers": stages.layers},
            score=clean.score,
            is_value=isinstance(as_score(self.attribution.score), RawOutput),
        )

    def add(self, found: BatchExplanation) -> None:
        """Add the measures and stages of a batch."""
        super().add(found)
        self.layers = found.constants["layers"]
        stages = precise(found.kept["stages"])
        known = stages.isfinite()
        self.add_to_state("stage_sum", torch.where(known, stages, 0.0).sum(0))
        self.add_to_state("stage_count", known.to(stages).sum(0))

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        return {**super().compute(), "mprt_by_layer": self.stage_sum / self.stage_count}

    @property
    def axis_labels(self) -> Labels:
        """Name the layers in the order of the stages."""
        return {"layer": [name or "the model itself" for name in self.layers]}
