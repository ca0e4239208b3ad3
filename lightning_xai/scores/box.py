"""The score of a detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai._checks import as_integer
from lightning_xai.scores.base import Score
from lightning_xai.scores.target import Target

_PARTS = ("boxes", "scores", "labels")
_NO_LABEL = -1.0


@dataclass(frozen=True)
class Box(Score):
    r"""How well a model still finds one of its detections: the best box of the same label.

    .. math:: s(x) = \max_{k:\, l_k = l} \mathrm{IoU}(b, b_k)\, p_k

    Box b and label l are those of the detection on the clean inputs, whose score is its own p; 0 where no box of the
    label is left, and NaN for a sample with fewer detections. The derivative is that of :math:`p_k`: which box it is,
    and how far it overlaps, is held. The target is ignored; the label stands for it.

    Reads a list with a dict of ``boxes`` [K, 4] (left, top, right, bottom), ``scores`` [K] and ``labels`` [K] per
    sample, as the detectors of torchvision return.

    Args:
        index: Which detection, counted from 0 in the order in which the model returns them.

    Source: :cite:`petsiuk2021`.

    >>> clean = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.tensor([0.8]), "labels": torch.tensor([3])}]
    >>> moved = [{**clean[0], "boxes": torch.tensor([[0.0, 0, 4, 2]])}]
    >>> bound = Box().bind(clean, None, samples=1)
    >>> bound(clean), bound(moved), bound.target
    (tensor([0.8000]), tensor([0.4000]), tensor([3]))
    """

    by_region: ClassVar[bool] = False
    by_class: ClassVar[bool] = False
    by_position: ClassVar[bool] = False

    index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        as_integer("index", self.index, least=0)

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        if self.index >= clean.shape[2]:
            return (clean.new_full((len(clean), 4), float("nan")),)
        chosen = clean[:, :, self.index].detach()
        return (torch.where((chosen[:, 5:] == _NO_LABEL), float("nan"), chosen[:, :4]),)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        (box,) = fixed
        found = output.new_zeros(len(output))
        if output.shape[2]:
            same = output[:, 5].detach() == target.unsqueeze(1)
            overlap = torch.where(same, _overlap(box, output[:, :4].detach()), 0.0)
            found = (overlap * output[:, 4]).amax(1)
        return torch.where(box.isnan().any(1), float("nan"), found)

    def classes(self, clean: Tensor) -> int:
        return 0

    def predict(self, clean: Tensor, present: Tensor | None = None) -> Tensor:
        if self.index >= clean.shape[2]:
            return torch.full((len(clean),), int(_NO_LABEL), device=clean.device)
        return clean[:, 5, self.index].detach().long()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        most = max(part.shape[2] for part in parts)
        return torch.cat([_padded(part, most) for part in parts])

    def pick(self, output: Any) -> Any:
        return output if self.output is None else super().pick(output)

    def _resolve(self, target: Target, clean: Tensor, present: Tensor | None) -> Tensor:
        return self.predict(clean)

    def _columns(self, output: Any, samples: int) -> Tensor:
        detections = self.pick(output)
        if not isinstance(detections, list | tuple) or not all(
            isinstance(found, Mapping) and all(name in found for name in _PARTS) for found in detections
        ):
            raise ValueError(
                f"score=Box() reads a list of dicts with the keys {list(_PARTS)}, as detectors of torchvision return, "
                f"got {type(detections).__name__}."
            )
        if len(detections) != samples:
            raise ValueError(f"the model returned detections of {len(detections)} samples for {samples}.")
        rows = [
            torch.cat(
                [found["boxes"].t(), found["scores"].unsqueeze(0), found["labels"].to(found["scores"]).unsqueeze(0)]
            )
            for found in detections
        ]
        most = max((row.shape[1] for row in rows), default=0)
        return torch.stack([_padded(row.unsqueeze(0), most)[0] for row in rows])


def _padded(columns: Tensor, most: int) -> Tensor:
    """Add detections with score 0 and no label to columns [N, 6, K]."""
    missing = most - columns.shape[2]
    if not missing:
        return columns
    padded = functional.pad(columns, (0, missing))
    label = functional.pad(torch.zeros_like(columns[:, 5:]), (0, missing), value=_NO_LABEL)
    return torch.cat([padded[:, :5], padded[:, 5:] + label], 1)


def _overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """The intersection over union [N, K] of a box [N, 4] with boxes [N, 4, K]; 0 where nothing has an area."""
    first = box.unsqueeze(2)
    width = torch.minimum(first[:, 2], boxes[:, 2]) - torch.maximum(first[:, 0], boxes[:, 0])
    height = torch.minimum(first[:, 3], boxes[:, 3]) - torch.maximum(first[:, 1], boxes[:, 1])
    shared = width.clamp(min=0) * height.clamp(min=0)
    areas = [(part[:, 2] - part[:, 0]) * (part[:, 3] - part[:, 1]) for part in (first, boxes)]
    union = areas[0] + areas[1] - shared
    return torch.where(union > 0, shared / torch.where(union > 0, union, 1.0), 0.0)
