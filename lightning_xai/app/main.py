"""``lightning-xai``, the console script.

Torch and Lightning take seconds to load, which no completion, help or misspelt name should wait for: a run loads them.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from importlib.metadata import version
from multiprocessing import parent_process
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lightning_xai.app.errors import error_message


def main() -> None:
    """Run the console script. Modules of the current folder can be named in ``_target_``."""
    if "--version" in sys.argv[1:]:
        print(f"lightning-xai {version('lightning-xai')}")
        return
    sys.path.insert(0, str(Path.cwd()))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    for place, word in enumerate(sys.argv):
        flag, equals, folder = word.rpartition("=")
        if (flag or sys.argv[place - 1]) in ("-cp", "--config-path") and Path(folder).is_dir():
            sys.argv[place] = f"{flag}{equals}{Path(folder).resolve()}"  # Hydra would look beside this file
    try:
        _job()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SystemExit(f"lightning-xai: {error_message(error)}") from None
    except OSError as error:  # of the folder, which Hydra makes
        if error.filename is None:
            raise
        raise SystemExit(f"lightning-xai: {error_message(error)}. Name another folder: hydra.run.dir=...") from None


@hydra.main(version_base="1.3", config_path="pkg://lightning_xai.conf", config_name="config")
def _job(config: DictConfig) -> float | None:
    try:
        from lightning_xai.app.run import objective_of, run

        return _to_sweeper(objective_of(config, run(config)))
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes the second of the first
        from lightning_xai.app.folder import process_rank

        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise SystemExit(_interrupted(Path(str(config.folder))) if process_rank() == 0 else 1) from None
    except Exception as error:
        message = f"lightning-xai: {error_message(error)}\n{_write_trace(Path(str(config.folder)))}"
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise SystemExit(message) from None
        print(message, file=sys.stderr)  # the other runs go on; the comparison says that this one is missing
        return None if config.objective is None else _to_sweeper(math.nan)


def _to_sweeper(number: float | None) -> float | None:
    """Return what a sweeper is told: that of Optuna takes nothing for a failed run, and ends the sweep at a NaN."""
    optuna = "optuna" in str(HydraConfig.get().sweeper.get("_target_"))
    return None if optuna and number is not None and math.isnan(number) else number


def _write_trace(folder: Path) -> str:
    from lightning_xai._files import write_text
    from lightning_xai.app.folder import process_rank, relative_path

    rank = process_rank()
    trace = folder / (f"error-{rank}.txt" if rank else "error.txt")
    try:
        write_text(trace, traceback.format_exc())
    except OSError as error:
        return f"Nothing can be written to {relative_path(folder)} ({error}): name another folder by hydra.run.dir=..."
    if rank:
        time.sleep(3)
        if trace.with_name("error.txt").exists():  # the first process has printed it
            raise SystemExit(1) from None
    return f"The whole trace is in {relative_path(trace)}."


def _interrupted(folder: Path) -> str:
    from lightning_xai.app.folder import OUTPUTS, relative_path

    written = [name for name in (*OUTPUTS.values(), "metrics.csv") if (folder / name).exists()]
    message = f"lightning-xai: interrupted. {relative_path(folder)} holds {', '.join(written) or 'no result'}."
    checkpoint = folder / "last.ckpt"
    again = f" The network of the last whole epoch is explained by checkpoint={relative_path(checkpoint)}."
    return message + again * checkpoint.exists()


if parent_process() is not None:  # a process that Lightning has spawned
    from lightning_xai.app.run import silence_warnings

    silence_warnings()
if __name__ == "__main__":
    main()
