"""What is written of every sample: what it is, what it should be, what the network says, and the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_xai.metrics.base import BatchExplanation

NO_LABELS = "the batch has no class labels [N]: the predicted class is explained instead."
NO_OUTPUT = "the network has several outputs: the largest one is explained; target=0 explains the first."


def label_numbers(labels: Any, samples: int) -> Tensor | None:
    """Return labels that are a number, or a row of numbers, per sample, [N] or [N, K]; None if they are not.

    >>> label_numbers(torch.tensor([[12.5], [17.25]]), samples=2), label_numbers(["cat", "dog"], samples=2)
    (tensor([12.5000, 17.2500]), None)
    """
    if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or len(labels) != samples:
        return None
    return labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels


def is_regression(found: BatchExplanation, labels: Tensor | None) -> bool:
    """Tell whether a network gives values, not classes: by one column, or one per output and labels to match."""
    floating = labels is not None and labels.is_floating_point()
    return found.classes == 1 or (found.is_value and floating)


def sample_records(
    found: Mapping[str, BatchExplanation], inputs: Tensor, ids: Tensor, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Collect the tensors [N, ...] of a batch that are written to disk.

    Args:
        found: The explanations by metric.
        inputs: The inputs.
        ids: The samples' ids [N].
        labels: What the batch says of them, [N] or [N, K].

    Returns:
        ``sample_id``, ``input``, ``label`` if it is known, ``score``, and ``<metric>/<tensor>``; of a classification
        the classes ``target``, which is explained, and ``prediction``; of a regression the values, and ``output``,
        which of several is explained.
    """
    first = next((explained for explained in found.values() if explained.score is not None), None)
    about = first or next(iter(found.values()))
    records = {"sample_id": ids, "target": about.target, "prediction": about.prediction, "input": inputs}
    if labels is not None:
        records["label"] = labels
    if about.score is not None:
        records["score"] = about.score
    if is_regression(about, labels):
        records |= {"output": about.target, **_values(about, labels)}
    for name, explained in found.items():
        records.update((f"{name}/{key}", tensor) for key, tensor in explained.tensors.items())
    return records


def _values(about: BatchExplanation, labels: Tensor | None) -> dict[str, Tensor]:
    """The value that the explained output [N] should have, and that it has; NaN where that is not known."""
    unknown = torch.full(about.target.shape, float("nan"))
    target = unknown
    if labels is not None and labels.ndim == 1:
        target = labels
    elif labels is not None and labels.shape[1] == about.classes:
        target = labels.gather(1, about.target.to(labels.device).unsqueeze(1)).squeeze(1)
    prediction = unknown if about.score is None else about.score
    return {"target": target.float(), "prediction": prediction.float()}


def check_class_names(names: Sequence[str] | None, classes: int) -> None:
    """Refuse more or fewer names than there are classes, where their number is known.

    Raises:
        ValueError: If there are.
    """
    if names is not None and classes > 1 and len(names) != classes:
        raise ValueError(
            f"Pictures(class_names=...) has {len(names)} names, and the model's output {classes} classes: give one "
            f"name per class, in the order of the outputs."
        )
