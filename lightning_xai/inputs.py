"""What a network is given, and which of it is explained: an argument, or the output of one of its modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_xai._checks import Layer, as_integer, as_layer, unknown
from lightning_xai.bound_model import Arguments
from lightning_xai.places import Key

_LABELS = "labels"  # with them, networks of transformers return a loss, too
# The arguments that stand for the data by convention (transformers).
_DATA = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds")


@dataclass(frozen=True)
class Site:
    """The output of a module, to be explained instead of the input.

    Args:
        layer: The module, by its dotted name or the module itself.
        axis: The axis of its units (channels, features); found by :func:`~lightning_xai.axes.axis_facts` unless given.
        part: Which part of a module that returns a tuple, list or dict: a number or a key.
        call: Which call of a module that runs several times, counted from 0.

    Raises:
        TypeError: If the layer is neither a name nor a module.

    >>> Site("embeddings", axis=-1)
    Site(layer='embeddings', axis=-1, part=None, call=None)
    """

    layer: Layer
    axis: int | None = None
    part: Key | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_layer(self.layer))
        if self.axis is not None:
            as_integer("axis", self.axis)
        if self.call is not None:
            as_integer("call", self.call, least=0)


SiteLike: TypeAlias = Site | Layer | None


def as_site(at: SiteLike) -> Site | None:
    """Convert a layer to its :class:`Site`."""
    return at if at is None or isinstance(at, Site) else Site(at)


class Inputs:
    r"""The arguments of a network: which are explained, and where.

    Everything else stays as it is for its sample: what is given per sample (masks, a second input) follows the samples
    through every chunk, draw and step; what is not (a graph, a table of positions) stays whole. Which is which is tried
    on a few rows, unless ``constant`` says so.

    Args:
        *args: The network's positional arguments.
        explain: Which argument is explained, by its number or its name; several give a map each. Unless given, the
            only one, the only one given by position, the one with the usual name of data (``input_ids``,
            ``pixel_values``, ...), or the only one of floating-point numbers.
        at: The module whose output is explained instead, by its dotted name, or a :class:`Site`. Integer ids are
            explained at the embedding that takes them unless it is given.
        absent: Cells that are no features, Boolean [N, \*S], such as special tokens. Padding, where
            ``attention_mask`` is 0, always is absent.
        position: Which position of an output with one axis of them is read of each sample, integers [N].
        constant: The arguments that are not given per sample, by number or name; found unless given.
        **kwargs: The network's named arguments. ``labels`` do not enter the network.

    Raises:
        TypeError: If there is no argument that can be explained.
        ValueError: If it cannot be told which one is.

    >>> inputs = Inputs(torch.zeros(2, 3, 8, 8), table=torch.ones(2, 5), explain="table")
    >>> inputs
    Inputs([2, 3, 8, 8], table=[2, 5], explain='table')
    >>> len(inputs)
    2
    """

    def __init__(
        self,
        *args: Any,
        explain: Key | Sequence[Key] | None = None,
        at: SiteLike = None,
        absent: Tensor | None = None,
        position: Tensor | Sequence[int] | None = None,
        constant: Sequence[Key] | None = None,
        **kwargs: Any,
    ) -> None:
        values: dict[Key, Any] = dict(enumerate(args))
        values.update(kwargs)
        self._set(values, explain, at, absent, position, constant)

    @classmethod
    def of(cls, values: Mapping[Any, Any], explain: Key | Sequence[Key] | None = None) -> Inputs:
        """Return named arguments, which may have the names of options of this class.

        >>> Inputs.of({"x": torch.zeros(2, 3), "position": torch.ones(2, 3)}, explain="x")
        Inputs(x=[2, 3], position=[2, 3], explain='x')
        """
        found = cls.__new__(cls)
        found._set(dict(values), explain, None, None, None, None)
        return found

    def _set(
        self,
        values: dict[Key, Any],
        explain: Key | Sequence[Key] | None,
        at: SiteLike,
        absent: Tensor | None,
        position: Tensor | Sequence[int] | None,
        constant: Sequence[Key] | None,
    ) -> None:
        self.values = values
        self.values.pop(_LABELS, None)
        self.at = as_site(at)
        self.absent = absent
        self.position = None if position is None else torch.as_tensor(position)
        self.constant = None if constant is None else tuple(constant)
        for key in self.constant or ():
            self._known("constant", key)
        self.explain: tuple[Key, ...] = self._explained(explain)
        lengths = {key: len(self.values[key]) for key in self.explain}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the explained arguments must have as many samples each, got {lengths}.")
        if self.position is not None and (self.position.is_floating_point() or self.position.shape != (len(self),)):
            raise ValueError(f"position must be integers [{len(self)}], got {list(self.position.shape)}.")
        if absent is not None and (not isinstance(absent, Tensor) or absent.dtype != torch.bool):
            raise TypeError("absent must be a Boolean tensor [N, *S].")

    def __len__(self) -> int:
        return len(self.values[self.explain[0]])

    def __repr__(self) -> str:
        parts = [
            f"{'' if isinstance(key, int) else f'{key}='}{list(value.shape) if isinstance(value, Tensor) else value!r}"
            for key, value in self.values.items()
        ]
        chosen = self.explain[0] if len(self.explain) == 1 else self.explain
        parts += [f"explain={chosen!r}"] * (len(self.values) > 1)
        parts += [] if self.at is None else [f"at={self.at.layer!r}"]
        return f"Inputs({', '.join(parts)})"

    @property
    def sources(self) -> list[Tensor]:
        """The arguments that are explained, as tensors [N, ...]."""
        return Arguments(self.values, self.explain).source()

    def only(self, key: Key) -> Inputs:
        """Return the same arguments with one of them explained."""
        found = copy.copy(self)
        found.explain = (key,)
        return found

    def _known(self, argument: str, key: Key) -> None:
        if key not in self.values:
            raise ValueError(unknown(argument, str(key), map(str, self.values)))

    def _explained(self, explain: Key | Sequence[Key] | None) -> tuple[Key, ...]:
        can = {key: value for key, value in self.values.items() if _is_data(value)}
        if explain is not None:
            chosen = (explain,) if isinstance(explain, int | str) else tuple(explain)
            for key in chosen:
                self._known("explain", key)
                if key not in can:
                    raise TypeError(f"explain={key!r} is a {type(self.values[key]).__name__}, not a tensor [N, ...].")
            if not chosen:
                raise ValueError("explain names no argument.")
            return chosen
        if not can:
            raise TypeError(f"there is no tensor [N, ...] to explain among the arguments {list(self.values)}.")
        numbers = [key for key, value in can.items() if _first(value).is_floating_point()]
        placed = [key for key in can if isinstance(key, int)]
        for some in (list(can), placed, [key for key in can if key in _DATA], numbers):
            if len(some) == 1:
                return (some[0],)
        raise ValueError(
            f"the model takes several tensors, {', '.join(map(repr, can))}: say which is explained, e.g. "
            f"Inputs(..., explain={next(iter(can))!r})."
        )


InputsLike: TypeAlias = Tensor | Inputs | Mapping[str, Any] | tuple[Any, ...]


def as_inputs(inputs: InputsLike) -> Inputs:
    """Convert what a network is given to :class:`Inputs`: a tuple holds its arguments, a dict its named ones.

    Raises:
        TypeError: If it is none of these.

    >>> as_inputs({"input_ids": torch.zeros(2, 4, dtype=torch.long), "labels": torch.zeros(2)})
    Inputs(input_ids=[2, 4])
    """
    if isinstance(inputs, Inputs):
        return inputs
    if isinstance(inputs, Mapping):
        return Inputs.of(inputs)
    if isinstance(inputs, tuple):
        return Inputs(*inputs)
    if isinstance(inputs, Tensor):
        return Inputs(inputs)
    raise TypeError(
        f"inputs must be a tensor [N, C, *S], a tuple or dict of the model's arguments, or Inputs(...), got "
        f"{type(inputs).__name__}."
    )


def is_plain(inputs: Any) -> bool:
    """Whether the inputs are the one tensor of numbers that a network takes."""
    return isinstance(inputs, Tensor) and (inputs.is_floating_point() or inputs.is_complex())


def _is_data(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(part, Tensor) for part in value)
    return (isinstance(value, Tensor) and value.ndim > 0) or (whole and len({part.shape for part in value}) == 1)


def _first(value: Any) -> Tensor:
    found: Tensor = value if isinstance(value, Tensor) else value[0]
    return found
