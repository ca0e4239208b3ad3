"""The forms of a target, which every metric and function of the chapters takes alike."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai.metrics import Importance, Relevance, Speed, Synergy, TopSamples, UnitAblation, update_together
from lightning_xai.perturbation import importance, kinds, synergy
from lightning_xai.relevance import GradientXInput
from lightning_xai.units import ablate_units

METRICS = {
    "importance": lambda score: Importance(2, "constant", score=score),
    "speed": lambda score: Speed(2, [kinds.Negative(0.1), kinds.Negative(0.2)], score=score),
    "synergy": lambda score: Synergy(2, "constant", score=score),
    "relevance": lambda score: Relevance(GradientXInput(score=score)),
    "ablation": lambda score: UnitAblation("0", score=score),
    "samples": lambda score: TopSamples("0"),
}
FUNCTIONS = {
    "importance": lambda model, x, *target: importance(
        model, x, *target, regions=2, perturbation="constant", score="value"
    ),
    "synergy": lambda model, x, *target: synergy(model, x, *target, regions=2, perturbation="constant", score="value"),
    "ablation": lambda model, x, *target: ablate_units(model, x, *target, layer="0", score="value").score_drop,
}
FORMS = [
    1,
    np.int64(1),
    [1, 1, 1],
    (1, np.int32(1), 1),
    np.array([1, 1, 1]),
    torch.tensor([1, 1, 1], dtype=torch.int32),
]
every_metric = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def network(columns):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, columns)).double()


def results(make, score, model, x, *target):
    metric = make(score)
    metric.check(model, x, *target)
    update_together({"metric": metric}, model, x, *target)
    return metric.compute()


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@every_metric
def test_metrics_take_every_form_of_class_indices(make):
    model, x = network(3), torch.rand(3, 4, dtype=torch.float64)
    expected = results(make, "logit", model, x, torch.tensor([1, 1, 1]))
    for target in FORMS:
        same(results(make, "logit", model, x, target), expected)


@every_metric
def test_metrics_need_no_target_where_the_output_has_one_column(make):
    model, x = network(1), torch.rand(3, 4, dtype=torch.float64)
    same(results(make, "value", model, x), results(make, "value", model, x, 0))


@every_function
def test_functions_take_every_form_of_class_indices(function):
    model, x = network(3), torch.rand(3, 4, dtype=torch.float64)
    for target in FORMS:
        same(function(model, x, target), function(model, x, torch.tensor([1, 1, 1])))
    same(function(model, x[:1], torch.tensor(1)), function(model, x[:1], 1))


@every_function
def test_functions_need_no_target_where_the_output_has_one_column(function):
    model, x = network(1), torch.rand(3, 4, dtype=torch.float64)
    same(function(model, x), function(model, x, 0))
