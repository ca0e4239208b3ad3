"""An activation alone behind a linear operation hands it relevance itself: the map is what it is without that.

The other route is the pass with a ledger, in which every activation multiplies by (f(x) - f(0)) / x.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.relevance import LRP, composites, rules
from lightning_xai.relevance.rules import Rule

pytestmark = pytest.mark.usefixtures("slices")


class Net(nn.Module):
    """Convolutions with something between them; weights and inputs of both signs."""

    def __init__(self, between, groups=1, wide=6):
        super().__init__()
        self.first = nn.Conv2d(2, wide, 3, padding=1)
        self.second = nn.Conv2d(wide, wide, 3, padding=1, groups=groups)
        self.third = nn.Conv2d(wide, 4, 1)
        self.between = between

    def forward(self, x):
        y = self.between(self.second(self.between(self.first(x))))
        return self.third(y).mean((2, 3))


def read_twice(y):
    return functional.relu(y) + 0.5 * y


def read_twice_by_activations(y):
    return functional.relu(y) + functional.silu(y)


def one_left_unread(y):
    functional.relu(y)
    return functional.silu(y)


def written_afterwards(y):
    a = functional.relu6(y)
    b = a * 2.0
    a += 1.0
    return a + b


def in_place_then_written(y):
    functional.hardtanh(y, 0.0, 3.0, inplace=True)
    y *= 0.5
    return y


def in_place_behind_a_view(y):
    rows = y.flatten(2)
    a = rows * 1.5
    functional.relu6(y, inplace=True)
    return a.view_as(y) + y


def relu6_in_place_behind_another_reader(y):
    a = 0.25 * y
    return functional.relu6(y, inplace=True) + a


def in_place_behind_another_reader(y):
    a = 0.25 * y
    return functional.hardtanh(y, -0.5, 0.5, inplace=True) + a


BETWEEN = {
    "relu": functional.relu,
    "relu in place": lambda y: functional.relu(y, inplace=True),
    "relu6 in place": lambda y: functional.relu6(4 * y, inplace=True),
    "relu6 of the output in place": nn.ReLU6(inplace=True),
    "hardtanh in place": nn.Hardtanh(-0.4, 0.4, inplace=True),
    "leaky in place": nn.LeakyReLU(0.1, inplace=True),
    "silu in place": nn.SiLU(inplace=True),
    "sigmoid": torch.sigmoid,
    "sigmoid in place": torch.sigmoid_,
    "prelu": nn.PReLU(),
    **{
        each.__name__: each
        for each in (
            read_twice,
            read_twice_by_activations,
            one_left_unread,
            written_afterwards,
            in_place_then_written,
            in_place_behind_a_view,
            in_place_behind_another_reader,
            relu6_in_place_behind_another_reader,
        )
    },
}

PRESETS = {
    "flat": composites.EpsilonPlusFlat(),
    "plus": composites.EpsilonPlus(),
    "alpha-beta": composites.EpsilonAlpha2Beta1(),
    "box": composites.EpsilonGammaBox(-4.0, 4.0),
    "gamma": composites.RuleList([("*", rules.Gamma(0.5))]),
    "gamma, no epsilon": composites.RuleList([("*", rules.Gamma(0.5, 0.0))]),
    "z+, no epsilon": composites.RuleList([("*", rules.ZPlus(0.0))]),
    "alpha-beta, no epsilon": composites.RuleList([("*", rules.AlphaBeta(3.0, 2.0, 0.0))]),
    "epsilon": composites.RuleList([("*", rules.Epsilon(0.01))]),
    "no epsilon": composites.RuleList([("*", rules.Epsilon(0.0))]),
    "neither gamma nor epsilon": composites.RuleList([("*", rules.Gamma(0.0, 0.0))]),
    "last": composites.RuleList([("last", rules.Zero()), ("*", rules.ZPlus())]),
    "zero": composites.RuleList([("*", rules.Zero())]),
    "some gradients": composites.RuleList([("second", rules.Gradient()), ("*", rules.Gamma())]),
}


def same(model, x, preset):
    found = LRP(preset)(model, x, 1)
    expected, _ = LRP(preset).with_ledger(model, x, 1)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_the_map_is_that_of_a_pass_with_a_ledger(between, preset):
    torch.manual_seed(0)
    model = Net(between).double().eval().requires_grad_(False)
    same(model, torch.randn(3, 2, 5, 4, dtype=torch.float64), preset)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_relu6_that_cuts_something_off_in_place(preset):
    torch.manual_seed(0)
    model = Net(nn.ReLU6(inplace=True)).double().eval().requires_grad_(False)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    x[1] *= 10
    assert (model.first(x).flatten(1).amax(1) > 6).tolist() == [False, True, False]
    same(model, x, preset)


def test_a_relu6_that_cuts_something_off_beside_what_is_no_number():
    class Scaled(Net):
        def forward(self, x):
            return super().forward(30 * x / x.detach().abs().amax((1, 2, 3), keepdim=True))

    torch.manual_seed(0)
    model = Scaled(nn.ReLU6(inplace=True)).double().eval().requires_grad_(False)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    expected = LRP(PRESETS["epsilon"])(model, x[1:], 1)
    x[0] = 0.0
    torch.testing.assert_close(LRP(PRESETS["epsilon"])(model, x, 1)[1:], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize(("groups", "wide"), [(3, 6), (6, 6), (1, 40)], ids=["groups", "depthwise", "many inputs"])
def test_inputs_of_both_signs_in_any_shape_of_weights(groups, wide, preset):
    torch.manual_seed(1)
    model = Net(nn.SiLU(inplace=True), groups, wide).double().eval().requires_grad_(False)
    same(model, torch.randn(2, 2, 5, 4, dtype=torch.float64), preset)


def lowered(y):
    return functional.relu(y) - 0.3


def lowered_in_place(y):
    a = functional.relu(y)
    a -= 0.3
    return a


def lowered_in_place_behind_pooling(y):
    a = functional.max_pool2d(functional.relu(y), 1)
    a.sub_(0.3)
    return a


@pytest.mark.parametrize("preset", [PRESETS[name] for name in ("flat", "plus", "alpha-beta", "gamma", "last")])
@pytest.mark.parametrize("between", [lowered_in_place, lowered_in_place_behind_pooling])
def test_what_was_not_negative_may_become_so_in_place(between, preset):
    torch.manual_seed(0)
    model = Net(lowered).double().eval().requires_grad_(False)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    expected = LRP(preset)(model, x, 1)
    model.between = between
    torch.testing.assert_close(LRP(preset)(model, x, 1), expected, rtol=1e-9, atol=1e-12)


class HandedOn(Rule):
    """Gives back the very tensor that it is given."""

    def linear(self, step):
        return step.g


class Branches(nn.Module):
    """A sum whose branches share one gradient in memory; behind one of them lies an activation."""

    def __init__(self, late):
        super().__init__()
        self.first, self.second, self.other = (nn.Conv2d(2, 2, 1, bias=False) for _ in range(3))
        self.late = late

    def forward(self, x):
        a = self.other(x) if not self.late else None
        b = self.second(functional.relu(self.first(x)))
        a = self.other(x) if a is None else a
        return (a + b).sum((2, 3))


@pytest.mark.parametrize("late", [True, False])
def test_what_a_rule_hands_on_as_it_is_is_not_written_to(late):
    torch.manual_seed(0)
    model = Branches(late).double().eval().requires_grad_(False)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    composite = composites.RuleList([("second", HandedOn()), ("convolution", rules.Epsilon(0.01))])
    found = LRP(composite)(model, x, 1)
    g = torch.zeros_like(x)
    g[:, 1] = 1
    expected = 0
    for layer, r in ((model.other, model.other(x) * g), (model.first, functional.relu(model.first(x)) * g)):
        y = layer(x)
        s = r / (y + 0.01 * y.sign())
        expected = expected + x * functional.conv_transpose2d(s, layer.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
