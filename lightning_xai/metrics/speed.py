"""Speed over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from lightning_xai._checks import IncompatibleError
from lightning_xai.metrics.base import BatchExplanation
from lightning_xai.metrics.maps import MapMetric, map_results
from lightning_xai.metrics.sweeps import SweepMetric
from lightning_xai.perturbation.kinds import Perturbation, as_perturbation
from lightning_xai.perturbation.speed import as_states, fit_slope, state_abscissae
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Map, Result
from lightning_xai.scores import ScoreLike, as_score

SLOPE, VARIANCE = "score per unit of strength", "0 … 1 of the variance"


class Speed(MapMetric, SweepMetric):
    r"""Average the slope :math:`v_j` of importance over the states of a perturbation, painted over the input.

    Args:
        regions: The features j.
        perturbations: The states :math:`R_1 \dots R_K`, two or more; or one perturbation, and ``strengths``.
        strengths: The strengths of the states, if ``perturbations`` is a single one.
        abscissa: ``"index"``, 1..K, or ``"strength"``.
        score: s: a name, a score, or a function of (output, target).
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.
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
        **SweepMetric.results,
        **map_results("speed v", SLOPE),
        "map_r_squared": Map(
            "mean R²", VARIANCE, "How evenly importance grows.", "r-squared", better="higher", signed=False
        ),
    }

    def __init__(
        self,
        regions: RegionsLike,
        perturbations: str | Perturbation | Sequence[str | Perturbation],
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


def _states(
    perturbations: str | Perturbation | Sequence[str | Perturbation], strengths: Sequence[float] | None
) -> list[Perturbation]:
    if not isinstance(perturbations, str | Perturbation):
        if strengths is not None:
            raise ValueError("strengths goes with a single perturbation; perturbations already holds the states.")
        return as_states(perturbations)
    if strengths is None:
        kind = as_perturbation(perturbations)
        if kind.strength is None:
            raise IncompatibleError(f"{type(kind).__name__} has no strength to vary, and speed is a slope over it.")
        raise IncompatibleError(
            "strengths must hold the states' strengths, e.g. [0.1, 0.2, 0.3], for a single perturbation."
        )
    if not isinstance(strengths, Sequence) or not all(isinstance(state, int | float) for state in strengths):
        raise TypeError(f"strengths must be a list of numbers, e.g. [0.1, 0.2, 0.3], got {strengths!r}.")
    if len(set(strengths)) < len(strengths):
        raise ValueError(f"strengths must differ, got {list(strengths)}.")
    return [as_perturbation(perturbations).at(float(strength)) for strength in strengths]
