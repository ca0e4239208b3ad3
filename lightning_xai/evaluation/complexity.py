r"""How widely a map is spread, and whether it adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.curves import mean_scores
from lightning_xai.evaluation.features import ExplainedBatch, FeatureMap, MapLike, precise
from lightning_xai.evaluation.masking import pooled
from lightning_xai.evaluation.refusals import disjoint, one_score, sets_fit
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.sets import FeatureSets
from lightning_xai.perturbation.sweep import Plan, Request
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import ScoreLike, Target, as_score

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lightning_xai.evaluation.options import DropOptions


def magnitudes(relevance: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`|\tilde a_p|` [N, P] of maps, 0 where not finite, and which positions are finite.

    >>> magnitudes(torch.tensor([[[1.0, float("nan")], [-3.0, float("nan")]]]))
    (tensor([[2., 0.]], dtype=torch.float64), tensor([[ True, False]]))
    """
    positions = precise(pooled(relevance)).flatten(1)
    finite = positions.isfinite()
    return torch.where(finite, positions, 0.0).abs(), finite


def gini(magnitudes: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Compute the Gini coefficient of non-negative numbers: 0 if all are equal, near 1 if one holds everything.

    .. math:: G = \frac{\sum_i (2i - n - 1)\, a_{(i)}}{n \sum_i a_{(i)}}

    0 if all are 0, NaN if one is. Source: :cite:`hurley2009`.

    Args:
        magnitudes: :math:`a` [..., n].
        present: Which of them count, Boolean [..., n]; the others must be 0.

    Raises:
        ValueError: If one is negative, or there is none.

    >>> gini(torch.tensor([[0.0, 0.0, 0.0, 8.0], [2.0, 2.0, 2.0, 2.0]]))
    tensor([0.7500, 0.0000])
    """
    ordered = _not_negative(magnitudes).sort(-1).values
    length = ordered.shape[-1]
    count = torch.full_like(ordered[..., :1], length) if present is None else present.sum(-1, keepdim=True)
    # What does not count is 0 and comes first, so the ranks of the others start after it.
    ranks = torch.arange(1, length + 1, device=ordered.device) - (length - count)
    total = ordered.sum(-1)
    share = ((2 * ranks - count - 1) * ordered).sum(-1) / (count.squeeze(-1) * total)
    return torch.where(total == 0, 0.0, share)


def _not_negative(magnitudes: Tensor) -> Tensor:
    if not magnitudes.shape[-1]:
        raise ValueError(f"magnitudes {list(magnitudes.shape)} hold no number.")
    if bool((magnitudes < 0).any()):
        raise ValueError("magnitudes must not be negative: give those of a map, magnitudes(a), or a.abs().")
    return magnitudes


def entropy(magnitudes: Tensor) -> Tensor:
    r"""Compute the entropy of non-negative numbers as shares of their sum, in nats: 0 if one holds everything.

    .. math:: H = -\sum_p q_p \ln q_p, \qquad q_p = a_p / \sum a

    :math:`\ln P` if all are equal; 0 if all are 0, NaN if one is. Source: :cite:`bhatt2020`.

    Args:
        magnitudes: :math:`a` [..., P].

    Raises:
        ValueError: If one is negative, or there is none.

    >>> entropy(torch.tensor([[0.0, 5.0], [2.0, 2.0]]))
    tensor([0.0000, 0.6931])
    """
    total = _not_negative(magnitudes).sum(-1, keepdim=True)
    shares = magnitudes / torch.where(total == 0, 1.0, total)
    found: Tensor = torch.special.entr(shares).sum(-1)
    return found


def completeness_gaps(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    score: ScoreLike = "logit",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Compare the sum of a map with what the score loses where every feature is replaced.

    .. math:: g = \sum_p a_p - \big(s(x) - s(x_{all})\big)

    The arguments and errors are those of :func:`perturbation_curves`. One pass beyond the clean one, which the curves
    share. R(x) must be the baseline of the attribution, and s its score: the logit for LRP and gradients.

    Returns:
        The gaps g [N], and the changes :math:`s(x) - s(x_{all})` [N].

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 1.0]])
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> gap, change = completeness_gaps(model, torch.ones(1, 2), 0, torch.tensor([[3.0, 0.0]]), **how)
    >>> gap.item(), change.item()
    (-1.0, 4.0)
    """
    kind, score = sets_fit(as_perturbation(perturbation)), one_score(as_score(score))
    plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
    batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
    features = batch.features(plan.regions)
    request = Request(kind, score, everything(features))
    swept = batch.sweep([request], plan)
    return gaps_of(features, swept.clean[score], mean_scores(swept, request))


def everything(features: FeatureMap) -> FeatureSets:
    """One set per sample: all features that it has."""
    return FeatureSets.of(features.present.unsqueeze(1))


def gaps_of(features: FeatureMap, clean: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gap [N] and the change of the score [N], by the scores [N] without any feature."""
    change = precise(clean) - precise(scores)
    finite = features.cells.isfinite()
    whole = torch.where(finite, features.cells, 0.0).flatten(1).sum(1)
    return torch.where(finite.flatten(1).any(1), whole - change, UNDEFINED), change


def completeness_gap(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[DropOptions]
) -> Tensor:
    r"""Compute how far maps miss the change of the score, over all samples: low is good.

    .. math:: \frac{\sum_n |g_n|}{\sum_n |s(x_n) - s(x_{n, all})|}

    A share of the changes, 0-d; NaN where no score changes. A sample whose score is not finite is left out. The
    arguments and errors are those of :func:`completeness_gaps`. Source: :cite:`sundararajan2017`.

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 1.0]])
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> completeness_gap(model, torch.ones(1, 2), 0, torch.tensor([[3.0, 0.0]]), **how).item()
    0.25
    """
    gap, change = completeness_gaps(model, inputs, target, explanation, **options)
    known = gap.isfinite()
    return gap[known].abs().sum() / change[known].abs().sum()
