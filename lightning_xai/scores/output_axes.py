"""The axis of the classes of an output with positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_xai._guard import isolated_eval
from lightning_xai.axes.facts import output_facts
from lightning_xai.network_facts import NetworkFacts, question_of
from lightning_xai.operations import unwrapped
from lightning_xai.rows import Picks

_axes: NetworkFacts[int] = NetworkFacts()


def class_axis_of(model: nn.Module, inputs: Tensor, score: Picks, ndim: int) -> int:
    """Find the axis of an output that holds neither rows nor positions, by one pass of two rows per model.

    Args:
        model: The network.
        inputs: Its inputs.
        score: What reads the output.
        ndim: How many axes the tensor has that it reads.

    Raises:
        ValueError: If it cannot be told.
    """
    bound = unwrapped(model)
    known, question = _axes.of(bound), (question_of(bound, inputs), ndim, score)
    if question not in known:
        with isolated_eval(model), torch.no_grad():
            facts, convention = output_facts(model, inputs.detach(), score.pick)
        if facts is not None and facts.batch not in (None, 0):
            raise ValueError(
                f"the model's output is {facts}, whose samples lie on axis {facts.batch}: wrap the model in a module "
                f"that moves them to axis 0."
            )
        axis = facts.unit if facts is not None and facts.batch == 0 and facts.unit is not None else convention
        if axis is None:
            raise ValueError(
                f"the model's output has {ndim} axes, and which holds the classes cannot be told"
                f"{'' if facts is None else f' (known is {facts})'}: say so in the score, e.g. "
                f"score=Logit(class_axis=-1), or class_axis=1 for [N, classes, *positions]."
            )
        known[question] = axis % ndim
    return known[question]
