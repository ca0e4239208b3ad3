"""The map as a mask: what the score keeps where only what the map marks is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_xai._checks import IncompatibleError, spatial_shape
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.curves import mean_scores
from lightning_xai.evaluation.features import ExplainedBatch, MapLike, precise
from lightning_xai.evaluation.refusals import probability, sets_fit
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import MaskPerturbation, Perturbation, as_perturbation
from lightning_xai.perturbation.kinds.pointwise import Constant
from lightning_xai.perturbation.sets import CellMasks
from lightning_xai.perturbation.sweep import Plan, Request
from lightning_xai.regions import Windows
from lightning_xai.scores import ScoreLike, Target, as_score

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lightning_xai.evaluation.options import MaskOptions


@dataclass(frozen=True, eq=False)
class MaskedScores:
    """The scores of inputs of which only what a map marks is left.

    Attributes:
        clean: p [N], of the whole input.
        masked: o [N], of the masked one.
        blank: Whether a map has no positive cell [N].
    """

    clean: Tensor
    masked: Tensor
    blank: Tensor

    @property
    def average_drop(self) -> Tensor:
        """What is lost, as a share of the score [N]; NaN where that is 0."""
        whole = torch.where(self.clean > 0, self.clean, UNDEFINED)
        return self._known((self.clean - self.masked).clamp(min=0) / whole)

    @property
    def average_increase(self) -> Tensor:
        """1 where the score rises, 0 where not [N]."""
        return self._known((self.masked > self.clean).to(self.clean))

    @property
    def average_gain(self) -> Tensor:
        """What is won, as a share of what there is to win [N]; 0 where there is nothing."""
        room = 1 - self.clean
        return self._known((self.masked - self.clean).clamp(min=0) / torch.where(room > 0, room, 1.0))

    def _known(self, values: Tensor) -> Tensor:
        return torch.where(self.clean.isfinite() & self.masked.isfinite(), values, UNDEFINED)


def pooled(relevance: Tensor) -> Tensor:
    r"""Sum a map over its channels, :math:`\tilde a_p = \sum_c a_{cp}` [N, \*S]; NaN where no channel is finite."""
    if relevance.ndim == 2:
        return torch.where(relevance.isfinite(), relevance, UNDEFINED)
    finite = relevance.isfinite()
    return torch.where(finite.any(1), torch.where(finite, relevance, 0.0).sum(1), UNDEFINED)


def mask_of(relevance: Tensor) -> Tensor:
    r"""Scale the positive part of a map to 0 … 1, [N, \*S]: :math:`\max(\tilde a_p, 0) / \max_p`; 0 stays 0.

    >>> mask_of(torch.tensor([[[-1.0, 2.0, 4.0]], [[-1.0, -2.0, 0.0]]]))
    tensor([[0.0000, 0.5000, 1.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    positive = pooled(relevance).nan_to_num().clamp(min=0)
    largest = positive.flatten(1).amax(1).view(-1, *[1] * (positive.ndim - 1))
    return positive / torch.where(largest > 0, largest, 1.0)


def masked_scores(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    perturbation: str | Perturbation = Constant(0.0),  # noqa: B008 - frozen
    score: ScoreLike = "probability",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> MaskedScores:
    r"""Score inputs of which a map keeps what it marks.

    .. math:: M_p = \frac{\max(\tilde a_p, 0)}{\max_p \tilde a_p}, \qquad x_M = M \odot x + (1 - M) \odot R(x)

    One pass beyond the clean one. A map without a positive cell keeps nothing.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        explanation: A map [N, C, \*S], an ``Explanation``, or an attribution that is asked for one.
        perturbation: R; zeros unless given, which makes :math:`x_M` the published product.
        score: A probability: ``"probability"`` or ``"sigmoid"``.
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.

    Raises:
        ValueError: If something does not fit the model or each other, or the perturbation depends on the window.
        TypeError: If the score is no probability.

    Source: :cite:`chattopadhay2018`, :cite:`zhang2024`.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> masked_scores(model, torch.ones(1, 2), 0, torch.tensor([[1.0, 0.0]])).masked  # 1 / (1 + 1/e)
    tensor([0.7311], dtype=torch.float64)
    """
    kind, score = sets_fit(as_perturbation(perturbation)), probability(as_score(score))
    whole_inputs(kind)
    batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
    request = Request(kind, score, CellMasks(mask_of(batch.relevance)))
    whole = Windows(spatial_shape(batch.inputs))
    swept = batch.sweep([request], Plan(whole, chunk_size))
    return masked_of(batch.relevance, swept.clean[score], mean_scores(swept, request))


def masked_of(relevance: Tensor, clean: Tensor, scores: Tensor) -> MaskedScores:
    """Put the scores [N] of the whole and of the masked inputs together; a map without a finite cell masks nothing."""
    positions = pooled(relevance)
    masked = torch.where(positions.isfinite().flatten(1).any(1), precise(scores), UNDEFINED)
    return MaskedScores(precise(clean), masked, is_blank(positions))


def is_blank(positions: Tensor) -> Tensor:
    r"""Tell which maps [N, \*S] have finite cells, none of which is positive [N]."""
    cells = positions.flatten(1)
    return cells.isfinite().any(1) & ~(cells.nan_to_num() > 0).any(1)


def whole_inputs(kind: Perturbation) -> None:
    """Refuse a perturbation whose values depend on the window, as a mask has none.

    Raises:
        IncompatibleError: If so.
    """
    if kind.windowed or isinstance(kind, MaskPerturbation):
        raise IncompatibleError(
            f"{type(kind).__name__} depends on what is replaced, and a mask replaces a share of every cell: use a "
            f"kind of whole inputs, e.g. Constant or Blur."
        )


def average_drop(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[MaskOptions]
) -> Tensor:
    r"""Compute what the score loses where only what the map marks is left, as a share [N]: low is good.

    .. math:: \frac{\max(0, p - o)}{p}, \qquad p = s(x), \quad o = s(x_M)

    0 to 1; NaN where the probability is 0. A map that hides nothing loses nothing: read it
    beside the map's entropy. The arguments and errors are those of :func:`masked_scores`.

    Source: :cite:`chattopadhay2018`.

    Without the other column, 1/2 becomes 1 / (1 + 1/e):

    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(average_drop(model, torch.ones(1, 2), 0, torch.tensor([[1.0, 0.0]])).item(), 4)
    0.0
    """
    return masked_scores(model, inputs, target, explanation, **options).average_drop


def average_increase(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[MaskOptions]
) -> Tensor:
    r"""Tell whether the score rises where only what the map marks is left [N], 0 or 1: high is good.

    .. math:: [o > p], \qquad p = s(x), \quad o = s(x_M)

    The mean over samples is the published share. A map that hides nothing loses nothing: read it
    beside the map's entropy. The arguments and errors are those of :func:`masked_scores`.

    Source: :cite:`chattopadhay2018`.

    Without the other column, 1/2 becomes 1 / (1 + 1/e):

    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(average_increase(model, torch.ones(1, 2), 0, torch.tensor([[1.0, 0.0]])).item(), 4)
    1.0
    """
    return masked_scores(model, inputs, target, explanation, **options).average_increase


def average_gain(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[MaskOptions]
) -> Tensor:
    r"""Compute what the score wins where only what the map marks is left, as a share [N]: high is good.

    .. math:: \frac{\max(0, o - p)}{1 - p}, \qquad p = s(x), \quad o = s(x_M)

    0 to 1; 0 where there is nothing to win. A map that hides nothing loses nothing: read it
    beside the map's entropy. The arguments and errors are those of :func:`masked_scores`.

    Source: :cite:`zhang2024`.

    Without the other column, 1/2 becomes 1 / (1 + 1/e):

    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(average_gain(model, torch.ones(1, 2), 0, torch.tensor([[1.0, 0.0]])).item(), 4)
    0.4621
    """
    return masked_scores(model, inputs, target, explanation, **options).average_gain
