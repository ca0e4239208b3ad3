"""Rules for linear operations, sums and pooling, which multiply by their input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai.operations import tensors_in
from lightning_xai.operations.kinds import LINEAR
from lightning_xai.relevance.call import Call
from lightning_xai.relevance.maps import divided, where_negative
from lightning_xai.relevance.record import run_linear
from lightning_xai.relevance.rules.base import SHARED, Rule, by_sign
from lightning_xai.relevance.step import POSITIVE, Step, representable, signed


@dataclass(frozen=True)
class Gradient(Rule):
    r"""The derivative as it is: :math:`g_x = \sum_k g_k\, \partial y_k / \partial x`; for any operation.

    For a softmax it is the first-order Taylor rule, for linear operations :class:`Zero`.

    Example:
        Of the softmax of three equal numbers, the first by the first is :math:`p (1 - p) = 2/9`, by the others
        :math:`-p^2 = -1/9`; times 3:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> own = LRP(composites.RuleList([("softmax", rules.Gradient())]), score="value")
        >>> own(torch.nn.Softmax(1), torch.tensor([[3.0, 3.0, 3.0]]), 0)
        tensor([[ 0.6667, -0.3333, -0.3333]])
    """

    applies: ClassVar[frozenset[str] | None] = None
    reads_relevance = False

    def run(self, call: Call) -> Any:
        """See the base class."""
        if call.linear is None:
            return call.make()
        return run_linear(call, self, native=call.trace.ledger is None)

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        if step.absorbed is not None:
            step.absorbed.bias = step.absorbed.bias + (step.g * step.bias()).sum()
        return step.transpose(step.g, step.weight)


@dataclass(frozen=True)
class Zero(Gradient):
    r"""LRP-0, :math:`R_j = \sum_k \frac{z_{jk}}{y_k} R_k`: in proportion to the contributions.

    Source: :cite:`bach2015`.

    Example:
        The contributions to :math:`y_0 = 2 - 2 + 3 + 1` and to :math:`y_1 = 0 + 4 - 1 - 2`; the bias keeps its own:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(3, 2)
        >>> model.weight.data = torch.tensor([[1.0, -2.0, -3.0], [0.0, 4.0, 1.0]])
        >>> model.bias.data = torch.tensor([1.0, -2.0])
        >>> own = LRP(composites.RuleList([("linear", rules.Zero())]))
        >>> own(model, torch.tensor([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]]), torch.tensor([0, 1]))
        tensor([[ 2., -2.,  3.],
                [ 0.,  4., -1.]])
    """

    applies = LINEAR | SHARED


@dataclass(frozen=True)
class Epsilon(Rule):
    r"""LRP-epsilon, :math:`R_j = \sum_k \frac{z_{jk}}{y_k + \epsilon\,\mathrm{sign}(y_k)} R_k`.

    Args:
        epsilon: How much of weak outputs is absorbed.

    Raises:
        ValueError: If epsilon is negative or not finite.

    Source: :cite:`bach2015`.

    Example:
        Each contribution to :math:`y = 4 - 2 + 1 = 3` gets 3 / (3 + 1) of itself, one to :math:`y = -4 + 2 + 1 = -1`
        gets -1 / (-1 - 1):

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[2.0, -1.0]]), torch.tensor([1.0])
        >>> own = LRP(composites.RuleList([("linear", rules.Epsilon(1.0))]))
        >>> own(model, torch.tensor([[2.0, 2.0], [-2.0, -2.0]]), 0)
        tensor([[ 3.0000, -1.5000],
                [-2.0000,  1.0000]])
    """

    epsilon: float = 1e-6
    applies = LINEAR | SHARED

    reads_relevance = True

    def run(self, call: Call) -> Any:
        """See the base class."""
        return stabilised(call, self.epsilon) if call.linear is None else super().run(call)

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        if step.representable(self.epsilon) == 0:
            if step.activation_output is None:
                return Zero().linear(step)
            s = divided(step.relevance(), step.y)
            step.note(s, step.bias(), 0.0)
            return step.transpose(s, step.weight)
        y = step.y
        s = step.relevance().div_(y.abs().add_(self.epsilon).copysign_(y + 0.0))  # the sign of 0 is 1, of -0.0, too
        if step.absorbed is not None:  # the stabilisers of all outputs are a tensor that nobody else needs
            step.note(s, step.bias(), signed(self.epsilon, step.y))
        return step.transpose(s, step.weight)


@dataclass(frozen=True)
class Norm(Rule):
    r"""In proportion to the summands, :math:`R_j = \frac{x_j}{y + \epsilon\,\mathrm{sign}(y)} R`; for sums and pooling.

    Args:
        epsilon: The stabiliser; with 0 a sum conserves.

    Raises:
        ValueError: If epsilon is negative or not finite.

    Source: :cite:`bach2015`.

    Example:
        The mean of 3, 6 and -6 is 1, of summands 1, 2 and -2; with :math:`\epsilon = 1` half of it is handed on. The
        mean of -3, 0 and -3 is -2, of summands -1, 0 and -1; two thirds are:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.AvgPool1d(3), torch.nn.Flatten())
        >>> x = torch.tensor([[[3.0, 6.0, -6.0, -3.0, 0.0, -3.0]]])
        >>> own = LRP(composites.RuleList([("pooling", rules.Norm(1.0))]))
        >>> own(model, x, 0) + own(model, x, 1)
        tensor([[[ 0.5000,  1.0000, -1.0000, -0.6667,  0.0000, -0.6667]]])
    """

    epsilon: float = 0.0
    applies = SHARED

    def run(self, call: Call) -> Any:
        """See the base class."""
        return stabilised(call, self.epsilon)


def stabilised(call: Call, epsilon: float) -> Any:
    """Make a sum, a pooling or the like, of whose relevance a stabiliser absorbs its share."""
    result = call.make()
    for part in tensors_in(result):
        if part.requires_grad and representable(epsilon, part.dtype) > 0:
            _stabilise(call, part, epsilon)
    return result


def _stabilise(call: Call, result: Tensor, epsilon: float) -> None:
    stabiliser = signed(epsilon, result.detach())
    share = stabiliser / (result.detach() + stabiliser)
    ledger = call.trace.ledger
    value = result.detach().clone() if ledger is not None else result

    def hook(g: Tensor) -> Tensor:
        if ledger is not None:
            ledger.stabilisers.epsilon = ledger.stabilisers.epsilon + (value * g * share).sum()
        return g * (1 - share)

    call.on_gradient(result, hook)


@dataclass(frozen=True)
class ZPlus(Rule):
    r"""LRP-z+: only positive contributions count.

    .. math:: R_j = \sum_k \frac{z_{jk}^+}{\sum_i z_{ik}^+ + b_k^+ + \epsilon} R_k

    The same as :class:`AlphaBeta` with alpha 1 and beta 0; inputs may be negative.

    Args:
        epsilon: The stabiliser.
        bias: Whether a positive bias takes its share.

    Raises:
        ValueError: If epsilon is negative or not finite.

    Source: :cite:`bach2015,montavon2017`.

    Example:
        The contributions 2, -3 and 4 and the bias 3 make 6, which 2, 4 and 3 share, or 2 and 4 alone:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, -3.0, -2.0]]), torch.tensor([3.0])
        >>> x = torch.tensor([[2.0, 1.0, -2.0]])
        >>> LRP(composites.RuleList([("linear", rules.ZPlus())]))(model, x, 0)
        tensor([[1.3333, 0.0000, 2.6667]])
        >>> LRP(composites.RuleList([("linear", rules.ZPlus(epsilon=0.0, bias=False))]))(model, x, 0)
        tensor([[2., 0., 4.]])
    """

    epsilon: float = 1e-6
    bias: bool = True

    reads_relevance = True

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        epsilon = step.representable(self.epsilon)
        z = step.positive_part(self.bias, epsilon)
        s = divided(step.relevance(), z) if epsilon == 0 else step.relevance().div_(z)
        step.note(s, step.bias().clamp(min=0) if self.bias else None, epsilon)
        return step.transpose_by_sign(s, POSITIVE)

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

    Raises:
        ValueError: If alpha - beta is not 1, one of them is negative, or epsilon is negative or not finite.

    Source: :cite:`bach2015`.

    Example:
        The contributions 2, -3 and 4 and the bias 2 make 5. Of twice that, 2 and 4 and the bias have 2, 4 and 2
        eighths; the whole negative part is that of -3:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, -3.0, -2.0]]), torch.tensor([2.0])
        >>> LRP(composites.RuleList([("linear", rules.AlphaBeta())]))(model, torch.tensor([[2.0, 1.0, -2.0]]), 0)
        tensor([[ 2.5000, -5.0000,  5.0000]])
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6

    nonnegative = ("epsilon", "alpha", "beta")

    reads_relevance = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isclose(self.alpha - self.beta, 1.0):
            raise ValueError(f"alpha - beta must be 1, got alpha={self.alpha!r}, beta={self.beta!r}.")

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        if self.beta == 0:
            return ZPlus(self.epsilon).linear(step)
        alpha, beta, epsilon = self.alpha, self.beta, step.representable(self.epsilon)
        above = step.positive_part(epsilon=epsilon)
        below = torch.sub(step.y, above).clamp_(max=-epsilon)
        r = step.relevance()
        if epsilon == 0:
            up, down = divided(r, above), divided(r, below)
        else:
            up, down = torch.div(r, above, out=above), r.div_(below)
        del r, above, below
        if step.absorbed is not None:
            bias = step.bias()
            step.note(alpha * up, bias.clamp(min=0), epsilon)
            step.note(-beta * down, bias.clamp(max=0), -epsilon)
        found = step.transpose_by_sign(up, by_sign("alpha", alpha, lambda weight: weight.clamp(min=0) * alpha))
        del up
        return found.add_(
            step.transpose_by_sign(down, by_sign("beta", beta, lambda weight: weight.clamp(max=0) * -beta))
        )


@dataclass(frozen=True)
class Gamma(Rule):
    r"""Generalised LRP-gamma: contributions of the output's own sign count :math:`1 + \gamma` times.

    .. math:: R_j = \sum_{k: y_k > 0} \frac{z_{jk} + \gamma z_{jk}^+}{y_k + \gamma z_k^+ + \epsilon} R_k
        + \sum_{k: y_k < 0} \frac{z_{jk} + \gamma z_{jk}^-}{y_k + \gamma z_k^- - \epsilon} R_k

    Args:
        gamma: How much they are favoured; 0 is LRP-epsilon, infinity LRP-z+.
        epsilon: The stabiliser.

    Raises:
        ValueError: If gamma or epsilon is negative or not finite.

    Source: :cite:`montavon2019,andeol2021`.

    Example:
        The contributions 6 and -4 and the bias 2 make 4. With a fourth more of what is positive it is
        :math:`7.5 - 4 + 2.5 = 6`, and each gets 4 / 6 of its own. Those to the other output have the opposite signs:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(2, 2)
        >>> model.weight.data = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
        >>> model.bias.data = torch.tensor([2.0, -2.0])
        >>> x = torch.tensor([[3.0, -2.0], [3.0, -2.0]])
        >>> LRP(composites.RuleList([("linear", rules.Gamma())]))(model, x, torch.tensor([0, 1]))
        tensor([[ 5.0000, -2.6667],
                [-5.0000,  2.6667]])
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    nonnegative = ("epsilon", "gamma")

    reads_relevance = True

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        gamma, x, y, epsilon = self.gamma, step.x, step.y, step.representable(self.epsilon)
        if gamma == 0:
            return Epsilon(self.epsilon).linear(step)
        if step.rectified and step.own_sums():
            return self._rectified(step)
        r, bias = step.relevance(), step.bias()
        plus = step.positive_part()
        down = None
        if not step.rectified:
            below = where_negative(y, r, r.new_zeros(()))
            if bool(below.abs().sum() != 0):
                r.sub_(below)
                z = torch.sub(y, plus).mul_(gamma).add_(y)  # the negative part is y without the positive one
                down = divided(below, z) if epsilon == 0 else below.div_(z.sub_(epsilon).clamp_(max=-epsilon))
                step.note(down, bias + gamma * bias.clamp(max=0), -epsilon)
        z = plus.mul_(gamma).add_(y)
        # Outputs of the other sign, which have no relevance left, only need a denominator that is not 0.
        up = divided(r, z) if epsilon == 0 else r.div_(z.add_(epsilon).clamp_(min=epsilon))
        step.note(up, bias + gamma * bias.clamp(min=0), epsilon)
        del r, plus, z
        if step.nonnegative():
            favoured = step.weights.cached(("gamma", gamma), lambda weight: weight + gamma * weight.clamp(min=0))
            found = step.transpose(up, favoured)
            if down is not None:
                disfavoured = step.weights.cached(
                    ("-gamma", gamma), lambda weight: weight + gamma * weight.clamp(max=0)
                )
                found.add_(step.transpose(down, disfavoured))
            return found
        total, difference = (up, up) if down is None else (up + down, up - down)
        own = step.transpose(difference, step.absolute()).mul_(gamma / 2)
        return step.transpose(total, step.weight).mul_(1 + gamma / 2).add_(where_negative(x, -own, own))

    def _rectified(self, step: Step) -> Tensor:
        """Where only positive outputs have relevance: their denominator is a run with the favoured weights."""
        gamma, bias, epsilon = self.gamma, step.weights.full_bias(), step.representable(self.epsilon)
        favoured = by_sign("favoured", gamma, lambda weight: weight + gamma * weight.clamp(min=0))
        if bias is not None:
            bias = bias + gamma * bias.clamp(min=0)
        z = step.forward_by_sign(favoured, bias, epsilon)
        s = divided(step.relevance(), z) if epsilon == 0 else step.relevance().div_(z.clamp_(min=epsilon))
        return step.transpose_by_sign(s, favoured)

    def reads_output(self, step: Step) -> bool:
        """See the base class."""
        return self.gamma == 0 or not (step.rectified and step.own_sums())
