"""Drift of maps from one epoch to the next: by hand, by other shards, and by a history that was kept."""

import math

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.evaluation import cosine_drift, spearman_drift, top_drift
from lightning_xai.metrics import Drift
from lightning_xai.perturbation import Segments, Windows
from lightning_xai.relevance import GradientXInput

GXI = GradientXInput()


def network(epoch):
    torch.manual_seed(epoch)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()


def data(count=7):
    torch.manual_seed(50)
    return draw(count, 1, 3, 4), torch.arange(count) % 3, torch.arange(10, 10 + count)


def epoch(metric, number, rows=None, target=None):
    """The results of an epoch over some of the samples."""
    x, y, ids = data()
    rows = torch.arange(7) if rows is None else torch.tensor(rows)
    metric.reset()
    for some in rows.split(3):
        metric.update(network(number), x[some], y[some] if target is None else target, ids[some])
    return {key: value.item() for key, value in metric.compute().items()}


def maps(number, regions=None):
    x, y, _ = data()
    cells = GXI(network(number), x, y)
    return cells.flatten(1) if regions is None else cells.unflatten(3, (2, 2)).sum((2, 4)).flatten(1)


@pytest.mark.parametrize("regions", [None, Windows((3, 2))])
def test_the_drifts_are_means_over_the_samples(regions):
    metric = Drift(GXI, regions)
    first = epoch(metric, 0)
    assert math.isnan(first["spearman"])
    assert (first["matched"], first["first_stable_epoch"]) == (0, -1)
    for number in (1, 2):
        found = epoch(metric, number)
        now, then = maps(number, regions), maps(number - 1, regions)
        for key, measure in {"spearman": spearman_drift, "cosine": cosine_drift, "top": top_drift}.items():
            values = measure(now, then)
            assert found[key] == pytest.approx((values.mean()).item(), rel=1e-9)
            assert found[f"{key}_error"] == pytest.approx((values.std() / math.sqrt(7)).item(), rel=1e-9)
        assert found["spearman_from_first"] == pytest.approx(
            (spearman_drift(now, maps(0, regions)).mean()).item(), rel=1e-9
        )
    x, y, _ = data()
    scores = [network(number)(x).gather(1, y[:, None]) for number in (1, 2)]
    assert found["score_change"] == pytest.approx(((scores[1] - scores[0]).abs().mean()).item(), rel=1e-9)
    assert (found["matched"], found["unmatched"], found["retargeted"], found["blank"]) == (7, 0, 0, 0)


def test_samples_are_found_by_their_ids_and_others_are_counted():
    metric = Drift(GXI)
    epoch(metric, 0, rows=[5, 1, 3, 0])
    found = epoch(metric, 1, rows=[3, 2, 1, 6])
    assert found["spearman"] == pytest.approx((spearman_drift(maps(1), maps(0))[[1, 3]].mean()).item(), rel=1e-9)
    assert (found["matched"], found["unmatched"]) == (2, 4)


def test_a_sample_of_another_class_is_left_out():
    metric = Drift(GXI)
    epoch(metric, 0)
    found = epoch(metric, 1, target=0)
    assert found["spearman"] == pytest.approx((spearman_drift(maps(1), maps(0))[::3].mean()).item(), rel=1e-9)
    assert (found["matched"], found["retargeted"]) == (3, 4)


def test_the_smallest_ids_are_followed_once_each():
    metric = Drift(GXI, samples=3)
    x, y, ids = data()
    for number in (0, 1):
        metric.reset()
        for rows in ([6, 0, 4], [2, 0], [5]):
            metric.update(network(number), x[rows], y[rows], ids[rows])
        found = metric.compute()
    close(found["spearman"], spearman_drift(maps(1), maps(0))[[0, 2, 4]].mean())
    assert found["matched"] == 3


def test_a_history_goes_on_where_it_ended():
    whole, first = Drift(GXI), Drift(GXI)
    found = [epoch(whole, number) for number in range(4)]
    for number in range(2):
        epoch(first, number)
    second = Drift(GXI)
    second.begin(2, first.history)
    x, y, ids = data()
    second.update(network(2), x, y, ids)
    again = {key: value.item() for key, value in second.compute().items()}
    torch.testing.assert_close(again, found[2], rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(epoch(second, 3), found[3], rtol=1e-12, atol=1e-12, equal_nan=True)
    assert second.history["epochs"] == [1, 2, 3]


def test_the_first_stable_epoch_is_that_from_which_maps_stay():
    metric = Drift(GXI)
    found = [epoch(metric, number)["first_stable_epoch"] for number in (0, 1, 1, 1, 1)]
    assert found == [-1, -1, -1, -1, 2]


def test_constant_maps_are_counted():
    metric = Drift(GXI)
    for inputs in (torch.ones(2, 12), torch.zeros(2, 12)):
        metric.reset()
        metric.update(nn.Sequential(nn.Linear(12, 3)), inputs, 0)
        found = metric.compute()
    assert (found["blank"], found["spearman"]) == (2, 1.0)


def test_inputs_of_another_size_are_refused_within_an_epoch_and_not_compared_across():
    metric = Drift(GXI)
    pool = nn.Sequential(nn.AdaptiveAvgPool1d(2), nn.Flatten())
    metric.update(pool, torch.randn(2, 1, 4), 0)
    with pytest.raises(ValueError, match="there were 4 features and there are 6 now"):
        metric.update(pool, torch.randn(2, 1, 6), 0)
    metric.compute()
    metric.reset()
    metric.update(pool, torch.randn(2, 1, 6), 0)
    found = metric.compute()
    assert (found["matched"], found["unmatched"]) == (0, 4)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Drift("lrp"), TypeError, "takes an attribution"),
        (lambda: Drift(GXI, Windows(2, stride=1)), ValueError, "overlap"),
        (lambda: Drift(GXI, Segments(lambda x: x[:, 0].long())), ValueError, "Drift needs regions that are the same"),
        (lambda: Drift(GXI, samples=0), ValueError, "samples must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make, error, words):
    with pytest.raises(error, match=words):
        make()
