"""Drift between epochs, and consistency over samples."""

import pytest
import torch
from draws import close, draw

from lightning_xai.evaluation import (
    codes,
    consistency,
    cosine_drift,
    first_stable_epoch,
    spearman_drift,
    sufficiency,
    top_drift,
)
from lightning_xai.evaluation.drift import blank_pairs

DRIFTS = (spearman_drift, cosine_drift, top_drift)


def test_the_same_map_has_not_moved_and_a_factor_is_no_move():
    features = draw(3, 9)
    for drift in DRIFTS:
        close(drift(features, features), [0.0] * 3)
        close(drift(5 * features, features), [0.0] * 3)


def test_a_reversed_map_has_moved_by_2():
    features = draw(3, 9)
    for drift in (spearman_drift, cosine_drift):
        close(drift(-features, features), [2.0] * 3)
    close(top_drift(-features, features), [1.0] * 3)


def test_blank_maps_move_by_1_unless_both_are():
    zero, constant, features = torch.zeros(1, 5).double(), torch.ones(1, 5).double(), draw(1, 5)
    close(spearman_drift(zero, constant), [0.0])
    close(spearman_drift(constant, features), [1.0])
    close(cosine_drift(zero, zero), [0.0])
    close(cosine_drift(features, zero), [1.0])
    close(top_drift(zero, constant), [0.0])
    assert blank_pairs(torch.cat((zero, features)), torch.cat((features, -features))).tolist() == [True, False]


def test_the_strongest_fifth_is_compared():
    before = torch.arange(10.0).unsqueeze(0)
    after = before.clone()
    after[0, 8] = -1
    close(top_drift(after, before), [0.5])


@pytest.mark.parametrize(
    ("drifts", "first"),
    [
        ([0.5, 0.05, 0.05, 0.05], 3),
        ([0.5, 0.05, 0.5, 0.05], -1),
        ([0.0, 0.0, 0.0, 0.0], 1),
        ([0.5, 0.05, 0.05], -1),
        ([], -1),
        ([0.1, 0.1, torch.nan], -1),
    ],
)
def test_the_first_stable_epoch_needs_three_quiet_ones(drifts, first):
    assert first_stable_epoch([1, 3, 5, 7][: len(drifts)], drifts) == first


def test_codes_are_the_strongest_features_with_their_signs_in_any_order():
    found = codes(torch.tensor([[1.0, -3.0, 2.0], [1.0, -2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 2.0, 2.0]]))
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
    assert found[3].tolist() == [0, 2]


def test_consistency_is_that_of_a_loop():
    features, prediction = draw(30, 3), torch.randint(2, (30,))
    code = codes(features, 1)
    for found, alike in (
        (consistency(code, prediction), (code == code.T)),
        (
            sufficiency(features, prediction, threshold=0.6),
            torch.cosine_similarity(features.unsqueeze(0), features.unsqueeze(1), dim=2) >= 0.6,
        ),
    ):
        for n in range(30):
            others = [m for m in range(30) if m != n and alike[n, m]]
            same = [m for m in others if prediction[m] == prediction[n]]
            expected = len(same) / len(others) if others else float("nan")
            torch.testing.assert_close(found[n].item(), expected, equal_nan=True)
