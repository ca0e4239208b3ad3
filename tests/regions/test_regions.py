"""Which cells belong to which feature, and how values of features are laid over cells."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai import regions
from lightning_xai.perturbation import Segments, Windows, importance, kinds, synergy

REMAINDERS = ("partial", "center", "left", "right")


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9, equal_nan=True)


def windows_along(size, stride, scope, remainder):
    """The cells of each window along one axis, laid down one after the other."""
    start, stop = scope
    found = []
    if remainder == "partial":
        while start < stop:
            found.append(range(start, min(start + size, stop)))
            if start + size >= stop:
                break
            start += stride
        return found
    while start + size <= stop:
        found.append(range(start, start + size))
        start += stride
    excluded = stop - found[-1].stop
    on_the_left = {"left": excluded, "right": 0, "center": excluded // 2 + excluded % 2}[remainder]
    return [range(window.start + on_the_left, window.stop + on_the_left) for window in found]


def painted(windows, values, spatial):
    """Per cell the mean of the values (those that are numbers) of the windows that hold it."""
    out = np.full((len(values), *spatial), np.nan)
    for n, place in itertools.product(range(len(values)), np.ndindex(*spatial)):
        covering = [values[n][j] for j, cells in enumerate(windows) if place in cells]
        numbers = [value for value in covering if np.isfinite(value)]
        if numbers:
            out[(n, *place)] = sum(numbers) / len(numbers)
    return out


def cells_of(grid):
    """The windows of several axes, row by row, each a set of places."""
    return [set(itertools.product(*window)) for window in itertools.product(*grid)]


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_every_grid_along_an_axis(remainder):
    for length in range(1, 9):
        for size, stride in itertools.product(range(1, length + 1), range(1, length + 2)):
            bound = Windows(size, stride, remainder=remainder).bind((1, 1, length))
            cells = cells_of([windows_along(size, stride, (0, length), remainder)])
            assert bound.count == len(cells), (length, size, stride)
            each = torch.eye(bound.count, dtype=torch.float64)
            close(bound.paint(each), painted(cells, each.tolist(), (length,)))


GRIDS = [
    # shape, size, stride, scope
    ((2, 9), 2, None, None),
    ((2, 9), 3, 2, (1, 8)),
    ((2, 3, 9), (4,), 3, ((2, 9),)),
    ((2, 1, 5, 7), 2, None, None),
    ((2, 1, 5, 7), (2, 3), (3, 2), None),
    ((2, 1, 5, 7), (2, 3), 1, ((1, 4), (0, 6))),
    ((2, 1, 3, 4, 5), 2, None, None),
    ((2, 1, 3, 4, 5), (1, 2, 3), (2, 2, 1), ((0, 3), (1, 4), (0, 5))),
]


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(("shape", "size", "stride", "scope"), GRIDS)
class TestGridsOfSeveralAxes:
    @pytest.fixture
    def spatial(self, shape):
        return shape[2:] or shape[1:]

    @pytest.fixture
    def cells(self, spatial, size, stride, scope, remainder):
        axes = len(spatial)
        stride = size if stride is None else stride
        sizes, strides = ((given,) * axes if isinstance(given, int) else given for given in (size, stride))
        scopes = [(0, length) for length in spatial] if scope is None else scope
        scopes = [scopes] if isinstance(scopes[0], int) else scopes
        return cells_of(
            [windows_along(*along, remainder) for along in zip(sizes, strides, scopes, strict=True)],
        )

    @pytest.fixture
    def windows(self, size, stride, scope, remainder):
        return Windows(size, stride, scope, remainder)

    def test_painting(self, windows, cells, shape, spatial):
        bound = windows.bind(shape)
        assert bound.count == len(cells)
        assert bound.spatial == spatial
        values = torch.randn(2, bound.count, dtype=torch.float64)
        values[0, ::3] = float("nan")
        values[1, -1] = float("inf")
        close(bound.paint(values), painted(cells, values.tolist(), spatial))

    def test_importance_reads_the_same_windows(self, windows, cells, shape, spatial):
        x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1:], dtype=torch.float64)
        model = nn.Module()
        model.forward = lambda inputs: (inputs * weight).flatten(1).sum(1)
        found = importance(model, x, 0, regions=windows, perturbation=kinds.Constant(0.0), score="value")
        lost = (x * weight).view(2, -1, *spatial).sum(1)
        close(found, torch.stack([sum(lost[(slice(None), *place)] for place in window) for window in cells], 1))


@pytest.mark.parametrize(
    ("select", "kept"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6]),
        (regions.Slice(), [0, 1, 2, 3, 4, 5, 6]),
        (regions.Slice(stop=3), [0, 1, 2]),
        (regions.Slice(stop=99), [0, 1, 2, 3, 4, 5, 6]),
        (regions.Slice(step=2), [0, 2, 4, 6]),
        (regions.Slice(start=1, step=2), [1, 3, 5]),
        (regions.Slice(2, 6, 3), [2, 5]),
        (regions.Fraction(0.5), [0, 1, 2]),
        (regions.Custom([0, 1, 1, 0, 0, 0, 1]), [1, 2, 6]),
        (regions.Custom(torch.tensor([1, 0, 0, 0, 0, 0, 0])), [0]),
    ],
    ids=repr,
)
def test_selections(select, kept):
    bound = Windows(2, select=select).bind((1, 1, 14))
    assert bound.count == len(kept)
    values = torch.arange(10.0, 10.0 + len(kept), dtype=torch.float64).unsqueeze(0)
    cells = [{(2 * window,), (2 * window + 1,)} for window in kept]
    close(bound.paint(values), painted(cells, values.tolist(), (14,)))


def test_a_random_selection_is_the_seeds_and_of_its_size():
    masks = [regions.Random(0.3, seed=seed).mask(20) for seed in (0, 0, 1)]
    assert [int(mask.sum()) for mask in masks] == [6, 6, 6]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_selected_windows_are_the_same_as_all_of_them_at_their_place():
    x, model = torch.randn(2, 9), nn.Linear(9, 3)
    ask = {"perturbation": kinds.GaussianNoise()}
    every = importance(model, x, 1, regions=Windows(3), **ask)
    odd = importance(model, x, 1, regions=Windows(3, select=regions.Slice(start=1, step=2)), **ask)
    torch.testing.assert_close(odd, every[:, [1]])


# Segments

LABELS = torch.tensor([[0, 0, 3, -1], [0, 3, 3, 1]])  # 2 is absent, one cell belongs to no feature
EACH = torch.stack([LABELS, torch.tensor([[1, 1, 1, 2], [2, 2, -1, 1]])])  # the second sample has no 0 and no 3


def own(inputs):
    return EACH[: inputs.shape[0]]


def members(labels):
    return [{place for place in np.ndindex(*labels.shape) if labels[place] == j} for j in range(4)]


@pytest.mark.parametrize("given", [LABELS, LABELS.tolist(), own], ids=["tensor", "list", "per sample"])
def test_segments_against_loops(given):
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    maps = own(x) if callable(given) else [LABELS, LABELS]
    bound = Segments(given).bind(x)
    assert bound.count == 4
    assert bound.spatial == (2, 4)

    values = torch.randn(2, 4, dtype=torch.float64)
    values[0, 3] = float("inf")
    close(
        bound.paint(values),
        np.concatenate([painted(members(maps[n]), values[[n]].tolist(), (2, 4)) for n in range(2)]),
    )

    model = nn.Module()
    model.forward = lambda inputs: inputs.flatten(1).sum(1)
    kind = kinds.Constant(0.0)
    local = importance(model, x, 0, regions=Segments(given), perturbation=kind, score="value")
    joint = synergy(model, x, 0, regions=Segments(given), perturbation=kind, score="value")
    for n in range(2):
        cells = members(maps[n])
        lost = [sum(x[n, :, a, b].sum() for a, b in cell) if cell else x.new_tensor(np.nan) for cell in cells]
        close(local[n], torch.stack(lost))
        for i, j in itertools.permutations(range(4), 2):
            close(joint[n, i, j], lost[i] + lost[j])


@pytest.mark.parametrize(
    "kind",
    [
        kinds.Constant(0.3),
        kinds.Bidirectional(0.4, combine="central"),
        kinds.Blur(1.0),
        kinds.GaussianNoise(),
        kinds.LocalMean(),
        kinds.RandomScale(),
        kinds.Permute(),
        kinds.Permute(channels=1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_segments_of_a_grid_are_its_windows(cnn, kind, per_sample):
    x, windows = torch.randn(3, 2, 5, 7, dtype=torch.float64), Windows((2, 3))
    numbers = torch.arange(9.0).expand(3, 9)
    labels = windows.bind(x).paint(numbers).long()
    segments = Segments(lambda _: labels) if per_sample else Segments(labels[0])
    for quantity in (importance, synergy):
        close(
            quantity(cnn, x, 1, regions=segments, perturbation=kind),
            quantity(cnn, x, 1, regions=windows, perturbation=kind),
        )


# Bad input


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Windows(0), ValueError, "size must be a positive integer or one per spatial axis, got 0"),
        (lambda: Windows((2, -1)), ValueError, "size must be a positive integer"),
        (lambda: Windows(2.5), ValueError, "size must be a positive integer or one per spatial axis, got 2.5"),
        (lambda: Windows(()), ValueError, "size must be a positive integer"),
        (lambda: Windows(2, stride=0), ValueError, "stride must be a positive integer or one per spatial axis, got 0"),
        (lambda: Windows(2, scope=((0, 3, 4),)), ValueError, r"scope must be \(start, stop\) or one such pair"),
        (lambda: Windows(2, scope=(0, (1, 2))), ValueError, r"scope must be \(start, stop\) or one such pair"),
        (lambda: Windows(2, remainder="top"), ValueError, "remainder must be one of partial, .* got 'top'"),
        (
            lambda: Windows(2, select=[1, 0]),
            TypeError,
            r"select must be e.g. regions.Slice\(step=2\), got list",
        ),
        (lambda: regions.Slice(stop=0), ValueError, "stop must be at least 1"),
        (lambda: regions.Slice(step=True), TypeError, "step must be an integer, got True"),
        (lambda: regions.Slice(start=-1), ValueError, "start must be at least 0"),
        (lambda: regions.Fraction(0.0), ValueError, "p must be above 0 and at most 1"),
        (lambda: regions.Random(1.5), ValueError, "p must be above 0 and at most 1"),
        (lambda: regions.Random("half"), TypeError, "p of Random must be a number"),
        (lambda: Segments(torch.tensor([0.0, 1.0])), ValueError, "labels must be integers, got torch.float32"),
        (lambda: Segments(torch.tensor([True, False])), ValueError, "labels must be integers, got torch.bool"),
        (lambda: Segments(torch.tensor([-2, 0])), ValueError, "labels must run from 0"),
        (lambda: Segments(torch.tensor([-1, -1])), ValueError, "labels must .* name at least one feature"),
    ],
)
def test_what_no_input_could_mend_fails_when_it_is_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("regions", "shape", "error", "message"),
    [
        (Windows(5), (1, 1, 4), ValueError, "size 5 of axis 0 is larger than the 4 cells there"),
        (Windows((2, 5)), (1, 1, 9, 4), ValueError, "size 5 of axis 1 is larger than the 4 cells there"),
        (Windows(3, scope=(1, 3)), (1, 4), ValueError, "size 3 of axis 0 is larger than the 2 cells there"),
        (Windows((2, 2)), (1, 1, 4), ValueError, r"size \(2, 2\) has 2 entries, the input has 1 spatial axes"),
        (Windows(2, stride=(1, 1)), (1, 4), ValueError, r"stride \(1, 1\) has 2 entries"),
        (Windows(2, scope=(0, 4)), (1, 1, 4, 4), ValueError, r"scope has 1 \(start, stop\) pairs, .* 2 spatial axes"),
        (Windows(2, scope=(2, 5)), (1, 1, 4), ValueError, r"scope \(2, 5\) of axis 0 must lie within 0 and 4"),
        (Windows(2, scope=(-1, 3)), (1, 1, 4), ValueError, r"scope \(-1, 3\) of axis 0 must lie within"),
        (Windows(1, scope=(2, 2)), (1, 1, 4), ValueError, r"scope \(2, 2\) of axis 0 must lie within"),
        (Windows(2, select=regions.Fraction(0.1)), (1, 1, 8), ValueError, "select=.* leaves none of the 4"),
        (Windows(2, select=regions.Custom([1])), (1, 1, 8), ValueError, "keep has 1 entries, the grid has 4"),
        (Windows(1), (1,), ValueError, "inputs must be .* one to three spatial axes"),
        (Windows(1), (1, 1, 2, 2, 2, 2), ValueError, "inputs must be .* one to three spatial axes"),
        (Segments(LABELS), (1, 1, 4), ValueError, r"labels are \[2, 4\], the inputs need \[4\]"),
        (Segments(own), (2, 1, 2, 4), ValueError, "labels is a function of the inputs: bind the inputs"),
        (Segments(lambda _: [[0]]), torch.ones(1, 1, 1, 1), TypeError, "labels must return a tensor, got list"),
        (
            Segments(lambda _: EACH),
            torch.ones(1, 1, 2, 4),
            ValueError,
            r"labels are \[2, 2, 4\], the inputs need \[1, 2, 4\]",
        ),
        (Segments(lambda x: x[:, 0]), torch.ones(1, 1, 2, 4), ValueError, "labels must be integers"),
    ],
)
def test_regions_that_do_not_fit_the_input(regions, shape, error, message):
    with pytest.raises(error, match=message):
        regions.bind(shape)


@pytest.mark.parametrize("regions", [Windows(2), Segments(torch.tensor([0, 0, 1, 1]))], ids=["windows", "segments"])
@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 2, 1)])
def test_values_that_are_not_one_per_feature(regions, shape):
    with pytest.raises(ValueError, match=r"values must be \[samples, 2\] for these regions"):
        regions.bind((1, 1, 4)).paint(torch.ones(shape))


def test_sizes_may_be_integers_of_numpy_but_not_booleans():
    assert Windows(np.int64(3), stride=(np.int32(2),)) == Windows(3, stride=(2,))
    assert Windows(1, scope=(np.int64(0), np.int64(4))) == Windows(1, scope=(0, 4))
    assert regions.as_regions(np.int64(3)) == Windows(3)
    for wrong in (True, 2.5, "3", (True, 2)):
        with pytest.raises(ValueError, match="size must be a positive integer"):
            Windows(wrong)


def test_extents_hold_the_cells_of_every_feature():
    labels = torch.tensor([[0, 0, -1], [2, 0, 2]])
    windows, segments = Windows(2).bind((1, 1, 2, 3)), Segments(labels).bind((1, 1, 2, 3))
    assert windows.extents().tolist() == [[[[0, 2], [0, 2]], [[0, 2], [2, 3]]]]
    found = segments.extents()
    assert found[0, 0].tolist() == [[0, 2], [0, 2]]
    assert found[0, 2].tolist() == [[1, 2], [0, 3]]
    assert int(found[0, 1, 0, 1] - found[0, 1, 0, 0]) <= 1  # no sample has the feature 1
