"""Where the units of a layer lie in its output."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lightning_xai._guard import forward_context
from lightning_xai.axes.facts import TracedOutput, follow_channels, output_facts, trace_axes
from lightning_xai.inputs.bound_model import Arguments, Binding, BoundModel, at_rows
from lightning_xai.network_facts import NetworkFacts, question_of
from lightning_xai.operations import unwrapped
from lightning_xai.sites import Layer, Place, as_site, layer_name

_outputs: NetworkFacts[dict[str, TracedOutput]] = NetworkFacts()


def place_of_units(model: nn.Module, inputs: Tensor, layer: Layer) -> Place:
    """The place of the units of a layer, by one clean pass, or two where its operations do not tell.

    Args:
        model: The network, inside :func:`lightning_xai._guard.isolated_eval`.
        inputs: Any inputs of the model.
        layer: The layer.

    Raises:
        ValueError: If there is no such layer, it cannot be told where its units lie, or windows or heads share an axis
            with the samples.
    """
    model, first = at_rows(model, slice(1)), inputs[:1]
    place = unplaced(model, layer)
    if place.axis is not None:
        return place
    with follow_channels(model, first, [place]) as proved, forward_context():
        model(first.clone())
    return places_of_units(model, first, [place], proved)[0]


def unplaced(model: nn.Module, layer: Layer) -> Place:
    """The place of a layer, whose axis is None unless a :class:`~lightning_xai.sites.Site` says where its units lie."""
    site = as_site(layer)
    assert site is not None
    axis = 1 if site.reshape is not None else site.axis
    return Place(layer_name(model, layer), axis, site.part, site.call, site.reshape)


def places_of_units(
    model: nn.Module, inputs: Tensor, places: Sequence[Place], proved: Collection[Place]
) -> list[Place]:
    """The places with the axes of their units, of which some are proved to return [N, K] or [N, K, *P].

    Raises:
        ValueError: If one cannot be told, or windows or heads share an axis with the samples.
    """
    unknown = {place for place in places if place.axis is None and place not in proved}
    whole = {place.layer: _blocks_around(place.layer) for place in unknown if place.part is None and place.call is None}
    names = {*whole, *(block for blocks in whole.values() for block in blocks)}
    traced = _traced(model, inputs, frozenset(names)) if names else {}
    axes = {}
    for place in unknown:
        found = traced.get(place.layer) if place.layer in whole else traced_output(model, inputs, place)
        axes[place] = _unit_axis(place, found, traced, whole.get(place.layer, []))
    return [replace(place, axis=axes.get(place, 1 if place.axis is None else place.axis)) for place in places]


def traced_output(model: nn.Module, inputs: Tensor, place: Place) -> TracedOutput:
    """Trace the output of a layer, a part of it, or one of several calls, and return its axis facts."""
    if place.part is None and place.call is None:
        return _traced(model, inputs, frozenset([place.layer])).get(place.layer, TracedOutput(None, None))
    network = unwrapped(model)
    if not isinstance(network, BoundModel):
        network = BoundModel(network, Binding(Arguments({0: inputs}, (0,))))
    return output_facts(network.reading(replace(place, axis=1, reshape=None)), inputs, lambda output: output)


def _traced(model: nn.Module, inputs: Tensor, layers: frozenset[str]) -> dict[str, TracedOutput]:
    known, question = _outputs.of(model), (layers, question_of(model, inputs))
    if question not in known:
        known[question] = trace_axes(model, inputs, layers)
    return known[question]


def _blocks_around(layer: str) -> list[str]:
    """The modules that hold a layer, the innermost first."""
    parts = layer.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _unit_axis(place: Place, own: TracedOutput | None, traced: dict[str, TracedOutput], blocks: list[str]) -> int:
    facts, convention = own or TracedOutput(None, None)
    layer = place.layer
    if facts is not None and facts.has_rows and facts.unit is not None:
        return facts.unit
    whole = [name for name in blocks if (found := traced.get(name)) and found.facts and found.facts.has_rows]
    remedy = f"the block {whole[0]!r}, which holds it" if whole else "a block around it"
    if facts is not None and (facts.folded or facts.batch not in (0, None)):
        raise ValueError(
            f"layer {layer!r} returns {facts}, not one row per sample, so that its units belong to no sample: name "
            f"{remedy}, or say with layer=Site({layer!r}, reshape=...) how it becomes [samples, units, *positions]."
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
        f"layer in it, or {remedy}; or say where they lie, layer=Site({layer!r}, axis=...)."
    )
