"""Groups of units: what a group is, the factors and clusters that make groups, and pairs of units."""

import builtins
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai.units import (
    NMF,
    CoActivation,
    CoReactivation,
    UnitGroups,
    ablate_units,
    co_activation,
    co_reactivation,
    dissect,
    group_units,
    maximize_activation,
    strongest_pairs,
    top_samples,
    unit_activations,
)
from lightning_xai.units.maximization import Ascent, Group, Pixel

GROUPINGS = [NMF(groups=2), CoActivation(groups=2), CoReactivation(groups=2), CoActivation(groups=2, linkage="single")]
every_grouping = pytest.mark.parametrize("grouping", GROUPINGS, ids=repr)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9)


def blocks():
    """Counts [rows, 6]: the units 0, 3, 5 are at work in some rows, 1 and 2 in others, 4 never."""
    rows = torch.zeros(12, 6, dtype=torch.float64)
    rows[:7, [0, 3, 5]] = torch.rand(7, 1, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0]).double() + 0.1
    rows[7:, [1, 2]] = torch.rand(5, 1, dtype=torch.float64) * torch.tensor([2.0, 1.0]).double() + 0.1
    return rows


def sets(groups):
    return sorted(row.nonzero().flatten().tolist() for row in groups.membership)


@every_grouping
@pytest.mark.parametrize("positions", [(), (3,), (2, 2)], ids=len)
def test_units_that_work_together_make_a_group(grouping, positions):
    values = blocks().view(12, 6, *[1] * len(positions)).expand(12, 6, *positions)
    groups = group_units(values, grouping)
    assert sets(groups) == [[0, 3, 5], [1, 2]]
    assert groups.rest == [4]
    close(groups.weights.sum(1), torch.ones(2, dtype=torch.float64))


@every_grouping
def test_a_grouping_is_a_value(grouping):
    assert pickle.loads(pickle.dumps(grouping)) == grouping
    values = blocks()
    before = values.clone()
    first, second = group_units(values, grouping), group_units(values, grouping)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(values, before)
    with torch.inference_mode():
        assert torch.equal(group_units(values.clone(), grouping).weights, first.weights)


def test_the_factors_give_the_activations_back():
    truth = torch.tensor([[1.0, 0.0, 2.0, 0.0, 1.0], [0.0, 3.0, 0.0, 1.0, 0.0]]).double()
    shares = torch.rand(40, 2).double()
    shares[:15, 0], shares[25:, 1] = 0.0, 0.0  # rows of one factor alone, without which factors are not unique
    values = shares @ truth
    groups = group_units(values, NMF(groups=2, iterations=4000))
    order = groups.weights[:, 0].argsort(descending=True)
    torch.testing.assert_close(
        groups.weights[order], truth / truth.sum(1, keepdim=True), rtol=0, atol=1e-3
    )  # NMF stops at a tolerance of its own


def test_a_group_is_a_weighted_mean():
    weights = torch.tensor([[1.0, 3.0, 0.0], [0.0, 2.0, 2.0]]).double()
    groups = UnitGroups(weights)
    maps = torch.randn(4, 3, 2, 5).double()
    expected = torch.stack([0.25 * maps[:, 0] + 0.75 * maps[:, 1], 0.5 * maps[:, 1] + 0.5 * maps[:, 2]], 1)
    close(groups.combine(maps), expected)
    assert pickle.loads(pickle.dumps(groups)).count == 2


def test_a_group_of_one_unit_is_that_unit_everywhere(cnn):
    x, y = torch.randn(5, 2, 6, 7).double(), torch.tensor([0, 1, 2, 0, 1])
    single = UnitGroups.of([[0], [1], [2], [3]], units=4)
    masks = torch.randint(-1, 2, (5, 6, 7))
    own = dissect(cnn, x, masks, layer="2", concepts=["a", "b"], p=0.2)
    grouped = dissect(cnn, x, masks, layer="2", concepts=["a", "b"], p=0.2, unit=single)
    assert torch.equal(own.intersection, grouped.intersection)
    close(ablate_units(cnn, x, y, layer="2", units=single).score_drop, ablate_units(cnn, x, y, layer="2").score_drop)
    assert torch.equal(
        top_samples(cnn, x, layer="2", n=3, unit=single).sample_id, top_samples(cnn, x, layer="2", n=3).sample_id
    )
    close(unit_activations(cnn, x, layer="2", unit=single), unit_activations(cnn, x, layer="2"))


def test_a_group_stands_where_a_unit_does():
    layer = nn.Conv1d(1, 3, 1, bias=False).double()
    layer.weight.data = torch.tensor([1.0, 2.0, -1.0]).double().view(3, 1, 1)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2, bias=False).double())
    x = torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]).double()
    groups = UnitGroups.of([[0, 1], [2]], units=3)
    close(unit_activations(model, x, layer="0", unit=groups)[:, 0], 1.5 * x[:, 0])
    weight = model[3].weight
    close(
        ablate_units(model, x, 0, layer="0", units=groups).score_drop,
        torch.stack([(weight[0, 0] + 2 * weight[0, 1]) * 2, -weight[0, 2] * 2]).expand(2, 2).detach(),
    )
    ascent = Ascent(steps=1, rate=1.0, optimizer="sgd", parametrization=Pixel(std=0.0))
    up = maximize_activation(model, Group("0", groups), (1, 2), ascent=ascent)
    close(up.inputs, torch.tensor([[[0.75, 0.75]], [[-0.5, -0.5]]]).double())


def test_pairs_that_are_re_activated_together():
    counts = torch.randint(0, 5, (7, 6))
    counts[:, 4] = 0
    found = co_reactivation(counts)
    table = counts.numpy()
    for k, m in itertools.product(range(6), repeat=2):
        least = sum(min(row[k], row[m]) for row in table)
        most = sum(max(row[k], row[m]) for row in table)
        assert float(found[k, m]) == pytest.approx(least / most if most else 0.0, abs=1e-12)
    pairs = strongest_pairs(found, n=15)
    expected = sorted(((-float(found[k, m]), k, m) for k, m in itertools.combinations(range(6), 2)))
    assert [(pair.first, pair.second) for pair in pairs] == [(k, m) for _, k, m in expected]
    assert len(strongest_pairs(found, n=100)) == 15


def test_correlation_is_numpys():
    values = torch.randn(6, 4, 3).double()
    table = values.movedim(1, -1).flatten(0, 1).numpy()
    close(co_activation(values), np.corrcoef(table.T))


@pytest.mark.parametrize(
    ("grouping", "values", "message"),
    [
        (NMF(groups=2), torch.tensor([[1.0, -1.0]]), "after its ReLU"),
        (NMF(groups=3), torch.ones(2, 4), "as many positions as groups"),
        (NMF(groups=2), torch.tensor([[1.0, float("nan")]]), "NaN or infinite"),
        (NMF(groups=3), torch.tensor([[1.0, 0.0, 1.0]] * 4), "only 2 of 3 units are ever active"),
        (CoActivation(groups=2), torch.ones(3, 4), "only 0 of 4 units"),
        (CoReactivation(groups=3), torch.tensor([[1, 0, 2]]), "only 2 of 3 units"),
        (CoReactivation(groups=2), torch.tensor([[1, -1, 2]]), "must not be negative"),
        (CoActivation(groups=2), torch.ones(3), "shape \\[3\\]"),
    ],
)
def test_what_cannot_be_grouped(grouping, values, message):
    with pytest.raises(ValueError, match=message):
        group_units(values, grouping)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NMF(groups=0), "groups must be at least 1"),
        (lambda: CoActivation(linkage="avrage"), "Did you mean 'average'"),
        (lambda: UnitGroups(torch.tensor([[-1.0]])), "not negative"),
        (lambda: UnitGroups(torch.tensor([[1.0], [0.0]])), "the groups \\[1\\] have none"),
        (lambda: UnitGroups(torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool)), "members must be Boolean"),
        (lambda: UnitGroups.of([[0, 3]], units=3), "unit 3 does not exist"),
        (lambda: UnitGroups.of([[]], units=3), "at least one unit"),
        (lambda: UnitGroups.of([], units=3), "at least one group"),
        (lambda: UnitGroups.of([[0]], units=3).combine(torch.ones(2, 4)), "groups are of 3 units"),
        (lambda: strongest_pairs(torch.ones(2, 3)), r"must be \[units, units\]"),
        (lambda: strongest_pairs(torch.ones(2, 2), n=0), "n must be"),
    ],
)
def test_a_group_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_things_of_the_wrong_type():
    with pytest.raises(TypeError, match="grouping must be"):
        group_units(torch.ones(2, 2), "nmf")
    with pytest.raises(TypeError, match="weights must be a floating-point tensor"):
        UnitGroups(torch.ones(2, 2, dtype=torch.long))


@every_grouping
def test_without_scikit_learn_it_says_what_to_install(grouping, monkeypatch):
    imported = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'lightning-xai\[units\]'"):
        group_units(blocks(), grouping)
