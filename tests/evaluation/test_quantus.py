"""Where definitions agree, so do the numbers of Quantus, which computes in single precision; the guide says so."""

import numpy as np
import pytest
import quantus
import torch
from torch import nn

from lightning_xai import evaluation
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradientXInput

pytestmark = pytest.mark.filterwarnings("ignore")

PLAIN = {"normalise": False, "abs": False, "disable_warnings": True}
ZERO = kinds.Constant(0.0)
BLACK = {"perturb_baseline": 0.0}


@pytest.fixture
def asked():
    """A network, images without zeros, labels and contributions."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.rand(3, 1, 6, 6) + 0.5
    y = model(x).argmax(1)
    return model, x, y, GradientXInput()(model, x, y)


def theirs(measure, asked, **options):
    model, x, y, relevance = asked
    how = {"softmax": True, "device": "cpu", **options}
    found = measure(model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=relevance.numpy().copy(), **how)
    return torch.as_tensor(np.asarray(found, dtype=np.float64))


def same(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_pixel_flipping_begins_after_the_clean_input(asked):
    peer = theirs(quantus.PixelFlipping(features_in_step=1, **BLACK, **PLAIN), asked)
    same(evaluation.perturbation_curves(*asked, regions=1, perturbation=ZERO, steps=36).morf[:, 1:], peer)


def test_regions_are_perturbed_in_the_same_order(asked):
    curves = evaluation.perturbation_curves(*asked, regions=2, perturbation=ZERO, steps=9)
    for order, ours in (("morf", curves.morf), ("lerf", curves.lerf)):
        measure = quantus.RegionPerturbation(patch_size=2, order=order, regions_evaluation=9, **BLACK, **PLAIN)
        same(ours[:, :1] - ours[:, 1:], theirs(measure, asked))
    same(curves.morf[:, 1:], theirs(quantus.Selectivity(patch_size=2, **BLACK, **PLAIN), asked))


def test_the_estimate_is_the_same(asked):
    peer = theirs(quantus.FaithfulnessEstimate(features_in_step=1, **BLACK, **PLAIN), asked, softmax=False)
    same(evaluation.faithfulness_estimate(*asked, regions=1, perturbation=ZERO, score="logit"), peer)


def test_the_faithfulness_correlation_is_the_same_for_the_same_sets(asked, monkeypatch):
    subsets = torch.stack([torch.randperm(36).argsort() < 7 for _ in range(3 * 20)]).view(3, 20, 36)
    drawn = iter(subsets.transpose(0, 1).flatten(0, 1))
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(drawn).nonzero().flatten().numpy())
    measure = quantus.FaithfulnessCorrelation(nr_runs=20, subset_size=7, return_aggregate=False, **BLACK, **PLAIN)
    peer = theirs(measure, asked)
    same(evaluation.faithfulness_correlation(*asked, regions=1, perturbation=ZERO, subsets=subsets), peer)


def test_complexity_and_sparseness_are_those_of_magnitudes(asked):
    sizes, finite = evaluation.magnitudes(asked[3])
    how = PLAIN | {"abs": True}
    same(evaluation.entropy(sizes), theirs(quantus.Complexity(**how), asked))
    same(evaluation.gini(sizes, finite), theirs(quantus.Sparseness(**how), asked), 1e-3)  # 1e-7 is added to cells there


@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        ("MaxSensitivity", "max_sensitivity"),
        ("AvgSensitivity", "avg_sensitivity"),
        ("LocalLipschitzEstimate", "lipschitz"),
        ("RelativeInputStability", "ris"),
        ("RelativeOutputStability", "ros"),
    ],
)
def test_robustness_is_the_same_for_the_same_steps(asked, peer, ours):
    model, x, y, _ = asked
    noise = 0.02 * (torch.rand(3, 5, 1, 6, 6) - 0.5)
    drawn = iter(noise.unbind(1))

    def moved(arr, **_):
        return arr + next(drawn).flatten(1).numpy()

    def explain_func(model, inputs, targets, **_):
        return GradientXInput()(model, torch.as_tensor(inputs), torch.as_tensor(targets)).numpy()

    measure = getattr(quantus, peer)(nr_samples=5, perturb_func=moved, **PLAIN)
    found = theirs(measure, asked, explain_func=explain_func, softmax=False)
    same(getattr(evaluation, ours)(model, x, y, GradientXInput(), noise=noise), found, 2e-3)


def test_localisation_is_the_same_where_no_relevance_is_negative(asked):
    model, x, y, relevance = asked
    mask = torch.zeros(3, 6, 6, dtype=torch.bool)
    mask[:, 1:4, 2:5] = True
    positive, given = (model, x, y, relevance.abs()), {"s_batch": mask.unsqueeze(1).numpy()}
    for peer, ours in (
        (quantus.RelevanceMassAccuracy(**PLAIN), evaluation.relevance_mass),
        (quantus.RelevanceRankAccuracy(**PLAIN), evaluation.relevance_rank),
        (quantus.TopKIntersection(k=9, **PLAIN), evaluation.relevance_rank),
        (quantus.PointingGame(**PLAIN), evaluation.pointing),
    ):
        same(ours(positive[3], mask), theirs(peer, positive, **given))
