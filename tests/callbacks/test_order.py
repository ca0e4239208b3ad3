"""Which samples a process meets in a data loader, and under which ids."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from subjects import REGIONS, ZERO, Classifier, quiet, samples
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_xai import ExplanationMonitor
from lightning_xai.callbacks import order
from lightning_xai.callbacks.order import orders_of, source_of
from lightning_xai.metrics import Importance

DATA = TensorDataset(torch.arange(7.0))
ALONE = SimpleNamespace(world_size=1, global_rank=0)


def order_of(loader, trainer):
    world, rank = trainer.world_size, trainer.global_rank
    return orders_of([source_of(loader, world, rank)], world, rank)[0]


class Reversed(SequentialSampler):
    def __iter__(self):
        return iter(range(len(self.data_source) - 1, -1, -1))


def met(loader, trainer=ALONE):
    """(id, sample) of what a loader gives, for what is explained; a sample's value is its place in the data."""
    where = order_of(loader, trainer)
    seen = torch.cat([batch[0] for batch in loader]).long()
    places = torch.arange(len(seen))
    chosen = where.positions(places) >= 0
    return list(zip(where.ids(places[chosen]).tolist(), seen[chosen].tolist(), strict=True)), where.notes


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 3},
        {"sampler": [5, 2, 6], "batch_size": 2},
        {"sampler": range(6, 0, -2)},
        {"batch_sampler": [[3, 1], [0], [6, 5, 4]]},
        {"batch_sampler": BatchSampler([4, 1, 2], 2, drop_last=True)},
        {"sampler": DistributedSampler(DATA, 2, 1, shuffle=True, seed=4), "batch_size": 2},
        {"sampler": DistributedSampler(DATA, 3, 2, shuffle=False)},
        {"sampler": DistributedSampler(DATA, 3, 0, shuffle=True, drop_last=True)},
    ],
)
def test_an_id_is_the_place_in_the_data(how):
    pairs, notes = met(DataLoader(DATA, **how))
    assert pairs
    assert all(own == sample for own, sample in pairs)
    assert notes == ()


@pytest.mark.parametrize(
    "how",
    [
        {"shuffle": True},
        {"sampler": RandomSampler(DATA, num_samples=4)},
        {"sampler": SubsetRandomSampler([1, 5])},
        {"sampler": Reversed(DATA)},
        {"batch_sampler": BatchSampler(RandomSampler(DATA), 2, drop_last=False)},
    ],
)
def test_an_order_that_cannot_be_known_is_said(how):
    pairs, (note,) = met(DataLoader(DATA, **how))
    assert [own for own, _ in pairs] == list(range(len(pairs)))
    assert "sample ids are places in that order" in note


def test_a_last_batch_that_is_dropped_is_no_sample():
    order = order_of(DataLoader(DATA, batch_size=3, drop_last=True), ALONE)
    assert order.positions(torch.arange(8)).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


def test_looking_at_the_order_draws_nothing():
    loader, state = DataLoader(DATA, shuffle=True), torch.get_rng_state()
    order_of(loader, ALONE)
    assert torch.equal(torch.get_rng_state(), state)


def in_processes(monkeypatch, *loaders):
    """The orders of processes that each have a loader, without processes: each is told what all would say."""
    said = []
    record = lambda into, mine: (said.append(mine), into.__setitem__(slice(None), [mine] * len(into)))  # noqa: E731
    group = SimpleNamespace(get_world_size=lambda: len(loaders), all_gather_object=record)
    monkeypatch.setattr(order, "distributed", group)
    trainers = [SimpleNamespace(world_size=len(loaders), global_rank=rank) for rank in range(len(loaders))]
    for loader, trainer in zip(loaders, trainers, strict=True):
        order_of(loader, trainer)
    monkeypatch.setattr(group, "all_gather_object", lambda into, _: into.__setitem__(slice(None), said))
    return [met(loader, trainer) for loader, trainer in zip(loaders, trainers, strict=True)]


@pytest.mark.parametrize(
    ("how", "expected", "words"),
    [
        ([{}, {}], [[0, 2, 4, 6], [1, 3, 5]], "is taken to go through the same data"),
        ([{"sampler": [6, 1, 2]}] * 2, [[6, 2], [1]], ""),
        ([{"sampler": [6, 1]}, {"sampler": [0, 5]}], [[6, 1], [0, 5]], "list is taken to give every process"),
        ([{"sampler": Reversed(DATA)}] * 2, [[6, 4, 2, 0], [5, 3, 1]], "in an order of its own"),
        ([{"sampler": Reversed(range(4))}] * 2, [[3, 2, 1, 0]] * 2, "Reversed is taken to give every process"),
        ([{}, {"sampler": [0, 1]}], None, "SequentialSampler is taken to give every process"),
        ([{"shuffle": True}] * 2, None, "some samples may be explained twice"),
    ],
)
def test_processes_share_what_all_go_through_and_keep_what_is_their_own(monkeypatch, how, expected, words):
    found = in_processes(monkeypatch, *(DataLoader(DATA, batch_size=2, **options) for options in how))
    if expected is not None:
        assert [[sample for _, sample in pairs] for pairs, _ in found] == expected
        positions = [place for pairs, _ in found for place, _ in pairs]
        assert len(positions) == len(set(positions))
    assert words in " ".join(found[0][1])


def test_processes_with_samples_of_their_own_take_turns_until_none_has_any(monkeypatch):
    loaders = [DataLoader(DATA, sampler=indices) for indices in ([4, 5], [0, 1, 2, 6], [3])]
    monkeypatch.setattr(order.Order, "ids", lambda self, places: self.positions(places))
    found = in_processes(monkeypatch, *loaders)
    assert [[place for place, _ in pairs] for pairs, _ in found] == [[0, 3], [1, 4, 5, 6], [2]]


@quiet
@pytest.mark.parametrize("asking", [True, False], ids=["asks for None", "does not ask for None"])
@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size", "min_size"])
def test_combined_loaders(trainer, mode, asking):
    """The shorter one starts again in one mode; a sample counts once, and keys have Lightning's names."""

    class Both(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(0.0), batch_size=1)

    inputs, labels = samples()
    parts = {name: TensorDataset(inputs[:count], labels[:count]) for name, count in (("a", 5), ("b", 9))}
    loaders = CombinedLoader({name: DataLoader(part, 2) for name, part in parts.items()}, mode)
    nothing = (inputs[:0], labels[:0]) if asking else ()
    unpack = lambda batch: (*(batch["a"] or nothing),)  # noqa: E731
    monitor = ExplanationMonitor({"zero": Importance(REGIONS, ZERO)}, unpack=unpack)
    module, run = Both(), trainer(callbacks=[monitor])
    run.validate(module, loaders, verbose=False)
    alone = Importance(REGIONS, ZERO)
    alone.update(module, inputs[:5], labels[:5])
    torch.testing.assert_close(monitor.results["zero"]["map"], alone.compute()["map"])
    assert monitor.results["zero"]["samples"] == 5
    assert {"val/loss", "val/zero/gini"} <= run.callback_metrics.keys()
