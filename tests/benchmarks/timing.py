"""Times of calls that are made in turn, so that a slow moment of the machine meets every one of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


def seconds(contender: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    contender()
    return time.perf_counter() - start


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, all called in turn; a round before the first warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            times[name].append(seconds(contender))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


@dataclass(frozen=True)
class Clock:
    """Seconds of one call: by the clock on the wall, and of the processor, which other processes disturb less."""

    wall: float
    processor: float


def clocked(contender: Callable[[], object]) -> Clock:
    """Both times of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    contender()
    return Clock(time.perf_counter() - wall, time.process_time() - processor)


def pairs(contender: Callable[[], object], base: Callable[[], object], rounds: int) -> list[tuple[Clock, Clock]]:
    """The times of two calls that follow each other, in either order; one of each before warms up."""
    base(), contender()
    found = []
    for number in range(rounds):
        if number % 2:
            first = clocked(contender)
            found.append((first, clocked(base)))
        else:
            second = clocked(base)
            found.append((clocked(contender), second))
    return found


def ratio(contender: Callable[[], object], base: Callable[[], object], rounds: int) -> float:
    """The median of the ratios of two calls that follow each other, in either order."""
    return statistics.median(ours.wall / other.wall for ours, other in pairs(contender, base, rounds))
