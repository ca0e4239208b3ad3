"""Speed alone: linear operations and the activations between them, taken together on their way back.

Fresh memory costs more than arithmetic where maps are large. So an activation that alone reads the output of a linear
operation leaves it to the rule to multiply by what it made of the output, which spares a tensor; gradients that nobody
else holds are written over; and on a CPU, a few samples at a time go back through linear operations that follow each
other, so that the relevance between them is never whole. With :data:`ENABLED` off the maps are the same, to rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai.relevance.call import Call, alias_of, is_rectifier
from lightning_xai.relevance.functions import Linear, RelevanceFunction, at_zero, function_of, passing_factor
from lightning_xai.relevance.inplace import SavedTensor
from lightning_xai.relevance.maps import LinearMap
from lightning_xai.relevance.step import Step

if TYPE_CHECKING:
    from lightning_xai.relevance.record import LinearRecord

ENABLED = True
"""Whether operations are taken together."""
SLICE_BYTES = 4 * 2**20
"""How much of the largest output rules take at once on a CPU, so that what they make of it stays in the cache."""
WEIGHT_BYTES = 4 * 2**20
"""The most that weights hold that are read once for every few samples of the operation before."""


@dataclass(eq=False)
class GradientOwnership:
    """Whether the gradient that an operation handed down lies in memory of its own, which its receiver may use up.

    It holds no tensor, so that nodes of the graph may hold it.
    """

    fresh: bool = False


@dataclass(eq=False)
class Fusion:
    """The activation and the linear operations that are fused with a linear operation.

    Attributes:
        single_consumer: Whether one operation reads the output.
        activation_output: What that operation, an activation, made of the output, if relevance came through it.
        rectified: Whether that activation is a ReLU.
        owns_gradient: Whether what came through it may be written over.
        ownership: Of the gradient that is handed down.
        fused_into: Of the linear operation before, if it takes this one along.
        fused_steps: The operations that this one takes along.
    """

    single_consumer: bool = False
    activation_output: Tensor | None = None
    rectified: bool = False
    owns_gradient: bool = False
    ownership: GradientOwnership = field(default_factory=GradientOwnership)
    fused_into: Fusion | None = None
    fused_steps: tuple[Step, ...] = ()

    def propagate(self, step: Step) -> Tensor:
        """Return the result of the rule of a step, or a blank that nobody reads if the operation before computes it."""
        steps = (*self.fused_steps, step)
        self.activation_output, self.fused_steps = None, ()
        if self.fused_into is not None:
            self.fused_into.fused_steps = steps
            return step.x.new_full((), math.nan).expand_as(step.x)
        # Rules of the first layer also look at what is the same for all samples.
        found = run_fused(steps) if step.rule.multiplies else step.find()
        self.ownership.fresh = owns_storage(found, step.tensors())
        return found


def run_fused(steps: Sequence[Step]) -> Tensor:
    """Run several rules in a row, each on the result of the one before it, and return the last result."""
    first = steps[0]
    samples = len(first.g)
    size = max(step.g[:1].numel() for step in steps) * first.g.element_size()
    count = max(1, SLICE_BYTES // max(1, size))
    if len(steps) == 1 and (count >= samples or not ENABLED or not _sliced(first.map, first.g)):
        return first.find()
    found = torch.empty_like(steps[-1].x)
    for start in range(0, samples, count):
        part = slice(start, start + count)
        g, owned = first.g[part], first.owns_gradient
        for step in steps:
            some = step.part(part, g, owns_gradient=owned)
            g = some.find()
            owned = owns_storage(g, some.tensors())
        found[part] = g
    return found


def accepts_relevance(record: LinearRecord) -> bool:
    """Whether the activation that reads an output may leave it to the rule to multiply by what it made of it."""
    rule = record.rule
    return record.fusion.single_consumer and record.absorbed is None and rule is not None and rule.reads_relevance


class FusedActivation(RelevanceFunction):
    """A function of the single numbers of a linear operation's output.

    If nothing else reads the output, the backward leaves it to the operation to multiply by f(x) - f(0), which is the
    relevance then, else it multiplies by (f(x) - f(0)) / x. If one linear operation alone reads the result,
    ``received`` tells whether what it hands down may be written to.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, record: LinearRecord, saved: SavedTensor) -> Tensor:
        """The function itself."""
        # It must not keep the call, which holds the tensors of this node: they would hold each other.
        ctx.record, ctx.saved, ctx.received = record, saved, None
        ctx.zero = at_zero(call.func, call.args, call.kwargs)
        ctx.rectifies = is_rectifier(call.operation.name, call.named())
        if call.in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(x.new_empty(0))  # of no shape that an activation saves: recomputing it is found out
        y: Tensor = call.func(x, *call.args[1:], **call.kwargs)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Relevance as it is."""
        record, (value, slope), y = ctx.record, ctx.zero, ctx.saved.read()
        (g,), _ = grads, ctx.saved_tensors
        fusion = record.fusion
        if accepts_relevance(record):
            fusion.activation_output, fusion.rectified = y if value == 0 else y - value, ctx.rectifies
            fusion.owns_gradient = ctx.received is not None and ctx.received.fresh
            return g, None, None, None
        x = record.output.values
        if x is None or x.shape != y.shape:
            raise RuntimeError(f"the output of {record.operation} was read in a way that was not seen.")
        return g * passing_factor(x, y, value, slope), None, None, None


def fuse_activation(call: Call) -> Tensor | None:
    """An activation that leaves its factor to the linear operation whose output it reads; None if it must not."""
    x = call.args[0] if call.args else None
    if not ENABLED or call.trace.ledger is not None or not isinstance(x, Tensor) or x._is_view():
        return None
    record: LinearRecord | None = call.trace.records.get(x)
    if record is None or record.output.values is None or record.written or x._version != record.output.version:
        return None
    if len(call.tensors) > 1:
        return None
    serves = call.in_place and _prepare_write(call, record)
    saved = SavedTensor()
    y: Tensor = FusedActivation.apply(x, call, record, saved)
    saved.save(y)
    call.trace.saved[y] = saved
    if call.in_place:
        record.written = True
        if serves:
            record.output.save(y)
    return y


def _prepare_write(call: Call, record: LinearRecord) -> bool:
    """Save an output that an activation writes over, if it must be; whether the activation's result serves as well."""
    named = call.named()
    name, is_single = alias_of(call.operation.name, named), record.consumers == 1
    # Where ReLU changes a number no relevance arrives: its result serves as the output, too.
    serves = is_single and name == "relu"
    if not serves and not (is_single and _discard_unused_output(record, is_rectifier(call.operation.name, named))):
        # A ReLU6 that cuts nothing off is a ReLU; to see that takes less than to copy what it would write over.
        serves = is_single and name == "relu6" and not _exceeds(call.args[0].detach(), 6)
        if not serves:
            record.output.copy_before_write()
    return serves


def _discard_unused_output(record: LinearRecord, rectified: bool) -> bool:
    """Forget an output that one activation alone reads, a ReLU or not, if the rule does not read it."""
    rule = record.rule
    if rule is None or not rule.reads_relevance or record.absorbed is not None:
        return False
    with torch.no_grad():
        nothing = record.linear.x.new_empty(0)
        step = replace(record.step(record.linear.x, nothing, nothing), rectified=rectified)
        reads = rule.reads_output(step)
    record.nonnegative = step.known_nonnegative
    if not reads:
        record.output.save(nothing)
    return not reads


def _exceeds(values: Tensor, bound: float) -> bool:
    return values.numel() > 0 and not bool(values.amax() <= bound)  # NaN exceeds everything


def settle(nodes: Sequence[Any], *, observed: bool) -> None:
    """Find out, at the end of a forward pass, which operations can be taken together.

    Args:
        nodes: The graph behind the score.
        observed: Whether gradients inside the model are shown to somebody, who must not see blanks.
    """
    consumers = Counter(following for node in nodes for following, _ in node.next_functions)
    last_consumer = {following: node for node in nodes for following, _ in node.next_functions}
    for node in nodes:
        if function_of(node) is Linear:
            node.record.fusion.single_consumer = consumers[node] == 1
    for node in nodes:
        if function_of(node) is not FusedActivation or consumers[node] != 1:
            continue
        reader: LinearRecord | None = getattr(last_consumer[node], "record", None)
        if reader is None or function_of(last_consumer[node]) is not Linear:
            continue
        node.received = reader.fusion.ownership
        (before, _), *_ = node.next_functions
        if ENABLED and not observed and function_of(before) is Linear:
            _fuse_into(reader, before.record)


def _fuse_into(record: LinearRecord, before: LinearRecord) -> None:
    """Let the linear operation before take one along, if the tensor that an activation makes between them is large.

    To be asked only if nothing else reads that tensor. Heavy weights stay with all samples.
    """
    x, rule = record.linear.x, before.rule
    if x.nbytes <= SLICE_BYTES or record.weights.weight.nbytes > WEIGHT_BYTES or not accepts_relevance(before):
        return
    types = {tensor.dtype for one in (record, before) for tensor in (one.linear.x, one.weights.weight)}
    apart = all(_sliced(one.linear.map, x) for one in (record, before))
    if len(types) == 1 and apart and rule is not None and rule.multiplies:
        record.fusion.fused_into = before.fusion


def _sliced(linear_map: LinearMap, like: Tensor) -> bool:
    """Whether an operation may take a few samples at a time, where memory makes it worth it."""
    return linear_map.samples_apart() and like.device.type == "cpu"


def owns_storage(found: Tensor, others: Iterable[Tensor]) -> bool:
    """Whether a tensor fills memory of its own."""
    memory = found.untyped_storage()
    shared = {tensor.untyped_storage().data_ptr() for tensor in others}
    return memory.nbytes() == found.nbytes and memory.data_ptr() not in shared
