"""Batch norms folded into the convolution before them: when they are, and when they are not."""

import pytest
import torch
from networks import module, settled
from torch import nn
from torch.nn import functional

from lightning_xai import Inputs
from lightning_xai.relevance import LRP, GradientXInput, GuidedBackprop, composites, rules

pytestmark = pytest.mark.usefixtures("slices")


def normed():
    return settled(nn.Sequential(nn.BatchNorm2d(3)))[0].double()


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("change", [lambda y: y.relu_(), lambda y: y.mul_(2.0), lambda y: y[:, :1].mul_(2.0)])
@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.Zero()])
def test_a_batch_norm_behind_a_changed_output_stands_alone(change, rule):
    conv, head = nn.Conv2d(2, 3, 1).double(), nn.Linear(3, 2).double()
    norm = normed()

    def changed(x, copied):
        y = conv(x)
        y = y.clone() if copied else y
        change(y)
        return head(norm(y).mean((2, 3)))

    x = draw(2, 2, 3, 3)
    composite = composites.RuleList([("convolution", rule), ("*", rules.Zero())])
    maps = [
        LRP(composite)(module(lambda x, c=copied: changed(x, c), conv=conv, norm=norm, head=head), x, 1)
        for copied in (True, False)
    ]
    close(*maps)


def test_a_batch_norm_in_the_order_of_torch_itself():
    """``torch.batch_norm`` takes the weights first, ``functional.batch_norm`` the statistics."""
    conv, norm = nn.Conv2d(2, 3, 3).double(), normed()
    facts = (norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, norm.eps, False)
    x = draw(2, 2, 5, 4)
    found, expected = (
        LRP(composites.EpsilonPlus())(module(lambda v, f=f: f(conv(v)).relu().flatten(1), conv=conv, norm=norm), x, 0)
        for f in (lambda y: torch.batch_norm(y, *facts), norm)
    )
    close(found, expected, 0.0)


@pytest.mark.parametrize("with_ledger", [False, True])
def test_two_batch_norms_may_take_one_output(with_ledger):
    convs = [nn.Conv2d(2, 3, 3).double() for _ in range(2)]
    convs[1].load_state_dict(convs[0].state_dict())
    norms = [normed() for _ in range(2)]
    with torch.no_grad():
        norms[1].bias.sub_(0.5)

    def one(x):
        y = convs[0](x)
        return (norms[0](y) + functional.gelu(norms[1](y))).flatten(1)

    def two(x):
        return (norms[0](convs[0](x)) + functional.gelu(norms[1](convs[1](x)))).flatten(1)

    x = draw(2, 2, 5, 4)
    parts = {"first": convs[0], "second": convs[1], "norm": norms[0], "other": norms[1]}
    lrp = LRP(composites.EpsilonPlus())
    maps = [
        lrp.with_ledger(module(f, **parts), x, 0)[0] if with_ledger else lrp(module(f, **parts), x, 0)
        for f in (one, two)
    ]
    close(*maps, 1e-12)


@pytest.mark.parametrize(("site", "norm"), [("0", "1"), ("4", "5")])
def test_a_site_before_a_folded_batch_norm_is_refused_by_its_name(site, norm):
    """A leaf there would keep the batch norm from being folded, and change the map of everything before it."""
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4)]
    model, x = settled(nn.Sequential(*layers, nn.Linear(4, 2))), draw(2, 2, 3, 3)
    with pytest.raises(ValueError, match=rf"batch_norm in '{norm}' is a part of .* in '{site}' .* at='{norm}'\."):
        LRP(composites.EpsilonPlus())(model, Inputs(x, at=site), 0)
    for method in (GuidedBackprop(), GradientXInput()):  # the derivative has nothing to fold
        assert method(model, Inputs(x, at=site), 0).abs().max() > 0
    found, ledger = LRP(composites.EpsilonPlus()).with_ledger(model, Inputs(x, at=norm), 0)
    whole = LRP(composites.EpsilonPlus()).with_ledger(model, x, 0)[1]
    close(found.sum(), whole.layers[norm])
    assert abs(ledger.balance) < 1e-12


def test_an_input_written_over_before_the_batch_norm_comes():
    """As without the batch norm, it is refused with the remedy."""
    conv, norm = nn.Conv2d(2, 3, 3).double(), normed()

    def written(x):
        x = x * 1.0
        y = conv(x)
        x.mul_(2.0)
        return norm(y).flatten(1)

    with pytest.raises(ValueError, match=r"changes a tensor in place .* y\.clone\(\)"):
        LRP(composites.EpsilonPlus())(module(written, conv=conv, norm=norm), torch.ones(1, 2, 4, 4).double(), 0)
