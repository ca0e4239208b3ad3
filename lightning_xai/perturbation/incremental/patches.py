"""Perturbed inputs as the incremental engine takes them: the boxes that have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_xai.perturbation.capture import CaptureBuffer
from lightning_xai.perturbation.engine import Features, Samples, all_finite, mask_broken
from lightning_xai.perturbation.incremental.geometry import Boxes, enclose
from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.present import absent_cells


def boxes_of(extents: Tensor, features: Sequence[Features], spatial: Sequence[int]) -> Boxes:
    """The boxes of features, [n or 1, J, axes, 2], in maps: feature by feature, and sample by sample."""
    some = extents[:, [together[-1] for together in features]].transpose(0, 1).flatten(0, 1)
    return enclose([(axis[:, 0], axis[:, 1] - 1) for axis in some.unbind(1)], spatial)


def sample_of_rows(samples: Samples, features: int) -> Tensor:
    """The samples of each position's rows, [1, n], or [F * n, 1] where every sample has boxes of its own."""
    extents = samples.regions.extents()
    if extents is None or len(extents) == 1:
        return samples.rows.unsqueeze(0)
    return samples.rows.repeat(features).unsqueeze(1)


def in_order(extents: Tensor, features: Sequence[Features], per_pass: int, spatial: Sequence[int]) -> list[int]:
    """The places of features in the order of passes: boxes of one pass have one size, so that like ones come together.

    Boxes of one size reach less far the nearer they lie to a border, so that their place decides.
    """
    boxes = extents[:, [together[-1] for together in features]]
    sizes = boxes[..., 1] - boxes[..., 0]
    volumes = sizes.prod(2).amax(0)
    order: list[int]
    if bool((volumes != volumes[0]).any()):
        order = volumes.argsort(stable=True).tolist()
        return order
    sides = torch.stack([boxes[..., 0], torch.tensor(spatial) - boxes[..., 1]], 3).amax(0)  # [F, axes, 2]
    order = _divide(torch.arange(len(features)), sides.amin(2), per_pass).tolist()
    # Within a pass, boxes as near to the same borders follow each other: they lie alike in the windows around them.
    near = sides.minimum(sizes.amax(0).unsqueeze(2)).flatten(1).tolist()
    passes = (order[first : first + per_pass] for first in range(0, len(order), per_pass))
    return [place for some in passes for place in sorted(some, key=lambda place: (near[place], place))]


def _divide(places: Tensor, distances: Tensor, per_pass: int) -> Tensor:
    """Sort by the distances [F, axes], one axis within parts of those before that hold whole passes."""
    places = places[distances[places, 0].argsort(stable=True)]
    axes = distances.shape[1]
    if axes == 1:
        return places
    passes = -(-len(places) // per_pass)
    size = per_pass * -(-passes // max(1, round(passes ** (1 / axes))))
    parts = [places[first : first + size] for first in range(0, len(places), size)]
    return torch.cat([_divide(part, distances[:, 1:], per_pass) for part in parts])


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
    if not buffer and not suspect and samples.regions.fills(boxes.sizes, [together[-1] for together in features]):
        # Whatever else is perturbed, of what lies in a feature nothing is left.
        cut = [_cut(arm, boxes) for arm in arms if arm is not None]
        return torch.stack(cut), None
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
        own_boxes = Boxes(starts, boxes.sizes, boxes.spatial)
        # [A, F, n] are [A, P, m]: every sample is a position of its own where it has boxes of its own.
        positions = batch.view(len(batch), own_boxes.count, -1, *batch.shape[3:])
        patches.append(torch.stack([_cut(arm, own_boxes) for arm in positions]))
    return torch.cat(patches, 1), torch.cat(broken, 1) if suspect else None


def _cut(inputs: Tensor, boxes: Boxes) -> Tensor:
    """Cut boxes [P * n, C, *sizes] out of inputs, [n, C, *S] for all of them or [P, n, C, *S]."""
    axes = len(boxes.spatial)
    position = torch.arange(boxes.count, device=inputs.device).view(-1, *[1] * axes)
    shared = inputs.ndim == axes + 2
    index: list[Any] = [slice(None), slice(None)] if shared else [position, slice(None), slice(None)]
    for axis, cells in enumerate(boxes.coordinates()):
        index.append(cells.view(boxes.count, *[1] * axis, -1, *[1] * (axes - axis - 1)).to(inputs.device))
    cut = inputs[tuple(index)]
    # Indices that follow each other stay at their place; those with slices between them come first.
    return (cut.movedim(2, 0) if shared else cut.movedim((-2, -1), (1, 2))).flatten(0, 1)
