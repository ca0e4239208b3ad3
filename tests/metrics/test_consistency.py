"""Consistency over a data set: what the functions and a loop give of all samples at once, whatever the batches."""

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import explain
from lightning_xai.evaluation import RandomMap, codes, consistency, sufficiency
from lightning_xai.metrics import Consistency
from lightning_xai.metrics.comparison import comparisons
from lightning_xai.perturbation import Segments, Windows
from lightning_xai.relevance import GradientXInput

GXI, N = GradientXInput(), 24


def data():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, draw(N, 1, 4, 4), torch.arange(N) % 3, torch.randperm(N)


def alike(model, x, y, count, threshold):
    """Both measures by a loop over the pairs of samples; NaN for one without another."""
    sums = GXI(model, x, y)[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4)).flatten(1)
    predicted, found = model(x).argmax(1).tolist(), {"consistency": [], "sufficiency": []}

    def code(values):
        strongest = sorted(range(4), key=lambda j: -abs(values[j].item()))[:count]
        return {(j, values[j].item() < 0) for j in strongest}

    for n in range(len(x)):
        others = [m for m in range(len(x)) if m != n]
        same = {
            "consistency": [m for m in others if code(sums[m]) == code(sums[n])],
            "sufficiency": [m for m in others if torch.cosine_similarity(sums[m], sums[n], dim=0) >= threshold],
        }
        for name, ones in same.items():
            hits = [predicted[m] == predicted[n] for m in ones]
            found[name].append(sum(hits) / len(hits) if hits else torch.nan)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


@pytest.mark.parametrize("size", [1, 7, N])
@pytest.mark.parametrize(("count", "threshold"), [(1, 0.5), (2, 0.95)])
def test_the_results_are_means_over_the_data_set_whatever_the_batches(size, count, threshold):
    model, x, y, ids = data()
    metric = Consistency(GXI, Windows(2), count=count, threshold=threshold)
    for rows in torch.arange(N).split(size):
        metric.update(model, x[rows], y[rows], ids[rows])
    found = metric.compute()
    for name, values in alike(model, x, y, count, threshold).items():
        known = values[values.isfinite()]
        assert 0 < known.mean() < 1
        close(found[name], known.mean())
        close(found[f"{name}_error"], known.std() / len(known) ** 0.5)
        assert found[f"{name}_undefined"] == N - len(known)
    assert found["compared_samples"] == N


def test_the_samples_of_the_smallest_ids_are_compared_once_each():
    model, x, y, ids = data()
    metric = Consistency(GXI, Windows(2), count=1, threshold=0.5, samples=15)
    for rows in (torch.arange(5, N), torch.arange(10)):  # some are there twice
        metric.update(model, x[rows], y[rows], ids[rows])
    found, kept = metric.compute(), ids.argsort()[:15]
    expected = alike(model, x[kept], y[kept], 1, 0.5)
    for name, values in expected.items():
        close(found[name], values[values.isfinite()].mean())
    assert (found["compared_samples"], found["samples"]) == (15, N + 5)


def test_a_map_without_a_finite_cell_is_like_no_other():
    features = draw(5, 6)
    features[:3] = features[0].clone()
    features[1] = features[4] = torch.nan
    code, prediction = codes(features), torch.zeros(5, dtype=torch.long)
    assert (code[[1, 4]] == -1).all()
    for found in (consistency(code, prediction), sufficiency(features, prediction)):
        assert found.isnan().tolist() == [False, True, False, True, True]


def test_attributions_are_compared_by_it():
    model, x, y, _ = data()
    metrics = {"map": Consistency(GXI, 2), "random": Consistency(RandomMap(), 2)}
    results = explain(model, [(x, y)], metrics, progress=False)
    (table,) = comparisons(metrics, results).values()
    assert {*table.measures} == {"consistency", "sufficiency"}
    assert table.floors == ("random",)


def test_inputs_of_another_size_are_refused():
    metric, pool = Consistency(GXI, 1), nn.Sequential(nn.AdaptiveAvgPool1d(2), nn.Flatten())
    metric.update(pool, draw(2, 1, 4), 0)
    with pytest.raises(ValueError, match="there were 4 features and there are 6 now"):
        metric.update(pool, draw(2, 1, 6), 0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Consistency("lrp", 2), TypeError, "takes an attribution"),
        (lambda: Consistency(GXI, Windows(2, stride=1)), ValueError, "overlap"),
        (lambda: Consistency(GXI, Segments(abs)), ValueError, "Consistency needs regions that are the same"),
        (lambda: Consistency(GXI, 2, count=0), ValueError, "count must be at least 1"),
        (lambda: Consistency(GXI, 2, threshold="high"), TypeError, "threshold must be a number"),
        (lambda: Consistency(GXI, 2, samples=0), ValueError, "samples must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make, error, words):
    with pytest.raises(error, match=words):
        make()
