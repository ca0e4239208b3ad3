"""The incremental engine in a sweep: the numbers of dense passes, and dense passes where it cannot give them."""

import gc
import logging
import weakref
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai._guard import isolated_eval, set_forward_context
from lightning_xai.metrics import Reactivation
from lightning_xai.perturbation import Segments, Windows, importance, interaction, kinds, network, speed, sweep, synergy
from lightning_xai.perturbation.engine import Samples
from lightning_xai.perturbation.incremental import choice, clean, engine, kept, plan
from lightning_xai.perturbation.incremental.operations import TABLE
from lightning_xai.perturbation.incremental.operations.cells import pointwise
from lightning_xai.perturbation.network import Network
from lightning_xai.perturbation.sets import FeatureSets
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request
from lightning_xai.scores import Logit
from lightning_xai.units import reactivation
from lightning_xai.units.change import LayerChange, PositionChange

X = torch.randn(3, 2, 12, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12).view(-1, 1) // 5 + torch.arange(15) // 4 - 1
BY_SAMPLE = Segments(lambda x: torch.stack([LABELS.roll(shift, 1) for shift in range(len(x))]))


class Net(nn.Module):
    """A small network with a sum, a pooling, and something that may be put between."""

    def __init__(self, between=lambda x: x):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.norm.running_mean.uniform_(-1, 1)
        self.between = between
        self.double().eval()

    def forward(self, x):
        y = functional.relu(self.norm(self.first(x)), inplace=True)
        y = functional.max_pool2d(self.between(y) + self.second(y), 2)
        return self.last(y.mean((2, 3)))


def both(quantity, model=None, x=X, **how):
    how = {"regions": Windows(3), "perturbation": kinds.Negative(0.3), **how}
    model = model or Net()
    return [quantity(model, x, 1, engine=name, **how) for name in ("dense", "incremental")]


def close(dense, incremental):
    torch.testing.assert_close(incremental, dense, rtol=0, atol=1e-12, equal_nan=True)


REGIONS = {
    "windows": Windows(3),
    "overlapping": Windows((4, 3), stride=2),
    "large": Windows(11, stride=2),
    "cut off": Windows(4, remainder="center"),
    "segments": Segments(LABELS),
    "segments of each sample": BY_SAMPLE,
}
PERTURBATIONS = {
    "constant": kinds.Constant(0.2),
    "two-sided": kinds.Bidirectional(0.3),
    "blur": kinds.Blur(2.0),
    "noise": kinds.GaussianNoise(),
    "by window": kinds.LocalMean(),
    "shuffled": kinds.Permute(),
}


@pytest.mark.parametrize("regions", list(REGIONS))
def test_importance_of_any_region_is_the_dense_one(regions):
    close(*both(importance, regions=REGIONS[regions]))


@pytest.mark.parametrize("kind", list(PERTURBATIONS))
def test_importance_by_any_perturbation_is_the_dense_one(kind):
    close(*both(importance, perturbation=PERTURBATIONS[kind]))


@pytest.mark.parametrize("score", ["logit", "margin", "comb_classes", "sigmoid"])
def test_importance_of_any_score_is_the_dense_one(score):
    close(*both(importance, score=score))


@pytest.mark.parametrize("anchor", [None, 2, torch.tensor([0, 3, 3])], ids=["all", "one", "per sample"])
@pytest.mark.parametrize("kind", ["two-sided", "by window"])
@pytest.mark.parametrize("quantity", [synergy, interaction])
def test_pairs_are_the_dense_ones(quantity, kind, anchor):
    close(*both(quantity, perturbation=PERTURBATIONS[kind], anchor=anchor, regions=Windows(5, stride=4)))


def test_speed_is_the_dense_one():
    states = [kinds.Negative(delta) for delta in (0.1, 0.2, 0.4)]
    model = Net()
    dense, incremental = (
        speed(model, X, 1, regions=Windows(3), perturbations=states, engine=name).slope
        for name in ("dense", "incremental")
    )
    close(dense, incremental)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_chunks_do_not_change_the_result(chunk_size):
    close(*both(importance, chunk_size=chunk_size))


def test_a_segmentation_is_scored_at_its_positions():
    close(*both(importance, nn.Conv2d(2, 3, 3, padding=1).double(), score="logit"))


def test_single_precision_is_as_exact_as_it_gets():
    dense, incremental = both(importance, Net().float(), X.float())
    torch.testing.assert_close(incremental, dense, rtol=0, atol=1e-6)


def test_half_precision_differs_by_its_rounding():
    model, x = Net(lambda y: functional.avg_pool2d(y, 3, 1, 1)).float(), X.float()
    with set_forward_context(lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        dense, incremental = both(importance, model, x, score="logit")
    torch.testing.assert_close(incremental, dense, rtol=0, atol=0.02)


def swept(model, name, x=X, captures=(), requests=True, regions=None):
    asked = [Request(kinds.Negative(0.3), Logit())] if requests else []
    return sweep.sweep(model, x, 1, asked, Plan(regions or Windows(3), engine=name), captures=captures)


@pytest.mark.parametrize("requests", [True, False])
@pytest.mark.parametrize("kind", ["constant", "two-sided"])
def test_a_layer_changes_as_in_dense_passes(kind, requests):
    model = Net()
    threshold = torch.full((4, 12, 15), 0.1)
    captures = [
        CaptureRequest(PERTURBATIONS[kind], LayerChange("first", "relu", keep_activation=True)),
        CaptureRequest(PERTURBATIONS[kind], PositionChange("second", threshold, "relu")),
    ]
    dense, incremental = (swept(model, name, captures=captures, requests=requests) for name in ("dense", "incremental"))
    assert incremental.engine == "incremental"
    for capture in captures:
        for of in ("features", "samples"):
            expected, found = (getattr(result.captured[capture], of) for result in (dense, incremental))
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                torch.testing.assert_close(found[name].double(), values.double(), rtol=0, atol=1e-9)


def branches(y):
    return y if float(y.detach().mean()) > 0 else -y


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.second.register_forward_hook(lambda *_: None)


class Doubled(Net):
    """Its own statistics, as a batch norm that keeps none."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False).double()


REFUSED = {
    "reads numbers": (lambda: Net(branches), "reads numbers off a tensor"),
    "random numbers": (lambda: Net(lambda y: y + torch.rand_like(y) * 0), "random numbers"),
    "dropout": (lambda: Net(lambda y: functional.dropout(y, 0.5)), "random numbers"),
    "numpy": (lambda: Net(lambda y: torch.from_numpy(y.numpy() * 2)), "reads numbers off a tensor"),
    "a tensor of unknown origin": (lambda: Net(lambda y: y.data * 2), "takes a tensor out of the pass"),
    "inference mode": (lambda: Net(torch.inference_mode()(lambda y: y * 2)), "runs in inference mode"),
    "hooks": (Hooked, "module 'second' carries hooks"),
    "statistics of the batch": (Doubled, "takes the statistics of the batch"),
    "a mask": (lambda: Net(lambda y: y * y[y > 0].mean()), "makes shapes of numbers"),
    "scripted": (lambda: nn.Sequential(torch.jit.script(Net().first), nn.Flatten()), "hides its operations"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_proven_goes_densely_and_says_so(name, caplog):
    make, reason = REFUSED[name]
    joins_rows = name in ("statistics of the batch", "a mask")
    refused = pytest.raises(ValueError, match="depend on each other") if joins_rows else nullcontext()
    with caplog.at_level(logging.INFO, logger="lightning_xai.perturbation"), refused:
        found = swept(make(), "incremental", X[:1])
        assert found.engine == "dense"
        assert found.share == 1.0
    assert reason in caplog.text


def test_hooks_of_all_modules_are_seen():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert swept(Net(), "incremental").engine == "dense"
    finally:
        handle.remove()


@pytest.mark.parametrize("most", [0, 10**9])
def test_plans_are_kept_within_their_memory(most, monkeypatch):
    monkeypatch.setattr(kept, "_PLAN_BYTES", most)
    made = []
    monkeypatch.setattr(engine, "Plan", lambda *parts: made.append(plan.Plan(*parts)) or made[-1])
    states = [kinds.Negative(delta) for delta in (0.1, 0.2)]
    how = {"regions": Windows(3), "perturbations": states, "chunk_size": 2}
    speed(Net(), X[:2], 1, engine="incremental", **how)
    features = 20
    assert len(made) == (features if most else len(states) * features)


def test_sets_of_features_go_densely():
    sets = FeatureSets(torch.arange(3), torch.eye(20, dtype=torch.bool)[:3])
    asked = [Request(kinds.Negative(0.3), Logit(), sets)]
    model = Counts()
    assert sweep.sweep(model, X, 1, asked, Plan(Windows(3), engine="incremental")).engine == "dense"
    assert sum(model.rows) == 1 + len(X) + 3


def test_a_table_goes_densely():
    assert swept(nn.Linear(6, 2).double(), "incremental", X[:, 0, 0, :6], regions=Windows(2)).engine == "dense"


def wrong(op):
    step = pointwise(op)
    right = step.run
    object.__setattr__(step, "run", lambda state: [values + 1 for values in right(state)])
    return step


def test_an_operation_that_differs_is_named_and_the_sweep_goes_on_densely(monkeypatch):
    model = Net()
    dense = swept(model, "dense")
    monkeypatch.setitem(TABLE, "relu", wrong)
    with pytest.warns(UserWarning, match="differs from dense passes in relu in 'the model'"):
        found = swept(model, "incremental")
    assert found.engine == "dense"
    (request,) = dense.arms
    assert torch.equal(found.arms[request], dense.arms[request])


@dataclass(frozen=True, eq=False)
class SometimesNotFinite(kinds.Perturbation):
    def perturb(self, values, _keys):
        return torch.where(values > 1.5, float("nan"), values * 2)


def test_cells_that_are_not_finite_are_left_out_as_in_dense_passes():
    dense, incremental = both(importance, perturbation=SometimesNotFinite())
    close(dense, incremental)
    assert 0 < dense.isnan().sum() < dense.numel()


class Logarithms(nn.Module):
    """Not a number if a cell is negative."""

    def forward(self, x):
        return x.log().mean((2, 3))


def test_a_clean_pass_that_is_not_finite_is_no_base():
    x = X.abs() + 0.1
    x[1, 1, 4, 4] = -1.0
    dense, incremental = (swept(Logarithms(), name, x) for name in ("dense", "incremental"))
    (request,) = dense.arms
    close(dense.arms[request], incremental.arms[request])
    model = nn.Sequential(Logarithms(), nn.Linear(2, 2)).double()
    replaced = [Request(kinds.Constant(1.0), Logit())]
    dense, incremental = (
        sweep.sweep(model, x, 1, replaced, Plan(Windows(3), engine=name)).arms[replaced[0]]
        for name in ("dense", "incremental")
    )
    close(dense, incremental)
    assert dense[0, 1].isfinite().sum() == 1  # where the cell is replaced


# A frame, whose box is the whole map, before four small boxes.
FRAME = torch.full((12, 15), -1)
FRAME[0], FRAME[-1], FRAME[:, 0], FRAME[:, -1] = 0, 0, 0, 0
for number, corner in enumerate(((2, 2), (2, 8), (7, 2), (7, 8)), start=1):
    FRAME[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = number


@pytest.mark.parametrize("chunk_size", [3, 6])
def test_boxes_of_like_size_are_made_together(chunk_size, monkeypatch):
    made = []
    monkeypatch.setattr(engine, "Plan", lambda *parts: made.append(plan.Plan(*parts)) or made[-1])
    close(*both(importance, regions=Segments(FRAME), chunk_size=chunk_size))
    sizes = [made_now.boxes.sizes for made_now in made]
    assert sizes == [(2, 2)] * (12 // chunk_size) + [(12, 15)]


@pytest.mark.parametrize("regions", [Windows(3), BY_SAMPLE])
@pytest.mark.parametrize("kind", [kinds.Bidirectional(0.3), kinds.LocalMean()])
def test_whole_perturbed_inputs_are_there_for_a_few_features(regions, kind, monkeypatch):
    model, sizes, perturb = Net(), [], Samples.perturb
    expected = importance(model, X, 1, regions=regions, perturbation=kind, engine="incremental")
    monkeypatch.setattr(network, "_BLOCK_BYTES", 1)

    def noted(self, kind, arms, features, size):
        sizes.append(size)
        return perturb(self, kind, arms, features, size)

    monkeypatch.setattr(Samples, "perturb", noted)
    found = importance(model, X, 1, regions=regions, perturbation=kind, engine="incremental")
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert {*sizes} == {1}


def test_a_dense_sweep_is_remembered(monkeypatch):
    recorded = []
    record = clean.clean_pass
    monkeypatch.setattr(clean, "clean_pass", lambda *given, **how: recorded.append(given) or record(*given, **how))
    model = Net()
    for _ in range(2):
        assert swept(model, "auto").engine == "dense"
    assert len(recorded) == 1


def test_auto_takes_the_engine_that_costs_less(monkeypatch):
    assert swept(Net(), "auto").engine == "dense"  # so little is not worth a plan
    monkeypatch.setattr(choice, "CALLED", 1)
    model = Net()
    found = swept(model, "auto")
    assert found.engine == "incremental"
    assert found.share < 0.6
    assert swept(model, "auto", regions=Windows(12, stride=1)).engine == "dense"


def test_verdicts_are_kept_within_their_number(monkeypatch):
    monkeypatch.setattr(engine, "_VERDICTS", 2)
    model = Net()
    for size in (2, 3, 4):
        assert swept(model, "auto", regions=Windows(size)).engine == "dense"
    assert len(engine._dense[model]) == 1


def test_two_samples_have_boxes_of_their_own():
    close(*both(importance, x=X[:2], regions=BY_SAMPLE))


def test_the_share_is_that_of_the_multiplications_left():
    layers = nn.Conv1d(2, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 3)
    found = swept(nn.Sequential(*layers).double(), "incremental", X[:, :, 0, :8], regions=Windows(2))
    convolution, last = 5 * 2 * 3, 5 * 3  # a window of two cells reaches four outputs, of eight
    assert found.share == (4 * convolution + last) / (8 * convolution + last)


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("keep", [None, ()])
def test_a_recorded_pass_lets_go_of_what_is_not_kept(keep):
    model, alive = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Tanh(), nn.Tanh()).double(), []
    model[0].register_forward_hook(lambda _module, _inputs, output: alive.append(weakref.ref(output)))
    model[2].register_forward_hook(lambda *_: alive.append(alive[0]() is not None))
    with isolated_eval(model):
        output, record = clean.clean_pass(Network(model, X[:, :, 0], 8), X[:, :, 0], keep=keep)
    assert alive[1] == (keep is None)
    assert len(record.values) == (0 if keep == () else 5)
    assert torch.equal(output, model(X[:, :, 0]))


def test_reactivation_takes_an_engine():
    model, how = Counts(), {"regions": Windows(3), "perturbation": kinds.Negative(0.3), "layer": "second"}
    rows, found = {}, {}
    for name in ("dense", "incremental"):
        model.rows.clear()
        found[name] = reactivation(model, X, activation="relu", p=0.1, engine=name, **how).by_feature_and_unit
        metric = Reactivation(**how, activation="relu", p=0.1, engine=name)
        metric.update(model, X, 1)
        assert torch.equal(metric.compute()["by_feature_and_unit"], found[name])
        rows[name] = sum(model.rows)
    assert torch.equal(found["dense"], found["incremental"])
    assert rows["incremental"] < rows["dense"] / 2
    with pytest.raises(ValueError, match="Did you mean 'dense'"):
        reactivation(model, X, engine="dens", **how)


def test_the_model_runs_for_the_clean_samples_and_for_the_check():
    model = Counts()
    swept(model, "incremental")
    assert model.rows == [1, 2, 1, 3, 2]  # what it takes of memory, what follows the rows, the samples, the check
    swept(model, "incremental")
    assert model.rows[5:] == [3, 2]
    for _ in range(2):
        model.rows = []
        swept(model, "auto")
    assert sum(model.rows) == 1 + len(X) * (1 + 20)  # where it does not pay, it costs no pass


def test_running_out_of_memory_halves_the_passes(monkeypatch):
    model, seen = Net(), []
    how = {"regions": Windows(3), "perturbation": kinds.Negative(0.3)}
    dense = importance(model, X, 1, engine="dense", **how)

    def limited(op):
        step = TABLE["max_pool1d"](op)
        right = step.run

        def run(state):
            (values,) = right(state)
            seen.append(len(values))
            if len(values) > 6:
                raise torch.OutOfMemoryError("can't allocate memory")
            return [values]

        object.__setattr__(step, "run", run)
        return step

    monkeypatch.setitem(TABLE, "max_pool2d", limited)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_xai.batching._found", {})
        close(dense, importance(model, X, 1, engine="incremental", **how))
    assert max(seen) > 6
    assert seen[-1] <= 6


LAYERS = {
    "convolution": lambda c, d: getattr(nn, f"Conv{d}d")(c, c, 3, padding=1, groups=c // 2),
    "wide": lambda c, d: getattr(nn, f"Conv{d}d")(c, c, 5, padding=2, padding_mode="replicate"),
    "dilated": lambda c, d: getattr(nn, f"Conv{d}d")(c, c, 2, padding=1, dilation=2),
    "norm": lambda c, d: getattr(nn, f"BatchNorm{d}d")(c),
    "smooth": lambda _c, _d: nn.GELU(),
    "sharp": lambda _c, _d: nn.ReLU(inplace=True),
    "pooled": lambda _c, d: getattr(nn, f"MaxPool{d}d")(3, 1, 1),
    "averaged": lambda _c, d: getattr(nn, f"AvgPool{d}d")(3, 2, 1),
    "wider": lambda _c, _d: nn.Upsample(scale_factor=2),
    "back": lambda c, d: getattr(nn, f"ConvTranspose{d}d")(c, c, 2, stride=2),
}


class Random(nn.Module):
    """Layers in a random order, each alone, beside a shortcut, or joined to what came before."""

    def __init__(self, axes, draw):
        super().__init__()
        names = [list(LAYERS)[int(draw(len(LAYERS)))] for _ in range(5)]
        self.layers = nn.ModuleList(LAYERS[name](4, axes) for name in names)
        self.narrow = getattr(nn, f"Conv{axes}d")(8, 4, 1)
        self.ways = [int(draw(3)) for _ in names]
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        for layer, way in zip(self.layers, self.ways, strict=True):
            y = layer(x * 1)
            if way == 1 and y.shape == x.shape:
                y += x
            elif way == 2 and y.shape == x.shape:
                y = self.narrow(torch.cat([x, y], 1))
            x = y
        return self.last(x.flatten(2).mean(2))


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_give_the_dense_numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    axes = seed % 3 + 1
    model = Random(axes, lambda high: torch.randint(high, (), generator=generator)).double().eval()
    x = torch.randn(2, 4, *((30,), (11, 8), (5, 4, 6))[axes - 1], dtype=torch.float64, generator=generator)
    size = int(torch.randint(2, 4, (), generator=generator))
    close(*both(importance, model, x, regions=Windows(size, stride=4), score="logit"))


class Counted(Net):
    """Counts its passes by their rows, and has a weight that is computed in every pass."""

    def __init__(self):
        super().__init__()
        self.rows = []
        nn.utils.parametrizations.weight_norm(self.second)
        self.double()

    def forward(self, x):
        self.rows.append(len(x))
        return super().forward(x)


def trained(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def loaded(model):
    model.load_state_dict({name: value * 0.7 for name, value in model.state_dict().items()})


def moved_statistics(model):
    model.train()
    model(X * 2)
    model.eval()


def replaced(model):
    torch.manual_seed(7)
    model.first = nn.Conv2d(2, 4, 3, padding=1).double()


def wider(model):
    model.first = nn.Conv2d(2, 4, 5, padding=2).double()


def other_weights(model):
    model.last.weight = nn.Parameter(model.last.weight.detach() * 2)


def other_way(model):
    model.between = lambda y: functional.avg_pool2d(y, 3, 1, 1)


def exchanged_data(model):
    model.last.weight.data = model.last.weight.data * 3


# A change of a network, and the rows of the passes that follow: the samples and the check; where the operations may be
# others two passes more, and the samples again; where modules or attributes are others, what it takes of memory first.
CHANGES = {
    "nothing": (lambda model: None, [3, 2]),
    "training": (trained, [3, 2]),
    "loading": (loaded, [3, 2]),
    "statistics": (moved_statistics, [3, 2]),
    "data": (exchanged_data, [3, 2]),
    "a module": (replaced, [1, 3, 2, 1, 3, 2]),
    "a kernel": (wider, [1, 3, 2, 1, 3, 2]),
    "a weight": (other_weights, [3, 2, 1, 3, 2]),
    "the way": (other_way, [1, 3, 2, 1, 3, 2]),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_kept_plans_follow_the_network(change):
    model = Counted()
    changed, rows = CHANGES[change]
    swept(model, "incremental")
    changed(model)
    model.rows.clear()
    found = swept(model, "incremental")
    assert found.engine == "incremental"
    assert model.rows == rows
    (request,) = found.arms
    close(swept(model, "dense").arms[request], found.arms[request])


def test_kept_plans_serve_batches_of_any_size(monkeypatch):
    model, made = Counted(), []
    swept(model, "incremental")
    monkeypatch.setattr(engine, "Plan", lambda *parts: made.append(parts))
    # The first batch of a size also tells whether its samples are independent.
    for rows, passes in ((2, [2, 1, 2]), (2, [2, 2]), (3, [3, 2])):
        model.rows.clear()
        found = swept(model, "incremental", X[:rows])
        assert model.rows == passes
        (request,) = found.arms
        close(swept(model, "dense", X[:rows]).arms[request], found.arms[request])
    assert made == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.second.register_forward_hook(lambda *_: None), "carries hooks"),
        (lambda model: setattr(model, "between", branches), "reads numbers off a tensor"),
        (lambda model: setattr(model, "between", lambda y: functional.dropout(y, 0.5)), "random numbers"),
    ],
)
def test_kept_plans_are_no_way_round_a_refusal(change, reason, caplog):
    model = Net()
    assert swept(model, "incremental").engine == "incremental"
    change(model)
    with caplog.at_level(logging.INFO, logger="lightning_xai.perturbation"):
        assert swept(model, "incremental").engine == "dense"
    assert reason in caplog.text


def test_other_types_and_features_have_plans_of_their_own():
    model = Net()
    swept(model, "incremental")
    close(*both(importance, model, regions=Windows(4)))
    dense, incremental = both(importance, model.float(), X.float())
    torch.testing.assert_close(incremental, dense, rtol=0, atol=1e-6)
    close(*both(importance, model.double()))


def test_what_is_kept_holds_no_tensor_of_the_network():
    model = Counted()
    swept(model, "incremental")
    assert model in kept._kept
    before = set(vars(model))
    alive = [weakref.ref(tensor) for tensor in (*model.parameters(), *model.buffers())]
    swept(model, "incremental")
    assert set(vars(model)) == before
    (found,) = kept._kept[model].values()
    seen = weakref.ref(found.survey.template)
    del model, found
    gc.collect()
    assert all(tensor() is None for tensor in alive)
    assert seen() is None


def test_a_few_sweeps_are_kept_per_network(monkeypatch):
    monkeypatch.setattr(kept, "_SWEEPS", 2)
    model = Net()
    for size in (2, 3, 4):
        swept(model, "incremental", regions=Windows(size))
    assert len(kept._kept[model]) == 2
