"""Facts about the tensors of a forward pass under a composite, and the rows of the table of rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.operations import tensors_in
from lightning_xai.operations.kinds import KINDS, MIXING, kind_of
from lightning_xai.relevance.call import Call, Operation, is_rectifier
from lightning_xai.relevance.inputs import InputTracker
from lightning_xai.relevance.ledger import Recorder
from lightning_xai.relevance.record import LinearRecord
from lightning_xai.relevance.sharded import find_again

_GATES = frozenset({"sigmoid", "expit", "hardsigmoid", "softmax"})


@dataclass(eq=False)
class Row:
    """One row of the table of a pass: an operation and the rule it got."""

    operation: Operation
    rule: str
    record: LinearRecord | None = field(default=None, repr=False)


class Trace:
    """The facts that a forward pass keeps about its tensors, for as long as these live.

    Args:
        ledger: Collects where relevance goes; None to collect nothing.
        sharded: Whether the model is sharded, which hides tensors behind functions of its own.
    """

    def __init__(self, ledger: Recorder | None = None, *, sharded: bool = False) -> None:
        self.ledger = ledger
        self.sharded = sharded
        self.rows: list[Row] = []
        self.inputs = InputTracker()
        self.records: Any = WeakTensorKeyDictionary()  # of the linear operation that made a tensor
        self.saved: Any = WeakTensorKeyDictionary()  # of activations that left their factor to a linear operation
        self.constant_linear: Any = WeakTensorKeyDictionary()  # the linear operation on constants that made a tensor
        self.statistics = WeakTensorKeyDictionary()  # what counts as a constant, though it is made of the input
        self._nonnegative: Any = WeakTensorKeyDictionary()  # the version in which a tensor was not negative
        self._gates: Any = WeakTensorKeyDictionary()  # the version in which it was a gate

    def count_consumers(self, live: list[Tensor]) -> None:
        """Note that an operation reads these tensors."""
        if self.sharded:
            find_again(live, (self.records, self.saved, self.inputs.receivers))
        for tensor in live:
            record = self.records.get(tensor)
            if record is not None:
                record.consumers += 1

    def follow_constants(self, tensors: list[Tensor], result: Any) -> None:
        """Note the result of an operation on constants, one of which may be a statistic."""
        if any(tensor in self.statistics for tensor in tensors):
            self.statistics.update(dict.fromkeys(tensors_in(result)))

    def follow(self, call: Call, result: Any) -> None:
        """Note what is known of the result of an operation."""
        if call.operation.kind == "statistic":
            self.statistics.update((part, None) for part in tensors_in(result) if not part.requires_grad)
        if self._makes_gate(call):
            self._gates.update((part, part._version) for part in tensors_in(result))
        facts = KINDS.get(kind_of(call.func) or "")
        rectified = call.operation.kind == "activation" and is_rectifier(call.operation.name, call.named())
        if isinstance(result, Tensor) and (
            rectified or (facts is not None and facts.sign_preserving and all(map(self.nonnegative, call.tensors)))
        ):
            self._nonnegative[result] = result._version
        if call.operation.kind not in ("convolution", "linear") and self.inputs.covers(call.live):
            self.inputs.follow(call, [part for part in tensors_in(result) if part.requires_grad])

    def nonnegative(self, tensor: Any) -> bool:
        """Whether a tensor is known to hold no negative number."""
        return isinstance(tensor, Tensor) and self._nonnegative.get(tensor) == tensor._version

    def is_gate(self, tensor: Any) -> bool:
        """Whether a tensor says how much of another passes: what a sigmoid or a softmax gives, moved, or 1 less it."""
        return isinstance(tensor, Tensor) and self._gates.get(tensor) == tensor._version

    def _makes_gate(self, call: Call) -> bool:
        name, facts = call.operation.name, KINDS.get(call.operation.kind or "")
        if facts is not None and facts.moving and name not in MIXING:
            return all(map(self.is_gate, call.live))
        if name == "rsub":  # 1 - z
            return call.args[1:] == (1,) and self.is_gate(call.args[0])
        return name in _GATES

    def copy_gates(self, tensors: list[Tensor], copies: list[Tensor]) -> None:
        """Note that copies of some tensors are gates if these are."""
        gates = ((copy, copy._version) for tensor, copy in zip(tensors, copies, strict=True) if self.is_gate(tensor))
        self._gates.update(gates)

    def before_write(self, call: Call) -> None:
        """Copy what a rule still needs of a tensor that a call is about to write to."""
        target = call.args[0] if call.args and isinstance(call.args[0], Tensor) else call.kwargs.get("input")
        if not isinstance(target, Tensor):
            return
        for tensor in (target, target._base):
            if tensor is None:
                continue
            if tensor in self.saved:
                self.saved[tensor].copy_before_write()
            record = self.records.get(tensor)
            if record is None:
                continue
            record.written = True
            # Where ReLU changes a number no relevance arrives: its result serves as well.
            alone = tensor is target and record.consumers == 1 and tensor._version == record.output.version
            if call.operation.name == "relu" and alone:
                record.output.accept_write()
            else:
                record.output.copy_before_write()
