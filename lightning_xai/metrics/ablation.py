"""Ablation of units over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids, precise
from lightning_xai.metrics.maps import SCORE
from lightning_xai.results import Curve, Matrix, Number, Result
from lightning_xai.scores import ScoreLike, Target, as_score
from lightning_xai.sites import Layer
from lightning_xai.units.ablation import AblationPlan, Units, ablation, class_sums

SHARE, UNITS = "share of the class", ("unit", "class")


class UnitAblation(ExplanationMetric):
    r"""Measure the accuracy and the score of every class while units are silenced, each (or each set) by itself.

    Classes without samples are NaN; a sample whose score is not finite counts in none.

    Args:
        layer: The dotted name of a layer that gives [N, K] or [N, K, \*P] and runs once.
        units: Units, sets of units, or groups; every single unit unless given.
        value: What a silenced unit gives: a number, or one per unit [K], e.g. its mean.
        score: s.
        engine: ``"auto"``, ``"replay"`` or ``"repeat"``; see :class:`lightning_xai.units.ablation.AblationPlan`.
        chunk_size: The most variants of a sample per forward pass; found automatically unless given.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``value`` is a name: the mean over all data is not known in the first batch.

    Source: :cite:`bau2020`, :cite:`morcos2018`.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 2.0]])
        >>> metric = UnitAblation("0", units=[[0, 1], [2]])
        >>> metric.update(model, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, -3.0]]), torch.tensor([0, 1]))
        >>> metric.compute()["accuracy_drop"]
        tensor([[0., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    formula: ClassVar[str] = r"\Delta_u = s(x) - s(x;\; A_k := v_k \;\forall k \in u)"
    interpretation: ClassVar[str] = "What a class loses without a unit: positive where the unit is evidence for it."

    results: Mapping[str, Result] = {
        **ExplanationMetric.results,
        "accuracy": Matrix(
            "accuracy without the unit", SHARE, "How many are still right.", "ablation", axes=UNITS, signed=False
        ),
        "clean_accuracy": Curve(
            "accuracy with all units", SHARE, "How many are predicted right.", axes=("class",), signed=False
        ),
        "accuracy_drop": Matrix(
            "drop of the accuracy", SHARE, "What accuracy a class loses.", "ablation", axes=UNITS, listed="strongest"
        ),
        "score_drop": Matrix("mean drop of the score", SCORE, "How much score a class loses.", "ablation", axes=UNITS),
        "largest_accuracy_drop": Number(
            "largest drop of the accuracy", SHARE, "The most that any class loses without a unit.", "ablation"
        ),
    }

    def __init__(
        self,
        layer: Layer | None = None,
        *,
        units: Units = None,
        value: float | Tensor = 0.0,
        score: ScoreLike = "logit",
        engine: str = "auto",
        chunk_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(value, str):
            raise ValueError(
                f"value must be a number or one per unit, got {value!r}: the mean over all data is not known in the "
                f"first batch; compute it before."
            )
        self.plan = AblationPlan(layer, units, value, engine, chunk_size)
        self.score = as_score(score)
        self.add_sum_state("right", "clean_right", "class_count", "score_sum", "score_count")
        self.fingerprint(layer, units, value, self.score)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Ablate on a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        found = ablation(model, inputs, target, self.plan, self.score, sample_ids, strict=False)
        tensors = {"score_drop": found.score_drop, "right": found.prediction == found.target.unsqueeze(1)}
        missing = (~found.score_drop.isfinite()).sum(1)
        return BatchExplanation(tensors, found.target, found.clean_prediction, missing, found.classes)

    def add(self, found: BatchExplanation) -> None:
        """Add the counts and scores of a batch."""
        drop = precise(found.tensors["score_drop"])
        number = drop.isfinite()
        scored = number.any(1)
        of_class = found.target, found.classes
        self.add_to_state("right", class_sums((found.tensors["right"] & number).long(), *of_class))
        clean_right = scored & (found.prediction == found.target)
        self.add_to_state("clean_right", class_sums(clean_right.long().unsqueeze(1), *of_class)[0])
        self.add_to_state("class_count", class_sums(scored.long().unsqueeze(1), *of_class)[0])
        self.add_to_state("score_sum", class_sums(torch.where(number, drop, 0.0), *of_class))
        self.add_to_state("score_count", class_sums(number.long(), *of_class))

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        if not self.right.ndim:
            raise ValueError("UnitAblation has seen no sample: call update before compute.")
        accuracy = self.right.double() / self.score_count
        clean_accuracy = self.clean_right.double() / self.class_count
        drop = clean_accuracy - accuracy
        return {
            **self.sample_counts(),
            "accuracy": accuracy,
            "clean_accuracy": clean_accuracy,
            "accuracy_drop": drop,
            "score_drop": self.score_sum / self.score_count,
            "largest_accuracy_drop": drop.nan_to_num(nan=0.0).amax(),
        }
