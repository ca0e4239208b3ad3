"""The search metric, and what two processes make of all three metrics of units."""

import pickle
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import start_processes

from lightning_xai.metrics import Dissection, TopSamples, UnitAblation, compute_together, update_together
from lightning_xai.units import UnitGroups, top_samples

TIMEOUT = 60


def data():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
        return model, torch.randn(9, 1, 4, 4).double().round(), torch.randint(3, (9,))


@pytest.mark.parametrize("groups", [None, UnitGroups.of([[0, 1], [3]], units=4)], ids=["units", "groups"])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_batches_together_are_the_data(n, groups):
    model, x, y = data()
    metric = TopSamples("1", n=n, unit=groups or "channel")
    ids = torch.randperm(40)[:9]
    for rows in torch.randperm(9).split(4):
        metric.update(model, x[rows], y[rows], ids[rows])
    expected = top_samples(model, x, layer="1", n=n, unit=groups or "channel", sample_ids=ids)
    found = metric.result()
    assert torch.equal(found.sample_id, expected.sample_id)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.position, expected.position)
    if n > 1:
        assert torch.equal(metric.compute()["value"], expected.value)


@pytest.mark.parametrize("seen", ["own", "other"])
def test_a_state_without_a_sample_adds_nothing(seen):
    model, x, y = data()
    metrics = {"own": TopSamples("1", n=4), "other": TopSamples("1", n=4)}
    metrics[seen].update(model, x, y)
    metrics["own"]._reduce_states(metrics["other"].metric_state)  # what merge_state, of newer versions, calls
    found, expected = metrics["own"].result(), top_samples(model, x, layer="1", n=4)
    assert torch.equal(found.sample_id, expected.sample_id)
    assert torch.equal(found.value, expected.value)


def test_unless_named_the_last_layer_with_an_activation_is_searched():
    model, x, y = data()
    found, expected = TopSamples(n=2), TopSamples("0", n=2)
    for metric in (found, expected):
        metric.update(model, x, y)
    assert torch.equal(found.result().value, expected.result().value)


def test_max_samples_may_exceed_the_data():
    model, x, y = data()
    metric = TopSamples("3", n=12)
    metric.update(model, x, y)
    found = metric.compute()
    assert found["sample_id"][:, 9:].eq(-1).all()
    assert found["value"][:, 9:].isnan().all()
    assert found["value"][:, :9].isfinite().all()
    assert found["sample_id"][:, :9].sort().values.equal(torch.arange(9).expand(3, 9))


def test_activations_that_are_not_finite_are_counted_and_left_out():
    model, x, y = data()

    def spoil(_module, _inputs, output):
        output = output.clone()
        output[2:3, 1, 0, 0] = float("inf")
        return output

    model[1].register_forward_hook(spoil)
    metric = TopSamples("1", n=9)
    metric.update(model, x, y)
    found = metric.compute()
    assert int(found["nonfinite"]) == 1
    assert 2 not in found["sample_id"][1].tolist()
    assert 2 in found["sample_id"][0].tolist()


def test_metric_resets_pickles_and_plots():
    model, x, y = data()
    metric = TopSamples("1", n=3)
    ids = torch.arange(9)
    first = metric(model, x[:4], y[:4], ids[:4])
    metric(model, x[4:], y[4:], ids[4:])
    whole = top_samples(model, x, layer="1", n=3)
    assert torch.equal(metric.compute()["sample_id"], whole.sample_id)
    assert torch.equal(pickle.loads(pickle.dumps(metric)).compute()["sample_id"], whole.sample_id)
    assert int(first["sample_id"].max()) <= 3
    assert TopSamples("1", n=4).configuration.tolist() != metric.configuration.tolist()
    _, axes = metric.plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "unit")
    other = TopSamples("1", n=3)
    other.update(model, x[4:], y[4:], ids[4:])
    left = TopSamples("1", n=3)
    left.update(model, x[:4], y[:4], ids[:4])
    left._reduce_states(other.metric_state)  # what merge_state, of newer versions, calls
    assert torch.equal(left.compute()["sample_id"], whole.sample_id)
    metric.reset()
    with pytest.raises(ValueError, match="no sample"), pytest.warns(UserWarning, match="before the ``update``"):
        metric.compute()


def test_bad_input_is_refused():
    model, x, y = data()
    with pytest.raises(ValueError, match="n must be"):
        TopSamples("1", n=0)
    with pytest.raises(TypeError, match="dotted name"):
        TopSamples(1)
    with pytest.raises(ValueError, match="layer '7' is unknown"):
        TopSamples("7").check(model, x, y)
    with pytest.raises(ValueError, match="more than once"):
        TopSamples("1").update(model, x[:2], y[:2], [3, 3])
    metric = TopSamples("1")
    metric.update(model, x, y)
    other = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)).double()
    with pytest.raises(ValueError, match="gave 4 units before and gives 5"):
        metric.update(other, x, y)


def segmenter(inputs):
    return (inputs[:, 0] * 2).floor().clamp(-1, 2).long()


def metrics():
    return {
        "dissection": Dissection("1", ["a", "b", "c"], 0.1, segmenter, union="present"),
        "ablation": UnitAblation("1", units=[[0], [1, 2]]),
        "few": TopSamples("1", n=2),
        "many": TopSamples("1", n=12),
    }


def explained(shard, batch_size, compute):
    """Every metric over the samples of a shard; one without any takes part with the shapes of sample 0."""
    model, inputs, target = data()
    found = metrics()
    for ids in torch.tensor(shard, dtype=torch.long).split(batch_size) if shard else ():
        update_together(found, model, inputs[ids], target[ids], ids)
    if not shard:
        update_together(found, model, inputs[:1], target[:1], count=False)
    return compute(found)


def one_by_one(found):
    return {name: metric.compute() for name, metric in found.items()}


def work(rank, shards, folder):
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=TIMEOUT)}
    distributed.init_process_group("gloo", rank=rank, world_size=len(shards), **meeting)
    found = [explained(shards[rank], 3 - rank, compute) for compute in (one_by_one, compute_together)]
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
@pytest.mark.parametrize(
    "shards",
    [
        [[0, 2, 4, 6, 8], [1, 3, 5, 7]],
        [[8, 1, 0, 7, 5, 6, 4, 3], [2]],
        [[], list(range(9))],
    ],
    ids=["even", "uneven", "none"],
)
def test_two_processes_give_the_numbers_of_one(tmp_path, shards):
    processes = start_processes(work, (shards, str(tmp_path)), nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        assert time.monotonic() < deadline, "the processes did not end in time"
    one = explained(list(range(9)), 4, one_by_one)
    for rank in range(2):
        for two in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            for name, result in one.items():
                for key, value in result.items():
                    exact = {"rtol": 0.0, "atol": 0.0}
                    how = {"rtol": 1e-12, "atol": 1e-12} if key == "score_drop" else exact
                    torch.testing.assert_close(two[name][key], value, equal_nan=True, **how)
