"""What the tests of relevance share."""

import sys
from pathlib import Path

import pytest

from lightning_xai.relevance import chain

sys.path.insert(0, str(Path(__file__).parent))  # for `networks`


@pytest.fixture(params=["whole", "one by one"])
def slices(request, monkeypatch):
    """Take the samples of a batch at once, and one by one through operations that follow each other."""
    if request.param == "one by one":
        monkeypatch.setattr(chain, "SLICE_BYTES", 1)
