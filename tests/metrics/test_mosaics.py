"""Mosaics over a data set: means of what the functions give, whatever the batches."""

import pytest
import torch
from draws import close
from torch import nn

from lightning_xai.evaluation import difull, gridpg
from lightning_xai.inputs import Inputs
from lightning_xai.metrics import GridPointing
from lightning_xai.relevance import GradCAM, GradientXInput

GXI = GradientXInput()


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).double()


def data(count):
    torch.manual_seed(3)
    return torch.randn(count, 1, 3, 4).double(), torch.arange(count) % 4


BACKGROUND = data(12)


@pytest.mark.parametrize(
    ("game", "options"), [("gridpg", {}), ("gridpg", {"shrink": True, "cells": 2, "seed": 4}), ("difull", {})]
)
@pytest.mark.parametrize("size", [1, 3])
def test_the_results_are_means_over_the_samples_whatever_the_batches(game, options, size):
    (x, y), ids = data(5), torch.tensor([8, 2, 5, 3, 30])
    metric = GridPointing(GXI, BACKGROUND, game=game, **options)
    for rows in torch.arange(5).split(size):
        metric.update(network(), x[rows], y[rows], ids[rows])
    found = metric.compute()
    others = {"background": BACKGROUND[0], "classes": BACKGROUND[1], "sample_ids": ids, **options}
    expected = {"gridpg": gridpg, "difull": difull}[game](network(), x, y, GXI, **others)
    close(found[game], expected.mean())
    close(found[f"{game}_error"], expected.std() / 5**0.5)


def test_predicted_classes_are_looked_up_before_the_mosaic_is_laid_out():
    x, _ = data(3)
    predicted = network()(x).argmax(1)
    found = []
    for target in ("predicted", predicted):
        metric = GridPointing(GXI, BACKGROUND)
        metric.update(network(), x, target)
        found.append(metric.compute()["gridpg"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: GridPointing("lrp", BACKGROUND), TypeError, "takes an attribution"),
        (lambda: GridPointing(GXI, BACKGROUND[0]), TypeError, "a pair of tensors: samples"),
        (lambda: GridPointing(GXI, BACKGROUND, game="grid"), ValueError, "game 'grid' is unknown"),
        (lambda: GridPointing(GXI, BACKGROUND, cells=1), ValueError, "cells must be at least 2"),
        (
            lambda: GridPointing(GXI, BACKGROUND, game="difull", shrink=True),
            ValueError,
            "shrink=True is for game='gridpg'",
        ),
        (lambda: GridPointing(GradCAM(), BACKGROUND, game="difull"), ValueError, "GradCAM reads a layer"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_network_of_several_arguments_has_no_mosaics():
    x, y = data(2)
    both = Inputs(x, torch.zeros(2, 1).double(), explain=0)
    model = network()
    model.forward = lambda image, shift: nn.Sequential.forward(model, image) + shift
    with pytest.raises(ValueError, match="of inputs of one tensor"):
        GridPointing(GXI, BACKGROUND).update(model, both, y)
