"""Explanation of the batches of a data set, with or without a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_xai._checks import as_flag, as_integer, check_model
from lightning_xai._files import check_file_name
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.callbacks.writer import ShardWriter, load_explanations, remove_explanations
from lightning_xai.figures.canvas import Pictures, save
from lightning_xai.figures.results import DRAWN, draw_results
from lightning_xai.figures.samples import draw_samples
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric
from lightning_xai.metrics.sweeps import shared_sweeps, update_together
from lightning_xai.metrics.synchronisation import compute_together
from lightning_xai.perturbation.network import progress_to
from lightning_xai.perturbation.sweep import evaluations
from lightning_xai.results import declared
from lightning_xai.scores import as_target

Unpack = Callable[[Any], Sequence[Any]]
Results = dict[str, dict[str, Any]]

_INPUT_KEYS = ("input", "inputs", "image", "images", "x", "pixel_values", "signal", "features", "data")
_TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class")


class Collector:
    """Explains batch after batch of one data loader and adds up what it finds.

    Args:
        metrics: The metrics by name; reset at the start.
        max_samples: Only the samples whose position is below this are explained.
        target: ``"label"``, the batch's class labels; ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target) or (inputs, target, sample ids).
        folder: Where per-sample results go, if anywhere.
        rank: This process.
        run: The name of the run that writes, the same for all its processes.
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
        folder: Path | None = None,
        rank: int = 0,
        run: str | None = None,
        warned: set[str] | None = None,
    ) -> None:
        check_metrics(metrics)
        check_options(max_samples, target, unpack)
        self.metrics = dict(metrics)
        self.max_samples = max_samples
        self.target = target
        self.unpack = unpack or unpack_batch
        self.folder = folder
        self._writer = None if folder is None else ShardWriter(folder, rank, run)
        self.seen = 0
        self._warned = set() if warned is None else warned
        for metric in self.metrics.values():
            metric.reset()

    def add(self, model: nn.Module, batch: Any, position: Callable[[Tensor], Tensor] | None = None) -> None:
        """Explain those samples of a batch that are asked for.

        Args:
            model: The network; left as it was.
            batch: What the data loader gave.
            position: Turns places in this process' data [N] into positions in the data set; -1 marks a repetition.
        """
        with torch.inference_mode(False), torch.no_grad():
            inputs, labels, own_ids = self._unpacked(batch)
            places = torch.arange(self.seen, self.seen + len(inputs))
            positions = places if position is None else position(places)
            self.seen += len(inputs)
            wanted = (positions >= 0) & (positions < self.max_samples)
            finite = inputs.isfinite().flatten(1).all(1).cpu()
            self._exclude(int((wanted & ~finite).sum()))
            chosen = (wanted & finite).nonzero().flatten()
            if len(chosen):
                ids = positions[chosen] if own_ids is None else own_ids.cpu()[chosen]
                self._explain(model, inputs[chosen], self._targets(labels, chosen, len(inputs)), ids)
            elif len(inputs) and not self._has_shapes():
                stand_in = inputs[:1].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                update_together(self.metrics, model, stand_in, "predicted", count=False)

    def check(self, model: nn.Module, batch: Any) -> None:
        """Raise the errors that :meth:`add` would raise for a batch, without explaining it."""
        with torch.inference_mode(False), torch.no_grad():
            inputs, labels, _ = self._unpacked(batch)
            finite = inputs.isfinite().flatten(1).all(1).cpu().nonzero().flatten()
            if len(finite):
                for metric in self.metrics.values():
                    metric.check(model, inputs[finite], self._targets(labels, finite, len(inputs)))

    def done(self, position: Callable[[Tensor], Tensor] | None = None) -> bool:
        """Tell whether every sample that is asked for has been seen."""
        ahead = torch.tensor([self.seen])
        return int(ahead if position is None else position(ahead)) >= self.max_samples and self._has_shapes()

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
        inputs, _, _ = self._unpacked(batch)
        first = inputs[inputs.isfinite().flatten(1).all(1)][:1]
        if not len(first):
            return 0
        with isolated_eval(model):  # a label function may draw
            total = 0
            for plan, sharing in shared_sweeps(self.metrics):
                requests = [request for metric in sharing.values() for request in metric.requests]
                total += evaluations(requests, plan.regions.bind(first).count)
            return total

    def expected(self, dataloader: Any) -> int:
        """Count the samples of a data loader that are asked for."""
        dataset = getattr(dataloader, "dataset", None)
        return min(self.max_samples, len(dataset)) if isinstance(dataset, Sized) else self.max_samples

    def _unpacked(self, batch: Any) -> tuple[Tensor, Any, Tensor | None]:
        parts = self.unpack(batch)
        if not isinstance(parts, tuple | list) or not 2 <= len(parts) <= 3:
            raise TypeError("unpack must return (inputs, target) or (inputs, target, sample_ids).")
        inputs, labels = parts[0], parts[1]
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"the inputs of the batch are a {type(inputs).__name__}, not a tensor; say what to explain, e.g. "
                f"unpack=lambda batch: (batch[0], batch[1])."
            )
        own_ids = torch.as_tensor(parts[2]) if len(parts) == 3 else None
        if own_ids is not None and len(own_ids) != len(inputs):
            raise ValueError(f"unpack returned {len(own_ids)} sample ids for {len(inputs)} samples.")
        return detach_for_autograd(inputs), labels, own_ids

    def _targets(self, labels: Any, chosen: Tensor, samples: int) -> Any:
        if self.target != "label":
            return self.target
        if isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool):
            column = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if column.ndim == 1:
                indices = as_target(column, samples)
                return indices[chosen.to(column.device)]
        warn_once(self._warned, "the batch has no class labels [N]: the predicted class is explained instead.")
        return "predicted"

    def _explain(self, model: nn.Module, inputs: Tensor, target: Any, ids: Tensor) -> None:
        try:
            found = update_together(self.metrics, model, inputs, target, ids)
        except RuntimeError as error:
            if "inference tensor" in str(error).lower():
                raise RuntimeError(
                    "the model keeps a tensor that was made in inference mode; use Trainer(inference_mode=False)."
                ) from error
            raise
        if self._writer is not None:
            self._writer.write(per_sample(found, inputs, ids))

    def _exclude(self, count: int) -> None:
        if count:
            warn_once(self._warned, "samples with NaN or infinite inputs are left out; `excluded` counts them.")
            for metric in self.metrics.values():
                metric.exclude(count)

    def _has_shapes(self) -> bool:
        return all(metric.update_called for metric in self.metrics.values())


def explain(
    model: nn.Module,
    dataloader: Iterable[Any],
    metrics: Mapping[str, ExplanationMetric],
    *,
    max_samples: int = 64,
    target: str | int = "label",
    unpack: Unpack | None = None,
    folder: str | Path | None = None,
    pictures: Pictures | None = None,
    progress: bool = True,
) -> Results:
    """Explain the first samples of a data set, without a Trainer.

    In this process alone: where there are several, each explains the data it is given, into a folder of its own.

    Args:
        model: The network, on the device to use; left as it was.
        dataloader: Gives batches.
        metrics: The metrics by name; they are reset first.
        max_samples: How many samples, from the first one on.
        target: ``"label"``, the batch's class labels; ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target) or (inputs, target, sample ids); tuples and dicts with the usual
            keys are understood without.
        folder: Where maps (``explanations/``) and pictures (``figures/``) go; nowhere unless given.
        pictures: How pictures are drawn.
        progress: Show a progress bar.

    Returns:
        The results of every metric by name.

    Raises:
        ValueError: If the data hold no sample, or an argument makes no sense.

    >>> from lightning_xai.metrics import Importance
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model = nn.Linear(4, 3)
    >>> data = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    >>> found = explain(model, data, {"zero": Importance(Windows(2), kinds.Constant(0.0))}, progress=False)
    >>> found["zero"]["samples"], found["zero"]["map"].shape
    (5, torch.Size([4]))
    """
    check_model(model)
    maps = None if folder is None else Path(folder, "explanations")
    if maps is not None:
        remove_explanations(maps)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    collector = Collector(metrics, max_samples=max_samples, target=target, unpack=unpack, folder=maps)
    for metric in metrics.values():
        metric.to(device)
    bar = tqdm(desc="Explaining", unit=" perturbed inputs", unit_scale=True, disable=not as_flag("progress", progress))
    with bar, progress_to(bar.update):
        for batch in map(partial(move_data_to_device, device=device), dataloader):
            if progress and not bar.total:
                bar.total = collector.work(model, batch) * collector.expected(dataloader) or None
            collector.add(model, batch)
            if collector.done():
                break
    if collector.seen == 0:
        raise ValueError("dataloader gave no batch.")
    results = collector.compute(alone=True)
    if maps is not None:
        figures = maps.with_name("figures")
        for name, figure in draw(collector, results, pictures).items():
            save(figure, figures / f"{name}.png")
        write_tables(collector, results, figures)
    return results


def compute_collected(collectors: Mapping[int, Collector], *, alone: bool = False) -> dict[int, Results]:
    """Compute the results of several collectors: numbers as Python numbers, the rest as tensors on the CPU.

    With several processes this synchronises them once for all, so all must call it, unless each answers ``alone``.
    """
    metrics = {(index, name): metric for index, some in collectors.items() for name, metric in some.metrics.items()}
    with torch.inference_mode(False), torch.no_grad():
        found = {place: _plain(result) for place, result in compute_together(metrics, alone=alone).items()}
    return {index: {name: found[index, name] for name in collector.metrics} for index, collector in collectors.items()}


def draw(collector: Collector, results: Results, pictures: Pictures | None) -> dict[str, Any]:
    """Draw the pictures of a data set by name: one per metric, and ``samples`` with the maps of the first samples."""
    drawn: dict[str, Any] = {}
    for name, metric in collector.metrics.items():
        if any(isinstance(result, DRAWN) for result in declared(metric.results, results[name]).values()):
            drawn[name] = draw_results(metric.results, results[name], name, pictures, labels=metric.axis_labels)
    columns = {
        f"{name}/{tensor}": result
        for name, metric in collector.metrics.items()
        for tensor, result in metric.sample_maps.items()
    }
    folder = collector.folder
    if columns and folder is not None and any(folder.glob("*.safetensors")):
        drawn["samples"] = draw_samples(load_explanations(folder), columns, pictures)
    return drawn


def write_tables(collector: Collector, results: Results, folder: Path) -> None:
    """Write the tables of a data set as ``<metric>.<what is listed>.csv``."""
    for name, metric in collector.metrics.items():
        for what, table in metric.tables(results[name]).items():
            table.to_csv(folder / f"{name}.{what}.csv")


def per_sample(found: Mapping[str, BatchExplanation], inputs: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Collect the tensors of a batch that are written to disk."""
    first = next(iter(found.values()))
    tensors = {"sample_id": ids, "target": first.target, "prediction": first.prediction, "input": inputs}
    for name, explained in found.items():
        tensors.update((f"{name}/{key}", tensor) for key, tensor in explained.tensors.items())
    return tensors


def unpack_batch(batch: Any) -> tuple[Any, Any]:
    """Find inputs and target of a batch: a tensor, a tuple that starts with them, or a dict with the usual keys.

    Raises:
        TypeError: If it is none of these.

    >>> unpack_batch({"image": 1, "label": 2, "weight": 3})
    (1, 2)
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        inputs = [key for key in _INPUT_KEYS if batch.get(key) is not None]
        if len(inputs) == 1:
            return batch[inputs[0]], next((batch[key] for key in _TARGET_KEYS if batch.get(key) is not None), None)
        what = f"a dict with the keys {list(batch)}"
    elif isinstance(batch, tuple | list) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    else:
        what = f"a {type(batch).__name__}"
    raise TypeError(
        f"the batch is {what}, in which the inputs cannot be told; say which they are, e.g. "
        f"unpack=lambda batch: (batch['image'], batch['label'])."
    )


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


def check_options(max_samples: int, target: str | int, unpack: Unpack | None = None) -> None:
    """Refuse a number of samples, a target or a function of the batch that is not valid.

    Raises:
        ValueError: If it does not.
    """
    as_integer("max_samples", max_samples, least=1)
    if unpack is not None and not callable(unpack):
        raise TypeError(f"unpack must be a function of a batch, got {unpack!r}.")
    if not isinstance(target, int) and target not in ("label", "predicted"):
        raise ValueError(f"target must be 'label', 'predicted' or a class index, got {target!r}.")


def _plain(result: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu() if value.ndim else value.item() for name, value in result.items()}
