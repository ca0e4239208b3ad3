"""Metrics of measures: means of what the functions give, whatever the batches, and what they share and refuse."""

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.evaluation import emprt, feature_drops, map_changes, mprt, pointing, random_logit, relevance_mass
from lightning_xai.metrics import (
    Consistency,
    Faithfulness,
    Importance,
    ImportanceAgreement,
    Localisation,
    Randomisation,
    Robustness,
    update_together,
)
from lightning_xai.perturbation import Windows, kinds
from lightning_xai.relevance import GradientXInput

GXI, WINDOWS, BLUR = GradientXInput(), Windows(2), kinds.Blur()


class Rows(nn.Module):
    """Three logits of a plane of 2 x 3 windows; counts the rows that it scores."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.scored = 0

    def forward(self, x):
        self.scored += 0 if torch.is_grad_enabled() else len(x)
        return self.net(x)


def data():
    return draw(4, 1, 4, 6), torch.tensor([0, 2, 1, 1]), torch.tensor([9, 4, 7, 30])


def ink(x):
    return x[:, 0] > 0.5


def expected(model, x, y, ids):
    changes = map_changes(model, x, y, GXI, draws=3, sample_ids=ids)
    drops = feature_drops(model, x, y, GXI, regions=WINDOWS, perturbation=BLUR)
    relevance = GXI(model, x, y)
    return {
        "robustness": {
            name: getattr(changes, name) for name in ("max_sensitivity", "avg_sensitivity", "lipschitz", "ros")
        },
        "randomisation": {
            "mprt": mprt(model, x, y, GXI, order="bottom_up").mean,
            "emprt": emprt(model, x, y, GXI),
            "random_logit": random_logit(model, x, y, GXI, sample_ids=ids),
        },
        "agreement": {"faithfulness_estimate": drops.estimate, "non_sensitivity": drops.non_sensitivity},
        "localisation": {
            "pointing": pointing(relevance, ink(x), tolerance=1.0),
            "relevance_mass": relevance_mass(relevance, ink(x)),
        },
    }


def metrics():
    return {
        "robustness": Robustness(GXI, draws=3),
        "randomisation": Randomisation(GXI, order="bottom_up"),
        "agreement": ImportanceAgreement(GXI, WINDOWS, BLUR),
        "localisation": Localisation(GXI, ink, tolerance=1.0),
    }


@pytest.mark.parametrize("size", [1, 3])
def test_the_results_are_means_over_the_samples_whatever_the_batches(size):
    model, (x, y, ids) = Rows(), data()
    found = metrics()
    for rows in torch.arange(4).split(size):
        update_together(found, model, x[rows], y[rows], ids[rows])
    for name, measures in expected(model, x, y, ids).items():
        result = found[name].compute()
        for key, values in measures.items():
            close(result[key], values.mean())
            close(result[f"{key}_error"], values.std() / 2)
            assert result[f"{key}_undefined"] == 0


def test_stages_are_means_and_have_the_names_of_their_layers():
    model, (x, y, _) = Rows(), data()
    metric = Randomisation(GXI)
    metric.update(model, x, y)
    close(metric.compute()["mprt_by_layer"], mprt(model, x, y, GXI).similarity.mean(0))
    assert metric.axis_labels["layer"] == ["net.3", "net.1"]


def test_agreement_costs_no_pass_beside_importance():
    model, (x, y, _) = Rows(), data()
    found = {
        "importance": Importance(WINDOWS, BLUR, chunk_size=99, engine="dense"),
        "agreement": ImportanceAgreement(GXI, WINDOWS, BLUR, engine="dense"),
    }
    update_together(found, model, x, y)
    assert model.scored == 4 * (1 + 6) + 1  # a sample alone tells whether they are independent


def test_samples_without_an_object_are_undefined_and_blank_maps_counted():
    model, (x, y, _) = Rows(), data()
    metric = Localisation(GXI, lambda inputs: ink(inputs) & (torch.arange(4) > 0).view(-1, 1, 1))
    metric.update(model, x, y)
    assert metric.compute()["relevance_mass_undefined"] == 1
    blank = Localisation(GXI, ink)
    blank.update(model, torch.zeros(2, 1, 4, 6).double(), 0)
    assert blank.compute()["blank"] == 2


@pytest.mark.parametrize("size", [1, 3, 4])
def test_classes_count_alike_where_hits_are_averaged_over_them(size):
    model, (x, *_), target = Rows(), data(), torch.tensor([0, 0, 2, 2])
    strongest = GXI(model, x, target).sum(1)
    hit = strongest == strongest.amax((1, 2), keepdim=True)
    mask = torch.stack([hit[0], ~hit[1], hit[2], hit[3] & False])  # hits, misses, hits, has no object
    metric = Localisation(GXI)
    for rows in torch.arange(4).split(size):
        metric.update(model, x[rows], target[rows], masks=mask[rows])
    found = metric.compute()
    close(found["pointing_per_class"], torch.tensor(0.75).double())
    close(found["pointing"], torch.tensor(2.0).double() / 3)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    "name", ["robustness", "randomisation", "agreement", "localisation", "faithfulness", "consistency"]
)
def test_a_metric_without_a_batch_has_no_means(name):
    others = {"faithfulness": Faithfulness(GXI, WINDOWS, BLUR), "consistency": Consistency(GXI, WINDOWS)}
    found = (metrics() | others)[name].compute()
    assert found["samples"] == 0
    assert all(value.isnan() for key, value in found.items() if key.endswith("_error"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Robustness("lrp"), TypeError, "takes an attribution"),
        (lambda: Robustness(GXI, draws=0), ValueError, "draws must be at least 1"),
        (lambda: Randomisation(GXI, order="up"), ValueError, "top_down"),
        (lambda: Randomisation(GXI, similarity="mse"), ValueError, "spearman"),
        (lambda: ImportanceAgreement(GXI, Windows(2, stride=1), BLUR), ValueError, "overlap"),
        (lambda: ImportanceAgreement(GXI, 2, kinds.Bidirectional(combine="central")), ValueError, "combine="),
        (lambda: Localisation(GXI, torch.ones(3)), TypeError, "mask must be a function"),
        (lambda: Localisation(GXI, ink, tolerance=-1.0), ValueError, "tolerance"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make, error, words):
    with pytest.raises(error, match=words):
        make()
