"""Time that explaining may take, and up to which sample it lasts in every process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

BLOCK = 8  # samples of a process that are explained together, between two looks at the clock


def check_seconds(argument: str, seconds: float | None) -> None:
    """Refuse what is neither None nor a time.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{argument} must be a number of seconds or None, got {seconds!r}.")
    if not seconds > 0:
        raise ValueError(f"{argument} must be above 0, or None for as long as it takes, got {seconds!r}.")


class TimeBudget:
    """Decides how many blocks of samples are explained in some seconds, alike in all processes.

    The process that comes first to a block decides about it for all, by one atomic write to the store in which the
    processes have found each other, so none waits for another: a process that is behind explains what the first has
    begun, and stops before the block that nobody has begun. The first block of a data loader is always explained.

    Args:
        seconds: How long explaining may take.
        store: Where several processes leave their decisions; each decides alone unless given.

    >>> budget = TimeBudget(0.0)
    >>> budget.allows("0", 0), budget.allows("0", 1)
    (True, False)
    """

    def __init__(self, seconds: float, store: Any | None = None) -> None:
        self.seconds = seconds
        self.spent = 0.0
        self._store = store
        self._begun: float | None = None
        self._decided: dict[str, str] = {}  # by data loader: how many blocks are explained, and whether it is final

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time that explaining takes."""
        self._begun = time.monotonic()
        try:
            yield
        finally:
            self.spent, self._begun = self.elapsed(), None

    def elapsed(self) -> float:
        """Return how many seconds have been spent explaining."""
        return self.spent + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def allows(self, loader: str, block: int) -> bool:
        """Tell whether a block of samples of a data loader is explained."""
        while True:
            decided = self._decided.get(loader, "")
            count, _, final = (decided or "0").partition(" ")
            if block < int(count) or final:
                return block < int(count)
            more = int(count) == 0 or self.elapsed() < self.seconds
            wish = f"{int(count) + 1}" if more else f"{count} final"
            # What another process has written since this one looked is returned instead, and counts.
            answer = wish if self._store is None else self._store.compare_set(loader, decided, wish).decode()
            self._decided[loader] = answer


def shared_store(name: str) -> Any | None:
    """Return the store of the process group, under a name of one's own; None if there is one process only."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    from torch.distributed import distributed_c10d

    return distributed_c10d.PrefixStore(name, distributed_c10d._get_default_store())


def by_block(places: Tensor, chosen: Tensor) -> list[tuple[int, Tensor]]:
    """Split chosen rows by the blocks in which their places lie.

    >>> by_block(torch.arange(5, 20), torch.tensor([0, 1, 4, 12]))
    [(0, tensor([0, 1])), (1, tensor([4])), (2, tensor([12]))]
    """
    blocks, sizes = torch.unique_consecutive(places[chosen] // BLOCK, return_counts=True)
    return list(zip(blocks.tolist(), torch.split(chosen, sizes.tolist()), strict=True))
