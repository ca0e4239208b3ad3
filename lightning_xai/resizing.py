"""Linear interpolation of maps to the size of the inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

_MODES = ("linear", "bilinear", "trilinear")


def resize(maps: Tensor, size: Sequence[int], *, antialias: bool = False) -> Tensor:
    r"""Interpolate maps [N, K, \*P] of one to three axes linearly to another spatial size.

    Args:
        maps: The maps; returned as they are if they have the size.
        size: The spatial size.
        antialias: Average what comes together where images become smaller.

    >>> import torch
    >>> resize(torch.tensor([[[0.0, 4.0]]]), (4,))
    tensor([[[0., 1., 3., 4.]]])
    """
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    mode = _MODES[len(size) - 1]
    return functional.interpolate(maps, tuple(size), mode=mode, antialias=antialias and mode == "bilinear")
