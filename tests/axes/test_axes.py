"""Axis facts: the layout of tensors by layer types, by hand-written reshapes, and where nothing is known."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.axes import AxisFacts, axis_facts


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def facts_after(function, *shape):
    """The facts of what a function makes of an input."""
    return axis_facts(nn.Sequential(Apply(function)), torch.zeros(1, *shape))["0"]


def read(facts):
    return facts.batch, facts.positions, facts.unit


ORDER = torch.tensor([5, 0, 3, 1, 4, 2])
LAYOUTS = {
    "channels last": (lambda x: x.permute(0, 2, 3, 1), (0, (1, 2), 3), (2, 3), None, ()),
    "transposed": (lambda x: x.transpose(2, 3), (0, (2, 3), 1), (2, 3), (0, 2, 4, 1, 3, 5), ()),
    "tokens": (lambda x: x.flatten(2).mT, (0, (1,), 2), (2, 3), None, ()),
    "tokens in another order": (lambda x: x.flatten(2).mT[:, ORDER], (0, (1,), 2), (2, 3), (1, 3, 5, 2, 4, 0), ()),
    "class token": (
        lambda x: torch.cat([torch.zeros(len(x), 1, 5), x.flatten(2).mT], 1),
        (0, (1,), 2),
        (2, 3),
        (1, 2, 3, 4, 5, 6),
        (0,),
    ),
    "padded": (
        lambda x: functional.pad(x.flatten(2).mT, (0, 0, 0, 2)),
        (0, (1,), 2),
        (2, 3),
        (0, 1, 2, 3, 4, 5),
        (6, 7),
    ),
    "flipped": (lambda x: x.flip(3), (0, (2, 3), 1), (2, 3), (2, 1, 0, 5, 4, 3), ()),
    "half of the tokens": (lambda x: x.flatten(2).mT[:, 1:], (0, (1,), 2), None, None, ()),
    "columns": (lambda x: x.mean(2), (0, (2,), 1), (1, 3), None, ()),
    "sequence first": (lambda x: x.flatten(2).permute(2, 0, 1), (1, (0,), 2), None, None, ()),
    "in the batch": (lambda x: x.permute(0, 2, 3, 1).flatten(0, 2), (0, (0,), 1), None, None, ()),
    "heads": (lambda x: x.flatten(2).mT.unflatten(2, (1, 5)).expand(-1, -1, 3, -1), (0, (1,), None), None, None, ()),
    "table": (lambda x: x.flatten(1), (0, (), 1), None, None, ()),
}


@pytest.mark.parametrize(("function", "axes", "grid", "order", "dropped"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout_of_moved_numbers(function, axes, grid, order, dropped):
    facts = facts_after(function, 5, 2, 3)
    assert read(facts) == axes
    assert (facts.grid, facts.order, facts.dropped) == (grid, order, dropped)
    if grid == (2, 3):  # to_grid takes back what the function did
        x = torch.randn(4, 5, 2, 3)
        assert torch.equal(facts.to_grid(function(x)), x)


class Everything(nn.Module):
    """A network in which a layer's type tells the axis of its units: channels first, then last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)
        )
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Sigmoid())
        self.down = nn.Conv2d(6, 12, 2, 2)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.TransformerEncoderLayer(12, 2, 10, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 7), nn.GELU(), nn.Dropout(), nn.Linear(7, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.up(self.stem(x))
        x = self.down(x * self.gate(x) + functional.interpolate(x[..., ::2, ::2], scale_factor=2))
        x = self.norm(x.flatten(2).transpose(1, 2))
        x = self.attention(x)
        return self.head((x + self.mlp(x)).mean(1))


def test_units_lie_where_the_type_of_the_layer_says():
    model = Everything()
    found = axis_facts(model, torch.randn(1, 3, 35, 27))
    assert {"stem.0", "gate.1", "down", "mlp.3", "attention.linear2", "head"} <= found.keys()
    first = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    for name, facts in found.items():
        module = model.get_submodule(name)
        expected = 1 if isinstance(module, first) or name.startswith(("stem", "gate")) else len(facts.shape) - 1
        assert (facts.batch, facts.unit, facts.folded) == (0, expected, False), name
        if name.startswith(("stem", "up", "down")) or facts.shape[1:2] == (12,):
            assert facts.grid == facts.shape[2:]
        elif len(facts.shape) == 3:
            assert facts.grid == found["down"].grid
            assert facts.order is None
    assert found["gate.2"].positions == found["head"].positions == ()


def test_small_maps_keep_their_places_under_wide_kernels():
    """A flat mean over 3 x 3 cells is the same everywhere in a map of 2 x 2."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2))
    facts = axis_facts(model, torch.zeros(1, 3, 2, 2))["2"]
    assert (read(facts), facts.grid, facts.order) == ((0, (2,), 1), (2, 2), None)


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        (nn.Conv2d(3, 4, (4, 3), stride=(3, 2), padding=(1, 0), dilation=(1, 2)), (3, 3)),
        (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (10, 9)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (20, 18)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (5, 4)),
        (nn.AvgPool2d((3, 2)), (3, 4)),
        (nn.AdaptiveMaxPool2d((4, 9)), (4, 9)),
        (nn.Upsample(scale_factor=2), (20, 18)),
        (nn.ReplicationPad2d(2), None),
        (nn.PixelShuffle(1), (10, 9)),
    ],
)
def test_windows_of_any_form_make_a_grid(layer, grid):
    facts = axis_facts(nn.Sequential(layer, nn.Flatten(2)), torch.zeros(1, 3, 10, 9))
    assert (read(facts["0"]), facts["0"].grid) == ((0, (2, 3), 1), grid or (14, 13))
    if grid is not None and max(grid) <= 10 and not isinstance(layer, nn.AdaptiveMaxPool2d):  # no two of one place
        assert facts["1"].grid == grid
        assert facts["1"].order is None


def test_windows_and_heads_in_the_batch_are_told():
    def windows(x):
        return x.unflatten(2, (4, 3)).unflatten(4, (4, 3)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)

    facts = facts_after(windows, 5, 12, 12)
    assert (facts.shape, facts.folded, facts.has_rows) == ((32, 9, 5), True, False)
    assert str(facts) == "[32 rows and positions, 9 positions, 5 units]"
    facts = facts_after(lambda x: x.mT.unflatten(2, (2, 3)).transpose(1, 2).flatten(0, 1), 6, 4)
    assert (facts.shape, facts.folded, facts.has_rows) == ((4, 4, 3), True, False)


WEIGHT = torch.randn(6, 6)
MIXING = {
    "queries": lambda q: (q @ q.mT).softmax(-1) @ q,
    "attention": lambda q: functional.scaled_dot_product_attention(q, q, q),
    "channel attention": lambda q: ((q.mT @ q).softmax(-1) @ q.mT).mT,
    "product with weights": lambda q: q @ WEIGHT,
    "gated": lambda q: q * q.mean(1, keepdim=True).sigmoid(),
    "residual": lambda q: q.mean(1, keepdim=True).expand_as(q) + q,
    "centred": lambda q: q - q.mean(1, keepdim=True),
    "recurrent": lambda q: nn.LSTM(6, 6, batch_first=True)(q)[0],
}


@pytest.mark.parametrize("mix", MIXING.values(), ids=MIXING)
def test_tokens_stay_tokens_when_they_are_mixed(mix):
    facts = facts_after(lambda x: mix(x.flatten(2).mT), 6, 2, 4)
    assert (read(facts), facts.grid, facts.order) == ((0, (1,), 2), (2, 4), None)


def test_class_token_gets_the_row_but_no_place():
    def attend(x):
        tokens = torch.cat([torch.zeros(len(x), 1, 6), x.mT], 1)
        return tokens + functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert facts_after(attend, 6, 4).dropped == (0,)
    assert read(facts_after(lambda x: attend(x)[:, 0], 6, 4)) == (0, (), 1)


def test_learned_queries_hold_rows_only():
    facts = facts_after(
        lambda x: functional.scaled_dot_product_attention(WEIGHT[:4].expand(len(x), 4, 6), x.mT, x.mT), 6, 5
    )
    assert read(facts) == (0, (), None)


def test_what_is_not_followed_is_unknown():
    assert facts_after(lambda x: torch.fft.fft(x).real, 3, 4) is None
    assert facts_after(lambda x: torch.zeros(len(x), 3, 4), 3, 4) is None  # made of constants

    def behind_a_view(x):
        y = x * 1
        y.view(-1)[0] = 1.0
        return y

    assert facts_after(behind_a_view, 3, 4) is None


def test_writes_in_place_are_followed():
    def write(x):
        made = torch.zeros(len(x), 4, 5)
        made[:, 1:] = x.mT
        return made.relu_()

    facts = facts_after(write, 5, 3)
    assert (read(facts), facts.grid, facts.dropped) == ((0, (1,), 2), (3,), (0,))


def test_space_to_depth_makes_units():
    facts = facts_after(lambda x: functional.pixel_unshuffle(x, 2), 3, 8, 6)
    assert (read(facts), facts.grid) == ((0, (2, 3), 1), (4, 3))


def test_facts_leave_the_model_alone_and_print_as_a_table():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = axis_facts(model, torch.randn(3, 2, 5))
    assert str(table).splitlines() == [
        "0  [2 rows, 3 units, 5 positions], grid 5",
        "1  [2 rows, 3 units, 5 positions], grid 5",
    ]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_to_grid_refuses_what_has_no_grid():
    with pytest.raises(ValueError, match=r"no grid of positions is known of \[2 rows, 3 \?, 4 \?\]"):
        AxisFacts((2, 3, 4), 0).to_grid(torch.zeros(2, 3, 4))
