"""Importance, speed and synergy over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai.metrics.base import BatchExplanation, precise
from lightning_xai.metrics.maps import SCORE, MapMetric, map_results
from lightning_xai.metrics.sweeps import SweepMetric, check_shared
from lightning_xai.perturbation.importance import relative_importance
from lightning_xai.perturbation.kinds import Perturbation, as_perturbation
from lightning_xai.perturbation.speed import fit_slope, state_abscissae
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.perturbation.synergy import beyond_single, joint_importance
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Map, Matrix, Number, PerFeature, Result
from lightning_xai.scores import ScoreLike, as_score

RELATIVE = "0 weakest … 1 strongest of a sample"
SLOPE, VARIANCE = "score per unit of strength", "0 … 1 of the variance"
PAIR = ("feature j*", "feature j")
REDUNDANT = "0 all need each other … 1 all hold the same"


class Importance(MapMetric, SweepMetric):
    r"""Average local and relative importance, :math:`LI_j = s(x) - s(R_j x)`, painted over the input.

    Cells that no feature reaches are NaN. Maps per class are left out over 2**24 numbers.

    Args:
        regions: The features j.
        perturbation: R.
        score: s: a name, a score, or a function of (output, target).
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"`` or ``"dense"``.
        **options: Options of ``torchmetrics.Metric``.

    Source: :cite:`grauluque2023`.

    Example:
        >>> import torch
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
        >>> metric = Importance(Windows(size=2), kinds.Constant(0.0), score="logit")
        >>> metric.update(model, torch.ones(3, 4), torch.tensor([0, 0, 1]))
        >>> found = metric.compute()
        >>> found["map"], found["map_per_class"][0]
        (tensor([2.0000, 2.0000, 4.6667, 4.6667], dtype=torch.float64),
         tensor([3., 3., 7., 7.], dtype=torch.float64))
    """

    formula: ClassVar[str] = r"LI_j = s(x) - s(R_j x)"
    interpretation: ClassVar[str] = (
        "Red cells are evidence for the target: the score falls when they are perturbed. Blue cells speak against it."
    )
    sample_maps: ClassVar[Mapping[str, Result]] = {
        "map": Map("importance LI", SCORE),
        "map_relative": Map("relative importance RI", RELATIVE, signed=False),
    }
    further_maps: ClassVar[tuple[str, ...]] = ("map_relative",)
    results: Mapping[str, Result] = {
        **MapMetric.results,
        **map_results("importance LI", SCORE),
        "map_relative": Map(
            "mean relative importance RI", RELATIVE, "The mean of RI over samples.", "relative-importance", signed=False
        ),
    }

    def __init__(
        self,
        regions: RegionsLike,
        perturbation: str | Perturbation,
        *,
        score: ScoreLike = "probability",
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.plan = Plan(as_regions(regions), chunk_size=chunk_size, engine=engine)
        self.requests = [Request.of(perturbation, score)]
        self.fingerprint(self.plan, self.requests)

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compute importance [N, J] of a sweep, and paint it."""
        (request,) = self.requests
        local = swept.local(request)
        paint = swept.regions.paint
        tensors = {"map": paint(local), "map_relative": paint(relative_importance(local)), "local": local}
        return self._explained(swept, tensors)


class Speed(MapMetric, SweepMetric):
    r"""Average the slope :math:`v_j` of importance over the states of a perturbation, painted over the input.

    Args:
        regions: The features j.
        perturbations: The states :math:`R_1 \dots R_K`, two or more; or one perturbation, and ``strengths``.
        strengths: The strengths of the states, if ``perturbations`` is a single one.
        abscissa: ``"index"``, 1..K, or ``"strength"``.
        score: s: a name, a score, or a function of (output, target).
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"`` or ``"dense"``.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If there is one state only, or strengths are equal.
        TypeError: If the perturbation has no strength.

    Source: :cite:`grauluque2023`.

    Example:
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, 4.0, 8.0]])
        >>> metric = Speed(Windows(1), kinds.Negative(), strengths=[0.25, 0.5], score="value")
        >>> metric.update(model, torch.ones(2, 3), 0)
        >>> metric.compute()["map"]
        tensor([0.5000, 1.0000, 2.0000], dtype=torch.float64)
    """

    formula: ClassVar[str] = r"v_j = \frac{\sum_k (t_k - \bar t)\,LI_{j,k}}{\sum_k (t_k - \bar t)^2}"
    interpretation: ClassVar[str] = (
        "How fast the score falls as the perturbation of a feature grows: the slope of importance over the "
        "strength. A high R² says that it grows evenly."
    )
    sample_maps: ClassVar[Mapping[str, Result]] = {"map": Map("speed v", SLOPE)}
    further_maps: ClassVar[tuple[str, ...]] = ("map_r_squared",)
    results: Mapping[str, Result] = {
        **MapMetric.results,
        **map_results("speed v", SLOPE),
        "map_r_squared": Map(
            "mean R²", VARIANCE, "How evenly importance grows.", "r-squared", better="higher", signed=False
        ),
    }

    def __init__(
        self,
        regions: RegionsLike,
        perturbations: str | Perturbation | Sequence[Perturbation],
        strengths: Sequence[float] | None = None,
        *,
        abscissa: str = "index",
        score: ScoreLike = "probability",
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.plan = Plan(as_regions(regions), chunk_size=chunk_size, engine=engine)
        states = _states(perturbations, strengths)
        self.requests = [Request(state, as_score(score)) for state in states]
        self.abscissae = state_abscissae(states, abscissa)
        self.fingerprint(self.plan, self.requests, self.abscissae)

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Fit slopes [N, J] to a sweep, and paint them."""
        fit = fit_slope(self.abscissae, torch.stack([swept.local(request) for request in self.requests]))
        paint = swept.regions.paint
        tensors = {"map": paint(fit.slope), "map_r_squared": paint(fit.r_squared), "slope": fit.slope}
        return self._explained(swept, tensors)


class Synergy(SweepMetric):
    r"""Average joint importance :math:`LI_{j^*,j}` and interaction :math:`I = LI_{j^*,j} - LI_{j^*} - LI_j`.

    Both are NaN on the diagonal.

    Args:
        regions: The features j, the same in every sample.
        perturbation: R.
        anchor: :math:`j^*`; all pairs unless given, J(J-1)/2 forward passes per sample.
        score: s: a name, a score, or a function of (output, target).
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"`` or ``"dense"``.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the regions differ from sample to sample.

    Source: :cite:`grauluque2023`.

    Example:
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> class Product(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x[:, 0] * x[:, 1] + x[:, 2]
        >>> metric = Synergy(Windows(1), kinds.Constant(0.0), score="value")
        >>> metric.update(Product(), torch.tensor([[2.0, 3.0, 5.0], [1.0, 1.0, 1.0]]), 0)
        >>> metric.compute()["interaction"][0]
        tensor([    nan, -3.5000,  0.0000], dtype=torch.float64)
    """

    formula: ClassVar[str] = r"I_{j^*,j} = LI_{j^*,j} - LI_{j^*} - LI_j,\quad LI_{j^*,j} = s(x) - s(R_{j^*} R_j x)"
    interpretation: ClassVar[str] = (
        "What losing two features together costs beyond losing each alone. Positive: they hold the same "
        "evidence, so only losing both hurts. Negative: they need each other, so losing either is enough."
    )
    sample_maps: ClassVar[Mapping[str, Result]] = {"map_strongest": Map("synergy with the strongest (grey)", SCORE)}
    results: Mapping[str, Result] = {
        **SweepMetric.results,
        "joint": Matrix("mean joint importance LI", SCORE, "What losing two features costs.", "synergy", axes=PAIR),
        "interaction": Matrix(
            "mean interaction I", SCORE, "What losing both costs beyond losing each.", "interaction", axes=PAIR
        ),
        "interaction_mean_abs": Number("mean |I| of a pair", SCORE, "How strongly features interact.", "interaction"),
        "redundant_share": Number(
            "redundant share of |I|", REDUNDANT, "How much of the interaction is positive.", "redundant-share"
        ),
    }

    def __init__(
        self,
        regions: RegionsLike,
        perturbation: str | Perturbation,
        *,
        anchor: int | None = None,
        score: ScoreLike = "probability",
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if anchor is not None:
            anchor = as_integer("anchor", anchor, least=0)
        self.plan = Plan(as_regions(regions), chunk_size=chunk_size, engine=engine)
        check_shared(self.plan.regions, "Synergy")
        pair = Request.of(perturbation, score, "all" if anchor is None else anchor)
        self.requests = [pair, Request.of(perturbation, score)]
        self.add_sum_state("joint_sum", "joint_count", "interaction_sum", "interaction_count")
        self.add_sum_state("mean_abs_sum", "redundant_sum", "measured")
        if anchor is not None:  # a row of the matrix
            rows = {key: self.results[key] for key in ("joint", "interaction")}
            rows = {key: PerFeature(row.title, row.unit, row.meaning, row.equation) for key, row in rows.items()}
            self.results = {**self.results, **rows}
        self.fingerprint(self.plan, self.requests)

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compute joint importance and interaction [N, J, J], and paint the row of each sample's strongest feature."""
        pair, single = self.requests
        joint, alone = joint_importance(swept, pair), swept.local(single)
        interaction = beyond_single(joint, alone, pair.pairing)
        if isinstance(pair.pairing, int):
            row, anchor = joint, torch.full(joint.shape[:1], pair.pairing, device=joint.device)
        else:
            anchor = alone.nan_to_num(nan=-torch.inf).argmax(1)
            row = joint[torch.arange(len(joint), device=joint.device), anchor]
        maps = {"map_strongest": swept.regions.paint(row), "anchor": anchor}
        return self._explained(swept, {"joint": joint, "interaction": interaction, **maps})

    def add(self, found: BatchExplanation) -> None:
        """Add the matrices of a batch."""
        for name in ("joint", "interaction"):
            values = precise(found.tensors[name])
            number = values.isfinite()
            self.add_to_state(f"{name}_sum", torch.where(number, values, 0.0).sum(0))
            self.add_to_state(f"{name}_count", number.sum(0))
        interaction = precise(found.tensors["interaction"]).flatten(1)
        count, total = interaction.isfinite().sum(1), interaction.abs().nansum(1)
        redundant = torch.where(total > 0, interaction.clamp(min=0).nansum(1) / total, 0.0)
        self.add_to_state("mean_abs_sum", (total / count.clamp(min=1)).sum())
        self.add_to_state("redundant_sum", redundant.sum())
        self.add_to_state("measured", (count > 0).sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        return {
            **self.sample_counts(),
            "joint": self.joint_sum / self.joint_count,
            "interaction": self.interaction_sum / self.interaction_count,
            "interaction_mean_abs": self.mean_abs_sum / self.measured,
            "redundant_share": self.redundant_sum / self.measured,
        }


def _states(
    perturbations: str | Perturbation | Sequence[Perturbation], strengths: Sequence[float] | None
) -> list[Perturbation]:
    if not isinstance(perturbations, str | Perturbation):
        if strengths is not None:
            raise ValueError("strengths goes with a single perturbation; perturbations already holds the states.")
        return list(perturbations)
    if strengths is None:
        raise ValueError("strengths must hold the states' strengths, e.g. [0.1, 0.2, 0.3], for a single perturbation.")
    if not isinstance(strengths, Sequence) or not all(isinstance(state, int | float) for state in strengths):
        raise TypeError(f"strengths must be a list of numbers, e.g. [0.1, 0.2, 0.3], got {strengths!r}.")
    if len(set(strengths)) < len(strengths):
        raise ValueError(f"strengths must differ, got {list(strengths)}.")
    return [as_perturbation(perturbations).at(float(strength)) for strength in strengths]
