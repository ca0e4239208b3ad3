"""One pass of a trainer over validation or test data, as a monitor explains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import distributed, nn

from lightning_xai.callbacks.budget import TimeBudget, shared_store
from lightning_xai.callbacks.collector import Collector
from lightning_xai.callbacks.dependents import metrics_depended_on
from lightning_xai.callbacks.failures import Failures, warn_once
from lightning_xai.callbacks.loaders import Loaders
from lightning_xai.callbacks.progress import BarTask
from lightning_xai.callbacks.writer import ShardWriter, new_run, pass_name, remove_pass
from lightning_xai.perturbation.network import progress_to

if TYPE_CHECKING:
    from lightning_xai.callbacks.monitor import ExplanationMonitor

PREFIX = {"validate": "val", "test": "test"}
"""What Lightning puts before the names of a stage's numbers, by stage."""


class Run:
    """Explains one pass of a trainer over the validation or test data.

    Args:
        monitor: Whose pass it is.
        trainer: The trainer.
        stage: ``"validate"`` or ``"test"``.
        among: The subfolder of this monitor, if there are several.

    Attributes:
        begun: Whether a batch has come.
    """

    def __init__(self, monitor: ExplanationMonitor, trainer: Trainer, stage: str, among: str = "") -> None:
        self.monitor = monitor
        self.trainer = trainer
        self.prefix = PREFIX[stage]
        # log_dir is a collective call: every process asks for it.
        place = Path(trainer.log_dir or trainer.default_root_dir)
        self.maps = place / "explanations" / pass_name(stage, trainer.current_epoch, trainer.global_step)
        self.figures = place / "figures" / self.maps.name
        # It promises to leave no files. (Lightning gives the trainer this attribute elsewhere, as it does callbacks.)
        self.writes = not trainer.fast_dev_run  # type: ignore[attr-defined]
        self.among = among
        record = self.maps.parent / "failures" / f"{self.maps.name}-rank{trainer.global_rank}.txt"
        self.failures = Failures(
            self.maps.name,
            raises=monitor.on_error == "raise",
            critical=metrics_depended_on(trainer, monitor.metrics) if stage == "validate" else (),
            file=record if self.writes else None,
            deferred=trainer.world_size > 1,
        )
        self.loaders = Loaders(trainer, stage, self.failures)
        self.begun = False
        self.collectors: dict[int, Collector] = {}
        self.bar: BarTask | None = None
        self.name = trainer.strategy.broadcast(new_run())
        self.budget: TimeBudget | None = None
        if monitor.max_seconds_per_epoch is not None:
            self.budget = TimeBudget(monitor.max_seconds_per_epoch, shared_store(f"lightning_xai/{self.name}"))
        self.clear(self.maps, self.figures)
        if trainer.world_size > 1:  # every process takes part at the end, also one that gets no batch
            for index in range(self.loaders.count):
                self._collector(index)

    def part(self, index: int) -> Path:
        """Return the subfolder of a data loader, among the others and other monitors."""
        return Path(self.among) / self.loaders.suffix(index).strip("/")

    def add(self, network: nn.Module, batch: Any, index: int) -> None:
        """Explain a batch of a data loader."""
        self.begun = True
        collector = self.collectors.get(index) or self._collector(index)
        if collector.all_failed() or self.loaders.is_over(batch):
            return
        with collector.failures.contain("every metric", collector.metrics):
            collector.order = self.loaders.order(index, batch, collector.unpack)
            for note in collector.order.notes:
                warn_once(self.monitor.warned, note)
            if collector.done():
                return
        if self.bar is None and self.trainer.progress_bar_callback is not None:
            with collector.failures.contain("the progress bar"):
                samples = sum(map(collector.expected, self.loaders.flattened)) / self.trainer.world_size
                work = collector.work(network, batch)
                self.bar = BarTask(self.trainer, round(work * samples)) if work else None
        with self._explaining():
            collector.add(network, batch)

    def catch_up(self, network: nn.Module) -> None:
        """Explain what waited until it is known how many samples each process has; all must call it."""
        if self.trainer.world_size == 1:
            return
        met = {index: collector.met() for index, collector in self.collectors.items()}
        everywhere: list[Any] = [None] * self.trainer.world_size
        distributed.all_gather_object(everywhere, met)
        with self._explaining():
            for index, collector in self.collectors.items():
                collector.catch_up(network, [elsewhere[index] for elsewhere in everywhere])

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Count the time that it takes, and show how far it is."""
        progress = nullcontext() if self.bar is None else progress_to(self.bar.advance)
        with progress, nullcontext() if self.budget is None else self.budget.running():
            yield

    def keep_histories(self, index: int, found: Iterable[str]) -> None:
        """Keep what metrics that found something want to look back on; of epochs of a training only."""
        if self.trainer.state.fn == "fit":
            collector = self.collectors[index]
            for name in found:
                with collector.failures.contain(f"what {name} looks back on", [name]):
                    if history := collector.metrics[name].history:
                        self.monitor.histories[self._place(index, name)] = history

    def _place(self, index: int, name: str) -> str:
        return f"{self.prefix}/{name}{self.loaders.suffix(index)}"

    def close(self) -> None:
        """Remove the progress line."""
        if self.bar is not None:
            self.bar.close()

    def clear(self, *folders: Path) -> None:
        """Remove the files of this pass from some folders; every process waits until they are gone."""
        self.trainer.strategy.barrier("files are no longer needed")
        if self.trainer.is_global_zero and self.writes:
            for folder in folders:
                with self.failures.contain(f"the removal of {folder}"):
                    for index in range(self.loaders.count):
                        remove_pass(folder / self.part(index))
                    for emptied in (folder, folder.parent):
                        if emptied.is_dir() and not any(emptied.iterdir()):
                            emptied.rmdir()
        self.trainer.strategy.barrier("files are removed")

    def raise_deferred(self) -> None:
        """Raise what failed in any process, in all of them, if it is to be raised."""
        parts = [self.failures, *(collector.failures for collector in self.collectors.values())]
        reasons = [reason for failures in parts for reason in failures.reasons()]
        if self.failures.deferred and (self.failures.raises or self.failures.critical):
            everywhere: list[Any] = [None] * self.trainer.world_size
            distributed.all_gather_object(everywhere, reasons)
            reasons = [reason for some in everywhere for reason in some]
        if reasons:
            raise RuntimeError(f"explaining {self.maps.name} failed: {reasons[0]}")

    def _collector(self, index: int) -> Collector:
        metrics = deepcopy(self.monitor.metrics) if self.loaders.count > 1 else self.monitor.metrics
        writer = ShardWriter(self.maps / self.part(index), self.trainer.global_rank, self.name) if self.writes else None
        failures = replace(self.failures, causes={}, waiting=[])
        in_time = None if self.budget is None else partial(self.budget.allows, str(index))
        own: dict[str, Any] = {"order": self.loaders.orders[index], "in_time": in_time}
        collector = self.monitor.collector(metrics, writer=writer, failures=failures, **own)
        for name, metric in metrics.items():
            with failures.contain(f"the start of an epoch of {name}", [name]):
                metric.begin(self.trainer.current_epoch, self.monitor.histories.get(self._place(index, name), {}))
        self.collectors[index] = collector
        return collector
