"""The autograd functions whose backward passes are rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_xai.operations import tensors_in


class RelevanceFunction(torch.autograd.Function):
    """The base of all functions of this package: by it the nodes of a graph are told from those of a model."""


class Rewired(RelevanceFunction):
    """A function of one tensor whose backward is given beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[..., Any], backward: Callable[..., Tensor]) -> Tensor:
        """The function itself: ``run(x)`` gives its result, and the tensors that the backward needs."""
        y, saved = run(x)
        ctx.rule = backward
        ctx.save_for_backward(*saved)
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """``backward(g, *saved)``."""
        return ctx.rule(grads[0], *ctx.saved_tensors), None, None


class Linear(RelevanceFunction):
    """A linear operation; the backward is its record's rule, into the input or the receiver beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, receiver: Tensor | None, record: Any, run: Callable[[], Tensor]) -> Tensor:
        """The operation itself."""
        ctx.record = record
        ctx.save_for_backward(x)
        y = run()
        return y.clone() if y._is_view() else y  # into views of what `einsum` makes here a model could not write

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """R / x to the input, or R to the receiver."""
        found = ctx.record.propagate(*ctx.saved_tensors, grads[0])
        return (found, None, None, None) if ctx.record.rule.multiplies else (None, found, None, None)


def scaled(x: Tensor, share: float) -> Tensor:
    """Return the values unchanged; in the backward pass they hand on a share of what they get."""
    found: Tensor = Rewired.apply(x, lambda x: (x.view_as(x), ()), lambda g: g * share)
    return found


def tapped(x: Tensor, note: Callable[[Tensor], None]) -> Tensor:
    """Return a copy of the values; the relevance that passes is noted."""
    value = x.detach().clone()  # its own, which nothing writes to

    def noted(g: Tensor) -> Tensor:
        note(relevance_sum(value, g))
        return g

    found: Tensor = Rewired.apply(x, lambda x: (x.clone(), ()), noted)
    return found


def relevance_sum(x: Tensor, g: Tensor) -> Tensor:
    """The sum of x g, where a masked score of minus infinity has none."""
    if x.is_complex():  # real and imaginary part have a relevance each
        x, g = torch.view_as_real(x.resolve_conj()), torch.view_as_real(g.resolve_conj())
    return torch.where(g == 0, 0.0, x * g).sum()


def function_of(node: Any) -> type[torch.autograd.Function] | None:
    """The autograd function, written in Python, that made a node of the graph; None for those of torch itself."""
    found: type[torch.autograd.Function] | None = getattr(type(node), "_forward_cls", None)
    return found


def is_undifferentiable(node: Any) -> bool:
    """Whether a node of the graph stands for an operator without a derivative, whose gradient would be zero."""
    return bool(node.name().endswith("NotImplemented"))


_at_zero: dict[Any, tuple[float, float]] = {}


def at_zero(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    """f(0) and f'(0) of a function of single numbers; 0 where they are not finite or differ from number to number."""
    if tensors_in([args[1:], kwargs]):
        return (0.0, 0.0)
    key = (func, args[1:], tuple(sorted(kwargs.items())))
    if key not in _at_zero:
        with torch.enable_grad():
            zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            value = func(zero.clone(), *args[1:], **kwargs)
            (slope,) = torch.autograd.grad(value, zero) if value.requires_grad else (zero,)
        found = (float(value.detach()), float(slope.detach()))
        _at_zero[key] = (found[0] if math.isfinite(found[0]) else 0.0, found[1] if math.isfinite(found[1]) else 0.0)
    return _at_zero[key]


def passing_factor(x: Tensor, y: Tensor, value: float, slope: float) -> Tensor:
    """(f(x) - f(0)) / x, f'(0) at 0, by which g passes a function of single numbers."""
    if value == 0:
        return torch.div(y, x).nan_to_num_(nan=slope)
    # Near 0 the quotient is all rounding; there the slope at 0 is nearer.
    tiny = x.abs() < 1e-3 * math.sqrt(torch.finfo(x.dtype).eps)
    return torch.where(tiny, slope, (y - value) / torch.where(tiny, 1.0, x))
