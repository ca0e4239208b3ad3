"""Progress of the explanation on Lightning's own bar."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

_SECONDS_BETWEEN_FRAMES = 0.1


class BarTask:
    """Adds a line to the trainer's progress bar; nothing if it has none, or on processes other than the first.

    Args:
        trainer: The trainer.
        total: How many steps there are.
    """

    def __init__(self, trainer: Trainer, total: int) -> None:
        bar = trainer.progress_bar_callback
        self._rich: tuple[Any, Any] | None = None
        self._tqdm: Tqdm | None = None
        self._refreshed = 0.0
        if bar is None or not trainer.is_global_zero:
            return
        if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
            self._rich = (bar, bar.progress.add_task("Explaining", total=total, visible=True))
        elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            self._tqdm = Tqdm(desc="Explaining", total=total, position=2 * bar.process_position + 2, leave=False)

    def advance(self, steps: int) -> None:
        """Advance by some steps."""
        if self._rich is not None:
            bar, task = self._rich
            bar.progress.update(task, advance=steps)
            if time.monotonic() > self._refreshed + _SECONDS_BETWEEN_FRAMES:
                self._refreshed = time.monotonic()
                bar.refresh()
        if self._tqdm is not None:
            self._tqdm.update(steps)

    def close(self) -> None:
        """Remove the line."""
        if self._rich is not None:
            bar, task = self._rich
            if bar.progress is not None:
                bar.progress.remove_task(task)
                bar.refresh()
            self._rich = None
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None
