"""Where the objects are, as batches say it: by masks or boxes, whatever else is left out of the batch."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from subjects import SAMPLES, Still, loader, quiet, samples
from torch.utils.data import DataLoader

from lightning_xai import ExplanationMonitor, Windows, explain
from lightning_xai.callbacks.batch import read_batch, unpack_batch
from lightning_xai.evaluation import boxes_to_masks, relevance_mass
from lightning_xai.metrics import Importance, Localisation
from lightning_xai.relevance import GradientXInput

GXI = GradientXInput()
pytestmark = [
    quiet,
    pytest.mark.filterwarnings(
        "ignore:Using `DistributedSampler` with the dataloaders",
        "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12
    ),
]


def objects():
    """A box per sample, and the mask of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        first = torch.randint(4, (SAMPLES, 1, 2))
        boxes = torch.cat([first, first + torch.randint(1, 3, (SAMPLES, 1, 2))], 1)
    return boxes, boxes_to_masks(boxes, (6, 6))


def masks_third(batch):
    return batch[0], batch[1], batch[2]


def masks_fourth(batch):
    return batch[0], batch[1], batch[3], batch[2]


def boxes_named(batch):
    return batch[0], batch[1], {"boxes": batch[4]}


def data(batch_size=4):
    inputs, labels = samples()
    boxes, masks = objects()
    return loader(inputs, labels, masks, torch.arange(SAMPLES) + 50, boxes, batch_size=batch_size)


def as_dicts(batch_size=4):
    (inputs, labels), (_, masks) = samples(), objects()
    rows = [{"image": x, "label": y, "masks": mask} for x, y, mask in zip(inputs, labels, masks, strict=True)]
    return DataLoader(rows, batch_size=batch_size)


def module():
    torch.manual_seed(0)
    return Still().eval()


def expected(count):
    inputs, labels = samples()
    return relevance_mass(GXI(module(), inputs, labels), objects()[1])[:count].mean().item()


@pytest.mark.parametrize("unpack", [masks_third, masks_fourth, boxes_named])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_masks_and_boxes_come_with_the_batch(unpack, batch_size):
    found = explain(
        module(), data(batch_size), {"there": Localisation(GXI)}, max_samples=7, unpack=unpack, progress=False
    )
    assert found["there"]["relevance_mass"] == pytest.approx(expected(7), rel=1e-6)


def test_a_key_of_the_batch_says_it_without_unpack():
    found = explain(module(), as_dicts(), {"there": Localisation(GXI)}, max_samples=7, progress=False)
    assert found["there"]["relevance_mass"] == pytest.approx(expected(7), rel=1e-6)


@pytest.mark.filterwarnings("ignore:samples", "ignore:the sampler")
def test_masks_stay_with_their_samples_where_others_are_left_out():
    inputs, labels = samples()
    inputs[1], labels[2] = torch.nan, 7  # not finite, and no class
    batches = loader(inputs, labels, objects()[1])
    found = explain(module(), batches, {"there": Localisation(GXI)}, max_samples=7, unpack=masks_third, progress=False)
    kept = [0, 3, 4, 5, 6]
    values = relevance_mass(GXI(module(), inputs[kept], labels[kept]), objects()[1][kept])
    assert found["there"]["relevance_mass"] == pytest.approx(values.mean().item(), rel=1e-6)


def test_two_processes_find_what_one_does(trainer, tmp_path):
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    logged = []
    for name, how in {"one": {}, "two": {"strategy": strategy, "devices": 2}}.items():
        monitor = ExplanationMonitor({"there": Localisation(GXI)}, max_samples=7, unpack=boxes_named)
        run = trainer(callbacks=[monitor], default_root_dir=tmp_path / name, **how)
        run.validate(module(), data(), verbose=False)
        logged.append(dict(run.callback_metrics))
    torch.testing.assert_close(logged[1], logged[0], rtol=1e-6, atol=1e-7, equal_nan=True)
    assert logged[0]["val/there/relevance_mass"] == pytest.approx(expected(7), rel=1e-6)


WRONG = {
    "no masks": (lambda b: b[:2], ValueError, "where the objects are is not known: let unpack return"),
    "one channel": (
        lambda b: (*b[:2], b[2][:, None]),
        ValueError,
        r"masks must be \[4, 6, 6\] for inputs \[4, 1, 6, 6\]",
    ),
    "too few": (lambda b: (*b[:2], b[2][:3]), ValueError, r"masks must be \[4, 6, 6\] .*, got \[3, 6, 6\]"),
    "numbers": (
        lambda b: (*b[:2], {"masks": b[2].float()}),
        TypeError,
        "masks must be a Boolean tensor .* use masks > 0",
    ),
    "a list": (lambda b: (*b[:2], {"boxes": [1, 2]}), TypeError, "boxes must be a tensor of integers .*, got list"),
    "corners": (
        lambda b: (*b[:2], {"boxes": b[4].flatten(1)}),
        ValueError,
        r"got \[4, 4\]; corners \(x, y, x, y\) are boxes.unflatten",
    ),
    "both": (lambda b: (*b[:2], {"boxes": b[4], "masks": b[2]}), ValueError, "either masks or boxes"),
    "a name": (lambda b: (*b[:2], {"segments": b[2]}), TypeError, "by 'masks' or 'boxes', got 'segments'"),
    "numbers twice": (lambda b: (*b[:2], b[3], b[2].long()), TypeError, "neither sample ids nor where objects are"),
    "five parts": (lambda b: b, TypeError, "and may add where the objects are"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_say_where_objects_are_is_named(name):
    unpack, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        explain(module(), data(), {"there": Localisation(GXI)}, unpack=unpack, progress=False)


def test_corners_are_turned_into_boxes_by_what_the_message_says():
    boxes, masks = objects()
    corners = boxes.flip(-1).flatten(1)  # x, y, x, y
    assert boxes_to_masks(corners.unflatten(-1, (2, 2)).flip(-1), (6, 6)).equal(masks)


def test_several_boxes_of_a_sample_are_one_mask():
    boxes = torch.tensor([[[[0, 0], [1, 1]], [[3, 3], [3, 4]]], [[[2, 2], [2, 2]], [[-1, -1], [-1, -1]]]])
    masks = boxes_to_masks(boxes, (4, 5))
    assert masks.flatten(1).sum(1).tolist() == [6, 1]
    assert masks[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [3, 3], [3, 4]]


def test_masks_of_any_kind_do_not_disturb_metrics_that_look_for_none():
    metrics = {"zero": Importance(Windows(3), "blur")}
    batch = {"image": torch.randn(2, 1, 6, 6), "label": torch.tensor([0, 1]), "masks": ["a", "list"]}
    assert explain(module(), [batch], metrics, progress=False)["zero"]["samples"] == 2


def test_a_function_of_the_inputs_goes_without_masks():
    metric = Localisation(GXI, lambda x: x[:, 0] > 0)
    found = explain(module(), as_dicts(), {"there": metric}, max_samples=7, progress=False)
    inputs, labels = (part[:7] for part in samples())
    values = relevance_mass(GXI(module(), inputs, labels), inputs[:, 0] > 0)
    assert found["there"]["relevance_mass"] == pytest.approx(values.mean().item(), rel=1e-6)
    with pytest.raises(TypeError, match="give one"):
        metric.update(module(), inputs, labels, masks=inputs[:, 0] > 0)


def test_masks_are_no_arguments_of_a_model():
    ids, masks = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
    parts = read_batch(unpack_batch, {"input_ids": ids, "labels": torch.tensor([0, 1]), "masks": masks})
    assert list(parts.inputs.values) == ["input_ids"]
    assert parts.masks((2, 5)).equal(masks)
