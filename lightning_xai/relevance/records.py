"""What a forward pass under a composite leaves behind for the backward pass, and for the table of rules."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_xai.relevance.calls import LinearCall
from lightning_xai.relevance.composites import Operation
from lightning_xai.relevance.maps import Weights
from lightning_xai.relevance.rules import Rule
from lightning_xai.relevance.step import Absorbed, Step


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
    handed: list[Tensor] | None = None

    def keep(self, y: Tensor) -> None:
        """Remember the output, without keeping its history alive."""
        self.y = y.detach()
        self.version = y._version

    def protect(self) -> None:
        """Copy the output before something writes over it."""
        if self.y is not None and self.y._version == self.version:
            self.y = self.y.clone()
            self.version = self.y._version

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
        common = functools.reduce(torch.promote_types, (x.dtype, y.dtype, g.dtype, self.weights.weight.dtype))
        y, g = y.to(common), g.to(common)
        found = rule.linear(Step(self.call.map, self.weights.to(common), x.to(common), y, g, self.absorbed))
        self.y = None
        if self.handed is not None and not rule.multiplies:
            self.handed.append(found.sum())
        return found.to(x.dtype)


@dataclass(eq=False)
class Row:
    """One row of the table of a pass: an operation and the rule it got."""

    operation: Operation
    rule: str
    record: Record | None = field(default=None, repr=False)
