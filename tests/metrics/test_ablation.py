"""The ablation metric counts what the function finds, over batches."""

import pickle

import pytest
import torch

from lightning_xai.metrics import UnitAblation, update_together
from lightning_xai.units import UnitGroups, ablate_units


def data():
    return torch.randn(9, 2, 6, 7).double(), torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 1])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    "units", [None, [[0, 1], [3]], UnitGroups.of([[0, 2], [1]], units=4)], ids=["all", "sets", "groups"]
)
@pytest.mark.parametrize("value", [0.0, torch.tensor([0.1, 0.2, 0.3, 0.4])], ids=["zero", "per unit"])
def test_batches_together_are_the_data(cnn, units, value):
    x, y = data()
    metric = UnitAblation("2", units=units, value=value, score="probability")
    for rows in torch.randperm(9).split(4):
        metric.update(cnn, x[rows], y[rows], rows)
    found = metric.compute()
    expected = ablate_units(cnn, x, y, layer="2", units=units, value=value, score="probability")
    close(found["accuracy"], expected.accuracy)
    close(found["clean_accuracy"], expected.clean_accuracy)
    close(found["accuracy_drop"], expected.accuracy_drop)
    close(found["score_drop"], expected.mean_score_drop)
    assert float(found["largest_accuracy_drop"]) == float(expected.accuracy_drop.nan_to_num(0.0).max())
    assert found["accuracy"][:, 2].isnan().all()


def test_scores_that_are_not_numbers_are_counted(cnn):
    x, y = data()
    metric = UnitAblation("2", value=float("inf"))
    metric.update(cnn, x, y)
    assert int(metric.compute()["nonfinite"]) == 36
    assert metric.compute()["score_drop"].isnan().all()


def test_metric_resets_pickles_and_plots(cnn):
    x, y = data()
    metric = UnitAblation("2")
    first = metric(cnn, x[:4], y[:4])
    metric(cnn, x[4:], y[4:])
    again = pickle.loads(pickle.dumps(metric))
    close(again.compute()["score_drop"], metric.compute()["score_drop"])
    assert int(first["samples"]) == 4
    _, axes = metric.plot()
    assert {ax.get_xlabel() for ax in axes if ax.get_ylabel() == "unit"} == {"class"}
    assert UnitAblation("0").configuration.tolist() != metric.configuration.tolist()
    metric.reset()
    with pytest.raises(ValueError, match="no sample"), pytest.warns(UserWarning, match="before the ``update``"):
        metric.compute()
    empty = UnitAblation("2")
    update_together({"a": empty}, cnn, x[:1], y[:1], count=False)
    assert empty.compute()["accuracy"].isnan().all()


def test_unless_named_the_last_units_that_zero_silences_are_ablated(cnn):
    x, y = data()
    found, expected = UnitAblation(), UnitAblation("1")  # of cnn, the batch norm before tanh
    for metric in (found, expected):
        metric.update(cnn, x, y)
    close(found.compute()["score_drop"], expected.compute()["score_drop"])
    cnn[2] = torch.nn.Sigmoid()
    with pytest.raises(ValueError, match="layer with an activation, '0', is not silenced by 0: name a layer"):
        UnitAblation().check(cnn, x, y)


def test_bad_input_is_refused(cnn):
    x, y = data()
    with pytest.raises(ValueError, match="mean over all data is not known"):
        UnitAblation("2", value="mean")
    with pytest.raises(ValueError, match="layer 'x' is unknown"):
        UnitAblation("x").check(cnn, x, y)
    with pytest.raises(ValueError, match="unit 4 does not exist"):
        UnitAblation("2", units=[4]).check(cnn, x, y)
    with pytest.raises(ValueError, match="Did you mean 'logit'"):
        UnitAblation("2", score="logits")
    with pytest.raises(ValueError, match="chunk_size"):
        UnitAblation("2", chunk_size=0)
    with pytest.raises(ValueError, match="out of range"):
        UnitAblation("2").check(cnn, x, y + 5)
