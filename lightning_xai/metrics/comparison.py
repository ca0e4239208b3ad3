"""Attributions side by side: the results of metrics that ask the same of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai.evaluation.features import RandomMap
from lightning_xai.figures.canvas import new_figure
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.metrics.measures import ComparableMetric
from lightning_xai.results import Curve, Number, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Score:
    """One measure of one attribution.

    Attributes:
        value: The mean over the samples; NaN if it is defined in none.
        error: Its standard error; NaN if there is none.
        undefined: How many samples have no value.
        rank: 1 for the best attribution, equal ones alike; None for the floor, an undefined measure, one that is
            neither good nor bad, and an attribution without another beside it.
        near_best: Whether it cannot be told from the best: the mean of the differences over the same samples is within
            two of its standard errors.
    """

    value: float
    error: float = math.nan
    undefined: int = 0
    rank: int | None = None
    near_best: bool = False

    @property
    def mark(self) -> str:
        """``*`` for the best, the rank of another, ``≈`` beside it where it cannot be told from the best."""
        if self.rank is None or self.rank == 1:
            return "" if self.rank is None else "*"
        return f"({self.rank}){'≈' * self.near_best}"

    def __str__(self) -> str:
        """The mean ± its standard error, and its ``mark``."""
        error = f" ± {self.error:.2g}" if math.isfinite(self.error) else ""
        return f"{self.value:.3g}{error} {self.mark}".rstrip()


@dataclass(frozen=True, eq=False)
class Comparison:
    """The measures of several attributions, and of a random map as the floor.

    Attributes:
        results: The results of every attribution by name, as its metric gives them.
        measures: The declaration of every measure by name.
        curves: The declaration of every curve by name.
        made_by: The attribution behind every name, as it prints itself.
        floors: The names that stand for random maps.
        question: What was asked of all of them: regions, perturbation, score and further choices.
        samples: The measures of every sample by name and measure, in the order of ``sample_id`` beside them; nothing
            where they are not known.
    """

    results: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Number]
    curves: Mapping[str, Curve]
    made_by: Mapping[str, str]
    floors: tuple[str, ...] = ()
    question: str = ""
    samples: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: Mapping[str, ComparableMetric], results: Mapping[str, Mapping[str, Any]]) -> Comparison:
        """Put the results of metrics together that ask the same question."""
        first = next(iter(metrics.values()))
        return cls(
            {name: results[name] for name in metrics},
            first.compared,
            {key: result for key, result in first.results.items() if isinstance(result, Curve)},
            {name: repr(metric.attribution) for name, metric in metrics.items()},
            tuple(name for name, metric in metrics.items() if isinstance(metric.attribution, RandomMap)),
            first.question,
        )

    @classmethod
    def joined(cls, parts: Mapping[str, Comparison]) -> Comparison:
        """Put comparisons together that ask the same question, e.g. of several runs.

        An attribution takes the name of its part, followed by its own if the part has several. Floors that agree are
        one.

        Args:
            parts: The comparisons by name.
        """
        first = next(iter(parts.values()))
        results: dict[str, Mapping[str, Any]] = {}
        floors: dict[str, Mapping[str, Any]] = {}
        made_by: dict[str, str] = {}
        for name, part in parts.items():
            for one in part.attributions:
                row = name if len(part.attributions) == 1 else f"{name}, {one}"
                results[row], made_by[row] = part.results[one], part.made_by[one]
            for one in part.floors:
                row = one
                if one in floors:
                    if first._agree(floors[one], part.results[one]):
                        continue
                    row = f"{one}, {name}"
                floors[row], made_by[row] = part.results[one], part.made_by[one]
        samples = {
            name if len(part.attributions) == 1 else f"{name}, {one}": part.samples[one]
            for name, part in parts.items()
            for one in part.attributions
            if one in part.samples
        }
        about = (first.measures, first.curves, made_by, tuple(floors), first.question)
        return cls({**results, **floors}, *about, samples)

    def with_samples(self, explained: Mapping[str, Tensor]) -> Comparison:
        """Add the measures of every sample, ``<name>/<measure>`` [N] beside ``sample_id``."""
        samples = {
            name: {key: explained[f"{name}/{key}"] for key in self.measures if f"{name}/{key}" in explained}
            | {"sample_id": explained["sample_id"]}
            for name in self.results
        }
        return replace(self, samples=samples)

    def _agree(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Tell whether two results are the same but for rounding."""
        pairs = [(one[name], other[name]) for name in self.measures]
        return all(a == b or (a != a and b != b) or math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in pairs)

    @property
    def attributions(self) -> list[str]:
        """The names of the attributions, without the floor."""
        return [name for name in self.results if name not in self.floors]

    @property
    def title(self) -> str:
        """Whom it compares, in a few words."""
        first, *others = self.results
        return " and ".join([first, *(others if len(others) < 2 else [f"{len(others)} others"])])

    @property
    def ranks(self) -> dict[str, list[str]]:
        """The attributions from best to worst by every measure that has a better end.

        Those of which a measure is undefined are in no rank. Ranks of different measures need not agree, and are not
        averaged: each asks another question.
        """
        found = {}
        for name, measure in self.measures.items():
            if measure.better is not None:
                values = {one: self.results[one][name] for one in self.attributions}
                known = {one: value for one, value in values.items() if math.isfinite(value)}
                found[name] = sorted(known, key=known.__getitem__, reverse=measure.better == "higher")
        return found

    def near_best(self, measure: str) -> list[str]:
        """List the attributions that cannot be told from the best by a measure, over the samples that both have.

        The mean of the differences is at most twice its standard error. Of many pairs one in twenty is told apart by
        chance.
        """
        order = self.ranks.get(measure, [])
        return [other for other in order[1:] if self._alike(measure, order[0], other)]

    def _alike(self, measure: str, best: str, other: str) -> bool:
        one, two = (self.samples.get(name, {}) for name in (best, other))
        if measure not in one or measure not in two:
            return False
        first, second = _shared(one["sample_id"], two["sample_id"])
        difference = one[measure][first].double() - two[measure][second].double()
        difference = difference[difference.isfinite()]
        if len(difference) < 2:
            return False
        return bool(difference.mean().abs() <= 2 * difference.std() / math.sqrt(len(difference)))

    def scores(self) -> dict[str, dict[str, Score]]:
        """List every measure of every attribution, the floor last: by attribution, then by measure."""
        ranks, near = self.ranks, {name: self.near_best(name) for name in self.measures}
        found: dict[str, dict[str, Score]] = {}
        for one in (*self.attributions, *self.floors):
            results, found[one] = self.results[one], {}
            for name, measure in self.measures.items():
                order = ranks.get(name, [])
                values = [self.results[other][name] for other in order]
                rank = values.index(results[name]) + 1 if one in order and len(self.attributions) > 1 else None
                error = results.get(measure.error or "", math.nan)
                undefined = int(results.get(measure.undefined or "", 0))
                found[one][name] = Score(results[name], error, undefined, rank, one in near[name] and rank != 1)
        return found

    def table(self) -> Table:
        """List attributions as rows and measures as columns: mean ± standard error, and the mark of its rank."""
        heads = (
            f"{name} ({measure.better} is better)" if measure.better else name
            for name, measure in self.measures.items()
        )
        rows = [(one, *map(str, scores.values())) for one, scores in self.scores().items()]
        return Table(("attribution", *heads), tuple(rows))

    def __str__(self) -> str:
        table = self.table()
        lines = [table.columns, *table.rows]
        widths = [max(len(str(line[place])) for line in lines) for place in range(len(table.columns))]
        return "\n".join(
            "  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def plot(self) -> Figure:
        """Draw the curves of all attributions, a panel for each curve, the floor dotted.

        Raises:
            ValueError: If there are none.
        """
        if not self.curves:
            raise ValueError(f"there are no curves to draw, only numbers: {', '.join(self.measures)}.")
        with new_figure(3.4 * len(self.curves) + 1.4, 2.7) as figure:
            panels = figure.subplots(1, len(self.curves), squeeze=False)[0]
            first: dict[str, Any] = {}  # the panel of every unit, whose axis the others of that unit share
            for panel, (key, curve) in zip(panels, self.curves.items(), strict=True):
                for name in (*self.attributions, *self.floors):
                    values = [float(value) for value in self.results[name][key]]
                    how = {"color": "0.45", "linestyle": ":"} if name in self.floors else {}
                    panel.plot(curve.places(len(values)), values, linewidth=1.4, label=name, **how)
                panel.set_xlabel(curve.axes[0])
                panel.set_title(curve.title)
                if (same := first.setdefault(curve.unit, panel)) is panel:
                    panel.set_ylabel(curve.unit)
                else:
                    panel.sharey(same)
                    panel.tick_params(labelleft=False)
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
            return figure

    def to_dict(self) -> dict[str, Any]:
        """Convert the comparison, ranks included, to what JSON allows; None stands for what is not finite."""
        keys = [key for measure in self.measures.values() for key in (measure.error, measure.undefined) if key]
        keys = ["samples", *self.measures, *keys, *self.curves]
        return {
            "question": self.question,
            "made_by": dict(self.made_by),
            "floors": list(self.floors),
            "measures": {name: asdict(measure) for name, measure in self.measures.items()},
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
            "results": {
                name: {key: _plain(results[key]) for key in keys if key in results}
                for name, results in self.results.items()
            },
            "ranks": self.ranks,
            "near_best": {name: self.near_best(name) for name in self.ranks},
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Comparison:
        """Make a comparison of what :meth:`to_dict` gave."""
        return cls(
            {name: {key: _restored(value) for key, value in one.items()} for name, one in found["results"].items()},
            {name: Number(**_declaration(measure)) for name, measure in found["measures"].items()},
            {name: Curve(**_declaration(curve)) for name, curve in found["curves"].items()},
            found["made_by"],
            tuple(found["floors"]),
            found["question"],
        )


def comparisons(
    metrics: Mapping[str, ExplanationMetric], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Comparison]:
    """Put the results of metrics together that ask the same question of an attribution each, by the first's name.

    Args:
        metrics: Metrics by name, of any kind.
        results: What they found; those that found nothing are left out.

    >>> from lightning_xai.metrics import Robustness
    >>> from lightning_xai.relevance import GradientXInput, Saliency
    >>> metrics = {"gradient": Robustness(Saliency()), "map": Robustness(Saliency(), draws=2)}
    >>> metrics["product"] = Robustness(GradientXInput())
    >>> {name: found.attributions for name, found in comparisons(metrics, dict.fromkeys(metrics, {})).items()}
    {'gradient': ['gradient', 'product'], 'map': ['map']}
    """
    groups: dict[str, dict[str, ComparableMetric]] = {}
    for name, metric in metrics.items():
        if isinstance(metric, ComparableMetric) and name in results:
            groups.setdefault(metric.question, {})[name] = metric
    return {next(iter(group)): Comparison.of(group, results) for group in groups.values()}


def heading(name: str, measure: Number) -> str:
    """Name a measure over its column, with an arrow to its better end.

    >>> heading("srg", Number("symmetric relevance gain", better="higher"))
    'srg ↑'
    """
    return f"{name.replace('_', ' ')}{_ARROWS[measure.better]}"


def _shared(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Find the places in two rows of ids of those that both have."""
    places = {int(sample): place for place, sample in enumerate(other.tolist())}
    pairs = [(place, places[sample]) for place, sample in enumerate(one.tolist()) if sample in places]
    first, second = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
    return first, second


def _plain(value: Any) -> Any:
    """A number or a curve as JSON has it."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if math.isfinite(value) else None


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return math.nan if value is None else value


def _declaration(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
