"""Hands every operation of a forward pass to a rule; the backward pass of autograd then is the relevance pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from lightning_xai._compiled import is_sharded
from lightning_xai.inputs.places import replaced_output
from lightning_xai.operations import Operations, tensors_in
from lightning_xai.operations.kinds import (
    HOMOGENEOUS,
    KINDS,
    LINEAR,
    MIXING,
    arguments,
    is_in_place,
    kind_of,
    operation_name,
)
from lightning_xai.relevance import chain, functions, refusals
from lightning_xai.relevance.call import Call, Operation, alias_of, is_live, kind_in
from lightning_xai.relevance.composites import Composite
from lightning_xai.relevance.composites.assignment import Assignment
from lightning_xai.relevance.folding import fold
from lightning_xai.relevance.ledger import Recorder
from lightning_xai.relevance.linear import linear_call
from lightning_xai.relevance.parts import PARTS
from lightning_xai.relevance.record import run_linear
from lightning_xai.relevance.rules import Constant, Gradient, Rule, Uniform
from lightning_xai.relevance.sharded import HANDS_ON
from lightning_xai.relevance.trace import Row, Trace
from lightning_xai.rows import joins_rows, nodes_behind

_SHOWING = frozenset({"register_hook", "retain_grad"})
"""Calls that show gradients to somebody, as a node of the graph, once it is asked for, can, too."""
_OF_A_LIBRARY = "GeneratedBackwardFor"
"""Begins the names of the nodes of operators that a library has registered: they are seen when they are called."""
_DIFFERENTIATING = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})


class Propagation(Operations):
    """Runs a model so that differentiating its output propagates relevance.

    Args:
        model: The network.
        composite: Which rule where.
        ledger: Collects where relevance goes; None to collect nothing.
    """

    def __init__(self, model: nn.Module, composite: Composite, ledger: Recorder | None = None) -> None:
        super().__init__(model)
        self.trace = Trace(ledger, sharded=is_sharded(model))
        self._assignment = Assignment(composite, model)
        self.joins_rows = self._observed = self._scoring = False

    def enter(self, inputs: Tensor, receiver: Tensor | None) -> None:
        """The tensor that the model is given, and the one whose gradient takes relevance that is no multiple of it."""
        self.trace.inputs.receivers[inputs] = receiver

    def scoring(self) -> Propagation:
        """From here on operations are those of the score, which have no rules: only hooks are looked for."""
        self._scoring = True
        return self

    # What the pass sees.

    def open_attention(self, kwargs: dict[str, Any]) -> None:
        """Refuse a rule for attention as a whole where it is made of its parts, for its weights are asked for."""
        rule = self._assignment.named(Operation("scaled_dot_product_attention", "attention", self.current_module()))
        if kwargs.get("need_weights", True) and rule is not None and not isinstance(rule, Uniform | Gradient):
            raise ValueError(
                f"{rule} was given to attention, but {self.current_module() or 'the model'} {refusals.NEEDS_WEIGHTS}"
            )

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let questions through, but not the model's own ``torch.no_grad()``, which would cut relevance off."""
        name = operation_name(func)
        if name == "set_grad_enabled" and args and args[0] is False and not (self.trace.sharded or self._scoring):
            return None
        if name in _SHOWING or getattr(func, "__self__", None) is torch.Tensor.grad_fn:
            self._observed = True
        return func(*args, **kwargs)

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one operation by the rule that the composite has for it."""
        if self._scoring:
            return func(*args, **kwargs)
        tensors = tensors_in([args, kwargs])
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
            raise ValueError(f"{self.current_module() or 'the model'} {refusals.TRANSFORMS}")
        live = [tensor for tensor in tensors if is_live(tensor)]
        if not live:  # what is made of parameters alone is no part of what is explained
            # Only where it has to be: what was seen without gradients, a model may not write to with them.
            with torch.no_grad() if any(tensor.requires_grad for tensor in tensors) else nullcontext():
                result = func(*args, **kwargs)
            self.trace.follow_constants(tensors, result)
            if kind_of(func) in LINEAR:
                self.trace.constant_linear[result] = Operation(
                    operation_name(func), kind_of(func), self.current_module()
                )
            return result
        self._check_context(func)
        self.trace.count_consumers(live)
        name, kind = operation_name(func), kind_in(func, args, kwargs, live)
        self.joins_rows = self.joins_rows or joins_rows(func, args, kwargs, live)
        parts = PARTS.get(name)
        if parts is not None and self._assignment.named(Operation(name, kind, self.current_module())) is None:
            return self._made_of_parts(partial(parts, *args, **kwargs), args[0] if is_in_place(func, kwargs) else None)
        alias = alias_of(name, arguments(func, args, kwargs)) if kind == "activation" else ""
        first = kind in LINEAR and self.trace.inputs.covers(live)
        operation = Operation(name, kind, self.current_module(), first=first, alias=alias)
        call = Call(func, args, kwargs, operation, tensors, live, self.trace)
        result = self._linear(call) if kind in LINEAR else self._other(call)
        self.trace.follow(call, result)
        return result

    def _check_context(self, func: Callable[..., Any]) -> None:
        differentiates = func in _DIFFERENTIATING
        if differentiates or torch.is_inference_mode_enabled():
            what = refusals.DIFFERENTIATES if differentiates else refusals.INFERENCE
            raise ValueError(f"{self.current_module() or 'the model'} {what}")

    # How an operation is made.

    def _made_of_parts(self, parts: Callable[[], Any], target: Tensor | None) -> Any:
        """Make an operation of others, each of which finds its rule, and write it into the tensor that it changes."""
        with self:
            result = parts()
            return result if target is None else target.copy_(result)

    def _linear(self, call: Call) -> Any:
        # The weights of rules have a sign, which complex ones have not: as products they are handed on as by LRP-0.
        call.linear = None if any(tensor.is_complex() for tensor in call.live) else linear_call(call)
        if call.linear is None:  # or its weights depend on the input: a product of values
            call.operation = replace(call.operation, kind="product", first=False)
            return self._other(call)
        if call.linear.rewritten is not None:
            return self._made_of_parts(call.linear.rewritten, call.args[0] if call.in_place else None)
        undecided = self._assignment.is_decided_by_place(call.operation)
        rule = None if undecided else self._assignment.rule_for(call.operation)
        row = Row(call.operation, str(rule))
        self.trace.rows.append(row)
        if undecided:
            result = run_linear(call, None)
        elif rule is None:
            self._assignment.refuse(call.operation)
        else:
            self._check_place(rule, call.operation, call.linear.x)
            result = rule.run(call)
        if isinstance(result, Tensor):
            row.record = self.trace.records.get(result)
        return result

    def _check_place(self, rule: Rule, operation: Operation, x: Tensor) -> None:
        if not rule.multiplies and (not operation.first or self.trace.inputs.receivers.get(x) is None):
            raise ValueError(f"the rule {rule} was given to {operation}, {refusals.NO_MULTIPLE}")

    def _other(self, call: Call) -> Any:
        kind = call.operation.kind
        if kind == "affine_norm" and call.named().get("training", False):
            call.operation = replace(call.operation, kind="norm")
        elif kind == "affine_norm":
            folded = fold(call)
            if folded is not None:
                return folded
            self._check_site(call)
        rule = self._assignment.rule_for(call.operation, has_parameters=call.has_parameters())
        if rule is None:
            result = call.make()
            nodes = [part.grad_fn for part in tensors_in(result) if part.requires_grad]
            if any(map(functions.is_undifferentiable, nodes)):
                raise ValueError(refusals.UNDIFFERENTIABLE)
            if nodes:
                self._assignment.refuse(call.operation)
            return result
        passing = kind == "activation" and call.operation.name not in HOMOGENEOUS and not isinstance(rule, Gradient)
        if passing and any(tensor.is_complex() for tensor in call.live):
            raise ValueError(f"{call.operation} {refusals.COMPLEX}")
        facts = KINDS.get(call.operation.kind or "")
        if facts is None or not facts.conserving or self._assignment.named(call.operation) is not None:
            self.trace.rows.append(Row(call.operation, str(rule)))
        moves = facts is not None and facts.moving and call.operation.name not in MIXING
        if self.trace.ledger is None or moves or isinstance(rule, Constant):
            return rule.run(call)
        return self.trace.ledger.watched(call, rule)

    def _check_site(self, norm: Call) -> None:
        """Refuse a site between a linear operation and its batch norm, which a leaf there would keep from folding."""
        x = norm.named()["input"]
        clean = replaced_output(x)
        operation = None if clean is None else self.trace.constant_linear.get(clean)
        if operation is None or (operation.kind == "linear" and x.ndim > 2):
            return
        if not isinstance(self._assignment.rule_for(operation), Gradient):
            place = f"at={norm.operation.module!r}" if norm.operation.module else "at a module around both"
            raise ValueError(f"{norm.operation} is a part of {operation} {refusals.NOTHING_BETWEEN}, {place}.")

    # The end of the pass.

    def finish(self, score: Tensor) -> None:
        """Settle what only the end of the pass tells, and look for what no rule has seen.

        Raises:
            ValueError: If the input does not reach the score, or a part of the network cannot be seen.
        """
        if not score.requires_grad:
            constants = sorted({str(row.operation) for row in self.trace.rows if row.rule == str(Constant())})
            raise ValueError(refusals.UNREACHED + (f"{refusals.CONSTANT}{', '.join(constants)}." if constants else ""))
        nodes = list(nodes_behind(score.grad_fn))
        for node in nodes:
            if isinstance(node, BackwardCFunction):
                self._check_node(node)
            elif functions.is_undifferentiable(node):
                raise ValueError(refusals.UNDIFFERENTIABLE)
        self._assignment.check()
        reached = {id(node.record) for node in nodes if functions.function_of(node) is functions.Linear}
        self._decide([row for row in self.trace.rows if id(row.record) in reached])
        chain.settle(nodes, observed=self._observed or torch.is_anomaly_enabled())

    def _check_node(self, node: Any) -> None:
        function = functions.function_of(node)
        name = type(node).__name__.removesuffix("Backward")
        if function is not None and issubclass(function, functions.RelevanceFunction):
            return
        if name.startswith(_OF_A_LIBRARY) or (name == HANDS_ON and self.trace.sharded):
            return
        if name == "CheckpointFunction":
            raise ValueError(refusals.CHECKPOINTED)
        operation = Operation(name, None, "")
        if not isinstance(self._assignment.named(operation), Gradient):
            self._assignment.refuse(operation, ", an autograd.Function whose inside cannot be seen")

    def _decide(self, reached: list[Row]) -> None:
        """Give rules to the linear operations whose rule depends on whether they are the last to reach the score."""
        for row in self.trace.rows:
            record = row.record
            if record is None or record.rule is not None:
                continue
            if reached and row is reached[-1]:
                record.operation = row.operation = replace(row.operation, last=True)
            rule = self._assignment.rule_for(row.operation)
            if rule is None:
                self._assignment.refuse(row.operation)
            if type(rule).linear is Rule.linear:
                raise ValueError(f"{rule} was given to {row.operation}, {refusals.TOO_LATE}")
            self._check_place(rule, row.operation, record.linear.x)
            record.rule, row.rule = rule, str(rule)
            unfolded = None if record.unfolded is None else record.unfolded()
            if unfolded is not None:  # something else reads the output without the batch norm
                unfolded.rule = rule
