"""Runs a function of maps on changed boxes, beside the same function on whole perturbed maps."""

import torch
from torch import nn

from lightning_xai._guard import isolated_eval
from lightning_xai.perturbation.incremental.clean import CleanPass, clean_pass, known, template
from lightning_xai.perturbation.incremental.geometry import Boxes
from lightning_xai.perturbation.incremental.operations import State
from lightning_xai.perturbation.incremental.plan import Plan, output_values
from lightning_xai.perturbation.network import Network


class Maps(nn.Module):
    """A function of the input and of modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.inner)


def corners(spatial, size=2):
    """Boxes at both ends of every axis, in the middle, and at odd places."""
    starts = [[0, length - size, (length - size) // 2, 1] for length in spatial]
    starts[-1] = starts[-1][::-1]
    return Boxes(tuple(map(torch.tensor, starts)), (size,) * len(spatial), tuple(spatial))


def on_boxes(model, x, boxes=None):
    """What a model makes of inputs whose boxes are perturbed: by boxes, by whole maps, and the calls made on boxes."""
    model = model.double().eval()
    boxes = boxes or corners(x.shape[2:])
    with isolated_eval(model):
        network = Network(model, x, chunk_size=8)
        output, record = clean_pass(network, x)
        pair = known(clean_pass(network, x[:1].expand(2, *x.shape[1:]), keep=())[1])
        clean = CleanPass(record, template(network, x, pair))
        clean.template.check(record)
        plan = Plan(record.skeleton(), clean.template.trees, boxes, output_values(record))
        state = State(record, clean.tables, torch.arange(len(x)).unsqueeze(0), boxes.count)
        perturbed, patches = [], []
        for position in range(boxes.count):
            starts = [int(start[position]) for start in boxes.starts]
            box = (..., *(slice(start, start + size) for start, size in zip(starts, boxes.sizes, strict=True)))
            patches.append(torch.randn_like(x[box]))
            perturbed.append(x.clone())
            perturbed[-1][box] = patches[-1]
        (found,) = plan.run(state, torch.cat(patches))
        expected = model(torch.cat(perturbed))
    assert torch.equal(output, model(x))
    return found, expected, [planned.call.name for planned in plan.steps if planned.step is not None]
