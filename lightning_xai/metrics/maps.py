"""Metrics whose main result is a map over the input."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai.evaluation.complexity import gini
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, precise
from lightning_xai.results import Map, Number, Result

SCORE = "units of the score"
# Means per class are kept up to this many numbers (1,000 classes of 224 x 224 are over it).
_MOST_CLASS_CELLS = 2**24


def map_results(of: str, unit: str) -> dict[str, Result]:
    """Declare what :class:`MapMetric` computes of a map, by what the map shows and its unit."""
    return {
        "map": Map(f"mean {of}", unit, "The mean over the samples.", "mean-map"),
        "map_abs": Map(f"mean |{of}|", unit, "The mean magnitude over the samples.", "mean-map", signed=False),
        "mean_abs": Number(f"mean |{of}| of a cell", unit, "How strong a map is.", "mean-map"),
        "gini": Number("Gini coefficient", "0 even … 1 one cell", "How unevenly a map is spread.", "gini"),
        "top_share": Number(
            "share of the strongest tenth of the cells", "0 … 1", "How much of a map few cells hold.", "top-share"
        ),
        "map_per_class": Map(
            f"mean {of} per class", unit, "The mean over the samples of a class.", "mean-map", axes=("class",)
        ),
    }


class MapMetric(ExplanationMetric, ABC):
    """Averages a signed map over the input, also per class, and measures how peaked it is.

    Attributes:
        further_maps: The names of more maps to average.
    """

    further_maps: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_sum_state("map_sum", "map_abs_sum", "map_count", "class_sum", "class_count")
        self.add_sum_state("mean_abs_sum", "gini_sum", "top_share_sum", "measured")
        self.add_sum_state(*(f"{name}_sum" for name in self.further_maps))

    def add(self, found: BatchExplanation) -> None:
        """Add the maps [N, *S] of ``found.tensors["map"]``."""
        values = precise(found.tensors["map"])
        number = values.isfinite()
        values = torch.where(number, values, 0.0)
        self.add_to_state("map_sum", values.sum(0))
        self.add_to_state("map_abs_sum", values.abs().sum(0))
        self.add_to_state("map_count", number.sum(0))
        for name in self.further_maps:
            self.add_to_state(f"{name}_sum", precise(found.tensors[name]).nansum(0))
        if found.classes > 1 and found.classes * values[:1].numel() <= _MOST_CLASS_CELLS:
            blank = values.new_zeros(found.classes, *values.shape[1:])
            self.add_to_state("class_sum", blank.index_add(0, found.target, values))
            self.add_to_state("class_count", blank.index_add(0, found.target, number.to(values)))
        sizes, cells = values.abs().flatten(1), number.flatten(1)
        self.add_to_state("mean_abs_sum", (sizes.sum(1) / cells.sum(1).clamp(min=1)).sum())
        self.add_to_state("gini_sum", gini(sizes, cells).sum())
        self.add_to_state("top_share_sum", top_share(sizes, cells).sum())
        self.add_to_state("measured", cells.any(1).sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that :func:`map_results` declares; maps per class are left out over 2**24 numbers."""
        found = {
            **self.sample_counts(),
            "map": self.map_sum / self.map_count,
            "map_abs": self.map_abs_sum / self.map_count,
            "mean_abs": self.mean_abs_sum / self.measured,
            "gini": self.gini_sum / self.measured,
            "top_share": self.top_share_sum / self.measured,
            **{name: getattr(self, f"{name}_sum") / self.map_count for name in self.further_maps},
        }
        if self.class_sum.ndim:
            found["map_per_class"] = self.class_sum / self.class_count
        return found


def top_share(magnitudes: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Compute the share of the total that the strongest tenth of the cells holds, :math:`\lceil n / 10 \rceil`.

    0 if all are 0.

    Args:
        magnitudes: Non-negative numbers [..., n].
        present: Which of them count, Boolean [..., n]; the others must be 0.

    >>> top_share(torch.tensor([1.0, 1.0, 2.0, 4.0]))
    tensor(0.5000)
    """
    ordered = magnitudes.sort(-1, descending=True).values
    length = ordered.shape[-1]
    count = torch.full_like(ordered[..., :1], length) if present is None else present.sum(-1, keepdim=True)
    strongest = torch.arange(length, device=ordered.device) < (count / 10).ceil()
    total = ordered.sum(-1)
    return torch.where(total > 0, (ordered * strongest).sum(-1) / total, 0.0)
