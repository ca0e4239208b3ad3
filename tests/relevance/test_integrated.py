"""Integrated gradients: polynomials whose integrals are known, numpy's quadrature, captum, memory."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from draws import close, draw, module
from torch import nn

from lightning_xai.relevance import IntegratedGradients
from lightning_xai.relevance.integrated import quadrature

METHODS = ["gausslegendre", "trapezoid"]
every_method = pytest.mark.parametrize("method", METHODS)


def smooth(cells=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(cells, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 100])
def test_the_nodes_are_those_of_gauss_and_legendre(steps):
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places, shares = quadrature(steps, "gausslegendre")
    close(places, torch.tensor((nodes + 1) / 2), 1e-13)
    close(shares, torch.tensor(weights / 2), 1e-13)


@pytest.mark.parametrize(("steps", "method"), [(1, "gausslegendre"), (2, "trapezoid"), (7, "trapezoid")])
def test_linear_scores_need_one_step(steps, method):
    weight, x, start = draw(2, 5), draw(3, 2, 5), draw(2, 5)
    model = module(lambda z: (z * weight).flatten(1).sum(1, keepdim=True) + 3)
    own = IntegratedGradients(steps=steps, method=method, baseline=start)
    found = own.explain(model, x, details=["completeness_gap"])
    close(found.map, weight * (x - start))
    close(found.details["completeness_gap"], torch.zeros(3, dtype=torch.float64))


def test_polynomials_of_degree_2n_are_exact_with_n_nodes():
    power = torch.arange(1, 9, dtype=torch.float64)  # s = sum_i x_i^i, of degree 8: 4 nodes
    model = module(lambda z: (z**power).sum(1, keepdim=True))
    x, start = draw(3, 8), draw(8)
    close(IntegratedGradients(steps=4, baseline=start)(model, x, 0), x**power - start**power)
    with pytest.raises(AssertionError):
        close(IntegratedGradients(steps=3, baseline=start)(model, x, 0), x**power - start**power)


def test_trapezoid_matches_a_loop():
    model, x, start = smooth(), draw(3, 2, 4), draw(3, 2, 4)
    expected = torch.zeros_like(x)
    for place, weight in zip(np.linspace(0, 1, 6), [0.1, 0.2, 0.2, 0.2, 0.2, 0.1], strict=True):
        leaf = (start + place * (x - start)).requires_grad_()
        expected += weight * torch.autograd.grad(model(leaf)[:, 2].sum(), leaf)[0]
    close(IntegratedGradients(steps=6, method="trapezoid", baseline=start)(model, x, 2), expected * (x - start))


@every_method
def test_completeness_gap_falls_with_the_steps(method):
    model, x, start = smooth(), 3 * draw(4, 2, 4), draw(2, 4)
    gaps = []
    for steps in (2, 4, 8, 16, 32):
        own = IntegratedGradients(steps=steps, method=method, baseline=start)
        found = own.explain(model, x, 1, details=["completeness_gap"])
        with torch.no_grad():
            rise = model(x)[:, 1] - model(start.unsqueeze(0))[:, 1]
        close(found.details["completeness_gap"], (rise - found.map.flatten(1).sum(1)).abs())
        gaps.append(found.details["completeness_gap"].sum().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < (1e-6 if method == "gausslegendre" else 1e-2)


@every_method
@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 4), (3, 2, 2, 2), (3, 1, 2, 2, 2)])
def test_integrated_gradients_match_captum(method, shape):
    model, x, y, start = smooth(), draw(*shape), torch.tensor([2, 0, 1]), draw(*shape)
    theirs = {"gausslegendre": "gausslegendre", "trapezoid": "riemann_trapezoid"}[method]
    peer = CaptumIntegratedGradients(model).attribute(x, start, target=y, n_steps=9, method=theirs)
    # Captum's trapezoid gives each of its 9 points the weight 1/9 instead of 1/8, though they enclose 8 intervals.
    peer = peer * (9 / 8 if method == "trapezoid" else 1)
    close(
        IntegratedGradients(steps=9, method=method, baseline=start)(model, x, y), peer.detach(), 1e-7
    )  # its weights are float32


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 7, 1000])
def test_map_ignores_chunk_size(chunk_size):
    model, x, y = smooth(), draw(5, 2, 4), torch.tensor([2, 0, 1, 1, 0])
    expected = IntegratedGradients(steps=11, score="margin")(model, x, y)
    close(IntegratedGradients(steps=11, score="margin", chunk_size=chunk_size)(model, x, y), expected, 1e-12)


class Counted(nn.Module):
    """Keeps how many inputs its passes with gradients were given at most, and in all."""

    def __init__(self, net):
        super().__init__()
        self.net, self.most, self.all = net, 0, 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.most, self.all = max(self.most, len(x)), self.all + len(x)
        return self.net(x)


@pytest.mark.parametrize("chunk_size", [None, 40])
def test_rows_per_pass_ignore_the_steps(chunk_size):
    model = Counted(nn.Sequential(nn.Linear(4, 2**16), nn.Tanh(), nn.Linear(2**16, 1)))  # 256 KiB per input
    for steps in (25, 100):
        model.most = model.all = 0
        IntegratedGradients(steps=steps, score="value", chunk_size=chunk_size)(model, torch.rand(3, 4), 0)
        assert model.all == 3 * steps
        assert model.most == 3 * ((chunk_size or 64) // 3)


def test_no_pass_is_over_the_limit():
    model = Counted(smooth())
    IntegratedGradients(steps=3, chunk_size=8)(model, draw(10, 2, 4), 0)
    assert (model.most, model.all) == (8, 30)


def test_baselines_as_numbers_tensors_and_functions():
    model, x = smooth(), draw(3, 2, 4)
    black = IntegratedGradients(steps=5)(model, x, 0)
    close(IntegratedGradients(steps=5, baseline=torch.zeros(2, 4))(model, x, 0), black)
    close(IntegratedGradients(steps=5, baseline=[0.0, 0.0, 0.0, 0.0])(model, x, 0), black)
    close(IntegratedGradients(steps=5, baseline=torch.zeros_like)(model, x, 0), black)
    mean = x.mean(-1, keepdim=True).expand_as(x)
    found = IntegratedGradients(steps=5, baseline=lambda z: z.mean(-1, keepdim=True).expand_as(z))(model, x, 0)
    close(found, IntegratedGradients(steps=5, baseline=mean)(model, x, 0))
    assert not torch.allclose(found, black)
    assert IntegratedGradients(baseline=0.0) == IntegratedGradients(baseline=0)
    held = torch.zeros(2, 4)
    assert IntegratedGradients(baseline=held) != IntegratedGradients(baseline=held)  # tensors compare by identity
    assert repr(IntegratedGradients(baseline=held)).count("Cells(shape=[2, 4])") == 1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"method": "riemann"}, ValueError, "method 'riemann' is unknown. .*Known: gausslegendre, trapezoid"),
        ({"steps": 0}, ValueError, "steps of 'gausslegendre' must be at least 1, got 0"),
        ({"steps": 1, "method": "trapezoid"}, ValueError, "steps of 'trapezoid' must be at least 2, got 1"),
        ({"steps": 2.5}, TypeError, "steps of IntegratedGradients must be an integer"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"baseline": float("inf")}, ValueError, "baseline must hold finite numbers only"),
    ],
)
def test_invalid_fields_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        IntegratedGradients(**fields)


def test_baseline_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"baseline of shape \[3\] fits neither the inputs \[2, 2, 4\] nor one sample"):
        IntegratedGradients(baseline=torch.zeros(3))(smooth(), draw(2, 2, 4), 0)
