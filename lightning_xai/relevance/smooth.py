r"""Attributions averaged over noisy inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, field, replace

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai._guard import keyed_generator
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.batching import Batches
from lightning_xai.inputs.bound_model import at_rows, column_widths
from lightning_xai.operations import unwrapped
from lightning_xai.present import absent_cells, draws_of_present, without_absent
from lightning_xai.relevance.gradients import Saliency
from lightning_xai.scores import BoundScore, ScoreLike, Target


@dataclass(frozen=True)
class NoisyAttribution(Attribution, ABC):
    r"""An attribution by mean and variance of the maps of noisy inputs.

    The noise of a sample depends on ``seed``, its id and the number of the draw alone. The target, and what a score
    fixes besides (the runner-up of a margin, the region of a segmentation, a box), are those of the clean input.

    Args:
        attribution: R, any attribution.
        sigma: :math:`\sigma`, the noise's standard deviation, in units of the input.
        draws: How often noise is drawn.
        relative: Take sigma in units of a sample's range, :math:`\max x - \min x`.
        seed: Other seeds, other noise.
        chunk_size: The most inputs given to the attribution at once; halved when memory runs out.
    """

    attribution: Attribution = field(default_factory=lambda: Saliency(absolute=False))
    _: KW_ONLY
    sigma: float = 0.1
    draws: int = 25
    relative: bool = False
    seed: int = 0
    chunk_size: int = 32

    def check(self) -> None:
        if not isinstance(self.attribution, Attribution):
            raise TypeError(f"attribution must be an Attribution, got {type(self.attribution).__name__}.")
        if not 0 <= self.sigma < float("inf"):
            raise ValueError(f"sigma must not be negative, got {self.sigma}.")
        for name in ("draws", "chunk_size"):
            as_integer(name, getattr(self, name), least=1)

    @property
    def score(self) -> ScoreLike:
        """The score of the attribution."""
        return self.attribution.score

    @property
    def is_slope(self) -> bool:
        return self.attribution.is_slope

    def check_map(self, relevance: Tensor, inputs: Tensor) -> None:
        self.attribution.check_map(relevance, inputs)

    @abstractmethod
    def read(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the map, given mean and variance of the maps of noisy inputs."""

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        network = unwrapped(model)
        bound, score = self.clean(network, inputs, target)
        batches = Batches(network, inputs, self.chunk_size)
        how = replace(self, attribution=self.attribution.resolved(network, inputs, bound.as_target()))

        def smoothed(rows: slice) -> Tensor:
            return how._smoothed(at_rows(network, rows), inputs[rows], bound.at(rows), sample_ids[rows], batches)

        return Explanation.of(bound, score, torch.cat(batches.map(smoothed, len(inputs), copies=self.draws)))

    def _smoothed(
        self, model: nn.Module, x: Tensor, bound: BoundScore, ids: tuple[int, ...], batches: Batches
    ) -> Tensor:
        # Padding is in no range, and arguments that are explained together have a range each.
        high, low = (
            torch.split(cells, column_widths(model, cells), 1) if self.relative else []
            for cells in (without_absent(model, x, value).flatten(1) for value in (-torch.inf, torch.inf))
        )
        spans = [
            (most.amax(1, keepdim=True) - least.amin(1, keepdim=True)).expand_as(most)
            for most, least in zip(high, low, strict=True)
        ]
        width = self.sigma * (torch.cat(spans, 1).view_as(x) if self.relative else torch.ones_like(x))
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        index = torch.arange(len(x))

        def add(draws: slice) -> None:
            nonlocal count, mean, squares
            new = draws.stop - draws.start
            noisy = torch.cat([x + width * self._noise(model, x, ids, draw) for draw in range(draws.start, draws.stop)])
            rows = index.repeat(new)
            maps = self.attribution.explain(at_rows(model, rows), noisy, bound.at(rows).as_target(), ids * new).map
            maps = maps.view(new, len(x), *maps.shape[1:])
            # Merged chunk by chunk (Chan et al.): a difference of sums would lose small variances.
            own = maps.mean(0)
            step, total = own - mean, count + new
            between = step.square() * (new * count / total)
            count, mean, squares = total, mean + step * (new / total), squares + (maps - own).square().sum(0) + between

        batches.map(add, self.draws, width=len(x))
        return self.read(mean, squares / self.draws)

    def _noise(self, model: nn.Module, x: Tensor, ids: tuple[int, ...], draw: int) -> Tensor:
        generators = [keyed_generator(self.seed, sample, draw) for sample in ids]
        return draws_of_present(x.shape[1:], absent_cells(model), generators).to(x)


@dataclass(frozen=True)
class SmoothGrad(NoisyAttribution):
    r"""The mean map of noisy inputs.

    .. math:: \mathbb{E}[R(x + \xi)], \qquad \xi \sim N(0, \sigma^2)

    Source: :cite:`smilkov2017`. Arguments: those of :class:`~lightning_xai.relevance.smooth.NoisyAttribution`.

    The gradient of an affine score is the same everywhere:

    >>> model = nn.Linear(3, 1)
    >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    >>> SmoothGrad(sigma=0.5, draws=4)(model, torch.zeros(2, 3), 0)
    tensor([[ 1., -2.,  3.],
            [ 1., -2.,  3.]])
    """

    def read(self, mean: Tensor, variance: Tensor) -> Tensor:
        return mean


@dataclass(frozen=True)
class SquareGrad(NoisyAttribution):
    r"""The mean squared map of noisy inputs.

    .. math:: \mathbb{E}[R(x + \xi)^2], \qquad \xi \sim N(0, \sigma^2)

    Source: :cite:`hooker2019`. Arguments: those of :class:`~lightning_xai.relevance.smooth.NoisyAttribution`.

    >>> model = nn.Linear(3, 1)
    >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    >>> SquareGrad(sigma=0.5, draws=4)(model, torch.zeros(1, 3), 0)
    tensor([[1., 4., 9.]])
    """

    def read(self, mean: Tensor, variance: Tensor) -> Tensor:
        return variance + mean.square()


@dataclass(frozen=True)
class VarGrad(NoisyAttribution):
    r"""The variance of the maps of noisy inputs.

    .. math:: \mathbb{E}[(R(x + \xi) - \mathbb{E}[R(x + \xi)])^2], \qquad \xi \sim N(0, \sigma^2)

    The sum of squares is divided by the number of draws.

    Source: :cite:`adebayo2018`. Arguments: those of :class:`~lightning_xai.relevance.smooth.NoisyAttribution`.

    >>> model = nn.Linear(3, 1)
    >>> VarGrad(sigma=0.5, draws=4)(model, torch.zeros(1, 3), 0)
    tensor([[0., 0., 0.]])
    """

    def read(self, mean: Tensor, variance: Tensor) -> Tensor:
        return variance
