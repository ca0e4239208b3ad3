"""Rules for the first layer, which give relevance itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.relevance.rules.base import Rule
from lightning_xai.relevance.step import Step, quotient, signed

Bound = float | Tensor | Sequence[float]


@dataclass(frozen=True)
class Flat(Rule):
    r"""Evenly over everything that the output reads, :math:`R_j = \sum_k R_k / |\{i: i \to k\}|`; for the first layer.

    Source: :cite:`lapuschkin2019`.

    Example:
        Three inputs share :math:`y = 3 + 0 - 6 + 9 = 6`, whatever they are and weigh; the bias has no share:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, 5.0, -2.0]]), torch.tensor([9.0])
        >>> LRP(composites.RuleList([("first", rules.Flat())]))(model, torch.tensor([[3.0, 0.0, 3.0]]), 0)
        tensor([[2., 2., 2.]])
    """

    multiplies = False

    reads_relevance = True

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

    Raises:
        ValueError: If epsilon is negative or not finite.

    Source: :cite:`montavon2017`.

    Example:
        Of :math:`y = 5 + 2 + 2 = 9` the squares 1, 4 and 0 of the weights and 4 of the bias have as many ninths:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([2.0])
        >>> x = torch.tensor([[5.0, -1.0, 7.0]])
        >>> LRP(composites.RuleList([("first", rules.WSquare(epsilon=0.0))]))(model, x, 0)
        tensor([[1., 4., 0.]])
    """

    epsilon: float = 1e-6
    multiplies = False

    reads_relevance = True

    def linear(self, step: Step) -> Tensor:
        """See the base class."""
        squared = step.weights.cached("squared", torch.square)
        bias = step.bias().square()
        z = step.forward(torch.ones_like(step.x[:1]), squared) + bias
        epsilon = step.representable(self.epsilon)
        s = quotient(step.relevance(), z, epsilon)
        step.note(s, bias, epsilon)
        return step.transpose(s, squared)


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

    Raises:
        ValueError: If low exceeds high, a bound is not finite or does not fit the inputs, or epsilon is negative.

    Source: :cite:`montavon2017`.

    Example:
        Of :math:`y = 1 + 2 + 1 = 4` the inputs have shares like :math:`1 \cdot (1 - (-1)) = 2`, from the lower bound,
        and :math:`-2 \cdot (-1 - 2) = 6`, from the upper one:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, -2.0]]), torch.tensor([1.0])
        >>> rule = rules.ZBox(low=[-1.0, -5.0], high=[4.0, 2.0], epsilon=0.0)
        >>> LRP(composites.RuleList([("first", rule)]))(model, torch.tensor([[1.0, -1.0]]), 0)
        tensor([[1., 3.]])
    """

    low: Bound
    high: Bound
    epsilon: float = 1e-6
    multiplies = False

    reads_relevance = True

    def __post_init__(self) -> None:
        super().__post_init__()
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
        epsilon = signed(step.representable(self.epsilon), z)
        s = quotient(step.relevance(), z, epsilon)
        step.note(s, None, epsilon)
        del z
        own, lower, upper = step.map.box(s, (step.weight, plus, minus), step.x)
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
