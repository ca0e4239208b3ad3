"""The arguments of a network, and the part that is explained: an argument, or the output of a module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, unknown
from lightning_xai.inputs.bound_model import Arguments, Containers, stacked
from lightning_xai.inputs.leaves import Path, key_of, leaves_of
from lightning_xai.sites import Key, SiteLike, as_site

_LABELS = "labels"  # with them, networks of transformers return a loss, too
# The arguments that stand for the data by convention (transformers).
_DATA = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds")


class Inputs:
    r"""The arguments of a network: which are explained, and where.

    Everything else stays as it is for its sample: what is given per sample (masks, a second input) follows the samples
    through every chunk, draw and step; what is not (a graph, a table of positions) stays whole. Which is which is tried
    on a few rows, unless ``constant`` says so.

    What arguments hold that are dicts, namespaces, dataclasses or named tuples is treated one by one, and named with
    dots: ``"batch.image"`` of an argument ``batch``, or ``"image"`` alone where nothing else ends so. A list or tuple
    has an entry for every sample (images of a detector), unless a name leads into it: ``"0.1"`` is the second stream
    of ``forward([a, b])``.

    Args:
        *args: The network's positional arguments.
        explain: Which argument is explained, by its number or its name; several give a map each. Unless given, the
            only one, the only one given by position, the one with the usual name of data (``input_ids``,
            ``pixel_values``, ...), or the only one of floating-point numbers.
        at: The module whose output is explained instead, by its dotted name, or a :class:`Site`. Integer ids are
            explained at the embedding that takes them unless it is given.
        absent: Cells that are no features, Boolean [N, \*S], such as special tokens. Padding always is absent, where
            the mask of what is explained is 0: ``decoder_attention_mask`` of ``decoder_input_ids``, else
            ``attention_mask``, in the same container; and beyond lengths, integers [N], if nothing there is read.
            Another mask has to be said here.
        position: Which position of an output with one axis of them is read of each sample, integers [N].
        constant: The arguments that are not given per sample, by number or name; found unless given.
        axis: The axis of the channels of the explained argument where that is not 1, as in features of time steps
            [N, T, C], points [N, P, 3] or images [N, H, W, C]. Maps have the axes of the argument.
        **kwargs: The network's named arguments. ``labels`` do not enter the network, but tell what its decoder is
            given where it makes that of them.

    Raises:
        TypeError: If there is no argument that can be explained.
        ValueError: If it cannot be told which one is.

    >>> inputs = Inputs(torch.zeros(2, 3, 8, 8), table=torch.ones(2, 5), explain="table")
    >>> inputs
    Inputs([2, 3, 8, 8], table=[2, 5], explain='table')
    >>> len(inputs)
    2
    >>> Inputs({"image": torch.zeros(2, 3, 8, 8), "age": torch.ones(2, 1)}, explain="image")
    Inputs(0.image=[2, 3, 8, 8], 0.age=[2, 1], explain='0.image')
    """

    def __init__(
        self,
        *args: Any,
        explain: Key | Sequence[Key] | None = None,
        at: SiteLike = None,
        absent: Tensor | None = None,
        position: Tensor | Sequence[int] | None = None,
        constant: Sequence[Key] | None = None,
        axis: int | None = None,
        **kwargs: Any,
    ) -> None:
        values: dict[Key, Any] = dict(enumerate(args))
        values.update(kwargs)
        self._set(values, explain, at, absent, position, constant, axis)

    @classmethod
    def of(cls, values: Mapping[Any, Any], explain: Key | Sequence[Key] | None = None) -> Inputs:
        """Return named arguments, which may have the names of options of this class.

        >>> Inputs.of({"x": torch.zeros(2, 3), "position": torch.ones(2, 3)}, explain="x")
        Inputs(x=[2, 3], position=[2, 3], explain='x')
        """
        found = cls.__new__(cls)
        found._set(dict(values), explain, None, None, None, None, None)
        return found

    def _set(
        self,
        values: dict[Key, Any],
        explain: Key | Sequence[Key] | None,
        at: SiteLike,
        absent: Tensor | None,
        position: Tensor | Sequence[int] | None,
        constant: Sequence[Key] | None,
        axis: int | None,
    ) -> None:
        self.labels = values.pop(_LABELS, None)
        chosen = None if explain is None else (explain,) if isinstance(explain, int | str) else tuple(explain)
        self.claimed: dict[str, Key] = {}
        self.values, self.containers = self._leaves(values, [*(chosen or ()), *(constant or ())])
        self.at = as_site(at)
        self.absent = absent
        self.position = None if position is None else torch.as_tensor(position)
        below = [leaf for key in constant or () for leaf in self._below(key)]
        self.constant = None if constant is None else tuple(below)
        self.explain: tuple[Key, ...] = self._explained(chosen)
        self.axis = None if axis is None else self._channels(as_integer("axis", axis))
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
        return self.arguments(self.values).source()

    def arguments(self, values: Mapping[Key, Any]) -> Arguments:
        """Return arguments with some values, by place or name of a leaf."""
        return Arguments(values, self.explain, containers=self.containers, axis=self.axis or 1)

    def _channels(self, axis: int) -> int:
        if len(self.explain) > 1:
            raise ValueError("axis=... is that of one argument: name one with explain=... .")
        shape = list(stacked(self.values[self.explain[0]]).shape)
        if not -len(shape) <= axis < len(shape) or axis % len(shape) == 0:
            raise ValueError(f"axis={axis} cannot hold the channels of {shape}.")
        return axis % len(shape)

    def only(self, key: Key) -> Inputs:
        """Return the same arguments with one of them explained."""
        found = copy.copy(self)
        found.explain = (key,)
        return found

    def _leaves(self, values: dict[Key, Any], named: Sequence[Key]) -> tuple[dict[Key, Any], Containers]:
        """The leaves of all arguments by name, and the arguments that hold them."""
        leaves: dict[Key, Any] = {}
        paths: dict[Key, Path] = {}
        for key, value in values.items():
            for path, leaf in leaves_of(value, (key,), list(map(str, named)), values).items():
                if key_of(path) in leaves:
                    raise ValueError(f"the arguments hold two values that are called {key_of(path)!r}: rename one.")
                leaves[key_of(path)] = leaf
                if len(path) > 1:
                    paths[key_of(path)] = path
        return leaves, Containers({path[0]: values[path[0]] for path in paths.values()}, paths)

    def _below(self, key: Key) -> list[Key]:
        """The leaves that the name of a leaf, or of a container, stands for."""
        paths = self.containers.paths
        within = {key_of(path[:end]): path[:end] for path in paths.values() for end in range(1, len(path))}
        name = self._known("constant", key, {**within, **paths})
        top = within.get(name)
        return [name] if top is None else [leaf for leaf, path in paths.items() if path[: len(top)] == top]

    def _known(self, argument: str, key: Key, paths: Mapping[Key, Path]) -> Key:
        """The name, among some paths, that is named by its end, or by a name of an argument given by its place.

        Raises:
            ValueError: If there is none, or several.
        """
        if key in self.values or key in paths:
            return key
        ends = [name for name in paths if f".{name}".endswith(f".{key}")]
        first, _, rest = str(key).partition(".")
        if not ends and rest and first not in map(str, self.values):
            ends = [name for name, path in paths.items() if str(key_of(path[1:] or path)) == rest]
            ends = [name for name in ends if len(paths[name]) > 1 and isinstance(paths[name][0], int)]
            if len(ends) == 1:
                self.claimed[first] = paths[ends[0]][0]
        if len(ends) > 1:
            raise ValueError(f"{argument}={key!r} may be {' or '.join(map(repr, ends))}: write one of these.")
        if not ends:
            raise ValueError(unknown(argument, str(key), map(str, self.values)))
        return ends[0]

    def _explained(self, explain: Sequence[Key] | None) -> tuple[Key, ...]:
        can = {key: value for key, value in self.values.items() if _is_data(value)}
        if explain is not None:
            chosen = tuple(self._known("explain", key, self.containers.paths) for key in explain)
            for key in chosen:
                if key not in can:
                    raise TypeError(f"explain={key!r} is a {type(self.values[key]).__name__}, not a tensor [N, ...].")
            if not chosen:
                raise ValueError("explain names no argument.")
            return chosen
        if not can:
            streams = [key for key, value in self.values.items() if isinstance(value, list | tuple)]
            inside = f"; where one holds tensors, say which, e.g. explain='{streams[0]}.0'" if streams else ""
            raise TypeError(f"there is no tensor [N, ...] to explain among the arguments {list(self.values)}{inside}.")
        numbers = [key for key, value in can.items() if _first(value).is_floating_point()]
        placed = [key for key in can if isinstance(key, int)]
        usual = [key for key in can if str(key).rpartition(".")[2] in _DATA]
        for some in (list(can), placed, usual, numbers):
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
        f"{type(inputs).__name__}; where that is the one argument of the model, write Inputs(batch, explain='...')."
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
