"""Layers that are named by a `Site`: an axis, a part of an output, one of several calls, a reshape."""

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import Inputs, Site, Windows
from lightning_xai.metrics import ActivationThreshold, Dissection, Reactivation, Relevance, TopSamples, UnitAblation
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradCAM, HiResCAM, ScoreCAM
from lightning_xai.scores import Unit as UnitScore
from lightning_xai.units import (
    ablate_units,
    activation_threshold,
    dissect,
    reactivation,
    top_samples,
    unit_activations,
)
from lightning_xai.units.field import receptive_field
from lightning_xai.units.maximization import Ascent, Pixel, Unit, maximize_activation

LOUD = kinds.Constant(3.0)
X = draw(4, 2, 5)


class Hidden(nn.Module):
    """The same numbers as a convolution gives, in a layout that no operation tells, in a tuple, and by two calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.act = nn.Conv1d(2, 3, 1), nn.Identity()
        self.last, self.both = nn.Identity(), Both()
        self.head = nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        x = self.act(self.conv(x).relu())
        x = self.last(torch.fft.ifft(torch.fft.fft(x)).real.mT)
        x, _ = self.both(x)
        return self.head(self.act(x).mean(1))


class Both(nn.Module):
    def forward(self, x):
        return x, x.sum(1)


@pytest.fixture
def model():
    return Hidden().eval()


def folded(tensor):
    """[N, P, K] as [N, K, P]."""
    return tensor.transpose(1, 2)


SITES = {
    "axis": Site("last", axis=2),
    "axis from the end": Site("last", axis=-1),
    "reshape": Site("last", reshape=folded),
    "part": Site("both", axis=2, part=0),
    "part of two": Site("both", part=0, reshape=folded),
    "second call": Site("act", axis=2, call=1),
    "first call": Site("act", call=0),
}
every_site = pytest.mark.parametrize("site", SITES.values(), ids=SITES)


@pytest.fixture
def plain(model):
    """The convolution alone, whose second layer gives what every site holds."""
    return nn.Sequential(model.conv, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), model.head)


OPTIONS = {"activation": "identity"}


@every_site
def test_units_of_a_site_are_those_of_the_convolution(model, plain, site):
    for ask in (unit_activations, activation_threshold, top_samples):
        how = {
            **OPTIONS,
            **({"n": 2} if ask is top_samples else {}),
            **({"p": 0.2} if ask is activation_threshold else {}),
        }
        found, expected = ask(model, X, layer=site, **how), ask(plain, X, layer="1", **how)
        if ask is unit_activations:
            close(found, expected)
        else:
            close(found.value, expected.value)
    masks = (torch.arange(5) % 2).expand(4, 5)
    how = {"concepts": ["even", "odd"], "threshold": 0.3, **OPTIONS}
    found, expected = dissect(model, X, masks, layer=site, **how), dissect(plain, X, masks, layer="1", **how)
    assert torch.equal(found.intersection, expected.intersection)
    assert expected.intersection.any()


@every_site
@pytest.mark.parametrize("unit", ["channel", "position"])
def test_reactivation_at_a_site_is_that_at_the_convolution(model, plain, site, unit):
    how = {"regions": Windows(1), "perturbation": LOUD, "unit": unit, "p": 0.3, "dead": "count", **OPTIONS}
    found, expected = reactivation(model, X, layer=site, **how), reactivation(plain, X, layer="1", **how)
    assert expected.total
    assert torch.equal(found.by_unit, expected.by_unit)
    close(found.threshold, expected.threshold)
    assert list(reactivation(model, X, layers=[site], **how)) == [str(site_name(site))]


def site_name(site):
    part = "" if site.part is None else f"[{site.part}]"
    return site.layer + part + ("" if site.call is None else f" call {site.call}")


@pytest.mark.parametrize("name", [name for name, site in SITES.items() if site.reshape is None])
@pytest.mark.parametrize("engine", ["replay", "repeat"])
def test_ablation_at_a_site_is_that_of_the_units_in_the_output(model, plain, name, engine):
    found = ablate_units(model, X, 1, layer=SITES[name], value="mean", engine=engine)
    close(found.score_drop, ablate_units(plain, X, 1, layer="1", value="mean").score_drop)
    with pytest.raises(ValueError, match=r"in the output of layer 'last' as it is: say with axis=... where they lie"):
        ablate_units(model, X, 1, layer=SITES["reshape"])


@every_site
def test_maximisation_at_a_site_is_that_of_the_convolution(model, plain, site):
    ascent = Ascent(steps=2, parametrization=Pixel())
    found, expected = (
        maximize_activation(net, Unit(layer, [0, 2]), (2, 5), ascent=ascent, start=5 * X[:2]).inputs
        for net, layer in ((model, site), (plain, "1"))
    )
    close(found, expected)


@every_site
@pytest.mark.parametrize("cam", [GradCAM, HiResCAM, ScoreCAM])
def test_class_activation_maps_at_a_site_are_those_at_the_convolution(model, plain, site, cam):
    found, expected = cam(site).explain(model, X, 1), cam("1").explain(plain, X, 1)
    close(found.map, expected.map)
    assert expected.map.abs().max() > 0
    assert found.layer == site_name(site)


@every_site
def test_a_unit_of_a_site_is_a_score(model, plain, site):
    close(
        GradCAM(layer="conv", score=UnitScore(site, 1, at="max"))(model, X),
        GradCAM(layer="0", score=UnitScore("1", 1, at="max"))(plain, X),
    )


@every_site
def test_metrics_take_sites(model, plain, site):
    masks = (torch.arange(5) % 2).expand(4, 5)
    metrics = {
        "threshold": lambda layer: ActivationThreshold(layer, p=0.2, **OPTIONS),
        "by_unit": lambda layer: Reactivation(layer, Windows(1), LOUD, p=0.3, **OPTIONS),
        "value": lambda layer: TopSamples(layer, n=2, **OPTIONS),
        "map": lambda layer: Relevance(GradCAM(layer)),
        "iou": lambda layer: Dissection(layer, ["even", "odd"], 0.3, lambda x: masks[: len(x)], **OPTIONS),
        "score_drop": UnitAblation,
    }
    for key, metric in metrics.items():
        if key == "score_drop" and site.reshape is not None:
            continue
        found, expected = metric(site), metric("1")
        found.update(model, X, 1)
        expected.update(plain, X, 1)
        torch.testing.assert_close(found.compute()[key], expected.compute()[key], equal_nan=True)


def test_receptive_fields_take_a_part_or_a_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    x = torch.zeros(1, 1, 9)
    assert receptive_field(Twice(), x, layer=Site("conv", call=0)).box([2]) == (slice(2, 5),)
    assert receptive_field(Twice(), x, layer=Site("conv", call=1)).box([2]) == (slice(2, 7),)
    with pytest.raises(ValueError, match="name no axis or reshape"):
        receptive_field(Twice(), x, layer=Site("conv", axis=1, call=0))


def test_a_siamese_network_is_asked_for_a_call():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower, self.out = nn.Conv2d(1, 3, 2), nn.Linear(3, 2)
            self.double()

        def forward(self, a, b):
            first, second = self.tower(a).relu(), self.tower(b).relu()
            return self.out((first * second).mean((2, 3)))

    model, a, b = Siamese(), draw(2, 1, 4, 4), draw(2, 1, 4, 4)
    inputs = Inputs(a, b, explain=0)
    with pytest.raises(ValueError, match=r"one call of several is layer=Site\('...', call=0\)"):
        GradCAM()(model, inputs, 1)
    with pytest.raises(ValueError, match=r"ran 2 times in one pass .* layer=Site\('tower', call=0\)"):
        GradCAM("tower")(model, inputs, 1)
    first, second = model.tower(a).detach().requires_grad_(), model.tower(b).relu()
    (slope,) = torch.autograd.grad(model.out((first.relu() * second).mean((2, 3)))[:, 1].sum(), first)
    expected = (slope.mean((2, 3), keepdim=True) * first).sum(1, keepdim=True).relu().detach()
    close(GradCAM(Site("tower", call=0), upsample=None)(model, inputs, 1), expected)
    for ask in (unit_activations, ablate_units):
        with pytest.raises(ValueError, match=r"runs 2 times in .* layer=Site\('tower', call=0\)"):
            ask(model, inputs, layer="tower", **({"target": 1} if ask is ablate_units else {}))


def test_sites_are_checked():
    with pytest.raises(ValueError, match="give axis= or reshape=, not both"):
        Site("a", axis=1, reshape=folded)
    with pytest.raises(TypeError, match="reshape must be a function"):
        Site("a", reshape=2)
    with pytest.raises(TypeError, match="must be a module or its dotted name, not a Site"):
        Site(Site("a"))
    with pytest.raises(ValueError, match=r"which reshape=\.\.\. does not allow"):
        GradCAM()(nn.Conv1d(1, 1, 1), Inputs(X[:, :1], at=Site("", reshape=folded)), 0)
    with pytest.raises(ValueError, match="the layer says already where its units lie"):
        GradCAM(Site("a", axis=1), reshape=folded)
