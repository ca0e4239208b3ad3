"""A batch norm as a part of the linear operation before it."""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch
from torch import Tensor

from lightning_xai.relevance.call import Call
from lightning_xai.relevance.maps import Dense
from lightning_xai.relevance.record import LinearRecord
from lightning_xai.relevance.sharded import given_back
from lightning_xai.relevance.trace import Row
from lightning_xai.relevance.weights import Weights


def fold(call: Call) -> Tensor | None:
    r"""Make a batch norm on the output of a linear operation, the two as one; None if it stands alone.

    .. math:: \gamma \frac{W x + b - \mu}{\sigma} + \beta = W' x + b', \qquad W' = \frac{\gamma}{\sigma} W

    The rule of the operation then sees the folded weights, and the model is left as it is.

    Raises:
        ValueError: If the operation's weights were sharded and are no longer there.
    """
    trace, named = call.trace, call.named()
    x = named["input"]
    record: LinearRecord | None = trace.records.get(x)
    if record is None or not _follows_directly(record, x):
        return None
    if trace.sharded and given_back(record.weights.weight):
        raise ValueError(
            f"the weights of {record.operation} were given back before {call.operation} came, so the two cannot be "
            f"folded; shard them as one module, or with fully_shard(..., reshard_after_forward=False)."
        )
    mean, variance, weight, bias = named["running_mean"], named["running_var"], named.get("weight"), named.get("bias")
    with torch.no_grad():
        scale = torch.rsqrt(variance + named.get("eps", 1e-5))
        scale = scale if weight is None else weight * scale
        centre = mean if record.weights.bias is None else mean - record.weights.bias
        shift = -centre * scale if bias is None else torch.addcmul(bias, centre, scale, value=-1)
        factor = record.linear.per_output(scale)
    if factor is None:
        return None
    row = Row(call.operation, f"folded into {record.operation}")
    if record.native:
        trace.rows.append(row)
        found: Tensor = call.make()  # the chain rule folds it
        return found
    weights = Weights(record.linear.weight, record.linear.bias, factor, shift, (mean.data_ptr(), variance.data_ptr()))
    folded = LinearRecord(record.operation, record.linear, weights, record.rule, unfolded=weakref.ref(record))
    linear_row = next((known for known in trace.rows if known.record is record), None)
    if linear_row is None:  # another batch norm reads the same output, and has the row
        linear_row = Row(record.operation, str(record.rule))
        trace.rows.append(linear_row)
    linear_row.record = folded
    # The output of the operation alone is no part of the graph, so nothing goes back through it twice.
    plain = replace(call, args=tuple(arg.detach() if arg is x else arg for arg in call.args))
    y = folded.run(trace, plain.make)
    trace.rows.append(row)
    if trace.ledger is not None:
        trace.ledger.note_output(call.operation.module, y)
    return y


def _follows_directly(record: LinearRecord, x: Tensor) -> bool:
    """Whether a batch norm reads the output of a linear operation as it was made, channel by channel."""
    if record.unfolded is not None or record.written or x._version != record.output.version:
        return False
    if record.linear.x._version != record.input_version:
        return False
    return not isinstance(record.linear.map, Dense) or x.ndim == 2
