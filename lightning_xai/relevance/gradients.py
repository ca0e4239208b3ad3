r"""Attributions that read the gradient of the score at the input."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._guard import forward, isolated_eval
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.operations import unwrapped
from lightning_xai.rows import DEPENDENT, REMEDY, may_join_rows
from lightning_xai.scores import Target


@dataclass(frozen=True)
class GradientAttribution(ScoreAttribution, ABC):
    """An attribution by the inputs and the gradient of the score there; a subclass implements :meth:`read`."""

    @abstractmethod
    def read(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        r"""Return the map, given inputs and gradient of the same shape [N, C, \*S]."""

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        model = unwrapped(model)
        with isolated_eval(model, gradients=True):
            leaf = inputs.detach().requires_grad_()
            output = forward(model, leaf)
            bound = self.bind(output, target, len(leaf), of=(model, inputs))
            score = bound(output)
            return Explanation.of(bound, score, self.read(leaf.detach(), gradient(score, leaf)))


@dataclass(frozen=True)
class Saliency(GradientAttribution):
    r"""The gradient of the score, or its magnitude.

    .. math:: R = |\nabla s(x)| \quad\text{or}\quad R = \nabla s(x)

    In units of the score per unit of the input.

    Args:
        absolute: Take the magnitude; with its sign if not.
        score: s.

    Source: :cite:`simonyan2014`.

    >>> model = nn.Linear(3, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -4.0]])
    >>> Saliency()(model, torch.ones(2, 3), torch.tensor([0, 1]))
    tensor([[1., 2., 3.],
            [0., 5., 4.]])
    """

    absolute: bool = field(default=True, kw_only=True)

    @property
    def is_slope(self) -> bool:
        return True

    def read(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs() if self.absolute else gradient


@dataclass(frozen=True)
class Sensitivity(GradientAttribution):
    r"""The squared gradient of the score.

    .. math:: R = (\nabla s(x))^2, \qquad \sum R = \|\nabla s(x)\|^2

    Args:
        score: s.

    Source: :cite:`montavon2018`.

    >>> model = nn.Linear(3, 1, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    >>> Sensitivity()(model, torch.ones(1, 3), 0)
    tensor([[1., 4., 9.]])
    """

    @property
    def is_slope(self) -> bool:
        return True

    def read(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return gradient.square()


@dataclass(frozen=True)
class GradientXInput(GradientAttribution):
    r"""Input times gradient.

    .. math:: R = x \odot \nabla s(x)

    In units of the score. Networks of linear layers, ReLU and pooling without biases conserve it, :math:`\sum R = s`;
    with biases the rest is :math:`\sum b \cdot \partial s / \partial b`.

    Args:
        score: s.

    Source: :cite:`shrikumar2016`.

    >>> model = nn.Linear(3, 1, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    >>> GradientXInput()(model, torch.tensor([[2.0, 1.0, 0.0]]), 0)
    tensor([[ 2., -2.,  0.]])
    """

    conserves: ClassVar[bool] = True

    def read(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return inputs * gradient


def gradient(score: Tensor, leaf: Tensor, where: str = "the inputs") -> Tensor:
    r"""Differentiate every sample's score [N] with respect to its row of a leaf [N, ...].

    The parameters' gradients are not computed.

    Args:
        score: The scores.
        leaf: What the scores were computed from.
        where: The name of the leaf in messages.

    Raises:
        ValueError: If no gradient path leads from the score to the leaf, or a tensor on it was changed in place.
    """
    grad, weighted = None, None
    if score.requires_grad:
        try:
            # Of a leaf of windows or of heads no row is told from another.
            joined = len(leaf) == len(score) > 1 and may_join_rows(score, leaf)
            weighted = _weighted(score, leaf) if joined else None
            (grad,) = torch.autograd.grad(score, leaf, torch.ones_like(score), allow_unused=True)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ValueError(OVERWRITTEN) from error
    if grad is None:
        raise ValueError(
            f"no gradient path leads from the score back to {where}. Likely causes: torch.no_grad(), .detach(), "
            f"numpy or .item() in the model's forward; quantised modules, which have no derivative; inputs that are "
            f"rounded to integers or ids, of which the embedding is what can be explained (give the part of the model "
            f"after it the embedded inputs); or a score that does not read them."
        )
    if weighted is not None:
        _check_rows(score, grad, weighted)
    # The sum is finite in all but rare cases, and costs one pass instead of two.
    broken = 0 if grad.sum().isfinite() else int((~grad.isfinite()).flatten(1).any(1).sum())
    if broken:
        warnings.warn(
            f"the gradient with respect to {where} is not finite in {broken} of {len(grad)} samples, and neither is "
            f"their map: some operation has no derivative there, e.g. a root or a logarithm at 0.",
            UserWarning,
            stacklevel=2,
        )
    return grad


def _weights(score: Tensor) -> Tensor:
    """A different number for every sample."""
    return torch.linspace(1, 2, len(score), dtype=score.dtype, device=score.device)


def _weighted(score: Tensor, leaf: Tensor) -> Tensor | None:
    """The gradient of a sum of scores that count differently."""
    (found,) = torch.autograd.grad(score, leaf, _weights(score), retain_graph=True, allow_unused=True)
    return found


def _check_rows(score: Tensor, gradient: Tensor, weighted: Tensor) -> None:
    """Refuse scores that read the rows of other samples: where none does, a row's gradient has the row's weight."""
    weights = _weights(score).view(-1, *[1] * (gradient.ndim - 1))
    off = (weighted - weights * gradient).nan_to_num().abs().amax()
    if off > 1e3 * torch.finfo(gradient.dtype).eps * gradient.nan_to_num().abs().amax():
        raise ValueError(f"{DEPENDENT}. {REMEDY}")


OVERWRITTEN = (
    "the model changes a tensor in place that its derivative needs, e.g. y[:, :2] = ... after y = x.sigmoid(), which "
    "only inference allows: let it write into a copy, y = y.clone()."
)
