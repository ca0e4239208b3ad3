"""Every metric declares what it computes, and pictures, tables and logs follow the declaration."""

import importlib.util
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from lightning_xai import metrics, relevance
from lightning_xai.metrics import (
    ActivationThreshold,
    BatchExplanation,
    Consistency,
    Dissection,
    Drift,
    ExplanationMetric,
    Faithfulness,
    GridPointing,
    Importance,
    ImportanceAgreement,
    Localisation,
    Randomisation,
    Reactivation,
    Relevance,
    Robustness,
    Speed,
    Synergy,
    TopSamples,
    UnitAblation,
)
from lightning_xai.metrics.faithfulness import FURTHER_MEASURES
from lightning_xai.perturbation import kinds
from lightning_xai.results import Entries, Number, PerUnit, Result, declared
from lightning_xai.scores import RawOutput

ROOT = Path(__file__).parents[2]
N, CLASSES = 4, 3


def labels(inputs):
    return (inputs[:, 0] > 0).long()


BACKGROUND = (torch.linspace(-1, 1, 128).view(8, 1, 4, 4), torch.arange(8) % 4)
METRICS = {
    "importance": lambda: Importance(2, "blur"),
    "speed": lambda: Speed(2, kinds.Negative(), strengths=[0.25, 0.5]),
    "synergy": lambda: Synergy(2, "blur"),
    "anchored synergy": lambda: Synergy(2, "blur", anchor=1),
    "LRP": lambda: Relevance(relevance.LRP(), regions=2),
    "LRP without ledger": lambda: Relevance(relevance.LRP(), ledger=False, regions=2),
    "integrated gradients": lambda: Relevance(relevance.IntegratedGradients(steps=2), regions=2),
    "saliency": lambda: Relevance(relevance.Saliency(), regions=2),
    "re-activation": lambda: Reactivation("0", 2, "blur", p=0.3),
    "re-activation over a threshold": lambda: Reactivation("0", 2, "blur", threshold=[0.0, 0.1, 0.2, 0.3]),
    "re-activation of positions": lambda: Reactivation("0", 2, "blur", threshold=torch.zeros(4, 4, 4), unit="position"),
    "faithfulness": lambda: Faithfulness(relevance.GradientXInput(), 2, "blur", draws=4),
    "faithfulness of logits": lambda: Faithfulness(relevance.GradientXInput(), 2, "blur", score="logit", draws=4),
    "faithfulness and more": lambda: Faithfulness(
        relevance.GradientXInput(), 2, "noisy_linear", draws=4, further=list(FURTHER_MEASURES)
    ),
    "consistency": lambda: Consistency(relevance.GradientXInput(), 2),
    "robustness": lambda: Robustness(relevance.GradientXInput(), draws=2),
    "randomisation": lambda: Randomisation(relevance.GradientXInput()),
    "agreement": lambda: ImportanceAgreement(relevance.GradientXInput(), 2, "blur"),
    "localisation": lambda: Localisation(relevance.GradientXInput(), lambda x: x[:, 0] > 0),
    "grid pointing": lambda: GridPointing(relevance.GradientXInput(), BACKGROUND, shrink=True),
    "disconnected grid": lambda: GridPointing(relevance.GradientXInput(), BACKGROUND, game="difull"),
    "drift": lambda: Drift(relevance.GradientXInput()),
    "threshold": lambda: ActivationThreshold("0", p=0.3),
    "ablation": lambda: UnitAblation("1"),
    "dissection": lambda: Dissection("1", ["dark", "light"], 0.1, labels),
    "top samples": lambda: TopSamples("1", n=2),
}
every_metric = pytest.mark.parametrize("name", METRICS)


def updated(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    metric = METRICS[name]()
    metric.update(model, torch.randn(N, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    return metric


def equation_labels():
    path = ROOT / "docs" / "_ext" / "equations.py"
    spec = importlib.util.spec_from_file_location("equations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {equation.label for equation in module.all_equations(ROOT / "docs" / "definitions")}


@every_metric
def test_every_result_is_declared_and_every_declared_result_is_there(name):
    metric = updated(name)
    found = metric.compute()
    assert found.keys() == metric.results.keys()
    for key, result in metric.results.items():
        result.check(key, found[key])


@every_metric
def test_a_declaration_says_what_the_result_is(name):
    known = equation_labels()
    for result in updated(name).results.values():
        assert result.title
        assert result.meaning.endswith(".")
        assert len(result.meaning.split()) >= 4
        assert result.equation is None or result.equation in known


def test_every_metric_is_in_the_contract():
    public = {getattr(metrics, name) for name in metrics.__all__}
    classes = {entry for entry in public if isinstance(entry, type) and issubclass(entry, ExplanationMetric)}
    assert {type(make()) for make in METRICS.values()} == classes - {ExplanationMetric}


NUMBERS_ONLY = {"consistency", "robustness", "agreement", "localisation", "drift", "grid pointing", "disconnected grid"}


@pytest.mark.parametrize("name", sorted(METRICS.keys() - NUMBERS_ONLY))
def test_a_plot_has_a_panel_for_every_result_that_has_values(name):
    metric = updated(name)
    found = metric.compute()
    _, axes = metric.plot()
    panels = len(axes) if isinstance(axes, list) else 1
    drawn = [key for key, result in metric.results.items() if not isinstance(result, Number | Entries)]
    per_class = sum(bool(each.isfinite().any()) for each in found.get("map_per_class", ()))
    assert panels == len(drawn) - ("map_per_class" in found) + per_class


ONE_CELL = {
    "importance": Importance(1, "blur"),
    "synergy": Synergy(1, "blur"),
    "LRP": Relevance(relevance.LRP()),
    "threshold": ActivationThreshold("0", p=0.5),
    "ablation": UnitAblation("0"),
    "top sample": TopSamples("0", n=1),
}


@pytest.mark.parametrize("name", ONE_CELL)
def test_results_of_one_cell_keep_their_axes(name):
    metric, model = ONE_CELL[name], nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    metric.update(model, torch.ones(3, 1), 0)
    for _ in range(2):  # computed, and as it was kept
        found = metric.compute()
        declared(metric.results, found)  # raises for what has fewer axes
        assert {value.shape for key, value in found.items() if key.startswith("map_abs")} <= {(1,)}


def test_plot_draws_into_the_axes_that_it_is_given():
    metric = updated("threshold")
    figure, axes = plt.subplots(1, 2)
    assert metric.plot(ax=axes) == (figure, axes)
    assert [each.get_title().partition("\n")[0] for each in axes] == ["threshold T", "largest activation"]
    with pytest.raises(ValueError, match=r"ActivationThreshold has 2 panels \(threshold T.*\): ax must be .* got 1"):
        metric.plot(ax=axes[0])
    plt.close(figure)


class Confidence(ExplanationMetric):
    """A metric of one's own: numbers, and a curve that nothing declares."""

    results = {**ExplanationMetric.results, "confidence": Number("mean confidence", "0 … 1")}  # noqa: RUF012

    def __init__(self, **options):
        super().__init__(**options)
        self.add_sum_state("total")

    def run(self, model, inputs, target, sample_ids=None):
        output = model(inputs)
        bound = RawOutput().bind(output, target, len(inputs))
        nonfinite = torch.zeros(len(inputs), dtype=torch.long)
        tensors = {"top": output.softmax(1).amax(1)}
        return BatchExplanation(tensors, bound.target, bound.prediction, nonfinite, bound.classes)

    def add(self, found):
        self.add_to_state("total", found.tensors["top"].double().sum())

    def compute(self):
        return {**self.sample_counts(), "confidence": self.total / self.samples}


def test_numbers_alone_are_no_picture():
    metric = Confidence()
    metric.update(nn.Linear(3, 2), torch.randn(4, 3), 0)
    with pytest.raises(ValueError, match="Confidence has nothing to draw, as all of its results are numbers"):
        metric.plot()


def test_a_result_that_nothing_declares_is_what_its_shape_says():
    values = {"by_unit": torch.ones(3), "a_b": torch.ones(2, 2), "lost": 0.5, "cube": torch.ones(1, 1, 1)}
    found = declared({}, values)
    assert [type(result).__name__ for result in found.values()] == ["Curve", "Matrix", "Number", "Entries"]
    assert found["a_b"].title == "a b"


def test_a_value_of_another_shape_than_declared_is_refused():
    with pytest.raises(ValueError, match=r"'gini' is declared as Number\(axes=\(\)\), but has the shape \[3\]"):
        declared({"gini": Number("Gini coefficient")}, {"gini": torch.ones(3)})


def test_a_table_joins_the_results_over_the_same_axes():
    class Mine(Confidence):
        results: dict[str, Result] = {  # noqa: RUF012
            "peak": PerUnit("peak", listed="strongest"),
            "kind": Entries("kind", axes=("unit",), refer_to="kind"),
        }
        axis_labels = {"kind": ["edge", "blob"]}  # noqa: RUF012

    values = {"peak": torch.tensor([0.5, -2.0, 0.0]), "kind": torch.tensor([1, 0, -1])}
    table = Mine().tables(values)["by_unit"]
    assert table.columns == ("unit", "peak", "kind")
    assert table.rows == ((1, -2.0, "edge"), (0, 0.5, "blob"))


def test_an_accuracy_counts_no_sample_without_a_score():
    class Broken(nn.Linear):
        def forward(self, x):
            return torch.where(x[:, :1] > 0, super().forward(x), torch.nan)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), Broken(3, 2))
    x, y = torch.tensor([[1.0, 2.0, 3.0], [2.0, -1.0, 0.5], [-1.0, 1.0, 1.0]]), torch.tensor([0, 1, 0])
    found = []
    for rows in (slice(0, 2), slice(0, 3)):
        metric = UnitAblation("0", value=0.5)
        metric.update(model, x[rows], y[rows])
        found.append(metric.compute())
    for key in ("accuracy", "clean_accuracy", "accuracy_drop", "score_drop"):
        torch.testing.assert_close(found[0][key], found[1][key], equal_nan=True)
    assert found[1]["nonfinite"] == 3
