"""Reads the arguments of linear operations as they arrive from torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.operations import operation_name, tensors_in
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


_ORDER = {
    False: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    True: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


def linear_call(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LinearCall | None:
    """What a call of a linear operation says; None if its weights depend on the input, too."""
    if name.startswith("conv"):
        return _convolution(func, name, args, kwargs)
    if name == "linear":
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        bias = given.get("bias")
        if _live(given["weight"]) or _live(bias):
            return None
        return LinearCall(Dense(), given["input"], given["weight"], bias)
    return _matrix_product(func, name, args, kwargs)


def _live(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.requires_grad


def _convolution(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LinearCall | None:
    transposed = "transpose" in name
    given = {**_DEFAULTS, **dict(zip(_ORDER[transposed], args, strict=False)), **kwargs}
    x, weight, bias = given["input"], given["weight"], given["bias"]
    if _live(weight) or _live(bias):
        return None
    axes = weight.ndim - 2
    per_axis = {key: _axes(given[key], axes) for key in ("stride", "dilation", "output_padding") if key in given}
    padding = given["padding"]
    rewritten: Callable[[], Any] | None = None
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(per_axis["dilation"], weight.shape[2:], strict=True)]
        padding = tuple(total // 2 for total in totals)
        if any(total % 2 for total in totals):
            sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
            rest = (given["stride"], 0, given["dilation"], given["groups"])
            rewritten = partial(_padded, func, x, sides, weight, bias, *rest)
    if x.ndim == weight.ndim - 1:
        rest = tuple(given[key] for key in _ORDER[transposed][3:])
        rewritten = partial(_unbatched, func, x, weight, bias, *rest)
    settings = Convolution(
        per_axis["stride"],
        _axes(padding, axes),
        per_axis["dilation"],
        given["groups"],
        transposed,
        per_axis["output_padding"] if transposed else (),
    )
    return LinearCall(settings, x, weight, bias, rewritten)


def _padded(func: Any, x: Tensor, sides: Sequence[int], *rest: Any) -> Tensor:
    found: Tensor = func(functional.pad(x, sides), *rest)
    return found


def _unbatched(func: Any, x: Tensor, *rest: Any) -> Tensor:
    found: Tensor = func(x.unsqueeze(0), *rest)
    return found.squeeze(0)


def _axes(value: Any, axes: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    return numbers * axes if len(numbers) == 1 else numbers


def _matrix_product(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LinearCall | None:
    if name.startswith("add") or name == "baddbmm":
        added, *factors = args[:3]
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        plain = name == "addmm" and beta == alpha == 1 and not _live(added) and added.ndim == 1
        if plain and _live(factors[0]):
            return LinearCall(Dense(), factors[0], factors[1].t(), added)
        forward_by_sign = name == "addbmm"

        def rewritten() -> Tensor:
            product: Tensor = torch.matmul(*factors)
            found: Tensor = beta * added + alpha * (product.sum(0) if forward_by_sign else product)
            return found

        return LinearCall(Dense(), factors[0], factors[1], None, rewritten)
    tensors = tensors_in([args, kwargs])
    constants = [tensor for tensor in tensors if not tensor.requires_grad]
    if len(constants) != 1 or len(tensors) != 2:
        return None
    (weight,) = constants
    (x,) = (tensor for tensor in tensors if tensor.requires_grad)
    if name in ("matmul", "mm") and args[0] is x and weight.ndim == 2:
        return LinearCall(Dense(), x, weight.t(), None)

    def swap(argument: Any, values: Tensor, weights: Tensor) -> Any:
        if isinstance(argument, tuple | list):
            return type(argument)(swap(part, values, weights) for part in argument)
        return values if argument is x else weights if argument is weight else argument

    def apply(values: Tensor, weights: Tensor) -> Tensor:
        found: Tensor = func(*swap(args, values, weights), **{k: swap(v, values, weights) for k, v in kwargs.items()})
        return found

    return LinearCall(Product(apply), x, weight, None)


_BATCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")


def as_functional(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A batch norm of torch itself as a call of ``functional.batch_norm``, whose arguments have another order."""
    if operation_name(func) != "batch_norm" or func is functional.batch_norm:
        return func, args, kwargs
    given = {**dict(zip(_BATCH_NORM, args, strict=False)), **kwargs}
    rest = {name: given[name] for name in ("weight", "bias", "training", "momentum", "eps")}
    return functional.batch_norm, tuple(given[name] for name in ("input", "running_mean", "running_var")), rest


def statistics_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a call of batch_norm."""
    given = {**dict(zip(("input", "running_mean", "running_var"), args, strict=False)), **kwargs}
    return given["running_mean"], given["running_var"]


_FACTORS = {"linear": 2, "bilinear": 2}


def product_arguments(name: str, args: tuple[Any, ...], share: Callable[[Any, float], Any]) -> tuple[Any, ...] | None:
    """The arguments of a product of values, each factor with its share; None if there is no rule for this one."""
    if name in ("rdiv", "rtruediv"):
        return (args[0].detach(), *args[1:])
    if name in ("div", "divide", "true_divide", "truediv", "itruediv"):
        return (args[0], args[1].detach() if isinstance(args[1], Tensor) else args[1], *args[2:])
    if name == "prod" or (name == "lerp" and _live(args[2])):
        return None
    if name == "lerp":
        return args
    if name == "addcdiv":
        return (args[0], args[1], args[2].detach() if isinstance(args[2], Tensor) else args[2], *args[3:])
    start = 1 if name.startswith("add") or name == "baddbmm" else 0
    end = start + 2 if name != "einsum" and name != "multi_dot" else len(args)
    factors = args[start:end]
    count = sum(tensor.requires_grad for tensor in tensors_in(factors))
    if count < 2:
        return args
    shares = tuple(
        type(factor)(share(part, 1 / count) for part in factor)
        if isinstance(factor, tuple | list)
        else share(factor, 1 / count)
        for factor in factors
    )
    return (*args[:start], *shares, *args[end:])


def swapped(argument: Any, others: dict[int, Tensor]) -> Any:
    """An argument with other tensors in the place of some."""
    if isinstance(argument, tuple | list):
        return type(argument)(swapped(part, others) for part in argument)
    return others.get(id(argument), argument)
