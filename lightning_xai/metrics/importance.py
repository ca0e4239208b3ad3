"""Importance over a data set."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lightning_xai.metrics.base import BatchExplanation, MapMetric, SweepMetric, precise
from lightning_xai.perturbation.importance import relative_importance
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import Score


class Importance(MapMetric, SweepMetric):
    r"""Mean local and relative importance, :math:`LI_j = s(x) - s(R_j x)`, painted over the input.

    ``compute()`` gives, over the samples: ``map`` [\*S] the mean, ``map_abs`` [\*S] the mean magnitude, ``relative``
    [\*S] the mean relative importance, ``per_class`` [classes, \*S] the mean per explained class (left out over 2**24
    numbers), ``mean_abs`` the mean magnitude of a cell, ``gini`` and ``top_share`` how peaked a sample's map is (the
    Gini coefficient; the share of the strongest tenth of its cells), ``samples``, ``nonfinite`` how many importances
    were not numbers, ``excluded`` how many samples could not be explained. Cells that no feature reaches are NaN.

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
        >>> found["map"], found["per_class"][0]
        (tensor([2.0000, 2.0000, 4.6667, 4.6667], dtype=torch.float64),
         tensor([3., 3., 7., 7.], dtype=torch.float64))
    """

    formula: ClassVar[str] = r"LI_j = s(x) - s(R_j x)"
    reading: ClassVar[str] = (
        "Red cells are evidence for the target: the score falls when they are perturbed. Blue cells speak against it."
    )
    map_titles: ClassVar[dict[str, str]] = {"map": "importance LI", "relative": "relative importance RI"}

    relative_sum: Tensor

    def __init__(
        self,
        regions: RegionsLike,
        perturbation: str | Perturbation,
        score: str | Score = "probability",
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.plan = Plan(as_regions(regions), chunk_size=chunk_size, engine=engine)
        self.requests = [Request.of(perturbation, score)]
        self.add_sum_state("relative_sum")
        self.fingerprint(self.plan, self.requests)

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Importance [N, J] of a sweep, painted."""
        (request,) = self.requests
        local = swept.local(request)
        paint = swept.regions.paint
        tensors = {"map": paint(local), "relative": paint(relative_importance(local)), "local": local}
        return self._explained(swept, tensors)

    def add(self, found: BatchExplanation) -> None:
        """Add the maps of a batch."""
        super().add(found)
        self.add_to_state("relative_sum", precise(found.tensors["relative"]).nansum(0))

    def compute(self) -> dict[str, Tensor]:
        """The results named above."""
        return {**self._maps(), "relative": self.relative_sum / self.map_count}
