"""The output that scores read: that of the model, or of a module in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_xai._guard import isolated_eval
from lightning_xai.inputs.binding import place_of
from lightning_xai.inputs.bound_model import Arguments, Binding, BoundModel, at_rows
from lightning_xai.operations import unwrapped
from lightning_xai.scores import Score


def reading(model: nn.Module, inputs: Tensor, scores: Sequence[Score]) -> nn.Module:
    """Return the model with the output that the scores read: of a module inside it for those of units.

    Args:
        model: The network; one that reads a module already stays as it is.
        inputs: Its inputs.
        scores: The scores.

    Raises:
        ValueError: If the scores read different outputs, or there is no such module.
    """
    sites = list(dict.fromkeys(score.reads for score in scores))
    if sites in ([], [None]) or (isinstance(model, BoundModel) and model.binding.reads is not None):
        return model
    if len(sites) > 1:
        names = ", ".join("the model's output" if site is None else f"layer {site.layer!r}" for site in sites)
        raise ValueError(f"the scores of one sweep read {names}: score each in a call of its own.")
    (site,) = sites
    assert site is not None
    network = unwrapped(model)
    if not isinstance(network, BoundModel):
        network = BoundModel(network, Binding(Arguments({0: inputs}, (0,))))
    with isolated_eval(network), torch.no_grad():
        return network.reading(place_of(at_rows(network, slice(1)), inputs[:1], site))
