"""Relevance pooled over channels and features, by loops."""

import numpy as np
import pytest
import torch
from draws import draw, every_shape

from lightning_xai import Segments, Windows
from lightning_xai.relevance import pool_channels, pool_features

PARTS = {"signed": lambda r: r, "positive": lambda r: max(r, 0.0), "absolute": abs}
every_part = pytest.mark.parametrize("part", PARTS)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


@every_shape
@every_part
def test_pool_channels_matches_loops(shape, part):
    relevance = draw(*shape)
    expected = np.zeros((shape[0], *(shape[2:] or shape[1:])))
    for place in np.ndindex(*shape):
        expected[(place[0], *(place[2:] or place[1:]))] += PARTS[part](float(relevance[place]))
    close(pool_channels(relevance, part), expected)


@every_shape
@every_part
def test_pool_features_over_windows_matches_loops(shape, part):
    relevance, spatial = draw(*shape), shape[2:] or shape[1:]
    grid = [-(-length // 2) for length in spatial]
    expected = np.zeros((shape[0], np.prod(grid)))
    for place in np.ndindex(*shape):
        window = [position // 2 for position in place[-len(spatial) :]]
        expected[place[0], np.ravel_multi_index(window, grid)] += PARTS[part](float(relevance[place]))
    found = pool_features(relevance, Windows(2), part)
    close(found, expected)
    if part == "signed":
        close(found.sum(1), relevance.flatten(1).sum(1))


@every_part
def test_pool_features_over_segments_of_each_sample(part):
    relevance, inputs = draw(3, 2, 4, 5), draw(3, 2, 4, 5)

    def labels(x):
        return (x[:, 0] * 1.5).floor().clamp(-1, 2).long()

    expected = np.zeros((3, 3))
    for n, h, w in np.ndindex(3, 4, 5):
        if (label := int(labels(inputs)[n, h, w])) >= 0:
            expected[n, label] += sum(PARTS[part](float(value)) for value in relevance[n, :, h, w])
    close(pool_features(relevance, Segments(labels), part, inputs=inputs), expected)


def test_pooling_a_map_with_one_channel():
    relevance = draw(2, 1, 3, 4)
    close(pool_channels(relevance), relevance[:, 0])
    close(pool_features(relevance, Windows((3, 4)))[:, 0], relevance.flatten(1).sum(1))


@pytest.mark.parametrize("pool", [pool_channels, lambda r, part: pool_features(r, Windows(1), part)])
def test_unknown_part_is_refused(pool):
    with pytest.raises(ValueError, match=r"part 'negativ' is unknown. .*Known: signed, positive, absolute"):
        pool(draw(2, 3), "negativ")


def test_map_without_samples_is_refused():
    with pytest.raises(ValueError, match=r"relevance must be \[N, C, \*S\] or a table \[N, F\], got shape \[4\]"):
        pool_channels(draw(4))


def test_pool_features_takes_the_size_of_windows():
    relevance = draw(2, 3, 4, 6)
    torch.testing.assert_close(pool_features(relevance, 2), pool_features(relevance, Windows(2)))
