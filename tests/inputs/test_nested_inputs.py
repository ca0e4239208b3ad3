"""Networks whose arguments hold others: a batch as a dict, dataclass or tuple, and lists of streams."""

import dataclasses
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai import Inputs
from lightning_xai.perturbation import Windows, importance, kinds
from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients, Saliency, SmoothGrad, composites
from lightning_xai.scores import Logit

ZERO = kinds.Constant(0.0)


@dataclasses.dataclass(frozen=True)
class Batch:
    image: torch.Tensor
    age: torch.Tensor
    name: str = "a"


class Pair(NamedTuple):
    image: torch.Tensor
    age: torch.Tensor


class OfBatch(nn.Module):
    """Reads an image and a table out of what it is given, each by the other."""

    def __init__(self, read):
        super().__init__()
        self.read, self.conv, self.linear, self.out = read, nn.Conv1d(2, 4, 2), nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()

    def of(self, image, age):
        return self.out(self.conv(image).tanh().mean(2) * self.linear(age).sigmoid())

    def forward(self, batch):
        return self.of(*self.read(batch))


IMAGE, AGE = draw(4, 2, 5), draw(4, 3)
BATCHES: dict[str, tuple[Any, Any, str, str]] = {
    "dict": ({"image": IMAGE, "age": AGE, "empty": {}}, lambda b: (b["image"], b["age"]), "0.image", "image"),
    "dataclass": (Batch(IMAGE, AGE), lambda b: (b.image, b.age), "0.image", "batch.image"),
    "named tuple": (Pair(IMAGE, AGE), lambda b: (b.image, b.age), "0.image", "batch.image"),
    "namespace": (SimpleNamespace(image=IMAGE, age=AGE), lambda b: (b.image, b.age), "0.image", "batch.image"),
    "keys": ({"image": IMAGE, (1, 2): AGE}, lambda b: (b["image"], b[1, 2]), "0.image", "image"),
    "tuple": ((IMAGE, AGE), lambda b: (b[0], b[1]), "0.0", "batch.0"),
    "list": ([IMAGE, AGE], lambda b: (b[0], b[1]), "0.0", "batch.0"),
    "deep": ({"views": [IMAGE, {"age": AGE}]}, lambda b: (b["views"][0], b["views"][1]["age"]), "0.views.0", "views.0"),
}
every_batch = pytest.mark.parametrize("case", BATCHES.values(), ids=BATCHES)


def gradients(model, image=IMAGE, age=AGE, target=1):
    leaves = [image.clone().requires_grad_(), age.clone().requires_grad_()]
    return torch.autograd.grad(model.of(*leaves)[:, target].sum(), leaves)


@every_batch
def test_one_leaf_of_an_argument_is_explained(case):
    batch, read, whole, short = case
    model = OfBatch(read)
    for name in (whole, short):
        inputs = Inputs(batch, explain=name)
        assert inputs.explain == (whole,)
        close(Saliency(absolute=False)(model, inputs, 1), gradients(model)[0])


@every_batch
@pytest.mark.parametrize("method", [IntegratedGradients(steps=3, chunk_size=2), SmoothGrad(draws=3, chunk_size=2)])
def test_leaves_follow_their_samples(case, method):
    batch, read, name, _ = case
    model = OfBatch(read)
    found = method(model, Inputs(batch, explain=name), 1)
    plain = OfBatch(lambda image: (image, AGE[0].expand(len(image), -1)))
    plain.load_state_dict(model.state_dict())
    close(found[:1], method(plain, IMAGE[:1], 1))
    options = {"regions": Windows(2), "perturbation": ZERO, "score": "logit"}
    local = importance(model, Inputs(batch, explain=name), 1, chunk_size=1, **options)
    close(local[:1], importance(plain, IMAGE[:1], 1, **options))
    close(local, importance(model, Inputs(batch, explain=name), 1, **options))


@every_batch
def test_lrp_of_a_leaf_balances(case):
    batch, read, name, _ = case
    found, ledger = LRP(composites.AttnLRP()).with_ledger(OfBatch(read), Inputs(batch, explain=name), 1)
    close(found.sum(), ledger.received.sum())
    assert abs(ledger.balance) < 1e-12


def test_several_leaves_have_a_map_each():
    batch, read, _, _ = BATCHES["dict"]
    model = OfBatch(read)
    found = GradientXInput()(model, Inputs(batch, explain=("image", "age")), 1)
    image, age = gradients(model)
    assert list(found) == ["0.image", "0.age"]
    close(found["0.image"], IMAGE * image)
    close(found["0.age"], AGE * age)


def test_running_out_of_memory_says_nothing_of_a_list():
    class Full(nn.Module):
        def forward(self, streams):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        Saliency()(Full(), Inputs([draw(2, 3), draw(2, 3)]), 1)


def test_two_streams_of_one_shape_are_told_from_a_list_of_samples():
    class Streams(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2).double()

        def forward(self, streams):
            first, second = streams
            return self.out(first * second.tanh())

    model, a, b = Streams(), draw(2, 3), draw(2, 3)
    with pytest.raises(ValueError, match=r"does not take one of them as one sample: .* explain='0.0'"):
        Saliency()(model, Inputs([a, b]), 1)
    leaf = b.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model([a, leaf])[:, 1].sum(), leaf)
    close(Saliency(absolute=False)(model, Inputs([a, b], explain="0.1"), 1), slope)

    class PerSample(nn.Module):
        def forward(self, images):
            return torch.stack([image.sum(1) for image in images])

    images = [draw(2, 3), draw(2, 3)]
    close(Saliency(absolute=False)(PerSample(), Inputs(images), 1)[:, 1], torch.ones(2, 3).double())


def test_a_mask_that_a_batch_holds_makes_padding_absent():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)
            self.double()

        def forward(self, batch):
            mask = batch["attention_mask"].unsqueeze(2)
            return self.out((self.embedding(batch["input_ids"]) * mask).sum(1))

    ids = torch.tensor([[1, 2, 0], [3, 4, 5]])
    inputs = Inputs({"input_ids": ids, "attention_mask": (ids > 0).long(), "label": torch.zeros(2)})
    assert inputs.explain == ("0.input_ids",)
    found = importance(Words(), inputs, 1, regions=1, perturbation=ZERO, score=Logit())
    assert torch.equal(found.isnan(), ids == 0)


def test_names_of_leaves_are_checked():
    batch = {"image": IMAGE, "age": AGE, "more": {"image": IMAGE}}
    model = OfBatch(BATCHES["dict"][1])
    with pytest.raises(ValueError, match=r"the model takes several tensors, '0.image', '0.age', '0.more.image'"):
        Inputs(batch)
    with pytest.raises(ValueError, match=r"explain='image' may be '0.image' or '0.more.image'"):
        Inputs(batch, explain="image")
    with pytest.raises(ValueError, match=r"explain '0.picture' is unknown.*Known: 0.image, 0.age, 0.more.image"):
        Inputs(batch, explain="0.picture")
    with pytest.raises(ValueError, match=r"argument 'bacth' is unknown. Did you mean 'batch'"):
        Saliency()(model, Inputs(batch, explain="bacth.age"), 1)
    with pytest.raises(TypeError, match=r"\[0\]; where one holds tensors, say which.*explain='0.0'"):
        Inputs((IMAGE, AGE))


def test_a_container_that_is_no_data_stays_whole():
    class Scaled(nn.Module):
        def forward(self, x, options):
            return x.flatten(1) * options["scale"]

    found = GradientXInput(score="value")(Scaled(), Inputs(IMAGE, options={"scale": 2.0, "table": AGE}), 3)
    close(found.flatten(1)[:, 3], 2 * IMAGE.flatten(1)[:, 3])
    held = Inputs(IMAGE, options={"scale": 2.0, "table": AGE}, constant=["options"])
    assert held.constant == ("options.scale", "options.table")
    deep = Inputs(b={"x": IMAGE, "meta": {"sub": {"g": AGE, "h": AGE}}}, explain="b.x", constant=["b.meta"])
    assert deep.constant == ("b.meta.sub.g", "b.meta.sub.h")
    assert Inputs(b={"x": IMAGE, "meta": {"g": AGE}}, explain="b.x", constant=["meta"]).constant == ("b.meta.g",)


def test_cached_properties_are_computed_anew():
    @dataclasses.dataclass
    class Centred:
        image: torch.Tensor

        @cached_property
        def centred(self):
            return self.image - self.image.mean(2, keepdim=True)

    class Reader(nn.Module):
        def forward(self, batch):
            return batch.centred.square().sum(2)

    batch = Centred(IMAGE)
    assert batch.centred.shape == IMAGE.shape
    found = Saliency(absolute=False)(Reader(), Inputs(batch, explain="image"), 1)
    close(found[:, 1], 2 * batch.centred[:, 1])


def test_a_tensor_that_is_no_field_is_refused():
    @dataclasses.dataclass
    class Scaled:
        image: torch.Tensor

        def __post_init__(self):
            self.scaled = [2 * self.image]

    with pytest.raises(ValueError, match="'batch' is a Scaled that holds a tensor in 'scaled', which is no field"):
        Inputs(batch=Scaled(IMAGE), explain="image")


@pytest.mark.parametrize("batch", [{"m.k": IMAGE, "m": {"k": AGE}}, {"m": {0: IMAGE, "0": AGE}}])
def test_two_leaves_of_one_name_are_refused(batch):
    with pytest.raises(ValueError, match=r"the arguments hold two values that are called '0.m.[k0]': rename one"):
        Inputs(batch, explain="0.m")


def test_an_object_that_does_not_follow_is_named():
    class Context:
        def __init__(self, **tensors):
            self.held = tensors

    class Weighted(nn.Module):
        def forward(self, x, context):
            return x.sum(2) * context.held["table"][..., :2]

    with pytest.raises(ValueError, match="argument 'context' is a Context, whose tensors do not follow the samples"):
        Saliency()(Weighted(), Inputs(IMAGE, context=Context(table=AGE), explain=0), 1)
    whole = Inputs(IMAGE, context=Context(table=AGE[0], other=IMAGE), explain=0)
    close(Saliency(absolute=False)(Weighted(), whole, 1)[:, 1], AGE[0, 1].expand(4, 5))
