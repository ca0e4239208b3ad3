"""Localisation of an attribution over a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_number
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.features import ExplainedBatch
from lightning_xai.evaluation.localisation import pointing, relevance_mass, relevance_rank
from lightning_xai.evaluation.masking import is_blank, pooled
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.inputs import InputsLike
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.measures import MeasureMetric, measure_results
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target, as_score

MEASURES = {
    "pointing": Number("pointing game", "0 … 1", "Whether the strongest position hits.", "pointing", better="higher"),
    "relevance_mass": Number(
        "relevance inside the mask", "share of the positive", "How much lies there.", "relevance-mass", better="higher"
    ),
    "relevance_rank": Number(
        "strongest positions inside the mask", "0 … 1", "How many lie there.", "relevance-rank", better="higher"
    ),
}

PER_CLASS = {
    "pointing_per_class": Number(
        "pointing game, mean over classes", "0 … 1", "Hits where every class counts alike.", "pointing", better="higher"
    )
}

FURTHER = {
    "blank": Number(
        "blank maps", "samples", "How many maps have no positive cell.", "relevance-mass", usually_zero=True
    ),
}


class Localisation(MeasureMetric):
    r"""Average how far maps lie where the object is.

    Args:
        attribution: What is measured.
        mask: Finds the object: a function of the inputs that returns L, Boolean [N, \*S]. Unless given, the batch says
            where it is: ``unpack`` returns masks or boxes. Samples with an empty mask are undefined.
        tolerance: How far from the mask the strongest position may lie, in cells.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, or ``mask`` no function of the inputs that returns masks.
        ValueError: If the masks do not fit the maps, or the tolerance is negative.

    Example:
        >>> from lightning_xai.relevance import GradientXInput
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0]])
        >>> metric = Localisation(GradientXInput(), lambda x: x > 1)
        >>> metric.update(model, torch.tensor([[1.0, 1.0, 2.0]]), 0)
        >>> metric.compute()["pointing"]
        tensor(1., dtype=torch.float64)
    """

    formula: ClassVar[str] = r"\frac{\sum_{p \in L} \max(\tilde a_p, 0)}{\sum_p \max(\tilde a_p, 0)}"
    interpretation: ClassVar[str] = (
        "High: the map marks the object. A constant map scores the mask's share of the input."
    )

    results: Mapping[str, Result] = {**ExplanationMetric.results, **measure_results(MEASURES), **PER_CLASS, **FURTHER}

    def __init__(
        self,
        attribution: Attribution,
        mask: Callable[[Tensor], Tensor] | None = None,
        *,
        tolerance: float = 0.0,
        **options: Any,
    ) -> None:
        an_attribution(attribution)
        if mask is not None and not callable(mask):
            raise TypeError(
                f"mask must be a function of the inputs, e.g. lambda x: x[:, 0] > 0.5, or None for the masks of the "
                f"batch, got {mask!r}."
            )
        check_number("tolerance", tolerance, least=0)
        super().__init__(MEASURES, **options)
        self.mask, self.tolerance = mask, float(tolerance)
        self.add_sum_state("class_hits", "class_count")
        self.add_sum_state("blank_count", dtype=torch.long)
        self.ask(attribution, mask, tolerance)

    @property
    def takes_masks(self) -> bool:
        """Whether the batch says where the objects are."""
        return self.mask is None

    def check(self, model: nn.Module, inputs: InputsLike, target: Target = None, masks: Tensor | None = None) -> int:
        """Raise the errors that :meth:`run` would raise for a batch, at the cost of its first sample."""
        return self._check_first(model, inputs, target, masks=masks)

    def run(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Target = None,
        sample_ids: Ids = None,
        masks: Tensor | None = None,
    ) -> BatchExplanation:
        r"""Explain a batch and find its objects; the arguments are those of :meth:`ExplanationMetric.run`.

        ``masks`` say where they are, Boolean [N, \*S], unless the metric has a function that does.

        Raises:
            TypeError: If masks are given beside such a function, or it returns no tensor.
            ValueError: If there are no masks.
        """
        mask = self._mask(inputs, masks)
        clean = explain_once(self.attribution, model, inputs, target, sample_ids)
        relevance = ExplainedBatch.of(model, inputs, target, clean, sample_ids).relevance
        tensors = {
            "pointing": pointing(relevance, mask, tolerance=self.tolerance),
            "relevance_mass": relevance_mass(relevance, mask),
            "relevance_rank": relevance_rank(relevance, mask),
        }
        nonfinite = (~clean.map.isfinite()).flatten(1).sum(1)
        about = (clean.target, clean.prediction, nonfinite, clean.classes)
        is_value = isinstance(as_score(self.attribution.score), RawOutput)
        kept = {"blank": is_blank(pooled(relevance))}
        return BatchExplanation(tensors, *about, kept=kept, score=clean.score, is_value=is_value)

    def _mask(self, inputs: Tensor, masks: Tensor | None) -> Tensor:
        if self.mask is None:
            if masks is None:
                raise ValueError(
                    "where the objects are is not known: let unpack return (inputs, target, masks), Boolean masks "
                    "[N, *S], or (inputs, target, {'boxes': boxes}), or give Localisation(mask=...), a function of the "
                    "inputs."
                )
            return masks
        if masks is not None:
            raise TypeError("masks are given to a metric that finds its objects by Localisation(mask=...): give one.")
        found = self.mask(inputs)
        if not isinstance(found, Tensor):
            raise TypeError(f"mask must return a tensor [N, *S], got {type(found).__name__}.")
        return found

    def add(self, found: BatchExplanation) -> None:
        """Add the measures of a batch."""
        super().add(found)
        self.add_to_state("blank_count", found.kept["blank"].sum())
        if found.classes > 1:
            hits = found.tensors["pointing"]
            known, blank = hits.isfinite(), hits.new_zeros(found.classes)
            self.add_to_state("class_hits", blank.index_add(0, found.target, torch.where(known, hits, 0.0)))
            self.add_to_state("class_count", blank.index_add(0, found.target, known.to(hits)))

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares; those per class where there are several."""
        found = {**super().compute(), "blank": self.blank_count}
        if self.class_hits.ndim:
            found["pointing_per_class"] = (self.class_hits / self.class_count).nanmean()
        return found
