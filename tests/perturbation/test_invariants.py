"""What follows from the definitions of importance, speed and synergy, whatever the network."""

import numpy as np
import pytest
import torch
from draws import draw, every_shape, module

from lightning_xai.perturbation import (
    Segments,
    Windows,
    comb_classes,
    importance,
    interaction,
    kinds,
    relative_importance,
    speed,
    synergy,
)


def linear(shape):
    """s = <w, x>, and its w [C, *S]."""
    weight = draw(*shape[1:])
    return module(lambda x: (x * weight).flatten(1).sum(1)), weight


def curved(shape):
    """A score without any structure."""
    first, second = draw(*shape[1:]).flatten(), draw(*shape[1:]).flatten()
    return module(lambda x: (x.flatten(1) @ first).tanh() * (x.flatten(1) @ second + 1) ** 2)


def close(found, expected):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-9, equal_nan=True
    )


def boxes(shape, size=2):
    """The disjoint windows of a grid, row by row, as slices of the spatial axes."""
    spatial = shape[2:] or shape[1:]
    counts = [-(-length // size) for length in spatial]
    return [tuple(slice(size * g, size * g + size) for g in place) for place in np.ndindex(*counts)]


def per_window(cells):
    """Sums [N, J] of cells [N, C, *S] over the disjoint windows of two cells per axis."""
    return torch.stack([cells[(..., *box)].flatten(1).sum(1) for box in boxes(cells.shape)], 1)


# Importance


@pytest.mark.parametrize(
    "identity",
    [
        kinds.Bidirectional(delta=0.0),
        kinds.Positive(delta=0.0),
        kinds.Negative(delta=0.0),
        kinds.Offset(offset=0.0),
        kinds.Exp(exponent=1.0),
        kinds.LeakyReLU(slope=1.0),
        kinds.Custom(factor=1.0),
        kinds.CustomSum(summand=0.0),
        kinds.ClassInterchange(other=5.0, amount=0.0),
        kinds.GaussianNoise(std=0.0),
        kinds.UniformNoise(low=0.0, high=0.0),
        kinds.RandomScale(low=1.0, high=1.0),
        kinds.UpperThreshold(threshold=1e9),
        kinds.LowerThreshold(threshold=-1e9),
    ],
    ids=repr,
)
@every_shape
def test_a_perturbation_that_changes_nothing_costs_nothing(shape, identity):
    model, x, regions = curved(shape), draw(*shape), Windows(2)
    close(
        importance(model, x, 0, regions=regions, perturbation=identity, score="value"),
        torch.zeros(3, len(boxes(shape))),
    )


@pytest.mark.parametrize("kind", [kinds.Constant(3.0), kinds.Bidirectional(), kinds.GaussianNoise(), kinds.Permute()])
def test_a_feature_that_the_model_does_not_read_costs_nothing(kind):
    weight = draw(4)
    reads_four_columns = module(lambda x: (x[:, 2:6] @ weight).exp())
    local = importance(reads_four_columns, draw(3, 8), 0, regions=Windows(2), perturbation=kind, score="value")
    close(local[:, [0, 3]], torch.zeros(3, 2))
    assert (local[:, [1, 2]] != 0).any()


@every_shape
def test_linear_score_and_a_constant(shape):
    (model, weight), x = linear(shape), draw(*shape)
    local = importance(model, x, 0, regions=Windows(2), perturbation=kinds.Constant(0.7), score="value")
    close(local, per_window(weight * (x - 0.7)))


@every_shape
def test_disjoint_covering_windows_of_a_linear_score_share_it_out(shape):
    (model, _), x = linear(shape), draw(*shape)
    local = importance(model, x, 0, regions=Windows(2), perturbation=kinds.Constant(0.7), score="value")
    close(local.sum(1), model(x) - model(torch.full_like(x, 0.7)))


@every_shape
def test_one_window_over_everything_costs_the_whole_score(shape):
    model, x = curved(shape), draw(*shape)
    whole = Windows(shape[2:] or shape[1:])
    local = importance(model, x, 0, regions=whole, perturbation=kinds.Constant(0.7), score="value")
    close(local, (model(x) - model(torch.full_like(x, 0.7))).unsqueeze(1))


@pytest.mark.parametrize(
    ("combine", "of_x_squared"),
    [
        ("mean", lambda x, d: -(d**2) * x**2),
        ("central", lambda x, d: 2 * d * x**2),
        ("max_abs", lambda x, d: -(2 * d + d**2) * x**2),
    ],
)
def test_the_arms_of_a_two_sided_kind(combine, of_x_squared):
    x, kind = draw(3, 4), kinds.Bidirectional(delta=0.3, combine=combine)
    square = module(lambda x: (x**2).sum(1))
    close(importance(square, x, 0, regions=Windows(1), perturbation=kind, score="value"), of_x_squared(x, 0.3))


@pytest.mark.parametrize(("combine", "factor"), [("mean", 0.0), ("central", 0.3)])
@every_shape
def test_two_arms_around_a_linear_score(shape, combine, factor):
    (model, weight), x = linear(shape), draw(*shape)
    kind = kinds.Bidirectional(delta=0.3, combine=combine)
    local = importance(model, x, 0, regions=Windows(2), perturbation=kind, score="value")
    close(local, factor * per_window(weight * x))


def test_relative_importance_is_of_the_samples_own_range():
    local = draw(4, 6)
    low, high = np.min(local.numpy(), 1, keepdims=True), np.max(local.numpy(), 1, keepdims=True)
    close(relative_importance(local), (local.numpy() - low) / (high - low))
    close(relative_importance(torch.full((2, 3), 0.1)), torch.zeros(2, 3))


# What is not a number


@pytest.mark.parametrize(
    ("kind", "row", "broken"),
    [
        (kinds.Log(), [1.0, -1.0, 2.0, 0.0, 4.0, 8.0], [1, 3]),
        (kinds.Log(bias=1.5), [1.0, -1.0, 2.0, 0.0, -1.5, -2.0], [4, 5]),
        (kinds.Inverse(), [1.0, -1.0, 2.0, 0.0, 4.0, 8.0], [3]),
        (kinds.Exp(exponent=0.5), [1.0, -1.0, 2.0, 0.0, 4.0, 8.0], [1]),
        (kinds.Constant(float("inf")), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0, 1, 2, 3, 4, 5]),
    ],
    ids=repr,
)
def test_a_broken_cell_makes_its_importance_nan_and_no_other(kind, row, broken):
    x = torch.tensor([row, [1.0] * 6], dtype=torch.float64)
    (model, _) = linear(x.shape)
    alone = importance(model, x, 0, regions=Windows(1), perturbation=kind, score="value")
    assert alone[0].isnan().nonzero().flatten().tolist() == broken
    assert not alone.isinf().any()

    pairs = importance(model, x, 0, regions=Windows(2), perturbation=kind, score="value")
    assert pairs[0].isnan().nonzero().flatten().tolist() == sorted({cell // 2 for cell in broken})

    joint = synergy(model, x, 0, regions=Windows(1), perturbation=kind, score="value")[0]
    hit = torch.zeros(6, dtype=torch.bool)
    hit[broken] = True
    assert torch.equal(joint.isnan(), hit.unsqueeze(0) | hit.unsqueeze(1) | torch.eye(6, dtype=torch.bool))


def test_only_cells_inside_the_window_and_its_channels_can_break_it():
    x = torch.tensor([[[1.0, 2.0, 3.0], [-1.0, 2.0, -3.0]]], dtype=torch.float64)
    (model, _) = linear(x.shape)
    first = importance(model, x, 0, regions=Windows(1), perturbation=kinds.Log(channels=0), score="value")
    both = importance(model, x, 0, regions=Windows(1), perturbation=kinds.Log(), score="value")
    assert first.isfinite().all()
    assert both.isnan().tolist() == [[True, False, True]]


def test_a_score_that_is_not_finite_makes_importance_nan():
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 3.0], [-1.0, 2.0, 3.0]], dtype=torch.float64)
    inverse_of_the_first = module(lambda x: 1 / x[:, 0])
    local = importance(inverse_of_the_first, x, 0, regions=Windows(1), perturbation=kinds.Offset(1.0), score="value")
    close(local, [[0.5, 0.0, 0.0], [np.nan] * 3, [np.nan, 0.0, 0.0]])  # 1/0 in the clean score, then in a perturbed one


@pytest.mark.parametrize("combine", ["mean", "central", "max_abs"])
def test_one_broken_arm_breaks_both(combine):
    root = module(lambda x: x.sqrt().sum(1))
    x = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    kind = kinds.Bidirectional(delta=2.0, combine=combine, bias=0.0)
    assert importance(root, x, 0, regions=Windows(1), perturbation=kind, score="value").isnan().all()


def test_relative_importance_leaves_out_what_is_not_a_number():
    local = torch.tensor(
        [[1.0, np.nan, 5.0, 2.0], [np.nan, 3.0, 3.0, np.nan], [np.nan] * 4, [np.inf, 0.0, 4.0, -np.inf]]
    )
    close(
        relative_importance(local),
        [[0.0, np.nan, 1.0, 0.25], [np.nan, 0.0, 0.0, np.nan], [np.nan] * 4, [np.nan, 0.0, 1.0, np.nan]],
    )


# Speed


@every_shape
def test_speed_of_a_linear_score_that_fades(shape):
    (model, weight), x, delta = linear(shape), draw(*shape), 0.05
    states = [kinds.Negative(k * delta) for k in (1, 2, 3, 4)]
    fit = speed(model, x, 0, regions=Windows(2), perturbations=states, score="value")
    close(fit.slope, delta * per_window(weight * x))
    close(fit.r_squared, torch.ones_like(fit.slope))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_speed_of_an_importance_that_grows_with_the_square(count):
    weight = draw(4)
    model = module(lambda x: -(weight * x**2).sum(1))
    x = torch.zeros(2, 4, dtype=torch.float64)
    states = [kinds.Constant(float(k)) for k in range(1, count + 1)]  # LI = w k^2
    fit = speed(model, x, 0, regions=Windows(1), perturbations=states, score="value")
    close(fit.slope, (weight * (count + 1)).expand(2, 4))
    k = np.arange(1, count + 1)
    close(fit.r_squared, np.full((2, 4), np.corrcoef(k, k**2)[0, 1] ** 2))


# Synergy and interaction


def test_additive_features_do_not_interact():
    weight = draw(2, 6)
    additive = module(lambda x: (weight * x.sin()).flatten(1).sum(1))
    found = interaction(additive, draw(3, 2, 6), 0, regions=Windows(2), perturbation=kinds.Constant(0.3), score="value")
    close(found, torch.zeros(3, 3, 3).masked_fill(torch.eye(3, dtype=torch.bool), float("nan")))


def test_a_product_is_lost_with_either_factor():
    x = draw(3, 3)
    ask = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    product = module(lambda x: x[:, 0] * x[:, 2])
    both = x[:, 0] * x[:, 2]
    close(synergy(product, x, 0, **ask)[:, 0, 2], both)
    close(interaction(product, x, 0, **ask)[:, 0, 2], -both)
    close(interaction(product, x, 0, **ask)[:, 0, 1], torch.zeros(3))


def test_redundant_features_need_to_be_lost_together():
    x = torch.ones(1, 2, dtype=torch.float64)
    either = module(lambda x: x.max(1).values)
    ask = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    close(interaction(either, x, 0, **ask), [[[np.nan, 1.0], [1.0, np.nan]]])


OVERLAPPING = Windows(size=3, stride=2)
COLUMNS = torch.tensor([0, 0, 1, 2, 2, 1, 3])


@pytest.mark.parametrize("regions", [OVERLAPPING, Segments(COLUMNS)], ids=["windows", "segments"])
@pytest.mark.parametrize(
    "kind",
    [kinds.Negative(0.4), kinds.GaussianNoise(), kinds.LocalMean(), kinds.Permute(), kinds.RandomScale()],
    ids=repr,
)
def test_anchors_and_the_whole_matrix_agree_and_it_is_symmetric(regions, kind):
    model, x = curved((4, 7)), draw(4, 7)
    ask = {"regions": regions, "perturbation": kind, "score": "value"}
    for quantity in (synergy, interaction):
        matrix = quantity(model, x, 0, **ask)
        assert torch.equal(matrix.isnan(), torch.eye(matrix.shape[1], dtype=torch.bool).expand_as(matrix))
        close(matrix, matrix.transpose(1, 2))
        for anchor in range(matrix.shape[1]):
            close(quantity(model, x, 0, anchor=anchor, **ask), matrix[:, anchor])
        anchors = torch.tensor([2, 0, 2, 1])
        close(quantity(model, x, 0, anchor=anchors, **ask), matrix[range(4), anchors])


def test_two_windows_that_overlap_are_perturbed_once():
    model, x = curved((2, 7)), draw(2, 7)
    spans = [(0, 3), (2, 5), (4, 7)]

    def score_without(*windows):
        perturbed = x.clone()
        for start, stop in sorted(windows, reverse=True):  # the first window has the last word
            perturbed[:, start:stop] = x[:, start:stop].mean(1, keepdim=True)
        return model(perturbed)

    joint = synergy(model, x, 0, regions=OVERLAPPING, perturbation=kinds.LocalMean(), score="value")
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        close(joint[:, i, j], model(x) - score_without(spans[i], spans[j]))


def test_a_single_feature_has_no_partner():
    ask = {"regions": Windows(4), "perturbation": kinds.Constant(), "score": "value"}
    assert synergy(linear((2, 4))[0], draw(2, 4), 0, **ask).isnan().all()
    assert interaction(linear((2, 4))[0], draw(2, 4), 0, anchor=0, **ask).isnan().all()


# All three quantities


def everything(model, x, target, regions, kind, **how):
    """All numbers of chapter 1 for each sample, [N, ...]."""
    ask = {"regions": regions, **how}
    states = [kind, kinds.Negative(0.7)]
    parts = [
        importance(model, x, target, perturbation=kind, **ask),
        *speed(model, x, target, perturbations=states, **ask),
        synergy(model, x, target, perturbation=kind, **ask),
        interaction(model, x, target, perturbation=kind, **ask),
    ]
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("scale", [2.5, -3.0])
def test_everything_scales_with_the_score(scale):
    model, x = curved((3, 6)), draw(3, 6)
    scaled = module(lambda x: scale * model(x) + 7)
    ask = {"regions": Windows(2), "score": "value"}
    for kind in (kinds.Constant(0.3), kinds.Bidirectional(0.2), kinds.Bidirectional(0.2, combine="central")):
        for quantity in (importance, synergy, interaction):
            close(
                quantity(scaled, x, 0, perturbation=kind, **ask),
                scale * quantity(model, x, 0, perturbation=kind, **ask),
            )
    states = [kinds.Negative(0.1), kinds.Negative(0.4), kinds.Negative(0.5)]
    found, fit = (speed(m, x, 0, perturbations=states, **ask) for m in (scaled, model))
    close(found.slope, scale * fit.slope)
    close(found.r_squared, fit.r_squared)


def rings(inputs):
    """Per sample its own label map, with cells of no feature."""
    across = torch.arange(inputs.shape[-1]) - inputs.shape[-1] // 2
    down = torch.arange(inputs.shape[-2]) - inputs.shape[-2] // 2
    ring = torch.maximum(across.abs(), down.abs().unsqueeze(1))
    return torch.where(inputs[:, 0] > 1, -1, ring)


@pytest.mark.parametrize("regions", [Windows(size=(2, 3), stride=2), Segments(rings)], ids=["windows", "segments"])
@pytest.mark.parametrize(
    "kind",
    [
        kinds.Bidirectional(combine="max_abs"),
        kinds.Blur(1.0),
        kinds.LocalMean(),
        kinds.GaussianNoise(),
        kinds.UniformNoise(seed=4),
        kinds.RandomScale(),
        kinds.Permute(),
        kinds.Replace(torch.arange(120.0, dtype=torch.float64).sin().view(3, 2, 4, 5)),
    ],
    ids=lambda kind: type(kind).__name__,
)
class TestAnyWayToRunIt:
    """The same samples, in other chunks, batches and orders."""

    @pytest.fixture(autouse=True)
    def reference(self, cnn, regions, kind):
        x, target, ids = draw(5, 2, 4, 5), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([40, 7, 11, 3, 25])
        self.run = lambda rows, **how: everything(
            cnn, x[rows], target[rows], regions, kind, sample_ids=ids[rows], **how
        )
        self.expected = self.run(range(5))

    @pytest.mark.parametrize("chunk_size", [1, 3, 7, 1000])
    def test_chunks(self, chunk_size):
        close(self.run(range(5), chunk_size=chunk_size), self.expected)

    def test_one_by_one(self):
        close(torch.cat([self.run([row]) for row in range(5)]), self.expected)

    def test_order(self):
        order = [3, 0, 4, 2, 1]
        close(self.run(order), self.expected[order])


# Class combinations


@pytest.mark.parametrize("kind", [kinds.Constant(-1.0), kinds.Bidirectional(0.9)], ids=repr)
def test_comb_classes_against_loops(cnn, kind):
    cnn.eval()
    x, target = draw(3, 2, 4, 4), [2, 0, 1]
    found = comb_classes(cnn, x, torch.tensor(target), regions=Windows(2), perturbation=kind)

    def probabilities(inputs):
        return cnn(inputs).softmax(1).tolist()

    arms = [lambda v: v * 0 - 1.0] if isinstance(kind, kinds.Constant) else [lambda v: v * 1.9, lambda v: v * 0.1]
    for j, box in enumerate(boxes(x.shape)):
        for n, y in enumerate(target):
            strongest = []
            for arm in arms:
                perturbed = x.clone()
                perturbed[(..., *box)] = arm(x[(..., *box)])
                p, q = probabilities(x)[n], probabilities(perturbed)[n]
                gains = {c: (q[c] - q[y]) - (p[c] - p[y]) for c in range(3) if c != y}
                strongest.append(max(gains.items(), key=lambda item: abs(item[1])))
            close(found.local[n, j], sum(gain for _, gain in strongest) / len(arms))
            assert found.strongest[n, j] == max(strongest, key=lambda item: abs(item[1]))[0]


def test_comb_classes_is_positive_where_evidence_is_lost():
    logits = module(lambda x: x)
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    found = comb_classes(logits, x, 0, regions=Windows(1), perturbation=kinds.Constant(0.0))
    assert (found.local > 0).tolist() == [[True, False]]


def test_the_strongest_class_is_that_of_the_stronger_arm():
    """At 1.5 class 1 gains two logits, at 0.5 class 2 loses half of one."""
    model = module(lambda x: torch.cat([0 * x, 4 * (x - 1).relu(), -(1 - x).relu()], 1))
    x = torch.ones(1, 1, dtype=torch.float64)
    found = comb_classes(model, x, 0, regions=Windows(1), perturbation=kinds.Bidirectional(0.5))
    gain, loss = (np.exp(2) - 1) / (np.exp(2) + 2), (np.exp(-0.5) - 1) / (np.exp(-0.5) + 2)
    close(found.local, [[(gain + loss) / 2]])
    assert found.strongest.tolist() == [[1]]


def test_the_strongest_class_is_never_the_target_and_minus_one_where_there_is_none():
    logits = module(lambda x: torch.stack([x[:, 0], 2 * x[:, 0], -x[:, 0]], 1))
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    nothing = comb_classes(logits, x, 0, regions=Windows(1), perturbation=kinds.Offset(0.0))
    assert (nothing.strongest != 0).all()
    broken = comb_classes(logits, x, 0, regions=Windows(1), perturbation=kinds.Log())
    assert broken.local.isnan().tolist() == [[False, True]]
    assert broken.strongest[0, 1] == -1
