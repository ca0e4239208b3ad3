"""What was found out about a network, kept for as long as the network stays as it is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lightning_xai.inputs.bound_model import BoundModel, network_of
from lightning_xai.inputs.places import is_own_hook

T = TypeVar("T")

_MOST_FACTS = 256
_VALUES = frozenset((type(None), bool, int, float, str))


class NetworkFacts(Generic[T]):
    """Facts of networks by question, forgotten with the network, or where it is changed.

    Changed is a network whose modules are others, have other hooks, or other attributes: numbers and strings by their
    value, everything else by its identity.

    >>> facts, network = NetworkFacts(), nn.Sequential(nn.Conv2d(1, 1, 3))
    >>> facts.of(network)["axis"] = 1
    >>> facts.of(network)
    {'axis': 1}
    >>> network[0].stride = 2
    >>> facts.of(network)
    {}
    """

    def __init__(self) -> None:
        self._held: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], dict[Hashable, T]]] = WeakKeyDictionary()

    def of(self, model: nn.Module) -> dict[Hashable, T]:
        """Return the facts of a model's network, to be read and added to."""
        network = network_of(model)
        form, (before, facts) = _form(network), self._held.get(network, ((), {}))
        if before != form or len(facts) >= _MOST_FACTS:
            facts = {}
            self._held[network] = form, facts
        return facts


def _form(network: nn.Module) -> tuple[Any, ...]:
    found: list[Any] = []
    waiting, seen = [network], {network}
    while waiting:  # `modules()` makes names, which take longer than all else
        module = waiting.pop()
        own = module.__dict__
        found += (id(module), type(module))
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            found += [key for key, hook in own[name].items() if not is_own_hook(hook)]
        found += [
            value
            if type(value) in _VALUES or (type(value) is tuple and _VALUES.issuperset(map(type, value)))
            else id(value)
            for value in own.values()
        ]
        for child in module._modules.values():  # of scripted modules, no entry of `__dict__`
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return tuple(found)


def question_of(model: nn.Module, inputs: Tensor) -> tuple[Hashable, ...]:
    """Return what of a model and its inputs, but their numbers, may change which operations a pass makes."""
    if not isinstance(model, BoundModel):
        return (inputs.shape[1:],)
    binding = model.binding
    return inputs.shape[1:], binding.arguments.form(), binding.site, binding.reads
