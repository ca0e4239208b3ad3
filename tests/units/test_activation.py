"""Thresholds: streams against sorting everything, layers against hooks by hand."""

import csv
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import Site
from lightning_xai.units import activation_threshold, quantile
from lightning_xai.units.layers import preactivation_sites
from lightning_xai.units.quantile import UpperQuantile

KINDS = {"normal": lambda x: x, "sparse": torch.relu, "tied": torch.round, "negative": lambda x: -x.abs() - 0.1}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def ranked(values, p):
    """The value of rank floor(p N) + 1 from above of [n, K, P], by sorting."""
    flat = values.transpose(0, 1).flatten(1)
    return flat.sort(1, descending=True).values[:, int(p * flat.shape[1])]


def streamed(values, splits, p, **how):
    stream = UpperQuantile(p, **how)
    for part in values.split(splits):
        stream.add(part)
    return stream


def streamed_types(*dtypes):
    stream = UpperQuantile(0.1)
    for dtype in dtypes:
        stream.add(torch.ones(1, 2, 3, dtype=dtype))


# Streams


def test_a_part_of_which_everything_is_kept_by_units_that_have_unequally_many():
    """2,048 bytes hold 128 values of two units, and as many new ones; the second has none in the middle."""
    first = torch.arange(200.0).repeat(1, 2, 1)
    middle = torch.stack([1000.0 + torch.arange(100.0), torch.full((100,), -1.0)]).unsqueeze(0)
    both = torch.tensor([[[5000.0, 5001.0], [5002.0, 5003.0]]])
    last = middle.flip(1)
    values = torch.cat([first, middle, both, last], 2)
    for p in (0.004, 0.01, 0.3):
        stream = UpperQuantile(p, budget=2048)
        for part in (first, middle, both, last):
            stream.add(part)
        found = stream.result()
        assert found.exact
        assert torch.equal(found.value, ranked(values, p))


@every_kind
@pytest.mark.parametrize("p", [0.005, 0.1, 0.55, 0.99])
@pytest.mark.parametrize("expected", [None, 17 * 6, 17 * 6 + 5])
@pytest.mark.parametrize("splits", [[17], [1] * 17, [4, 1, 7, 5]])
def test_a_stream_is_bit_equal_to_one_pass(kind, p, expected, splits):
    values = kind(torch.randn(17, 3, 6))
    found = streamed(values, splits, p, expected=expected).result()
    assert found.exact
    assert found.error == 0
    assert torch.equal(found.value, ranked(values, p))
    assert found.count.tolist() == [17 * 6] * 3
    assert torch.equal(found.peak, values.amax((0, 2)))


@every_kind
@pytest.mark.parametrize("expected", [None, 400])
@pytest.mark.parametrize("p", [0.01, 0.1, 127 / 400])
def test_a_full_table_drops_values_and_stays_exact(kind, expected, p):
    """A budget for 128 of 400 values: T is exact as long as its rank is among those kept."""
    values = kind(torch.randn(80, 2, 5))
    for splits in ([80], [3] * 26 + [2], [1, 79]):
        stream = streamed(values, splits, p, budget=128 * 2 * 2 * 4, expected=expected)
        found = stream.result()
        assert found.exact
        assert torch.equal(found.value, ranked(values, p))
        assert stream.table.shape[1] <= 256
    assert not streamed(values, [80], 128.5 / 400, budget=128 * 2 * 2 * 4, expected=expected).result().exact


@every_kind
@pytest.mark.parametrize("expected", [None, 60 * 7])
@pytest.mark.parametrize("bits", [0, 3])
def test_beyond_the_budget_the_error_is_bounded_and_said(kind, expected, bits):
    values = kind(torch.randn(60, 2, 7)) * torch.tensor([0.01, 300.0]).view(-1, 1)
    budget = 2 * 128 * 8 << bits
    p = 0.9
    kept = budget // (2 * 2 * 4)
    assert int(p * 420) >= kept or bits == 3
    stream = streamed(values, [11, 49], p, budget=budget, expected=expected)
    found = stream.result()
    assert found.exact == (int(p * 420) < kept)
    exact = ranked(values, p)
    assert bool(((found.value - exact).abs() <= found.error * exact.abs() + 2**-31).all())
    if not found.exact:
        assert 2 ** -(bits + 1) <= found.error < 1.01 * 2 ** -(bits + 1)


@pytest.mark.parametrize("budget", [2**26, 2 * 128 * 8])
@pytest.mark.parametrize("p", [0.02, 0.4])
def test_streams_merge_to_one_whatever_the_shares(budget, p):
    values = torch.randn(90, 2, 4)
    whole = streamed(values, [90], p, budget=budget).result()
    for shares in ([90, 0], [45, 45], [1, 30, 59]):
        parts = [
            streamed(part, [max(1, len(part))] if len(part) else [0], p, budget=budget) for part in values.split(shares)
        ]
        for order in itertools.permutations(parts):
            merged = UpperQuantile(p, budget=budget)
            for part in order:
                merged.absorb(*part.state(), part.nonfinite)
            found = merged.result()
            assert torch.equal(found.value, whole.value)
            assert (found.exact, found.error) == (whole.exact, whole.error)
            assert torch.equal(found.count, whole.count)


def test_the_table_does_not_grow_with_the_data():
    stream = UpperQuantile(0.01, expected=200 * 50)
    for _ in range(200):
        stream.add(torch.randn(1, 3, 50))
    assert stream.table.shape[1] <= 2 * (100 + 1)


@every_kind
@pytest.mark.parametrize("splits", [[6], [3, 3], [1, 5], [4, 2]])
@pytest.mark.parametrize("p", [0.0005, 0.01, 0.2])
def test_parts_read_in_several_pieces_are_bit_equal_to_one_pass(monkeypatch, kind, splits, p):
    monkeypatch.setattr(quantile, "_PART_BYTES", 2**18)
    values = kind(torch.randn(6, 3, 132 * 130) + torch.linspace(0, 2, 132 * 130)) * torch.tensor([[1.0], [0.1], [50.0]])
    values[:, 1] = 0.0
    stream = streamed(values, splits, p, expected=values[:, 0].numel())
    found = stream.result()
    assert torch.equal(found.value, ranked(values, p))
    assert torch.equal(found.peak, values.amax((0, 2)))
    assert found.count.tolist() == [values[:, 0].numel()] * 3
    assert stream.table.shape[1] <= 2 * stream.most


@pytest.mark.parametrize("broken", [None, torch.nan, torch.inf, -torch.inf])
def test_threshold_of_values_whose_large_ones_are_unevenly_spread(broken):
    """The large values of one unit lie at every 17th position."""
    values = torch.randn(8, 2, 17 * 1024, dtype=torch.float64)
    values[:, 1, ::17] += 100.0
    values[:, 1] *= (torch.arange(17 * 1024) % 34 == 0) | (torch.arange(17 * 1024) % 17 != 0)
    finite = torch.ones_like(values, dtype=torch.bool)
    if broken is not None:
        values[2, 0, 34], finite[2, 0, 34] = broken, False
    found = streamed(values, [5, 3], 0.04, expected=8 * 17 * 1024).result()
    for unit in range(2):
        had = values[:, unit][finite[:, unit]].sort(descending=True).values
        assert found.value[unit] == had[int(0.04 * len(had))]
        assert found.count[unit] == len(had)
    assert found.nonfinite == int((~finite).sum())


def test_parts_of_many_values_for_little_room():
    """One sample has more values than the table."""
    values = torch.randn(3, 2, 5000)
    for expected in (None, 15000):
        stream = streamed(values, [3], 100 / 15000, budget=2 * 2 * 4 * 128, expected=expected)
        assert torch.equal(stream.result().value, ranked(values, 100 / 15000))
        assert stream.table.shape[1] <= 256
    stream = UpperQuantile(40 / 15000, budget=2**20, expected=15000)
    for sample in values.split(1000, 2):
        stream.add(sample.sort(2).values[:, :, :70])
        stream.add(sample.sort(2).values[:, :, 70:])
    assert torch.equal(stream.result().value, ranked(values, 40 / 15000))


def test_values_that_are_not_finite_are_counted_and_left_out():
    values = torch.randn(6, 2, 5)
    values[1, 0, 2], values[3, 1, 0], values[3, 1, 1] = torch.nan, torch.inf, torch.nan
    found = streamed(values, [2, 4], 0.2).result()
    assert found.nonfinite == 3
    assert found.count.tolist() == [29, 28]
    for unit in range(2):
        finite = values[:, unit][values[:, unit].isfinite()]
        assert found.value[unit] == finite.sort(descending=True).values[int(0.2 * len(finite))]


@pytest.mark.parametrize("expected", [None, 400])
def test_units_that_have_had_unequally_many_values(expected):
    values = torch.randn(80, 3, 5)
    values[:, 1][torch.rand(80, 5) < 0.6] = torch.nan
    found = streamed(values, [7] * 11 + [3], 0.25, budget=128 * 3 * 2 * 4, expected=expected).result()
    assert found.exact
    for unit in range(3):
        finite = values[:, unit][values[:, unit].isfinite()]
        assert found.value[unit] == finite.sort(descending=True).values[int(0.25 * len(finite))]


def test_dead_units_are_named():
    values = torch.tensor([[[0.0, 0.0], [0.0, 5.0], [1.0, 2.0], [-1.0, -2.0]]]).expand(9, 4, 2)
    assert streamed(values, [9], 0.6).result().dead == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UpperQuantile(0), "p must be a share between 0 and 1"),
        (lambda: streamed_types(torch.float32, torch.float64), "values are torch.float64, they were torch.float32"),
        (lambda: UpperQuantile(1), "p must be a share"),
        (lambda: UpperQuantile(float("nan")), "p must be a share"),
        (lambda: UpperQuantile("half"), "p must be a share"),
        (lambda: UpperQuantile(0.1, budget=0), "budget must be at least 1"),
        (lambda: UpperQuantile(0.1, expected=0), "expected must be at least 1, got 0"),
        (lambda: UpperQuantile(0.1, budget=8).add(torch.randn(1, 5, 2)), "too small for 5 units"),
        (lambda: UpperQuantile(0.1).add(torch.randn(5, 2)), r"values must be \[samples, units, positions\]"),
        (lambda: UpperQuantile(0.1, expected=3).add(torch.randn(2, 1, 2)), "more values per unit than the 3 expected"),
        (lambda: UpperQuantile(0.1).result(), "there are no values"),
        (lambda: streamed(torch.randn(9, 2, 9), [9], 0.1, budget=2 * 2 * 4 * 3).result(), "too small for a histogram"),
    ],
)
def test_a_stream_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Layers


class Net(nn.Module):
    """Activations as functions, in place, after a batch norm as a function, and after a residual sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(3, 4)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("var", torch.rand(3) + 0.5)

    def forward(self, x):
        h = self.norm(self.first(x)).relu_()
        h = h + functional.batch_norm(self.second(h), self.mean, self.var)
        return functional.gelu(self.last(torch.tanh(h).mean((2, 3))))

    def maps(self, x):
        """Every layer's activations, as the definition says."""
        first = self.norm(self.first(x)).relu()
        second = functional.batch_norm(self.second(first), self.mean, self.var)
        last = self.last(torch.tanh(first + second).mean((2, 3)))
        return {"first": first, "second": torch.tanh(second), "last": functional.gelu(last)}


@pytest.fixture
def net():
    model = Net().double()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.train()


@pytest.fixture
def x():
    return torch.randn(11, 2, 5, 4, dtype=torch.float64)


def expected(net, x, layer, p, unit):
    net.eval()
    with torch.no_grad():
        maps = net.maps(x)[layer]
    net.train()
    flat = maps.reshape(len(maps), maps.shape[1], -1)
    if unit == "channel":
        return ranked(flat, p)
    return ranked(flat.reshape(len(maps), -1, 1), p).view(maps.shape[1:])


@pytest.mark.parametrize("unit", ["channel", "position"])
@pytest.mark.parametrize(("layer", "activation"), [("first", None), ("second", "tanh"), ("last", None)])
@pytest.mark.parametrize("p", [0.005, 0.3])
def test_a_layer(net, x, unit, layer, activation, p):
    found = activation_threshold(net, x, layer=layer, p=p, unit=unit, activation=activation)
    assert torch.equal(found.value, expected(net, x, layer, p, unit))
    assert found.exact
    assert (found.layer, found.unit, found.p) == (layer, unit, p)
    assert net.training


def test_layers_together_share_passes(net, x):
    rows = []
    handle = net.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    found = activation_threshold(net, [x[:7], x[7:]], layers=["first", "second"], activation=torch.tanh, p=0.2)
    assert rows == [1, 7, 4]  # a look at one sample
    handle.remove()
    for layer in ("first", "second"):
        alone = activation_threshold(net, x, layer=layer, activation=torch.tanh, p=0.2)
        assert torch.equal(found[layer].value, alone.value)


def test_two_results_of_one_name_are_refused(net, x):
    for other in (Site("first", axis=2), Site("first", reshape=lambda maps: maps[:, :2]), "first"):
        with pytest.raises(ValueError, match="2 of the layers are 'first'"):
            activation_threshold(net, x, layers=["first", other], activation="identity")


def test_places_found_together_are_those_found_alone(net):
    """Among them a block whose output is that of a layer in it, and a layer whose output another one reshapes."""
    block = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Dropout(), nn.BatchNorm1d(4))
    chain = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.ReLU(inplace=True), block, nn.GELU(), nn.Flatten(), nn.Linear(20, 5), nn.Tanh()
    )
    layers = ["0", "2", "2.0", "2.1", "2.2", "3", "5"]
    cases = [(chain.double(), torch.randn(2, 2, 7, dtype=torch.float64), layers, None)]
    cases.append((net, torch.randn(2, 2, 5, 4, dtype=torch.float64), ["last", "second", "first"], "tanh"))
    for model, x, names, activation in cases:
        model.eval()
        with torch.no_grad():
            for site in preactivation_sites(model, x, [name for name in names if name != "3"], activation):
                (alone,) = preactivation_sites(model, x, [site.layer], activation)
                assert replace(site, activation=torch.relu) == replace(alone, activation=torch.relu)
                values = torch.randn(9, dtype=torch.float64)
                assert torch.equal(site.activation(values), alone.activation(values))
    with pytest.raises(ValueError, match="no activation is found after layer '3'"):
        preactivation_sites(chain, cases[0][1], layers)


def test_batches_of_any_kind_are_one_pass(net, x):
    one = activation_threshold(net, x, layer="first", p=0.1)
    labels = torch.zeros(len(x))
    for data in (
        DataLoader(TensorDataset(x, labels), batch_size=4),
        list(x.split(3)),
        [(part, None) for part in x.split([1, 10])],
        (part for part in x.split(5)),
    ):
        found = activation_threshold(net, data, layer="first", p=0.1)
        assert torch.equal(found.value, one.value)
        assert found.count == one.count == 11 * 20


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_context_will_do(net, x, context):
    one = activation_threshold(net, x, layer="first", p=0.1)
    with context():
        assert torch.equal(activation_threshold(net, x, layer="first", p=0.1).value, one.value)


def test_a_budget_too_small_is_said(net, x):
    found = activation_threshold(net, x, layer="first", p=0.9, budget=3 * 128 * 8)
    exact = activation_threshold(net, x, layer="first", p=0.9)
    assert not found.exact
    assert 0 < found.error < 1
    assert bool(((found.value - exact.value).abs() <= found.error * exact.value.abs() + 2**-31).all())


def test_of_data_of_a_known_size_no_more_is_kept_than_needed(monkeypatch):
    streams = []

    class Kept(UpperQuantile):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            streams.append(self)

    monkeypatch.setattr("lightning_xai.units.activation.UpperQuantile", Kept)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(14, 2)).double()
    x = torch.rand(6, 1, 9).double()
    for layer, needed in (("0", int(0.3 * 6 * 7) + 1), ("3", int(0.3 * 6) + 1)):
        found = activation_threshold(model, x, layer=layer, p=0.3, activation="identity")
        assert found.exact
        assert streams.pop().most == needed
    activation_threshold(model, iter([x]), layer="0", p=0.3)
    assert streams.pop().most > 1000


def test_half_precision_is_read_in_single():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()).bfloat16()
    assert activation_threshold(model, torch.randn(3, 1, 9).bfloat16(), layer="0", p=0.1).value.dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"layer": "frist"}, ValueError, "layer 'frist' is unknown. Did you mean 'first'"),
        ({"layer": 3}, TypeError, "layer must be a module or a dotted name such as .*, got int"),
        ({"layer": []}, TypeError, "layer must be a module"),
        ({"layer": "second"}, ValueError, r"no activation is found after layer 'second': .*Name the one"),
        ({"layer": "first", "activation": "rleu"}, ValueError, "Did you mean 'relu'"),
        ({"layer": "first", "activation": 3}, TypeError, "activation must be a function or its name"),
        ({"layer": "first", "p": 0.0}, ValueError, "p must be a share"),
        ({"layer": "first", "unit": "neuron"}, ValueError, "unit must be 'channel' or 'position'"),
    ],
)
def test_bad_arguments(net, x, how, error, message):
    with pytest.raises(error, match=message):
        activation_threshold(net, x, **how)
    assert net.training


def test_bad_data(net, x):
    with pytest.raises(ValueError, match="data hold no sample"):
        activation_threshold(net, [], layer="first")
    with pytest.raises(TypeError, match="data must be inputs"):
        activation_threshold(net, [None], layer="first")
    with torch.no_grad():
        net.first.bias[1] = torch.inf
    with pytest.raises(ValueError, match=r"activations of layer 'first' are NaN or infinite"):
        activation_threshold(net, x, layer="first")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.twice = nn.Linear(6, 6)

    def forward(self, x):
        tokens = torch.relu(self.embed(x.flatten(1, 2)))
        return self.twice(torch.relu(self.twice(tokens))).mean(1)


def test_layers_whose_units_cannot_be_told():
    x = torch.randn(2, 3, 4, 5)
    with pytest.raises(ValueError, match="layer 'twice' runs 2 times"):
        activation_threshold(Tokens(), x, layer="twice", activation="relu")


def test_minus_infinity_beside_larger_values_is_counted_and_left_out():
    stream = UpperQuantile(0.4)
    stream.add(torch.tensor([[[1.0, -torch.inf, 3.0, 2.0]]]))
    found = stream.result()
    assert (found.nonfinite, found.count.tolist(), found.value.tolist()) == (1, [3], [2.0])


def test_the_budget_that_an_error_names_is_enough():
    values = torch.rand(1, 1, 400)
    with pytest.raises(ValueError, match="too small for a histogram of 1 units: give at least 1024"):
        UpperQuantile(0.5, budget=1023).add(values)
    stream = UpperQuantile(0.5, budget=1024)
    stream.add(values)
    assert not stream.result().exact


@pytest.mark.parametrize(
    ("unit", "rows"),
    [
        ("channel", [["0", "3.0", ""], ["1", "0.0", "yes"]]),
        ("position", [["0/0", "2.0", ""], ["0/1", "3.0", ""], ["1/0", "0.0", "yes"], ["1/1", "0.0", "yes"]]),
    ],
)
def test_table_of_thresholds_names_units_and_dead_ones(tmp_path, unit, rows):
    x = torch.tensor([[[1.0, 4.0], [0.0, 0.0]], [[2.0, 3.0], [0.0, 0.0]], [[5.0, 0.0], [0.0, 0.0]]]).double()
    found = activation_threshold(nn.Sequential(nn.Identity()), x, layer="0", p=0.4, unit=unit, activation="relu")
    with found.to_csv(tmp_path / "units.csv").open() as file:
        assert list(csv.reader(file)) == [["unit", "threshold", "dead"], *rows]
