"""Metrics that keep the maps of some samples: those with the smallest ids, whatever the batches and processes."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai.evaluation.features import ExplainedBatch
from lightning_xai.evaluation.masking import pooled
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, precise
from lightning_xai.regions import Regions
from lightning_xai.units.search import check_ids

_ID = 0  # the column


class KeptSamples(ExplanationMetric, ABC):
    """Keeps a row of numbers of each of the M samples with the smallest ids, which the processes merge.

    A row is the sample's id, what is known about the sample, and its map over the features. A subclass puts the rows
    [N, columns] into ``BatchExplanation.kept`` as ``"rows"``.

    Args:
        samples: M.
        **options: Options of ``torchmetrics.Metric``.

    Attributes:
        about: How many columns come before the map.
        kept: The rows [M, columns] in the order of the ids, filled up by rows of -1; a number before the first batch.
    """

    about: ClassVar[int]
    kept: Tensor

    def __init__(self, *, samples: int, **options: Any) -> None:
        super().__init__(**options)
        self.most = as_integer("samples", samples, least=1)
        self.add_state("kept", torch.zeros((), dtype=torch.float64), dist_reduce_fx=partial(_merged, n=samples))

    def rows_of(self, batch: ExplainedBatch, regions: Regions | None, *about: Tensor) -> Tensor:
        """Return the rows of a batch, [N, columns]: ids, columns [N] about the samples, and maps over the features.

        Args:
            batch: The samples and their maps.
            regions: The features; every position if None.
            *about: What is known about the samples [N].
        """
        check_ids(batch.ids)
        if regions is None:
            features = pooled(batch.relevance).flatten(1)
        else:
            found = batch.features(regions)
            features = torch.where(found.ordered, found.values, float("nan"))
        ids = torch.tensor(batch.ids, device=features.device)
        columns = [precise(each.to(features.device)).unsqueeze(1) for each in (ids, *about)]
        return torch.cat([*columns, precise(features)], 1)

    def add(self, found: BatchExplanation) -> None:
        """Keep the samples of a batch with the smallest ids."""
        rows = found.kept["rows"]
        before = self.kept.to(rows.device)
        if before.ndim and before.shape[1] != rows.shape[1]:
            raise ValueError(
                f"maps can be followed over inputs of one size: there were {before.shape[1] - self.about} features and "
                f"there are {rows.shape[1] - self.about} now. Resize the inputs, or give regions of the same number."
            )
        self.kept = _first(torch.cat([before, rows]) if before.ndim else rows, self.most)

    @property
    def rows(self) -> Tensor:
        """The rows that are kept, on the CPU; none before the first batch."""
        rows = self.kept.cpu() if self.kept.ndim else self.kept.new_zeros(0, self.about + 1).cpu()
        return rows[rows[:, _ID] >= 0]

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Merge another state, of which one may not have seen its first sample."""
        own, other = self.kept, incoming_state["kept"]
        if not own.ndim and other.ndim:
            self.kept = torch.full_like(other, -1.0)
        if not other.ndim and own.ndim:
            incoming_state = {**incoming_state, "kept": torch.full_like(own, -1.0)}
        super()._reduce_states(incoming_state)


def means_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average numbers [N] by name: the mean of those that are finite, its standard error, and how many are not."""
    found = {}
    for name, value in values.items():
        known = value[value.isfinite()]
        found[name] = known.mean()
        error = known.std() / math.sqrt(len(known)) if len(known) > 1 else known.new_tensor(math.nan)
        found[f"{name}_error"] = error
        found[f"{name}_undefined"] = torch.tensor(len(value) - len(known))
    return found


def _first(rows: Tensor, n: int) -> Tensor:
    """Keep the n rows with the smallest ids, each once, filled up by rows of -1."""
    rows = rows[rows[:, _ID] >= 0]
    rows = rows[rows[:, _ID].argsort(stable=True)]
    new = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    new[1:] = rows[1:, _ID] != rows[:-1, _ID]
    rows = rows[new][:n]
    return torch.cat([rows, rows.new_full((n - len(rows), rows.shape[1]), -1.0)])


def _merged(states: Tensor, n: int) -> Tensor:
    """Merge the states [processes, n, columns] of several processes."""
    return _first(states.flatten(0, 1), n) if states.ndim > 1 else states[0]
