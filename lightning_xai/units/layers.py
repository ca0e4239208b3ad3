"""The places in a forward pass where pre-activations are computed, and the activation functions that take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_xai._checks import check_known
from lightning_xai._guard import eager, forward_context, hook_outputs
from lightning_xai.axes.facts import follow_channels
from lightning_xai.axes.layout import places_of_units, unplaced
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import Operations, unwrapped
from lightning_xai.operations.kinds import operation_name
from lightning_xai.operations.next_operation import CallSite, NextOperation, next_operations
from lightning_xai.sites import Layer, Place, Site

Function = Callable[[Tensor], Tensor]

_FUNCTIONAL = "elu gelu hardswish leaky_relu mish relu relu6 sigmoid silu softplus tanh"
_NAMED: dict[str, Function] = {name: getattr(functional, name) for name in _FUNCTIONAL.split()}
_NAMED["identity"] = lambda values: values
# The largest value of a monotone function is its value at the largest argument.
_MONOTONE = {"elu", "hardtanh", "identity", "relu", "relu6", "sigmoid", "softplus", "tanh"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class PreActivationSite:
    """The place where the pre-activation B of a layer is read, and the function that makes its activation of it.

    Attributes:
        place: The layer.
        activation: The activation function.
        monotone: Whether the activation never falls.
        module: The place that returns B, if one does.
        call: The call that returns B, if no module does.
        shape: The shape [1, K, *P] of B for one sample.
        rows: The shape of the layer's output for one sample, without the axis of the samples.
    """

    place: Place
    activation: Function
    monotone: bool
    module: Place | None
    call: CallSite | None
    shape: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def layer(self) -> str:
        """The layer's name, with the part or call that is meant."""
        return str(self.place)

    @property
    def site(self) -> Site:
        """The layer with the axis of its units, to be found again."""
        place = self.place
        axis = None if place.reshape is not None else place.axis
        return Site(place.layer, axis, place.part, place.call, place.reshape)

    @property
    def is_normed(self) -> bool:
        """Whether B is the output of a batch norm that takes that of the layer."""
        return self.module is None or self.module.layer != self.place.layer

    def units_first(self, values: Tensor) -> Tensor:
        """B [N, K, *P] as it is read in the model."""
        if not self.is_normed:
            return self.place.units_first(values)
        if values.ndim != len(self.rows) + 1:  # a batch norm was given rows of units
            return self.place.units_first(values.view(-1, *self.rows))
        return values if self.place.reshape is None else self.place.reshape(values)

    def as_read(self, values: Tensor) -> Tensor:
        """B [N, K, *P] of what the place returns, in single precision at least."""
        values = self.units_first(values)
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

    def activate(self, values: Tensor) -> Tensor:
        """The activations A of pre-activations B, in memory of their own, as what follows may work in place on B."""
        found = self.activation(values)
        return found.clone() if found is values else found


def preactivation_sites(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[Layer | None],
    activation: str | Function | None = None,
    *,
    fallback: str | None = None,
) -> list[PreActivationSite]:
    """The sites of the pre-activations of layers, found by one forward pass.

    B is the output of the layer, normalized if a batch norm takes it. The activation is the one that takes B, possibly
    through dropout or reshapes; where anything else takes it, e.g. a sum, it must be given.

    Args:
        model: The network, already in the mode and context in which it is to be called.
        inputs: One sample or more.
        layers: Layers by dotted names or as modules; None for the last convolution that has an activation, or the last
            linear layer with one if there is none.
        activation: The activation function or its name, instead of the one in the model.
        fallback: The name of the activation where none is found; then any shape of B will do.

    Raises:
        ValueError: If there is no such layer, two have one name, the output has no units, or no activation is found nor
            given.
        TypeError: If ``activation`` is neither a name nor a function.
    """
    network = at_rows(unwrapped(model), slice(len(inputs)))
    if list(layers) == [None]:
        return [_last_site(network, inputs, activation)]
    places = [unplaced(network, layer) for layer in layers if layer is not None]
    for name, count in Counter(map(str, places)).items():
        if count > 1:
            raise ValueError(
                f"{count} of the layers are {name!r}, by which their results are called: ask for each by itself, also "
                f"where they differ in axis=... or reshape=... ."
            )
    with follow_channels(network, inputs, places) as proved, forward_context():
        found = next_operations(network, places, inputs)
    placed = zip(places, places_of_units(network, inputs, places, proved), strict=True)
    return [_site(place, found[before], activation, fallback) for before, place in placed]


def _site(
    place: Place, operation: NextOperation, activation: str | Function | None, fallback: str | None
) -> PreActivationSite:
    if operation.function is None and activation is None:
        activation = fallback
    function = operation.function if activation is None else _as_function(activation)
    if function is None:
        raise ValueError(
            f"no activation is found after layer {place.layer!r}: {operation.reason}. Name the one that its units are "
            f"judged by, e.g. activation='relu', or activation='identity' for none."
        )
    shape = tuple(place.units_first(torch.zeros(operation.shape)).shape)
    if len(shape) < 2:
        raise ValueError(f"layer {place.layer!r} gives {list(shape)}, not [samples, units, *positions].")
    name = operation.name if activation is None else activation
    monotone = isinstance(name, str) and name in _MONOTONE
    module = place if operation.module is not None and operation.module.layer == place.layer else operation.module
    rows = operation.shape[1:]
    return PreActivationSite(place, function, monotone, module, operation.call, (1, *shape[1:]), rows)


def _last_site(model: nn.Module, inputs: Tensor, activation: str | Function | None) -> PreActivationSite:
    reasons = []
    for kind in (_CONVOLUTIONS, nn.Linear):
        for name in reversed([name for name, module in model.named_modules() if isinstance(module, kind)]):
            try:
                return preactivation_sites(model, inputs, [name], activation)[0]
            except ValueError as error:
                reasons.append(str(error))
    tried = f" Tried {len(reasons)}; the last one: {reasons[-1]}" if reasons else ""
    raise ValueError(f"no convolution or linear layer with an activation is found: name the layer.{tried}")


@contextmanager
def hook_preactivations(
    model: nn.Module, sites: Sequence[PreActivationSite], see: Callable[[PreActivationSite, Tensor], object]
) -> Iterator[None]:
    """Call ``see(site, B)`` with the pre-activations [N, K, *P] of layers whenever the model runs.

    Args:
        model: The network.
        sites: Where they are computed.
        see: Takes B before any change in place, in single precision at least; not to be kept without a copy.
    """
    network = unwrapped(model)

    def show(site: PreActivationSite, values: Tensor) -> None:
        with torch._C.DisableTorchFunction():  # what is computed here is no operation of the model
            see(site, site.as_read(values))

    with ExitStack() as stack:
        stack.enter_context(eager())
        for site in sites:
            if site.module is not None:
                stack.enter_context(hook_outputs(network, {site.module: partial(show, site)}))
        if calls := [site for site in sites if site.call is not None]:
            stack.enter_context(_PreActivationHook(network, calls, show))
        yield


class _PreActivationHook(Operations):
    """Shows what some calls return."""

    def __init__(
        self, model: nn.Module, sites: list[PreActivationSite], show: Callable[[PreActivationSite, Tensor], None]
    ) -> None:
        super().__init__(model)
        self._show = show
        self._sites = sites
        self._names_seen = {site.call.name for site in sites if site.call is not None}
        self._counts: Counter[tuple[str, str]] = Counter()

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        name = operation_name(func)
        if name in self._names_seen:
            place = self.current_module(), name
            call = CallSite(*place, self._counts[place])
            self._counts[place] += 1
            for site in self._sites:
                if site.call == call:
                    self._show(site, result)
        return result


def _as_function(activation: str | Function) -> Function:
    if callable(activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a function or its name, got {type(activation).__name__}.")
    check_known("activation", activation, _NAMED)
    return _NAMED[activation]
