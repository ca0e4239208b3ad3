"""The end of a multirun: its runs side by side."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table


class Comparison(Callback):
    """Prints the numbers of a multirun as a table, a column per run, and writes them to ``comparison.csv``."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Read what the runs have written and compare it."""
        folder = Path(config.hydra.sweep.dir)
        runs = {run: numbers for run, numbers in (_read(job) for job in sorted(folder.iterdir(), key=_number)) if run}
        if not runs:
            Console(stderr=True).print(f"No run of {folder} has finished: there is nothing to compare.")
            return
        rows = list(dict.fromkeys(key for numbers in runs.values() for key in numbers))
        table = Table(title="Comparison", title_justify="left")
        table.add_column("result")
        for run in runs:
            table.add_column(run, justify="right")
        for row in rows:
            table.add_row(row, *(f"{numbers[row]:.4g}" if row in numbers else "" for numbers in runs.values()))
        Console().print(table)
        with (folder / "comparison.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["result", *runs])
            writer.writerows([row, *(numbers.get(row, "") for numbers in runs.values())] for row in rows)


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (-1, job.name)


def _read(job: Path) -> tuple[str, dict[str, float]]:
    results, overrides = job / "results.json", job / ".hydra" / "overrides.yaml"
    if not results.is_file() or not overrides.is_file():
        return "", {}
    numbers = json.loads(results.read_text())
    flat = {f"{metric}/{key}": value for metric, result in numbers.items() for key, value in result.items()}
    return f"{job.name}: " + " ".join(OmegaConf.load(overrides)), flat
