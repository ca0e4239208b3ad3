r"""How one operation hands its relevance to its inputs: the open set of rules.

What travels back through the network is :math:`g = R / x`, the relevance of a number divided by the number: for sums,
linear maps, reshapes, mean and max pooling and ReLU the ordinary derivative then is a rule. Rules that do not multiply
by their input (:class:`Flat`, :class:`WSquare`, :class:`ZBox`) give relevance itself, and can stand only where the
input of the model arrives.

Notation: :math:`z_{jk} = x_j w_{jk}` is what input *j* contributes to output *k*, :math:`y_k = \sum_j z_{jk} + b_k`,
:math:`R_k` is the relevance of the output, and a denominator *z* is stabilised as
:math:`z + \epsilon\,\mathrm{sign}(z)` with :math:`\mathrm{sign}(0) = 1`. Where a denominator is 0 and
:math:`\epsilon = 0`, the relevance is lost there (given to nobody) instead of being NaN. Biases take part in the
denominators; what falls to them is absorbed.
"""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
