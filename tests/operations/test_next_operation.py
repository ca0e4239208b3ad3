"""What takes the output of a layer next, and where its pre-activation is read."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.operations.next_operation import CallSite, next_operations
from lightning_xai.sites import Place
from lightning_xai.units.layers import hook_preactivations, preactivation_sites


def module(function, **children):
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    model.forward = function
    return model.eval()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        y += x
        assert y.dim() == x.ndim
        return self.act(y)


def conv():
    return nn.Conv2d(2, 2, 3, padding=1)


def apart():
    first, second = conv(), conv()
    return module(lambda x: first(x).relu() + second(x).sigmoid(), first=first, second=second)


FOLLOWED = {
    "module": (lambda: nn.Sequential(conv(), nn.ReLU()), "0", "found", "relu"),
    "in place": (lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), conv()), "0", "found", "relu"),
    "batch norm and dropout": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(2), nn.Dropout(), nn.Identity(), nn.GELU()),
        "0",
        "found",
        "gelu",
    ),
    "reshape": (lambda: nn.Sequential(conv(), nn.Flatten(), nn.Tanh()), "0", "found", "tanh"),
    "two layers": (apart, "second", "found", "sigmoid"),
    "convolution": (lambda: nn.Sequential(conv(), conv()), "0", "none", "conv2d"),
    "linear": (lambda: nn.Sequential(conv(), nn.Flatten(), nn.Linear(32, 2)), "0", "none", "linear"),
    "the end": (lambda: nn.Sequential(conv()), "0", "none", ""),
    "sum": (lambda: (net := Twice()) and module(lambda x: net.conv(x) + x, net=net), "net.conv", "sum", "add"),
    "pooling": (lambda: nn.Sequential(conv(), nn.MaxPool2d(2), nn.ReLU()), "0", "unknown", "max_pool2d"),
    "two readers": (
        lambda: (c := conv()) and module(lambda x: (y := c(x)).relu() + y.tanh(), c=c),
        "c",
        "unknown",
        "",
    ),
    "concatenation": (
        lambda: (c := conv()) and module(lambda x: torch.cat([c(x), x], 1).relu(), c=c),
        "c",
        "unknown",
        "cat",
    ),
}


@pytest.mark.parametrize(("build", "layer", "outcome", "name"), FOLLOWED.values(), ids=FOLLOWED)
def test_what_takes_a_layer(build, layer, outcome, name):
    model, x = build().eval(), torch.randn(2, 2, 4, 4)
    found = next_operations(model, [Place(layer)], x)[Place(layer)]
    assert (found.outcome, found.name) == (outcome, name)
    assert (found.function is not None) is (outcome == "found")
    assert repr(layer) in found.reason
    assert found.shape == tuple(model.get_submodule(layer)(x).shape)


def preactivations(model, layer, x, activation=None):
    """The site, and B in one pass, kept before anything is written into it."""
    seen = []
    with torch.no_grad():
        (site,) = preactivation_sites(model, x, [layer], activation)
        with hook_preactivations(model, [site], lambda _, values: seen.append(values.clone())):
            model(x.clone())
    (found,) = seen
    return site, found


def test_the_pre_activation_is_what_the_function_receives():
    model = nn.Sequential(Twice(), conv(), nn.BatchNorm2d(2), nn.SiLU(inplace=True), nn.ReLU()).eval()
    model[2].running_mean += 0.5
    x = torch.randn(2, 2, 4, 4)
    site, found = preactivations(model, "1", x)
    expected = model[2](model[1](model[0](x)))
    assert torch.equal(found, expected)
    assert site.module == Place("2")
    kept = found.clone()
    assert torch.equal(site.activation(found), functional.silu(expected))
    assert torch.equal(found, kept)


def shared_norm():
    """A batch norm that runs twice, so that no module alone tells which of its outputs is meant."""
    first, second, norm = conv(), conv(), nn.BatchNorm2d(2)
    norm.running_var += 1.5
    return module(lambda x: norm(second(norm(first(x)).relu())).tanh(), first=first, second=second, norm=norm)


def functional_norm():
    first, mean, variance = conv(), torch.ones(2), 4 * torch.ones(2)
    return module(lambda x: functional.batch_norm(first(x), mean, variance).sigmoid(), first=first)


def flat_norm():
    first, norm = conv(), nn.BatchNorm1d(32)
    norm.running_mean += torch.arange(32.0)
    return module(lambda x: norm(first(x).flatten(1)).relu(), first=first, norm=norm)


def test_a_norm_that_runs_twice_a_functional_one_and_one_of_another_shape():
    x = torch.randn(3, 2, 4, 4)
    net = shared_norm()
    hidden = net.norm(net.first(x)).relu()
    site, found = preactivations(net, "second", x)
    assert torch.equal(found, net.norm(net.second(hidden)))
    assert (site.module, site.call) == (None, CallSite("norm", "batch_norm", 1))
    net = functional_norm()
    site, found = preactivations(net, "first", x)
    torch.testing.assert_close(found, (net.first(x) - 1) / 2, rtol=1e-5, atol=1e-5)
    assert site.call == CallSite("", "batch_norm", 0)
    net = flat_norm()
    site, found = preactivations(net, "first", x)
    assert torch.equal(found, net.norm(net.first(x).flatten(1)).view(3, 2, 4, 4))


def test_which_of_several_calls_it_is():
    net, x = Twice().eval(), torch.randn(2, 2, 4, 4)
    site, found = preactivations(net, "conv", x)
    assert torch.equal(found, net.norm(net.conv(x)))
    assert torch.equal(site.activation(found), found.relu())


@pytest.mark.parametrize("tail", [[], [nn.Flatten()], [nn.MaxPool2d(2), nn.Flatten()]], ids=["end", "flat", "pool"])
def test_a_layer_whose_activation_is_given_is_read_wherever_it_goes(tail):
    model, x = nn.Sequential(conv(), *tail).eval(), torch.randn(2, 2, 4, 4)
    site, found = preactivations(model, "0", x, "identity")
    assert torch.equal(found, model[0](x))
    assert site.module == Place("0")


def test_a_compiled_layer_is_seen():
    model, x = nn.Sequential(conv(), nn.ReLU()).eval(), torch.randn(2, 2, 4, 4)
    expected = model[0](x)
    part = torch.compile(model, backend="eager")
    for compiled, name in ((part, "0"), (nn.Sequential(part), "0._orig_mod.0")):
        compiled(x)
        assert torch.equal(preactivations(compiled, name, x)[1], expected)


def test_layers_that_are_not_there_do_not_run_or_run_twice():
    model, x = nn.Sequential(conv(), nn.ReLU()), torch.randn(1, 2, 3, 3)
    model.add_module("idle", conv())
    model.forward = lambda x: model[1](model[0](model[0](x)))
    with pytest.raises(ValueError, match=r"layer 'idel' is unknown. Did you mean 'idle'"):
        next_operations(model, [Place("idel")], x)
    with pytest.raises(ValueError, match="'idle' is not reached"):
        next_operations(model, [Place("idle")], x)
    with pytest.raises(ValueError, match="'0' runs 2 times"):
        next_operations(model, [Place("0")], x)
