"""Scores of outputs with positions, of units inside the network, and of detections."""

import dataclasses

import pytest
import torch
from captum.attr import NeuronGradient
from draws import module
from torch import nn

from lightning_xai import Inputs, Windows
from lightning_xai.metrics import Importance, update_together
from lightning_xai.perturbation import importance, kinds
from lightning_xai.perturbation.sweep import Plan, Request, sweep
from lightning_xai.relevance import GradientXInput, Saliency
from lightning_xai.scores import Box, Logit, Margin, Unit


class Tokens(nn.Module):
    """A score per token and class, [N, T, C] or [N, C, T]."""

    def __init__(self, moved):
        super().__init__()
        self.embedding, self.out, self.moved = nn.Embedding(9, 4), nn.Linear(4, 5), moved

    def forward(self, ids, attention_mask=None):
        found = self.out(self.embedding(ids).cumsum(1))
        return found.mT if self.moved else found


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [3, 1, 2, 0, 0, 0]])


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("score", [Logit(position=-1), Logit(position=2), Logit(position="last"), Logit(), Margin()])
def test_classes_of_an_output_with_positions_are_found(moved, score):
    model = Tokens(moved).double()
    found = GradientXInput(score=score).explain(model, Inputs(IDS, attention_mask=(IDS > 0).long()), [4, 2])
    logits = model.out(model.embedding(IDS).cumsum(1)).detach()
    assert found.classes == 5
    if score.position is None:
        at = logits.argmax(2) == torch.tensor([[4], [2]])
        read = logits.gather(2, torch.tensor([4, 2]).view(2, 1, 1).expand(2, 6, 1))[..., 0]
        if type(score) is Logit:
            torch.testing.assert_close(found.score, (read * at).sum(1) / at.sum(1), equal_nan=True)
        return
    places = [5, 2] if score.position == "last" else [score.position % 6] * 2
    torch.testing.assert_close(found.score, torch.stack([logits[0, places[0], 4], logits[1, places[1], 2]]))


def test_position_of_every_sample_is_an_input():
    model = Tokens(False).double()
    found = GradientXInput().explain(model, Inputs(IDS, position=[1, 4]), 3)
    logits = model.out(model.embedding(IDS).cumsum(1)).detach()
    torch.testing.assert_close(found.score, torch.stack([logits[0, 1, 3], logits[1, 4, 3]]))
    assert found.map[0, 2:].abs().max() == 0  # later tokens are not read


def test_positions_beyond_the_first_and_the_last_are_refused():
    model = Tokens(False).double()
    logits = model.out(model.embedding(IDS).cumsum(1)).detach()[..., 3]
    for place in (5, -6):
        found = GradientXInput(score=Logit(position=place)).explain(model, Inputs(IDS), 3)
        torch.testing.assert_close(found.score, logits[:, place])
    for place in (6, -7):
        with pytest.raises(ValueError, match="is out of range: the output has 6 positions"):
            GradientXInput(score=Logit(position=place))(model, Inputs(IDS), 3)


def test_axis_of_the_classes_is_asked_for_where_it_cannot_be_told():
    class Reshaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 24)

        def forward(self, x):
            return self.linear(x).view(-1, 6, 4)

    model, x = Reshaped(), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"which holds the classes cannot be told .*: say so in the score"):
        GradientXInput()(model, x, 0)
    for axis, classes in ((1, 6), (2, 4), (-1, 4)):
        assert GradientXInput(score=Logit(class_axis=axis)).explain(model, x, 0).classes == classes
    with pytest.raises(ValueError, match="class_axis=3 is out of range"):
        GradientXInput(score=Logit(class_axis=3))(model, x, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Logit(class_axis=0), "class_axis=0 is the axis of the samples"),
        (lambda: Logit(position="first"), "position must be an integer"),
        (lambda: Unit("0", 1, at="sum"), "at must be 'mean', 'max' or a position"),
        (lambda: Unit("0", -1), "unit must be at least 0"),
        (lambda: Box(-1), "index must be at least 0"),
    ],
)
def test_scores_check_their_fields(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        change()


@pytest.mark.parametrize("at", ["mean", "max", (1, 2)])
def test_unit_is_read_and_its_place_is_fixed_on_the_clean_input(at):
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 2)).double()
    x, ran = torch.randn(2, 1, 4, 4).double(), list[int]()
    model[3].register_forward_hook(lambda *_: ran.append(1))
    options = {"perturbation": kinds.Constant(0.5), "score": Unit("0", 2, at=at), "chunk_size": 1}
    found = importance(model, x, regions=4, **options)
    clean, other = (model[0](v).detach()[:, 2].flatten(1) for v in (x, torch.full_like(x, 0.5)))
    place = {"mean": None, "max": clean.argmax(1), (1, 2): torch.tensor([5, 5])}[at]
    change = clean - other
    expected = change.mean(1) if place is None else change.gather(1, place[:, None])[:, 0]
    torch.testing.assert_close(found[:, 0], expected)
    assert len(ran) <= 3  # what follows the layer runs only to see that it does
    slope = Saliency(absolute=False, score=Unit("0", 2, at=at))(model, x)
    peer = NeuronGradient(model, model[0])
    if at == (1, 2):
        torch.testing.assert_close(slope, peer.attribute(x.clone().requires_grad_(), (2, 1, 2)))
    with pytest.raises(ValueError, match="unit 3 is out of range: layer '0' has 3 units"):
        Saliency(score=Unit("0", 3))(model, x)


def test_unit_and_class_cannot_share_a_sweep_and_metrics_take_two():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(), torch.randn(5, 4).double()
    metrics = {
        "class": Importance(2, kinds.Constant(0.0), score="logit"),
        "unit": Importance(2, kinds.Constant(0.0), score=Unit("1", 0)),
    }
    update_together(metrics, model, x, 1)
    alone = importance(model, x, regions=2, perturbation=kinds.Constant(0.0), score=Unit("1", 0)).mean(0)
    torch.testing.assert_close(metrics["unit"].compute()["map"], alone.repeat_interleave(2))
    requests = [Request.of("negative", score) for score in ("logit", Unit("1", 0))]
    with pytest.raises(ValueError, match="the scores of one sweep read the model's output, layer '1'"):
        sweep(model, x, 1, requests, Plan(Windows(2)))


class Finder(nn.Module):
    """Finds a box around each half of an image by its mean, and drops it where that is too small."""

    def forward(self, images):
        found = []
        for image in images:
            width = image.shape[2] // 2
            values = torch.stack([image[..., :width].mean(), image[..., width:].mean()])
            boxes = torch.tensor([[0.0, 0, width, image.shape[1]], [width, 0, 2.0 * width, image.shape[1]]]).to(values)
            kept = values > 0.2
            found.append({"boxes": boxes[kept], "scores": values[kept], "labels": torch.tensor([7, 8])[kept]})
        return found


def test_box_is_followed_by_its_label():
    x = torch.rand(3, 1, 4, 8).double() * 0.5 + 0.5
    x[1, ..., 4:] = 0.0  # one detection only
    options = {"regions": Windows(4), "perturbation": kinds.Constant(0.0)}
    left = x[..., :4].mean((1, 2, 3))
    found = importance(Finder(), x, score=Box(0), **options)
    torch.testing.assert_close(found, torch.stack([left, torch.zeros(3).double()], 1))
    second = importance(Finder(), x, score=Box(1), **options)
    assert second[1].isnan().all()
    assert importance(Finder(), x, score=Box(2), **options).isnan().all()  # none has three
    torch.testing.assert_close(second[[0, 2], 1], x[[0, 2], :, :, 4:].mean((1, 2, 3)))
    slope = Saliency(score=Box(0))(Finder(), x)
    torch.testing.assert_close(slope[:, 0, :, :4], torch.full((3, 4, 4), 1 / 16).double())
    assert slope[..., 4:].abs().max() == 0
    for other in (nn.Flatten(), module(lambda x: [{"boxes": row} for row in x])):
        with pytest.raises(ValueError, match="reads a list of dicts with the keys"):
            importance(other, x, score=Box(), **options)


def test_the_parts_of_an_output_that_is_an_object_are_named():
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        loss: float = 0.0

    class Model(nn.Linear):
        def forward(self, x):
            return Output(super().forward(x))

    with pytest.raises(
        ValueError, match=r"got Output: say which of \['logits'\] to explain, e.g. score=Logit\(output='logits'\)"
    ):
        Saliency()(Model(3, 2), torch.ones(1, 3), 1)
    assert Saliency(score=Logit(output="logits"))(Model(3, 2), torch.ones(1, 3), 1).shape == (1, 3)
