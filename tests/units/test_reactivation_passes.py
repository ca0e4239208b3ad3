"""Re-activation: how many forward passes it takes, and of what size."""

import itertools

import pytest
import torch
from loops import WINDOWS, N, P, every_kind

from lightning_xai.perturbation import Windows, importance, kinds, sweep
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request
from lightning_xai.scores import Probability
from lightning_xai.units.change import LayerChange
from lightning_xai.units.reactivation import reactivation


@every_kind
@pytest.mark.parametrize("chunk_size", [N, 4, 3])
def test_importance_and_re_activation_take_the_passes_of_importance(net, x, kind, chunk_size):
    plan, score = Plan(WINDOWS, chunk_size, "dense"), Request(kind, Probability())
    sweep.sweep(net, x, 0, [score], plan)  # the first time, a sample alone tells whether they are independent
    net.rows.clear()
    alone = sweep.sweep(net, x, 0, [score], plan)
    rows = list(net.rows)
    net.rows.clear()
    captures = [CaptureRequest(kind, LayerChange(layer)) for layer in ("first", "second")]
    both = sweep.sweep(net, x, 0, [score], plan, None, captures)
    assert sum(net.rows) == 1 + 1 + sum(rows)  # a look at one sample per layer
    if chunk_size == N:
        assert net.rows == [1, 1, *rows]
    torch.testing.assert_close(both.local(score), alone.local(score))
    expected = importance(net, x, 0, regions=WINDOWS, perturbation=kind)
    torch.testing.assert_close(both.local(score), expected)


def test_one_look_finds_the_activation_and_the_size_of_a_pass(net, x):
    plan, request = Plan(WINDOWS), CaptureRequest(kinds.Constant(0.0), LayerChange("first"))
    net.rows.clear()
    found = sweep.sweep(net, x, 0, [], plan, None, [request])
    assert net.rows[0] == 1
    assert net.rows[1] > 1
    again = sweep.sweep(net, x, 0, [], Plan(WINDOWS, net.rows[1]), None, [request])
    assert torch.equal(again.captured[request].features["largest"], found.captured[request].features["largest"])
    other = CaptureRequest(kinds.Constant(1.0), LayerChange("first"))
    net.rows.clear()
    sweep.sweep(net, x, 0, [], plan, None, [request, other])
    assert net.rows.count(1) == 1  # what both look at is looked for once


def test_small_batches_are_not_blown_up(net, x):
    net.rows.clear()
    plan, request = Plan(Windows(1), 64), CaptureRequest(kinds.Constant(0.0), LayerChange("first"))
    sweep.sweep(net, x[:2], 0, [], plan, None, [request])
    assert sum(net.rows) <= 1.2 * 2 * (30 + 1) + 1


@pytest.mark.parametrize("memory", [1, 2, 5])
def test_running_out_of_memory_changes_nothing(net, x, memory):
    how = {"layer": "second", "regions": WINDOWS, "perturbation": kinds.Bidirectional(0.9), "p": P, "dead": "count"}
    expected = {unit: reactivation(net, x, unit=unit, **how) for unit in ("channel", "position")}
    forward = net.forward

    def short(inputs):
        if len(inputs) > memory:
            raise torch.OutOfMemoryError("out of memory")
        return forward(inputs)

    given = {unit: found.threshold for unit, found in expected.items()}
    net.forward = short
    for unit, found in expected.items():
        again = reactivation(net, x, unit=unit, threshold=given[unit], **how)
        assert torch.equal(again.by_unit, found.by_unit)
        assert again.top_pairs(9) == found.top_pairs(9)


def test_clean_and_perturbed_inputs_share_a_batch_size(net, x):
    for chunk_size, samples in itertools.product((1, 4, 9, 40), (1, 4, 9)):
        request = CaptureRequest(kinds.Bidirectional(0.5), LayerChange("first"))
        for _ in range(2):  # the first time, a sample alone tells whether they are independent
            net.rows.clear()
            sweep.sweep(net, x[:samples], 0, [], Plan(Windows(1), chunk_size), None, [request])
        assert net.rows[0] == 1  # the look for the activation
        for first in (rows := net.rows[1:]):
            assert first <= chunk_size
        blocks = -(-samples // chunk_size)
        whole = rows[: len(rows) // blocks] if samples % chunk_size == 0 or blocks == 1 else rows
        assert len(set(whole)) <= 2 if blocks > 1 else len(set(whole)) == 1
