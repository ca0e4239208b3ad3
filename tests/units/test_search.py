"""Search: the strongest samples of each unit, and the cells of the input that a position reads."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.units import UnitGroups, receptive_field, top_samples, unit_activations
from lightning_xai.units.field import WHOLE, Axis, ReceptiveField
from lightning_xai.units.search import SearchResult, candidates, merged, peaks


def expected(maps, ids, n):
    """The n strongest by sorting Python tuples: falling value, then rising id; the first position of equals."""
    rows = []
    for unit in range(maps.shape[1]):
        found = []
        for sample, name in zip(maps[:, unit], ids, strict=True):
            flat = sample.flatten().tolist()
            place = flat.index(max(flat))
            position = [int(i) for i in torch.unravel_index(torch.tensor(place), sample.shape)] if sample.ndim else []
            found.append((-max(flat), name, position))
        rows.append(sorted(found)[:n])
    return rows


def as_rows(found):
    return [
        [(-v, i, p) for v, i, p in zip(values, ids, places, strict=True)]
        for values, ids, places in zip(
            found.value.tolist(), found.sample_id.tolist(), found.position.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 5), (9, 3, 4, 5), (9, 2, 3, 2, 4)], ids=len)
@pytest.mark.parametrize("n", [1, 4, 9])
def test_the_strongest_are_those_of_a_sort(shape, n):
    x = torch.randint(-3, 3, shape).double()  # with many ties
    ids = torch.randperm(30)[: shape[0]].tolist()
    found = top_samples(nn.Sequential(nn.Identity()), x, layer="0", n=n, sample_ids=ids)
    assert as_rows(found) == expected(x, ids, n)


def test_the_top_of_shards_merged_is_the_top_of_all():
    maps = torch.randint(-3, 3, (20, 5, 3)).double()
    ids = torch.randperm(50)[:20]
    whole = merged(candidates(peaks(maps), ids), 6)
    for cuts in ([3, 10], [1, 2, 19], [20]):
        shards = torch.tensor_split(torch.randperm(20), cuts)
        parts = [merged(candidates(peaks(maps[rows]), ids[rows]), 6) for rows in shards if len(rows)]
        again = merged(torch.cat(parts, 1), 6)
        assert torch.equal(again.nan_to_num(nan=-7.0), whole.nan_to_num(nan=-7.0))
        step = parts[0]
        for part in parts[1:]:
            step = merged(torch.cat([part, step], 1), 6)
        assert torch.equal(step.nan_to_num(nan=-7.0), whole.nan_to_num(nan=-7.0))


def test_a_sample_seen_twice_counts_once():
    maps = torch.tensor([[5.0], [4.0], [3.0]]).double()
    twice = torch.cat([candidates(peaks(maps), [0, 1, 2])] * 2, 1)
    found = SearchResult.unpacked(merged(twice, 4))
    assert found.sample_id.tolist() == [[0, 1, 2, -1]]
    assert found.value[0, :3].tolist() == [5.0, 4.0, 3.0]
    assert found.value[0, 3].isnan()


def test_what_is_not_a_number_is_no_candidate():
    maps = torch.tensor([[float("nan")], [-4.0], [float("inf")]]).double()
    found = SearchResult.unpacked(merged(candidates(peaks(maps), [0, 1, 2]), 2))
    assert found.sample_id.tolist() == [[1, -1]]


@pytest.mark.parametrize("size", [1, 4])
def test_chunks_do_not_matter(cnn, size):
    x = torch.randn(9, 2, 6, 7).double()
    whole, parts = top_samples(cnn, x, layer="0", n=4), top_samples(cnn, x, layer="0", n=4, chunk_size=size)
    assert torch.equal(whole.sample_id, parts.sample_id)
    assert torch.equal(whole.position, parts.position)
    assert torch.equal(unit_activations(cnn, x, layer="0", chunk_size=size).amax((0, 2, 3)), whole.value[:, 0])


def test_float32_values_and_large_ids_are_kept_exactly():
    x = torch.randn(4, 3)
    ids = [2**53 - 1, 0, 2**40 + 1, 7]
    found = top_samples(nn.Sequential(nn.Identity()), x, layer="0", n=4, sample_ids=ids)
    assert set(found.sample_id[0].tolist()) == set(ids)
    assert torch.equal(found.value.float().sort().values, x.T.sort().values)
    assert torch.equal(pickle.loads(pickle.dumps(found)).sample_id, found.sample_id)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "17"}, "layer '17' is unknown"),
        ({"n": 6}, "number of samples, 5, got 6"),
        ({"n": 0}, "n must be"),
        ({"sample_ids": [0, 1, 2, 3, 3]}, r"\[3\] are there more than once"),
        ({"sample_ids": [0, 1, 2, 3, -1]}, "integers from 0"),
        ({"sample_ids": [0]}, "one per sample"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"unit": UnitGroups.of([[0]], units=3)}, "groups are of 3 units"),
    ],
)
def test_bad_input(cnn, change, message):
    given = {"layer": "0", "n": 2, **change}
    with pytest.raises(ValueError, match=message):
        top_samples(cnn, torch.randn(5, 2, 6, 7).double(), **given)


def test_activations_that_are_not_finite(cnn):
    cnn[0].bias.data[2] = float("nan")
    with pytest.raises(ValueError, match=r"in the samples \[0, 1\]"):
        top_samples(cnn, torch.randn(2, 2, 6, 7).double(), layer="0", n=1)
    with pytest.raises(ValueError, match=r"in the samples \[4, 5\]"):
        unit_activations(cnn, torch.randn(2, 2, 6, 7).double(), layer="0", sample_ids=[4, 5])


class Block(nn.Module):
    """Two ways of different depth, joined as a sum or as channels, with asymmetric padding and in-place operations."""

    def __init__(self, channels, how):
        super().__init__()
        self.deep = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 4, (5, 3), 2, (2, 1))
        )
        self.near = nn.Conv2d(channels, 4, 1, stride=2)
        self.how = how

    def forward(self, x):
        if self.how == "sum":
            found = self.deep(x)
            found += self.near(x)
            return functional.softplus(found)
        return torch.cat([self.deep(x), self.near(x)], 1)


FIELDS = {
    "convolutions": nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, 3, (2, 5), stride=(2, 3), padding=1)),
    "dilation": nn.Sequential(nn.Conv2d(2, 3, 3, dilation=2, padding=2), nn.Conv2d(3, 3, 3, stride=2, padding="valid")),
    "same": nn.Sequential(nn.Conv2d(2, 3, 4, padding="same"), nn.Conv2d(3, 3, 3, padding="same", dilation=2)),
    "pooling": nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(3), nn.AvgPool2d(3, 1, 1)
    ),
    "adaptive": nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d((6, 7))),
    "padded": nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(2, 3, 3, stride=2), nn.Dropout(0.5)),
    "sum": nn.Sequential(Block(2, "sum"), nn.Conv2d(4, 3, 3)),
    "channels": Block(2, "cat"),
}


def read(model, x, position):
    """The box of the input that the gradient of a position says is read."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[(0, slice(None), *position)].sum(), x)
    cells = gradient[0].abs().sum(0) > 0
    return tuple(
        slice(int(axis[0]), int(axis[-1]) + 1)
        for axis in (cells.any(1).nonzero().flatten(), cells.any(0).nonzero().flatten())
    )


def test_what_reads_two_ways_reads_the_cells_of_both():
    near, deep = Axis(2, 2, 1), Axis(-1, 2, 3)
    assert near.joined(deep) == deep.joined(near) == Axis(-1, 2, 4)
    assert near.joined(near) == near
    assert near.joined(Axis(2, 1, 1)) == near.joined(WHOLE) == WHOLE.joined(WHOLE) == WHOLE


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", FIELDS)
def test_the_field_is_where_the_gradient_is(name):
    torch.manual_seed(3)
    model = FIELDS[name].double().eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.abs() + 0.1  # so that nothing cancels
    x = torch.rand(1, 2, 12, 14).double() + 0.1
    field = receptive_field(nn.Sequential(model), x, layer="0")
    shape = model(x).shape[2:]
    for position in [(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 2), (0, shape[1] - 1)]:
        assert field.box(position) == read(model, x, position)


def test_fields_of_lines_and_volumes():
    line = nn.Sequential(nn.Conv1d(1, 2, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool1d(2))
    assert receptive_field(line, torch.zeros(1, 1, 20), layer="2").axes == (Axis(-2, 4, 7),)
    volume = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 5)), nn.MaxPool3d(2))
    field = receptive_field(volume, torch.zeros(1, 1, 8, 8, 8), layer="1")
    assert field.axes == (Axis(0, 2, 2), Axis(0, 2, 4), Axis(0, 2, 6))
    assert field.box((1, 0, 1)) == (slice(2, 4), slice(0, 4), slice(2, 8))


class Squeeze(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Written(nn.Module):
    def forward(self, x):
        out = torch.zeros_like(x)
        out[:, :, 1:] = x[:, :, :-1]
        return out


class Viewed(nn.Module):
    def forward(self, x):
        out = x.clone()
        out[:, :1].add_(x[:, :1].flip(3))
        return out


@pytest.mark.parametrize(
    "module",
    [Squeeze(), Written(), Viewed(), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(5), nn.Softmax(3)],
    ids=lambda module: type(module).__name__,
)
def test_what_is_not_followed_reads_everything(module):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), module)
    field = receptive_field(model, torch.rand(2, 1, 9, 8), layer="1")
    assert field.box((1, 1)) == (slice(0, 9), slice(0, 8))


def test_fields_say_what_is_wrong(cnn):
    x = torch.zeros(1, 2, 6, 7).double()
    with pytest.raises(ValueError, match="is no map of positions"):
        receptive_field(cnn, x, layer="4")
    with pytest.raises(ValueError, match="layer 'conv' is unknown"):
        receptive_field(cnn, x, layer="conv")
    with pytest.raises(ValueError, match="must have 2 indices"):
        receptive_field(cnn, x, layer="0").box([1])
    assert ReceptiveField((WHOLE,), (5,)).box([3]) == (slice(0, 5),)


class AfterConvolution(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.convolution, self.last, self.function = nn.Conv1d(2, 3, 3), nn.Identity(), function

    def forward(self, x):
        return self.last(self.function(self.convolution(x)))


def test_receptive_field_follows_a_mean_over_channels_but_not_a_sum_along_positions():
    x = torch.zeros(1, 2, 9)
    mean = AfterConvolution(lambda maps: maps.mean(1, keepdim=True))
    assert receptive_field(mean, x, layer="last").box([2]) == (slice(2, 5),)
    cumulative = AfterConvolution(lambda maps: maps.cumsum(2))
    assert receptive_field(cumulative, x, layer="last").box([2]) == (slice(0, 9),)
