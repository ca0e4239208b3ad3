"""Arguments that hold others: dicts, dataclasses, named tuples, lists and tuples, as leaves and put together again."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from lightning_xai.sites import Key

Path = tuple[Key, ...]
"""Where a leaf is: the place of the argument, then keys, names of fields and numbers."""


def key_of(path: Path) -> Key:
    """Return the name of a leaf: its path with dots; the place of an argument that is no container.

    >>> key_of((0, "image")), key_of((0,)), key_of(("batch", "views", 1))
    ('0.image', 0, 'batch.views.1')
    """
    return path[0] if len(path) == 1 else ".".join(map(str, path))


def parts_of(value: Any) -> dict[Key, Any] | None:
    """Return what a dict, namespace, dataclass or named tuple holds, by key or name; None for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, SimpleNamespace):
        return {name: part for name, part in vars(value).items() if not _is_cached(value, name)}
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None


def tensors_held(value: Any) -> list[Tensor]:
    """Return the tensors that an object which is no container holds in its attributes, and in containers and lists."""
    return [] if isinstance(value, nn.Module | type) else _tensors(getattr(value, "__dict__", value))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = dict(enumerate(value)) if isinstance(value, list | tuple) else parts_of(value)
    return [tensor for part in (parts or {}).values() for tensor in _tensors(part)]


def leads_into(name: str, path: Path, arguments: Collection[Key]) -> bool:
    """Whether a name, whole or the end of one, goes on inside the container at a path.

    Args:
        name: The name of a leaf.
        path: The path of the container.
        arguments: The places of all arguments; a name may begin with that of one which is given by its place.

    >>> leads_into("views.1", ("batch", "views"), ["batch"]), leads_into("batch.1", (0,), [0])
    (True, True)
    """
    parts, place = name.split("."), [str(key) for key in path]
    heads = [parts[:end] for end in range(1, len(parts))]
    if isinstance(path[0], int) and parts[0] not in map(str, arguments):
        heads += [[place[0], *head[1:]] for head in heads]
    return any(place[-len(head) :] == head for head in heads)


def leaves_of(value: Any, path: Path, named: Collection[str], arguments: Collection[Key]) -> dict[Path, Any]:
    """Return the leaves of an argument by their paths.

    Args:
        value: The argument.
        path: Its path.
        named: Names of leaves; a list or tuple into which none of them leads may hold an entry for every sample, and is
            a leaf itself.
        arguments: The places of all arguments.

    Raises:
        ValueError: If a dataclass holds a tensor beside its fields.
    """
    parts = parts_of(value)
    if parts is not None and is_dataclass(value):
        for name, part in getattr(value, "__dict__", {}).items():
            if name not in parts and not _is_cached(value, name) and _tensors(part):
                raise ValueError(
                    f"{key_of(path)!r} is a {type(value).__name__} that holds a tensor in {name!r}, which is no field, "
                    f"so that it would not follow the samples: make it a field, or a property."
                )
    if parts is None and isinstance(value, list | tuple) and any(leads_into(n, path, arguments) for n in named):
        parts = dict(enumerate(value))
    if not parts:
        return {path: value}
    found: dict[Path, Any] = {}
    for key, part in parts.items():
        found |= leaves_of(part, (*path, key), named, arguments)
    return found


def rebuilt(value: Any, path: Path, leaves: Mapping[Path, Any]) -> Any:
    """Return a copy of an argument, with its leaves of the same path replaced; containers keep their types."""
    if path in leaves:
        return leaves[path]
    parts = dict(enumerate(value)) if type(value) in (list, tuple) else parts_of(value)
    if not parts:
        return value
    new = {key: rebuilt(part, (*path, key), leaves) for key, part in parts.items()}
    if isinstance(value, Mapping):
        copied = _fresh_copy(value)
        for key, part in new.items():
            copied[key] = part
        return copied
    if isinstance(value, tuple | list):
        return type(value)(*new.values()) if hasattr(value, "_fields") else type(value)(new.values())
    copied = _fresh_copy(value)
    for key, part in new.items():
        object.__setattr__(copied, str(key), part)  # of a frozen dataclass, too
    return copied


def _is_cached(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name, None), cached_property)


def _fresh_copy(value: Any) -> Any:
    """A copy that computes its cached properties anew."""
    copied = copy.copy(value)
    held = getattr(copied, "__dict__", {})
    for name in [name for name in held if _is_cached(value, name)]:
        del held[name]
    return copied
