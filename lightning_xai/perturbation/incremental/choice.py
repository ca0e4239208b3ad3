"""The choice between the incremental and the dense engine, by what both cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_xai.perturbation.incremental.clean import probe, template
from lightning_xai.perturbation.incremental.counting import CALLED, Cost
from lightning_xai.perturbation.incremental.patches import boxes_of, in_order
from lightning_xai.perturbation.incremental.plan import Plan, dense_cost, output_values
from lightning_xai.perturbation.incremental.record import NotReplayable, Tap
from lightning_xai.perturbation.incremental.template import Template
from lightning_xai.perturbation.network import Network

# How much less than dense passes the incremental ones must cost by the estimate, which may be wrong by so much.
_LEAST_GAIN = 0.85
# Planning a step, in calls of functions.
_PLANNED = 25
# The largest tensor of a pass: beyond, fresh pages cost more than a larger pass gains. Passes of many rows gain less by
# more of them than by what stays in the caches.
_CPU_BYTES, _DEVICE_BYTES = 16 * 2**20, 512 * 2**20
_MANY_ROWS, _MOST_ROWS = 512, 8192
# Passes of which the cost is estimated; the others are like them.
_SURVEYED = 8


@dataclass(frozen=True, eq=False)
class Survey:
    """What sweeps of one network over inputs of one shape and type have in common.

    Attributes:
        template: The structure of passes.
        read: The values whose clean numbers are read; None for all.
        dense: What a row costs in a pass through the whole network.
        boxes: What a row costs in a pass over changed boxes.
        first_whole: The first operation that is made on whole maps.
    """

    template: Template
    read: set[int] | None
    dense: Cost
    boxes: Cost
    first_whole: str | None


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

    @classmethod
    def of(cls, found: Survey, network: Network, evaluations: int, size: int) -> Choice:
        """The choice for so many perturbed inputs, of numbers of ``size`` bytes."""
        rows = rows_per_pass(found.boxes, network, size)
        return cls(found.dense, found.boxes, evaluations, network.batches.limit, rows, found.first_whole)

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


def survey(
    network: Network,
    inputs: Tensor,
    extents: Tensor,
    places: Sequence[Tap],
    *,
    scored: bool,
    least: int | None,
) -> Survey:
    """Find the structure of passes, what is read and what passes cost, by passes of a few rows.

    Args:
        network: The network.
        inputs: Samples [n, C, *S].
        extents: The boxes of the features, [1 or n, J, axes, 2].
        places: The places whose outputs are wanted.
        scored: Whether the output is wanted.
        least: How many perturbed inputs there will be, if it has to be worth planning for them.

    Raises:
        NotReplayable: If everything has to go densely, or there is too little to be saved.
    """
    pair = probe(network, inputs, places, 2)
    outputs, taps = output_values(pair), [pair.taps[place] for place in places]
    dense = dense_cost(pair, [*outputs, *taps])
    if least is not None and not worth_planning(dense, least):
        raise NotReplayable("there is too little to be saved")
    found = template(network, inputs, pair, places)
    wanted = list(dict.fromkeys([*(outputs if scored else []), *taps]))
    features, spatial = [(j,) for j in range(extents.shape[1])], inputs.shape[2:]

    def planned(some: Collection[tuple[int, ...]]) -> Plan:
        return Plan(pair, found.trees, boxes_of(extents, list(some), spatial), wanted)

    plan = planned(features)
    per_pass = features_per_pass(len(features), rows_per_pass(plan.cost, network, inputs.element_size()), len(inputs))
    parts = [features]
    if len(extents) == 1:
        order = in_order(extents, features, per_pass, spatial)
        parts = [
            [features[place] for place in order[first : first + per_pass]] for first in range(0, len(order), per_pass)
        ]
        parts = parts[:: -(-len(parts) // _SURVEYED)]
    cost = Cost.mean([planned(part).cost for part in parts])
    # Boxes of every sample's own may be larger in samples to come, so that more is read.
    read = plan.read_by_any() if len(extents) == 1 else None
    return Survey(found, read, dense, cost, plan.first_whole)


def worth_planning(dense: Cost, evaluations: int) -> bool:
    """Tell whether dense passes cost much more than making a plan does."""
    return evaluations * dense.total > 2 * dense.calls * _PLANNED * CALLED


def rows_per_pass(cost: Cost, network: Network, size: int) -> int:
    """How many rows go into a pass over changed boxes, of numbers of ``size`` bytes."""
    on_cpu, per_row = network.device.type == "cpu", max(1.0, cost.largest * size)
    rows = max(1, min(_MOST_ROWS, int((_CPU_BYTES if on_cpu else _DEVICE_BYTES) / per_row)))
    if on_cpu and rows > _MANY_ROWS:
        rows = max(_MANY_ROWS, rows // 2)
    return rows if network.batches.estimated else min(rows, network.batches.limit)


def features_per_pass(features: int, rows: int, samples: int) -> int:
    """How many features of so many samples go into one pass, all passes being of about one size."""
    most = max(1, rows // samples)
    return -(-features // -(-features // most))
