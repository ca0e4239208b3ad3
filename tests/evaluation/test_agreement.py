"""What a map says of features against what the score loses without them: closed forms, peers and edges."""

import captum.metrics
import pytest
import scipy.stats
import torch
from draws import close, draw
from torch import nn

from lightning_xai.evaluation import (
    draw_subsets,
    faithfulness_correlation,
    faithfulness_estimate,
    feature_drops,
    infidelity,
    infidelity_relative,
    infidelity_scaled,
    monotonicity_correlation,
    non_sensitivity,
    sensitivity_n,
    subset_drops,
)
from lightning_xai.evaluation.correlation import pearson, ranks, spearman
from lightning_xai.perturbation import Segments, kinds
from lightning_xai.relevance import GradientXInput, Saliency


def test_a_linear_score_agrees_with_its_contributions(linear, how):
    ask = (linear, draw(4, 7), 0, GradientXInput())
    ones, zeros = torch.ones(4).double(), torch.zeros(4).double()
    for measure in (faithfulness_correlation, sensitivity_n, faithfulness_estimate, monotonicity_correlation):
        close(measure(*ask, **how), ones)
    for measure in (infidelity, infidelity_scaled, infidelity_relative, non_sensitivity):
        close(measure(*ask, **how), zeros)
    slopes = (linear, draw(4, 7), 0, Saliency(absolute=False))
    close(infidelity(*slopes, units="slope", **how), zeros)


def test_a_factor_changes_infidelity_alone(linear, how):
    x = draw(3, 7)
    right = GradientXInput()(linear, x, 0)
    noisy = right + draw(3, 7)
    found, other = (subset_drops(linear, x, 0, relevance, **how) for relevance in (noisy, 5 * noisy))
    for name in ("correlation", "infidelity_scaled", "infidelity_relative"):
        close(getattr(other, name), getattr(found, name))
    turned = subset_drops(linear, x, 0, -3 * right, **how)
    close(turned.correlation, -torch.ones(3).double())
    close(turned.scaling, -torch.ones(3).double() / 3)
    close(turned.infidelity, 16 * (turned.right**2).mean(1))
    alone = feature_drops(linear, x, 0, right * torch.tensor([3, -3, 3, 3, -3, 3, 3]), **how)
    close(alone.monotonicity_correlation, torch.ones(3).double())


def test_a_map_of_zeros_says_nothing(linear, how):
    found = subset_drops(linear, draw(2, 7), 0, torch.zeros(2, 7).double(), **how)
    assert found.correlation.isnan().all()
    close(found.infidelity, (found.right**2).mean(1))
    close(found.scaling, [0.0, 0.0])
    close(found.infidelity_relative, [1.0, 1.0])


def test_relative_infidelity_is_the_squared_sine_of_both_sides(linear, how):
    found = subset_drops(linear, draw(2, 7), 0, draw(2, 7), **how)
    cosine = torch.cosine_similarity(found.left, found.right)
    close(found.infidelity_relative, 1 - cosine**2)


def test_sides_are_those_of_a_loop(how):
    model, x, relevance = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double(), draw(2, 2, 4), draw(2, 2, 4)
    member = torch.rand(2, 3, 4) < 0.5
    how |= {"score": "logit", "subsets": member}
    contribution, slope = (subset_drops(model, x, 2, relevance, units=u, **how) for u in ("contribution", "slope"))
    for n in range(2):
        for b in range(3):
            gone = member[n, b]
            close(contribution.left[n, b], relevance[n, :, gone].sum())
            close(slope.left[n, b], (relevance * x)[n, :, gone].sum())
            image = x[n : n + 1].clone()
            image[0, :, gone] = 0
            close(contribution.right[n, b], (model(x[n : n + 1]) - model(image))[0, 2])


def test_infidelity_is_captums_for_the_same_sets():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double(), draw(1, 6)
    member = torch.rand(1, 8, 6) < 0.4
    gradient = Saliency(absolute=False)(model, x, 1)
    drawn = iter(member[0])

    def perturb(inputs):
        gone = torch.stack([next(drawn) for _ in inputs])
        return inputs * gone, inputs * ~gone

    peer = captum.metrics.infidelity(model, perturb, x, gradient, target=1, n_perturb_samples=8)
    how = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "logit", "subsets": member}
    close(infidelity(model, x, 1, gradient, units="slope", **how), peer)


def test_draws_do_not_depend_on_the_batch():
    present = torch.ones(3, 20, dtype=torch.bool)
    present[1, 5:] = False
    found = draw_subsets(present, 0.2, 4, [8, 3, 5], seed=1)
    assert torch.equal(draw_subsets(present[1:2], 0.2, 4, [3], seed=1), found[1:2])
    assert found.sum(2).tolist() == [[4] * 4, [1] * 4, [4] * 4]
    assert not found[1, :, 5:].any()
    assert not torch.equal(draw_subsets(present, 0.2, 4, [8, 3, 5], seed=2), found)


def test_draws_are_uniform():
    found = draw_subsets(torch.ones(1, 5, dtype=torch.bool), 0.4, 4000, [0])[0].double().mean(0)
    assert (found - 0.4).abs().max() < 4 * (0.4 * 0.6 / 4000) ** 0.5


def test_single_features_are_the_importances_over_the_drawn(linear, how):
    x, relevance = draw(1, 7), draw(1, 7)
    alone = feature_drops(linear, x, 0, relevance, **how)
    found = subset_drops(linear, x, 0, relevance, share=0.1, draws=9, **how)
    drawn = draw_subsets(torch.ones(1, 7, dtype=torch.bool), 0.1, 9, [0])[0].long().argmax(1)
    close(found.infidelity, ((alone.left - alone.right)[:, drawn] ** 2).mean(1))


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_sets_of_everything_have_no_correlation(linear, how, share):
    ask = (linear, draw(2, 7), 0, GradientXInput())
    assert faithfulness_correlation(*ask, share=share, **how).isnan().all()
    close(sensitivity_n(*ask, shares=(0.3, share), **how), [1.0, 1.0])
    assert sensitivity_n(*ask, shares=(share,), **how).isnan().all()
    one = {"regions": Segments([0] * 7)}
    assert faithfulness_correlation(*ask, **how | one).isnan().all()
    assert faithfulness_estimate(*ask, **how | one).isnan().all()


def test_sizes_that_coincide_count_once(linear, how):
    ask = (linear, draw(2, 7), 0, draw(2, 7))
    twice = sensitivity_n(*ask, shares=(0.2, 0.21, 0.6), **how)
    close(twice, sensitivity_n(*ask, shares=(0.2, 0.6), **how))


def test_a_score_that_nothing_changes_is_undefined(linear, how):
    ask = (linear, draw(2, 7), 0, draw(2, 7))
    how |= {"perturbation": kinds.Offset(0.0)}
    for measure in (faithfulness_correlation, infidelity_relative, faithfulness_estimate, monotonicity_correlation):
        assert measure(*ask, **how).isnan().all(), measure
    close(non_sensitivity(*ask, **how), [1.0, 1.0])


def test_non_sensitivity_counts_what_only_one_side_says():
    model, x = nn.Linear(4, 1, bias=False).double(), torch.ones(1, 4).double()
    model.weight.data[:] = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    how = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "value"}
    close(non_sensitivity(model, x, 0, torch.tensor([[1.0, 0.0, 0.0, 5.0]]).double(), **how), [0.5])


def test_draws_whose_score_is_not_finite_are_left_out(how):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x[:, 0] == 0, torch.nan, x @ torch.arange(4.0).double()).unsqueeze(1)

    x, member = torch.ones(1, 4).double(), torch.eye(4, dtype=torch.bool).unsqueeze(0)
    found = subset_drops(Broken(), x, 0, torch.tensor([[9.0, 2.0, 2.0, 2.0]]).double(), subsets=member, **how)
    close(found.infidelity, [(1 + 0 + 1) / 3])
    estimate = faithfulness_estimate(Broken(), x, 0, torch.tensor([[9.0, 1.0, 2.0, 3.0]]).double(), **how)
    close(estimate, [1.0])


def test_a_map_of_one_channel_is_no_slope_of_several():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(8, 1)).double(), draw(1, 2, 4)
    how = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "value"}
    with pytest.raises(ValueError, match="the map has one channel and the inputs have 2"):
        infidelity(model, x, 0, draw(1, 1, 4), units="slope", **how)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"share": 0.0}, "share must be above 0"), ({"draws": 1}, "at least 2"), ({"units": "slopes"}, "'slope'")],
)
def test_draws_that_make_no_sense_are_refused(linear, how, change, words):
    with pytest.raises(ValueError, match=words):
        infidelity(linear, draw(1, 7), 0, draw(1, 7), **how | change)


def test_correlations_are_scipys():
    first, second = draw(3, 40).round(decimals=1), draw(3, 40).round(decimals=1)
    there = torch.rand(3, 40) < 0.8
    for row in range(3):
        a, b = first[row][there[row]].numpy(), second[row][there[row]].numpy()
        close(spearman(first, second, there)[row], scipy.stats.spearmanr(a, b).statistic)
        close(pearson(first, second, there)[row], scipy.stats.pearsonr(a, b).statistic)


def test_ranks_of_many_ties_do_not_overflow():
    values = torch.zeros(1, 70_000)
    values[0, 0] = 1
    found = ranks(values, values >= 0)
    assert found[0, 0] == 70_000
    assert found[0, 1] == 35_000
