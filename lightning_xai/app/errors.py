"""Errors of a run, in one message with a remedy on the command line."""

from __future__ import annotations

import re
from inspect import Parameter, isclass, signature
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

_EXPECTED = (ValueError, TypeError, ImportError, OSError, HydraException)
_NOT_ARGUMENTS = ("_target_", "_convert_", "_partial_", "_recursive_", "_args_", "hydra")
_COMMAND_LINE_HINTS = {  # what some messages, written for Python, recommend
    "unpack=lambda": "'monitor.unpack={_target_:my_module.unpack,_partial_:true}'",
    "(output=...)": "score.output=key",
    "LRP(score=...)": "attribution.score={_target_:lightning_xai.scores.Margin}",
    "ExplanationMonitor(model=...)": "monitor.model=...",
    "Pictures(class_names=...)": "'monitor.pictures.class_names=[cat,dog]'",
    "Config group override must be": "a choice is a name, regions=windows, and its arguments follow, regions.size=3",
    "No supported gpu backend": "trainer.accelerator=cpu",
    "`tensorboardX` is available": "pip install 'lightning-xai[tensorboard]', or logger=csv",
}


def build(place: str, entry: DictConfig, *found: Any, **missing: Any) -> Any:
    """Build what an entry of the config names.

    Args:
        place: Of the entry in the config, for messages.
        entry: The class by its ``_target_``, and arguments.
        *found: Further arguments by place.
        **missing: Further arguments by name.

    Raises:
        TypeError: If the entry names no class, or an argument is no number where the class takes only those.
        ValueError: If the class does not take an argument, or must be given one that is left open.
    """
    check_arguments(place, entry)
    make = instantiate(entry, _partial_=True)
    try:
        return make(*found, **missing)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{place}: {error}") from error


def check_arguments(place: str, entry: Any) -> None:
    """Refuse arguments that what an entry of the config names does not take, and those of the entries inside it.

    Raises:
        TypeError: If the entry names no class, or an argument is no number where the class takes only those.
        ValueError: If the class does not take an argument, or must be given one that is left open.
    """
    from lightning_xai._checks import unknown

    if not isinstance(entry, DictConfig) or not isinstance(entry.get("_target_"), str):
        raise TypeError(f"{place} must name a class: {place}._target_=my_module.MyClass, got {entry}.")
    try:
        make = get_object(entry._target_)
    except Exception as error:  # of the module itself, too; in words as from `instantiate`
        raise InstantiationException(f"Error locating target '{entry._target_}'.\nfull_key: {place}") from error
    try:
        parameters = signature(make).parameters
    except ValueError:  # functions written in C have none
        return
    numbers = {} if entry._target_.startswith("lightning_xai.") else _numbers(make)  # our own say it themselves
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in (str(name) for name in entry if name not in _NOT_ARGUMENTS):
        if not takes_any and name not in parameters:
            known = [f"{place}.{parameter}" for parameter in parameters]
            raise ValueError(unknown("argument", f"{place}.{name}", known))
        if OmegaConf.is_missing(entry, name):
            raise ValueError(f"{place}.{name} must be given: {place}.{name}=...")
        value = entry[name]
        if isinstance(value, DictConfig) and "_target_" in value:
            check_arguments(f"{place}.{name}", value)
        if isinstance(value, str) and name in numbers:
            raise TypeError(f"{place}.{name} must be {numbers[name]}, got {value!r}.")


def _numbers(make: Any) -> dict[str, str]:
    """Describe those arguments that are numbers, or yes or no, by their annotation or else their default."""
    words = {bool: "true or false", int: "an integer", float: "a number", type(None): "null"}
    try:
        hints = get_type_hints(make.__init__ if isclass(make) else make)
    except (NameError, TypeError):  # names that only a type checker knows
        hints = {}
    found = {}
    for name, parameter in signature(make).parameters.items():
        hint = hints.get(name, type(parameter.default) if parameter.annotation is Parameter.empty else None)
        types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if hint is not type(None) and all(kind in words for kind in types):
            found[name] = " or ".join(words[kind] for kind in types)
    return found


def error_message(error: BaseException) -> str:
    """Say what went wrong and where, without what Hydra wraps around it."""
    from lightning_xai._checks import unknown  # which loads torch

    place = ""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        place = next((f"{key}: " for key in re.findall("full_key: (.+)", str(error))), place)
        error = error.__cause__
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return unknown(group, name, error.options)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: {error.full_key}=..."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        key, siblings = str(cause.full_key), [str(name) for name in cause.parent_node if name not in _NOT_ARGUMENTS]
        known = [".".join([*key.split(".")[:-1], name]) for name in siblings]
        message = unknown("argument", key, known) if known else f"argument {key!r} is not in the config."
        return f"{message} An argument that the config leaves to its default is added with a plus: +{key}=..."
    # Lightning's own is known by its name, as its import takes seconds.
    expected = isinstance(error, _EXPECTED) or type(error).__name__ == "MisconfigurationException"
    kind = "" if expected else f"{type(error).__name__}: "
    message = str(error).partition("\n\nConfig search path:")[0]
    hints = [f" On the command line: {hint}." for words, hint in _COMMAND_LINE_HINTS.items() if words in message]
    end = "." if hints and message[-1:].isalnum() else ""
    return "".join([place, kind, message, end, *hints])
