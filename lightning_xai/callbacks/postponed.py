"""Batches that wait until it is known how many samples the other processes have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from lightning_xai._compiled import is_sharded

SHARDED = "the model is sharded, so that no process can explain a sample alone"
REPLACED = (
    "the weights are no longer those that were validated; where WeightAveraging puts them back, let it stand behind "
    "ExplanationMonitor in the list of callbacks"
)


class PostponedBatches:
    """Batches with samples beyond a process' share, which are its own to explain where others have less than theirs.

    Each is kept as the loader gave it, on the CPU.

    Attributes:
        lost: Why they could not be explained in the end; empty where they could.
    """

    def __init__(self) -> None:
        self.lost = ""
        self._batches: list[tuple[Tensor, Any]] = []
        self._weights: list[str] = []

    def add(self, model: nn.Module, places: Tensor, batch: Any) -> None:
        """Keep a batch and the places of its samples in this process' data."""
        if is_sharded(model):
            self.lost = SHARDED
            return
        self._weights = self._weights or _norms(model)
        self._batches.append((places, move_data_to_device(batch, torch.device("cpu"))))

    def take(self, model: nn.Module) -> Iterator[tuple[Tensor, Any]]:
        """Hand out each batch with its places, unless the model has got other weights in the meantime."""
        if self._batches and self._weights != _norms(model):
            self.lost, self._batches = REPLACED, []
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        while self._batches:
            places, batch = self._batches.pop(0)
            yield places, move_data_to_device(batch, device)


def _norms(model: nn.Module) -> list[str]:
    """The norm of every parameter, as text, in which NaN equals NaN.

    The versions of tensors do not tell: averaged weights are swapped by ``.data``, which counts none.
    """
    floating = (parameter.detach() for parameter in model.parameters() if parameter.is_floating_point())
    return [repr(float(torch.linalg.vector_norm(values, dtype=torch.float64))) for values in floating]
