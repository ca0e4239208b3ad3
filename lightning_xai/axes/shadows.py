"""Coordinate shadows: which row and which place of the input every element of a tensor stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.axes.shadow_rules import UNIT_AXES, ShadowCall, elementwise, rule_of
from lightning_xai.operations import Operations, tensors_in
from lightning_xai.operations.kinds import KINDS, kind_of, operation_name

Shadow = tuple[Tensor, ...]
"""Tensors of one shape: the row, then one coordinate per spatial axis of the input; NaN where constants stand."""


class ShadowedPass(Operations):
    """Moves shadows of the input along with every operation of a forward pass.

    Args:
        model: The network.
        inputs: Its inputs [N, C, *S], or ids [N, *S]; the very tensor with which the model is called.
        columns: Take the columns of a table [N, F] for positions.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, *, columns: bool = False) -> None:
        super().__init__(model)
        # A tensor without an entry is a constant; one with None depends on the input in a way that was not followed.
        self._entries = WeakTensorKeyDictionary()
        dtype = torch.float32 if inputs.device.type == "mps" else torch.float64
        shadow = []
        channels = 2 if inputs.is_floating_point() and not columns else 1  # ids have no axis of channels
        for axis in (0, *range(channels, inputs.ndim)):
            places = torch.arange(inputs.shape[axis], dtype=dtype, device=inputs.device)
            shadow.append(places.view(-1, *[1] * (inputs.ndim - axis - 1)).expand(inputs.shape))
        self.components = len(shadow)
        self._note(inputs, tuple(shadow), None)

    def shadow_of(self, tensor: Tensor) -> Shadow | None:
        """The shadow of a tensor of the pass; None for a constant, and where it was lost."""
        return self._entry(tensor)[0]

    def unit_axis_of(self, tensor: Tensor) -> int | None:
        """The axis of the units by the convention of the operation that made a tensor, if one has a convention."""
        return self._entry(tensor)[1]

    def pass_on(self, tensor: Tensor, other: Tensor) -> None:
        """Give another tensor, such as a copy made by a hook, the shadow of a tensor."""
        if tensor in self._entries:
            self._note(other, *self._entry(tensor))

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let what takes a tensor out of the pass, such as ``detach``, keep its shadow."""
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and args and isinstance(args[0], Tensor) and result.shape == args[0].shape:
            self.pass_on(args[0], result)
        return result

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one operation, and the same one on the shadows."""
        read = [tensor for tensor in tensors_in([args, kwargs]) if tensor in self._entries]
        before = {id(tensor): self._entry(tensor)[0] for tensor in read}  # a write in place makes them stale
        conventions = {self._entry(tensor)[1] for tensor in read}
        result = func(*args, **kwargs)
        if not read:
            return result
        name, kind = operation_name(func), kind_of(func)
        results = [args[0]] if name == "setitem" else tensors_in(result)
        shadows = self._moved(func, args, kwargs, results, before)
        axis = UNIT_AXES.get(name)
        if axis is None and len(conventions) == 1 and kind is not None and KINDS[kind].elementwise:
            axis = conventions.pop()
        for tensor, shadow in zip(results, shadows, strict=True):
            self._note(tensor, shadow, axis)
        return result

    def _moved(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Tensor],
        before: dict[int, Shadow | None],
    ) -> list[Shadow | None]:
        lost: list[Shadow | None] = [None] * len(results)
        rule = rule_of(func, args, kwargs)
        if rule is None or not results:
            return lost
        known = [tensor for tensor in tensors_in([args, kwargs]) if before.get(id(tensor)) is not None]
        full = any(tensor.shape == results[0].shape for tensor in known)
        if not known or (None in before.values() and not (rule is elementwise and full)):
            return lost
        components = []
        for index in range(self.components):

            def of(tensor: Any, index: int = index) -> Tensor | None:
                shadow = before.get(id(tensor))
                return None if shadow is None else shadow[index]

            found = rule(ShadowCall(func, args, kwargs, results, of, index == 0))
            each = [found] if isinstance(found, Tensor) else found
            if each is None or [part.shape for part in each] != [part.shape for part in results]:
                return lost
            components.append(each)
        return list(zip(*components, strict=True))

    def _note(self, tensor: Tensor, shadow: Shadow | None, axis: int | None) -> None:
        self._entries[tensor] = (tensor._version, shadow, axis)

    def _entry(self, tensor: Tensor) -> tuple[Shadow | None, int | None]:
        if tensor not in self._entries:
            return None, None
        version, shadow, axis = self._entries[tensor]
        # Written to in a way that was not followed, such as through a view of it.
        return (shadow, axis) if version == tensor._version else (None, None)
