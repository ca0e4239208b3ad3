"""A sweep over perturbations, and its comparison.

What a window is replaced by decides what its importance means. One command of Hydra's multirun trains and explains
under three perturbations and puts the runs side by side; in a terminal it is::

    lightning-xai --multirun perturbation=zero,blur,mean metrics=importance

``python examples/sweep.py [folder]`` runs it on fewer digits, prints the table and leaves the comparison in ``sweep/``.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

KINDS = ("zero", "blur", "mean")


def main(folder: Path = Path()) -> list[dict[str, str]]:
    """Run the sweep; the rows of its comparison."""
    place = (folder / "sweep").resolve()
    shutil.rmtree(place, ignore_errors=True)
    command = [
        str(Path(sys.executable).parent / "lightning-xai"), "--multirun", f"perturbation={','.join(KINDS)}",
        "metrics=importance", "regions.size=4", "trainer.max_epochs=1", "monitor.max_samples=32",
        "trainer.accelerator=cpu", f"hydra.sweep.dir={place}",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stdout + run.stderr)
    with (place / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("".join(f"{value[:22]:>24s}" for value in row.values()))
    shutil.copy(place / "comparison.importance.png", folder / "sweep.png")
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
