"""A model sharded by ``fully_shard`` has the maps of the same model in one piece."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_xai.relevance import LRP, DeepTaylor, GradCAM, GuidedBackprop, IntegratedGradients, composites, rules

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x):
        return x + self.inner(x)


def network():
    """With norms whose statistics are not those of a new network."""
    first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(first, Residual(4), nn.Conv2d(4, 4, 1), nn.ReLU(), head).double().train()
    with torch.no_grad():
        for _ in range(3):
            model(2 * torch.randn(8, 2, 6, 6, dtype=torch.float64) + 1)
    return model.eval()


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


ATTRIBUTIONS = [
    LRP(composites.EpsilonPlus()),
    LRP(composites.EpsilonPlusFlat()),
    LRP(composites.EpsilonGammaBox(-4.0, 4.0)),
    LRP(composites.RuleList([("last", rules.Epsilon(0.5)), ("*", rules.AlphaBeta())])),
    DeepTaylor(),
    GuidedBackprop(),
    IntegratedGradients(steps=3),
    GradCAM("2"),
]


@pytest.mark.parametrize("attribution", ATTRIBUTIONS, ids=lambda attribution: str(attribution)[:40])
@pytest.mark.parametrize("units", [(0, 1, 2, 4), (1,), ()], ids=str)
def test_maps_are_those_of_the_model_in_one_piece(slices, mesh, attribution, units):
    plain, x, target = network(), torch.randn(3, 2, 6, 6, dtype=torch.float64), torch.tensor([2, 0, 1])
    sharded = copy.deepcopy(plain)
    for unit in units:
        fully_shard(sharded[unit], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    expected = attribution(plain, x, target)
    for _ in range(2):  # the weights are where they were
        torch.testing.assert_close(attribution(sharded, x, target), expected, rtol=1e-9, atol=1e-12)
    sharded(x).square().sum().backward()
    plain(x).square().sum().backward()
    for own, one in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad.full_tensor(), one.grad)


def test_the_ledger_balances(mesh):
    model, x = fully_shard(network(), mesh=mesh), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    _, ledger = LRP().with_ledger(model, x, 1)
    assert abs(float(ledger.balance)) < 1e-9


def test_a_norm_whose_convolution_has_given_back_its_weights(mesh):
    model, x = network(), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    for kept in (True, False):
        parts = copy.deepcopy(model)
        fully_shard(parts[0][0], mesh=mesh, reshard_after_forward=not kept)
        fully_shard(parts, mesh=mesh)
        if kept:
            torch.testing.assert_close(LRP()(parts, x, 1), LRP()(model, x, 1), rtol=1e-9, atol=1e-12)
        else:
            with pytest.raises(ValueError, match=r"given back before .* shard them as one module"):
                LRP()(parts, x, 1)
