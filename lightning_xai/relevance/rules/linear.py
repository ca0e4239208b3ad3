"""Rules for linear operations, sums and pooling, which multiply by their input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.relevance.maps import divided
from lightning_xai.relevance.rules.base import LINEAR, SHARED, Rule, by_sign, check_epsilon
from lightning_xai.relevance.step import POSITIVE, Step, quotient, signed


@dataclass(frozen=True)
class Gradient(Rule):
    r"""The derivative as it is: :math:`g_x = \sum_k g_k\, \partial y_k / \partial x`; for any operation.

    For a softmax it is the first-order Taylor rule, for linear operations :class:`Zero`.
    """

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        if step.absorbed is not None:
            step.absorbed.bias = step.absorbed.bias + (step.g * step.bias()).sum()
        return step.back(step.g, step.weights.plain())


@dataclass(frozen=True)
class Zero(Gradient):
    r"""LRP-0, :math:`R_j = \sum_k \frac{z_{jk}}{y_k} R_k`: in proportion to the contributions.

    Source: :cite:`bach2015`.
    """

    applies = LINEAR | SHARED


@dataclass(frozen=True)
class Epsilon(Rule):
    r"""LRP-epsilon, :math:`R_j = \sum_k \frac{z_{jk}}{y_k + \epsilon\,\mathrm{sign}(y_k)} R_k`.

    Args:
        epsilon: How much of weak outputs is absorbed.

    Source: :cite:`bach2015`.
    """

    epsilon: float = 1e-6
    applies = LINEAR | SHARED

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        if self.epsilon == 0:
            if not step.given:
                return Zero().linear(step)
            s = divided(step.relevance(), step.y)
            step.note(s, step.bias(), 0.0)
            return step.back(s, step.weights.plain())
        epsilon = signed(self.epsilon, step.y)
        s = step.relevance().div_(step.y + epsilon)
        step.note(s, step.bias(), epsilon)
        return step.back(s, step.weights.plain())


@dataclass(frozen=True)
class Norm(Rule):
    r"""In proportion to the summands, :math:`R_j = \frac{x_j}{y + \epsilon\,\mathrm{sign}(y)} R`; for sums and pooling.

    Args:
        epsilon: The stabiliser; with 0 a sum conserves.

    Source: :cite:`bach2015`.
    """

    epsilon: float = 0.0
    applies = SHARED

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)


@dataclass(frozen=True)
class ZPlus(Rule):
    r"""LRP-z+: only positive contributions count.

    .. math:: R_j = \sum_k \frac{z_{jk}^+}{\sum_i z_{ik}^+ + b_k^+ + \epsilon} R_k

    The same as :class:`AlphaBeta` with alpha 1 and beta 0; inputs may be negative.

    Args:
        epsilon: The stabiliser.
        bias: Whether a positive bias takes its share.

    Source: :cite:`bach2015,montavon2017`.
    """

    epsilon: float = 1e-6
    bias: bool = True
    applies = LINEAR

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        z = step.positive_part(self.bias, self.epsilon)
        s = divided(step.relevance(), z) if self.epsilon == 0 else step.relevance().div_(z)
        step.note(s, step.bias().clamp(min=0) if self.bias else None, self.epsilon)
        return step.shared(s, POSITIVE)

    def reads_output(self, step: Step) -> bool:
        """See the base class."""
        return not step.own_sums()


@dataclass(frozen=True)
class AlphaBeta(Rule):
    r"""LRP-alpha-beta: positive and negative contributions apart.

    .. math:: R_j = \sum_k \left(\alpha\frac{z_{jk}^+}{z_k^+} - \beta\frac{z_{jk}^-}{z_k^-}\right) R_k

    Here :math:`z_k^\pm` is the sum of the positive or negative contributions, the bias among them. Over a layer whose
    contributions are all positive, alpha 2 and beta 1 hand on *twice* the relevance.

    Args:
        alpha: Weight of the positive contributions.
        beta: Weight of the negative ones; alpha - beta = 1.
        epsilon: The stabiliser of both denominators.

    Source: :cite:`bach2015`.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6
    applies = LINEAR

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if not (self.alpha >= 0 and self.beta >= 0 and math.isclose(self.alpha - self.beta, 1.0)):
            raise ValueError(
                f"alpha and beta must be >= 0 with alpha - beta = 1, got alpha={self.alpha!r}, beta={self.beta!r}."
            )

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        if self.beta == 0:
            return ZPlus(self.epsilon).linear(step)
        alpha, beta = self.alpha, self.beta
        above = step.positive_part(epsilon=self.epsilon)
        below = torch.sub(step.y, above).clamp_(max=-self.epsilon)
        r = step.relevance()
        if self.epsilon == 0:
            up, down = divided(r, above), divided(r, below)
        else:
            up, down = torch.div(r, above, out=above), r.div_(below)
        del r, above, below
        if step.absorbed is not None:
            bias = step.bias()
            step.note(alpha * up, bias.clamp(min=0), self.epsilon)
            step.note(-beta * down, bias.clamp(max=0), -self.epsilon)
        found = step.shared(up, by_sign("alpha", alpha, lambda weight: weight.clamp(min=0) * alpha))
        del up
        return found.add_(step.shared(down, by_sign("beta", beta, lambda weight: weight.clamp(max=0) * -beta)))


@dataclass(frozen=True)
class Gamma(Rule):
    r"""Generalised LRP-gamma: contributions of the output's own sign count :math:`1 + \gamma` times.

    .. math:: R_j = \sum_{k: y_k > 0} \frac{z_{jk} + \gamma z_{jk}^+}{y_k + \gamma z_k^+ + \epsilon} R_k
        + \sum_{k: y_k < 0} \frac{z_{jk} + \gamma z_{jk}^-}{y_k + \gamma z_k^- - \epsilon} R_k

    Args:
        gamma: How much they are favoured; 0 is LRP-epsilon, infinity LRP-z+.
        epsilon: The stabiliser.

    Source: :cite:`montavon2019,andeol2021`.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6
    applies = LINEAR

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be a number >= 0, got {self.gamma!r}.")

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        gamma, x, y = self.gamma, step.x, step.y
        if gamma == 0:
            return Epsilon(self.epsilon).linear(step)
        if step.rectified and step.own_sums():
            return self._rectified(step)
        r, bias = step.relevance(), step.bias()
        plus = step.positive_part()
        down = None
        if bool(((y < 0) & (r != 0)).any()):
            z = torch.sub(y, plus).clamp_(max=0).mul_(gamma).add_(y)
            down = quotient(r.clone(), z, -self.epsilon).masked_fill_(y >= 0, 0.0)
            step.note(down, bias + gamma * bias.clamp(max=0), -self.epsilon)
        up = quotient(r, plus.mul_(gamma).add_(y), self.epsilon).masked_fill_(y <= 0, 0.0)
        step.note(up, bias + gamma * bias.clamp(min=0), self.epsilon)
        del r, plus
        if step.nonnegative():
            favoured = step.weights.made(("gamma", gamma), lambda weight: weight + gamma * weight.clamp(min=0))
            found = step.back(up, favoured)
            if down is not None:
                disfavoured = step.weights.made(("-gamma", gamma), lambda weight: weight + gamma * weight.clamp(max=0))
                found.add_(step.back(down, disfavoured))
            return found
        total, difference = (up, up) if down is None else (up + down, up - down)
        own = step.back(difference, step.absolute()).mul_(gamma / 2)
        return step.back(total, step.weights.plain()).mul_(1 + gamma / 2).add_(torch.where(x < 0, -own, own))

    def _rectified(self, step: Step) -> Tensor:
        """Where only positive outputs have relevance: their denominator is a run with the favoured weights."""
        gamma, bias = self.gamma, step.weights.full_bias()
        favoured = by_sign("favoured", gamma, lambda weight: weight + gamma * weight.clamp(min=0))
        if bias is not None:
            bias = bias + gamma * bias.clamp(min=0)
        z = step.summed(favoured, bias, self.epsilon)
        # Without relevance, outputs that are not positive only need a denominator that is not 0.
        s = divided(step.relevance(), z) if self.epsilon == 0 else step.relevance().div_(z.clamp_(min=self.epsilon))
        return step.shared(s, favoured)

    def reads_output(self, step: Step) -> bool:
        """See the base class."""
        return self.gamma == 0 or not (step.rectified and step.own_sums())
