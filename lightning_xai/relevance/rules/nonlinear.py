"""Rules for what is not linear: activations, norms, products and attention."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_xai.relevance.rules.base import Rule


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
