"""Relevance over a data set: every result against loops over samples, in any company, inside Lightning."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lightning_xai import ExplanationMonitor, Segments, Windows, explain, load_explanations
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.metrics import Importance, Relevance, update_together
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import (
    LRP,
    GradCAM,
    GradientXInput,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    composites,
    rules,
)

N, SHAPE, CLASSES = 6, (2, 4, 6), 3
PLAIN = composites.RuleList([("convolution", rules.Epsilon(0.1)), ("linear", rules.Epsilon(0.1)), ("*", rules.Zero())])
METHODS = {
    "LRP": LRP(),
    "saliency": Saliency(absolute=False),
    "product": GradientXInput(score="margin"),
    "integrated": IntegratedGradients(steps=3),
    "noisy": SmoothGrad(draws=2),
    "CAM of another size": GradCAM(layer="3", relu=False, upsample=None),
    "occlusion with holes": PerturbationImportance(
        Windows(2, scope=((0, 3), (1, 6)), remainder="center"), kinds.Blur()
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture
def batch():
    inputs = torch.randn(N, *SHAPE, dtype=torch.float64)
    return inputs, torch.tensor([0, 2, 2, 0, 2, 0]), torch.tensor([3, 10, 4, 7, 0, 25])


@pytest.fixture
def cnn(cnn):
    cnn[2] = nn.ReLU()
    return cnn.eval()


def close(found, expected, tolerance=1e-9):
    expected = torch.as_tensor(np.asarray(expected), dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def equal(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def updated(metric, model, batch, splits=(4, 2)):
    for inputs, target, ids in zip(*(part.split(splits) for part in batch), strict=True):
        metric.update(model, inputs, target, ids)
    return metric


def one_by_one(method, model, batch):
    """The maps [C, *S] of each sample by itself."""
    return [method(model, x[None], y[None], [int(i)])[0].numpy() for x, y, i in zip(*batch, strict=True)]


def pooled(relevance, part):
    """Summed over the channels, number by number."""
    chosen = {"signed": relevance, "positive": np.maximum(relevance, 0), "absolute": np.abs(relevance)}[part]
    return sum(chosen[channel] for channel in range(len(chosen)))


def clean_scores(model, batch, score):
    with torch.no_grad():
        logits = model(batch[0])
    own = logits.gather(1, batch[1][:, None])[:, 0]
    if score == "Margin":
        return (own - logits.scatter(1, batch[1][:, None], -torch.inf).amax(1)).numpy()
    return (logits.softmax(1).gather(1, batch[1][:, None])[:, 0] if score == "Probability" else own).numpy()


def nanmean(values, axis=None):
    values = np.asarray(values)
    count = np.isfinite(values).sum(axis)
    return np.divide(np.nansum(values, axis), count, out=np.full(np.shape(count), np.nan), where=count > 0)


@every_method
@pytest.mark.parametrize("part", ["signed", "positive", "absolute"])
def test_results_by_loops(cnn, batch, method, part):
    metric = Relevance(method, part=part)
    found = updated(metric, cnn, batch).compute()
    relevance = one_by_one(method, cnn, batch)
    maps = [pooled(sample, part) for sample in relevance]
    close(found["map"], nanmean(maps, 0))
    close(found["map_abs"], nanmean(np.abs(maps), 0))
    target = batch[1].numpy()
    for index in (0, 2):
        close(found["map_per_class"][index], nanmean([m for m, y in zip(maps, target, strict=True) if y == index], 0))
    assert found["map_per_class"][1].isnan().all()
    cells = [sample[np.isfinite(sample)] for sample in maps]
    close(found["mean_abs"], np.mean([np.abs(sample).mean() for sample in cells]))
    sizes = [np.abs(sample) / (np.abs(sample).sum() or 1.0) for sample in cells]
    close(found["gini"], np.mean([np.abs(s[:, None] - s[None]).mean() / (2 * s.mean() or 1.0) for s in sizes]))
    close(found["top_share"], np.mean([sum(sorted(s)[-math.ceil(len(s) / 10) :]) for s in sizes]))
    entropies = [-sum(p * math.log(p) for p in s if p > 0) for s in sizes]
    close(found["entropy"], np.mean(entropies))
    positive = [sum(p for p, v in zip(s, c, strict=True) if v > 0) for s, c in zip(sizes, cells, strict=True)]
    close(found["positive_share"], np.mean(positive))
    assert found["samples"] == N
    assert found["excluded"] == 0
    assert found["nonfinite"] == sum(int((~np.isfinite(sample)).sum()) for sample in relevance)
    counts = np.zeros(65)
    for sample in cells:
        for value in sample / (np.abs(sample).max() or 1.0):
            counts[min(int((value + 1) / 2 * 65), 64)] += 1
    assert np.abs(found["histogram"].numpy() - counts).sum() <= 4  # rounding on an edge
    assert found["histogram"].sum() == sum(len(sample) for sample in cells)


@every_method
def test_the_conservation_gap_is_there_where_conservation_is_promised(cnn, batch, method):
    found = updated(Relevance(method), cnn, batch).compute()
    assert ("conservation_gap" in found) == method.conserves
    if method.conserves:
        scores = clean_scores(cnn, batch, type(getattr(method, "score", None)).__name__)
        sums = [sample.sum() for sample in one_by_one(method, cnn, batch)]
        close(found["conservation_gap"], np.abs(scores - sums).sum() / np.abs(scores).sum())


def test_nothing_is_missing_where_nothing_is_absorbed():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False)
    ).double()
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    for method in (GradientXInput(), LRP(composites.EpsilonPlus(epsilon=0.0, conv_epsilon=0.0))):
        metric = Relevance(method)
        metric.update(model, x, "predicted")
        assert metric.compute()["conservation_gap"] < 1e-9


def test_the_completeness_gap_is_the_mean_over_the_samples(cnn, batch):
    method = IntegratedGradients(steps=2, method="trapezoid")
    found = updated(Relevance(method), cnn, batch).compute()
    gaps = [
        float(method.explain(cnn, x[None], y[None], details=["completeness_gap"]).details["completeness_gap"])
        for x, y in zip(*batch[:2], strict=True)
    ]
    close(found["completeness_gap"], np.mean(gaps))
    assert min(gaps) > 1e-6
    assert "completeness_gap" not in updated(Relevance(Saliency()), cnn, batch).compute()


def test_the_ledger_is_that_of_the_whole_data(cnn, batch):
    method = LRP(PLAIN)
    metric = updated(Relevance(method), cnn, batch)
    found = metric.compute()
    _, ledger = method.with_ledger(cnn, *batch[:2])
    whole = ledger.start.sum()
    assert metric.layers == tuple(ledger.layers)
    equal(found["ledger"], torch.stack([*ledger.layers.values()]) / whole)
    equal(found["bias_share"], ledger.biases / whole)
    equal(found["epsilon_share"], ledger.epsilon / whole)
    equal(found["input_share"], ledger.received.sum() / whole)
    close(found["input_share"], sum(sample.sum() for sample in one_by_one(method, cnn, batch)) / float(whole))
    without = updated(Relevance(method, ledger=False), cnn, batch).compute()
    assert {*found} - {*without} == {"ledger", "bias_share", "epsilon_share", "input_share"}
    equal({key: found[key] for key in without}, without)


def test_a_run_changes_nothing_until_it_is_added(cnn, batch):
    metric = Relevance(LRP(PLAIN))
    found = metric.run(cnn, *batch[:2])
    assert metric.layers == ()
    metric.accumulate(found)
    assert metric.layers == found.constants["layers"] != ()


@pytest.mark.parametrize("part", ["signed", "positive", "absolute"])
def test_shares_of_features(cnn, batch, part):
    labels = torch.tensor([0, 0, 1, 1, -1, 3]).expand(4, 6)
    found = updated(Relevance(GradientXInput(), part=part, regions=Segments(labels)), cnn, batch).compute()
    shares = []
    for sample in one_by_one(GradientXInput(), cnn, batch):
        cells = {"signed": sample, "positive": np.maximum(sample, 0), "absolute": np.abs(sample)}[part]
        of = [sum(cells[:, h, w].sum() for h, w in np.ndindex(4, 6) if labels[h, w] == j) for j in range(4)]
        shares.append(np.array(of) / np.abs(sample).sum())
    close(found["by_feature"], np.mean(shares, 0))


def test_the_columns_of_a_table_are_its_features():
    model, x = nn.Linear(4, 2, bias=False).double(), torch.randn(5, 4, dtype=torch.float64)
    metric = Relevance(GradientXInput())
    metric.update(model, x, 1)
    products = (x * model.weight[1]).detach()
    equal(metric.compute()["by_feature"], (products / products.abs().sum(1, keepdim=True)).mean(0))
    assert metric.compute()["map"].shape == (4,)


def test_an_image_without_regions_has_no_features(cnn, batch):
    assert "by_feature" not in updated(Relevance(Saliency()), cnn, batch).compute()


class Zero(nn.Module):
    def forward(self, x):
        return (x.flatten(1) * 0).sum(1, keepdim=True).expand(-1, CLASSES)


def test_a_map_of_zeros_is_no_nan():
    metric = Relevance(GradientXInput(), regions=Windows(2))
    metric.update(Zero(), torch.randn(2, *SHAPE), 0)
    found = metric.compute()
    for key in ("entropy", "positive_share", "conservation_gap", "gini", "top_share", "mean_abs"):
        assert found[key] == 0, key
    assert (found["by_feature"] == 0).all()


class Logarithm(nn.Module):
    """No number for samples with a negative first cell."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3).double()

    def forward(self, x):
        return self.linear(x) + x[:, :1].log()


@pytest.mark.filterwarnings("ignore:the gradient with respect to .* is not finite")
@pytest.mark.parametrize("method", [LRP(PLAIN), GradientXInput(), IntegratedGradients(steps=3, baseline=1.0)])
def test_samples_whose_score_is_no_number_enter_no_result(method):
    model, x = Logarithm(), torch.rand(5, 4, dtype=torch.float64)
    x[[1, 3], 0] -= 5.0
    rows, metric, good = [0, 2, 4], Relevance(method), Relevance(method)
    metric.update(model, x, 1)
    metric.update(model, x[[1]], 1)
    good.update(model, x[rows], 1)
    found, expected = metric.compute(), good.compute()
    assert found.pop("nonfinite") == 3 * 4
    assert found.pop("samples") == 6
    assert {*found} == {*expected} - {"nonfinite", "samples"}
    equal(found, {key: expected[key] for key in found})


# Counting


METRICS = {
    "LRP": lambda: Relevance(LRP(), regions=Windows(2)),
    "integrated": lambda: Relevance(IntegratedGradients(steps=2), part="absolute"),
    "noise": lambda: Relevance(SmoothGrad(draws=2, sigma=0.5), regions=Windows((4, 2))),
    "CAM": lambda: Relevance(GradCAM(layer="2")),
}
every_metric = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)


def states(metric):
    return {name: getattr(metric, name) for name in metric._defaults}


@every_metric
def test_results_ignore_batch_size(cnn, batch, make):
    whole = updated(make(), cnn, batch, (N,)).compute()
    for splits in ((1,) * N, (5, 1)):
        equal(updated(make(), cnn, batch, splits).compute(), whole)


@every_metric
def test_states_do_not_grow_and_can_be_reset(cnn, batch, make):
    metric = updated(make(), cnn, batch)
    first, size = metric.compute(), {name: state.shape for name, state in states(metric).items()}
    updated(metric, cnn, batch)
    assert {name: state.shape for name, state in states(metric).items()} == size
    assert metric.compute()["samples"] == 2 * N
    metric.reset()
    equal(updated(metric, cnn, batch).compute(), first)


@every_metric
@pytest.mark.parametrize("duplicate", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "copy"])
def test_copies_go_on_by_themselves(cnn, batch, make, duplicate):
    metric = updated(make(), cnn, batch)
    once, twin = metric.compute(), duplicate(metric)
    equal(updated(twin, cnn, batch).compute(), updated(updated(make(), cnn, batch), cnn, batch).compute())
    equal(metric.compute(), once)


@every_metric
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_gradient_mode(cnn, batch, make, context):
    expected = updated(make(), cnn, batch).compute()
    metric = make()
    with context():
        equal(updated(metric, cnn, batch).compute(), expected)
    updated(metric, cnn, batch)
    assert not any(state.requires_grad for state in states(metric).values())


@every_metric
def test_a_process_without_samples_takes_the_shapes_only(cnn, batch, make):
    counted, shapes = updated(make(), cnn, batch), make()
    update_together({"relevance": shapes}, cnn, batch[0][:1], "predicted", count=False)
    for name, state in states(shapes).items():
        assert state.shape == states(counted)[name].shape
        assert name == "configuration" or not state.any()


@every_metric
def test_inputs_must_keep_their_size(cnn, batch, make):
    metric = updated(make(), cnn, batch)
    with pytest.raises(ValueError, match="need inputs of one size"):
        metric.update(cnn, torch.randn(2, 2, 6, 6, dtype=torch.float64), 0)


def test_a_collection_does_not_mistake_metrics_that_began_equal():
    collection = MetricCollection({"a": Relevance(GradientXInput()), "b": Relevance(Saliency(absolute=False))})
    collection.update(Zero(), torch.randn(2, *SHAPE), 0)
    assert len(collection.compute_groups) == 2


@every_metric
def test_plot_has_a_panel_for_every_result_that_is_no_number(cnn, batch, make):
    metric = updated(make(), cnn, batch)
    found = metric.compute()
    titles = {axes.get_title().partition("\n")[0] for axes in metric.plot()[1]}
    assert {metric.results[key].title for key in {"map", "histogram", "by_feature", "ledger"} & {*found}} <= titles


# Inside Lightning


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
@pytest.mark.parametrize(
    "make", [METRICS["LRP"], METRICS["integrated"], lambda: Relevance(GradCAM(layer="net.2"))], ids=["LRP", "IG", "CAM"]
)
def test_in_fit_and_validate(cnn, batch, make, tmp_path):
    loader = DataLoader(TensorDataset(*batch[:2]), batch_size=4)
    monitor = ExplanationMonitor({"relevance": make()})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet["logger"] = False
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[monitor], default_root_dir=tmp_path, **quiet)
    module = Module(cnn.train())
    trainer.fit(module, loader, loader)
    expected = explain(module.eval(), loader, {"relevance": make()}, progress=False)["relevance"]
    for key, value in expected.items():
        equal(torch.as_tensor(monitor.results["relevance"][key]), torch.as_tensor(value))
    (logged,) = trainer.validate(module, loader, verbose=False)
    assert logged["val/relevance/entropy"] == pytest.approx(expected["entropy"])
    assert logged.get("val/relevance/conservation_gap") == pytest.approx(expected.get("conservation_gap"))
    pictures = {path.name for path in tmp_path.rglob("*.png")}
    assert {"relevance.png", "samples.png"} <= pictures
    maps = load_explanations(next(tmp_path.rglob("*.safetensors")).parent)
    assert maps["relevance/map"].shape == (N, 4, 6)


def test_together_with_metrics_that_sweep(cnn, batch):
    metrics = {"relevance": Relevance(LRP()), "importance": Importance(Windows(2), kinds.Blur())}
    update_together(metrics, cnn, *batch)
    equal(metrics["relevance"].compute(), updated(Relevance(LRP()), cnn, batch).compute())
    assert metrics["importance"].compute()["samples"] == N


# Bad input


class Shapeless(Attribution):
    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        return Explanation.of(bound, score, inputs[:, :, :1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Relevance("lrp"), TypeError, "attribution must be one of lightning_xai.relevance, e.g. LRP"),
        (lambda: Relevance(LRP), TypeError, "got ABCMeta"),
        (lambda: Relevance(LRP(), part="sign"), ValueError, "part 'sign' is unknown. Did you mean 'signed'"),
        (lambda: Relevance(LRP(), ledger="no"), TypeError, "ledger must be True or False, got 'no'"),
        (lambda: Relevance(LRP(), regions="4"), TypeError, "regions must be Windows"),
        (lambda: Relevance(LRP(), regions=Segments(torch.round)), ValueError, "the same in every sample"),
    ],
)
def test_a_metric_is_checked_when_it_is_built(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        (GradCAM(layer="nowhere"), 0, "layer 'nowhere' is unknown"),
        (LRP(), 7, "target .* is out of range"),
        (LRP(), torch.tensor([0, 0, 0, 0, 0, 9]), "target .* is out of range"),
        (Shapeless(), 0, "it must be shaped like them"),
    ],
)
def test_check_raises_what_running_would(cnn, batch, method, target, message):
    for act in (Relevance(method).check, Relevance(method).run):
        with pytest.raises(ValueError, match=message):
            act(cnn, batch[0], target)
