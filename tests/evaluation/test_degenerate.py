"""What every measure says of maps and data that have no answer, or only one: a table over all that is public."""

import inspect
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import evaluation
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import RandomMap
from lightning_xai.metrics import (
    Consistency,
    Drift,
    Faithfulness,
    GridPointing,
    ImportanceAgreement,
    Localisation,
    Randomisation,
    Robustness,
)
from lightning_xai.metrics.faithfulness import FURTHER_MEASURES
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradientXInput

NAN, N, SIDE = math.nan, 3, 6
HOW = {"regions": 2, "perturbation": kinds.Constant(0.0), "score": "probability"}
TARGET = torch.tensor([0, 1, 2])
INSIDE = torch.zeros(N, SIDE, SIDE, dtype=torch.bool)
INSIDE[:, :2, :3] = True  # a sixth
OTHERS = draw(6, 1, SIDE, SIDE), torch.arange(6)


def network(classes=6):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, classes)
    ).double()


@dataclass(frozen=True, eq=False)
class Given(Attribution):
    """The same map of every input, as large as that is."""

    kind: str
    score = "logit"

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        return Explanation.of(bound, score, MAPS[self.kind](inputs))


MAPS = {
    "nan": lambda x: torch.full_like(x, NAN),
    "zero": torch.zeros_like,
    "negative": lambda x: -torch.ones_like(x) - torch.arange(x.shape[-1]),
    "constant": lambda x: torch.full_like(x, 2.0),
}
ANY = "a number"
"""Neither NaN nor infinite; what it is, is the matter of other tests."""

# Of every measure of one map: of a map of NaN, of zeros, without a positive cell, and the same everywhere.
MAPS_HAVE = {
    "deletion": (NAN, ANY, ANY, ANY),
    "insertion": (NAN, ANY, ANY, ANY),
    "srg": (NAN, 0.0, ANY, 0.0),
    "aopc_morf": (NAN, ANY, ANY, ANY),
    "aopc_lerf": (NAN, ANY, ANY, ANY),
    "irof": (NAN, ANY, ANY, ANY),
    "monotone": (NAN, ANY, ANY, ANY),
    "sufficient_share": (NAN, ANY, ANY, ANY),
    "faithfulness_correlation": (NAN, NAN, ANY, NAN),
    "sensitivity_n": (NAN, NAN, ANY, NAN),
    "infidelity": (NAN, ANY, ANY, ANY),
    "infidelity_scaled": (NAN, ANY, ANY, ANY),
    "infidelity_relative": (NAN, 1.0, ANY, ANY),
    "faithfulness_estimate": (NAN, NAN, ANY, NAN),
    "monotonicity_correlation": (NAN, NAN, ANY, NAN),
    "non_sensitivity": (NAN, 1.0, 0.0, 0.0),
    "average_drop": (NAN, ANY, ANY, 0.0),
    "average_increase": (NAN, ANY, ANY, 0.0),
    "average_gain": (NAN, ANY, ANY, 0.0),
    "completeness_gaps": (NAN, ANY, ANY, ANY),
    "pointing": (NAN, 1 / 6, ANY, 1 / 6),
    "relevance_mass": (NAN, 0.0, 0.0, 1 / 6),
    "relevance_rank": (NAN, 1 / 6, ANY, 1 / 6),
    "gridpg": (NAN, 0.0, 0.0, 1 / 4),
    "difull": (NAN, 0.0, 0.0, 1 / 4),
    "gini": (NAN, 0.0, ANY, 0.0),
    "entropy": (NAN, 0.0, ANY, math.log(SIDE**2)),
    "histogram_entropy": (NAN, 0.0, ANY, 0.0),
    "max_sensitivity": (NAN, NAN, 0.0, 0.0),
    "avg_sensitivity": (NAN, NAN, 0.0, 0.0),
    "lipschitz": (NAN, 0.0, 0.0, 0.0),
    "ris": (NAN, 0.0, 0.0, 0.0),
    "ros": (NAN, 0.0, 0.0, 0.0),
    "mprt": (NAN, NAN, 1.0, NAN),
    "emprt": (NAN, NAN, 0.0, NAN),
    "random_logit": (NAN, NAN, 1.0, NAN),
    "map_similarity": (NAN, NAN, ANY, NAN),
    "spearman_drift": (NAN, 1.0, ANY, 1.0),
    "cosine_drift": (NAN, 1.0, ANY, ANY),
    "top_drift": (NAN, ANY, ANY, ANY),  # a constant map has its first features
    "consistency": (NAN, 1.0, 1.0, 1.0),  # all samples are explained alike
    "sufficiency": (NAN, NAN, 1.0, 1.0),
}
# Parts of measures, choices, and what has no value of one map.
NO_MEASURE = {
    "boxes_to_masks",
    "codes",
    "completeness_gap",
    "core_measures",
    "draw_subsets",
    "feature_drops",
    "first_stable_epoch",
    "magnitudes",
    "map_changes",
    "masked_scores",
    "mosaics",
    "perturbation_curves",
    "road_accuracy",
    "subset_drops",
}


def measured(name, attribution, model=None, x=None):
    """A measure [N] of an attribution."""
    model, x = network() if model is None else model, draw(N, 1, SIDE, SIDE) if x is None else x
    target = TARGET[: len(x)] if model[-1].out_features > 1 else torch.zeros(len(x), dtype=torch.long)
    measure, relevance = getattr(evaluation, name), attribution(model, x, target)
    sizes, finite = evaluation.magnitudes(relevance)
    features, before = relevance.flatten(1), draw(len(x), x[0].numel())
    same = torch.zeros(len(x), dtype=torch.long)
    if name in ("gini", "entropy"):
        found = measure(sizes, finite) if name == "gini" else measure(sizes)
        return torch.where(finite.any(1), found, NAN)  # as the core measures do
    special = {
        "histogram_entropy": lambda: measure(relevance),
        "map_similarity": lambda: measure(relevance, draw(*relevance.shape)),
        "consistency": lambda: measure(evaluation.codes(features), same),
        "sufficiency": lambda: measure(features, same),
        "completeness_gaps": lambda: measure(model, x, target, attribution, **HOW)[0],
        "mprt": lambda: measure(model, x, target, attribution).mean,
    }
    if name in special:
        return special[name]()
    if name.endswith("_drift"):
        return measure(features, before)
    if name in ("pointing", "relevance_mass", "relevance_rank"):
        return measure(relevance, INSIDE[: len(x)])
    if name in ("gridpg", "difull"):
        return measure(model, x, target, attribution, background=OTHERS[0], classes=OTHERS[1])
    own = inspect.signature(measure).parameters
    takes_maps = "attribution" not in own
    how = {} if not takes_maps or name.startswith("average") else HOW
    return measure(model, x, target, attribution, **how)


def test_the_table_has_every_public_measure():
    public = {name for name in evaluation.__all__ if inspect.isfunction(getattr(evaluation, name))}
    assert public == MAPS_HAVE.keys() | NO_MEASURE
    assert not MAPS_HAVE.keys() & NO_MEASURE


@pytest.mark.parametrize(("place", "kind"), list(enumerate(MAPS)), ids=MAPS)
@pytest.mark.parametrize("name", MAPS_HAVE)
def test_a_map_that_says_little(name, place, kind):
    found, expected = measured(name, Given(kind)), MAPS_HAVE[name][place]
    assert found.shape == (N,)
    if expected == ANY:
        assert found.isfinite().all()
    else:
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-9, atol=1e-9, equal_nan=True)


# With one feature there is no order, and no set that is not all.
ONE_FEATURE = {
    "srg": 0.0,
    "faithfulness_correlation": NAN,
    "sensitivity_n": NAN,
    "faithfulness_estimate": NAN,
    "monotonicity_correlation": NAN,
    "infidelity_scaled": 0.0,
    "infidelity_relative": 0.0,
    "non_sensitivity": 0.0,
}


def test_a_network_of_one_class_has_no_other_class():
    assert measured("random_logit", GradientXInput(), network(1)).isnan().all()
    metric = Randomisation(GradientXInput())
    metric.update(network(1), draw(N, 1, SIDE, SIDE), 0)
    found = metric.compute()
    assert (found["random_logit_undefined"], found["mprt_undefined"], found["emprt_undefined"]) == (N, 0, 0)


@pytest.mark.parametrize("name", ONE_FEATURE)
def test_an_input_of_one_feature(name):
    how = HOW | {"regions": SIDE}
    found = getattr(evaluation, name)(network(), draw(N, 1, SIDE, SIDE), TARGET, GradientXInput(), **how)
    expected = torch.full_like(found, ONE_FEATURE[name])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", ["pointing", "relevance_mass", "relevance_rank"])
def test_an_empty_mask_is_undefined_and_that_of_a_neighbour_is_not(name):
    mask = INSIDE.clone()
    mask[1] = False
    found = getattr(evaluation, name)(draw(N, 1, SIDE, SIDE), mask)
    assert found.isnan().tolist() == [False, True, False]


METRICS = {
    "faithfulness": lambda a: Faithfulness(a, **HOW, draws=4),
    "faithfulness of a logit": lambda a: Faithfulness(a, **HOW | {"score": "logit"}, draws=4),
    "agreement": lambda a: ImportanceAgreement(a, **HOW),
    "localisation": lambda a: Localisation(a, lambda x: INSIDE[: len(x)]),
    "gridpg": lambda a: GridPointing(a, OTHERS),
    "difull": lambda a: GridPointing(a, OTHERS, game="difull"),
    "robustness": lambda a: Robustness(a, draws=2),
    "randomisation": lambda a: Randomisation(a),
    "consistency": lambda a: Consistency(a, 2),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", METRICS)
def test_metrics_count_what_says_nothing(name, kind):
    metric, model = METRICS[name](Given(kind)), network()
    if name == "consistency":
        model[-1].bias.data[0] += 100  # one prediction for all, as in the table
    metric.update(model, draw(N, 1, SIDE, SIDE), TARGET)
    found, place = metric.compute(), list(MAPS).index(kind)
    for measure in metric.measures:
        expected = MAPS_HAVE[measure][place]
        undefined = expected != ANY and math.isnan(expected)
        assert found[f"{measure}_undefined"] == (N if undefined else 0), measure
        assert bool(found[measure].isfinite()) != undefined, measure
        if not undefined and expected != ANY:
            close(found[measure], expected)
    cells = SIDE**2 * (4 if name in ("gridpg", "difull") else 1)
    assert found["nonfinite"] == (N * cells if kind == "nan" else 0)
    asks_for_mass = {"average_drop", "relevance_mass", "gridpg", "difull", "entropy"} & {*metric.measures}
    assert ("blank" in found) == bool(asks_for_mass)
    assert found.get("blank", 0) == (N if asks_for_mass and kind in ("zero", "negative") else 0)


def test_every_metric_of_measures_is_in_the_table():
    from lightning_xai import metrics
    from lightning_xai.metrics.measures import ComparableMetric

    public = {getattr(metrics, name) for name in metrics.__all__}
    own = {one for one in public if isinstance(one, type) and issubclass(one, ComparableMetric)}
    assert own == {type(make(RandomMap())) for make in METRICS.values()}


def test_every_measure_is_a_result_of_a_metric():
    every = Faithfulness(RandomMap(), **HOW, further=list(FURTHER_MEASURES))
    found = {key for metric in (every, *(make(RandomMap()) for make in METRICS.values())) for key in metric.results}
    found |= {f"{key}_drift" for key in Drift(RandomMap()).results}
    parts = {"completeness_gaps", "histogram_entropy", "map_similarity"}  # of completeness_gap, emprt and mprt
    assert MAPS_HAVE.keys() - found == parts
    assert {"completeness_gap", "road_accuracy_morf", "road_accuracy_lerf_curve"} <= found


def test_drift_counts_maps_that_say_nothing_and_leaves_out_those_of_nan():
    first, then = (Drift(Given(kind)) for kind in ("constant", "nan"))
    x = draw(N, 1, SIDE, SIDE)
    for metric in (first, then):
        metric.update(network(), x, TARGET)
        metric.compute()
        metric.reset()
        metric.update(network(), x, TARGET)
    found, unknown = first.compute(), then.compute()
    assert (found["blank"], found["spearman"], found["top"], found["matched"]) == (N, 0.0, 0.0, N)
    assert (unknown["blank"], unknown["spearman_undefined"], unknown["nonfinite"]) == (0, N, N * SIDE**2)
    assert unknown["spearman"].isnan()


COMPANY = [name for name in MAPS_HAVE if name not in ("consistency", "sufficiency", "map_similarity")]


@pytest.mark.parametrize("name", [name for name in COMPANY if not name.endswith("_drift")])
def test_a_sample_has_its_value_in_any_order_and_company(name):
    model, x = network(), draw(N, 1, SIDE, SIDE)
    scale = torch.tensor([1.0, 50.0, 1e-3]).view(-1, 1, 1, 1)  # of neighbours far larger and smaller

    def values(rows):
        measure = getattr(evaluation, name)
        inputs, target = (scale * x)[rows], TARGET[rows]
        relevance = GradientXInput()(model, inputs, target)
        if name in ("gini", "entropy"):
            return measure(evaluation.magnitudes(relevance)[0])
        if name == "histogram_entropy":
            return measure(relevance)
        if name in ("pointing", "relevance_mass", "relevance_rank"):
            return measure(relevance, INSIDE[rows])
        how = {"sample_ids": rows}
        if name in ("gridpg", "difull"):
            how |= {"background": OTHERS[0], "classes": OTHERS[1]}
        elif "attribution" not in inspect.signature(measure).parameters and not name.startswith("average"):
            how |= HOW
        found = measure(model, inputs, target, GradientXInput(), **how)
        found = found[0] if name == "completeness_gaps" else found
        return found.similarity if name == "mprt" else found

    together = values([0, 1, 2])
    for rows in [*itertools.permutations(range(3)), [0], [1], [2]]:
        torch.testing.assert_close(values(list(rows)), together[list(rows)], rtol=1e-9, atol=1e-9, equal_nan=True)
