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

    Example:
        The contributions 2 and -1 times :math:`\ln 3` make :math:`\sigma(\ln 3) = \tfrac34`, of which
        :math:`\sigma(0) = \tfrac12` is a bias. A fourth passes:

        >>> import math
        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Sigmoid())
        >>> model[0].weight.data = torch.tensor([[2.0, -1.0]]) * math.log(3)
        >>> choice = {"activation": rules.Pass(), "linear": rules.Zero()}
        >>> LRP(composites.RuleList(choice), score="value")(model, torch.ones(1, 2), 0)
        tensor([[ 0.5000, -0.2500]])
    """

    applies = frozenset({"activation", "affine_norm", "norm"})


@dataclass(frozen=True)
class FixedScale(Rule):
    r"""Layer, group, instance or RMS norm whose divisor is taken as a constant, which makes it linear.

    .. math:: y = \gamma (x - \mu(x)) / \sigma + \beta

    Source: :cite:`achtibat2024`.

    Example:
        Of 3, 1, 1 and 3 the mean is 2 and the deviation 1, so :math:`y_0 = 2 (x_0 - \tfrac14 \sum_i x_i) + 5`, of which
        the inputs have 2:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.LayerNorm(4, eps=0.0)
        >>> model.weight.data, model.bias.data = torch.tensor([2.0, 1.0, 1.0, 1.0]), torch.full((4,), 5.0)
        >>> own = LRP(composites.RuleList([("norm", rules.FixedScale())]), score="value")
        >>> own(model, torch.tensor([[3.0, 1.0, 1.0, 3.0]]), 0)
        tensor([[ 4.5000, -0.5000, -0.5000, -1.5000]])
    """

    applies = frozenset({"norm"})


@dataclass(frozen=True)
class Uniform(Rule):
    r"""A product of values of the network shares its relevance evenly between its factors: :math:`R_a = R_b = R/2`.

    Attention is two products around a softmax: its values get one half, its queries and keys a quarter each of what
    passes through the softmax.

    Source: :cite:`achtibat2024`.

    Example:
        3 and -5 have half of their product -15 each:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> class Product(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x[:, :1] * x[:, 1:]
        >>> own = LRP(composites.RuleList([("product", rules.Uniform())]), score="value")
        >>> own(Product(), torch.tensor([[3.0, 4.0, -5.0]]), 1)
        tensor([[-7.5000,  0.0000, -7.5000]])
    """

    applies = frozenset({"product", "attention"})


@dataclass(frozen=True)
class Deconv(Rule):
    r"""Backward ReLU of the deconvnet, :math:`g_x = \max(g_y, 0)`.

    Source: :cite:`zeiler2014`.

    Example:
        What is positive of the weights passes, also where the ReLU is closed; the map is the input times that:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[3.0, 3.0, -5.0, -5.0]])
        >>> own = LRP(composites.RuleList([("relu", rules.Deconv()), ("*", rules.Gradient())]))
        >>> own(model, torch.tensor([[2.0, -2.0, 2.0, -2.0]]), 0)
        tensor([[ 6., -6.,  0.,  0.]])
    """

    applies = frozenset({"activation"})


@dataclass(frozen=True)
class Guided(Rule):
    r"""Backward ReLU of guided backpropagation, :math:`g_x = [x > 0] \max(g_y, 0)`.

    Source: :cite:`springenberg2015`.

    Example:
        What is positive of the weights passes where the ReLU is open; the map is the input times that:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[3.0, 3.0, -5.0, -5.0]])
        >>> own = LRP(composites.RuleList([("relu", rules.Guided()), ("*", rules.Gradient())]))
        >>> own(model, torch.tensor([[2.0, -2.0, 2.0, -2.0]]), 0)
        tensor([[6., 0., 0., 0.]])
    """

    applies = frozenset({"activation"})
