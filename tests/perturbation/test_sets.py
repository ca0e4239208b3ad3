"""Sets of features of every sample's own, and masks over the cells: what they cost, and against loops."""

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.perturbation import Segments, Windows, kinds
from lightning_xai.perturbation.engine import Samples
from lightning_xai.perturbation.sets import CellMasks, FeatureSets, perturbed_copies
from lightning_xai.perturbation.sweep import Plan, Request, check_sweep, sweep
from lightning_xai.scores import Logit, Probability, RawOutput

ZERO = kinds.Constant(0.0)
J = 6


class Counter(nn.Module):
    """Three logits of a plane of 2 x 3 windows of 2 x 2; counts the rows of every forward pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        return self.net(x)


def random_sets(samples=3, sets=5):
    """Sets that differ from sample to sample; one is empty, one is a feature alone."""
    member = torch.rand(samples, sets, J) < 0.5
    member[:, 0], member[:, 1] = False, torch.eye(J, dtype=torch.bool)[:samples]
    return FeatureSets.of(member)


@pytest.mark.parametrize(
    "kind",
    [ZERO, kinds.Blur(), kinds.GaussianNoise(), kinds.LocalMean(), kinds.RandomScale(), kinds.Bidirectional(0.5)],
)
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_sets_score_what_a_loop_scores(kind, chunk_size):
    model, x, sets, windows = Counter(), draw(3, 2, 4, 6), random_sets(), Windows(2)
    request, ids = Request(kind, Logit(), sets), [7, 3, 5]
    found = sweep(model, x, 1, [request], Plan(windows, chunk_size), ids).arms[request]
    bound = windows.bind(x)
    copies = perturbed_copies(kind, Samples(x, bound, tuple(ids), torch.arange(3), nn.Identity()))
    for arm, scores in zip(copies, found, strict=True):
        for sample, member, score in zip(sets.sample, sets.member, scores, strict=True):
            perturbed = x.clone()
            for feature in member.nonzero().flatten().tolist():
                bound.write(perturbed, arm, feature)
            close(score, model(perturbed)[sample, 1])


def test_whole_copies_have_what_every_window_alone_has():
    x, windows, kind = draw(2, 2, 4, 6), Windows(2).bind((2, 2, 4, 6)), kinds.Permute(seed=3)
    samples = Samples(x, windows, (4, 9), torch.arange(2), nn.Identity())
    (copy,) = perturbed_copies(kind, samples)
    for feature in range(J):
        (alone,) = samples.perturb(kind, [None], [(feature,)], 1)[:, 0]
        expected = x.clone()
        windows.write(expected, copy, feature)
        close(alone, expected)


def test_equal_sets_are_scored_once_and_features_alone_with_importance():
    model, x, sets = Counter(), draw(3, 2, 4, 6), random_sets()
    unique = {(int(n), tuple(row)) for n, row in zip(sets.sample, sets.member.tolist(), strict=True) if any(row)}
    again = FeatureSets(sets.sample, sets.member)
    requests = [Request(ZERO, Probability(), sets), Request(ZERO, Probability(), again)]
    first, second = sweep(model, x, 1, requests, Plan(Windows(2), 9)).arms.values()
    close(second, first)
    assert sum(model.rows) == len(x) + len(unique) + 1  # a sample alone tells whether they are independent
    model.rows = []
    alone = sum(sum(row) == 1 for _, row in unique)
    importance = Request(ZERO, Probability())
    shared = sweep(model, x, 1, [importance, *requests], Plan(Windows(2), 9, "dense"))
    close(shared.arms[requests[0]], first)
    assert alone >= 3
    # A network whose attributes have changed is looked at again, by a sample alone.
    assert sum(model.rows) == len(x) * (1 + J) + len(unique) - alone + 1


def test_passes_are_filled_across_samples():
    model, sets = Counter(), FeatureSets(torch.tensor([0, 1, 1]), torch.eye(J, dtype=torch.bool)[:3])
    sweep(model, draw(2, 2, 4, 6), 1, [Request(ZERO, Logit(), sets)], Plan(Windows(2), chunk_size=3))
    assert model.rows == [2, 1, 3]


def test_a_perturbed_cell_that_is_not_finite_gives_nan_and_never_reaches_the_network():
    x = torch.ones(1, 1, 4).double()
    x[..., 0] = 0
    sets = FeatureSets.of(torch.tensor([[[True, False], [False, True]]]))
    request = Request(kinds.Log(base=2.0), RawOutput(), sets)
    found = sweep(nn.Sequential(nn.Flatten(), nn.Linear(4, 1).double()), x, 0, [request], Plan(Windows(2)))
    assert found.arms[request].isfinite().tolist() == [[False, True]]


def test_a_mask_keeps_a_share_of_every_cell():
    model, x, kept = Counter(), draw(3, 2, 4, 6), torch.rand(3, 4, 6).double()
    kept[:, 0], kept[:, 1] = 0, 1
    request = Request(kinds.ChannelMean(), Logit(), CellMasks(kept))
    found = sweep(model, x, 2, [request], Plan(Windows(2), chunk_size=2)).arms[request]
    mask, mean = kept.unsqueeze(1), x.mean((2, 3), keepdim=True)
    close(found[0], model(mask * x + (1 - mask) * mean)[:, 2])


def test_segments_of_every_sample_and_cells_of_none():
    labels = torch.tensor([[0, 0, 1, -1], [1, -1, 0, 0]])
    model, x = nn.Linear(4, 1, bias=False).double(), draw(2, 4)
    sets = FeatureSets.of(torch.tensor([[[True, False]], [[True, True]]]))
    request = Request(ZERO, RawOutput(), sets)
    found = sweep(model, x, 0, [request], Plan(Segments(lambda _: labels))).arms[request]
    gone = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])
    close(found[0], model(x * (1 - gone)).squeeze(1))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: FeatureSets(torch.tensor([1, 0]), torch.ones(2, J) > 0), ValueError, "order of their samples"),
        (lambda: FeatureSets(torch.tensor([0]), torch.ones(1, J)), TypeError, "must be Boolean"),
        (lambda: FeatureSets(torch.tensor([0, 0]), torch.ones(1, J) > 0), ValueError, r"members \[M, J\]"),
        (lambda: FeatureSets(torch.tensor([0]), torch.ones(1, J + 1) > 0), ValueError, "the sets are of 7 features"),
        (lambda: FeatureSets(torch.tensor([3]), torch.ones(1, J) > 0), ValueError, "in 3 samples"),
        (lambda: CellMasks(torch.ones(2, 4, 6)), ValueError, "one mask per sample, got 2 for 3"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        check_sweep(Counter(), draw(3, 2, 4, 6), 1, [Request(ZERO, Logit(), make())], Plan(Windows(2)))


def test_features_that_overlap_are_refused():
    sets = FeatureSets.of(torch.ones(1, 1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"the cell \(1,\) is in several: use Windows whose stride"):
        sweep(nn.Linear(6, 1).double(), draw(1, 6), 0, [Request(ZERO, RawOutput(), sets)], Plan(Windows(2, stride=1)))
