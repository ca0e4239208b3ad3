"""Two processes count what one does; no update may wait for another process, as they are not equally many."""

import pickle
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import start_processes

from lightning_xai import explain
from lightning_xai.evaluation import RandomMap
from lightning_xai.metrics import (
    Consistency,
    Drift,
    Faithfulness,
    GridPointing,
    Importance,
    Speed,
    Synergy,
    compute_together,
    update_together,
)
from lightning_xai.perturbation import Segments, Windows, kinds

TIMEOUT = 60
FURTHER = ("sensitivity_n", "road_accuracy_morf", "road_accuracy_lerf")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12


def own_segments(inputs):
    return (inputs.sum(1) * 2).floor().clamp(-1, 3).long()


def metrics():
    noise, windows = kinds.GaussianNoise(seed=3), Windows(2, stride=1)
    return {
        "importance": Importance(windows, noise),
        "random window": Importance(windows, kinds.RandomScale(), score="logit"),
        "own segments": Importance(Segments(own_segments), kinds.Blur()),
        "speed": Speed(windows, noise, strengths=[0.1, 0.5, 1.0]),
        "synergy": Synergy(Windows(2), kinds.Log()),
        "faithfulness": Faithfulness(RandomMap(), Windows(2), noise, draws=3, further=FURTHER),
        "drift": Drift(RandomMap(), samples=5),
        "consistency": Consistency(RandomMap(), Windows(2), count=1, threshold=0.2, samples=8),
        "mosaics": GridPointing(RandomMap(), (torch.ones(4, 1, 4, 4), torch.arange(4)), shrink=True),
        "anchor": Synergy(Windows(2), kinds.Permute(), anchor=1),
    }


def data():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
        return model, torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.randint(3, (9,))


def explained(shard, batch_size):
    """Every metric over the samples of a shard; a shard without any takes part with the shapes of sample 0."""
    model, inputs, target = data()
    found = metrics()
    for ids in torch.tensor(shard, dtype=torch.long).split(batch_size) if shard else ():
        update_together(found, model, inputs[ids], target[ids], ids)
    if not shard:
        update_together(found, model, inputs[:1], target[:1], count=False)
    return compute_together(found), {name: metric.compute() for name, metric in found.items()}


def unequal_sizes(rank):
    """What two processes with inputs of different sizes are told."""
    metric = Importance(Windows(2), kinds.Blur(), score="value")
    metric.update(nn.Flatten(), torch.ones(1, 1, 4 + rank), 0)
    with pytest.raises(ValueError, match=r"other shapes in another process.*Resize the inputs"):
        compute_together({"importance": metric})
    return "told"


def alone(rank):
    """What each of two processes finds that explains data of its own; the second explains more."""
    model, inputs, target = data()
    mine = slice(0, 4) if rank == 0 else slice(4, 9)
    for _ in range(1 + rank):  # one more call than the other process makes: nobody may wait
        explain(model, [(inputs[mine], target[mine])], found := metrics(), progress=False)
    return {name: metric.samples for name, metric in found.items()}


def own_group(_rank):
    """What a metric with a process group of its own is told."""
    metric = Importance(Windows(2), kinds.Blur(), score="value", process_group=distributed.new_group([0, 1]))
    with pytest.raises(ValueError, match="'grouped' has a process group of its own: call its compute"):
        compute_together({"grouped": metric})
    return "told"


def without_data(rank):
    """What the second of two processes gets that has nothing, not even the shapes."""
    model, inputs, target = data()
    found = metrics()
    if rank == 0:
        update_together(found, model, inputs, target)
    return compute_together(found)


def failing(rank):
    """What each of two processes finds if the first failed in one metric and the other cannot compute another."""
    model, inputs, target = data()
    found, failed, said = metrics(), {"speed": "a reason"} if rank == 0 else {}, []
    update_together(found, model, inputs[rank::2], target[rank::2], range(9)[rank::2])
    if rank == 1:
        found["synergy"].compute = lambda: 1 / 0
    results = compute_together(found, failed=failed, on_error=lambda name, error: said.append((name, str(error))))
    return list(results), failed, said


def traffic(_rank):
    """How many bytes of objects, whose size grows with the processes, are sent for states of some size."""
    sent, gather = [], distributed.all_gather_object

    def heard(everywhere, mine):
        sent.append(len(pickle.dumps(mine)))
        gather(everywhere, mine)

    distributed.all_gather_object = heard
    for size in (4, 12):
        metric = Importance(Windows(2), kinds.Blur(), score="value")
        metric.update(nn.Flatten(), torch.ones(1, 1, size, size), 0)
        compute_together({"importance": metric})
    return sent


def work(rank, job, folder):
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=TIMEOUT)}
    distributed.init_process_group("gloo", rank=rank, world_size=2, **meeting)
    torch.save(job(rank), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def in_two_processes(job, folder):
    """What ``job(rank)`` returns in each of two processes."""
    processes = start_processes(work, (job, str(folder)), nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        assert time.monotonic() < deadline, "the processes did not end in time"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "shards",
    [
        [[0, 2, 4, 6, 8], [1, 3, 5, 7]],
        [[8, 1, 0, 7, 5, 6, 4, 3], [2]],
        [[0, 1, 2, 3, 4, 5, 6, 7, 8], []],
        [[], [0, 1, 2, 3, 4, 5, 6, 7, 8]],
    ],
    ids=lambda shards: "+".join(str(len(shard)) for shard in shards),
)
def test_two_processes_give_the_numbers_of_one(tmp_path, shards):
    found = in_two_processes(lambda rank: explained(shards[rank], batch_size=3 - rank), tmp_path)
    one, again = explained(range(9), batch_size=4)
    torch.testing.assert_close(again, one, rtol=0, atol=0, equal_nan=True)
    for two, again in found:
        torch.testing.assert_close(again, two, rtol=0, atol=0, equal_nan=True)
        for name, result in one.items():
            for key, value in result.items():
                exact = not value.is_floating_point()
                how = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-6, "atol": 1e-12}
                torch.testing.assert_close(two[name][key], value, equal_nan=True, **how)


def test_inputs_of_different_sizes_are_told_to_every_process(tmp_path):
    assert in_two_processes(unequal_sizes, tmp_path) == ["told", "told"]


def test_a_group_of_its_own_is_refused(tmp_path):
    assert in_two_processes(own_group, tmp_path) == ["told", "told"]


def test_explain_does_not_wait_for_other_processes(tmp_path):
    counts = [{int(value) for value in found.values()} for found in in_two_processes(alone, tmp_path)]
    assert counts == [{4}, {5}]


def test_a_process_without_data_gets_the_results(tmp_path):
    expected = explained(range(9), batch_size=9)[0]
    for found in in_two_processes(without_data, tmp_path):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_what_fails_in_one_process_is_left_out_in_all(tmp_path):
    (first, failed, said), (second, elsewhere, own) = in_two_processes(failing, tmp_path)
    assert first == [name for name in metrics() if name != "speed"]
    assert second == [name for name in metrics() if name not in ("speed", "synergy")]
    assert failed["speed"] == "a reason"
    assert elsewhere == {"speed": "in process 0: a reason"}
    assert (said, own) == ([], [("synergy", "division by zero")])


def test_what_is_gathered_does_not_grow_with_the_states(tmp_path):
    (small, large), _ = in_two_processes(traffic, tmp_path)
    assert large == small
