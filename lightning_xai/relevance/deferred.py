"""Convolutions that wait until it is known whether a batch norm follows, with which they are run as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.relevance.records import Record

_ASKING = frozenset({"dim", "ndimension", "size"})
_ASKING_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "requires_grad", "grad_fn", "is_cuda", "layout"})


class Deferred:
    """Outputs whose values nobody has asked for yet; they get them as soon as anything but a batch norm does."""

    def __init__(self) -> None:
        self._waiting: Any = WeakTensorKeyDictionary()

    def __bool__(self) -> bool:
        return len(self._waiting) > 0

    def add(self, y: Tensor, record: Record, run: Callable[[], Tensor]) -> None:
        """An output without values, and what gives them."""
        record.blank = True
        self._waiting[y] = (record, run)

    def holds(self, y: Tensor) -> bool:
        """Whether this output has no values yet."""
        return y in self._waiting

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Give these their values."""
        for y in tensors:
            found: tuple[Record, Callable[[], Tensor]] | None = self._waiting.pop(y, None)
            if found is None:
                continue
            record, run = found
            with torch.no_grad():
                y.data = run()
            record.blank = False
            record.keep(y)

    def finish(self) -> None:
        """Give their values to all that are still there: somebody has kept them."""
        self.fill(list(self._waiting.keys()))


def only_asks(func: Callable[..., Any], name: str) -> bool:
    """Whether a call reads no values of the tensor it is asked about."""
    if name == "get":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _ASKING_ATTRIBUTES
    return name in _ASKING
