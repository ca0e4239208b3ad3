"""What of a training depends on the numbers that are logged: early stopping, checkpoints, schedulers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import Trainer


def metrics_depended_on(trainer: Trainer, metrics: Iterable[str]) -> frozenset[str]:
    """Return the metrics whose numbers a callback or a scheduler of the training monitors."""
    keys = [key for _, key, _ in (*_callbacks(trainer), *_schedulers(trainer))]
    return frozenset(name for name in metrics if any(_reads(key, name) for key in keys))


def check_dependents(trainer: Trainer, metrics: Iterable[str], every_n_epochs: int) -> None:
    """Refuse what looks for a number in epochs in which it is not there.

    Raises:
        ValueError: If something does.
    """
    names = list(metrics)
    for who, key, every in (*_callbacks(trainer), *_schedulers(trainer)):
        if every_n_epochs > 1 and (every < 1 or every % every_n_epochs) and any(_reads(key, name) for name in names):
            raise ValueError(
                f"{who} monitors {key!r}, which is there only every {every_n_epochs} epochs: use "
                f"ExplanationMonitor(every_n_epochs=1), or let {who} monitor another number."
            )


def _callbacks(trainer: Trainer) -> Iterator[tuple[str, Any, int]]:
    """List the callbacks that monitor a key: who, which, and every how many epochs they need it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "strict", True):
            every = getattr(callback, "_every_n_epochs", 1)
            yield type(callback).__name__, getattr(callback, "monitor", None), every


def _schedulers(trainer: Trainer) -> Iterator[tuple[str, Any, int]]:
    for config in trainer.lr_scheduler_configs:
        if config.strict:
            yield type(config.scheduler).__name__, config.monitor, config.frequency


def _reads(key: Any, name: str) -> bool:
    return isinstance(key, str) and key.startswith(f"val/{name}/")
