"""Rankings of attributions, of a run or of a multirun: read, put together, and shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from lightning_xai.callbacks.outputs import MEASURES
from lightning_xai.callbacks.writer import load_explanations, passes
from lightning_xai.metrics.comparison import Comparison, Score, heading
from lightning_xai.results import Number, companions

_BORDER = 3  # of a column in the terminal


@dataclass(frozen=True)
class Ranking:
    """Attributions side by side.

    Attributes:
        title: What is special about it among several.
        comparison: The measures.
        metrics: What the measures are called in the runs.
        runs: The runs that are ranked.
        pages: The run of every name, where there is one run for each.
    """

    title: str
    comparison: Comparison
    metrics: tuple[str, ...]
    runs: tuple[Path, ...]
    pages: Mapping[str, Path]

    def shows(self, number: str, runs: Sequence[Path]) -> bool:
        """Tell whether a number, ``<metric>/<key>``, of all of these runs is in the ranking."""
        metric, _, key = number.rpartition("/")
        measures = {*self.comparison.measures, *companions(self.comparison.measures)}
        return metric in self.metrics and key in measures and set(runs) <= set(self.runs)


def read_comparisons(run: Path, place: Path) -> dict[str, Comparison]:
    """Read the measures in a folder of pictures of a run, and those of every sample where its maps are kept.

    They come by the name of the first metric of each comparison.
    """
    found = {
        path.name.removesuffix(MEASURES): Comparison.from_dict(json.loads(path.read_text()))
        for path in sorted(place.glob(f"*{MEASURES}"))
    }
    maps = run / "explanations" / place.relative_to(run / "figures")
    if not found or not any(maps.glob("*.safetensors")):
        return found
    explained = load_explanations(maps)
    return {name: comparison.with_samples(explained) for name, comparison in found.items()}


def rankings_of(runs: Mapping[Path, Sequence[str]]) -> list[Ranking]:
    """Put the attributions of several runs side by side, apart for everything else that was asked.

    Args:
        runs: The choices of every run, by its folder.
    """
    groups: dict[tuple[str, str, str], dict[Path, Comparison]] = {}
    for run in runs:
        for place, metric, comparison in _last_comparisons(run):
            groups.setdefault((place, metric, comparison.question), {})[run] = comparison
    everywhere = _shared(runs.values())
    found = []
    for (place, metric, _), parts in groups.items():
        own = _shared([runs[run] for run in parts])
        names = dict(zip(parts, _short([[c for c in runs[run] if c not in own] for run in parts]), strict=True))
        comparison = Comparison.joined({names[run]: part for run, part in parts.items()})
        if len({comparison.made_by[name] for name in comparison.attributions}) > 1:
            title = " ".join([metric, *(choice for choice in own if choice not in everywhere)])
            pages = {name: run for run, name in names.items() if name in comparison.results}
            title = f"{title}, {place}" if len({key[0] for key in groups}) > 1 else title
            metrics = tuple(dict.fromkeys(name for part in parts.values() for name in part.results))
            found.append(Ranking(title, comparison, metrics, tuple(parts), pages))
    return found


def _last_comparisons(run: Path) -> Iterator[tuple[str, str, Comparison]]:
    """Yield the comparisons of a run's last pass of every stage: its place, the first metric, the comparison."""
    for stage, at in passes(run / "figures").items():
        last = [*at.values()][-1]
        for place in sorted({path.parent for path in last.rglob(f"*{MEASURES}")}):
            for metric, comparison in read_comparisons(run, place).items():
                yield "/".join([stage, *place.relative_to(last).parts]), metric, comparison


def _shared(choices: Any) -> list[str]:
    """The choices that all runs have."""
    first, *others = [list(some) for some in choices] or [[]]
    return [choice for choice in first if all(choice in other for other in others)]


def _short(choices: Sequence[Sequence[str]]) -> list[str]:
    """Name runs by their own choices, by the values alone if these are of one key; by numbers where they repeat."""
    keys = {choice.partition("=")[0] for some in choices for choice in some}
    alone = len(keys) == 1 and all(len(some) == 1 for some in choices)
    names = [some[0].partition("=")[2] if alone else " ".join(some) for some in choices]
    repeated = len(set(names)) < len(names) or not all(names)
    return [f"{number}: {name}" if repeated else name for number, name in enumerate(names)]


def terminal_tables(comparison: Comparison, title: str, width: int) -> list[Table]:
    """Lay a comparison out as tables that fit a width: measures as columns, attributions as rows, the best in bold."""
    scores = comparison.scores()
    first = min(max(map(len, ("attribution", *scores))), width // 3)
    tables: list[Table] = []
    for some in _fitting(comparison, scores, width - first - _BORDER - 1):
        columns = [
            Column(Text(heading(name, comparison.measures[name])), justify="right", width=needed)
            for name, needed in some.items()
        ]
        head = Column("attribution", width=first)
        tables.append(Table(head, *columns, title=None if tables else title, title_justify="left"))
        for one, measured in scores.items():
            style = "dim" if one in comparison.floors else ""
            tables[-1].add_row(Text(one), *(_in_terminal(measured[name]) for name in some), style=style)
    if any(score.near_best for measured in scores.values() for score in measured.values()):
        tables[-1].caption = "≈ cannot be told from the best (*) over the same samples"
    return tables


def _fitting(comparison: Comparison, scores: Mapping[str, Mapping[str, Score]], width: int) -> list[dict[str, int]]:
    """Split the measures, with the widths of their columns, so that they fit a width."""
    parts: list[dict[str, int]] = [{}]
    left = width
    for name, measure in comparison.measures.items():
        words = heading(name, measure).split()
        lines = [line for measured in scores.values() for line in _in_terminal(measured[name]).plain.splitlines()]
        needed = max(map(len, (*words, *lines)))
        if parts[-1] and needed + _BORDER > left:
            parts.append({})
            left = width
        parts[-1][name] = needed
        left -= needed + _BORDER
    return parts


def _in_terminal(score: Score) -> Text:
    error = f"\n± {score.error:.2g}" if math.isfinite(score.error) else ""
    number = f"{score.value:.3g} {score.mark}".rstrip()
    return Text(f"{number}{error}", style="bold" if score.rank == 1 else "")


def page_view(comparison: Comparison, links: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Describe a comparison for a page: its measures, and a row for each attribution.

    Args:
        comparison: The measures.
        links: Where a name leads to.
    """
    return {
        "measures": [
            {"heading": heading(name, measure), "title": measure.label, "about": _about(measure)}
            for name, measure in comparison.measures.items()
        ],
        "rows": [
            {
                "name": one,
                "link": (links or {}).get(one, ""),
                "made_by": comparison.made_by[one],
                "floor": one in comparison.floors,
                "scores": [
                    {
                        "value": f"{score.value:.3g}",
                        "error": f"{score.error:.2g}" if math.isfinite(score.error) else "",
                        "undefined": score.undefined,
                        "rank": score.rank,
                        "near_best": score.near_best,
                    }
                    for score in measured.values()
                ],
            }
            for one, measured in comparison.scores().items()
        ],
        "ranked": len(comparison.attributions) > 1,
        "near_best": any(score.near_best for measured in comparison.scores().values() for score in measured.values()),
        "question": comparison.question,
    }


def _about(measure: Number) -> str:
    return f"{measure.meaning} {measure.better.capitalize()} is better." if measure.better else measure.meaning
