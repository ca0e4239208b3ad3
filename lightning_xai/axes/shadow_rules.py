"""How the operations of a forward pass move coordinate shadows: a rule per kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_xai.axes.means import (
    along_space,
    expands,
    filled,
    mean,
    per_axis,
    pool,
    resized,
    spread,
    spread_windows,
    valid_mean,
    varies,
    windows,
)
from lightning_xai.operations import tensors_in
from lightning_xai.operations.kinds import KINDS, arguments, is_in_place, kind_of, operation_name
from lightning_xai.resizing import resize


@dataclass(frozen=True)
class ShadowCall:
    """An operation as one component of the shadows meets it.

    Attributes:
        func: The function of torch.
        args: Its arguments, the first ones by position.
        kwargs: The others.
        results: The tensors that it has returned.
        of: Gives the component of a tensor; None for a constant.
        is_row: Whether the component is the row.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    of: Callable[[Any], Tensor | None]
    is_row: bool

    @property
    def name(self) -> str:
        """The plain name of the function."""
        return operation_name(self.func)

    @property
    def shape(self) -> torch.Size:
        """The shape of the first result."""
        return self.results[0].shape


Rule = Callable[[ShadowCall], "Tensor | Sequence[Tensor] | None"]
"""Gives the component of the results of a call; None where it cannot be told."""


def rule_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    """The rule for an operation; None where there is none."""
    name, kind = operation_name(func), kind_of(func)
    second = args[1] if len(args) > 1 else None
    if name in _REDUCING and not isinstance(second, Tensor):
        return None if name in ("max", "min", "median") and is_in_place(func, kwargs) else reduced
    return _BY_NAME.get(name, _BY_KIND.get(kind or ""))


# The rules


def elementwise(call: ShadowCall) -> list[Tensor] | None:
    """The operand that varies most: what is pooled and broadcast, such as a gate, varies less."""
    shadows = [shadow for tensor in tensors_in([call.args, call.kwargs]) if (shadow := call.of(tensor)) is not None]
    if not all(expands(shadow.shape, call.shape) for shadow in shadows):
        return None
    best = max(shadows, key=spread) if len(shadows) > 1 else shadows[0]
    if call.is_row:  # a class token is a constant that belongs to a row once it is added to something that does
        for shadow in shadows:
            best = best if shadow is best else filled(best, shadow)
    return [best.expand(call.shape)] * len(call.results)


def moved(call: ShadowCall) -> Any:
    """Repeat the call on the shadow, in which constants are NaN."""
    first = call.args[0] if call.args else None

    def shadow(value: Any) -> Any:
        if isinstance(value, tuple | list):
            parts = [shadow(part) for part in value]
            return type(value)(parts) if type(value) in (tuple, list) else parts
        if not isinstance(value, Tensor):
            return value
        found = call.of(value)
        if found is None:  # indices and masks stay
            return missing_like(call, value) if value.is_floating_point() or value is first else value
        return found if value.is_floating_point() or value is first else value

    args, kwargs = shadow(call.args), {key: shadow(value) for key, value in call.kwargs.items()}
    if call.name in _NAMELESS_VALUE:
        args, kwargs = _NAMELESS_VALUE[call.name](args, kwargs)
    if is_in_place(call.func, call.kwargs):
        args = (args[0].clone(), *args[1:])
    result = call.func(*args, **kwargs)
    return args[0] if call.name == "setitem" else tensors_in(result)


def reshaped(call: ShadowCall) -> Tensor | None:
    """The shadow in the shape of the result; it may lie in memory in a way that `view` would refuse."""
    found = call.of(call.args[0])
    return None if found is None or found.numel() != call.results[0].numel() else found.reshape(call.shape)


def kept(call: ShadowCall) -> Tensor | None:
    """The shadow of the first argument."""
    found = call.of(call.args[0])
    return None if found is None else found.to(call.results[0].device)


def reduced(call: ShadowCall) -> list[Tensor] | None:
    """The mean over the axes that a sum, mean, maximum or statistic is taken over."""
    found = call.of(call.args[0])
    if found is None:
        return None
    given = call.args[2 if call.name in ("norm", "vector_norm") else 1 :][:1]
    axes = call.kwargs.get("dim", call.kwargs.get("axis", given[0] if given else None))
    if axes is None or isinstance(axes, bool):
        found = found if call.shape == found.shape else found.nanmean()
        return [found.expand(call.shape)] * len(call.results)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in axes:
        found = mean(found, axis)
    return [found.expand(call.shape) if found.ndim == len(call.shape) else found.reshape(call.shape)] * len(
        call.results
    )


def scattered(call: ShadowCall) -> list[Tensor] | None:
    """The mean along the axis that a sort puts into an order of its own."""
    found, where = call.of(call.args[0]), 2 if call.name == "topk" else 1
    if found is None:
        return None
    axis = call.kwargs.get("dim", call.args[where] if len(call.args) > where else -1)
    return [mean(found, axis).expand(call.shape)] * len(call.results)


def contracted(call: ShadowCall) -> Tensor | None:
    """The mean over the last axis, spread over the one that a linear layer makes."""
    found = call.of(call.args[0])
    return None if found is None else mean(found, -1).expand(call.shape)


def multiplied(call: ShadowCall) -> Tensor | None:
    """Rows of the first factor if it varies there (queries; scores times values), else columns of the second."""
    first, second = _factors(call)
    if first.ndim < 2 or second.ndim < 2:
        return None
    return _product(call, call.of(first), call.of(second))


def attended(call: ShadowCall) -> Tensor | None:
    """The queries' shadow, as in a product of scores and values."""
    given = arguments(call.func, call.args, call.kwargs)
    return _product(call, call.of(given["query"]), call.of(given["value"]))


def missing_like(call: ShadowCall, tensor: Tensor) -> Tensor:
    """The shadow of a constant."""
    known = next(found for part in tensors_in([call.args, call.kwargs]) if (found := call.of(part)) is not None)
    return torch.full((), float("nan"), dtype=known.dtype, device=tensor.device).expand(tensor.shape)


def _factors(call: ShadowCall) -> tuple[Tensor, Tensor]:
    first, second = call.args[1:3] if call.name in ("addmm", "baddbmm") else call.args[:2]
    return (second, first) if call.name == "rmatmul" else (first, second)


def _product(call: ShadowCall, first: Tensor | None, second: Tensor | None) -> Tensor | None:
    rows = None if first is None else mean(first, -1)
    columns = None if second is None else mean(second, -2)
    if rows is None or columns is None:
        best = columns if rows is None else rows
    elif varies(rows, -2) or not varies(columns, -1):
        # A class token is of no place, but belongs to a row.
        best = filled(rows, columns) if call.is_row else rows
    else:
        best = columns
    return None if best is None else best.expand(call.shape)


def embedded(call: ShadowCall) -> Tensor | None:
    """The shadow of the ids, spread over the last axis."""
    ids = [call.of(tensor) for tensor in call.args[:2] if not tensor.is_floating_point()]
    return None if len(ids) != 1 or ids[0] is None else ids[0].unsqueeze(-1).expand(call.shape)


def recurrent(call: ShadowCall) -> list[Tensor] | None:
    """The steps' shadow, for the output of all steps alone."""
    found = call.of(call.args[0])
    if found is None or found.ndim != 3 or call.results[0].shape[:2] != found.shape[:2]:
        return None
    rest = [torch.full(part.shape, float("nan"), dtype=found.dtype, device=found.device) for part in call.results[1:]]
    return [mean(found, -1).expand(call.shape), *rest]


def convolved(call: ShadowCall) -> Tensor | None:
    """The weighted mean over the kernel, and over the channels."""
    found, given = call.of(call.args[0]), arguments(call.func, call.args, call.kwargs)
    axes = int(call.name[-2])
    if found is None or len(call.shape) != axes + 2:
        return None
    kernel = tuple(given["weight"].shape[2:])
    make = spread_windows if "transpose" in call.name else windows
    return along_space(mean(found, 1), call.shape, make(call.shape, kernel, given))


def pooled(call: ShadowCall) -> list[Tensor] | None:
    """The weighted mean over the window, channel by channel."""
    found, given = call.of(call.args[0]), arguments(call.func, call.args, call.kwargs)
    axes = int(call.name.removesuffix("_with_indices")[-2])
    if found is None or len(call.shape) != axes + 2:
        return None
    kernel = per_axis(given.get("kernel_size", 1), axes)
    given = {**given, "stride": given.get("stride") or kernel}
    combine = resized(call.shape, pool) if "adaptive" in call.name else windows(call.shape, kernel, given)
    return [along_space(found, call.shape, combine)] * len(call.results)


def interpolated(call: ShadowCall) -> Tensor | None:
    """Linear interpolation, whatever the mode, so that neighbours stay apart."""
    found = call.of(call.args[0])
    if found is None or not 3 <= len(call.shape) <= 5:
        return None
    return along_space(found, call.shape, resized(call.shape, resize))


def folded(call: ShadowCall) -> Tensor | None:
    """Repeat the call and divide by its result for ones: the mean of what falls together."""
    found = call.of(call.args[0])
    return None if found is None else valid_mean(found, lambda v: call.func(v, *call.args[1:], **call.kwargs))


_BY_KIND: dict[str, Rule] = {
    **dict.fromkeys(("activation", "softmax", "affine_norm", "norm", "sum", "product", "statistic"), elementwise),
    **dict.fromkeys(("identity", "dropout"), kept),
    "linear": contracted,
    "convolution": convolved,
    "attention": attended,
    "embedding": embedded,
    "recurrent": recurrent,
    "reshape": moved,
    "concatenation": moved,
}
_RULES_OF_NAMES: dict[str, Rule | None] = {
    "view view_as reshape reshape_as flatten unflatten ravel": reshaped,
    "masked_fill tril triu contiguous nan_to_num": kept,
    "matmul rmatmul mm bmm addmm baddbmm": multiplied,
    "maximum minimum max min": elementwise,
    "topk sort": scattered,
    "interpolate upsample upsample_nearest upsample_bilinear": interpolated,
    "fold unfold": folded,
    " ".join(name for name in KINDS["pooling"].names if name.startswith(("max_pool", "avg_pool", "adaptive"))): pooled,
    # What brings in zeros, or puts numbers where their shapes do not say, is not followed.
    "as_strided as_strided_scatter pad_sequence pad_packed_sequence diag diagflat diag_embed block_diag meshgrid": None,
    "fill_diagonal cartesian_prod combinations scatter_add index_add outer ger kron embedding_bag": None,
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell": None,
}
_BY_NAME = {name: rule for names, rule in _RULES_OF_NAMES.items() for name in names.split()}
_FIRST = "conv#d conv_transpose#d batch_norm group_norm instance_norm"
_LAST = "linear layer_norm rms_norm embedding lstm gru rnn_tanh rnn_relu"
UNIT_AXES = {
    name.replace("#", axes): place
    for names, place in ((_FIRST, 1), (_LAST, -1))
    for name in names.split()
    for axes in "123"
}
"""On which axis the functions that know units put them."""
_REDUCTIONS = """sum nansum mean nanmean prod amax amin max min median var std var_mean std_mean norm vector_norm
logsumexp"""
_REDUCING = frozenset(_REDUCTIONS.split())


def _nan_in(place: int, key: str) -> Callable[[Any, Any], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Replace a number that an operation writes by NaN, as it is a constant."""

    def replace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(args) > place:
            value = args[place] if isinstance(args[place], Tensor) else float("nan")
            return (*args[:place], value, *args[place + 1 :]), kwargs
        return args, kwargs if isinstance(kwargs.get(key), Tensor) else {**kwargs, key: float("nan")}

    return replace


def _where(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    parts = [part if isinstance(part, Tensor) else float("nan") for part in args[1:3]]
    return (args[0], *parts), kwargs


def _pad(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    return (*args[:2], mode), {"value": float("nan")} if mode == "constant" else {}


_NAMELESS_VALUE = {
    "where": _where,
    "pad": _pad,
    "constant_pad_nd": _nan_in(2, "value"),
    "setitem": _nan_in(2, "value"),
    "fill": _nan_in(1, "value"),
    "zero": lambda args, kwargs: (args, kwargs),
    "index_fill": _nan_in(3, "value"),
    "scatter": _nan_in(3, "src"),
}
