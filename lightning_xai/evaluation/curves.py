r"""Curves: the score as the features are replaced one after the other, in the order of a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_known, check_number
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.features import ExplainedBatch, FeatureMap, MapLike, precise, tolerance
from lightning_xai.evaluation.refusals import disjoint, one_score, sets_fit
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.sets import FeatureSets
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import ScoreLike, Target, as_score

ORDERS = ("morf", "lerf")


@dataclass(frozen=True, eq=False)
class PerturbationCurves:
    r"""The curves of a batch, which all measures of this family read.

    Rows are padded with NaN where a sample has fewer features than there are steps, and are NaN where an order was not
    asked for.

    Attributes:
        share: :math:`q_k = m_k / J` [N, K+1], the share of the features that are replaced.
        morf: :math:`c_k` [N, K+1], the score without the first :math:`m_k` features, the most relevant first.
        lerf: :math:`l_k` [N, K+1], the same, the least relevant first.
        tau: What counts as equal, as a share of the curve's largest magnitude.
        epsilon: What ``sufficient_share`` may lose, as a share of the score.
    """

    share: Tensor
    morf: Tensor
    lerf: Tensor
    tau: float = 1e-12
    epsilon: float = 0.1

    @property
    def deletion(self) -> Tensor:
        """The area under ``morf`` [N]."""
        return self._area(self.morf)

    @property
    def insertion(self) -> Tensor:
        """The area under ``lerf`` [N], which is the curve of restored features read backwards."""
        return self._area(self.lerf)

    @property
    def srg(self) -> Tensor:
        """The area between the curves [N]."""
        return self.insertion - self.deletion

    @property
    def aopc_morf(self) -> Tensor:
        """The mean loss along ``morf`` [N]."""
        return self._mean_loss(self.morf)

    @property
    def aopc_lerf(self) -> Tensor:
        """The mean loss along ``lerf`` [N]."""
        return self._mean_loss(self.lerf)

    @property
    def irof(self) -> Tensor:
        """The area over ``morf`` as a share of the clean score [N]."""
        clean = self.morf[:, :1]
        return 1 - self._area(self.morf / torch.where(clean > 0, clean, UNDEFINED))

    @property
    def monotone(self) -> Tensor:
        """The share of steps at which ``morf`` does not rise [N]."""
        before, after = self.morf[:, :-1], self.morf[:, 1:]
        size = self.morf.abs().nan_to_num().amax(1, keepdim=True)
        falls = (after <= before + self.tau * size) & self._there[:, 1:]
        return self._known(self.morf, precise(falls.sum(1)) / self._there[:, 1:].sum(1))

    @property
    def sufficient_share(self) -> Tensor:
        """The least share of restored features that gives the score back [N]."""
        clean = self.lerf[:, :1]
        enough = self.lerf >= clean - self.epsilon * clean.abs()
        restored = torch.where(enough, 1 - self.share, 1.0)
        return self._known(self.lerf, restored.amin(1))

    def mean_curve(self, curve: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        r"""Interpolate a curve linearly to :math:`k / K`, and sum it over the samples in which it is known.

        Args:
            curve: ``morf`` or ``lerf``.
            steps: K.

        Returns:
            The sum [K+1], and over how many samples.
        """
        grid = torch.linspace(0, 1, steps + 1, dtype=self.share.dtype, device=self.share.device)
        known = self._known(curve, curve[:, 0]).isfinite()
        share = torch.where(self._there, self.share, 2.0)[known].contiguous()
        values = torch.where(self._there, curve, 0.0)[known]
        points = grid.expand(len(share), -1).contiguous()
        after = torch.searchsorted(share, points).clamp(1, share.shape[1] - 1)
        last = self._there[known].sum(1, keepdim=True) - 1
        after = torch.minimum(after, last)
        left, right = share.gather(1, after - 1), share.gather(1, after)
        weight = ((points - left) / (right - left)).clamp(0, 1)
        read = torch.lerp(values.gather(1, after - 1), values.gather(1, after), weight)
        return read.sum(0), known.sum()

    @property
    def _there(self) -> Tensor:
        return self.share.isfinite()

    def _known(self, curve: Tensor, values: Tensor) -> Tensor:
        whole = (curve.isfinite() | ~self._there).all(1) & (self._there.sum(1) > 1)
        return torch.where(whole, values, UNDEFINED)

    def _area(self, curve: Tensor) -> Tensor:
        widths = self.share.diff(dim=1).nan_to_num()
        heights = (curve[:, 1:] + curve[:, :-1]) / 2
        return self._known(curve, (widths * torch.where(widths > 0, heights, 0.0)).sum(1))

    def _mean_loss(self, curve: Tensor) -> Tensor:
        loss = torch.where(self._there, curve[:, :1] - curve, 0.0)
        return self._known(curve, loss.sum(1) / self._there.sum(1))


@dataclass(frozen=True, eq=False)
class CurveSets:
    """The sets of features of the curves.

    Attributes:
        sets: The sets of the most relevant features, step by step, and of the least relevant.
        share: The share of the features in them [N, K+1], NaN beyond a sample's last step.
        place: Where every point of a curve is among the sets [N, K+1], by order.
    """

    sets: FeatureSets
    share: Tensor
    place: Mapping[str, Tensor]

    @classmethod
    def of(cls, features: FeatureMap, steps: int, orders: Sequence[str] = ORDERS) -> CurveSets:
        r"""Order the features, ties by their index in both directions, and take :math:`m_k = \lfloor kJ/K \rfloor`."""
        count = features.ordered.sum(1, keepdim=True)
        own_steps = count.clamp(max=steps)
        k = torch.arange(int(own_steps.max()) + 1, device=count.device)
        there = (k <= own_steps) & (count > 0)
        size = torch.where(there, k * count // own_steps.clamp(min=1), 0)
        share = torch.where(there, size / precise(count), UNDEFINED)
        ranks = [rank_of(features, descending=order == "morf") for order in orders]
        member = torch.cat([rank.unsqueeze(1) < size.unsqueeze(2) for rank in ranks], 1)
        place = torch.arange(member.shape[0] * member.shape[1], device=count.device)
        by_order = place.view(len(member), len(orders), -1).unbind(1)
        return cls(FeatureSets.of(member), share, dict(zip(orders, by_order, strict=True)))

    def curves(self, scores: Tensor, tau: float, epsilon: float) -> PerturbationCurves:
        """Read the curves off the scores [M] of the sets."""
        read, unknown = precise(scores), torch.full_like(self.share, UNDEFINED)
        found = {
            order: torch.where(self.share.isfinite(), read[self.place[order]], UNDEFINED)
            if order in self.place
            else unknown
            for order in ORDERS
        }
        return PerturbationCurves(self.share, **found, tau=tau, epsilon=epsilon)


def rank_of(features: FeatureMap, *, descending: bool) -> Tensor:
    """The place of every feature in the order of the map [N, J]; those in no order come last, beyond any step."""
    key = torch.where(features.ordered, -features.values if descending else features.values, torch.inf)
    order = key.argsort(dim=1, stable=True)
    ranks = torch.arange(key.shape[1], device=key.device).expand_as(order)
    found = torch.empty_like(order).scatter_(1, order, ranks)
    return torch.where(features.ordered, found, key.shape[1])


def mean_scores(swept: SweepResult, request: Request) -> Tensor:
    """The scores [M] of sets or masks, the mean over the arms."""
    return swept.arms[request].mean(0)


def perturbation_curves(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    score: ScoreLike = "probability",
    steps: int = 10,
    epsilon: float = 0.1,
    orders: Sequence[str] = ORDERS,
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> PerturbationCurves:
    r"""Replace the features one after the other, the most and the least relevant first.

    .. math:: c_k = s\big(x \text{ without its } m_k \text{ most relevant features}\big), \qquad
       l_k = s\big(x \text{ without its } m_k \text{ least relevant ones}\big), \qquad m_k = \lfloor kJ/K \rfloor

    A step takes features from R(x), which is made once per sample; two arms are averaged. Equal relevances come in the
    order of the features in both curves. :math:`2K - 1` passes beyond the clean one, K for one order alone.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        explanation: A map [N, C, \*S], an ``Explanation``, or an attribution that is asked for one.
        regions: The features j; they must not overlap.
        perturbation: R.
        score: s: a name, a :class:`~lightning_xai.scores.Score`, or a function of (output, target).
        steps: K, the most steps; a sample with fewer features takes as many as it has.
        epsilon: What ``sufficient_share`` may lose, as a share of the score.
        orders: Which curves are made: ``"morf"``, the most relevant features first, ``"lerf"``, the least relevant
            first, or both. One that is not asked for is NaN.
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Raises:
        ValueError: If something does not fit the model or each other, features overlap, or the perturbation combines
            its arms to a difference of two.
        TypeError: If an argument is of the wrong type.

    Source: :cite:`samek2017`, :cite:`petsiuk2018`.

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 1.0]])
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> found = perturbation_curves(model, torch.ones(1, 2), 0, torch.tensor([[3.0, 1.0]]), **how)
    >>> found.morf.tolist(), found.lerf.tolist()
    ([[4.0, 1.0, 0.0]], [[4.0, 3.0, 0.0]])
    """
    steps = as_integer("steps", steps, least=1)
    check_number("epsilon", epsilon, least=0)
    orders = as_orders(orders)
    kind, score = sets_fit(as_perturbation(perturbation)), one_score(as_score(score))
    plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
    batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
    features = batch.features(plan.regions)
    wanted = CurveSets.of(features, steps, orders)
    request = Request(kind, score, wanted.sets)
    swept = batch.sweep([request], plan)
    scores = mean_scores(swept, request)
    return wanted.curves(scores, max(features.tau, tolerance(swept.clean[score])), epsilon)


def as_orders(orders: Sequence[str]) -> tuple[str, ...]:
    """Return the orders of curves, each once.

    Raises:
        ValueError: If there is none, or one is unknown.
    """
    several = (orders,) if isinstance(orders, str) else tuple(dict.fromkeys(orders))
    for order in several or ("",):
        check_known("orders", order, ORDERS)
    return several
