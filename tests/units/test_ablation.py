"""Ablation: what silencing does, against networks that were changed by hand."""

import copy
import csv
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai.units import UnitGroups, ablate_units
from lightning_xai.units.ablation import AblationPlan, per_class


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9, equal_nan=True)


class Residual(nn.Module):
    """A layer inside a residual block, after a shared stem."""

    def __init__(self, axes=2):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.stem, self.inner = conv(2, 4, 3, padding=1), conv(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if axes == 2 else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).tanh()
        x = x + torch.relu(self.norm(self.inner(x)))
        return self.head(x.flatten(2).mean(2))


class Joined(nn.Module):
    """Concatenates along channels, which a replay cannot broadcast."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv1d(2, 4, 1), nn.Conv1d(2, 3, 1), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(torch.cat([self.one(x), self.two(x)], 1).mean(2))


def data(shape=(5, 2, 6, 7)):
    return torch.randn(shape).double(), torch.tensor([0, 1, 2, 0, 1])[: shape[0]]


def by_hand(model, layer, x, sets, value):
    """The outputs [U, N, classes] of copies of the model whose layer is followed by one that writes the value."""

    class Silence(nn.Module):
        def __init__(self, chosen):
            super().__init__()
            self.chosen = chosen

        def forward(self, maps):
            maps = maps.clone()
            for unit in self.chosen:
                maps[:, unit] = float(value[unit]) if isinstance(value, torch.Tensor) else value
            return maps

    outputs = []
    for chosen in sets:
        changed = copy.deepcopy(model).eval()
        setattr(changed, layer, nn.Sequential(getattr(changed, layer), Silence(chosen)))
        outputs.append(changed(x).detach())
    return torch.stack(outputs)


ENGINES = ("auto", "replay", "repeat")
SETS = [[0], [2], [0, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(("value", "engine"), list(itertools.product((0.0, -1.5, "per unit"), ENGINES)))
@pytest.mark.parametrize("shape", [(5, 2, 9), (5, 2, 6, 7), (3, 2, 4, 5, 3)], ids=["line", "plane", "volume"])
def test_silencing_is_changing_the_network(value, engine, shape):
    model = Residual(len(shape) - 2).double().eval()
    x, y = data(shape)
    value = torch.tensor([0.3, -0.2, 1.0, 0.0]).double() if value == "per unit" else value
    found = ablate_units(model, x, y, layer="inner", units=SETS, value=value, engine=engine)
    outputs, clean = by_hand(model, "inner", x, SETS, value), model(x).detach()
    rows = torch.arange(len(x))
    close(found.score_drop, (clean[rows, y] - outputs[:, rows, y]).T)
    assert torch.equal(found.prediction, outputs.argmax(2).T)
    assert torch.equal(found.clean_prediction, clean.argmax(1))
    assert found.engine == ("repeat" if engine == "repeat" else "replay")


def test_the_mean_is_over_positions_and_samples():
    model = Residual().double().eval()
    x, y = data()
    mean = model.inner(model.stem(x).tanh()).movedim(1, 0).flatten(1).mean(1).detach()
    found = ablate_units(model, x, y, layer="inner", units=SETS, value="mean")
    close(found.score_drop, ablate_units(model, x, y, layer="inner", units=SETS, value=mean).score_drop)


def test_a_linear_readout_loses_its_weight_times_the_activation():
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model = model.double()
    x, y = data()
    maps = torch.relu(model[0](x)).flatten(2).mean(2)
    expected = model[4].weight[y] * maps
    close(ablate_units(model, x, y, layer="1").score_drop, expected.detach())


def test_what_cannot_be_replayed_is_repeated():
    model = Joined().double()
    x, y = torch.randn(4, 2, 5).double(), torch.tensor([0, 1, 2, 0])
    found = ablate_units(model, x, y, layer="one", units=SETS)
    assert found.engine == "repeat"
    outputs, clean = by_hand(model, "one", x, SETS, 0.0), model(x).detach()
    rows = torch.arange(4)
    close(found.score_drop, (clean[rows, y] - outputs[:, rows, y]).T)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        ablate_units(model, x, y, layer="one", engine="replay")


def test_a_model_that_mixes_rows_is_not_replayed():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Identity(), nn.Linear(3, 2)

        def forward(self, x):
            rows = len(x)
            found = self.layer(x)
            return self.head(found + found.flip(0) if rows == 1 else 2 * found)

    found = ablate_units(Mixing().double(), torch.randn(2, 3).double(), 0, layer="layer")
    assert found.engine == "repeat"


def test_units_sets_and_groups_agree(cnn):
    x, y = data()
    close(
        ablate_units(cnn, x, y, layer="2").score_drop,
        ablate_units(cnn, x, y, layer="2", units=[[0], [1], [2], [3]]).score_drop,
    )
    groups = UnitGroups.of([[1, 3], [0]], units=4)
    close(
        ablate_units(cnn, x, y, layer="2", units=groups).score_drop,
        ablate_units(cnn, x, y, layer="2", units=[[1, 3], [0]]).score_drop,
    )
    close(
        ablate_units(cnn, x, y, layer="2", units=[3, 1]).score_drop,
        ablate_units(cnn, x, y, layer="2").score_drop[:, [3, 1]],
    )


@pytest.mark.parametrize("units", [[np.int64(0), np.int64(2)], np.array([0, 2]), np.array([[0], [2]])])
def test_units_may_be_numbers_of_numpy(cnn, units):
    x, y = data()
    every = ablate_units(cnn, x, y, layer="2").score_drop
    close(ablate_units(cnn, x, y, layer="2", units=units).score_drop, every[:, [0, 2]])


def test_accuracy_per_class():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 4, bias=False)).double()
    model[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-9.0, -9.0]]).double()
    x = torch.tensor([[2.0, 0.0], [3.0, 1.0], [0.0, 2.0], [1.0, 3.0], [1.0, 4.0]]).double()
    y = torch.tensor([0, 0, 1, 1, 0])
    found = ablate_units(model, x, y, layer="0", units=[[0], [1]])
    close(found.clean_accuracy, torch.tensor([2 / 3, 1.0, float("nan"), float("nan")], dtype=torch.float64))
    assert found.prediction.tolist() == [[0, 0], [1, 0], [1, 0], [1, 0], [1, 0]]
    expected = torch.tensor([[1 / 3, 1.0], [1.0, 0.0]], dtype=torch.float64)
    close(found.accuracy[:, :2], expected)
    close(found.accuracy_drop[:, :2], found.clean_accuracy[:2] - expected)
    for label in (0, 1):
        close(found.mean_score_drop[:, label], found.score_drop[y == label].mean(0))
    assert found.mean_score_drop[:, 2:].isnan().all()


def test_results_do_not_depend_on_batches_or_chunks(cnn):
    x, y = data()
    whole = ablate_units(cnn, x, y, layer="0", units=SETS, score="probability")
    for size in (1, 3):
        found = ablate_units(cnn, x, y, layer="0", units=SETS, score="probability", chunk_size=size)
        close(found.score_drop, whole.score_drop)
    parts = [
        ablate_units(cnn, x[r : r + 1], y[r : r + 1], layer="0", units=SETS, score="probability") for r in range(5)
    ]
    close(torch.cat([part.score_drop for part in parts]), whole.score_drop)


def test_nothing_is_left_on_the_model_also_when_it_raises(cnn):
    x, y = data()
    cnn.train()
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    ablate_units(cnn, x, y, layer="0")
    with pytest.raises(ValueError, match="one per unit"):
        ablate_units(cnn, x, y, layer="0", value=torch.zeros(3))
    assert cnn.training
    assert not any(module._forward_hooks for module in cnn.modules())
    assert all(torch.equal(before[name], value) for name, value in cnn.state_dict().items())
    with torch.inference_mode():
        inside = ablate_units(cnn, x.clone(), y, layer="0").score_drop
    close(inside.clone(), ablate_units(cnn, x, y, layer="0").score_drop)
    close(ablate_units(nn.DataParallel(cnn), x, y, layer="0").score_drop, inside.clone())


def test_a_result_and_a_plan_are_values(cnn):
    x, y = data()
    found = ablate_units(cnn, x, y, layer="0")
    assert torch.equal(pickle.loads(pickle.dumps(found)).accuracy, found.accuracy)
    assert pickle.loads(pickle.dumps(AblationPlan("0", ((0,), (1,))))) == AblationPlan("0", ((0,), (1,)))
    close(per_class(torch.ones(2, 1), torch.tensor([0, 0]), 2), torch.tensor([[1.0, float("nan")]]).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "9"}, "layer '9' is unknown"),
        ({"units": [4]}, "unit 4 does not exist"),
        ({"units": [[0, -1]]}, "unit -1 does not exist"),
        ({"units": [[]]}, "at least one unit"),
        ({"units": UnitGroups.of([[0]], units=5)}, "units has groups of 5 units"),
        ({"value": "median"}, "'mean'"),
        ({"value": torch.zeros(3)}, r"one per unit, \[4\]"),
        ({"engine": "reply"}, "Did you mean 'replay'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"target": 3}, "out of range"),
        ({"target": torch.tensor([0, 1])}, "one class index per sample"),
        ({"score": "logits"}, "Did you mean 'logit'"),
    ],
)
def test_bad_input(cnn, change, message):
    x, y = data()
    given = {"target": y, "layer": "0", **change}
    with pytest.raises(ValueError, match=message):
        ablate_units(cnn, x, given.pop("target"), **given)


def test_what_is_no_activation(cnn):
    x, y = data()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        ablate_units(lambda x: x, x, y, layer="0")
    cnn[0].weight.data[2] = float("nan")
    with pytest.raises(ValueError, match=r"layer '0' is NaN or infinite in the samples \[30\]"):
        ablate_units(cnn, x, y, layer="0", sample_ids=[30, 31, 32, 33, 34])


def test_table_of_a_result_has_a_row_per_unit_and_class_with_samples(tmp_path):
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 3)).double()
    model[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).double()
    model[1].bias.data = torch.tensor([0.0, 0.0, 0.5]).double()
    x = torch.tensor([[1.0, 0.25], [0.75, 0.0], [0.0, 1.0]]).double()
    found = ablate_units(model, x, torch.tensor([0, 0, 1]), layer="0", score="logit")
    with found.to_csv(tmp_path / "new" / "units.csv").open() as file:
        columns, *rows = csv.reader(file)
    assert columns == ["unit", "class", "samples", "score_drop", "accuracy", "accuracy_drop"]
    assert [tuple(map(float, row)) for row in rows] == [
        (0, 0, 2, 0.875, 0.0, 1.0),
        (0, 1, 1, 0.0, 1.0, 0.0),
        (1, 0, 2, 0.0, 1.0, 0.0),
        (1, 1, 1, 2.0, 0.0, 1.0),
    ]
