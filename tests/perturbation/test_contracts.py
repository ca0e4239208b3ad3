"""Every kind of perturbation: its formula by another route, and what all kinds promise."""

import copy
import dataclasses
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from draws import draw
from torch import nn

from lightning_xai.perturbation import Windows, importance, kinds, synergy

SHAPES = {"table": (3, 6), "line": (3, 2, 7), "plane": (3, 2, 4, 5), "volume": (3, 2, 3, 4, 3)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
IDS = [12, 5, 30]


class Recorder(nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return x.flatten(1).sum(1)


def arms(kind, x, sample_ids=IDS):
    """What a network sees when one window covers everything, [A, N, C, *S]; C = 1 for a table."""
    network, whole = Recorder(), Windows(x.shape[2:] or x.shape[1:])
    ask = {"score": "value", "sample_ids": sample_ids, "chunk_size": len(x), "engine": "dense"}
    importance(network, x, 0, regions=whole, perturbation=kind, **ask)
    _clean, *perturbed = (seen for seen in network.seen if len(seen) == len(x))  # and once a sample alone
    return torch.stack([arm.unsqueeze(1) if x.ndim == 2 else arm for arm in perturbed])


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9, equal_nan=True)


# Formulas, in numpy: v [N, C, *S] -> [N, C, *S], or a list with one per arm.


def drawn(kind, like):
    """The draws behind a random kind: what it makes of zeros, ones, or numbered cells."""
    return arms(kind, torch.as_tensor(like))[0].numpy()


def ramp(cells):
    """A sample [C, *S] of distinct numbers."""
    return np.linspace(-1, 2, math.prod(cells)).reshape(cells)


def backgrounds(cells):
    return np.stack([number * ramp(cells) for number in (0.5, -1.5, 2.5, -3.5)])


def blurred(v, sigma):
    """Every cell the mean of the cells up to 4 sigma away along each axis, Gaussian weights."""
    places, out = list(np.ndindex(*v.shape[2:])), np.empty_like(v)
    for p in places:
        off = {q: np.abs(np.subtract(p, q)) for q in places}
        weight = {
            q: np.exp(-(off[q] ** 2).sum() / (2 * sigma**2)) for q in places if off[q].max() <= math.ceil(4 * sigma)
        }
        out[(..., *p)] = sum(w * v[(..., *q)] for q, w in weight.items()) / sum(weight.values())
    return out


def means(v):
    """Every cell the mean of its sample and channel."""
    out = np.empty_like(v)
    for n, c in np.ndindex(*v.shape[:2]):
        out[n, c] = v[n, c].sum() / v[n, c].size
    return out


def shuffled(v):
    numbered = np.zeros_like(v) + np.arange(float(v[0, 0].size)).reshape(v.shape[2:])
    order, out = drawn(kinds.Permute(seed=3), numbered), np.empty_like(v)
    for place in np.ndindex(*v.shape):
        out[place] = v[place[:2]].flat[int(order[place])]
    return out


def replaced(v):
    names = np.arange(4.0).reshape(-1, *[1] * (v.ndim - 1)) * np.ones_like(v[:1])  # background i holds nothing but i
    which = drawn(kinds.Replace(names, seed=3), v)
    return np.stack([backgrounds(v.shape[1:])[int(row.flat[0])] for row in which])


class Case(NamedTuple):
    kind: kinds.Perturbation | Callable[[tuple[int, ...]], kinds.Perturbation]
    """The kind with all its fields set; if it holds tensors, a function of the shape [C, *S] of a sample."""
    formula: Callable[[np.ndarray], np.ndarray | list[np.ndarray]]
    strength: str | None
    """The field that `at` varies."""


KINDS = {
    "Bidirectional": Case(kinds.Bidirectional(0.3, bias=0.5), lambda v: [(v + 0.5) * 1.3, (v + 0.5) * 0.7], "delta"),
    "Positive": Case(kinds.Positive(0.3, 0.5), lambda v: (v + 0.5) * 1.3, "delta"),
    "Negative": Case(kinds.Negative(0.3, 0.5), lambda v: (v + 0.5) * 0.7, "delta"),
    "Log": Case(kinds.Log(2.0, 9.0), lambda v: np.log2(v + 9), "base"),
    "RandomScale": Case(
        kinds.RandomScale(0.5, 2.0, 0.25, seed=3),
        lambda v: (v + 0.25) * (0.5 + 1.5 * drawn(kinds.RandomScale(seed=3), np.ones_like(v))),
        "high",
    ),
    "Exp": Case(kinds.Exp(3.0, 0.5), lambda v: (v + 0.5) * (v + 0.5) * (v + 0.5), "exponent"),
    "Binary": Case(kinds.Binary(0.2, 0.7, -0.3), lambda v: np.where(v > 0.2, 0.7, -0.3), "threshold"),
    "Sinusoidal": Case(kinds.Sinusoidal(5.0, 0.7, 0.5), lambda v: (v + 0.5) * np.sin(5 * v) + 0.7, "frequency"),
    "Gaussian": Case(kinds.Gaussian(0.3, 2.0, 0.5), lambda v: (v + 0.5) * np.exp(-((v - 0.3) ** 2) / 8), "std"),
    "Tanh": Case(kinds.Tanh(2.0, 0.5), lambda v: np.tanh(2 * (v + 0.5)), "scale"),
    "Sigmoid": Case(kinds.Sigmoid(2.0, 0.5), lambda v: 1 / (1 + np.exp(-2 * (v + 0.5))), "scale"),
    "ReLU": Case(kinds.ReLU(0.5), lambda v: np.maximum(0, v + 0.5), None),
    "LeakyReLU": Case(kinds.LeakyReLU(0.1, 0.5), lambda v: (v + 0.5) * np.where(v + 0.5 < 0, 0.1, 1.0), "slope"),
    "Softplus": Case(kinds.Softplus(2.0, 0.5), lambda v: np.log1p(np.exp(2 * (v + 0.5))), "scale"),
    "Inverse": Case(kinds.Inverse(9.0), lambda v: 1 / (v + 9), None),
    "GaussianNoise": Case(
        kinds.GaussianNoise(0.7, 2.0, 0.25, seed=3),
        lambda v: v + 0.25 + 0.7 + 2 * drawn(kinds.GaussianNoise(seed=3), np.zeros_like(v)),
        "std",
    ),
    "UniformNoise": Case(
        kinds.UniformNoise(-2.0, 3.0, 0.25, seed=3),
        lambda v: v + 0.25 - 2 + 5 * drawn(kinds.UniformNoise(low=0.0, seed=3), np.zeros_like(v)),
        "high",
    ),
    "Offset": Case(kinds.Offset(0.7, 0.5), lambda v: v + 1.2, "offset"),
    "Constant": Case(kinds.Constant(0.3), lambda v: 0 * v + 0.3, "c"),
    "Custom": Case(lambda cells: kinds.Custom(torch.tensor(ramp(cells))), lambda v: v * ramp(v.shape[1:]), None),
    "CustomSum": Case(lambda cells: kinds.CustomSum(ramp(cells).tolist()), lambda v: v + ramp(v.shape[1:]), None),
    "UpperThreshold": Case(kinds.UpperThreshold(0.2, 0.7), lambda v: np.where(v > 0.2, 0.7, v), "threshold"),
    "LowerThreshold": Case(kinds.LowerThreshold(0.2, 0.7), lambda v: np.where(v < 0.2, 0.7, v), "threshold"),
    "ChannelVector": Case(
        lambda cells: kinds.ChannelVector(1.0 + torch.arange(cells[0]).double()),
        lambda v: 0 * v + 1 + np.arange(v.shape[1]).reshape(-1, *[1] * (v.ndim - 2)),
        None,
    ),
    "ClassInterchange": Case(
        lambda cells: kinds.ClassInterchange(ramp(cells), 0.4), lambda v: 0.6 * v + 0.4 * ramp(v.shape[1:]), "amount"
    ),
    "Blur": Case(kinds.Blur(0.8), lambda v: blurred(v, 0.8), "sigma"),
    "LocalMean": Case(kinds.LocalMean(), means, None),
    "ChannelMean": Case(kinds.ChannelMean(), means, None),
    "NoisyLinear": Case(
        kinds.NoisyLinear(0.7, seed=3),
        lambda v: means(v) + 0.7 * drawn(kinds.NoisyLinear(1.0, seed=3), np.zeros_like(v)),
        "noise",
    ),
    "Permute": Case(kinds.Permute(seed=3), shuffled, None),
    "Replace": Case(lambda cells: kinds.Replace(backgrounds(cells), seed=3), replaced, None),
}
BY_IDENTITY = {"Custom", "CustomSum", "ChannelVector", "ClassInterchange", "Replace"}  # they hold tensors


def build(name, cells):
    kind = KINDS[name].kind
    return kind if isinstance(kind, kinds.Perturbation) else kind(tuple(cells))


every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def x():
    return draw(*SHAPES["plane"])


@pytest.fixture
def kind(name, x):
    return build(name, x.shape[1:])


def subclasses(kind):
    return {kind, *(below for child in kind.__subclasses__() for below in subclasses(child))}


def test_the_table_holds_every_kind():
    ours = {kind for kind in subclasses(kinds.Perturbation) if kind.__module__.startswith(kinds.__name__)}
    public = {kind.__name__ for kind in ours if not inspect.isabstract(kind)}
    assert public == KINDS.keys()
    assert public <= set(dir(kinds))
    assert len(public) == 31


@every_kind
@every_shape
def test_formula(name, shape):
    x = draw(*shape)
    v = x.unsqueeze(1) if x.ndim == 2 else x
    expected = KINDS[name].formula(v.numpy())
    close(arms(build(name, v.shape[1:]), x), np.stack(expected if isinstance(expected, list) else [expected]))


@every_kind
def test_a_sample_is_perturbed_alike_in_any_batch(kind, x):
    together = arms(kind, x)
    close(arms(kind, x.flip(0), IDS[::-1]), together.flip(1))
    for row in range(3):
        close(arms(kind, x[[row]], IDS[row : row + 1]), together[:, [row]])


@every_kind
def test_a_score_does_not_depend_on_the_chunk(name):
    kind = build(name, (1, 7))
    table, weight = draw(3, 7), draw(7)
    model = nn.Module()
    model.forward = lambda x: (x @ weight).tanh()
    ask = {"regions": Windows(3, stride=2), "perturbation": kind, "score": "value", "sample_ids": IDS}
    for quantity in (importance, synergy):
        close(quantity(model, table, 0, chunk_size=1, **ask), quantity(model, table, 0, chunk_size=100, **ask))


@every_kind
def test_global_randomness_is_neither_used_nor_moved(kind, x):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = kind.arms(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(kind.arms(x), first)


@every_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_gradient_mode(kind, x, mode):
    expected = arms(kind, x)
    with mode():
        found = arms(kind, x + 0)
    assert torch.equal(found, expected)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_values_are_left_and_their_dtype_is_kept(kind, x, dtype):
    values = x.to(dtype)
    before = values.clone()
    assert kind.arms(values).dtype == dtype
    assert torch.equal(values, before)


@every_kind
def test_other_channels_are_left(kind, x):
    everywhere = arms(kind, x)
    second = arms(dataclasses.replace(kind, channels=1), x)
    close(second[:, :, 0], x[:, 0].expand_as(second[:, :, 0]))
    close(second[:, :, 1], everywhere[:, :, 1])
    close(arms(dataclasses.replace(kind, channels=[1, 0]), x), everywhere)
    with pytest.raises(ValueError, match=r"channels=\(0, 2\) is out of range: the input has 2 channels"):
        arms(dataclasses.replace(kind, channels=[0, 2]), x)


@every_kind
def test_pickling(kind, x):
    close(arms(pickle.loads(pickle.dumps(kind)), x), arms(kind, x))


@every_kind
def test_at_changes_the_strength_and_nothing_else(name, kind):
    strength = KINDS[name].strength
    if strength is None:
        with pytest.raises(TypeError, match=f"{name} has no strength"):
            kind.at(0.6)
        return
    other = kind.at(0.6)
    changed = {f.name for f in dataclasses.fields(kind) if getattr(other, f.name) is not getattr(kind, f.name)}
    assert type(other) is type(kind)
    assert changed == {strength}
    assert getattr(other, strength) == 0.6


@every_kind
def test_frozen(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind, field.name, 0)


@every_kind
def test_a_key_of_a_dict(name, kind):
    again = copy.deepcopy(kind)
    assert {kind: "found"}[kind] == "found"
    assert (again == kind) is (name not in BY_IDENTITY)
    assert {kind: "found"}.get(again) == (None if name in BY_IDENTITY else "found")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kinds.Bidirectional(combine="sum"), "combine must be one of mean, central, max_abs, got 'sum'"),
        (lambda: kinds.Log(base=1.0), "base must be positive and not 1"),
        (lambda: kinds.Log(base=-2.0), "base must be positive and not 1"),
        (lambda: kinds.RandomScale(low=2.0, high=1.0), "low must not exceed high"),
        (lambda: kinds.UniformNoise(low=2.0, high=1.0), "low must not exceed high"),
        (lambda: kinds.Gaussian(std=0.0), "std must be positive"),
        (lambda: kinds.GaussianNoise(std=-1.0), "std must not be negative"),
        (lambda: kinds.NoisyLinear(noise=-1.0), "noise must not be negative"),
        (lambda: kinds.Blur(sigma=0.0), "sigma must be positive"),
        (lambda: kinds.Blur(sigma=1.0).at(-1.0), "sigma must be positive"),
        (lambda: kinds.Blur(sigma=float("nan")), "sigma of Blur must be a number, got nan"),
        (lambda: kinds.Negative(0.5).at(float("nan")), "delta of Negative must be a number, got nan"),
        (lambda: kinds.Replace(), "background must hold at least one sample"),
        (lambda: kinds.Replace(torch.zeros(0, 1, 4)), "background must hold at least one sample"),
        (lambda: kinds.Constant(channels=-1), "channels must be at least 0, got -1"),
        (lambda: kinds.Constant(channels=[]), "channels must be channel indices"),
    ],
)
def test_wrong_numbers_fail_when_the_kind_is_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kinds.Constant(channels=[0.5]), "channels must be an integer, got 0.5"),
        (lambda: kinds.Constant(channels=True), "channels must be an integer, got True"),
        (lambda: kinds.Custom("half"), "factor must be a number, a list of numbers or a tensor, got 'half'"),
        (lambda: kinds.CustomSum(True), "summand must be a number, a list of numbers or a tensor, got True"),
        (lambda: kinds.Replace([None]), r"background must be a number, a list of numbers or a tensor, got \[None\]"),
        (lambda: kinds.Blur(sigma=True), "sigma of Blur must be a number, got True"),
    ],
)
def test_what_is_no_number_is_named(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_every_kind_with_defaults_can_be_given_by_name():
    files = {file.stem for file in (Path(__file__).parents[2] / "conf" / "perturbation").glob("*.yaml")}
    others = {"zero", "mean", "replace", "channel_vector"}  # two that are another kind, two that need numbers
    known = KINDS.keys() - {"Replace", "ChannelVector"}
    assert {type(kinds.as_perturbation(name)).__name__ for name in files - others} == known
    model, x = nn.Flatten(), draw(3, 2, 4, 5)
    named = importance(model, x, 0, regions=(2, 5), perturbation="channel_mean", score="logit")
    built = importance(model, x, 0, regions=Windows((2, 5)), perturbation=kinds.ChannelMean(), score="logit")
    assert torch.equal(named, built)
    with pytest.raises(ValueError, match=r"perturbation 'blr' is unknown\. Did you mean 'blur'"):
        kinds.as_perturbation("blr")
    with pytest.raises(ValueError, match="background must hold at least one sample"):
        kinds.as_perturbation("replace")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (kinds.Custom(torch.ones(3)), r"factor of shape \[3\] does not broadcast to a sample \[2, 4, 5\]"),
        (kinds.CustomSum(torch.ones(2, 4)), r"summand of shape \[2, 4\] does not broadcast"),
        (kinds.ClassInterchange(torch.ones(7, 4, 5)), r"other of shape \[7, 4, 5\] does not broadcast"),
        (kinds.Replace(torch.ones(3, 2, 4, 4)), r"background holds samples of shape \[2, 4, 4\], .* \[2, 4, 5\]"),
    ],
)
def test_a_tensor_that_does_not_fit_the_inputs_is_named(kind, message, x):
    with pytest.raises(ValueError, match=message):
        arms(kind, x)


@dataclasses.dataclass(frozen=True)
class Thirds(kinds.Perturbation):
    """A kind of three arms, as a user may write it."""

    arm_count = 3

    def perturb(self, values, keys):
        return torch.stack([values / 3, values * 2 / 3, values])


def test_the_set_is_open(x):
    model = Recorder()
    local = importance(model, x, 0, regions=Windows((4, 5)), perturbation=Thirds(), score="value")
    close(local[:, 0], x.flatten(1).sum(1) / 3)  # the mean of 2/3, 1/3 and 0


@dataclasses.dataclass(frozen=True)
class Flat(kinds.Perturbation):
    """A kind that forgets the shape."""

    def perturb(self, values, keys):
        return values.flatten(1)


def test_a_kind_that_changes_the_shape_is_named(x):
    with pytest.raises(ValueError, match=r"Flat made .* of an input of shape \[3, 2, 4, 5\]"):
        arms(Flat(), x)


# Random kinds


def test_a_blur_without_end_is_the_mean():
    x = draw(2, 3, 4, 5)
    close(kinds.Blur(math.inf).arms(x), kinds.ChannelMean().arms(x))


def test_gaussian_noise_has_its_moments():
    noise = drawn(kinds.GaussianNoise(mean=2.0, std=3.0), np.zeros((3, 1, 200, 200)))
    assert noise.mean() == pytest.approx(2.0, abs=5 * 3 / noise.size**0.5)
    assert noise.std() == pytest.approx(3.0, abs=5 * 3 / (2 * noise.size) ** 0.5)
    assert (np.abs(noise - 2) < 3).mean() == pytest.approx(0.6827, abs=5 * (0.68 * 0.32 / noise.size) ** 0.5)


def test_uniform_noise_has_its_moments():
    noise = drawn(kinds.UniformNoise(low=-1.0, high=5.0), np.zeros((3, 1, 200, 200)))
    assert noise.min() >= -1
    assert noise.max() <= 5
    assert noise.mean() == pytest.approx(2.0, abs=5 * (36 / 12 / noise.size) ** 0.5)
    assert (noise < 0).mean() == pytest.approx(1 / 6, abs=5 * (5 / 36 / noise.size) ** 0.5)


def test_a_random_factor_is_one_number_per_window():
    network = Recorder()
    ones = torch.ones(2, 2, 4, 6, dtype=torch.float64)
    ask = {"score": "value", "chunk_size": 2, "engine": "dense"}
    importance(network, ones, 0, regions=Windows(2), perturbation=kinds.RandomScale(low=2.0, high=4.0), **ask)
    _clean, *perturbed = (seen for seen in network.seen if len(seen) == 2)
    factors = [arm[arm != 1].view(2, -1) for arm in perturbed]
    for factor in factors:
        assert factor.shape == (2, 8)
        assert torch.equal(factor, factor[:, :1].expand_as(factor))
    distinct = torch.cat([factor[:, 0] for factor in factors])
    assert len(distinct.unique()) == 12
    assert (distinct >= 2).all()
    assert (distinct <= 4).all()


def test_random_factors_are_uniform():
    factor = drawn_over_samples(kinds.RandomScale(low=-1.0, high=5.0), np.ones((4000, 1, 1)))
    assert factor.mean() == pytest.approx(2.0, abs=5 * (3 / 4000) ** 0.5)
    assert (factor < 0).mean() == pytest.approx(1 / 6, abs=5 * (5 / 36 / 4000) ** 0.5)


def test_every_background_is_as_likely():
    chosen = drawn_over_samples(kinds.Replace(np.arange(4.0).reshape(4, 1, 1)), np.zeros((4000, 1, 1)))
    share = [(chosen == i).mean() for i in range(4)]
    assert share == pytest.approx([0.25] * 4, abs=5 * (3 / 16 / 4000) ** 0.5)


def test_every_order_is_as_likely_and_the_channels_stay_together():
    numbered = np.zeros((4000, 2, 3)) + np.arange(3.0)
    order = drawn_over_samples(kinds.Permute(), numbered)
    assert np.array_equal(order[:, 0], order[:, 1])
    _, counts = np.unique(order[:, 0], axis=0, return_counts=True)
    assert counts / 4000 == pytest.approx([1 / 6] * 6, abs=5 * (5 / 36 / 4000) ** 0.5)


def drawn_over_samples(kind, like):
    return kind.arms(torch.tensor(like), kinds.Keys(tuple(range(len(like))), feature=0))[0].numpy()


@pytest.mark.parametrize(
    "kind",
    [kinds.GaussianNoise(), kinds.UniformNoise(), kinds.RandomScale(), kinds.Permute()],
    ids=lambda kind: type(kind).__name__,
)
def test_the_seed_and_the_id_decide_not_the_place_in_the_batch(kind):
    x = torch.arange(1.0, 21.0, dtype=torch.float64).expand(3, 1, 20)
    first, second, third = arms(kind, x, [7, 8, 7])[0]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    assert not torch.equal(first, arms(dataclasses.replace(kind, seed=1), x, [7, 8, 7])[0, 0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kinds.Negative("a"), "delta of Negative must be a number, got 'a'"),
        (lambda: kinds.Negative(None), "delta of Negative must be a number, got None"),
        (lambda: kinds.Permute(seed="a"), "seed of Permute must be an integer, got 'a'"),
        (lambda: kinds.Permute(seed=0.5), "seed of Permute must be an integer, got 0.5"),
        (lambda: kinds.Blur(True), "sigma of Blur must be a number, got True"),
    ],
)
def test_what_is_no_number_fails_when_the_kind_is_built(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_numbers_of_numpy_become_numbers():
    assert repr(kinds.Negative(np.float32(0.5))) == repr(kinds.Negative(0.5))
    assert kinds.Permute(seed=np.int64(3)) == kinds.Permute(seed=3)
