"""The weights of a linear operation, and what rules make of them, kept for reuse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.relevance.maps import image_layout

_MOST_CACHED = 32  # per weight; rules that compare by identity would fill the memory

_cache: Any = WeakTensorKeyDictionary()


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a linear operation, those of a batch norm that follows folded in, and what rules make of them.

    What rules make of the weight is kept as long as it lives, and made anew when its version, its memory or the
    weighted sum of its values has changed: writing through ``weight.data`` leaves no version behind.

    Args:
        weight: The operation's own weight.
        bias: Its bias, if it has one.
        scale: The factor of a folded batch norm per output channel, shaped like the weight's axes.
        shift: What the folded batch norm adds, with the bias.
        key: Which batch norm is folded in.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    shift: Tensor | None = None
    key: tuple[Any, ...] = ()
    _stamps: list[tuple[Any, ...]] = field(default_factory=list, repr=False)

    def to(self, dtype: torch.dtype) -> Weights:
        """Convert to another type."""
        if self.weight.dtype == dtype:
            return self
        parts = (self.weight, self.bias, self.scale, self.shift)
        weight, bias, scale, shift = (None if part is None else part.to(dtype) for part in parts)
        assert weight is not None
        return Weights(weight, bias, scale, shift, self.key)

    def full_bias(self) -> Tensor | None:
        """The bias of the folded operation."""
        return self.bias if self.scale is None else self.shift

    def plain(self) -> Tensor:
        """The weight of the folded operation."""
        return self.weight if self.scale is None else self.cached("plain", lambda weight: weight)

    def cached(self, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute a tensor of the weight once and keep it, by a name that says all that it depends on."""
        stamp = self._stamp()
        cache = _cache.setdefault(self.weight, {})
        found = cache.get((name, self.key))
        if found is None or found[0] != stamp:
            with torch.no_grad():
                weight = self.weight if self.scale is None else self.weight * self.scale
                derived = make(weight).detach()
                if image_layout(derived):
                    derived = derived.contiguous(memory_format=torch.channels_last)
            while len(cache) >= _MOST_CACHED:
                cache.pop(next(iter(cache)))
            found = cache[name, self.key] = (stamp, derived)
        tensor: Tensor = found[1]
        return tensor

    def _stamp(self) -> tuple[Any, ...]:
        if not self._stamps:
            weight = self.weight.detach()
            version = None if weight.is_inference() else weight._version
            factors = None if self.scale is None else tuple(self.scale.flatten().tolist())
            self._stamps.append((weight.data_ptr(), version, _weighted_sum(weight), factors))
        return self._stamps[0]


def _weighted_sum(weight: Tensor) -> float:
    """The sum of a weight in which every place counts otherwise, so that it changes when values change places."""
    rows = weight.reshape(weight.shape[0] if weight.ndim else 1, -1)
    down, across = (_places(size, rows.dtype, rows.device) for size in rows.shape)
    return float(torch.dot(down, torch.mv(rows, across)))


@functools.lru_cache(maxsize=256)
def _places(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.linspace(1, 2, size, dtype=dtype, device=device)
