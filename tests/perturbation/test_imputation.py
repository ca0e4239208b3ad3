"""Cells that are filled from what is left: against a dense solution, in sets, pairs and every engine."""

import itertools

import numpy as np
import pytest
import torch
from draws import close, draw, module
from torch import nn

from lightning_xai.evaluation import average_drop, infidelity, road_accuracy, srg
from lightning_xai.perturbation import Windows, importance, kinds, synergy
from lightning_xai.perturbation.kinds import Keys

PLAIN = kinds.NoisyLinear(noise=0.0)


def solved(values, mask):
    """The replaced cells [*S] of one channel by a dense system, cell by cell."""
    cells = [tuple(cell) for cell in np.argwhere(mask)]
    matrix, right = np.zeros((len(cells), len(cells))), np.zeros(len(cells))
    for row, cell in enumerate(cells):
        for offset in itertools.product((-1, 0, 1), repeat=mask.ndim):
            other = tuple(np.add(cell, offset))
            if any(offset) and all(0 <= place < length for place, length in zip(other, mask.shape, strict=True)):
                weight = 1 / sum(map(abs, offset))
                matrix[row, row] += weight
                if mask[other]:
                    matrix[row, cells.index(other)] -= weight
                else:
                    right[row] += weight * values[other]
    filled = values.copy()
    filled[tuple(np.transpose(cells))] = np.linalg.solve(matrix, right)
    return filled


@pytest.mark.parametrize("shape", [(9,), (5, 6), (3, 4, 3)], ids=str)
def test_cells_are_the_means_of_their_neighbours(shape):
    values, mask = draw(3, 2, *shape), torch.rand(3, *shape) < 0.6
    mask.flatten(1)[:, 0] = False
    found = PLAIN.replaced(values, mask, Keys((0, 1, 2)))
    for n, c in itertools.product(range(3), range(2)):
        close(found[n, c], solved(values[n, c].numpy(), mask[n].numpy()))


def test_everything_replaced_is_the_mean_and_noise_is_one_field():
    values, mask = draw(2, 2, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0], mask[1, 1:3] = True, True
    close(PLAIN.replaced(values, mask, Keys((7, 3)))[0], values[0].mean((1, 2), keepdim=True).expand(2, 4, 5))
    noisy = kinds.NoisyLinear(noise=0.5)
    field = noisy.perturb(torch.zeros_like(values), Keys((7, 3)))
    expected = PLAIN.replaced(values, mask, Keys((7, 3))) + torch.where(mask.unsqueeze(1), field, 0.0)
    close(noisy.replaced(values, mask, Keys((7, 3))), expected)


def test_importance_and_synergy_fill_what_is_perturbed_together():
    weight, x = draw(6, 6), draw(2, 1, 6, 6)
    model = module(lambda values: (values.squeeze(1) * weight).sum((1, 2)).tanh())
    boxes = [(slice(a, a + 2), slice(b, b + 2)) for a in (0, 2, 4) for b in (0, 2, 4)]

    def score(n, *together):
        mask = torch.zeros(2, 6, 6, dtype=torch.bool)
        for j in together:
            mask[(slice(None), *boxes[j])] = True
        return model(PLAIN.replaced(x, mask, Keys((0, 1))))[n]

    how = {"regions": 2, "perturbation": PLAIN, "score": "value"}
    single, pairs = importance(model, x, 0, **how), synergy(model, x, 0, anchor=4, **how)
    for n, j in itertools.product(range(2), range(9)):
        close(single[n, j], model(x)[n] - score(n, j))
        if j != 4:
            close(pairs[n, j], model(x)[n] - score(n, 4, j))


def test_every_engine_fills_alike():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 3)).double()
    x, how = draw(2, 1, 10, 10), {"regions": Windows(2), "perturbation": kinds.NoisyLinear(noise=0.1)}
    for quantity in (importance, synergy):
        dense = quantity(model, x, 1, **how, engine="dense")
        torch.testing.assert_close(quantity(model, x, 1, **how, engine="incremental"), dense, equal_nan=True)


def test_accuracy_falls_as_evidence_is_filled_in():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), draw(20, 1, 4, 4)
    target = model(x).argmax(1)
    relevance = (model[1].weight[target].view(20, 1, 4, 4) * x).detach()
    found = road_accuracy(model, x, target, relevance, regions=1)
    assert found.morf[0] == found.lerf[0] == 1
    assert found.morf[1:9].mean() < 0.5 < found.lerf[1:9].mean()
    close(found.morf[-1], found.lerf[-1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: srg(nn.Linear(4, 2).double(), draw(1, 4), 0, draw(1, 4), regions=1, perturbation=PLAIN),
            "a table have",
        ),
        (
            lambda: average_drop(nn.Flatten(), draw(1, 1, 4), 0, draw(1, 1, 4), perturbation=PLAIN),
            "a share of every cell",
        ),
        (
            lambda: infidelity(
                nn.Flatten(), draw(1, 1, 4), 0, draw(1, 1, 4), regions=1, perturbation=PLAIN, units="slope"
            ),
            "fills whole sets",
        ),
    ],
)
def test_where_nothing_can_be_filled_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
