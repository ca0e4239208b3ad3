"""State of a model outside its buffers that a forward pass may change: attributes, generators, written parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_OWN = frozenset(vars(nn.Module()))  # what torch keeps of every module
_CONTAINERS = (list, dict, set)

_seen: WeakKeyDictionary[nn.Module, Changes] = WeakKeyDictionary()


@dataclass
class Changes:
    """What a pass of a model changes outside its buffers.

    Attributes:
        tensors: The tensors that it writes to.
        attributes: Whether it replaces plain attributes, or changes lists, dicts or generators among them.
    """

    tensors: list[Tensor] = field(default_factory=list)
    attributes: bool = False


@contextmanager
def held_state(model: nn.Module) -> Iterator[None]:
    """Put back what a pass of the model was seen to change; see :class:`WriteWatch`."""
    changes = _seen.get(model, Changes())
    before = [(tensor, tensor.detach().clone()) for tensor in changes.tensors]
    with _Attributes(model) if changes.attributes else nullcontext():
        try:
            yield
        finally:
            for tensor, value in before:  # their versions do not tell: writing through .data leaves none behind
                _put_back(tensor, value)


class _Attributes:
    """Puts back plain attributes, the contents of lists, dicts and sets among them, and states of generators.

    Attributes:
        changed: Whether something had to be put back.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._before = [(vars(module), _plain(module)) for module in modules]
        values = [value for _, attributes in self._before for value in attributes.values()]
        self._contents = [(value, copy.copy(value)) for value in values if type(value) in _CONTAINERS]
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
                (container.extend if isinstance(container, list) else container.update)(content)
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
        self._watched = {_address(tensor): tensor for tensor in _tensors(model) if _address(tensor)}
        self._before: dict[int, Tensor] = {}
        self._attributes = _Attributes(model)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._save(args[position] if position < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _save(self, target: Any) -> None:
        for tensor in target if isinstance(target, list | tuple) else [target]:
            place = _address(tensor) if isinstance(tensor, Tensor) else 0
            if place in self._watched and place not in self._before:
                self._before[place] = self._watched[place].detach().clone()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._attributes.__exit__(*error)
        for place, value in self._before.items():
            _put_back(self._watched[place], value)
        _seen[self._model] = Changes([self._watched[place] for place in self._before], self._attributes.changed)


def is_watched(model: nn.Module) -> bool:
    """Tell whether a pass of a model has been seen by a :class:`WriteWatch`."""
    return model in _seen


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """List the parameters, and the tensors among plain attributes and in their lists and dicts."""
    yield from model.parameters()
    for module in model.modules():
        for value in _plain(module).values():
            parts: Iterable[Any] = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            )
            yield from (part for part in parts if isinstance(part, Tensor) and not part.is_inference())


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
