"""Dissection: thresholded maps against concept masks, counted cell by cell by another route."""

import csv
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai.units import Concepts, dissect
from lightning_xai.units.dissection import DissectionResult, Overlap, overlap

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9)


class Given(nn.Module):
    """Its layer gives the input's channels, at half the size."""

    def __init__(self, axes=2):
        super().__init__()
        self.maps = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[axes](2)

    def forward(self, x):
        return self.maps(x).flatten(2).mean(2)


def upsampled(plane, size):
    """Linear upsampling of [h] or [h, w] in numpy, cell centres aligned."""
    for axis, length in enumerate(size):
        places = (np.arange(length) + 0.5) * plane.shape[axis] / length - 0.5
        low = np.clip(np.floor(places), 0, None).astype(int)
        high = np.minimum(low + 1, plane.shape[axis] - 1)
        part = np.clip(places, 0, None) - low
        shape = [-1 if i == axis else 1 for i in range(plane.ndim)]
        part = part.reshape(shape)
        plane = plane.take(low, axis) * (1 - part) + plane.take(high, axis) * part
    return plane


def counted(maps, masks, threshold, categories, union):
    """IoU [U, Q] with loops over samples, units, concepts and numpy Booleans."""
    units, concepts = maps.shape[1], masks.shape[1]
    inter, joined = np.zeros((units, concepts)), np.zeros((units, concepts))
    for n in range(len(maps)):
        for k in range(units):
            above = upsampled(maps[n, k], masks.shape[2:]) > threshold[k]
            for c in range(concepts):
                mask = masks[n, c]
                same = [other for other in range(concepts) if categories[other] == categories[c]]
                if union == "present" and not any(masks[n, other].any() for other in same):
                    continue
                inter[k, c] += (above & mask).sum()
                joined[k, c] += (above | mask).sum()
    return np.divide(inter, joined, out=np.zeros_like(inter), where=joined > 0)


@pytest.mark.parametrize("union", ["all", "present"])
@pytest.mark.parametrize("shape", [(6, 3, 10), (5, 4, 8, 6), (4, 2, 4, 6, 8)], ids=["line", "plane", "volume"])
def test_counts_cell_by_cell(shape, union):
    x = torch.randn(shape).double()
    masks = torch.rand(shape[0], 3, *shape[2:]) > 0.8
    masks[:2, 1:] = False
    threshold = torch.linspace(-0.2, 0.4, shape[1]).double()
    concepts = Concepts(["a", "b", "c"], ["one", "two", "two"])
    model = Given(len(shape) - 2)
    found = dissect(model, x, masks, layer="maps", concepts=concepts, threshold=threshold, union=union)
    maps = model.maps(x).numpy()
    close(found.iou, counted(maps, masks.numpy(), threshold.numpy(), concepts.categories, union))
    assert found.read("all").iou.equal(found.iou) == (union == "all")


def test_the_threshold_leaves_a_share_above():
    x = torch.randn(7, 3, 8, 10).double()
    masks = torch.zeros(7, 8, 10, dtype=torch.long)
    found = dissect(Given(), x, masks, layer="maps", concepts=["a"], p=0.1, chunk_size=2)
    values = Given().maps(x).movedim(1, 0).flatten(1)
    for own, threshold in zip(values, found.threshold, strict=True):
        assert threshold == sorted(own.tolist(), reverse=True)[int(0.1 * len(own))]
        assert int((own > threshold).sum()) == int(0.1 * len(own))


def test_what_equals_the_threshold_is_not_above():
    x = torch.zeros(2, 2, 4, 4).double()
    x[:, 1] = 3.0
    found = dissect(nn.Sequential(nn.Identity()), x, torch.zeros(2, 4, 4).long(), layer="0", concepts=["a"])
    assert found.threshold.tolist() == [0.0, 3.0]
    assert found.area.tolist() == [0, 0]
    assert found.best.tolist() == [-1, -1]


def test_a_mask_that_is_the_concept():
    x = torch.zeros(2, 3, 8, 8).double()
    x[:, 0, 2:6, 2:6], x[:, 1, 6:, 6:] = 1.0, 1.0
    labels = torch.where(x[:, 0] > 0, 0, -1)
    model = nn.Sequential(nn.Identity())
    found = dissect(model, x, labels, layer="0", concepts=["own", "absent"], threshold=torch.full((3,), 0.5).double())
    close(found.iou, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).double())
    assert found.best.tolist() == [0, -1, -1]
    assert found.is_detector.tolist() == [True, False, False]
    assert [row.concept for row in found.rows()] == ["own", "", ""]


def test_a_detector_is_strictly_above():
    counts = {"area": torch.tensor([100, 100]), "concept_area": torch.tensor([4]), "samples": 1}
    found = DissectionResult(
        Concepts(["a"]),
        torch.zeros(2),
        torch.tensor([[4], [4]]),
        area_present=torch.tensor([[100], [50]]),
        **counts,
    )
    assert found.is_detector.tolist() == [False, False]
    assert found.read("present").is_detector.tolist() == [False, True]


@pytest.mark.parametrize("union", ["all", "present"])
def test_parts_of_the_data_together_are_the_data(cnn, union):
    x, labels = torch.randn(9, 2, 6, 7).double(), torch.randint(-1, 3, (9, 6, 7))
    labels[:3] = labels[:3].clamp(max=0)
    how = {"layer": "0", "concepts": ["a", "b", "c"], "threshold": torch.zeros(4).double(), "union": union}
    whole = dissect(cnn, x, labels, **how)
    parts = [dissect(cnn, x[rows], labels[rows], **how) for rows in (slice(0, 2), slice(2, 3), slice(3, 9))]
    joined = parts[0].joined(parts[1]).joined(parts[2])
    assert torch.equal(joined.iou, whole.iou)
    assert joined.samples == 9
    mean = sum(part.iou for part in parts) / 3
    assert not torch.allclose(mean, whole.iou)
    for size in (1, 4):
        assert torch.equal(dissect(cnn, x, labels, **how, chunk_size=size).iou, whole.iou)


def test_labels_masks_and_a_segmenter_agree(cnn):
    x, labels = torch.randn(4, 2, 5, 6).double(), torch.randint(-1, 2, (4, 5, 6))
    how = {"layer": "2", "concepts": ["a", "b"], "threshold": 0.3}
    masks = torch.stack([labels == 0, labels == 1], 1)
    found = [dissect(cnn, x, given, **how) for given in (labels, masks, lambda inputs: labels)]
    assert torch.equal(found[0].iou, found[1].iou)
    assert torch.equal(found[0].iou, found[2].iou)


def test_masks_may_overlap():
    masks = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    counts = overlap(torch.ones(1, 1, 2, 2), masks, torch.zeros(1))
    found = DissectionResult.of(counts, Concepts(["a", "b"]), torch.zeros(1))
    close(found.iou, torch.ones(1, 2).double())


def test_many_cells_are_counted_in_parts(monkeypatch):
    maps, masks = torch.randn(3, 5, 4, 4), torch.rand(3, 2, 8, 8) > 0.5
    whole = overlap(maps, masks, torch.zeros(5))
    monkeypatch.setattr("lightning_xai.units.dissection._MOST_CELLS", 64 * 2)
    for found, expected in zip(overlap(maps, masks, torch.zeros(5)), whole, strict=True):
        assert torch.equal(found, expected)


def test_the_order_of_units_and_the_table(tmp_path):
    counts = Overlap(torch.tensor([[[2, 0], [2, 1], [6, 0]]]), torch.tensor([[10, 10, 6]]), torch.tensor([[6, 3]]))
    found = DissectionResult.of(counts, Concepts(["a", "b"], ["shape", "color"]), torch.tensor([1.0, 2.0, 3.0]))
    assert found.strongest("a", 2) == [2, 0]
    assert [row.unit for row in found.rows()] == [2, 0, 1]
    path = found.to_csv(tmp_path / "deep" / "units.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["unit"] for row in rows] == ["2", "0", "1"]
    assert rows[0] == {
        "unit": "2", "concept": "a", "category": "shape", "iou": "1.0", "detector": "True", "threshold": "3.0"
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(found)).iou.equal(found.iou)


def test_wrapped_models_and_other_contexts(cnn):
    x, labels = torch.randn(3, 2, 5, 6).double(), torch.randint(-1, 2, (3, 5, 6))
    how = {"layer": "0", "concepts": ["a", "b"], "threshold": 0.3}
    plain = dissect(cnn, x, labels, **how)
    with torch.inference_mode():
        assert torch.equal(dissect(cnn, x.clone(), labels.clone(), **how).iou, plain.iou)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dissect(cnn, x, labels, **how).iou, plain.iou)
    assert torch.equal(dissect(nn.DataParallel(cnn), x, labels, **how).iou, plain.iou)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "O"}, "layer 'O' is unknown"),
        ({"layer": "5"}, "is no map of positions"),
        ({"layer": "4"}, "is no map of positions"),
        ({"layer": "5", "threshold": None}, "is no map of positions"),
        ({"masks": torch.zeros(3, 5, 5, dtype=torch.long)}, r"need \[3, 5, 6\]"),
        ({"masks": torch.zeros(3, 3, 5, 6, dtype=torch.bool)}, r"need \[3, 2, 5, 6\]"),
        ({"masks": torch.full((3, 5, 6), 2)}, r"labels \[2\], but there are 2 concepts"),
        ({"masks": torch.full((3, 5, 6), -2)}, r"labels \[-2\]"),
        ({"p": 0.0}, "p must be a share between 0 and 1"),
        ({"p": 1.0}, "p must be a share between 0 and 1"),
        ({"threshold": torch.zeros(3)}, r"one per unit, \[4\]"),
        ({"threshold": torch.full((4,), float("nan"))}, "NaN or infinite"),
        ({"union": "presnt"}, "Did you mean 'present'"),
        ({"concepts": ["a", "a"]}, "different names"),
        ({"concepts": []}, "different names"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_bad_input(cnn, change, message):
    given = {"masks": torch.zeros(3, 5, 6, dtype=torch.long), "layer": "0", "concepts": ["a", "b"], "threshold": 0.3}
    given.update(change)
    with pytest.raises(ValueError, match=message):
        dissect(cnn, torch.randn(3, 2, 5, 6).double(), given.pop("masks"), **given)


def test_near_misses_of_a_layer_are_listed():
    model = nn.ModuleDict({"conv_one": nn.Conv1d(1, 1, 1), "conv_two": nn.Conv1d(1, 1, 1)})
    with pytest.raises(ValueError, match="Did you mean 'conv_o"):
        dissect(model, torch.zeros(1, 1, 2), torch.zeros(1, 2).long(), layer="conv_on", concepts=["a"])


def test_things_of_the_wrong_type(cnn):
    x = torch.randn(3, 2, 5, 6).double()
    with pytest.raises(TypeError, match="masks must be integer labels"):
        dissect(cnn, x, torch.zeros(3, 5, 6), layer="0", concepts=["a"])
    with pytest.raises(TypeError, match="names must be a sequence"):
        Concepts("disk")
    with pytest.raises(ValueError, match="one per concept"):
        Concepts(["a", "b"], ["shape"])
    with pytest.raises(ValueError, match="concept 'c' is unknown"):
        dissect(cnn, x, torch.zeros(3, 5, 6).long(), layer="0", concepts=["a"], p=0.5).strongest("c", 1)


def test_activations_that_are_not_finite(cnn):
    cnn[0].weight.data[1] = float("inf")
    x = torch.randn(3, 2, 5, 6).double()
    x[1] = 0.0
    with pytest.raises(ValueError, match=r"NaN or infinite in the samples \[7, 8, 9\]"):
        dissect(cnn, x, torch.zeros(3, 5, 6).long(), layer="0", concepts=["a"], sample_ids=[7, 8, 9])


def test_a_layer_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x) - 1)

    with pytest.raises(ValueError, match="runs 2 times"):
        dissect(Twice(), torch.ones(1, 1, 3), torch.zeros(1, 3).long(), layer="act", concepts=["a"])
