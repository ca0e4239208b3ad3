"""What a sweep costs, what it survives, and what it refuses."""

import pytest
import torch
from torch import nn

from lightning_xai import batching
from lightning_xai.operations import largest_activation
from lightning_xai.perturbation import Segments, Windows, importance, kinds, network, speed, sweep, synergy
from lightning_xai.perturbation.network import progress_to
from lightning_xai.perturbation.sweep import Plan, Request, check_sweep, evaluations
from lightning_xai.scores import Logit, Probability

J = 5
REGIONS = Windows(2)
FADE = [kinds.Negative(delta) for delta in (0.1, 0.2, 0.3)]
TWO_SIDED = kinds.Bidirectional(0.1)


class Counter(nn.Module):
    """Three logits of ten columns; counts the rows of every forward pass, and has memory for so many."""

    def __init__(self, memory=10**9, error=torch.OutOfMemoryError):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.memory, self.error, self.rows = memory, error, []

    def forward(self, x):
        if len(x) > self.memory:
            raise self.error("can't allocate memory")
        self.rows.append(len(x))
        return self.net(x)


@pytest.fixture
def x():
    return torch.randn(4, 10, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def ask(*perturbations, pairing=None, score=None):
    return [Request(kind, score or Probability(), pairing) for kind in perturbations]


# Cost


@pytest.mark.parametrize(
    ("requests", "inputs_per_sample"),
    [
        (ask(FADE[0]), J),
        (ask(TWO_SIDED), 2 * J),
        (ask(*FADE), 3 * J),
        (ask(FADE[0], pairing=2), J - 1),
        (ask(FADE[0], pairing=(0, 1, 1, 4)), J - 1),
        (ask(FADE[0], pairing="all"), J * (J - 1) // 2),
        (ask(FADE[0]) + ask(FADE[0], score=Logit()), J),
        (ask(kinds.Negative(0.1)) + ask(kinds.Negative(0.1)), J),
        (ask(FADE[0]) + ask(*FADE) + ask(FADE[0], pairing=0), 3 * J + J - 1),
        (ask(FADE[0]) + ask(*FADE) + ask(FADE[0], pairing="all"), 3 * J + J * (J - 1) // 2),
    ],
)
def test_a_sweep_costs_the_union_of_what_is_asked(x, requests, inputs_per_sample):
    model = Counter()
    swept = sweep.sweep(model, x, 1, requests, Plan(REGIONS, chunk_size=7))
    assert sum(model.rows) == len(x) * (1 + inputs_per_sample) + 1  # a sample alone tells whether they are independent
    assert evaluations(requests, J) == inputs_per_sample
    assert swept.arms.keys() == set(requests)


def test_kinds_that_hold_tensors_are_not_mistaken_for_each_other(x):
    model, states = Counter(), [kinds.Custom(0.9), kinds.Custom(0.5)]
    found = speed(model, x, 1, regions=REGIONS, perturbations=states)
    first, second = (importance(model, x, 1, regions=REGIONS, perturbation=kind) for kind in states)
    close(found.slope, second - first)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("kind", [TWO_SIDED, kinds.LocalMean()], ids=repr)
def test_no_forward_pass_is_larger_than_the_chunk(x, chunk_size, kind):
    model = Counter()
    for anchor in (None, torch.tensor([0, 3, 3, 1])):
        synergy(model, x, 1, regions=REGIONS, perturbation=kind, anchor=anchor, chunk_size=chunk_size)
    assert max(model.rows) <= chunk_size


@pytest.mark.parametrize("requests", [ask(TWO_SIDED), ask(*FADE) + ask(FADE[0], pairing="all")])
@pytest.mark.parametrize("memory", [10**9, 3])
def test_progress_reports_every_input_once(x, requests, memory):
    reports = []
    with progress_to(reports.append):
        sweep.sweep(Counter(memory), x, 1, requests, Plan(REGIONS, chunk_size=6))
    assert sum(reports) == len(x) * evaluations(requests, J)  # what is scored again is taken back first
    assert min(reports) > 0
    sweep.sweep(Counter(), x, 1, requests, Plan(REGIONS))
    assert sum(reports) == len(x) * evaluations(requests, J)


@pytest.mark.parametrize(("block_bytes", "reads"), [(1, 5), (2 * 4 * 10 * 8, 3), (2**20, 1)])
def test_several_passes_are_read_at_once(x, block_bytes, reads, monkeypatch):
    read = []
    monkeypatch.setattr(network, "_BLOCK_BYTES", block_bytes)

    def score(output, target):
        read.append(len(output))
        return output[torch.arange(len(output)), target]

    model, reports = Counter(), []
    how = {"regions": REGIONS, "perturbation": FADE[0], "chunk_size": 4}
    expected = importance(model, x, 1, score="logit", **how)
    model.rows = []
    with progress_to(reports.append):
        found = importance(model, x, 1, score=score, **how)
    assert torch.equal(found, expected)
    assert len(read) == 1 + reads  # the clean inputs are read, too
    assert model.rows == [4, 1] + [4] * J
    assert reports == [4] * J


# Memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("memory", [1, 2, 3, 6])
@pytest.mark.parametrize("chunk_size", [None, 12])
def test_running_out_of_memory_changes_nothing(x, memory, chunk_size, error):
    model = Counter()
    how = {"regions": REGIONS, "perturbation": kinds.GaussianNoise()}
    expected = [quantity(model, x, 1, **how) for quantity in (importance, synergy)]
    model.memory, model.error, model.rows = memory, error, []
    close(importance(model, x, 1, chunk_size=chunk_size, **how), expected[0])
    close(synergy(model, x, 1, chunk_size=chunk_size, **how), expected[1])
    assert max(model.rows) >= memory // 2  # halved, not given up


class Broken(RuntimeError):
    def __init__(self, _):
        super().__init__("a shape does not match")


class RunsOutLater(Counter):
    """Memory gets short once the clean inputs are through."""

    def forward(self, x):
        scores = super().forward(x)
        self.memory = 1
        return scores


def test_memory_may_run_out_in_the_middle(x):
    model = RunsOutLater()
    reports = []
    with progress_to(reports.append):
        found = importance(model, x, 1, regions=REGIONS, perturbation=FADE[0], chunk_size=16)
    assert sum(reports) == len(x) * J
    assert model.rows == [4, 1] + [1] * 4 * (1 + J)
    close(found, importance(model, x, 1, regions=REGIONS, perturbation=FADE[0], chunk_size=1))


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_a_sample_that_does_not_fit_alone_is_an_error(x, chunk_size):
    with pytest.raises(torch.OutOfMemoryError):
        importance(Counter(memory=0), x, 1, regions=REGIONS, perturbation=FADE[0], chunk_size=chunk_size)


def test_other_errors_of_the_model_are_not_retried(x):
    model = Counter(memory=2, error=Broken)
    with pytest.raises(Broken, match="a shape does not match"):
        importance(model, x, 1, regions=REGIONS, perturbation=FADE[0], chunk_size=8)
    assert model.rows == []


def test_a_model_that_returns_nothing_has_not_run_out_of_memory(x):
    nothing = nn.Module()
    nothing.forward = lambda _: None
    with pytest.raises(ValueError, match="output must be a floating-point tensor to be scored, got NoneType"):
        importance(nothing, x, 1, regions=REGIONS, perturbation=FADE[0])


# The size of a chunk


@pytest.mark.parametrize(
    ("budget", "heavy", "largest"),
    [(1, 472, 2), (1, 471, 4), (8 * 10 * 8, 472, 8), (4 * 10 * 8, 471, 8), (10**9, 472, 20)],
)
def test_chunks_found_automatically(x, budget, heavy, largest, monkeypatch):
    """The budget is in bytes of the largest activation; a row's are the ten inputs, the weights are 59, of 8 bytes."""
    monkeypatch.setattr(batching, "_CPU_BYTES", budget)
    monkeypatch.setattr(batching, "_HEAVY_WEIGHTS", heavy)
    model = Counter()
    found = importance(model, x, 1, regions=REGIONS, perturbation=TWO_SIDED)
    assert max(model.rows) == largest
    close(found, importance(model, x, 1, regions=REGIONS, perturbation=TWO_SIDED, chunk_size=1))


def test_the_largest_activation_is_that_of_one_operation():
    model = nn.Sequential(nn.Conv2d(2, 9, 3), nn.Flatten(), nn.Linear(36, 5))
    assert largest_activation(model, torch.ones(1, 2, 4, 4)) == 9 * 2 * 2 * 4
    assert largest_activation(model.double(), torch.ones(2, 2, 4, 4).double()) == 2 * 9 * 2 * 2 * 8


def test_the_largest_activation_may_be_the_input_or_one_of_several():
    assert largest_activation(nn.Linear(10, 2), torch.ones(3, 10)) == 3 * 10 * 4
    assert largest_activation(nn.MaxPool2d(2, return_indices=True), torch.ones(1, 1, 4, 4)) == 16 * 4
    assert largest_activation(nn.LSTM(2, 50, batch_first=True), torch.ones(1, 30, 2)) == 30 * 50 * 4


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)])
def test_the_order_of_inputs_in_memory_does_not_matter(order):
    images = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    back = [order.index(axis) for axis in range(4)]
    strided = images.permute(order).contiguous().permute(back)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 3)).double()
    for kind in (kinds.Blur(1.0), kinds.LocalMean()):
        ask = {"regions": Windows(2), "perturbation": kind, "chunk_size": 8}
        close(importance(model, strided, 1, **ask), importance(model, images, 1, **ask))


def test_the_activations_of_a_compiled_model_are_estimated():
    model = torch.compile(nn.Linear(6, 2), backend="eager")
    assert largest_activation(model, torch.ones(3, 6)) == 64 * 3 * 6 * 4


# Bad input


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"engine": "dens"}, ValueError, "engine 'dens' is unknown. Did you mean 'dense'?"),
        ({"engine": "quick"}, ValueError, r"engine 'quick' is unknown\. Known: auto, dense"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        (
            {"regions": "4"},
            TypeError,
            r"regions must be Windows\(...\), .* or the size of windows, got str",
        ),
        ({"regions": Windows(11)}, ValueError, "size 11 of axis 0 is larger than the 10 cells"),
        ({"regions": Segments([0, 1])}, ValueError, r"labels are \[2\], the inputs need \[10\]"),
        ({"perturbation": "blurr"}, ValueError, "perturbation 'blurr' is unknown. Did you mean 'blur'"),
        ({"perturbation": kinds.Blur}, TypeError, "perturbation must be one of .*kinds.* got ABCMeta"),
        ({"score": "logits"}, ValueError, "score 'logits' is unknown. Did you mean 'logit'"),
        ({"model": torch.relu}, TypeError, "model must be a torch.nn.Module"),
        ({"inputs": [[1.0]]}, TypeError, "inputs must be a tensor .* got list"),
        ({"inputs": torch.ones(4, 10, dtype=torch.long)}, TypeError, "inputs must be floating-point .* torch.int64"),
        ({"inputs": torch.ones(4, 10) * 1j}, TypeError, "inputs must be floating-point .* torch.complex64"),
        ({"inputs": torch.ones(10)}, ValueError, r"inputs must be \[N, C, \*S\] .* got shape \[10\]"),
        ({"inputs": torch.ones(0, 10)}, ValueError, "inputs must hold at least one sample"),
        ({"inputs": torch.ones(2, 0)}, ValueError, "inputs must hold at least one sample and one cell"),
        ({"inputs": torch.tensor([[1.0], [torch.nan], [torch.inf]])}, ValueError, r"inputs hold NaN .* \[1, 2\]"),
        ({"sample_ids": [0, 1]}, ValueError, "sample_ids must be one per sample: got 2 for 4 samples"),
        ({"target": 3}, ValueError, r"target \[3\] is out of range: the model's output has 3 classes"),
        ({"target": torch.tensor([0, 1, 2])}, ValueError, r"target must have one .* shape \[4\], got \[3\]"),
        ({"target": torch.tensor([0] * 6), "chunk_size": 4}, ValueError, r"target .* shape \[4\], got \[6\]"),
        ({"target": torch.tensor(1)}, ValueError, r"target .* shape \[4\], got \[\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(x, changed, error, message):
    model = Counter()
    given = {"model": model, "inputs": x, "target": 1, "regions": REGIONS, "perturbation": FADE[0]}
    with pytest.raises(error, match=message):
        importance(**given | changed)
    assert len(model.rows) <= 2  # the look at the activations, and the clean inputs


@pytest.mark.parametrize(
    ("anchor", "error", "message"),
    [
        (5, ValueError, r"anchor \[5\] is out of range: there are 5 features, 0 to 4"),
        (-1, ValueError, r"anchor \[-1\] is out of range"),
        (torch.tensor([0, 1, 2, 7]), ValueError, r"anchor \[0, 1, 2, 7\] is out of range"),
        (torch.tensor([0, 1]), ValueError, "anchor must be one feature or one per sample, got 2 for 4 samples"),
        (torch.tensor([0.5] * 4), TypeError, "anchor must be a feature index or one per sample, got torch.float32"),
    ],
)
def test_anchors_that_are_no_features(x, anchor, error, message):
    with pytest.raises(error, match=message):
        synergy(Counter(), x, 1, regions=REGIONS, perturbation=FADE[0], anchor=anchor)


@pytest.mark.parametrize(
    ("request_", "plan", "message"),
    [
        (Request(FADE[0], Probability()), Plan(Windows(11)), "size 11 of axis 0"),
        (Request(FADE[0], Probability(), 5), Plan(REGIONS), r"anchor \[5\] is out of range"),
        (Request(kinds.Custom([1.0, 2.0]), Probability()), Plan(REGIONS), r"factor of shape \[2\] does not broadcast"),
        (Request(FADE[0], Probability(output="logits")), Plan(REGIONS), "output='logits' is not in the model's output"),
    ],
)
def test_what_does_not_fit_is_found_with_one_forward_pass(x, request_, plan, message):
    model = Counter()
    with pytest.raises((ValueError, TypeError), match=message):
        check_sweep(model, x, 1, [request_], plan)
    assert sum(model.rows) <= 1


def test_what_fits_passes_with_one_forward_pass(x):
    """Also an anchor per sample, and features that the first sample does not have."""
    model, labels = Counter(), torch.tensor([[0] * 10, [0, 1] * 5, [0, 1, 2, 3, 4] * 2, [0] * 10])
    for regions in (REGIONS, Segments(lambda _: labels)):
        model.rows.clear()
        requests = ask(*FADE) + ask(FADE[0], pairing="all") + ask(FADE[0], pairing=(0, 1, 4, 0))
        check_sweep(model, x, 1, requests, Plan(regions))
        assert model.rows == [1]


# What models do to their inputs, and what they are made of


class InPlace(nn.Module):
    """Works in place on what it is given."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, 3).double()

    def forward(self, x):
        return self.head(x.sub_(1).relu_())


class Copying(InPlace):
    """The same without."""

    def forward(self, x):
        return self.head((x - 1).relu())


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_a_model_that_works_in_place_is_explained_like_one_that_does_not(x, chunk_size):
    model, given = InPlace(), x.clone()
    other = Copying()
    other.load_state_dict(model.state_dict())
    how = {"regions": REGIONS, "perturbation": kinds.Blur(1.0), "chunk_size": chunk_size}
    expected = importance(other, x.clone(), 1, **how)
    check_sweep(model, x, 1, ask(kinds.Blur(1.0)), Plan(REGIONS))
    close(importance(model, x, 1, **how), expected)
    assert torch.equal(x, given)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(1, 10))])
def test_scripted_and_traced_models(compiled):
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    inputs = torch.randn(4, 10)
    how = {"regions": REGIONS, "perturbation": kinds.Constant(0.0)}
    found = importance(compiled(model), inputs, 1, **how)
    torch.testing.assert_close(found, importance(model, inputs, 1, **how), rtol=1e-5, atol=1e-6)
