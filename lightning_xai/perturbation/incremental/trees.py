"""The arguments of recorded calls: trees of lists, tuples, dicts and slices, with marks in place of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ref:
    """A value of the record, in place of a tensor among the arguments of a call."""

    index: int


@dataclass(frozen=True)
class Held:
    """A tensor that was there before the pass, as a parameter; its place in :attr:`Record.held`."""

    index: int


@dataclass(frozen=True)
class PerRow:
    """An integer that follows the number of rows: ``slope * rows + base``."""

    slope: int
    base: int

    def at(self, rows: int) -> int:
        """The integer for so many rows."""
        return self.slope * rows + self.base


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A tree of lists, tuples, dicts and slices with every leaf changed."""
    if isinstance(tree, list):
        return [mapped(part, change) for part in tree]
    if isinstance(tree, tuple):
        parts = [mapped(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, dict):
        return {name: mapped(part, change) for name, part in tree.items()}
    if isinstance(tree, slice):
        return slice(*(mapped(part, change) for part in (tree.start, tree.stop, tree.step)))
    return change(tree)


def leaves(tree: Any) -> list[Any]:
    """The leaves of such a tree, in order."""
    found: list[Any] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, list | tuple):
        for part in tree:
            _collect(part, found)
    elif isinstance(tree, dict):
        for part in tree.values():
            _collect(part, found)
    elif isinstance(tree, slice):
        found += (tree.start, tree.stop, tree.step)
    else:
        found.append(tree)
