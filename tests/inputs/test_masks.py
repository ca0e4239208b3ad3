"""Masks: the padding is that of what is explained, and the last position that of the output; nothing is guessed."""

import warnings

import pytest
import torch
from draws import close
from torch import nn

from lightning_xai import Inputs, Site
from lightning_xai.inputs.binding import bind
from lightning_xai.perturbation import importance, kinds
from lightning_xai.present import absent_cells
from lightning_xai.relevance import GradientXInput
from lightning_xai.scores import Logit, RawOutput

SOURCE = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]])
TARGET = torch.tensor([[1, 2, 3, 4, 5], [5, 6, 7, 0, 0]])
ZERO = kinds.Constant(0.0)
MASKS = []  # that were given to a decoder


def mask_of(ids):
    return (ids > 0).long()


class Translator(nn.Module):
    """An output [N, positions of the target, classes] that reads the source as a whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target, self.out = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask=None):
        read = (self.source(input_ids) * attention_mask.unsqueeze(2)).sum(1, keepdim=True)
        return self.out(read * self.target(decoder_input_ids))


@pytest.fixture
def model():
    return Translator().eval()


def pair(explain="input_ids", target=TARGET, **options):
    options.setdefault("decoder_attention_mask", mask_of(target))
    return Inputs(SOURCE, mask_of(SOURCE), decoder_input_ids=target, explain=explain, **options)


def absent(model, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return absent_cells(bind(model, inputs)[0])


def test_padding_is_that_of_what_is_explained(model):
    assert torch.equal(absent(model, pair(0)), SOURCE == 0)  # the mask is given by place
    assert torch.equal(absent(model, pair("decoder_input_ids")), TARGET == 0)
    assert absent(model, pair("decoder_input_ids", decoder_attention_mask=None)) is None


def test_the_last_position_is_that_of_the_decoder(model):
    found = importance(model, pair(0), 1, regions=1, perturbation=ZERO, score=Logit(position="last"))
    for sample, last in enumerate([4, 2]):
        embedded = model.source(SOURCE[sample]) * mask_of(SOURCE)[sample].unsqueeze(1)
        drops = model.out(embedded * model.target(TARGET[sample, last]))[:, 1] - model.out.bias[1]
        there = SOURCE[sample] > 0
        close(found[sample, there], drops[there].detach())


@pytest.mark.parametrize("score", [Logit(class_axis=-1), RawOutput(class_axis=-1)])
def test_outputs_at_padding_of_a_decoder_are_in_no_score(model, score):
    found = GradientXInput(score=score).explain(model, pair(0), 1)
    for sample, length in enumerate((TARGET > 0).sum(1).tolist()):
        rows = slice(sample, sample + 1)
        given = {"decoder_input_ids": TARGET[rows, :length], "decoder_attention_mask": mask_of(TARGET[rows, :length])}
        alone = Inputs(SOURCE[rows], mask_of(SOURCE[rows]), explain=0, **given)
        own = GradientXInput(score=score).explain(model, alone, 1)
        close(found.score[rows], own.score)
        close(found.map[rows], own.map)


class Trained(Translator):
    """A translator that makes of its labels what its decoder is given."""

    def forward(
        self,
        input_ids,
        attention_mask,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        decoder_inputs_embeds=None,
        labels=None,
    ):
        assert labels is None
        assert decoder_inputs_embeds is None
        MASKS.append(decoder_attention_mask)
        return super().forward(input_ids, attention_mask, input_ids if decoder_input_ids is None else decoder_input_ids)


class Shifting(Trained):
    def prepare_decoder_input_ids_from_labels(self, labels):
        return torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1]], 1).clamp(min=0)


def test_labels_tell_what_the_decoder_is_given():
    labels = TARGET.where(TARGET > 0, -100)
    batch = {"input_ids": SOURCE, "attention_mask": mask_of(SOURCE), "labels": labels}
    model, method = Shifting().eval(), GradientXInput(score=Logit(position=1, class_axis=-1))
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    found = method.explain(model, batch, 1)
    assert torch.equal(MASKS[-1], mask_of(TARGET))
    close(found.score, model(SOURCE, mask_of(SOURCE), decoder_input_ids=shifted)[:, 1, 1].detach())
    given = {"decoder_input_ids": TARGET, "decoder_attention_mask": mask_of(TARGET)}
    close(method.explain(model, {**batch, **given}, 1).score, model(SOURCE, mask_of(SOURCE), **given)[:, 1, 1].detach())
    with pytest.raises(ValueError, match=r"Trained makes the inputs of its decoder of the labels.*decoder_input_ids="):
        method(Trained().eval(), batch, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_attention_mask": None}, "a decoder without a decoder_attention_mask: write position=-1"),
        ({"decoder_attention_mask": mask_of(TARGET)[:, 1:]}, "the mask is of 4 positions, the output has 5"),
        ({"decoder_attention_mask": torch.where(TARGET > 0, 0.0, -1e9)}, r"'decoder_attention_mask' \[2, 5\] is no m"),
    ],
)
def test_a_last_position_that_is_not_known_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        GradientXInput(score=Logit(position="last"))(model, pair(0, **options), 1)


def test_a_sample_of_padding_alone_has_no_last_position(model):
    target = TARGET * torch.tensor([[1], [0]])
    found = GradientXInput(score=Logit(position="last")).explain(model, pair(0, target), 1)
    assert found.score.isnan().tolist() == [False, True]


def test_places_of_padding_are_found_anew_for_other_shapes_of_the_other_arguments(model):
    for length in (3, 5):
        target = TARGET[:, :length].clamp(min=1)
        found = importance(model, pair(0, target), 1, regions=1, perturbation=ZERO, score=RawOutput())
        alone = Inputs(SOURCE[:1, :2], torch.ones(1, 2), target[:1], explain=0)
        close(found[:1, :2], importance(model, alone, 1, regions=1, perturbation=ZERO, score=RawOutput()))


class Reader(nn.Module):
    """What tokens mean, added up."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        return self.out((self.embedding(input_ids) * (attention_mask.reshape(len(input_ids), -1, 1) == 1)).sum(1))


def test_a_mask_that_is_added_is_refused():
    added = torch.where(SOURCE > 0, 0.0, -1e9)
    with pytest.raises(ValueError, match=r"'attention_mask' holds other values than 0 \(hidden\) and 1.*absent=..."):
        bind(Reader(), Inputs(input_ids=SOURCE, attention_mask=added))
    inputs = Inputs(input_ids=SOURCE, attention_mask=added, absent=SOURCE == 0)
    assert torch.equal(absent(Reader(), inputs), SOURCE == 0)
    assert torch.equal(absent(Reader(), Inputs(input_ids=SOURCE, attention_mask=SOURCE > 0)), SOURCE == 0)


def test_a_mask_of_another_form_is_left_with_a_warning():
    mask = mask_of(SOURCE)[:, None, None]
    with pytest.warns(UserWarning, match=r"'attention_mask' \[2, 1, 1, 4\] may hide padding.*say with"):
        bind(Reader(), Inputs(input_ids=SOURCE, attention_mask=mask))
    assert torch.equal(absent(Reader(), Inputs(input_ids=SOURCE, attention_mask=mask, absent=SOURCE == 0)), SOURCE == 0)
    assert absent(Reader(), Inputs(input_ids=SOURCE, attention_mask=torch.ones_like(mask))) is None


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Reader(), Reader()

    def forward(self, a, b):
        return self.first(**a) + self.second(**b)


def test_a_mask_is_that_of_the_same_container():
    a, b = ({"input_ids": ids, "attention_mask": mask_of(ids)} for ids in (SOURCE, SOURCE.flip(0)))
    site = "first.embedding"
    assert torch.equal(absent(Both(), Inputs(a=a, b=b, explain="a.input_ids", at=site)), SOURCE == 0)
    named = Inputs(a=a, b=b, explain="b.input_ids", at="second.embedding")
    assert torch.equal(absent(Both(), named), SOURCE.flip(0) == 0)
    with pytest.raises(ValueError, match=r"there are several masks, 'a.attention_mask' and 'b.attention_mask'"):
        Logit(position="last", class_axis=1).bind(torch.zeros(2, 3, 4), 0, 2, of=bind(Both(), named))


def test_a_mask_of_nobodys_data_is_left_with_a_warning():
    class Held(Reader):
        def forward(self, tokens, more):
            return super().forward(tokens, more["attention_mask"])

    inputs = Inputs(SOURCE, more={"attention_mask": mask_of(SOURCE)}, explain=0)
    with pytest.warns(UserWarning, match="'more.attention_mask' .* may hide padding, but which cells of 0, explained"):
        assert absent_cells(bind(Held(), inputs)[0]) is None


def test_masks_of_arguments_that_are_explained_together_hide_their_own_columns():
    class Sounds(nn.Module):
        def forward(self, table, input_values, attention_mask):
            return table * (input_values * attention_mask).sum(1, keepdim=True)

    mask = mask_of(SOURCE)
    inputs = Inputs(torch.ones(2, 3), input_values=torch.ones(2, 4), attention_mask=mask, explain=(0, "input_values"))
    cells = absent_cells(bind(Sounds(), inputs, joint=True)[0])
    assert cells[:, 3:].tolist() == (SOURCE == 0).tolist()


def test_columns_of_a_pooled_layer_are_no_positions():
    class Pooled(Reader):
        def forward(self, input_ids, attention_mask):
            return self.out((self.embedding(input_ids) * attention_mask.unsqueeze(2)).sum(1))

    assert absent(Pooled(), Inputs(input_ids=SOURCE, attention_mask=mask_of(SOURCE), at=Site("out", axis=1))) is None
