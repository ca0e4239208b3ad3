"""The record that the forward pass of a linear operation keeps for its backward pass."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_xai.relevance import chain
from lightning_xai.relevance.call import Call, Operation
from lightning_xai.relevance.functions import Linear
from lightning_xai.relevance.inplace import SavedTensor
from lightning_xai.relevance.linear import LinearCall
from lightning_xai.relevance.step import Absorbed, Step
from lightning_xai.relevance.weights import Weights

if TYPE_CHECKING:
    from lightning_xai.relevance.rules import Rule
    from lightning_xai.relevance.trace import Trace


@dataclass(eq=False)
class LinearRecord:
    """One linear operation of a pass: what its backward needs, and which rule it got.

    Attributes:
        operation: The operation.
        linear: What it was called with.
        weights: Its weights, with those of a batch norm folded in.
        rule: Its rule; None until the end of the pass if only that decides.
        unfolded: Where the operation without the batch norm that is folded in is found while something else still
            reads its output; None if no batch norm is folded in.
        output: Its output.
        input_version: The version of the input that was read.
        written: Whether something was written over the output.
        consumers: How many operations have read the output.
        absorbed: Where the rule notes what it does not hand on; None if nobody asks.
        handed: Where relevance that is no multiple of the input is noted.
        native: Whether its own derivative is the rule, so that nothing is kept of it.
        nonnegative: Whether no input is negative; None if nobody has looked.
        fusion: What an activation and other linear operations have to do with it.
    """

    operation: Operation
    linear: LinearCall
    weights: Weights
    rule: Rule | None = None
    unfolded: weakref.ref[LinearRecord] | None = None
    output: SavedTensor = field(default_factory=SavedTensor)
    input_version: int = field(init=False)
    written: bool = False
    consumers: int = 0
    absorbed: Absorbed | None = None
    handed: list[Tensor] | None = None
    native: bool = False
    nonnegative: bool | None = None
    fusion: chain.Fusion = field(default_factory=lambda: chain.Fusion())

    def __post_init__(self) -> None:
        self.input_version = self.linear.x._version

    def run(self, trace: Trace, make: Callable[[], Tensor]) -> Tensor:
        """The output of the operation, tied to its input by the rule."""
        x = self.linear.x
        y: Tensor
        if self.native:
            y = make()
            self.output.version = y._version
            trace.records[y] = self
            return y
        self.nonnegative = trace.nonnegative(x) or None
        if trace.ledger is not None:
            self.absorbed, self.handed = trace.ledger.absorbed(), trace.ledger.handed
        receiver = trace.inputs.receivers.get(x) if self.operation.first else None
        y = Linear.apply(x, receiver, self, make)
        self.output.save(y)
        trace.records[y] = self
        if trace.ledger is not None:
            trace.ledger.note_output(self.operation.module, y, again=self.unfolded is not None)
        return y

    def step(self, x: Tensor, y: Tensor, g: Tensor) -> Step:
        """The operation with what arrives from above, in the widest type of all tensors that take part."""
        assert self.rule is not None
        fusion, after = self.fusion, self.fusion.activation_output
        tensors = [x, y, g, self.weights.weight, *(() if after is None else (after,))]
        common = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        return Step(
            self.linear.map,
            self.weights.to(common),
            x.detach().to(common),  # without its history, which would be held in a circle
            y.to(common),
            g.to(common),
            self.rule,
            self.absorbed,
            None if after is None else after.to(common),
            rectified=after is not None and fusion.rectified,
            known_nonnegative=self.nonnegative,
            owns_gradient=fusion.owns_gradient,
        )

    def propagate(self, x: Tensor, g: Tensor) -> Tensor:
        """R / x of the input, or R, as the rule says."""
        rule, y = self.rule, self.output.read(f"the output of {self.operation}")
        assert rule is not None
        step = self.step(x, y, g)
        self.output.values = None
        found = self.fusion.propagate(step)
        if self.handed is not None and not rule.multiplies:
            self.handed.append(found.sum())
        return found.to(x.dtype)


def run_linear(call: Call, rule: Rule | None, *, native: bool = False) -> Tensor:
    """Make a linear operation whose relevance goes back by ``rule.linear``; None for one that is decided later."""
    linear = call.linear
    if linear is None:
        raise ValueError(
            f"{rule} was matched to {call.operation}, an operation of the kind {call.operation.kind!r}, but implements "
            f"no run(call), only linear(step), which is for convolutions and linear operations."
        )
    record = LinearRecord(call.operation, linear, Weights(linear.weight, linear.bias), rule, native=native)
    return record.run(call.trace, call.make)
