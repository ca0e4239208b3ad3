"""What the tests of measures share: a linear score, whose measures have closed forms."""

import pytest
from torch import nn

from lightning_xai.perturbation import kinds

J = 7


@pytest.fixture
def linear():
    """s = w x + b over a table of J columns, in double precision."""
    return nn.Linear(J, 1).double()


@pytest.fixture
def how():
    """Single columns, zeros, the output itself, as many steps as columns."""
    return {"regions": 1, "perturbation": kinds.Constant(0.0), "score": "value"}
