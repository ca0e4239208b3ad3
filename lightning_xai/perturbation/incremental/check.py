"""The check of the engine by itself: some perturbed inputs also go through the whole network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_xai.perturbation.incremental.clean import CleanPass, clean_pass, known
from lightning_xai.perturbation.incremental.geometry import Boxes
from lightning_xai.perturbation.incremental.operations import State
from lightning_xai.perturbation.incremental.plan import Plan
from lightning_xai.perturbation.incremental.record import NotReplayable, Record
from lightning_xai.perturbation.network import Network

# How far values may lie from those of dense passes, as a share of the largest one.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 5e-2


def disagreement(
    network: Network,
    clean: CleanPass,
    sample: int,
    inputs: Tensor,
    patch: Tensor,
    boxes: Boxes,
    made: Mapping[int, Tensor],
) -> str | None:
    """Compare some rows with a dense pass; name the first operation in which they differ, None if they do not.

    Args:
        network: The model.
        clean: The clean pass.
        sample: The sample, by its place in the clean pass.
        inputs: Perturbed inputs of this sample [P, C, *S].
        patch: What has changed of them, [P, C, *sizes].
        boxes: Where.
        made: What was made of them, the values that are compared.
    """
    expected = clean_pass(network, inputs, keep=set(made))[1]
    if isinstance(expected, NotReplayable):
        return f"the model: {expected}"
    names = [str(call) for call in clean.record.calls]
    if names != [str(call) for call in expected.calls]:
        return "the model, whose operations depend on its inputs"
    if _first_difference(made, expected) is None:
        return None
    expected = known(clean_pass(network, inputs)[1])
    every = [index for index, own in enumerate(clean.record.from_input) if own and index in clean.record.values]
    plan = Plan(clean.record.skeleton(), clean.template.trees, boxes, every)
    samples = torch.tensor([[sample]], device=inputs.device)
    found = plan.run(State(clean.record, clean.tables, samples, boxes.count), patch)
    first = _first_difference(dict(zip(every, found, strict=True)), expected)
    calls = [str(call) for call in clean.record.calls if first in call.outputs]
    return calls[0] if calls else "the model"


def _first_difference(made: Mapping[int, Tensor], expected: Record) -> int | None:
    """The first of some values that is not as expected."""
    for index, found in sorted(made.items()):
        dense = expected.values[index]
        if found.shape != dense.shape:
            return index
        if not dense.is_floating_point():
            continue
        scale = float(dense.abs().max()) if dense.numel() else 0.0
        allowed = _COARSE if _is_coarse(expected) or _is_rounded(dense) else _TOLERANCE.get(dense.dtype, _COARSE)
        if not bool(((found - dense).abs() <= allowed * scale).all()):
            return index
    return None


def _is_rounded(values: Tensor) -> bool:
    """Whether a device may round what it multiplies (TF32)."""
    rounds = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return values.is_cuda and values.dtype == torch.float32 and rounds


def _is_coarse(record: Record) -> bool:
    """Whether some values are of half precision."""
    return any(dtype in (torch.float16, torch.bfloat16) for dtype in record.dtypes)
