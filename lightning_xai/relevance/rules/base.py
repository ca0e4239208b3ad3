"""The base of all rules: a frozen dataclass with one method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lightning_xai._checks import check_fields
from lightning_xai.operations.kinds import LINEAR
from lightning_xai.relevance.call import Call
from lightning_xai.relevance.record import run_linear
from lightning_xai.relevance.step import SignedWeights, Step

SHARED = frozenset({"sum", "pooling", "affine_norm", "interpolation"})


def by_sign(name: str, factor: float, of_positive: Callable[[Tensor], Tensor]) -> SignedWeights:
    """Weights that give contributions of one sign: negative inputs meet what positive ones do not."""
    return SignedWeights((name, factor), of_positive, lambda weight: -of_positive(-weight))


@dataclass(frozen=True, eq=False)  # a rule that is no dataclass of its own compares by identity
class Rule:
    r"""How operations of some kinds hand their relevance on.

    A rule for convolutions and linear operations implements :meth:`linear`. A rule for other kinds names them in
    ``applies`` and implements :meth:`run`, which makes the operation so that its derivative is the rule.

    Class attributes:
        applies: The kinds of operations that it serves; None for all.
        multiplies: Whether a number's relevance is a multiple of it; if not, :meth:`linear` returns R instead of R / x.
        nonnegative: The fields, if it has them, that must be numbers >= 0.
        reads_relevance: Whether :meth:`linear` reads ``step.relevance()``, once, and never ``step.g``: an activation
            behind may then leave it to the rule to multiply, and memory may be used up. To be said in each class.

    Example:
        A rule of one's own that hands on half of what LRP-0 does, of :math:`y = 2 \cdot 3 - 4 + 1 = 3`:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> class Half(rules.Rule):
        ...     def linear(self, step):
        ...         return step.transpose(step.relevance() / step.y, step.weight) / 2
        >>> model = torch.nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[3.0, -1.0]]), torch.tensor([1.0])
        >>> LRP(composites.RuleList([("*", Half())]))(model, torch.tensor([[2.0, 4.0]]), 0)
        tensor([[ 3., -2.]])

        A rule for softmax, by which all relevance of a probability goes to its own logit, :math:`g_x = g_y p / x`:

        >>> class Own(rules.Rule):
        ...     applies = frozenset({"softmax"})
        ...
        ...     def run(self, call):
        ...         return call.with_backward(lambda g, x, p: g * p / x)
        >>> own = LRP(composites.RuleList([("softmax", Own())]), score="value")
        >>> own(torch.nn.Softmax(1), torch.tensor([[3.0, 3.0, 3.0]]), 0)
        tensor([[0.3333, 0.0000, 0.0000]])
    """

    applies: ClassVar[frozenset[str] | None] = LINEAR
    multiplies: ClassVar[bool] = True
    reads_relevance: ClassVar[bool] = False
    nonnegative: ClassVar[tuple[str, ...]] = ("epsilon",)

    def __init_subclass__(cls) -> None:
        if "linear" in vars(cls) and "reads_relevance" not in vars(cls):
            cls.reads_relevance = False  # what a class it derives from reads says nothing about it

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.nonnegative:
            value = getattr(self, name, 0.0)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number >= 0, got {value!r}.")

    def serves(self, kind: str | None) -> bool:
        """Whether it is a rule for a kind of operation."""
        return self.applies is None or kind in self.applies

    def run(self, call: Call) -> Any:
        """Make an operation so that its derivative is the rule; linear operations unless it is overridden."""
        return run_linear(call, self)

    def linear(self, step: Step) -> Tensor:
        """R / x of the input of a linear operation; may be asked for some samples of a batch at a time."""
        raise TypeError(f"{type(self).__name__} is no rule for linear operations: it does not implement linear(step).")

    def reads_output(self, step: Step) -> bool:
        """Whether :meth:`linear` reads ``step.y`` when there is a ``step.activation_output``."""
        return True


def rules_for(kind: str | None) -> list[str]:
    """The names of the rules of this package that serve a kind of operation.

    >>> rules_for("softmax"), rules_for("norm")
    (['Gradient'], ['FixedScale', 'Gradient', 'Pass'])
    """
    from lightning_xai.relevance import rules

    known = [value for name in dir(rules) if isinstance(value := getattr(rules, name), type)]
    return sorted(rule.__name__ for rule in known if issubclass(rule, Rule) and kind in (rule.applies or (kind,)))
