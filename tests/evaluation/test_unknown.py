"""What nobody knows is NaN, never 0 or 1: maps without a finite cell, samples without a feature, scores of NaN."""

from dataclasses import dataclass

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import evaluation
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.metrics import Faithfulness, ImportanceAgreement, Localisation, Randomisation, Robustness
from lightning_xai.perturbation import Segments, Windows, kinds
from lightning_xai.relevance import Deconvnet, GradientXInput, GuidedBackprop, Saliency, Sensitivity, SmoothGrad

NAN = torch.nan
HOW = {"regions": Windows(2), "perturbation": kinds.Constant(0.0)}
CURVES = ("deletion", "insertion", "srg", "aopc_morf", "aopc_lerf", "irof", "monotone", "sufficient_share")
SETS = ("faithfulness_correlation", "sensitivity_n", "infidelity", "infidelity_scaled", "infidelity_relative")
SINGLE = ("faithfulness_estimate", "monotonicity_correlation", "non_sensitivity")
MASKED = ("average_drop", "average_increase", "average_gain")


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()


@dataclass(frozen=True, eq=False)
class Given(Attribution):
    """Maps by the samples' ids, whatever the network is."""

    maps: torch.Tensor
    score = "logit"

    def attribute(self, model, inputs, target, sample_ids, details):
        return Explanation.of(*self.clean(model, inputs, target), self.maps[list(sample_ids)])


def maps():
    """Of three samples, the second one without a finite cell."""
    found = draw(3, 1, 6, 6)
    found[1] = NAN
    return found


def sets(*shape):
    return torch.ones(shape, dtype=torch.bool)


def measured(name, relevance, model=None, x=None, **how):
    model, x = network() if model is None else model, draw(3, 1, 6, 6) if x is None else x
    ask = {} if name in MASKED else HOW | how
    return getattr(evaluation, name)(model, x, torch.tensor([0, 1, 2]), relevance, **ask)


@pytest.mark.parametrize("name", [*CURVES, *SETS, *SINGLE, *MASKED])
def test_a_map_without_a_finite_cell_is_unknown_to_every_measure(name):
    found = measured(name, maps())
    assert found.isnan().tolist()[1] is True
    assert name == "irof" or found[[0, 2]].isfinite().all()


def randomised(name, **how):
    return getattr(evaluation, name)(network(), draw(2, 1, 6, 6), 0, GradientXInput(), **how)


def test_a_map_without_a_finite_cell_has_no_gap_no_blank_and_no_mass():
    model, x, relevance = network(), draw(3, 1, 6, 6), maps()
    rest = [0, 2]
    whole = evaluation.completeness_gap(model, x, 0, relevance, **HOW)
    close(whole, evaluation.completeness_gap(model, x[rest], 0, relevance[rest], **HOW))
    assert not evaluation.masked_scores(model, x, 0, relevance).blank.any()
    mask = torch.ones(3, 6, 6, dtype=torch.bool).tril()
    for measure in (evaluation.pointing, evaluation.relevance_mass, evaluation.relevance_rank):
        assert measure(relevance, mask).isnan().tolist() == [False, True, False]
    for similarity in ("spearman", "cosine", "ssim"):
        for first, second in ((relevance, draw(3, 1, 6, 6)), (draw(3, 1, 6, 6), relevance), (relevance, relevance)):
            found = evaluation.map_similarity(first, second, similarity)
            assert found.isnan().tolist() == [False, True, False]
    assert evaluation.histogram_entropy(relevance).isnan().tolist() == [False, True, False]


def test_features_that_no_epoch_knows_do_not_drift():
    now, then = draw(3, 5), draw(3, 5)
    now[1] = NAN
    for drift in (evaluation.spearman_drift, evaluation.cosine_drift, evaluation.top_drift):
        for pair in ((now, then), (then, now), (now, now)):
            assert drift(*pair).isnan().tolist() == [False, True, False]
    now[0, 1] = NAN  # of which the others are compared
    known = [0, 2, 3, 4]
    close(evaluation.spearman_drift(now, then)[0], evaluation.spearman_drift(now[:1, known], then[:1, known])[0])


def test_maps_with_fewer_features_than_are_compared_have_all_of_them():
    now = draw(2, 5)
    close(evaluation.top_drift(now, now, 50), [0.0, 0.0])
    now[0, :4] = NAN  # whose one feature is the same in both
    close(evaluation.top_drift(now, now.flip(1).nan_to_num(1.0), 3)[:1], [0.0])


def test_numbers_that_are_not_known_have_no_gini_coefficient_and_no_entropy():
    values = torch.tensor([[NAN, 1.0], [0.0, 0.0], [0.0, 2.0]])
    for measure, last in ((evaluation.gini, 0.5), (evaluation.entropy, 0.0)):
        found = measure(values)
        assert found.isnan().tolist() == [True, False, False]
        close(found[1:], [0.0, last])


def test_a_feature_that_is_not_finite_is_in_no_code():
    features = torch.tensor([[1.0, NAN, -3.0, 0.5], [1.0, 0.0, -3.0, 0.5]])
    assert evaluation.codes(features).tolist() == [[0, 5]] * 2


def test_robustness_leaves_out_cells_that_are_not_finite():
    model, x, noise = network(), draw(2, 1, 6, 6), 0.1 * draw(2, 3, 1, 6, 6)

    @dataclass(frozen=True)
    class Broken(GradientXInput):
        cells: int = 0

        def attribute(self, model, inputs, *rest):
            found = super().attribute(model, inputs, *rest)
            found.map.flatten(1)[:, : self.cells] = NAN
            return found

    found = evaluation.map_changes(model, x, 0, Broken(cells=7), noise=noise)
    rest = torch.ones(36, dtype=torch.bool).index_fill(0, torch.arange(7), False).view(1, 6, 6)
    a = GradientXInput()(model, x, 0)[:, rest]
    for t in range(3):
        moved = GradientXInput()(model, x + noise[:, t], 0)[:, rest]
        close(found.change[:, t], (moved - a).norm(dim=1))
        close(found.relative_change[:, t], ((moved - a) / a).norm(dim=1))
    close(found.size, a.norm(dim=1))
    nothing = evaluation.map_changes(model, x, 0, Broken(cells=36), noise=noise)
    for name in ("max_sensitivity", "avg_sensitivity", "lipschitz", "ris", "ros"):
        assert getattr(found, name).isfinite().all()
        assert getattr(nothing, name).isnan().all()


@pytest.mark.parametrize("name", [*CURVES, *SETS, *SINGLE])
def test_a_sample_without_a_feature_is_unknown(name):
    labels = torch.arange(36).view(1, 6, 6).repeat(3, 1, 1) // 6
    labels[1] = -1
    found = measured(name, draw(3, 1, 6, 6), regions=Segments(lambda x: labels if len(x) == 3 else labels[:1]))
    assert found.isnan().tolist()[1] is True


class Broken(nn.Module):
    """Its outputs are NaN for a sample whose first cell is large."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x).masked_fill(x[:, 0, :1, 0] > 99, NAN)


@pytest.mark.parametrize("name", [*CURVES, *SETS, *SINGLE, *MASKED])
def test_a_sample_whose_score_is_not_finite_is_unknown(name):
    model, x, relevance = Broken(), draw(3, 1, 6, 6), draw(3, 1, 6, 6)
    x[1, 0, 0, 0] = 100
    found = measured(name, relevance, model, x)
    assert found.isnan().tolist()[1] is True
    alone = [0, 2]
    ask = {} if name in MASKED else HOW
    close_or_nan = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
    expected = getattr(evaluation, name)(model, x[alone], [0, 2], relevance[alone], **ask, sample_ids=alone)
    torch.testing.assert_close(found[alone], expected, **close_or_nan)


def test_road_does_not_count_samples_whose_outputs_are_not_finite():
    model, x = Broken(), draw(4, 1, 6, 6)
    x[1, 0, 0, 0] = 100
    target = model(x).argmax(1)
    rest = [0, 2, 3]
    found = evaluation.road_accuracy(model, x, target, x, regions=2)
    alone = evaluation.road_accuracy(model, x[rest], target[rest], x[rest], regions=2, sample_ids=rest)
    for curve, expected in zip(found, alone, strict=True):
        close(curve, expected)
    assert found.morf[0] == 1
    with pytest.raises(TypeError, match="takes no score"):
        evaluation.road_accuracy(model, x, target, x, regions=2, score="logit")


def test_metrics_know_what_the_functions_know():
    model, x, relevance = network(), draw(3, 1, 6, 6), maps()
    attribution, mask = Given(relevance), torch.ones(3, 6, 6, dtype=torch.bool).tril()
    metrics = {
        "faithfulness": Faithfulness(attribution, **HOW),
        "agreement": ImportanceAgreement(attribution, **HOW),
        "localisation": Localisation(attribution, lambda inputs: mask[: len(inputs)]),
        "robustness": Robustness(attribution, draws=2),
        "randomisation": Randomisation(attribution, similarity="ssim"),
    }
    for name, metric in metrics.items():
        metric.update(model, x, torch.tensor([0, 1, 2]))
        found = metric.compute()
        assert {key: int(found[f"{key}_undefined"]) for key in metric.measures} == dict.fromkeys(metric.measures, 1), (
            name
        )
        assert found.get("blank", 0) == 0
    alone = evaluation.completeness_gap(model, x[[0, 2]], [0, 2], relevance[[0, 2]], **HOW, score="logit")
    close(metrics["faithfulness"].compute()["completeness_gap"], alone)


@pytest.mark.parametrize("metric", [Faithfulness, ImportanceAgreement])
def test_a_table_has_no_neighbours_for_metrics_either(metric):
    asked = metric(GradientXInput(), 1, kinds.NoisyLinear())
    for call in (asked.update, asked.check):
        with pytest.raises(ValueError, match="the columns of a table have none"):
            call(nn.Linear(4, 2).double(), draw(2, 4), 0)


def test_agreement_checks_what_a_batch_would_refuse():
    with pytest.raises(ValueError, match="out of range"):
        ImportanceAgreement(GradientXInput(), **HOW).check(network(), draw(2, 1, 6, 6), torch.tensor([0, 9]))


SLOPES = (Saliency(), Saliency(absolute=False), Sensitivity(), Deconvnet(), GuidedBackprop(), SmoothGrad())


@pytest.mark.parametrize("attribution", SLOPES, ids=lambda one: type(one).__name__)
def test_a_slope_is_no_contribution(attribution):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match=r"per unit of the input.*units='slope'"):
        evaluation.infidelity(model, draw(3, 1, 6, 6), 0, attribution, **HOW)
    assert measured("infidelity", attribution, model, units="slope").isfinite().all()
    assert measured("faithfulness_correlation", attribution, model).isfinite().any()  # which has no unit
    assert not SmoothGrad(GradientXInput()).is_slope


def test_sizes_that_coincide_in_a_sample_count_once_and_the_map_is_made_once():
    labels = torch.arange(36).view(1, 6, 6).repeat(2, 1, 1)
    labels[1] //= 12
    made = []

    @dataclass(frozen=True)
    class Counted(GradientXInput):
        def attribute(self, *args):
            made.append(args)
            return super().attribute(*args)

    model, x = network(), draw(2, 1, 6, 6)
    how = HOW | {"regions": Segments(lambda x: labels[-len(x) :]), "sample_ids": [0, 1]}
    found = evaluation.sensitivity_n(model, x, 0, Counted(), shares=(0.1, 0.3, 0.6), **how)
    assert len(made) == 1
    # of three features .1 and .3 are one
    how |= {"regions": Segments(labels[1]), "sample_ids": [1]}
    expected = evaluation.sensitivity_n(model, x[1:], 0, GradientXInput(), shares=(0.1, 0.6), **how)
    close(found[1:], expected)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Faithfulness(GradientXInput(), **HOW, share="all"), TypeError, "share must be a number"),
        (lambda: Faithfulness(GradientXInput(), **HOW, share=NAN), ValueError, "share must be finite"),
        (lambda: Localisation(GradientXInput(), abs, tolerance="3"), TypeError, "tolerance must be a number"),
        (lambda: Localisation(GradientXInput(), abs, tolerance=NAN), ValueError, "tolerance must be finite"),
        (lambda: Robustness(GradientXInput(), radius="small"), TypeError, "radius must be a number"),
        (lambda: Robustness(GradientXInput(), radius=-1.0), ValueError, "radius must not be negative"),
        (lambda: Robustness(GradientXInput(), radius=(0.1, NAN)), ValueError, "radius must be finite"),
        (lambda: evaluation.CoreMeasures("blur", epsilon=-0.1), ValueError, "epsilon must not be negative"),
        (lambda: measured("sufficient_share", draw(3, 1, 6, 6), epsilon=None), TypeError, "epsilon must be a number"),
        (lambda: measured("sensitivity_n", draw(3, 1, 6, 6), shares=()), ValueError, "shares is empty"),
        (lambda: measured("sensitivity_n", draw(3, 1, 6, 6), shares=(2,)), ValueError, "at most 1"),
        (lambda: measured("infidelity", draw(3, 1, 6, 6), seed="one"), TypeError, "seed must be an integer"),
        (lambda: measured("infidelity", draw(3, 1, 6, 6), subsets=sets(2, 4, 9)), ValueError, r"\[3, draws, 9\]"),
        (lambda: measured("infidelity", draw(3, 1, 6, 6), subsets=sets(3, 0, 9)), ValueError, r"\[3, draws, 9\]"),
        (lambda: measured("infidelity", draw(3, 1, 6, 6), subsets=sets(12, 9)), ValueError, r"\[3, draws, 9\]"),
        (lambda: evaluation.top_drift(draw(2, 5), draw(2, 5), 0), ValueError, "count must be at least 1"),
        (lambda: evaluation.cosine_drift(draw(2, 5), draw(3, 5)), ValueError, r"got the shapes \[2, 5\] and \[3, 5\]"),
        (lambda: evaluation.spearman_drift(draw(2, 5), draw(2, 4)), ValueError, "same samples and features"),
        (lambda: evaluation.first_stable_epoch([1, 2], [0.1]), ValueError, "got 2 and 1"),
        (lambda: evaluation.first_stable_epoch([1], [0.9], least=0), ValueError, "least must be at least 1"),
        (lambda: evaluation.codes(draw(5)), ValueError, r"\[N, J\]"),
        (lambda: evaluation.consistency(sets(4, 2).long(), torch.arange(3)), ValueError, "same samples"),
        (lambda: evaluation.sufficiency(draw(4, 2), torch.arange(3)), ValueError, "same samples"),
        (lambda: evaluation.map_similarity(draw(3, 1, 6, 6), draw(2, 1, 6, 6)), ValueError, "same samples"),
        (lambda: evaluation.relevance_mass(draw(3), sets(3)), ValueError, r"\[N, C, \*S\]"),
        (lambda: evaluation.boxes_to_masks(torch.tensor([[[3], [1]]]), (4,)), ValueError, "must not lie behind"),
        (lambda: evaluation.gini(draw(3).abs().neg()), ValueError, "must not be negative"),
        (lambda: evaluation.gini(draw(2, 0)), ValueError, "hold no number"),
        (lambda: evaluation.boxes_to_masks(torch.zeros(1, 2, 1), (4,)), TypeError, "boxes must be integers"),
        (lambda: evaluation.sufficiency(draw(3, 2), torch.arange(3), threshold="high"), TypeError, "threshold must be"),
        (lambda: evaluation.first_stable_epoch([1], [0.9], threshold=None), TypeError, "threshold must be a number"),
        (lambda: randomised("mprt", parameters=[1]), TypeError, "parameters must be a dict of tensors by dotted name"),
        (lambda: randomised("mprt", absolute="yes"), TypeError, "absolute must be True or False"),
        (lambda: randomised("emprt", seed="one"), TypeError, "seed must be an integer"),
        (lambda: randomised("random_logit", seed=1.5), TypeError, "seed must be an integer"),
        (lambda: randomised("random_logit", other=torch.tensor([1, 0])), ValueError, "another class than the target"),
        (lambda: evaluation.entropy(draw(3).abs().neg()), ValueError, "must not be negative"),
        (lambda: evaluation.mosaics(draw(1, 1, 4), [0], [1.0], [1]), TypeError, "background must be a tensor"),
        (lambda: measured("srg", draw(3, 1, 6, 6).to("meta")), ValueError, "meta device has no values"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
