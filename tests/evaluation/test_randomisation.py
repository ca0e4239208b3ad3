"""Randomisation: new parameters and other classes, and the network as it was afterwards."""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from draws import close, draw
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import emprt, histogram_entropy, map_similarity, mprt, random_logit
from lightning_xai.relevance import GradientXInput


def network():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 4)
    ).double()


def images():
    return draw(2, 2, 6, 6)


@dataclass(frozen=True)
class Blind(Attribution):
    """The input itself, whatever the network is."""

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        return Explanation.of(bound, score, inputs)


def state(model):
    return {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}


def same_state(before, after):
    return all(before[name][0] == after[name][0] and torch.equal(before[name][1], after[name][1]) for name in before)


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_a_map_that_ignores_the_parameters_stays_at_every_stage(order):
    found = mprt(network(), images(), 0, Blind(), order=order)
    close(found.similarity, torch.ones(2, 3).double())
    close(found.mean, [1.0, 1.0])
    close(emprt(network(), images(), 0, Blind()), [0.0, 0.0])


def test_parameters_replaced_by_themselves_change_nothing():
    model = network()
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    close(mprt(model, images(), 0, GradientXInput(), parameters=own).similarity, torch.ones(2, 3).double())


def test_both_cascades_end_at_the_same_map_and_stages_are_those_of_a_loop():
    model, x, target = network(), images(), torch.tensor([1, 3])
    new = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    clean = GradientXInput()(model, x, target)
    layers = ["4", "1", "0"]
    for order, names in (("top_down", layers), ("bottom_up", layers[::-1]), ("independent", layers)):
        found = mprt(model, x, target, GradientXInput(), order=order, parameters=new, similarity="cosine")
        assert found.layers == tuple(names)
        for stage in range(3):
            which = [names[stage]] if order == "independent" else names[: stage + 1]
            other = network()
            other.load_state_dict(model.state_dict())
            values = {k: new[k] if k.split(".")[0] in which else trained[k] for k in trained}
            other.load_state_dict(values, strict=False)
            moved = GradientXInput()(other, x, target)
            close(found.similarity[:, stage], torch.cosine_similarity(clean.sum(1).flatten(1), moved.sum(1).flatten(1)))


def test_the_network_is_left_as_it_was_whatever_fails():
    @dataclass(frozen=True)
    class Failing(Attribution):
        def attribute(self, model, inputs, target, sample_ids, details):
            if not torch.equal(model[4].weight, trained):
                raise RuntimeError("on purpose")
            return Explanation.of(*self.clean(model, inputs, target), inputs)

    model, x = network(), images()
    model.train()
    trained, before, random = model[4].weight.detach().clone(), state(model), torch.get_rng_state()
    mprt(model, x, 0, GradientXInput())
    emprt(model, x, 0, GradientXInput())
    assert same_state(before, state(model))
    with pytest.raises(RuntimeError, match="on purpose"):
        mprt(model, x, 0, Failing())
    assert same_state(before, state(model))
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_new_parameters_are_those_of_the_modules_initialiser_by_name():
    seen = []

    @dataclass(frozen=True)
    class Seeing(Blind):
        def attribute(self, model, inputs, target, sample_ids, details):
            seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
            return super().attribute(model, inputs, target, sample_ids, details)

    model = network()
    model.train()
    model(draw(4, 2, 6, 6))
    mean = model[1].running_mean.clone()
    mprt(model, images(), 0, Seeing(), seed=3)
    mprt(model, images()[:1], 0, Seeing(), seed=3)
    trained, last, again = seen[0], seen[3], seen[7]  # a clean map and three stages, twice
    for name in ("4.weight", "0.weight"):
        assert torch.equal(again[name], last[name])  # whatever the batch
        assert not torch.equal(last[name], trained[name])
    assert last["4.weight"].abs().max() <= 1 / 108**0.5
    assert torch.equal(last["1.weight"], torch.ones(3).double())
    assert torch.equal(model[1].running_mean, mean)


def test_parameters_without_an_initialiser_are_permuted_and_those_read_by_a_parent_are_its_own():
    seen = []

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.arange(4.0).double())
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True).double()
            self.head = nn.Linear(4, 2).double()

        def forward(self, x):
            x = x.movedim(1, 2) * self.scale
            return self.head(self.attention(x, x, x)[0].mean(1))

    @dataclass(frozen=True)
    class Seeing(Blind):
        def attribute(self, model, inputs, target, sample_ids, details):
            seen.append((model.scale.detach().clone(), model.attention.out_proj.weight.detach().clone()))
            return super().attribute(model, inputs, target, sample_ids, details)

    found = mprt(Attending(), draw(1, 4, 3), 0, Seeing())
    assert found.layers == ("head", "attention", "")
    (trained, projection), _, (kept, its_own), (permuted, _) = seen
    assert torch.equal(kept, trained)
    assert not torch.equal(permuted, trained)
    assert permuted.sort().values.equal(trained)
    assert not torch.equal(its_own, projection)


def test_opposite_logits_have_opposite_maps():
    model, x = nn.Linear(5, 2, bias=False).double(), draw(3, 5)
    model.weight.data[1] = -model.weight.data[0]
    close(random_logit(model, x, [0, 1, 0], GradientXInput()), [-1.0] * 3)
    close(random_logit(model, x, 0, GradientXInput(), absolute=True), [1.0] * 3)
    assert random_logit(nn.Linear(5, 1).double(), x, 0, GradientXInput()).isnan().all()


def test_the_other_class_is_another_class_and_keyed_by_the_sample():
    model, x, target = nn.Linear(5, 3).double(), draw(40, 5), torch.arange(40) % 3
    found = random_logit(model, x, target, GradientXInput())
    maps, first = torch.stack([GradientXInput()(model, x, c) for c in range(3)], 1), []
    for n in range(40):
        others = [map_similarity(maps[n, target[n]][None], maps[n, c][None]) for c in range(3) if c != target[n]]
        hits = [bool(torch.allclose(found[n], other)) for other in others]
        assert any(hits)
        first.append(hits[0])
    assert 8 < sum(first) < 32
    alone = [random_logit(model, x[n : n + 1], target[n : n + 1], GradientXInput(), sample_ids=[n]) for n in range(9)]
    close(torch.cat(alone), found[:9])


def test_similarities_are_those_of_peers():
    a, b = draw(3, 2, 9, 8), draw(3, 2, 9, 8)
    one, other = a.sum(1), b.sum(1)
    for n in range(3):
        expected = scipy.stats.spearmanr(one[n].flatten(), other[n].flatten()).statistic
        close(map_similarity(a, b)[n], expected)
    scaled = [(side / side.abs().amax((1, 2), keepdim=True)).unsqueeze(1) for side in (one, other)]
    peer = structural_similarity_index_measure(*scaled, data_range=2.0, reduction="none")
    close(map_similarity(a, b, "ssim"), peer)
    close(map_similarity(a, -a, absolute=True), [1.0] * 3)


def test_maps_that_cannot_be_compared_are_undefined():
    zero, a = torch.zeros(1, 1, 6, 6).double(), draw(1, 1, 6, 6)
    for similarity in ("spearman", "cosine"):
        assert map_similarity(zero, a, similarity).isnan().all()
    assert map_similarity(1 + 1e-14 * a, a).isnan().all()
    close(map_similarity(zero, zero, "ssim"), [1.0])


def test_the_entropy_of_a_histogram_is_numpys():
    relevance = draw(3, 1, 5, 7)
    for found, values in zip(histogram_entropy(relevance), relevance.flatten(1).numpy(), strict=True):
        counts, _ = np.histogram(values, bins=6)
        close(found, scipy.stats.entropy(counts))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mprt(network(), images(), 0, torch.ones(2)), TypeError, "takes an attribution"),
        (lambda: mprt(network(), images(), 0, Blind(), order="upwards"), ValueError, "top_down"),
        (lambda: mprt(network(), images(), 0, Blind(), similarity="mse"), ValueError, "spearman"),
        (lambda: mprt(nn.Linear(4, 2), draw(1, 4).float(), 0, Blind(), similarity="ssim"), ValueError, "two axes"),
        (lambda: mprt(nn.Tanh(), draw(1, 4), 0, Blind()), ValueError, "has no parameters"),
        (lambda: mprt(network(), images(), 0, Blind(), parameters={"9.bias": draw(1)}), ValueError, "'9.bias'"),
        (lambda: mprt(network(), images(), 0, Blind(), parameters={"4.bias": [1.0]}), TypeError, "must be a tensor"),
        (lambda: mprt(network(), images(), 0, Blind(), parameters={"4.bias": draw(1)}), ValueError, r"be \[4\]"),
        (
            lambda: mprt(torch.jit.script(nn.Linear(4, 2)), draw(1, 4).float(), 0, Blind()),
            ValueError,
            "as it is scripted",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_region_under_new_parameters_is_that_under_the_trained_ones():
    model, x = nn.Conv2d(2, 3, 1).double(), images()
    target = model(x).argmax(1)[:, 0, 0]
    region = model(x).argmax(1) == target.view(2, 1, 1)
    new = {"weight": draw(3, 2, 1, 1), "bias": draw(3)}
    shares = region.unsqueeze(1) / region.flatten(1).sum(1).view(2, 1, 1, 1)
    before = x * model.weight.detach()[target] * shares
    after = x * new["weight"][target] * shares
    found = mprt(model, x, target, GradientXInput(), parameters=new, similarity="cosine").similarity
    close(found[:, 0], map_similarity(before, after, "cosine"))
    rise = histogram_entropy(after) / histogram_entropy(before) - 1
    close(emprt(model, x, target, GradientXInput(), parameters=new), rise)
    assert not torch.equal(region, nn.functional.conv2d(x, *new.values()).argmax(1) == target.view(2, 1, 1))
