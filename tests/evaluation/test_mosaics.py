"""Mosaics: how they are laid out, and the games that are played on them."""

from dataclasses import dataclass

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import difull, gridpg, mosaics
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import GradCAM, GradientXInput, Saliency, SmoothGrad

CLASSES = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def background():
    return draw(7, 2, 4, 3)


@dataclass(frozen=True)
class Ones(Attribution):
    """A map that says the same everywhere."""

    def attribute(self, model, inputs, target, sample_ids, details):
        return Explanation.of(*self.clean(model, inputs, target), torch.ones_like(inputs))


def any_size():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def one_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 5))


def test_a_mosaic_holds_the_sample_and_others_of_different_classes():
    x, others, target = draw(3, 2, 4, 3), background(), [0, 4, 2]
    found = mosaics(x, target, others, CLASSES, sample_ids=[8, 3, 5])
    assert found.inputs.shape == (3, 2, 8, 6)
    for n in range(3):
        tiles = [found.inputs[n, :, r : r + 4, c : c + 3] for r in (0, 4) for c in (0, 3)]
        assert torch.equal(tiles[found.cell[n]], x[n])
        assert torch.equal(found.inputs[n][:, found.mask[n]], x[n].flatten(1))
        rows = [row for row in found.tiles[n].tolist() if row >= 0]
        assert len({int(CLASSES[row]) for row in rows} - {target[n]}) == 3
        for place, row in enumerate(found.tiles[n].tolist()):
            if row >= 0:
                assert torch.equal(tiles[place], others[row])


def test_a_mosaic_does_not_depend_on_the_batch():
    x, others = draw(6, 2, 4, 3), background()
    found = mosaics(x, [0] * 6, others, CLASSES)
    alone = mosaics(x[4:5], [0], others, CLASSES, sample_ids=[4])
    assert torch.equal(found.inputs[4:5], alone.inputs)
    assert len(set(found.cell.tolist())) > 1


def test_a_line_has_its_cells_in_a_row():
    found = mosaics(draw(2, 3, 5), [0, 1], draw(7, 3, 5), CLASSES, cells=3)
    assert found.inputs.shape == (2, 3, 15)
    assert found.mask.sum(1).tolist() == [5, 5]


def test_a_constant_map_scores_the_share_of_a_cell():
    x, how = draw(3, 2, 4, 3), {"background": background(), "classes": CLASSES}
    close(gridpg(any_size().double(), x, [0, 1, 2], Ones(), **how), [0.25] * 3)
    close(difull(one_size().double(), x, [0, 1, 2], Ones(), **how), [0.25] * 3)


def test_only_the_right_cell_matters_where_cells_are_apart():
    x, how = draw(3, 2, 4, 3), {"background": background(), "classes": CLASSES, "sample_ids": [4, 1, 7]}
    model = one_size().double()
    model[2].eval()
    importance = PerturbationImportance(1, kinds.Constant(0.0))
    compared = (GradientXInput(score="probability"), GradientXInput(score="margin"), importance)
    for attribution in (GradientXInput(), Saliency(), *compared):
        close(difull(model, x, [0, 1, 2], attribution, **how), [1.0] * 3)
    assert (model.training, model[2].training) == (True, False)


def test_a_class_of_another_cell_is_no_target():
    how = {"background": background(), "classes": CLASSES}
    for cell_seed in range(4):
        with pytest.raises(ValueError, match=r"target \[7\] is out of range: the model's output has 5 classes"):
            difull(one_size().double(), draw(1, 2, 4, 3), [7], GradientXInput(), seed=cell_seed, **how)


def test_a_network_of_one_size_takes_a_shrunk_mosaic():
    x, how = draw(2, 2, 4, 3), {"background": background(), "classes": CLASSES}
    with pytest.raises(ValueError, match=r"does not take a mosaic of size \[8, 6\].*shrink=True"):
        gridpg(one_size().double(), x, [0, 1], GradientXInput(), **how)
    found = gridpg(one_size().double(), x, [0, 1], Ones(), shrink=True, **how)
    assert ((found > 0) & (found < 0.6)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mosaics(draw(1, 4), [0], draw(7, 4), CLASSES), "one or two spatial axes"),
        (lambda: mosaics(draw(1, 2, 4), [0], draw(7, 2, 5), CLASSES), "samples like the inputs"),
        (lambda: mosaics(draw(1, 2, 4), [0], draw(2, 2, 4), [0, 0]), "needs 1 other classes than 0"),
        (lambda: mosaics(draw(1, 2, 4), [0], draw(7, 2, 4), CLASSES, cells=1), "cells must be at least 2"),
        (lambda: mosaics(draw(1, 2, 4), [0], draw(0, 2, 4), []), "the background has 0"),
        (lambda: mosaics(draw(1, 2, 4), "predicted", draw(7, 2, 4), CLASSES), "need the classes"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("attribution", [GradCAM(), SmoothGrad(GradCAM())])
def test_attributions_of_a_layer_are_refused_where_cells_are_apart(attribution):
    with pytest.raises(ValueError, match="GradCAM reads a layer"):
        difull(any_size(), draw(1, 2, 4, 3), [0], attribution, background=background(), classes=CLASSES)
