r"""Localisation: does a map lie where the object is?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai._checks import check_number, spatial_shape
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
        boxes: First and last cell of every axis, [N, 2, axes]: both are inside. Of several boxes [N, B, 2, axes] a
            mask is all; one of -1 is none.
        shape: S.

    Raises:
        TypeError: If the boxes are no integers.
        ValueError: If the boxes have another shape, or end before they begin.

    >>> boxes_to_masks(torch.tensor([[[1], [2]]]), (4,))
    tensor([[False,  True,  True, False]])
    """
    if boxes.ndim not in (3, 4) or boxes.shape[-2:] != (2, len(shape)):
        corners = boxes.ndim in (2, 3) and boxes.shape[-1] == 4 and len(shape) == 2
        remedy = "; corners (x, y, x, y) are boxes.unflatten(-1, (2, 2)).flip(-1)" if corners else ""
        raise ValueError(
            f"boxes must be [N, 2, {len(shape)}], the first and last cell along every axis, or several of a sample "
            f"[N, B, 2, {len(shape)}], got {list(boxes.shape)}{remedy}."
        )
    if boxes.dtype not in _INTEGERS:
        raise TypeError(f"boxes must be integers, the first and last cell of every axis, got {boxes.dtype}.")
    each = boxes.unsqueeze(1) if boxes.ndim == 3 else boxes
    if not bool((each[:, :, 0] <= each[:, :, 1]).all()):
        raise ValueError("the first cell of a box must not lie behind its last one.")
    mask = torch.ones(*each.shape[:2], *shape, dtype=torch.bool, device=boxes.device)
    for axis, length in enumerate(shape):
        place = torch.arange(length, device=boxes.device)
        inside = (place >= each[:, :, 0, axis, None]) & (place <= each[:, :, 1, axis, None])
        mask &= inside.view(*each.shape[:2], *(length if other == axis else 1 for other in range(len(shape))))
    return mask.any(1)


@dataclass(frozen=True, eq=False)
class Objects:
    r"""Where the objects of some samples are: masks, or boxes.

    Args:
        masks: L, Boolean [N, \*S].
        boxes: First and last cell of every axis, [N, 2, axes], or several of a sample [N, B, 2, axes].

    Raises:
        TypeError: If the masks are not a Boolean tensor, or the boxes no tensor of integers.
        ValueError: If both are given, or none.

    >>> Objects(boxes=torch.tensor([[[1], [2]]])).on((1, 3, 4))
    tensor([[False,  True,  True, False]])
    """

    masks: Tensor | None = None
    boxes: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.masks is None) == (self.boxes is None):
            raise ValueError("give either masks or boxes.")
        if self.masks is not None and not (isinstance(self.masks, Tensor) and self.masks.dtype == torch.bool):
            raise TypeError(f"masks must be a Boolean tensor [N, *S], got {_described(self.masks)}; use masks > 0.")
        if self.boxes is not None and (not isinstance(self.boxes, Tensor) or self.boxes.dtype not in _INTEGERS):
            raise TypeError(f"boxes must be a tensor of integers [N, 2, axes], got {_described(self.boxes)}.")

    def on(self, shape: Sequence[int]) -> Tensor:
        r"""Return the masks, Boolean [N, \*S], of inputs of a shape.

        Args:
            shape: That of the inputs, [N, C, \*S], or [N, F] of a table.

        Raises:
            ValueError: If they do not fit.
        """
        space = spatial_shape(shape)
        found = boxes_to_masks(self.boxes, space) if self.boxes is not None else self.masks
        assert found is not None
        if found.shape != (shape[0], *space):
            what = "masks" if self.boxes is None else "boxes"
            given = self.masks if self.boxes is None else self.boxes
            assert given is not None
            wanted = [shape[0], *space] if self.boxes is None else [shape[0], 2, len(space)]
            raise ValueError(f"{what} must be {wanted} for inputs {list(shape)}, got {list(given.shape)}.")
        return found


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
