"""Passes that begin at a site: only what follows it runs, where that gives what whole passes give."""

import copy

import pytest
import torch
from torch import nn

from lightning_xai import Inputs, Site
from lightning_xai._guard import watch_writes
from lightning_xai.inputs.binding import bind
from lightning_xai.perturbation import importance, kinds, speed, synergy
from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients, SmoothGrad, composites
from lightning_xai.scores import Unit
from lightning_xai.sites import Place

ZERO = kinds.Constant(0.0)
ROWS = torch.tensor([2, 0, 0, 1, 2])


class Block(nn.Module):
    """A layer that counts the rows it is given."""

    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x, *others):
        rows.append(len(x))
        return self.linear(x).tanh()


rows: list[int] = []


class Skips(nn.Module):
    """Blocks over tokens, a mask per sample, a table for all, and a way around the last block."""

    def __init__(self):
        super().__init__()
        self.stem, self.beside = nn.Linear(3, 4), nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(4, 2)

    def forward(self, x, mask, table):
        hidden, around = self.stem(x) + table, self.beside(x)
        for block in self.blocks:
            hidden = block(hidden, table)
        hidden = hidden + around
        return self.out((hidden * mask.unsqueeze(2)).sum(1))


def inputs(at="blocks.2", **options):
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).double()
    return Inputs(torch.randn(3, 4, 3).double(), mask=mask, table=torch.randn(4, 4).double(), at=at, **options)


def begins(model, x):
    bound, values = bind(model, x)
    return bound.share < 1, bound, values


def check(model, x):
    """Passes of repeated and picked samples are those of whole passes."""
    _, bound, values = begins(model, x)
    found, expected = bound.at(ROWS), bound.at(ROWS).whole()
    y = torch.randn(5, *values.shape[1:]).to(values)
    with torch.no_grad():
        assert torch.equal(found(y), expected(y))
    return bound


REGIONS = {"regions": 1, "perturbation": ZERO, "score": "logit", "chunk_size": 5}


@pytest.mark.parametrize(
    "explain",
    [
        lambda *given: importance(*given, **REGIONS),
        lambda *given: importance(*given, **REGIONS | {"perturbation": kinds.Bidirectional(), "chunk_size": 1}),
        lambda *given: synergy(*given, **REGIONS),
        lambda *given: speed(*given, regions=1, perturbations=[kinds.Constant(c) for c in (0.1, 0.2, 0.3)]).slope,
        GradientXInput(),
        IntegratedGradients(steps=3, chunk_size=4),
        SmoothGrad(IntegratedGradients(steps=2), draws=3, chunk_size=4),
        LRP(composites.EpsilonPlus()),
        LRP(composites.AttnLRP()),
    ],
)
@pytest.mark.parametrize("at", ["blocks.2", "blocks.1.linear"])
def test_explanations_are_those_of_whole_passes(explain, at):
    model = Skips().double()
    shorter, bound, values = begins(model, inputs(at))
    assert shorter
    found, expected = explain(bound, values, 1), explain(bound.whole(), values, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layer", ["blocks.2", "out"])
def test_units_behind_the_site_are_read(layer):
    shorter, bound, values = begins(Skips().double(), inputs("blocks.1"))
    assert shorter
    how = REGIONS | {"score": Unit(layer, 1)}
    assert torch.equal(importance(bound, values, **how), importance(bound.whole(), values, **how))


def test_importance_at_a_site_is_what_the_rest_of_the_network_loses():
    model, x = Skips().double(), inputs()
    with torch.no_grad():
        hidden, around = model.stem(x.values[0]) + x.values["table"], model.beside(x.values[0])
        for block in model.blocks:
            hidden = block(hidden)
        mask = x.values["mask"].unsqueeze(2)

        def logit(at):
            return model.out(((at + around) * mask).sum(1))[:, 0]

        expected = torch.stack([logit(hidden) - logit(hidden.index_fill(1, torch.tensor(j), 0.0)) for j in range(4)], 1)
    torch.testing.assert_close(importance(model, x, 0, regions=1, perturbation=ZERO, score="logit"), expected)


def test_what_comes_before_runs_once_for_every_sample():
    model = Skips().double()
    x = inputs(Site("blocks.2", axis=-1))
    bind(model, x)  # from now on it is known where passes begin
    rows.clear()
    IntegratedGradients(steps=16, chunk_size=8)(model, x, 0)
    # One sample twice to see whether the site runs once, and all of them for what it gives.
    assert rows == [2, 2, 2, 3, 3, 3]


def test_the_share_is_that_of_the_multiplications():
    bound, _ = bind(Skips().double(), inputs())
    # Per sample: two of 3 x 4 and three of 4 x 4 over four tokens, and at the end one of 4 x 2.
    assert bound.share == pytest.approx(8 / (4 * (2 * 12 + 3 * 16) + 8))


def test_only_what_is_read_is_kept():
    bound, _ = bind(Skips().double(), inputs())
    assert sum(kept.value.numel() for _, kept in bound.binding.prefix._calls) == 3 * 4 * 4 * 2  # the stem, and around


def test_windows_in_the_rows_are_moved_with_their_sample():
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.block, self.out = Block(), Block(), nn.Linear(4, 2)

        def forward(self, x):
            windows = self.attention(x.unflatten(1, (2, 2)).flatten(0, 1))
            return self.out(self.block(windows.unflatten(0, (-1, 2)).flatten(1, 2)).mean(1))

    model = Windowed().double()
    bound = check(model, Inputs(torch.randn(3, 4, 4).double(), at="block"))
    assert model.attention in [module for module, _ in bound.binding.prefix._calls]


def test_a_call_of_a_shared_module_is_where_passes_begin():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.out = Block(), Block(), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.shared(self.shared(self.stem(x))) + self.stem(x))

    for call in (0, 1):
        assert check(Twice().double(), Inputs(torch.randn(3, 4).double(), at=Site("shared", 1, call=call))).share < 1


def test_parts_beside_the_site_are_kept():
    class Pair(nn.Module):
        def forward(self, x):
            return x.tanh(), {"half": x / 2, "none": None}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.pair, self.out = Block(), Pair(), nn.Linear(4, 2)

        def forward(self, x):
            found, beside = self.pair(self.stem(x))
            return self.out(found * beside["half"])

    assert check(Net().double(), Inputs(torch.randn(3, 4).double(), at=Site("pair", 1, part=0))).share < 1


class Around(nn.Module):
    """A block, something special, the site and what follows it."""

    def __init__(self, special):
        super().__init__()
        self.first, self.special, self.site, self.out = Block(), special, Block(), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.site(self.special(self.first(x))))


class Remembers(nn.Module):
    """Leaves something for a later module."""

    def forward(self, x):
        self.left = x
        return x.tanh()


class Recalls(Around):
    def forward(self, x):
        return super().forward(x) + self.out(self.special.left)


class WritesBack(Around):
    """Reads what a module has written into its input."""

    def forward(self, x):
        hidden = self.first(x)
        found = self.special(hidden)
        return self.out(self.site(found) + hidden)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Centres(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class RemembersOutput(Remembers):
    """Leaves what it returns, too."""

    def forward(self, x):
        self.left = x.tanh()
        return self.left


class Counted(Around):
    """Multiplies by a number that a module leaves."""

    def forward(self, x):
        return super().forward(x) * self.special.left


class LeavesNumber(nn.Module):
    def forward(self, x):
        self.left = 1.5 * float(self.training) + 0.5
        return x.tanh()


class Chooses(Around):
    """Takes one of two parameters, the same at first, by what a module has appended to a list."""

    def __init__(self, special):
        super().__init__(special)
        self.gates = nn.ParameterList([torch.ones(()), torch.ones(())])

    def forward(self, x):
        found = super().forward(x)
        return found * self.gates[len(self.special.left) % 2]


class Appends(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = []

    def forward(self, x):
        self.left.append(1)
        return x.tanh()


class ReadsBuffer(Around):
    def forward(self, x):
        return super().forward(x) * self.special.seen


class WritesBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(()))

    def forward(self, x):
        self.seen.fill_(2.0)
        return x.tanh()


class WritesFunction(nn.Module):
    """Writes to its input in some way."""

    def __init__(self, write):
        super().__init__()
        self.write = write

    def forward(self, x):
        self.write(x)
        return x.tanh()


WRITES = [
    lambda x: x.mul_(2),
    lambda x: x[:, :2].zero_(),
    lambda x: torch.mul(x, 2, out=x),
    lambda x: x.data.clamp_(min=0),
    lambda x: x.masked_fill_(torch.zeros(len(x), 1, dtype=torch.bool), 0.0),
    lambda x: setattr(x, "data", x.data * 2),
    lambda x: x.set_(x * 2),
]


@pytest.mark.parametrize(
    ("make", "special"),
    [
        (Recalls, Remembers()),
        (Recalls, RemembersOutput()),
        (Counted, LeavesNumber()),
        (Chooses, Appends()),
        (ReadsBuffer, WritesBuffer()),
        (WritesBack, nn.ReLU(inplace=True)),
        *((WritesBack, WritesFunction(write)) for write in WRITES),
    ],
)
def test_what_modules_leave_beside_what_they_return_takes_whole_passes(make, special):
    assert check(make(special).double(), Inputs(torch.randn(3, 4).double(), at="site")).share == 1


class Shortcut(nn.Module):
    """The sum of a way through a site and of one around it, whose input a module before the site has written to."""

    def __init__(self, special, gate):
        super().__init__()
        self.first, self.special, self.site, self.out = nn.Linear(4, 4), special, Block(), nn.Linear(4, 2)
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, x):
        hidden = self.first(x)
        return self.out(self.site(self.special(hidden)) + self.gate * hidden)


@pytest.mark.parametrize("gate", [0.0, float("nan")])
def test_a_gate_that_training_opens_does_not_show_a_write_too_late(gate):
    model = Shortcut(nn.Hardtanh(inplace=True), gate).double()
    x = torch.randn(3, 4).double() * torch.tensor([[0.1], [9.0], [0.1]])  # only the middle sample is changed
    bind(model, Inputs(x, at="site"))
    with torch.no_grad():
        model.gate.fill_(1.0)
        found = importance(model, Inputs(x, at="site"), 0, regions=1, perturbation=ZERO, score="probability")
        bound, values = bind(model, Inputs(x, at="site"))
        assert torch.equal(bound(values), bound.whole()(values))
        hidden = model.first(x).clamp(-1, 1)
        expected = torch.stack(
            [
                model.out(model.site(hidden) + hidden).softmax(1)[:, 0]
                - model.out(model.site(hidden).index_fill(1, torch.tensor(j), 0.0) + hidden).softmax(1)[:, 0]
                for j in range(4)
            ],
            1,
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_write_into_what_nobody_else_reads_is_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    assert check(model, Inputs(torch.randn(3, 4).double(), at="3")).share == pytest.approx(8 / 40)


def test_a_view_of_what_a_module_returns_is_told_apart_from_what_it_is_written_over():
    class Views(Around):
        def forward(self, x):
            hidden = self.first(x)
            same = self.special(hidden)  # an identity: one memory, two names
            found = self.site(same.tanh())
            if self.writes:
                same += found
            return self.out(hidden * found)

    for writes, shorter in ((False, True), (True, False)):
        model = Views(nn.Identity()).double()
        model.writes = writes
        assert (check(model, Inputs(torch.randn(3, 4).double(), at="site")).share < 1) == shorter


@pytest.mark.parametrize(("again", "shorter"), [(False, True), (True, False)])
def test_a_copy_that_is_a_view_in_the_shorter_pass_is_followed(again, shorter):
    class Transposes(nn.Module):
        def forward(self, x):
            return x.tanh().mT

    class Copies(Around):
        def forward(self, x):
            found = self.special(self.first(x))
            copied = found.contiguous()  # a copy of what lies transposed; what is kept may lie otherwise
            copied += 1
            return self.out(self.site(copied.mT) + 0 * (found if again else copied).mT)

    bound = check(Copies(Transposes()).double(), Inputs(torch.randn(3, 2, 4).double(), at=Site("site", axis=-1)))
    assert (bound.share < 1) == shorter


@pytest.mark.parametrize("write", [lambda x: x.clamp_(max=1), lambda x: x.data.clamp_(max=1)])
def test_a_write_that_only_some_samples_need_is_seen_in_their_batch(write):
    model = Shortcut(WritesFunction(lambda x: write(x) if bool((x > 1).any()) else None), 1.0).double()
    x = torch.rand(3, 4).double() / 8
    nn.init.eye_(model.first.weight)
    nn.init.zeros_(model.first.bias)
    assert check(model, Inputs(x, at="site")).share < 1
    assert check(model, Inputs(x * torch.tensor([[1.0], [99.0], [1.0]]), at="site")).share == 1
    assert check(model, Inputs(x, at="site")).share < 1


def test_nothing_to_compare_proves_nothing_and_is_asked_again():
    class Overflows(Around):
        factor = float("nan")

        def forward(self, x):
            return super().forward(x) * self.factor

    model, x = Overflows(nn.Tanh()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    assert not begins(model, x)[0]
    model.factor = 1.0
    assert begins(model, x)[0]


@pytest.mark.parametrize("special", [Noise(), Centres()])
def test_what_is_no_function_of_its_sample_runs_every_time(special):
    _, bound, _ = begins(Around(special).double(), Inputs(torch.randn(3, 4).double(), at="out"))
    kept = [] if bound.binding.prefix is None else [module for module, _ in bound.binding.prefix._calls]
    assert special not in kept


def test_a_look_at_a_module_takes_whole_passes():
    model, x = Around(nn.Tanh()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    shorter, bound, values = begins(model, x)
    assert shorter
    seen = []
    handle = model.first.linear.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        bound(values)
        handle.remove()
        bound(values)
    assert len(seen) == 1


def test_the_share_is_that_of_the_passes_that_were_made():
    model, x = Around(nn.Tanh()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    share = bind(model, x)[0].share
    bound, values = bind(model, x)
    handle = model.first.register_forward_hook(lambda *_: None)
    assert bound.share == 1
    with torch.no_grad():
        bound(values)
        handle.remove()
        assert bound.share == 1
        bound(values)
    assert bound.share == pytest.approx((1 + share) / 2)
    bound, values = bind(model, x)
    with torch.no_grad(), torch.autocast("cpu"):
        bound(values)
    assert bound.share == 1
    assert bind(model, x)[0].reading(Place("first")).share == 1


def test_a_hook_at_the_first_batch_is_no_verdict_on_the_next():
    model, x = Around(nn.Tanh()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    handle = model.first.register_forward_hook(lambda *_: None)
    assert not begins(model, x)[0]
    handle.remove()
    assert begins(model, x)[0]


def test_a_score_of_a_layer_before_the_site_is_refused():
    model, x = Around(nn.Tanh()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    for layer in ("first", "special"):
        with pytest.raises(ValueError, match=f"reads layer '{layer}', which runs before 'site'"):
            GradientXInput(score=Unit(layer, 0))(model, x)


def test_a_site_in_a_loop_over_samples_is_refused():
    class Loop(nn.Module):
        def __init__(self, calls):
            super().__init__()
            self.inner, self.calls = nn.Linear(4, 4), calls

        def forward(self, images):
            for _ in range(self.calls):
                images = [self.inner(image) for image in images]
            return torch.stack(images)

    images = [torch.randn(4).double() for _ in range(3)]
    with pytest.raises(ValueError, match="'inner' runs once for one sample and 2 times for two"):
        bind(Loop(1).double(), Inputs(images, at="inner"))
    with pytest.raises(ValueError, match="'inner' runs 2 times for one sample and 4 times for two"):
        bind(Loop(2).double(), Inputs(images, at="inner"))


def test_parameters_that_are_exchanged_take_whole_passes():
    model = Skips().double()
    _, bound, values = begins(model, inputs())
    other = copy.deepcopy(bound.network)
    with torch.no_grad():
        expected = bound.whole()(values)
        assert torch.equal(bound(values), expected)
        model.beside.weight.data = 2 * other.beside.weight.data
        assert torch.equal(bound(values), bound.whole()(values))
        assert not torch.equal(bound(values), expected)


@pytest.mark.parametrize("order", [("first", "special", "special"), ("first",), ("special", "first"), ()])
@pytest.mark.parametrize("site", [Block(), nn.Linear(4, 4)])
def test_a_pass_that_runs_otherwise_is_made_as_a_whole(order, site):
    class Fickle(Around):
        order = ("first", "special")

        def forward(self, x):
            for name in self.order:
                x = getattr(self, name)(x)
            return self.out(self.site(x) * x)

    model, x = Fickle(nn.Tanh()), Inputs(torch.randn(3, 4).double(), at="site")
    model.site = site
    shorter, bound, values = begins(model.double(), x)
    assert shorter
    model.order = order
    with torch.no_grad():
        assert torch.equal(bound(values), bound.whole()(values))
    assert bound.share == 1


def test_a_buffer_that_is_read_behind_the_site_takes_whole_passes():
    class Runs(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, x):
            self.runs += 1
            return x.tanh()

    class Reads(Around):
        def forward(self, x):
            return super().forward(x) * self.special.runs

    x = Inputs(torch.randn(3, 4).double(), at="site")
    assert begins(Around(Runs()).double(), x)[0]
    assert not begins(Reads(Runs()).double(), x)[0]


def test_what_is_kept_is_not_written_to():
    class Adds(Around):
        def forward(self, x):
            hidden = self.first(x)
            found = self.site(hidden.tanh())
            hidden += found
            return self.out(hidden)

    shorter, bound, values = begins(Adds(None).double(), Inputs(torch.randn(3, 4).double(), at="site"))
    assert shorter
    with torch.no_grad():
        assert torch.equal(bound(values), bound(values))


def test_what_modules_before_the_site_change_is_put_back():
    class Counts(nn.Module):
        count = 0

        def forward(self, x):
            self.count = self.count + 1
            return x.tanh()

    model, x = Around(Counts()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    shorter, bound, values = begins(model, x)
    assert shorter
    watch_writes(bound, values)
    before = model.special.count
    bind(model, x)
    assert model.special.count == before


def test_nothing_is_left_on_modules():
    model, x = Around(nn.Tanh()).double(), Inputs(torch.randn(3, 4).double(), at="site")
    _, bound, values = begins(model, x)
    with torch.no_grad():
        bound(values)
        with pytest.raises(ValueError, match="returns"):
            bound(values[:, :2])
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_relevance_between_a_convolution_and_its_batch_norm_is_refused_still():
    layers = [nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(12, 2)).double().eval()
    x = Inputs(torch.randn(3, 2, 8).double(), at="2")
    assert begins(model, x)[0]
    with pytest.raises(ValueError, match="at='3'"):
        LRP(composites.EpsilonPlus())(model, x, 0)
