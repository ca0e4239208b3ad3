"""A run of the command line: train a network, or load one, and explain its validation data."""

from __future__ import annotations

import inspect
import json
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate, to_absolute_path
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.columns import Columns
from rich.console import Console
from rich.table import Column, Table

from lightning_xai._checks import IncompatibleError, as_flag, check_known
from lightning_xai._files import write_text
from lightning_xai.app.attributions import attribution_of, build_attribution, side_by_side
from lightning_xai.app.errors import build, check_arguments
from lightning_xai.app.folder import (
    OUTPUTS,
    WholeCheckpointIO,
    check_unused,
    config_to_run_again,
    relative_path,
)
from lightning_xai.app.maximized import Maximization
from lightning_xai.app.pages import format_number
from lightning_xai.app.ranking import read_comparisons, terminal_tables
from lightning_xai.app.report import latest, listed, shown_numbers, write_report
from lightning_xai.app.rules import rules_of
from lightning_xai.callbacks.monitor import ExplanationMonitor
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.metrics.drift import Drift
from lightning_xai.perturbation.kinds import Perturbation

Numbers = dict[str, dict[str, float]]

_TABLE_ROWS = 5  # rows of a table in the terminal; the rest is in its file
_SILENCED_WARNINGS = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    "(Experiment logs|Checkpoint) directory .* exists and is not empty.*",  # Hydra has made it and put its files there
    ".*isinstance.treespec, LeafSpec.*",
    "Be aware that when using `ckpt_path`.*",
    "The dirpath has changed from.*",
    "Using `DistributedSampler` with the dataloaders.*",  # explaining leaves the repetitions out
)


def objective_of(config: DictConfig, numbers: Numbers) -> float | None:
    """Return the number that ``objective`` names, for sweepers that optimise; None if it names none.

    Raises:
        ValueError: If there is no such number.
    """
    if config.objective is None or not numbers:
        return None
    found = {f"{metric}/{key}": number for metric, result in numbers.items() for key, number in result.items()}
    check_known("objective", str(config.objective), found)
    return float(found[str(config.objective)])


def run(config: DictConfig) -> Numbers:
    """Train (unless ``checkpoint`` names a trained network), validate, explain; write and print what was found.

    Args:
        config: A config composed of the groups in ``conf/``.

    Returns:
        The results that are numbers, by metric; what the network itself logged is under ``"network"``. Empty if only
        the rules were to be shown.

    Raises:
        ValueError: If the config does not fit together, or there is no such checkpoint.
    """
    silence_warnings()
    for name in ("folder", "checkpoint"):  # from where the command was given, also with hydra.job.chdir=true
        if config[name] is not None:
            config[name] = to_absolute_path(str(config[name]))  # a name such as 3 is read as a number
    config = side_by_side(config)
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_unused(folder)
    if not isinstance(config.seed, int | None):
        raise TypeError(f"seed must be an integer or null, got {config.seed!r}.")
    if config.seed is not None and not 0 <= config.seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {config.seed}.")
    given = None if config.checkpoint is None else relative_path(Path(config.checkpoint))
    if config.checkpoint is not None and not is_zipfile(config.checkpoint):
        wrong = "is not a checkpoint" if Path(config.checkpoint).exists() else "does not exist"
        raise ValueError(f"checkpoint={given} {wrong}: name a file that Lightning has saved.")
    seed_everything(config.seed, workers=True, verbose=False)
    monitor = build_monitor(config)
    if config.objective is not None:  # what its key may be is known at the end
        check_known("objective", str(config.objective).partition("/")[0], ["network", "test", *monitor.metrics])
    maximization: Maximization | None = instantiate(config.get("maximization"))
    model: LightningModule = build("model", config.model, **saved_arguments(config.model, config.checkpoint))
    data: LightningDataModule = build("data", config.data)
    for place, built, kind in (("model", model, LightningModule), ("data", data, LightningDataModule)):
        if not isinstance(built, kind):
            raise TypeError(f"{place}._target_={config[place]._target_} must be a {kind.__name__}, and is none.")
    if as_flag("show_rules", config.show_rules):
        _print(str(rules_of(build_attribution(config), monitor, model, data)))
        return {}
    trainer = _trainer(config, monitor)
    write = rank_zero_only(write_text)
    write(folder / "config.yaml", config_to_run_again(config))
    first = f"Training {type(model).__name__}, then" if config.checkpoint is None else f"{given}:"
    _print(f"{first} explaining up to {monitor.max_samples} samples by {', '.join(monitor.metrics)}.")
    numbers = _fit_and_explain(trainer, monitor, model, data, config.checkpoint)
    write(folder / "results.json", json.dumps(_json_numbers(numbers), indent=2, allow_nan=False) + "\n")
    if maximization is not None:
        maximization.draw_run(model, data, folder, monitor)
    rank_zero_only(write_report)(folder, monitor.metrics, f"What {type(model).__name__} looked at", monitor.pictures)
    _print(_table(numbers, monitor.metrics))
    _print_rankings(folder)
    _print_tables(folder, monitor)
    for what, name in OUTPUTS.items():
        if (folder / name).exists():
            _print(f"{what:>10}: {relative_path(folder / name)}")
    return numbers


def build_monitor(config: DictConfig) -> ExplanationMonitor:
    """Build the monitor of a config, its metrics over the config's regions, perturbation, score and attribution.

    What a metric's own entry sets comes first; what it leaves open is filled in. A metric whose entry says that it is
    optional, as those of ``metrics=default`` that do not fit every choice do, is left out, with a word, where it cannot
    be computed from the others.

    Raises:
        ValueError: If strengths are not a list of numbers, or the perturbation has no strength; if a rule is given to
            an attribution that takes none; if a metric does not fit the other choices and is not optional.
    """
    config = deepcopy(config)
    OmegaConf.set_struct(config, False)  # entries are taken out of this copy
    strengths = config.perturbation.pop("strengths", None)
    for place in ("regions", "perturbation", "score", "attribution"):
        check_arguments(place, config[place])
    perturbation: Perturbation = instantiate(config.perturbation)
    kind = type(perturbation).__name__
    if strengths is not None:
        if not isinstance(strengths, ListConfig) or not all(isinstance(state, int | float) for state in strengths):
            raise ValueError(f"perturbation.strengths must be numbers, e.g. [0.1,0.2,0.3], got {strengths}.")
        if perturbation.strength is None:
            raise ValueError(f"perturbation.strengths is set, but {kind} has no strength to vary: leave it out.")
        strengths = list(strengths)
    shared = {
        "regions": instantiate(config.regions),
        "perturbation": perturbation,
        "perturbations": perturbation,
        "strengths": strengths,
        "score": instantiate(config.score),
        "attribution": build_attribution(config),
    }
    metrics: dict[str, ExplanationMetric] = {}
    left_out: dict[str, list[str]] = {}
    for name, entry in config.metrics.items():
        optional = False
        if isinstance(entry, DictConfig) and "optional" in entry:
            optional = as_flag(f"metrics.{name}.optional", entry.pop("optional"))
        check_arguments(f"metrics.{name}", entry)
        names = inspect.signature(get_object(entry._target_)).parameters
        missing = {key: value for key, value in shared.items() if key in names and key not in entry}
        if "perturbations" in entry:
            missing.pop("strengths", None)
        if isinstance(entry.get("attribution"), DictConfig):
            missing["attribution"] = attribution_of(entry.attribution, config)
            entry.pop("attribution")
        try:
            metrics[str(name)] = build(f"metrics.{name}", entry, **missing)
        except IncompatibleError as error:
            if not optional:
                raise
            left_out.setdefault(str(error.__cause__), []).append(str(name))
    for reason, left in left_out.items():
        _print(f"{' and '.join(left)} {'is' if len(left) == 1 else 'are'} left out: {reason}")
    if config.monitor.every_n_epochs is None and any(isinstance(metric, Drift) for metric in metrics.values()):
        _print("drift compares epochs, and the network is explained once: monitor.every_n_epochs=1 explains every one.")
    if config.monitor.every_n_epochs is None:  # once: in the last epoch, or after training where that is not known
        epochs = config.trainer.get("max_epochs")
        if not isinstance(epochs, int | None):
            raise TypeError(f"trainer.max_epochs must be an integer or null, got {epochs!r}.")
        config.monitor.every_n_epochs = epochs if epochs and epochs > 0 else sys.maxsize
    monitor: ExplanationMonitor = build("monitor", config.monitor, metrics)
    return monitor


def saved_arguments(entry: DictConfig, checkpoint: str | None) -> dict[str, Any]:
    """Read the arguments that a checkpoint has saved of its network, by ``save_hyperparameters``, but those given.

    They are no part of the config, as what it names by ``_target_`` is called, and a checkpoint is only data.
    """
    if checkpoint is None:
        return {}
    saved = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True).get("hyper_parameters", {})
    taken = inspect.signature(get_object(entry._target_)).parameters
    return {name: value for name, value in saved.items() if name in taken and name not in entry}


def _trainer(config: DictConfig, monitor: ExplanationMonitor) -> Trainer:
    folder, own = Path(config.folder), config.trainer
    check_arguments("trainer", own)
    check_arguments("logger", config.logger)
    callbacks: list[Callback] = [*instantiate(own.get("callbacks") or []), monitor]
    if own.get("enable_progress_bar") is not False:
        callbacks.append(RichProgressBar(leave=True))
    if own.get("enable_checkpointing") is not False and config.checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, filename="last", enable_version_counter=False))
    logger = instantiate(config.logger)
    trainer: Trainer = instantiate(own, default_root_dir=str(folder), callbacks=callbacks, logger=logger)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if multirun and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):  # it runs the command once more
        raise ValueError("a multirun needs trainer.strategy=ddp_spawn to use several devices.")
    return trainer


def _fit_and_explain(
    trainer: Trainer,
    monitor: ExplanationMonitor,
    model: LightningModule,
    data: LightningDataModule,
    checkpoint: str | None,
) -> Numbers:
    numbers: Numbers = {"network": {}}
    explained = False
    if checkpoint is None:
        trainer.fit(model, datamodule=data)
        _collect_numbers(numbers, trainer, monitor)
        # Training may end before an epoch that is explained, or without validation.
        explained = len(numbers) > 1 and trainer.current_epoch % monitor.every_n_epochs == 0
    for stage in monitor.stages:
        if stage == "test" or not explained:
            getattr(trainer, stage)(model, datamodule=data, ckpt_path=checkpoint, verbose=False)
            _collect_numbers(numbers, trainer, monitor)
    return numbers


def _collect_numbers(numbers: Numbers, trainer: Trainer, monitor: ExplanationMonitor) -> None:
    """Collect logged numbers: unlike ``monitor.results`` they come back from processes that have ended."""
    for name, value in trainer.callback_metrics.items():
        prefix, *place = name.split("/")
        metric, key = "network", name
        if len(place) > 1 and place[0] in monitor.metrics:
            metric, key = "/".join([*(["test"] if prefix == "test" else []), place[0], *place[2:]]), place[1]
        number = float(str(value.cpu().numpy()))  # as short as its precision allows
        numbers.setdefault(metric, {})[key] = int(number) if number.is_integer() else number


def _json_numbers(numbers: Numbers) -> dict[str, dict[str, float | None]]:
    """Convert numbers to what JSON allows: null for what is not finite."""
    return {
        metric: {key: number if math.isfinite(number) else None for key, number in result.items()}
        for metric, result in numbers.items()
    }


def _table(numbers: Numbers, metrics: Mapping[str, ExplanationMetric]) -> Table:
    columns = ("metric", "result", Column("value", justify="right"))
    table = Table(*columns, title="What the network looked at", title_justify="left")
    shown = list(shown_numbers(numbers, metrics))
    for row, (number, following) in enumerate(zip(shown, [*shown[1:], {}], strict=True)):
        first = row == 0 or shown[row - 1]["metric"] != number["metric"]
        label = number["result"].label if number["result"] else number["key"]
        value = format_number(number["value"], number["error"])
        value += f" ({number['undefined']} undefined)" if number["undefined"] else ""
        last = following.get("metric") != number["metric"]
        table.add_row(number["metric"] if first else "", label, value, end_section=last)
    return table


def silence_warnings() -> None:
    """Silence warnings of Lightning that say nothing to whoever runs the command."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _SILENCED_WARNINGS:
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def _print(what: Any) -> None:
    Console().print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))


@rank_zero_only
def _print_tables(folder: Path, monitor: ExplanationMonitor) -> None:
    """Print the first rows of the tables that stand beside the pictures, those of a metric side by side."""
    for name, tables in listed(folder, monitor.metrics).items():
        shown = []
        for table in tables:
            if not table["rows"]:
                continue
            columns = [Column(title, justify="right") for title in table["columns"]]
            shown.append(Table(*columns, title=f"{name} {table['title']}", title_justify="left"))
            for row in table["rows"][:_TABLE_ROWS]:
                shown[-1].add_row(*row)
        if shown:
            _print(Columns(shown, padding=(0, 2)))


@rank_zero_only
def _print_rankings(folder: Path) -> None:
    """Print what compares several attributions of this run."""
    for place in latest(folder / "figures"):
        for comparison in read_comparisons(folder, place).values():
            if len(comparison.results) > 1:
                for table in terminal_tables(comparison, f"Ranking: {comparison.title}", Console().width):
                    _print(table)
