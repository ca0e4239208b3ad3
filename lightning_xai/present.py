"""Features that are there in some samples only: those of padding and special tokens are absent."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_xai.bound_model import BoundModel
from lightning_xai.regions import BoundRegions, Regions


class PresentRegions(BoundRegions):
    """Regions of which a sample lacks those that have no cell but absent ones.

    Args:
        regions: The regions.
        present: Which features each sample has, Boolean [N, J].
    """

    def __init__(self, regions: BoundRegions, present: Tensor) -> None:
        self._regions, self._present = regions, present
        self.count, self.spatial = regions.count, regions.spatial

    def paint(self, values: Tensor) -> Tensor:
        return self._regions.paint(values)

    def cells(self, inputs: Tensor, feature: int) -> Iterator[tuple[slice, Tensor]]:
        return self._regions.cells(inputs, feature)

    def write(self, target: Tensor, source: Tensor, feature: int) -> None:
        self._regions.write(target, source, feature)

    def put(self, target: Tensor, rows: slice, values: Tensor, feature: int) -> None:
        self._regions.put(target, rows, values, feature)

    def rows(self, rows: slice | Tensor) -> PresentRegions:
        return PresentRegions(self._regions.rows(rows), self._present[rows])

    def present(self) -> Tensor:
        return self._present


def without_absent(model: nn.Module, maps: Tensor) -> Tensor:
    r"""Return maps [N, \*S] that are NaN where a :class:`BoundModel` has no feature, as at padding."""
    absent = model.absent if isinstance(model, BoundModel) else None
    if absent is None or absent.shape != maps.shape:
        return maps
    return maps.masked_fill(absent.to(maps.device), float("nan"))


def bind_present(regions: Regions, model: nn.Module, inputs: Tensor) -> BoundRegions:
    """Bind regions to inputs; features of a :class:`BoundModel` without any cell that is present are absent."""
    bound = regions.bind(inputs)
    absent = model.absent if isinstance(model, BoundModel) else None
    if absent is None:
        return bound
    cells = (~absent).unsqueeze(1)
    columns = []
    for feature in range(bound.count):
        there = [part.flatten(1).any(1) for _, part in bound.cells(cells, feature)]
        columns.append(torch.cat(there))
    present, own = torch.stack(columns, 1), bound.present()
    return PresentRegions(bound, present if own is None else present & own.to(present.device))
