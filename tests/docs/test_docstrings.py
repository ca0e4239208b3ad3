"""Every public name shows in its own docstring what it does: an example that runs."""

import importlib.util
import inspect
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("test_links", Path(__file__).with_name("test_links.py"))
links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(links)

SECTION = re.compile(r"^(Args|Attributes):$", re.MULTILINE)


def described(found):
    """The docstring that an object has of its own; that of a base is no description of it."""
    own = vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__
    return inspect.cleandoc(own or "")


def is_result(found):
    """Whether an object is made by functions and only read: it has attributes and takes no arguments."""
    return inspect.isclass(found) and set(SECTION.findall(described(found))) == {"Attributes"}


def without_example(objects):
    """The names of what has no example of its own, though it is neither abstract nor a result."""
    return [
        links.home(found)
        for found in objects
        if ">>> " not in described(found) and not inspect.isabstract(found) and not is_result(found)
    ]


def public():
    """Every public class and function."""
    homes = (name.rpartition(".") for name in sorted(links.public()))
    return [getattr(importlib.import_module(module), name) for module, _, name in homes]


PUBLIC = public()


def test_every_public_name_has_an_example_of_its_own():
    assert len(PUBLIC) > 150
    assert without_example(PUBLIC) == []


def test_few_are_excused():
    excused = [found for found in PUBLIC if ">>> " not in described(found)]
    assert len(excused) < 0.15 * len(PUBLIC)


class Abstract(ABC):
    """What some share."""

    @abstractmethod
    def act(self):
        """Act."""


class Shown(Abstract):
    """Has one.

    >>> 1 + 1
    2
    """

    def act(self):
        """Act."""


class Inherits(Shown):
    """Has that of its base only."""


class Silent(Shown):
    def act(self):
        """Act."""


@dataclass
class Result:
    """What a function returns.

    Attributes:
        number: A number.
    """

    number: int


@dataclass
class Choice:
    """What a function is given.

    Args:
        number: A number.

    Attributes:
        found: What came of it.
    """

    number: int


def function():
    """Takes nothing."""


@pytest.mark.parametrize("found", [Inherits, Silent, Choice, function])
def test_the_test_can_fail(found):
    assert without_example([found]) == [links.home(found)]


@pytest.mark.parametrize("found", [Abstract, Shown, Result])
def test_it_need_not(found):
    assert without_example([found]) == []
