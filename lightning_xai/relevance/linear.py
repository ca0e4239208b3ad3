"""Reads the arguments of linear operations as they arrive from torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.operations import tensors_in
from lightning_xai.relevance.call import Call, is_added, is_live
from lightning_xai.relevance.maps import Convolution, Dense, LinearMap, Product


@dataclass(frozen=True, eq=False)
class LinearCall:
    """A call of a linear operation.

    Attributes:
        map: The operation for any weights.
        x: Its input.
        weight: Its weights.
        bias: Its bias, one per output channel.
        rewritten: The same call in other operations, where it is no plain linear one; the rest then is not used.
    """

    map: LinearMap
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    rewritten: Callable[[], Any] | None = None

    def per_output(self, scale: Tensor) -> Tensor | None:
        """A factor per output channel, shaped like the axes of the weight; None if the outputs are no channels."""
        if isinstance(self.map, Dense):
            return scale.view(-1, 1)
        if not isinstance(self.map, Convolution):
            return None
        ones = [1] * (self.weight.ndim - 2)
        if not self.map.transposed:
            return scale.view(-1, 1, *ones)
        groups = self.map.groups
        inner = self.weight.shape[0] // groups
        return scale.view(groups, 1, -1, *ones).expand(groups, inner, -1, *ones).reshape(groups * inner, -1, *ones)


def linear_call(call: Call) -> LinearCall | None:
    """Read a call of a linear operation; None if its weights depend on the input, too."""
    name = call.operation.name
    if not name.startswith(("conv", "linear")):
        return _matrix_product(call)
    named = call.named()
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    if is_live(weight) or is_live(bias):
        return None
    return LinearCall(Dense(), x, weight, bias) if name == "linear" else _convolution(name, named)


def _convolution(name: str, named: dict[str, Any]) -> LinearCall:
    function, transposed = getattr(functional, name), "transpose" in name
    x, weight, axes = named["input"], named["weight"], named["weight"].ndim - 2
    stride, dilation = (_per_axis(named.get(key, 1), axes) for key in ("stride", "dilation"))
    output_padding = _per_axis(named.get("output_padding", 0), axes)
    padding = named.get("padding", 0)
    rewritten: Callable[[], Any] | None = None
    if padding == "valid":
        padding = 0
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = tuple(total // 2 for total in totals)
        if any(total % 2 for total in totals):
            sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]

            def rewritten() -> Any:
                return function(**{**named, "input": functional.pad(x, sides), "padding": 0})

    if x.ndim == weight.ndim - 1:

        def rewritten() -> Any:
            return function(**{**named, "input": x.unsqueeze(0)}).squeeze(0)

    extra = output_padding if transposed else ()
    settings = Convolution(stride, _per_axis(padding, axes), dilation, named.get("groups", 1), transposed, extra)
    return LinearCall(settings, x, weight, named.get("bias"), rewritten)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    return numbers * axes if len(numbers) == 1 else numbers


def _matrix_product(call: Call) -> LinearCall | None:
    name, args, kwargs = call.operation.name, call.args, call.kwargs
    if is_added(name):
        added, *factors = args[:3]
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        plain = name == "addmm" and beta == alpha == 1 and not is_live(added) and added.ndim == 1
        if plain and is_live(factors[0]):
            return LinearCall(Dense(), factors[0], factors[1].t(), added)

        def multiply(first: Tensor, second: Tensor) -> Tensor:
            product: Tensor = alpha * torch.matmul(first, second)
            return product.sum(0) if name == "addbmm" else product

        def rewritten() -> Tensor:
            found: Tensor = beta * added + multiply(*factors)
            return found

        if is_live(added) or all(map(is_live, factors)):
            return LinearCall(Dense(), factors[0], factors[1], None, rewritten)
        if is_live(factors[0]):
            return LinearCall(Product(multiply), factors[0], factors[1], beta * added)
        swapped = Product(lambda values, weights: multiply(weights, values))
        return LinearCall(swapped, factors[1], factors[0], beta * added)
    constants = [tensor for tensor in tensors_in([args, kwargs]) if not is_live(tensor)]
    if len(constants) != 1 or len(call.live) != 1:
        return None
    (weight,), (x,) = constants, call.live
    if name in ("matmul", "mm") and args[0] is x and weight.ndim == 2:
        return LinearCall(Dense(), x, weight.t(), None)

    def swap(argument: Any, values: Tensor, weights: Tensor) -> Any:
        if isinstance(argument, tuple | list):
            return type(argument)(swap(part, values, weights) for part in argument)
        return values if argument is x else weights if argument is weight else argument

    def apply(values: Tensor, weights: Tensor) -> Tensor:
        named = {key: swap(value, values, weights) for key, value in kwargs.items()}
        found: Tensor = call.func(*swap(args, values, weights), **named)
        return found

    return LinearCall(Product(apply), x, weight, None)
