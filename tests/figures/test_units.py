"""Pictures of units show the samples, outlines, crops and titles that they were asked for."""

import pytest
import torch
from torch import nn

from lightning_xai import Pictures
from lightning_xai.figures import save
from lightning_xai.figures.units import detected, draw_crops, draw_maximized, draw_units
from lightning_xai.units import dissect, receptive_field, top_samples, unit_activations

SHAPES = {"line": (6, 2, 12), "plane": (6, 3, 10, 12), "volume": (6, 1, 4, 8, 8)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def found(shape, n=4):
    conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    model = nn.Sequential(conv(shape[1], 5, 3, stride=2, padding=1), nn.ReLU())
    x = torch.rand(shape)
    return model, x, top_samples(model, x, layer="1", n=n), unit_activations(model, x, layer="1")


@every_shape
def test_a_row_per_unit_with_its_strongest_samples(shape, tmp_path):
    _, x, strongest, maps = found(shape)
    threshold = maps.movedim(1, 0).flatten(1).quantile(0.8, 1)
    figure = draw_units(x, maps, strongest, threshold, units=[3, 1], titles={3: "disk"}, pictures=Pictures(samples=3))
    axes = figure.axes
    assert len(axes) == 2 * 3
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["unit 3\ndisk", "unit 1"]
    names = [f"#{name}" for name in strongest.sample_id[[3, 1], :3].flatten().tolist()]
    assert [ax.get_title() for ax in axes] == names
    save(figure, tmp_path / "units.png")
    assert (tmp_path / "units.png").stat().st_size > 1000


def test_what_is_above_the_threshold_is_outlined():
    x = torch.rand(1, 1, 6, 6)
    maps = torch.zeros(1, 2, 6, 6)
    maps[0, 0, 1:3, 2:5] = 1.0
    strongest = top_samples(nn.Sequential(nn.Identity()), maps, layer="0", n=1)
    first, second = draw_units(x, maps, strongest, torch.tensor([0.5, 0.5])).axes
    veil = torch.from_numpy(first.images[-1].get_array()[..., 3].copy())
    assert torch.equal(veil == 0, maps[0, 0] > 0.5)
    assert len(first.collections) == 1
    assert not second.collections


@every_shape
def test_crops_are_cut_out_by_the_receptive_field(shape):
    model, x, strongest, _ = found(shape)
    field = receptive_field(model, x, layer="1")
    figure = draw_crops(x, strongest, field, units=[2], pictures=Pictures(samples=2))
    assert len(figure.axes) == 2
    for place, axes in enumerate(figure.axes):
        box = field.box(strongest.position[2, place].tolist())
        crop = x[int(strongest.sample_id[2, place])][(slice(None), *box)]
        if len(shape) == 3:
            assert len(axes.lines[0].get_ydata()) == crop.shape[-1]
        else:
            assert axes.images[0].get_array().shape[:2] == crop.shape[-2:]
        assert axes.get_title().startswith(f"#{int(strongest.sample_id[2, place])} ")


def test_units_with_fewer_samples_leave_room():
    model, x, strongest, maps = found(SHAPES["plane"], n=6)
    strongest.sample_id[0, 1:] = -1
    figure = draw_units(x, maps, strongest, torch.zeros(5), units=[0])
    assert [bool(axes.images) for axes in figure.axes] == [True] + [False] * 5
    figure = draw_crops(x, strongest, receptive_field(model, x, layer="1"), units=[0])
    assert [bool(axes.images) for axes in figure.axes] == [True] + [False] * 5


def test_what_is_written_beside_a_unit():
    x = torch.zeros(1, 3, 4, 4)
    x[0, 0, :2, :2], x[0, 1, 2:, 2:] = 1.0, 1.0
    labels = torch.where(x[:, 0] > 0, 0, -1)
    model = nn.Sequential(nn.Identity())
    dissected = dissect(model, x, labels, layer="0", concepts=["disk"], threshold=torch.full((3,), 0.5))
    assert detected(dissected) == {0: "disk\n1.00 *", 1: "no concept", 2: "no concept"}


@every_shape
def test_maximised_inputs_side_by_side(shape):
    x = torch.rand(shape)
    figure = draw_maximized(x, [f"input {row}" for row in range(6)], across=4)
    assert [axes.get_title() for axes in figure.axes[:6]] == [f"input {row}" for row in range(6)]
    assert [axes.get_visible() for axes in figure.axes] == [True] * 6 + [False] * 2


def test_bad_input():
    model, x, strongest, maps = found(SHAPES["plane"])
    with pytest.raises(ValueError, match="there are 2 inputs, but the strongest samples have ids up to 5"):
        draw_units(x[:2], maps, strongest, torch.zeros(5))
    with pytest.raises(ValueError, match="there are 2 inputs"):
        draw_crops(x[:2], strongest, receptive_field(model, x, layer="1"))
    with pytest.raises(ValueError, match="titles must be one per input"):
        draw_maximized(x, ["one"])
