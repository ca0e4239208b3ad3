"""The choice between the incremental and the dense engine, by what both cost."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_xai.perturbation.incremental.counting import CALLED, Cost

# How much less than dense passes the incremental ones must cost by the estimate, which may be wrong by so much.
_LEAST_GAIN = 0.85
# Making the indices of a step, in calls of functions.
_PLANNED = 25
# The largest tensor of a pass: beyond, fresh pages cost more than a larger pass gains.
_CPU_BYTES, _DEVICE_BYTES = 16 * 2**20, 512 * 2**20
_MOST_ROWS = 8192


@dataclass(frozen=True)
class Choice:
    """What both engines cost.

    Attributes:
        dense: What a row costs in a pass through the whole network.
        boxes: What a row costs in a pass over changed boxes.
        evaluations: How many perturbed inputs there will be.
        dense_rows: How many of them go into a pass through the whole network.
        rows: How many of them go into a pass over changed boxes.
        first_whole: The first operation that is made on whole maps.
    """

    dense: Cost
    boxes: Cost
    evaluations: int
    dense_rows: int
    rows: int
    first_whole: str | None

    @property
    def share(self) -> float:
        """The share of the multiplications of dense passes that is left."""
        return self.boxes.multiplications / self.dense.multiplications if self.dense.multiplications else 1.0

    @property
    def gain(self) -> float:
        """The share of the estimated time that is left."""
        passes, dense_passes = -(-self.evaluations // self.rows), -(-self.evaluations // self.dense_rows)
        called = (self.boxes.calls * 3 * passes + self.boxes.calls * _PLANNED) * CALLED
        dense = self.evaluations * self.dense.total + self.dense.calls * CALLED * dense_passes
        return (self.evaluations * self.boxes.total + called) / dense

    @property
    def pays(self) -> bool:
        """Tell whether passes over changed boxes are faster by the estimate."""
        return self.gain < _LEAST_GAIN

    def why_not(self) -> str:
        """Say why dense passes are faster."""
        left = f"{100 * self.share:.0f} % of the multiplications would be left"
        return f"{left}, as {self.first_whole} needs whole maps" if self.first_whole else left


def worth_planning(dense: Cost, evaluations: int) -> bool:
    """Tell whether dense passes cost much more than making a plan does."""
    return evaluations * dense.total > 2 * dense.calls * _PLANNED * CALLED


def pass_rows(numbers: float, size: int, on_cpu: bool) -> int:
    """How many rows go into a pass whose largest tensor has so many numbers of ``size`` bytes per row."""
    return max(1, min(_MOST_ROWS, int((_CPU_BYTES if on_cpu else _DEVICE_BYTES) / max(1.0, numbers * size))))
