"""Proves by two traces that a pass that begins at a site makes the operations of a whole one, whatever tensors hold."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from lightning_xai.operations import tensors_in
from lightning_xai.prefix.replay import Placeholder, Prefix, Replay, mapped
from lightning_xai.sites import Place

# The tensor that a call returns (the call's number and its place there), or the address of a storage.
Leaf = tuple[int, int]
_Key = int | Leaf


@dataclass(frozen=True)
class _Step:
    """A call of the torch API.

    Attributes:
        what: The function and the form of its arguments, with all constants.
        given: The storages of the tensors that it takes.
        written: Whether it writes to each.
        made: The storages of the tensors that it returns.
        new: Those that no earlier call has seen.
        inside: Whether it lies in a call that is to be left out.
    """

    what: Any
    given: tuple[_Key, ...]
    written: tuple[bool, ...]
    made: tuple[_Key, ...]
    new: frozenset[_Key]
    inside: bool


class Trace(TorchFunctionMode):
    """Records the calls of the torch API in a pass.

    Args:
        storages: The storages that earlier traces have seen, to which those of this one are added; held weakly, so that
            no address is given away again.

    Attributes:
        steps: The calls, and between them the storages [leaf, storage] of what left out calls return.
        fresh: The storages that no earlier trace has seen.
        leaves: What is read of the calls that are left out, by the storage of the copy.
        writes: What each call that is to be left out writes to: tensors by their number among its arguments, and what
            earlier ones return.
        returned: What these calls return.
        inside: Whether such a call runs.
    """

    def __init__(self, storages: dict[int, StorageWeakRef]) -> None:
        super().__init__()
        self.steps: list[_Step | dict[Leaf, _Key]] = []
        self.fresh: set[_Key] = set()
        self.leaves: dict[_Key, Leaf] = {}
        self.writes: list[frozenset[int | Leaf]] = []
        self.returned: dict[Leaf, Tensor] = {}
        self.inside = False
        self._storages = storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in([args, kwargs])
        keys, versions = [self.key(tensor) for tensor in given], [version(tensor) for tensor in given]
        result = func(*args, **kwargs)
        # Where the storage is another one (x.data = y), the tensor was written to as well.
        is_written = tuple(
            version(tensor) != before or self.key(tensor) != key
            for tensor, key, before in zip(given, keys, versions, strict=True)
        )
        for tensor in given:
            if isinstance(tensor, Placeholder) and tensor.is_read:
                self.leaves[self.key(tensor.numbers())] = tensor.leaf
        made = []
        new = set()
        for tensor in tensors_in(result):
            count = len(self._storages)
            made.append(self.key(tensor))
            if len(self._storages) > count:
                new.add(made[-1])
        what = func, _form([args, kwargs])
        self.steps.append(_Step(what, tuple(keys), is_written, tuple(made), frozenset(new), self.inside))
        return result

    def key(self, tensor: Tensor) -> _Key:
        """Return what tells the tensor's storage from others."""
        if isinstance(tensor, Placeholder):
            return tensor.leaf
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        address = int(reference.cdata)
        if address not in self._storages:
            self._storages[address] = reference
            self.fresh.add(address)
        return address

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Take what is made for a part of what is left out."""
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


def storages_of(network: nn.Module) -> dict[int, StorageWeakRef]:
    """Return the storages that exist before all passes, of parameters and buffers."""
    storages: dict[int, StorageWeakRef] = {}
    trace = Trace(storages)
    for tensor in (*network.parameters(), *network.buffers()):
        trace.key(tensor)
    return storages


def version(tensor: Tensor) -> int:
    """Return a number that every write to a tensor changes."""
    return -1 if tensor.is_inference() else tensor._version


def versions(tensors: Mapping[Any, Tensor]) -> dict[Any, int]:
    """Return the version of each tensor."""
    return {name: version(tensor) for name, tensor in tensors.items()}


def written(tensors: Mapping[Any, Tensor], before: Mapping[Any, int]) -> frozenset[Any]:
    """Return the names of the tensors that have been written to since they had these versions."""
    return frozenset(name for name, number in versions(tensors).items() if number != before[name])


def _form(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Tensor
    if isinstance(argument, tuple | list):
        return type(argument), *map(_form, argument)
    if isinstance(argument, dict):
        return tuple((key, _form(part)) for key, part in argument.items())
    plain = bool | int | float | complex | str | slice | torch.dtype | torch.device | torch.layout | torch.memory_format
    return repr(argument) if argument is None or isinstance(argument, plain) else type(argument)


class Rehearsal(Prefix):
    """Makes passes that are traced: with the calls that are to be left out, or without.

    Args:
        network: The network.
        site: The site.
        outputs: Per call the module's dotted name and what it returned.
        trace: Traces one pass.
        is_whole: Whether the calls are made.
    """

    def __init__(
        self, network: nn.Module, site: Place, outputs: Sequence[tuple[str, Any]], trace: Trace, *, is_whole: bool
    ) -> None:
        super().__init__(network, site, outputs, 0.0)
        self._trace, self._is_whole = trace, is_whole

    def replay(self, reads: Place | None, rows: Tensor | None) -> Replay:  # noqa: ARG002 - it is known
        """Return the context of a pass."""
        return _Rehearsed(self._calls, rows, self._trace, self._is_whole)


class _Rehearsed(Replay):
    def __init__(
        self, calls: Sequence[tuple[nn.Module, Any]], rows: Tensor | None, trace: Trace, is_whole: bool
    ) -> None:
        super().__init__(calls, rows)
        self._trace, self._is_whole = trace, is_whole

    def _forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own: Callable[..., Any] = self._own[module] or partial(type(module).forward, module)
        if self._trace.inside:
            return own(*args, **kwargs)
        with self._trace.left_out():
            number, output = self._next, super()._forward(module)
            if self._is_whole:
                exposed = dict(enumerate(tensors_in([args, kwargs]))) | self._trace.returned
                before = versions(exposed)
                output = own(*args, **kwargs)
                self._trace.writes.append(written(exposed, before))
        leaves: list[Any] = []
        mapped(output, leaves.append)
        with torch._C.DisableTorchFunction():
            returned: dict[Leaf, _Key] = {}
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Placeholder):
                    leaf.leaf = number, place
                elif isinstance(leaf, Tensor):
                    returned[number, place] = self._trace.key(leaf)
                    self._trace.returned[number, place] = leaf
        self._trace.steps.append(returned)
        return output


class ChangedAttributes:
    """Plain attributes that modules change in a pass, so that a later pass can be made without them.

    Args:
        modules: The modules, before the pass.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._before = [(module, {**vars(module)}) for module in modules]

    @contextmanager
    def withheld(self, modules: Container[nn.Module]) -> Iterator[None]:
        """Take those of some modules away: who reads one fails, or finds what the class holds."""
        changed = [
            (vars(module), {name: value for name, value in vars(module).items() if before.get(name) is not value})
            for module, before in self._before
            if module in modules
        ]
        for own, values in changed:
            for name in values:
                del own[name]
        try:
            yield
        finally:
            for own, values in changed:
                own.update(values)


def same_steps(shorter: Trace, whole: Trace) -> bool:
    """Tell whether a pass makes the operations of a whole one outside the calls that are left out, on the same tensors.

    What a tensor holds is told by its origin and by who has written to it, so neither weights nor samples matter: what
    a call that is left out writes into others' tensors, or hands on beside what it returns, is never the same.
    """
    # Of every storage of the whole pass: what the shorter pass calls those that hold the same there.
    same: dict[_Key, set[Any]] = {}
    names: dict[_Key, Any] = {**shorter.leaves}
    rest = iter([step for step in shorter.steps if isinstance(step, _Step) and not step.inside])

    def name_of(key: _Key) -> Any:
        return key if isinstance(key, tuple) else names.get(key)

    def is_read_alike(key: _Key, other: _Key) -> bool:
        name = name_of(other)
        if key in same:
            return name in same[key]
        # Neither has made it: a parameter, an argument. Only arguments are copied for every pass.
        if name is not None or (other != key and key not in whole.fresh):
            return False
        names[other] = "outside", other
        same[key] = {names[other]}
        return True

    for step in whole.steps:
        if isinstance(step, dict):
            for leaf, key in step.items():
                same.setdefault(key, set()).add(leaf)
            continue
        if step.inside:
            changed = [key for key, is_written in zip(step.given, step.written, strict=True) if is_written]
            same.update({key: set() for key in (*changed, *step.new)})
            continue
        other = next(rest, None)
        if other is None or step.what != other.what or step.written != other.written:
            return False
        if len(step.made) != len(other.made) or not all(map(is_read_alike, step.given, other.given)):
            return False
        for key, twin, is_written in zip(step.given, other.given, step.written, strict=True):
            if is_written:  # whoever else held the same in the shorter pass does no longer
                name = name_of(twin)
                for holders in same.values():
                    holders.discard(name)
                same[key] = {name}
        for key, twin in zip(step.made, other.made, strict=True):
            # One may be a view where the other is a copy, by how their numbers lie.
            if name_of(twin) is None:
                names[twin] = "made", twin
                same.setdefault(key, set()).add(names[twin])
            elif name_of(twin) not in same.setdefault(key, {name_of(twin)}):
                return False
    return next(rest, None) is None
