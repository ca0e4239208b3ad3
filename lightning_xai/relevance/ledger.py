"""Where relevance goes on its way back: the conservation ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai.operations import tensors_in
from lightning_xai.operations.kinds import KINDS
from lightning_xai.relevance.call import Call, is_live
from lightning_xai.relevance.functions import relevance_sum, tapped
from lightning_xai.relevance.step import Absorbed

if TYPE_CHECKING:
    from lightning_xai.relevance.rules import Rule


@dataclass(frozen=True, eq=False)
class Ledger:
    r"""Where the relevance of one batch went.

    .. math:: \sum_n s_n = \sum R(\text{input}) + \text{biases} + \text{epsilon} + \sum \text{remainder}

    Attributes:
        start: The explained score of every sample [N], which is the relevance that is handed out.
        received: What arrives at the input, summed over its cells [N].
        layers: The relevance of what each named module computed, in the order of the forward pass, summed over
            everything; a module that runs again is ``name#2``. A convolution and the batch norm folded into it are one
            operation and have the same.
        biases: What biases, and constants that are added, absorb; summed over the samples, like the following.
        epsilon: What the stabilisers of denominators absorb; negative where alpha-beta hands on more than it got.
        remainder: What else is not handed on, per kind of operation: a softmax, for one, is no sum of contributions.

    Example:
        Of the score :math:`8 - 4 + 2 = 6` every part has 6 / (6 + 2): the inputs 6 and -3, the bias 1.5, and the
        stabiliser as much:

        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[4.0, -2.0]]), torch.tensor([2.0])
        >>> own = LRP(composites.RuleList([("linear", rules.Epsilon(2.0))]))
        >>> ledger = own.with_ledger(model, torch.tensor([[2.0, 2.0]]), 0)[1]
        >>> ledger.start.item(), ledger.received.item(), ledger.biases.item(), ledger.epsilon.item()
        (6.0, 3.0, 1.5, 1.5)
        >>> ledger.balance.item(), ledger.bias_share.item()
        (0.0, 0.25)
    """

    start: Tensor
    received: Tensor
    layers: dict[str, Tensor]
    biases: Tensor
    epsilon: Tensor
    remainder: dict[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence[Ledger]) -> Ledger:
        """Join the ledgers of parts of a batch."""
        start, received = (torch.cat([getattr(part, name) for part in parts]) for name in ("start", "received"))
        biases, epsilon = (
            torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("biases", "epsilon")
        )
        layers: dict[str, Tensor] = {}
        remainder: dict[str, Tensor] = {}
        for part in parts:
            for sums, own in ((layers, part.layers), (remainder, part.remainder)):
                sums.update({key: sums.get(key, 0) + value for key, value in own.items()})
        return cls(start, received, layers, biases, epsilon, remainder)

    @property
    def balance(self) -> Tensor:
        """The start minus everything that is accounted for.

        0 but for rounding, and for what rules without a stabiliser cannot divide: denominators of 0.
        """
        rest = torch.stack([*self.remainder.values(), self.biases, self.epsilon]).sum()
        return self.start.sum() - self.received.sum() - rest

    @property
    def bias_share(self) -> Tensor:
        """The share of the start that biases absorb."""
        return self.biases / self.start.sum()

    @property
    def epsilon_share(self) -> Tensor:
        """The share of the start that stabilisers absorb."""
        return self.epsilon / self.start.sum()


class Recorder:
    """Collects a ledger while a model runs under a composite."""

    def __init__(self) -> None:
        self.layers: dict[str, list[Tensor]] = {}
        self.linear: list[Absorbed] = []
        self.stabilisers = Absorbed()
        self.handed: list[Tensor] = []
        self.retained: dict[str, list[Tensor]] = {}
        self._last = ""
        self._visits: dict[str, int] = {}

    def absorbed(self) -> Absorbed:
        """A note for one linear operation."""
        self.linear.append(Absorbed())
        return self.linear[-1]

    def note_output(self, module: str, y: Tensor, again: bool = False) -> None:
        """Note the relevance of what a module computes; what it computes later in the same visit replaces it."""
        if module != self._last and not again:
            self._visits[module] = self._visits.get(module, 0) + 1
        self._last = module
        visit = self._visits.get(module, 1)
        key = module if visit == 1 else f"{module}#{visit}"
        found: list[Tensor] = []
        self.layers[key] = found
        _on_relevance(y, found.append)

    def watched(self, call: Call, rule: Rule) -> Any:
        """Make an operation by its rule, and note what it takes in and hands on."""
        kind, module = call.operation.kind or call.operation.name, call.operation.module
        if kind in KINDS and KINDS[kind].constant:  # hands on all but what constants among its arguments have
            kind = "statistic" if any(part in call.trace.statistics for part in call.tensors) else "bias"
        balance = self.retained.setdefault(kind, [])
        args, kwargs = (_tapped(part, lambda r: balance.append(-r)) for part in (call.args, call.kwargs))
        copies = tensors_in([args, kwargs])
        call.trace.copy_gates(call.tensors, copies)
        live = [tensor for tensor in copies if is_live(tensor)]
        result = rule.run(replace(call, args=args, kwargs=kwargs, live=live))
        target = call.args[0] if call.in_place and is_live(call.args[0]) else None
        if target is not None and not isinstance(result, Tensor):
            result = args[0]  # x[...] = y returns nothing
        result = _tapped(result, balance.append)  # before what the rule does to the gradient of its result
        for part in tensors_in(result):
            if part.requires_grad:
                self.note_output(module, part)
        if target is not None:
            call.trace.before_write(call)
            return target.copy_(result)
        return result

    def ledger(self, start: Tensor, received: Tensor, output: Tensor, replaced: Tensor) -> Ledger:
        """The ledger of one pass.

        Args:
            start: The score [N].
            received: What arrives at the input [N].
            output: The relevance of the model's output: that of the score, linearised.
            replaced: What arrives at the input by rules that do not multiply by it; of what they handed out, the rest
                went to constants beside the input.
        """
        zero = start.new_zeros(())

        def total(parts: Any) -> Tensor:
            return torch.stack([zero, *(torch.as_tensor(part, device=zero.device) for part in parts)]).sum().to(zero)

        remainder = {kind: total(parts) for kind, parts in self.retained.items() if kind != "bias" and parts}
        remainder["score"] = start.sum() - output
        return Ledger(
            start,
            received,
            {name: total(parts) for name, parts in self.layers.items() if parts},
            total([*self.retained.get("bias", []), *(found.bias for found in self.linear), *self.handed, -replaced]),
            total(found.epsilon for found in [*self.linear, self.stabilisers]),
            {kind: value for kind, value in remainder.items() if bool(value != 0)},
        )


def _on_relevance(y: Tensor, note: Callable[[Tensor], None]) -> None:
    value = y.detach().clone()

    def hook(g: Tensor | None) -> None:
        if g is not None:  # nothing arrives by this way
            note(relevance_sum(value, g))

    y.register_hook(hook)  # type: ignore[no-untyped-call]


def _tapped(argument: Any, note: Callable[[Tensor], None]) -> Any:
    if isinstance(argument, Tensor):
        return tapped(argument, note) if is_live(argument) else argument
    if isinstance(argument, dict):
        return {key: _tapped(part, note) for key, part in argument.items()}
    if isinstance(argument, tuple | list) and any(map(is_live, tensors_in(argument))):
        return type(argument)([_tapped(part, note) for part in argument])
    return argument
