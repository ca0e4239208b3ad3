r"""Localisation: does a map lie where the object is?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_xai._checks import check_number
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.features import precise
from lightning_xai.evaluation.masking import pooled


def relevance_mass(relevance: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the share of the positive relevance that lies in a mask.

    .. math:: \frac{\sum_{p \in L} \max(\tilde a_p, 0)}{\sum_p \max(\tilde a_p, 0)}, \qquad \tilde a_p = \sum_c a_{cp}

    A map without a positive cell scores 0; a sample with an empty mask, or a map without a finite cell, is NaN. With a
    box for L it is the energy-based pointing game. Source: :cite:`arras2022`.

    Args:
        relevance: A map [N, C, \*S], or a table [N, F].
        mask: L, Boolean [N, \*S].

    Raises:
        TypeError: If the mask is not Boolean.
        ValueError: If it does not fit the map.

    >>> relevance_mass(torch.tensor([[[3.0, 1.0, -4.0]]]), torch.tensor([[True, False, True]]))
    tensor([0.7500], dtype=torch.float64)
    """
    positions, inside = _positions(relevance, mask)
    positive = positions.nan_to_num(nan=0.0, neginf=0.0).clamp(min=0)
    total = positive.sum(1)
    share = (positive * inside).sum(1) / torch.where(total > 0, total, 1.0)
    return torch.where(inside.any(1) & positions.isfinite().any(1), share, UNDEFINED)


def relevance_rank(relevance: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the share of the :math:`K = |L|` most relevant positions that lie in a mask.

    .. math:: \frac{|\operatorname{top}_K(\tilde a) \cap L|}{K}

    Positions that are equal at the edge of the first K count by the share of them that lie in the mask. A sample with
    an empty mask, or a map without a finite cell, is NaN. Source: :cite:`arras2022`.

    Args:
        relevance: A map [N, C, \*S], or a table [N, F].
        mask: L, Boolean [N, \*S].

    Raises:
        TypeError: If the mask is not Boolean.
        ValueError: If it does not fit the map.

    >>> relevance_rank(torch.tensor([[[3.0, 1.0, 2.0]]]), torch.tensor([[True, True, False]]))
    tensor([0.5000], dtype=torch.float64)
    """
    positions, inside = _positions(relevance, mask)
    values = torch.where(positions.isfinite(), positions, -torch.inf)
    size = inside.sum(1, keepdim=True)
    edge = values.sort(dim=1, descending=True).values.gather(1, (size - 1).clamp(min=0))
    above, equal = values > edge, values == edge
    room = size - above.sum(1, keepdim=True)
    hits = (above & inside).sum(1, keepdim=True) + room * precise((equal & inside).sum(1, keepdim=True)) / equal.sum(
        1, keepdim=True
    )
    known = (size > 0) & positions.isfinite().any(1, keepdim=True)
    return torch.where(known, hits / size.clamp(min=1), UNDEFINED).squeeze(1)


def pointing(relevance: Tensor, mask: Tensor, *, tolerance: float = 0.0) -> Tensor:
    r"""Tell whether the most relevant position lies in a mask, or near it.

    .. math:: \frac{|\{p \in \operatorname{argmax} \tilde a : \min_{q \in L} \|p - q\| \le tolerance\}|}
       {|\operatorname{argmax} \tilde a|}

    Of several most relevant positions the share that hits, as of a random choice: a constant map scores the share of
    the mask. A sample with an empty mask, or a map without a finite position, is NaN. Source: :cite:`zhang2018`.

    Args:
        relevance: A map [N, C, \*S], or a table [N, F].
        mask: L, Boolean [N, \*S].
        tolerance: How far from the mask counts as a hit, in cells; 15 is published.

    Raises:
        TypeError: If the mask is not Boolean.
        ValueError: If it does not fit the map, or the tolerance is negative.

    >>> relevance, mask = torch.tensor([[[3.0, 1.0, 3.0, 0.0]]]), torch.tensor([[True, False, False, False]])
    >>> pointing(relevance, mask), pointing(relevance, mask, tolerance=2.0)
    (tensor([0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    check_number("tolerance", tolerance, least=0)
    positions, inside = _positions(relevance, mask)
    values = torch.where(positions.isfinite(), positions, -torch.inf)
    strongest = (values == values.amax(1, keepdim=True)) & positions.isfinite()
    shape = tuple(mask.shape[1:])
    hit = strongest & inside
    if tolerance > 0:
        hit = strongest & _near(strongest, inside, shape, tolerance)
    known = inside.any(1) & strongest.any(1)
    return torch.where(known, precise(hit.sum(1)) / strongest.sum(1).clamp(min=1), UNDEFINED)


def _near(strongest: Tensor, inside: Tensor, shape: tuple[int, ...], tolerance: float) -> Tensor:
    """Which of the strongest positions [N, P] are near a mask [N, P]."""
    near = torch.zeros_like(strongest)
    grid = torch.stack(torch.unravel_index(torch.arange(math.prod(shape), device=inside.device), shape), 1).double()
    for found, points, target in zip(near, strongest, inside, strict=True):
        if target.any():
            places = points.nonzero().flatten()
            for some in places.split(1024):
                found[some] = torch.cdist(grid[some], grid[target]).amin(1) <= tolerance + 1e-9
    return near


def _positions(relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled relevance and mask, both [N, P]."""
    if relevance.ndim < 2:
        raise ValueError(f"a map must be [N, C, *S], or [N, F] of a table, got {list(relevance.shape)}.")
    positions = precise(pooled(relevance))
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be Boolean, got {mask.dtype}; use mask > 0.")
    if mask.shape != positions.shape:
        raise ValueError(f"mask must be {list(positions.shape)} for this map, got {list(mask.shape)}.")
    return positions.flatten(1), mask.to(positions.device).flatten(1)


def boxes_to_masks(boxes: Tensor, shape: tuple[int, ...]) -> Tensor:
    r"""Turn boxes into masks, Boolean [N, \*S].

    Args:
        boxes: First and last cell of every axis, [N, 2, axes]: both are inside.
        shape: S.

    Raises:
        ValueError: If the boxes have another shape, or end before they begin.

    >>> boxes_to_masks(torch.tensor([[[1], [2]]]), (4,))
    tensor([[False,  True,  True, False]])
    """
    if boxes.ndim != 3 or boxes.shape[1:] != (2, len(shape)):
        raise ValueError(f"boxes must be [N, 2, {len(shape)}], first and last cells, got {list(boxes.shape)}.")
    if not bool((boxes[:, 0] <= boxes[:, 1]).all()):
        raise ValueError("the first cell of a box must not lie behind its last one.")
    mask = torch.ones(len(boxes), *shape, dtype=torch.bool, device=boxes.device)
    for axis, length in enumerate(shape):
        place = torch.arange(length, device=boxes.device)
        inside = (place >= boxes[:, 0, axis, None]) & (place <= boxes[:, 1, axis, None])
        mask &= inside.view(len(boxes), *(length if other == axis else 1 for other in range(len(shape))))
    return mask
