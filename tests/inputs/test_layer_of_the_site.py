"""What looks at the layer that is explained sees what is put there, not what the layer makes of the fixed inputs."""

import pytest
import torch
from torch import nn

from lightning_xai import Inputs, Site, Windows
from lightning_xai.axes import axis_facts
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradientXInput, HiResCAM
from lightning_xai.units import reactivation

IDS = torch.tensor([[1, 4, 5, 2], [1, 3, 6, 2], [1, 2, 6, 5]])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(7, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, ids):
        return self.out(self.embedding(ids).cumsum(1).tanh().mean(1))


@pytest.fixture
def model():
    return Reader().eval()


def gradient(model, x):
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model.out(leaf.cumsum(1).tanh().mean(1))[:, 1].sum(), leaf)
    return found


def test_axes_of_the_site_are_known(model):
    assert str(axis_facts(model, Inputs(IDS))["embedding"]) == "[2 rows, 4 positions, 5 units], grid 4"


def test_units_of_the_site_rise_with_what_is_perturbed_there(model):
    how = {"threshold": "activation", "p": 0.25, "activation": "identity"}
    found = reactivation(
        model, Inputs(IDS), layer="embedding", regions=Windows(1), perturbation=kinds.Constant(0.0), **how
    )
    x = model.embedding(IDS).detach()
    threshold = x.flatten(0, 1).sort(0, descending=True).values[3]  # 0.25 of 12 tokens are above it
    assert torch.equal(found.by_feature_and_unit, ((-x).relu() > threshold).sum(0))
    assert found.by_feature_and_unit.sum() > 0


def test_class_activation_map_of_the_site(model):
    found = HiResCAM("embedding", upsample=None)(model, Inputs(IDS), 1)
    x = model.embedding(IDS).detach()
    torch.testing.assert_close(found[..., 0], (x * gradient(model, x)).sum(2))


@pytest.mark.parametrize("at", [None, Site("embedding", axis=-1)])
def test_a_hook_of_the_users_comes_before_the_site(model, at):
    model.embedding.register_forward_hook(lambda _module, _args, output: 2 * output)
    x = 2 * model.embedding.weight[IDS].detach()
    found = GradientXInput().explain(model, Inputs(IDS, at=at), 1)
    torch.testing.assert_close(found.map, x * gradient(model, x))
    torch.testing.assert_close(found.score, model(IDS)[:, 1].detach())
