"""The presets of the literature."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_xai._checks import as_choice
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
    convolution   ZPlus(conv_epsilon)
    linear        Epsilon(epsilon)
    affine_norm   folded into what it follows; alone LRP-0
    norm          FixedScale
    activation    Pass
    product       Uniform, as in attention
    recurrent     those of the operations of its steps
    others        the derivative
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        conv_epsilon: Of the convolutions and the first layer.

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
    conv_epsilon: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        return (("convolution", rules.ZPlus(self.conv_epsilon)), ("linear", rules.Epsilon(self.epsilon)), *_NORMS)


@dataclass(frozen=True)
class EpsilonPlusFlat(EpsilonPlus):
    """:class:`EpsilonPlus` with a flat first layer.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    first         Flat
    convolution   ZPlus(conv_epsilon)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        conv_epsilon: Of the convolutions and the first layer.

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
        """See the base class."""
        return (("first", rules.Flat()), *super().entries())


@dataclass(frozen=True)
class EpsilonAlpha2Beta1(EpsilonPlus):
    """Epsilon for linear layers, alpha 2 beta 1 for convolutions.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    convolution   AlphaBeta(2, 1, conv_epsilon)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        conv_epsilon: Of the convolutions and the first layer.

    Source: :cite:`bach2015,montavon2019`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.relevance import rule_table
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten(), nn.Linear(2, 4))
        >>> print(rule_table(model, torch.ones(1, 2, 5), EpsilonAlpha2Beta1(epsilon=0.1, conv_epsilon=0.01)))
        module  operation  rule
        0       conv1d     AlphaBeta(alpha=2.0, beta=1.0, epsilon=0.01)
        1       relu       Pass()
        2       conv1d     AlphaBeta(alpha=2.0, beta=1.0, epsilon=0.01)
        4       linear     Epsilon(epsilon=0.1)
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        return (("convolution", rules.AlphaBeta(2.0, 1.0, self.conv_epsilon)), *super().entries())


@dataclass(frozen=True)
class EpsilonAlpha2Beta1Flat(EpsilonAlpha2Beta1):
    """:class:`EpsilonAlpha2Beta1` with a flat first layer.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    first         Flat
    convolution   AlphaBeta(2, 1, conv_epsilon)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        epsilon: Of the linear layers.
        conv_epsilon: Of the convolutions and the first layer.

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
        """See the base class."""
        return (("first", rules.Flat()), *super().entries())


@dataclass(frozen=True)
class EpsilonGammaBox(Composite):
    r"""z-box for the first layer, gamma for convolutions, epsilon for linear layers.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    first         ZBox(low, high, conv_epsilon)
    convolution   Gamma(gamma, conv_epsilon)
    linear        Epsilon(epsilon)
    others        as in :class:`EpsilonPlus`
    ============  ==========================================

    Args:
        low: The least value of the inputs: a number, one per channel, or a tensor [C, \*S].
        high: The largest.
        gamma: Of the convolutions.
        epsilon: Of the linear layers.
        conv_epsilon: Of the convolutions and the first layer.

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
    conv_epsilon: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        return (
            ("first", rules.ZBox(self.low, self.high, self.conv_epsilon)),
            ("convolution", rules.Gamma(self.gamma, self.conv_epsilon)),
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
        epsilon: The epsilon of the denominators.

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
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("give both low and high for the z-box, or neither for w2.")
        super().__post_init__()

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        first: Rule = rules.WSquare(self.epsilon)
        if self.low is not None and self.high is not None:
            first = rules.ZBox(self.low, self.high, self.epsilon)
        plus = rules.ZPlus(self.epsilon)
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
        """See the base class."""
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
class ExcitationBackprop(Composite):
    """Marginal winning probabilities: z+ without biases.

    ==================  ==========================================
    operation           rule
    ==================  ==========================================
    convolution,        ZPlus(epsilon, bias=False)
    linear
    others              as in :class:`EpsilonPlus`
    ==================  ==========================================

    Args:
        epsilon: The epsilon of the denominators.

    Source: :cite:`zhang2018`.

    Example:
        The contributions 2, -3 and 4 and the bias 3 make 6, which goes to 2 and 4, the bias gets nothing:

        >>> import torch
        >>> from lightning_xai.relevance import LRP
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[1.0, -3.0, 1.0]]), torch.tensor([3.0])
        >>> LRP(ExcitationBackprop(epsilon=0.0))(model, torch.tensor([[2.0, 1.0, 4.0]]), 0)
        tensor([[2., 0., 4.]])
    """

    epsilon: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """See the base class."""
        plus = rules.ZPlus(self.epsilon, bias=False)
        return (("convolution", plus), ("linear", plus), *_NORMS)


def as_composite(composite: str | Composite) -> Composite:
    """A composite, or that of a name with its defaults; names are those of the composites in snake case.

    Raises:
        ValueError: If the name is unknown, or its composite has no defaults.
        TypeError: If it is neither.

    >>> as_composite("epsilon_plus_flat")
    EpsilonPlusFlat(epsilon=1e-06, conv_epsilon=1e-06)
    """
    from lightning_xai.relevance import composites

    if isinstance(composite, Rule):
        raise TypeError(f"composite must be a composite, got a rule; one for all is RuleList([('*', {composite})]).")
    found: Composite = as_choice("composite", composite, Composite, composites)
    return found
