"""Importance over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning_xai.metrics.base import BatchExplanation
from lightning_xai.metrics.maps import SCORE, MapMetric, map_results
from lightning_xai.metrics.sweeps import SweepMetric
from lightning_xai.perturbation.importance import relative_importance
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Map, Result
from lightning_xai.scores import ScoreLike

RELATIVE = "0 weakest … 1 strongest of a sample"


class Importance(MapMetric, SweepMetric):
    r"""Average local and relative importance, :math:`LI_j = s(x) - s(R_j x)`, painted over the input.

    Cells that no feature reaches are NaN. Maps per class are left out over 2**24 numbers.

    Args:
        regions: The features j.
        perturbation: R.
        score: s: a name, a score, or a function of (output, target).
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.
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
        **SweepMetric.results,
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
