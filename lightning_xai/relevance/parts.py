"""Functions of torch that are made of operations of other kinds, written in these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    "var_mean": _with_mean(torch.var),
    "std_mean": _with_mean(torch.std),
    **RECURRENT,
}
"""By the plain names of the functions; a composite that names one of them has it as a whole."""
