"""Units of layers that do not return [N, K, *S]: tokens, channels last, heads, windows."""

import pytest
import torch
from torch import nn

from lightning_xai.perturbation import Windows, kinds
from lightning_xai.sites import Place
from lightning_xai.units import (
    ablate_units,
    activation_threshold,
    dissect,
    reactivation,
    top_samples,
    unit_activations,
)
from lightning_xai.units._capture import rows_of_units
from lightning_xai.units.maximization import Ascent, Direction, Energy, Pixel, Unit, maximize_activation


class Layouts(nn.Module):
    """The same numbers in several layouts: a convolution, then tokens, heads, windows, and a mean."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 1)
        self.last, self.heads, self.windows, self.hidden, self.first = (nn.Identity() for _ in range(5))
        self.tokens = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        x = self.conv(x)
        x = self.last(x.permute(0, 2, 3, 1))
        self.windows(x.unflatten(1, (2, 2)).transpose(1, 2).flatten(0, 1))
        x = self.tokens(x.flatten(1, 2)).relu()
        self.heads(x.unflatten(2, (2, 3)).transpose(1, 2))
        self.hidden(torch.fft.fft(x).real)
        x = self.first(x.transpose(0, 1))
        x = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(0, 1)
        return self.head(x.mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Layouts().eval()


X = torch.randn(5, 2, 4, 3, dtype=torch.double)


def test_units_are_moved_to_the_second_axis(model):
    maps = model.conv(X).detach()
    assert torch.equal(unit_activations(model, X, layer="last"), maps)
    tokens = model.tokens(maps.flatten(2).mT).mT.relu().detach()
    torch.testing.assert_close(unit_activations(model, X, layer="tokens"), tokens)
    assert torch.equal(top_samples(model, X, layer="last", n=1).value[:, 0], maps.amax((0, 2, 3)))


def test_batch_norm_of_rows_of_tokens_is_followed():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm, self.head = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

        def forward(self, x):
            tokens = self.up(x.mT)
            return self.head(self.norm(tokens.flatten(0, 1)).view_as(tokens).relu().mean(1))

    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(4, 2, 5)
    model.norm.running_mean.normal_()
    expected = model.norm(model.up(x.mT).flatten(0, 1)).view(4, 5, 3).relu().mT
    torch.testing.assert_close(unit_activations(model, x, layer="up"), expected.detach())


def test_thresholds_and_positions_of_tokens(model):
    ranked = model.tokens(model.conv(X).flatten(2).mT).relu().detach()
    found = activation_threshold(model, X, layer="tokens", p=0.25)
    expected = ranked.flatten(0, 1).sort(0, descending=True).values[5 * 12 // 4]
    torch.testing.assert_close(found.value, expected)
    assert activation_threshold(model, X, layer="tokens", unit="position").value.shape == (6, 12)


@pytest.mark.parametrize("unit", ["channel", "position"])
def test_reactivation_of_tokens_is_that_of_the_same_convolution(unit):
    torch.manual_seed(1)
    last = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval()

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.head = nn.Linear(2, 3).double(), last[3]
            self.up.weight.data, self.up.bias.data = last[0].weight.data[..., 0], last[0].bias.data

        def forward(self, x):
            return self.head(self.up(x.mT).relu().mT.flatten(1))

    x = torch.randn(4, 2, 4, dtype=torch.double)
    how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "p": 0.3, "unit": unit}
    found, expected = reactivation(Tokens(), x, layer="up", **how), reactivation(last, x, layer="0", **how)
    assert expected.total > 0
    assert torch.equal(found.by_unit, expected.by_unit)
    assert torch.equal(found.by_feature, expected.by_feature)


def test_dissection_of_channels_last_is_that_of_channels_first(model):
    masks = torch.arange(3).expand(5, 4, 3) - 1
    how = {"concepts": ["left", "right"], "p": 0.2}
    found, expected = (dissect(model, X, masks, layer=layer, **how) for layer in ("last", "conv"))
    assert torch.equal(found.intersection, expected.intersection)
    assert expected.intersection.any()


@pytest.mark.parametrize("engine", ["replay", "repeat"])
@pytest.mark.parametrize("value", [0.5, "mean", torch.arange(6.0)])
def test_ablation_of_channels_last_is_that_of_channels_first(model, engine, value):
    how = {"units": [[0, 2], [5]], "value": value, "engine": engine}
    found, expected = (ablate_units(model, X, 1, layer=layer, **how) for layer in ("last", "conv"))
    torch.testing.assert_close(found.score_drop, expected.score_drop)
    assert expected.score_drop.abs().min() > 0


@pytest.mark.parametrize(
    "objective", [lambda layer: Unit(layer, [1, 4]), lambda layer: Direction(layer, torch.arange(6.0)), Energy]
)
def test_maximisation_of_channels_last_is_that_of_channels_first(model, objective):
    ascent = Ascent(steps=2, parametrization=Pixel())
    found, expected = (
        maximize_activation(model, objective(layer), X.shape[1:], ascent=ascent) for layer in ("last", "conv")
    )
    torch.testing.assert_close(found.inputs, expected.inputs)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("block.windows", r"\[4 rows and more, .*\], not one row per sample, .* name the block 'block'"),
        ("block.first", r"\[12 positions, 2 rows, 6 units\], not one row per sample, .* name the block 'block'"),
        ("block.heads", r"its units cannot be told \(known is \[2 rows, 2 \?, 12 positions, 3 \?\]\)\. Name a conv"),
        (
            "block.hidden",
            r"its units cannot be told: it does not depend on what is explained, or .* in it, or the block 'block'",
        ),
    ],
)
@pytest.mark.parametrize("ask", [unit_activations, ablate_units])
def test_layers_without_units_of_samples_are_refused(model, layer, message, ask):
    whole = nn.Sequential()
    whole.add_module("block", model)
    with pytest.raises(ValueError, match=message):
        ask(whole, X, layer=layer, **({"target": 0} if ask is ablate_units else {}))


def test_layers_of_unknown_inputs_go_by_the_operation_that_made_them():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv1d(1, 3, 1).double(), nn.Linear(4, 2).double()

        def forward(self, x):
            spectrum = torch.fft.fft(x).real
            return self.linear(self.conv(spectrum).relu()).relu().sum(2)

    model, x = Spectrum(), torch.randn(3, 1, 4, dtype=torch.double)
    assert unit_activations(model, x, layer="conv").shape == (3, 3, 4)
    assert unit_activations(model, x, layer="linear").shape == (3, 2, 3)


def passes(model, ask):
    counted = []
    handle = model.register_forward_hook(lambda *_: counted.append(1))
    ask()
    handle.remove()
    return len(counted)


def test_channels_first_costs_no_pass_of_its_own(model):
    """One pass finds the activation, one reads it; the layout of others takes one more."""
    cnn = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)).double()
    assert passes(cnn, lambda: unit_activations(cnn, X, layer="3", chunk_size=5)) == 2
    assert passes(model, lambda: unit_activations(model, X, layer="conv", chunk_size=5)) == 2
    assert passes(model, lambda: unit_activations(model, X, layer="last", chunk_size=5)) == 3


@pytest.mark.parametrize("shape", [(6, 2), (3,)])
def test_a_pass_that_gives_no_row_per_sample_is_refused(shape):
    with pytest.raises(ValueError, match=r"layer 'a' returns \[.*\] for 3 samples; units need \[N, K\]"):
        rows_of_units(torch.zeros(shape), Place("a"), 3)
