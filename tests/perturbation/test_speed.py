"""The line through the states of a perturbation."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai.metrics import Speed
from lightning_xai.perturbation import Windows, kinds, speed
from lightning_xai.perturbation.speed import fit_slope


def close(found, expected):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-9, equal_nan=True
    )


def line(t, y):
    """Slope and R² by numpy, NaN left out."""
    t, y = np.array(t)[np.isfinite(y)], np.array(y)[np.isfinite(y)]
    return (np.polyfit(t, y, 1)[0], np.corrcoef(t, y)[0, 1] ** 2) if len(t) > 1 else (np.nan, np.nan)


@pytest.mark.parametrize("abscissae", [[1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.9, 0.5]])
def test_least_squares(abscissae):
    values = torch.randn(4, 3, 5, dtype=torch.float64)
    values[0, 0, :] = torch.nan  # three points left
    values[:2, 1, 2] = torch.nan  # two
    values[1:, 2, 1] = torch.inf  # one
    values[:, 2, 4] = torch.nan  # none
    fit = fit_slope(abscissae, values)
    for n, j in np.ndindex(3, 5):
        slope, r_squared = line(abscissae, values[:, n, j].numpy())
        close(fit.slope[n, j], slope)
        close(fit.r_squared[n, j], r_squared)


def test_points_that_do_not_vary_lie_on_a_line():
    fit = fit_slope([1.0, 2.0, 3.0], torch.full((3, 1, 1), 2.5, dtype=torch.float64))
    close(fit.slope, [[0.0]])
    close(fit.r_squared, [[1.0]])


def test_the_strength_may_be_the_abscissa():
    model, x = nn.Linear(4, 1, bias=False).double(), torch.randn(2, 4, dtype=torch.float64)
    ask = {"regions": Windows(1), "score": "value", "abscissa": "strength"}
    states = [kinds.Negative(delta) for delta in (0.3, 0.1, 0.8)]
    fit = speed(model, x, 0, perturbations=states, **ask)
    close(fit.slope, (model.weight * x).detach())


def test_a_state_that_breaks_is_left_out():
    model, x = nn.Linear(1, 1, bias=False).double(), torch.ones(1, 1, dtype=torch.float64)
    weight = model.weight.item()
    ask = {"regions": Windows(1), "score": "value"}
    good, broken = [kinds.Constant(0.0), kinds.Constant(-2.0)], kinds.Constant(torch.inf)
    between = speed(model, x, 0, perturbations=[good[0], broken, good[1]], **ask)
    close(between.slope, [[weight]])  # LI = w at t = 1 and 3 w at t = 3
    close(between.r_squared, [[1.0]])
    alone = speed(model, x, 0, perturbations=[good[0], broken, broken], **ask)
    assert alone.slope.isnan()
    assert alone.r_squared.isnan()


@pytest.mark.parametrize(
    ("states", "abscissa", "error", "message"),
    [
        ([], "index", ValueError, "perturbations must be two states or more to fit a slope, got 0"),
        ([kinds.Negative()], "index", ValueError, "perturbations must be two states or more to fit a slope, got 1"),
        ([kinds.Negative(0.1), kinds.Negative(0.1)], "strength", ValueError, "perturbations must differ in strength"),
        ([kinds.ReLU(), kinds.Negative()], "strength", TypeError, "ReLU has no strength; use abscissa='index'"),
        ([kinds.Negative(0.1), kinds.Negative(0.2)], "delta", ValueError, "abscissa must be one of index, strength"),
    ],
)
def test_states_that_make_no_line(states, abscissa, error, message):
    with pytest.raises(error, match=message):
        speed(nn.Linear(4, 2), torch.ones(1, 4), 0, regions=Windows(1), perturbations=states, abscissa=abscissa)


@pytest.mark.parametrize("state", [kinds.Negative(), "blur"])
def test_states_must_be_a_list(state):
    with pytest.raises(TypeError, match=r"perturbations must be a list of states, e\.g\. \[kinds\.Negative"):
        speed(torch.nn.Identity(), torch.ones(1, 2), 0, regions=Windows(1), perturbations=state)


@pytest.mark.parametrize("abscissa", ["index", "strength"])
def test_states_may_be_given_by_name(abscissa):
    model, x = nn.Linear(4, 2).double(), torch.randn(3, 4, dtype=torch.float64)
    by_name = speed(model, x, 1, regions=1, perturbations=["negative", kinds.Blur(2.0)], abscissa=abscissa)
    expected = speed(model, x, 1, regions=1, perturbations=[kinds.Negative(), kinds.Blur(2.0)], abscissa=abscissa)
    close(by_name.slope, expected.slope)
    metric = Speed(1, ["negative", kinds.Blur(2.0)], abscissa=abscissa)
    metric.update(model, x, 1)
    close(metric.compute()["map"], expected.slope.mean(0))
