"""What a rule costs, counted in convolutions: none runs that its formula does not need."""

import itertools
from collections import Counter

import pytest
import torch
from networks import residual, settled
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import mobilenet_v2, resnet18

from lightning_xai.relevance import LRP, composites, rules


class Counted(TorchDispatchMode):
    """Counts convolutions by the size of their batch."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.forward[len(args[0])] += 1
        if func is torch.ops.aten.convolution_backward.default:
            assert args[-1] == [True, False, False], "the gradient of weights is not needed"
            self.backward[len(args[0])] += 1
        return func(*args, **(kwargs or {}))


def network():
    layers = []
    for index in range(4):
        layers += [nn.Conv2d(3 if index == 0 else 5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True)]
    return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)))


def counted(composite, model, x):
    LRP(composite)(model, x, 1)  # weights are made
    with Counted() as seen:
        LRP(composite)(model, x, 1)
    return seen


N = 6  # of a batch, so that what runs once for all samples can be told apart

# Per composite: convolutions of the whole batch beside the 4 of the forward pass, of a single sample, and backward.
COSTS = {
    "zero": (composites.RuleList([("*", rules.Zero())]), 0, 0, 4),
    "epsilon": (composites.RuleList([("*", rules.Epsilon())]), 0, 0, 4),
    # one extra per convolution; the first has inputs of both signs, whose two parts are stacked into one
    "z+": (composites.EpsilonPlus(), 4, 0, 4),
    "z+, flat": (composites.EpsilonPlusFlat(), 3, 1, 4),
    "alpha-beta": (composites.EpsilonAlpha2Beta1(), 4, 0, 4 * 2),
    "alpha-beta, flat": (composites.EpsilonAlpha2Beta1Flat(), 3, 1, 3 * 2 + 1),
    # behind a ReLU no relevance comes from negative outputs
    "gamma, box": (composites.EpsilonGammaBox(-4.0, 4.0), 3, 2, 4),
    "w2": (composites.DeepTaylor(), 3, 1, 4),
    "guided": (composites.GuidedBackprop(), 0, 0, 4),
}


@pytest.mark.parametrize(("composite", "whole", "single", "backward"), COSTS.values(), ids=COSTS)
def test_no_convolution_runs_that_the_formula_does_not_need(composite, whole, single, backward):
    x = torch.randn(N, 3, 7, 6, dtype=torch.float64)
    seen = counted(composite, network(), x)
    assert seen.forward == Counter({N: 4 + whole, **({1: single} if single else {})})
    assert sum(seen.backward.values()) == backward


def test_the_whole_forward_pass_runs_once():
    calls = Counter()
    model = settled(residual())
    for name, layer in model.named_modules():
        layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    LRP(composites.EpsilonPlusFlat())(model, x, 1)
    assert set(calls.values()) == {1}


def peak(run):
    """The most bytes that a run holds at once beyond what was there before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert changes
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2])
def test_memory_of_one_pass_stays_near_the_plain_one(build):
    model, x = build().eval(), torch.randn(4, 3, 96, 96)

    def plain():
        leaf = x.clone(memory_format=torch.channels_last).requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)

    least = peak(plain)
    for preset in (composites.EpsilonPlusFlat(), composites.EpsilonAlpha2Beta1(), composites.EpsilonGammaBox(-4, 4)):
        assert peak(lambda preset=preset: LRP(preset)(model, x, 1)) <= 1.5 * least
