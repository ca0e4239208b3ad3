"""Explanation of one data loader, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai._guard import isolated_eval, watch_writes
from lightning_xai.callbacks.batch import Unpack, Unpacked, read_batch, unpack_batch
from lightning_xai.callbacks.budget import by_block
from lightning_xai.callbacks.failures import Failures, cause_of, warn_once
from lightning_xai.callbacks.options import check_metrics, check_options
from lightning_xai.callbacks.order import Order
from lightning_xai.callbacks.postponed import PostponedBatches
from lightning_xai.callbacks.records import (
    NO_LABELS,
    NO_OUTPUT,
    check_class_names,
    is_regression,
    label_numbers,
    sample_records,
)
from lightning_xai.callbacks.writer import SampleWriter
from lightning_xai.inputs import Inputs
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows, shown_inputs
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric
from lightning_xai.metrics.sweeps import shared_sweeps, update_together
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
        writer: SampleWriter | None = None,
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
        self._postponed = PostponedBatches()
        self.warned = set() if warned is None else warned
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
            places = torch.arange(self.seen, self.seen + len(parts.inputs))
            self.seen += len(places)
            positions = self.order.positions(places)
            if self.order.open and bool(((positions >= self.max_samples) & (places < self.max_samples)).any()):
                self._postponed.add(model, places, batch)
            self._add(model, parts, places, self._asked_for(positions))

    def catch_up(self, model: nn.Module, lengths: Sequence[int]) -> None:
        """Explain what lay beyond this process' share but is asked for, as others have less than theirs.

        Args:
            model: The network; left as it was.
            lengths: How many samples each process has met, as :meth:`met` counts them.
        """
        if not self.order.open or self.all_failed():
            return
        at_last = replace(self.order, lengths=tuple(lengths))
        with torch.inference_mode(False), torch.no_grad(), self.failures.contain("every metric", self.metrics):
            for places, batch in self._postponed.take(model):
                begun = self._asked_for(self.order.positions(places))
                late = self._asked_for(at_last.positions(places)) & ~begun
                if late.any():
                    self._add(model, read_batch(self.unpack, batch), places, late)

    def met(self) -> int:
        """Count the samples that this process has met; more than are asked for need not be told apart."""
        return min(self.seen, self.max_samples if self.order.length is None else self.order.length)

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
        """Tell whether every sample that may be asked for has been seen."""
        reached = self.seen if self.order.open else int(self.order.positions(torch.tensor([self.seen])))
        return reached >= self.max_samples and self._has_shapes()

    def all_failed(self) -> bool:
        """Tell whether every metric has failed, so that nothing is left to explain in this pass."""
        return self.metrics.keys() <= self.failures.causes.keys()

    def warn_of_fewer(self, results: Results) -> None:
        """Warn if fewer samples than asked for were explained, though this process had more of them."""
        counts = next(iter(results.values()), {})
        explained = sum(counts.get(name, self.max_samples) for name in ("samples", "excluded", "skipped"))
        if self._postponed.lost and explained < self.max_samples:
            warn_once(self.warned, UNEVEN.format(met=explained, asked=self.max_samples, why=self._postponed.lost))

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

    def _asked_for(self, positions: Tensor) -> Tensor:
        return (positions >= 0) & (positions < self.max_samples)

    def _add(self, model: nn.Module, parts: Unpacked, places: Tensor, wanted: Tensor) -> None:
        """Explain the wanted samples of a batch."""
        inputs, labels = parts.inputs, parts.labels
        targets = self._targets(labels, len(inputs))
        finite, labelled = _usable(inputs, targets)
        self._exclude(wanted & ~finite, BROKEN)
        self._exclude(wanted & finite & ~labelled, UNLABELLED)
        chosen = (wanted & finite & labelled).nonzero().flatten()
        if not len(chosen) and self._has_shapes():
            return
        model, values = bind(model, inputs)
        masks = self._masks(parts, values)
        if not len(chosen):
            self._stand_in(model, values, masks)
            return
        _watch(at_rows(model, chosen), values[chosen])
        ids = self.order.ids(places) if parts.ids is None else parts.ids.cpu()
        numbers = label_numbers(labels, len(inputs))
        for rows in self._within_time(places, chosen):
            own, some = at_rows(model, rows), [_picked(each, rows) for each in (targets, ids, numbers, masks)]
            self._explain(own, values[rows], *some)

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
                    warn_once(self.warned, NO_OUTPUT if is_regression(about, labels) else NO_LABELS)
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
                warn_once(self.warned, OUT_OF_TIME)
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
            warn_once(self.warned, reason)
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
    "{met} of the {asked} samples that are asked for are explained: some processes have less data than their share of "
    "max_samples, and others could not explain more than theirs, as {why}. Raise max_samples, or split the data evenly."
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
    if isinstance(error, RuntimeError) and "inference tensor" in cause_of(error).lower():
        return RuntimeError(INFERENCE_TENSOR).with_traceback(error.__traceback__)
    return error


def _picked(target: Any, chosen: Tensor) -> Any:
    return target[chosen.to(target.device)] if isinstance(target, Tensor) else target
