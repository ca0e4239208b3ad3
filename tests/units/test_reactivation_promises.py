"""Re-activation: what its definition promises, in any precision, batch and context."""

import itertools
import sys

import pytest
import torch
from loops import WINDOWS, N, P, both_rules, both_units, every_kind
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_xai._guard import set_forward_context
from lightning_xai.perturbation import Segments, Windows, kinds, sweep
from lightning_xai.perturbation.sweep import CaptureRequest, Plan
from lightning_xai.units.change import LayerChange
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.reactivation import reactivation

module = sys.modules["lightning_xai.units.reactivation"]  # the package has a function of that name


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
    how = {
        "regions": WINDOWS,
        "perturbation": kinds.GaussianNoise(),
        "unit": unit,
        "p": P,
        "layer": "second",
        "dead": "count",
    }
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
    how = {"layers": ["first", "second"], "regions": WINDOWS, "perturbation": kinds.Constant(1.0), "threshold": rule}
    once = reactivation(net, x, p=P, **how)
    monkeypatch.setattr(module, "DEFAULT_BUDGET", 1)
    twice = reactivation(net, x, p=P, **how)
    for layer in once:
        assert torch.equal(once[layer].by_feature_and_unit, twice[layer].by_feature_and_unit)
        assert torch.equal(once[layer].threshold, twice[layer].threshold)


def test_changes_are_kept_if_those_of_the_largest_layer_fit(net, x, monkeypatch):
    how = {"layers": ["first", "second"], "regions": WINDOWS, "perturbation": kinds.Constant(1.0), "p": P}
    largest, passes = N * 10 * 4 * 8, []  # bytes of N samples, ten windows, four units of the second layer
    for budget in (largest, largest - 1):
        monkeypatch.setattr(module, "DEFAULT_BUDGET", budget)
        net.rows = []
        reactivation(net, x, threshold="delta", **how)
        passes.append(sum(net.rows))
    assert passes[1] > 1.8 * passes[0]


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


def test_float32_finds_what_float64_finds(net, x):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Constant(0.0), "p": P}
    double = reactivation(net, x, **how)
    single = reactivation(net.float(), x.float(), **how)
    assert torch.equal(single.by_feature_and_unit, double.by_feature_and_unit)


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


def test_an_autocast_of_the_passes_leaves_the_sums_of_groups_exact():
    net, x = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval(), torch.rand(5, 4, 4, 3)
    capture = CaptureRequest(kinds.Constant(1.0), LayerChange("0", groups=UnitGroups(torch.rand(2, 4))))
    largest = []
    for enabled in (False, True):
        with set_forward_context(lambda enabled=enabled: torch.autocast("cpu", torch.bfloat16, enabled=enabled)):
            found = sweep.sweep(net, x, 0, [], Plan(Windows(2)), None, [capture])
        largest.append(found.captured[capture].features["largest"])
    assert largest[0].dtype == torch.float32
    assert torch.equal(*largest)


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
