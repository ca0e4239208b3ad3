"""Which arguments of a network hold something for every sample, and so follow the samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_xai._guard import forward
from lightning_xai.inputs.bound_model import Arguments, Binding, BoundModel
from lightning_xai.rows import DEPENDENT, REMEDY, rounding_of, row_difference, rows_of
from lightning_xai.sites import Key

_MOST_CANDIDATES = 6
# Outputs that agree so well are the same; of others the nearest is taken, if rounding explains what is left.
_SAME = 1e-6


def _has_rows(value: Any, samples: int) -> bool:
    """Whether a value could hold something for every sample."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and len(value) == samples
    if isinstance(value, Mapping):
        return bool(value) and all(_has_rows(part, samples) for part in value.values())
    return isinstance(value, list | tuple) and len(value) == samples


# Which arguments follow the samples, by the network and the places that could: the answer for one batch is that for
# the next.
_known_following: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], frozenset[Key]]] = WeakKeyDictionary()


def following_arguments(network: nn.Module, arguments: Arguments, constant: Iterable[Key] | None) -> frozenset[Key]:
    """Find the fixed arguments that hold something for every sample, by trying.

    Args:
        network: The network, inside :func:`lightning_xai._guard.isolated_eval`.
        arguments: Its arguments.
        constant: Those that are known not to follow; nothing is tried then.

    Raises:
        ValueError: If no answer gives the outputs of the batch, or there are too many to try.
    """
    source = arguments.source()[0]
    samples = len(source)
    could = [
        key for key, value in arguments.values.items() if key not in arguments.explained and _has_rows(value, samples)
    ]
    if constant is not None or not could:
        return frozenset(could) - frozenset(constant or ())
    question = (samples, arguments.explained, *((key, _form(arguments.values[key])) for key in could))
    known = _known_following.setdefault(network, {})
    if question in known:
        return known[question]
    found, certain = _tried(network, arguments, could)
    if certain:  # else another batch may tell: here it makes no difference
        known[question] = found
    return found


def _form(value: Any) -> Any:
    """The shape of a tensor, or the type of another value, by which batches are told apart."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value)


def _tried(network: nn.Module, arguments: Arguments, could: Sequence[Key]) -> tuple[frozenset[Key], bool]:
    """The arguments that follow, and whether no other answer fits the batch as well."""
    sources = arguments.source()
    samples = len(sources[0])
    explained = sources[0] if len(sources) == 1 else torch.cat([source.flatten(1) for source in sources], 1)
    # One sample twice, and three rows, so that what holds two things that are no samples does not fit by chance.
    rows = torch.tensor([samples - 1, samples - 1, 0])
    clean = rows_of(forward(BoundModel(network, Binding(arguments)), explained), samples, rows)
    if not clean:
        raise ValueError(
            f"the model's output has no tensor with a row per sample, by which it could be found whether the arguments "
            f"{', '.join(map(repr, could))} are given per sample: say with constant=[...] which are not."
        )
    errors: list[Exception] = []

    def difference(following: frozenset[Key]) -> float:
        bound = BoundModel(network, Binding(replace(arguments, following=following), rows=rows))
        try:
            found = rows_of(forward(bound, explained[rows.to(explained.device)]), len(rows), torch.arange(len(rows)))
        except Exception as error:  # three rows do not fit a constant of another number of them
            errors.append(error)
            return float("inf")
        return row_difference(clean, found)

    choices = [
        frozenset(could) - frozenset(constants)
        for count in range(len(could) + 1 if len(could) <= _MOST_CANDIDATES else 2)
        for constants in itertools.combinations(could, count)
    ]
    differences: dict[frozenset[Key], float] = {}
    for following in choices:
        differences[following] = difference(following)
        if differences[following] <= _SAME:
            break
    nearest = min(differences, key=lambda following: differences[following])
    if differences[nearest] <= rounding_of(network, clean):
        others = [nearest ^ {key} for key in could]
        return nearest, all(differences.get(other) or difference(other) > _SAME for other in others)
    why = f" ({type(errors[0]).__name__}: {errors[0]})" if errors else ""
    if len(could) > _MOST_CANDIDATES:
        raise ValueError(
            f"which of the {len(could)} arguments {', '.join(map(repr, could))} are given per sample was not "
            f"found{why}, and they are too many to try all choices: say with constant=[...] which are not."
        )
    raise ValueError(
        f"{DEPENDENT}, whichever of the arguments {', '.join(map(repr, could))} are taken to be given per "
        f"sample{why}. {REMEDY}"
    ) from (errors[0] if errors else None)
