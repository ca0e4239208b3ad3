"""The autograd functions whose backward passes are rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_xai.operations import operation_name, tensors_in
from lightning_xai.relevance.records import Kept


class Linear(torch.autograd.Function):
    """A linear operation; the backward is its record's rule, into the input or the receiver beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, receiver: Tensor | None, record: Any, run: Callable[[], Tensor]) -> Tensor:
        """The operation itself."""
        ctx.record = record
        ctx.save_for_backward(x)
        return run()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """R / x to the input, or R to the receiver."""
        found = ctx.record.propagate(*ctx.saved_tensors, grads[0])
        return (found, None, None, None) if ctx.record.rule.multiplies else (None, found, None, None)


class Scaled(torch.autograd.Function):
    """The identity; the backward multiplies by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """The same values."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """A share."""
        return grads[0] * ctx.factor, None


class Ratio(torch.autograd.Function):
    """A function of single numbers; the backward multiplies by (f(x) - f(0)) / x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], at_zero: tuple[float, float]) -> Tensor:
        """The function itself."""
        y = run(x)
        ctx.save_for_backward(_ratio(x, y, *at_zero))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Relevance as it is."""
        (ratio,) = ctx.saved_tensors
        return grads[0] * ratio, None, None


class Handed(torch.autograd.Function):
    """A function of the single numbers of a linear operation's output.

    If nothing else reads the output, the backward leaves it to the operation to multiply by f(x) - f(0), which is the
    relevance then, else it multiplies by (f(x) - f(0)) / x. If one linear operation alone reads the result,
    ``received`` tells whether what it hands down may be written to.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], facts: tuple[Any, ...], rectifies: bool, writes: bool
    ) -> Tensor:
        """The function itself; ``facts`` are the operation's record, the place for its own output, f(0) and f'(0)."""
        ctx.facts, ctx.rectifies, ctx.received = facts, rectifies, None
        if writes:
            ctx.mark_dirty(x)
        ctx.save_for_backward(x.new_empty(0))  # of no shape that an activation saves: recomputing it is found out
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Relevance as it is."""
        record, kept, (value, slope) = ctx.facts
        y, (g,), _ = kept.read(), grads, ctx.saved_tensors
        if record.takes_relevance():
            record.activation_output, record.rectified = y if value == 0 else y - value, ctx.rectifies
            record.owns_gradient = ctx.received is not None and ctx.received.fresh
            return g, None, None, None, None
        if record.y.shape != y.shape:
            raise RuntimeError(f"the output of {record.operation} was read in a way that was not seen.")
        return g * _ratio(record.y, y, value, slope), None, None, None, None


class Rectified(torch.autograd.Function):
    """A function of single numbers; the backward keeps what is positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """The function itself."""
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """max(g, 0)."""
        return grads[0].clamp(min=0), None


class FixedNorm(torch.autograd.Function):
    """A normalisation; the backward takes what it divides by for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[], tuple[Tensor, Tensor]], dims: tuple[int, ...]) -> Tensor:
        """The normalisation itself; ``run`` gives its output and the constant factor."""
        y, factor = run()
        ctx.dims, ctx.shape = dims, x.shape
        ctx.save_for_backward(factor)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The transposed centring and scaling."""
        (factor,) = ctx.saved_tensors
        found = grads[0] * factor
        if ctx.dims:
            groups = found.reshape(ctx.dims[0]) if isinstance(ctx.dims[0], torch.Size) else found
            dims = ctx.dims[1:] if isinstance(ctx.dims[0], torch.Size) else ctx.dims
            found = (groups - groups.mean(dims, keepdim=True)).reshape(ctx.shape)
        return found, None, None


def _ratio(x: Tensor, y: Tensor, value: float, slope: float) -> Tensor:
    """(f(x) - f(0)) / x, f'(0) at 0."""
    if value == 0:
        return torch.div(y, x).nan_to_num_(nan=slope)
    # Near 0 the quotient is all rounding; there the slope at 0 is nearer.
    tiny = x.abs() < 1e-3 * math.sqrt(torch.finfo(x.dtype).eps)
    return torch.where(tiny, slope, (y - value) / torch.where(tiny, 1.0, x))


def relevance_sum(x: Tensor, g: Tensor) -> Tensor:
    """The sum of x g, where a masked score of minus infinity has none."""
    return torch.where(g == 0, 0.0, x * g).sum()


def on_gradient(tensor: Tensor, hook: Callable[[Any], Tensor | None]) -> None:
    """Show a tensor's gradient to a function, which may replace it."""
    tensor.register_hook(hook)  # type: ignore[no-untyped-call]


class Tap(torch.autograd.Function):
    """The identity; the backward notes the relevance that passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, note: Callable[[Tensor], None]) -> Tensor:
        """The same values."""
        ctx.note = note
        ctx.value = x.detach().clone()  # its own, which nothing writes to
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The same relevance."""
        ctx.note(relevance_sum(ctx.value, grads[0]))
        return grads[0], None


_FUNCTIONS: tuple[Any, ...] = (Linear, Scaled, Ratio, Handed, Rectified, FixedNorm, Tap)
OURS = tuple(function._backward_cls for function in _FUNCTIONS)
HANDED: Any = Handed._backward_cls


def _written(x: Tensor, y: Tensor, writes: bool) -> Tensor:
    return x.copy_(y) if writes else y


def passed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, homogeneous: bool, writes: bool) -> Tensor:
    """A function of single numbers through which relevance passes as it is, apart from the value at 0."""
    if homogeneous:
        found: Tensor = func(*args, **kwargs)
        return found
    x = args[0]

    def run(values: Tensor) -> Tensor:
        y: Tensor = func(values.clone() if writes else values, *args[1:], **kwargs)
        return y

    return _written(x, Ratio.apply(x, run, _at_zero(func, args, kwargs)), writes)


_BOUNDED: dict[str, tuple[tuple[str, float | None], ...]] = {
    "hardtanh": (("min_val", -1.0), ("max_val", 1.0)),
    "clamp": (("min", None), ("max", None)),
    "clip": (("min", None), ("max", None)),
    "clamp_min": (("min", None),),
}
"""Functions that keep numbers between two bounds: the names of those, and what they are unless given."""


def plain_name(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The name of an operation; a ReLU has its own also where it is written as ``clamp`` or ``hardtanh`` (nn.ReLU6)."""
    name = operation_name(func)
    bounds = _bounds(name, args, kwargs)
    return "relu" if bounds == (0, None) else "relu6" if bounds == (0, 6) else name


def _bounds(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float | None, float | None]:
    """The numbers between which a function keeps its results; None for no bound, and for those of other functions."""
    asked = enumerate(_BOUNDED.get(name, ()), start=1)
    given = [args[place] if len(args) > place else kwargs.get(key, default) for place, (key, default) in asked]
    low, high = (*given, None, None)[:2]
    return (None, None) if isinstance(low, Tensor) or isinstance(high, Tensor) else (low, high)


def is_rectifier(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of single numbers is 0 wherever they are negative, and never negative."""
    name = operation_name(func)
    low, high = _bounds(name, args, kwargs)
    return name in ("relu", "relu6") or (low == 0 and (high is None or high >= 0))


def _exceeds(values: Tensor, bound: float) -> bool:
    return values.numel() > 0 and not bool(values.amax() <= bound)  # NaN exceeds everything


def handed(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], record: Any, *, writes: bool
) -> tuple[Tensor, Kept]:
    """A function of the single numbers of a linear operation's output, and what is kept of its own output."""
    kept = Kept()
    name, rectifies = plain_name(func, args, kwargs), is_rectifier(func, args, kwargs)
    # Where ReLU changes a number no relevance arrives: its result serves as the output, too.
    serves = writes and record.readers == 1 and name == "relu"
    if writes and not serves and not (record.readers == 1 and record.drop_unread(rectified=rectifies)):
        # A ReLU6 that cuts nothing off is a ReLU; to see that takes less than to copy what it would write over.
        serves = record.readers == 1 and name == "relu6" and not _exceeds(args[0].detach(), 6)
        if not serves:
            record.protect()

    def run(values: Tensor) -> Tensor:
        y: Tensor = func(values, *args[1:], **kwargs)
        return y

    y = Handed.apply(args[0], run, (record, kept, _at_zero(func, args, kwargs)), rectifies, writes)
    kept.keep(y)
    if writes:
        record.written = True
        if serves:
            record.keep(y)
    return y, kept


_zeros: dict[Any, tuple[float, float]] = {}


def _at_zero(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    """f(0) and f'(0); 0 where they are not finite or differ from number to number."""
    if tensors_in([args[1:], kwargs]):
        return (0.0, 0.0)
    key = (func, args[1:], tuple(sorted(kwargs.items())))
    known = _zeros.get(key)
    if known is None:
        with torch.enable_grad():
            zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            value = func(zero.clone(), *args[1:], **kwargs)
            (slope,) = torch.autograd.grad(value, zero) if value.requires_grad else (zero,)
        known = _zeros[key] = (_finite(value), _finite(slope))
    return known


def _finite(number: Tensor) -> float:
    found = float(number.detach())
    return found if math.isfinite(found) else 0.0


def rectified(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool) -> Tensor:
    """A function of single numbers whose backward keeps what is positive."""

    def run(values: Tensor) -> Tensor:
        y: Tensor = func(values.clone() if writes else values, *args[1:], **kwargs)
        return y

    return _written(args[0], Rectified.apply(args[0], run), writes)


def shared(tensor: Any, factor: float) -> Any:
    """A factor of a product, with its share of the relevance."""
    return Scaled.apply(tensor, factor) if isinstance(tensor, Tensor) and tensor.requires_grad else tensor


def attention_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Queries, keys and values with their shares: two products, each of which halves if both factors count."""
    names = ("query", "key", "value")
    given = {name: args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)}
    live = {name: isinstance(given[name], Tensor) and given[name].requires_grad for name in names}
    weights_live = live["query"] or live["key"]
    outer = 0.5 if weights_live and live["value"] else 1.0
    inner = 0.5 if live["query"] and live["key"] else 1.0
    shares = {"query": outer * inner, "key": outer * inner, "value": outer}
    found = {name: shared(given[name], shares[name]) for name in names}
    rest = {name: value for name, value in kwargs.items() if name not in names}
    return (*found.values(), *args[3:]), rest


def normalised(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A normalisation whose divisor counts as a constant."""
    x = args[0]

    def given(position: int, key: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(key, default)

    if name in ("layer_norm", "rms_norm"):
        shape = given(1, "normalized_shape", None)
        dims = tuple(range(-len(shape), 0))
        weight, centred = given(2, "weight", None), name == "layer_norm"
        eps = given(4 if centred else 3, "eps", None if not centred else 1e-5)
        return FixedNorm.apply(
            x, lambda: _last(func, args, kwargs, (dims, weight, eps, centred)), dims if centred else ()
        )
    if name in ("group_norm", "instance_norm", "batch_norm"):
        per = x.unsqueeze(0) if name == "instance_norm" and x.ndim == 2 else x
        groups = given(1, "num_groups", 1) if name == "group_norm" else per.shape[1]
        position = 2 if name == "group_norm" else 3
        weight, eps = given(position, "weight", None), kwargs.get("eps", 1e-5)
        if name == "batch_norm":
            grouped, dims = x.shape, (0, *range(2, x.ndim))
        else:
            grouped, dims = torch.Size((per.shape[0], groups, per[0, 0].numel() * per.shape[1] // groups)), (2,)
        run = _grouped(func, args, kwargs, (grouped, dims, weight, eps))
        return FixedNorm.apply(x, run, (torch.Size(grouped), *dims))
    return stretched(func, args, kwargs)


def _last(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], facts: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    dims, weight, eps, centred = facts
    x, y = args[0], func(*args, **kwargs)
    if centred:
        shape = x.shape[dims[0] :]
        factor = torch.native_layer_norm(x, shape, None, None, eps)[2]  # several times faster than x.var()
    else:
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        factor = torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    return y, factor if weight is None else factor * weight


def _grouped(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], facts: tuple[Any, ...]
) -> Callable[[], tuple[Tensor, Tensor]]:
    grouped, dims, weight, eps = facts
    x = args[0]

    def run() -> tuple[Tensor, Tensor]:
        groups = x.reshape(grouped)
        factor = torch.rsqrt(groups.var(dims, correction=0, keepdim=True) + eps)
        factor = factor.expand(groups.shape).reshape(x.shape)
        if weight is not None:
            factor = factor * weight.view(-1, *[1] * (x.ndim - (2 if x.ndim > 1 else 1)))
        return func(*args, **kwargs), factor

    return run


def stretched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function taken for a stretch of each number, through which relevance passes as it is."""
    return FixedNorm.apply(args[0], lambda: _quotient(func, args, kwargs), ())


def _quotient(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The factor of a function x -> x c(x), as the quotient of the two."""
    x, y = args[0], func(*args, **kwargs)
    return y, torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x))


def nodes_behind(tensor: Tensor) -> Iterator[Any]:
    """The nodes of the graph behind a tensor."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
            yield node
