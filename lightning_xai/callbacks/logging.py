"""Numbers and pictures for the loggers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchmetrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_OF_MLFLOW = re.compile(r"[\w.\- ]*")


class ReducedNumber(Metric):
    """Holds a number that is reduced already, so that Lightning does not reduce it once more."""

    full_state_update = False
    value: Tensor

    def __init__(self, value: float, device: torch.device) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("value", torch.zeros(()))
        self.to(device)
        self.update(value)

    def update(self, value: float) -> None:
        """Store the number."""
        self.value = torch.full_like(self.value, value)

    def compute(self) -> Tensor:
        """Return the number."""
        return self.value


def check_names(loggers: Iterable[Logger], names: Iterable[str]) -> None:
    """Refuse names of metrics that a logger would refuse in the middle of a training, and end it.

    Raises:
        ValueError: If there is one.
    """
    if any(isinstance(logger, MLFlowLogger) for logger in loggers):
        for name in names:
            if not _OF_MLFLOW.fullmatch(name):
                raise ValueError(
                    f"MLflow takes letters, digits, spaces and _ - . in names: give metric {name!r} another one."
                )


def log_number(module: LightningModule, name: str, value: float) -> None:
    """Log a number that every process knows, at the end of an epoch."""
    how: dict[str, Any] = {"metric_attribute": name, "add_dataloader_idx": False}
    module.log(name, ReducedNumber(value, module.device), on_step=False, on_epoch=True, batch_size=1, **how)


def log_figure(loggers: Iterable[Logger], name: str, figure: Figure, step: int) -> None:
    """Hand a figure to every logger that can take one: TensorBoard, Weights & Biases, MLflow, Comet."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, _pixels(figure), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [_pixels(figure)], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"{name}/step{step}.png")
        elif isinstance(logger, CometLogger):
            logger.experiment.log_figure(figure_name=name, figure=figure, step=step)


def _pixels(figure: Figure) -> np.ndarray:
    canvas: Any = figure.canvas  # of Agg, as `figures` makes them
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
