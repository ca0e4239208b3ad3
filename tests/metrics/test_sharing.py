"""Metrics that run together share the forward passes they have in common."""

import pytest
import torch
from torch import nn

from lightning_xai import Inputs
from lightning_xai.metrics import Importance, Speed, Synergy, update_together
from lightning_xai.perturbation import Segments, Windows, kinds
from lightning_xai.perturbation.sweep import Plan

N, J, K = 4, 5, 3
PAIRS = J * (J - 1) // 2
FADE = [kinds.Negative(delta) for delta in (0.1, 0.2, 0.4)]
TWO_SIDED = kinds.Bidirectional(0.3)


class Counter(nn.Module):
    """Three logits of ten columns; counts the rows it is given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.passes = []  # the attribute stays as it is: a network whose attributes change is looked at again

    @property
    def rows(self):
        return sum(self.passes)

    def forward(self, x):
        self.passes.append(len(x))
        return self.net(x)


def make(kind, regions=Windows(2), **how):  # noqa: B008 - frozen
    return {
        "importance": lambda: Importance(regions, FADE[0], **how),
        "speed": lambda: Speed(regions, FADE, **how),
        "synergy": lambda: Synergy(regions, FADE[0], **how),
        "anchor": lambda: Synergy(regions, FADE[0], anchor=1, **how),
        "two-sided": lambda: Importance(regions, TWO_SIDED, **how),
        "noise": lambda: Importance(regions, kinds.GaussianNoise(), **how),
    }[kind]()


def batch():
    return torch.randn(N, 10, dtype=torch.float64), torch.tensor([0, 1, 2, 1]), torch.tensor([7, 3, 12, 5])


BANDS = Segments(torch.arange(10) // 2)  # the cells of Windows(2)

SETS = {
    "importance": ([make("importance")], J),
    "speed": ([make("speed")], K * J),
    "synergy": ([make("synergy")], J + PAIRS),
    "anchor": ([make("anchor")], J + J - 1),
    "the same twice": ([make("importance"), make("importance")], J),
    "a state of speed is importance": ([make("importance"), make("speed")], K * J),
    "all three": ([make("importance"), make("speed"), make("synergy")], K * J + PAIRS),
    "and an anchor": ([make("importance"), make("anchor"), make("synergy")], J + (J - 1) + PAIRS),
    "two scores": ([make("importance", score="logit"), make("importance", score="margin")], J),
    "two scores of pairs": ([make("synergy", score="logit"), make("importance"), make("synergy")], J + PAIRS),
    "other kinds": ([make("importance"), make("two-sided"), make("noise")], J + 2 * J + J),
    "equal regions": ([make("importance"), make("importance", Windows(size=(2,), stride=None))], 2 * J + 1),
    "another chunk size": ([make("importance"), make("speed", chunk_size=8)], K * J),
    "other regions": ([make("importance"), make("importance", Windows(5))], J + 1 + 2),
    "segments": ([make("importance"), make("importance", BANDS)], 2 * J + 1),
    "the same segments": ([make("importance", BANDS), make("speed", BANDS)], K * J),
}


@pytest.mark.parametrize(("metrics", "rows"), SETS.values(), ids=SETS)
def test_metrics_cost_the_union_of_what_they_need(metrics, rows):
    """The clean inputs are one row more per sample (and per set of regions: counted in ``rows`` from the second on)."""
    model, (inputs, target, ids) = Counter(), batch()
    metrics = {str(index): metric for index, metric in enumerate(metrics)}
    for metric in metrics.values():
        metric.reset()
        metric.plan = type(metric.plan)(
            metric.plan.regions, chunk_size=metric.plan.chunk_size or 16
        )  # no look at the activations beforehand
    first = update_together({name: metric.clone() for name, metric in metrics.items()}, model, inputs, target, ids)
    model.passes.clear()  # the first time a network is looked at
    found = update_together(metrics, model, inputs, target, ids)
    assert model.rows == N * (1 + rows)
    assert first.keys() == found.keys()

    for name, metric in metrics.items():
        alone = metric.clone()
        alone.reset()
        alone.update(model, inputs, target, ids)
        torch.testing.assert_close(metric.compute(), alone.compute(), rtol=1e-12, atol=1e-12, equal_nan=True)
        own = alone.run(model, inputs, target, ids)
        torch.testing.assert_close(found[name].tensors, own.tensors, rtol=1e-12, atol=1e-12, equal_nan=True)
        assert torch.equal(found[name].target, target)
        assert torch.equal(found[name].prediction, model.net(inputs).argmax(1))


def test_running_changes_nothing():
    model, (inputs, target, ids) = Counter(), batch()
    metric = make("importance")
    metric.update(model, inputs, target, ids)
    before = metric.compute()
    metric.run(model, inputs, target, ids)
    torch.testing.assert_close(metric.compute(), before)
    metric.accumulate(metric.run(model, inputs, target, ids))
    assert metric.compute()["samples"] == 2 * N


@pytest.mark.parametrize("kind", ["importance", "speed", "synergy", "anchor"])
def test_samples_that_do_not_count_leave_only_shapes(kind):
    model, (inputs, target, ids) = Counter(), batch()
    metric = make(kind)
    update_together({"only": metric}, model, inputs[:1], target[:1], count=False)
    assert metric.update_called
    assert metric.samples == 0
    shapes = {name: getattr(metric, name).shape for name in metric._defaults}
    metric.update(model, inputs, target, ids)
    assert {name: getattr(metric, name).shape for name in metric._defaults} == shapes
    plain = make(kind)
    plain.update(model, inputs, target, ids)
    torch.testing.assert_close(metric.compute(), plain.compute(), rtol=0, atol=0, equal_nan=True)


def test_of_metrics_that_share_a_sweep_only_the_one_that_fails_is_left_out():
    class Broken(kinds.Constant):
        def perturb(self, values, keys):
            raise RuntimeError("injected")

    model, target = torch.nn.Linear(6, 3).double(), torch.tensor([0, 1, 2, 0])
    inputs = torch.rand(4, 6, dtype=torch.float64)
    good, bad, said = Importance(Windows(2), kinds.Constant(0.0)), Importance(Windows(2), Broken(1.0)), []
    found = update_together(
        {"bad": bad, "good": good}, model, inputs, target, on_error=lambda name, error: said.append((name, str(error)))
    )
    alone = Importance(Windows(2), kinds.Constant(0.0))
    alone.update(model, inputs, target)
    assert (list(found), said, bad.update_called) == (["good"], [("bad", "injected")], False)
    torch.testing.assert_close(good.compute(), alone.compute(), rtol=0, atol=0, equal_nan=True)


def test_the_share_of_the_multiplications_is_the_mean_over_samples():
    layers = [nn.Conv1d(1, 2, 3), nn.Conv1d(2, 2, 3), nn.Flatten(), nn.Linear(24, 3)]
    model, x = nn.Sequential(*layers).double(), torch.randn(5, 1, 16).double()
    metric = Importance(Windows(2), FADE[0], engine="incremental")
    metric.update(model, x[:4], 0)
    # A window reaches 4 of 14 positions of the first layer, 6 of 12 of the second, and all that follows.
    share = (4 * 6 + 6 * 12 + 24 * 3) / (14 * 6 + 12 * 12 + 24 * 3)
    assert metric.compute()["pass_share"].item() == pytest.approx(share)
    metric.plan = Plan(Windows(2), engine="dense")
    metric.update(model, x[4:], 0)
    assert metric.compute()["pass_share"].item() == pytest.approx((4 * share + 1) / 5)


def test_the_share_at_a_site_is_that_of_what_follows():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(2, 3).double()
    metric = Importance(Windows(1), FADE[0])
    metric.update(model, Inputs(x, at="1"), 0)
    assert metric.compute()["pass_share"].item() == pytest.approx(4 * 2 / (3 * 4 + 4 * 2))
