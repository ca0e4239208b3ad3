"""What has to hold for any score, map or data: factors, orders by chance, and maps that add up by construction."""

import itertools
import math

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import evaluation
from lightning_xai.evaluation import RandomMap
from lightning_xai.perturbation import kinds

HOW = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "logit"}


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("factor", [1e-3, 0.5, 40.0])
def test_a_positive_factor_changes_neither_place_nor_spread(factor):
    relevance, mask = draw(4, 2, 5, 6), torch.rand(4, 5, 6) < 0.3
    for measure in (evaluation.pointing, evaluation.relevance_mass, evaluation.relevance_rank):
        close(measure(factor * relevance, mask), measure(relevance, mask))
    sizes, finite = evaluation.magnitudes(relevance)
    close(evaluation.gini(factor * sizes, finite), evaluation.gini(sizes, finite))
    close(evaluation.entropy(factor * sizes), evaluation.entropy(sizes))
    close(evaluation.histogram_entropy(factor * relevance), evaluation.histogram_entropy(relevance))
    for similarity in ("spearman", "cosine"):
        found = evaluation.map_similarity(factor * relevance, relevance, similarity)
        close(found, [1.0] * 4)


def test_a_positive_factor_changes_no_measure_of_agreement_but_infidelity():
    model, x, relevance = network(), draw(4, 5), draw(4, 5)
    names = ("srg", "deletion", "sufficient_share", "faithfulness_correlation", "infidelity_scaled")
    names += ("infidelity_relative", "faithfulness_estimate", "monotonicity_correlation", "non_sensitivity")
    for name in names:
        measure = getattr(evaluation, name)
        close(measure(model, x, 1, 7 * relevance, **HOW), measure(model, x, 1, relevance, **HOW))
    for name in ("average_drop", "average_increase", "average_gain"):
        measure = getattr(evaluation, name)
        close(measure(model, x, 1, 7 * relevance), measure(model, x, 1, relevance))


def test_a_random_map_gains_nothing_whatever_the_score():
    model, x, count = network(), draw(1, 5), 4000
    found = evaluation.srg(model, x.expand(count, -1), 1, RandomMap(), sample_ids=range(count), **HOW)
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(count)


def test_a_reversed_map_loses_what_the_map_gains_whatever_the_score():
    model, x, relevance = network(), draw(6, 5), draw(6, 5)
    close(evaluation.srg(model, x, 1, -relevance, **HOW), -evaluation.srg(model, x, 1, relevance, **HOW))


def test_shapley_values_add_up():
    """The mean loss of every column over all orders in which columns can go."""
    model, x = network(), draw(3, 5)

    def score(gone):
        kept = torch.ones(5, dtype=torch.float64)
        kept[list(gone)] = 0
        return model(x * kept)[:, 2].detach()

    values = torch.zeros(3, 5, dtype=torch.float64)
    for order in itertools.permutations(range(5)):
        for place, column in enumerate(order):
            values[:, column] += (score(order[:place]) - score(order[: place + 1])) / math.factorial(5)
    close(evaluation.completeness_gaps(model, x, 2, values, **HOW)[0], [0.0] * 3)
    close(evaluation.completeness_gap(model, x, 2, values, **HOW), 0.0)
