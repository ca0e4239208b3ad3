"""Comparison of attributions over a data set: the core measures side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.batch import Unpack
from lightning_xai.callbacks.exchange import compute_collected
from lightning_xai.callbacks.explain import collect
from lightning_xai.callbacks.writer import SampleNumbers
from lightning_xai.evaluation.features import RandomMap
from lightning_xai.metrics.comparison import Comparison
from lightning_xai.metrics.faithfulness import Faithfulness
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.regions import RegionsLike

RANDOM = "random"


def compare(
    model: nn.Module,
    dataloader: Iterable[Any],
    attributions: Mapping[str, Attribution],
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    max_samples: int = 64,
    target: str | int = "label",
    unpack: Unpack | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Measure attributions on the same samples by the core measures, with a random map as the floor.

    All share one sweep: the random sets and the input without any feature are scored once for all of them.

    Args:
        model: The network, on the device to use; left as it was.
        dataloader: Gives batches.
        attributions: What is compared, by name.
        regions: The features; they must not overlap.
        perturbation: R.
        max_samples: How many samples, from the first one on.
        target: ``"label"``, the batch's class labels; ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target) or (inputs, target, sample ids).
        seed: Keys the random sets and the random map.
        progress: Show a progress bar.
        **options: Those of :class:`~lightning_xai.metrics.Faithfulness`.

    Raises:
        TypeError: If ``attributions`` is no dict of attributions by name.
        ValueError: If one is called ``"random"``, there is none, or an argument makes no sense.

    >>> import torch
    >>> from lightning_xai import Windows
    >>> from lightning_xai.perturbation import kinds
    >>> from lightning_xai.relevance import GradientXInput, Saliency
    >>> model = nn.Linear(8, 3)
    >>> data = [(torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1]))]
    >>> methods = {"saliency": Saliency(), "gradient × input": GradientXInput()}
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "logit"}
    >>> found = compare(model, data, methods, **how, progress=False)
    >>> found.ranks["srg"]
    ['gradient × input', 'saliency']
    """
    if not isinstance(attributions, Mapping):
        raise TypeError(
            f"attributions must be a dict of attributions by name, e.g. {{'lrp': LRP()}}, got "
            f"{type(attributions).__name__}."
        )
    if not attributions:
        raise ValueError("attributions is empty: give at least one, e.g. {'lrp': LRP()}.")
    if RANDOM in attributions:
        raise ValueError(f"no attribution can be called {RANDOM!r}: that is the name of the floor.")
    metrics = {
        name: Faithfulness(attribution, regions, perturbation, seed=seed, **options)
        for name, attribution in {**attributions, RANDOM: RandomMap(seed)}.items()
    }
    how: dict[str, Any] = {"max_samples": max_samples, "target": target, "unpack": unpack, "progress": progress}
    writer = SampleNumbers()
    collector = collect(model, dataloader, metrics, writer, **how)
    results = compute_collected({0: collector}, alone=True)[0]
    return Comparison.of(metrics, results).with_samples(writer.numbers())
