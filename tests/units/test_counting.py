"""Counting units: the formula against sliding a kernel by hand, and against what networks really return."""

import csv

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.units.counting import UnitCount, convolved_size, count_units

CASES = {
    "line": (nn.Conv1d(3, 5, 4, stride=3, padding=2, dilation=2), (3, 17)),
    "plane": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 3), dilation=(1, 2), groups=2), (4, 9, 16)),
    "volume": (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 2), padding=(0, 1, 0), groups=2), (2, 3, 5, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 7, 5)),
    "same": (nn.Conv2d(1, 2, (3, 5), padding="same", dilation=3), (1, 6, 11)),
    "valid": (nn.Conv1d(1, 2, 4, padding="valid"), (1, 6)),
    "circular": (nn.Conv2d(1, 2, 3, padding=2, padding_mode="circular", stride=2), (1, 6, 9)),
}


def slid(length, kernel, stride, padding, dilation):
    """How often a kernel fits, by trying."""
    count, start = 0, -padding
    while start + dilation * (kernel - 1) <= length + padding - 1:
        count += 1
        start += stride
    return count


@pytest.mark.parametrize(("layer", "shape"), CASES.values(), ids=CASES)
def test_a_layer_has_as_many_units_as_it_returns_numbers(layer, shape):
    found = count_units(layer, shape)
    output = layer(torch.randn(1, *shape))
    assert found.positions == output.numel()
    assert found.channels == output.shape[1]
    assert found.layers[0].size == tuple(output.shape[2:])


@pytest.mark.parametrize("length", [5, 8, 13])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_formula_counts_how_often_a_kernel_fits(length, kernel, stride, padding, dilation):
    expected = slid(length, kernel, stride, padding, dilation)
    if expected > 0:
        assert convolved_size((length,), (kernel,), stride, padding, dilation) == (expected,)


class Shared(nn.Module):
    """One convolution twice, another as a function, and a transposed one that is not counted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.weight = nn.Parameter(torch.randn(5, 2, 2, 2))
        self.back = nn.ConvTranspose2d(5, 1, 2)

    def forward(self, x):
        x = functional.relu(self.conv(self.conv(x)))
        return self.back(functional.conv2d(input=x, weight=self.weight, stride=2))


def test_a_model_is_counted_call_by_call():
    model = Shared().train()
    found = count_units(model, (2, 9, 8))
    assert [(part.layer, part.channels, part.size) for part in found.layers] == [
        ("conv", 2, (7, 6)),
        ("conv", 2, (5, 4)),
        ("", 5, (2, 2)),
    ]
    assert found.positions == 2 * 42 + 2 * 20 + 5 * 4
    assert found.channels == 9
    assert model.training


def test_the_table(tmp_path):
    found = count_units(nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Conv1d(3, 12, 2)), (1, 12))
    assert str(found).splitlines() == [
        "layer  channels  size  positions",
        "0             3  11           33",
        "2            12  10          120",
        "total        15              153",
    ]
    found.to_csv(tmp_path / "units.csv")
    with (tmp_path / "units.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["layer", "channels", "size", "positions"], *[[str(cell) for cell in row] for row in found.rows()]]
    assert found == UnitCount(found.layers)


class Cut(nn.Conv2d):
    """Drops a column, which no formula knows."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias)[..., :-1]


def test_what_the_layer_does_afterwards_does_not_matter():
    assert count_units(Cut(1, 1, 2), (1, 5, 5)).layers[0].size == (4, 4)


@pytest.mark.parametrize(
    ("model", "shape", "error", "message"),
    [
        (nn.Linear(4, 3), (4,), ValueError, "Linear has no convolution"),
        (nn.Conv2d(3, 2, 3), (1, 8, 8), ValueError, r"does not take a sample of shape \[1, 8, 8\]"),
        (nn.Conv2d(3, 2, 3), (3, 2, 2), ValueError, r"does not take a sample of shape \[3, 2, 2\]"),
        (nn.Conv2d(3, 2, 3), (), ValueError, "input_shape must be the shape"),
        (nn.Conv2d(3, 2, 3), (3, 0, 4), ValueError, "input_shape must be at least 1, got 0"),
        (len, (3, 4), TypeError, "model must be a torch.nn.Module"),
    ],
)
def test_bad_input(model, shape, error, message):
    with pytest.raises(error, match=message):
        count_units(model, shape)
