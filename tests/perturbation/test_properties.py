"""Whatever is asked for: the number of a plain loop, or an error that names the argument."""

import dataclasses
import inspect
import itertools
import math
import re

import pytest
import torch
from draws import draw, module
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_xai import scores
from lightning_xai.perturbation import Segments, Windows, importance, kinds
from lightning_xai.regions import Slice

few = settings(max_examples=100, deadline=None, derandomize=True, database=None)
KINDS = [
    kind
    for _, kind in inspect.getmembers(kinds, inspect.isclass)
    if issubclass(kind, kinds.Perturbation) and not inspect.isabstract(kind)
]
GIVEN = {
    kinds.ChannelVector: {"vector": [0.5, -1.0]},
    kinds.Replace: {"background": [[[0.5] * 5] * 2, [[-1.0] * 5] * 2]},
}
NUMBERS = [1e308, -1e308, 1e39, -1e30, 1e-308, 5e-324, 0, 0.5, -1, 3, 2**63, -(2**64), 10**400, math.inf, -math.inf]
OTHERS = [math.nan, True, "x", None, [], [1.0], [0, True], 1j]


def unless_named(call, *arguments):
    """What a call returns; None if it raises an error that names one of the arguments."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        if any(re.search(rf"\b{argument}\b", str(error)) for argument in arguments):
            return None
        raise


def network(shape):
    """Class scores [N, 3] without any structure; rounding of huge numbers does not reach them."""
    weight = draw(shape[1:].numel(), 3)
    return module(lambda x: (x.flatten(1).clamp(-9, 9) @ weight).sin() * 2)


def loop(model, x, target, masks, arms, score):
    """What every mask [*S] of cells costs one by one, [N, J]; not a number where a perturbed cell is none."""
    found = torch.empty(len(x), len(masks), dtype=x.dtype)
    for n, j in itertools.product(range(len(x)), range(len(masks))):
        clean, lost = score(model(x[n : n + 1])[0], target[n]), []
        for arm in arms:
            perturbed = torch.where(masks[j], arm[n], x[n])
            lost.append(clean - score(model(perturbed[None])[0], target[n]) if perturbed.isfinite().all() else math.nan)
        found[n, j] = sum(lost) / len(lost)
    return found


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def probability(logits, target):
    return float(logits.exp()[target] / logits.exp().sum())


def windows_along(length, size, stride, scope, remainder):
    """The cells of every window of an axis; the windows are laid one after the other."""
    start, stop = scope
    full = [first for first in range(start, stop, stride) if first + size <= stop]
    left = stop - full[-1] - size
    if remainder == "partial":
        more = itertools.takewhile(lambda first: first < stop and left, [full[-1] + stride])
        return [range(first, min(first + size, stop)) for first in (*full, *more)]
    moved = {"left": left, "right": 0, "center": (left + 1) // 2}[remainder]
    return [range(first + moved, first + moved + size) for first in full]


@few
@given(st.data(), st.lists(st.integers(2, 6), min_size=1, max_size=3))
def test_windows_are_those_of_a_loop_or_an_argument_is_named(data, spatial):
    fitting = st.one_of(st.integers(1, min(spatial) - 1), st.tuples(*(st.integers(1, edge - 1) for edge in spatial)))
    wild = st.one_of(st.integers(-1, 7), st.lists(st.integers(0, 4), max_size=3))
    within = st.tuples(*(st.tuples(st.integers(0, 1), st.just(edge)) for edge in spatial))
    anywhere = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), max_size=3)

    def mostly(usual, other):
        return data.draw(st.integers(0, 9).flatmap(lambda number: other if number == 9 else usual))

    size, stride = mostly(fitting, wild), mostly(st.one_of(st.none(), fitting), wild)
    scope, step = mostly(st.one_of(st.none(), within), anywhere), mostly(st.integers(1, 3), st.just(0))
    remainder = mostly(st.sampled_from(["partial", "center", "left", "right"]), st.just("middle"))
    x = draw(2, 2, *spatial)
    model = network(x.shape)

    def call():
        regions = Windows(size, stride, scope=scope, remainder=remainder, select=Slice(step=step))
        return importance(model, x, [0, 2], regions=regions, perturbation=kinds.Constant(0.5))

    found = unless_named(call, "size", "stride", "scope", "remainder", "step")
    if found is None:
        return
    sizes, strides = ([one] * len(spatial) if isinstance(one, int) else one for one in (size, stride or size))
    scopes = scope or [(0, length) for length in spatial]
    grid = itertools.product(*map(windows_along, spatial, sizes, strides, scopes, [remainder] * len(spatial)))
    masks = []
    for box in list(grid)[::step]:
        masks.append(torch.zeros(spatial, dtype=torch.bool))
        masks[-1][torch.meshgrid(*map(torch.tensor, map(list, box)), indexing="ij")] = True
    close(found, loop(model, x, [0, 2], masks, [torch.full_like(x, 0.5)], probability))


@few
@given(st.lists(st.integers(-2, 3), min_size=1, max_size=6), st.sampled_from([5, 6]))
def test_segments_are_those_of_a_loop_or_the_labels_are_named(labels, length):
    x = draw(2, 2, length)
    model = network(x.shape)
    ask = {"perturbation": kinds.Negative(1.0)}
    found = unless_named(lambda: importance(model, x, 1, regions=Segments(labels), **ask), "labels")
    if found is None:
        return
    masks = [torch.tensor(labels) == label for label in range(max(labels) + 1)]
    expected = loop(model, x, [1, 1], masks, [x * 0], probability)
    expected[:, [not mask.any() for mask in masks]] = torch.nan
    close(found, expected)


TARGETS = st.one_of(
    st.integers(-2, 4),
    st.lists(st.one_of(st.integers(-1, 3), st.booleans(), st.floats(0, 2)), max_size=3),
    st.sampled_from(["predicted", "label", None, 1.0, True, (0, 1), object(), torch.tensor([[0], [1]]), 10**30]),
)


@few
@given(TARGETS)
def test_targets_are_read_or_named(target):
    x = draw(2, 2, 3)
    model = network(x.shape)
    ask = {"regions": Windows(3), "perturbation": kinds.Constant(0.5), "score": "logit"}
    found = unless_named(lambda: importance(model, x, target, **ask), "target")
    if found is None:
        return
    classes = model(x).argmax(1) if target == "predicted" else torch.as_tensor(target).expand(2)
    arm = torch.full_like(x, 0.5)
    everything = [torch.ones(3, dtype=torch.bool)]
    close(found, loop(model, x, classes, everything, [arm], lambda logits, k: float(logits[k])))


FORMULAS = {
    "probability": probability,
    "logit": lambda logits, k: float(logits[k]),
    "log_probability": lambda logits, k: math.log(probability(logits, k)),
    "sigmoid": lambda logits, k: float(1 / (1 + (-logits[k]).exp())),
}


@few
@given(
    st.one_of(st.sampled_from([*FORMULAS]), st.text(max_size=6), st.sampled_from([1, None, scores.Margin, b"logit"]))
)
def test_scores_are_their_formulas_or_named(name):
    assume(name not in {*scores.BY_NAME} - {*FORMULAS})  # these look at more than one output
    x = draw(2, 2, 3)
    model = network(x.shape)
    ask = {"regions": Windows(1), "perturbation": kinds.Constant(0.5), "score": name}
    found = unless_named(lambda: importance(model, x, [1, 2], **ask), "score")
    if found is None:
        return
    masks = [torch.arange(3) == cell for cell in range(3)]
    close(found, loop(model, x, [1, 2], masks, [torch.full_like(x, 0.5)], FORMULAS[name]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@few
@given(st.data())
def test_any_field_of_a_kind_gives_the_number_of_a_loop_or_is_named(kind, data):
    names = [field.name for field in dataclasses.fields(kind)]
    name, value = data.draw(st.sampled_from([*itertools.product(names, NUMBERS + OTHERS)]))
    x = torch.randn(2, 2, 5)
    model = network(x.shape)

    def call():
        perturbation = kind(**{**GIVEN.get(kind, {}), name: value})
        ask = {"perturbation": perturbation, "score": "logit", "regions": Windows(2)}
        return importance(module(lambda x: model(x.double())), x, 0, **ask), perturbation.arms(x).double()

    called = unless_named(call, name)
    if called is None:
        return
    found, arms = called
    masks = [torch.arange(5) // 2 == window for window in range(3)]
    if not issubclass(kind, kinds.WindowPerturbation | kinds.MaskPerturbation):  # whose values depend on the window
        expected = loop(model, x.double(), [0, 0], masks, arms, lambda logits, k: float(logits[k]))
        close(found, expected)


HALF = [1e5, -1e5, 65504, -6e4, 3.4e38, 1e-30, 2**40, 0.5, -1, math.inf]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if len(dataclasses.fields(kind)) > 1], ids=lambda kind: kind.__name__
)
@few
@given(st.data())
def test_half_precision_gives_what_single_does_rounded_or_the_field_is_named(kind, data):
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16]))
    names = [field.name for field in dataclasses.fields(kind) if field.name != "channels"]
    name, value = data.draw(st.sampled_from([*itertools.product(names, HALF)]))
    perturbation = unless_named(lambda: kind(**{**GIVEN.get(kind, {}), name: value}), name)
    if perturbation is None:
        return
    x = torch.randn(2, 2, 5).to(dtype)
    if name != "seed" and torch.finfo(dtype).max < abs(value) < math.inf:
        with pytest.raises(ValueError, match=rf"^{name} of .* where {str(dtype)[6:]} ends"):
            perturbation.arms(x)
    else:
        expected = perturbation.arms(x.float()).to(dtype)
        torch.testing.assert_close(perturbation.arms(x), expected, rtol=0, atol=0, equal_nan=True)
