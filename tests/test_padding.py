"""Padding leaves no trace: what is said of a padded batch is what is said of its samples alone, without padding."""

import warnings

import pytest
import torch
from draws import close
from torch import nn

from lightning_xai import Inputs, Windows
from lightning_xai._guard import keyed_generator
from lightning_xai.evaluation.features import RandomMap
from lightning_xai.evaluation.randomisation import emprt, mprt, random_logit
from lightning_xai.evaluation.road import road_accuracy
from lightning_xai.evaluation.robustness import map_changes
from lightning_xai.metrics import ActivationThreshold, Dissection, Reactivation, Relevance, TopSamples
from lightning_xai.perturbation import importance, kinds
from lightning_xai.present import positions_of
from lightning_xai.relevance import (
    GradCAM,
    GradCAMPlusPlus,
    GradientXInput,
    HiResCAM,
    LayerCAM,
    Saliency,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
)
from lightning_xai.scores import Logit, RawOutput, Unit
from lightning_xai.units import (
    ablate_units,
    activation_threshold,
    co_activation,
    dissect,
    reactivation,
    top_samples,
    unit_activations,
)

IDS = torch.tensor([[1, 4, 5, 0, 0], [1, 3, 6, 2, 0], [2, 6, 5, 1, 3]])
LENGTHS = (3, 4, 5)
MASK = (IDS > 0).long()
ZERO = kinds.Constant(0.0)


class Reader(nn.Module):
    """Tokens mixed by masked attention, then averaged; what it computes at padding is large."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(7, 4)
        self.up, self.mix, self.token_out, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.double()
        self.embedding.weight.data[0] = 9.0

    def forward(self, input_ids, attention_mask, tokens=False):
        x = self.embedding(input_ids)
        mask = attention_mask.unsqueeze(1).to(x)
        seen = (x @ x.mT).sigmoid() * mask
        x = self.mix(self.up(seen / seen.sum(2, keepdim=True) @ x).relu()).tanh()
        if tokens:
            return self.token_out(x)
        return self.out((x * mask.mT).sum(1) / mask.sum(2))


def padded(tokens=False, **options):
    return Inputs(IDS, attention_mask=MASK, tokens=tokens, explain=0, **options)


def alone(tokens=False):
    """Every sample by itself, without its padding."""
    for sample, length in enumerate(LENGTHS):
        ids = IDS[sample : sample + 1, :length]
        yield Inputs(ids, attention_mask=torch.ones_like(ids), tokens=tokens, explain=0)


@pytest.fixture
def model():
    return Reader().eval()


def values(model, layer):
    """The activations of the tokens of every sample alone, [K, tokens]."""
    return [unit_activations(model, inputs, layer=layer)[0] for inputs in alone()]


def test_thresholds_are_those_of_the_tokens_that_are_there(model):
    every = torch.cat(values(model, "up"), 1)
    found = activation_threshold(model, padded(), layer="up", p=0.25)
    close(found.value, every.sort(1, descending=True).values[:, 3])
    assert found.count == 12
    metric = ActivationThreshold("up", p=0.25)
    metric.update(model, padded(), 0)
    close(metric.compute()["threshold"], found.value)
    assert torch.equal(metric.compute()["values"], torch.tensor(12))
    positions = activation_threshold(model, padded(), layer="up", p=0.4, unit="position").value
    last = values(model, "up")[2][:, 4]
    close(positions[:, 4], last)  # one sample has a fifth token
    assert activation_threshold(model, [padded(absent=IDS == 3)], layer="up", unit="position").value[0, 4] == torch.inf


def negative(values):
    """An activation that is nowhere above 0, so that a 0 at padding would win."""
    return -values.exp()


def test_the_strongest_samples_are_those_of_tokens_that_are_there(model):
    how = {"layer": "up", "activation": negative}
    best = torch.stack([unit_activations(model, one, **how)[0].amax(1) for one in alone()], 1)
    expected = torch.sort(best, dim=1, descending=True, stable=True)
    found = top_samples(model, padded(), n=3, **how)
    close(found.value, expected.values)
    assert torch.equal(found.sample_id, expected.indices)
    metric = TopSamples(n=3, **how)
    metric.update(model, padded(), 0)
    close(metric.compute()["value"], expected.values)


def test_activations_at_padding_are_not_a_number_and_in_no_correlation(model):
    found = unit_activations(model, padded(), layer="mix")
    for sample, maps in enumerate(values(model, "mix")):
        close(found[sample, :, : LENGTHS[sample]], maps)
    assert torch.equal(found.isnan(), (IDS == 0).unsqueeze(1).expand_as(found))
    close(co_activation(found), co_activation(torch.cat(values(model, "mix"), 1).unsqueeze(0)))


def test_dissection_counts_tokens_that_are_there(model):
    labels = IDS % 2
    options = {"layer": "up", "concepts": ["even", "odd"], "threshold": torch.full((4,), 0.1, dtype=torch.double)}
    found = dissect(model, padded(), labels, **options)
    parts = [dissect(model, one, labels[i : i + 1, : LENGTHS[i]], **options) for i, one in enumerate(alone())]
    for name in ("intersection", "area", "concept_area"):
        assert torch.equal(getattr(found, name), sum(getattr(part, name) for part in parts))
    metric = Dissection("up", ["even", "odd"], options["threshold"])
    metric.update(model, padded(), 0, masks=labels)
    close(metric.compute()["iou"], found.iou)


def rises(model, layer="up"):
    """The largest rise of every unit of every sample alone, [J, K] each."""
    found = []
    for inputs in alone():
        one = reactivation(
            model, inputs, layer=layer, regions=1, perturbation=ZERO, threshold=torch.full((4,), 0.05).double()
        )
        found.append(one.by_feature_and_unit)
    return found


@pytest.mark.parametrize("rule", ["given", "activation"])
def test_units_are_not_re_activated_at_padding(model, rule):
    threshold = torch.full((4,), 0.05).double()
    expected = torch.zeros(5, 4, dtype=torch.long)
    if rule == "given":
        for counts in rises(model):
            expected[: len(counts)] += counts
    else:
        threshold = activation_threshold(model, padded(), layer="up", p=0.3).value
        for inputs in alone():
            counts = reactivation(model, inputs, layer="up", regions=1, perturbation=ZERO, threshold=threshold)
            expected[: len(counts.by_feature_and_unit)] += counts.by_feature_and_unit
    options = {"threshold": threshold} if rule == "given" else {"p": 0.3}
    found = reactivation(model, padded(), layer="up", regions=1, perturbation=ZERO, **options)
    parts = [reactivation(model, one, layer="up", regions=1, perturbation=ZERO, threshold=threshold) for one in alone()]
    close(found.change_by_feature.sum(), sum(part.change_by_feature.sum() for part in parts))
    assert torch.equal(found.by_feature_and_unit, expected)
    assert expected.any()
    close(found.threshold, threshold)
    metric = Reactivation("up", Windows(1), ZERO, score="logit", **options)
    metric.update(model, padded(), 0)
    assert torch.equal(metric.compute()["by_feature_and_unit"], expected)


def test_positions_of_padding_are_no_units(model):
    threshold = torch.full((4, 5), 0.05).double()
    options = {"layer": "up", "regions": 1, "perturbation": ZERO, "unit": "position"}
    found = reactivation(model, padded(), threshold=threshold, **options)
    expected = torch.zeros(4, 5, dtype=torch.long)
    for inputs, length in zip(alone(), LENGTHS, strict=True):
        expected[:, :length] += reactivation(model, inputs, threshold=threshold[:, :length], **options).by_unit
    assert torch.equal(found.by_unit, expected)
    assert expected.any()


@pytest.mark.parametrize("at", ["mean", "max"])
def test_a_unit_is_read_at_tokens_that_are_there(model, at):
    score = Unit("mix", 2, at=at)
    found = GradientXInput(score=score).explain(model, padded())
    for sample, inputs in enumerate(alone()):
        own = GradientXInput(score=score).explain(model, inputs)
        close(found.score[sample : sample + 1], own.score)
        close(found.map[sample : sample + 1, : LENGTHS[sample]], own.map)


@pytest.mark.parametrize("score", [Logit(), RawOutput()])
def test_outputs_at_padding_are_in_no_score(model, score):
    found = GradientXInput(score=score).explain(model, padded(tokens=True), "predicted")
    for sample, inputs in enumerate(alone(tokens=True)):
        own = GradientXInput(score=score).explain(model, inputs, "predicted")
        assert found.target[sample] == own.target
        close(found.score[sample : sample + 1], own.score)


def test_the_mean_of_a_silenced_unit_is_that_of_tokens_that_are_there(model):
    found = ablate_units(model, padded(), 0, layer="up", value="mean")
    raw = []
    for inputs in alone():
        handle = model.up.register_forward_hook(lambda _m, _a, output: raw.append(output[0].detach()))
        model(inputs.values[0], inputs.values["attention_mask"])
        handle.remove()
    expected = ablate_units(model, padded(), 0, layer="up", value=torch.cat(raw).mean(0))
    close(found.score_drop, expected.score_drop)


class Tokenwise(nn.Module):
    """An output for every token, finite at padding, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.up, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.double()

    def forward(self, input_ids, attention_mask):
        return self.out(self.up(self.embedding(input_ids)).tanh())


def test_road_accuracy_is_that_of_tokens_that_are_there():
    torch.manual_seed(1)
    model, how = Tokenwise(), {"regions": Windows(1), "perturbation": ZERO, "steps": 1}

    def found(ids, target):
        inputs = Inputs(ids, attention_mask=(ids > 0).long(), explain=0)
        return torch.stack(road_accuracy(model, inputs, target, Saliency(score=RawOutput()), **how))

    samples = [ids[None, :length] for ids, length in zip(IDS, LENGTHS, strict=True)]
    for target in range(4):
        close(found(IDS, target), torch.stack([found(ids, target) for ids in samples]).mean(0))


def test_a_sample_of_padding_alone_is_undefined_and_no_other():
    model = Tokenwise()
    empty = Inputs(IDS, attention_mask=MASK * torch.tensor([[1], [0], [1]]), explain=0)
    others = Inputs(IDS[::2], attention_mask=MASK[::2], explain=0)
    how = {"layer": "up", "value": "mean", "score": Logit(position=0)}
    found, expected = ablate_units(model, empty, 0, **how), ablate_units(model, others, 0, **how)
    assert found.score_drop[1].isnan().all()
    close(found.score_drop[::2], expected.score_drop)
    close(found.mean_score_drop[:, 0], expected.mean_score_drop[:, 0])
    for at in ("mean", "max"):
        found = GradientXInput(score=Unit("up", 2, at=at)).explain(model, empty).score
        assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "cam", [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM, ScoreCAM], ids=lambda cam: cam.__name__
)
def test_class_activation_maps_leave_padding_out(model, cam):
    found = cam("mix", relu=False)(model, padded(), 1)
    assert found.masked_select((IDS == 0).unsqueeze(2)).abs().max() == 0
    for sample, inputs in enumerate(alone()):
        close(found[sample : sample + 1, : LENGTHS[sample]], cam("mix", relu=False)(model, inputs, 1))


@pytest.mark.parametrize("similarity", ["spearman", "cosine"])
def test_similarities_leave_padding_out(model, similarity):
    how = {"order": "top_down", "similarity": similarity, "parameters": {"out.weight": torch.ones(4, 4).double()}}
    found = mprt(model, padded(), 1, Hostile(), **how).similarity
    logits = random_logit(model, padded(), 1, Hostile(), other=torch.tensor([2, 2, 2]), similarity=similarity)
    rises = emprt(model, padded(), 1, Hostile(), parameters=how["parameters"])
    for sample, inputs in enumerate(alone()):
        close(found[sample : sample + 1], mprt(model, inputs, 1, Hostile(), **how).similarity)
        other = random_logit(model, inputs, 1, Hostile(), other=torch.tensor([2]), similarity=similarity)
        close(logits[sample : sample + 1], other)
        close(rises[sample : sample + 1], emprt(model, inputs, 1, Hostile(), parameters=how["parameters"]))


class Hostile(GradientXInput):
    """A gradient times the input, and something large where the input is the padding of `Reader`."""

    def read(self, inputs, gradient):
        return inputs * gradient + torch.where(inputs == 9.0, 5.0 + gradient.flatten(1).sum(1).view(-1, 1, 1), 0.0)


def test_robustness_leaves_padding_out(model):
    noise = 0.1 * torch.randn(3, 2, 4, 5).double()
    found = map_changes(model, padded(), 1, Hostile(), noise=noise)
    for sample, inputs in enumerate(alone()):
        own = map_changes(model, inputs, 1, Hostile(), noise=noise[sample : sample + 1, ..., : LENGTHS[sample]])
        for name in ("size", "change", "relative_change", "step", "relative_step", "output_step"):
            close(getattr(found, name)[sample : sample + 1], getattr(own, name))


@pytest.mark.parametrize(
    "kind", [kinds.GaussianNoise(), kinds.UniformNoise(), kinds.RandomScale(), kinds.Permute()], ids=lambda k: str(k)
)
def test_draws_do_not_depend_on_padding(model, kind):
    how, ids = {"regions": 1, "perturbation": kind, "score": Logit()}, [4, 7, 9]
    drops = importance(model, padded(), 1, sample_ids=ids, **how)
    noise = {"draws": 2, "radius": 0.1}
    changes = map_changes(model, padded(), 1, Hostile(), sample_ids=ids, **noise).change
    maps = RandomMap().explain(model, padded(), 1, ids).map
    for sample, inputs in enumerate(alone()):
        one, rows = ids[sample : sample + 1], slice(sample, sample + 1)
        close(drops[rows, : LENGTHS[sample]], importance(model, inputs, 1, sample_ids=one, **how))
        close(changes[rows], map_changes(model, inputs, 1, Hostile(), sample_ids=one, **noise).change)
        close(maps[rows, : LENGTHS[sample]], RandomMap().explain(model, inputs, 1, one).map)


def test_a_convolution_over_tokens_keeps_what_reads_one_that_is_there():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.conv, self.out = nn.Embedding(7, 3), nn.Conv1d(3, 2, 2, stride=2), nn.Linear(2, 2)

        def forward(self, input_ids, attention_mask):
            x = self.embedding(input_ids) * attention_mask.unsqueeze(2)
            return self.out(self.conv(x.mT).relu().mean(2))

    ids = torch.tensor([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]])
    found = unit_activations(Strided(), Inputs(ids, attention_mask=(ids > 0).long()), layer="conv")
    assert found.isnan().tolist() == [[[False, False, True]] * 2, [[False, True, True]] * 2]


def test_where_positions_cannot_be_told_all_count_with_a_warning():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.up, self.out = nn.Embedding(7, 4), nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, input_ids, attention_mask):
            x = torch.fft.fft(self.embedding(input_ids), dim=1).real * attention_mask.unsqueeze(2)
            return self.out(self.up(x).relu().mean(1))

    with pytest.warns(UserWarning, match="which positions of layer 'up' stand for padding cannot be told, so that all"):
        found = unit_activations(Hidden(), Inputs(IDS, attention_mask=MASK), layer="up")
    assert found.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit_activations(Hidden(), Inputs(IDS, attention_mask=torch.ones_like(IDS)), layer="up")


def test_cells_of_an_image_that_a_patch_stands_for():
    cells = torch.zeros(1, 4, 6, dtype=torch.bool)
    cells[0, 1, 4] = True
    rows, columns = torch.meshgrid(torch.tensor([0.5, 2.5]), torch.tensor([1.0, 4.0]), indexing="ij")
    assert positions_of(cells, [rows, columns]).tolist() == [[[False, True], [False, False]]]
    assert positions_of(cells, [rows, torch.full_like(rows, float("nan"))]).tolist() == [[[True, True], [False, False]]]


def test_relative_noise_is_in_units_of_the_tokens_that_are_there(model):
    found = SmoothGrad(Saliency(absolute=False), draws=3, relative=True)(model, padded(), 1, [4, 7, 9])
    for sample, inputs in enumerate(alone()):
        embedded, length = model.embedding(inputs.values[0]).detach(), LENGTHS[sample]
        noise = [torch.randn(4, length, generator=keyed_generator(0, [4, 7, 9][sample], draw)) for draw in range(3)]
        span = 0.1 * (embedded.max() - embedded.min())
        own = Inputs(inputs.values[0], attention_mask=inputs.values["attention_mask"], explain=0)
        maps = []
        for drawn in noise:
            moved = Moved(model, span * drawn.double().T)
            maps.append(Saliency(absolute=False)(moved, own, 1))
        close(found[sample : sample + 1, :length], sum(maps) / 3)


class Moved(nn.Module):
    """A reader whose embedding returns something else."""

    def __init__(self, inner, step):
        super().__init__()
        self.embedding, self.inner, self.step = inner.embedding, inner, step

    def forward(self, input_ids, attention_mask):
        hook = self.embedding.register_forward_hook(lambda m, a, output: output + self.step)
        try:
            return self.inner(input_ids, attention_mask)
        finally:
            hook.remove()


def test_relevance_by_feature_leaves_padding_out(model):
    metric = Relevance(Hostile(), regions=Windows(1))
    metric.update(model, padded(), 1)
    shares = torch.zeros(5).double()
    for inputs, length in zip(alone(), LENGTHS, strict=True):
        own = Relevance(Hostile(), regions=Windows(1))
        own.update(model, inputs, 1)
        shares[:length] += own.compute()["by_feature"] / 3
    close(metric.compute()["by_feature"], shares)
