"""Every rule on single layers against its matrix form, and what the rules promise."""

import copy
import pickle

import pytest
import torch
from networks import bias_free, settled, vgg
from torch import nn
from torch.nn import functional

from lightning_xai.relevance import LRP, GradientXInput, composites, rules
from lightning_xai.relevance.maps import Dense
from lightning_xai.relevance.step import Step, signed
from lightning_xai.relevance.weights import Weights


def module(function, *parameters):
    model = nn.Module()
    for index, parameter in enumerate(parameters):
        model.register_parameter(f"p{index}", nn.Parameter(parameter))
    model.forward = function
    return model


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()) + 1e-12)


def matmul():
    w = draw(5, 4)
    return module(lambda x: x @ w), w


def from_left():
    w = draw(3, 6)
    return module(lambda x: torch.matmul(w, x)), w


def einsum():
    w = draw(2, 5, 4)
    return module(lambda x: torch.einsum("ncl,cld->nd", x, w)), w


def addmm():
    w, b = draw(5, 4), draw(4)
    return module(lambda x: torch.addmm(b, x, w)), w


def of_module(layer):
    layer = layer.double()
    return layer, layer.weight


LAYERS = {
    "linear": (lambda: of_module(nn.Linear(5, 4)), (5,)),
    "linear over positions": (lambda: of_module(nn.Linear(5, 4)), (3, 5)),
    "conv1d": (lambda: of_module(nn.Conv1d(2, 3, 3, stride=2, padding=1)), (2, 7)),
    "conv2d": (lambda: of_module(nn.Conv2d(2, 4, (3, 2), padding=(0, 1), dilation=(1, 2))), (2, 5, 4)),
    "conv2d without bias": (lambda: of_module(nn.Conv2d(3, 2, 3, bias=False)), (3, 4, 5)),
    "grouped": (lambda: of_module(nn.Conv2d(4, 6, 2, groups=2, padding=1)), (4, 3, 4)),
    "depthwise": (lambda: of_module(nn.Conv2d(3, 6, 3, groups=3, stride=2, padding=1)), (3, 5, 4)),
    "same": (lambda: of_module(nn.Conv2d(2, 3, 3, padding="same", dilation=2)), (2, 5, 4)),
    "conv3d": (lambda: of_module(nn.Conv3d(2, 2, 2)), (2, 3, 3, 2)),
    "transposed": (
        lambda: of_module(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)),
        (4, 3, 2),
    ),
    "transposed 1-d": (lambda: of_module(nn.ConvTranspose1d(2, 3, 3, dilation=2)), (2, 4)),
    "matmul": (matmul, (5,)),
    "matmul from the left": (from_left, (6, 2)),
    "einsum": (einsum, (2, 5)),
    "addmm": (addmm, (5,)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def matrix(layer, shape):
    """The affine map of a layer: W [inputs, outputs] and b [outputs]."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        return layer(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1) - bias, bias


def reads(make_layer, layer, weight, shape):
    """Which inputs each output reads: the matrix with all weights 1."""
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(1.0)
        found, _ = matrix(layer, shape)
        weight.copy_(kept)
    return found


def stabilised(z, epsilon):
    return z + epsilon * torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))


# Each formula: (x [I], W [I, O], b [O], R [O], reads [I, O]) -> R of the inputs [I].


def by_epsilon(epsilon):
    return lambda x, w, b, r, n: ((x[:, None] * w) / stabilised(x @ w + b, epsilon) * r).sum(1)


def by_alpha_beta(alpha, beta, epsilon, bias=True):
    def formula(x, w, b, r, n):
        z = x[:, None] * w
        up, down = z.clamp(min=0), z.clamp(max=0)
        above = up.sum(0) + (b.clamp(min=0) if bias else 0) + epsilon
        below = down.sum(0) + (b.clamp(max=0) if bias else 0) - epsilon
        return ((alpha * up / above - beta * down / below) * r).sum(1)

    return formula


def by_gamma(gamma, epsilon):
    def formula(x, w, b, r, n):
        z, y = x[:, None] * w, x @ w + b
        up = z + gamma * z.clamp(min=0), b + gamma * b.clamp(min=0)
        down = z + gamma * z.clamp(max=0), b + gamma * b.clamp(max=0)
        above = (up[0] / (up[0].sum(0) + up[1] + epsilon) * r)[:, y > 0].sum(1)
        return above + (down[0] / (down[0].sum(0) + down[1] - epsilon) * r)[:, y < 0].sum(1)

    return formula


def by_flat(x, w, b, r, n):
    return (n / n.sum(0) * r).sum(1)


def by_square(epsilon):
    return lambda x, w, b, r, n: (w**2 / ((w**2).sum(0) + b**2 + epsilon) * r).sum(1)


def by_box(low, high, epsilon):
    def formula(x, w, b, r, n):
        z = x[:, None] * w - low * w.clamp(min=0) - high * w.clamp(max=0)
        return (z / stabilised(z.sum(0), epsilon) * r).sum(1)

    return formula


RULES = {
    "zero": (rules.Zero(), by_epsilon(0.0)),
    "gradient": (rules.Gradient(), by_epsilon(0.0)),
    "epsilon": (rules.Epsilon(0.2), by_epsilon(0.2)),
    "epsilon 0": (rules.Epsilon(0.0), by_epsilon(0.0)),
    "z+": (rules.ZPlus(0.1), by_alpha_beta(1, 0, 0.1)),
    "z+ without bias": (rules.ZPlus(0.1, bias=False), by_alpha_beta(1, 0, 0.1, bias=False)),
    "alpha 2 beta 1": (rules.AlphaBeta(2, 1, 0.1), by_alpha_beta(2, 1, 0.1)),
    "alpha 1.5 beta 0.5": (rules.AlphaBeta(1.5, 0.5), by_alpha_beta(1.5, 0.5, 1e-6)),
    "gamma": (rules.Gamma(0.25, 0.1), by_gamma(0.25, 0.1)),
    "gamma 0": (rules.Gamma(0.0, 0.1), by_epsilon(0.1)),
    "flat": (rules.Flat(), by_flat),
    "w2": (rules.WSquare(0.1), by_square(0.1)),
    "z-box": (rules.ZBox(-3.0, 4.0, 0.1), by_box(-3.0, 4.0, 0.1)),
}
every_rule = pytest.mark.parametrize(("rule", "formula"), RULES.values(), ids=RULES)


def everywhere(rule):
    return composites.RuleList([("convolution", rule), ("linear", rule)])


def seeded_score(output, target):
    """A sum of the outputs with weights of both signs: its gradient is what the relevance starts from."""
    flat = output.flatten(1)
    return flat @ torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)


@every_layer
@every_rule
@pytest.mark.parametrize("sign", ["positive", "mixed"])
def test_the_matrix_form(make, shape, rule, formula, sign):
    layer, weight = make()
    x = draw(3, *shape)
    x = x.abs() if sign == "positive" else x
    w, b = matrix(layer, shape)
    n = reads(make, layer, weight, shape)
    found = LRP(everywhere(rule), score=seeded_score)(layer, x, 0)
    y = layer(x).detach().flatten(1)
    r = y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)
    expected = torch.stack([formula(*sample, n) for sample in zip(x.flatten(1), [w] * 3, [b] * 3, r, strict=True)])
    close(found, expected.view_as(x))


@every_layer
@every_rule
def test_the_ledger_of_one_layer_balances(make, shape, rule, formula):
    layer, _ = make()
    x = draw(3, *shape)
    found, ledger = LRP(everywhere(rule), score=seeded_score).with_ledger(layer, x, 0)
    close(found, LRP(everywhere(rule), score=seeded_score)(layer, x, 0))
    assert ledger.balance.abs() <= 1e-9 * (ledger.start.abs().sum() + ledger.biases.abs() + found.abs().sum())


def test_the_ledger_tells_what_the_stabiliser_of_a_mean_absorbs():
    model, x = nn.Sequential(nn.AvgPool1d(3), nn.Flatten()), draw(3, 2, 6)
    rule = composites.RuleList([("pooling", rules.Norm(0.5))])
    found, ledger = LRP(rule, score=seeded_score).with_ledger(model, x, 0)
    y = model(x)
    r = y * torch.linspace(-1, 2, 4, dtype=y.dtype)
    close(ledger.epsilon, (r * 0.5 / (y.abs() + 0.5)).sum())
    close(ledger.epsilon, r.sum() - found.sum())


NORMED = {
    "conv1d": (lambda: (nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)), (2, 6)),
    "conv2d without bias": (lambda: (nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3)), (2, 4, 3)),
    "grouped": (lambda: (nn.Conv2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, affine=False)), (4, 3, 3)),
    "conv3d": (lambda: (nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)), (1, 3, 2, 3)),
    "linear": (lambda: (nn.Linear(5, 3), nn.BatchNorm1d(3)), (5,)),
    "transposed": (lambda: (nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)), (4, 3, 2)),
}


@pytest.mark.parametrize(("make", "shape"), NORMED.values(), ids=NORMED)
@every_rule
def test_a_batch_norm_is_part_of_the_layer_before_it(make, shape, rule, formula):
    layer, norm = make()
    if norm.affine:
        norm.weight.data = torch.randn_like(norm.weight)  # factors of both signs
        norm.bias.data = torch.randn_like(norm.bias)
    norm.running_mean, norm.running_var = torch.randn_like(norm.running_mean), torch.rand_like(norm.running_var) + 0.1
    both = nn.Sequential(layer, norm).double().eval()
    x = draw(3, *shape)
    w, b = matrix(both, shape)
    n = reads(make, layer, layer.weight, shape)
    found = LRP(everywhere(rule), score=seeded_score)(both, x, 0)
    y = both(x).detach().flatten(1)
    r = y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)
    expected = torch.stack([formula(*sample, n) for sample in zip(x.flatten(1), [w] * 3, [b] * 3, r, strict=True)])
    close(found, expected.view_as(x))


def test_same_padding_that_is_not_the_same_on_both_sides():
    conv = nn.Conv2d(2, 3, (4, 3), padding="same").double()
    padded = nn.Sequential(nn.ZeroPad2d((1, 1, 1, 2)), nn.Conv2d(2, 3, (4, 3))).double()
    padded[1].load_state_dict(conv.state_dict())
    x = draw(2, 2, 5, 6)
    for rule in (rules.ZPlus(), rules.Flat()):
        ask = LRP(everywhere(rule), score=seeded_score)
        close(ask(conv, x, 0), ask(padded, x, 0))


def test_lrp_0_is_gradient_times_input_on_nets_without_biases():
    model, x = bias_free(), draw(3, 2, 8, 8)
    found = LRP(everywhere(rules.Zero()))(model, x, 1)
    close(found, GradientXInput()(model, x, 1))
    close(found.flatten(1).sum(1), model(x)[:, 1].detach())


def test_conservation_of_the_rules_that_promise_it():
    model, x = bias_free(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    total = model(x)[:, 1].detach()
    exact = [rules.Zero(), rules.ZPlus(0.0), rules.Gamma(0.25, 0.0), rules.AlphaBeta(2, 1, 0.0)]
    for first in (rules.Flat(), rules.WSquare(0.0), rules.ZBox(-1.0, 1.0, 0.0)):
        mine = composites.RuleList([("first", first), ("convolution", rules.Gamma(0.5, 0.0)), ("*", rules.Zero())])
        close(LRP(mine)(model, x, 1).flatten(1).sum(1), total)
    for rule in exact[:3]:
        close(LRP(everywhere(rule))(model, x, 1).flatten(1).sum(1), total)


def test_one_neuron_under_epsilon():
    model = nn.Linear(3, 1, bias=False).double()
    x = draw(4, 3)
    z = model(x).detach().flatten()
    found = LRP(everywhere(rules.Epsilon(0.3)))(model, x, 0)
    close(found.sum(1), z * z.abs() / (z.abs() + 0.3))


def test_alpha_2_beta_1_doubles_over_a_positive_layer():
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data.abs_()
    x = torch.rand(4, 3, dtype=torch.float64)
    found = LRP(everywhere(rules.AlphaBeta(2, 1, 0.0)))(model, x, 1)
    close(found.sum(1), 2 * model(x)[:, 1].detach())


def test_z_plus_is_alpha_1_beta_0():
    model, x = settled(vgg()), draw(2, 3, 16, 16)
    first, second = (LRP(everywhere(rule))(model, x, 1) for rule in (rules.ZPlus(), rules.AlphaBeta(1.0, 0.0)))
    close(first, second)


@pytest.mark.parametrize("rule", [rules.ZPlus(0.0), rules.AlphaBeta(2, 1, 0.0), rules.Gamma(0.5, 0.0), rules.Zero()])
def test_zero_denominators_lose_relevance_and_make_no_nan(rule):
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, bias=False)).double()
    model[0].bias.data.zero_()
    found, ledger = LRP(everywhere(rule)).with_ledger(model, torch.zeros(2, 1, 3, 3, dtype=torch.float64), 0)
    assert not found.any()
    assert ledger.balance == 0


def test_weights_are_made_once_and_follow_the_model():
    cached = []

    class Counting(rules.ZPlus):
        def linear(self, step):
            class Weights(type(step.weights)):
                def cached(self, name, make):
                    return super().cached(name, lambda weight: cached.append(name) or make(weight))

            fields = {key: getattr(step.weights, key) for key in ("weight", "bias", "scale", "shift", "key")}
            step.weights = Weights(**fields)
            return super().linear(step)

    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    model = settled(model)
    x = torch.rand(2, 2, 3, 3, dtype=torch.float64)
    ask = LRP(composites.RuleList([("convolution", Counting()), ("linear", rules.Epsilon())]))

    def asked():
        cached.clear()
        found = ask(model, x, 1)
        close(found, LRP(ask.composite)(copy.deepcopy(model), x, 1))
        return found

    first = asked()
    assert cached
    cached.clear()
    assert torch.equal(ask(model, x, 1), first)
    assert cached == []
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    second = asked()
    model[0].weight.data.mul_(2.0)  # leaves no version behind
    third = asked()
    model[1].running_var.mul_(3.0)
    fourth = asked()
    found = [first, second, third, fourth]
    assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])


def test_rules_say_what_is_wrong_with_their_numbers():
    for make in (rules.Epsilon, rules.ZPlus, rules.WSquare, rules.Norm, lambda e: rules.Gamma(0.1, e)):
        for number in (-1.0, float("inf")):
            with pytest.raises(ValueError, match="epsilon must be a number >= 0"):
                make(number)
        with pytest.raises(ValueError, match=r"epsilon of .* must be a number, got nan"):
            make(float("nan"))
        for number in ("1", True):
            with pytest.raises(TypeError, match=r"epsilon of .* must be a number, got"):
                make(number)
    with pytest.raises(ValueError, match="alpha - beta must be 1"):
        rules.AlphaBeta(2.0, 0.5)
    with pytest.raises(ValueError, match="beta must be a number >= 0"):
        rules.AlphaBeta(0.5, -0.5)
    with pytest.raises(ValueError, match="epsilon must be a number >= 0"):
        rules.AlphaBeta(2.0, 1.0, -1.0)
    with pytest.raises(TypeError, match="bias of ZPlus must be True or False, got 'no'"):
        rules.ZPlus(bias="no")
    with pytest.raises(ValueError, match="gamma must be a number"):
        rules.Gamma(-0.1)
    with pytest.raises(ValueError, match="low must not exceed high"):
        rules.ZBox(1.0, 0.0)
    with pytest.raises(ValueError, match="one per channel or of the shape"):
        LRP(everywhere(rules.ZBox([0.0, 0.0, 0.0], 1.0)))(nn.Conv2d(2, 1, 2), torch.rand(1, 2, 3, 3), 0)


EVERY = [rule for rule, _ in RULES.values()] + [
    rules.Norm(),
    rules.Pass(),
    rules.FixedScale(),
    rules.Uniform(),
    rules.SignalTakeAll(),
    rules.Deconv(),
    rules.Guided(),
    rules.ZBox([0.0, 1.0], [2.0, 3.0]),
]


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_rules_pickle_compare_and_print(rule):
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert hash(again) == hash(rule)
    assert repr(rule).startswith(type(rule).__name__)


def test_boxes_of_tensors_compare_by_identity():
    low = torch.zeros(2)
    assert rules.ZBox(low, 1.0) == rules.ZBox(low, 1.0) != rules.ZBox(torch.zeros(2), 1.0)


ACTIVATIONS = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky": lambda x: functional.leaky_relu(x, 0.2),
    "elu": functional.elu,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": functional.hardsigmoid,
    "softplus": functional.softplus,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "square": lambda x: x**2,
    "exp": torch.exp,
    "abs": torch.abs,
}


@pytest.mark.parametrize("function", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("in_place", [False, True])
def test_activations_pass_relevance_but_for_their_value_at_0(function, in_place):
    x = torch.cat([draw(2, 6) * 3, torch.zeros(1, 6, dtype=torch.float64)])

    def forward(x):
        z = 1.0 * x
        if not in_place:
            return function(z)
        z.copy_(function(z))
        return z

    found, ledger = LRP(everywhere(rules.Zero()), score=seeded_score).with_ledger(module(forward), x, 0)
    at_zero = function(torch.zeros((), dtype=torch.float64))
    seed = torch.linspace(-1, 2, 6, dtype=torch.float64)
    close(found, torch.where(x == 0, 0.0, (function(x) - at_zero) * seed))
    close(ledger.biases, at_zero * seed.sum() * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stabiliser_of_zero_is_positive_whatever_the_zero(dtype):
    z = torch.tensor([-0.0, 0.0, -2.0, 3.0], dtype=dtype)
    found = signed(0.5, z)
    assert found.tolist() == [0.5, 0.5, -0.5, 0.5]
    assert found.dtype == dtype
    assert z[0].signbit()  # what was asked about is as it was


def test_a_rule_of_ones_own_meets_the_relevance_behind_an_activation():
    class Half(rules.Rule):
        applies = frozenset({"linear"})

        def linear(self, step):
            return step.transpose(step.relevance() / step.y, step.weights.plain()) / 2

    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, 5.0]], dtype=torch.float64)
    lrp, x = LRP(everywhere(Half())), torch.tensor([[2.0]], dtype=torch.float64)
    for found in (lrp(model, x, 0), lrp.with_ledger(model, x, 0)[0]):
        close(found, torch.tensor([[0.5]], dtype=torch.float64))


@pytest.mark.parametrize(("target", "sign"), [(0, 1.0), (1, -1.0)])
def test_gamma_where_the_denominator_of_the_other_sign_vanishes(target, sign):
    """The outputs 1 and -1 are the opposites of epsilon; 1.5 of one over 1.5 + 1 is its share."""
    layer = nn.Linear(1, 2, bias=False).double()
    layer.weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = LRP(everywhere(rules.Gamma(0.5, 1.0)))(layer, torch.ones(1, 1, dtype=torch.float64), target)
    close(found, torch.tensor([[sign * 1.5 / 2.5]], dtype=torch.float64))


@pytest.mark.parametrize("rule", [rules.Gamma(), rules.AlphaBeta(), rules.ZPlus(), rules.Epsilon()], ids=str)
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU6(inplace=True)], ids=["none", "relu6"])
def test_a_layer_that_no_sample_reaches(rule, activation):
    """As an expert to whom a router sends nothing."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (nn.Sequential(nn.Linear(4, 3), activation) for _ in range(2))

        def forward(self, x):
            chosen = x[:, 0] > 10
            return torch.cat([self.one(x[chosen]), self.other(x[~chosen])])

    torch.manual_seed(0)
    model, x = Routed().double(), draw(3, 4)
    close(LRP(everywhere(rule))(model, x, 0), LRP(everywhere(rule))(model.other, x, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "make", [rules.Gamma, rules.Epsilon, rules.ZPlus, rules.AlphaBeta, rules.WSquare], ids=lambda make: make.__name__
)
def test_an_epsilon_too_small_for_the_type_is_0(make, dtype):
    """Some outputs are 0, of inputs or weights that are."""
    torch.manual_seed(0)
    inner = [nn.Linear(6, 8), nn.Linear(8, 3)] if make is not rules.WSquare else [nn.Linear(6, 3)]
    model = nn.Sequential(*inner).to(dtype)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, 0.0
    x = draw(3, 6).to(dtype)
    x[0] = 0.0
    maps = [LRP(everywhere(make(epsilon=epsilon)))(model, x, 0) for epsilon in (1e-400, 5e-324, 1e-48, 0.0)]
    assert maps[-1].isfinite().all()
    assert torch.equal(maps[0], maps[-1])
    if dtype != torch.float64:
        assert all(torch.equal(found, maps[-1]) for found in maps)


@pytest.mark.parametrize("make", [rules.Norm, rules.Epsilon], ids=lambda make: make.__name__)
def test_an_epsilon_of_pooling_too_small_for_the_type_is_0(make):
    model, x = nn.Sequential(nn.AvgPool1d(2), nn.Flatten()), torch.tensor([[[3.0, -3.0, 1.0, 2.0]]])
    mixed = nn.Sequential(model, nn.Linear(2, 1))
    maps = [
        LRP(composites.RuleList([("pooling", make(epsilon)), ("linear", rules.Zero())]))(mixed, x, 0)
        for epsilon in (1e-60, 0.0)
    ]
    assert maps[1].isfinite().all()
    assert torch.equal(*maps)


def test_the_sign_of_zero_is_one_for_minus_zero_too():
    """Where rounding leaves something of an activation's value at 0, it must not change sign."""
    one = torch.ones(1, 1)
    given = Step(Dense(), Weights(one, None), one, -0.0 * one, one, rules.Epsilon(1e-3), activation_output=1e-3 * one)
    torch.testing.assert_close(given.find(), one)
