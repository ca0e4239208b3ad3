"""Functions of torch that are made of operations of other kinds, written in these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.relevance.call import is_live
from lightning_xai.relevance.recurrent import RECURRENT


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    signal, gate = x.chunk(2, dim)
    found: Tensor = signal * gate.sigmoid()
    return found


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    first, second = (x / torch.linalg.vector_norm(x, 2, dim, keepdim=True).clamp(min=eps) for x in (x1, x2))
    return torch.sum(first * second, dim)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if is_live(input1) and is_live(input2):
        y = torch.einsum("...i,kij,...j->...k", input1, weight, input2)
    elif is_live(input1):  # linear in one, by a weight that the constant other one makes
        y = torch.einsum("...i,...ki->...k", input1, torch.einsum("kij,...j->...ki", weight, input2))
    else:
        y = torch.einsum("...j,...kj->...k", input2, torch.einsum("kij,...i->...kj", weight, input1))
    return y if bias is None else y + bias


def _addr(x: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * vec1.outer(vec2)


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return torch.stack([x.narrow(dim, 0, end).prod(dim, dtype=dtype) for end in range(1, x.shape[dim] + 1)], dim)


def _hypot(x: Tensor, other: Tensor) -> Tensor:
    return (x.square() + other.square()).sqrt()


def _pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)
    return found


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, **_: Any) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
    return found


def _lp_pool(mean: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """``lp_pool1d`` to ``lp_pool3d``: the sums of powers are means times the size of the window."""

    def parts(
        x: Tensor, norm_type: float, kernel_size: int | Sequence[int], stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        size = math.prod(kernel_size) if isinstance(kernel_size, Sequence) else kernel_size**axes
        return (mean(x.pow(norm_type), kernel_size, stride, 0, ceil_mode) * size).pow(1 / norm_type)

    return parts


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """``var_mean`` and ``std_mean``: the mean is linear, and no statistic."""

    def parts(
        x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
    ) -> tuple[Tensor, Tensor]:
        if isinstance(dim, bool):  # var_mean(x, unbiased)
            dim, unbiased = None, dim
        correction = int(unbiased) if correction is None else correction
        return spread(x, dim, correction=correction, keepdim=keepdim), x.mean(dim, keepdim)

    return parts


PARTS: dict[str, Callable[..., Any]] = {
    "glu": _glu,
    "cosine_similarity": _cosine_similarity,
    "bilinear": _bilinear,
    "addr": _addr,
    "cumprod": _cumprod,
    "hypot": _hypot,
    "pairwise_distance": _pairwise_distance,
    "cdist": _cdist,
    "lp_pool1d": _lp_pool(functional.avg_pool1d, 1),
    "lp_pool2d": _lp_pool(functional.avg_pool2d, 2),
    "lp_pool3d": _lp_pool(functional.avg_pool3d, 3),
    "var_mean": _with_mean(torch.var),
    "std_mean": _with_mean(torch.std),
    **RECURRENT,
}
"""By the plain names of the functions; a composite that names one of them has it as a whole."""
