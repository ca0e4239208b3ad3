"""Re-activation: against loops over samples, features and arms, and what the definition promises."""

import csv
import itertools
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_xai.figures.reactivation import as_result, draw_reactivation
from lightning_xai.perturbation import Segments, Windows, importance, kinds, sweep
from lightning_xai.perturbation.kinds.base import Keys
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request
from lightning_xai.targets import Probability
from lightning_xai.units.change import LayerChange
from lightning_xai.units.counts import Pairs
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.reactivation import reactivation

N, P = 9, 0.03
module = sys.modules["lightning_xai.units.reactivation"]  # the package has a function of that name
WINDOWS = Windows((2, 3), (1, 2))
KINDS = {
    "constant": kinds.Constant(0.0),
    "two-sided": kinds.Bidirectional(0.9),
    "local mean": kinds.LocalMean(),
    "noise": kinds.GaussianNoise(),
    "random window": kinds.RandomPtn(low=-2, high=2),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
both_units = pytest.mark.parametrize("unit", ["channel", "position"])
both_rules = pytest.mark.parametrize("rule", ["activation", "delta"])


class Net(nn.Module):
    """Two convolutions, the first through a batch norm and an activation in place."""

    def __init__(self, activation=torch.relu):
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3, stride=2)
        self.last = nn.Linear(4, 3)
        self.activation = activation
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        h = self.norm(self.first(x)).relu_()
        h = self.activation(self.second(h))
        return self.last(h.mean((2, 3)))

    def before(self, x):
        """What the activations receive."""
        first = self.norm(self.first(x))
        return {"first": first, "second": self.second(first.relu())}


@pytest.fixture
def net():
    model = Net().double()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(N, 2, 6, 5, dtype=torch.float64)


def arms(x, regions, kind, ids):
    """R_j x of every feature and arm, [J][A, N, C, *S]."""
    bound = regions.bind(x)
    found = []
    for feature in range(bound.count):
        if kind.windowed:
            copy = x.clone()
            for rows, cells in bound.cells(x, feature):
                bound.put(copy, rows, kind.arms(cells, Keys(ids[rows], feature))[0], feature)
            found.append(copy.unsqueeze(0))
            continue
        copies = []
        for arm in kind.arms(x, Keys(ids)):
            copies.append(x.clone())
            bound.write(copies[-1], arm, feature)
        found.append(torch.stack(copies))
    return found


def by_hand(net, x, layer, regions, kind, ids=None, sigma=torch.relu):
    """The largest changes over arms [N, J, K, P], and the clean activations [N, K, P]."""
    with torch.no_grad():
        clean = net.before(x)[layer]
        rest = sigma(torch.zeros((), dtype=x.dtype))
        each = [
            torch.stack([sigma(net.before(arm)[layer] - clean) - rest for arm in copies]).amax(0)
            for copies in arms(x, regions, kind, tuple(range(len(x))) if ids is None else ids)
        ]
    change = torch.stack(each, 1).flatten(3)
    rounding = 1e-5 * clean.abs().flatten(2).amax(2)[:, None, :, None]
    return torch.where(change > rounding, change, change.clamp(max=0)), sigma(clean).flatten(2)


def upper(values, p):
    """The value of rank floor(p n) + 1 from above, of [K, n]."""
    return values.sort(1, descending=True).values[:, int(p * values.shape[1])]


def counted(change, activation, rule, unit, p):
    """M [J, units] and T."""
    if unit == "position":
        change, activation = change.flatten(2).unsqueeze(3), activation.flatten(1).unsqueeze(2)
    largest = change.amax(3)
    pool = activation.transpose(0, 1) if rule == "activation" else largest.permute(2, 0, 1)
    threshold = upper(pool.flatten(1), p)
    return ((largest > threshold) & (largest > 0)).sum(0), threshold


def agree(found, matrix, threshold, shape):
    torch.testing.assert_close(found.threshold.flatten(), threshold, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.by_feature, matrix.sum(1))
    assert torch.equal(found.by_unit, matrix.sum(0).view(shape))
    assert found.total == matrix.sum()
    if len(shape) == 1:
        assert torch.equal(found.by_feature_and_unit, matrix)
    else:
        assert found.by_feature_and_unit is None
    best = matrix.flatten().sort(descending=True).values[:7].tolist()
    pairs = found.top_pairs(7)
    assert [pair.samples for pair in pairs] == [count for count in best if count]
    for pair in pairs:
        unit = pair.unit if isinstance(pair.unit, tuple) else (pair.unit,)
        assert matrix.view(len(matrix), *shape)[(pair.feature, *unit)] == pair.samples


# Counts


@every_kind
@both_rules
@pytest.mark.parametrize("sigma", [torch.relu, nn.functional.gelu], ids=["relu", "gelu"])
@torch.no_grad()
def test_groups_count_as_units(net, x, kind, rule, sigma, monkeypatch):
    net.activation = sigma
    groups = UnitGroups(torch.tensor([[1.0, 0.0, 0.0, 3.0], [0.0, 0.5, 1.0, 0.25]]).double())
    rounding = 1e-5 * torch.stack([net.before(one.unsqueeze(0))["second"][0].abs().flatten(1).amax(1) for one in x])
    clean, rest = net.before(x)["second"], float(sigma(torch.zeros(())))
    change, activation = (
        x.new_empty(N, WINDOWS.bind(x).count, 2, clean[0, 0].numel()),
        x.new_empty(N, 2, clean[0, 0].numel()),
    )
    for group, weights in enumerate([[0.25, 0, 0, 0.75], [0, 2 / 7, 4 / 7, 1 / 7]]):
        activation[:, group] = sum(w * sigma(clean[:, k]) for k, w in enumerate(weights)).flatten(1)
        least = sum(w * rounding[:, k] for k, w in enumerate(weights)).unsqueeze(1)
        for j, copies in enumerate(arms(x, WINDOWS, kind, tuple(range(N)))):
            each = [sigma(net.before(arm)["second"] - clean) - rest for arm in copies]
            raw = torch.stack([sum(w * one[:, k] for k, w in enumerate(weights)) for one in each]).amax(0).flatten(1)
            change[:, j, group] = torch.where(raw > least, raw, raw.clamp(max=0))
    matrix, threshold = counted(change, activation, rule, "channel", P)
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kind, "unit": groups}
    found = reactivation(net, x, p=P, threshold=rule, **how)
    agree(found, matrix, threshold, (2,))
    assert found.total > 0
    assert found.thresholds.unit == "group"
    assert torch.equal(reactivation(net, x, threshold=found.threshold, **how).by_feature_and_unit, matrix)
    monkeypatch.setattr(module, "DEFAULT_BUDGET", 1)
    agree(reactivation(net, x, p=P, threshold=rule, **how), matrix, threshold, (2,))


@torch.no_grad()
@pytest.mark.parametrize("kind", [KINDS["constant"], KINDS["two-sided"]], ids=["one arm", "two arms"])
def test_units_without_positions_keep_what_each_pass_has_changed(kind):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, threshold = torch.randn(N, 6, dtype=torch.float64), torch.tensor([0.1, 0.3, 0.2, 0.0]).double()
    found = reactivation(model, x, layer="0", regions=Windows(1), perturbation=kind, threshold=threshold)
    expected = torch.zeros(6, 4, dtype=torch.long)
    for row, one in enumerate(x):
        rounding = 1e-5 * model[0](one).abs().max()
        for j in range(6):
            arm = kind.arms(one.view(1, 1, 6), Keys((row,)))
            change = torch.full((4,), -torch.inf, dtype=torch.float64)
            for copy in arm:
                moved = one.clone()
                moved[j] = copy[0, 0, j]
                change = torch.maximum(change, (model[0](moved) - model[0](one)).relu())
            expected[j] += (change > torch.maximum(threshold, rounding)).long()
    assert torch.equal(found.by_feature_and_unit, expected)
    assert len(expected.unique(dim=0)) > 2


def test_groups_of_one_unit_are_the_units(net, x):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": KINDS["noise"], "p": P}
    alone = reactivation(net, x, **how)
    found = reactivation(net, x, **how, unit=UnitGroups.of([[2], [0]], units=4))
    assert torch.equal(found.by_feature_and_unit, alone.by_feature_and_unit[:, [2, 0]])
    torch.testing.assert_close(found.threshold, alone.threshold[[2, 0]])


def test_groups_must_fit(net, x):
    how = {"regions": WINDOWS, "perturbation": KINDS["noise"], "unit": UnitGroups.of([[0], [1]], units=4)}
    with pytest.raises(ValueError, match="unit has groups of 4 channels, layer 'first' has 3"):
        reactivation(net, x, layer="first", **how)
    with pytest.raises(ValueError, match=r"threshold is \[4\], the units of layer 'second' are \[2\]"):
        reactivation(net, x, layer="second", threshold=torch.ones(4), **how)
    with pytest.raises(ValueError, match="unit must be 'channel' or 'position', or UnitGroups, got 'grup'"):
        reactivation(net, x, layer="second", regions=WINDOWS, perturbation=KINDS["noise"], unit="grup")


@every_kind
@both_rules
@both_units
@pytest.mark.parametrize("sigma", [torch.relu, torch.tanh, nn.functional.gelu], ids=["relu", "tanh", "gelu"])
def test_counts_are_those_of_a_loop(net, x, kind, rule, unit, sigma):
    net.activation = sigma
    how = {"regions": WINDOWS, "perturbation": kind, "p": P, "threshold": rule, "unit": unit}
    found = reactivation(net, x, layer=["first", "second"], sample_ids=range(3, 3 + N), **how)
    for layer, own in {"first": torch.relu, "second": sigma}.items():
        hand = by_hand(net, x, layer, WINDOWS, kind, tuple(range(3, 3 + N)), own)
        matrix, threshold = counted(*hand, rule, unit, P)
        shape = net.before(x)[layer].shape[1:] if unit == "position" else (hand[1].shape[1],)
        agree(found[layer], matrix, threshold, tuple(shape))
        assert found[layer].samples == N
        assert found[layer].nonfinite == 0


@pytest.mark.parametrize("shape", [(7,), (2, 9), (2, 5, 4), (2, 3, 4, 3)], ids=["table", "line", "plane", "volume"])
def test_inputs_of_any_rank(shape):
    axes = len(shape) - 1
    layer = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d][axes](shape[0], 3, *([2] if axes else []))
    model = nn.Sequential(layer, nn.Softplus(), nn.Flatten(), nn.LazyLinear(2)).double()
    x, regions = torch.randn(4, *shape, dtype=torch.float64), Windows(2)
    model(x)
    found = reactivation(model, x, layer="0", regions=regions, perturbation=kinds.Constant(1.0), p=0.2)
    sigma = nn.functional.softplus
    with torch.no_grad():
        clean = layer(x).reshape(4, 3, -1)
        largest = []
        for feature in range(regions.bind(x).count):
            copy = x.unsqueeze(1).clone() if axes == 0 else x.clone()
            regions.bind(x).write(copy, torch.ones_like(copy), feature)
            change = layer(copy.view_as(x)).reshape(4, 3, -1) - clean
            largest.append((sigma(change) - sigma(torch.zeros(()).double())).amax(2))
    largest = torch.stack(largest, 1)
    threshold = upper(sigma(clean).transpose(0, 1).flatten(1), 0.2)
    rounding = 1e-5 * clean.abs().amax(2).unsqueeze(1)
    assert torch.equal(found.by_feature_and_unit, ((largest > threshold) & (largest > rounding)).sum(0))


def test_the_activation_of_a_residual_sum_must_be_named():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 2, 3, padding=1), nn.BatchNorm1d(2)

        def forward(self, x):
            return torch.relu(x + self.norm(self.conv(x))).mean(2)

        def before(self, x):
            return {"conv": self.norm(self.conv(x))}

    model, x = Residual().double().eval(), torch.randn(5, 2, 8, dtype=torch.float64)
    model.norm.running_mean.normal_()
    how = {"layer": "conv", "regions": Windows(3), "perturbation": kinds.Constant(0.0), "p": 0.1}
    with pytest.raises(ValueError, match=r"no activation is found after layer 'conv': .*Name the one"):
        reactivation(model, x, **how)
    for name, sigma in {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda v: v}.items():
        matrix, threshold = counted(
            *by_hand(model, x, "conv", Windows(3), kinds.Constant(0.0), sigma=sigma), "activation", "channel", 0.1
        )
        agree(reactivation(model, x, activation=name, **how), matrix, threshold, (2,))
        agree(reactivation(model, x, activation=sigma, **how), matrix, threshold, (2,))


def test_segments_that_differ_and_lack_features(net, x):
    def labels(inputs):
        return (inputs.sum(1) * 1.5).floor().clamp(-1, 3).long()

    regions, kind = Segments(labels), kinds.Constant(0.0)
    found = reactivation(net, x, layer="first", regions=regions, perturbation=kind, p=P, threshold="delta")
    change, _ = by_hand(net, x, "first", regions, kind)
    present = regions.bind(x).present()
    largest = torch.where(present.unsqueeze(2), change.amax(3), -torch.inf)
    values = largest.flatten(0, 1).T
    threshold = values.sort(1, descending=True).values[:, int(P * int(present.sum()))]
    assert torch.equal(found.by_feature_and_unit, ((largest > threshold) & (largest > 0)).sum(0))
    assert found.nonfinite == 0


@both_units
def test_a_threshold_that_is_given(net, x, unit):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0), "unit": unit}
    auto = reactivation(net, x, p=0.1, **how)
    given = reactivation(net, x, threshold=auto.threshold, **how)
    assert torch.equal(given.by_unit, auto.by_unit)
    assert given.thresholds is None
    assert auto.thresholds.exact
    several = reactivation(net, x, **{**how, "layer": ["second"]}, threshold={"second": auto.threshold})
    assert torch.equal(several["second"].by_feature, auto.by_feature)
    none = reactivation(net, x, threshold=torch.full_like(auto.threshold, 1e9), **how)
    assert none.total == 0
    assert none.top_pairs() == none.top_units() == none.top_features() == ()


# Promises


@every_kind
@both_units
@both_rules
def test_identity_re_activates_nothing(net, x, kind, unit, rule):
    found = reactivation(
        net, x, layer="first", regions=WINDOWS, perturbation=kinds.Custom(1.0), p=0.5, threshold=rule, unit=unit
    )
    assert found.total == 0
    assert found.per_change == 0


@both_units
@both_rules
def test_fewer_hits_when_p_falls(net, x, unit, rule):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(1.0), "unit": unit, "threshold": rule}
    totals = [reactivation(net, x, p=p, **how).by_unit for p in (0.9, 0.5, 0.2, 0.05, 0.01)]
    for more, fewer in itertools.pairwise(totals):
        assert bool((fewer <= more).all())
    assert totals[0].sum() > totals[-1].sum()


def test_about_p_of_the_changes_hit_under_delta(net, x):
    found = reactivation(
        net, x, layer="first", regions=Windows(1), perturbation=kinds.GaussianNoise(), p=0.1, threshold="delta"
    )
    assert found.by_unit.tolist() == [int(0.1 * N * 30)] * 3


def test_the_bias_of_the_first_convolution_does_not_matter(net, x):
    how = {
        "layer": "first",
        "regions": WINDOWS,
        "perturbation": kinds.Constant(0.0),
        "threshold": torch.full((3,), 0.2),
    }
    before = reactivation(net, x, **how)
    with torch.no_grad():
        net.first.bias += torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(reactivation(net, x, **how).by_feature_and_unit, before.by_feature_and_unit)
    assert before.total > 0


def test_a_feature_reaches_only_units_whose_field_contains_it(net, x):
    for feature, (row, column) in enumerate(itertools.product(range(6), range(5))):
        only = torch.full((6, 5), -1)
        only[row, column] = 0
        found = reactivation(
            net,
            x,
            layer="first",
            regions=Segments(only),
            perturbation=kinds.Constant(5.0),
            threshold=torch.zeros(3, 6, 5),
            unit="position",
        )
        reached = found.by_unit.sum(0) > 0
        near = torch.zeros(6, 5, dtype=torch.bool)
        near[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
        assert not bool((reached & ~near).any()), feature
        assert bool(reached.any())


@pytest.mark.parametrize("size", [1, 2, 4, N])
@both_units
def test_batches_and_chunks_do_not_matter(net, x, size, unit, monkeypatch):
    how = {"regions": WINDOWS, "perturbation": kinds.GaussianNoise(), "unit": unit, "p": P, "layer": "second"}
    whole = reactivation(net, x, sample_ids=range(N), **how)
    monkeypatch.setattr(module, "_SAMPLES_AT_ONCE", size)
    again = reactivation(net, x, **how)
    assert torch.equal(again.by_unit, whole.by_unit)
    assert again.top_pairs(20) == whole.top_pairs(20)
    torch.testing.assert_close(again.change_by_feature, whole.change_by_feature)
    order = torch.randperm(N)
    mixed = reactivation(net, x[order], sample_ids=order, **how)
    assert torch.equal(mixed.by_unit, whole.by_unit)
    parts = [
        reactivation(net, x[rows], sample_ids=rows, **{**how, "threshold": whole.threshold})
        for rows in torch.arange(N).split(size)
    ]
    assert torch.equal(sum(part.by_unit for part in parts), whole.by_unit)


@both_rules
def test_more_changes_than_memory_are_counted_in_a_second_pass(net, x, rule, monkeypatch):
    how = {"layer": ["first", "second"], "regions": WINDOWS, "perturbation": kinds.Constant(1.0), "threshold": rule}
    once = reactivation(net, x, p=P, **how)
    monkeypatch.setattr(module, "DEFAULT_BUDGET", 1)
    twice = reactivation(net, x, p=P, **how)
    for layer in once:
        assert torch.equal(once[layer].by_feature_and_unit, twice[layer].by_feature_and_unit)
        assert torch.equal(once[layer].threshold, twice[layer].threshold)


def test_changes_that_are_not_numbers_are_counted_and_never_hits(net, x):
    x = x.abs() + 0.1
    x[2, 0, 0, 0] = 0.0
    found = reactivation(net, x, layer="first", regions=Windows(2), perturbation=kinds.Inverse(), p=P)
    assert found.nonfinite == 3  # one feature of one sample, three channels
    both = reactivation(net, x, layer="first", regions=Windows(2), perturbation=kinds.Inverse(), p=P, unit="position")
    assert both.nonfinite == 3 * 30
    rest = reactivation(
        net, x, layer="first", regions=Windows(2), perturbation=kinds.Inverse(), threshold=found.threshold
    )
    alone = reactivation(
        net, x[2:3], layer="first", regions=Windows(2), perturbation=kinds.Inverse(), threshold=found.threshold
    )
    assert alone.by_feature[0] == 0
    assert rest.change_by_feature.isfinite().all()


# Single precision


def test_rounding_is_no_hit():
    """An offset that the units do not see: their weights sum to 0, but single precision makes differences of it."""
    torch.manual_seed(1)
    layer = nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        layer.weight[:, 32:] = -layer.weight[:, :32]
    model, x = nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 3)), torch.randn(20, 64)
    how = {"layer": "0", "regions": Windows(64), "perturbation": kinds.Offset(1.0), "threshold": torch.zeros(32)}
    with torch.no_grad():
        naive = torch.relu(layer(x + 1) - layer(x)) > 0
    assert int(naive.sum()) > 100
    assert reactivation(model, x, **how).total == 0
    assert reactivation(model, x, **{**how, "threshold": torch.zeros(32), "unit": "position"}).total == 0


def test_clean_and_perturbed_inputs_share_a_batch_size(net, x):
    for chunk_size, samples in itertools.product((1, 4, 9, 40), (1, 4, 9)):
        net.rows = []
        request = CaptureRequest(kinds.Bidirectional(0.5), LayerChange("first"))
        sweep.sweep(net, x[:samples], 0, [], Plan(Windows(1), chunk_size), None, [request])
        assert net.rows[0] == 1  # the look for the activation
        for first in (rows := net.rows[1:]):
            assert first <= chunk_size
        blocks = -(-samples // chunk_size)
        whole = rows[: len(rows) // blocks] if samples % chunk_size == 0 or blocks == 1 else rows
        assert len(set(whole)) <= 2 if blocks > 1 else len(set(whole)) == 1


def test_float32_finds_what_float64_finds(net, x):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0), "p": P}
    double = reactivation(net, x, **how)
    single = reactivation(net.float(), x.float(), **how)
    assert torch.equal(single.by_feature_and_unit, double.by_feature_and_unit)


# Passes


@every_kind
@pytest.mark.parametrize("chunk_size", [N, 4, 3])
def test_importance_and_re_activation_take_the_passes_of_importance(net, x, kind, chunk_size):
    plan, score = Plan(WINDOWS, chunk_size), Request(kind, Probability())
    net.rows = []
    alone = sweep.sweep(net, x, 0, [score], plan)
    rows, net.rows = net.rows, []
    captures = [CaptureRequest(kind, LayerChange(layer)) for layer in ("first", "second")]
    both = sweep.sweep(net, x, 0, [score], plan, None, captures)
    assert sum(net.rows) == 1 + 1 + sum(rows)  # a look at one sample per layer
    if chunk_size == N:
        assert net.rows == [1, 1, *rows]
    torch.testing.assert_close(both.local(score), alone.local(score))
    expected = importance(net, x, 0, regions=WINDOWS, perturbation=kind)
    torch.testing.assert_close(both.local(score), expected)


def test_small_batches_are_not_blown_up(net, x):
    net.rows = []
    plan, request = Plan(Windows(1), 64), CaptureRequest(kinds.Constant(0.0), LayerChange("first"))
    sweep.sweep(net, x[:2], 0, [], plan, None, [request])
    assert sum(net.rows) <= 1.2 * 2 * (30 + 1) + 1


@pytest.mark.parametrize("memory", [1, 2, 5])
def test_running_out_of_memory_changes_nothing(net, x, memory):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Bidirectional(0.9), "p": P}
    expected = {unit: reactivation(net, x, unit=unit, **how) for unit in ("channel", "position")}
    forward = net.forward

    def short(inputs):
        if len(inputs) > memory:
            raise torch.OutOfMemoryError("out of memory")
        return forward(inputs)

    given = {unit: found.threshold for unit, found in expected.items()}
    net.forward = short
    for unit, found in expected.items():
        again = reactivation(net, x, unit=unit, threshold=given[unit], **how)
        assert torch.equal(again.by_unit, found.by_unit)
        assert again.top_pairs(9) == found.top_pairs(9)


# Company


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_context_will_do(net, x, context):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0), "p": P}
    expected = reactivation(net, x, **how)
    with context():
        found = reactivation(net, x.clone(), **how)
    assert torch.equal(found.by_feature_and_unit, expected.by_feature_and_unit)
    with torch.autocast("cpu", torch.bfloat16):
        found = reactivation(net, x, **how)
    assert torch.equal(found.by_feature_and_unit, expected.by_feature_and_unit)


def test_the_model_is_left_as_it_was(net, x):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0)}
    reactivation(net, x, **how)
    net.last = nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        reactivation(net, x, **how)
    assert net.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("last"))


def test_a_wrapped_model_is_looked_into(net, x, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0), "p": P}
        wrapped = DistributedDataParallel(net)
        assert torch.equal(reactivation(wrapped, x, **how).by_unit, reactivation(net, x, **how).by_unit)
    finally:
        torch.distributed.destroy_process_group()


# The four answers


def test_the_report(net, x, tmp_path):
    found = reactivation(net, x, layer="first", regions=WINDOWS, perturbation=kinds.Constant(3.0), p=P)
    matrix = found.by_feature_and_unit
    report = found.report(2)
    change = sum(
        (copy[0] - x).abs().mean().item() * N for copy in arms(x, WINDOWS, kinds.Constant(3.0), tuple(range(N)))
    )
    assert report.total == int(matrix.sum()) > 0
    assert report.per_window == report.total / len(matrix)
    assert report.per_change == pytest.approx(report.total / change)
    assert report.features[0] == (int(matrix.sum(1).argmax()), int(matrix.sum(1).max()))
    assert report.units[0] == (int(matrix.sum(0).argmax()), int(matrix.sum(0).max()))
    assert report.pairs[0].samples == int(matrix.max())
    report.write_csv(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["question", "feature", "unit", "value"]
    assert rows[1:] == [[str(cell) for cell in row] for row in report.rows()]
    assert [row[0] for row in report.rows()] == [
        "total",
        "per window",
        "per change",
        *["feature"] * 2,
        *["unit"] * 2,
        *["pair"] * 2,
    ]
    with pytest.raises(ValueError, match="n must be at least 1"):
        found.report(0)


@both_units
def test_a_picture(net, x, unit):
    found = reactivation(net, x, layer="first", regions=Windows(2), perturbation=kinds.Constant(3.0), p=P, unit=unit)
    figure = draw_reactivation(as_result(found, Windows(2), x), "first")
    assert figure.get_suptitle().startswith(f"first: samples {N}, total {found.total:.3g}")
    painted = figure.axes[0].images[0].get_array()
    assert float(painted.max()) == int(found.by_feature.max())
    assert painted.shape == (6, 5)


def test_pairs_count_repetitions_and_keep_the_most_frequent():
    pairs = Pairs(most=3)
    pairs.add(torch.tensor([7, 7, 5, 9, 7]))
    pairs.add(torch.tensor([9, 9, 2, 5]))
    assert pairs.top(2) == [(7, 3), (9, 3)]
    assert pairs.top(9) == [(7, 3), (9, 3), (5, 2)]
    assert pairs.missed == 1  # pair 2 was dropped


# Bad input


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"layer": "secnd"}, ValueError, "layer 'secnd' is unknown. Did you mean 'second'"),
        ({"layer": 2}, TypeError, "layer must be a dotted name"),
        ({"layer": []}, ValueError, "layer is empty"),
        ({"layer": "last"}, ValueError, "no activation is found after layer 'last'"),
        ({"p": 1.5}, ValueError, "p must be a share"),
        ({"unit": "cell"}, ValueError, "unit must be 'channel' or 'position'"),
        ({"threshold": "activations"}, ValueError, "Did you mean 'activation'"),
        ({"threshold": 0.5}, TypeError, "threshold must be 'activation', 'delta' or a tensor"),
        ({"threshold": torch.zeros(3)}, ValueError, r"threshold is \[3\], the units of layer 'second' are \[4\]"),
        ({"threshold": torch.full((4,), torch.nan)}, ValueError, "threshold of layer 'second' holds NaN"),
        ({"threshold": torch.zeros(4), "unit": "position"}, ValueError, r"the units of layer 'second' are \[4, 2, 2\]"),
        ({"layer": ["first", "second"], "threshold": torch.zeros(3)}, ValueError, "one tensor per layer"),
        ({"layer": ["first", "second"], "threshold": {"first": torch.zeros(3)}}, ValueError, "lacks the layers"),
        ({"activation": "rely"}, ValueError, "Did you mean 'relu'"),
        ({"regions": 3}, TypeError, "regions must be"),
        ({"perturbation": "blur"}, TypeError, "perturbation must be one of"),
    ],
)
def test_bad_input(net, x, how, error, message):
    usual = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0)}
    with pytest.raises(error, match=message):
        reactivation(net, x, **{**usual, **how})


def test_clean_activations_must_be_finite(net, x):
    with torch.no_grad():
        net.second.bias[0] = torch.nan
    with pytest.raises(ValueError, match="activations of layer 'second' are NaN or infinite"):
        reactivation(net, x, layer="second", regions=WINDOWS, perturbation=kinds.Constant(0.0))
