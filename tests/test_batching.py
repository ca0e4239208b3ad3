"""Batches: every item once and in order, halved when memory runs out, the original error where halving cannot help."""

import logging

import pytest
import torch
from torch import nn

from lightning_xai.batching import Batches
from lightning_xai.inputs import Inputs
from lightning_xai.inputs.binding import bind

X = torch.zeros(10, 3)


class Limited:
    """Work that fails for more rows than there is memory for."""

    def __init__(self, memory, error=None):
        self.memory, self.error, self.passes = memory, error or torch.OutOfMemoryError("CUDA out of memory"), []

    def __call__(self, rows):
        if rows > self.memory:
            raise self.error
        self.passes.append(rows)


def test_items_come_once_and_in_order():
    found = Batches(nn.Identity(), X, 4).map(lambda items: list(range(10))[items], 10)
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
@pytest.mark.parametrize("memory", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_repeated_in_halves(memory, message):
    work = Limited(memory, RuntimeError(message))

    def run(items):
        work(items.stop - items.start)
        return list(range(10))[items]

    found = Batches(nn.Identity(), X, 100).map(run, 10)
    assert [item for part in found for item in part] == list(range(10))
    assert max(work.passes) == {1: 1, 2: 2, 3: 2, 7: 5}[memory]


def test_the_size_is_remembered_for_the_model_and_the_shape_and_told_once(caplog):
    model, work = nn.Identity(), Limited(3)
    with caplog.at_level(logging.WARNING, "lightning_xai"):
        for _ in range(2):
            batches = Batches(model, X, 8)
            batches.map(lambda items: work(items.stop - items.start), 8)
    assert batches.limit == 2
    assert [record.args for record in caplog.records] == [(8, 4), (4, 2)]
    assert Batches(model, X[:, :2], 8).limit == 8
    assert Batches(nn.Identity(), X, 8).limit == 8


def test_the_largest_activation_is_looked_for_once_while_the_network_is_as_it_was():
    rows = []
    model = nn.Sequential(nn.Linear(3, 2**17), nn.Linear(2**17, 2))
    model[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    first, second = Batches(model, X), Batches(model, X)
    assert (first.limit, second.limit, rows) == (8, 8, [1])  # 4 MiB by half a MiB
    assert second.alone is None
    torch.testing.assert_close(first.alone, model(X[:1]))
    assert Batches(model.double(), X.double()).limit == 4
    model[1] = nn.Sequential(nn.Linear(2**17, 1), nn.Linear(1, 2**18))
    assert Batches(model.float(), X).limit == 4


def test_a_size_that_was_found_holds_for_the_network_of_a_bound_model():
    model, work = nn.Bilinear(3, 3, 2), Limited(3)
    bound, values = bind(model, Inputs(X, X, explain=0))
    Batches(bound, values, 8).map(lambda items: work(items.stop - items.start), 8)
    again = Batches(bound, values)
    assert (again.limit, again.estimated) == (2, False)


@pytest.mark.parametrize("memory", [1, 2, 3, 5, 11, 30])
@pytest.mark.parametrize("chunk_size", [1, 3, 8, 100])
def test_channels_times_samples_are_halved_down_to_a_row(memory, chunk_size):
    """As Score-CAM does: samples outside, and inside as many channels together as fit."""
    batches, work = Batches(nn.Identity(), X, chunk_size), Limited(memory)
    values = torch.arange(10).unsqueeze(1) * 100 + torch.arange(7)

    def samples(rows):
        some = values[rows]

        def channels(items):
            work(some[:, items].numel())
            return some[:, items]

        return torch.cat(batches.map(channels, 7, width=len(some)), 1)

    found = torch.cat(batches.map(samples, 10, copies=7))
    assert torch.equal(found, values)
    assert max(work.passes) <= min(memory, chunk_size)


def test_a_row_that_does_not_fit_raises_the_original_error():
    error = torch.OutOfMemoryError("CUDA out of memory: 7")
    work = Limited(0, error)
    with pytest.raises(torch.OutOfMemoryError, match="7"):
        Batches(nn.Identity(), X, 16).map(lambda items: work(items.stop - items.start), 10)


def test_other_errors_are_not_retried():
    work = Limited(0, RuntimeError("a shape does not match"))
    with pytest.raises(RuntimeError, match="a shape does not match"):
        Batches(nn.Identity(), X, 16).map(lambda items: work(items.stop - items.start), 10)


@pytest.mark.parametrize(("chunk_size", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_size_that_is_no_number_of_rows_is_refused(chunk_size, error):
    with pytest.raises(error, match="chunk_size must be"):
        Batches(nn.Identity(), X, chunk_size)
