"""Explanation of the batches of a data set, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from tqdm.auto import tqdm

from lightning_xai._checks import as_flag, check_model
from lightning_xai.callbacks.batch import Unpack
from lightning_xai.callbacks.budget import TimeBudget, check_seconds
from lightning_xai.callbacks.collector import Collector, Results
from lightning_xai.callbacks.exchange import compute_collected
from lightning_xai.callbacks.outputs import draw, write_tables
from lightning_xai.callbacks.writer import SampleWriter, ShardWriter, remove_explanations
from lightning_xai.figures.canvas import Pictures, save
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.perturbation.network import progress_to


def explain(
    model: nn.Module,
    dataloader: Iterable[Any],
    metrics: Mapping[str, ExplanationMetric],
    *,
    max_samples: int = 64,
    max_seconds: float | None = None,
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
        max_seconds: How long explaining may take; the clock is looked at every 8 samples, and the number ``skipped``
            counts the samples that are left.
        target: ``"label"``, the batch's class labels; ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target), and may add sample ids, and where the objects are: Boolean masks,
            or a dict with ``masks`` or ``boxes``. Tuples and dicts with the usual keys are understood without.
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
    what: dict[str, Any] = {"max_samples": max_samples, "target": target, "unpack": unpack}
    class_names = None if pictures is None else pictures.class_names
    writer = None if maps is None else ShardWriter(maps)
    further: dict[str, Any] = {"max_seconds": max_seconds, "progress": progress, "class_names": class_names}
    collector = collect(model, dataloader, metrics, writer, **what, **further)
    results = compute_collected({0: collector}, alone=True)[0]
    if maps is not None:
        figures = maps.with_name("figures")
        for name, figure in draw(collector, results, pictures):
            save(figure, figures / f"{name}.png")
        write_tables(collector, results, figures)
    return results


def collect(
    model: nn.Module,
    dataloader: Iterable[Any],
    metrics: Mapping[str, ExplanationMetric],
    writer: SampleWriter | None,
    *,
    max_seconds: float | None = None,
    progress: bool = True,
    **what: Any,
) -> Collector:
    """Explain the first samples of a data set; the arguments are those of :func:`explain` and of ``Collector``.

    Raises:
        ValueError: If the data hold no sample, or an argument makes no sense.
    """
    check_model(model)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    check_seconds("max_seconds", max_seconds)
    budget = None if max_seconds is None else TimeBudget(max_seconds)
    in_time = None if budget is None else partial(budget.allows, "")
    collector = Collector(metrics, writer=writer, in_time=in_time, **what)
    for metric in metrics.values():
        metric.to(device)
    bar = tqdm(desc="Explaining", unit=" perturbed inputs", unit_scale=True, disable=not as_flag("progress", progress))
    with bar, progress_to(bar.update):
        for batch in map(partial(move_data_to_device, device=device), dataloader):
            if progress and not bar.total:
                bar.total = collector.work(model, batch) * collector.expected(dataloader) or None
            with nullcontext() if budget is None else budget.running():
                collector.add(model, batch)
            if collector.done():
                break
    if collector.seen == 0:
        raise ValueError("dataloader gave no batch.")
    return collector
