"""The guide for those who come from a peer: the names of its tables exist, and what it says of other numbers is so."""

import importlib
import inspect
import re
from pathlib import Path

import captum.attr
import pytest
import pytorch_grad_cam
import pytorch_grad_cam.utils.model_targets
import quantus
import torch
import zennit.attribution
import zennit.canonizers
import zennit.composites
import zennit.torchvision
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional
from zennit.layer import Sum

import lightning_xai
from lightning_xai import Windows
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import LRP, Deconvnet, GradCAM, GuidedBackprop, HiResCAM, Saliency, SmoothGrad, composites

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "coming-from.md").read_text()
SECTIONS = {part.split("\n")[0]: part for part in GUIDE.split("\n## ")[1:]}
PEERS = {
    "Captum": [captum.attr],
    "zennit": [zennit.attribution, zennit.canonizers, zennit.composites, zennit.torchvision],
    "pytorch-grad-cam": [pytorch_grad_cam, pytorch_grad_cam.utils.model_targets],
}
MODULES = ("regions", "perturbation", "perturbation.kinds", "relevance", "relevance.composites", "units")
OURS = [lightning_xai, *(importlib.import_module(f"lightning_xai.{name}") for name in MODULES)]
Y = torch.tensor([2, 0, 1])


def rows(section):
    """The cells of a section's tables."""
    lines = [line.strip("|").split("|") for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [(left, right) for left, right in lines if "---" not in left][1:]


def spans(cell):
    """The first name of every span of code in a cell, without its module."""
    found = [re.match(r"(?:~?[\w]+\.)*(\w+)", span.lstrip(".~")) for span in re.findall(r"`([^`]+)`", cell)]
    return [match[1] for match in found if match]


def arguments(function):
    """How many of a function's variables are its arguments."""
    return function.__code__.co_argcount + function.__code__.co_kwonlyargcount


def known(modules):
    """What modules hold: names, the parameters of what can be called, and the members of classes."""
    names = set()
    for found in [found for module in modules for found in inspect.getmembers(module) if not found[0].startswith("_")]:
        names.add(found[0])
        if inspect.isclass(found[1]):
            # Instances have fields that their class has not.
            names |= {*dir(found[1]), *getattr(found[1], "__annotations__", ())}
            methods = [value for _, value in inspect.getmembers(found[1], inspect.isfunction)]
        else:
            methods = [found[1]] if inspect.isfunction(found[1]) else []
        names |= {name for method in methods for name in method.__code__.co_varnames[: arguments(method)]}
    return names


@pytest.mark.parametrize("section", PEERS)
def test_the_names_of_a_peer_exist(section):
    names = [name for left, _ in rows(section) for name in spans(left)]
    assert len(names) > 5
    assert [name for name in names if name not in known(PEERS[section])] == []


# Modules and arguments, and a method of tensors.
OWN = {"kinds", "abs", *lightning_xai.__all__}


@pytest.mark.parametrize("section", [*PEERS, "pudu"])
def test_our_names_exist(section):
    names = [name for left, right in rows(section) for name in spans(left if "the same names" in right else right)]
    assert len(names) > 5
    assert [name for name in names if name not in known(OURS) | OWN] == []


def test_every_measure_of_quantus_has_a_row_and_our_names_exist():
    lines = [line.strip("|").split("|") for line in SECTIONS["Quantus"].splitlines() if line.startswith("| `")]
    names = [spans(peer)[0] for peer, _, _ in lines]
    assert len(set(names)) == len(names) == 37
    ours = [name for _, ours, _ in lines for name in spans(ours)]
    assert [name for name in ours if name not in known([*OURS, lightning_xai.evaluation]) | OWN] == []


def test_the_rows_of_quantus_are_its_measures():
    lines = [line for line in SECTIONS["Quantus"].splitlines() if line.startswith("| `")]
    measures = [measure for part in quantus.AVAILABLE_METRICS.values() for measure in part.values()]
    assert sorted(spans(line)[0] for line in lines) == sorted(measure.__name__ for measure in measures)


def test_a_name_that_is_not_there_is_found():
    assert spans("`Occlusion(x)` and `relevance.Nothing`") == ["Occlusion", "Nothing"]
    assert "Occlusion" in known([captum.attr])
    assert "Nothing" not in known([captum.attr]) | known(OURS)


def convolutions(functionally=False):
    """A network [N, 2, 7, 8] -> [N, 3]; its ReLUs are modules, or functions."""
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)]

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x):
            x = functional.relu(self.layers[1](functional.relu(self.layers[0](x))))
            return self.layers[2](x.mean((2, 3)))

    first, second, head = layers
    modules = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    modules, functions = modules.double().eval(), Functional().eval()
    return functions if functionally else modules


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def apart(found, expected):
    """The largest difference, in units of the largest number expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def test_captums_occlusion_explains_logits():
    model, x = convolutions(), draw(3, 2, 7, 8)
    peer = captum.attr.Occlusion(model).attribute(x, sliding_window_shapes=(2, 3, 3), strides=(2, 3, 3), target=Y)
    logit = PerturbationImportance(Windows(3), kinds.Constant(0.0), score="logit")(model, x, Y)
    probability = PerturbationImportance(Windows(3), kinds.Constant(0.0))(model, x, Y)
    assert apart(logit.expand_as(x), peer.double()) < 1e-6
    assert apart(probability.expand_as(x), peer.double()) > 0.1


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not")
@pytest.mark.parametrize(("name", "ours"), [("GuidedBackprop", GuidedBackprop()), ("Deconvolution", Deconvnet())])
def test_captum_does_not_see_functions(name, ours):
    x = draw(3, 2, 7, 8)
    torch.manual_seed(0)
    modules = convolutions()
    torch.manual_seed(0)
    functions = convolutions(functionally=True)
    peer = getattr(captum.attr, name)
    assert apart(ours(modules, x, Y), peer(modules).attribute(x.clone(), target=Y)) < 1e-12
    assert apart(ours(functions, x, Y), ours(modules, x, Y)) < 1e-12
    plain = Saliency(absolute=False)(functions, x, Y)
    assert apart(peer(functions).attribute(x.clone(), target=Y), plain) < 1e-12


def test_captums_noise_depends_on_the_batch():
    model, x = convolutions(), draw(3, 2, 7, 8)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    peer = []
    for rows_ in (slice(0, 3), slice(1, 3)):
        torch.manual_seed(0)
        peer.append(tunnel.attribute(x[rows_], target=Y[rows_], nt_samples=4, stdevs=0.1, abs=False))
    assert apart(peer[0][1:], peer[1]) > 1e-3
    smooth = SmoothGrad(Saliency(absolute=False), sigma=0.1, draws=4)
    assert apart(smooth(model, x, Y, [0, 1, 2])[1:], smooth(model, x[1:], Y[1:], [1, 2])) < 1e-12
    defaults = inspect.signature(tunnel.attribute).parameters
    assert (defaults["nt_samples"].default, defaults["stdevs"].default) == (5, 1.0)
    assert (SmoothGrad().draws, SmoothGrad().sigma) == (25, 0.1)


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not")
def test_captums_lrp_is_epsilon_and_refuses_modules_without_a_rule():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(), draw(3, 5)
    peer = captum.attr.LRP(model).attribute(x, target=Y)
    assert apart(LRP(composites.AttnLRP(epsilon=1e-9))(model, x, Y), peer.detach()) < 1e-12
    for layer in (nn.Identity(), nn.Flatten(), nn.ReLU6(), nn.SiLU(), nn.LayerNorm(4)):
        model = nn.Sequential(nn.Linear(5, 4), layer, nn.Linear(4, 3)).double()
        with pytest.raises(TypeError, match="no rule defined"):
            captum.attr.LRP(model).attribute(x, target=Y)
        assert LRP(composites.AttnLRP())(model, x, Y).isfinite().all()


def by_zennit(model, composite, x, target, classes):
    with zennit.attribution.Gradient(model, composite) as attributor:
        _, found = attributor(x, torch.eye(classes, dtype=x.dtype)[target])
    return found


def test_zennit_starts_from_one():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(), draw(3, 5)
    logit = model(x).detach().gather(1, Y[:, None])
    peer = by_zennit(model, zennit.composites.EpsilonPlus(), x, Y, 3)
    assert apart(LRP(composites.EpsilonPlus())(model, x, Y) / logit, peer) < 1e-6


class Residual(nn.Module):
    def __init__(self, add):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4, bias=False).double(), nn.Linear(4, 3, bias=False).double()
        self.add = add

    def forward(self, x):
        pair = x, torch.relu(self.inner(x))
        return self.head(pair[0] + pair[1] if self.add is None else self.add(torch.stack(pair, -1)))


def test_a_bare_residual_sum_doubles_in_zennit():
    x = torch.rand(3, 4, dtype=torch.float64)
    bare, summed = Residual(None), Residual(Sum())
    composite = zennit.composites.EpsilonPlus()
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(by_zennit(summed, composite, x, Y, 3).sum(1), ones, rtol=1e-3, atol=0)
    assert (by_zennit(bare, composite, x, Y, 3).sum(1) > 1.5).all()
    for model in (bare, summed):
        logit = model(x).detach().gather(1, Y[:, None])[:, 0]
        torch.testing.assert_close(LRP()(model, x, Y).sum(1) / logit, ones, rtol=1e-3, atol=0)


class Normed(nn.Module):
    """Convolutions each with a norm; ``fused``: norm and activation in one module."""

    def __init__(self, fused):
        super().__init__()
        norms = [BatchNormAct2d(8) if fused else nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2)]
        convolutions = [nn.Conv2d(2, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)]
        pairs = zip(convolutions, norms, strict=True)
        self.layers = nn.Sequential(*(part for pair in pairs for part in ((pair[0], pair[1]) if fused else pair)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        self.double().train()
        with torch.no_grad():
            for _ in range(20):
                self(3 * draw(8, 2, 8, 8) + 1)
        self.eval()

    def forward(self, x):
        return self.head(self.layers(x))


def test_zennits_norms():
    """Its merged batch norm keeps eps; it does not merge one that is fused with its activation."""
    x = draw(3, 2, 8, 8)
    composite = zennit.composites.EpsilonPlus(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()])
    gaps = {}
    for fused in (False, True):
        torch.manual_seed(1)
        model = Normed(fused)
        logit = model(x).detach().gather(1, Y[:, None]).view(3, 1, 1, 1)
        for eps in (1e-3, 0.0):
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_var += module.eps - eps
                    module.eps = eps
            gaps[fused, eps] = apart(by_zennit(model, composite, x, Y, 3), LRP()(model, x, Y) / logit)
    assert gaps[False, 0.0] < 1e-4 < gaps[False, 1e-3] < 0.05
    assert gaps[True, 0.0] > 0.1


def test_zennits_occlusion_keeps_the_window():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1, bias=False)).double()
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    _, peer = zennit.attribution.Occlusion(model, attr_output=lambda output: output, window=(4, 4), stride=(4, 4))(x)
    part = (model[1].weight.view(6, 6) * x[0, 0]).detach()
    corners = [part.roll((-row, -column), (0, 1))[:4, :4].sum() for row in (0, 4) for column in (0, 4)]
    torch.testing.assert_close(peer[0, 0, 3, 3], corners[0])
    torch.testing.assert_close(peer[0, 0, 0, 0], sum(corners))  # three of the four windows go round the border


def test_pytorch_grad_cam_scales_cuts_and_clears_gradients():
    model, x = convolutions(), draw(3, 2, 7, 8)
    weight = model[0].weight
    weight.grad = torch.ones_like(weight)
    GradCAM("2")(model, x, Y)
    assert bool((weight.grad == 1).all())
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(int(y)) for y in Y]
    with pytorch_grad_cam.HiResCAM(model, [model[2]]) as peer:
        found = torch.from_numpy(peer(x, targets))
    assert not bool((weight.grad == 1).all())
    assert (float(found.min()), float(found.max())) == pytest.approx((0, 1), abs=1e-6)
    torch.testing.assert_close(found.amax((1, 2)), torch.ones(3).to(found), rtol=1e-5, atol=0)
    ours = HiResCAM("2")(model, x, Y)[:, 0]
    assert float(ours.min()) < 0
    positive = ours.relu()
    assert apart(found.double(), positive / positive.amax((1, 2), keepdim=True)) < 1e-5
