"""Rules own what they do, to operations of every kind; nothing that a composite says is ignored."""

from dataclasses import dataclass

import pytest
import torch
from networks import module, vgg
from torch import nn
from torch.nn import functional

from lightning_xai.relevance import LRP, Deconvnet, GuidedBackprop, composites, rule_table, rules

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
    model, x = module(lambda x: head(torch.fft.rfft(x, 17).abs()), head=head), draw(2, 9)
    with pytest.raises(ValueError, match=r"no rule for rfft .*RuleList\(\[\('rfft', rules.Gradient\(\)\)"):
        LRP(EPSILON_FREE)(model, x, 1)
    followed = composites.RuleList([("rfft", rules.Gradient()), ("*", rules.Zero())])
    spectrum = torch.fft.rfft(x, 17)
    expected = x * derivative(
        lambda x: (torch.fft.rfft(x, 17) * (spectrum.conj() / spectrum.abs())).real @ head.weight.T, x
    )
    close(LRP(followed)(model, x, 1), expected.detach(), 1e-10)


def test_exported_network_is_that_before_the_export():
    model, x = vgg().eval(), torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (x,)).module()
    inside = module(lambda x: exported(x))
    for method in (LRP(), GuidedBackprop()):
        expected = method(model, x, 1)
        torch.testing.assert_close(method(inside, x, 1), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


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
    "matrix product": (lambda x, y: torch.matmul(input=x, other=y.t()) @ y, lambda x, y: x @ y.t() @ y),
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
