"""Synergy and interaction over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai.evaluation.features import tolerance
from lightning_xai.metrics.base import BatchExplanation, precise
from lightning_xai.metrics.maps import SCORE
from lightning_xai.metrics.sweeps import SweepMetric, check_shared
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult
from lightning_xai.perturbation.synergy import beyond_single, joint_importance
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Map, Matrix, Number, PerFeature, Result
from lightning_xai.scores import ScoreLike

PAIR = ("feature j*", "feature j")
REDUNDANT = "0 all need each other … 1 all hold the same"


class Synergy(SweepMetric):
    r"""Average joint importance :math:`LI_{j^*,j}` and interaction :math:`I = LI_{j^*,j} - LI_{j^*} - LI_j`.

    Both are NaN on the diagonal.

    Args:
        regions: The features j, the same in every sample.
        perturbation: R.
        anchor: :math:`j^*`; all pairs unless given, J(J-1)/2 forward passes per sample.
        score: s: a name, a score, or a function of (output, target).
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.
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
        interaction, joint = (precise(found.tensors[name]).flatten(1) for name in ("interaction", "joint"))
        count, total = interaction.isfinite().sum(1), interaction.abs().nansum(1)
        self.add_to_state("mean_abs_sum", (total / count.clamp(min=1)).sum())
        # What lies within the rounding of the scores has no sign.
        assert found.score is not None
        size = precise(found.score).abs() + joint.nan_to_num().abs().amax(1)
        rounded = interaction.abs() <= tolerance(found.tensors["interaction"]) * size.nan_to_num().unsqueeze(1)
        signed = torch.where(rounded, 0.0, interaction)
        total = signed.abs().nansum(1)
        redundant = torch.where(total > 0, signed.clamp(min=0).nansum(1) / total, 0.0)
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
