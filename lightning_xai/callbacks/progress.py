"""Progress of the explanation on Lightning's own bar."""

from __future__ import annotations

import time

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
        bar = trainer.progress_bar_callback if trainer.is_global_zero else None
        self._tqdm: Tqdm | None = None
        self._rich: RichProgressBar | None = None
        self._refreshed = 0.0
        if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            self._tqdm = Tqdm(desc="Explaining", total=total, position=2 * bar.process_position + 2, leave=False)
        if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
            self._rich, self._task = bar, bar.progress.add_task("Explaining", total=total, visible=True)

    def advance(self, steps: int) -> None:
        """Advance by some steps."""
        if self._tqdm is not None:
            self._tqdm.update(steps)
        if self._rich is not None and self._rich.progress is not None:
            self._rich.progress.update(self._task, advance=steps)
            if time.monotonic() > self._refreshed + _SECONDS_BETWEEN_FRAMES:
                self._refreshed = time.monotonic()
                self._rich.refresh()

    def close(self) -> None:
        """Remove the line."""
        if self._tqdm is not None:
            self._tqdm.close()
        if self._rich is not None and self._rich.progress is not None:
            self._rich.progress.remove_task(self._task)
            self._rich.refresh()
        self._tqdm = self._rich = None
