"""Re-activation and thresholds as metrics: the numbers of the functions, for any batches and number of processes."""

import copy
import pickle
import time
from datetime import timedelta

import pytest
import torch
from matplotlib.figure import Figure
from torch import distributed, nn
from torch.multiprocessing import start_processes

from lightning_xai.metrics import ActivationThreshold, Importance, Reactivation, compute_together, update_together
from lightning_xai.perturbation import Segments, Windows, kinds
from lightning_xai.units import UnitGroups, activation_threshold, reactivation

N, P, TIMEOUT = 9, 0.05, 60
WINDOWS = Windows(2, stride=1)
NOISE = kinds.GaussianNoise(seed=3)
GROUPS = UnitGroups.of([[0, 2], [1]], units=3)
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12


def data():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 3 * 2, 3)
        model = nn.Sequential(*layers).double()
        return model, torch.randn(N, 1, 6, 5, dtype=torch.float64), torch.randint(3, (N,))


def positions(p=P):
    model, inputs, _ = data()
    return activation_threshold(model, inputs, layer="0", p=p, unit="position").value


def metrics():
    return {
        "activation": Reactivation("0", WINDOWS, NOISE, p=P),
        "delta": Reactivation("2", WINDOWS, NOISE, p=P, threshold="delta"),
        "given": Reactivation("0", WINDOWS, NOISE, threshold=[0.5, 0.2, 1.0]),
        "position": Reactivation("0", WINDOWS, NOISE, threshold=positions(), unit="position"),
        "last": Reactivation(None, WINDOWS, kinds.Bidirectional(3.0), p=0.4),
        "groups": Reactivation("0", WINDOWS, NOISE, p=P, unit=GROUPS),
        "threshold": ActivationThreshold("0", p=P),
        "thresholds of groups": ActivationThreshold("0", p=P, unit=GROUPS),
        "thresholds of positions": ActivationThreshold("2", p=0.3, unit="position"),
    }


def updated(found, shard, batch_size):
    """Metrics over the samples of a shard; a shard without any takes part with the shapes of sample 0."""
    model, inputs, target = data()
    for ids in torch.tensor(shard, dtype=torch.long).split(batch_size) if len(shard) else ():
        update_together(found, model, inputs[ids], target[ids], ids)
    if not len(shard):
        update_together(found, model, inputs[:1], target[:1], count=False)
    return found


def computed(shard, batch_size):
    return {name: metric.compute() for name, metric in updated(metrics(), shard, batch_size).items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        exact = key not in ("per_change",)
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(found[key], value, equal_nan=True, **tolerance)


# Results


@pytest.mark.parametrize("name", ["activation", "delta", "given", "position", "last", "groups"])
def test_the_numbers_of_the_function(name):
    model, inputs, _ = data()
    found = computed(range(N), 4)[name]
    asked = {
        "activation": {"layer": "0", "p": P},
        "delta": {"layer": "2", "p": P, "threshold": "delta"},
        "given": {"layer": "0", "threshold": torch.tensor([0.5, 0.2, 1.0])},
        "position": {"layer": "0", "threshold": positions(), "unit": "position"},
        "groups": {"layer": "0", "p": P, "unit": GROUPS},
        "last": {"layer": "2", "p": 0.4, "perturbation": kinds.Bidirectional(3.0)},
    }[name]
    expected = reactivation(model, inputs, **{"regions": WINDOWS, "perturbation": NOISE, **asked})
    assert torch.equal(found["by_unit"], expected.by_unit)
    assert found["total"] == expected.total > 0
    assert found["per_window"] == pytest.approx(expected.per_window)
    assert found["per_change"] == pytest.approx(expected.per_change)
    painted = WINDOWS.bind(inputs).paint(expected.by_feature.double().unsqueeze(0))[0]
    torch.testing.assert_close(found["map"], painted)
    assert found["samples"] == N
    assert found["nonfinite"] == found["excluded"] == 0
    if name == "position":
        assert "by_feature_and_unit" not in found
    else:
        assert torch.equal(found["by_feature_and_unit"], expected.by_feature_and_unit)
    if name in ("activation", "delta", "last", "groups"):
        assert torch.equal(found["threshold"], expected.threshold)
        assert found["error"] == 0
        assert found["dead"] == 0


@pytest.mark.parametrize(
    ("name", "layer", "p", "unit"),
    [
        ("threshold", "0", P, "channel"),
        ("thresholds of positions", "2", 0.3, "position"),
        ("thresholds of groups", "0", P, GROUPS),
    ],
)
def test_the_thresholds_of_the_function(name, layer, p, unit):
    model, inputs, _ = data()
    found = computed(range(N), 4)[name]
    expected = activation_threshold(model, inputs, layer=layer, p=p, unit=unit)
    assert torch.equal(found["threshold"], expected.value)
    assert found["values"] == expected.count
    assert found["error"] == 0
    assert found["dead"] == len(expected.dead)
    assert found["samples"] == N


def test_a_budget_too_small_is_said(monkeypatch):
    model, inputs, target = data()
    monkeypatch.setattr(ActivationThreshold, "budget", 3 * 128 * 8)
    metric = ActivationThreshold("0", p=0.9)
    for rows in torch.arange(N).split(2):
        metric.update(model, inputs[rows], target[rows])
    exact = activation_threshold(model, inputs, layer="0", p=0.9).value
    found = metric.compute()
    assert 0 < found["error"] < 1
    assert bool(((found["threshold"] - exact).abs() <= found["error"] * exact.abs() + 2**-31).all())
    assert not metric.result().exact
    monkeypatch.setattr(Reactivation, "budget", 100)
    with pytest.raises(ValueError, match="more than the budget of 100: give a threshold"):
        Reactivation("0", WINDOWS, NOISE).update(model, inputs, target)


def test_what_is_not_a_number_is_counted():
    model, inputs, target = data()
    inputs = inputs.abs() + 0.1
    inputs[2, 0, 0, 0] = 0.0
    metric = Reactivation("0", Windows(2), kinds.Inverse())
    metric.update(model, inputs, target)
    assert metric.compute()["nonfinite"] == 3
    assert metric.compute()["per_change"].isfinite()
    with torch.no_grad():
        model[0].bias[0] = torch.inf
    seen = ActivationThreshold("0")
    seen.update(model, inputs, target)
    assert seen.compute()["nonfinite"] == N * 4 * 3
    assert seen.compute()["threshold"][0].isnan()
    assert seen.compute()["threshold"][1:].isfinite().all()


# Counting


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_results_ignore_batch_size(batch_size):
    one = computed(range(N), N)
    for name, found in computed([8, 1, 0, 7, 5, 6, 4, 3, 2], batch_size).items():
        same(found, one[name])


def test_importance_and_re_activation_take_the_passes_of_importance():
    model, inputs, target = data()
    rows = []
    model.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    alone = Importance(WINDOWS, NOISE)
    alone.update(model, inputs, target)
    before, rows[:] = list(rows), []
    together = {"importance": Importance(WINDOWS, NOISE), "first": Reactivation("0", WINDOWS, NOISE)}
    together["second"] = Reactivation("2", WINDOWS, NOISE, threshold="delta")
    update_together(together, model, inputs, target)
    assert sum(rows) <= 1.1 * sum(before) + 2
    torch.testing.assert_close(together["importance"].compute(), alone.compute())
    for metric in together.values():
        own = copy.deepcopy(metric)
        own.reset()
        own.update(model, inputs, target)
        torch.testing.assert_close(own.compute(), metric.compute())


def test_forward_gives_the_batch_and_keeps_the_sum():
    model, inputs, target = data()
    for name, metric in metrics().items():
        whole = computed(range(N), N)[name]
        for rows in torch.arange(N).split(4):
            batch = metric(model, inputs[rows], target[rows], rows)
            assert batch["samples"] == len(rows)
        same(metric.compute(), whole)


COPIES = {
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    "deepcopy": copy.deepcopy,
    "clone": lambda metric: metric.clone(),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_and_resets(duplicate):
    model, inputs, target = data()
    for name, metric in updated(metrics(), range(N), 4).items():
        once = metric.compute()
        twin = duplicate(metric)
        same(twin.compute(), once)
        twin.update(model, inputs, target)
        same(metric.compute(), once)
        assert twin.compute()["samples"] == 2 * N, name
        metric.reset()
        same(updated({name: metric}, range(N), N)[name].compute(), once)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_metric_works_in_any_gradient_mode(context):
    one = computed(range(N), 4)
    with context():
        found = computed(range(N), 4)
    for name, result in one.items():
        same(found[name], result)


def test_samples_that_do_not_count_leave_only_shapes():
    model, inputs, target = data()
    found = metrics()
    update_together(found, model, inputs[:1], target[:1], count=False)
    update_together(found, model, inputs, target, torch.arange(N))
    for name, result in computed(range(N), N).items():
        same(found[name].compute(), result)


@pytest.mark.parametrize("name", metrics())
def test_plot_gives_figure_and_axes(name):
    metric = updated(metrics(), range(N), N)[name]
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert {*axes} <= {*figure.axes}


# Tables


def listed(counts, columns):
    """Counts by place as rows from the largest to the smallest one above 0, by going through all of them."""
    found = []
    for index in range(counts.numel()):
        place = tuple(int(part) for part in torch.unravel_index(torch.tensor(index), counts.shape))
        if counts[place]:
            found.append((-int(counts[place]), place))
    return [(*columns(place), -count) for count, place in sorted(found)]


def test_tables_name_the_strongest(tmp_path):
    first = {j: f"{j} at {j // 4}/{j % 4}" for j in range(20)}  # 5 x 4 windows, one cell apart
    for name in ("delta", "given"):
        metric = updated(metrics(), range(N), 4)[name]
        matrix = metric.compute()["by_feature_and_unit"]
        tables = metric.tables(metric.compute())
        assert list(tables) == ["by_feature", "by_unit", "by_feature_and_unit"]
        assert list(tables["by_feature"].rows) == listed(matrix.sum(1), lambda place: (first[place[0]],))
        assert [row[:2] for row in tables["by_unit"].rows] == listed(matrix.sum(0), lambda place: place)
        pairs = listed(matrix, lambda place: (first[place[0]], place[1]))
        assert list(tables["by_feature_and_unit"].rows) == pairs
        assert len(pairs) > 5
    tables["by_feature_and_unit"].to_csv(tmp_path / "new" / "pairs.csv")
    lines = (tmp_path / "new" / "pairs.csv").read_text().splitlines()
    title = metric.results["by_feature_and_unit"].title
    assert lines == [f"feature,unit,{title}", *(",".join(map(str, row)) for row in pairs)]


def test_dead_units_are_listed_after_the_others():
    model, inputs, target = data()
    with torch.no_grad():
        model.get_submodule("0").bias[1] -= 100.0
    metric = Reactivation("0", WINDOWS, NOISE, p=P)
    metric.update(model, inputs, target)
    found = metric.compute()
    assert found["dead"] == 1
    assert found["dead_units"].nonzero().flatten().tolist() == [1]
    table = metric.tables({**found, "by_unit": torch.tensor([3, 9, 4])})["by_unit"]
    assert table.columns == ("unit", "re-activations by unit", "threshold T", "dead")
    assert [(row[0], row[1], row[3]) for row in table.rows] == [(2, 4, ""), (0, 3, ""), (1, 9, "yes")]


def test_tables_of_positions():
    metric = updated(metrics(), range(N), 4)["position"]
    found = metric.compute()
    tables = metric.tables(found)
    assert list(tables) == ["by_feature", "by_unit"]
    assert list(tables["by_unit"].rows) == listed(found["by_unit"], lambda place: ("/".join(map(str, place)),))
    model, inputs, _ = data()
    ask = {"layer": "0", "threshold": positions(), "unit": "position", "regions": WINDOWS, "perturbation": NOISE}
    expected = reactivation(model, inputs, **ask).by_feature
    assert torch.equal(found["by_feature"], expected)


def test_nothing_re_activated_leaves_tables_without_rows():
    model, inputs, target = data()
    metric = Reactivation("0", WINDOWS, NOISE, threshold=[1e9, 1e9, 1e9])
    metric.update(model, inputs, target)
    assert all(table.rows == () for table in metric.tables(metric.compute()).values())


# Processes


def work(rank, shards, folder):
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=TIMEOUT)}
    distributed.init_process_group("gloo", rank=rank, world_size=len(shards), **meeting)
    own = updated(metrics(), shards[rank], batch_size=3 - rank)
    together = compute_together(own)
    torch.save({"together": together, "alone": {k: m.compute() for k, m in own.items()}}, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shards",
    [[[0, 2, 4, 6, 8], [1, 3, 5, 7]], [[8, 1, 0, 7, 5, 6, 4, 3], [2]], [[], [0, 1, 2, 3, 4, 5, 6, 7, 8]]],
    ids=lambda shards: "+".join(str(len(shard)) for shard in shards),
)
def test_two_processes_give_the_numbers_of_one(tmp_path, shards):
    processes = start_processes(work, (shards, str(tmp_path)), nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        assert time.monotonic() < deadline, "the processes did not end in time"
    one = computed(range(N), 4)
    for rank in range(2):
        two = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for results in two.values():
            for name, result in one.items():
                same(results[name], result)


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Reactivation("0", "3", NOISE), TypeError, "regions must be"),
        (lambda: Reactivation("0", WINDOWS, 3), TypeError, "perturbation must be one of"),
        (lambda: Reactivation("0", WINDOWS, NOISE, p=0.0), ValueError, "p must be a share"),
        (lambda: Reactivation("0", WINDOWS, NOISE, threshold="delt"), ValueError, "Did you mean 'delta'"),
        (lambda: Reactivation("0", WINDOWS, NOISE, unit="cell"), ValueError, "unit must be"),
        (
            lambda: Reactivation("0", WINDOWS, NOISE, unit="position"),
            ValueError,
            "threshold must be given for positions",
        ),
        (lambda: Reactivation("0", Segments(lambda x: x), NOISE), ValueError, "the same in every sample"),
        (lambda: Reactivation("0", WINDOWS, NOISE, score="logits"), ValueError, "Did you mean 'logit'"),
        (lambda: ActivationThreshold("0", p=2), ValueError, "p must be a share"),
        (lambda: ActivationThreshold("0", unit="cell"), ValueError, "unit must be"),
    ],
)
def test_a_metric_is_checked_when_it_is_built(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Reactivation("00", WINDOWS, NOISE), "layer '00' is unknown"),
        (ActivationThreshold("00"), "layer '00' is unknown"),
        (Reactivation("2", WINDOWS, NOISE, unit=GROUPS), "unit has groups of 3 channels, layer '2' has 2"),
        (ActivationThreshold("2", unit=GROUPS), "groups are of 3 units"),
        (Reactivation("5", WINDOWS, NOISE), "no activation is found after layer '5'"),
        (Reactivation("0", WINDOWS, NOISE, threshold=[1.0]), r"threshold is \[1\], the units of layer '0' are \[3\]"),
    ],
)
def test_regions_that_do_not_fit_the_model_are_refused(metric, message):
    model, inputs, target = data()
    with pytest.raises(ValueError, match=message):
        metric.update(model, inputs, target)


def test_a_model_without_units():
    metric = Reactivation(None, Windows(2), kinds.Constant(0.0))
    with pytest.raises(ValueError, match="no convolution or linear layer with an activation is found"):
        metric.check(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(2, 4), 0)


def test_inputs_must_keep_their_size():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    for metric in (Reactivation("0", Windows(2), kinds.Constant(0.0)), ActivationThreshold("0", unit="position")):
        metric.update(model, torch.randn(2, 1, 8), 0)
        with pytest.raises(ValueError, match="inputs of one size"):
            metric.update(model, torch.randn(2, 1, 10), 0)
