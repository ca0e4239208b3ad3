"""Rules own what they do, to operations of every kind; nothing that a composite says is ignored."""

import copy
from dataclasses import dataclass

import pytest
import torch
from networks import module, vgg
from torch import nn
from torch.nn import functional

from lightning_xai.relevance import LRP, Deconvnet, GuidedBackprop, Saliency, chain, composites, rule_table, rules

EVERYWHERE = composites.RuleList([("*", rules.Gradient())])


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def derivative(model, x, target=1):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, target].sum(), leaf)[0]


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


# Rules of one's own.


@dataclass(frozen=True)
class OwnActivation(rules.Rule):
    """Hands on the share f(1) of what it gets."""

    applies = frozenset({"activation"})

    def run(self, call):
        share = float(call.applied(torch.ones(1, dtype=torch.float64)))
        return call.with_backward(lambda g, x, y: share * g * y / x)


@pytest.mark.parametrize("function", [torch.tanh, torch.tanh_, functional.gelu])
def test_own_activation_rule_is_used_in_and_out_of_place(function):
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    model, x = module(lambda x: second(function(first(x))), first=first, second=second), draw(2, 4)
    composite = composites.RuleList([("activation", OwnActivation()), ("linear", rules.Zero())])
    share = float(function(torch.ones(1, dtype=torch.float64)))
    hidden = first(x)
    expected = share * x * ((second.weight[1] * function(hidden.clone()) / hidden) @ first.weight)
    close(LRP(composite)(model, x, 1), expected.detach())
    assert any(row[2] == "OwnActivation()" for row in rule_table(model, x, composite).rows)


@dataclass(frozen=True)
class OwnSoftmax(rules.Rule):
    """All relevance of a probability goes to its own logit."""

    applies = frozenset({"softmax"})

    def run(self, call):
        return call.with_backward(lambda g, x, p: g * p / x)


def test_own_softmax_rule_is_used():
    x = draw(3, 4)
    own = LRP(composites.RuleList([("softmax", OwnSoftmax())]), score="value")
    expected = torch.zeros_like(x)
    expected[:, 2] = x.softmax(1)[:, 2]
    close(own(nn.Softmax(1), x, 2), expected)


@dataclass(frozen=True)
class ValuesOnly(rules.Rule):
    """Queries and keys get nothing: attention weights are constants."""

    applies = frozenset({"attention"})

    def run(self, call):
        named = call.named()
        return call.make(**{**named, "query": named["query"].detach(), "key": named["key"].detach()})


def test_own_attention_rule_is_used():
    x = draw(2, 3, 4)
    model = module(lambda x: functional.scaled_dot_product_attention(x, 0.5 * x, 2.0 * x).mean(1))
    own = LRP(composites.RuleList([("attention", ValuesOnly())]), score="value")
    weights = (x @ (0.5 * x).transpose(1, 2) / 4**0.5).softmax(-1)
    expected = torch.zeros_like(x)
    expected[:, :, 1] = weights.mean(1) * 2.0 * x[:, :, 1]
    close(own(model, x, 1), expected)


def test_own_linear_rule_without_kinds_serves_linear_operations_alone():
    @dataclass(frozen=True)
    class Twice(rules.Rule):
        def linear(self, step):
            return 2 * step.transpose(step.relevance() / step.y, step.weight)

    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double(), draw(2, 4)
    everything = composites.RuleList([("*", Twice())])
    zero = LRP(composites.RuleList([("*", rules.Zero())]))(model, x, 1)
    close(LRP(everything)(model, x, 1), 4 * zero)
    assert [row[2] for row in rule_table(model, x, everything).rows] == [
        row.format(Twice()) for row in ("{}", "Pass()", "{}")
    ]


@pytest.mark.parametrize("kind", ["activation", "norm"])
def test_own_rule_without_run_is_refused_by_name(kind):
    @dataclass(frozen=True)
    class Nothing(rules.Rule):
        applies = frozenset({"activation", "norm"})

        def linear(self, step):
            raise AssertionError

    model = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.LayerNorm(5), nn.Linear(5, 2)).double()
    base = [("linear", rules.Zero()), ("norm", rules.FixedScale())]
    with pytest.raises(ValueError, match=rf"Nothing\(\) was matched to .* of the kind '{kind}', but implements no run"):
        LRP(composites.RuleList([(kind, Nothing()), *base]))(model, draw(2, 4), 0)


@dataclass(frozen=True)
class Power(rules.Rule):
    """In proportion to the contributions of a power of the weights."""

    power: int = 3

    def linear(self, step):
        weight = step.cached("power", lambda weight: weight**self.power)
        return step.transpose(step.relevance() / step.forward(step.x, weight), weight)


def test_what_a_rule_makes_of_weights_is_kept_by_rule_and_fields():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2, bias=False).double(), draw(4, 3).abs() + 0.5
    for power in (3, 1, 2, 3):
        parts = x * model.weight[0].detach() ** power
        expected = parts / parts.sum(1, keepdim=True) * model(x)[:, :1].detach()
        close(LRP(composites.RuleList([("linear", Power(power))]))(model, x, 0), expected)


def test_weights_of_many_rules_do_not_fill_the_memory():
    model, x = nn.Linear(3, 2, bias=False).double(), draw(1, 3)
    kept = []
    for power in range(1, 80):
        rule = Power(power)

        def run(weight, kept=kept):
            kept.append(weight)
            return weight

        LRP(composites.RuleList([("linear", rule)]))(model, x, 0)
    from lightning_xai.relevance.weights import _MOST_CACHED, _cache

    assert len(_cache[model.weight]) <= _MOST_CACHED


# What cannot be served is refused.


class Mixed(nn.Module):
    """A sum, a softmax and an activation among linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(3, 3), nn.Linear(3, 2), nn.GELU()

    def forward(self, x):
        return self.b((self.act(self.a(x)) + x).softmax(1))


CANNOT = {
    "sum": rules.ZPlus(),
    "softmax": rules.Uniform(),
    "activation": rules.Uniform(),
    "gelu": rules.Flat(),
    "linear": rules.Pass(),
    "a linear": rules.Pass(),
}


@pytest.mark.parametrize(("pattern", "rule"), CANNOT.items(), ids=CANNOT)
def test_rule_that_cannot_serve_a_kind_is_refused_with_those_that_can(pattern, rule):
    model, x = Mixed().double(), draw(2, 3)
    told = rf"the pattern '{pattern}' gives {type(rule).__name__}.*Rules for '\w+': .*Gradient"
    with pytest.raises(ValueError, match=told):
        LRP(composites.RuleList([(pattern, rule), ("linear", rules.Zero())]))(model, x, 0)


@pytest.mark.parametrize(
    ("pattern", "rule"), [("act", rules.Zero()), ("first", rules.FixedScale()), ("a", rules.Pass())]
)
def test_entry_that_serves_nothing_it_covers_is_refused(pattern, rule):
    model, x = Mixed().double(), draw(2, 3)
    with pytest.raises(ValueError, match=rf"the pattern '{pattern}' gives .*, of which it serves none"):
        LRP(composites.RuleList([(pattern, rule), ("linear", rules.Zero())]))(model, x, 0)


def test_rule_under_a_module_or_everything_stands_for_what_it_serves():
    model, x = Mixed().double(), draw(2, 3)
    plain = LRP(composites.RuleList([("linear", rules.Zero())]))(model, x, 0)
    close(LRP(composites.RuleList([("a", rules.Zero()), ("b", rules.Zero())]))(model, x, 0), plain)
    close(LRP(composites.RuleList([("*", rules.Zero())]))(model, x, 0), plain)


# The derivative comes back.


class RMS(nn.Module):
    """RMS norm as language models write it."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(6) + 0.5), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Recurrent(nn.Module):
    """An LSTM behind a linear layer, without a ReLU."""

    def __init__(self):
        super().__init__()
        self.into, self.rnn, self.head = nn.Linear(6, 5), nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.rnn(self.into(x).unsqueeze(1).expand(-1, 3, -1))[0][:, -1])


class Deviations(nn.Module):
    """Statistics pooling: mean and deviation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 4, 3), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.conv(x.unsqueeze(1))
        return self.head(torch.cat([hidden.mean(2), hidden.std(2)], 1))


WITHOUT_RELU = {"RMS norm by hand": RMS, "LSTM": Recurrent, "statistics pooling": Deviations}


@pytest.mark.parametrize("make", WITHOUT_RELU.values(), ids=WITHOUT_RELU)
def test_gradient_everywhere_is_exactly_the_derivative(make):
    torch.manual_seed(0)
    model, x = make().double().eval(), draw(3, 6)
    true = derivative(model, x)
    close(LRP(EVERYWHERE)(model, x, 1), x * true)
    for method in (GuidedBackprop(), Deconvnet()):
        close(method(model, x, 1), true)


def test_statistic_is_a_constant_and_the_table_says_so():
    torch.manual_seed(0)
    model, x = RMS().double(), draw(3, 6)
    table = rule_table(model, x, composites.AttnLRP())
    assert ("", "rsqrt", "Constant()") in table.rows
    factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    close(LRP(EPSILON_FREE)(model, x, 1), (x * factor * model.scale * model.head.weight[1]).detach())


EPSILON_FREE = composites.RuleList([("*", rules.Zero())])


def test_network_that_reads_constants_alone_says_how_to_go_on():
    model = module(lambda x: x.std(1, keepdim=True) * torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\('statistic', rules\.Gradient\(\)\): std in the model itself"):
        LRP(composites.AttnLRP())(model, draw(3, 6), 1)
    named = composites.RuleList([("statistic", rules.Gradient()), ("*", rules.Zero())])
    close(LRP(named, score="value")(model, draw(3, 6), 1), draw(3, 6) * derivative(model, draw(3, 6)))


# Spellings.


SPELLINGS = {
    "expit": (torch.special.expit, torch.sigmoid),
    "softmax": (lambda t: torch.special.softmax(t, 1), lambda t: t.softmax(1)),
    "vector norm": (
        lambda t: t / torch.linalg.vector_norm(t, dim=1, keepdim=True),
        lambda t: t / t.norm(dim=1, keepdim=True),
    ),
    "aten": (torch.ops.aten.relu.default, torch.relu),
    "aten in place": (lambda t: torch.ops.aten.relu_.default(t.clone()), torch.relu),
    "aten linear": (
        lambda t: torch.ops.aten.linear.default(t, torch.eye(9, dtype=torch.float64)),
        lambda t: functional.linear(t, torch.eye(9, dtype=torch.float64)),
    ),
}


@pytest.mark.parametrize(("special", "usual"), SPELLINGS.values(), ids=SPELLINGS)
def test_namespaces_and_overloads_are_known_by_their_plain_names(special, usual):
    torch.manual_seed(0)
    first, head, x = nn.Linear(9, 9).double(), nn.Linear(9, 3).double(), draw(2, 9)
    maps = [LRP()(module(lambda x, f=f: head(f(first(x))), a=first, b=head), x, 1) for f in (special, usual)]
    assert maps[1].abs().max() > 0
    close(*maps)


def test_remedy_that_a_refusal_names_is_taken_when_followed():
    torch.manual_seed(0)
    head = nn.Linear(9, 3).double()

    def exponential(x):
        return torch.matrix_exp(x.view(-1, 3, 3)).flatten(1)

    model, x = module(lambda x: head(exponential(x)), head=head), draw(2, 9)
    with pytest.raises(ValueError, match=r"no rule for matrix_exp .*RuleList\(\[\('matrix_exp', rules.Gradient\(\)\)"):
        LRP(EPSILON_FREE)(model, x, 1)
    followed = composites.RuleList([("matrix_exp", rules.Gradient()), ("*", rules.Zero())])
    expected = x * derivative(lambda x: exponential(x) @ head.weight.T, x)
    close(LRP(followed)(model, x, 1), expected.detach(), 1e-10)


def test_exported_network_is_that_before_the_export():
    model, x = vgg().eval(), torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (x,)).module()
    for method in (LRP(), GuidedBackprop(), Saliency()):
        expected = method(model, x, 1)
        for network in (exported, module(lambda x: exported(x)), nn.Sequential(exported)):
            found = method(network, x, 1)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    with pytest.raises(NotImplementedError, match="eval"):  # as torch left it
        exported.eval()


def test_forward_that_differentiates_is_refused_by_name():
    inner = nn.Linear(4, 4).double()

    def forward(x):
        hidden = inner(x)
        (slope,) = torch.autograd.grad(hidden.pow(2).sum(), hidden, create_graph=True)
        return hidden * slope

    for method in (LRP(), GuidedBackprop()):
        with pytest.raises(ValueError, match=r"the model.* differentiates in its forward .*gradient method"):
            method(module(forward, inner=inner), draw(2, 4), 1)


@pytest.mark.parametrize("of", [lambda weight: weight, lambda weight: 2.0 * weight], ids=["itself", "made of it"])
def test_parameter_that_the_model_does_not_own_is_a_weight(of):
    weight = draw(3, 4).requires_grad_()
    x = draw(2, 4)
    hidden = LRP()(module(lambda x: functional.linear(x, of(weight))), x, 1)
    owned = LRP()(module(lambda x: functional.linear(x, of(weight.detach()))), x, 1)
    assert owned.abs().max() > 0
    close(hidden, owned)


KEYWORDS = {
    "product": (lambda x, y: torch.mul(input=x, other=y), lambda x, y: x * y),
    "product, second by name": (lambda x, y: torch.mul(x, other=y), lambda x, y: x * y),
    "division": (lambda x, y: torch.div(input=x, other=y), lambda x, y: x / y),
    "matrix product": (
        lambda x, y: torch.matmul(input=x.unsqueeze(2), other=y.unsqueeze(1)).flatten(1),
        lambda x, y: (x.unsqueeze(2) @ y.unsqueeze(1)).flatten(1),
    ),
    "linear": (lambda x, y: functional.linear(input=x, weight=EYE) + y, lambda x, y: functional.linear(x, EYE) + y),
    "softplus": (lambda x, y: functional.softplus(input=x) + y, lambda x, y: functional.softplus(x) + y),
    "concatenation": (lambda x, y: torch.cat(tensors=[x, y], dim=1), lambda x, y: torch.cat([x, y], 1)),
}
EYE = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("composite", [composites.AttnLRP(), composites.EpsilonPlusFlat()], ids=["attention", "flat"])
@pytest.mark.parametrize(("by_name", "by_position"), KEYWORDS.values(), ids=KEYWORDS)
def test_arguments_may_be_given_by_name(by_name, by_position, composite):
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def explained(function):
        def forward(x):
            x = torch.reshape(input=x, shape=(len(x), 4)) if function is by_name else x.reshape(len(x), 4)
            return function(first(x), second(x).exp())

        model = module(forward, first=first, second=second)
        return LRP(composite, score="value")(model, draw(2, 2, 2), 1)

    found, expected = explained(by_name), explained(by_position)
    assert expected.abs().max() > 0
    close(found, expected)


def of(function, **children):
    """A network that calls a function between two linear layers, always with the same weights."""
    torch.manual_seed(0)
    first, head = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
    return module(lambda x: head(function(first(x))), first=first, head=head, **children)


def running(norm, **settings):
    torch.manual_seed(3)
    norm = norm(6, **settings).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = torch.rand(6, dtype=torch.float64) + 0.5
    return norm


def rms(h):
    return h.pow(2).mean(1, keepdim=True) + 1e-3


def instance_norm(h, function):
    weight, bias = torch.arange(1.0, 7, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    h = torch.stack([h, h * h, 1 / (1 + h * h)], 2)
    if function is torch.instance_norm:
        h = function(h, weight, bias, None, None, True, 0.1, 1e-5, False)
    else:
        h = function(h, weight=weight, bias=bias)
    return h.sum(2)


MATRIX = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
SAME = {
    "negative power": (lambda h: h * rms(h) ** -0.5, lambda h: h * torch.rsqrt(rms(h))),
    "reciprocal by power": (lambda h: h * rms(h).pow(-1), lambda h: h / rms(h)),
    "minimum of two signs": (
        lambda h: torch.minimum(h.relu(), h.flip(1)),
        lambda h: torch.minimum(h.relu() + 0.0, h.flip(1)),
    ),
    "norm in torch's own order": (
        lambda h: instance_norm(h, torch.instance_norm),
        lambda h: instance_norm(h, functional.instance_norm),
    ),
    "self by name": (lambda h: torch.ops.aten.mul.Tensor(self=h, other=h.sigmoid()), lambda h: h * h.sigmoid()),
    "named second factor": (lambda h: h.mul(other=h.sigmoid()), lambda h: h * h.sigmoid()),
    "maxima with their places": (
        lambda h: functional.max_pool1d(h, 2, return_indices=True)[0].repeat(1, 2),
        lambda h: functional.max_pool1d(h, 2).repeat(1, 2),
    ),
}


@pytest.mark.parametrize(
    "composite",
    [composites.AttnLRP(0.1), composites.RuleList([("pooling", rules.Norm(1.0)), ("*", rules.ZPlus())])],
    ids=["attention", "z+"],
)
@pytest.mark.parametrize(("spelled", "usual"), SAME.values(), ids=SAME)
def test_spellings_of_one_function_have_one_map(spelled, usual, composite):
    composite = composites.RuleList([*composite.entries(), ("norm", rules.FixedScale())])
    lrp = LRP(composite, score=lambda output, target: output.square().sum(1))
    found, expected = (lrp(of(function), draw(3, 4), 1) for function in (spelled, usual))
    assert expected.abs().max() > 0
    close(found, expected, 1e-10)


def test_instance_norm_by_kept_statistics_is_a_batch_norm():
    batch, instance = running(nn.BatchNorm1d), running(nn.InstanceNorm1d, affine=True, track_running_stats=True)
    conv, x = nn.Conv1d(2, 6, 3).double(), draw(3, 2, 7)
    maps = [LRP()(module(lambda x, n=n: n(conv(x)).sum(2), conv=conv, norm=n), x, 1) for n in (batch, instance)]
    close(*maps)


def test_batch_norm_over_the_middle_axis_is_no_part_of_a_matrix_product():
    norm, x = running(nn.BatchNorm1d), draw(3, 6, 4)
    rule = composites.RuleList([("affine_norm", rules.Zero()), ("*", rules.ZPlus(0.1))])
    products = (lambda x: x @ MATRIX, lambda x: functional.linear(x, MATRIX.t()))
    close(*(LRP(rule)(module(lambda x, f=f: norm(f(x)).sum(2), norm=norm), x, 1) for f in products))


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transform_of_torch_func_is_refused_by_name(transform):
    def forward(x):
        if transform == "vmap":
            return x + torch.func.vmap(torch.sin)(x)
        return x * torch.func.grad(lambda v: v.square().sum())(x)

    with pytest.raises(ValueError, match=r"the model.* calls a transform of torch\.func"):
        LRP()(of(forward), draw(2, 4), 1)


class Mixed2(rules.Rule):
    """Half of what each of two rules hands on."""

    def linear(self, step):
        return (rules.Epsilon(0.1).linear(step) + rules.ZPlus().linear(step)) / 2


class Plain(rules.Rule):
    """LRP-0 out of g alone."""

    def linear(self, step):
        return step.transpose(step.g, step.weight)


@pytest.mark.parametrize("rule", [Mixed2(), Plain()])
def test_own_rule_finds_the_same_with_and_without_the_chain(rule, monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3)]
    model, x = nn.Sequential(*layers).double(), draw(2, 2, 8, 8)
    own = LRP(composites.RuleList([("*", rule)]))
    on = own(model, x, 1)
    monkeypatch.setattr(chain, "ENABLED", False)
    close(on, own(model, x, 1), 1e-10)
    if isinstance(rule, Plain):
        close(on, LRP(composites.RuleList([("*", rules.Zero())]))(model, x, 1), 1e-10)


def test_weights_that_change_places_are_made_anew():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).double(), draw(2, 5)
    LRP(composites.RuleList([("*", rules.ZPlus())]))(model, x, 1)
    for order in ([2, 1, 0], [1, 0, 2], [0, 2, 1]):
        model.weight.data.copy_(model.weight.data[order].clone())
        found = LRP(composites.RuleList([("*", rules.ZPlus())]))(model, x, 1)
        close(found, LRP(composites.RuleList([("*", rules.ZPlus())]))(copy.deepcopy(model), x, 1))


def test_rules_that_are_no_dataclass_of_their_own_keep_weights_apart():
    class Scaled(rules.Rule):
        def __init__(self, factor):
            object.__setattr__(self, "factor", factor)

        def linear(self, step):
            return step.transpose(step.g, step.cached("scaled", lambda weight: self.factor * weight))

    model, x = nn.Linear(3, 2).double(), draw(2, 3)
    once, thrice = (LRP(composites.RuleList([("*", Scaled(factor))]))(model, x, 1) for factor in (1.0, 3.0))
    close(thrice, 3 * once)


def test_own_run_at_the_last_place_is_refused_by_name():
    @dataclass(frozen=True)
    class Running(rules.Rule):
        def run(self, call):
            return call.make()

    composite = composites.RuleList([("last", Running()), ("*", rules.Zero())])
    with pytest.raises(ValueError, match=r"Running\(\) was given to linear in 'head', .* implement linear\(step\), or"):
        LRP(composite)(of(torch.relu), draw(3, 4), 1)
    named = composites.RuleList([("head", Running()), ("*", rules.Zero())])
    close(LRP(named)(of(torch.relu), draw(3, 4), 1), LRP(EPSILON_FREE)(of(torch.relu), draw(3, 4), 1))


def test_backward_of_ones_own_is_refused_for_several_values():
    @dataclass(frozen=True)
    class First(rules.Rule):
        applies = frozenset({"product"})

        def run(self, call):
            return call.with_backward(lambda g, x, y: g)

    with pytest.raises(ValueError, match=r"with_backward is for calls of one tensor, but mul .* reads 2"):
        LRP(composites.RuleList([("product", First()), ("*", rules.Zero())]))(of(lambda h: h * h.sin()), draw(2, 4), 1)


def test_attention_that_is_made_of_its_parts_refuses_a_rule_for_the_whole():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
    composite = composites.RuleList([("attention", ValuesOnly()), ("*", rules.Epsilon())])
    for weights in (True, False):
        model = module(lambda x, w=weights: attention(x, x, x, need_weights=w)[0].mean(1), attention=attention)
        if weights:
            with pytest.raises(ValueError, match=r"ValuesOnly\(\) was given to attention, but .*need_weights=False"):
                LRP(composite)(model, draw(2, 3, 4), 1)
        else:
            assert LRP(composite)(model, draw(2, 3, 4), 1).abs().max() > 0


def test_dropout_that_is_active_hides_the_input_from_rules_of_the_first_layer():
    model = of(lambda h: h)
    dropped = module(lambda x: model(functional.dropout(x, 0.5, training=True)), model=model)
    with pytest.raises(ValueError, match=r"can stand only where the model's input arrives"):
        LRP(composites.RuleList([("first", rules.Flat()), ("*", rules.Zero())]))(dropped, draw(2, 4), 1)


def test_last_rule_reaches_an_output_that_a_batch_norm_shares():
    norm = running(nn.BatchNorm1d)
    model = of(lambda h: norm(h) + h, norm=norm)
    named = [("linear", rules.ZPlus()), ("affine_norm", rules.Zero())]
    found = LRP(composites.RuleList([("last", rules.Epsilon(0.1)), *named]))(model, draw(2, 4), 1)
    by_name = LRP(composites.RuleList([("head", rules.Epsilon(0.1)), *named]))(model, draw(2, 4), 1)
    close(found, by_name)


@pytest.mark.parametrize("function", [lambda h: h.mul_(h.sin()), lambda h: functional.relu(h) * h.sigmoid()])
def test_ledger_balances_over_products(function):
    for composite in (composites.AttnLRP(0.1), composites.RuleList([("relu", rules.Guided()), ("*", rules.Zero())])):
        found = LRP(composite).with_ledger(of(function), draw(3, 4), 1)[1]
        assert abs(found.balance) < 1e-10 * found.start.abs().sum()
