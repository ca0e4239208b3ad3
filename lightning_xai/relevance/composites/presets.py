"""The presets of the literature."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_xai.relevance import rules
from lightning_xai.relevance.composites.patterns import Composite
from lightning_xai.relevance.rules import Bound, Rule

_NORMS: tuple[tuple[str, Rule], ...] = (("affine_norm", rules.Zero()), ("norm", rules.FixedScale()))


@dataclass(frozen=True)
class EpsilonPlus(Composite):
    """Epsilon for linear layers, z+ for convolutions.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    convolution   ZPlus(stabilizer)
    linear        Epsilon(epsilon)
    affine_norm   folded into what it follows; alone LRP-0
    norm          FixedScale
    activation    Pass
    product       Uniform, as in attention
    others        the derivative
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        stabilizer: The epsilon of all other denominators.

    Source: :cite:`montavon2019`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten(), nn.Linear(2, 4))
        >>> print(rule_table(model, torch.ones(1, 2, 5), EpsilonPlus(epsilon=0.1)))
        module  operation  rule
        0       conv1d     ZPlus(epsilon=1e-06, bias=True)
        1       relu       Pass()
        2       conv1d     ZPlus(epsilon=1e-06, bias=True)
        4       linear     Epsilon(epsilon=0.1)
    """

    epsilon: float = 1e-6
    stabilizer: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("convolution", rules.ZPlus(self.stabilizer)), ("linear", rules.Epsilon(self.epsilon)), *_NORMS)


@dataclass(frozen=True)
class EpsilonPlusFlat(EpsilonPlus):
    """:class:`EpsilonPlus` with a flat first layer.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    first         Flat
    convolution   ZPlus(stabilizer)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        stabilizer: The epsilon of all other denominators.

    Source: :cite:`lapuschkin2019`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten(), nn.Linear(2, 4))
        >>> print(rule_table(model, torch.ones(1, 2, 5), EpsilonPlusFlat(epsilon=0.1)))
        module  operation  rule
        0       conv1d     Flat()
        1       relu       Pass()
        2       conv1d     ZPlus(epsilon=1e-06, bias=True)
        4       linear     Epsilon(epsilon=0.1)
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("first", rules.Flat()), *super().entries())


@dataclass(frozen=True)
class EpsilonAlpha2Beta1(EpsilonPlus):
    """Epsilon for linear layers, alpha 2 beta 1 for convolutions.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    convolution   AlphaBeta(2, 1, stabilizer)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        stabilizer: The epsilon of all other denominators.

    Source: :cite:`bach2015,montavon2019`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten(), nn.Linear(2, 4))
        >>> print(rule_table(model, torch.ones(1, 2, 5), EpsilonAlpha2Beta1(epsilon=0.1, stabilizer=0.01)))
        module  operation  rule
        0       conv1d     AlphaBeta(alpha=2.0, beta=1.0, epsilon=0.01)
        1       relu       Pass()
        2       conv1d     AlphaBeta(alpha=2.0, beta=1.0, epsilon=0.01)
        4       linear     Epsilon(epsilon=0.1)
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("convolution", rules.AlphaBeta(2.0, 1.0, self.stabilizer)), *super().entries())


@dataclass(frozen=True)
class EpsilonAlpha2Beta1Flat(EpsilonAlpha2Beta1):
    """:class:`EpsilonAlpha2Beta1` with a flat first layer.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    first         Flat
    convolution   AlphaBeta(2, 1, stabilizer)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        stabilizer: The epsilon of all other denominators.

    Source: :cite:`lapuschkin2019`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten(), nn.Linear(2, 4))
        >>> print(rule_table(model, torch.ones(1, 2, 5), EpsilonAlpha2Beta1Flat(epsilon=0.1)))
        module  operation  rule
        0       conv1d     Flat()
        1       relu       Pass()
        2       conv1d     AlphaBeta(alpha=2.0, beta=1.0, epsilon=1e-06)
        4       linear     Epsilon(epsilon=0.1)
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("first", rules.Flat()), *super().entries())


@dataclass(frozen=True)
class EpsilonGammaBox(Composite):
    r"""z-box for the first layer, gamma for convolutions, epsilon for linear layers.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    first         ZBox(low, high, stabilizer)
    convolution   Gamma(gamma, stabilizer)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        low: The least value of the inputs: a number, one per channel, or a tensor [C, \*S].
        high: The largest.
        gamma: Of the convolutions.
        epsilon: Of the linear layers.
        stabilizer: The epsilon of all other denominators.

    Source: :cite:`montavon2019`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten(), nn.Linear(2, 4))
        >>> print(rule_table(model, torch.ones(1, 2, 5), EpsilonGammaBox(low=-1.0, high=[2.0, 3.0], epsilon=0.1)))
        module  operation  rule
        0       conv1d     ZBox(low=-1.0, high=(2.0, 3.0), epsilon=1e-06)
        1       relu       Pass()
        2       conv1d     Gamma(gamma=0.25, epsilon=1e-06)
        4       linear     Epsilon(epsilon=0.1)
    """

    low: Bound
    high: Bound
    gamma: float = 0.25
    epsilon: float = 1e-6
    stabilizer: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (
            ("first", rules.ZBox(self.low, self.high, self.stabilizer)),
            ("convolution", rules.Gamma(self.gamma, self.stabilizer)),
            ("linear", rules.Epsilon(self.epsilon)),
            *_NORMS,
        )


@dataclass(frozen=True)
class DeepTaylor(Composite):
    r"""Deep Taylor decomposition: z+ everywhere, at the input z-box if its bounds are known and w2 if not.

    ==================  ==========================================
    operation           rule
    ==================  ==========================================
    first               ZBox(low, high) or WSquare
    convolution,        ZPlus
    linear
    others              as in :class:`EpsilonPlus`
    ==================  ==========================================

    Args:
        low: The least value of the inputs: a number, one per channel, or a tensor [C, \*S]; None for w2.
        high: The largest.
        stabilizer: The epsilon of the denominators.

    Raises:
        ValueError: If one bound is given without the other.

    Source: :cite:`montavon2017`.

    Example:
        Shares of 1 and 4 fifths by the weights 1 and -2 of 3; between -1 and 2 shares like
        :math:`1 \cdot (1 - (-1))` and :math:`-2 \cdot (-1 - 2)`:

        >>> import torch
        >>> from lightning_xai.relevance import LRP
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model.weight.data, x = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -1.0]])
        >>> LRP(DeepTaylor())(model, x, 0), LRP(DeepTaylor(low=-1.0, high=2.0))(model, x, 0)
        (tensor([[0.6000, 2.4000]]), tensor([[0.7500, 2.2500]]))
    """

    low: Bound | None = None
    high: Bound | None = None
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("give both low and high for the z-box, or neither for w2.")
        super().__post_init__()

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        first: Rule = rules.WSquare(self.stabilizer)
        if self.low is not None and self.high is not None:
            first = rules.ZBox(self.low, self.high, self.stabilizer)
        plus = rules.ZPlus(self.stabilizer)
        return (("first", first), ("convolution", plus), ("linear", plus), *_NORMS)


@dataclass(frozen=True)
class AttnLRP(Composite):
    """LRP for transformers.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    convolution   Epsilon(epsilon)
    linear        Epsilon(epsilon)
    norm          FixedScale: the divisor is a constant
    activation    Pass
    softmax       first-order Taylor: the derivative
    product       Uniform: half for each factor
    attention     Uniform: values 1/2, queries, keys 1/4 each
    ============  ==========================================

    Args:
        epsilon: Of the linear operations.

    Source: :cite:`achtibat2024`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.GELU(), nn.Softmax(1), nn.Linear(4, 2))
        >>> print(rule_table(model, torch.ones(1, 3), AttnLRP(epsilon=0.1)))
        module  operation   rule
        0       layer_norm  FixedScale()
        1       linear      Epsilon(epsilon=0.1)
        2       gelu        Pass()
        3       softmax     Gradient()
        4       linear      Epsilon(epsilon=0.1)
    """

    epsilon: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        own = rules.Epsilon(self.epsilon)
        uniform = rules.Uniform()
        return (
            ("convolution", own),
            ("linear", own),
            *_NORMS,
            ("activation", rules.Pass()),
            ("softmax", rules.Gradient()),
            ("product", uniform),
            ("attention", uniform),
        )


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
        """The list "pattern -> rule"."""
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
        """The list "pattern -> rule"."""
        return (("relu", rules.Deconv()), ("relu6", rules.Deconv()), ("*", rules.Gradient()))


@dataclass(frozen=True)
class ExcitationBackprop(Composite):
    """Marginal winning probabilities: z+ without biases.

    ==================  ==========================================
    operation           rule
    ==================  ==========================================
    convolution,        ZPlus(stabilizer, bias=False)
    linear
    others              as in :class:`EpsilonPlus`
    ==================  ==========================================

    Args:
        stabilizer: The epsilon of the denominators.

    Source: :cite:`zhang2018`.

    Example:
        The contributions 2, -3 and 4 and the bias 3 make 6, which goes to 2 and 4, the bias gets nothing:

        >>> import torch
        >>> from lightning_xai.relevance import LRP
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, -3.0, 1.0]]), torch.tensor([3.0])
        >>> LRP(ExcitationBackprop(stabilizer=0.0))(model, torch.tensor([[2.0, 1.0, 4.0]]), 0)
        tensor([[2., 0., 4.]])
    """

    stabilizer: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        plus = rules.ZPlus(self.stabilizer, bias=False)
        return (("convolution", plus), ("linear", plus), *_NORMS)
