"""Layer-wise relevance propagation, and the methods that are a choice of its rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, MutableSequence, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lightning_xai._checks import check_inputs
from lightning_xai._files import write_csv
from lightning_xai._guard import detach_for_autograd, forward_context, frozen, isolated_eval
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import check_visible, unwrapped
from lightning_xai.relevance import composites
from lightning_xai.relevance.composites import Composite, as_composite
from lightning_xai.relevance.gradients import OVERWRITTEN
from lightning_xai.relevance.ledger import Ledger, Recorder
from lightning_xai.relevance.maps import image_layout
from lightning_xai.relevance.propagation import Propagation
from lightning_xai.relevance.refusals import CHECKPOINTED, UNREACHED
from lightning_xai.relevance.rules import Bound
from lightning_xai.relevance.trace import Row
from lightning_xai.rows import check_independent
from lightning_xai.scores import BoundScore, Score, Target, as_score

_COLUMNS = ("module", "operation", "rule")


@dataclass(eq=False)
class PassResult:
    """The result of one pass forward and back: R, g and the score, the operations, and the ledger if asked for."""

    relevance: Tensor
    gradient: Tensor
    bound: BoundScore
    score: Tensor
    rows: list[Row]
    ledger: Ledger | None


def _propagate(
    model: nn.Module, inputs: Tensor, target: Target, composite: Composite, score: Score, with_ledger: bool = False
) -> PassResult:
    """Run the model once under a composite, and differentiate once."""
    network = unwrapped(model)
    check_visible(network)
    recorder = Recorder() if with_ledger else None
    with isolated_eval(network, gradients=True), frozen(network):
        leaf = detach_for_autograd(inputs).requires_grad_()
        layout = torch.channels_last if image_layout(leaf) else torch.contiguous_format
        fed = leaf.clone(memory_format=layout)
        receiver = torch.zeros_like(leaf, requires_grad=True) if composite.replaces_inputs else None
        run = Propagation(network, composite, recorder)
        run.enter(fed, receiver)
        with forward_context(), run:
            output = network(fed)
        bound = score.bind(_detached(output, []), target, len(inputs), of=(network, inputs))
        with run.scoring():
            value = bound(output)
        run.finish(value)
        if run.joins_rows and len(inputs) > 1 and not run.trace.sharded:
            check_independent(network, inputs)
        leaves = [leaf] if receiver is None else [leaf, receiver]
        try:
            found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        except CheckpointError as error:
            raise ValueError(CHECKPOINTED) from error
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ValueError(OVERWRITTEN) from error
        if all(part is None for part in found):
            raise ValueError(UNREACHED)
        gradient, *rest = (torch.zeros_like(leaf) if part is None else part for part in found)
        replaced = rest[0] if rest else torch.zeros_like(gradient)
        relevance, score_value = torch.addcmul(replaced, leaf.detach(), gradient).contiguous(), value.detach()
        ledger = None
        if recorder is not None:
            start = _output_relevance(bound, output, value)
            ledger = recorder.ledger(score_value, relevance.flatten(1).sum(1), start, replaced.sum())
        return PassResult(relevance, gradient.contiguous(), bound, score_value, run.trace.rows, ledger)


def _detached(output: Any, leaves: list[Tensor]) -> Any:
    """The output without its history, in containers and objects of the same types; its tensors go to ``leaves``."""
    if isinstance(output, Tensor):
        leaves.append(output.detach())
        return leaves[-1]
    if isinstance(output, tuple):
        parts = [_detached(part, leaves) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)  # a named tuple or not
    if isinstance(output, MutableMapping | MutableSequence):  # also one that is an object with attributes
        copied = copy(output)
        for key, part in output.items() if isinstance(output, MutableMapping) else enumerate(output):
            copied[key] = _detached(part, leaves)
        return copied
    if hasattr(output, "__dict__") and not callable(output):
        copied = copy(output)
        for name, part in vars(output).items():
            object.__setattr__(copied, name, _detached(part, leaves))  # of a frozen dataclass, too
        return copied
    return output


def _output_relevance(bound: BoundScore, output: Any, value: Tensor) -> Tensor:
    """The relevance of the model's output: of a score that is not linear in it, the first-order part."""
    leaves: list[Tensor] = []
    copied = _detached(output, leaves)
    parts = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
    if not parts:
        return value.detach().sum()
    grads = torch.autograd.grad(bound(copied).sum(), parts, allow_unused=True)
    pairs = zip(parts, grads, strict=True)
    return torch.stack([(part.detach() * grad).sum() for part, grad in pairs if grad is not None]).sum()


@dataclass(frozen=True)
class PropagationAttribution(ScoreAttribution, ABC):
    """An attribution by one backward pass under the rules of a composite.

    Args:
        score: s; a score that is not linear in the model's output is shared out as its first-order part.
    """

    @abstractmethod
    def rules(self) -> Composite:
        """Return the composite under which the backward pass runs."""

    def check(self) -> None:
        self.rules()

    def read(self, result: PassResult) -> Tensor:
        """Return the map that the pass gives; the relevance, unless a method reads something else."""
        return result.relevance

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        run = partial(_propagate, composite=self.rules(), score=as_score(self.score), with_ledger="ledger" in details)
        result = run(model, inputs, target)
        explanation = Explanation.of(result.bound, result.score, self.read(result))
        if "ledger" in details:
            known = result.score.isfinite()
            if known.any() and not known.all():
                # The ledger sums over the samples, so those whose score is no number must not enter the pass.
                rows = known.nonzero().flatten()
                result = run(at_rows(model, rows), inputs[rows], result.bound.at(rows))
            explanation.details["ledger"] = result.ledger
        return explanation


@dataclass(frozen=True)
class LRP(PropagationAttribution):
    r"""Layer-wise relevance propagation: every operation hands the relevance of its output to its inputs by a rule.

    .. math:: R_x = x \odot g, \qquad R_{\text{score}} = s(x)

    The relevance of a batch is found in one forward and one backward pass. Operations are seen as the model makes
    them: functional and in-place ones, modules used twice, bare sums and fused attention included. The model's own
    ``torch.no_grad()`` does not stop relevance under any rule; ``.detach()`` does.

    Args:
        composite: Which rule where.
        score: s, what is shared out; a score that is not linear in the model's output as its first-order part.

    Raises:
        TypeError: If the composite is none.
        ValueError: If the score is unknown.

    Source: :cite:`bach2015,montavon2019`.

    Example:
        >>> from lightning_xai.relevance import rules
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 1.0]])
        >>> LRP(composites.RuleList([("linear", rules.Zero())]))(model, torch.tensor([[1.0, 1.0, 2.0]]), 0)
        tensor([[ 1., -2.,  6.]])
    """

    details: ClassVar[tuple[str, ...]] = ("ledger",)
    conserves: ClassVar[bool] = True

    composite: str | Composite = field(default_factory=composites.EpsilonPlus)

    def check(self) -> None:
        object.__setattr__(self, "composite", as_composite(self.composite))

    def rules(self) -> Composite:
        return as_composite(self.composite)

    def with_ledger(
        self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Ledger]:
        """Return the map and the detail ``ledger``, which sums over the samples whose score is finite.

        The arguments are those of a call.
        """
        explanation = self.explain(model, inputs, target, sample_ids, details=["ledger"])
        return explanation.map, explanation.details["ledger"]


@dataclass(frozen=True, eq=False)
class RuleTable:
    """Which rule each operation of a model gets; prints as a table.

    Attributes:
        rows: Triples (module, operation, rule), in the order of the forward pass.
    """

    rows: tuple[tuple[str, str, str], ...]

    def to_csv(self, path: str | Path) -> Path:
        """Write the table."""
        return write_csv(path, _COLUMNS, self.rows)

    def __str__(self) -> str:
        named = [_COLUMNS, *self.rows]
        widths = [max(len(row[column]) for row in named) for column in range(2)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in named)


def rule_table(model: nn.Module, inputs: InputsLike, composite: str | Composite) -> RuleTable:
    """Which rule every operation of a model gets, found by one forward pass of the first sample.

    Operations that only move numbers, or whose derivative conserves relevance as it is (sums, pooling), are left out
    unless the composite names them. What a module repeats, as an LSTM does at every step, stands there once.

    Args:
        model: The network; left as it was.
        inputs: Inputs like those to be explained.
        composite: Which rule where.

    Raises:
        ValueError: If an operation finds no rule; the message names it and the remedy.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
        >>> print(rule_table(model, torch.ones(1, 3), composites.AttnLRP(epsilon=0.1)))
        module  operation  rule
        0       linear     Epsilon(epsilon=0.1)
        1       gelu       Pass()
        2       linear     Epsilon(epsilon=0.1)
    """
    composite = as_composite(composite)
    model, values = bind(model, inputs)
    check_inputs(values)
    result = _propagate(at_rows(model, slice(1)), values[:1], "predicted", composite, as_score("logit"))
    rows = ((row.operation.module, row.operation.name, row.rule) for row in result.rows)
    return RuleTable(tuple(dict.fromkeys(rows)))


@dataclass(frozen=True)
class DeepTaylor(PropagationAttribution):
    r"""Deep Taylor decomposition: z+ inside, at the input z-box if its bounds are given and w2 if not.

    Not negative where the score is not.

    Args:
        low: The least value the inputs can have: a number, one per channel, or a tensor [C, \*S].
        high: The largest.
        epsilon: The stabiliser of the denominators.
        score: What is shared out.

    Raises:
        ValueError: If one bound is given without the other, or they are none.

    Source: :cite:`montavon2017`.

    Example:
        Of :math:`s = h_0 - 2 h_1 = 4 - 2` all goes to :math:`h_0 = x_0 + 2 x_1`, whose squared weights are 1 and 4; its
        contributions above those of 0 are 2 and 2:

        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, False), torch.nn.ReLU(), torch.nn.Linear(2, 1, False))
        >>> model[0].weight.data = torch.tensor([[1.0, 2.0], [1.0, -1.0]])
        >>> model[2].weight.data = torch.tensor([[1.0, -2.0]])
        >>> x = torch.tensor([[2.0, 1.0]])
        >>> DeepTaylor(epsilon=0.0)(model, x, 0), DeepTaylor(low=0.0, high=3.0, epsilon=0.0)(model, x, 0)
        (tensor([[0.4000, 1.6000]]), tensor([[1., 1.]]))
    """

    conserves: ClassVar[bool] = True

    _: KW_ONLY
    low: Bound | None = None
    high: Bound | None = None
    epsilon: float = 1e-6

    def rules(self) -> Composite:
        return composites.DeepTaylor(self.low, self.high, self.epsilon)


@dataclass(frozen=True)
class Deconvnet(PropagationAttribution):
    r"""The derivative of the score in which a ReLU passes what is positive of the signal from above.

    .. math:: g_x = \max(g_y, 0)

    Args:
        score: What is differentiated.

    Source: :cite:`zeiler2014`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        >>> model[0].weight.data = torch.tensor([[1.0, -2.0], [-3.0, 1.0]])
        >>> Deconvnet(score="value")(model, torch.ones(1, 2), torch.tensor([0]))
        tensor([[ 1., -2.]])
    """

    def rules(self) -> Composite:
        return composites.Deconvnet()

    @property
    def is_slope(self) -> bool:
        return True

    def read(self, result: PassResult) -> Tensor:
        return result.gradient


@dataclass(frozen=True)
class GuidedBackprop(PropagationAttribution):
    r"""The derivative of the score in which a ReLU passes what is positive of the signal, where its input is positive.

    .. math:: g_x = [x > 0] \max(g_y, 0)

    Args:
        score: What is differentiated.

    Source: :cite:`springenberg2015`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        >>> model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 1.0]])
        >>> GuidedBackprop(score="value")(model, torch.ones(2, 2), torch.tensor([0, 1]))
        tensor([[0., 0.],
                [3., 1.]])
    """

    def rules(self) -> Composite:
        return composites.GuidedBackprop()

    @property
    def is_slope(self) -> bool:
        return True

    def read(self, result: PassResult) -> Tensor:
        return result.gradient


@dataclass(frozen=True)
class ExcitationBackprop(PropagationAttribution):
    r"""Excitation backpropagation: the probability that a random walk from the target ends at each number of the input.

    .. math:: P(j) = \sum_k \frac{x_j w_{jk}^+}{\sum_i x_i w_{ik}^+} P(k), \qquad P(\text{target}) = 1

    A score of 0 has no walks: its map is 0.

    Args:
        score: Where the walk starts.
        epsilon: The stabiliser of the denominators.

    Source: :cite:`zhang2018`.

    Example:
        From :math:`3 h_0 + h_1 + 5` a walk goes to :math:`h_0 = x_0 - x_1 = 2` with 6 / 10 and to
        :math:`h_1 = x_0 + x_1 = 4` with 4 / 10. From :math:`h_0` it goes on to :math:`x_0` alone, from :math:`h_1` to
        :math:`x_1` with 1 / 4:

        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> model[0].weight.data = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        >>> model[2].weight.data, model[2].bias.data = torch.tensor([[3.0, 1.0]]), torch.tensor([5.0])
        >>> ExcitationBackprop()(model, torch.tensor([[3.0, 1.0]]), 0)
        tensor([[0.9000, 0.1000]])
    """

    epsilon: float = field(default=1e-6, kw_only=True)

    def rules(self) -> Composite:
        return composites.ExcitationBackprop(self.epsilon)

    def read(self, result: PassResult) -> Tensor:
        start = result.score.view(-1, *[1] * (result.relevance.ndim - 1))
        return torch.where(start == 0, 0.0, result.relevance / torch.where(start == 0, 1.0, start))
