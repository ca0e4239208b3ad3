"""Batches of several arguments and of texts: data sets, a Trainer, and pictures."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_xai import ExplanationMonitor, Inputs, Pictures, evaluation, explain, load_explanations
from lightning_xai.callbacks.batch import unpack_batch
from lightning_xai.figures.samples import draw_samples
from lightning_xai.metrics import Faithfulness, Importance, Relevance
from lightning_xai.perturbation import importance, kinds
from lightning_xai.relevance import LRP, GradientXInput
from lightning_xai.results import Map

IDS = torch.tensor([[1, 4, 5, 0], [1, 3, 0, 0], [1, 2, 6, 5], [1, 6, 0, 0], [1, 5, 4, 3]])
LABELS = torch.tensor([0, 1, 1, 0, 1])


class Words(LightningModule):
    """The mean of embeddings that are not padding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(7, 5), nn.Linear(5, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(2).to(self.out.weight)
        return self.out(((self.embedding(input_ids) * mask).sum(1) / mask.sum(1)).tanh())

    def validation_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        self.log("val_loss", loss)


def batches(size):
    samples = [
        {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": y} for ids, y in zip(IDS, LABELS, strict=True)
    ]
    return DataLoader(samples, batch_size=size)


def metrics():
    return {
        "importance": Importance(1, kinds.Constant(0.0), score="logit"),
        "lrp": Relevance(LRP("attn_lrp")),
        "gradient": Relevance(GradientXInput()),
    }


@pytest.mark.parametrize("size", [2, 5])
def test_batches_of_a_text_are_explained_as_they_are(size, tmp_path):
    model = Words().double()
    found = explain(model, batches(size), metrics(), folder=tmp_path, progress=False)
    mask = (IDS > 0).long()
    local = importance(
        model, Inputs(IDS, attention_mask=mask), LABELS, regions=1, perturbation=kinds.Constant(0.0), score="logit"
    )
    assert torch.equal(local.isnan(), IDS == 0)  # padding is no feature
    torch.testing.assert_close(found["importance"]["map"], local.nanmean(0))
    maps = GradientXInput()(model, Inputs(IDS, attention_mask=mask), LABELS).sum(2)
    torch.testing.assert_close(found["gradient"]["map"], maps.masked_fill(IDS == 0, float("nan")).nanmean(0))
    written = load_explanations(tmp_path / "explanations")
    assert torch.equal(written["input"], IDS)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_monitor_explains_a_text_during_validation(tmp_path):
    model = Words()
    monitor = ExplanationMonitor(metrics(), max_samples=3, every_n_epochs=1)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[monitor], **options)
    trainer.validate(model, batches(2), verbose=False)
    expected = explain(model, batches(2), metrics(), max_samples=3, progress=False)
    torch.testing.assert_close(monitor.results["lrp"]["map"], expected["lrp"]["map"])


def test_unpack_says_which_argument_is_explained(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, image, table):
            return self.linear(table) * image.mean((1, 2, 3)).unsqueeze(1)

    model, images, tables = Two().double(), torch.rand(5, 1, 4, 4).double(), torch.randn(5, 3).double()
    images[3, 0, 0, 0] = float("nan")
    data = [(images[:3], tables[:3], LABELS[:3]), (images[3:], tables[3:], LABELS[3:])]

    def unpack(batch):
        return Inputs(batch[0], table=batch[1], explain=0), batch[2]

    with pytest.warns(UserWarning, match="NaN or infinite inputs are left out"):
        found = explain(model, data, metrics(), unpack=unpack, progress=False)
    assert found["importance"]["samples"] == 4
    assert found["importance"]["excluded"] == 1
    kept = torch.tensor([0, 1, 2, 4])
    local = importance(
        model,
        Inputs(images[kept], tables[kept], explain=0),
        LABELS[kept],
        regions=1,
        perturbation=kinds.Constant(0.0),
        score="logit",
    )
    torch.testing.assert_close(found["importance"]["map"], local.mean(0).view(4, 4))


def test_maps_of_tokens_are_measured_as_they_lie():
    model, mask = Words().double(), torch.ones_like(IDS)
    inputs = Inputs(IDS, attention_mask=mask)  # four tokens, whose embeddings have five numbers
    metric = Faithfulness(GradientXInput(), 1, kinds.Constant(0.0), score="logit", share=0.5)
    metric.update(model, inputs, LABELS)
    how = {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "logit"}
    expected = evaluation.srg(model, inputs, LABELS, GradientXInput(), **how)
    torch.testing.assert_close(metric.compute()["srg"], expected.mean().double())


def test_further_arguments_of_a_batch_are_kept():
    pixels, mask = torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4)
    found, target = unpack_batch({"pixel_values": pixels, "pixel_mask": mask, "labels": LABELS[:2]})
    assert (found.explain, set(found.values)) == (("pixel_values",), {"pixel_values", "pixel_mask"})
    assert target is not None


def test_a_saturated_score_is_said_in_one_line():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1) * 0 + 1000.0, x.sum(1)], 1)

    data = [(torch.ones(2, 3), torch.tensor([0, 0]))]
    with pytest.warns(UserWarning, match=r"the maps of 'importance' are exactly 0 everywhere.*try score='logit'"):
        explain(Sure(), data, {"importance": Importance(1, kinds.Constant(0.0))}, progress=False)


def test_tokens_lie_on_the_colours_of_their_values():
    explained = {
        "input": IDS[:2],
        "map": torch.tensor([[0.5, -1.0, 0.0, float("nan")], [1.0, 2.0, float("nan"), float("nan")]]),
        **dict.fromkeys(("target", "prediction", "sample_id"), torch.tensor([0, 1])),
    }
    names = ["<pad>", "<s>", "good", "bad", "film", "the", "a"]
    pictures = Pictures(words=lambda ids: [names[index] for index in ids])
    figure = draw_samples(explained, {"map": Map("importance", "")}, pictures)
    first, second = figure.axes
    # Up to the last token that has a value other than 0.
    assert [text.get_text() for text in first.texts] == ["<s>", "film"]
    assert [text.get_text() for text in second.texts] == ["<s>", "bad"]
    colours = [text.get_bbox_patch().get_facecolor() for text in first.texts]
    assert colours[0][0] > colours[0][2]  # red
    assert colours[1][2] > colours[1][0]  # blue
    with pytest.raises(ValueError, match="words must return one word per id"):
        draw_samples(explained, {"map": Map("importance", "")}, Pictures(words=lambda ids: []))
