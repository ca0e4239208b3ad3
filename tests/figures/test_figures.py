"""Pictures: what they show of the tensors they are given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lightning_xai import Pictures, Segments, Windows, preview
from lightning_xai.figures import draw_results, draw_samples, save
from lightning_xai.figures.canvas import new_figure
from lightning_xai.results import Curve, Map, Matrix, Number

N = 3
SHAPES = {
    "table": (7,),
    "line": (1, 7),
    "lines": (3, 7),
    "plane": (1, 4, 6),
    "colour": (3, 4, 6),
    "volume": (2, 5, 4, 6),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
flat_only = pytest.mark.parametrize("shape", [SHAPES[name] for name in ("plane", "colour", "volume")])
COLUMNS = {"a/map": Map("signed"), "a/relative": Map("relative", signed=False)}
RESULTS = {
    "samples": Number("samples"),
    "gini": Number("Gini coefficient", "0 even … 1 one cell"),
    "map": Map("mean"),
    "map_abs": Map("mean magnitude", signed=False),
    "map_relative": Map("mean, relative", signed=False),
    "map_per_class": Map("mean", axes=("class",)),
}
CLASSES = ("cat", "dog", "rocket")


@pytest.fixture(autouse=True)
def _pyplot_is_left_alone():
    plt.close("all")
    before = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert (dict(mpl.rcParams), plt.get_fignums()) == before


def explained(shape, count=N):
    space = shape[1:] or shape
    maps = torch.randn(count, *space)
    maps[:, ..., 2] = torch.nan  # nothing there
    return {
        "input": torch.rand(count, *shape),
        "target": torch.arange(count) % 3,
        "label": torch.arange(count) % 3,
        "prediction": torch.tensor([0, 2, 2, 0, 1, 2, 0])[:count],
        "sample_id": 10 + torch.arange(count),
        "a/map": maps,
        "a/relative": maps.abs() / 4,
    }


def result(shape):
    maps = torch.randn(shape)
    maps[..., 2] = torch.nan
    per_class = torch.stack([maps, maps * torch.nan, 3 * maps])
    return {
        "samples": 12,
        "gini": 0.25,
        "map": maps,
        "map_abs": maps.abs(),
        "map_relative": maps.abs(),
        "map_per_class": per_class,
    }


def shown(axes):
    """The numbers in a panel: an image's, or the levels of its steps."""
    if axes.images:
        pixels = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
        grey = pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
        return pixels[..., 0] if grey else pixels
    return axes.patches[0].get_data().values


def plane(values):
    """Of a volume the middle slice."""
    return values[len(values) // 2] if values.ndim == 3 else values


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def panels(figure):
    """The axes that hold values, without colour bars and empty places."""
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


def check_limits(axes, signed):
    low, high = axes.images[0].get_clim()
    assert low == (-high if signed else 0)
    close(high, np.nanmax(np.abs(shown(axes))))


def drawn(figure):
    """The figure's pixels."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


# Samples


@every_shape
def test_samples_row_by_row(shape):
    data = explained(shape)
    figure = draw_samples(data, COLUMNS, Pictures(class_names=CLASSES))
    grid = np.array(panels(figure)).reshape(N, 3)
    slices = ", middle slice" if len(shape) == 4 else ""
    assert [axes.get_title() for axes in grid[0]] == [f"input{slices}", "signed", "relative"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == [
        "#10\ncat",
        "#11\ndog\nseen as rocket",
        "#12\nrocket",
    ]
    for row in range(N):
        for axes, name, signed in zip(grid[row, 1:], COLUMNS, (True, False), strict=True):
            close(shown(axes), plane(data[name][row]))
            if axes.images:
                check_limits(axes, signed)
    assert len(figure.axes) == N * 3 + (2 * N if len(shape) > 2 else 0)  # a colour bar for each map
    assert drawn(figure).std() > 0


@pytest.mark.parametrize(("count", "wanted", "rows"), [(7, None, 6), (7, 2, 2), (1, 4, 1)])
def test_pictures_show_as_many_samples_as_asked_for(count, wanted, rows):
    pictures = Pictures() if wanted is None else Pictures(samples=wanted)
    assert len(panels(draw_samples(explained((1, 4, 6), count), COLUMNS, pictures))) == 3 * rows


def test_classes_without_names_are_numbered():
    figure = draw_samples(explained((7,)), COLUMNS, Pictures(class_names=CLASSES[:2]))
    assert [axes.get_ylabel() for axes in panels(figure)[::3]] == ["#10\ncat", "#11\ndog\nseen as 2", "#12\n2"]


@flat_only
def test_an_input_is_stretched_over_its_range(shape):
    data = explained(shape)
    data["input"] = 100 * data["input"] - 30
    axes = panels(draw_samples(data, COLUMNS))[0]
    sample = data["input"][0][:, shape[1] // 2] if len(shape) == 4 else data["input"][0]
    sample = (sample - sample.min()) / (sample.max() - sample.min())
    close(shown(axes), sample.movedim(0, -1) if len(sample) == 3 else sample.mean(0))


@flat_only
def test_denormalize_has_the_last_word(shape):
    axes = panels(draw_samples(explained(shape), COLUMNS, Pictures(denormalize=lambda x: torch.full_like(x, 1.7))))[0]
    close(shown(axes), 1.0)


def test_an_input_without_contrast_is_drawn():
    data = {**explained((1, 4, 6)), "input": torch.full((N, 1, 4, 6), 3.0)}
    close(shown(panels(draw_samples(data, COLUMNS))[0]), 0.0)


def test_a_signal_has_a_line_per_channel():
    data = explained((3, 7))
    axes = panels(draw_samples(data, COLUMNS))[0]
    close([line.get_ydata() for line in axes.lines], data["input"][0])
    assert len({line.get_color() for line in axes.lines}) == 3


@pytest.mark.parametrize("shape", [(7,), (1, 7)])
def test_cells_of_a_curve_without_a_value_are_grey(shape):
    data = explained(shape)
    data["a/map"][0] = torch.tensor([1.0, torch.nan, 2.0, torch.nan, torch.nan, -1.0, 3.0])
    axes = panels(draw_samples(data, COLUMNS))[1]
    spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches[1:]]
    close([(span.x0, span.x1) for span in spans], [(0.5, 1.5), (2.5, 4.5)])
    close(axes.patches[0].get_data().edges, np.arange(8) - 0.5)
    assert axes.get_xlim() == (-0.5, 6.5)


def test_maps_without_any_value_are_drawn():
    data = explained((1, 4, 6))
    data["a/map"] = data["a/map"] * torch.nan
    assert drawn(draw_samples(data, COLUMNS)).std() > 0


# Results


@every_shape
def test_every_result_has_a_panel_as_it_is_declared(shape):
    space = shape[1:] or shape
    found = result(space)
    figure = draw_results(RESULTS, found, "faded", Pictures(class_names=CLASSES))
    assert figure.get_suptitle() == "faded: samples 12, Gini coefficient 0.25 (0 even … 1 one cell)"
    wanted = {
        **{"mean": found["map"], "mean magnitude": found["map_abs"], "mean, relative": found["map_relative"]},
        **{f"class {CLASSES[index]}": found["map_per_class"][index] for index in (0, 2)},  # class 1 has no samples
    }
    axes = {axes.get_title().partition(", middle")[0]: axes for axes in panels(figure)}
    assert list(axes) == list(wanted)
    for title, values in wanted.items():
        close(shown(axes[title]), plane(values))
        if len(space) > 1 and "class" not in title:
            check_limits(axes[title], signed=title == "mean")
    shared = [axes[f"class {name}"] for name in ("cat", "rocket")]
    limits = [panel.images[0].get_clim() if len(space) > 1 else panel.get_ylim() for panel in shared]
    assert limits[0] == limits[1]
    assert limits[0][0] == -limits[0][1]
    assert drawn(figure).std() > 0


def test_a_matrix_has_the_features_on_its_axes():
    joint = torch.randn(5, 5).fill_diagonal_(torch.nan)
    declared = {key: Matrix(key, axes=("feature j*", "feature j")) for key in ("joint", "interaction")}
    figure = draw_results(declared, {"samples": 2, "joint": joint, "interaction": -joint}, "pairs")
    for axes, values in zip(panels(figure), (joint, -joint), strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature j", "feature j*")
        close(shown(axes), values)
        check_limits(axes, signed=True)


def test_only_so_many_classes_are_drawn():
    figure = draw_results(RESULTS, {"map": torch.rand(4, 6), "map_per_class": torch.rand(40, 4, 6)}, "many")
    assert len(panels(figure)) == 1 + 16


@pytest.mark.parametrize("found", [{}, {"samples": 3, "gini": torch.tensor(0.5)}])
def test_numbers_alone_make_no_picture(found):
    with pytest.raises(ValueError, match="pairs has nothing to draw, as all of its results are numbers"):
        draw_results(RESULTS, found, "pairs")


# Regions


def borders(figure):
    """Where a preview draws borders: the ends of its line segments, or the places on its only axis."""
    (axes,) = figure.axes
    if axes.images:
        return {tuple(map(tuple, path)) for path in axes.collections[0].get_segments()}
    return [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
@pytest.mark.parametrize(
    ("regions", "title", "expected"),
    [
        (Windows(3), "3 features over 100% of the cells", [2.5, 5.5]),
        (Windows(2, scope=(1, 5)), "2 features over 57% of the cells", [0.5, 2.5, 4.5]),
        (Segments([0, 0, 1, 1, 0, -1, -1]), "2 features over 71% of the cells", [1.5, 3.5, 4.5]),
    ],
)
def test_borders_on_a_curve(shape, regions, title, expected):
    figure = preview(regions, torch.rand(2, *shape), index=1)
    assert figure.axes[0].get_title() == title
    assert borders(figure) == expected


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 2, 4), (1, 3, 2, 4)])
def test_borders_on_an_image(shape):
    figure = preview(Windows(2), torch.rand(1, *shape))
    assert borders(figure) == {((1.5, -0.5), (1.5, 0.5)), ((1.5, 0.5), (1.5, 1.5))}
    deep = len(shape) == 4
    count, slices = (4, ", middle slice") if deep else (2, "")
    assert figure.axes[0].get_title() == f"{count} features over 100% of the cells{slices}"


def own(inputs):
    return (inputs[:, 0] > 0).long()


def test_segments_of_the_sample_that_is_shown():
    inputs = torch.tensor([[[-1.0, 1.0, 1.0]], [[1.0, 1.0, -1.0]]])
    assert [borders(preview(Segments(own), inputs, index)) for index in (0, 1)] == [[0.5], [1.5]]


@pytest.mark.parametrize("index", [-1, 2])
def test_a_sample_that_is_not_there(index):
    with pytest.raises(IndexError, match=f"index {index} is out of range: there are 2 samples"):
        preview(Windows(1), torch.rand(2, 7), index)


# Files and settings


def test_a_picture_is_saved_where_it_is_asked_for(tmp_path):
    figure = preview(Windows(2), torch.rand(1, 1, 4, 6))
    save(figure, tmp_path / "deep" / "down" / "windows.png")
    image = imread(tmp_path / "deep" / "down" / "windows.png")
    close(image.shape[:2], np.array(figure.get_size_inches())[::-1] * 150)
    assert image[..., :3].std() > 0.05


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"denormalize": 0.5}, TypeError, "denormalize must be a function of one input, got float"),
        ({"class_names": "cat"}, TypeError, "class_names must be a list of names, got 'cat'"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        Pictures(**options)


def test_what_is_as_it_should_be_is_not_in_the_heading():
    counts = {"skipped": Number("samples skipped", usually_zero=True), "samples": Number("samples")}
    results = {**counts, "curve": Curve("curve")}
    for skipped, heading in ((0, "name: samples 0"), (3, "name: samples skipped 3, samples 0")):
        values = {"skipped": torch.tensor(skipped), "samples": torch.tensor(0), "curve": torch.arange(3.0)}
        assert draw_results(results, values, "name").get_suptitle() == heading


@pytest.mark.parametrize("name", [r"$\frac{$", "US$ of 5$", "{x}^_"])
def test_names_are_no_formulas(name, tmp_path):
    with new_figure(2, 1) as figure:
        axes = figure.subplots()
        axes.set_title(name)
        axes.bar([0, 1], [3, 40])
    save(figure, tmp_path / "picture.png")
    assert axes.title.get_window_extent().width > 8 * len(name)  # every character is drawn
