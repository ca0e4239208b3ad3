"""Ways to group units: non-negative factors of activations, and clusters of units that are active together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, check_known
from lightning_xai.units.groups import UnitGroups

LINKAGES = ("average", "complete", "single")


class Grouping(ABC):
    """A way to group units: a frozen dataclass that implements :meth:`group`."""

    @abstractmethod
    def group(self, values: Tensor) -> UnitGroups:
        """Groups of the units of values [rows, K], which are finite and not negative."""


def group_units(values: Tensor, grouping: Grouping) -> UnitGroups:
    r"""Group the units of a layer by what they do.

    Args:
        values: Activations [N, K, \*P], or a re-activation matrix M [J, K]; the units are the second axis.
        grouping: How, e.g. ``NMF(groups=8)``, ``CoActivation(groups=8)``, ``CoReactivation(groups=8)``.

    Returns:
        The groups; units that never vary, or are never re-activated, are in none.

    Raises:
        TypeError: If the values are not a tensor or the grouping is none.
        ValueError: If a value is not finite, or there are fewer units to group than groups.
        ImportError: If scikit-learn is missing.

    Source: :cite:`lee1999`, :cite:`olah2018`.

    >>> a = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [2.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
    >>> sorted(row.nonzero().flatten().tolist() for row in group_units(a, CoActivation(groups=2)).membership)
    [[0, 2], [1]]
    """
    if not isinstance(grouping, Grouping):
        raise TypeError(f"grouping must be e.g. NMF(groups=8) or CoActivation(groups=8), got {grouping!r}.")
    return grouping.group(_rows(values))


@dataclass(frozen=True)
class NMF(Grouping):
    r"""Non-negative factors of activations: :math:`A \approx W H`, rows of A the positions of all samples.

    The weights of a group are a row of H [G, K]. A unit is a member of the group that explains most of it, the g with
    the largest :math:`H_{gk} \sum_i W_{ig}`. Activations must not be negative: take them after the ReLU.

    Args:
        groups: G.
        seed: Of the start.
        iterations: The most steps of coordinate descent.

    Raises:
        ValueError: If an activation is negative, or there are fewer live units or positions than groups.
        ImportError: If scikit-learn is missing.

    Source: :cite:`lee1999`, :cite:`olah2018`.

    Example:
        Unit 2 is always twice as active as unit 0, and unit 1 where they are not:

        >>> a = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [2.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
        >>> groups = NMF(groups=2).group(a)
        >>> groups.weights.round(decimals=2)
        tensor([[0.3300, 0.0000, 0.6700],
                [0.0000, 1.0000, 0.0000]], dtype=torch.float64)
        >>> groups.membership.int().tolist()
        [[1, 0, 1], [0, 1, 0]]
    """

    groups: int = 8
    seed: int = 0
    iterations: int = 1000

    def __post_init__(self) -> None:
        as_integer("groups", self.groups, 1)
        as_integer("iterations", self.iterations, 1)

    def group(self, values: Tensor) -> UnitGroups:
        """Groups of the units of activations [rows, K]."""
        if bool((values < 0).any()):
            raise ValueError("NMF needs activations that are not negative: name the layer after its ReLU.")
        live = _live(values.any(0), self.groups, "active")
        if len(values) < self.groups:
            raise ValueError(f"NMF needs as many positions as groups, {self.groups}, got {len(values)}.")
        factorization = _sklearn("decomposition").NMF(
            n_components=self.groups, init="nndsvda", random_state=self.seed, max_iter=self.iterations
        )
        table = values[:, live].double().cpu().numpy()
        coefficients = torch.from_numpy(factorization.fit_transform(table))
        weights = torch.zeros(self.groups, values.shape[1], dtype=torch.float64)
        weights[:, live] = torch.from_numpy(factorization.components_).double()
        share = weights * coefficients.sum(0).unsqueeze(1)
        owned = torch.zeros_like(weights, dtype=torch.bool).scatter(0, share.argmax(0, keepdim=True), value=True)
        return UnitGroups(weights, owned & (share > 0))


@dataclass(frozen=True)
class _Clustering(Grouping):
    """Agglomerative clusters of units that are alike."""

    groups: int = 8
    linkage: str = "average"

    def __post_init__(self) -> None:
        as_integer("groups", self.groups, 1)
        check_known("linkage", self.linkage, LINKAGES)

    def _clusters(self, similarity: Tensor, live: Tensor) -> UnitGroups:
        """Clusters by similarities [K, K] of the units that are live [K]."""
        live = _live(live, self.groups, "at work")
        members = torch.zeros(self.groups, len(live), dtype=torch.bool)
        labels = torch.zeros(int(live.sum()), dtype=torch.long)
        if len(labels) > 1:
            apart = (1 - similarity.cpu()[live][:, live]).clamp(min=0).numpy()
            clustering = _sklearn("cluster").AgglomerativeClustering(
                self.groups, metric="precomputed", linkage=self.linkage
            )
            labels = torch.from_numpy(clustering.fit(apart).labels_).long()
        members[labels, live.nonzero().flatten()] = True
        # In the order of their first units, which depends on nothing but the groups.
        members = members[members.int().argmax(1).argsort()]
        return UnitGroups(members.double())


@dataclass(frozen=True)
class CoActivation(_Clustering):
    """Clusters of units whose activations rise and fall together: correlation over all positions of all samples.

    Args:
        groups: G.
        linkage: How far apart two clusters are: ``"average"``, ``"complete"`` or ``"single"``.

    Raises:
        ValueError: If fewer units than groups ever vary.
        ImportError: If scikit-learn is missing.

    Example:
        The units 0 and 2 are correlated by ½, unit 1 is the opposite of unit 0, and unit 3 never varies:

        >>> a = torch.tensor([[1.0, 3.0, 20.0, 5.0], [2.0, 2.0, 0.0, 5.0], [3.0, 1.0, 40.0, 5.0]])
        >>> groups = CoActivation(groups=2).group(a)
        >>> groups.membership.int().tolist(), groups.rest
        ([[1, 0, 1, 0], [0, 1, 0, 0]], [3])
    """

    def group(self, values: Tensor) -> UnitGroups:
        """Clusters of the units of activations [rows, K]."""
        return self._clusters(co_activation(values), _varies(values))


@dataclass(frozen=True)
class CoReactivation(_Clustering):
    """Clusters of units that the same features re-activate.

    Args:
        groups: G.
        linkage: How far apart two clusters are: ``"average"``, ``"complete"`` or ``"single"``.

    Raises:
        ValueError: If a count is negative, or fewer units than groups are ever re-activated.
        ImportError: If scikit-learn is missing.

    Example:
        The units 0 and 1 are alike by 2 / 4; the counts of unit 2 are in step with those of unit 1, but ten times as
        many, which makes 3 / 30 with either; nothing re-activates unit 3:

        >>> groups = CoReactivation(groups=2).group(torch.tensor([[2, 1, 10, 0], [1, 2, 20, 0], [0, 0, 0, 0]]))
        >>> groups.membership.int().tolist(), groups.rest
        ([[1, 1, 0, 0], [0, 0, 1, 0]], [3])
    """

    def group(self, values: Tensor) -> UnitGroups:
        """Clusters of the units of a re-activation matrix [J, K]."""
        return self._clusters(co_reactivation(values), values.any(0))


def co_activation(activations: Tensor) -> Tensor:
    r"""Correlate the activations of units over positions and samples.

    Args:
        activations: :math:`A` [N, K, \*P].

    Returns:
        Correlations [K, K]; those of a unit that never varies are 0.

    >>> co_activation(torch.tensor([[1.0, 3.0, 0.0], [2.0, 2.0, 0.0], [3.0, 1.0, 0.0]]))
    tensor([[ 1.0000, -1.0000,  0.0000],
            [-1.0000,  1.0000,  0.0000],
            [ 0.0000,  0.0000,  0.0000]], dtype=torch.float64)
    """
    rows = _rows(activations).double()
    centred = rows - rows.mean(0)
    length = centred.norm(dim=0)
    unit = torch.where(_varies(activations), centred / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
    return (unit.T @ unit).clamp(-1, 1)


def co_reactivation(counts: Tensor) -> Tensor:
    r"""Measure how far units are re-activated by the same features.

    .. math:: s_{kl} = \frac{\sum_j \min(M_{jk}, M_{jl})}{\sum_j \max(M_{jk}, M_{jl})}

    For hits of single samples, 0 or 1 per row, it is the share of the rows with either in which both are hit.

    Args:
        counts: The re-activation matrix M [J, K], or hits [rows, K].

    Returns:
        Similarities [K, K], 0 to 1; those of a unit that is never re-activated are 0.

    Raises:
        ValueError: If a count is negative.

    Source: :cite:`grauluque2023`.

    >>> co_reactivation(torch.tensor([[2, 1, 0], [0, 1, 0]]))[0]
    tensor([1.0000, 0.3333, 0.0000], dtype=torch.float64)
    """
    table = _rows(counts).double()
    if bool((table < 0).any()):
        raise ValueError("counts must not be negative: they say how often a feature re-activates a unit.")
    # max = a + b - min, so one sum per pair is enough; a unit at a time keeps it at [J, K] numbers.
    least = torch.stack([torch.minimum(table, column.unsqueeze(1)).sum(0) for column in table.T])
    total = table.sum(0)
    most = total.unsqueeze(0) + total.unsqueeze(1) - least
    return torch.where(most > 0, least / most.clamp(min=torch.finfo(most.dtype).tiny), 0.0)


class Pair(NamedTuple):
    """Two units, the first the smaller, and how alike they are."""

    first: int
    second: int
    similarity: float


def strongest_pairs(similarity: Tensor, n: int = 10) -> list[Pair]:
    """The most alike pairs of different units, ties by smaller units.

    Args:
        similarity: Symmetric similarities [K, K].
        n: How many; all there are if fewer.

    Raises:
        ValueError: If the similarities are not [K, K] or ``n`` is not positive.

    >>> strongest_pairs(co_reactivation(torch.tensor([[2, 1, 0], [0, 1, 0]])), n=1)
    [Pair(first=0, second=1, similarity=0.3333333333333333)]
    """
    as_integer("n", n, 1)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be [units, units], got shape {list(similarity.shape)}.")
    first, second = torch.triu_indices(len(similarity), len(similarity), 1, device=similarity.device)
    values, order = similarity[first, second].sort(descending=True, stable=True)
    columns = first[order[:n]].tolist(), second[order[:n]].tolist(), values[:n].tolist()
    return list(map(Pair, *columns))


def _rows(values: Tensor) -> Tensor:
    """Values [N, K, *P] as a table [rows, K]; positions of padding, NaN in all units, are left out."""
    if not isinstance(values, Tensor) or values.is_complex():
        raise TypeError(f"values must be a tensor of real numbers [N, K, *P], got {type(values).__name__}.")
    if values.ndim < 2 or not values.numel():
        raise ValueError(f"values must be [N, K, *P] with at least one number, got shape {list(values.shape)}.")
    rows = values.detach().movedim(1, -1).flatten(0, -2)
    padding = rows.isnan().all(1)
    rows = rows if values.ndim == 2 or not bool(padding.any()) else rows[~padding]
    if not bool(rows.isfinite().all()) or not len(rows):
        raise ValueError("values hold NaN or infinite activations; leave those samples out.")
    return rows


def _varies(values: Tensor) -> Tensor:
    rows = _rows(values)
    return rows.amax(0) > rows.amin(0)


def _live(live: Tensor, groups: int, what: str) -> Tensor:
    if int(live.sum()) < groups:
        raise ValueError(f"groups is {groups}, but only {int(live.sum())} of {len(live)} units are ever {what}.")
    return live.cpu()


def _sklearn(module: str) -> Any:
    try:
        from sklearn import cluster, decomposition
    except ImportError as error:
        raise ImportError(
            "grouping units needs scikit-learn: pip install 'lightning-xai[units]', or give the groups with "
            "UnitGroups.of([[0, 1], [2]], units=3)."
        ) from error
    return {"cluster": cluster, "decomposition": decomposition}[module]
