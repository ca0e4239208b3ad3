"""Cells beyond the length of a sample are absent where the network does not read them."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_xai import Inputs, Windows
from lightning_xai.inputs.binding import bind
from lightning_xai.perturbation import importance
from lightning_xai.relevance import IntegratedGradients, Saliency
from lightning_xai.scores import Logit

LENGTHS = (7, 4, 5)


class Packed(nn.Module):
    """A classifier of text, or of its tokens, by a packed GRU."""

    def __init__(self, by_token=False):
        super().__init__()
        self.embedding, self.by_token = nn.Embedding(20, 5), by_token
        self.gru, self.head = nn.GRU(5, 4, batch_first=True, bidirectional=True), nn.Linear(8, 3)

    def forward(self, ids, lengths):
        lengths = torch.as_tensor(lengths)
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        if self.by_token:
            return self.head(pad_packed_sequence(states, batch_first=True, total_length=ids.shape[1])[0])
        return self.head(torch.cat([*last], 1))


class Masked(nn.Module):
    """A spectrogram [N, C, F, T] of which the first frames count."""

    def __init__(self, masked=True):
        super().__init__()
        self.conv, self.head, self.masked = nn.Conv2d(1, 4, 1), nn.Linear(4, 3), masked

    def forward(self, x, lengths):
        within = torch.arange(x.shape[3]) < lengths.view(-1, 1, 1, 1)
        maps = self.conv(x).relu() * (within if self.masked else 1.0)
        return self.head(maps.sum((2, 3)) / lengths.unsqueeze(1))


class Tokens(nn.Module):
    """Tells something of every step of [N, T, C] by itself and the mean of those that count."""

    def __init__(self, leaking=False):
        super().__init__()
        self.up, self.head, self.leaking = nn.Linear(3, 4), nn.Linear(4, 2), leaking

    def forward(self, x, lengths):
        steps = self.up(x)
        within = (torch.arange(x.shape[1]) < lengths.unsqueeze(1)).unsqueeze(2)
        mean = (steps * within).sum(1, keepdim=True) / lengths.view(-1, 1, 1)
        return self.head(steps + (steps.mean(1, keepdim=True) if self.leaking else mean))


def made(network):
    return network.double().eval()


@pytest.fixture(autouse=True)
def ids():
    torch.manual_seed(0)
    return torch.randint(1, 20, (3, 7))


def beyond(length=7):
    return torch.stack([torch.arange(length) >= count for count in LENGTHS])


@pytest.mark.parametrize("lengths", [torch.tensor(LENGTHS), list(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32)])
def test_padding_of_a_packed_sequence_is_absent(ids, lengths):
    model, _ = bind(made(Packed()), Inputs(ids, lengths=lengths))
    assert torch.equal(model.absent, beyond())


@pytest.mark.parametrize("explain", [Saliency(), IntegratedGradients(steps=4)], ids=["saliency", "integrated"])
def test_maps_of_packed_samples_are_those_of_the_samples_alone(ids, explain):
    model, lengths = made(Packed()), torch.tensor(LENGTHS)
    found = explain(model, Inputs(ids, lengths=lengths), 1)
    for row, count in enumerate(LENGTHS):
        alone = explain(model, Inputs(ids[row : row + 1, :count], lengths=lengths[row : row + 1]), 1)
        torch.testing.assert_close(found[row, :count], alone[0], rtol=1e-9, atol=1e-12)


def test_importance_of_padding_is_undefined(ids):
    model, lengths = made(Packed()), torch.tensor(LENGTHS)
    found = importance(
        model, Inputs(ids, lengths=lengths), 1, regions=Windows(1), perturbation="constant", score="logit"
    )
    assert torch.equal(found.isnan(), beyond())
    vectors = model.embedding(ids).detach()
    clean = model(ids, lengths)[:, 1]
    for step in range(7):
        changed = vectors.clone()
        changed[:, step] = 0
        hook = model.embedding.register_forward_hook(lambda *_, changed=changed: changed)
        loss = (clean - model(ids, lengths)[:, 1]).detach()
        hook.remove()
        there = ~beyond()[:, step]
        torch.testing.assert_close(found[there, step], loss[there], rtol=1e-9, atol=1e-12)


def test_last_position_is_that_of_the_length(ids):
    model, lengths = made(Packed(by_token=True)), torch.tensor(LENGTHS)
    how = Saliency(score=Logit(position="last", class_axis=-1))
    found = how.explain(model, Inputs(ids, lengths=lengths), 1)
    last = model(ids, lengths)[torch.arange(3), lengths - 1, 1]
    torch.testing.assert_close(found.score, last.detach())


@pytest.mark.filterwarnings("ignore:'lengths' may say")
@pytest.mark.parametrize("leaking", [False, True])
def test_outputs_at_padding_may_read_padding(leaking):
    x, lengths = torch.randn(3, 7, 3, dtype=torch.float64), torch.tensor(LENGTHS)
    model, _ = bind(made(Tokens(leaking)), Inputs(x, lengths=lengths, axis=-1))
    assert (model.absent is None) if leaking else torch.equal(model.absent, beyond())


def test_lengths_hold_along_their_own_axis():
    x, lengths = torch.randn(3, 1, 2, 7, dtype=torch.float64), torch.tensor(LENGTHS)
    model, _ = bind(made(Masked()), Inputs(x, lengths=lengths))
    assert torch.equal(model.absent, beyond().unsqueeze(1).expand(3, 2, 7))


def test_lengths_beyond_which_the_network_reads_are_told():
    x, lengths = torch.randn(3, 1, 2, 7, dtype=torch.float64), torch.tensor(LENGTHS)
    model = made(Masked(masked=False))
    with pytest.warns(UserWarning, match=r"'lengths' may say how long .* absent="):
        assert bind(model, Inputs(x, lengths=lengths))[0].absent is None
    absent = beyond().unsqueeze(1).expand(3, 2, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(bind(model, Inputs(x, lengths=lengths, absent=absent))[0].absent, absent)
        bind(model, Inputs(x, lengths=torch.full((3,), 7)))  # nothing lies beyond


def test_other_integers_are_no_lengths():
    class Aged(Masked):
        def forward(self, x, age):
            return super().forward(x, torch.full((len(x),), x.shape[3])) + age.unsqueeze(1)

    x = torch.randn(3, 1, 2, 7, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bind(made(Aged()), Inputs(x, age=torch.tensor([1, 3, 2])))[0].absent is None
