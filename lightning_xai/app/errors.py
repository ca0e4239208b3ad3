"""Errors of a run, in one message with a remedy on the command line."""

from __future__ import annotations

import re
from inspect import Parameter, signature
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

_EXPECTED = (ValueError, TypeError, ImportError, OSError, HydraException)
_NOT_ARGUMENTS = ("_target_", "_convert_", "_partial_", "_recursive_", "hydra")
_COMMAND_LINE_HINTS = {  # what some messages, written for Python, recommend
    "unpack=lambda": "'monitor.unpack={_target_:my_module.unpack,_partial_:true}'",
    "(output=...)": "score.output=key",
    "LRP(score=...)": "attribution.score={_target_:lightning_xai.scores.Margin}",
    "ExplanationMonitor(model=...)": "monitor.model=...",
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
        ValueError: If the class does not take an argument, or must be given one that is left open.
    """
    from lightning_xai._checks import unknown

    make = instantiate(entry, _partial_=True)
    parameters = signature(make.func).parameters
    names = [str(name) for name in entry if name not in _NOT_ARGUMENTS]
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in names:
            if name not in parameters:
                known = [f"{place}.{parameter}" for parameter in parameters]
                raise ValueError(unknown("argument", f"{place}.{name}", known))
    for name in names:
        if OmegaConf.is_missing(entry, name):
            raise ValueError(f"{place}.{name} must be given: {place}.{name}=...")
    try:
        return make(*found, **missing)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{place}: {error}") from error


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
    return "".join([place, kind, message, *hints])
