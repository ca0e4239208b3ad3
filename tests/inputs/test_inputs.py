"""Networks of several arguments, and outputs of modules as what is explained."""

import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from torch import nn
from torch.nn import functional

from lightning_xai import Inputs, Site
from lightning_xai.axes import axis_facts
from lightning_xai.evaluation.core import core_measures
from lightning_xai.inputs.binding import bind
from lightning_xai.metrics import Importance
from lightning_xai.perturbation import Windows, importance, kinds
from lightning_xai.relevance import LRP, GradCAM, GradientXInput, IntegratedGradients, Saliency, SmoothGrad, composites
from lightning_xai.rows import same_rows
from lightning_xai.scores import Logit
from lightning_xai.units import activation_threshold


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class ImageAndTable(nn.Module):
    """Multiplies what it reads of an image by what it reads of a table, so that neither is right without the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.out = nn.Conv2d(2, 4, 3), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, image, table, scale=None, *, places=None):
        read = self.conv(image).relu().mean((2, 3)) * self.linear(table).sigmoid()
        if places is not None:
            read = read * places.sum()
        return self.out(read) * (1.0 if scale is None else scale)


class Output(dict):
    """A dict whose entries are attributes, too, as those of transformers."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:  # Python 3.10 looks for `__getstate__`
            raise AttributeError(name) from None


class Text(nn.Module):
    """A class token, a mask, tokens whose norm is computed in place, and heads that return a tuple."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.places = nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.act, self.out = nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None, labels=None, **_):
        x = self.embeddings(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        hidden = None if attention_mask is None else attention_mask == 0
        x = self.act(self.norm(x + self.attention(x, x, x, key_padding_mask=hidden)[0]))
        loss = {} if labels is None else {"loss": functional.cross_entropy(self.out(x[:, 0]), labels)}
        return Output(**loss, logits=self.out(x[:, 0]))


@pytest.fixture
def both():
    return ImageAndTable().double(), torch.randn(5, 2, 6, 7).double(), torch.randn(5, 5).double()


@pytest.fixture
def text():
    ids = torch.tensor([[2, 7, 1, 4], [2, 3, 3, 0], [2, 9, 0, 0]])
    return Text().double(), ids, (ids > 0).long()


Y = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_importance_of_one_argument_takes_the_others_of_its_sample(both, chunk_size):
    model, image, table = both
    expected = torch.zeros(5, 2)
    expected = expected.double()
    for sample in range(5):
        for feature, columns in enumerate((slice(0, 3), slice(3, 5))):
            changed = table[sample].clone()
            changed[columns] = 0.5
            with torch.no_grad():
                clean, other = (
                    model(image[sample : sample + 1], t[None])[0, Y[sample]] for t in (table[sample], changed)
                )
            expected[sample, feature] = clean - other
    options = {"regions": Windows(3), "perturbation": kinds.Constant(0.5), "score": "logit", "chunk_size": chunk_size}
    close(importance(model, Inputs(image, table, explain=1), Y, **options), expected)
    close(importance(model, Inputs(image=image, table=table, explain="table"), Y, **options), expected)


def test_metric_counts_an_argument_over_batches_as_at_once(both):
    model, image, table = both
    whole, parts = (Importance(Windows(3), kinds.Constant(0.0), score="logit") for _ in range(2))
    whole.update(model, Inputs(image, table, explain=0), Y)
    for rows in (slice(0, 2), slice(2, 5)):
        parts.update(model, Inputs(image[rows], table[rows], explain=0), Y[rows])
    close(parts.compute()["map"], whole.compute()["map"])


def test_gradients_of_several_arguments_are_those_of_autograd(both):
    model, image, table = both
    leaves = [image.clone().requires_grad_(), table.clone().requires_grad_()]
    expected = torch.autograd.grad(model(*leaves).gather(1, Y[:, None]).sum(), leaves)
    inputs = Inputs(image, table=table, explain=(0, "table"))
    found = Saliency(absolute=False)(model, inputs, Y)
    close(found[0], expected[0])
    close(found["table"], expected[1])
    close(Saliency(absolute=False)(model, Inputs(image, table=table, explain="table"), Y), expected[1])


def test_integrated_gradients_of_several_arguments_are_complete(both):
    model, image, table = both
    found = IntegratedGradients(steps=300).explain(model, Inputs(image, table, explain=(0, 1)), Y)
    with torch.no_grad():
        change = (model(image, table) - model(0 * image, 0 * table)).gather(1, Y[:, None])[:, 0]
    close(found.map.sum(1), change, 1e-3)
    close(found.maps[0].flatten(1).sum(1) + found.maps[1].sum(1), change, 1e-3)


def test_steps_and_draws_take_the_arguments_of_their_sample(both):
    model, image, table = both
    for method in (IntegratedGradients(steps=4), IntegratedGradients(steps=4, chunk_size=2), SmoothGrad(draws=3)):
        alone = [
            method.explain(model, Inputs(image[i : i + 1], table[i : i + 1], explain=1), Y[i : i + 1], [i]).map
            for i in range(5)
        ]
        close(method(model, Inputs(image, table, explain=1), Y), torch.cat(alone))


def test_relevance_of_several_arguments_and_its_ledger_balance(both):
    model, image, table = both
    for part in (model.conv, model.linear, model.out):
        part.bias.data.zero_()
    found = LRP(composites.AttnLRP(1e-12)).explain(model, Inputs(image, table, explain=(0, 1)), Y, details=["ledger"])
    assert abs(found.details["ledger"].balance) < 1e-9
    assert set(found.maps) == {0, 1}


def test_class_activation_map_takes_the_other_argument(both):
    model, image, table = both
    found = GradCAM("conv", upsample=None)(model, Inputs(image, table=table, explain=0), Y)
    activation = model.conv(image).detach().requires_grad_()
    score = model.out(activation.relu().mean((2, 3)) * model.linear(table).sigmoid()).gather(1, Y[:, None]).sum()
    (slope,) = torch.autograd.grad(score, activation)
    close(found, (slope.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu().detach())


def test_what_is_not_given_per_sample_is_found(both):
    """Five places beside five samples: told apart by trying."""
    model, image, table = both
    places, scale = torch.arange(5.0).double(), torch.rand(5, 1).double()
    inputs = Inputs(image, table, scale, places=places, explain=1)
    expected = torch.cat(
        [
            Saliency()(
                model,
                Inputs(image[i : i + 1], table[i : i + 1], scale[i : i + 1], places=places, explain=1),
                Y[i : i + 1],
            )
            for i in range(5)
        ]
    )
    close(Saliency()(model, inputs, Y), expected)
    options = {"regions": Windows(2), "perturbation": kinds.Constant(0.0), "score": "logit", "chunk_size": 2}
    told = Inputs(image, table, scale, places=places, explain=1, constant=["places"])
    close(importance(model, inputs, Y, **options), importance(model, told, Y, **options))


def test_ids_are_explained_at_their_embedding(text):
    model, ids, mask = text
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}
    found = GradientXInput()(model, batch, torch.tensor([0, 1, 2]))
    peer = LayerGradientXActivation(lambda i, m: model(i, m)["logits"], model.embeddings)
    close(found, peer.attribute(ids, target=torch.tensor([0, 1, 2]), additional_forward_args=(mask,)))
    assert found[1, 3].abs().max() == 0  # padding


def test_integrated_gradients_at_a_site_equal_the_peer(text):
    model, ids, mask = text
    peer = LayerIntegratedGradients(lambda i, m: model(i, m)["logits"], model.embeddings)
    baseline = model.embeddings(torch.zeros_like(ids)).detach()
    expected = peer.attribute(
        ids, torch.zeros_like(ids), target=1, additional_forward_args=(mask,), n_steps=20, method="gausslegendre"
    )
    method = IntegratedGradients(steps=20, baseline=baseline.transpose(1, 2))
    close(method(model, Inputs(ids, attention_mask=mask), 1), expected, 1e-6)


def test_relevance_at_a_site_is_that_of_what_follows(text):
    model, ids, mask = text
    seen = []
    handle = model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(ids, mask)
    handle.remove()
    method = LRP(composites.AttnLRP())
    close(
        method(model, Inputs(ids, attention_mask=mask, at="norm"), 1),
        method(nn.Sequential(nn.ReLU(), _First(model.out)), model.norm(seen[0]).detach(), 1),
    )
    with pytest.raises(ValueError, match=r"layer 'places' returns \[4, 6\] for two samples, which is not one row per"):
        method(model, Inputs(ids, attention_mask=mask, at="places"), 1)


class _First(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x[:, 0])


@pytest.mark.parametrize(("off", "same"), [(1e-6, True), (1e-4, False)])
def test_rounding_in_single_precision_is_no_dependence_between_rows(off, same):
    """Norms of Llama are computed in single precision whatever the model's is."""
    row = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    assert same_rows(nn.Identity(), [row], [row + off]) is same


def test_thresholds_of_a_text_network_are_those_of_its_layer(text):
    model, ids, mask = text
    seen = []
    handle = model.norm.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    model(ids, mask)
    handle.remove()
    values = seen[0][mask > 0].T  # padding is left out
    expected = values.sort(1, descending=True).values[:, values.shape[1] // 4]
    batch = {"input_ids": ids, "attention_mask": mask}
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 3))]
    for data in (batch, Inputs(ids, attention_mask=mask), parts, [(part, 0) for part in parts], iter(parts)):
        found = activation_threshold(model, data, layer="norm", p=0.25, activation="identity")
        close(found.value, expected)
        assert found.count == values.shape[1]


def test_axes_are_those_behind_the_site(text):
    model, ids, mask = text
    table = axis_facts(model, Inputs(ids, attention_mask=mask))
    assert str(table["norm"]) == "[2 rows, 4 positions, 6 units], grid 4"
    assert table["norm"] == axis_facts(model, {"input_ids": ids, "attention_mask": mask})["norm"]


def test_nodes_of_one_graph_are_refused_and_random_networks_are_not():
    class Graph(nn.Module):
        def forward(self, x):
            return (torch.eye(len(x)) + torch.ones(len(x), len(x))).to(x) @ x

    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    x, options = torch.randn(4, 3), {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "logit"}
    for explain in (Saliency(), GradientXInput(), LRP("attn_lrp"), IntegratedGradients(steps=2)):
        with pytest.raises(ValueError, match="the samples of a batch depend on each other"):
            explain(Graph(), x, 0)
    for rows, chunk_size in ((4, None), (1, None), (4, 2), (1, 2)):  # what is perturbed of one stands in a batch, too
        with pytest.raises(ValueError, match="the samples of a batch depend on each other"):
            importance(Graph(), x[:rows], 0, chunk_size=chunk_size, **options)
    with pytest.raises(ValueError, match="the samples of a batch depend on each other"):
        Saliency()(nn.BatchNorm1d(3, track_running_stats=False), x, 0)
    assert importance(Noisy(), x, 0, **options).isfinite().all()
    torch.testing.assert_close(importance(Graph(), x, 0, chunk_size=1, **options), 2 * x * torch.eye(3)[:1])


def test_part_may_be_counted_from_the_end():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0].tanh()[:, -1])

    model, x = Two().double(), torch.randn(2, 5, 3).double()
    maps = [GradientXInput()(model, Inputs(x, at=Site("lstm", axis=-1, part=part)), 0) for part in (0, -2)]
    assert maps[0].abs().max() > 0
    close(*maps)


def test_arguments_may_have_the_names_of_options():
    class Placed(nn.Module):
        def forward(self, x, position, at):
            return x * position + at

    x, position, at = torch.randn(3, 3, 2)
    inputs = Inputs.of({"x": x, "position": position, "at": at}, "x")
    close(Saliency(absolute=False)(Placed(), inputs, 1)[:, 1], position[:, 1])


def test_what_follows_is_found_anew_for_other_shapes():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x, bias):
            return self.linear((x + bias).relu().mean(1))

    model, x = Biased().double(), torch.randn(3, 3, 4).double()
    options = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "logit", "chunk_size": 1}
    for bias in (torch.randn(3, 1, 4).double(), torch.randn(3, 4).double()):
        alone = [
            importance(
                model, Inputs(x[i : i + 1], bias if bias.ndim == 2 else bias[i : i + 1], explain=0), 1, **options
            )
            for i in range(3)
        ]
        close(importance(model, Inputs(x, bias, explain=0), 1, **options), torch.cat(alone))


def test_edges_are_no_samples_where_there_are_two():
    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x, edges):
            mixed = torch.zeros_like(x).index_add(1, edges[1], x[:, edges[0]])
            return self.linear(mixed.tanh().sum(1))

    model, x = Edges().double(), torch.randn(2, 3, 2).double()
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    found = Saliency()(model, Inputs(x, edges, explain=0), 1)
    close(found, Saliency()(model, Inputs(x, edges, explain=0, constant=[1]), 1))
    assert not bind(model, Inputs(x, edges, explain=0))[0].binding.arguments.following


def test_samples_on_another_axis_of_the_output_are_refused():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x).transpose(0, 1)

    with pytest.raises(ValueError, match="whose samples lie on axis 1: wrap the model"):
        GradientXInput(score="logit")(TimeFirst(), torch.randn(5, 5, 4), 1)


def test_only_what_is_scored_must_not_depend_on_other_samples():
    class Pairs(nn.Module):
        def forward(self, x):
            return {"own": x, "similarity": x @ x.T}

    x, options = torch.randn(3, 3), {"regions": 1, "perturbation": kinds.Constant(0.0)}
    model = Pairs()
    assert importance(model, x, 0, score=Logit(output="own"), **options).isfinite().all()
    for _ in range(2):
        with pytest.raises(ValueError, match="the samples of a batch depend on each other"):
            importance(model, x, 0, score=Logit(output="similarity"), **options)


def test_output_for_all_samples_at_once_is_no_site():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.linear = nn.Embedding(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x + self.places(torch.arange(4).unsqueeze(0))).mean(1)

    with pytest.raises(ValueError, match=r"layer 'places' returns \[1, 4, 3\] for two samples"):
        GradientXInput()(Placed(), Inputs(torch.randn(2, 4, 3), at="places"), 0)


@pytest.mark.parametrize("axis", [2, -1])
def test_channels_of_an_argument_may_lie_on_another_axis(axis):
    class Steps(nn.Module):
        """Features of time steps, and a mask."""

        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
            self.double()

        def forward(self, x, attention_mask):
            return self.out((self.lstm(x)[0] * attention_mask.unsqueeze(2)).sum(1))

    class First(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, attention_mask):
            return self.inner(x.mT, attention_mask)

    torch.manual_seed(2)
    model, x = Steps().eval(), torch.randn(3, 5, 3).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    moved, inputs = First(model), Inputs(x, attention_mask=mask, axis=axis)
    usual = Inputs(x.mT, attention_mask=mask)
    for method in (GradientXInput(), SmoothGrad(draws=2), IntegratedGradients(steps=2), LRP("attn_lrp")):
        close(method(model, inputs, 1), method(moved, usual, 1).mT)
    options = {"regions": 2, "perturbation": kinds.ChannelMean(), "score": "logit"}
    found = importance(model, inputs, 1, **options)
    assert found.isnan().tolist() == [[False] * 3, [False, False, True], [False, True, True]]
    torch.testing.assert_close(found, importance(moved, usual, 1, **options), equal_nan=True)
    facts = axis_facts(model, inputs)["out"]
    assert facts is not None
    batch = core_measures(
        model, inputs, 1, GradientXInput()(model, inputs, 1), regions=1, perturbation=kinds.Constant(0.0), score="logit"
    )
    other = core_measures(moved, usual, 1, GradientXInput(), regions=1, perturbation=kinds.Constant(0.0), score="logit")
    close(batch.values["srg"], other.values["srg"])
    with pytest.raises(ValueError, match=r"axis=3 cannot hold the channels of \[3, 5, 3\]"):
        Inputs(x, attention_mask=mask, axis=3)
    with pytest.raises(ValueError, match=r"write at=Site\(..., axis=...\)"):
        Saliency()(model, Inputs(x, attention_mask=mask, axis=2, at="out"), 1)
