"""What measures cannot be computed with, and what fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_xai._checks import IncompatibleError
from lightning_xai.attribution import Attribution
from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.regions import Regions, Windows
from lightning_xai.scores import CombClasses, Probability, Score, Sigmoid


def sets_fit(kind: Perturbation) -> Perturbation:
    """Return a perturbation whose arms are averaged.

    Raises:
        IncompatibleError: If it combines them in another way.

    >>> from lightning_xai.perturbation.kinds import Bidirectional
    >>> sets_fit(Bidirectional(delta=0.5, combine="central"))
    Traceback (most recent call last):
    lightning_xai._checks.IncompatibleError: Bidirectional(combine='central') gives a difference of two scores, not the
    score of an input: measures of explanations need combine='mean', or a kind of one arm, e.g. Constant.
    """
    if kind.combine != "mean":
        raise IncompatibleError(
            f"{type(kind).__name__}(combine={kind.combine!r}) gives a difference of two scores, not the score of an "
            f"input: measures of explanations need combine='mean', or a kind of one arm, e.g. Constant."
        )
    return kind


def disjoint(regions: Regions) -> Regions:
    """Return regions that do not overlap, as far as that is known without inputs.

    Raises:
        IncompatibleError: If windows overlap.

    >>> from lightning_xai.regions import Windows
    >>> disjoint(Windows(4, stride=(4, 2)))
    Traceback (most recent call last):
    lightning_xai._checks.IncompatibleError: Windows(size=4, stride=(4, 2)) overlap: sets of features need windows whose
    stride is at least their size, or Segments.
    """
    if isinstance(regions, Windows):
        size, stride = regions.size, regions.size if regions.stride is None else regions.stride
        axes = max(len(part) if isinstance(part, Sequence) else 1 for part in (size, stride))
        sizes, strides = (part if isinstance(part, Sequence) else (part,) * axes for part in (size, stride))
        if any(step < length for step, length in zip(strides, sizes, strict=False)):
            raise IncompatibleError(
                f"Windows(size={size}, stride={stride}) overlap: sets of features need windows whose stride is at "
                f"least their size, or Segments."
            )
    return regions


def one_score(score: Score) -> Score:
    """Return a score that has a value of its own at the clean input.

    Raises:
        IncompatibleError: If it is a difference to the clean input.
    """
    if isinstance(score, CombClasses):
        raise IncompatibleError(
            "score='comb_classes' is a difference to the clean input, where it is 0: use score='margin' instead."
        )
    return score


def probability(score: Score) -> Score:
    """Return a score that is a probability.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(score, Probability | Sigmoid):
        raise TypeError(
            f"average drop, increase and gain are shares of a probability, {type(score).__name__} is none: use "
            f"score='probability', or 'sigmoid' for independent labels."
        )
    return score


def contributions(explanation: Any, units: str) -> None:
    """Refuse an attribution in units of the score per unit of the input where contributions are compared.

    Raises:
        ValueError: If so.

    >>> from lightning_xai.relevance import Saliency
    >>> contributions(Saliency(), "contribution")
    Traceback (most recent call last):
    ValueError: Saliency says what the score loses per unit of the input, not what a cell contributes to it: use
    units='slope', which multiplies it with the change, or an attribution of contributions, e.g. GradientXInput.
    """
    if units == "contribution" and isinstance(explanation, Attribution) and explanation.is_slope:
        raise ValueError(
            f"{type(explanation).__name__} says what the score loses per unit of the input, not what a cell "
            f"contributes to it: use units='slope', which multiplies it with the change, or an attribution of "
            f"contributions, e.g. GradientXInput."
        )


def same_samples(first: Tensor, second: Tensor, axes: int | None = None) -> None:
    """Refuse tensors that do not speak of the same samples.

    Args:
        first: A tensor [N, ...].
        second: Another one: of the same shape, or of the same first axes.
        axes: How many axes must agree; all unless given.

    Raises:
        ValueError: If they differ.
    """
    if first.shape[:axes] != second.shape[:axes]:
        raise ValueError(
            f"both must be of the same samples and features, got the shapes {list(first.shape)} and "
            f"{list(second.shape)}."
        )


def an_attribution(attribution: Any) -> None:
    """Refuse what makes no maps of other inputs or networks.

    Raises:
        TypeError: If it is no attribution.
    """
    if not isinstance(attribution, Attribution):
        raise TypeError(
            f"this measure needs further maps, so it takes an attribution, e.g. LRP(), not a "
            f"{type(attribution).__name__}."
        )
