"""Facts of a network are kept while it stays as it is, and found once."""

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_xai.axes import facts as axes
from lightning_xai.axes import layout
from lightning_xai.network_facts import NetworkFacts
from lightning_xai.relevance import GradCAM
from lightning_xai.units import top_samples


class Turning(nn.Module):
    """A convolution of an image, or of the image turned by a quarter, as an attribute says."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.turned = nn.Conv2d(1, 3, 1), nn.Linear(3 * 16, 2), False

    def forward(self, x):
        return self.head(self.conv(x.transpose(2, 3) if self.turned else x).flatten(1))


def cam_by_hand(model, x, target):
    shown = []
    handle = model.conv.register_forward_hook(lambda _module, _inputs, output: shown.append(output))
    score = model(x)[:, target].sum()
    handle.remove()
    (slope,) = torch.autograd.grad(score, shown)
    found = (slope.mean((2, 3), keepdim=True) * shown[0]).sum(1, keepdim=True).relu()
    return (found.transpose(2, 3) if model.turned else found).detach()


def test_facts_are_forgotten_with_an_attribute_that_turns_the_map():
    torch.manual_seed(0)
    model, x = Turning().double().eval(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    cam = GradCAM("conv", upsample=None)
    for turned in (False, True, False, True):
        model.turned = turned
        torch.testing.assert_close(cam(model, x, 1), cam_by_hand(model, x, 1), rtol=1e-12, atol=1e-12)


def replaced(model):
    model[0] = nn.Conv2d(1, 1, 1)


def strided(model):
    model[0].stride = (2, 2)


def renamed(model):
    model[0].padding_mode = "reflect"


def hooked(model):
    model[1].register_forward_hook(lambda *_: None)


def hooked_before(model):
    model[1].register_forward_pre_hook(lambda *_: None)


def overridden(model):
    model[1].forward = torch.sigmoid


def extended(model):
    model.append(nn.ReLU())


def trained(model):
    model[1].train()


@pytest.mark.parametrize(
    "change",
    [replaced, strided, renamed, hooked, hooked_before, overridden, extended, trained],
    ids=lambda f: f.__name__,
)
def test_facts_are_forgotten_when_the_network_changes(change):
    facts, model = NetworkFacts(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()).eval()
    facts.of(model)["what"] = 1
    model[0].weight.data += 1  # no other operations
    assert facts.of(model) == {"what": 1}
    change(model)
    assert facts.of(model) == {}


def test_facts_go_with_their_network_and_are_bounded():
    facts, model = NetworkFacts(), nn.Sequential(nn.ReLU())
    for number in range(1000):
        facts.of(model)[number] = number
    assert len(facts.of(model)) <= 256
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Tokens(nn.Module):
    """Tokens of an image, whose axes only a trace can tell."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(1, 4, 2, stride=2), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(("make", "layer"), [(Tokens, "norm"), (lambda: nn.Sequential(Turning()), "0.conv")])
def test_axes_of_a_layer_are_found_once(make, layer, monkeypatch):
    found = []

    class Counted(axes._ChannelsFirst):
        def __init__(self, *args):
            found.append("followed")
            super().__init__(*args)

    trace = layout.trace_axes
    monkeypatch.setattr(axes, "_ChannelsFirst", Counted)
    monkeypatch.setattr(layout, "trace_axes", lambda *args: found.append("traced") or trace(*args))
    model, x = make().eval(), torch.randn(2, 1, 4, 4)
    first = GradCAM(layer)(model, x, 1)
    at_first = found.copy()
    assert at_first
    found.clear()
    torch.testing.assert_close(GradCAM(layer)(model, x, 1), first)
    GradCAM(layer)(model, x[:1], 0)
    top_samples(model, x, layer=layer, n=1, activation="identity")
    top_samples(model, x, layer=layer, n=1, activation="identity")
    assert "traced" not in found
    assert ("followed" in found) == ("traced" in at_first)  # what no pass has proved may be by the next


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_modules_have_facts():
    facts, model = NetworkFacts(), nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU())), nn.ReLU())
    facts.of(model)["what"] = 1
    assert facts.of(model) == {"what": 1}
    model[0] = torch.jit.script(nn.Sequential(nn.Sigmoid()))
    assert facts.of(model) == {}
