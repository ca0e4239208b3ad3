r"""Objectives to maximise: a class, a unit, a group of units, a direction, or the energy of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai.scores import ScoreLike, as_score
from lightning_xai.sites import Layer, Place, as_layer
from lightning_xai.units._capture import rows_of_units, with_positions
from lightning_xai.units.groups import UnitGroups


class Objective(ABC):
    """A frozen dataclass that reads the number to maximise, one per input, which depends on that input only.

    Attributes:
        layer: The layer that is read; None for the model's output.

    Class attributes:
        reads_units: Whether it needs to know which axis of the layer's output holds the units.
    """

    reads_units: ClassVar[bool] = True

    layer: Layer | None

    @property
    @abstractmethod
    def count(self) -> int | None:
        """The number of inputs, each maximised for a part of the objective; None for any number."""

    @abstractmethod
    def read(self, given: Any, samples: int) -> Tensor:
        """The objective [N] of the layer's output [N, K, *P], or of the model's, for N inputs.

        Raises:
            ValueError: If it does not fit what is given.
        """


@dataclass(frozen=True)
class ClassScore(Objective):
    """The score of classes, one input per class.

    Args:
        target: A class, or several.
        score: Which score of it; logits, as probabilities flatten out.

    Source: :cite:`simonyan2014`.

    >>> ClassScore([2, 0]).read(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 2)
    tensor([3., 4.])
    """

    target: int | Sequence[int]
    score: ScoreLike = "logit"
    layer: Layer | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _indices("target", self.target))
        object.__setattr__(self, "score", as_score(self.score))

    @property
    def indices(self) -> tuple[int, ...]:
        """The classes."""
        return _indices("target", self.target)

    @property
    def count(self) -> int:
        """An input per class."""
        return len(self.indices)

    def read(self, given: Any, samples: int) -> Tensor:
        """The score [N] of an output, row i that of class i."""
        return as_score(self.score).bind(given, self.indices, samples)(given)


@dataclass(frozen=True)
class _OfLayer(Objective):
    layer: Layer

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_layer(self.layer))
        self.check()

    def check(self) -> None:
        """Check the fields, and bring them into one form."""

    @property
    def count(self) -> int | None:
        """Any number of inputs."""
        return None


@dataclass(frozen=True)
class Unit(_OfLayer):
    r"""The activation of units, one input per unit: the mean over positions, or at one position.

    Args:
        layer: The layer: its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`.
        unit: A unit, or several.
        position: Where in the layer's map; ``"center"`` for its middle, the mean over all unless given.

    Raises:
        ValueError: If the units or the position are no indices.

    Source: :cite:`erhan2009`.

    >>> maps = torch.tensor([[[1.0, 3.0], [5.0, 9.0]]])
    >>> Unit("conv", 1).read(maps, 1), Unit("conv", 1, position=[1]).read(maps, 1)
    (tensor([7.]), tensor([9.]))
    """

    unit: int | Sequence[int]
    position: Sequence[int] | str | None = None

    def check(self) -> None:
        """Check the fields, and bring them into one form."""
        object.__setattr__(self, "unit", _indices("unit", self.unit))
        if isinstance(self.position, str):
            if self.position != "center":
                raise ValueError(f"position must be indices, 'center' or None, got {self.position!r}.")
        elif self.position is not None:
            object.__setattr__(self, "position", _indices("position", self.position))

    @property
    def indices(self) -> tuple[int, ...]:
        """The units."""
        return _indices("unit", self.unit)

    @property
    def count(self) -> int:
        """An input per unit."""
        return len(self.indices)

    def read(self, given: Any, samples: int) -> Tensor:
        """The activations [N] of maps [N, K, *P], row i that of unit i."""
        maps = rows_of_units(given, Place(str(self.layer)), samples)
        if max(self.indices) >= maps.shape[1]:
            raise ValueError(f"unit {max(self.indices)} does not exist: layer {self.layer!r} has {maps.shape[1]}.")
        return _at(maps[range(samples), self.indices], self.position, self.layer)


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class Group(_OfLayer):
    """The activation of groups of units, one input per group: the mean over positions.

    Args:
        layer: The layer: its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`.
        groups: The groups.
        group: Which of them; all unless given.

    Raises:
        TypeError: If the groups are none.
        ValueError: If a group does not exist.

    Source: :cite:`olah2018`.

    >>> groups = UnitGroups.of([[0, 1]], units=3)
    >>> Group("conv", groups).read(torch.tensor([[[1.0, 3.0], [2.0, 2.0], [9.0, 9.0]]]), 1)
    tensor([2.])
    """

    groups: UnitGroups
    group: int | Sequence[int] | None = None

    def check(self) -> None:
        """Check the fields, and bring them into one form."""
        if not isinstance(self.groups, UnitGroups):
            raise TypeError(f"groups must be UnitGroups, got {type(self.groups).__name__}.")
        chosen = tuple(range(self.groups.count)) if self.group is None else _indices("group", self.group)
        if max(chosen) >= self.groups.count:
            raise ValueError(f"group {max(chosen)} does not exist: there are {self.groups.count}.")
        object.__setattr__(self, "group", chosen)

    @property
    def count(self) -> int:
        """An input per group."""
        assert isinstance(self.group, tuple)
        return len(self.group)

    def read(self, given: Any, samples: int) -> Tensor:
        """The groups' activations [N] of maps [N, K, *P], row i that of group i."""
        maps = self.groups.combine(rows_of_units(given, Place(str(self.layer)), samples))
        return _at(maps[range(samples), self.group], None, self.layer)


@dataclass(frozen=True, eq=False)  # holds a tensor, so it compares by identity
class Direction(_OfLayer):
    r"""The activation along a direction of a layer's units.

    .. math:: \frac{1}{P} \sum_p (a_p \cdot d)\, \max(0.1, \cos(a_p, d))^c

    Args:
        layer: The layer: its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`.
        direction: d [K].
        cosine: c; 0 for the projection alone, larger ones keep to the direction itself.

    Raises:
        ValueError: If the direction is 0 everywhere or not finite, or ``cosine`` is negative.

    Source: :cite:`olah2018`.

    >>> Direction("conv", torch.tensor([2.0, 0.0])).read(torch.tensor([[[1.0, 3.0], [5.0, 9.0]]]), 1)
    tensor([4.])
    """

    direction: Tensor
    cosine: float = 0.0

    def check(self) -> None:
        """Check the fields, and bring them into one form."""
        direction = torch.as_tensor(self.direction)
        if direction.ndim != 1 or not direction.is_floating_point() or not bool(direction.isfinite().all()):
            raise ValueError(f"direction must be finite floating-point numbers [K], got {self.direction!r}.")
        if not bool(direction.any()):
            raise ValueError("direction must not be zero everywhere.")
        if not self.cosine >= 0:
            raise ValueError(f"cosine must not be negative, got {self.cosine}.")
        object.__setattr__(self, "direction", direction.detach())

    def read(self, given: Any, samples: int) -> Tensor:
        """The activation [N] along the direction, of maps [N, K, *P]."""
        maps = rows_of_units(given, Place(str(self.layer)), samples)
        if maps.shape[1:2] != self.direction.shape:
            raise ValueError(
                f"direction has {len(self.direction)} numbers, layer {self.layer!r} has {maps.shape[1]} units."
            )
        direction = self.direction.to(maps)
        along = torch.einsum("nk...,k->n...", maps, direction)
        if self.cosine:
            lengths = (maps.norm(dim=1) * direction.norm()).clamp(min=torch.finfo(maps.dtype).tiny)
            along = along * (along / lengths).clamp(min=0.1) ** self.cosine
        return _at(along, None, self.layer)


@dataclass(frozen=True)
class Energy(_OfLayer):
    r"""The energy of a layer: the mean square :math:`\frac{1}{KP} \sum_{k,p} a_{k,p}^2`.

    Args:
        layer: The layer: its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`.

    Source: :cite:`mordvintsev2015`.

    >>> Energy("conv").read(torch.tensor([[[1.0, 3.0]]]), 1)
    tensor([5.])
    """

    reads_units: ClassVar[bool] = False

    def read(self, given: Any, samples: int) -> Tensor:
        """The mean square [N] of maps [N, K, *P]."""
        return rows_of_units(given, Place(str(self.layer)), samples).square().flatten(1).mean(1)


def _at(own: Tensor, position: Sequence[int] | str | None, layer: Layer) -> Tensor:
    """Values [N, *P] at a position, or their mean."""
    if position is None:
        return own.flatten(1).mean(1) if own.ndim > 1 else own
    with_positions(own.unsqueeze(1), str(layer))
    places = [size // 2 for size in own.shape[1:]] if isinstance(position, str) else list(position)
    if len(places) != own.ndim - 1 or any(place >= size for place, size in zip(places, own.shape[1:], strict=True)):
        raise ValueError(f"position {places} is not in the map of layer {layer!r}, {list(own.shape[1:])}.")
    for place in places:
        own = own[:, place]
    return own


def _indices(name: str, given: int | Sequence[int] | None) -> tuple[int, ...]:
    indices = tuple(given) if isinstance(given, Sequence) else (given,)
    if not indices:
        raise ValueError(f"{name} must be an index from 0, or several, got none.")
    return tuple(as_integer(name, index, 0) for index in indices)
