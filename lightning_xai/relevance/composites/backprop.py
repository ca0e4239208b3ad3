"""Composites that change the derivative of ReLUs alone."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_xai.relevance import rules
from lightning_xai.relevance.composites.patterns import Composite
from lightning_xai.relevance.rules import Rule


@dataclass(frozen=True)
class GuidedBackprop(Composite):
    """The derivative, with guided ReLUs.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    relu, relu6   Guided (also where they are written as hardtanh or clamp)
    others        the derivative
    ============  ==========================================

    Source: :cite:`springenberg2015`.

    Example:
        The derivative is 3 where input and weight are positive, 0 elsewhere; the map is the input times that:

        >>> import torch
        >>> from lightning_xai.relevance import LRP
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> model[1].weight.data = torch.tensor([[3.0, 3.0, -5.0]])
        >>> LRP(GuidedBackprop())(model, torch.tensor([[2.0, -2.0, 2.0]]), 0)
        tensor([[6., 0., 0.]])
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        return (("relu", rules.Guided()), ("relu6", rules.Guided()), ("*", rules.Gradient()))


@dataclass(frozen=True)
class Deconvnet(Composite):
    """The derivative, with the ReLUs of the deconvnet.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    relu, relu6   Deconv (also where they are written as hardtanh or clamp)
    others        the derivative
    ============  ==========================================

    Source: :cite:`zeiler2014`.

    Example:
        The derivative is 3 where the weight is positive, and 0 elsewhere; the map is the input times that:

        >>> import torch
        >>> from lightning_xai.relevance import LRP
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> model[1].weight.data = torch.tensor([[3.0, 3.0, -5.0]])
        >>> LRP(Deconvnet())(model, torch.tensor([[2.0, -2.0, 2.0]]), 0)
        tensor([[ 6., -6.,  0.]])
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        return (("relu", rules.Deconv()), ("relu6", rules.Deconv()), ("*", rules.Gradient()))
