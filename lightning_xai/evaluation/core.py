r"""The core measures: twelve numbers of one map, by one sweep and no further map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_flag, as_integer, check_number
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.complexity import entropy, everything, gaps_of, gini, magnitudes
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.curves import CurveSets, PerturbationCurves, mean_scores
from lightning_xai.evaluation.features import ExplainedBatch, FeatureMap, MapLike, tolerance
from lightning_xai.evaluation.masking import is_blank, mask_of, masked_of, pooled, whole_inputs
from lightning_xai.evaluation.refusals import disjoint, one_score, sets_fit
from lightning_xai.evaluation.road import StillPredicted
from lightning_xai.evaluation.subsets import check_subsets, draw_subsets, drops_of, mean_correlation
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.kinds.pointwise import Constant
from lightning_xai.perturbation.sets import CellMasks, FeatureSets
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.regions import Regions, RegionsLike, as_regions
from lightning_xai.scores import Probability, ScoreLike, Sigmoid, Target, as_score

CURVES = ("deletion", "insertion", "srg", "aopc_morf", "sufficient_share")
MASKED = ("average_drop", "average_increase")


@dataclass(frozen=True)
class CoreMeasures:
    r"""What the core measures are computed with.

    Average drop and increase are shares of a probability, and left out under a score that is none.

    Args:
        perturbation: R, of the curves and the random sets.
        score: s.
        steps: K, the most steps of the curves.
        share: f, the share of the features in a random set.
        draws: B, the number of random sets.
        mask_perturbation: R behind the map as a mask, for the average drop and increase; zeros unless given.
        completeness_score: s of the completeness gap; ``score`` unless given.
        epsilon: What ``sufficient_share`` may lose, as a share of the score.
        seed: Keys the random sets together with the samples' ids.
        sensitivity_shares: The shares of the random sets of sensitivity-n, B sets each beyond those of ``share``; not
            measured unless given.
        road: Whether the accuracy along the curves is measured, by the same passes.

    Raises:
        ValueError: If a perturbation or a score does not fit, or a number makes no sense.
        TypeError: If an argument is of the wrong type.

    >>> CoreMeasures("blur", score="logit").masks
    False
    """

    perturbation: str | Perturbation
    score: ScoreLike = "probability"
    steps: int = 10
    share: float = 0.2
    draws: int = 32
    mask_perturbation: str | Perturbation = Constant(0.0)  # noqa: RUF009 - frozen
    completeness_score: ScoreLike | None = None
    epsilon: float = 0.1
    seed: int = 0
    sensitivity_shares: Sequence[float] = ()
    road: bool = False

    def __post_init__(self) -> None:
        as_integer("steps", self.steps, least=1)
        as_integer("seed", self.seed)
        check_number("epsilon", self.epsilon, least=0)
        for share in (self.share, *self.sensitivity_shares):
            check_subsets(share, self.draws)
        as_flag("road", self.road)
        score = one_score(as_score(self.score))
        mask_kind = sets_fit(as_perturbation(self.mask_perturbation))
        whole_inputs(mask_kind)
        asked = score if self.completeness_score is None else one_score(as_score(self.completeness_score))
        changes = {
            "perturbation": sets_fit(as_perturbation(self.perturbation)),
            "score": score,
            "mask_perturbation": mask_kind,
            "completeness_score": asked,
            "sensitivity_shares": tuple(self.sensitivity_shares),
        }
        if self.road:
            StillPredicted.beside(score)
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    @property
    def set_count(self) -> int:
        """The number of random sets."""
        return self.draws * len({self.share, *self.sensitivity_shares})

    @property
    def masks(self) -> bool:
        """Whether the score is a probability, which average drop and increase need."""
        return isinstance(self.score, Probability | Sigmoid)

    def of(self, batch: ExplainedBatch, regions: Regions) -> CoreRequests:
        """Say what the measures of a batch need of a sweep."""
        return CoreRequests.of(self, batch, regions)


@dataclass(frozen=True, eq=False)
class CoreRequests:
    """What the core measures of some maps need of a sweep, and how they are read off it.

    Attributes:
        measures: The choices.
        relevance: The maps.
        features: The maps over the features.
        curves: The sets of both curves.
        member: The random sets, Boolean [N, B, J], by the share of the features in them.
        asked: The requests by what they are for.
    """

    measures: CoreMeasures
    relevance: Tensor
    features: FeatureMap
    curves: CurveSets
    member: Mapping[float, Tensor]
    asked: Mapping[str, Request]

    @classmethod
    def of(cls, measures: CoreMeasures, batch: ExplainedBatch, regions: Regions) -> CoreRequests:
        """Order the features and draw the sets."""
        kind, score = as_perturbation(measures.perturbation), as_score(measures.score)
        whole_score = as_score(measures.completeness_score or score)
        features = batch.features(regions)
        curves = CurveSets.of(features, measures.steps)
        member = {
            share: draw_subsets(features.present, share, measures.draws, batch.ids, measures.seed)
            for share in dict.fromkeys((measures.share, *measures.sensitivity_shares))
        }
        asked = {
            "curves": Request(kind, score, curves.sets),
            **{_subsets(share): Request(kind, score, FeatureSets.of(sets)) for share, sets in member.items()},
            "completeness": Request(kind, whole_score, everything(features)),
        }
        if measures.masks:
            mask_kind = as_perturbation(measures.mask_perturbation)
            asked["masked"] = Request(mask_kind, score, CellMasks(mask_of(batch.relevance)))
        if measures.road:
            asked["road"] = Request(kind, StillPredicted.beside(score), curves.sets)
        batch.check(asked.values())
        return cls(measures, batch.relevance, features, curves, member, asked)

    def read(self, swept: SweepResult) -> CoreResult:
        """Compute the measures from a sweep that holds the requests."""
        request = self.asked["curves"]
        clean = swept.clean[request.score]
        tau = max(self.features.tau, tolerance(clean))
        curves = self.curves.curves(mean_scores(swept, request), tau, self.measures.epsilon)
        values = {name: getattr(curves, name) for name in CURVES}
        by_share = {
            share: drops_of(
                self.features, self.features.values, sets, clean, mean_scores(swept, self.asked[_subsets(share)])
            )
            for share, sets in self.member.items()
        }
        drops = by_share[self.measures.share]
        values["faithfulness_correlation"] = drops.correlation
        values["infidelity_relative"] = drops.infidelity_relative
        further = {name: getattr(curves, name) for name in ("aopc_lerf", "irof", "monotone")}
        further |= {name: getattr(drops, name) for name in ("infidelity", "infidelity_scaled")}
        if shares := dict.fromkeys(self.measures.sensitivity_shares):
            set_sizes = [self.member[share][:, 0].sum(1).tolist() for share in shares]
            further["sensitivity_n"] = mean_correlation([by_share[share] for share in shares], set_sizes)
        road = None
        if "road" in self.asked:
            road = self.curves.curves(mean_scores(swept, self.asked["road"]), tau, self.measures.epsilon)
            further |= {"road_accuracy_morf": road.deletion, "road_accuracy_lerf": road.insertion}
        sizes, finite = magnitudes(self.relevance)
        if "masked" in self.asked:
            masked = masked_of(self.relevance, clean, mean_scores(swept, self.asked["masked"]))
            values.update((name, getattr(masked, name)) for name in MASKED)
            further["average_gain"] = masked.average_gain
        whole = self.asked["completeness"]
        gap, change = gaps_of(self.features, swept.clean[whole.score], mean_scores(swept, whole))
        seen = finite.any(1)
        values["gini"] = torch.where(seen, gini(sizes, finite), UNDEFINED)
        values["entropy"] = torch.where(seen, entropy(sizes), UNDEFINED)
        blank = is_blank(pooled(self.relevance))
        return CoreResult(values, curves, gap, change, blank, self.features.nonfinite, further, road)


def _subsets(share: float) -> str:
    return f"subsets of {share}"


@dataclass(frozen=True, eq=False)
class CoreResult:
    """The core measures of a batch.

    Attributes:
        values: The measures [N] by name, without the completeness gap.
        curves: The curves.
        gap: The sum of every map less the change of its score [N].
        change: The changes of the scores [N].
        blank: Which maps have no positive cell [N].
        nonfinite: How many cells of every map are not finite [N].
        further: What the same passes tell beside: aopc_lerf, irof, monotone, infidelity, infidelity_scaled and, of a
            probability, average_gain [N] by name; where they are asked for sensitivity_n, and road_accuracy_morf and
            road_accuracy_lerf, the means along the curves of ``road``.
        road: Whether the target is still predicted, 0 or 1, along both curves; None unless asked for.
    """

    values: Mapping[str, Tensor]
    curves: PerturbationCurves
    gap: Tensor
    change: Tensor
    blank: Tensor
    nonfinite: Tensor
    further: Mapping[str, Tensor]
    road: PerturbationCurves | None = None

    @property
    def completeness_gap(self) -> Tensor:
        """How far maps miss the changes of the score, as a share of these over all samples, 0-d."""
        known = self.gap.isfinite()
        return self.gap[known].abs().sum() / self.change[known].abs().sum()


def core_measures(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
    **options: Any,
) -> CoreResult:
    r"""Compute the core measures of maps by one sweep.

    Deletion, insertion, srg, aopc_morf and sufficient_share share one pair of curves, 2K - 1 passes; the faithfulness
    correlation and the relative infidelity B random sets; the average drop and increase one pass; the completeness gap,
    the Gini coefficient and the entropy need none. Inputs that are equal are scored once.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        explanation: A map [N, C, \*S], an ``Explanation``, or an attribution that is asked for one.
        regions: The features j; they must not overlap.
        perturbation: R.
        sample_ids: The samples' ids [N], which key random draws; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.
        **options: Those of :class:`CoreMeasures`.

    Raises:
        ValueError: If something does not fit the model or each other, or features overlap.
        TypeError: If an argument is of the wrong type.

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> found = core_measures(model, torch.ones(1, 3), 0, weight, **how)
    >>> round(found.values["srg"].item(), 6), found.completeness_gap.item()
    (1.333333, 0.0)
    """
    if isinstance(explanation, Attribution):
        options.setdefault("completeness_score", explanation.score)
    measures = CoreMeasures(perturbation, **options)
    plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
    batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
    wanted = measures.of(batch, plan.regions)
    return wanted.read(batch.sweep(list(wanted.asked.values()), plan))
