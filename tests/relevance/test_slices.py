"""Rules that take large outputs a few samples at a time find what they find at once."""

import pytest
import torch
from networks import settled
from torch import nn

from lightning_xai.relevance import LRP, composites, rules, step
from lightning_xai.relevance.maps import Convolution

RULES = {
    "epsilon": rules.Epsilon(0.1),
    "z+": rules.ZPlus(),
    "alpha-beta": rules.AlphaBeta(alpha=3.0, beta=2.0),
    "gamma": rules.Gamma(gamma=0.5),
}


def network():
    """Inputs of both signs and of one, groups, a transpose, and what may hand relevance to a convolution: all kinds."""
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)]
    layers += [nn.Conv2d(6, 6, 3, stride=2, groups=3), nn.GELU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)]
    layers += [nn.ConvTranspose2d(4, 5, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 7 * 5, 3)]
    return settled(nn.Sequential(*layers))


def runs(monkeypatch, samples_at_once, find):
    """What is found, and the batches that the transposed convolutions were given."""
    batches = []
    transpose = Convolution._transpose

    def noted(self, s, *rest):
        batches.append(len(s))
        return transpose(self, s, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "_transpose", noted)
        patch.setattr(step, "SLICE_BYTES", samples_at_once * 6 * 8 * 6 * 8)  # of the first, largest output
        return find(), batches


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_slices_make_no_difference(rule, monkeypatch):
    model, x = network(), torch.randn(5, 3, 8, 6, dtype=torch.float64)
    lrp = LRP(composites.Composite([("linear", rules.Epsilon()), ("convolution", rule), ("*", rules.Pass())]))
    whole, of_all = runs(monkeypatch, 5, lambda: lrp(model, x, 1))
    sliced, of_some = runs(monkeypatch, 2, lambda: lrp(model, x, 1))
    torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-13)
    assert set(of_all) == {5}
    assert {2, 1, 5} <= set(of_some)  # small outputs are taken whole


def test_slices_tell_the_ledger_the_same(monkeypatch):
    model, x = network(), torch.randn(5, 3, 8, 6, dtype=torch.float64)
    lrp = LRP(composites.EpsilonAlpha2Beta1())
    (_, whole), _ = runs(monkeypatch, 5, lambda: lrp.with_ledger(model, x, 1))
    (_, sliced), batches = runs(monkeypatch, 2, lambda: lrp.with_ledger(model, x, 1))
    assert 2 in batches
    for name in ("biases", "epsilon", "received"):
        torch.testing.assert_close(getattr(sliced, name), getattr(whole, name), rtol=1e-11, atol=1e-12)


def test_rules_of_the_first_layer_look_once_at_what_all_samples_share(monkeypatch):
    model, x = network(), torch.rand(5, 3, 8, 6, dtype=torch.float64)
    _, batches = runs(monkeypatch, 2, lambda: LRP(composites.EpsilonPlusFlat())(model, x, 1))
    assert batches[-1] == 5


def test_the_transposed_operation_of_stacked_inputs_keeps_their_layout():
    images = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    weight = torch.randn(7, 4, 1, 1)
    convolution = Convolution((1, 1), (0, 0), (1, 1), 1)
    s = torch.randn(2, 7, 5, 6).to(memory_format=torch.channels_last)
    stacked = convolution.stacked(weight, -weight)
    for found in convolution.transpose_stacked(s, stacked, images):
        assert found.stride(1) == 1
    for found in convolution.transpose_stacked(s.contiguous(), stacked, images.contiguous()):
        assert found.stride(3) == 1
