r"""Random sets of features: does what a map says of a set agree with what the score loses without it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_known, check_number
from lightning_xai._guard import keyed_generator
from lightning_xai.evaluation.correlation import UNDEFINED, is_constant, pearson
from lightning_xai.evaluation.curves import mean_scores
from lightning_xai.evaluation.features import (
    ExplainedBatch,
    FeatureMap,
    MapLike,
    per_feature,
    precise,
    tolerance,
)
from lightning_xai.evaluation.refusals import disjoint, one_score, sets_fit
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.engine import Samples
from lightning_xai.perturbation.kinds.base import MaskPerturbation, Perturbation, as_perturbation
from lightning_xai.perturbation.sets import FeatureSets, perturbed_copies
from lightning_xai.perturbation.sweep import Plan, Request
from lightning_xai.regions import Regions, RegionsLike, as_regions
from lightning_xai.scores import ScoreLike, Target, as_score

UNITS = ("contribution", "slope")
SHARES = (0.2, 0.5, 0.8)  # of the sets of sensitivity-n


@dataclass(frozen=True, eq=False)
class SubsetDrops:
    r"""What a map and the score say of random sets of features.

    Attributes:
        left: :math:`l_b` [N, B], the sum of the map over a set.
        right: :math:`d_b = s(x) - s(x_{S_b})` [N, B].
        left_scale: :math:`\sum_j |A_j|` [N], against which ``left`` is constant or not.
        right_scale: The largest magnitude of the scores [N].
        tau: What counts as equal, as a share of the scale.
    """

    left: Tensor
    right: Tensor
    left_scale: Tensor
    right_scale: Tensor
    tau: float = 1e-12

    @property
    def correlation(self) -> Tensor:
        """Pearson's correlation of both sides [N]; NaN where one does not vary."""
        there = self._there
        flat = is_constant(self.left, there, self.tau, self.left_scale)
        flat = flat | is_constant(self.right, there, self.tau, self.right_scale)
        return torch.where(flat, UNDEFINED, pearson(self.left, self.right, there))

    @property
    def infidelity(self) -> Tensor:
        """The mean squared difference of both sides [N]."""
        return self._mean((self.left - self.right) ** 2)

    @property
    def scaling(self) -> Tensor:
        r"""The factor :math:`\beta` [N] that brings the left side nearest to the right one; 0 of a map that is 0."""
        left, right = (torch.where(self._there, side, 0.0) for side in (self.left, self.right))
        size = (left**2).sum(1)
        return torch.where(size > 0, (left * right).sum(1) / torch.where(size > 0, size, 1.0), 0.0)

    @property
    def infidelity_scaled(self) -> Tensor:
        """The mean squared difference of both sides, the left one times ``scaling`` [N]."""
        return self._mean((self.scaling.unsqueeze(1) * self.left - self.right) ** 2)

    @property
    def infidelity_relative(self) -> Tensor:
        """``infidelity_scaled`` as a share of the mean square of the right side [N]; NaN where that is 0."""
        whole = self._mean(self.right**2)
        # Rounding makes more than nothing of a score that no set changes.
        largest = torch.where(self._there, self.right, 0.0).abs().amax(1)
        changes = largest > self.tau * self.right_scale
        return torch.where(changes, self.infidelity_scaled / torch.where(changes, whole, 1.0), UNDEFINED)

    @property
    def _there(self) -> Tensor:
        return self.left.isfinite() & self.right.isfinite()

    def _mean(self, values: Tensor) -> Tensor:
        there = self._there
        count = there.sum(1)
        return torch.where(count > 0, torch.where(there, values, 0.0).sum(1) / count.clamp(min=1), UNDEFINED)


def draw_subsets(present: Tensor, share: float, draws: int, sample_ids: Sequence[int], seed: int = 0) -> Tensor:
    r"""Draw sets of features uniformly, without replacement, Boolean [N, B, J].

    .. math:: |S_b| = m = \max\big(1, \lfloor f J + \tfrac12 \rfloor\big)

    A draw is keyed by the seed, the sample's id and its number, so it does not depend on the batch.

    Args:
        present: The features that a sample has, Boolean [N, J].
        share: f.
        draws: B.
        sample_ids: The samples' ids.
        seed: Keys the draws.

    >>> drawn = draw_subsets(torch.ones(2, 10, dtype=torch.bool), 0.2, draws=3, sample_ids=[4, 7])
    >>> drawn.sum(2)
    tensor([[2, 2, 2],
            [2, 2, 2]])
    """
    member = torch.zeros(len(present), draws, present.shape[1], dtype=torch.bool)
    for row, (sample, there) in enumerate(zip(sample_ids, present.cpu(), strict=True)):
        features = there.nonzero().flatten()
        size = set_size(len(features), share)
        for draw in range(draws):
            order = torch.randperm(len(features), generator=keyed_generator(seed, "subset", sample, draw))
            member[row, draw, features[order[:size]]] = True
    return member.to(present.device)


def set_size(count: int, share: float) -> int:
    """The number of features in a set of a share of them."""
    return min(count, max(1, int(share * count + 0.5)))


def mean_correlation(drops: Sequence[SubsetDrops], sizes: Sequence[Sequence[int]]) -> Tensor:
    """Average the correlations of sets of several sizes [N]; those that coincide in a sample count once.

    Args:
        drops: What sets of each size tell.
        sizes: How many features a set of each size has in every sample.
    """
    size = torch.tensor([list(each) for each in sizes], device=drops[0].left.device)
    again = [(size[:place] == size[place]).any(0) for place in range(len(size))]
    together = torch.stack([one.correlation for one in drops])
    known = together.isfinite() & ~torch.stack(again)
    mean = torch.where(known, together, 0.0).sum(0) / known.sum(0).clamp(min=1)
    return torch.where(known.any(0), mean, UNDEFINED)


def slopes(features: FeatureMap, batch: ExplainedBatch, regions: Regions, kind: Perturbation) -> Tensor:
    r"""What a map of slopes says a feature costs, :math:`\sum_{p \in j, c} a_{cp} (x - R(x))_{cp}` [N, J].

    Raises:
        ValueError: If the map has one channel and the inputs have several.
    """
    values = precise(batch.inputs.unsqueeze(1) if batch.inputs.ndim == 2 else batch.inputs)
    if features.cells.shape[1] != values.shape[1]:
        raise ValueError(
            f"units='slope' multiplies the map with the change of every channel, but the map has one channel and the "
            f"inputs have {values.shape[1]}: give the gradient itself, or use units='contribution'."
        )
    bound, places = batch.bind(regions), torch.arange(len(values), device=values.device)
    samples = Samples(values, bound, batch.ids, places, batch.model)
    change = (values - perturbed_copies(kind, samples)).mean(0)
    return per_feature(features.cells * change, features.labels, bound.count)


def subset_drops(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    score: ScoreLike = "probability",
    share: float = 0.2,
    draws: int = 32,
    subsets: Tensor | None = None,
    units: str = "contribution",
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> SubsetDrops:
    r"""Compare the sum of a map over random sets of features with what the score loses without them.

    .. math:: l_b = \sum_{j \in S_b} A_j, \qquad d_b = s(x) - s(x_{S_b})

    B passes beyond the clean one. A map of gradients says what a cell costs per unit of the input, no contribution:
    give it ``units="slope"``, which multiplies it with the change, :math:`l_b = \sum a \, (x - x_{S_b})`.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        explanation: A map [N, C, \*S], an ``Explanation``, or an attribution that is asked for one.
        regions: The features j; they must not overlap.
        perturbation: R.
        score: s.
        share: f, the share of the features in a set.
        draws: B.
        subsets: The sets, Boolean [N, B, J]; drawn unless given.
        units: ``"contribution"`` or ``"slope"``.
        seed: Keys the draws together with the samples' ids.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Raises:
        ValueError: If something does not fit the model or each other, or features overlap.
        TypeError: If an argument is of the wrong type.

    Source: :cite:`bhatt2020`, :cite:`yeh2019`.

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model = nn.Linear(4, 1, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value", "draws": 3}
    >>> found = subset_drops(model, torch.ones(1, 4), 0, model.weight.detach(), **how)
    >>> torch.equal(found.left, found.right)
    True
    """
    check_subsets(share, draws, units)
    as_integer("seed", seed)
    if units == "slope" and isinstance(perturbation, MaskPerturbation):
        raise ValueError(
            f"units='slope' needs the change of every cell alone, and {type(perturbation).__name__} fills whole sets: "
            f"use units='contribution', or another perturbation, e.g. Constant."
        )
    kind, score = sets_fit(as_perturbation(perturbation)), one_score(as_score(score))
    plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
    batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
    features = batch.features(plan.regions)
    if subsets is None:
        member = draw_subsets(features.present, share, draws, batch.ids, seed)
    else:
        member = as_subsets(subsets, features)
    values = features.values
    if units == "slope":
        values = slopes(features, batch, plan.regions, kind)
    request = Request(kind, score, FeatureSets.of(member))
    swept = batch.sweep([request], plan)
    return drops_of(features, values, member, swept.clean[score], mean_scores(swept, request))


def as_subsets(subsets: Tensor, features: FeatureMap) -> Tensor:
    """Return sets that are given, on the device of the map.

    Raises:
        ValueError: If they are not of these samples and features.
    """
    samples, count = features.values.shape
    if subsets.ndim != 3 or subsets.shape[::2] != (samples, count) or not subsets.shape[1]:
        raise ValueError(f"subsets must be [{samples}, draws, {count}], got {list(subsets.shape)}.")
    return subsets.to(features.values.device)


def check_subsets(share: float, draws: int = 32, units: str = "contribution") -> None:
    """Refuse a share, a number of draws or units that make no sense.

    Raises:
        ValueError: If so.
    """
    check_number("share", share)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}.")
    as_integer("draws", draws, least=2)
    check_known("units", units, UNITS)


def drops_of(features: FeatureMap, values: Tensor, member: Tensor, clean: Tensor, scores: Tensor) -> SubsetDrops:
    """Put both sides together.

    Args:
        features: The map over the features.
        values: What the map says of every feature [N, J].
        member: The sets, Boolean [N, B, J].
        clean: s(x) [N].
        scores: The scores [N * B] of the sets.
    """
    perturbed = precise(scores).view(len(member), -1)
    before = precise(clean).unsqueeze(1)
    sizes = torch.cat((before, perturbed), 1).abs().nan_to_num()
    # A sample without a feature has no sets, and a map without a finite cell says nothing of them.
    left = torch.where(features.known.unsqueeze(1), (member * values.unsqueeze(1)).sum(2), UNDEFINED)
    tau = max(features.tau, tolerance(clean))
    scales = values.abs().sum(1), sizes.amax(1)
    return SubsetDrops(left, before - perturbed, *scales, tau)
