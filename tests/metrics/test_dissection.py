"""The dissection metric counts what the function does, over batches and processes."""

import pickle

import pytest
import torch
from torch import nn

from lightning_xai.metrics import Dissection, update_together
from lightning_xai.units import Concepts, UnitGroups, dissect

CONCEPTS = Concepts(["a", "b", "c"], ["one", "two", "two"])
THRESHOLD = torch.tensor([0.0, 0.1, -0.1, 0.2], dtype=torch.float64)


def labels(inputs):
    """A segmenter: labels -1 to 2 by the first channel."""
    return (inputs[:, 0] * 2).floor().clamp(-1, 2).long()


def data():
    return torch.randn(9, 2, 6, 7).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("union", ["all", "present"])
@pytest.mark.parametrize("groups", [None, UnitGroups.of([[0, 1], [3]], units=4)], ids=["units", "groups"])
def test_batches_together_are_the_data(cnn, union, groups):
    x, y = data()
    threshold = THRESHOLD if groups is None else THRESHOLD[:2]
    metric = Dissection("0", CONCEPTS, threshold, labels, unit=groups or "channel", union=union)
    for rows in torch.randperm(9).split(4):
        metric.update(cnn, x[rows], y[rows], rows)
    found = metric.compute()
    expected = dissect(
        cnn, x, labels, layer="0", concepts=CONCEPTS, threshold=threshold, unit=groups or "channel", union=union
    )
    assert torch.equal(found["iou"], expected.iou)
    assert torch.equal(found["concept"], expected.best)
    assert int(found["detectors"]) == int(expected.is_detector.sum())
    assert int(found["concepts_detected"]) == len(set(expected.best[expected.is_detector].tolist()))
    assert int(found["samples"]) == 9
    assert metric.result().rows() == expected.rows()


def test_masks_may_be_given_with_the_batch(cnn):
    x, y = data()
    given, made = Dissection("0", CONCEPTS, THRESHOLD), Dissection("0", CONCEPTS, THRESHOLD, labels)
    given.update(cnn, x, y, masks=labels(x))
    made.update(cnn, x, y)
    assert torch.equal(given.compute()["iou"], made.compute()["iou"])
    assert given.configuration.tolist() != made.configuration.tolist()


def test_samples_that_are_not_finite_are_counted_and_left_out(cnn):
    x, y = data()
    clean = Dissection("0", CONCEPTS, THRESHOLD, labels)
    clean.update(cnn, x[1:], y[1:])
    broken = Dissection("0", CONCEPTS, THRESHOLD, labels)

    def spoil(_module, _inputs, output):
        if len(output) == 9:
            output = output.clone()
            output[0, 1] = float("nan")
        return output

    handle = cnn[0].register_forward_hook(spoil)
    broken.update(cnn, x, y)
    handle.remove()
    assert torch.equal(broken.compute()["iou"], clean.compute()["iou"])
    assert int(broken.compute()["nonfinite"]) == 42


def test_unless_named_the_last_convolution_with_an_activation_is_dissected(cnn):
    x, y = data()
    found, expected = Dissection(None, CONCEPTS, 0.0, labels), Dissection("0", CONCEPTS, 0.0, labels)
    for metric in (found, expected):
        metric.update(cnn, x, y)
    assert torch.equal(found.compute()["iou"], expected.compute()["iou"])


def test_metric_resets_pickles_and_plots(cnn):
    x, y = data()
    metric = Dissection("0", CONCEPTS, 0.0, labels)
    first = metric(cnn, x[:4], y[:4])
    metric(cnn, x[4:], y[4:])
    again = pickle.loads(pickle.dumps(metric))
    assert torch.equal(again.compute()["iou"], metric.compute()["iou"])
    assert int(first["samples"]) == 4
    assert int(metric.compute()["samples"]) == 9
    figure, axes = metric.plot()
    assert [ax.get_xlabel() for ax in axes if ax.get_ylabel() == "unit"] == ["concept"]
    assert figure
    metric.reset()
    with pytest.raises(ValueError, match="no sample"), pytest.warns(UserWarning, match="before the ``update``"):
        metric.compute()
    empty = Dissection("0", CONCEPTS, 0.0, labels)
    update_together({"d": empty}, cnn, x[:1], y[:1], count=False)
    assert int(empty.compute()["samples"]) == 0
    assert not empty.compute()["iou"].any()


def test_bad_input_is_refused(cnn):
    x, y = data()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(84, 3), nn.ReLU()).double()
    with pytest.raises(ValueError, match=r"layer '1' returns .* no map of positions .*; name a convolution"):
        Dissection(None, CONCEPTS, 0.0, labels).check(flat, x, y)
    with pytest.raises(ValueError, match="masks are missing"):
        Dissection("0", CONCEPTS, 0.0).check(cnn, x, y)
    with pytest.raises(ValueError, match="layer 'conv' is unknown"):
        Dissection("conv", CONCEPTS, 0.0, labels).check(cnn, x, y)
    with pytest.raises(ValueError, match="no map of positions"):
        Dissection("5", CONCEPTS, 0.0, labels).check(cnn, x, y)
    with pytest.raises(ValueError, match=r"one per unit, \[4\]"):
        Dissection("0", CONCEPTS, [0.0, 1.0], labels).check(cnn, x, y)
    with pytest.raises(ValueError, match="labels"):
        Dissection("0", ["a"], 0.0, labels).update(cnn, x, y)
    with pytest.raises(ValueError, match="threshold must be finite"):
        Dissection("0", CONCEPTS, float("nan"))
    with pytest.raises(ValueError, match="Did you mean 'present'"):
        Dissection("0", CONCEPTS, 0.0, union="presen")
    with pytest.raises(ValueError, match="detector must be an IoU"):
        Dissection("0", CONCEPTS, 0.0, detector=1.5)
    with pytest.raises(TypeError, match="segmenter must be a function"):
        Dissection("0", CONCEPTS, 0.0, segmenter="masks")
    with pytest.raises(TypeError, match="dotted name"):
        Dissection(0, CONCEPTS, 0.0)


def test_the_model_is_left_as_it_was(cnn):
    x, y = data()
    cnn.train()
    with torch.inference_mode():
        Dissection("0", CONCEPTS, THRESHOLD, labels).update(nn.DataParallel(cnn), x, y)
    assert cnn.training
    assert not any(module._forward_hooks for module in cnn.modules())
