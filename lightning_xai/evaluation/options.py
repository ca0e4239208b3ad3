"""The arguments that measures hand on, as types: their meaning stands where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from torch import Tensor

from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.regions import RegionsLike
from lightning_xai.scores import ScoreLike

if TYPE_CHECKING:
    from typing_extensions import Required


class DropOptions(TypedDict, total=False):
    """The arguments of :func:`~lightning_xai.evaluation.feature_drops`."""

    regions: Required[RegionsLike]
    perturbation: Required[str | Perturbation]
    score: ScoreLike
    sample_ids: Tensor | Sequence[int] | None
    chunk_size: int | None
    engine: str


class CurveOptions(DropOptions, total=False):
    """The arguments of :func:`~lightning_xai.evaluation.perturbation_curves`, but for the orders."""

    steps: int
    epsilon: float


class SubsetOptions(DropOptions, total=False):
    """The arguments of :func:`~lightning_xai.evaluation.subset_drops`."""

    share: float
    draws: int
    subsets: Tensor | None
    units: str
    seed: int


class MaskOptions(TypedDict, total=False):
    """The arguments of :func:`~lightning_xai.evaluation.masked_scores`."""

    perturbation: str | Perturbation
    score: ScoreLike
    sample_ids: Tensor | Sequence[int] | None
    chunk_size: int | None
