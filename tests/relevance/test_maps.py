"""Choosing by sign, against torch itself."""

import pytest
import torch

from lightning_xai.relevance.maps import where_negative


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signs_are_chosen_as_by_where(dtype):
    values = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, float("inf"), -float("inf")], dtype=dtype)
    x = values.repeat(9, 3).view(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    both = torch.randn(2, 6, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    below, above = both.chunk(2, 1)
    below[0, 0, 0, 0], above[1, 1, 1, 1] = float("nan"), float("inf")
    whatever = where_negative(torch.full_like(x, float("nan")), torch.zeros_like(x), torch.ones_like(x))
    assert set(whatever.flatten().tolist()) <= {0.0, 1.0}
    for one, other in ((below, above), (above, below), (above, above.new_zeros(())), (above.new_ones(()), above)):
        expected = torch.where(x < 0, one, other)
        torch.testing.assert_close(where_negative(x, one, other), expected, rtol=0, atol=0, equal_nan=True)
