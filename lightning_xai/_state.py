"""State of a model outside its buffers that a forward pass may change: attributes, generators, written parameters."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_xai.bound_model import network_of

_OWN = frozenset(vars(nn.Module()))  # what torch keeps of every module
_CONTAINERS = (list, dict, set, deque)

_seen: WeakKeyDictionary[nn.Module, Changes] = WeakKeyDictionary()


class Place(NamedTuple):
    """Where a model holds a tensor: the module's name, the attribute, and the key if that is a list or dict."""

    module: str
    attribute: str
    key: Any = None

    def find(self, model: nn.Module) -> Tensor | None:
        """The tensor that is there now; None if there is none."""
        held = getattr(model.get_submodule(self.module), self.attribute, None)
        if isinstance(held, list | dict) and self.key is not None:
            held = held[self.key] if self.key in (held if isinstance(held, dict) else range(len(held))) else None
        return held if isinstance(held, Tensor) else None


@dataclass
class Changes:
    """What a pass of a model changes that is not restored anyway.

    Attributes:
        places: The tensors that it writes to; places, as the training may put others there.
        attributes: Whether it replaces plain attributes, or changes containers or generators among them.
    """

    places: list[Place] = field(default_factory=list)
    attributes: bool = False


@contextmanager
def held_state(model: nn.Module) -> Iterator[None]:
    """Put back what a pass of the model was seen to change; see :class:`WriteWatch`."""
    changes = _seen.get(network_of(model), Changes())
    tensors = [tensor for place in changes.places if (tensor := place.find(model)) is not None]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    with _Attributes(model) if changes.attributes else nullcontext():
        try:
            yield
        finally:
            for tensor, value in before:  # their versions do not tell: writing through .data leaves none behind
                _put_back(tensor, value)


class _Attributes:
    """Puts back plain attributes, the contents of containers among them, and states of generators.

    Attributes:
        changed: Whether something had to be put back.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._before = [(vars(module), _plain(module)) for module in modules]
        values = [value for _, attributes in self._before for value in attributes.values()]
        self._contents = [(held, copy.copy(held)) for held in _containers(values)]
        self._generators = [(value, value.get_state()) for value in values if isinstance(value, torch.Generator)]
        self.changed = False

    def __enter__(self) -> _Attributes:
        return self

    def __exit__(self, *error: object) -> None:
        for own, attributes in self._before:
            new = [name for name in own if name not in attributes and name not in _OWN]
            replaced = {name: value for name, value in attributes.items() if own.get(name, own) is not value}
            self.changed |= bool(new or replaced)
            for name in new:
                del own[name]
            own.update(replaced)
        for container, content in self._contents:
            if not _same(container, content):
                self.changed = True
                container.clear()
                (container.extend if isinstance(container, list | deque) else container.update)(content)
        for generator, state in self._generators:
            self.changed |= not torch.equal(generator.get_state(), state)
            generator.set_state(state)


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a model changes outside its buffers while it is active, and puts it back at the end.

    What was changed is remembered for :func:`held_state`, which needs the values before a pass, and so need not copy
    what no pass writes to.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._watched: dict[int, list[Place]] = {}  # several views may lie in one memory
        for place, tensor in _tensors(model):
            self._watched.setdefault(_address(tensor), []).append(place)
        self._watched.pop(0, None)
        self._before: dict[Place, tuple[Tensor, Tensor]] = {}
        self._attributes = _Attributes(model)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._save(args[position] if position < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _save(self, target: Any) -> None:
        for written in target if isinstance(target, list | tuple) else [target]:
            for place in self._watched.get(_address(written), ()) if isinstance(written, Tensor) else ():
                tensor = place.find(self._model)
                if tensor is not None and place not in self._before:
                    self._before[place] = tensor, tensor.detach().clone()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._attributes.__exit__(*error)
        for tensor, value in self._before.values():
            _put_back(tensor, value)
        if error[0] is None:  # a pass that failed may have left out the rest
            _seen[network_of(self._model)] = Changes(list(self._before), self._attributes.changed)


def is_watched(model: nn.Module) -> bool:
    """Tell whether a pass of a model has been seen by a :class:`WriteWatch`."""
    return network_of(model) in _seen


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _tensors(model: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    """List parameters, buffers, and the tensors among plain attributes and in their lists and dicts."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for attribute, value in {**module._parameters, **module._buffers, **_plain(module)}.items():
            keyed: Iterable[tuple[Any, Any]] = [(None, value)]
            if isinstance(value, list | dict):
                keyed = value.items() if isinstance(value, dict) else enumerate(value)
            for key, part in keyed:
                if isinstance(part, Tensor) and not part.is_inference():
                    yield Place(name, attribute, key), part


def _containers(values: Iterable[Any]) -> list[Any]:
    """List containers, also those inside others, each once."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, _CONTAINERS) and id(value) not in found:
            found[id(value)] = value
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own (sparse, sharded, on no device)
        return 0


def _put_back(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        if not tensor.is_leaf:  # written to where gradients were recorded
            tensor.detach_()
        tensor.copy_(value)


def _same(container: Any, content: Any) -> bool:
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        return all(container.get(key, container) is value for key, value in content.items())
    if isinstance(container, set):
        return bool(container == content)
    return all(own is other for own, other in zip(container, content, strict=True))
