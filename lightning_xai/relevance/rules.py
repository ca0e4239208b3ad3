r"""How one operation hands its relevance to its inputs: the open set of rules.

What travels back through the network is :math:`g = R / x`, the relevance of a number divided by the number: for sums,
linear maps, reshapes, mean and max pooling and ReLU the ordinary derivative then is a rule. Rules that do not multiply
by their input (:class:`Flat`, :class:`WSquare`, :class:`ZBox`) give relevance itself, and can stand only where the
input of the model arrives.

Notation: :math:`z_{jk} = x_j w_{jk}` is what input *j* contributes to output *k*, :math:`y_k = \sum_j z_{jk} + b_k`,
:math:`R_k` is the relevance of the output, and a denominator *z* is stabilised as
:math:`z + \epsilon\,\mathrm{sign}(z)` with :math:`\mathrm{sign}(0) = 1`. Where a denominator is 0 and
:math:`\epsilon = 0`, the relevance is lost there (given to nobody) instead of being NaN. Biases take part in the
denominators; what falls to them is absorbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai.relevance.maps import divided
from lightning_xai.relevance.step import POSITIVE, BySign, Step, quotient, signed


def _check_epsilon(epsilon: float) -> None:
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a number >= 0, got {epsilon!r}.")


def _by_sign(name: str, factor: float, of_positive: Callable[[Tensor], Tensor]) -> BySign:
    """Weights that give contributions of one sign: negative inputs meet what positive ones do not."""
    return BySign((name, factor), of_positive, lambda weight: -of_positive(-weight))


_LINEAR = frozenset({"convolution", "linear"})
_SHARED = frozenset({"sum", "pooling", "affine_norm", "interpolation"})


@dataclass(frozen=True)
class Rule:
    """How one kind of operation hands its relevance on.

    A rule for convolutions and linear layers implements :meth:`linear`; the others are known to the propagation.
    """

    applies: ClassVar[frozenset[str] | None] = None
    """The kinds of operations it can be used for; None for all."""
    multiplies: ClassVar[bool] = True
    """Whether a number's relevance is a multiple of it; if not, :meth:`linear` returns R instead of R / x."""

    def linear(self, step: Step) -> Tensor:
        """R / x of the input of a linear operation."""
        raise NotImplementedError(f"{type(self).__name__} is no rule for linear operations.")

    def reads_output(self, step: Step) -> bool:
        """Whether :meth:`linear` reads ``step.y`` when the relevance itself is given."""
        return True


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

    applies = _LINEAR | _SHARED


@dataclass(frozen=True)
class Epsilon(Rule):
    r"""LRP-epsilon, :math:`R_j = \sum_k \frac{z_{jk}}{y_k + \epsilon\,\mathrm{sign}(y_k)} R_k`.

    Args:
        epsilon: How much of weak outputs is absorbed.

    Source: :cite:`bach2015`.
    """

    epsilon: float = 1e-6
    applies = _LINEAR | _SHARED

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

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
    applies = _SHARED

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)


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
    applies = _LINEAR

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

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
    applies = _LINEAR

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
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
        found = step.shared(up, _by_sign("alpha", alpha, lambda weight: weight.clamp(min=0) * alpha))
        del up
        return found.add_(step.shared(down, _by_sign("beta", beta, lambda weight: weight.clamp(max=0) * -beta)))


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
    applies = _LINEAR

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
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
        favoured = _by_sign("favoured", gamma, lambda weight: weight + gamma * weight.clamp(min=0))
        if bias is not None:
            bias = bias + gamma * bias.clamp(min=0)
        z = step.summed(favoured, bias, self.epsilon)
        # Without relevance, outputs that are not positive only need a denominator that is not 0.
        s = divided(step.relevance(), z) if self.epsilon == 0 else step.relevance().div_(z.clamp_(min=self.epsilon))
        return step.shared(s, favoured)

    def reads_output(self, step: Step) -> bool:
        """See the base class."""
        return self.gamma == 0 or not (step.rectified and step.own_sums())


@dataclass(frozen=True)
class Flat(Rule):
    r"""Evenly over everything that the output reads, :math:`R_j = \sum_k R_k / |\{i: i \to k\}|`; for the first layer.

    Source: :cite:`lapuschkin2019`.
    """

    applies = _LINEAR
    multiplies = False

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        return step.map.count_share(step.relevance(), step.weights.weight, step.x)

    def reads_output(self, step: Step) -> bool:
        """See the base class."""
        return False


@dataclass(frozen=True)
class WSquare(Rule):
    r"""LRP-w2, :math:`R_j = \sum_k \frac{w_{jk}^2}{\sum_i w_{ik}^2 + b_k^2 + \epsilon} R_k`; for the first layer.

    Args:
        epsilon: The stabiliser.

    Source: :cite:`montavon2017`.
    """

    epsilon: float = 1e-6
    applies = _LINEAR
    multiplies = False

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        squared = step.weights.made("squared", torch.square)
        bias = step.bias().square()
        z = step.forward(torch.ones_like(step.x[:1]), squared) + bias
        s = quotient(step.relevance(), z, self.epsilon)
        step.note(s, bias, self.epsilon)
        return step.back(s, squared)


Bound = float | Tensor | Sequence[float]


@dataclass(frozen=True, eq=False)
class ZBox(Rule):
    r"""LRP-z-box for inputs between two bounds, :math:`l \le x \le h`; for the first layer.

    .. math:: R_j = \sum_k \frac{x_j w_{jk} - l_j w_{jk}^+ - h_j w_{jk}^-}
        {\sum_i x_i w_{ik} - l_i w_{ik}^+ - h_i w_{ik}^-} R_k

    Args:
        low: The least value an input can have: one number, one per channel, or a tensor [C, \*S]. For normalised
            images (0 - mean) / std per channel.
        high: The largest.
        epsilon: The stabiliser.

    Source: :cite:`montavon2017`.
    """

    low: Bound
    high: Bound
    epsilon: float = 1e-6
    applies = _LINEAR
    multiplies = False

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        for name in ("low", "high"):
            bound = getattr(self, name)
            if not isinstance(bound, Tensor | int | float):
                object.__setattr__(self, name, tuple(float(number) for number in bound))
        low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in (self.low, self.high))
        if not bool(low.isfinite().all() and high.isfinite().all() and (low.cpu() <= high.cpu()).all()):
            raise ValueError(f"low must not exceed high, both finite, got low={self.low!r}, high={self.high!r}.")

    def __eq__(self, other: object) -> bool:
        """Whether the other is a box of the same bounds; bounds that are tensors compare by identity."""
        if not isinstance(other, ZBox):
            return NotImplemented
        same = (
            mine is theirs or (not isinstance(mine, Tensor) and not isinstance(theirs, Tensor) and mine == theirs)
            for mine, theirs in ((self.low, other.low), (self.high, other.high))
        )
        return all(same) and self.epsilon == other.epsilon

    def __hash__(self) -> int:
        keys = (id(bound) if isinstance(bound, Tensor) else bound for bound in (self.low, self.high))
        return hash((*keys, self.epsilon))

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        low, high = (self._bound(bound, step.x) for bound in (self.low, self.high))
        plus, minus = step.positive(), step.negative()
        z = torch.sub(step.y, step.bias()).sub_(step.forward(low, plus)).sub_(step.forward(high, minus))
        epsilon = signed(self.epsilon, z)
        s = quotient(step.relevance(), z, epsilon)
        step.note(s, None, epsilon)
        del z
        own, lower, upper = step.map.box(s, (step.weights.plain(), plus, minus), step.x)
        return step.x * own - low * lower - high * upper

    @staticmethod
    def _bound(bound: Bound, x: Tensor) -> Tensor:
        values = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
        if values.ndim == 1 and x.ndim > 2:
            values = values.view(-1, *[1] * (x.ndim - 2))
        try:
            return values.expand(1, *x.shape[1:])
        except RuntimeError as error:
            raise ValueError(
                f"low and high must be one number, one per channel or of the shape {list(x.shape[1:])}, "
                f"got shape {list(values.shape)}."
            ) from error


@dataclass(frozen=True)
class Pass(Rule):
    r"""Relevance passes as it is, :math:`R_x = R_y`: for operations on single numbers.

    For an activation with :math:`f(0) \ne 0` (a sigmoid), f(0) counts as a bias and absorbs its share:
    :math:`R_x = \frac{f(x) - f(0)}{f(x)} R_y`, which is finite everywhere.

    Source: :cite:`bach2015,achtibat2024`.
    """

    applies = frozenset({"activation", "affine_norm", "norm"})


@dataclass(frozen=True)
class FixedScale(Rule):
    r"""Layer, group, instance or RMS norm whose divisor is taken as a constant, which makes it linear.

    .. math:: y = \gamma (x - \mu(x)) / \sigma + \beta

    Source: :cite:`achtibat2024`.
    """

    applies = frozenset({"norm"})


@dataclass(frozen=True)
class Uniform(Rule):
    r"""A product of values of the network shares its relevance evenly between its factors: :math:`R_a = R_b = R/2`.

    Attention is two products around a softmax: its values get one half, its queries and keys a quarter each of what
    passes through the softmax.

    Source: :cite:`achtibat2024`.
    """

    applies = frozenset({"product", "attention"})


@dataclass(frozen=True)
class Deconv(Rule):
    r"""Backward ReLU of the deconvnet, :math:`g_x = \max(g_y, 0)`.

    Source: :cite:`zeiler2014`.
    """

    applies = frozenset({"activation"})


@dataclass(frozen=True)
class Guided(Rule):
    r"""Backward ReLU of guided backpropagation, :math:`g_x = [x > 0] \max(g_y, 0)`.

    Source: :cite:`springenberg2015`.
    """

    applies = frozenset({"activation"})
