"""Re-activation: counts against loops over samples, features and arms, and what is read off them."""

import csv
import sys

import pytest
import torch
from loops import (
    KINDS,
    WINDOWS,
    N,
    P,
    agree,
    arms,
    both_rules,
    both_units,
    by_hand,
    counted,
    every_kind,
    peaks_of,
    upper,
)
from torch import nn

from lightning_xai.figures import draw_results
from lightning_xai.figures.units import reactivation_values
from lightning_xai.metrics import Importance, Reactivation, update_together
from lightning_xai.perturbation import Segments, Windows, kinds
from lightning_xai.perturbation.kinds.base import Keys
from lightning_xai.units.counts import Pairs
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.reactivation import reactivation

module = sys.modules["lightning_xai.units.reactivation"]  # the package has a function of that name


SIGMAS = [nn.functional.softplus, nn.functional.gelu]  # one that is not 0 at 0, one that is not monotone


@every_kind
@both_rules
@pytest.mark.parametrize("sigma", SIGMAS, ids=["softplus", "gelu"])
@torch.no_grad()
def test_groups_count_as_units(net, x, kind, rule, sigma, monkeypatch):
    net.activation = sigma
    groups = UnitGroups(torch.tensor([[1.0, 0.0, 0.0, 3.0], [0.0, 0.5, 1.0, 0.25]]).double())
    rounding = 1e-5 * torch.stack([net.before(one.unsqueeze(0))["second"][0].abs().flatten(1).amax(1) for one in x])
    clean, rest = net.before(x)["second"], float(sigma(x.new_zeros(())))
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
    assert found.total > 0 or (rule, sigma) == ("activation", SIGMAS[0])  # beyond its value at 0 no change reaches
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
    how |= {"layers": ["first", "second"], "sample_ids": range(3, 3 + N)}
    found, without = reactivation(net, x, dead="count", **how), reactivation(net, x, **how)
    for layer, own in {"first": torch.relu, "second": sigma}.items():
        hand = by_hand(net, x, layer, WINDOWS, kind, tuple(range(3, 3 + N)), own)
        matrix, threshold = counted(*hand, rule, unit, P)
        shape = net.before(x)[layer].shape[1:] if unit == "position" else (hand[1].shape[1],)
        agree(found[layer], matrix, threshold, tuple(shape))
        dead = (threshold == 0) & (peaks_of(*hand, rule, unit) == 0)
        answers = without[layer].report(7)
        ranked = matrix.masked_fill(dead, 0)
        assert torch.equal(without[layer].by_unit, found[layer].by_unit)
        assert torch.equal(without[layer].by_feature, ranked.sum(1))
        assert answers.total == ranked.sum()
        assert [count for _, count in answers.units] == [n for n in ranked.sum(0).sort(descending=True).values[:7] if n]
        best = ranked.flatten().sort(descending=True).values[:7].tolist()
        assert [pair.samples for pair in answers.pairs] == [count for count in best if count]
        assert without[layer].dead == found[layer].dead == tuple(dead.nonzero().flatten().tolist())
        assert found[layer].samples == N
        assert found[layer].nonfinite == 0


@both_units
@torch.no_grad()
def test_a_last_pass_of_fewer_features_counts_like_the_others(net, unit):
    x, how = torch.randn(2, 2, 7, 5).double(), {"regions": Windows(1), "perturbation": kinds.Constant(1.0)}
    matrix, threshold = counted(*by_hand(net, x, "second", *how.values()), "delta", unit, 0.2)
    net.rows = []
    found = reactivation(net, x, layer="second", unit=unit, p=0.2, threshold="delta", dead="count", **how)
    agree(found, matrix, threshold, (4,) if unit == "channel" else (4, 3, 2))
    assert net.rows.count(4) >= 18  # two samples and two of 35 features in a pass


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
    how = {"layer": "conv", "regions": Windows(3), "perturbation": kinds.Constant(0.0), "p": 0.1, "dead": "count"}
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
    auto = reactivation(net, x, p=0.1, dead="count", **how)
    given = reactivation(net, x, threshold=auto.threshold, **how)
    assert torch.equal(given.by_unit, auto.by_unit)
    assert given.thresholds is None
    assert auto.thresholds.exact
    del how["layer"]
    several = reactivation(net, x, layers=[net.second], **how, threshold={"second": auto.threshold})
    assert torch.equal(several["second"].by_feature, auto.by_feature)
    none = reactivation(net, x, layer=net.second, threshold=torch.full_like(auto.threshold, 1e9), **how)
    assert none.total == 0
    assert none.top_pairs() == none.top_units() == none.top_features() == ()


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
    report.to_csv(tmp_path / "report.csv")
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
    figure = draw_results(Reactivation.results, reactivation_values(found, Windows(2), x), "first")
    assert figure.get_suptitle().startswith(f"first: samples {N}, re-activations {found.total:.3g}")
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


BOTH = {"layer": None, "layers": ["first", "second"]}


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"layer": "secnd"}, ValueError, "layer 'secnd' is unknown. Did you mean 'second'"),
        ({"layer": 2}, TypeError, "layer must be a module or a dotted name"),
        ({"layer": None, "layers": []}, ValueError, "layers is empty"),
        ({"layers": ["first"]}, TypeError, "either layer=, one layer, or layers="),
        ({"dead": "list"}, ValueError, "dead 'list' is unknown. Known: exclude, count"),
        ({"layer": "last"}, ValueError, "no activation is found after layer 'last'"),
        ({"p": 1.5}, ValueError, "p must be a share"),
        ({"unit": "cell"}, ValueError, "unit must be 'channel' or 'position'"),
        ({"threshold": "activations"}, ValueError, "Did you mean 'activation'"),
        ({"threshold": 0.5}, TypeError, "threshold must be 'activation', 'delta' or a tensor"),
        ({"threshold": torch.zeros(3)}, ValueError, r"threshold is \[3\], the units of layer 'second' are \[4\]"),
        ({"threshold": torch.full((4,), torch.nan)}, ValueError, "threshold of layer 'second' holds NaN"),
        ({"threshold": torch.zeros(4), "unit": "position"}, ValueError, r"the units of layer 'second' are \[4, 2, 2\]"),
        (
            {**BOTH, "threshold": torch.zeros(3)},
            ValueError,
            "one tensor per layer",
        ),
        (
            {**BOTH, "threshold": {"first": torch.zeros(3)}},
            ValueError,
            "lacks the layers",
        ),
        ({"activation": "rely"}, ValueError, "Did you mean 'relu'"),
        ({"regions": "3"}, TypeError, "regions must be"),
        ({"perturbation": "blurr"}, ValueError, "perturbation 'blurr' is unknown"),
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


def test_a_score_that_runs_the_model_itself_is_not_taken_for_a_pass():
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2)).eval()
    x, other = torch.rand(4, 1, 8, 8), torch.randn(3, 1, 8, 8)
    found = []
    for score in ("logit", lambda output, _: (output - model(other).mean(0)).square().sum(1)):
        metrics = {
            "importance": Importance(Windows(4), kinds.Constant(0.0), score=score),
            "units": Reactivation("0", Windows(4), kinds.Constant(0.0)),
        }
        update_together(metrics, model, x, "predicted")
        found.append(metrics["units"].compute()["by_feature_and_unit"])
    assert torch.equal(*found)
