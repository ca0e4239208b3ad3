"""Localisation without masks over a data set: samples among others in a mosaic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_flag, as_integer, check_known
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.localisation import relevance_mass
from lightning_xai.evaluation.masking import is_blank, pooled
from lightning_xai.evaluation.mosaics import check_difull, difull_maps, gridpg_maps
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.metrics.localisation import FURTHER
from lightning_xai.metrics.measures import MeasureMetric, measure_results
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target, as_score

_UNIT = "share of the positive relevance"
MEASURES = {
    "gridpg": Number("grid pointing game", _UNIT, "How much lies in the sample's own cell.", "gridpg", better="higher"),
    "difull": Number("disconnected grid", _UNIT, "How much lies where alone it can matter.", "difull", better="higher"),
}


class GridPointing(MeasureMetric):
    r"""Average how far maps of mosaics lie in the cell of the sample that is explained; no masks are needed.

    Args:
        attribution: What is measured.
        background: The other samples [B, C, \*S], the same for all, and their classes [B].
        game: ``"gridpg"``, of the whole mosaic, which the network must take; or ``"difull"``, in which the network runs
            on every cell alone, so that 1 is right.
        cells: n, the number of cells along every axis.
        shrink: Shrink mosaics to the size of a sample, for ``"gridpg"`` with a network of one size.
        seed: Keys cells and others together with the samples' ids.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, the background no pair of tensors, or an argument of the wrong type.
        ValueError: If the game is unknown, ``shrink`` goes with ``"difull"``, or ``"difull"`` with an attribution that
            reads a layer.

    Source: :cite:`boehle2021`, :cite:`rao2022`.

    Example:
        >>> from lightning_xai.relevance import GradientXInput
        >>> mean = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())  # class = channel
        >>> signals = torch.eye(3).unsqueeze(2).expand(-1, -1, 4)
        >>> metric = GridPointing(GradientXInput(), (signals, torch.arange(3)))
        >>> metric.update(mean, signals, [0, 1, 2])
        >>> metric.compute()["gridpg"]
        tensor(1., dtype=torch.float64)
    """

    formula: ClassVar[str] = r"\frac{\sum_{p \in cell} \max(\tilde a_p, 0)}{\sum_p \max(\tilde a_p, 0)}"
    interpretation: ClassVar[str] = (
        "High: among samples of other classes the map marks the right one. A constant map scores 1 / (number of cells)."
    )
    results: Mapping[str, Result] = {**ExplanationMetric.results, **measure_results(MEASURES), **FURTHER}

    def __init__(
        self,
        attribution: Attribution,
        background: Sequence[Tensor],
        *,
        game: str = "gridpg",
        cells: int = 2,
        shrink: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        an_attribution(attribution)
        check_known("game", game, MEASURES)
        as_integer("cells", cells, least=2)
        if as_flag("shrink", shrink) and game == "difull":
            raise ValueError("shrink=True is for game='gridpg': in 'difull' the network never sees a mosaic.")
        if game == "difull":
            check_difull(attribution)
        if len(background) != 2 or not all(isinstance(part, Tensor) for part in background):
            raise TypeError("background must be a pair of tensors: samples [B, C, *S] and their classes [B].")
        super().__init__({game: MEASURES[game]}, **options)
        other = measure_results({name: measure for name, measure in MEASURES.items() if name != game})
        self.results = {key: result for key, result in self.results.items() if key not in other}
        self.background, self.game, self.shrink = tuple(background), game, shrink
        self.add_sum_state("blank_count", dtype=torch.long)
        self.how: dict[str, Any] = {"cells": cells, "seed": as_integer("seed", seed)}
        self.ask(attribution, *background, game, cells, shrink, seed)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain the mosaics of a batch; the arguments are those of :meth:`ExplanationMetric.run`.

        Raises:
            ValueError: If the network has several arguments, or does not take a mosaic.
        """
        if isinstance(model, BoundModel):
            raise ValueError("mosaics are laid out of inputs of one tensor, for a network that takes no other.")
        bound, score = self.attribution.clean(model, inputs, target)
        ask: tuple[Any, ...] = (model, inputs, bound.target, self.attribution, *self.background)
        how: dict[str, Any] = {"sample_ids": sample_ids, **self.how}
        if self.game == "gridpg":
            relevance, mask = gridpg_maps(*ask, shrink=self.shrink, **how)
        else:
            relevance, mask = difull_maps(*ask, **how)
        nonfinite = (~relevance.isfinite()).flatten(1).sum(1)
        return BatchExplanation(
            {self.game: relevance_mass(relevance, mask)},
            bound.target,
            bound.prediction,
            nonfinite,
            bound.classes,
            kept={"blank": is_blank(pooled(relevance))},
            score=score,
            is_value=isinstance(as_score(self.attribution.score), RawOutput),
        )

    def add(self, found: BatchExplanation) -> None:
        """Add the shares of a batch."""
        super().add(found)
        self.add_to_state("blank_count", found.kept["blank"].sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        return {**super().compute(), "blank": self.blank_count}
