"""Arguments that hold others: dicts, dataclasses, named tuples, lists and tuples, as leaves and put together again."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

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
    """Return what a dict, dataclass or named tuple holds, by key or name; None for anything else."""
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if isinstance(key, int | str)}
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None


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
    """
    parts = parts_of(value)
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
        copied: Any = copy.copy(value)
        for key, part in new.items():
            copied[key] = part
        return copied
    if isinstance(value, tuple | list):
        return type(value)(*new.values()) if hasattr(value, "_fields") else type(value)(new.values())
    copied = copy.copy(value)
    for key, part in new.items():
        object.__setattr__(copied, str(key), part)  # of a frozen dataclass, too
    return copied
