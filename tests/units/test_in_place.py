"""A network that works in place on its input is read like one that does not, and the input stays as it was."""

import pytest
import torch
from torch import nn

from lightning_xai import units
from lightning_xai.metrics import ActivationThreshold
from lightning_xai.perturbation import Windows, kinds

LAYER = "conv"


class Copying(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3).double(), nn.Linear(4, 3).double()

    def before(self, x):
        return (x - 1).relu()

    def forward(self, x):
        return self.head(self.conv(self.before(x)).relu().mean((2, 3)))


class InPlace(Copying):
    def before(self, x):
        return x.sub_(1).relu_()


def metric(model, x):
    found = ActivationThreshold(layer=LAYER, p=0.1)
    found.update(model, x, 1)
    return found.compute()["threshold"]


STRIPES = (torch.arange(64).view(1, 8, 8) % 2).expand(3, -1, -1)
READ = {
    "reactivation": lambda model, x: (
        units.reactivation(
            model, x, layer=LAYER, regions=Windows(4), perturbation=kinds.Constant(0.0), p=0.1
        ).by_feature_and_unit
    ),
    "activation_threshold": lambda model, x: units.activation_threshold(model, x, layer=LAYER, p=0.1).value,
    "ablate_units": lambda model, x: units.ablate_units(model, x, torch.tensor([0, 1, 2]), layer=LAYER).score_drop,
    "top_samples": lambda model, x: units.top_samples(model, x, layer=LAYER, n=2).value,
    "dissect": lambda model, x: units.dissect(model, x, STRIPES, layer=LAYER, concepts=["even", "odd"], p=0.1).iou,
    "receptive_field": lambda model, x: torch.tensor(units.receptive_field(model, x, layer=LAYER).size),
    "ActivationThreshold": metric,
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_the_input_stays_as_it_was(read):
    plain, other = Copying(), InPlace()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64) + 1
    given = x.clone()
    expected = read(plain, x)
    torch.testing.assert_close(read(other, x), expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert torch.equal(x, given)
