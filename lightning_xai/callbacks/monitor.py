"""The Lightning callback: explains validation and test batches while a network trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_xai._checks import as_flag, as_integer, check_known
from lightning_xai._guard import held_random_states, set_forward_context
from lightning_xai.callbacks.batch import Unpack, copy_containers
from lightning_xai.callbacks.budget import check_seconds
from lightning_xai.callbacks.collector import Collector, Results
from lightning_xai.callbacks.dependents import check_dependents
from lightning_xai.callbacks.exchange import compute_collected
from lightning_xai.callbacks.logging import check_names, log_figure, log_number
from lightning_xai.callbacks.options import check_metrics, check_options
from lightning_xai.callbacks.outputs import draw, write_tables
from lightning_xai.callbacks.run import PREFIX, Run
from lightning_xai.callbacks.writer import passes
from lightning_xai.figures.canvas import Pictures, save
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.results import Number, declared


def _holding_random_states(hook: Callable[..., None]) -> Callable[..., None]:
    """Put back the random states after a hook: user code that it calls (``unpack``, metrics, loggers) may use them."""

    @wraps(hook)
    def held(self: ExplanationMonitor, trainer: Trainer, pl_module: LightningModule, *args: Any, **named: Any) -> None:
        with held_random_states([pl_module.device]):
            hook(self, trainer, pl_module, *args, **named)

    return held


class ExplanationMonitor(Callback):
    """Explains the first samples of the validation (or test) data, and leaves no trace on the training.

    Numbers are logged as ``val/<metric>/<key>`` (``test/...``; with several data loaders followed by
    ``/dataloader_idx_<i>``), so they reach every logger and can drive ``EarlyStopping``. Under the trainer's
    ``log_dir`` stand the maps of every sample (``explanations/<stage>-epoch<E>-step<S>/``, read by
    :func:`lightning_xai.load_explanations`) and pictures (``figures/<stage>-epoch<E>-step<S>/``), which TensorBoard,
    Weights & Biases, Comet and MLflow get too; if several monitors explain a stage, each has a folder ``monitor_<i>``
    in there. Epoch and step are those of Lightning's checkpoints. What an earlier run has left at the same step is
    replaced, and a warning names what it has left at later ones. Any number of processes gives the same results.

    Args:
        metrics: What to compute, by name.
        every_n_epochs: Explain the validations of every n-th training epoch, the n-th first. Runs of
            ``trainer.validate`` and ``trainer.test`` are always explained.
        max_samples: How many samples of each data loader, from the first one on.
        max_seconds_per_epoch: How long explaining may take in an epoch. Then it stops in all processes at the same
            sample, looking at the clock every 8 samples of a process, the first 8 of each data loader apart; the
            number ``skipped`` counts the samples that are left.
        stages: ``"validate"``, ``"test"``, or both.
        target: ``"label"``, the batch's class labels (the predicted class, with a warning, where it has none);
            ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target), and may add sample ids, and where the objects are: Boolean masks,
            or a dict with ``masks`` or ``boxes``. Tuples and dicts with the usual keys are understood without.
        model: The attribute to explain, e.g. ``"net"``, if the module itself is not the network.
        precision: ``"32"`` explains outside autocast; ``"trainer"`` as the trainer computes. A model that is itself in
            half or double precision (``bf16-true``, ``64-true``) is explained in that.
        pictures: How pictures are drawn; class names and ``denormalize`` go here.
        save_maps: Keep the maps of every sample on disk.
        on_error: ``"warn"``: what fails while explaining is left out of that epoch, with a warning and its traceback in
            ``explanations/failures/``, and the training goes on; ``"raise"``: it ends the training. Failures of
            metrics that ``EarlyStopping``, ``ModelCheckpoint`` or a scheduler monitors are raised in any case, and so
            is whatever the sanity check, or the first batch of ``trainer.validate`` or ``trainer.test``, refuses.

    Attributes:
        results: The last results by metric: numbers as Python numbers, maps as tensors. With several data loaders the
            names are followed by ``/dataloader_idx_<i>``.

    Raises:
        ValueError: If an argument makes no sense.
        TypeError: If ``metrics`` is not a dict of explanation metrics.

    Example:
        >>> import torch, warnings
        >>> from tempfile import TemporaryDirectory
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_xai.metrics import Importance
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> warnings.simplefilter("ignore")  # of Lightning, about a run as small as this
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(4, 3, bias=False)
        ...         self.net.weight.data = torch.arange(12.0).view(3, 4)
        ...
        ...     def validation_step(self, batch, batch_idx):
        ...         pass
        >>> zero = Importance(Windows(2), kinds.Constant(0.0), score="logit")
        >>> monitor = ExplanationMonitor({"zero": zero}, model="net", max_samples=2, save_maps=False)
        >>> data = DataLoader(TensorDataset(torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])), batch_size=5)
        >>> with TemporaryDirectory() as folder:
        ...     where = {"accelerator": "cpu", "default_root_dir": folder, "logger": False, "callbacks": [monitor]}
        ...     trainer = Trainer(**where, enable_progress_bar=False)
        ...     _ = trainer.validate(Classifier(), data, verbose=False)
        >>> monitor.results["zero"]["map"]  # of classes 0 and 1, (0 + 1 + 4 + 5) / 2 and (2 + 3 + 6 + 7) / 2
        tensor([5., 5., 9., 9.], dtype=torch.float64)
    """

    def __init__(
        self,
        metrics: dict[str, ExplanationMetric],
        *,
        every_n_epochs: int = 1,
        max_samples: int = 64,
        max_seconds_per_epoch: float | None = None,
        stages: Sequence[str] = ("validate",),
        target: str | int = "label",
        unpack: Unpack | None = None,
        model: str | None = None,
        precision: str = "32",
        pictures: Pictures | None = None,
        save_maps: bool = True,
        on_error: str = "warn",
    ) -> None:
        check_metrics(metrics)
        check_options(max_samples, target, unpack)
        as_integer("every_n_epochs", every_n_epochs, least=1)
        check_seconds("max_seconds_per_epoch", max_seconds_per_epoch)
        stages = (stages,) if isinstance(stages, str) else stages
        if not isinstance(stages, Sequence):
            raise TypeError(f"stages must be a list of {', '.join(PREFIX)}, got {stages!r}.")
        if not stages:
            raise ValueError(f"stages is empty: name at least one of {', '.join(PREFIX)}.")
        for stage in stages:
            check_known("stage", stage, PREFIX)
        if precision not in ("32", "trainer"):
            raise ValueError(f"precision must be '32' or 'trainer', got {precision!r}.")
        check_known("on_error", on_error, ("warn", "raise"))
        if pictures is not None and not isinstance(pictures, Pictures):
            raise TypeError(f"pictures must be Pictures(...), got {type(pictures).__name__}.")
        self.metrics = dict(metrics)
        self.every_n_epochs = every_n_epochs
        self.max_samples = max_samples
        self.max_seconds_per_epoch = max_seconds_per_epoch
        self.stages = tuple(stages)
        self.target = target
        self.unpack = unpack
        self.model = model
        self.precision = precision
        self.pictures = pictures or Pictures()
        self.save_maps = as_flag("save_maps", save_maps)
        self.on_error = on_error
        self.results: Results = {}
        self.histories: dict[str, dict[str, Any]] = {}
        self._run: Run | None = None
        self._batch: Any = None
        self.warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Tells the states of several monitors apart in a checkpoint."""
        return self._generate_state_key(metrics=sorted(self.metrics), stages=self.stages, model=self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the last numbers, and what metrics look back on; maps are on disk."""
        numbers = {
            name: {key: value for key, value in result.items() if not isinstance(value, Tensor)}
            for name, result in self.results.items()
        }
        return {"results": numbers, "histories": self.histories}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last numbers of a checkpoint, and what metrics look back on."""
        self.results, self.histories = state_dict["results"], state_dict["histories"]

    @_holding_random_states
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network, and names that two monitors would log under, before any training is spent.

        Raises:
            TypeError: If the trainer is not one of ``lightning.pytorch``.
            ValueError: If the network is not found, or a name or monitored key cannot serve.
        """
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"ExplanationMonitor is for a Trainer of lightning.pytorch, not of "
                f"{type(trainer).__module__.partition('.')[0]}: write `import lightning.pytorch as pl`, in the module "
                f"that is trained, too."
            )
        self.network(pl_module)
        check_names(trainer.loggers, self.metrics)
        for other in _monitors(trainer):
            stages, names = set(self.stages) & set(other.stages), sorted(self.metrics.keys() & other.metrics.keys())
            if other is not self and stages and names:
                raise ValueError(f"two ExplanationMonitors have a metric {names[0]!r}: give it another name in one.")
        if stage == "fit" and "validate" in self.stages:
            check_dependents(trainer, self.metrics, self.every_n_epochs)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the schedulers, too, which are there now."""
        if "validate" in self.stages:
            check_dependents(trainer, self.metrics, self.every_n_epochs)

    def network(self, pl_module: LightningModule) -> nn.Module:
        """Return what is explained of a module: the attribute named by ``model``, or the module itself.

        Raises:
            ValueError: If there is no such attribute, or the module has no ``forward`` of its own and none is named.
        """
        if self.model is not None:
            names = [name for name, _ in pl_module.named_modules(remove_duplicate=False) if name]
            check_known("model", self.model, names)
            return pl_module.get_submodule(self.model)
        if type(pl_module).forward in (LightningModule.forward, nn.Module.forward):
            names = [name for name, _ in pl_module.named_children()]
            raise ValueError(
                f"{type(pl_module).__name__} has no forward of its own: say which attribute to explain with "
                f"ExplanationMonitor(model=...), one of {', '.join(names) or 'its submodules'}."
            )
        return pl_module

    @_holding_random_states
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of what an earlier run has left at steps that this one has still to reach."""
        place = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        left = [
            str(path.relative_to(place))
            for kind in ("explanations", "figures")
            for at in passes(place / kind).values()
            for (_, step), path in at.items()
            if step > trainer.global_step
        ]
        if left:
            warnings.warn(
                f"{place} holds {', '.join(left[:4])}{', ...' if len(left) > 4 else ''} of an earlier run: remove "
                f"them, or give this run a folder of its own by its logger or default_root_dir.",
                UserWarning,
                stacklevel=2,
            )

    @_holding_random_states
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to explain, if this epoch is to be explained."""
        self._start(trainer, pl_module, "validate")

    @_holding_random_states
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to explain, if this epoch is to be explained."""
        self._start(trainer, pl_module, "test")

    @_holding_random_states
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep what the loader gave, as a step may take parts out of its batch."""
        if self._run is not None:
            with self._run.failures.contain("the batch as the loader gave it"):
                self._batch = copy_containers(batch)
        elif trainer.sanity_checking:
            self._batch = copy_containers(batch)

    on_test_batch_start = on_validation_batch_start

    @_holding_random_states
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Explain a batch."""
        given, self._batch = batch if self._batch is None else self._batch, None
        with self._precision(trainer):
            # What cannot be explained is said before any training is spent, and where none is at stake.
            first = self._run is not None and not self._run.begun and trainer.state.fn != "fit"
            if first or (trainer.sanity_checking and "validate" in self.stages):
                self.collector(self.metrics).check(self.network(pl_module), given)
            if self._run is not None:
                self._run.add(self.network(pl_module), given, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    @_holding_random_states
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Synchronise the processes, log and draw."""
        run, self._run = self._run, None
        if run is None:
            return
        with self._precision(trainer):
            run.catch_up(self.network(pl_module))
        run.close()
        self.results = {}
        computed = compute_collected(run.collectors)
        for index, collector in run.collectors.items():
            suffix = run.loaders.suffix(index)
            found = computed[index]
            collector.warn_of_fewer(found)
            run.keep_histories(index, found)
            self.results.update((name + suffix, result) for name, result in found.items())
            for name, result in found.items():
                with collector.failures.contain(f"what is logged of {name}", [name]):
                    for key, declaration in declared(self.metrics[name].results, result).items():
                        if isinstance(declaration, Number):
                            log_number(pl_module, f"{run.prefix}/{name}/{key}{suffix}", float(result[key]))
            if trainer.is_global_zero:
                self._draw(run, index, collector, found, trainer)
        if not self.save_maps:
            run.clear(run.maps)
        run.raise_deferred()

    on_test_epoch_end = on_validation_epoch_end

    def _draw(self, run: Run, index: int, collector: Collector, found: Results, trainer: Trainer) -> None:
        contain, folder = collector.failures.contain, run.figures / run.part(index)
        for name, figure in draw(collector, found, self.pictures):
            if run.writes:
                with contain(f"the file {folder / name}.png"):
                    save(figure, folder / f"{name}.png")
            title = (Path(run.prefix) / run.among / f"{name}{run.loaders.suffix(index)}").as_posix()
            for logger in trainer.loggers:
                with contain(f"the picture of {name} in {type(logger).__name__}"):
                    # The step at which Lightning logs numbers.
                    log_figure([logger], title, figure, trainer.fit_loop.epoch_loop._batches_that_stepped)
        if run.writes:
            write_tables(collector, found, folder)

    @_holding_random_states
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the progress line, and maps that are stored only until the pictures are drawn."""
        run, self._run, self._batch = self._run, None, None
        if run is None:
            return
        failures = replace(run.failures, raises=False, critical=())  # the training has its own exception to raise
        with failures.contain("the progress line"):
            run.close()
        if not self.save_maps:
            # Each process its own: the others may not come to meet this one.
            for collector in run.collectors.values():
                with failures.contain(f"the removal of {collector.folder}"):
                    collector.discard()

    def collector(self, metrics: dict[str, ExplanationMetric], **place: Any) -> Collector:
        """Make the collector of one data loader, with this monitor's choices."""
        what: dict[str, Any] = {"max_samples": self.max_samples, "target": self.target, "unpack": self.unpack}
        return Collector(metrics, warned=self.warned, class_names=self.pictures.class_names, **what, **place)

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._run = None
        due = trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if trainer.sanity_checking or stage not in self.stages or not due:
            return
        for metric in self.metrics.values():
            metric.to(pl_module.device)
        monitors = [other for other in _monitors(trainer) if stage in other.stages]
        among = f"monitor_{monitors.index(self)}" if len(monitors) > 1 else ""
        self._run = Run(self, trainer, stage, among)

    def _precision(self, trainer: Trainer) -> AbstractContextManager[None]:
        # A plugin without autocast has put the model itself into its precision: there is no other to call it in.
        plugin = trainer.precision_plugin
        plain = self.precision == "32" and isinstance(plugin, MixedPrecision)
        return set_forward_context(nullcontext if plain else plugin.forward_context)


def _monitors(trainer: Trainer) -> list[ExplanationMonitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, ExplanationMonitor)]  # type: ignore[attr-defined]
