"""Attributions side by side: what is best by each measure, its error, and the floor."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from draws import draw
from torch import nn

from lightning_xai import compare, explain
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import RandomMap
from lightning_xai.metrics import Faithfulness
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradientXInput

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
HOW = {"regions": 1, "perturbation": kinds.Constant(0.0), "progress": False, "draws": 8}


@dataclass(frozen=True)
class Reversed(Attribution):
    """Says the opposite of a good map."""

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        return Explanation.of(bound, score, -GradientXInput()(model, inputs, target))


@dataclass(frozen=True)
class Nothing(Attribution):
    """Says nothing."""

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        return Explanation.of(bound, score, torch.zeros_like(inputs))


class Counter(nn.Module):
    """Three logits of eight columns; counts the rows that it scores."""

    def __init__(self):
        super().__init__()
        self.net, self.rows = nn.Linear(8, 3).double(), 0

    def forward(self, x):
        self.rows += 0 if torch.is_grad_enabled() else len(x)
        return self.net(x)


@pytest.fixture
def found():
    data = [(draw(6, 8), torch.randint(3, (6,))) for _ in range(2)]
    methods = {"reversed": Reversed(), "good": GradientXInput(), "nothing": Nothing()}
    return compare(nn.Linear(8, 3).double(), data, methods, **HOW)


def test_the_best_comes_first_by_each_measure(found):
    for name in ("deletion", "insertion", "srg", "aopc_morf", "faithfulness_correlation"):
        assert found.ranks[name][0] == "good", name
        assert found.ranks[name][-1] == "reversed", name
    assert "nothing" not in found.ranks["faithfulness_correlation"]
    assert "entropy" not in found.ranks
    assert found.attributions == ["reversed", "good", "nothing"]


def test_the_table_marks_the_best_and_says_the_errors(found):
    table = found.table()
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["reversed", "good", "nothing", "random"]
    best = rows["good"]["deletion (lower is better)"]
    results = found.results["good"]
    assert best == f"{results['deletion']:.3g} ± {results['deletion_error']:.2g} *"
    assert "*" not in rows["random"]["deletion (lower is better)"]
    assert "±" not in rows["good"]["completeness_gap (lower is better)"]
    assert str(found).splitlines()[0].startswith("attribution")


def test_the_numbers_are_those_of_each_alone(found):
    torch.manual_seed(0)
    data = [(draw(6, 8), torch.randint(3, (6,))) for _ in range(2)]
    model = nn.Linear(8, 3).double()
    for name, attribution in {"good": GradientXInput(), "random": RandomMap()}.items():
        own = Faithfulness(attribution, HOW["regions"], HOW["perturbation"], draws=8)
        alone = explain(model, data, {name: own}, progress=False)[name]
        for key, value in alone.items():
            torch.testing.assert_close(found.results[name][key], value, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_values_of_every_sample_say_what_cannot_be_told_from_the_best(found):
    for name, results in found.results.items():
        for measure, values in found.samples[name].items():
            if measure != "sample_id":
                close(values.nanmean().item(), results[measure], equal_nan=True)
    difference = found.samples["good"]["srg"] - found.samples["reversed"]["srg"]
    assert difference.mean() > 2 * difference.std() / len(difference) ** 0.5
    assert "reversed" not in found.near_best("srg")
    twice = compare(nn.Linear(8, 3), [(torch.randn(6, 8), 0)], dict.fromkeys("ab", GradientXInput()), **HOW, target=0)
    assert twice.near_best("srg") == ["b"]


def test_random_sets_and_clean_inputs_are_scored_once_for_all():
    model, data = Counter(), [(draw(6, 8), torch.randint(3, (6,)))]
    how = HOW | {"draws": 20, "share": 0.4, "steps": 2, "chunk_size": 2000}
    compare(model, data, {"good": GradientXInput()}, **how)
    # The clean pass, 20 sets at most, two curves of three sets each with the whole in common, two masked inputs; the
    # random map looks at the score, and one sample is searched for what a pass changes.
    assert model.rows <= 6 * (1 + 20 + 2 * 2 + 1 + 2 + 1) + 1


def test_the_curves_of_all_are_drawn(found):
    figure = found.plot()
    assert [len(panel.lines) for panel in figure.axes] == [4, 4]


@pytest.mark.parametrize(
    ("attributions", "error", "words"),
    [
        ([GradientXInput()], TypeError, "a dict of attributions by name"),
        ({}, ValueError, "attributions is empty"),
        ({"random": GradientXInput()}, ValueError, "the name of the floor"),
        ({"good": "lrp"}, TypeError, "attribution must be one of"),
    ],
)
def test_what_cannot_be_compared_is_refused(attributions, error, words):
    with pytest.raises(error, match=words):
        compare(nn.Linear(8, 3), [], attributions, **HOW)
