"""Curves: the closed forms of a linear score, what they do not depend on, and their edges."""

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.attribution import Explanation
from lightning_xai.evaluation import (
    RandomMap,
    aopc_lerf,
    aopc_morf,
    deletion,
    gini,
    insertion,
    irof,
    monotone,
    perturbation_curves,
    srg,
    sufficient_share,
)
from lightning_xai.inputs import Inputs
from lightning_xai.perturbation import Segments, Windows, kinds
from lightning_xai.relevance import GradientXInput

ZERO = kinds.Constant(0.0)


def ordered(linear, x):
    """The contributions of the columns [N, J] in descending order, their number, and their places from 1 on."""
    values = (linear.weight * x).detach().sort(1, descending=True).values
    return values, values.shape[1], torch.arange(1, values.shape[1] + 1).double()


def test_areas_of_a_linear_score_have_closed_forms(linear, how):
    x, bias = draw(5, 7), linear.bias.detach()
    values, count, i = ordered(linear, x)
    ask = (linear, x, 0, GradientXInput())
    how |= {"steps": count}
    score = linear(x).detach().squeeze(1)
    down = bias + (values * (i - 0.5)).sum(1) / count
    close(deletion(*ask, **how), down)
    close(insertion(*ask, **how), bias + (values * (count - i + 0.5)).sum(1) / count)
    close(deletion(*ask, **how) + insertion(*ask, **how), score + bias)
    close(srg(*ask, **how), (values * (count + 1 - 2 * i)).sum(1) / count)
    close(aopc_morf(*ask, **how), (values * (count + 1 - i)).sum(1) / (count + 1))
    close(aopc_lerf(*ask, **how), (values.flip(1) * (count + 1 - i)).sum(1) / (count + 1))
    expected = torch.where(score > 0, 1 - down / score, torch.nan)
    torch.testing.assert_close(irof(*ask, **how), expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_srg_of_a_linear_score_is_the_gini_coefficient_times_the_sum(linear, how):
    linear.weight.data.abs_()
    x = draw(3, 7).abs()
    values = (linear.weight * x).detach()
    close(srg(linear, x, 0, values, **how), gini(values) * values.sum(1))


def test_curves_are_those_of_a_loop():
    model, x, relevance = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double(), draw(2, 1, 3, 4), draw(2, 1, 3, 4)
    found = perturbation_curves(model, x, 1, relevance, regions=2, perturbation=kinds.ChannelMean(), steps=3)
    boxes = [(slice(a, a + 2), slice(b, b + 2)) for a in (0, 2) for b in (0, 2)]  # the lower ones are cut
    for row in range(2):
        sums = [relevance[row, 0][box].sum().item() for box in boxes]
        order = sorted(range(4), key=lambda j, sums=sums: -sums[j])
        for curve, features in ((found.morf, order), (found.lerf, order[::-1])):
            for k, size in enumerate((0, 1, 2, 4)):
                image = x[row : row + 1].clone()
                for j in features[:size]:
                    image[(0, 0, *boxes[j])] = x[row].mean()
                close(curve[row, k], model(image).softmax(1)[0, 1])
    close(found.share[0], [0, 0.25, 0.5, 1])


def test_only_the_order_of_the_map_matters(linear, how):
    x, relevance = draw(4, 7), draw(4, 7)
    found = perturbation_curves(linear, x, 0, relevance, **how)
    again = perturbation_curves(linear, x, 0, (3 * relevance).exp(), **how)
    close(again.morf, found.morf)
    close(again.lerf, found.lerf)
    close(srg(linear, x, 0, -relevance, **how), -found.srg)


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_a_constant_map_orders_by_index_in_both_curves(linear, how, value):
    x = draw(3, 7)
    found = perturbation_curves(linear, x, 0, torch.full((3, 7), value).double(), **how)
    close(found.morf, found.lerf)
    close(found.srg, [0.0, 0.0, 0.0])
    left = linear.bias.detach() + (linear.weight * x).detach().flip(1).cumsum(1).flip(1)
    close(found.morf[:, :-1], left)


def test_more_steps_than_features_are_as_many_as_features(linear, how):
    x, relevance = draw(2, 7), draw(2, 7)
    found = perturbation_curves(linear, x, 0, relevance, steps=50, **how)
    close(found.morf, perturbation_curves(linear, x, 0, relevance, steps=7, **how).morf)
    close(srg(linear, x, 0, relevance, **how | {"regions": 7}), [0.0, 0.0])


def test_an_order_that_is_not_asked_for_is_unknown(linear, how):
    ask = (linear, draw(2, 7), 0, draw(2, 7))
    both = perturbation_curves(*ask, **how)
    for order, other in (("morf", "lerf"), ("lerf", "morf")):
        one = perturbation_curves(*ask, orders=(order,), **how)
        close(getattr(one, order), getattr(both, order))
        assert getattr(one, other).isnan().all()
        assert one.srg.isnan().all()


def test_a_perturbation_that_changes_nothing_gives_flat_curves(linear, how):
    x = draw(2, 7)
    found = perturbation_curves(linear, x, 0, draw(2, 7), **how | {"perturbation": kinds.Offset(0.0)})
    close(found.morf, linear(x).detach().expand(-1, 8))
    close(found.srg, [0.0, 0.0])
    close(found.monotone, [1.0, 1.0])


def test_the_area_under_a_random_order_is_the_middle_of_both_ends(linear, how):
    x = draw(1, 7)
    ids = torch.arange(4000)
    found = deletion(linear, x.expand(4000, -1), 0, RandomMap(seed=2), sample_ids=ids, **how | {"steps": 3})
    assert abs(found.mean() - (linear(x) + linear.bias).item() / 2) < 4 * found.std() / 4000**0.5


def test_monotone_and_sufficient_share_count_steps():
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data[:] = torch.tensor([[4.0, -1.0, 2.0, 0.0]])
    x, how = torch.ones(1, 4).double(), {"regions": 1, "perturbation": ZERO, "score": "value"}
    relevance = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).double()  # curve 5, 1, 2, 0, 0
    close(monotone(model, x, 0, relevance, **how), [0.75])
    # without the last column 5, without the last two 3, then 4 and 0
    close(sufficient_share(model, x, 0, relevance, **how), [0.75])
    close(sufficient_share(model, x, 0, relevance, epsilon=0.2, **how), [0.25])


def test_segments_may_be_more_in_one_sample_than_in_another(linear, how):
    labels = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 2, 2, 2, -1]])
    x, relevance = draw(2, 7), draw(2, 7)
    both = perturbation_curves(linear, x, 0, relevance, **how | {"regions": Segments(lambda _: labels)})
    own = Segments(labels[1].clamp(max=1).tolist())
    one = perturbation_curves(linear, x[1:], 0, relevance[1:], **how | {"regions": own})
    assert both.share.isfinite().sum(1).tolist() == [8, 3]
    close(both.morf[1, :3], one.morf[0])
    close(both.deletion[1], one.deletion[0])
    close(both.aopc_lerf[1], one.aopc_lerf[0])
    total, count = both.mean_curve(both.morf, 4)
    middle = (one.morf[0, :-1] + one.morf[0, 1:]) / 2
    seven = torch.tensor([0.0, 1.75, 3.5, 5.25, 7.0])
    read = torch.lerp(both.morf[0, seven.long()], both.morf[0, (seven.long() + 1).clamp(max=7)], seven.frac().double())
    close(total - read, torch.stack([one.morf[0, 0], middle[0], one.morf[0, 1], middle[1], one.morf[0, 2]]))
    assert count == 2


def test_cells_that_are_not_finite_are_left_out_of_sums_and_features_of_such_cells_of_the_order(linear, how):
    x, relevance = draw(1, 7), draw(1, 7)
    relevance[0, :2], relevance[0, 2] = torch.nan, torch.inf
    found = perturbation_curves(linear, x, 0, relevance, **how | {"regions": Windows(2)})
    rest = perturbation_curves(
        linear, x, 0, relevance.nan_to_num(posinf=0), **how | {"regions": Segments([-1, -1, 0, 0, 1, 1, 2])}
    )
    close(found.morf, rest.morf)


def test_a_score_that_is_not_finite_leaves_the_curve_undefined(how):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where((x == 0).sum(1) == 2, torch.inf, x.sum(1)).unsqueeze(1)

    x = torch.ones(1, 3).double()
    found = perturbation_curves(Broken(), x, 0, x, **how)
    for name in ("deletion", "insertion", "srg", "aopc_morf", "irof", "monotone", "sufficient_share"):
        assert getattr(found, name).isnan().all(), name
    assert found.mean_curve(found.morf, 3)[1] == 0


def test_a_map_an_explanation_and_an_attribution_are_the_same(linear, how):
    x = draw(3, 7)
    explanation = GradientXInput().explain(linear, x, 0)
    assert isinstance(explanation, Explanation)
    found = [srg(linear, x, 0, given, **how) for given in (GradientXInput(), explanation, explanation.map)]
    close(found[1], found[0])
    close(found[2], found[0])


def test_the_target_is_that_of_the_explanation_unless_one_is_given(how):
    model, x = nn.Linear(7, 3).double(), draw(3, 7)
    explanation = GradientXInput().explain(model, x, [2, 0, 1])
    close(srg(model, x, None, explanation, **how), srg(model, x, [2, 0, 1], explanation.map, **how))
    close(srg(model, x, 1, explanation, **how), srg(model, x, 1, explanation.map, **how))


def test_a_sample_alone_has_what_it_has_in_company():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double(), draw(3, 1, 3, 4)
    how = {"regions": 2, "perturbation": kinds.GaussianNoise(), "score": "logit"}
    together = srg(model, x, [0, 2, 1], RandomMap(), sample_ids=[5, 9, 2], chunk_size=4, **how)
    close(srg(model, x[1:2], [2], RandomMap(), sample_ids=[9], **how), together[1:2])


@pytest.mark.parametrize(
    ("relevance", "error", "words"),
    [
        (torch.ones(2, 6), ValueError, r"shaped like the inputs \[2, 7\]"),
        (torch.ones(1, 7), ValueError, "shaped like the inputs"),
        (torch.ones(2, 7, dtype=torch.long), ValueError, "floating-point numbers"),
        ([[1.0]], TypeError, "a map, an Explanation or an Attribution, got list"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(linear, how, relevance, error, words):
    with pytest.raises(error, match=words):
        srg(linear, draw(2, 7), 0, relevance, **how)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"perturbation": kinds.Bidirectional(combine="central")}, "need combine='mean', or a kind of one arm"),
        ({"perturbation": kinds.Bidirectional(combine="max_abs")}, "need combine='mean', or a kind of one arm"),
        ({"regions": Windows(2, stride=1)}, r"Windows\(size=2, stride=1\) overlap"),
        ({"score": "comb_classes"}, "use score='margin' instead"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"orders": ("morf", "lrf")}, "orders 'lrf' is unknown. Did you mean 'lerf'"),
        ({"orders": ()}, "orders '' is unknown"),
    ],
)
def test_what_makes_no_curve_is_refused(linear, how, change, words):
    with pytest.raises(ValueError, match=words):
        perturbation_curves(linear, draw(1, 7), 0, draw(1, 7), **how | change)


def test_a_map_of_its_own_size_is_resized(how):
    model, x, small = nn.Sequential(nn.Flatten(), nn.Linear(8, 1)).double(), draw(1, 1, 8), draw(1, 1, 4)
    large = nn.functional.interpolate(small, 8, mode="linear")
    close(srg(model, x, 0, small, **how), srg(model, x, 0, large, **how))


def test_the_output_of_a_module_is_explained_like_an_input():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), draw(3, 4)
    how = {"regions": 1, "perturbation": ZERO, "score": "logit", "sample_ids": [5, 2, 9]}
    hidden, site = model[:2](x).detach(), Inputs(x, at="1")
    for explanation in (GradientXInput(), RandomMap()):
        expected = srg(model[2], hidden, 1, explanation, **how)
        close(srg(model, site, 1, explanation, **how), expected)
        close(srg(model, site, 1, explanation.explain(model, site, 1, [5, 2, 9]), **how), expected)


def test_fixed_inputs_follow_their_samples():
    class Gated(nn.Module):
        def forward(self, x, gate):
            return (x * gate).cumsum(1)

    x, gate = draw(4, 5), draw(4, 5)
    how = {"regions": 1, "perturbation": ZERO, "score": "value", "chunk_size": 3}
    found = perturbation_curves(Gated(), Inputs(x, gate, explain=0), 4, gate, **how)
    for row in range(4):
        one = perturbation_curves(Gated(), Inputs(x[row:][:1], gate[row:][:1], explain=0), 4, gate[row:][:1], **how)
        close(found.morf[row], one.morf[0])
