"""What operations do on changed boxes; each kind is one entry of :data:`TABLE`."""

from lightning_xai.perturbation.incremental.operations import cells, resampling, reshaping, windows
from lightning_xai.perturbation.incremental.operations.base import TABLE, Operation, Patch, Reader, State, Step
from lightning_xai.perturbation.incremental.operations.windows import apart, narrow

BY_CELL = (cells.pointwise, cells.per_channel, cells.norm_of_channels, cells.linear, cells.softmax)
"""The entries that read no cells but those of the boxes, if they take one value."""

__all__ = [
    "BY_CELL",
    "TABLE",
    "Operation",
    "Patch",
    "Reader",
    "State",
    "Step",
    "apart",
    "cells",
    "narrow",
    "resampling",
    "reshaping",
    "windows",
]
