"""The map as a mask, and whether a map adds up: against loops, and their edges."""

import math

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.evaluation import (
    average_drop,
    average_gain,
    average_increase,
    completeness_gap,
    completeness_gaps,
    entropy,
    gini,
    magnitudes,
    masked_scores,
)
from lightning_xai.perturbation import PerturbationImportance, Windows, kinds
from lightning_xai.relevance import GradientXInput, IntegratedGradients

MEASURES = (average_drop, average_increase, average_gain)


def network():
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)).double()


def test_masked_scores_are_those_of_a_loop():
    model, x, relevance = network(), draw(4, 2, 5), draw(4, 2, 5)
    found = masked_scores(model, x, 1, relevance, perturbation=kinds.ChannelMean())
    for n in range(4):
        kept = relevance[n].sum(0).clamp(min=0)
        kept = kept / kept.max()
        masked = kept * x[n] + (1 - kept) * x[n].mean(1, keepdim=True)
        p, o = model(torch.stack([x[n], masked])).softmax(1)[:, 1]
        close(found.masked[n], o)
        close(found.average_drop[n], max(0, p - o) / p)
        close(found.average_increase[n], float(o > p))
        close(found.average_gain[n], max(0, o - p) / (1 - p))


def test_a_map_that_hides_nothing_loses_and_wins_nothing():
    ask = (network(), draw(3, 2, 5), 0, torch.ones(3, 1, 5).double())
    for measure in MEASURES:
        close(measure(*ask), [0.0, 0.0, 0.0])


def test_a_map_without_a_positive_cell_hides_everything():
    model, x = network(), draw(2, 2, 5)
    found = masked_scores(model, x, 0, -torch.ones(2, 1, 5).double())
    close(found.masked, model(torch.zeros_like(x)).softmax(1)[:, 0])
    assert found.blank.all()


def test_probabilities_of_0_and_1_have_no_share():
    x = torch.tensor([[-1e3, 1.0], [1e3, 1.0]]).double()
    found = masked_scores(nn.Identity(), x, 0, torch.ones(2, 2).double().neg())
    assert found.average_drop.isnan().tolist() == [True, False]
    close(found.average_gain, [1 / 2, 0.0])


@pytest.mark.parametrize("score", ["logit", "value", "margin"])
def test_a_score_that_is_no_probability_is_refused(score):
    with pytest.raises(TypeError, match="use score='probability'"):
        average_drop(network(), draw(1, 2, 5), 0, draw(1, 2, 5), score=score)


def test_a_perturbation_that_depends_on_the_window_is_refused():
    with pytest.raises(ValueError, match="LocalMean depends on what is replaced"):
        average_drop(network(), draw(1, 2, 5), 0, draw(1, 2, 5), perturbation=kinds.LocalMean())


HOW = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "logit"}


def test_a_linear_score_is_completed_by_its_contributions(linear, how):
    gap, change = completeness_gaps(linear, draw(4, 7), 0, GradientXInput(), **how)
    close(gap, [0.0] * 4)
    assert (change != 0).all()


def test_the_gap_of_the_data_set_is_a_share_of_sums(linear, how):
    x, relevance = draw(4, 7), draw(4, 7)
    change = (linear.weight * x).detach().sum(1)
    gap = relevance.sum(1) - change
    close(completeness_gap(linear, x, 0, relevance, **how), gap.abs().sum() / change.abs().sum())


def test_integrated_gradients_are_complete_with_many_steps():
    model, x = network(), draw(3, 2, 5)
    gaps = [completeness_gap(model, x, 1, IntegratedGradients(steps=steps), **HOW) for steps in (1, 4, 64)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9


def test_importance_of_one_window_is_complete():
    model, x, whole = network(), draw(3, 2, 5), Windows(5)
    own = PerturbationImportance(whole, kinds.Constant(0.0), score="logit")
    # A map with one channel stands for its positions: it is painted over five of them.
    painted = own(model, x, 1)
    close(completeness_gap(model, x, 1, painted / 5, **HOW | {"regions": whole}), 0.0)


def test_a_score_that_nothing_changes_has_no_gap(linear, how):
    nothing = torch.zeros(2, 7).double()
    assert completeness_gap(linear, nothing, 0, nothing, **how).isnan()


def test_entropy_and_gini_of_one_cell_and_of_all():
    sizes, _ = magnitudes(torch.tensor([[[0.0, 0.0, -3.0, 0.0]], [[2.0, -2.0, 2.0, 2.0]], [[0.0] * 4]]).double())
    close(entropy(sizes), [0.0, math.log(4), 0.0])
    close(gini(sizes), [0.75, 0.0, 0.0])


def test_magnitudes_are_of_the_sum_over_channels_and_of_finite_cells():
    relevance = torch.tensor([[[1.0, torch.nan, torch.inf], [-3.0, torch.nan, 5.0]]])
    sizes, finite = magnitudes(relevance)
    close(sizes, [[2.0, 0.0, 5.0]])
    assert finite.tolist() == [[True, False, True]]
