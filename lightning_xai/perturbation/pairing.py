"""Which features go together in a request, and which those are for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_xai.perturbation.sets import CellMasks, FeatureSets

Pairing = int | tuple[int, ...] | str | FeatureSets | CellMasks | None
SamplePairing = Tensor | str | FeatureSets | CellMasks | None


def count_of(pairing: Pairing, count: int) -> int:
    """How many perturbed inputs a pairing of ``count`` features makes per sample."""
    if isinstance(pairing, FeatureSets):
        return max(pairing.sample.bincount().tolist(), default=0)
    if isinstance(pairing, CellMasks):
        return 1
    sizes: dict[Pairing, int] = {None: count, "all": count * (count - 1) // 2}
    return sizes.get(pairing, count - 1)


def of_rows(pairing: SamplePairing, rows: slice) -> SamplePairing:
    """The part of a pairing that is of some samples."""
    if isinstance(pairing, FeatureSets | CellMasks):
        return pairing.within(rows)
    return pairing[rows] if isinstance(pairing, Tensor) else pairing


def per_sample(pairing: Pairing, count: int, samples: int) -> SamplePairing:
    """A pairing, with its anchor spread over the samples."""
    if isinstance(pairing, FeatureSets | CellMasks):
        pairing.check(samples, count)
        return pairing
    if pairing is None or pairing == "all":
        return pairing
    anchors = torch.tensor(pairing)
    if anchors.ndim == 0:
        anchors = anchors.expand(samples)
    if anchors.shape != (samples,):
        raise ValueError(f"anchor must be one feature or one per sample, got {anchors.numel()} for {samples} samples.")
    if int(anchors.min()) < 0 or int(anchors.max()) >= count:
        raise ValueError(
            f"anchor {sorted(set(anchors.tolist()))} is out of range: there are {count} features, 0 to {count - 1}."
        )
    return anchors
