"""Explaining stops when its time is up, at the same sample in every process."""

from itertools import count

import pytest
import torch
from subjects import SAMPLES, Classifier, Still, equal, loader, only, quiet, samples
from test_processes import Ragged, Split, two
from torch import distributed
from torch.utils.data import DataLoader

from lightning_xai import ExplanationMonitor, explain, load_explanations
from lightning_xai.callbacks import budget
from lightning_xai.callbacks.budget import BLOCK, TimeBudget, shared_store

pytestmark = [
    quiet,
    pytest.mark.filterwarnings(
        "ignore:the time to explain is up",
        "ignore:iterable data are taken to be split",
        "ignore:This process .* is multi-threaded:DeprecationWarning",
    ),
]


@pytest.fixture
def ticking(monkeypatch):
    """Lets a second pass whenever somebody looks at the clock."""
    ticks = count()
    monkeypatch.setattr(budget.time, "monotonic", lambda: float(next(ticks)))


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("batch_size", [1, 4, SAMPLES])
def test_a_monitor_explains_the_blocks_for_which_there_is_time(trainer, tmp_path, batch_size):
    module, monitor = Classifier(), ExplanationMonitor(only(), max_samples=20, max_seconds_per_epoch=1e-9)
    run = trainer(callbacks=[monitor])
    with pytest.warns(UserWarning, match="time to explain is up .* `skipped` counts"):
        run.validate(module, loader(batch_size=batch_size), verbose=False)
    numbers = {
        name: int(value) for name, value in run.callback_metrics.items() if name.endswith(("samples", "skipped"))
    }
    assert numbers == {"val/zero/samples": BLOCK, "val/zero/skipped": 20 - BLOCK}
    (folder,) = (tmp_path / "explanations").iterdir()
    assert load_explanations(folder)["sample_id"].tolist() == list(range(BLOCK))
    inputs, labels = samples()
    (metric,) = only().values()
    metric.update(module, inputs[:BLOCK], labels[:BLOCK])
    equal(monitor.results["zero"]["map"], metric.compute()["map"])


@pytest.mark.usefixtures("ticking")
def test_explain_stops_when_the_seconds_have_passed():
    # The clock is looked at when a batch begins, before each block but the first, and when a batch ends.
    found = explain(Classifier(), loader(batch_size=SAMPLES), only(), max_seconds=1.5, progress=False)["zero"]
    assert (found["samples"], found["skipped"]) == (2 * BLOCK, SAMPLES - 2 * BLOCK)


def test_the_first_process_at_a_block_decides_for_all():
    store = distributed.HashStore()
    fast, slow = TimeBudget(1.0, store), TimeBudget(1.0, store)
    assert [fast.allows("0", block) for block in range(3)] == [True, True, True]
    slow.spent = 2.0
    assert [slow.allows("0", block) for block in range(5)] == [True, True, True, False, False]
    assert not fast.allows("0", 3)  # though it has time
    assert [slow.allows("1", block) for block in range(2)] == [True, False]
    assert [fast.allows("1", block) for block in range(2)] == [True, False]


class FirstHasNoTime(ExplanationMonitor):
    """The first process has no time, and the second any, but comes later."""

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, *args):
        order = shared_store("order")
        if trainer.global_rank == 0:
            self._run.budget.spent = 2.0
        else:
            order.wait(["the first is through"])
        super().on_validation_batch_end(trainer, module, outputs, batch, batch_idx, *args)
        if trainer.global_rank == 0 and batch_idx == 2:
            order.set("the first is through", "")


@pytest.mark.parametrize(("data", "explained"), [(Split(), 2 * BLOCK), (Ragged(SAMPLES, 0), BLOCK)])
def test_processes_stop_at_the_same_sample_and_none_waits(trainer, tmp_path, data, explained):
    torch.manual_seed(0)
    monitor = FirstHasNoTime(only(), max_seconds_per_epoch=1.0)
    run = trainer(callbacks=[monitor], **two())
    run.validate(Still(), DataLoader(data, 4), verbose=False)
    numbers = {name: int(value) for name, value in run.callback_metrics.items()}
    assert (numbers["val/zero/samples"], numbers["val/zero/skipped"]) == (explained, SAMPLES - explained)
    (folder,) = (tmp_path / "explanations").iterdir()
    ids = load_explanations(folder)["sample_id"]
    assert set(ids.tolist()) == set(range(explained) if isinstance(data, Split) else range(0, 2 * explained, 2))


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), True, "60"])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises((TypeError, ValueError), match="max_seconds_per_epoch must be"):
        ExplanationMonitor(only(), max_seconds_per_epoch=seconds)
