"""Operations on every cell by itself, and on its channels."""

from __future__ import annotations

from lightning_xai.perturbation.incremental.gathering import Layout
from lightning_xai.perturbation.incremental.operations.base import (
    Operation,
    Step,
    alone,
    axis_in,
    constants,
    entry,
    on_union,
)

_POINTWISE = """relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid tanh sigmoid
logsigmoid log_sigmoid softplus softsign softshrink hardshrink tanhshrink threshold clamp clip clamp_min clamp_max
expit exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh erf erfc sqrt rsqrt reciprocal square pow rpow abs
absolute neg negative sign add radd iadd sub subtract rsub isub mul multiply rmul imul div divide true_divide
truediv itruediv rdiv rtruediv maximum minimum fmax fmin addcmul addcdiv lerp nan_to_num clone contiguous to type
float double half bfloat16 positive round floor ceil trunc where masked_fill gt lt ge le eq ne greater less"""


@entry(_POINTWISE)
def pointwise(op: Operation) -> Step | None:
    """Run on the union of the boxes of all arguments."""
    shape = op.shape()
    parts = list(op.patches.values())
    first = parts[0].layout
    for patch in parts:
        if len(patch.layout.shape) != len(shape) or patch.layout.spatial != first.spatial:
            return None
        if Layout(shape, first.spatial).positions != patch.layout.positions:
            return None
    for constant in constants(op):
        # One that differs from position to position, or from row to row, would have to be cut into boxes, too.
        ahead = len(shape) + 1 - constant.ndim
        if ahead < 0 or any(axis >= ahead and constant.shape[axis - ahead] != 1 for axis in (0, *first.spatial)):
            return None
    return on_union(op, first.spatial)


@entry("batch_norm prelu dropout dropout#d local_response_norm")
def per_channel(op: Operation) -> Step | None:
    """Run on the boxes: what differs between channels is the same at every position."""
    patch = alone(op)
    if patch is None or 1 in patch.layout.spatial or op.call.name == "instance_norm":
        return None
    return on_union(op, patch.layout.spatial)


@entry("layer_norm rms_norm")
def norm_of_channels(op: Operation) -> Step | None:
    """Run on the boxes if no axis that is normalized over holds positions."""
    patch, shape = alone(op), op.arguments().get("normalized_shape", ())
    normalized = 1 if isinstance(shape, int) else len(shape)
    if patch is None or patch.layout.spatial[-1] > len(patch.layout.shape) - normalized:
        return None
    return on_union(op, patch.layout.spatial)


@entry("linear")
def linear(op: Operation) -> Step | None:
    """Run on the boxes if the last axis holds channels."""
    patch = alone(op)
    if patch is None or patch.layout.spatial[-1] == len(patch.layout.shape):
        return None
    return on_union(op, patch.layout.spatial)


@entry("softmax log_softmax softmin")
def softmax(op: Operation) -> Step | None:
    """Run on the boxes if the axis holds channels."""
    patch, axis = alone(op), op.arguments("input dim").get("dim")
    if patch is None or not isinstance(axis, int) or axis_in(axis, patch) in (0, *patch.layout.spatial):
        return None
    return on_union(op, patch.layout.spatial)


@entry("cat concat concatenate")
def concatenation(op: Operation) -> Step | None:
    """Run on the union of the boxes if channels are put behind each other."""
    parts = list(op.patches.values())
    axis = axis_in(op.arguments().get("dim", 0), parts[0])
    spatial = parts[0].layout.spatial
    same = all(patch.layout.spatial == spatial and len(patch.layout.shape) == len(op.shape()) for patch in parts)
    if not same or axis in (0, *spatial) or constants(op):
        return None
    return on_union(op, spatial)
