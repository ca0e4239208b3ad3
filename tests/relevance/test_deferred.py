"""Convolutions run as one with the batch norm that follows, and seen as if they had been run alone."""

import pytest
import torch
from networks import settled
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_xai._guard import called_in
from lightning_xai.relevance import LRP, composites, rules
from lightning_xai.relevance.maps import Convolution, where_negative

COMPOSITES = {
    "zplus": composites.EpsilonPlus(epsilon=0.1),
    "gamma": composites.Composite([("convolution", rules.Gamma(0.5, 0.1)), ("batch_norm", rules.Zero())]),
}
every_composite = pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)


class Pair(nn.Module):
    """A convolution and a batch norm, between which something happens."""

    def __init__(self, between=lambda model, y: None, after=lambda model, y, z: z, **options):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        axes = options.pop("axes", 2)
        layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        self.conv = layers[0](4, 6, **{"kernel_size": 3, **options})
        self.norm = layers[1](6)
        settled(self)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.between, self.after, self.seen = between, after, None
        self.double()

    def forward(self, x):
        y = self.conv(x * 1.0)
        self.between(self, y)
        return self.after(self, y, self.norm(y)).flatten(1)


def inputs(axes=2, samples=3):
    return torch.randn(samples, 4, *[7, 6, 5][:axes], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def run_at_once(monkeypatch):
    """What would be found if no convolution waited."""

    def found(composite, model, x, target=0):
        with monkeypatch.context() as patch:
            patch.setattr(Convolution, "blank", lambda *_: None)
            return LRP(composite)(model, x, target)

    return found


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


@every_composite
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}, {"groups": 2}, {"padding": "same"}],
    ids=str,
)
def test_it_changes_nothing_but_the_rounding(run_at_once, composite, options, axes):
    model, x = Pair(axes=axes, **options), inputs(axes)
    close(LRP(composite)(model, x, 0), run_at_once(composite, model, x))


class Convolved(TorchDispatchMode):
    """Counts convolutions."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def asked(model, y):
    assert (y.shape, y.dim(), y.size(0), y.ndim) == ((3, 6, 5, 4), 4, 3, 4)
    assert (y.dtype, y.device.type, y.requires_grad) == (torch.float64, "cpu", True)


@pytest.mark.parametrize("between", [lambda *_: None, asked, lambda _, y: y.mean()], ids=["untouched", "asked", "read"])
def test_there_is_one_convolution(between):
    """LRP-0 needs none of its own; with z+ there is one more."""
    for rule, count in ((rules.Zero(), 1), (rules.ZPlus(), 2)):
        composite = composites.Composite([("convolution", rule)])
        with Convolved() as seen:
            LRP(composite)(Pair(between), inputs(), 0)
        assert seen.count == count


READS = {
    "sum": lambda model, y: setattr(model, "seen", y.sum(1).detach()),
    "view": lambda model, y: setattr(model, "seen", y[:, 0].detach()),
    "detached": lambda model, y: setattr(model, "seen", y.detach()),
    "data": lambda model, y: setattr(model, "seen", y.data),
    "numpy": lambda model, y: setattr(model, "seen", torch.from_numpy(y.detach().numpy().copy())),
    "list": lambda model, y: setattr(model, "seen", torch.tensor(y.tolist(), dtype=torch.float64)),
    "kept": lambda model, y: setattr(model, "seen", y),
    "layout": lambda model, y: setattr(model, "seen", torch.tensor([y.is_contiguous(), *y.stride()], dtype=y.dtype)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_whoever_reads_the_output_finds_its_values(run_at_once, read):
    model, x = Pair(read), inputs()
    found, seen = LRP(COMPOSITES["zplus"])(model, x, 0), model.seen
    model(x)
    close(seen.detach(), model.seen.detach())
    close(found, run_at_once(COMPOSITES["zplus"], model, x))


def test_hooks_find_the_values():
    model, x, seen = Pair(), inputs(), []
    handle = model.conv.register_forward_hook(lambda _module, _inputs, y: seen.append(y))
    LRP(COMPOSITES["zplus"])(model, x, 0)
    handle.remove()
    close(seen[0].detach(), model.conv(x).detach())


@every_composite
def test_the_output_may_be_read_again_after_the_batch_norm(run_at_once, composite):
    model, x = Pair(after=lambda _, y, z: torch.cat([z, y], 1)), inputs()
    for target in (0, 150):  # of the batch norm, and of the convolution itself
        close(LRP(composite)(model, x, target), run_at_once(composite, model, x, target))


@every_composite
def test_a_batch_norm_without_statistics_stands_alone(run_at_once, composite):
    model, x = Pair(), inputs()
    model.norm.running_mean = model.norm.running_var = None
    rules_ = composites.Composite([*composite.entries(), ("norm", rules.FixedScale())])
    close(LRP(rules_)(model, x, 0), run_at_once(rules_, model, x))


def test_the_model_may_return_the_convolution_itself():
    """Of one position the rule is that of a linear layer."""
    conv = nn.Conv2d(4, 6, (7, 6)).double()
    linear = nn.Linear(168, 6).double()
    linear.weight.data, linear.bias.data = conv.weight.data.flatten(1), conv.bias.data
    x = inputs()
    composite = composites.Composite([("*", rules.ZPlus())])
    whole = LRP(composite, score=lambda output, target: output.flatten(1).gather(1, target.view(-1, 1))[:, 0])
    close(whole(nn.Sequential(conv), x, 1), whole(nn.Sequential(nn.Flatten(), linear), x, 1))


def test_reading_it_unseen_is_an_error():
    def unseen(_model, y, _z):
        with torch._C.DisableTorchFunction():
            return y * 2.0

    with pytest.raises(RuntimeError, match="output of conv2d in 'conv' was read in a way that was not seen"):
        LRP(COMPOSITES["zplus"])(Pair(after=unseen), inputs(), 0)


def test_what_does_not_fit_is_refused_by_torch():
    with pytest.raises(RuntimeError, match=r"expected input.* to have 4 channels, but got 3"):
        LRP(COMPOSITES["zplus"])(Pair(), inputs()[:, :3], 0)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        LRP(COMPOSITES["zplus"])(Pair(), inputs()[:, :, :2], 0)
    with pytest.raises(RuntimeError, match=r"should be the same|expected scalar type|dtype"):
        LRP(COMPOSITES["zplus"])(Pair(), inputs().float(), 0)


def test_in_autocast_it_is_run_at_once(run_at_once):
    model, x = Pair().float(), inputs().float()
    with called_in(lambda: torch.autocast("cpu", torch.bfloat16)):
        assert torch.equal(LRP(COMPOSITES["zplus"])(model, x, 0), run_at_once(COMPOSITES["zplus"], model, x))


def test_a_batch_norm_in_the_order_of_torch_itself():
    class Direct(Pair):
        def forward(self, x):
            norm = self.norm
            facts = (norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, norm.eps, False)
            return torch.batch_norm(self.conv(x), *facts).flatten(1)

    x = inputs()
    for composite in COMPOSITES.values():
        close(LRP(composite)(Direct(), x, 0), LRP(composite)(Pair(), x, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signs_are_chosen_as_by_where(dtype):
    values = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, float("inf"), -float("inf")], dtype=dtype)
    x = values.repeat(9, 3).view(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    both = torch.randn(2, 6, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    below, above = both.chunk(2, 1)
    below[0, 0, 0, 0], above[1, 1, 1, 1] = float("nan"), float("inf")
    for one, other in ((below, above), (above, below), (above, above.new_zeros(())), (above.new_ones(()), above)):
        expected = torch.where(x < 0, one, other)
        torch.testing.assert_close(where_negative(x, one, other), expected, rtol=0, atol=0, equal_nan=True)
