"""Checks of arguments, and the messages of their errors."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from inspect import isabstract
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_MOST_NAMES = 60
_EXACT = 2**53  # integers beyond are made floats, as torch takes no larger ones than int64
_KINDS: dict[str, tuple[str, type, type]] = {
    "float": ("a number", numbers.Real, float),
    "int": ("an integer", numbers.Integral, int),
    "bool": ("True or False", bool, bool),
}


class IncompatibleError(ValueError):
    """Raised where choices that are valid by themselves cannot be combined."""


def spatial_shape(inputs: Tensor | Sequence[int]) -> tuple[int, ...]:
    """Return the spatial shape S of inputs [N, C, *S]; the columns (F,) of a table [N, F].

    Raises:
        ValueError: If there are no or more than three spatial axes.
    """
    shape = tuple(int(length) for length in (inputs.shape if isinstance(inputs, Tensor) else inputs))
    if not 2 <= len(shape) <= 5:
        raise ValueError(
            f"inputs must be [N, C, *S] with one to three spatial axes, or a table [N, F], got shape {list(shape)}."
        )
    return shape[2:] or shape[1:]


def check_model(model: nn.Module) -> None:
    """Raise if an object is not a module.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module.")


def check_inputs(inputs: Tensor, sample_ids: Tensor | Sequence[int] | None = None) -> tuple[int, ...]:
    """Check the inputs, and return the samples' ids as integers.

    Raises:
        TypeError: If the inputs are not a tensor of floating-point numbers.
        ValueError: If there is no sample, a number is not finite, or the ids are not one per sample.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor [N, C, *S], got {type(inputs).__name__}.")
    if not inputs.is_floating_point():
        remedy = (
            "give the parts as channels"
            if inputs.is_complex()
            else "use inputs.float(), or, where they are ids, name the embedding that takes them: Inputs(ids, at=...)"
        )
        raise TypeError(f"inputs must be floating-point numbers, got {inputs.dtype}; {remedy}.")
    spatial_shape(inputs)
    if inputs.numel() == 0:
        raise ValueError(f"inputs must hold at least one sample and one cell, got shape {list(inputs.shape)}.")
    broken = ~inputs.isfinite().flatten(1).all(1)
    if broken.any():
        raise ValueError(
            f"inputs hold NaN or infinite values in the samples {broken.nonzero().flatten().tolist()}; leave those out."
        )
    if sample_ids is None:
        return tuple(range(inputs.shape[0]))
    try:
        ids = tuple(map(operator.index, sample_ids.tolist() if isinstance(sample_ids, Tensor) else sample_ids))
    except TypeError as error:
        raise TypeError(f"sample_ids must be integers, one per sample: {error}.") from error
    if len(ids) != inputs.shape[0]:
        raise ValueError(f"sample_ids must be one per sample: got {len(ids)} for {inputs.shape[0]} samples.")
    return ids


def check_fields(choice: Any) -> None:
    """Check the fields of a frozen dataclass that are declared as numbers or as Booleans.

    Numbers of numpy's become Python's. A field that is also declared as None may be None.

    Raises:
        TypeError: If a value is not of the declared kind.
        ValueError: If a number is NaN, or finite but beyond single precision, which inputs are in.
    """
    for part in fields(choice):
        name, declared = f"{part.name} of {type(choice).__name__}", _declared(part)
        value = getattr(choice, part.name)
        kind = declared.removesuffix(" | None")
        if kind not in _KINDS or (value is None and kind != declared):
            continue
        words, abstract, make = _KINDS[kind]
        if not isinstance(value, abstract) or (isinstance(value, bool) and kind != "bool"):
            raise TypeError(f"{name} must be {words}, got {value!r}.")
        if value != value:
            raise ValueError(f"{name} must be {words}, got nan.")
        if kind == "float":
            _check_within(name, value, torch.float32)
        if type(value) is not make and (not isinstance(value, int) or abs(value) > _EXACT):
            object.__setattr__(choice, part.name, make(value))


def check_numbers(choice: Any, dtype: torch.dtype) -> None:
    """Check that what a frozen dataclass holds for inputs of a dtype does not leave its range.

    Raises:
        ValueError: If a number or a tensor of numbers, other than of integers, is finite but beyond.
    """
    for part in fields(choice):
        value = getattr(choice, part.name)
        name = f"{part.name} of {type(choice).__name__}"
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.dtype != dtype and value.numel():
                _check_within(name, value.where(value.isfinite(), 0.0).abs().max().item(), dtype)
        elif isinstance(value, int | float) and _declared(part) != "int":
            _check_within(name, value, dtype)


def _declared(part: Field[Any]) -> str:
    return part.type if isinstance(part.type, str) else getattr(part.type, "__name__", str(part.type))


def _check_within(name: str, number: Any, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    if largest < abs(number) < math.inf:
        ends = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be within {largest:.3g} of 0, where {ends} ends, got {number}.")


def as_flag(name: str, value: Any) -> bool:
    """Return a value that is a Boolean.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def check_number(name: str, value: Any, least: float = -math.inf) -> None:
    """Raise if a value is not a finite number, or less than ``least``.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is too small, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    if value < least:
        small = "must not be negative" if least == 0 else f"must be at least {least}"
        raise ValueError(f"{name} {small}, got {value}.")


def as_integer(name: str, value: Any, least: int | None = None) -> int:
    """Return a value as an integer.

    Raises:
        TypeError: If it is not one.
        ValueError: If it is less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def unknown(argument: str, given: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, with the nearest known ones first."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    rest = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    return f"{argument} {given!r} is unknown.{hint} Known: {', '.join(known[:_MOST_NAMES])}{rest}."


def check_known(argument: str, value: str, known: Iterable[str]) -> None:
    """Raise if a name is not among the known ones.

    Raises:
        TypeError: If it is no name.
        ValueError: If it is not known; the near misses are listed.
    """
    known = list(known)
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a name, one of {', '.join(known[:_MOST_NAMES])}, got {value!r}.")
    if value not in known:
        raise ValueError(unknown(argument, value, known))


def as_choice(argument: str, value: Any, base: type, package: ModuleType) -> Any:
    """A member of an open set, or that of a name with its defaults; names are those of the classes in snake case.

    Args:
        argument: What is asked for, in the words of the error.
        value: A member or a name.
        base: The base class of the set.
        package: Where its members are exported.

    Raises:
        TypeError: If it is neither.
        ValueError: If the name is unknown (near misses are listed), or its class needs arguments.
    """
    if isinstance(value, base):
        return value
    exported = {_snake_case(name): getattr(package, name) for name in package.__all__ if name[0].isupper()}
    known = {name: kind for name, kind in exported.items() if issubclass(kind, base) and not isabstract(kind)}
    home = package.__name__
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be one of {home} or its name in snake case, got {type(value).__name__}.")
    check_known(argument, value, known)
    needed = [part.name for part in fields(known[value]) if part.default is MISSING and part.default_factory is MISSING]
    if needed:
        call = f"{home.rpartition('.')[2]}.{known[value].__name__}({', '.join(f'{name}=...' for name in needed)})"
        raise ValueError(f"{argument} {value!r} needs arguments: give {call}.")
    return known[value]()


def _snake_case(name: str) -> str:
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReLU", "Relu")).lower()
