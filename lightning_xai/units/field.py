r"""Receptive fields: which cells of the input a position of a layer can read, by the geometry of the operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._checks import check_inputs
from lightning_xai._guard import detach_for_autograd, forward_context, hook_outputs, isolated_eval
from lightning_xai.axes.layout import unplaced
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import Operations, tensors_in, unwrapped
from lightning_xai.operations.kinds import KINDS, arguments, operation_name
from lightning_xai.sites import Layer
from lightning_xai.units._capture import with_positions


@dataclass(frozen=True)
class Axis:
    """Position p of a layer reads the cells start + jump * p to start + jump * p + length - 1 of one input axis.

    Args:
        start: May be negative, where padding is read.
        jump: How far apart neighbouring positions are in the input.
        length: The length of the field; None for the whole axis.
    """

    start: int = 0
    jump: int = 1
    length: int | None = 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """The field after a convolution or pooling."""
        if self.length is None:
            return self
        reach = (kernel - 1) * dilation
        return Axis(self.start - padding * self.jump, self.jump * stride, self.length + reach * self.jump)

    def joined(self, other: Axis) -> Axis:
        """The field of what reads both."""
        if self.length is None or other.length is None or self.jump != other.jump:
            return WHOLE
        start = min(self.start, other.start)
        return Axis(start, self.jump, max(self.start + self.length, other.start + other.length) - start)


WHOLE = Axis(0, 0, None)


@dataclass(frozen=True)
class ReceptiveField:
    """The cells that a layer's positions read, per axis of the input.

    Attributes:
        axes: One per spatial axis.
        size: The spatial shape S of the input.
    """

    axes: tuple[Axis, ...]
    size: tuple[int, ...]

    def box(self, position: Sequence[int]) -> tuple[slice, ...]:
        """The cells of the input that a position can read, cut at the border.

        Raises:
            ValueError: If the position does not have one index per axis.

        >>> ReceptiveField((Axis(-1, 2, 3), WHOLE), (9, 6)).box((0, 2))
        (slice(0, 2, None), slice(0, 6, None))
        """
        if len(position) != len(self.axes):
            raise ValueError(f"position must have {len(self.axes)} indices, got {list(position)}.")
        boxes = []
        for axis, place, size in zip(self.axes, position, self.size, strict=True):
            first = 0 if axis.length is None else axis.start + axis.jump * int(place)
            last = size if axis.length is None else first + axis.length
            boxes.append(slice(min(max(first, 0), size), min(max(last, 0), size)))
        return tuple(boxes)


def receptive_field(model: nn.Module, inputs: Tensor, *, layer: Layer) -> ReceptiveField:
    r"""Find the cells of the input that each position of a layer can read.

    Convolutions, poolings, paddings, sums and what works cell by cell are followed exactly; anything else, e.g.
    attention, an interpolation or a mean over all positions, reads the whole input.

    .. math:: l_{out} = l_{in} + (k - 1)\,d\,j_{in}, \qquad j_{out} = j_{in}\,s, \qquad o_{out} = o_{in} - p\,j_{in}

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S]; the first one is run.
        layer: A layer that gives maps [N, K, \*P]: its dotted name, the module itself, or a
            :class:`~lightning_xai.sites.Site` for a part of its output or one of several calls.

    Raises:
        ValueError: If the layer is unknown, gives no map, or hides how (a scripted or compiled model).

    Source: :cite:`araujo2019`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2))
    >>> receptive_field(model, torch.zeros(1, 1, 10), layer="2").box([3])
    (slice(4, 10, None),)
    """
    bound, inputs = bind(model, inputs)
    check_inputs(inputs)
    model = at_rows(unwrapped(bound), slice(1))
    place = unplaced(model, layer)
    if place.axis is not None:
        raise ValueError(
            "receptive fields are those of maps [N, K, *P] as the layer gives them: name no axis or reshape."
        )
    found: list[tuple[Axis, ...] | None] = []
    with isolated_eval(model), torch.no_grad():
        first = detach_for_autograd(inputs[:1]).clone()
        fields = _Fields(model, first)

        def look(output: Tensor) -> None:
            with_positions(output, place.layer)
            found.append(fields.of(output))

        with fields, hook_outputs(model, {replace(place, axis=1): look}), forward_context():
            model(first.clone())
    if len(found) != 1:
        raise ValueError(f"layer {place.layer!r} runs {len(found)} times in a forward pass; name one that runs once.")
    if found[0] is None:
        raise ValueError(
            f"the receptive field of layer {place.layer!r} cannot be told: its operations are hidden; give the model "
            f"as it was before it was scripted or compiled."
        )
    return ReceptiveField(found[0], tuple(first.shape[2:]))


_Field = tuple[Axis, ...]

# What works cell by cell: where the shapes agree, a position of the result reads the same position of the arguments.
_CELLWISE_KINDS = {kind for kind, facts in KINDS.items() if facts.elementwise} | {
    "concatenation",
    "identity",
    "dropout",
}
_CELLWISE = {name for kind in _CELLWISE_KINDS for name in KINDS[kind].names} - {"cumsum"}
_CELLWISE |= {"maximum", "minimum", "where", "masked_fill", "contiguous", "detach"}


class _Fields(Operations):
    """Follows which cells of an input every tensor of a forward pass reads, position by position."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__(model)
        self.axes = inputs.ndim - 2
        self.fields = WeakTensorKeyDictionary()
        self.fields[inputs] = (inputs._version, (Axis(),) * self.axes)

    def of(self, tensor: Tensor) -> _Field | None:
        """The field of a tensor's positions, None if it is not known to read the input."""
        if tensor not in self.fields:
            return None
        version, field = self.fields[tensor]
        # Written to in a way that was not followed, such as through a view of it.
        return field if version == tensor._version else (WHOLE,) * self.axes

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.operation(func, args, kwargs)

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = [(self.of(tensor), tensor.shape[2:]) for tensor in tensors_in([args, kwargs])]
        before = [(field, shape) for field, shape in read if field is not None]
        result = func(*args, **kwargs)
        if before:
            for tensor in tensors_in(result):
                self.fields[tensor] = (tensor._version, self._after(func, args, kwargs, before, tensor))
            if func is Tensor.__setitem__:
                self.fields[args[0]] = (args[0]._version, (WHOLE,) * self.axes)
        return result

    def _after(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: list[tuple[_Field, torch.Size]],
        result: Tensor,
    ) -> _Field:
        whole = (WHOLE,) * self.axes
        if result.ndim != self.axes + 2:
            return whole
        if operation_name(func) in _CELLWISE:
            # Of other positions: a row that is broadcast, or parts put one after the other.
            if any(shape != result.shape[2:] for _, shape in before):
                return whole
            field = before[0][0]
            for other, _ in before[1:]:
                field = tuple(a.joined(b) for a, b in zip(field, other, strict=True))
            return field
        geometry = _geometry(func, args, kwargs, before[0][1], result.shape[2:])
        if geometry is None or len(before) > 1:
            return whole
        return tuple(axis.window(*window) for axis, window in zip(before[0][0], geometry, strict=True))


def _geometry(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], before: torch.Size, after: torch.Size
) -> list[tuple[int, int, int, int]] | None:
    """Kernel, stride, padding before and dilation per axis of an operation; None if it is of another kind."""
    name, axes = operation_name(func), len(before)
    given = arguments(func, args, kwargs)
    each = partial(per_axis, axes=axes)
    dilation = each(given.get("dilation", 1))
    if name == f"conv{axes}d":
        kernel, padding = tuple(given["weight"].shape[2:]), given.get("padding", 0)
        if padding == "same":
            padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
        padding = 0 if padding == "valid" else padding
        return list(zip(kernel, each(given.get("stride", 1)), each(padding), dilation, strict=True))
    if name in (f"max_pool{axes}d", f"avg_pool{axes}d", f"max_pool{axes}d_with_indices"):
        kernel = each(given["kernel_size"])
        return list(
            zip(kernel, each(given.get("stride") or kernel), each(given.get("padding", 0)), dilation, strict=True)
        )
    if name == "pad" and given.get("mode", "constant") == "constant":
        pads = list(given["pad"])
        # The last axis is padded first; axes that are not named are not padded.
        lead = [pads[2 * i] if 2 * i < len(pads) else 0 for i in range(axes)][::-1]
        return [(1, 1, pad, 1) for pad in lead] if len(pads) <= 2 * axes else None
    if name in (f"adaptive_avg_pool{axes}d", f"adaptive_max_pool{axes}d"):
        exact = all(size % out == 0 for size, out in zip(before, after, strict=True))
        return [(size // out, size // out, 0, 1) for size, out in zip(before, after, strict=True)] if exact else None
    return None


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A number, or one per axis, as one per axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * axes if len(values) == 1 else values
