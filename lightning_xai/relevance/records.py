"""What a forward pass under a composite leaves behind for the backward pass, and for the table of rules."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_xai.relevance.calls import LinearCall
from lightning_xai.relevance.composites import Operation
from lightning_xai.relevance.maps import Weights
from lightning_xai.relevance.rules import Gradient, Rule
from lightning_xai.relevance.step import (
    Absorbed,
    FusedStep,
    Step,
    over_slice_budget,
    over_weight_budget,
    owns_storage,
    run_fused,
    sliced,
)


@dataclass(eq=False)
class Kept:
    """The values of a tensor that the backward pass needs, whatever is written over the tensor in between."""

    values: Tensor | None = None
    version: int = 0

    def keep(self, tensor: Tensor) -> None:
        """Remember the values, without keeping their history alive."""
        self.values = tensor.detach()
        self.version = tensor._version

    def protect(self) -> None:
        """Copy the values before something writes over them."""
        if self.values is not None and self.values._version == self.version:
            self.values = self.values.clone()
            self.version = self.values._version

    def read(self) -> Tensor:
        """The values as they were."""
        assert self.values is not None
        if self.values._version != self.version:
            raise RuntimeError("an activation was changed in place in a way that was not seen; change it out of place.")
        return self.values


@dataclass(eq=False)
class Handing:
    """What an operation says of what it handed down; it holds no tensors, so that others may hold it."""

    fresh: bool = False
    """Whether it lies in memory of its own."""


@dataclass(eq=False)
class Record:
    """One linear operation of a pass: what its backward needs, and which rule it got."""

    operation: Operation
    call: LinearCall
    weights: Weights
    rule: Rule | None = None
    y: Tensor | None = None
    version: int = 0
    absorbed: Absorbed | None = None
    folded: str = ""
    readers: int = 0
    written: bool = False
    read: int = field(init=False)
    """The version of the input that was read."""
    handed: list[Tensor] | None = None
    alone: bool = False
    """Whether one operation reads the output."""
    activation_output: Tensor | None = None
    """What that operation, an activation, made of the output, if the relevance came through it."""
    owns_gradient: bool = False
    """Whether nobody else reads what came through it."""
    rectified: bool = False
    """Whether that operation is a ReLU."""
    nonnegative: bool | None = None
    """Whether no input is negative; None if nobody has looked."""
    handing: Handing = field(default_factory=Handing)
    before: Record | None = None
    """The linear operation before, if it takes this one along, so that what lies between the two is never whole."""
    along: tuple[FusedStep, ...] = ()
    """What this one takes along."""

    def __post_init__(self) -> None:
        self.read = self.call.x._version

    def keep(self, y: Tensor) -> None:
        """Remember the output, without keeping its history alive."""
        self.y = y.detach()
        self.version = y._version

    def protect(self) -> None:
        """Copy the output before something writes over it."""
        if self.y is not None and self.y._version == self.version:
            self.y = self.y.clone()
            self.version = self.y._version

    def takes_relevance(self) -> bool:
        """Whether the activation that reads the output may leave it to the rule to multiply by what it made of it."""
        return self.alone and self.absorbed is None and not isinstance(self.rule, Gradient)

    def leave_to(self, before: Record) -> None:
        """Go along with the linear operation before, if the tensor that an activation makes between them is large.

        To be asked only if nothing else reads that tensor, and nobody is shown a gradient. Heavy weights stay with all
        samples.
        """
        x = self.call.x
        if not over_slice_budget(x) or over_weight_budget(self.weights.weight) or not before.takes_relevance():
            return
        types = {tensor.dtype for record in (self, before) for tensor in (record.call.x, record.weights.weight)}
        apart = all(sliced(record.call.map, x) for record in (self, before))
        assert before.rule is not None
        if len(types) == 1 and apart and before.rule.multiplies:
            self.before = before

    def drop_unread(self, *, rectified: bool) -> bool:
        """Forget an output that one activation alone reads, a ReLU or not, if the rule does not read it."""
        if self.rule is None or isinstance(self.rule, Gradient) or self.absorbed is not None:
            return False
        with torch.no_grad():
            x = self.call.x.detach()
            nothing = x.new_empty(0)
            step = Step(self.call.map, self.weights, x, nothing, nothing, None, nothing, rectified, self.nonnegative)
            reads = self.rule.reads_output(step)
        self.nonnegative = step.known_nonnegative
        if not reads:
            self.y, self.version = nothing, nothing._version
        return not reads

    def propagate(self, x: Tensor, g: Tensor) -> Tensor:
        """R / x of the input, or R, as the rule says."""
        y, rule = self.y, self.rule
        assert y is not None
        assert rule is not None
        if y._version != self.version:
            raise RuntimeError(
                f"the output of {self.operation} was changed in place in a way that was not seen; change it out of "
                f"place."
            )
        activation_output = self.activation_output
        tensors = (
            (x, y, g, self.weights.weight)
            if activation_output is None
            else (x, y, g, self.weights.weight, activation_output)
        )
        common = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        state = (
            self.absorbed,
            None if activation_output is None else activation_output.to(common),
            activation_output is not None and self.rectified,
            self.nonnegative,
            self.owns_gradient,
        )
        # Without its history, which would hold what waits for the operation before in a circle.
        values = x.detach().to(common)
        step = Step(self.call.map, self.weights.to(common), values, y.to(common), g.to(common), *state)
        links = (*self.along, FusedStep(rule.linear, step))
        self.y = self.activation_output = None
        self.along = ()
        if self.before is not None:
            self.before.along = links
            return x.new_full((), math.nan).expand_as(x)  # which nobody reads
        # Rules of the first layer also look at what is the same for all samples.
        found = run_fused(links) if rule.multiplies else rule.linear(step)
        self.handing.fresh = owns_storage(found, tensors)
        if self.handed is not None and not rule.multiplies:
            self.handed.append(found.sum())
        return found.to(x.dtype)


@dataclass(eq=False)
class Row:
    """One row of the table of a pass: an operation and the rule it got."""

    operation: Operation
    rule: str
    record: Record | None = field(default=None, repr=False)
