"""Any number of processes explains the same samples and finds the same."""

import sys
import warnings
from datetime import timedelta

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from subjects import COUNTS, SAMPLES, Still, loader, quiet, samples
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, Sampler

from lightning_xai import ExplanationMonitor, Windows, load_explanations
from lightning_xai.callbacks.collector import Collector
from lightning_xai.callbacks.order import Order
from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import kinds

pytestmark = [
    quiet,
    pytest.mark.filterwarnings(
        "ignore:Using `DistributedSampler` with the dataloaders",  # which is the point here
        "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12
    ),
]


def two(method="fork"):
    """Two processes that give up when one does not come to a meeting."""
    strategy = DDPStrategy(start_method=method, process_group_backend="gloo", timeout=timedelta(seconds=60))
    return {"strategy": strategy, "devices": 2}


QUANTITIES = ("noise", "window", "speed", "pairs", "zero")


def metrics():
    regions, noise = Windows(3), kinds.GaussianNoise(seed=4)
    return {
        "noise": Importance(regions, noise),
        "window": Importance(regions, kinds.RandomScale(), score="logit"),
        "speed": Speed(regions, noise, strengths=[0.5, 1.0]),
        "pairs": Synergy(regions, kinds.Permute(seed=2)),
        "zero": Importance(regions, kinds.Constant(0.0)),
    }


@pytest.fixture
def found(trainer, tmp_path):
    """Explains on some number of processes; the logged numbers, and what is on disk by data loader."""

    def find(name, processes, stage="validate", data=None, monitor=ExplanationMonitor, of=QUANTITIES, **options):
        torch.manual_seed(0)
        module, data, folder = Still(), loader() if data is None else data, tmp_path / name
        explain = monitor({metric: metrics()[metric] for metric in of}, **options)
        run = trainer(callbacks=[explain], default_root_dir=folder, **processes)
        if stage == "fit":
            run.fit(module, loader(), data)
        else:
            run.validate(module, data, verbose=False)
        shards = sorted({path.parent for path in folder.rglob("*.safetensors")})
        names = [shard.name.partition("-step")[0] for shard in shards]  # more processes make fewer steps
        return run.callback_metrics, {name: load_explanations(shard) for name, shard in zip(names, shards, strict=True)}

    return find


def same(one, two):
    """Counts exactly; numbers to six digits."""
    logged, maps = zip(one, two, strict=True)
    assert logged[0].keys() == logged[1].keys()
    for key, value in logged[0].items():
        exact = key.rpartition("/")[2] in COUNTS
        close(logged[1][key], value, rtol=0 if exact else 1e-6)
    assert maps[0].keys() == maps[1].keys()
    for name, explained in maps[0].items():
        close(maps[1][name], explained, rtol=1e-6)


def close(found, expected, rtol):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12 if rtol else 0, equal_nan=True)


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("max_samples", [1, 7, SAMPLES, 64])
def test_two_processes_find_what_one_does(found, stage, max_samples):
    one = found("one", {}, stage, max_samples=max_samples)
    more = found("two", two(), stage, max_samples=max_samples)
    same(one, more)
    count = min(max_samples, SAMPLES)
    assert all(value == count for key, value in more[0].items() if key.endswith("/samples"))
    (maps,) = more[1].values()
    assert maps["sample_id"].tolist() == list(range(count))  # each once, though the sampler repeats the first


def test_spawned_processes(found, tmp_path):
    few = {"max_samples": 3, "of": ["noise"]}  # every picture takes its time
    same(found("one", {}, **few), found("two", two("spawn"), **few))
    assert {path.name[:5] for path in (tmp_path / "two").rglob("*.safetensors")} == {"rank0", "rank1"}
    pictures = {path.name for path in (tmp_path / "two" / "figures" / "validate-epoch0-step0").iterdir()}
    assert pictures == {"noise.png", "samples.png"}


@pytest.mark.parametrize("save_maps", [True, False])
def test_several_dataloaders(found, save_maps):
    inputs, labels = samples()
    data = [loader(), loader(inputs[:5], labels[:5], batch_size=1), loader(inputs.flip(0), labels.flip(0))]
    one, more = (
        found(name, how, data=data, max_samples=8, save_maps=save_maps) for name, how in (("one", {}), ("two", two()))
    )
    same(one, more)
    assert len(more[1]) == 3 * save_maps


@pytest.mark.filterwarnings("ignore:samples with NaN or infinite inputs are left out")
@pytest.mark.parametrize("broken", [slice(0, None, 2), slice(1, None, 2), slice(2, 5)], ids=str)
def test_processes_that_have_nothing_but_broken_samples(found, broken):
    inputs, labels = samples()
    inputs[broken, 0, 2] = torch.nan
    one, more = (found(name, how, data=loader(inputs, labels)) for name, how in (("one", {}), ("two", two())))
    same(one, more)
    assert more[0]["val/zero/excluded"] == len(range(SAMPLES)[broken])


CALLS = []


class Listening(ExplanationMonitor):
    """Fails when processes meet while a batch is explained, or do not meet at the end."""

    def on_validation_batch_end(self, *args, **kwargs):
        before = len(CALLS)
        super().on_validation_batch_end(*args, **kwargs)
        assert len(CALLS) == before, CALLS[before:]

    def on_validation_epoch_end(self, *args, **kwargs):
        before = len(CALLS)
        super().on_validation_epoch_end(*args, **kwargs)
        met = [name for name in CALLS[before:] if name != "barrier"]
        # How many samples each has, the layouts of all states, then sums and maxima by type: nothing is gathered.
        assert met[:2] == ["all_gather_object"] * 2, met
        assert set(met[2:]) == {"all_reduce"}, met
        assert len(met) <= 6, met


def listen(monkeypatch):
    def heard(name):
        call = getattr(distributed, name)
        return lambda *args, **kwargs: (CALLS.append(name), call(*args, **kwargs))[1]

    for name in ("all_gather", "all_gather_object", "all_reduce", "barrier", "broadcast", "broadcast_object_list"):
        monkeypatch.setattr(distributed, name, heard(name))


def test_processes_meet_once_at_the_end_of_an_epoch(found, monkeypatch):
    listen(monkeypatch)
    found("two", two(), monitor=Listening)
    found("more", two(), data=[loader(), loader()], monitor=Listening)


def test_meeting_once_for_every_state_is_noticed(found, monkeypatch):
    listen(monkeypatch)
    module = sys.modules["lightning_xai.callbacks.exchange"]
    one_by_one = lambda metrics, **_: {name: metric.compute() for name, metric in metrics.items()}  # noqa: E731
    monkeypatch.setattr(module, "compute_together", one_by_one)
    with pytest.raises(Exception, match="all_gather"):
        found("two", two(), monitor=Listening)


@pytest.mark.filterwarnings("ignore:every process is taken to go through the same data")
def test_without_a_distributed_sampler_the_processes_share_the_data(found, tmp_path):
    whole = {**two(), "use_distributed_sampler": False}
    one, more = found("one", {}), found("two", whole)
    same(one, more)
    assert more[0]["val/zero/samples"] == SAMPLES


class Uneven(Sampler):
    """Gives the second process one sample, the first all others, and a process by itself all."""

    def __iter__(self):
        return iter(self.own())

    def __len__(self):
        return len(self.own())

    def own(self):
        everything = list(range(SAMPLES))
        if not distributed.is_initialized():
            return everything
        return everything[1:2] if distributed.get_rank() else everything[:1] + everything[2:]


@pytest.mark.filterwarnings(
    "ignore:the sampler Uneven is taken to give", "ignore:the data loader draws its samples in an order of its own"
)
@pytest.mark.parametrize("max_samples", [8, 64])
def test_a_process_with_more_samples_goes_on_where_another_has_no_more(found, max_samples):
    few = {"max_samples": max_samples, "data": loader(sampler=Uneven()), "of": ["zero"]}
    one, more = found("one", {}, **few), found("two", {**two(), "use_distributed_sampler": False}, **few)
    same(one, more)
    assert more[0]["val/zero/samples"] == min(max_samples, SAMPLES)


class Split(IterableDataset):
    """Gives every process its own samples."""

    def __iter__(self):
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        world = distributed.get_world_size() if distributed.is_initialized() else 1
        inputs, labels = samples()
        yield from zip(inputs[rank::world], labels[rank::world], strict=True)


@pytest.mark.filterwarnings("ignore:iterable data are taken to be split")
def test_iterable_data_are_taken_to_be_split(found):
    same(*(found(name, how, data=DataLoader(Split(), 4)) for name, how in (("one", {}), ("two", two()))))


def in_turns(lengths):
    """The places of this process in data of which the processes take turns; all of them in a process by itself."""
    turns = [rank for turn in range(max(lengths)) for rank, own in enumerate(lengths) if turn < own]
    alone = not distributed.is_initialized()
    return [place for place, rank in enumerate(turns) if alone or rank == distributed.get_rank()]


class Ragged(IterableDataset):
    """Gives the processes as many samples as it is told."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __iter__(self):
        inputs, labels = samples()
        yield from ((inputs[place], labels[place]) for place in in_turns(self.lengths))


class RaggedBatches:
    """The same of a data set that can be indexed, in batches that do not say how many samples they have."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __iter__(self):
        mine = in_turns(self.lengths)
        yield from (mine[start : start + 3] for start in range(0, len(mine), 3))

    def __len__(self):
        return -(len(in_turns(self.lengths)) // -3)


def unequal_counts(found, data, max_samples, **processes):
    """The same numbers as one process, every sample once."""
    few = {"max_samples": max_samples, "of": ["zero"], "data": data}
    one, more = found("one", {}, **few), found("two", {**two(), **processes}, **few)
    assert one[0].keys() == more[0].keys()
    for key, value in one[0].items():
        close(more[0][key], value, rtol=1e-6)
    assert more[0]["val/zero/samples"] == min(max_samples, SAMPLES)
    (maps,) = more[1].values()
    assert len(set(maps["sample_id"].tolist())) == min(max_samples, SAMPLES)


@pytest.mark.filterwarnings("ignore:iterable data are taken to be split")
@pytest.mark.parametrize("max_samples", [8, 2 * SAMPLES])
@pytest.mark.parametrize("lengths", [(SAMPLES, 0), (1, SAMPLES - 1), (SAMPLES - 4, 4)], ids=str)
def test_what_one_process_does_not_have_is_explained_by_another(found, lengths, max_samples):
    unequal_counts(found, DataLoader(Ragged(*lengths), 3), max_samples)


@pytest.mark.filterwarnings(
    "ignore:the sampler RaggedBatches is taken to give", "ignore:the data loader draws its samples in an order of its"
)
def test_batches_that_do_not_say_how_many_samples_they_have(found):
    data = loader().dataset
    batches = DataLoader(data, batch_sampler=RaggedBatches(SAMPLES - 2, 2))
    unequal_counts(found, batches, 8, use_distributed_sampler=False)


class Replaced(ExplanationMonitor):
    """Other weights come before the end of the epoch; the first process says what it has warned of."""

    def on_validation_epoch_end(self, trainer, pl_module):
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.data.add_(1.0)  # by .data, as averaged weights are put back
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            super().on_validation_epoch_end(trainer, pl_module)
        fewer = [str(warning.message) for warning in said if "asked for" in str(warning.message)]
        expected = trainer.global_rank == 0 and self.max_samples == 8
        assert [message.partition(":")[0] for message in fewer] == (
            ["4 of the 8 samples that are asked for are explained"] if expected else []
        )
        assert all("WeightAveraging" in message for message in fewer)


@pytest.mark.filterwarnings("ignore:iterable data are taken to be split")
@pytest.mark.parametrize(("max_samples", "explained"), [(8, 4), (2 * SAMPLES, SAMPLES)])
def test_what_is_explained_late_is_not_explained_with_other_weights(found, max_samples, explained):
    data = DataLoader(Ragged(SAMPLES, 0), 4)
    logged, _ = found("two", two(), data=data, monitor=Replaced, max_samples=max_samples, of=["zero"])
    assert logged["val/zero/samples"] == explained


def test_no_more_batches_are_kept_than_could_be_asked_for():
    order = Order(world=3, rank=1)
    collector = Collector(metrics(), max_samples=7, order=order)
    (inputs, labels), model = samples(), Still()
    for start in range(0, SAMPLES, 2):
        collector.add(model, (inputs[start : start + 2], labels[start : start + 2]))
    kept = [places.tolist() for places, _ in collector._postponed.take(model)]
    assert kept == [[2, 3], [4, 5], [6, 7]]  # of 0 and 1 the positions are 1 and 4
