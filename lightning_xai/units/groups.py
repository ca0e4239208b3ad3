"""Groups of the units of a layer.

A group stands wherever a unit does: its activation is a weighted mean of those of its units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai._checks import as_integer


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class UnitGroups:
    r"""G groups of the K units of a layer.

    .. math:: a_g = \sum_k w_{gk} a_k, \qquad w_{gk} \ge 0, \quad \sum_k w_{gk} = 1

    Args:
        weights: w [G, K], not negative; every row is scaled to sum to 1.
        members: Which units count as the group's when it is ablated, Boolean [G, K]; those with a weight unless given.

    Raises:
        TypeError: If the weights are not a floating-point tensor.
        ValueError: If a weight is negative or not finite, a group has no units, or the shapes differ.

    >>> groups = UnitGroups.of([[0, 2], [1]], units=4)
    >>> groups.combine(torch.tensor([[1.0, 5.0, 3.0, 9.0]]))
    tensor([[2., 5.]])
    >>> groups.rest
    [3]
    """

    weights: Tensor
    members: Tensor | None = None

    def __post_init__(self) -> None:
        weights = self.weights
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            found = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
            raise TypeError(f"weights must be a floating-point tensor [groups, units], got {found}.")
        if weights.ndim != 2 or not weights.numel():
            raise ValueError(f"weights must be [groups, units], got shape {list(weights.shape)}.")
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError("weights must be finite and not negative.")
        total = weights.sum(1, keepdim=True)
        if not bool((total > 0).all()):
            empty = (total.squeeze(1) == 0).nonzero().flatten().tolist()
            raise ValueError(f"every group needs a unit with a weight; the groups {empty} have none.")
        members = weights > 0 if self.members is None else self.members
        if members.shape != weights.shape or members.dtype != torch.bool:
            raise ValueError(
                f"members must be Boolean, shaped like the weights {list(weights.shape)}, got {members.dtype} "
                f"{list(members.shape)}."
            )
        object.__setattr__(self, "weights", weights.detach() / total)
        object.__setattr__(self, "members", members)

    @classmethod
    def of(cls, members: Sequence[Sequence[int]], units: int) -> UnitGroups:
        """Groups given by their units, all of the same weight within a group.

        Raises:
            ValueError: If there is no group, one is empty, or a unit does not exist.
        """
        return cls(membership_of(members, units).double())

    @property
    def count(self) -> int:
        """G, the number of groups."""
        return self.weights.shape[0]

    @property
    def units(self) -> int:
        """K, the number of units of the layer."""
        return self.weights.shape[1]

    @property
    def rest(self) -> list[int]:
        """The units that are in no group."""
        units: list[int] = (~self.membership.any(0)).nonzero().flatten().tolist()
        return units

    @property
    def membership(self) -> Tensor:
        """The members of each group, Boolean [G, K]."""
        assert self.members is not None
        return self.members

    def combine(self, maps: Tensor) -> Tensor:
        r"""The groups' activations [N, G, \*P] of those of the units [N, K, \*P].

        Raises:
            ValueError: If there are not K units.
        """
        if maps.ndim < 2 or maps.shape[1] != self.units:
            raise ValueError(f"groups are of {self.units} units, the layer gives {list(maps.shape)}.")
        weights = self.weights.to(maps)
        return torch.einsum("gk,nk...->ng...", weights, maps)


def as_groups(unit: str | UnitGroups) -> UnitGroups | None:
    """The groups that stand for units; None for single channels.

    Raises:
        ValueError: If ``unit`` is neither ``"channel"`` nor groups.
    """
    if unit == "channel":
        return None
    if not isinstance(unit, UnitGroups):
        raise ValueError(f"unit must be 'channel' or UnitGroups, got {unit!r}.")
    return unit


def membership_of(members: Sequence[Sequence[int]], units: int) -> Tensor:
    """Lists of units as Boolean rows [G, units]."""
    if not members:
        raise ValueError("there must be at least one group of units.")
    rows = torch.zeros(len(members), units, dtype=torch.bool)
    for row, group in zip(rows, members, strict=True):
        if not len(group):
            raise ValueError("a group needs at least one unit.")
        for unit in group:
            if not 0 <= as_integer("unit", unit) < units:
                raise ValueError(f"unit {unit!r} does not exist: the layer has {units}, 0 to {units - 1}.")
            row[unit] = True
    return rows
