"""The core measures: each as alone, for the passes of one plan."""

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import evaluation
from lightning_xai._guard import count_forwards
from lightning_xai.evaluation import CoreMeasures, RandomMap, core_measures
from lightning_xai.evaluation.features import FeatureMap
from lightning_xai.perturbation import Windows, kinds
from lightning_xai.relevance import GradientXInput

K, B = 10, 32


class Rows(nn.Module):
    """Three logits of a plane of 7 x 7 windows of 2 x 2; counts the rows of its passes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(196, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return self.net(x)


@pytest.fixture
def asked():
    x = draw(3, 1, 14, 14)
    return (Rows(), x, 1, draw(3, 1, 14, 14)), {"regions": Windows(2), "perturbation": kinds.Blur()}


def test_the_core_measures_cost_one_plan(asked):
    (model, *rest), how = asked
    core_measures(model, *rest, **how, chunk_size=500)
    # The first time, a sample alone tells whether they are independent.
    assert model.rows == 3 * (1 + 2 * K - 1 + B + 1) + 1


def test_four_curve_measures_cost_what_srg_costs(asked):
    (model, *rest), how = asked
    evaluation.srg(model, *rest, **how, chunk_size=500)
    one, model.rows = model.rows - 1, 0
    curves = evaluation.perturbation_curves(model, *rest, **how, chunk_size=500)
    assert all(getattr(curves, name).isfinite().all() for name in ("deletion", "insertion", "srg", "aopc_morf"))
    assert model.rows == one == 3 * 2 * K


@pytest.mark.parametrize(
    "name", ["deletion", "insertion", "aopc_morf", "aopc_lerf", "irof", "monotone", "sufficient_share"]
)
def test_a_measure_of_one_curve_makes_no_other(asked, name):
    (model, *rest), how = asked
    curves = evaluation.perturbation_curves(model, *rest, **how)
    model.rows = 0
    close(getattr(evaluation, name)(model, *rest, **how, chunk_size=500), getattr(curves, name))
    # The count is an attribute: a network that has changed is looked at again, by a sample alone.
    assert model.rows == 3 * (1 + K) + 1


def test_every_core_measure_is_what_it_is_alone(asked):
    ask, how = asked
    found = core_measures(*ask, **how)
    for name, values in found.values.items():
        if name in ("gini", "entropy"):
            continue
        own = how if not name.startswith("average") else {}
        close(values, getattr(evaluation, name)(*ask, **own))
    close(found.completeness_gap, evaluation.completeness_gap(*ask, **how, score="probability"))
    assert len(found.values) == 11


def test_no_map_is_made_beyond_the_one_there_is(asked):
    (model, x, target, _), how = asked
    made = []

    class Counted(RandomMap):
        def attribute(self, *args):
            made.append(args)
            return super().attribute(*args)

    core_measures(model, x, target, Counted(), **how)
    assert len(made) == 1


def test_the_completeness_gap_reads_the_score_of_the_attribution(asked):
    (model, x, target, _), how = asked
    found = core_measures(model, x, target, GradientXInput(), **how)
    alone = evaluation.completeness_gap(model, x, target, GradientXInput(), **how, score="logit")
    close(found.completeness_gap, alone)


def test_a_score_that_is_no_probability_has_no_average_drop(asked):
    ask, how = asked
    assert "average_drop" not in core_measures(*ask, **how, score="logit").values


def test_the_model_is_left_as_it_was(asked):
    (model, *rest), how = asked
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with count_forwards(model) as passes:
        core_measures(model, *rest, **how)
    assert passes
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"perturbation": kinds.Bidirectional(combine="central")}, ValueError, "combine='mean'"),
        ({"perturbation": "blur", "mask_perturbation": "local_mean"}, ValueError, "depends on what is replaced"),
        ({"perturbation": "blur", "steps": 0}, ValueError, "steps"),
        ({"perturbation": "blur", "draws": 0}, ValueError, "draws"),
        ({"perturbation": "blur", "score": "comb_classes"}, ValueError, "score='margin'"),
        ({"perturbation": "blur", "seed": 0.5}, TypeError, "seed"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(options, error, words):
    with pytest.raises(error, match=words):
        CoreMeasures(**options)


def test_cells_that_are_not_finite_count_in_the_features_only():
    relevance = torch.zeros(2, 1, 6).double()
    relevance[0, 0, [0, 5]], relevance[1, 0, 1] = torch.nan, torch.inf
    for scope, expected in (([(0, 6)], [2, 1]), ([(1, 5)], [0, 1]), ([(1, 3)], [0, 1])):
        bound = Windows(2, scope=scope).bind(relevance)
        assert FeatureMap.of(relevance, bound).nonfinite.tolist() == expected
