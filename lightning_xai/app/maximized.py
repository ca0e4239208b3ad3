"""Inputs that classes or units of a trained network respond to most, as a picture of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from lightning_xai.app.batches import first_inputs
from lightning_xai.callbacks.monitor import ExplanationMonitor
from lightning_xai.figures import Pictures, save
from lightning_xai.figures.units import draw_maximized
from lightning_xai.units.maximization import Ascent, ClassScore, Objective, Unit, maximize_activation


@dataclass(frozen=True)
class Maximization:
    """Configures what is maximised, and how.

    Args:
        objective: A class, unit, group or direction.
        ascent: How.
    """

    objective: Objective
    ascent: Ascent = field(default_factory=Ascent)

    def draw(self, model: nn.Module, shape: Sequence[int], path: Path, pictures: Pictures | None = None) -> None:
        r"""Maximise over inputs of a shape (C, \*S), and write the picture.

        Args:
            model: The trained network.
            shape: Of one input.
            path: Where the picture goes.
            pictures: How inputs are drawn, and the names of the classes.
        """
        found = maximize_activation(model, self.objective, shape, ascent=self.ascent)
        titles = [f"{name}: {value:.3g}" for name, value in zip(self._names(pictures), found.value, strict=True)]
        save(draw_maximized(found.inputs, titles, pictures, across=5), path)

    def draw_run(
        self, model: LightningModule, data: LightningDataModule, folder: Path, monitor: ExplanationMonitor
    ) -> None:
        """Maximise after a run, over inputs like those it validated on: ``figures/maximized.png``; the first process.

        Args:
            model: The trained network.
            data: What it validated on.
            folder: Of the run.
            monitor: How its batches are unpacked, and inputs drawn.
        """
        if model.global_rank != 0:
            return
        inputs = first_inputs(data, monitor.unpack)
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"maximization searches for one tensor, the batch gives {type(inputs).__name__}: leave it out."
            )
        self.draw(model, inputs.shape[1:], folder / "figures" / "maximized.png", monitor.pictures)

    def _names(self, pictures: Pictures | None) -> list[str]:
        objective = self.objective
        if isinstance(objective, ClassScore):
            return [f"class {(pictures or Pictures()).name(label)}" for label in objective.indices]
        if isinstance(objective, Unit):
            return [f"{objective.layer}, unit {unit}" for unit in objective.indices]
        return [f"input {row}" for row in range(objective.count or 1)]
