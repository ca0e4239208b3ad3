"""Similarity of two maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai._checks import check_known
from lightning_xai.evaluation.correlation import UNDEFINED, is_constant, spearman
from lightning_xai.evaluation.features import precise, tolerance
from lightning_xai.evaluation.masking import pooled
from lightning_xai.evaluation.refusals import same_samples

SIMILARITIES = ("spearman", "cosine", "ssim")
_SIGMA, _REACH = 1.5, 5
_SMALLEST_SIDE = _REACH + 1


def check_similarity(similarity: str, relevance: Tensor | None = None) -> None:
    """Refuse a similarity that is unknown, or that maps of this shape cannot have.

    Raises:
        ValueError: If so.
    """
    check_known("similarity", similarity, SIMILARITIES)
    if similarity == "ssim" and relevance is not None:
        sides = list(relevance.shape[2:])
        if len(sides) != 2 or min(sides) < _SMALLEST_SIDE:
            raise ValueError(
                f"similarity='ssim' needs maps over two axes of at least {_SMALLEST_SIDE} cells, got {sides}: use "
                f"'spearman' or 'cosine'."
            )


def map_similarity(first: Tensor, second: Tensor, similarity: str = "spearman", *, absolute: bool = False) -> Tensor:
    r"""Compare maps summed over channels [N]: 1 if they are alike.

    ``"spearman"``: the correlation of the ranks; NaN if a map is constant. ``"cosine"``: NaN if a map is 0. ``"ssim"``:
    structural similarity with a Gaussian of :math:`\sigma = 1.5` cells, each map divided by its largest magnitude. NaN
    where no cell of both is finite.

    Args:
        first: Maps [N, C, \*S] or [N, F].
        second: Others of the same samples.
        similarity: ``"spearman"``, ``"cosine"`` or ``"ssim"``.
        absolute: Compare magnitudes, which hides a flipped sign.

    Raises:
        ValueError: If the similarity is unknown or does not fit the maps.

    >>> a = torch.tensor([[1.0, 2.0, 3.0]])
    >>> map_similarity(a, -a), map_similarity(a, -a, absolute=True), map_similarity(a, 5 * a, "cosine")
    (tensor([-1.], dtype=torch.float64), tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    check_similarity(similarity, first)
    one, other = (precise(pooled(side)) for side in (first, second))
    same_samples(one, other)
    if absolute:
        one, other = one.abs(), other.abs()
    if similarity == "ssim":
        known = (one.isfinite() & other.isfinite()).flatten(1).any(1)
        return torch.where(known, _ssim(_scaled(one), _scaled(other)), UNDEFINED)
    one, other = one.flatten(1), other.flatten(1)
    there = one.isfinite() & other.isfinite()
    if similarity == "cosine":
        one, other = torch.where(there, one, 0.0), torch.where(there, other, 0.0)
        size = one.norm(dim=1) * other.norm(dim=1)
        cosine = (one * other).sum(1) / torch.where(size > 0, size, 1.0)
        return torch.where(size > 0, cosine.clamp(-1, 1), UNDEFINED)
    tau = max(tolerance(first), tolerance(second))
    flat = torch.zeros(len(one), dtype=torch.bool, device=one.device)
    for side in (one, other):
        flat = flat | is_constant(side, there, tau, torch.where(there, side, 0.0).abs().sum(1))
    return torch.where(flat, UNDEFINED, spearman(one, other, there))


def _scaled(positions: Tensor) -> Tensor:
    values = positions.nan_to_num(posinf=0.0, neginf=0.0)
    largest = values.abs().flatten(1).amax(1).view(-1, 1, 1)
    return values / torch.where(largest > 0, largest, 1.0)


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of maps [N, H, W] from -1 to 1, the mean over all positions."""
    place = torch.arange(-_REACH, _REACH + 1, dtype=first.dtype, device=first.device)
    kernel = torch.exp(-((place / _SIGMA) ** 2) / 2)
    kernel = kernel / kernel.sum()

    def smooth(values: Tensor) -> Tensor:
        padded = functional.pad(values.unsqueeze(1), (_REACH,) * 4, mode="reflect")
        rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1))
        return functional.conv2d(rows, kernel.view(1, 1, 1, -1)).squeeze(1)

    near_zero, near_flat = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    a, b = smooth(first), smooth(second)
    spread_a, spread_b = smooth(first**2) - a**2, smooth(second**2) - b**2
    together = smooth(first * second) - a * b
    alike = (2 * a * b + near_zero) * (2 * together + near_flat)
    found: Tensor = alike / ((a**2 + b**2 + near_zero) * (spread_a + spread_b + near_flat))
    return found.flatten(1).mean(1)
