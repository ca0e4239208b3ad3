"""Comparison of the runs of a multirun, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from lightning_xai._files import write_csv, write_text
from lightning_xai.app.folder import relative_path
from lightning_xai.app.pages import format_number
from lightning_xai.app.ranking import rankings_of, terminal_tables
from lightning_xai.app.report import errors_of, labels_of, metrics_of, numbers_of, write_comparison
from lightning_xai.callbacks.writer import load_explanations, passes
from lightning_xai.figures.canvas import save
from lightning_xai.figures.samples import draw_samples
from lightning_xai.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = ("input", "target", "prediction", "sample_id", "label", "output")


class Comparison(Callback):
    """Prints the numbers of a multirun as a table, a column per run, and writes ``comparison.csv`` and ``.html``.

    Maps that differ between the runs are drawn side by side: ``comparison.<metric>.png``. Where runs have measured
    different attributions by the same question, these are ranked: ``ranking.json``, ``ranking-<n>.png``.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the runs have written and compare it.

        Raises:
            SystemExit: If a run has failed.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted((path.parent.parent for path in folder.glob("**/.hydra/overrides.yaml")), key=_number)
        done = [job for job in jobs if (job / "results.json").is_file()]
        failed = [name for job, name in zip(jobs, _names(jobs), strict=True) if job not in done]
        runs = dict(zip(_names(done), map(numbers_of, done), strict=True))
        every = list(dict.fromkeys(key for numbers in runs.values() for key in numbers))
        columns = [Column(Text(run), justify="right") for run in runs]
        table = Table("result", *columns, title="Comparison", title_justify="left")
        places = dict(zip(runs, done, strict=True))
        rankings = rankings_of({job: _choices(job) for job in done})
        ranked = {row for row in every if any(ranking.shows(row, done) for ranking in rankings)}
        labels = labels_of([row for row in every if row not in ranked], places.values())
        errors = errors_of(labels, places.values())
        for row, label in labels.items():
            cells = [
                format_number(numbers[row], numbers.get(errors.get(row, ""))) if row in numbers else ""
                for numbers in runs.values()
            ]
            table.add_row(label, *cells)
        if done:
            Console().print(table)
            lines = [[row, *(numbers.get(row, "") for numbers in runs.values())] for row in every]
            write_csv(folder / "comparison.csv", ["result", *runs], lines)
            for metric, figure in _side_by_side(places).items():
                save(figure, folder / f"comparison.{metric}.png")
            about = [{"title": each.title, **each.comparison.to_dict()} for each in rankings]
            for number, each in enumerate(rankings):
                for part in terminal_tables(each.comparison, f"Ranking: {each.title}", Console().width):
                    Console().print(part)
                if each.comparison.curves:
                    save(each.comparison.plot(), folder / f"ranking-{number}.png")
            if rankings:
                text = json.dumps({"rankings": about, "failed": failed}, indent=2, allow_nan=False)
                write_text(folder / "ranking.json", f"{text}\n")
            page = write_comparison(folder, places, labels, rankings, failed, errors)
            Console().print(f"comparison: {relative_path(page)}", markup=False, highlight=False, soft_wrap=True)
        if failed:
            raise SystemExit(f"lightning-xai: {len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}.")


def _side_by_side(runs: Mapping[str, Path]) -> dict[str, Figure]:
    """Draw the maps of all runs in one picture per metric, for the samples that all of them explained."""
    found = {name: explained for name, run in runs.items() if (explained := _explained(run)) is not None}
    if len(found) < 2:
        return {}
    first, *others = found.values()
    shared = [i for i in first["sample_id"].tolist() if all(i in other["sample_id"] for other in others)]
    rows = {name: torch.tensor([_row(explained, i) for i in shared]) for name, explained in found.items()}
    drawn = {}
    for metric, key, result in _sample_maps(runs.values()):
        if not shared or not all(key in explained for explained in found.values()):
            continue
        maps = {name: explained[key][rows[name]] for name, explained in found.items()}
        one, *rest = maps.values()
        if any(other.shape != one.shape for other in rest) or all(one.equal(other) for other in rest):
            continue
        seen = {name: first[name][next(iter(rows.values()))] for name in _SHOWN if name in first}
        columns = {name: replace(result, title=name.partition(": ")[2] or name) for name in maps}
        drawn[metric] = draw_samples(seen | maps, columns)
    return drawn


def _sample_maps(runs: Iterable[Path]) -> Iterator[tuple[str, str, Result]]:
    """Yield the first map of every metric: the metric's name, the key of the map, and its declaration."""
    for name, metric in metrics_of(runs).items():
        for tensor, result in list(metric.sample_maps.items())[:1]:
            yield name, f"{name}/{tensor}", result


def _explained(run: Path) -> dict[str, Tensor] | None:
    """Load the maps of the last pass that a run explained."""
    last = max(
        ((when, path) for at in passes(run / "explanations").values() for when, path in at.items()), default=None
    )
    return load_explanations(last[1]) if last and any(last[1].glob("*.safetensors")) else None


def _row(explained: Mapping[str, Tensor], sample: int) -> int:
    return int((explained["sample_id"] == sample).nonzero()[0])


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (-1, job.name)


def _choices(job: Path) -> list[str]:
    """Read the overrides of a run."""
    return [str(choice) for choice in OmegaConf.load(job / ".hydra" / "overrides.yaml")]


def _names(jobs: list[Path]) -> list[str]:
    """Name each run by the overrides that the others do not have."""
    choices = [_choices(job) for job in jobs]
    shared = set.intersection(*map(set, choices)) if len(jobs) > 1 else set()
    return [
        f"{job.name}: " + " ".join(choice for choice in chosen if choice not in shared)
        for job, chosen in zip(jobs, choices, strict=True)
    ]
