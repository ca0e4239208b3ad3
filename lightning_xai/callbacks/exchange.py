"""Results of collectors, for which the processes meet once at the end of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_xai.callbacks.collector import Collector, Results
from lightning_xai.callbacks.failures import warn_once
from lightning_xai.metrics.synchronisation import compute_together

UNMOVED = (
    "the maps of {!r} are exactly 0 everywhere: the score does not change with the inputs, as a saturated softmax does "
    "not; try score='logit', or another perturbation."
)


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
            warn_once(collectors[index].warned, UNMOVED.format(name))
    return {
        index: {name: found[index, name] for name in collector.metrics if (index, name) in found}
        for index, collector in collectors.items()
    }


def _plain(result: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu() if value.ndim else value.item() for name, value in result.items()}
