"""The metrics: every result against loops over samples, and what torchmetrics asks of them."""

import copy
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import (
    Segments,
    Windows,
    importance,
    interaction,
    kinds,
    relative_importance,
    speed,
    synergy,
)

N, SHAPE, CLASSES = 6, (2, 4, 6), 3
FADE = [kinds.Negative(delta) for delta in (0.2, 0.4, 0.8)]
BREAKING = [kinds.Log(), kinds.Log(base=3.0), kinds.Log(base=4.0, bias=0.5)]  # NaN for values that are not positive


def own_segments(inputs):
    """Labels -1 to 3 that differ from sample to sample: some cells of no feature, some features without cells."""
    return (inputs.sum(1) * 1.5).floor().clamp(-1, 3).long()


REGIONS = {
    "windows": Windows(2),
    "overlapping": Windows(3, stride=1),
    "unreached": Windows(2, scope=((0, 3), (1, 6)), remainder="center"),
    "segments": Segments(torch.tensor([0, 0, 1, 1, -1, 3]).expand(4, 6)),  # no cell is labelled 2
}
OWN_SEGMENTS = {"own segments": Segments(own_segments)}
KINDS = {"fading": FADE, "breaking": BREAKING}


@pytest.fixture
def batch():
    """Inputs of which a few values are negative, with class 1 missing; sample 4 has no importance under a logarithm."""
    inputs = torch.randn(N, *SHAPE, dtype=torch.float64).abs() + 0.05
    inputs[:, :, ::2, ::4] *= torch.randn(N, 2, 2, 2, dtype=torch.float64).sign()
    inputs[4] = -inputs[4]
    return inputs, torch.tensor([0, 2, 2, 0, 2, 0]), torch.tensor([3, 10, 4, 7, 0, 25])


def close(found, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def mean(values, axis=None):
    """Over what is a number; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis)


def one_by_one(quantity, model, batch, regions, **ask):
    """A chapter's function sample by sample: [values [1, J]], and [painted [*S]] of each."""
    values = [
        quantity(model, x[None], y[None], regions=regions, sample_ids=i[None], **ask)
        for x, y, i in zip(*batch, strict=True)
    ]
    return values, [paint(regions, x, value) for x, value in zip(batch[0], values, strict=True)]


def paint(regions, x, values):
    """Every feature's value over its cells, by looking at which cells a perturbation of it changes."""
    bound = regions.bind(x[None])
    painted = [[] for _ in range(x[0].numel())]
    for feature in range(bound.count):
        marked = torch.zeros(1, *x.shape)
        bound.write(marked, torch.ones(1, *x.shape), feature)
        for cell in marked[0, 0].flatten().nonzero().flatten().tolist():
            painted[cell].append(values[0, feature].item())
    means = [mean(np.array(cell)) if cell else math.nan for cell in painted]
    return np.array(means).reshape(x.shape[1:])


def gini(magnitudes):
    """Half the mean difference of two cells over the mean of one."""
    return np.abs(magnitudes[:, None] - magnitudes[None]).mean() / (2 * magnitudes.mean())


def top_share(magnitudes):
    strongest = sorted(magnitudes, reverse=True)[: math.ceil(len(magnitudes) / 10)]
    return sum(strongest) / sum(magnitudes)


def check_maps(found, maps, target):
    """What all metrics of maps compute, from the samples' maps [N, *S]."""
    maps, target = np.stack(maps), target.numpy()
    close(found["map"], mean(maps, 0))
    close(found["map_abs"], mean(np.abs(maps), 0))
    close(found["map_per_class"], np.stack([mean(maps[target == c], 0) for c in range(CLASSES)]))
    cells = [np.abs(sample[np.isfinite(sample)]) for sample in maps]
    for key, summary in {"mean_abs": np.mean, "gini": gini, "top_share": top_share}.items():
        close(found[key], np.mean([summary(sample) for sample in cells if len(sample)]))
    assert found["samples"] == len(maps)
    assert found["excluded"] == 0


def missing(regions, batch, values):
    """How many values are not numbers, though the sample has such a feature."""
    count = 0
    for x, sample in zip(batch[0], values, strict=True):
        present = regions.bind(x[None]).present()
        count += int((~sample.isfinite() & (True if present is None else present)).sum())
    return count


every_kind = pytest.mark.parametrize("states", KINDS.values(), ids=KINDS)
every_region = pytest.mark.parametrize("regions", REGIONS.values(), ids=REGIONS)
own_too = pytest.mark.parametrize("regions", (REGIONS | OWN_SEGMENTS).values(), ids=REGIONS | OWN_SEGMENTS)


def updated(metric, model, batch, splits=(4, 2)):
    """The metric after some batches."""
    for inputs, target, ids in zip(*(part.split(splits) for part in batch), strict=True):
        metric.update(model, inputs, target, ids)
    return metric


# Results


@every_kind
@own_too
@pytest.mark.parametrize("score", ["probability", "margin"])
def test_importance_is_the_mean_of_single_samples(cnn, batch, regions, states, score):
    ask = {"perturbation": states[0], "score": score}
    found = updated(Importance(regions, **ask), cnn, batch).compute()
    values, maps = one_by_one(importance, cnn, batch, regions, **ask)
    check_maps(found, maps, batch[1])
    relative = [paint(regions, x, relative_importance(value)) for x, value in zip(batch[0], values, strict=True)]
    close(found["map_relative"], mean(np.stack(relative), 0))
    assert found["nonfinite"] == missing(regions, batch, values)
    assert (found["nonfinite"] > 0) == (states is BREAKING)


@every_kind
@own_too
@pytest.mark.parametrize("abscissa", ["index", "strength"])
def test_speed_is_the_mean_of_single_samples(cnn, batch, regions, states, abscissa):
    if abscissa == "strength":
        states = [state.at(strength) for state, strength in zip(states, (1.5, 3.0, 8.0), strict=True)]
    ask = {"perturbations": states, "abscissa": abscissa, "score": "logit"}
    found = updated(Speed(regions, **ask), cnn, batch).compute()
    _, maps = one_by_one(lambda *args, **how: speed(*args, **how).slope, cnn, batch, regions, **ask)
    check_maps(found, maps, batch[1])
    _, r_squared = one_by_one(lambda *args, **how: speed(*args, **how).r_squared, cnn, batch, regions, **ask)
    close(found["map_r_squared"], mean(np.stack(r_squared), 0))
    each = [one_by_one(importance, cnn, batch, regions, perturbation=state, score="logit")[0] for state in states]
    assert found["nonfinite"] == sum(missing(regions, batch, values) for values in each)


def test_speed_of_one_perturbation_and_its_strengths(cnn, batch):
    one, several = Speed(Windows(2), kinds.Negative(), strengths=[0.2, 0.4, 0.8]), Speed(Windows(2), FADE)
    equal(updated(one, cnn, batch).compute(), updated(several, cnn, batch).compute())


class Product(nn.Module):
    """The product of two columns, times a number, and the sum of all, times another."""

    def __init__(self, product, total):
        super().__init__()
        self.product, self.total = product, total

    def forward(self, x):
        return self.product * x[:, :1] * x[:, 1:2] + self.total * x.sum(1, keepdim=True) + 0.1


@pytest.mark.parametrize(("product", "total", "share"), [(1.0, 0.0, 0.0), (-1.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
def test_an_interaction_within_the_rounding_of_the_scores_is_none(product, total, share):
    x = torch.tensor([[3.0, 0.1, 0.7], [0.3, 0.2, 0.9]])
    metric = Synergy(Windows(1), kinds.Constant(0.0), score="value")
    metric.update(Product(product, total), x, 0)
    assert metric.compute()["interaction_mean_abs"] > 0
    assert metric.compute()["redundant_share"] == share


@every_kind
@every_region
@pytest.mark.parametrize("anchor", [None, 0, 1])
def test_synergy_is_the_mean_of_single_samples(cnn, batch, regions, states, anchor):
    ask = {"perturbation": states[0], "anchor": anchor}
    found = updated(Synergy(regions, **ask), cnn, batch).compute()
    samples = list(zip(batch[0], batch[1].tolist(), strict=True))
    for key, quantity in {"joint": synergy, "interaction": interaction}.items():
        matrices = [quantity(cnn, x[None], y, regions=regions, **ask)[0].numpy() for x, y in samples]
        close(found[key], mean(np.stack(matrices), 0))
    pairs = [matrix[np.isfinite(matrix)].tolist() for matrix in matrices]  # of interaction, the last one
    pairs = [sample for sample in pairs if sample]
    close(found["interaction_mean_abs"], np.mean([np.abs(sample).mean() for sample in pairs]))
    positive = [sum(value for value in sample if value > 0) / sum(map(abs, sample)) for sample in pairs]
    close(found["redundant_share"], np.mean(positive))
    assert found["samples"] == N


@every_kind
@every_region
@pytest.mark.parametrize("anchor", [None, 1])
def test_synergy_counts_what_is_not_a_number(cnn, batch, regions, states, anchor):
    found = updated(Synergy(regions, states[0], anchor=anchor), cnn, batch).compute()
    ask = {"regions": regions, "perturbation": states[0]}
    joint = synergy(cnn, *batch[:2], **ask)
    bound = regions.bind(batch[0])
    there = range(bound.count) if bound.present() is None else bound.present()[0].nonzero().flatten().tolist()
    pairs = [pair for pair in itertools.combinations(there, 2) if anchor is None or anchor in pair]
    single = importance(cnn, *batch[:2], **ask)[:, there]
    assert found["nonfinite"] == single.isnan().sum() + sum(int(joint[:, i, j].isnan().sum()) for i, j in pairs)
    assert (found["nonfinite"] > 0) == (states is BREAKING)


# Counting


METRICS = {
    "importance": lambda: Importance(Windows(2), kinds.GaussianNoise(), score="logit"),
    "own segments": lambda: Importance(Segments(own_segments), kinds.Blur()),
    "speed": lambda: Speed(Windows(2), FADE),
    "synergy": lambda: Synergy(Windows(2), kinds.Log()),
    "anchor": lambda: Synergy(Windows(2), kinds.Blur(), anchor=1),
}
every_metric = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)


def equal(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def states(metric):
    return {name: getattr(metric, name) for name in metric._defaults}


@every_metric
def test_results_ignore_batch_size(cnn, batch, make):
    whole = updated(make(), cnn, batch, (N,)).compute()
    for splits in ((1,) * N, (4, 2), (5, 1)):
        equal(updated(make(), cnn, batch, splits).compute(), whole)


@every_metric
def test_states_do_not_grow(cnn, batch, make):
    metric = updated(make(), cnn, batch)
    size = {name: state.shape for name, state in states(metric).items()}
    for _ in range(3):
        updated(metric, cnn, batch)
    assert {name: state.shape for name, state in states(metric).items()} == size
    assert metric.compute()["samples"] == 4 * N


@every_metric
def test_reset_clears_states(cnn, batch, make):
    metric = updated(make(), cnn, batch)
    first = metric.compute()
    metric.exclude(2)
    metric.reset()
    assert all(state.ndim == 0 for name, state in states(metric).items() if name != "configuration")
    equal(updated(metric, cnn, batch).compute(), first)


COPIES = {
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    "deepcopy": copy.deepcopy,
    "clone": lambda metric: metric.clone(),
}


@every_metric
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_go_on_by_themselves(cnn, batch, make, duplicate):
    metric = updated(make(), cnn, batch)
    once = metric.compute()
    twin = duplicate(metric)
    equal(twin.compute(), once)
    updated(twin, cnn, batch)
    equal(metric.compute(), once)
    equal(twin.compute(), updated(metric, cnn, batch).compute())


@every_metric
def test_forward_gives_the_batch_and_keeps_the_sum(cnn, batch, make):
    metric = make()
    for inputs, target, ids in zip(*(part.split((4, 2)) for part in batch), strict=True):
        equal(metric(cnn, inputs, target, ids), updated(make(), cnn, (inputs, target, ids), (len(ids),)).compute())
    equal(metric.compute(), updated(make(), cnn, batch).compute())


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@every_metric
def test_states_made_in_any_mode_can_be_used_in_any_other(cnn, batch, make, context):
    metric = make()
    with context():
        metric.reset()
        updated(metric, cnn, batch)
    updated(metric, cnn, batch)
    expected = updated(updated(make(), cnn, batch), cnn, batch).compute()
    with context():
        equal(metric.compute(), expected)
    equal(metric.compute(), expected)
    assert not any(state.requires_grad for state in states(metric).values())


@every_metric
def test_autocast_does_not_round_the_results(batch, make):
    model, batch = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (batch[0].float(), *batch[1:])
    with torch.autocast("cpu", torch.bfloat16):
        found = updated(make(), model, batch).compute()
    equal(found, updated(make(), model, batch).compute())


@every_metric
def test_left_out_samples_are_counted_and_nothing_else(cnn, batch, make):
    metric, plain = updated(make(), cnn, batch), updated(make(), cnn, batch).compute()
    metric.exclude(2)
    metric.exclude(1)
    equal({**metric.compute(), "excluded": 0}, {**plain, "excluded": 0})
    assert metric.compute()["excluded"] == 3


@every_metric
@pytest.mark.parametrize("width", [6, 9])
def test_inputs_must_keep_their_size(cnn, batch, make, width):
    metric = updated(make(), cnn, batch)
    before = metric.compute()
    other = torch.randn(2, 2, 7, width, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"need inputs of one size: .* Resize the inputs, or use one metric per size"):
        metric.update(cnn, other, 0)
    equal(metric.compute(), before)


@pytest.mark.parametrize("make", [METRICS["importance"], METRICS["speed"]])
def test_maps_per_class_are_left_out_when_there_are_too_many(batch, make):
    many = nn.Sequential(nn.Flatten(), nn.Linear(48, 2**24 // 24 + 1, bias=False).double())
    with torch.no_grad():
        many[1].weight.zero_()
    metric = make()
    metric.requests = metric.requests[:1] * len(metric.requests)
    metric.update(many, batch[0][:1], 0)
    assert "map_per_class" not in metric.compute()
    assert metric.compute()["map"].shape == (4, 6)


def test_single_precision_is_added_up_in_double(cnn):
    metric = Importance(Windows(1), kinds.Constant(0.0), score="value")
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for value in (2.0**24, 1.0, 1.0):
        metric.update(model, torch.full((1, 1), value), 0)
    assert metric.compute()["map"].item() * 3 == 2.0**24 + 2


# Company


def test_metrics_work_in_a_metric_collection(cnn, batch):
    collection = MetricCollection({name: make() for name, make in METRICS.items()})
    alone = {name: updated(make(), cnn, batch).compute() for name, make in METRICS.items()}
    found = updated(collection, cnn, batch).compute()
    assert len(found) == sum(map(len, alone.values()))
    for name, result in alone.items():
        # Keys that are the collection's only ones of that name keep it.
        equal({key: found.get(f"{name}_{key}", found.get(key)) for key in result}, result)


class Still(nn.Module):
    """Does not look at its inputs, so that every importance is 0."""

    def forward(self, x):
        return x.new_ones(len(x), CLASSES)


class Sum(nn.Module):
    def forward(self, x):
        return x.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 2.0, 4.0])


@pytest.mark.filterwarnings("ignore:the model's output already looks like probabilities")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Importance(Windows(2), kinds.Constant(1.0)), Importance(Windows(2), kinds.Constant(2.0))),
        (Importance(Windows(2), kinds.Blur()), Importance(Windows(2), kinds.Blur(), score="logit")),
        (Importance(Windows(2), kinds.Blur()), Importance(Windows(1), kinds.Blur())),
        (Speed(Windows(2), FADE), Speed(Windows(2), FADE, abscissa="strength")),
        (Synergy(Windows(2), kinds.Blur()), Synergy(Windows(2), kinds.Blur(sigma=1.0))),
    ],
)
def test_a_collection_does_not_mistake_metrics_that_began_equal(first, second):
    collection = MetricCollection({"first": first, "second": second})
    inputs = torch.rand(2, *SHAPE)
    collection.update(Still(), inputs, 0)
    assert len(collection.compute_groups) == 2
    collection.update(Sum(), inputs, torch.tensor([0, 2]))
    found = collection.compute()
    assert not all(torch.equal(found[f"first_{key}"], found[f"second_{key}"]) for key in first.compute())


class Module(LightningModule):
    """Updates a metric of its own in its validation step, as a user without the callback would."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.importance = METRICS["importance"]()

    def validation_step(self, batch, batch_idx):
        self.importance.update(self.net, *batch)

    def on_validation_epoch_end(self):
        self.log_dict({key: value.float() for key, value in self.importance.compute().items() if value.ndim == 0})
        self.importance.reset()


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_in_a_lightning_module(cnn, batch):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    module = Module(cnn)
    loader = DataLoader(TensorDataset(*batch), batch_size=4)
    expected = updated(METRICS["importance"](), cnn.eval(), batch).compute()
    for _ in range(2):  # the second time the states come from an inference mode that is over
        (logged,) = trainer.validate(module, loader, verbose=False)
        assert logged == pytest.approx({key: value.item() for key, value in expected.items() if value.ndim == 0})
    assert "importance" not in "".join(module.state_dict())


@every_metric
@pytest.mark.parametrize("given", [False, True])
def test_plot_gives_figure_and_axes(cnn, batch, make, given):
    metric = updated(make(), cnn, batch)
    figure, axes = metric.plot(metric.compute()) if given else metric.plot()
    assert isinstance(figure, Figure)
    assert {*axes} <= {*figure.axes}
    assert figure.get_suptitle().startswith(f"{type(metric).__name__}: samples {N}")


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Importance("3", kinds.Blur()), TypeError, r"regions must be Windows\(...\), .* got str"),
        (lambda: Importance(Windows(2), "blurr"), ValueError, "Did you mean 'blur'"),
        (lambda: Importance(Windows(2), kinds.Blur(), score="logits"), ValueError, "Did you mean 'logit'"),
        (lambda: Importance(Windows(2), kinds.Blur(), engine="dens"), ValueError, "Did you mean 'dense'"),
        (lambda: Importance(Windows(2), kinds.Blur(), chunk_size=0), ValueError, "chunk_size must be at least 1"),
        (lambda: Speed(Windows(2), FADE[:1]), ValueError, "perturbations must be two states or more"),
        (lambda: Speed(Windows(2), kinds.Negative()), ValueError, "strengths must hold the states' strengths"),
        (lambda: Speed(Windows(2), kinds.Negative(), strengths=[0.1, 0.1]), ValueError, "strengths must differ"),
        (lambda: Speed(Windows(2), FADE, strengths=[1, 2]), ValueError, "perturbations already holds the states"),
        (lambda: Speed(Windows(2), kinds.ReLU(), strengths=[1, 2]), TypeError, "ReLU has no strength"),
        (lambda: Synergy(Windows(2), kinds.Blur(), anchor=1.5), TypeError, "anchor must be an integer"),
        (lambda: Synergy(Segments(own_segments), kinds.Blur()), ValueError, "the same in every sample: give Segments"),
    ],
)
def test_a_metric_is_checked_when_it_is_built(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_regions_that_differ_in_the_middle_are_not_taken_for_one():
    labels = torch.zeros(64, 64, dtype=torch.long)
    labels[:, 32:] = 1
    other = labels.clone()
    other[32, 31] = 1
    one, two = (Importance(Segments(some), kinds.Constant(0.0)) for some in (labels, other))
    assert repr(labels) == repr(other)
    assert not torch.equal(one.configuration, two.configuration)
    assert torch.equal(one.configuration, Importance(Segments(labels.clone()), kinds.Constant(0.0)).configuration)
