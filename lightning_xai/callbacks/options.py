"""Choices of a collector, and of what makes one."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_xai._checks import as_integer
from lightning_xai._files import check_file_name
from lightning_xai.callbacks.batch import Unpack
from lightning_xai.metrics.base import ExplanationMetric


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
