"""Explanation of one data loader, batch after batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai._files import check_file_name
from lightning_xai._guard import isolated_eval, watch_writes
from lightning_xai.callbacks.batch import Unpack, Unpacked, check_options, read_batch, unpack_batch
from lightning_xai.callbacks.budget import by_block
from lightning_xai.callbacks.failures import Failures
from lightning_xai.callbacks.order import Order
from lightning_xai.callbacks.records import (
    NO_LABELS,
    NO_OUTPUT,
    check_class_names,
    is_regression,
    label_numbers,
    sample_records,
)
from lightning_xai.callbacks.writer import ShardWriter
from lightning_xai.inputs import Inputs
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows, shown_inputs
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric
from lightning_xai.metrics.sweeps import shared_sweeps, update_together
from lightning_xai.metrics.synchronisation import compute_together
from lightning_xai.perturbation.sweep import evaluations
from lightning_xai.scores import TargetRangeError, as_target

Results = dict[str, dict[str, Any]]


class Collector:
    """Explains batch after batch of one data loader and adds up what it finds.

    Args:
        metrics: The metrics by name; reset at the start.
        max_samples: Only the samples whose position is below this are explained.
        target: ``"label"``, the batch's class labels; ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target), and further parts; see :func:`read_batch`.
        writer: Writes per-sample results; they are written nowhere unless given.
        order: Which samples the process meets; those of a data set in its order unless given.
        failures: What becomes of failures; they are raised unless given.
        class_names: The classes' names; as many as the model has classes, or none.
        in_time: Tells whether there is time for the n-th block of samples; there is for all unless given.
        warned: The warnings that were given already; each is given once.

    Raises:
        ValueError: If an argument makes no sense.
        TypeError: If ``metrics`` is not a dict of explanation metrics by name.
    """

    def __init__(
        self,
        metrics: Mapping[str, ExplanationMetric],
        *,
        max_samples: int = 64,
        target: str | int = "label",
        unpack: Unpack | None = None,
        writer: ShardWriter | None = None,
        order: Order | None = None,
        failures: Failures | None = None,
        class_names: Sequence[str] | None = None,
        in_time: Callable[[int], bool] | None = None,
        warned: set[str] | None = None,
    ) -> None:
        check_metrics(metrics)
        check_options(max_samples, target, unpack)
        self.metrics = dict(metrics)
        self.max_samples = max_samples
        self.target = target
        self.unpack = unpack or unpack_batch
        self.folder = None if writer is None else writer.folder
        self.order = order or Order()
        self.failures = failures or Failures("the data", raises=True)
        self._class_names = class_names
        self._in_time = in_time
        self._writer = writer
        self.seen = 0
        self.left = False  # whether there were samples beyond those that are asked for
        self._warned = set() if warned is None else warned
        for metric in self.metrics.values():
            metric.reset()

    def add(self, model: nn.Module, batch: Any) -> None:
        """Explain those samples of a batch that are asked for.

        Args:
            model: The network; left as it was.
            batch: What the data loader gave.
        """
        with torch.inference_mode(False), torch.no_grad(), self.failures.contain("every metric", self.metrics):
            parts = read_batch(self.unpack, batch)
            inputs, labels = parts.inputs, parts.labels
            places = torch.arange(self.seen, self.seen + len(inputs))
            positions = self.order.positions(places)
            self.seen += len(inputs)
            self.left |= bool((positions >= self.max_samples).any())
            wanted = (positions >= 0) & (positions < self.max_samples)
            targets = self._targets(labels, len(inputs))
            finite, labelled = _usable(inputs, targets)
            self._exclude(wanted & ~finite, BROKEN)
            self._exclude(wanted & finite & ~labelled, UNLABELLED)
            chosen = (wanted & finite & labelled).nonzero().flatten()
            if not len(chosen) and self._has_shapes():
                return
            model, values = bind(model, inputs)
            masks = self._masks(parts, values)
            if len(chosen):
                _watch(at_rows(model, chosen), values[chosen])
                ids = self.order.ids(places) if parts.ids is None else parts.ids.cpu()
                numbers = label_numbers(labels, len(inputs))
                for rows in self._within_time(places, chosen):
                    own, some = at_rows(model, rows), [_picked(each, rows) for each in (targets, ids, numbers, masks)]
                    self._explain(own, values[rows], *some)
            else:
                self._stand_in(model, values, masks)

    def check(self, model: nn.Module, batch: Any) -> None:
        """Raise the errors of explaining a batch, without explaining it; labels beyond the last class are one."""
        with torch.inference_mode(False), torch.no_grad():
            parts = read_batch(self.unpack, batch)
            inputs = parts.inputs
            targets = self._targets(parts.labels, len(inputs))
            finite, labelled = _usable(inputs, targets)
            chosen = (finite & labelled).nonzero().flatten()
            if len(chosen):
                model, values = bind(model, inputs)
                masks = _picked(self._masks(parts, values), chosen)
                model, values = at_rows(model, chosen), values[chosen]
                _watch(model, values)
                for metric in self.metrics.values():
                    try:
                        classes = metric.check(model, values, _picked(targets, chosen), **metric.masked(masks))
                    except RuntimeError as error:
                        raise _in_words(error) from error
                    check_class_names(self._class_names, classes)

    def done(self) -> bool:
        """Tell whether every sample that is asked for has been seen."""
        return int(self.order.positions(torch.tensor([self.seen]))) >= self.max_samples and self._has_shapes()

    def warn_of_fewer(self, results: Results) -> None:
        """Warn if fewer samples than asked for were explained, though this process had more of them."""
        counts = next(iter(results.values()), {})
        met = sum(counts.get(name, self.max_samples) for name in ("samples", "excluded", "skipped"))
        if self.left and met < self.max_samples:
            warn_once(self._warned, UNEVEN.format(met=met, asked=self.max_samples))

    def compute(self, *, alone: bool = False) -> Results:
        """Compute the results of every metric: numbers as Python numbers, the rest as tensors on the CPU.

        With several processes this synchronises them, so all must call it, unless each is to answer ``alone``.
        """
        return compute_collected({0: self}, alone=alone)[0]

    def discard(self) -> None:
        """Remove what this process wrote."""
        if self._writer is not None:
            self._writer.remove()

    def work(self, model: nn.Module, batch: Any) -> int:
        """Count the perturbed inputs that a sample of this batch needs; 0 if it has none that can be explained."""
        inputs = read_batch(self.unpack, batch).inputs
        finite, _ = _usable(inputs, None)
        if not finite.any():
            return 0
        model, values = bind(model, inputs)
        first = values[finite.to(values.device)][:1]
        with isolated_eval(model):  # a label function may draw
            total = 0
            for plan, sharing in shared_sweeps(self.metrics):
                requests = [request for metric in sharing.values() for request in metric.requests]
                total += evaluations(requests, plan.regions.bind(first).count)
                total += sum(metric.own_evaluations for metric in sharing.values())
            return total

    def expected(self, dataloader: Any) -> int:
        """Count the samples of a data loader that are asked for."""
        dataset = getattr(dataloader, "dataset", None)
        return min(self.max_samples, len(dataset)) if isinstance(dataset, Sized) else self.max_samples

    def _targets(self, labels: Any, samples: int) -> Any:
        if self.target != "label":
            return self.target
        if isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool):
            column = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if column.ndim == 1:
                return as_target(column, samples)
        return "predicted"

    def _masks(self, parts: Unpacked, values: Tensor) -> Tensor | None:
        """Where the objects are in what is explained, if a metric looks for them and the batch says it."""
        return parts.masks(values.shape) if any(metric.takes_masks for metric in self.metrics.values()) else None

    def _explain(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Any,
        ids: Tensor,
        labels: Tensor | None,
        masks: Tensor | None,
    ) -> None:
        while True:
            try:
                found = self._update(model, inputs, target, ids, masks)
                break
            except TargetRangeError as error:
                if not isinstance(target, Tensor):
                    raise
                known = (target < error.classes).cpu()
            self._exclude(~known, UNLABELLED)
            chosen = known.nonzero().flatten()
            if not len(chosen):
                self._stand_in(model, inputs, masks)
                return
            model, inputs = at_rows(model, chosen), inputs[chosen]
            target, ids = _picked(target, chosen), ids[chosen]
            labels, masks = _picked(labels, chosen), _picked(masks, chosen)
        if self.target == "label" and not isinstance(target, Tensor):
            for about in list(found.values())[:1]:
                if about.classes != 1:  # else there is one output to explain
                    warn_once(self._warned, NO_OUTPUT if is_regression(about, labels) else NO_LABELS)
        names, self._class_names = self._class_names, None  # once is enough
        with self.failures.contain("what the classes are called"):
            for about in found.values():
                check_class_names(names, about.classes)
        if self._writer is not None and found:
            with self.failures.contain(f"what is written to {self.folder}"):
                writer, self._writer = self._writer, None  # after a failure nothing more is written
                writer.write(sample_records(found, shown_inputs(model, inputs), ids, labels))
                self._writer = writer

    def _within_time(self, places: Tensor, chosen: Tensor) -> Iterator[Tensor]:
        """Yield the chosen rows in the blocks for which there is time, and count the others."""
        if self._in_time is None:
            yield chosen
            return
        for block, rows in by_block(places, chosen):
            if self._in_time(block):
                yield rows
            else:
                warn_once(self._warned, OUT_OF_TIME)
                for metric in self.metrics.values():
                    metric.skip(len(rows))

    def _stand_in(self, model: nn.Module, inputs: Tensor, masks: Tensor | None) -> None:
        """Give the states the shapes of those of other processes, by a sample that does not count."""
        if len(inputs) and not self._has_shapes():
            sample = inputs[:1].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            first = None if masks is None else masks[:1]
            self._update(at_rows(model, slice(1)), sample, "predicted", None, first, count=False)

    def _update(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Any,
        ids: Tensor | None,
        masks: Tensor | None,
        *,
        count: bool = True,
    ) -> dict[str, BatchExplanation]:
        def handle(name: str, error: Exception) -> None:
            if isinstance(error, TargetRangeError):
                raise error
            error = _in_words(error)
            if not self.failures.add(name, error, [name]):
                raise error

        active = {name: metric for name, metric in self.metrics.items() if name not in self.failures.causes}
        return update_together(active, model, inputs, target, ids, masks=masks, count=count, on_error=handle)

    def _exclude(self, samples: Tensor, reason: str) -> None:
        count = int(samples.sum())
        if count:
            warn_once(self._warned, reason)
            for metric in self.metrics.values():
                metric.exclude(count)

    def _has_shapes(self) -> bool:
        failed = self.failures.causes
        return all(metric.update_called for name, metric in self.metrics.items() if name not in failed)


BROKEN = "samples with NaN or infinite inputs are left out; `excluded` counts them."
UNLABELLED = (
    "samples whose label is no class of the model (as -100 or 255 often mark) are left out; `excluded` counts them."
)
UNEVEN = (
    "{met} of the {asked} samples that are asked for are explained: every process explains its share of max_samples, "
    "and some have less data than that. Raise max_samples, or split the data evenly."
)
UNMOVED = (
    "the maps of {!r} are exactly 0 everywhere: the score does not change with the inputs, as a saturated softmax does "
    "not; try score='logit', or another perturbation."
)
OUT_OF_TIME = "the time to explain is up before the last sample that is asked for; `skipped` counts those left."
INFERENCE_TENSOR = "the model keeps a tensor that was made in inference mode; use Trainer(inference_mode=False)."


def _usable(inputs: Tensor | Inputs, targets: Any) -> tuple[Tensor, Tensor]:
    """Tell which samples [N] have finite inputs, and which have a label that can be a class."""
    finite = torch.ones(len(inputs), dtype=torch.bool)
    for source in [inputs] if isinstance(inputs, Tensor) else inputs.sources:
        finite &= source.isfinite().flatten(1).all(1).cpu()
    return finite, targets.cpu() >= 0 if isinstance(targets, Tensor) else torch.ones_like(finite)


def _watch(model: nn.Module, inputs: Tensor) -> None:
    check_inputs(inputs)
    try:
        watch_writes(at_rows(model, slice(1)), inputs[:1])
    except RuntimeError as error:
        raise _in_words(error) from error


def _in_words(error: Exception) -> Exception:
    """Say what torch's word of inference tensors means here."""
    if isinstance(error, RuntimeError) and "inference tensor" in str(error).lower():
        return RuntimeError(INFERENCE_TENSOR).with_traceback(error.__traceback__)
    return error


def _picked(target: Any, chosen: Tensor) -> Any:
    return target[chosen.to(target.device)] if isinstance(target, Tensor) else target


def compute_collected(collectors: Mapping[int, Collector], *, alone: bool = False) -> dict[int, Results]:
    """Compute the results of several collectors: numbers as Python numbers, the rest as tensors on the CPU.

    With several processes this synchronises them once for all, so all must call it, unless each answers ``alone``.
    """
    metrics = {(index, name): metric for index, some in collectors.items() for name, metric in some.metrics.items()}
    failures = {index: some.failures for index, some in collectors.items()}
    failed = {(index, name): cause for index, some in failures.items() for name, cause in some.causes.items()}
    known = set(failed)

    def handle(place: tuple[int, str], error: Exception) -> None:
        index, name = place
        if not failures[index].add(name, error, [name]):
            raise error

    with torch.inference_mode(False), torch.no_grad():
        computed = compute_together(metrics, alone=alone, failed=failed, on_error=handle)
        found = {place: _plain(result) for place, result in computed.items()}
    for index, name in failed.keys() - known:
        failures[index].note(name, failed[index, name])
    for (index, name), result in found.items():
        strength = result.get("map_abs")
        if isinstance(strength, Tensor) and strength.isfinite().any() and not strength.nan_to_num().any():
            warn_once(collectors[index]._warned, UNMOVED.format(name))
    return {
        index: {name: found[index, name] for name in collector.metrics if (index, name) in found}
        for index, collector in collectors.items()
    }


def check_metrics(metrics: Mapping[str, ExplanationMetric]) -> None:
    """Refuse anything but a dict of explanation metrics by name.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is empty, or a name cannot be that of a file.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a dict by name, e.g. {{'importance': Importance(...)}}, got {metrics!r}.")
    if not metrics:
        raise ValueError("metrics is empty: name at least one, e.g. {'importance': Importance(...)}.")
    for name, metric in metrics.items():
        check_file_name("metric", name)
        if name == "samples":
            raise ValueError("metric 'samples' needs another name: samples.png shows the samples with their maps.")
        if not isinstance(metric, ExplanationMetric):
            raise TypeError(f"metrics[{name!r}] must be one of lightning_xai.metrics, got {type(metric).__name__}.")


def warn_once(warned: set[str], message: str) -> None:
    """Warn, unless the same warning was given."""
    if message not in warned:
        warned.add(message)
        warnings.warn(message, UserWarning, stacklevel=2)


def _plain(result: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu() if value.ndim else value.item() for name, value in result.items()}
