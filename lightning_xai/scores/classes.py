"""The scores of classes and regressions, and their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import check_known
from lightning_xai.scores.base import Score, over
from lightning_xai.scores.target import ONE_COLUMN


def _column(output: Tensor, index: Tensor) -> Tensor:
    """Return the column ``index`` [N] or [N, *P] of an output [N, classes, *P]: [N, *P]."""
    if output.ndim == 2:
        return output.gather(1, index.unsqueeze(1)).squeeze(1)
    index = index.view(*index.shape, *[1] * (output.ndim - 1 - index.ndim))
    return output.gather(1, index.expand(output.shape[0], *output.shape[2:]).unsqueeze(1)).squeeze(1)


def _softmax_fits(clean: Tensor) -> None:
    if clean.shape[1] == 1:
        raise ValueError(f"the model's output has one column, whose softmax is always 1: use {ONE_COLUMN}.")
    if clean.numel() and bool((clean >= 0).all()) and torch.allclose(clean.sum(1), torch.ones_like(clean.sum(1))):
        warnings.warn(
            "the model's output already looks like probabilities: use score='value' to read it as it is, "
            "softmax would be applied a second time.",
            UserWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class Probability(Score):
    r"""Softmax probability of the target, :math:`p_y = e^{z_y} / \sum_c e^{z_c}`.

    >>> z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    >>> Probability().bind(z, 1, samples=3)(z)
    tensor([0.5000, 0.5000, 0.5000])
    """

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        _softmax_fits(clean)
        return ()

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return over(region, _column(output.softmax(1), target))


@dataclass(frozen=True)
class LogProbability(Probability):
    r"""Log-softmax of the target, :math:`\ln p_y`, in nats.

    >>> z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    >>> LogProbability().bind(z, 1, samples=3)(z)
    tensor([-0.6931, -0.6931, -0.6931])
    """

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return over(region, _column(output.log_softmax(1), target))


@dataclass(frozen=True)
class Logit(Score):
    r"""The target's output as it is, :math:`z_y`.

    >>> z = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    >>> Logit().bind(z, "predicted", samples=2)(z)
    tensor([5., 4.])
    """

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return over(region, _column(output, target))


@dataclass(frozen=True)
class Margin(Score):
    r"""Lead over the runner-up, :math:`z_y - z_r` with :math:`r = \arg\max_{c \ne y} z_c(x)` fixed on the clean input.

    >>> clean, perturbed = torch.tensor([[5.0, 4.0, 1.0]]), torch.tensor([[5.0, 0.0, 9.0]])
    >>> Margin().bind(clean, 0, samples=1)(perturbed)
    tensor([5.])
    """

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        if clean.shape[1] < 2:
            raise ValueError("score='margin' needs two classes or more, the model's output has one column.")
        own = target.view(-1, *[1] * (clean.ndim - 1)).expand(-1, 1, *clean.shape[2:])
        return (clean.scatter(1, own, float("-inf")).argmax(1),)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return over(region, _column(output, target) - _column(output, fixed[0]))


@dataclass(frozen=True)
class Sigmoid(Score):
    r"""Probability of one label of several, :math:`\sigma(z_y) = 1 / (1 + e^{-z_y})`.

    An output of one column is a binary classifier: target 1 is :math:`\sigma(z)`, target 0 is :math:`1 - \sigma(z)`.

    >>> z = torch.tensor([0.0, 0.0])
    >>> Sigmoid().bind(z, torch.tensor([0, 1]), samples=2)(z)
    tensor([0.5000, 0.5000])
    """

    def _columns(self, output: Any, samples: int) -> Tensor:
        columns = super()._columns(output, samples)
        return torch.cat([-columns, columns], 1) if columns.shape[1] == 1 else columns

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return over(region, _column(output.sigmoid(), target))


@dataclass(frozen=True)
class RawOutput(Logit):
    r"""The output itself, :math:`z_y`: a regression, or a model that already ends in probabilities.

    With one column no target is needed. Positions are averaged over all of them but padding, not over a predicted
    region.

    >>> z = torch.tensor([1.5, -2.0])
    >>> RawOutput().bind(z, None, samples=2)(z)
    tensor([ 1.5000, -2.0000])
    """

    by_region: ClassVar[bool] = False


@dataclass(frozen=True)
class CombClasses(Score):
    r"""The strongest gain of any class on the target.

    .. math:: D_c = (p_c - p_y)(R x) - (p_c - p_y)(x), \qquad s(x) - s(R x) = D_{c^*},\; c^* = \arg\max_{c \ne y} |D_c|

    The score is 0 for the clean input and :math:`-D_{c^*}` for a perturbed one: a local importance is positive where
    evidence for the target is lost. :func:`lightning_xai.perturbation.comb_classes` also reports :math:`c^*`.

    Probabilities of 0.5, 0.3, 0.2 become 0.2, 0.3, 0.5: class 1 gains 0.3 on class 0, and class 2 twice as much.

    >>> clean, perturbed = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    >>> CombClasses().bind(clean, 0, samples=1)(perturbed)
    tensor([-0.6000])
    """

    fixes_values: ClassVar[bool] = True

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        _softmax_fits(clean)
        return (self._lead(clean, target, region),)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        gain = self._gain(output, target, region, *fixed)
        return -gain.gather(1, gain.abs().argmax(1, keepdim=True)).squeeze(1)

    def _gain(self, output: Tensor, target: Tensor, region: Tensor | None, clean_lead: Tensor) -> Tensor:
        """D [N, classes], 0 for the target itself."""
        return self._lead(output, target, region) - clean_lead

    def _lead(self, output: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        share = torch.stack([over(region, column) for column in output.softmax(1).unbind(1)], 1)
        return share - _column(share, target).unsqueeze(1)


@dataclass(frozen=True)
class _StrongestClass(CombClasses):
    """The class :math:`c^*` of :class:`CombClasses`, as a number.

    >>> clean, perturbed = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    >>> _StrongestClass().bind(clean, 0, samples=1)(perturbed)
    tensor([2.])
    """

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        gain = self._gain(output, target, region, *fixed).abs()
        return gain.scatter(1, target.unsqueeze(1), -1.0).argmax(1).to(output.dtype)


@dataclass(frozen=True)
class Custom(Score):
    """Any function ``(output [N, classes, *P], target [N]) -> [N]``.

    The function decides which axis of an output with positions holds the classes: targets are not compared with it.

    Args:
        function: Reads the score; a function of a module, not a lambda, if the metric is to be pickled.
        output: Which tensor of the model's output the function is given.

    Raises:
        TypeError: If the function is not callable.

    >>> def over_last(output, target):
    ...     return output.gather(1, target.unsqueeze(1)).squeeze(1) - output[:, -1]
    >>> z = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    >>> Custom(over_last).bind(z, torch.tensor([1, 0]), samples=2)(z)
    tensor([3., 3.])
    """

    by_region: ClassVar[bool] = False
    by_class: ClassVar[bool] = False
    by_position: ClassVar[bool] = False

    function: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}.")

    def classes(self, clean: Tensor) -> int:
        return super().classes(clean) if clean.ndim == 2 else 0

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return self.function(output, target)


BY_NAME: dict[str, type[Score]] = {
    "probability": Probability,
    "logit": Logit,
    "log_probability": LogProbability,
    "margin": Margin,
    "sigmoid": Sigmoid,
    "comb_classes": CombClasses,
    "value": RawOutput,
}


ScoreLike = str | Score | Callable[[Tensor, Tensor], Tensor]


def as_score(score: ScoreLike) -> Score:
    """Convert a name, a score or a function to a score.

    Raises:
        ValueError: If the name is unknown; near misses are listed.
        TypeError: If it is neither a name, a score nor callable.

    >>> as_score("margin")
    Margin(output=None)
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, type):
        raise TypeError(f"score must be an object, not a class: score={score.__name__}().")
    if isinstance(score, str):
        check_known("score", score, BY_NAME)
        return BY_NAME[score]()
    if callable(score):
        return Custom(function=score)
    raise TypeError(f"score must be a name, a Score or a function, got {type(score).__name__}.")
