"""The segments of a label map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_xai._checks import spatial_shape
from lightning_xai.regions.base import BoundRegions, Regions


@dataclass(frozen=True, eq=False)
class Segments(Regions):
    """The segments of an integer label map: superpixels, spectral bands, groups of columns.

    Args:
        labels: Labels 0..J-1 [*S], one map for all samples; or a function ``inputs -> labels [N, *S]`` for one map
            per sample. Cells labelled -1 belong to no feature. Feature j of a sample without cells labelled j is NaN.

    Raises:
        ValueError: If the labels are not integers from -1 on, or name no feature.

    >>> bands = Segments(torch.tensor([0, 0, 1, -1])).bind((1, 2, 4))
    >>> bands.paint(torch.tensor([[3.0, 5.0]]))
    tensor([[3., 3., 5., nan]])
    """

    labels: Tensor | Sequence[int] | Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.labels):
            labels = torch.as_tensor(self.labels)
            _check_labels(labels)
            object.__setattr__(self, "labels", labels)

    def bind(self, inputs: Tensor | Sequence[int]) -> BoundSegments:
        """The segments over inputs [N, C, *S] or [N, F]; a function of the inputs needs the inputs themselves."""
        spatial = spatial_shape(inputs)
        if callable(self.labels):
            if not isinstance(inputs, Tensor):
                raise ValueError("labels is a function of the inputs: bind the inputs, not their shape.")
            labels = self.labels(inputs)
            if not isinstance(labels, Tensor):
                raise TypeError(f"labels must return a tensor, got {type(labels).__name__}.")
            _check_labels(labels)
            needed = [len(inputs), *spatial]
        else:
            labels, needed = torch.as_tensor(self.labels), [*spatial]
        if list(labels.shape) != needed:
            raise ValueError(
                f"labels are {list(labels.shape)}, the inputs need {needed}; one map per sample is made by a function "
                f"of the inputs."
            )
        labels = labels.reshape(-1, *spatial)
        if isinstance(inputs, Tensor):
            labels = labels.to(inputs.device)
        return BoundSegments(labels.long(), int(labels.max()) + 1, spatial)


@dataclass(frozen=True, eq=False)
class BoundSegments(BoundRegions):
    """A label map [N, *S], or [1, *S] for all samples.

    Attributes:
        labels: The feature of each cell, -1 for none.
        count: J, the number of features.

    >>> list(Segments([0, 1, 0]).bind((1, 1, 3)).cells(torch.tensor([[[5.0, 6.0, 7.0]]]), 0))
    [(slice(None, None, None), tensor([[[5., 7.]]]))]
    """

    labels: Tensor
    count: int
    spatial: tuple[int, ...]

    def paint(self, values: Tensor) -> Tensor:
        self._check(values)
        values = torch.where(values.isfinite(), values, float("nan"))
        labels = self.labels.to(values.device).expand(values.shape[0], *self.spatial)
        painted = values.gather(1, labels.flatten(1).clamp(min=0)).view_as(labels)
        return torch.where(labels >= 0, painted, float("nan"))

    def cells(self, inputs: Tensor, feature: int) -> Iterator[tuple[slice, Tensor]]:
        masks = (self.labels == feature).flatten(1)
        flat = inputs.flatten(2)
        if masks.shape[0] == 1:
            yield slice(None), flat[:, :, masks[0]]
            return
        for row, mask in enumerate(masks):
            yield slice(row, row + 1), flat[row : row + 1, :, mask]

    def write(self, target: Tensor, source: Tensor, feature: int) -> None:
        target.copy_(torch.where((self.labels == feature).unsqueeze(1), source, target))

    def put(self, target: Tensor, rows: slice, values: Tensor, feature: int) -> None:
        mask = self.rows(rows).labels == feature
        # Every sample of the block has the same cells, so the mask of the first one orders the values of all.
        target[rows].masked_scatter_(mask.unsqueeze(1), values)

    def rows(self, rows: slice | Tensor) -> BoundSegments:
        return self if self.labels.shape[0] == 1 else replace(self, labels=self.labels[rows])

    def present(self) -> Tensor:
        labels = self.labels.flatten(1) + 1
        found = torch.zeros(len(labels), self.count + 1, dtype=torch.bool, device=labels.device)
        return found.scatter_(1, labels, True)[:, 1:]

    def extents(self) -> Tensor:
        labels = self.labels.flatten(1).cpu() + 1
        axes = []
        for axis, length in enumerate(self.spatial):
            place = torch.arange(length).view(-1, *[1] * (len(self.spatial) - axis - 1)).expand(self.spatial)
            cells = place.flatten().expand(len(labels), -1)
            empty = torch.zeros(len(labels), self.count + 1, dtype=torch.long)
            first, last = (empty.scatter_reduce(1, labels, cells, how, include_self=False) for how in ("amin", "amax"))
            axes.append(torch.stack([first, last + 1], 2)[:, 1:])
        return torch.stack(axes, 2)


def _check_labels(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if labels.numel() == 0 or int(labels.min()) < -1 or int(labels.max()) < 0:
        raise ValueError("labels must run from 0 (-1 marks cells of no feature) and name at least one feature.")
