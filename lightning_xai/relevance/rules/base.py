"""What every rule is: a frozen dataclass, and for linear operations one method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_xai.relevance.step import SignedWeights, Step

LINEAR = frozenset({"convolution", "linear"})
SHARED = frozenset({"sum", "pooling", "affine_norm", "interpolation"})


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is no number >= 0."""
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a number >= 0, got {epsilon!r}.")


def by_sign(name: str, factor: float, of_positive: Callable[[Tensor], Tensor]) -> SignedWeights:
    """Weights that give contributions of one sign: negative inputs meet what positive ones do not."""
    return SignedWeights((name, factor), of_positive, lambda weight: -of_positive(-weight))


@dataclass(frozen=True)
class Rule:
    r"""How one kind of operation hands its relevance on.

    A rule for convolutions and linear layers implements :meth:`linear`; the others are known to the propagation.

    Example:
        A rule of one's own that hands on half of what LRP-0 does, of :math:`y = 2 \cdot 3 - 4 + 1 = 3`:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> class Half(rules.Rule):
        ...     applies = frozenset({"linear"})
        ...
        ...     def linear(self, step):
        ...         return step.transpose(step.relevance() / step.y, step.weights.plain()) / 2
        >>> model = torch.nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[3.0, -1.0]]), torch.tensor([1.0])
        >>> LRP(composites.RuleList([("*", Half())]))(model, torch.tensor([[2.0, 4.0]]), 0)
        tensor([[ 3., -2.]])
    """

    applies: ClassVar[frozenset[str] | None] = None
    """The kinds of operations it can be used for; None for all."""
    multiplies: ClassVar[bool] = True
    """Whether a number's relevance is a multiple of it; if not, :meth:`linear` returns R instead of R / x."""

    def linear(self, step: Step) -> Tensor:
        """R / x of the input of a linear operation; may be asked for some samples of a batch at a time."""
        raise NotImplementedError(f"{type(self).__name__} is no rule for linear operations.")

    def reads_output(self, step: Step) -> bool:
        """Whether :meth:`linear` reads ``step.y`` when there is a ``step.activation_output``."""
        return True
