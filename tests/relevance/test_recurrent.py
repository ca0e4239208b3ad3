"""Recurrent layers are made step by step, and gates may take nothing."""

import pytest
import torch
from networks import module
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_xai.operations import tensors_in
from lightning_xai.relevance import LRP, composites, rule_table, rules

ZERO = composites.RuleList([("*", rules.Zero())])
TAKE_ALL = composites.RuleList([("product", rules.SignalTakeAll()), *composites.AttnLRP(1e-3).entries()])


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def layer(kind, **settings):
    torch.manual_seed(0)
    return kind(4, 3, **settings).double().eval()


def read(rnn, packed=False):
    """A network that sums up all that a recurrent layer gives, and keeps it."""
    found = []

    def forward(x):
        x = x if rnn.batch_first else x.transpose(0, 1)
        if packed:
            x = pack_padded_sequence(x, [3, 5, 2], batch_first=rnn.batch_first, enforce_sorted=False)
        found[:] = [part for part in tensors_in(rnn(x)) if part.is_floating_point()]
        return torch.stack([part.sum() for part in found]).sum().expand(3, 1)

    return module(forward, rnn=rnn), found


LAYERS = {
    "LSTM": layer(nn.LSTM),
    "stacked LSTM in two directions": layer(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5),
    "projected LSTM": layer(nn.LSTM, num_layers=2, bidirectional=True, proj_size=2, bias=False),
    "GRU": layer(nn.GRU, num_layers=2, bidirectional=True),
    "GRU without biases": layer(nn.GRU, batch_first=True, bias=False),
    "tanh": layer(nn.RNN, bidirectional=True),
    "ReLU": layer(nn.RNN, nonlinearity="relu", num_layers=2, batch_first=True),
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("rnn", LAYERS.values(), ids=LAYERS)
def test_steps_give_what_the_fused_layer_gives_and_conserve(rnn, packed):
    model, found = read(rnn, packed)
    with torch.no_grad():
        model(draw(3, 5, 4))
        expected = list(found)
    for composite in (composites.EpsilonPlus(), TAKE_ALL):
        ledger = LRP(composite, score="value").with_ledger(model, draw(3, 5, 4), 0)[1]
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one.detach(), other)
        assert ledger.received.abs().max() > 0
        assert abs(ledger.balance) < 1e-9 * ledger.start.abs().sum()


def lstm_steps(rnn, x):
    h = c = x.new_zeros(len(x), 3)
    for now in x.unbind(1):
        gates = functional.linear(now, rnn.weight_ih_l0, rnn.bias_ih_l0)
        i, f, g, o = (gates + functional.linear(h, rnn.weight_hh_l0, rnn.bias_hh_l0)).split(3, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


def gru_steps(rnn, x):
    h = x.new_zeros(len(x), 3)
    for now in x.unbind(1):
        (a, b, n) = functional.linear(now, rnn.weight_ih_l0, rnn.bias_ih_l0).split(3, 1)
        (p, q, m) = functional.linear(h, rnn.weight_hh_l0, rnn.bias_hh_l0).split(3, 1)
        z = torch.sigmoid(b + q)
        h = (1 - z) * torch.tanh(n + torch.sigmoid(a + p) * m) + z * h
    return h


def cell_steps(kind, rnn):
    cell = kind(4, 3).double()
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(rnn, f"{name}_l0").data

    def forward(x):
        state = None
        for now in x.unbind(1):
            state = cell(now, state)
        return state[0] if isinstance(state, tuple) else state

    return module(forward, cell=cell)


@pytest.mark.parametrize("composite", [composites.EpsilonPlus(0.1), TAKE_ALL], ids=["halves", "take all"])
@pytest.mark.parametrize(
    ("kind", "cell", "steps"), [(nn.LSTM, nn.LSTMCell, lstm_steps), (nn.GRU, nn.GRUCell, gru_steps)]
)
def test_fused_layers_and_cells_have_the_map_of_steps_written_by_hand(kind, cell, steps, composite):
    rnn, x = layer(kind, batch_first=True), draw(2, 4, 4)
    expected = LRP(composite)(module(lambda x: steps(rnn, x), rnn=rnn), x, 1)
    assert expected.abs().max() > 0
    close(LRP(composite)(module(lambda x: rnn(x)[0][:, -1], rnn=rnn), x, 1), expected)
    close(LRP(composite)(cell_steps(cell, rnn), x, 1), expected)


def published(rnn, head, x, target):
    """LRP-all of one sample: signals take all, contributions are shared by z / y; Arras et al. 2019, table 1."""
    (u, v), b = (rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach()), (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
    rows = [slice(3 * gate, 3 * gate + 3) for gate in range(4)]
    h, c, past = torch.zeros(3).double(), torch.zeros(3).double(), []
    for now in x:
        y = u @ now + v @ h + b
        i, f, o = (torch.sigmoid(y[rows[gate]]) for gate in (0, 1, 3))
        new = f * c + i * torch.tanh(y[rows[2]])
        past.append((h, y[rows[2]], f * c, i * torch.tanh(y[rows[2]]), new))
        h, c = o * torch.tanh(new), new
    found, r_h, r_c = torch.zeros_like(x), head.weight[target].detach() * h, torch.zeros(3).double()
    for t in reversed(range(len(x))):
        h, y, kept, added, new = past[t]
        r_c = r_c + r_h
        r_g = added / new * r_c
        r_c = kept / new * r_c
        found[t] = (u[rows[2]] * x[t]).T @ (r_g / y)
        r_h = (v[rows[2]] * h).T @ (r_g / y)
    return found


def test_lstm_follows_the_published_equations():
    rnn, head, x = layer(nn.LSTM, batch_first=True), nn.Linear(3, 2).double(), draw(2, 5, 4)
    composite = composites.RuleList([("product", rules.SignalTakeAll()), ("*", rules.Zero())])
    found = LRP(composite)(module(lambda x: head(rnn(x)[0][:, -1]), rnn=rnn, head=head), x, 1)
    close(found, torch.stack([published(rnn, head, sample, 1) for sample in x]))


def test_rule_for_the_whole_layer_is_its_derivative():
    rnn, x = layer(nn.GRU, batch_first=True), draw(2, 4, 4)
    model = module(lambda x: rnn(x)[0][:, -1], rnn=rnn)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    whole = composites.RuleList([("recurrent", rules.Gradient()), ("*", rules.Zero())])
    close(LRP(whole)(model, x, 1), x * gradient)
    assert rule_table(model, x, whole).rows == (("rnn", "gru", "Gradient()"),)
    with pytest.raises(ValueError, match=r"'recurrent' gives ZPlus.* Rules for 'recurrent': Gradient"):
        LRP(composites.RuleList([("recurrent", rules.ZPlus()), ("*", rules.Zero())]))(model, x, 1)


def test_rule_table_names_what_is_repeated_once():
    rnn = layer(nn.RNN, batch_first=True)
    table = rule_table(module(lambda x: rnn(x)[0][:, -1], rnn=rnn), draw(1, 7, 4), ZERO)
    assert [row[1] for row in table.rows] == ["linear", "add", "tanh"]


# Gates elsewhere.


GATED = {
    "GLU": (lambda x: functional.glu(x), lambda x: x[:, :2] * x[:, 2:].sigmoid().detach()),
    "moved": (lambda x: x * (1 - x.sigmoid()).flip(1), lambda x: x * (1 - x.sigmoid()).flip(1).detach()),
    "in place": (lambda x: (x + 0).mul_(x.sigmoid()), lambda x: x * x.sigmoid().detach()),
    "attention": (
        lambda x: (x.unsqueeze(1) @ torch.stack([x, x.sin()], 2)).softmax(2) @ torch.stack([x, x.cos()], 1),
        lambda x: (x.unsqueeze(1) @ torch.stack([x, x.sin()], 2)).softmax(2).detach() @ torch.stack([x, x.cos()], 1),
    ),
    "fused attention": (
        lambda x: functional.scaled_dot_product_attention(x.view(-1, 2, 2), x.view(-1, 2, 2), x.view(-1, 2, 2)),
        lambda x: functional.scaled_dot_product_attention(
            x.view(-1, 2, 2).detach(), x.view(-1, 2, 2).detach(), x.view(-1, 2, 2)
        ),
    ),
}


@pytest.mark.parametrize(("gated", "detached"), GATED.values(), ids=GATED)
def test_signal_takes_all_as_if_its_gate_were_a_constant(gated, detached):
    rule = rules.SignalTakeAll()
    composite = composites.RuleList([("product", rule), ("attention", rule), ("*", rules.Zero())])
    lrp = LRP(composite, score=lambda output, target: output.flatten(1).sum(1))
    expected = lrp(module(detached), draw(3, 4), 0)
    found, ledger = lrp.with_ledger(module(gated), draw(3, 4), 0)
    close(found, expected)
    close(lrp(module(gated), draw(3, 4), 0), expected)
    assert abs(ledger.balance) < 1e-10


def test_gate_that_is_written_over_is_refused_and_products_without_one_are_halved():
    lrp = LRP(TAKE_ALL, score="value")
    with pytest.raises(ValueError, match=r"SignalTakeAll\(\) is no rule for mul .* which writes over the gate"):
        lrp(module(lambda x: x.sigmoid().mul_(x + 0)), draw(3, 4), 1)
    halves = LRP(composites.AttnLRP(), score="value")
    for product in (lambda x: x * x.tanh(), lambda x: x.sigmoid() * (2 * x).sigmoid()):
        close(lrp(module(product), draw(3, 4), 1), halves(module(product), draw(3, 4), 1))
