"""Localisation: masks, ties, empty masks and blank maps."""

import math

import pytest
import torch
from draws import close, draw

from lightning_xai.evaluation import boxes_to_masks, pointing, relevance_mass, relevance_rank

MEASURES = (pointing, relevance_mass, relevance_rank)


def mask_of(*cells, shape=(3, 4)):
    mask = torch.zeros(1, *shape, dtype=torch.bool)
    for cell in cells:
        mask[(0, *cell)] = True
    return mask


def one_hot(cell, shape=(3, 4)):
    return mask_of(cell, shape=shape).double().unsqueeze(1)


def test_a_map_of_one_cell_hits_or_misses():
    mask = mask_of((1, 1), (1, 2))
    for measure in (pointing, relevance_mass):
        close(measure(one_hot((1, 1)), mask), [1.0])
        close(measure(one_hot((0, 0)), mask), [0.0])


def test_a_constant_map_scores_the_share_of_the_mask():
    mask = mask_of((1, 1), (1, 2), (2, 3))
    for measure in MEASURES:
        close(measure(torch.full((1, 1, 3, 4), 2.0).double(), mask), [3 / 12])


def test_the_mask_itself_has_all_of_its_rank_and_mass():
    mask = mask_of((0, 1), (2, 2))
    for measure in MEASURES:
        close(measure(mask.double().unsqueeze(1), mask), [1.0])


def test_ties_at_the_edge_count_by_their_share():
    relevance = torch.tensor([[[5.0, 3.0, 3.0, 3.0, 1.0]]]).double()
    # One of two places is sure, for the other one compete three cells, one of them in the mask.
    close(relevance_rank(relevance, torch.tensor([[True, True, False, False, False]])), [(1 + 1 / 3) / 2])


def test_a_blank_map_scores_0_for_its_mass():
    close(relevance_mass(-torch.ones(1, 1, 3, 4).double(), mask_of((0, 0))), [0.0])


def test_an_empty_mask_is_undefined():
    for measure in MEASURES:
        assert measure(draw(1, 1, 3, 4), mask_of()).isnan().all()


def test_negative_relevance_has_no_mass():
    relevance = torch.tensor([[[3.0, -9.0, 1.0], [0.0, 0.0, 0.0]]]).double()
    close(relevance_mass(relevance, torch.tensor([[True, True, False]])), [0.75])


def test_the_tolerance_is_a_distance_in_cells():
    shape, mask = (5, 6), mask_of((2, 2), shape=(5, 6))
    for row in range(5):
        for column in range(6):
            far = math.dist((row, column), (2, 2))
            relevance = one_hot((row, column), shape=shape)
            close(pointing(relevance, mask, tolerance=far), [1.0])
            if far:
                close(pointing(relevance, mask, tolerance=far - 0.01), [0.0])


def test_cells_that_are_not_finite_are_not_pointed_at():
    relevance = torch.tensor([[[torch.nan, 1.0, 2.0]]]).double()
    mask = torch.tensor([[False, False, True]])
    for measure in (pointing, relevance_rank):
        close(measure(relevance, mask), [1.0])
    close(relevance_mass(relevance, mask), [2 / 3])
    assert pointing(torch.full((1, 1, 3), torch.nan), mask).isnan().all()


def test_boxes_are_masks_of_their_cells():
    found = boxes_to_masks(torch.tensor([[[0, 1], [1, 3]], [[2, 2], [2, 2]]]), (3, 4))
    expected = torch.zeros(2, 3, 4, dtype=torch.bool)
    expected[0, 0:2, 1:4], expected[1, 2, 2] = True, True
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"boxes must be \[N, 2, 2\]"):
        boxes_to_masks(torch.tensor([[0, 1, 1, 3]]), (3, 4))


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="use mask > 0"):
        relevance_mass(draw(1, 1, 3, 4), torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match=r"mask must be \[1, 3, 4\]"):
        pointing(draw(1, 1, 3, 4), torch.ones(1, 1, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        pointing(draw(1, 1, 3, 4), mask_of(), tolerance=-1.0)
