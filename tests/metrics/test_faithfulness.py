"""Faithfulness over a data set: means of what the functions give, whatever the batches and whatever runs beside it."""

from dataclasses import dataclass

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import evaluation, explain
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import RandomMap, core_measures
from lightning_xai.metrics import Faithfulness, Importance, Relevance, update_together
from lightning_xai.perturbation import Windows, kinds
from lightning_xai.relevance import LRP, GradientXInput, Saliency
from lightning_xai.scores import Logit, Probability, Unit

K, B, J, N = 10, 32, 16, 4
WINDOWS, BLUR = Windows(2), kinds.Blur()
ASK = {"regions": WINDOWS, "perturbation": BLUR}


class Rows(nn.Module):
    """Three logits of a plane of 4 x 4 windows; counts its rows and, without gradients, those of maps apart."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.scored, self.explained = 0, 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.explained += len(x)
        else:
            self.scored += len(x)
        return self.net(x)


def data():
    return draw(N, 1, 8, 8), torch.tensor([0, 2, 1, 1]), torch.tensor([9, 4, 7, 30])


@dataclass(frozen=True)
class Given(Attribution):
    """A constant for one sample, a blank map for another, contributions for the rest."""

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        relevance = inputs.clone()
        for row, sample in enumerate(sample_ids):
            if sample in (4, 7):
                relevance[row] = {4: 1.0, 7: -1.0}[sample]
        return Explanation.of(bound, score, relevance)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_results_are_means_over_the_samples_whatever_the_batches(size):
    model, (x, y, ids) = Rows(), data()
    metric = Faithfulness(RandomMap(), WINDOWS, kinds.GaussianNoise(), chunk_size=5 * size)
    for rows in torch.arange(N).split(size):
        metric.update(model, x[rows], y[rows], ids[rows])
    found = metric.compute()
    how = {"regions": WINDOWS, "perturbation": kinds.GaussianNoise(), "sample_ids": ids}
    expected = core_measures(model, x, y, RandomMap(), completeness_score="value", **how)
    for name, values in expected.values.items():
        close(found[name], values.mean())
        close(found[f"{name}_error"], values.std() / N**0.5)
        assert found[f"{name}_undefined"] == 0
    close(found["completeness_gap"], expected.completeness_gap)
    close(found["deletion_curve"], expected.curves.mean_curve(expected.curves.morf, K)[0] / N)
    close(found["insertion_curve"], expected.curves.mean_curve(expected.curves.lerf, K)[0] / N)


FURTHER = ("aopc_lerf", "irof", "monotone", "infidelity", "infidelity_scaled", "average_gain")


def test_further_measures_are_those_of_the_functions_by_the_same_passes():
    model, (x, y, ids) = Rows(), data()
    core, metric = (Faithfulness(GradientXInput(), WINDOWS, BLUR, further=names) for names in ((), FURTHER))
    counts = []
    for one in (core, metric):
        model.scored = 0
        one.update(model, x, y, ids)
        counts.append(model.scored)
    assert counts[1] <= counts[0]  # the first also looks at a sample alone
    found = metric.compute()
    for name in FURTHER:
        how = {"sample_ids": ids} if name == "average_gain" else {"sample_ids": ids, **ASK}
        close(found[name], getattr(evaluation, name)(model, x, y, GradientXInput(), **how).mean())
    assert not {*FURTHER} & core.compute().keys()
    assert metric.question != core.question
    assert {*FURTHER} <= metric.compared.keys()


def test_sensitivity_n_is_that_of_the_function_by_further_sets_of_two_sizes():
    model, (x, y, ids) = Rows(), data()
    how = {"share": 0.2, "draws": 5, "engine": "dense"}
    counts = []
    for names in ((), ["sensitivity_n"]):
        metric = Faithfulness(GradientXInput(), WINDOWS, BLUR, further=names, **how)
        model.scored = 0
        metric.update(model, x, y, ids)
        counts.append(model.scored)
        assert model.scored <= N * (1 + metric.own_evaluations) + 1
    assert counts[1] - counts[0] <= N * 2 * 5  # a sample alone is looked at but once
    whole = evaluation.sensitivity_n(model, x, y, GradientXInput(), draws=5, sample_ids=ids, **ASK)
    for size in (1, 3):
        metric = Faithfulness(GradientXInput(), WINDOWS, BLUR, further=["sensitivity_n"], share=0.4, draws=5)
        for rows in torch.arange(N).split(size):
            metric.update(model, x[rows], y[rows], ids[rows])
        close(metric.compute()["sensitivity_n"], whole.mean())
        close(metric.compute()["sensitivity_n_error"], whole.std() / N**0.5)


def test_road_accuracy_is_that_of_the_function_and_costs_no_pass():
    model, kind, x, ids = Rows(), kinds.NoisyLinear(), draw(12, 1, 8, 8), torch.arange(12).flip(0)
    y = model(x).argmax(1).where(ids > 2, 0)
    roads, counts = ("road_accuracy_morf", "road_accuracy_lerf"), []
    for names in ((), roads):
        metric = Faithfulness(GradientXInput(), WINDOWS, kind, further=names, steps=4)
        model.scored = 0
        for rows in torch.arange(12).split(5):
            metric.update(model, x[rows], y[rows], ids[rows])
        counts.append(model.scored)
    assert counts[1] <= counts[0]
    found, ask = metric.compute(), (model, x, y, GradientXInput())
    accuracy = evaluation.road_accuracy(*ask, regions=WINDOWS, perturbation=kind, steps=4, sample_ids=ids)
    assert len({*accuracy.morf.tolist(), *accuracy.lerf.tolist()}) > 2
    for name, curve in zip(roads, accuracy, strict=True):
        close(found[f"{name}_curve"], curve)
        close(found[name], torch.trapezoid(curve, dx=0.25))
        assert found[f"{name}_undefined"] == 0


def test_road_accuracy_reads_the_output_of_the_score():
    class Named(Rows):
        def forward(self, x):
            return {"first": torch.zeros(len(x), 3).to(x), "second": super().forward(x)}

    x, _, _ = data()
    model = Named()
    y = model(x)["second"].argmax(1)
    gradients, score = GradientXInput(score=Logit(output="second")), Probability(output="second")
    metric = Faithfulness(gradients, WINDOWS, BLUR, score=score, further=["road_accuracy_morf"], steps=2)
    metric.update(model, x, y)
    assert metric.compute()["road_accuracy_morf_curve"][0] == 1


def test_undefined_samples_are_left_out_and_counted():
    model, (x, y, ids) = Rows(), data()
    metric = Faithfulness(Given(), WINDOWS, BLUR)
    metric.update(model, x, y, ids)
    found = metric.compute()
    assert found["faithfulness_correlation_undefined"] == 2
    assert found["srg_undefined"] == 0
    assert found["blank"] == 1
    other = core_measures(model, x, y, Given(), regions=WINDOWS, perturbation=BLUR, sample_ids=ids)
    known = other.values["faithfulness_correlation"][[0, 3]]
    close(found["faithfulness_correlation"], known.mean())
    close(found["faithfulness_correlation_error"], known.std() / 2**0.5)


def test_a_single_sample_has_no_standard_error():
    metric = Faithfulness(RandomMap(), WINDOWS, BLUR)
    metric.update(Rows(), *(part[:1] for part in data()))
    assert metric.compute()["srg_error"].isnan()


def test_maps_and_passes_are_shared_with_other_metrics():
    model, (x, y, ids), how = Rows(), data(), {"chunk_size": 500, "engine": "dense"}
    metrics = {"relevance": Relevance(GradientXInput()), "importance": Importance(WINDOWS, BLUR, **how)}
    metrics |= {name: Faithfulness(GradientXInput(), WINDOWS, BLUR, share=0.01, **how) for name in ("one", "two")}
    update_together(metrics, model, x, y, ids)
    assert model.explained == N
    # Both metrics ask for the same. The random sets, and the first step of both curves, are one feature.
    # And the first time, a sample alone tells whether they are independent.
    assert model.scored == N * (1 + J + (2 * K - 1 - 2) + 1) + 1
    by_itself = Faithfulness(GradientXInput(), WINDOWS, BLUR, share=0.01)
    by_itself.update(model, x, y, ids)
    close(metrics["one"].compute()["srg"], by_itself.compute()["srg"])


def test_maps_of_several_attributions_share_the_sets_that_are_equal():
    model, (x, y, ids) = Rows(), data()
    metrics = {
        "gradients": Faithfulness(GradientXInput(), WINDOWS, BLUR, chunk_size=900),
        "random": Faithfulness(RandomMap(), WINDOWS, BLUR),
    }
    update_together(metrics, model, x, y, ids)
    # the random sets and the whole are the same, the curves are not, nor the masked inputs
    most = 1 + B + 1 + 2 * (2 * K - 2) + 2
    assert model.scored - N <= N * most  # the random map looks at the score once


def test_a_failing_attribution_takes_nobody_with_it():
    @dataclass(frozen=True)
    class Broken(Attribution):
        def attribute(self, model, inputs, target, sample_ids, details):
            raise RuntimeError("on purpose")

    model, (x, y, ids), said = Rows(), data(), []
    metrics = {"broken": Faithfulness(Broken(), WINDOWS, BLUR), "fine": Faithfulness(RandomMap(), WINDOWS, BLUR)}
    found = update_together(metrics, model, x, y, ids, on_error=lambda name, error: said.append((name, str(error))))
    assert said == [("broken", "on purpose")]
    assert list(found) == ["fine"]


def test_it_runs_over_a_data_set_and_draws_its_curves(tmp_path):
    x, y, _ = data()
    found = explain(Rows(), [(x, y)], {"lrp": Faithfulness(LRP(), WINDOWS, BLUR)}, folder=tmp_path, progress=False)
    assert found["lrp"]["samples"] == N
    assert found["lrp"]["deletion_curve"].shape == (K + 1,)
    assert (tmp_path / "figures" / "lrp.png").is_file()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Faithfulness("lrp", WINDOWS, BLUR), TypeError, "attribution must be one of"),
        (lambda: Faithfulness(RandomMap(), Windows(2, stride=1), BLUR), ValueError, "overlap"),
        (lambda: Faithfulness(RandomMap(), WINDOWS, kinds.Bidirectional(combine="central")), ValueError, "combine="),
        (lambda: Faithfulness(RandomMap(), WINDOWS, BLUR, score="comb_classes"), ValueError, "score='margin'"),
        (lambda: Faithfulness(RandomMap(), WINDOWS, BLUR, draws=1), ValueError, "draws must be at least 2"),
        (lambda: Faithfulness(RandomMap(), WINDOWS, BLUR, further=["iorf"]), ValueError, "Did you mean 'irof'"),
        (lambda: Faithfulness(RandomMap(), WINDOWS, BLUR, further="irof"), TypeError, "must list measures"),
        (
            lambda: Faithfulness(
                GradientXInput(), WINDOWS, BLUR, score=Unit("net.1", 0), further=["road_accuracy_lerf"]
            ),
            ValueError,
            "Unit reads no classes",
        ),
        (
            lambda: Faithfulness(RandomMap(), WINDOWS, BLUR, score="logit", further=["average_gain"]),
            TypeError,
            "average_gain is a share of a probability",
        ),
        (
            lambda: Faithfulness(Saliency(), WINDOWS, BLUR, further=["infidelity"]),
            ValueError,
            "infidelity compares contributions, and Saliency",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_a_batch_would_refuse_is_refused_by_its_check():
    with pytest.raises(ValueError, match="out of range"):
        Faithfulness(GradientXInput(), WINDOWS, BLUR).check(Rows(), draw(2, 1, 8, 8), torch.tensor([0, 5]))
