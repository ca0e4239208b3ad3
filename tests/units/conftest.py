"""What the tests of units share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `loops`

from loops import N, Net


@pytest.fixture
def net():
    """The network of `loops`, its batch norm with statistics that are not trivial."""
    model = Net().double()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def x():
    """Inputs for it."""
    return torch.randn(N, 2, 6, 5, dtype=torch.float64)
