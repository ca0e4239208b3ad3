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

from lightning_xai.relevance.rules.base import Rule as Rule
from lightning_xai.relevance.rules.first import Bound as Bound
from lightning_xai.relevance.rules.first import Flat as Flat
from lightning_xai.relevance.rules.first import WSquare as WSquare
from lightning_xai.relevance.rules.first import ZBox as ZBox
from lightning_xai.relevance.rules.linear import AlphaBeta as AlphaBeta
from lightning_xai.relevance.rules.linear import Epsilon as Epsilon
from lightning_xai.relevance.rules.linear import Gamma as Gamma
from lightning_xai.relevance.rules.linear import Gradient as Gradient
from lightning_xai.relevance.rules.linear import Norm as Norm
from lightning_xai.relevance.rules.linear import Zero as Zero
from lightning_xai.relevance.rules.linear import ZPlus as ZPlus
from lightning_xai.relevance.rules.nonlinear import Constant as Constant
from lightning_xai.relevance.rules.nonlinear import Deconv as Deconv
from lightning_xai.relevance.rules.nonlinear import FixedScale as FixedScale
from lightning_xai.relevance.rules.nonlinear import Guided as Guided
from lightning_xai.relevance.rules.nonlinear import Pass as Pass
from lightning_xai.relevance.rules.nonlinear import Uniform as Uniform


def rules_for(kind: str | None) -> list[str]:
    """The names of the rules of this package that serve a kind of operation.

    >>> rules_for("softmax"), rules_for("norm")
    (['Gradient'], ['FixedScale', 'Gradient', 'Pass'])
    """
    known = (value for value in globals().values() if isinstance(value, type) and issubclass(value, Rule))
    return sorted(rule.__name__ for rule in known if rule is not Rule and kind in (rule.applies or (kind,)))
