"""The folder of a run: it belongs to that run alone, and its config starts another run in another folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.utils import to_absolute_path
from lightning.pytorch.plugins import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf

from lightning_xai._files import replace_file

OUTPUTS = {
    "report": "report.html",
    "pictures": "figures",
    "maps": "explanations",
    "numbers": "results.json",
    "network": "last.ckpt",
}
_CONFIG = "config.yaml"
_RUN_AGAIN = """\
# To run this again, in a folder of its own: lightning-xai -cp <this folder> -cn config
defaults:
- hydra: default
- _self_
hydra:
  searchpath: [pkg://lightning_xai.conf]
"""


def process_rank() -> int:
    """Return the rank of this process, before Lightning has started any."""
    variables = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((os.environ[name] for name in variables if name in os.environ), 0))


def check_unused(folder: Path) -> None:
    """Refuse a folder that holds a run; to be asked by the first process, before any has written.

    A job that SLURM has started again goes on in its folder.

    Raises:
        ValueError: If it does.
    """
    used = (folder / _CONFIG).exists() or any(folder.glob(f"[!.]*/{_CONFIG}"))
    if used and process_rank() == 0 and "SLURM_RESTART_COUNT" not in os.environ:
        raise ValueError(
            f"{relative_path(folder)} holds a run already: name another folder by hydra.run.dir=... (of a multirun: "
            f"hydra.sweep.dir=...), or remove that one."
        )


class UnusedFolder(Callback):
    """Refuses a folder that holds a run before Hydra writes to it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the folder of a single run."""
        self._check(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the folder of a multirun."""
        self._check(config.hydra.sweep.dir)

    @staticmethod
    def _check(folder: str) -> None:
        try:
            check_unused(Path(folder))
        except ValueError as error:  # Hydra would make a warning of it
            raise SystemExit(f"lightning-xai: {error}") from None


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints whole or not at all; Lightning moves them from another file system, which can be cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replace_file(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def config_to_run_again(config: DictConfig) -> str:
    """Write a config out with every value resolved but for the folder, which a further run chooses anew."""
    config = config.copy()
    config.folder = r"\${folder}"  # what refers to it keeps referring to it
    values = OmegaConf.to_container(config, resolve=True)
    return _RUN_AGAIN + OmegaConf.to_yaml({**values, "folder": "${hydra:runtime.output_dir}"})  # type: ignore[dict-item]


def relative_path(path: Path) -> Path:
    """Shorten a path below the folder in which the command was given."""
    current = Path(to_absolute_path("."))
    return path.relative_to(current) if path.is_relative_to(current) else path
