"""Wall times of calls that are made in turn, so that a slow moment of the machine meets every one of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


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


def ratio(contender: Callable[[], object], base: Callable[[], object], rounds: int) -> float:
    """The median of the ratios of two calls that follow each other, in either order; one of each before warms up."""
    base(), contender()
    ratios = []
    for number in range(rounds):
        if number % 2:
            first = seconds(contender)
            ratios.append(first / seconds(base))
        else:
            first = seconds(base)
            ratios.append(seconds(contender) / first)
    return statistics.median(ratios)
