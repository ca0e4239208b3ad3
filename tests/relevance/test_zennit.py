"""The same maps as zennit, for every rule and composite that both have."""

import copy
import dataclasses
import itertools

import pytest
import torch
import zennit.composites
import zennit.rules
import zennit.types
from networks import bias_free, plain, residual, settled, vgg
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.layer import Sum

from lightning_xai.relevance import LRP, Deconvnet, ExcitationBackprop, GuidedBackprop, composites, rules

pytestmark = pytest.mark.usefixtures("slices")
SMALL = 1e-12  # zennit stabilises sums and pooling too; with so little it changes nothing


def fused(model):
    """A copy whose batch norms are folded exactly; zennit's own merger leaves their eps in."""
    model = copy.deepcopy(model)
    for module in model.modules():
        children = list(module._modules.items())
        for (name, first), (after, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, after, nn.Identity())
                children = list(module._modules.items())
    for module in model.modules():
        for name, child in module._modules.items():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


def by_zennit(composite, model, x, target, start=None):
    """The map of zennit, starting from the target's logit or the number given."""
    model = fused(model)
    with composite.context(model) as changed:
        x = x.clone().requires_grad_()
        output = changed(x)
        seed = torch.zeros_like(output)
        rows = torch.arange(len(x))
        seed[rows, target] = output.detach()[rows, target] if start is None else start
        (found,) = torch.autograd.grad(output, x, seed)
    return found


def agree(found, expected):
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


NETWORKS = {
    "residual": lambda: residual(add=Sum),
    "residual without batch norm": lambda: residual(norm=False, add=Sum),
    "vgg": vgg,
    "plain": plain,
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
LOW, HIGH = [-2.5, -2.0, -3.0], [2.5, 3.0, 2.0]
BOX = tuple(torch.tensor(bound, dtype=torch.float64).view(1, 3, 1, 1) for bound in (LOW, HIGH))


def drawn():
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64).clamp(-2, 2)
    return x, torch.tensor([1, 3, 0])


COMPOSITES = {
    "EpsilonPlus": (composites.EpsilonPlus(), zennit.composites.EpsilonPlus(stabilizer=SMALL)),
    "EpsilonPlusFlat": (composites.EpsilonPlusFlat(), zennit.composites.EpsilonPlusFlat(stabilizer=SMALL)),
    "EpsilonAlpha2Beta1": (composites.EpsilonAlpha2Beta1(), zennit.composites.EpsilonAlpha2Beta1(stabilizer=SMALL)),
    "EpsilonAlpha2Beta1Flat": (
        composites.EpsilonAlpha2Beta1Flat(),
        zennit.composites.EpsilonAlpha2Beta1Flat(stabilizer=SMALL),
    ),
    "EpsilonGammaBox": (
        composites.EpsilonGammaBox(LOW, HIGH),
        zennit.composites.EpsilonGammaBox(*BOX, stabilizer=SMALL),
    ),
}


@every_network
@pytest.mark.parametrize(("ours", "theirs"), COMPOSITES.values(), ids=COMPOSITES)
def test_composites(network, ours, theirs):
    x, target = drawn()
    model = settled(network())
    ours = dataclasses.replace(ours, conv_epsilon=SMALL)
    agree(LRP(ours)(model, x, target), by_zennit(theirs, model, x, target))


BASE = [
    (zennit.types.Activation, zennit.rules.Pass()),
    (Sum, zennit.rules.Norm(stabilizer=SMALL)),
    (zennit.types.AvgPool, zennit.rules.Norm(stabilizer=SMALL)),
]
RULES = {
    "zero": (rules.Zero(), zennit.rules.Epsilon(epsilon=1e-14)),
    "epsilon": (rules.Epsilon(0.1), zennit.rules.Epsilon(epsilon=0.1)),
    "gamma": (rules.Gamma(0.5, 1e-3), zennit.rules.Gamma(gamma=0.5, stabilizer=1e-3)),
    "alpha 2 beta 1": (rules.AlphaBeta(2, 1, 1e-3), zennit.rules.AlphaBeta(2, 1, stabilizer=1e-3)),
    "alpha 3 beta 2": (rules.AlphaBeta(3, 2, 1e-3), zennit.rules.AlphaBeta(3, 2, stabilizer=1e-3)),
    "z+": (rules.ZPlus(1e-3), zennit.rules.ZPlus(stabilizer=1e-3)),
    "z+ without bias": (rules.ZPlus(1e-3, bias=False), zennit.rules.ZPlus(stabilizer=1e-3, zero_params="bias")),
}


@every_network
@pytest.mark.parametrize(("ours", "theirs"), RULES.values(), ids=RULES)
def test_one_rule_everywhere_with_stabilisers_that_matter(network, ours, theirs):
    x, target = drawn()
    model = settled(network())
    peer = LayerMapComposite([*BASE, (zennit.types.Linear, theirs)])
    mine = LRP(composites.RuleList([("convolution", ours), ("linear", ours)]))
    agree(mine(model, x, target), by_zennit(peer, model, x, target))


FIRST = {
    "flat": (rules.Flat(), zennit.rules.Flat(stabilizer=SMALL)),
    "w2": (rules.WSquare(1e-2), zennit.rules.WSquare(stabilizer=1e-2)),
    "z-box": (rules.ZBox(LOW, HIGH, 1e-2), zennit.rules.ZBox(*BOX, stabilizer=1e-2)),
    "z-box of tensors": (
        rules.ZBox(*(bound[0] for bound in BOX), 1e-2),
        zennit.rules.ZBox(*BOX, stabilizer=1e-2),
    ),
}


@every_network
@pytest.mark.parametrize(("ours", "theirs"), FIRST.values(), ids=FIRST)
def test_first_layer_rules(network, ours, theirs):
    x, target = drawn()
    model = settled(network())
    others = [*BASE, (zennit.types.Linear, zennit.rules.Gamma(0.3, stabilizer=1e-3))]
    peer = SpecialFirstLayerMapComposite(others, [(zennit.types.Linear, theirs)])
    mine = composites.RuleList([("first", ours), ("*", rules.Gamma(0.3, 1e-3))])
    agree(LRP(mine)(model, x, target), by_zennit(peer, model, x, target))


@pytest.mark.parametrize("stabilizer", [1e-6, 0.1])
def test_norm_over_sums_and_pooling_with_a_stabiliser(stabilizer):
    x, target = drawn()
    model = settled(residual(add=Sum))
    norm = zennit.rules.Norm(stabilizer=stabilizer)
    layers = [(zennit.types.Activation, zennit.rules.Pass()), (Sum, norm), (zennit.types.AvgPool, norm)]
    peer = LayerMapComposite([*layers, (zennit.types.Linear, zennit.rules.Epsilon(1e-3))])
    own = rules.Norm(stabilizer)
    mine = composites.RuleList([("sum", own), ("adaptive_avg_pool2d", own), ("convolution", rules.Epsilon(1e-3))])
    mine = composites.RuleList([*mine.rules, ("linear", rules.Epsilon(1e-3))])
    agree(LRP(mine)(model, x, target), by_zennit(peer, model, x, target))


@every_network
def test_backward_relus(network):
    x, target = drawn()
    model = settled(network())
    agree(GuidedBackprop()(model, x, target), by_zennit(zennit.composites.GuidedBackprop(), model, x, target, 1.0))
    agree(Deconvnet()(model, x, target), by_zennit(zennit.composites.DeconvNet(), model, x, target, 1.0))


def test_excitation_backprop():
    x = torch.rand(3, 2, 12, 12, dtype=torch.float64)
    model, target = bias_free(), torch.tensor([1, 2, 0])
    peer = zennit.composites.ExcitationBackprop(stabilizer=SMALL)
    agree(ExcitationBackprop(epsilon=SMALL)(model, x, target), by_zennit(peer, model, x, target, 1.0))
