"""What a forward pass under a composite knows of its tensors, and leaves for the table of rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.operations import KINDS, kind_of, tensors_in
from lightning_xai.relevance.call import Call, Operation, is_rectifier
from lightning_xai.relevance.inputs import InputTracker
from lightning_xai.relevance.ledger import Recorder
from lightning_xai.relevance.record import LinearRecord
from lightning_xai.relevance.sharded import find_again


@dataclass(eq=False)
class Row:
    """One row of the table of a pass: an operation and the rule it got."""

    operation: Operation
    rule: str
    record: LinearRecord | None = field(default=None, repr=False)


class Trace:
    """What a forward pass knows of its tensors; facts about a tensor go with it.

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
        self.statistics = WeakTensorKeyDictionary()  # what counts as a constant, though it is made of the input
        self._nonnegative: Any = WeakTensorKeyDictionary()  # the version in which a tensor was not negative

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
