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
from rich.text import Text

from lightning_xai.app.report import in_digits, write_comparison


class Comparison(Callback):
    """Prints the numbers of a multirun as a table, a column per run, and writes ``comparison.csv`` and ``.html``."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the runs have written and compare it.

        Raises:
            SystemExit: If a run has failed.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted((path.parent.parent for path in folder.glob("**/.hydra/overrides.yaml")), key=_number)
        done = [job for job in jobs if (job / "results.json").is_file()]
        runs = dict(zip(_names(done), map(_read, done), strict=True))
        rows = list(dict.fromkeys(key for numbers in runs.values() for key in numbers))
        table = Table(title="Comparison", title_justify="left")
        table.add_column("result")
        for run in runs:
            table.add_column(Text(run), justify="right")
        for row in rows:
            table.add_row(row, *(in_digits(numbers[row]) if row in numbers else "" for numbers in runs.values()))
        if done:
            Console().print(table)
            with (folder / "comparison.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["result", *runs])
                writer.writerows([row, *(numbers.get(row, "") for numbers in runs.values())] for row in rows)
            write_comparison(folder, dict(zip(runs, done, strict=True)), rows)
        if len(done) < len(jobs):
            raise SystemExit(f"lightning-xai: {len(jobs) - len(done)} of {len(jobs)} runs failed.")


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (-1, job.name)


def _names(jobs: list[Path]) -> list[str]:
    """What each run has that the others have not."""
    choices = [list(OmegaConf.load(job / ".hydra" / "overrides.yaml")) for job in jobs]
    shared = set.intersection(*map(set, choices)) if len(jobs) > 1 else set()
    return [
        f"{job.name}: " + " ".join(choice for choice in chosen if choice not in shared)
        for job, chosen in zip(jobs, choices, strict=True)
    ]


def _read(job: Path) -> dict[str, float]:
    numbers = json.loads((job / "results.json").read_text())
    return {f"{metric}/{key}": value for metric, result in numbers.items() for key, value in result.items()}
