"""Packages that import what they export when it is first used."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_EXPORT = re.compile(r"^from (\S+) import (\w+) as \2$", re.MULTILINE)


class _LazyPackage(ModuleType):
    """A package whose public names are resolved on first use (:pep:`562`)."""

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        home = self._homes.get(name)
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = import_module(f"{home}.{name}") if home == self.__name__ else getattr(import_module(home), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # When `package.importance` is imported, Python makes the module an attribute of the package: it would hide the
        # function `importance` that the package exports.
        if not isinstance(value, ModuleType) or self._homes.get(name, self.__name__) == self.__name__:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def lazy(package: str) -> list[str]:
    """Make a package lazy, and return the names that it exports: those that the stub beside it imports.

    The stub ``__init__.pyi`` is what type checkers read, so it is the one list of the public names. Call this at the
    end of ``__init__.py``, as ``__all__ = lazy(__name__)``.
    """
    module = sys.modules[package]
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    module.__dict__["_homes"] = {name: home for home, name in _EXPORT.findall(stub)}
    module.__class__ = _LazyPackage
    return list(module.__dict__["_homes"])
