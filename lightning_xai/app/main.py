"""``lightning-xai``: train a network, or load one, and explain its validation data."""

from __future__ import annotations

import inspect
import json
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from lightning_xai.callbacks.explain import Results
from lightning_xai.callbacks.monitor import ExplanationMonitor
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.perturbation.kinds import Perturbation

_READABLE = (
    ValueError,
    TypeError,
    ImportError,
    FileNotFoundError,
    InstantiationException,
    MisconfigurationException,
    OmegaConfBaseException,
)


def main() -> None:
    """The console script. Modules of the current folder can be named in ``_target_``."""
    sys.path.insert(0, str(Path.cwd()))
    _job()


@hydra.main(version_base="1.3", config_path="pkg://lightning_xai.conf", config_name="config")
def _job(config: DictConfig) -> None:
    try:
        run(config)
    except _READABLE as error:
        _stop(error)


def run(config: DictConfig) -> Results:
    """Train (unless ``checkpoint`` names a trained network), validate, explain; write and print what was found.

    Args:
        config: A config composed of the groups in ``conf/``.

    Returns:
        The results by metric.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the config does not fit together.
    """
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    folder = Path(HydraConfig.get().runtime.output_dir)
    seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = None if config.checkpoint is None else Path(config.checkpoint)
    if checkpoint is not None and not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint} does not exist.")
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    monitor = build_monitor(config)
    model: LightningModule = instantiate(config.model)
    data: LightningDataModule = instantiate(config.data)
    callbacks: list[Callback] = [monitor, RichProgressBar(leave=True)]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder / "checkpoints", save_last=True))
    trainer: Trainer = instantiate(
        config.trainer, default_root_dir=str(folder), callbacks=callbacks, logger=instantiate(config.logger)
    )
    if checkpoint is None:
        trainer.fit(model, datamodule=data)
    else:
        trainer.validate(model, datamodule=data, ckpt_path=str(checkpoint), verbose=False)
    if trainer.is_global_zero:
        numbers = numbers_of(monitor.results)
        (folder / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
        show(numbers, trainer, folder)
    return monitor.results


def build_monitor(config: DictConfig) -> ExplanationMonitor:
    """The monitor of a config, its metrics over the config's regions, perturbation and score.

    What a metric's own entry sets comes first; what it leaves open is filled in. Speed is left out, with a word, if
    the perturbation has no strength.
    """
    with open_dict(config):
        strengths = config.perturbation.pop("strengths", None)
    perturbation: Perturbation = instantiate(config.perturbation)
    if strengths is not None and perturbation.strength is None:
        raise ValueError(
            f"perturbation.strengths is set, but {type(perturbation).__name__} has no strength that could be varied."
        )
    shared = {
        "regions": instantiate(config.regions),
        "perturbation": perturbation,
        "perturbations": perturbation,
        "strengths": None if strengths is None else list(strengths),
        "score": instantiate(config.score),
    }
    metrics: dict[str, ExplanationMetric] = {}
    for name, entry in config.metrics.items():
        names = inspect.signature(get_object(entry._target_)).parameters
        if "strengths" in names and "perturbations" not in entry and strengths is None:
            Console(stderr=True).print(f"{name} is left out: {type(perturbation).__name__} has no strengths to vary.")
            continue
        missing = {key: value for key, value in shared.items() if key in names and key not in entry}
        if "perturbations" in entry:
            missing.pop("strengths", None)
        metrics[str(name)] = instantiate(entry, _partial_=True)(**missing)
    monitor: ExplanationMonitor = instantiate(config.monitor, _partial_=True)(metrics)
    return monitor


def numbers_of(results: Results) -> dict[str, dict[str, float]]:
    """The results that are numbers."""
    return {
        name: {key: value for key, value in result.items() if isinstance(value, int | float)}
        for name, result in results.items()
    }


def show(numbers: dict[str, dict[str, float]], trainer: Trainer, folder: Path) -> None:
    """Print the results as a table, and where everything is."""
    table = Table(title="What the network looked at", title_justify="left")
    for column, side in (("metric", "left"), ("result", "left"), ("value", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name, value in trainer.callback_metrics.items():
        if name.endswith("/accuracy"):
            table.add_row("network", name, f"{float(value):.4g}", end_section=True)
    for name, result in numbers.items():
        for row, (key, number) in enumerate(result.items(), start=1):
            table.add_row(name if row == 1 else "", key, f"{number:.4g}", end_section=row == len(result))
    console = Console()
    console.print(table)
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"Pictures: {shown}/figures   maps: {shown}/explanations   numbers: {shown}/metrics.csv")


def _stop(error: Exception) -> NoReturn:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    cause: BaseException = error
    while cause.__cause__ is not None and isinstance(cause, InstantiationException):
        cause = cause.__cause__
    where = f" (in {error.args[0].splitlines()[-1].strip()})" if cause is not error and error.args else ""
    raise SystemExit(f"lightning-xai: {cause}{where}\nSet HYDRA_FULL_ERROR=1 for the whole trace.")


if __name__ == "__main__":
    main()
