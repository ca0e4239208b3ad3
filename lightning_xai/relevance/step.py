"""A linear operation with the relevance of its output, as a rule meets it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.relevance.maps import LinearMap, Weights, divided


@dataclass(eq=False)
class Absorbed:
    """Relevance, summed over everything, that an operation did not hand on."""

    bias: Tensor | float = 0.0
    epsilon: Tensor | float = 0.0
    other: Tensor | float = 0.0


@dataclass(eq=False)
class Step:
    """A linear operation :math:`y = W x + b` with the relevance of its output, as a rule meets it.

    Attributes:
        map: The operation for any weights.
        weights: Its weights.
        x: Its input.
        y: Its output.
        g: Relevance of the output, divided by the output.
        absorbed: Where a rule notes what it does not hand on; None if nobody asks.
    """

    map: LinearMap
    weights: Weights
    x: Tensor
    y: Tensor
    g: Tensor
    absorbed: Absorbed | None = None
    _nonnegative: bool | None = None

    def relevance(self) -> Tensor:
        """R = y g."""
        return self.y * self.g

    def bias(self) -> Tensor:
        """The bias, shaped to be added to y; 0 if there is none."""
        bias = self.weights.full_bias()
        return self.y.new_zeros(()) if bias is None else self.map.output_channels(bias, self.y)

    def nonnegative(self) -> bool:
        """Whether no input is negative."""
        if self._nonnegative is None:
            self._nonnegative = self.x.numel() == 0 or bool(self.x.amin() >= 0)
        return self._nonnegative

    def absolute(self) -> Tensor:
        """The weights' magnitudes."""
        return self.weights.made("absolute", torch.abs)

    def positive(self) -> Tensor:
        """The weights' positive parts."""
        return self.weights.made("positive", lambda weight: weight.clamp(min=0))

    def negative(self) -> Tensor:
        """The weights' negative parts."""
        return self.weights.made("negative", lambda weight: weight.clamp(max=0))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The operation with another input and weight."""
        return self.map.forward(x, weight, bias)

    def back(self, s: Tensor, weight: Tensor) -> Tensor:
        """The transposed operation."""
        return self.map.transpose(s, weight, self.x)

    def positive_part(self, bias: bool = True, epsilon: float = 0.0) -> Tensor:
        r""":math:`z^+_k = \sum_j \max(z_{jk}, 0) + \max(b_k, 0) + \epsilon`, by one more run of the operation."""
        own = self.weights.full_bias()
        added = own.clamp(min=0) if bias and own is not None else None
        if not self.nonnegative():
            # max(z, 0) = (z + |z|) / 2, and the sum of the z is known.
            z = self.forward(self.x.abs(), self.absolute(), None if own is None else -own)
            z = z.add_(self.y).mul_(0.5).clamp_(min=0)
            if added is not None:
                z.add_(self.map.output_channels(added, z))
            return z.add_(epsilon) if epsilon else z
        if epsilon:
            added = self.y.new_full((self.map.channels(self.y),), epsilon) if added is None else added + epsilon
        return self.forward(self.x, self.positive(), added)

    def note(self, s: Tensor, bias: Tensor | None, epsilon: Tensor | float) -> None:
        """Note what one denominator with the quotient s = R / (z + epsilon) keeps for bias and stabiliser."""
        if self.absorbed is not None:
            if bias is not None:
                self.absorbed.bias = self.absorbed.bias + (s * bias).sum()
            self.absorbed.epsilon = self.absorbed.epsilon + (s * epsilon).sum()


def signed(epsilon: float, z: Tensor) -> Tensor | float:
    """The stabiliser: epsilon with the sign of z, the sign of 0 being 1."""
    if epsilon == 0:
        return 0.0
    size = z.new_tensor(epsilon)  # two plain numbers would make single precision
    return torch.where(z < 0, -size, size)


def quotient(r: Tensor, z: Tensor, epsilon: Tensor | float) -> Tensor:
    """Divide r by z + epsilon, 0 where that is 0; uses up both tensors, since memory is short where maps are large."""
    if isinstance(epsilon, int | float) and epsilon == 0:
        return divided(r, z)
    return r.div_(z.add_(epsilon))
