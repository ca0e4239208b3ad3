"""Where in a forward pass a layer's pre-activation is, and the activation that takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_xai._checks import named_layer, unknown
from lightning_xai._guard import forward_context, hook_outputs
from lightning_xai.operations import (
    NextOperation,
    Operations,
    following_activations,
    kind_of,
    operation_name,
    tensors_in,
    unwrapped,
)

Function = Callable[[Tensor], Tensor]

_NAMED: dict[str, Function] = {
    "elu": functional.elu,
    "gelu": functional.gelu,
    "hardswish": functional.hardswish,
    "identity": lambda values: values,
    "leaky_relu": functional.leaky_relu,
    "mish": functional.mish,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}
# Of these the largest value is the value of the largest argument.
_RISING = {"elu", "hardtanh", "identity", "relu", "relu6", "sigmoid", "softplus", "tanh"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CARRIED = {"affine_norm", "dropout", "identity"}


@dataclass(frozen=True)
class Spot:
    """Where a layer's pre-activation B passes by, and what is done to it.

    Attributes:
        layer: The layer.
        activation: The activation function.
        rising: Whether the activation never falls.
        tap: The module that returns B, if one does; seeing that is cheaper than looking at every operation.
        call: The module, the name and the number of the call that B is read at, if no module returns it.
        taken: Whether B is what the call takes; if not, it is what the call returns.
        shape: The shape [1, K, *P] of B for one sample.
    """

    layer: str
    activation: Function
    rising: bool
    tap: str | None
    call: tuple[str, str, int] | None
    taken: bool
    shape: tuple[int, ...]


def find_spot(
    model: nn.Module, inputs: Tensor, layer: str | None = None, activation: str | Function | None = None
) -> Spot:
    """The place of a layer's pre-activation, found by one forward pass.

    What the activation receives, if between the layer and it stand only batch norm, dropout or reshapes; otherwise
    the activation must be named, and B is the layer's own output, after a batch norm that takes it.

    Args:
        model: The network, already in the mode and context in which it is to be called.
        inputs: One sample or more.
        layer: The dotted name of a layer; unless given, the last convolution that has an activation, or the last
            linear layer with one if there is none.
        activation: The activation function or its name, instead of the one in the model.

    Raises:
        ValueError: If there is no such layer, its output has no units, or no activation is found nor named.
        TypeError: If ``activation`` is neither a name nor a function.
    """
    if layer is None:
        return _last_spot(unwrapped(model), inputs, activation)
    return find_spots(model, inputs, [layer], activation)[layer]


def find_spots(
    model: nn.Module, inputs: Tensor, layers: Sequence[str], activation: str | Function | None = None
) -> dict[str, Spot]:
    """The places of several layers' pre-activations, found by one forward pass; see :func:`find_spot`."""
    network = unwrapped(model)
    for layer in layers:
        named_layer(network, layer)
    with (
        forward_context(),
        _Normalised(network) as seen,
        hook_outputs(network, {n: partial(seen.follow, n) for n in layers}),
    ):
        following = following_activations(network, layers, inputs)
    return {layer: _spot(network, inputs, layer, seen, following[layer], activation) for layer in layers}


def _spot(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    seen: _Normalised,
    following: NextOperation,
    activation: str | Function | None,
) -> Spot:
    trail = seen.trails[layer]
    if trail.runs != 1:
        raise ValueError(f"layer {layer!r} runs {trail.runs} times in a forward pass; name a layer that runs once.")
    shape = (1, *trail.output.shape[1:])
    given = _as_function(activation)
    if given is None and following.function is None:
        raise ValueError(
            f"no activation is found after layer {layer!r}: {following.reason}. Name the one that its units are "
            f"judged by, e.g. activation='relu', or activation='identity' for none."
        )
    function = given or following.function
    assert function is not None
    name = activation if isinstance(activation, str) else following.name if given is None else ""
    taken = following.outcome == "found"
    tap = seen.module(model, layer)
    call = (following.module, following.name, following.occurrence) if taken else trail.call
    if len(shape) < 2 or (len(shape) > 2 and len(shape) != inputs.ndim):
        raise ValueError(
            f"layer {layer!r} returns {['N', *shape[1:]]} for inputs {['N', *inputs.shape[1:]]}: its units cannot be "
            f"told. Name a convolution, or a linear layer that returns [N, K]."
        )
    return Spot(layer, function, name in _RISING, tap, None if tap is not None else call, taken, shape)


def _last_spot(model: nn.Module, inputs: Tensor, activation: str | Function | None) -> Spot:
    reasons = []
    for kind in (_CONVOLUTIONS, nn.Linear):
        for name in reversed([name for name, module in model.named_modules() if isinstance(module, kind)]):
            try:
                spot = find_spot(model, inputs, name, activation)
            except ValueError as error:
                reasons.append(str(error))
            else:
                return spot
    tried = f" Tried {len(reasons)}; the last one: {reasons[-1]}" if reasons else ""
    raise ValueError(f"no convolution or linear layer with an activation is found: name the layer.{tried}")


@contextmanager
def seeing(model: nn.Module, spots: Mapping[str, Spot], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show the pre-activations [N, K, *P] of layers to a function whenever the model runs, before any change in place.

    Args:
        model: The network.
        spots: The places by layer.
        see: Takes a layer's name and its B, in single precision at least; not to be kept without a copy.
    """
    network = unwrapped(model)

    def show(layer: str, values: Tensor) -> None:
        with torch._C.DisableTorchFunction():  # what is computed here is no operation of the model
            see(layer, values.float() if values.dtype in (torch.float16, torch.bfloat16) else values)

    def tap(layer: str) -> Callable[[Tensor], None]:
        return lambda output: show(layer, output)

    calls = [spot for spot in spots.values() if spot.tap is None]
    with ExitStack() as stack:
        for layer, spot in spots.items():
            if spot.tap is not None:
                stack.enter_context(hook_outputs(network, {spot.tap: tap(layer)}))
        if not calls:
            yield
            return
        with _Sight(network, calls, show):
            yield


class _Sight(Operations):
    """Shows what some calls take or return."""

    def __init__(self, model: nn.Module, spots: list[Spot], see: Callable[[str, Tensor], None]) -> None:
        super().__init__(model)
        self._see = see
        self._spots: dict[tuple[str, str, int], list[Spot]] = {}
        for spot in spots:
            if spot.call is not None:
                self._spots.setdefault(spot.call, []).append(spot)
        self._names_seen = {name for _, name, _ in self._spots}
        self._counts: dict[tuple[str, str], int] = {}

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operation_name(func)
        if name not in self._names_seen:
            return func(*args, **kwargs)
        place = (self.current_module(), name)
        count = self._counts.get(place, 0)
        self._counts[place] = count + 1
        spots = self._spots.get((*place, count), [])
        for spot in spots:
            if spot.taken:
                values = args[0]
                self._see(spot.layer, values.view(-1, *spot.shape[1:]) if values.ndim != len(spot.shape) else values)
        result = func(*args, **kwargs)
        for spot in spots:
            if not spot.taken:
                self._see(spot.layer, result)
        return result


@dataclass
class _Trail:
    """What has become of a layer's output: where it last stands, and the batch norm that took it."""

    output: Tensor
    runs: int = 1
    call: tuple[str, str, int] | None = None
    reshaped: bool = False


class _Normalised(Operations):
    """Follows the outputs of layers through batch norm, dropout and identities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.trails: dict[str, _Trail] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def follow(self, layer: str, output: Tensor) -> None:
        before = self.trails.get(layer)
        self.trails[layer] = _Trail(output, 1 if before is None else before.runs + 1)

    def module(self, model: nn.Module, layer: str) -> str | None:
        """The module that returns B: the layer, or the batch norm after it; None if none can be told."""
        trail = self.trails[layer]
        if trail.reshaped:
            return None
        if trail.call is None:
            return layer
        name, function, _ = trail.call
        found = dict(model.named_modules()).get(name)
        alone = isinstance(found, _BatchNorm) and self._counts[name, function] == 1
        return name if alone else None

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = (self.current_module(), operation_name(func))
        count = self._counts.get(place, 0)
        self._counts[place] = count + 1
        taken = [
            trail for trail in self.trails.values() if any(part is trail.output for part in tensors_in([args, kwargs]))
        ]
        result = func(*args, **kwargs)
        for trail in taken:
            trail.reshaped |= kind_of(func) == "reshape"
            if kind_of(func) in _CARRIED and isinstance(result, Tensor):
                trail.output = result
                if kind_of(func) == "affine_norm":
                    trail.call = (*place, count)
        return result


def _as_function(activation: str | Function | None) -> Function | None:
    if activation is None or callable(activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a function or its name, got {type(activation).__name__}.")
    if activation not in _NAMED:
        raise ValueError(unknown("activation", activation, _NAMED))
    return _NAMED[activation]
