"""Taylor expansions around roots that are known in closed form."""

import pytest
import torch
from draws import draw, module
from torch import nn

from lightning_xai.relevance import GradientXInput, SimpleTaylor


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def scored(function, **fields):
    """SimpleTaylor of a function of [N, F] -> [N], as a function of x."""
    model = module(lambda x: function(x.flatten(1)).unsqueeze(1))
    return lambda x: SimpleTaylor(score="value", **fields)(model, x, 0)


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 5), (4, 2, 3, 4), (4, 1, 2, 3, 2)], ids=lambda shape: f"{len(shape)}")
def test_affine_scores_are_conserved(shape):
    x = draw(*shape)
    weight = draw(x[0].numel())
    clean = x.flatten(1) @ weight
    for bias in (-0.3 * clean.abs().min(), 0.3 * clean.abs().min()):
        # s(x) and s(0) = b differ in sign for the samples whose <w, x> is large and of the other sign.
        found = scored(lambda z, b=bias: z @ weight + b)
        with_root = (clean + bias).sign() != bias.sign()
        if not with_root.any():
            continue
        maps = found(x[with_root])
        close(maps.flatten(1).sum(1), (clean + bias)[with_root])
        # The nearest root on the ray from x to 0 is at the share -b / <w, x>.
        share = (-bias / clean[with_root]).unsqueeze(1)
        close(maps.flatten(1), weight * (1 - share) * x[with_root].flatten(1))


def test_both_signs_of_the_score_have_roots():
    x = torch.tensor([[2.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    found = scored(lambda z: z.sum(1) - 1, baseline=torch.tensor([[0.0, 0.0], [3.0, 3.0]]))(x)
    close(found.sum(1), x.sum(1) - 1)


def test_the_root_at_zero_of_networks_without_biases_gives_gradient_times_input():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3, bias=False)
    ).double()
    x = draw(5, 2, 8)
    close(SimpleTaylor()(model, x, 1), GradientXInput()(model, x, 1))


def test_the_nearest_of_several_roots_is_found():
    # s = (t - 1)(t - 2)(t - 3) along x = (t, 0); from t = 4 down to 0 the root 3 comes first, s'(3) = 2.
    found = scored(lambda z: (z[:, 0] - 1) * (z[:, 0] - 2) * (z[:, 0] - 3))
    close(found(torch.tensor([[4.0, 7.0]], dtype=torch.float64)), torch.tensor([[2.0, 0.0]], dtype=torch.float64))


def test_the_gradient_is_that_of_the_inputs_side():
    # A kink at the root: slope 5 beyond 1, slope 2 before it.
    found = scored(lambda z: torch.where(z > 1, 5 * (z - 1), 2 * (z - 1)).sum(1))
    close(found(torch.tensor([[3.0]], dtype=torch.float64)), torch.tensor([[10.0]], dtype=torch.float64))


def test_given_root_is_used():
    x, root = draw(3, 2, 4), draw(2, 4)
    found = scored(lambda z: (z**2).sum(1), root=root)(x)
    close(found, 2 * root * (x - root))
    close(scored(lambda z: (z**2).sum(1), root=root.expand(3, 2, 4))(x), found)
    close(scored(lambda z: (z**2).sum(1), root=root.tolist())(x), found)
    close(scored(lambda z: (z**2).sum(1), root=lambda z: z / 2)(x), x * x / 2)
    close(scored(lambda z: (z**2).sum(1), root=0.5)(x), x - 0.5)


def test_sample_without_root_warns_and_has_a_nan_map():
    model = module(lambda x: x.sum(1, keepdim=True) - 1)
    x = torch.tensor([[2.0, 2.0], [0.5, -3.0], [0.25, 0.75]])
    with pytest.warns(UserWarning, match=r"the score of the samples \[7\] does not change its sign"):
        found = SimpleTaylor(score="value")(model, x, 0, sample_ids=[4, 7, 9])
    expected = torch.tensor([[1.5, 1.5], [torch.nan, torch.nan], [0.0, 0.0]])
    close(found, expected, 1e-6)


def test_an_input_that_is_a_root_has_no_relevance():
    close(scored(lambda z: z.sum(1))(torch.tensor([[1.0, -1.0]])), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"points": 0}, ValueError, "points must be at least 1, got 0"),
        ({"bisections": 1.5}, TypeError, "bisections of SimpleTaylor must be an integer, got 1.5"),
        ({"baseline": float("nan")}, ValueError, "baseline must hold finite numbers only"),
        ({"baseline": "black"}, TypeError, "baseline must be a number, a tensor or a function of the inputs, got str"),
        ({"root": {}}, TypeError, "root must be a number, a tensor or a function of the inputs, got dict"),
        ({"score": "logits"}, ValueError, "Did you mean 'logit'"),
    ],
)
def test_invalid_fields_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        SimpleTaylor(**fields)


@pytest.mark.parametrize(
    ("root", "error", "message"),
    [
        (torch.ones(3), ValueError, r"root of shape \[3\] fits neither the inputs \[2, 4\] nor one sample \[4\]"),
        (lambda x: None, TypeError, "root must return a tensor, got NoneType"),
        (lambda x: x / 0 * 0, ValueError, "root must hold finite numbers only"),
    ],
)
def test_root_of_another_shape_is_refused(root, error, message):
    with pytest.raises(error, match=message):
        scored(lambda z: z.sum(1), root=root)(torch.ones(2, 4))
