"""Hands every operation of a forward pass to a rule; the backward pass of autograd then is the relevance pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.operations import (
    Operations,
    is_in_place,
    kind_of,
    operation_name,
    tensors_in,
)
from lightning_xai.relevance import functions
from lightning_xai.relevance.calls import as_functional, linear_call, product_arguments, statistics_of
from lightning_xai.relevance.composites import Composite, Operation, first_match
from lightning_xai.relevance.fresh import MOVES, Fresh
from lightning_xai.relevance.ledger import Recorder
from lightning_xai.relevance.maps import Weights
from lightning_xai.relevance.records import Record, Row
from lightning_xai.relevance.rules import Deconv, Epsilon, FixedScale, Gradient, Guided, Norm, Pass, Rule, Uniform
from lightning_xai.relevance.sharded import HANDS_ON, find_again, given_back
from lightning_xai.relevance.step import representable, signed

_FREE = frozenset({"sum", "concatenation", "pooling", "interpolation", "reshape", "identity", "dropout", "softmax"})
_SIGNED = frozenset({"pooling", "identity"})
"""Kinds whose results are not negative if what they read is not."""
_MIXING = frozenset({"where", "masked_fill", "pad", "setitem", "index_copy", "index_fill", "scatter"})
"""Reshapes that may bring in constants, which absorb relevance."""
_SHOWING = frozenset({"register_hook", "retain_grad"})
"""Calls that show gradients to somebody, as a node of the graph, once it is asked for, can, too."""
_HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute"})
"""Activations with f(x) = x f'(x), whose derivative is the rule Pass."""


class Propagation(Operations):
    """Runs a model so that differentiating its output propagates relevance.

    Args:
        model: The network.
        composite: Which rule where.
        ledger: Collects where relevance goes; None to collect nothing.
    """

    def __init__(self, model: nn.Module, composite: Composite, ledger: Recorder | None = None) -> None:
        super().__init__(model)
        self.composite = composite
        self._entries = composite.entries()
        self._model = model
        self._seen: set[str] = set()
        self.ledger = ledger
        self.rows: list[Row] = []
        self._late = composite.depends_on_last
        self._found: dict[tuple[Any, ...], Rule | None] = {}
        self._records: Any = WeakTensorKeyDictionary()
        self._kept_of: Any = WeakTensorKeyDictionary()
        self._fresh = Fresh()
        self._nonnegative: Any = WeakTensorKeyDictionary()
        self._shown = False
        self._scoring = False
        self._sharded = any(type(module).__name__.startswith("FSDP") for module in model.modules())

    def enter(self, inputs: Tensor, receiver: Tensor | None) -> None:
        """The tensor that the model is given, and the one whose gradient takes relevance that is no multiple of it."""
        self._fresh.receivers[inputs] = receiver

    # What is seen.

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let questions through, but not the model's own ``torch.no_grad()``, which would cut relevance off."""
        name = operation_name(func)
        if name == "set_grad_enabled" and args and args[0] is False and not (self._sharded or self._scoring):
            return None
        if name in _SHOWING or getattr(func, "__self__", None) is torch.Tensor.grad_fn:
            self._shown = True
        return func(*args, **kwargs)

    def scoring(self) -> Propagation:
        """From here on operations are those of the score, which have no rules: only hooks are looked for."""
        self._scoring = True
        return self

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one operation by the rule that the composite has for it."""
        if self._scoring:
            return func(*args, **kwargs)
        func, args, kwargs = as_functional(func, args, kwargs)
        live = [tensor for tensor in tensors_in([args, kwargs]) if tensor.requires_grad]
        if not live:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            raise ValueError(
                f"{self.current_module() or 'the model'!r} calls torch.inference_mode() in its forward, through which "
                f"no relevance passes; use torch.no_grad() there."
            )
        if self._sharded:
            find_again(live, (self._records, self._kept_of, self._fresh.receivers))
        name, kind = operation_name(func), kind_of(func)
        if kind == "matmul":
            kind = "linear" if len(live) == 1 else "product"
        for tensor in live:
            record = self._records.get(tensor)
            if record is not None:
                record.readers += 1
        writes = is_in_place(func, kwargs)
        before = self._linear_before(func, kind, args, kwargs)
        if before is not None:
            y, kept = functions.handed(func, args, kwargs, before, writes=writes)
            self._kept_of[y] = kept
            self._note_sign(func, args, kwargs, y)
            return y
        if writes:
            self._before_writing(args, kwargs, name)
        fresh = self._fresh.all(live)
        if kind in ("convolution", "linear"):
            return self._linear(func, args, kwargs, Operation(name, kind, self.current_module(), first=fresh))
        if kind in MOVES and not (self.ledger is not None and name in _MIXING):
            result = self._moved(func, args, kwargs, name)
        else:
            alias = functions.plain_name(func, args, kwargs)
            operation = Operation(name, kind, self.current_module(), alias=alias)
            result = self._other(func, args, kwargs, operation, live, writes)
        self._note_sign(func, args, kwargs, result)
        if fresh:
            self._fresh.stay(func, args, kwargs, live, result)
        return result

    def _note_sign(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Remember results that cannot be negative, with the version of them."""
        if isinstance(result, Tensor) and (
            functions.is_rectifier(func, args, kwargs)
            or (kind_of(func) in _SIGNED and args and self._nonnegative.get(args[0]) == args[0]._version)
        ):
            self._nonnegative[result] = result._version

    def _linear_before(
        self, func: Any, kind: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Record | None:
        """The linear operation whose output an activation reads that may leave the multiplying to it; None if none."""
        x = args[0] if args else None
        if kind != "activation" or not isinstance(x, Tensor) or self.ledger is not None:
            return None
        record: Record | None = self._records.get(x)
        if record is None or record.y is None or record.written or x._version != record.version or x._is_view():
            return None
        if tensors_in([args[1:], kwargs]):
            return None
        operation = Operation(
            operation_name(func), kind, self.current_module(), alias=functions.plain_name(func, args, kwargs)
        )
        rule = self._rule(operation) or Pass()
        if not isinstance(rule, Pass):
            return None
        self._row(operation, rule)
        return record

    def _rule(self, operation: Operation) -> Rule | None:
        key = (operation.name, operation.kind, operation.module, operation.first, operation.last, operation.alias)
        if key not in self._found:
            self._found[key] = first_match(self._entries, operation)
        return self._found[key]

    def _refuse(self, operation: Operation, reason: str = "") -> NoReturn:
        remedy = operation.kind or operation.name
        self.composite.check_words(self._model, [operation.name, *self._seen])
        raise ValueError(
            f"the composite {type(self.composite).__name__} has no rule for {operation}{reason}; give it one, e.g. "
            f"RuleList([({remedy!r}, rules.Gradient()), ...])."
        )

    # Linear operations.

    def _linear(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operation: Operation) -> Any:
        call = linear_call(func, operation.name, args, kwargs)
        if call is None:  # its weights depend on the input: a product of values
            live = [tensor for tensor in tensors_in([args, kwargs]) if tensor.requires_grad]
            return self._other(func, args, kwargs, replace(operation, kind="product", first=False), live, False)
        if call.rewritten is not None:
            with self:
                return call.rewritten()
        return self._applied(Record(operation, call, Weights(call.weight, call.bias)), lambda: func(*args, **kwargs))

    def _applied(self, record: Record, run: Callable[[], Tensor]) -> Tensor:
        """The output of a linear operation, tied to its input by the rule."""
        row = Row(record.operation, "", record)
        self.rows.append(row)
        if not self._late:
            self._settle(row)
        x = record.call.x
        record.nonnegative = self._nonnegative.get(x) == x._version or None
        if isinstance(record.rule, Gradient) and self.ledger is None and not record.folded:
            y = run()
            record.version = y._version
        else:
            if self.ledger is not None:
                record.absorbed, record.handed = self.ledger.absorbed(), self.ledger.handed
            receiver = self._fresh.receivers.get(x) if record.operation.first else None
            y = functions.Linear.apply(x, receiver, record, run)
            record.keep(y)
            if self.ledger is not None:
                self.ledger.note_output(record.operation.module, y, again=bool(record.folded))
        self._records[y] = record
        return y

    def _settle(self, row: Row) -> None:
        """Give a linear operation its rule."""
        record = row.record
        assert record is not None
        rule = self._rule(record.operation)
        if rule is None:
            self._refuse(record.operation)
        if not rule.multiplies and (not record.operation.first or self._fresh.receivers.get(record.call.x) is None):
            raise ValueError(
                f"the rule {rule} was given to {record.operation}, but it does not multiply by its input, so it can "
                f"stand only where the model's input arrives, changed by reshapes and single-number operations at "
                f"most; use another rule there, or the pattern 'first'."
            )
        record.rule, row.rule = rule, str(rule)

    def _folded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operation: Operation) -> Tensor | None:
        """A batch norm on the output of a linear operation, the two as one; None if it stands alone."""
        x = args[0]
        before: Record | None = self._records.get(x)
        if before is None or before.folded or before.written:
            return None
        if x._version != before.version or before.call.x._version != before.read:
            return None
        if before.operation.name == "linear" and x.ndim != 2:
            return None
        if self._sharded and given_back(before.weights.weight):
            raise ValueError(
                f"the weights of {before.operation} were given back before {operation} came, so the two cannot be "
                f"folded; shard them as one module, or with fully_shard(..., reshard_after_forward=False)."
            )
        mean, variance = statistics_of(args, kwargs)
        eps, weight, bias = kwargs.get("eps", 1e-5), kwargs.get("weight"), kwargs.get("bias")
        with torch.no_grad():
            scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
            centre = mean if before.weights.bias is None else mean - before.weights.bias
            shift = -centre * scale if bias is None else torch.addcmul(bias, centre, scale, value=-1)
            factor = before.call.per_output(scale)
        if factor is None:
            return None
        told = Row(operation, f"folded into {before.operation}")
        if isinstance(before.rule, Gradient) and self.ledger is None:
            self.rows.append(told)
            found: Tensor = func(*args, **kwargs)  # the chain rule folds it
            return found
        weights = Weights(before.call.weight, before.call.bias, factor, shift, (mean.data_ptr(), variance.data_ptr()))
        self.rows = [row for row in self.rows if row.record is not before]
        plain = x.detach()
        folded = Record(before.operation, before.call, weights, folded=operation.module)
        y = self._applied(folded, lambda: func(plain, *args[1:], **kwargs))
        self.rows.append(told)
        if self.ledger is not None:
            self.ledger.note_output(operation.module, y)
        return y

    # All others.

    def _other(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operation: Operation,
        live: list[Tensor],
        writes: bool,
    ) -> Any:
        kind = operation.kind
        if kind == "affine_norm":
            folded = None if kwargs.get("training", False) else self._folded(func, args, kwargs, operation)
            if folded is not None:
                return folded
            if kwargs.get("training", False):
                operation = replace(operation, kind="norm")
                kind = "norm"
        if kind == "statistic":  # what a normalisation divides by: a constant
            return func(*(_detached(argument) for argument in args), **kwargs)
        rule = self._rule(operation)
        if self.ledger is not None:
            return self.ledger.watched(
                lambda some, named: self.apply_rule(operation, rule, func, some, named, writes),
                operation.module,
                kind or operation.name,
                args,
                kwargs,
                writes,
            )
        return self.apply_rule(operation, rule, func, args, kwargs, writes)

    def apply_rule(
        self,
        operation: Operation,
        rule: Rule | None,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        writes: bool,
    ) -> Any:
        """Make an operation that is not linear by its rule."""
        kind = operation.kind
        if kind == "recurrent":
            raise ValueError(
                f"{operation} is a recurrent layer in one call, which hides its steps; write its cell with linear "
                f"layers and products, or use a gradient method."
            )
        if isinstance(rule, Gradient):
            self._row(operation, rule)
            return func(*args, **kwargs)
        if kind == "activation":
            return self._activation(operation, rule or Pass(), func, args, kwargs, writes)
        if kind == "product":
            self._row(operation, rule or Uniform())
            return self._product(operation, func, args, kwargs, writes)
        if kind == "attention":
            self._row(operation, rule or Uniform())
            shares, rest = functions.attention_arguments(args, kwargs)
            return func(*shares, **rest)
        if kind == "norm":
            return self._norm(operation, rule, func, args, kwargs)
        if kind == "affine_norm" and isinstance(rule, Pass):
            self._row(operation, rule)
            return functions.stretched(func, args, kwargs)
        if rule is None and kind not in _FREE:
            result = func(*args, **kwargs)
            if any(part.requires_grad for part in tensors_in(result)):
                self._refuse(operation)
            return result
        result = func(*args, **kwargs)
        if (
            isinstance(rule, Norm | Epsilon)
            and isinstance(result, Tensor)
            and representable(rule.epsilon, result.dtype) > 0
        ):
            self._stabilise(result, rule.epsilon)
        if rule is not None:
            self._row(operation, rule)
        return result

    def _stabilise(self, result: Tensor, epsilon: float) -> None:
        stabiliser = signed(epsilon, result.detach())
        share = stabiliser / (result.detach() + stabiliser)
        value = result.detach().clone() if self.ledger is not None else result

        def hook(g: Tensor) -> Tensor:
            if self.ledger is not None:
                noted = self.ledger.stabilisers
                noted.epsilon = noted.epsilon + (value * g * share).sum()
            return g * (1 - share)

        functions.on_gradient(result, hook)

    def _row(self, operation: Operation, rule: Rule) -> None:
        self.rows.append(Row(operation, str(rule)))

    def _product(
        self, operation: Operation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """A product of values: every factor gets an equal share; a divisor counts as a constant."""
        name = operation.name
        if writes and name in ("mul", "multiply", "imul") and sum(t.requires_grad for t in tensors_in(args)) == 2:
            result = func(*args, **kwargs)
            functions.on_gradient(result, lambda g: g / 2)
            return result
        shared = product_arguments(name, args, functions.shared)
        if shared is None or (writes and shared[0] is not args[0]):
            self._refuse(operation)
        return func(*shared, **kwargs)

    def _activation(
        self, operation: Operation, rule: Rule, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        self._row(operation, rule)
        if isinstance(rule, Guided):
            result = func(*args, **kwargs)
            functions.on_gradient(result, lambda g: g.clamp(min=0))
            return result
        if isinstance(rule, Deconv):
            return functions.rectified(func, args, kwargs, writes)
        if len([t for t in tensors_in([args[1:], kwargs]) if t.requires_grad]):
            self._refuse(operation, ", whose further arguments depend on the input")
        return functions.passed(func, args, kwargs, homogeneous=operation.name in _HOMOGENEOUS, writes=writes)

    def _norm(
        self, operation: Operation, rule: Rule | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        has_parameters = kwargs.get("weight") is not None or any(isinstance(a, Tensor) for a in args[1:])
        if rule is None and has_parameters:
            self._refuse(operation)
        rule = rule or FixedScale()
        self._row(operation, rule)
        if isinstance(rule, Pass):
            return functions.stretched(func, args, kwargs)
        return functions.normalised(func, operation.name, args, kwargs)

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
        if name in ("view", "as_strided") and not args[0].is_contiguous():
            if name == "as_strided":
                return func(args[0].contiguous(), *args[1:], **kwargs)
            try:
                return func(*args, **kwargs)
            except RuntimeError:  # the model counts on the memory layout that it would have had
                return func(args[0].contiguous(), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _before_writing(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
        """Copy what a rule still needs of a tensor that is about to be written to."""
        target = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        if not isinstance(target, Tensor):
            return
        for tensor in (target, target._base):
            kept = self._kept_of.get(tensor) if tensor is not None else None
            if kept is not None:
                kept.protect()
            record = self._records.get(tensor) if tensor is not None else None
            if record is None:
                continue
            record.written = True
            if record.y is None:
                continue
            if name == "relu" and tensor is target and record.readers == 1 and tensor._version == record.version:
                # Where ReLU changes a number no relevance arrives: its result serves as well.
                record.version += 1
            else:
                record.protect()

    # The end of the pass.

    def finish(self, score: Tensor) -> None:
        """Settle what only the end of the pass tells, and look for what no rule has seen.

        Raises:
            ValueError: If the input does not reach the score, or a part of the network cannot be seen.
        """
        if not score.requires_grad:
            raise ValueError(UNREACHED)
        reached: list[Record] = []
        between: list[tuple[Any, Record]] = []
        nodes = list(functions.nodes_behind(score))
        readers = Counter(following for node in nodes for following, _ in node.next_functions)
        last_reader = {following: node for node in nodes for following, _ in node.next_functions}
        for node in nodes:
            if not isinstance(node, BackwardCFunction):
                continue
            name = type(node).__name__.removesuffix("Backward")
            if isinstance(node, functions.OURS):
                record = getattr(node, "record", None)
                if record is not None:
                    record.alone = readers[node] == 1
                    reached.append(record)
                elif readers[node] == 1:
                    reader = getattr(last_reader[node], "record", None)
                    node.received = None if reader is None else reader.handing
                    if reader is not None:
                        between.append((node, reader))
                continue
            if name == HANDS_ON and self._sharded:
                continue
            if name == "CheckpointFunction":
                raise ValueError(CHECKPOINTED)
            self._seen.add(name)
            if not isinstance(self._rule(Operation(name, None, "")), Gradient):
                self._refuse(Operation(name, None, ""), ", an autograd.Function whose inside cannot be seen")
        self.composite.check_words(self._model, self._seen)
        rows = [row for row in self.rows if row.record is not None]
        if rows and self._late:
            order = {id(row.record): index for index, row in enumerate(rows)}
            final = max((order[id(record)] for record in reached if id(record) in order), default=-1)
            for index, row in enumerate(rows):
                assert row.record is not None
                if index == final:
                    row.record.operation = row.operation = replace(row.operation, last=True)
                self._settle(row)
        if self._shown or torch.is_anomaly_enabled():
            return
        for node, reader in between:
            if isinstance(node, functions.HANDED):
                (before, _), *_ = node.next_functions
                reader.leave_to(before.record)


UNREACHED = (
    "the model's input does not reach its score: an integer cast, an argmax, .detach(), copy.copy or numpy lies "
    "between them, so there is no relevance to propagate."
)
CHECKPOINTED = (
    "the model recomputes activations in the backward pass (torch.utils.checkpoint), where no rule sees them; turn "
    "gradient checkpointing off while explaining."
)


def _detached(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument
