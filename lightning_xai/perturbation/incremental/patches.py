"""Perturbed inputs as the incremental engine takes them: the boxes that have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_xai.perturbation.capture import CaptureBuffer
from lightning_xai.perturbation.engine import Features, Samples, all_finite, mask_broken
from lightning_xai.perturbation.incremental.gathering import Rows
from lightning_xai.perturbation.incremental.geometry import Boxes, enclose
from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.present import absent_cells


def boxes_of(extents: Tensor, features: Sequence[Features], samples: Samples, total: int) -> tuple[Boxes, Rows]:
    """The boxes of features, and the rows: feature by feature, sample by sample."""
    some = extents[:, [together[0] for together in features]]
    if len(extents) > 1:
        some = some.transpose(0, 1).flatten(0, 1).unsqueeze(0)
        own = samples.rows.cpu().repeat(len(features)).unsqueeze(1)
    else:
        own = samples.rows.cpu().unsqueeze(0)
    spatial = samples.values.shape[2:]
    reached = [(axis[:, 0], axis[:, 1] - 1) for axis in some[0].unbind(1)]
    return enclose(reached, spatial), Rows(own, total)


def by_size(extents: Tensor, features: Sequence[Features]) -> list[int]:
    """The places of features, those with small boxes first."""
    volumes = (extents[..., 1] - extents[..., 0]).prod(2).amax(0)
    found: list[int] = volumes[[together[-1] for together in features]].argsort(stable=True).tolist()
    return found


def cut_patches(
    samples: Samples,
    kind: Perturbation,
    arms: Sequence[Tensor | None],
    features: Sequence[Features],
    boxes: Boxes,
    block: int,
    buffer: CaptureBuffer | None,
) -> tuple[Tensor, Tensor | None]:
    """Cut the boxes [A, R, C, *sizes] out of perturbed inputs; tell which are broken [A, R], None if none can be.

    Whole perturbed inputs are there for ``block`` features at a time only.
    """
    suspect = not all_finite(arms)
    each = boxes.count // len(features)
    patches, broken = [], []
    for first in range(0, len(features), block):
        some = features[first : first + block]
        batch = samples.perturb(kind, arms, some, len(some))
        if buffer:
            buffer.add_change(batch, samples.values, absent_cells(samples.model))
        if suspect:
            broken.append(mask_broken(batch).flatten(1))
        own = slice(first * each, (first + len(some)) * each)
        starts = tuple(start[own] for start in boxes.starts)
        patches.append(_cut(batch.flatten(1, 2), Boxes(starts, boxes.sizes, boxes.spatial)))
    return torch.cat(patches, 1), torch.cat(broken, 1) if suspect else None


def _cut(inputs: Tensor, boxes: Boxes) -> Tensor:
    """Cut boxes [A, R, C, *sizes] out of perturbed inputs [A, R, C, *S]."""
    axes, rows = len(boxes.spatial), inputs.shape[1]
    row = torch.arange(rows, device=inputs.device).view(-1, *[1] * axes)
    index: list[Any] = [slice(None), row, slice(None)]
    for axis, cells in enumerate(boxes.coordinates()):
        cells = cells.repeat_interleave(rows // len(cells), 0).to(inputs.device)
        index.append(cells.view(rows, *[1] * axis, -1, *[1] * (axes - axis - 1)))
    return inputs[tuple(index)].movedim((-2, -1), (0, 2))  # indices with a slice between them come first
