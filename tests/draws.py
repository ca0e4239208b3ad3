"""What tests of several chapters share: random inputs of every rank, networks of one function, what counts as equal."""

import pytest
import torch
from torch import nn

SHAPES = {"table": (3, 7), "line": (3, 2, 7), "plane": (3, 2, 4, 5), "volume": (3, 2, 3, 4, 3)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(*shape):
    """Normal numbers in double precision."""
    return torch.randn(shape, dtype=torch.float64)


def module(function):
    """A network without parameters."""
    model = nn.Module()
    model.forward = function
    return model


def close(found, expected, tolerance=1e-9):
    """Equal but for rounding; numbers only, tensors of the same precision."""
    expected = torch.as_tensor(expected, dtype=None if isinstance(expected, torch.Tensor) else found.dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
