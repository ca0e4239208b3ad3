"""Pictures of relevance: what they show of the numbers they are given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lightning_xai.figures import draw_heat_map, draw_results
from lightning_xai.results import Entries, Histogram, Matrix, Number, PerFeature, PerLayer, PerUnit, tables


@pytest.fixture(autouse=True)
def _pyplot_is_left_alone():
    plt.close("all")
    before = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert (dict(mpl.rcParams), plt.get_fignums()) == before


def bars(axes):
    """Length and label of each horizontal bar from the top."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert axes.yaxis_inverted()
    return dict(zip(labels, [patch.get_width() for patch in axes.patches], strict=True))


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 4, 6), (2, 5, 4, 6)], ids=["colour", "plane", "volume"])
def test_a_heat_map_beside_and_over_its_input(shape):
    relevance, sample = torch.randn(shape[1:]), torch.rand(shape)
    figure = draw_heat_map(relevance, sample)
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    expected = relevance[len(relevance) // 2] if relevance.ndim == 3 else relevance
    np.testing.assert_allclose(panels[1].images[0].get_array(), expected.numpy())
    low, high = panels[1].images[0].get_clim()
    assert high == -low == expected.abs().max()
    both = np.asarray(panels[2].images[0].get_array())
    assert both.shape == (4, 6, 3)
    strongest = np.unravel_index(int(expected.abs().argmax()), (4, 6))
    red, _, blue = both[strongest]  # nothing of the input shows there
    assert (red > blue) == bool(expected[strongest] > 0)


def test_where_there_is_no_relevance_the_input_stays_grey():
    relevance, sample = torch.zeros(4, 6), torch.rand(3, 4, 6)
    relevance[0, 0] = 2.0
    both = np.asarray([axes for axes in draw_heat_map(relevance, sample).axes if axes.images][2].images[0].get_array())
    assert np.ptp(both.reshape(-1, 3)[1:], axis=1).max() < 1e-6


@pytest.mark.parametrize("sample", [torch.rand(7), torch.rand(2, 7)], ids=["table", "line"])
def test_the_relevance_of_a_curve_lies_under_it(sample):
    relevance = torch.randn(7)
    figure = draw_heat_map(relevance, sample)
    assert [axes.get_title() for axes in figure.axes] == ["input", "relevance"]
    np.testing.assert_allclose(figure.axes[1].patches[0].get_data().values, relevance.numpy())


def test_a_heat_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"relevance must be \[4, 6\] as the sample is, got \[4, 5\]"):
        draw_heat_map(torch.zeros(4, 5), torch.zeros(3, 4, 6))


def test_a_histogram_shows_signs_by_colour():
    counts = torch.tensor([0, 2, 50, 7, 1])
    declared = {"histogram": Histogram("relevance", "cells", extent=(-1.0, 1.0))}
    axes = draw_results(declared, {"histogram": counts}, "relevance").axes[0]
    assert [patch.get_height() for patch in axes.patches] == counts.tolist()
    assert [round(float(patch.get_x()), 6) for patch in axes.patches] == [-1.0, -0.6, -0.2, 0.2, 0.6]
    colours = [patch.get_facecolor() for patch in axes.patches]
    assert colours[0] == colours[1] != colours[2] != colours[3] == colours[4]
    assert axes.get_yscale() == "log"
    assert draw_results(declared, {"histogram": torch.zeros(5)}, "nothing").axes[0].get_yscale() == "linear"


def test_features_are_in_order_of_their_size():
    values = {"by_feature": torch.tensor([0.1, -0.4, torch.nan, 0.25])}
    found = bars(draw_results({"by_feature": PerFeature("share")}, values, "relevance").axes[0])
    assert list(found) == ["1", "3", "0"]
    np.testing.assert_allclose(list(found.values()), [-0.4, 0.25, 0.1], atol=1e-6)
    named = draw_results({"by_feature": PerFeature("share")}, values, "r", labels={"feature": ["a", "b", "c", "d"]})
    assert list(bars(named.axes[0])) == ["b", "d", "a"]


def test_of_many_features_the_strongest_are_shown():
    axes = draw_results({"by_feature": PerFeature("share")}, {"by_feature": torch.linspace(0, 1, 49)}, "r").axes[0]
    assert list(bars(axes))[:2] == ["48", "47"]
    assert len(axes.patches) == 20
    assert axes.get_title() == "share\nstrongest 20 of 49 features"


def test_units_that_are_apart_are_in_no_ranking():
    declared = {"by_unit": PerUnit("count", apart="dead"), "dead": Entries("dead", axes=("unit",))}
    values = {"by_unit": torch.tensor([2, 9, 5]), "dead": torch.tensor([False, True, False])}
    axes = draw_results(declared, values, "units").axes[0]
    assert list(bars(axes)) == ["2", "0"]
    assert axes.get_title() == "count\nstrongest 2 of 3 units\nand 1 dead, not shown"


def test_a_matrix_is_grey_where_units_are_apart():
    declared = {
        "pairs": Matrix("count", axes=("feature", "unit"), apart="dead"),
        "dead": Entries("dead", axes=("unit",)),
    }
    values = {"pairs": torch.tensor([[2, 9, 5], [1, 8, 0]]), "dead": torch.tensor([False, True, False])}
    axes = draw_results(declared, values, "units").axes[0]
    shown = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(shown, [[2, np.nan, 5], [1, np.nan, 0]])
    assert axes.get_title() == "count (grey: 1 dead)"
    table = tables({"pairs": Matrix("count", axes=("feature", "unit"), listed="strongest", apart="dead")}, values)
    assert [row[:3] for row in table["by_feature_and_unit"].rows] == [
        (0, 2, 5),
        (0, 0, 2),
        (1, 0, 1),
        (0, 1, 9),
        (1, 1, 8),
    ]


def test_a_ledger_runs_from_the_output_to_the_input():
    declared = {
        "ledger": PerLayer("ledger", beside=("input", "bias")),
        "input": Number("input"),
        "bias": Number("biases"),
    }
    values = {"ledger": torch.tensor([0.5, 0.75, 1.0]), "input": 0.5, "bias": 0.4}
    axes = draw_results(declared, values, "relevance", labels={"layer": ["first", "second", "last"]}).axes[0]
    found = bars(axes)
    assert list(found) == ["last", "second", "first", "input", "biases"]
    np.testing.assert_allclose(list(found.values()), [1.0, 0.75, 0.5, 0.5, 0.4])
