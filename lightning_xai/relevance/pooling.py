r"""Sums of relevance over channels, and over the features of an input."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_xai._checks import check_known
from lightning_xai.regions import RegionsLike, as_regions

_PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda relevance: relevance,
    "positive": lambda relevance: relevance.clamp(min=0),
    "absolute": lambda relevance: relevance.abs(),
}


def part_of(relevance: Tensor, part: str) -> Tensor:
    """Return relevance as it is (``"signed"``), its positive part, or its magnitude (``"absolute"``).

    Raises:
        ValueError: If there is no such part.
    """
    check_known("part", part, _PARTS)
    return _PARTS[part](relevance)


def pool_channels(relevance: Tensor, part: str = "signed") -> Tensor:
    r"""Sum relevance over the channels.

    .. math:: R_p = \sum_c R_{cp}, \quad \sum_c \max(R_{cp}, 0) \quad\text{or}\quad \sum_c |R_{cp}|

    Args:
        relevance: A map [N, C, \*S]; a table [N, F] has no channels and keeps its columns.
        part: ``"signed"``, ``"positive"`` or ``"absolute"``, taken before the sum.

    Returns:
        Relevance [N, \*S] or [N, F], in the map's units.

    Raises:
        ValueError: If there is no such part, or the map has no samples' axis.

    >>> import torch
    >>> relevance = torch.tensor([[[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]])
    >>> pool_channels(relevance), pool_channels(relevance, "positive"), pool_channels(relevance, "absolute")
    (tensor([[ 5.,  3., -3.]]), tensor([[5., 5., 3.]]), tensor([[5., 7., 9.]]))
    """
    if relevance.ndim < 2:
        raise ValueError(f"relevance must be [N, C, *S] or a table [N, F], got shape {list(relevance.shape)}.")
    chosen = part_of(relevance, part)
    return chosen if chosen.ndim == 2 else chosen.sum(1)


def pool_features(
    relevance: Tensor, regions: RegionsLike, part: str = "signed", inputs: Tensor | None = None
) -> Tensor:
    r"""Sum relevance over the channels and cells of every feature.

    .. math:: R_j = \sum_{p \in j} R_p

    Disjoint features that cover everything share out the whole relevance.

    Args:
        relevance: A map [N, C, \*S], or a table [N, F].
        regions: The features j, e.g. ``Segments(labels)``, or the size of windows.
        part: ``"signed"``, ``"positive"`` or ``"absolute"``, taken cell by cell before the sum.
        inputs: The inputs, for segments that are a function of them; the map unless given.

    Returns:
        Relevance [N, J], in the map's units; 0 for a feature that a sample has no cell of.

    Raises:
        ValueError: If there is no such part, or the regions do not fit the map.

    >>> import torch
    >>> from lightning_xai import Segments
    >>> relevance = torch.tensor([[[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]])
    >>> pool_features(relevance, Segments([0, 1, 1])), pool_features(relevance, Segments([0, 1, 1]), "absolute")
    (tensor([[5., 0.]]), tensor([[ 5., 16.]]))
    """
    chosen = part_of(relevance, part)
    chosen = chosen.unsqueeze(1) if chosen.ndim == 2 else chosen
    bound = as_regions(regions).bind(relevance if inputs is None else inputs)
    pooled = chosen.new_zeros(len(chosen), bound.count)
    for feature in range(bound.count):
        for rows, cells in bound.cells(chosen, feature):
            pooled[rows, feature] = cells.flatten(1).sum(1)
    return pooled
