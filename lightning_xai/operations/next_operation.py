"""The operation that takes the output of a layer next, e.g. its activation function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_xai._guard import hook_outputs
from lightning_xai.operations import Operations, check_visible, tensors_in
from lightning_xai.operations.kinds import KINDS, is_in_place, kind_of, operation_name
from lightning_xai.sites import Place


class CallSite(NamedTuple):
    """A call of the torch API in a forward pass.

    Attributes:
        module: The module in whose ``forward`` it is made.
        name: The plain name of the function, e.g. ``"batch_norm"``.
        occurrence: Which of the calls of that name in that module it is, from 0.
    """

    module: str
    name: str
    occurrence: int


@dataclass(frozen=True)
class NextOperation:
    """The operation that takes the output of a layer next.

    Attributes:
        outcome: ``"found"``, an activation function takes it, possibly through batch norm, dropout or reshapes;
            ``"none"``, a convolution, a linear layer or nothing takes it; ``"sum"``, it is added to something else;
            ``"unknown"``, several or other operations take it.
        reason: The same in words, naming the operations.
        name: The name of that operation, e.g. ``"relu"``.
        function: The activation, as a function of the pre-activation alone that leaves its argument as it is.
        shape: The shape of the layer's output for the inputs at hand.
        module: The place that returns the output, normalized if a batch norm takes it; None if no module does.
        call: The call of the batch norm that returns it, if no module does.
    """

    outcome: Literal["found", "none", "sum", "unknown"]
    reason: str
    name: str = ""
    function: Callable[[Tensor], Tensor] | None = None
    shape: tuple[int, ...] = ()
    module: Place | None = None
    call: CallSite | None = None


class _Consumer(NamedTuple):
    """An operation that computes with a layer's output."""

    kind: str | None
    site: CallSite
    function: Callable[[Tensor], Tensor] | None


class _Follower(Operations):
    """Follows the outputs of layers through operations that keep them apart, and notes which operations take them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.shapes: dict[Place, list[tuple[int, ...]]] = {}
        self.norms: dict[Place, CallSite] = {}
        self.consumers: dict[Place, list[_Consumer]] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        # Tensors are kept, so that no other one can take the id of one that is followed.
        self._carriers: dict[int, tuple[Tensor, int | None, frozenset[Place]]] = {}

    def start(self, layer: Place, output: Tensor) -> None:
        """Follow an output of a layer from now on."""
        self.shapes.setdefault(layer, []).append(tuple(output.shape))
        self._follow(output, frozenset({layer}))

    def _follow(self, tensor: Tensor, layers: frozenset[Place]) -> None:
        self._carriers[id(tensor)] = (tensor, tensor._version, layers | self._carried(tensor))

    def _carried(self, tensor: Tensor) -> frozenset[Place]:
        """The layers whose output a tensor holds; none once something has been written into it."""
        _, version, layers = self._carriers.get(id(tensor), (tensor, None, frozenset[Place]()))
        return layers if version is not None and version == tensor._version else frozenset()

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = self.current_module(), operation_name(func)
        site = CallSite(*place, self.counts[place])
        self.counts[place] += 1
        carried = [(tensor, self._carried(tensor)) for tensor in tensors_in([args, kwargs])]
        layers = frozenset[Place]().union(*(of for _, of in carried))
        result = func(*args, **kwargs)
        kind = kind_of(func)
        results = [part for part in tensors_in(result) if part.is_floating_point()] if layers else []
        if kind is not None and KINDS[kind].transparent:
            for part in results:
                self._follow(part, layers)
            if kind == "affine_norm":
                self.norms.update(dict.fromkeys(layers, site))
        elif results:  # a comparison or an argmax reads it without passing it on
            for layer in layers:
                takes = [tensor for tensor, of in carried if layer in of]
                alone = len(takes) == 1 and bool(args) and takes[0] is args[0]
                function = partial(_apply, func, args[1:], kwargs) if alone and kind == "activation" else None
                known = kind if kind != "activation" or function is not None else None
                self.consumers.setdefault(layer, []).append(_Consumer(known, site, function))
        return result


def _apply(func: Callable[..., Any], rest: tuple[Any, ...], kwargs: dict[str, Any], values: Tensor) -> Tensor:
    found: Tensor = func(values.clone() if is_in_place(func, kwargs) else values, *rest, **kwargs)
    return found


def next_operations(model: nn.Module, layers: Sequence[Place], inputs: Tensor) -> dict[Place, NextOperation]:
    """The operations that take the outputs of layers, found by following these through one forward pass.

    Args:
        model: The network, already in the mode and context in which it is to be called.
        layers: The places of the layers.
        inputs: Any inputs of the model.

    Raises:
        ValueError: If a layer does not exist, does not return a tensor, or does not run exactly once.
    """
    check_visible(model)
    follower = _Follower(model)
    with follower, hook_outputs(model, {layer: partial(follower.start, layer) for layer in layers}):
        model(inputs.clone())
    modules = dict(model.named_modules())
    found = {}
    for layer in layers:
        shapes = follower.shapes.get(layer, [])
        if len(shapes) != 1:
            times = f"runs {len(shapes)} times in" if shapes else "is not reached by"
            raise ValueError(
                f"layer {layer.layer!r} {times} the model's forward pass; name one that runs once"
                + (f", or say which call, layer=Site({layer.layer!r}, call=0)." if shapes else ".")
            )
        norm = follower.norms.get(layer)
        module: Place | None = layer
        if norm is not None:
            # Seeing a module's output is cheaper than looking at every operation of a pass.
            alone = isinstance(modules.get(norm.module), _BatchNorm) and follower.counts[norm[:2]] == 1
            module, norm = (Place(norm.module), None) if alone else (None, norm)
        operation = _next(layer, follower.consumers.get(layer, []))
        found[layer] = replace(operation, shape=shapes[0], module=module, call=norm)
    return found


def _next(layer: Place, consumers: list[_Consumer]) -> NextOperation:
    name = layer.layer
    if not consumers:
        return NextOperation("none", f"the output of {name!r} is the model's output")
    places = [f"{site.name} in {site.module or 'the model'!r}" for _, site, _ in consumers]
    if len(consumers) > 1:
        return NextOperation("unknown", f"the output of {name!r} is taken by {len(places)} calls: {', '.join(places)}")
    kind, site, function = consumers[0]
    outcomes: dict[str | None, Literal["found", "none", "sum"]]
    outcomes = {"activation": "found", "convolution": "none", "linear": "none", "sum": "sum"}
    reason = f"the output of {name!r} is taken by {places[0]}"
    return NextOperation(outcomes.get(kind, "unknown"), reason, site.name, function)
