"""What all tests share."""

import os
import sys
from pathlib import Path

# Test processes share the cores, and two OpenMP threads beside another process can be a hundred times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for `draws`


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same numbers alone or among others, and gives the random state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def cnn():
    """A small network in double precision: inputs [N, 2, H, W], three classes."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
