"""The presets of the literature."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_xai.relevance import rules
from lightning_xai.relevance.composites.patterns import Patterns
from lightning_xai.relevance.rules import Bound, Rule

_NORMS: tuple[tuple[str, Rule], ...] = (("affine_norm", rules.Zero()), ("norm", rules.FixedScale()))


@dataclass(frozen=True)
class EpsilonPlus(Patterns):
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
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("first", rules.Flat()), *super().entries())


@dataclass(frozen=True)
class EpsilonGammaBox(Patterns):
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
class DeepTaylor(Patterns):
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

    Source: :cite:`montavon2017`.
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
class AttnLRP(Patterns):
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
class GuidedBackprop(Patterns):
    """The derivative, with guided ReLUs.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    relu, relu6   Guided
    others        the derivative
    ============  ==========================================

    Source: :cite:`springenberg2015`.
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("relu", rules.Guided()), ("relu6", rules.Guided()), ("*", rules.Gradient()))


@dataclass(frozen=True)
class Deconvnet(Patterns):
    """The derivative, with the ReLUs of the deconvnet.

    ============  ==========================================
    operation     rule
    ============  ==========================================
    relu, relu6   Deconv
    others        the derivative
    ============  ==========================================

    Source: :cite:`zeiler2014`.
    """

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        return (("relu", rules.Deconv()), ("relu6", rules.Deconv()), ("*", rules.Gradient()))


@dataclass(frozen=True)
class ExcitationBackprop(Patterns):
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
    """

    stabilizer: float = 1e-6

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        plus = rules.ZPlus(self.stabilizer, bias=False)
        return (("convolution", plus), ("linear", plus), *_NORMS)
