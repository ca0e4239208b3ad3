"""A linear operation with the relevance of its output, as a rule meets it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_xai.relevance.maps import LinearMap, divided, where_negative
from lightning_xai.relevance.weights import Weights

if TYPE_CHECKING:
    from lightning_xai.relevance.rules import Rule


@dataclass(eq=False)
class Absorbed:
    """Relevance, summed over everything, that an operation did not hand on."""

    bias: Tensor | float = 0.0
    epsilon: Tensor | float = 0.0


@dataclass(frozen=True)
class SignedWeights:
    """Two weights made of one, of which an input meets one or the other by its sign.

    Attributes:
        name: What the two depend on besides the weight; they are cached under it.
        positive: What inputs >= 0 meet, made of the weight.
        negative: What inputs < 0 meet.
    """

    name: tuple[str, float]
    positive: Callable[[Tensor], Tensor]
    negative: Callable[[Tensor], Tensor]


POSITIVE = SignedWeights(("positive", 1.0), lambda weight: weight.clamp(min=0), lambda weight: weight.clamp(max=0))
"""Weights whose contributions are all positive."""


@dataclass(eq=False)
class Step:
    """A linear operation :math:`y = W x + b` with the relevance of its output, as a rule meets it.

    Attributes:
        map: The operation for any weights.
        weights: Its weights, with those of a batch norm folded in.
        x: Its input.
        y: Its output; an empty tensor if the rule said that it does not read it.
        g: Relevance of the output, divided by the output, or by ``activation_output`` if there is one.
        rule: The rule that is asked.
        absorbed: Where a rule notes what it does not hand on; None if nobody asks.
        activation_output: What the activation that follows made of the output, if the relevance came through it.
        rectified: Whether outputs <= 0 have no relevance.
        known_nonnegative: Whether no input is negative; None if nobody has looked.
        owns_gradient: Whether ``g`` may be used up.
    """

    map: LinearMap
    weights: Weights
    x: Tensor
    y: Tensor
    g: Tensor
    rule: Rule
    absorbed: Absorbed | None = None
    activation_output: Tensor | None = None
    rectified: bool = False
    known_nonnegative: bool | None = None
    owns_gradient: bool = False

    def part(self, samples: slice, g: Tensor, *, owns_gradient: bool) -> Step:
        """Select some samples, with their ``g``."""
        y = self.y[samples] if self.y.numel() else self.y
        activation_output = None if self.activation_output is None else self.activation_output[samples]
        return replace(
            self, x=self.x[samples], y=y, g=g, activation_output=activation_output, owns_gradient=owns_gradient
        )

    def find(self) -> Tensor:
        """Run the rule: R / x of the input, or R.

        Raises:
            ValueError: If it is not shaped like the input.
        """
        found = self.rule.linear(self)
        if found.shape != self.x.shape:
            raise ValueError(
                f"a rule's linear() must return a tensor shaped like step.x, {list(self.x.shape)}, "
                f"got {list(found.shape)}."
            )
        return found.to(self.x.dtype)

    def tensors(self) -> list[Tensor]:
        """The tensors that a rule reads, whose memory what it finds may share."""
        found = [self.x, self.y, self.g, self.weights.weight]
        return found if self.activation_output is None else [*found, self.activation_output]

    @property
    def weight(self) -> Tensor:
        """The weights as they are."""
        return self.weights.plain()

    def cached(self, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute a tensor of the weights once and keep it, under a name of its own for each rule and its fields."""
        return self.weights.cached((self.rule, name), make)

    def relevance(self) -> Tensor:
        """R = y g, in memory that the rule may use up; to be asked for once."""
        if self.activation_output is None:
            return self.y * self.g
        return self.g.mul_(self.activation_output) if self.owns_gradient else self.g * self.activation_output

    def representable(self, epsilon: float) -> float:
        """An epsilon as the relevance's type holds it."""
        return representable(epsilon, self.g.dtype)

    def bias(self) -> Tensor:
        """The bias, shaped to be added to y; 0 if there is none."""
        bias = self.weights.full_bias()
        return self.g.new_zeros(()) if bias is None else self.map.output_channels(bias, self.g)

    def nonnegative(self) -> bool:
        """Whether no input is negative."""
        if self.known_nonnegative is None:
            self.known_nonnegative = self.x.numel() == 0 or bool(self.x.amin() >= 0)
        return self.known_nonnegative

    def absolute(self) -> Tensor:
        """The weights' magnitudes."""
        return self.weights.cached("absolute", torch.abs)

    def positive(self) -> Tensor:
        """The weights' positive parts."""
        return self._made(POSITIVE, 0)

    def negative(self) -> Tensor:
        """The weights' negative parts."""
        return self._made(POSITIVE, 1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The operation with another input and weight."""
        return self.map.forward(x, weight, bias)

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        """The transposed operation."""
        return self.map.transpose(s, weight, self.x)

    def own_sums(self) -> bool:
        """Whether the sums of :meth:`forward_by_sign` cost no more than what is known of the output could save."""
        return self.nonnegative() or self.map.stacks(self.weights.weight)

    def forward_by_sign(self, weights: SignedWeights, bias: Tensor | None, epsilon: float = 0.0) -> Tensor:
        """Compute the outputs with these weights and this bias, plus epsilon; only where :meth:`own_sums` holds."""
        if epsilon:
            bias = self.g.new_full((self.map.channels(self.g),), epsilon) if bias is None else bias + epsilon
        if self.nonnegative():
            return self.forward(self.x, self._made(weights, 0), bias)
        return self.forward(self.map.signs(self.x), self._made(weights, 2), bias)

    def transpose_by_sign(self, s: Tensor, weights: SignedWeights) -> Tensor:
        """The transposed operation with the weight that each input meets."""
        if self.nonnegative():
            return self.transpose(s, self._made(weights, 0))
        if self.map.stacks(self.weights.weight):
            above, below = self.map.transpose_stacked(s, self._made(weights, 2), self.x)
        else:
            above, below = (self.transpose(s, self._made(weights, side)) for side in (0, 1))
        return where_negative(self.x, below, above)

    def _made(self, weights: SignedWeights, side: int) -> Tensor:
        """The weight of inputs >= 0 (0), of inputs < 0 (1), or the two stacked (2)."""

        def make(weight: Tensor) -> Tensor:
            if side < 2:
                return (weights.positive, weights.negative)[side](weight)
            return self.map.stacked(weights.positive(weight), weights.negative(weight))

        return self.weights.cached((*weights.name, side), make)

    def positive_part(self, bias: bool = True, epsilon: float = 0.0) -> Tensor:
        r""":math:`z^+_k = \sum_j \max(z_{jk}, 0) + \max(b_k, 0) + \epsilon`, by one more run of the operation."""
        own = self.weights.full_bias()
        added = own.clamp(min=0) if bias and own is not None else None
        if self.own_sums():
            return self.forward_by_sign(POSITIVE, added, epsilon)
        # max(z, 0) = (z + |z|) / 2, and the sum of the z is known.
        z = self.forward(self.x.abs(), self.absolute(), None if own is None else -own)
        z = z.add_(self.y).mul_(0.5).clamp_(min=0)
        if added is not None:
            z.add_(self.map.output_channels(added, z))
        return z.add_(epsilon) if epsilon else z

    def note(self, s: Tensor, bias: Tensor | None, epsilon: Tensor | float) -> None:
        """Note what one denominator with the quotient s = R / (z + epsilon) keeps for bias and stabiliser."""
        if self.absorbed is not None:
            if bias is not None:
                self.absorbed.bias = self.absorbed.bias + (s * bias).sum()
            self.absorbed.epsilon = self.absorbed.epsilon + (s * epsilon).sum()


def representable(epsilon: float, dtype: torch.dtype) -> float:
    """An epsilon as numbers of a type hold it: 0 if it is too small for them.

    >>> representable(1e-6, torch.float16), representable(1e-8, torch.float16)
    (1e-06, 0.0)
    """
    facts = torch.finfo(dtype)
    return 0.0 if epsilon < facts.smallest_normal * facts.eps else epsilon


def signed(epsilon: float, z: Tensor) -> Tensor | float:
    """The stabiliser: epsilon with the sign of z, the sign of 0 being 1."""
    if epsilon == 0:
        return 0.0
    size = z.new_tensor(epsilon)  # two plain numbers would make single precision
    return torch.copysign(size, z + 0.0)  # which takes the sign from -0.0


def quotient(r: Tensor, z: Tensor, epsilon: Tensor | float) -> Tensor:
    """Divide r by z + epsilon, 0 where that is 0; uses up both tensors, since memory is short where maps are large."""
    if isinstance(epsilon, int | float) and epsilon == 0:
        return divided(r, z)
    return r.div_(z.add_(epsilon))
