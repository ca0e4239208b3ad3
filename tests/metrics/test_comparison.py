"""Attributions that were asked the same are put side by side, in one process or from several runs."""

import json
import math

import pytest
import torch
from torch import nn

from lightning_xai import explain
from lightning_xai.evaluation import RandomMap
from lightning_xai.metrics import Faithfulness, Importance, Randomisation, Robustness, update_together
from lightning_xai.metrics.comparison import Comparison, Score, comparisons
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradientXInput, Saliency
from lightning_xai.results import Curve, Number

ZERO = kinds.Constant(0.0)
MEASURES = {
    "high": Number("high", better="higher", error="high_error", undefined="high_undefined"),
    "low": Number("low", better="lower"),
    "neither": Number("neither"),
}
CURVES = {"curve": Curve("curve", axes=("share",), extent=(0.0, 1.0))}


def result(high, low, error=0.1, undefined=0):
    curve = torch.tensor([high, low])
    beside = {"high_error": error, "high_undefined": undefined, "samples": 5}
    return {"high": high, "low": low, "neither": 1.5, "curve": curve, **beside}


def comparison(**results):
    names = {name: f"{name}()" for name in results}
    floors = tuple(name for name in results if name.startswith("random"))
    return Comparison(results, MEASURES, CURVES, names, floors, "the question")


FOUR = comparison(
    a=result(1.0, 2.0), b=result(3.0, 2.0, error=math.nan), c=result(math.nan, 5.0), random=result(9.0, 0.0)
)


def test_ranks_differ_between_measures_and_equal_values_share_one():
    scores = FOUR.scores()
    assert {name: (each["high"].rank, each["low"].rank) for name, each in scores.items()} == {
        "a": (2, 1),
        "b": (1, 1),
        "c": (None, 3),
        "random": (None, None),
    }
    assert all(each["neither"].rank is None for each in scores.values())


def test_a_score_says_its_error_and_its_rank():
    assert str(Score(0.75, 0.0123, rank=1)) == "0.75 ± 0.012 *"
    assert str(Score(0.75, rank=3)) == "0.75 (3)"
    assert str(Score(math.nan)) == "nan"


def with_values(better, **values):
    """A comparison by one measure, whose values of samples 0, 1, ... are given."""
    measures = {"m": Number("m", better=better)}
    results = {name: {"m": torch.tensor(value).nanmean().item()} for name, value in values.items()}
    found = Comparison(results, measures, {}, dict.fromkeys(values, ""))
    samples = {f"{name}/m": torch.tensor(value).double() for name, value in values.items()}
    return found.with_samples(samples | {"sample_id": torch.arange(len(next(iter(values.values()))))})


# Differences from 'best': 1, 2, 1, 2 (mean 1.5, error .29); 3, -2, 2, -1 (.5, 1.19); always 1; only one is known.
PAIRS = {
    "best": [10.0, 20.0, 30.0, 40.0],
    "worse": [9.0, 18.0, 29.0, 38.0],
    "alike": [7.0, 22.0, 28.0, 41.0],
    "always": [9.0, 19.0, 29.0, 39.0],
    "unknown": [math.nan, math.nan, math.nan, 39.5],
}


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_what_differs_less_than_its_paired_noise_cannot_be_told_from_the_best(better):
    sign = 1 if better == "higher" else -1
    values = {name: [sign * value for value in row] for name, row in PAIRS.items() if name != "unknown"}
    found = with_values(better, **values)
    assert found.ranks["m"] == ["best", "alike", "always", "worse"]
    assert found.near_best("m") == ["alike"]
    assert {name: each["m"].mark for name, each in found.scores().items()} == {
        "best": "*",
        "alike": "(2)≈",
        "always": "(3)",
        "worse": "(4)",
    }
    assert found.to_dict()["near_best"] == {"m": ["alike"]}
    assert "(2)≈" in str(found)


def test_the_samples_that_both_have_are_compared_whatever_their_order():
    one = with_values("higher", best=PAIRS["best"])
    other = with_values("higher", alike=PAIRS["alike"])
    order = torch.tensor([2, 0, 3, 1])
    samples = {"alike/m": other.samples["alike"]["m"][order], "sample_id": order}
    joined = Comparison.joined({"a": one, "b": other.with_samples(samples)})
    assert joined.near_best("m") == ["b"]
    fewer = {"alike/m": torch.tensor([7.0, 41.0]), "sample_id": torch.tensor([0, 9])}
    assert Comparison.joined({"a": one, "b": other.with_samples(fewer)}).near_best("m") == []  # one pair says nothing


def test_what_equals_the_best_is_the_best():
    found = with_values("higher", best=PAIRS["best"], same=PAIRS["best"])
    assert [each["m"].mark for each in found.scores().values()] == ["*", "*"]


def test_nothing_is_said_of_pairs_that_are_not_known():
    assert with_values("higher", best=PAIRS["best"], unknown=PAIRS["unknown"]).near_best("m") == []
    assert FOUR.near_best("high") == FOUR.near_best("neither") == []


def test_a_comparison_comes_back_from_json():
    again = Comparison.from_dict(json.loads(json.dumps(FOUR.to_dict(), allow_nan=False)))
    assert str(again) == str(FOUR)
    assert (again.measures, again.curves, again.made_by) == (FOUR.measures, FOUR.curves, FOUR.made_by)
    assert again.results["a"]["curve"] == [1.0, 2.0]
    assert again.to_dict() == FOUR.to_dict()


def test_runs_are_joined_under_their_names_and_floors_that_agree_once():
    one, other = (comparison(faithfulness=result(high, 1.0), random=result(0.5, 0.5)) for high in (1.0, 2.0))
    further = comparison(x=result(4.0, 1.0), y=result(3.0, 1.0), random=result(0.7, 0.5))
    joined = Comparison.joined({"lrp": one, "saliency": other, "more": further})
    assert joined.attributions == ["lrp", "saliency", "more, x", "more, y"]
    assert joined.floors == ("random", "random, more")
    assert joined.ranks["high"] == ["more, x", "more, y", "saliency", "lrp"]
    assert joined.made_by["lrp"] == "faithfulness()"


def test_metrics_that_ask_the_same_are_grouped():
    how = {"draws": 4, "score": "logit"}
    metrics = {
        "importance": Importance(1, ZERO),
        "one": Faithfulness(GradientXInput(), 1, ZERO, **how),
        "blurred": Faithfulness(Saliency(), 1, kinds.Constant(1.0), **how),
        "two": Faithfulness(Saliency(), 1, ZERO, **how),
        "floor": Faithfulness(RandomMap(), 1, ZERO, **how),
        "robust": Robustness(Saliency(), draws=2),
    }
    model, (x, y) = nn.Linear(6, 3), (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    update_together(metrics, model, x, y)
    results = {name: metric.compute() for name, metric in metrics.items() if name != "robust"}
    found = comparisons(metrics, results)
    assert {name: list(each.results) for name, each in found.items()} == {
        "one": ["one", "two", "floor"],
        "blurred": ["blurred"],
    }
    assert found["one"].floors == ("floor",)
    assert list(found["one"].measures)[-1] == "completeness_gap"
    panels = found["one"].plot().axes
    assert [len(panel.lines) for panel in panels] == [3, 3]
    assert list(panels[0].lines[0].get_xdata()) == pytest.approx([step / 10 for step in range(11)])


def test_curves_of_one_unit_share_an_axis_that_says_it():
    roads = ["road_accuracy_morf", "road_accuracy_lerf"]
    metric = Faithfulness(GradientXInput(), 1, ZERO, draws=4, score="logit", further=roads)
    metric.update(nn.Linear(3, 2), torch.randn(4, 3), 0)
    (found,) = comparisons({"one": metric, "two": metric}, dict.fromkeys(("one", "two"), metric.compute())).values()
    panels = found.plot().axes
    labels = [panel.get_ylabel() for panel in panels]
    assert labels == ["units of the score", "", "share of the samples", ""]
    assert [panels[place].get_ylim() == panels[place + 1].get_ylim() for place in (0, 1, 2)] == [True, False, True]


def test_curves_share_a_picture_and_others_have_their_own(tmp_path):
    how = {"draws": 4, "score": "logit"}
    metrics = {
        "one": Faithfulness(GradientXInput(), 1, ZERO, **how),
        "two": Faithfulness(Saliency(), 1, ZERO, **how),
        "layers of one": Randomisation(GradientXInput()),
        "layers of two": Randomisation(Saliency()),
    }
    explain(
        nn.Linear(6, 3), [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))], metrics, folder=tmp_path, progress=False
    )
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {
        "one.png",
        "layers of one.png",
        "layers of two.png",
    }
    assert {path.name for path in (tmp_path / "figures").glob("*.json")} == {
        "one.measures.json",
        "layers of one.measures.json",
    }


def test_what_has_no_curves_is_not_drawn():
    found = Comparison({"a": result(1.0, 2.0)}, MEASURES, {}, {"a": "a()"})
    with pytest.raises(ValueError, match="there are no curves to draw, only numbers: high, low, neither"):
        found.plot()
