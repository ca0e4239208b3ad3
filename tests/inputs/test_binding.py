"""What is bound when a network is explained: arguments, sites, rows, padding, and which samples are independent."""

import copy

import pytest
import torch
from torch import nn

from lightning_xai import Inputs, Segments, Site
from lightning_xai._guard import set_forward_context
from lightning_xai.axes import axis_facts
from lightning_xai.inputs.binding import bind
from lightning_xai.perturbation import importance, kinds, synergy
from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients, Saliency, SmoothGrad, composites
from lightning_xai.rows import rounding_of
from lightning_xai.scores import Box, Logit

ZERO = kinds.Constant(0.0)
IDS = torch.tensor([[1, 4, 5, 0], [1, 3, 0, 0], [1, 2, 6, 5]])
MASK = (IDS > 0).long()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


class Words(nn.Module):
    """Logits of every token that also read those before it; takes options that must not be given."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=True):
        assert labels is None
        assert not use_cache
        return self.out(self.embedding(input_ids).cumsum(1).tanh())


# Sites


@pytest.mark.parametrize("method", [GradientXInput(), LRP(composites.AttnLRP()), IntegratedGradients(steps=3)])
def test_what_follows_in_place_leaves_a_site_as_it_is(method):
    layers = [nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)]
    plain = nn.Sequential(*layers).double()
    in_place = nn.Sequential(layers[0], nn.ReLU(inplace=True), *layers[2:])
    x = torch.randn(3, 2, 4).double()
    close(method(in_place, Inputs(x, at="0"), 1), method(plain, Inputs(x, at="0"), 1))
    options = {"regions": 1, "perturbation": ZERO, "score": "logit"}
    close(importance(in_place, Inputs(x, at="0"), 1, **options), importance(plain, Inputs(x, at="0"), 1, **options))


def test_a_module_that_runs_twice_asks_which_call():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.out = nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, a, b):
            return self.out(torch.cat([self.shared(a), self.shared(b)], 1).tanh())

    model, (a, b) = Twins().double(), torch.randn(2, 5, 3).double()
    with pytest.raises(ValueError, match=r"runs 2 times in a forward pass: say which call is meant, at=Site\('shared'"):
        Saliency()(model, Inputs(a, b, explain=0, at="shared"), 1)
    with pytest.raises(ValueError, match="there is no call=2"):
        Saliency()(model, Inputs(a, b, explain=0, at=Site("shared", call=2)), 1)
    hidden = [model.shared(part).detach().requires_grad_() for part in (a, b)]
    slopes = torch.autograd.grad(model.out(torch.cat(hidden, 1).tanh())[:, 1].sum(), hidden)
    for call, slope in enumerate(slopes):
        found = Saliency(absolute=False)(model, Inputs(a, b, explain=0, at=Site("shared", call=call)), 1)
        close(found, slope)


def test_a_site_under_the_models_own_no_grad_has_a_gradient():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                hidden = self.stem(x).tanh()
            return self.out(hidden)

    model, x = Frozen().double(), torch.randn(2, 3).double()
    leaf = model.stem(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.out(leaf.tanh())[:, 0].sum(), leaf)
    close(Saliency(absolute=False)(model, Inputs(x, at="stem"), 0), slope)


def test_sites_have_the_names_of_the_network_inside_a_wrapper():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(2, 3).double()
    close(Saliency()(nn.DataParallel(model), Inputs(x, at="1"), 0), Saliency()(model, Inputs(x, at="1"), 0))


def test_a_module_that_returns_integers_is_no_site():
    class Strongest(nn.Module):
        def forward(self, x):
            return x.argmax(2)

    model = nn.Sequential(nn.Linear(3, 4), Strongest(), nn.Embedding(4, 2), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '1' returns torch.int64: only floating-point numbers"):
        Saliency()(model, Inputs(torch.randn(2, 5, 3), at="1"), 0)


def test_ids_that_two_embeddings_take_ask_for_one():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Embedding(7, 2), nn.Embedding(7, 2)

        def forward(self, ids):
            return (self.first(ids) * self.second(ids)).sum(1)

    with pytest.raises(ValueError, match="'first' and 'second' take them: name the module"):
        Saliency()(Both(), IDS, 0)
    assert Saliency()(Both(), Inputs(IDS, at="second"), 0).shape == (3, 4, 2)


def test_ids_have_positions_and_no_channels():
    class Moved(nn.Module):
        """Embeddings with units on axis 1, which no operation tells."""

        def __init__(self):
            super().__init__()
            self.embedding, self.kept, self.out = nn.Embedding(7, 5), nn.Identity(), nn.Linear(5, 2)

        def forward(self, ids):
            return self.out(self.kept(self.embedding(ids).mT).tanh().mean(2))

    model, inputs = Moved().double(), Inputs(IDS, at="kept")
    assert Saliency()(model, inputs, 1).shape == (3, 5, 4)
    assert importance(model, inputs, 1, regions=1, perturbation=ZERO).shape == (3, 4)
    facts = axis_facts(model, IDS)["kept"]
    assert (facts.batch, facts.positions, facts.unit) == (0, (2,), 1)


# Arguments


def test_labels_do_not_enter_and_no_cache_is_asked_for():
    model = Words().double()
    for given in ({"labels": IDS}, {"label": IDS[:, 0]}, {}):
        assert Saliency()(model, {"input_ids": IDS, "attention_mask": MASK, **given}, 1).shape == (3, 4, 4)


def test_names_are_those_of_the_signature():
    class Anything(nn.Module):
        def forward(self, **values):
            return values["x"] * values["w"]

    class Some(nn.Module):
        def forward(self, x, **values):
            return x

    x = torch.randn(3, 2)
    close(Saliency(absolute=False)(Anything(), Inputs(x=x, w=2.0, explain="x"), 1)[:, 1], torch.full((3,), 2.0))
    with pytest.raises(ValueError, match=r"argument 'w' is unknown.*must be named in the signature"):
        Saliency()(Some(), Inputs(x, w=x), 1)


@pytest.mark.parametrize("method", [Saliency(), GradientXInput(), LRP(composites.AttnLRP())])
def test_ids_beside_numbers_are_explained_by_themselves(method):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(7, 4), nn.Linear(6, 3)

        def forward(self, numbers, kind):
            return self.out(torch.cat([numbers, self.embedding(kind)[:, 0]], 1))

    inputs = {"numbers": torch.randn(3, 2), "kind": torch.tensor([[1], [5], [2]])}
    with pytest.raises(ValueError, match=r"integer ids explain one argument: name one with explain="):
        method(Table(), Inputs(**inputs, explain=("numbers", "kind")), 1)
    assert method(Table(), Inputs(**inputs, explain="kind"), 1).shape == (3, 1, 4)


def test_explained_arguments_have_as_many_samples_each():
    with pytest.raises(ValueError, match=r"as many samples each, got \{0: 3, 1: 2\}"):
        Inputs(torch.zeros(3, 2), torch.zeros(2, 2), explain=(0, 1))


def test_a_bound_model_takes_the_rows_that_it_is_bound_to():
    model, values = bind(Words(), Inputs(IDS, attention_mask=MASK))
    with pytest.raises(ValueError, match="bound to 3 samples and got 2 rows"):
        model(values[:2])
    assert len(model.at(torch.tensor([2, 0]))(values[[2, 0]])) == 2


def test_a_mask_of_pairs_of_tokens_tells_no_padding():
    with pytest.warns(UserWarning, match="'attention_mask' .* may hide padding, but which cells of 0"):
        model, _ = bind(Words(), Inputs(IDS, attention_mask=MASK.unsqueeze(1).repeat(1, 4, 1)))
    assert model.binding.arguments.following == {"attention_mask"}
    assert model.absent is None
    assert model.there == "'attention_mask' [3, 4, 4] is no mask [N, T] of 0 and 1"


def test_an_answer_is_kept_only_if_no_other_fits():
    class Weighted(nn.Module):
        def forward(self, x, weight):
            return x * weight

    model, x = Weighted(), torch.randn(2, 2).double()
    for weight in (torch.tensor([3.0, 3.0]), torch.tensor([1.0, 5.0])):  # of classes, of which there are two as well
        slope = Saliency(absolute=False)(model, Inputs(x, weight.double(), explain=0), 1)
        close(slope[:, 1], weight[1].double().expand(2))


def test_noise_is_relative_to_the_range_of_each_argument():
    class Sum(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, a, b):
            return torch.stack([a.square().sum(1) + (b / self.scale).square().sum(1), a.sum(1)], 1)

    a, b = torch.randn(2, 3, 4).double()
    method = SmoothGrad(draws=3, relative=True)
    maps = [method(Sum(scale), Inputs(a, b * scale, explain=(0, 1)), 0) for scale in (1.0, 1000.0)]
    close(maps[0][0], maps[1][0])
    close(maps[0][1], maps[1][1] * 1000.0)


# Positions and padding


def test_positions_follow_their_samples():
    model, inputs = Words().double(), Inputs(IDS, attention_mask=MASK, position=[2, 0, 3])
    methods = [IntegratedGradients(steps=3, chunk_size=2), SmoothGrad(draws=2, chunk_size=3), Saliency()]
    for method in methods:
        alone = [
            method.explain(model, Inputs(IDS[i : i + 1], attention_mask=MASK[i : i + 1], position=[p]), 1, [i]).map
            for i, p in enumerate([2, 0, 3])
        ]
        close(method(model, inputs, 1), torch.cat(alone))
    options = {"regions": 1, "perturbation": ZERO, "score": "logit"}
    close(importance(model, inputs, 1, chunk_size=1, **options), importance(model, inputs, 1, **options))
    assert importance(model, inputs, 1, chunk_size=1, **options)[1, 1] == 0  # a token after the one that is read


@pytest.mark.parametrize(("mask", "last"), [([1, 1, 0, 0], 1), ([0, 0, 1, 1], 3), ([1, 1, 1, 1], 3)])
def test_last_is_the_last_that_is_not_hidden(mask, last):
    model, ids = Words().double(), IDS[2:]
    found = GradientXInput(score=Logit(position="last")).explain(
        model, Inputs(ids, attention_mask=torch.tensor([mask])), 1
    )
    close(found.score, GradientXInput(score=Logit(position=last)).explain(model, Inputs(ids), 1).score)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_padding_and_what_is_named_are_absent_in_any_chunk(chunk_size):
    model, special = Words().double(), IDS == 1
    inputs = Inputs(IDS, attention_mask=MASK, absent=special)
    options = {"perturbation": ZERO, "score": Logit(position="last"), "chunk_size": chunk_size}
    assert torch.equal(importance(model, inputs, 1, regions=1, **options).isnan(), (IDS == 0) | special)
    # A window is there if one of its tokens is.
    assert importance(model, inputs, 1, regions=2, **options).isnan().tolist() == [
        [False, False],
        [False, True],
        [False, False],
    ]
    joint = synergy(model, inputs, 1, anchor=2, regions=1, **options)
    assert torch.equal(joint[1].isnan(), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"absent must be \[N, \*S\], \[3, 4\]"):
        importance(model, Inputs(IDS, attention_mask=MASK, absent=special[:, :2]), 1, regions=1, **options)


def test_segments_of_a_text_may_be_absent_for_either_reason():
    labels = torch.tensor([[0, 1, 1, 2], [0, 1, 2, 2], [1, 1, 1, 2]])  # the third has no segment 0
    regions = Segments(lambda values: labels[: len(values)])
    options = {"regions": regions, "perturbation": ZERO, "score": Logit(position=0)}
    found = importance(Words().double(), Inputs(IDS, attention_mask=MASK), 1, **options)
    assert found.isnan().tolist() == [[False, False, True], [False, False, True], [True, False, False]]


# Rows that depend on each other


@pytest.mark.parametrize(
    "join",
    [
        lambda x: x - x.mean(0),
        lambda x: x - x.mean(-2, keepdim=True),
        lambda x: x.softmax(0),
        lambda x: torch.ones(len(x), len(x)).to(x).triu() @ x,
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
    ],
    ids=["mean", "mean from the end", "softmax", "product", "batch norm"],
)
def test_operations_that_join_rows_are_seen(join):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, x):
            return self.out(join(x))

    x = torch.randn(4, 3).double()
    for method in (Saliency(), LRP(composites.AttnLRP())):
        with pytest.raises(ValueError, match="the samples of a batch depend on each other"):
            method(Joined().double(), x, 1)


def test_half_precision_may_round_more():
    row = [torch.ones(1, 2)]
    model = nn.Linear(2, 2)
    assert rounding_of(copy.deepcopy(model).double(), [row[0].double()]) < rounding_of(model, row) < 0.1
    with set_forward_context(lambda: torch.autocast("cpu", torch.bfloat16)):
        assert rounding_of(model, row) == rounding_of(copy.deepcopy(model).bfloat16(), row) == 0.2


def test_a_box_is_compared_with_those_of_its_label():
    def found(*detections):
        boxes, scores, labels = zip(*detections, strict=True)
        return {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}

    clean = [found(([0.0, 0, 4, 4], 0.9, 2)), found(([1.0, 1, 3, 5], 0.6, 5))]
    bound = Box().bind(clean, None, samples=2)
    other = [
        found(([0.0, 0, 4, 4], 1.0, 3), ([2.0, 0, 6, 4], 0.6, 2), ([0.0, 0, 4, 2], 0.3, 2)),  # IoU 1/3 and 1/2
        found(([10.0, 10, 12, 12], 1.0, 5)),  # no overlap
    ]
    torch.testing.assert_close(bound(other), torch.tensor([0.2, 0.0]))
