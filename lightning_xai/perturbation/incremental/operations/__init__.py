"""What operations do on changed boxes; each kind is one entry of :data:`TABLE`."""

from lightning_xai.perturbation.incremental.operations import cells, resampling, reshaping, windows
from lightning_xai.perturbation.incremental.operations.base import TABLE, Operation, Patch, Reader, State, Step

__all__ = ["TABLE", "Operation", "Patch", "Reader", "State", "Step", "cells", "resampling", "reshaping", "windows"]
