"""Which features come into one pass, and how windows are read."""

import pytest
import torch
from torch import nn

from lightning_xai.perturbation import Windows, importance, kinds
from lightning_xai.perturbation.incremental.gathering import Layout, Table, Window
from lightning_xai.perturbation.incremental.geometry import Boxes
from lightning_xai.perturbation.incremental.patches import in_order


def reached(extents, features, spatial, reach):
    """The cells of the box that holds what each of some features reaches, by hand."""
    longest = [0] * len(spatial)
    for feature in features:
        for axis, (start, stop) in enumerate(extents[0, feature].tolist()):
            longest[axis] = max(longest[axis], min(spatial[axis], stop + reach) - max(0, start - reach))
    return torch.tensor(longest).prod()


@pytest.mark.parametrize("spatial", [(40,), (28, 20), (12, 10, 11)])
@pytest.mark.parametrize("per_pass", [1, 7, 20, 1000])
def test_features_near_the_same_borders_come_together(spatial, per_pass):
    windows = Windows(4, stride=2, remainder="right").bind((1, 1, *spatial))
    features = [(j,) for j in range(windows.count)]
    order = in_order(windows.extents(), features, per_pass, spatial)
    assert sorted(order) == list(range(windows.count))

    def cells(places):
        passes = [places[first : first + per_pass] for first in range(0, len(places), per_pass)]
        return sum(len(some) * reached(windows.extents(), some, spatial, 5) for some in passes)

    most = 0.9 if len(spatial) == 2 and per_pass == 7 else 1.05
    assert cells(order) < most * cells(list(range(windows.count)))


@pytest.mark.parametrize("shift", [-70, -3, 0, 2])
@pytest.mark.parametrize("consecutive", [True, False])
def test_windows_hold_clean_cells_padding_and_boxes(shift, consecutive):
    clean = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    boxes = Boxes((torch.tensor([0, 2, 3]), torch.tensor([4, 1, 0])), (2, 2), (5, 6))
    rows = torch.tensor([[-1], [0], [1]]) + torch.arange(4)
    columns = torch.tensor([[shift], [0], [3]]) + torch.arange(5)
    columns = columns if consecutive else columns.flip(1)
    patch = torch.randn(3, 2, 2, 2, 2, dtype=torch.float64)  # [P, m, C, 2, 2]
    samples = torch.tensor([[2, 0]])
    layout = Layout((2, 5, 6), (2, 3))
    table, window = Table(clean, layout), Window(boxes, [rows, columns], fill=7.0)
    cells = window.read(table, layout.to_cells(patch.flatten(0, 1)), samples)
    found = layout.from_cells(cells, window.lengths).view(3, 2, 2, 4, 5)
    for position in range(3):
        for row, sample in enumerate(samples[0]):
            whole = clean[sample].clone()
            y, x = (int(start[position]) for start in boxes.starts)
            whole[:, y : y + 2, x : x + 2] = patch[position, row]
            for i, y in enumerate(rows[position].tolist()):
                for j, x in enumerate(columns[position].tolist()):
                    inside = 0 <= y < 5 and 0 <= x < 6
                    expected = whole[:, y, x] if inside else torch.full((2,), 7.0, dtype=torch.float64)
                    assert torch.equal(found[position, row, :, i, j], expected)
    assert torch.equal(table.clean, clean)


def test_indices_do_not_grow_with_the_samples_or_channels():
    boxes = Boxes((torch.arange(9), torch.arange(9)), (8, 8), (32, 32))
    window = Window(boxes, [axis.unsqueeze(1) - 1 + torch.arange(10) for axis in boxes.starts])
    assert window.bytes == 8 * 9 * 10  # one number per line of a window


@pytest.mark.parametrize("regions", [Windows(4), Windows(5, stride=3), Windows(4, remainder="center")])
def test_cutting_windows_out_of_whole_copies_is_perturbing_them(regions, monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 9 * 11, 2)).double()
    x = torch.randn(3, 2, 11, 13, dtype=torch.float64)
    how = {"regions": regions, "perturbation": kinds.Bidirectional(0.3), "engine": "incremental"}
    found = importance(model, x, 1, **how)
    monkeypatch.setattr("lightning_xai.regions.windows.BoundWindows.fills", lambda *_: False)
    torch.testing.assert_close(found, importance(model, x, 1, **how), rtol=0, atol=1e-14)
