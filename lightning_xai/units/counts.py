"""The results of re-activation: counts of samples per feature and unit, and the four questions they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai._files import CsvTable
from lightning_xai.units.activation import ThresholdResult, Unit, as_unit, unit_name

_MOST_PAIRS = 2**22


class Pair(NamedTuple):
    """The number of samples in which a feature has re-activated a unit.

    Attributes:
        feature: j.
        unit: k; channel and position, if units are positions.
        samples: In how many samples.
    """

    feature: int
    unit: Unit
    samples: int


@dataclass(frozen=True)
class ReactivationReport(CsvTable):
    """The four answers.

    Attributes:
        total: The number of re-activations, over features, units and samples.
        per_window: The same per feature.
        per_change: The same per unit of change: divided by the sum over samples and features of the mean of |R x - x|.
        features: The strongest features with their counts, the smaller index first among equals.
        units: The strongest units with their counts.
        pairs: The strongest pairs of a feature and a unit.
    """

    columns = ("question", "feature", "unit", "value")

    total: int
    per_window: float
    per_change: float
    features: tuple[tuple[int, int], ...]
    units: tuple[tuple[Unit, int], ...]
    pairs: tuple[Pair, ...]

    def rows(self) -> list[tuple[str, int | str, int | str, int | float]]:
        """The report as a table: question, feature, unit, value."""
        table: list[tuple[str, int | str, int | str, int | float]] = [
            ("total", "", "", self.total),
            ("per window", "", "", self.per_window),
            ("per change", "", "", self.per_change),
        ]
        table += [("feature", feature, "", count) for feature, count in self.features]
        table += [("unit", "", unit_name(unit), count) for unit, count in self.units]
        table += [("pair", pair.feature, unit_name(pair.unit), pair.samples) for pair in self.pairs]
        return table


class Pairs:
    """Counts pairs by number without a matrix of them all: only pairs that were seen take memory.

    Args:
        most: How many pairs are kept; beyond that the rarest are dropped, and ``missed`` bounds what they, and the
            counts of those that came back, lack.
    """

    def __init__(self, most: int = _MOST_PAIRS) -> None:
        self.most = most
        self.missed = 0
        self.pairs = torch.zeros(0, dtype=torch.long)
        self.counts = torch.zeros(0, dtype=torch.long)

    def add(self, pairs: Tensor) -> None:
        """Count pairs [n], which may repeat."""
        found, times = torch.unique(pairs.cpu(), return_counts=True)
        self.pairs, place = torch.unique(torch.cat([self.pairs, found]), return_inverse=True)
        counts = torch.cat([self.counts, times])
        self.counts = torch.zeros_like(self.pairs).index_add_(0, place, counts)
        if len(self.pairs) > self.most:
            order = self.counts.argsort(descending=True, stable=True)
            self.missed += int(self.counts[order[self.most]])
            kept = order[: self.most].sort().values
            self.pairs, self.counts = self.pairs[kept], self.counts[kept]

    def top(self, n: int) -> list[tuple[int, int]]:
        """The n most frequent pairs and their counts; the smaller number first among equals."""
        order = self.counts.argsort(descending=True, stable=True)[:n]
        return list(zip(self.pairs[order].tolist(), self.counts[order].tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class ReactivationResult:
    r"""Counts M[j, k] of the samples in which perturbing feature j has re-activated unit k.

    Attributes:
        by_feature_and_unit: M [J, K], integers; None for positions.
        by_feature: :math:`\sum_k M` [J] over the units that are ranked.
        by_unit: :math:`\sum_j M` [K], or [K, \*P] for positions.
        change_by_feature: The sum over the samples of the mean over their cells of :math:`|R_j x - x|` [J].
        threshold: T [K], or [K, \*P].
        samples: N.
        nonfinite: How many changes were not numbers, over samples, features and units; they never count as hits.
        thresholds: How T was found, its exactness and dead units among it; None if it was given.
        pairs: For positions, the counts of the pairs.
        unranked: The units that enter no ranking and no answer, by their flat index: the dead ones, unless they count.
    """

    by_feature_and_unit: Tensor | None
    by_feature: Tensor
    by_unit: Tensor
    change_by_feature: Tensor
    threshold: Tensor
    samples: int
    nonfinite: int
    thresholds: ThresholdResult | None = None
    pairs: Pairs | None = None
    unranked: tuple[int, ...] = ()

    @property
    def dead(self) -> tuple[int, ...]:
        """The units that never were active, by their flat index; none are known for a threshold that was given."""
        return () if self.thresholds is None else self.thresholds.dead

    @property
    def error(self) -> float:
        """The relative error of the threshold; 0 if it is exact or was given."""
        return 0.0 if self.thresholds is None else self.thresholds.error

    @property
    def total(self) -> int:
        """The number of re-activations, over features, units and samples."""
        return int(self.by_feature.sum())

    @property
    def per_window(self) -> float:
        """The total per feature."""
        return self.total / len(self.by_feature)

    @property
    def per_change(self) -> float:
        """The total per unit of change; 0 if nothing has changed."""
        return per_change(self.total, float(self.change_by_feature.sum()))

    def top_features(self, n: int = 10) -> tuple[tuple[int, int], ...]:
        """The n features that re-activate most, and their counts; those that never do are left out."""
        return tuple((int(feature), count) for (feature,), count in strongest(self.by_feature, n))

    def top_units(self, n: int = 10) -> tuple[tuple[Unit, int], ...]:
        """The n units that are re-activated most, and their counts; those that never are, are left out."""
        return tuple(
            (as_unit(place), count)
            for place, count in strongest(without_units(self.by_unit, self.unranked, self.by_unit.ndim), n)
        )

    def top_pairs(self, n: int = 10) -> tuple[Pair, ...]:
        """The n pairs of a feature and a unit that meet most often; those that never do are left out."""
        if self.by_feature_and_unit is not None:
            matrix = without_units(self.by_feature_and_unit, self.unranked)
            return tuple(Pair(j, k, count) for (j, k), count in strongest(matrix, n))
        shape = (len(self.by_feature), *self.by_unit.shape)
        found = [] if self.pairs is None else self.pairs.top(as_integer("n", n, 1))
        places = [(_place(index, shape), count) for index, count in found]
        return tuple(Pair(feature, as_unit(unit), count) for (feature, *unit), count in places)

    def to_csv(self, path: str | Path, n: int = 10) -> Path:
        """Write the four answers, with the n strongest of each."""
        return self.report(n).to_csv(path)

    def report(self, n: int = 10) -> ReactivationReport:
        """The four answers, with the n strongest of each."""
        strongest = self.top_features(n), self.top_units(n), self.top_pairs(n)
        return ReactivationReport(self.total, self.per_window, self.per_change, *strongest)


def without_units(counts: Tensor, units: Sequence[int], axes: int = 1) -> Tensor:
    """Counts [..., *units] with 0 for some units, given by their flat index over the last ``axes`` axes.

    >>> without_units(torch.tensor([[1, 2], [3, 4]]), [1])
    tensor([[1, 0],
            [3, 0]])
    """
    left = counts.clone()
    left.flatten(-axes)[..., list(units)] = 0
    return left


def per_change(total: int, change: float) -> float:
    """A total per unit of change; 0 if nothing has changed."""
    return total / change if change else 0.0


def strongest(counts: Tensor, n: int) -> list[tuple[tuple[int, ...], int]]:
    """The places of the n largest counts, and those; the first place among equals, none that is 0.

    >>> strongest(torch.tensor([[0, 3], [5, 3]]), 2)
    [((1, 0), 5), ((0, 1), 3)]
    """
    flat = counts.flatten()
    order = flat.argsort(descending=True, stable=True)[: as_integer("n", n, 1)]
    found = zip(order.tolist(), flat[order].tolist(), strict=True)
    return [(_place(index, counts.shape), count) for index, count in found if count]


def _place(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(place) for place in torch.unravel_index(torch.tensor(index), tuple(shape)))
