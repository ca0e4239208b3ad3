"""The axis of a layer's output on which its units lie."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from lightning_xai._guard import forward_context
from lightning_xai.axes import TracedOutput, follow_channels, trace_axes
from lightning_xai.bound_model import at_rows


def unit_axis(model: nn.Module, inputs: Tensor, layer: str) -> int:
    """The axis of the units of a layer, by one clean pass, or two where its operations do not tell.

    Args:
        model: The network, inside :func:`lightning_xai._guard.isolated_eval`.
        inputs: Any inputs of the model.
        layer: The layer's dotted name.

    Raises:
        ValueError: If it cannot be told, or windows or heads share an axis with the samples.
    """
    model, first = at_rows(model, slice(1)), inputs[:1]
    with follow_channels(model, first, [layer]) as proved, forward_context():
        model(first.clone())
    return unit_axes(model, first, [layer], proved)[layer]


def unit_axes(model: nn.Module, inputs: Tensor, layers: Collection[str], proved: Collection[str]) -> dict[str, int]:
    """The axes of the units of layers, of which some are proved to return [N, K] or [N, K, *P].

    Raises:
        ValueError: If one cannot be told, or windows or heads share an axis with the samples.
    """
    others = [layer for layer in layers if layer not in proved]
    if not others:
        return dict.fromkeys(layers, 1)
    around = {layer: _blocks_around(layer) for layer in others}
    traced = trace_axes(model, inputs, {*others, *(block for blocks in around.values() for block in blocks)})
    return {layer: _unit_axis(layer, traced, around[layer]) if layer in others else 1 for layer in layers}


def _blocks_around(layer: str) -> list[str]:
    """The modules that hold a layer, the innermost first."""
    parts = layer.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _unit_axis(layer: str, traced: dict[str, TracedOutput], blocks: list[str]) -> int:
    facts, convention = traced.get(layer, TracedOutput(None, None))
    if facts is not None and facts.has_rows and facts.unit is not None:
        return facts.unit
    whole = [name for name in blocks if (found := traced.get(name)) and found.facts and found.facts.has_rows]
    remedy = f"the block {whole[0]!r}, which holds it" if whole else "a block around it"
    if facts is not None and (facts.folded or facts.batch not in (0, None)):
        raise ValueError(
            f"layer {layer!r} returns {facts}, not one row per sample, so that its units belong to no sample: name "
            f"{remedy}."
        )
    if convention is not None:
        return convention
    known = (
        ": it does not depend on what is explained, or on something that was not followed"
        if facts is None
        else f" (known is {facts})"
    )
    raise ValueError(
        f"layer {layer!r} returns a tensor of which its units cannot be told{known}. Name a convolution or a linear "
        f"layer in it, or {remedy}."
    )
