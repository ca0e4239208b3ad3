"""The multiplications of an operation, which are the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_xai.operations.kinds import arguments, operation_name

_PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm", "baddbmm"})


def shape_of(leaf: Any) -> tuple[int, ...]:
    """Return the shape of an argument; that of what is no tensor is empty."""
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else ()


def count_multiplications(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    made: int,
    shape: Callable[[Any], tuple[int, ...]] = shape_of,
) -> int:
    """Count the multiplications of convolutions, linear layers, attention and matrix products; 0 for all else.

    Args:
        func: The function of torch's API.
        args: Its arguments by position.
        kwargs: Its arguments by name.
        made: How many numbers it makes.
        shape: Gives the shape of an argument.

    >>> import torch
    >>> x, weight = torch.zeros(5, 3), torch.zeros(4, 3)
    >>> count_multiplications(torch.nn.functional.linear, (x, weight), {}, made=20)
    60
    """
    name, given = operation_name(func), arguments(func, args, kwargs)
    weight = shape(given.get("weight"))
    if name.startswith("conv_transpose"):
        return math.prod(shape(given["input"])) * math.prod(weight[1:])
    if name.startswith("conv") and weight:
        return made * math.prod(weight[1:])
    if name == "linear":
        return made * weight[-1]
    if name == "scaled_dot_product_attention":
        return 2 * math.prod(shape(given["query"])) * shape(given["key"])[-2]
    if name in _PRODUCTS:
        return made * shape([leaf for leaf in args if shape(leaf)][-2])[-1]
    return 0
