"""State of a model outside its buffers that a forward pass may change: attributes, generators, written parameters."""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_xai.inputs.bound_model import network_of

_OWN = frozenset(vars(nn.Module()))  # what torch keeps of every module
_CONTAINERS = (list, dict, set, deque)
_GRADIENT = object()  # the key of a parameter's gradient
_MOST_DESCRIBED = 200  # objects of an attribute
_FOREIGN = ("torch", "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics", "lightning_xai")

_seen: WeakKeyDictionary[nn.Module, Changes] = WeakKeyDictionary()


class Place(NamedTuple):
    """Where a model holds a tensor: the module's name, the attribute, and a key, of a list or dict or of a gradient."""

    module: str
    attribute: str
    key: Any = None

    def find(self, model: nn.Module) -> Tensor | None:
        """The tensor that is there now; None if there is none."""
        held = getattr(model.get_submodule(self.module), self.attribute, None)
        if self.key is _GRADIENT:
            held = _gradient(held)
        elif isinstance(held, list | dict) and self.key is not None:
            held = held[self.key] if self.key in (held if isinstance(held, dict) else range(len(held))) else None
        return held if isinstance(held, Tensor) else None


@dataclass
class Changes:
    """The state that a forward pass changes outside of what is always restored.

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


def held_attributes(model: nn.Module) -> AbstractContextManager[Any]:
    """Put back the plain attributes of a model's modules, and the contents of containers among them."""
    return _Attributes(model)


class _Attributes:
    """Puts back plain attributes, the contents of containers among them, and states of generators.

    Attributes:
        changed: Whether something had to be put back.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._before = [(vars(module), _plain(module)) for module in modules]
        values = [value for _, attributes in self._before for value in attributes.values()]
        containers = [*_containers(values), *(part for module in modules for part in _torchs_own(module))]
        self._contents = [(held, copy.copy(held)) for held in containers]
        parts = [part for held in containers for part in (held.values() if isinstance(held, dict) else held)]
        self._states = [(part, describe(part), put_back) for part, put_back in _restorable([*values, *parts])]
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
        for part, state, put_back in self._states:
            if describe(part) != state:
                self.changed = True
                put_back()


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a model changes outside its buffers while it is active, and puts it back at the end.

    What was changed is remembered for :func:`held_state`, which needs the values before a pass, and so need not copy
    what no pass writes to. A warning names what was changed and cannot be put back.

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
        self._opaque = _describe_attributes(model)
        self._gradients = [(place, place.find(model)) for place in _gradients(model)]

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
            made = [place for place, gradient in self._gradients if place.find(self._model) is not gradient]
            _seen[network_of(self._model)] = Changes([*self._before, *made], self._attributes.changed)
            self._warn()

    def _warn(self) -> None:
        now = _describe_attributes(self._model)
        places = [place for place, described in self._opaque.items() if now.get(place, described) != described]
        if places:
            names = ", ".join(
                f"{attribute!r} of {f'module {name!r}' if name else 'the model'}" for name, attribute in places
            )
            message = (
                f"a forward pass changes what cannot be put back: {names}. Explaining moves it on, so the training may "
                f"differ from one without; hold it in a buffer, or as numbers, lists and dicts in attributes."
            )
            warnings.warn(message, UserWarning, stacklevel=2)


def is_watched(model: nn.Module) -> bool:
    """Tell whether a pass of a model has been seen by a :class:`WriteWatch`."""
    return network_of(model) in _seen


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _torchs_own(module: nn.Module) -> Iterator[Any]:
    """List where torch keeps hooks, parameters and modules, but of modules that become others in their first pass."""
    if not isinstance(module, LazyModuleMixin):
        yield from (part for name, part in vars(module).items() if name in _OWN and isinstance(part, _CONTAINERS))


def _gradient(parameter: Any) -> Tensor | None:
    return parameter.grad if isinstance(parameter, Tensor) and parameter.is_leaf else None


def _gradients(model: nn.Module) -> Iterator[Place]:
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield from (Place(name, attribute, _GRADIENT) for attribute in module._parameters)


def _tensors(model: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    """List parameters, gradients, buffers, and the tensors among plain attributes and in lists and dicts there."""
    for place in _gradients(model):
        if (gradient := place.find(model)) is not None:
            yield place, gradient
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


def _restorable(values: Iterable[Any]) -> Iterator[tuple[Any, Callable[[], object]]]:
    """Find generators of random numbers and arrays, with what gives each the state that it has now."""
    numpy = sys.modules.get("numpy")
    for value in values:
        if isinstance(value, torch.Generator):
            yield value, partial(value.set_state, value.get_state())
        elif isinstance(value, random.Random) and type(value) is random.Random:
            yield value, partial(value.setstate, value.getstate())
        elif numpy is not None and isinstance(value, numpy.random.Generator):
            yield value, partial(setattr, value.bit_generator, "state", copy.deepcopy(value.bit_generator.state))
        elif numpy is not None and isinstance(value, numpy.random.RandomState):
            yield value, partial(value.set_state, value.get_state())
        elif numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            yield value, partial(numpy.copyto, value, value.copy())


def _describe_attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Describe the attributes of modules, also those in slots and of their classes, by the module's name."""
    return {
        (name, attribute): describe(value)
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for attribute, value in {**_of_classes(module), **_plain(module)}.items()
    }


def _of_classes(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(type(module).__mro__):
        if base is not object and base.__module__.partition(".")[0] not in _FOREIGN:
            for name, value in vars(base).items():
                found[name] = getattr(module, name, None) if isinstance(value, MemberDescriptorType) else value
    return found


def describe(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Describe an object so that the descriptions of before and after a change differ, by what pickle would keep.

    Objects of torch and Lightning, which are restored elsewhere or belong to the training, are described by identity,
    as are those that cannot be pickled.

    Args:
        value: The object.
        seen: The objects that are described already, by identity; held, so that no other takes their place.

    >>> numbers = iter([5, 6, 7])
    >>> before = describe(numbers)
    >>> before == describe(numbers), next(numbers), before == describe(numbers)
    (True, 5, False)
    """
    seen = {} if seen is None else seen
    if isinstance(value, str | bytes | int | float | complex | None):
        return repr(value)
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    if isinstance(value, Tensor):  # one in memory is watched, and its version moves when it is put back
        return id(value), None if value.is_inference() or _address(value) else value._version
    foreign = any(base.__module__.partition(".")[0] in _FOREIGN for base in type(value).__mro__)
    if foreign or isinstance(value, type | FunctionType | MethodType | ModuleType):
        return id(value)
    if id(value) in seen or len(seen) > _MOST_DESCRIBED:
        return None
    seen[id(value)] = value
    if isinstance(value, tuple | list | deque):
        return [describe(part, seen) for part in value]
    if isinstance(value, set | frozenset):
        return {id(part) for part in value}
    if isinstance(value, dict):
        return [(describe(key, seen), describe(part, seen)) for key, part in value.items()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = value.__reduce_ex__(2)
    except Exception:  # whatever a class of the user's does
        return id(value)
    return reduced if isinstance(reduced, str) else [describe(part, seen) for part in reduced[1:3]]


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
    if isinstance(container, dict):  # its order, too, by which some forget what is oldest
        pairs = zip(container.items(), content.items(), strict=True)
        return all(key is other and value is before for (key, value), (other, before) in pairs)
    if isinstance(container, set):
        return bool(container == content)
    return all(own is other for own, other in zip(container, content, strict=True))
