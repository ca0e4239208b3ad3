r"""Features alone: does the order of a map agree with that of the importances?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai.evaluation.correlation import UNDEFINED, is_constant, pearson, spearman
from lightning_xai.evaluation.features import ExplainedBatch, FeatureMap, MapLike, precise, tolerance
from lightning_xai.evaluation.refusals import disjoint, one_score, sets_fit
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.sweep import Plan, Request
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import ScoreLike, Target, as_score

_NOTHING = 1e-5


@dataclass(frozen=True, eq=False)
class FeatureDrops:
    r"""What a map and the score say of every feature alone.

    Attributes:
        left: :math:`A_j` [N, J], NaN of features that are in no order.
        right: :math:`LI_j = s(x) - s(x_j)` [N, J].
        clean: :math:`s(x)` [N].
        right_scale: The largest magnitude of the scores [N].
        tau: What counts as equal, as a share of the scale.
    """

    left: Tensor
    right: Tensor
    clean: Tensor
    right_scale: Tensor
    tau: float = 1e-12

    @property
    def estimate(self) -> Tensor:
        """Pearson's correlation of the map and the importances [N]; NaN where one does not vary."""
        return self._correlate(pearson, self.left, self.right)

    @property
    def monotonicity_correlation(self) -> Tensor:
        """Spearman's correlation of their magnitudes [N]; NaN where one does not vary."""
        return self._correlate(spearman, self.left.abs(), self.right.abs())

    @property
    def non_sensitivity(self) -> Tensor:
        """The share of the features [N] that matter by one of both only."""
        there = self._there
        left, right = (torch.where(there, side, 0.0).abs() for side in (self.left, self.right))
        nothing = left <= _NOTHING * left.amax(1, keepdim=True)
        scale = torch.maximum(self.clean.abs(), right.amax(1)).unsqueeze(1)
        differ = (nothing != (right <= _NOTHING * scale)) & there
        count = there.sum(1)
        return torch.where(count > 0, differ.sum(1) / precise(count.clamp(min=1)), UNDEFINED)

    @property
    def _there(self) -> Tensor:
        return self.left.isfinite() & self.right.isfinite()

    def _correlate(self, correlation: object, left: Tensor, right: Tensor) -> Tensor:
        assert callable(correlation)
        there = self._there
        flat = is_constant(left, there, self.tau, torch.where(there, left, 0.0).abs().sum(1))
        flat = flat | is_constant(right, there, self.tau, self.right_scale)
        found: Tensor = correlation(left, right, there)
        return torch.where(flat, UNDEFINED, found)


def feature_drops(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    score: ScoreLike = "probability",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> FeatureDrops:
    r"""Compare a map with the importance of every feature alone.

    .. math:: A_j = \sum_{p \in j} \sum_c a_{cp}, \qquad LI_j = s(x) - s(x_j)

    The arguments and errors are those of :func:`perturbation_curves`. J passes beyond the clean one, the sweep of
    :func:`~lightning_xai.perturbation.importance`.

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model = nn.Linear(3, 1, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0]])
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> feature_drops(model, torch.ones(1, 3), 0, model.weight.detach(), **how).right
    tensor([[1., 2., 3.]], dtype=torch.float64)
    """
    kind, score = sets_fit(as_perturbation(perturbation)), one_score(as_score(score))
    plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
    batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
    features = batch.features(plan.regions)
    request = Request(kind, score)
    swept = batch.sweep([request], plan)
    return single_drops_of(features, swept.clean[score], swept.arms[request].mean(0))


def single_drops_of(features: FeatureMap, clean: Tensor, scores: Tensor) -> FeatureDrops:
    """Put both sides together, by the clean scores [N] and those of every feature alone [N, J]."""
    before, perturbed = precise(clean), precise(scores)
    scale = torch.cat((before.unsqueeze(1), perturbed), 1).abs().nan_to_num().amax(1)
    left = torch.where(features.ordered, features.values, UNDEFINED)
    tau = max(features.tau, tolerance(clean))
    return FeatureDrops(left, before.unsqueeze(1) - perturbed, before, scale, tau)
