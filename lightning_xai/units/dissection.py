r"""Dissection: which concept of labelled images a unit detects, by the overlap of its upsampled map with the masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_known
from lightning_xai._files import CsvTable
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.present import absent_cells
from lightning_xai.resizing import resize
from lightning_xai.sites import Layer
from lightning_xai.units._capture import LayerReader, layer_reader, with_positions
from lightning_xai.units.activation import units_there
from lightning_xai.units.concepts import NO_CONCEPT, Concepts
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function
from lightning_xai.units.quantile import DEFAULT_BUDGET, UpperQuantile, check_share

UNIONS = ("all", "present")

# The most cells of upsampled maps that exist at once.
_MOST_CELLS = 2**24

Masks = Tensor | Callable[[Tensor], Tensor]


class Overlap(NamedTuple):
    """Cells of each sample, counted.

    Attributes:
        intersection: |M ∩ L| [N, U, Q].
        area: |M| [N, U].
        concept_area: |L| [N, Q].
    """

    intersection: Tensor
    area: Tensor
    concept_area: Tensor


def overlap(maps: Tensor, masks: Tensor, threshold: Tensor, absent: Tensor | None = None) -> Overlap:
    r"""Count the cells whose upsampled activations are above their thresholds, and those of them in each concept.

    .. math:: M_k = [\,\mathrm{upsample}(A_k) > T_k\,]

    Args:
        maps: Activations A [N, U, \*P].
        masks: L, Boolean [N, Q, \*S].
        threshold: T [U].
        absent: Cells that do not count, as padding, Boolean [N, \*S].

    >>> maps = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    >>> masks = torch.tensor([[[[True, True], [False, False]]]])
    >>> overlap(maps, masks, torch.tensor([1.0]))
    Overlap(intersection=tensor([[[1]]]), area=tensor([[2]]), concept_area=tensor([[2]]))
    """
    samples, units = maps.shape[:2]
    flat = masks.flatten(2)
    flat = flat if absent is None else flat & ~absent.to(flat.device).flatten(1).unsqueeze(1)
    cells = flat.shape[2]
    # Counts are exact in floating point below the length of its mantissa.
    kind = torch.float32 if cells < 2**24 else torch.float64
    weights = flat.to(kind)
    intersection = maps.new_empty(samples, units, flat.shape[1], dtype=torch.long)
    area = maps.new_empty(samples, units, dtype=torch.long)
    across = max(1, _MOST_CELLS // cells)
    for row in range(samples):
        for start in range(0, units, across):
            some = slice(start, start + across)
            above = above_threshold(maps[row : row + 1, some], threshold[some], masks.shape[2:])[0].flatten(1)
            above = above if absent is None else above & ~absent[row].to(above.device).flatten()
            area[row, some] = above.sum(1)
            intersection[row, some] = (above.to(kind) @ weights[row].T).long()
    return Overlap(intersection, area, flat.sum(2))


def above_threshold(maps: Tensor, threshold: Tensor, size: Sequence[int]) -> Tensor:
    r"""The binary maps M, Boolean [N, U, \*S]: activations [N, U, \*P] upsampled (bi-, tri-) linearly, above T [U]."""
    return resize(maps, size) > threshold.to(maps).view(-1, *[1] * (maps.ndim - 2))


def intersection_over_union(intersection: Tensor, area: Tensor, concept_area: Tensor) -> Tensor:
    r"""Overlap of unit and concept from counts of cells; 0 where neither has a cell.

    .. math:: \mathrm{IoU} = \frac{|M \cap L|}{|M| + |L| - |M \cap L|}

    Args:
        intersection: [..., U, Q].
        area: |M|, [..., U, 1] or [..., U, Q].
        concept_area: |L|, [..., 1, Q].

    >>> intersection_over_union(torch.tensor([[3, 0]]), torch.tensor([[4]]), torch.tensor([[5, 0]]))
    tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    union = area + concept_area - intersection
    return torch.where(union > 0, intersection.double() / union.clamp(min=1), 0.0)


class Row(NamedTuple):
    """A unit in a table of dissected units."""

    unit: int
    concept: str
    category: str
    iou: float
    detector: bool
    threshold: float


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class DissectionResult(CsvTable):
    r"""Units against concepts: counts of cells, pooled over the data, and what follows from them.

    Two readings of the union are found in the literature. ``"all"``: over all samples. ``"present"``: over the samples
    that are labelled with the concept's category only, so that a unit is not blamed for what is not labelled; without
    categories these are the samples that contain the concept.

    Attributes:
        concepts: The concepts that the masks label.
        threshold: T [U].
        intersection: |M ∩ L| [U, Q].
        area: |M| [U].
        area_present: |M| over the samples labelled with the concept's category [U, Q].
        concept_area: |L| [Q].
        samples: How many there were.
        union: ``"all"`` or ``"present"``.
        detector: A unit is a detector if its best IoU is above this.

    Source: :cite:`bau2017`, :cite:`bau2020`.
    """

    columns = Row._fields

    concepts: Concepts
    threshold: Tensor
    intersection: Tensor
    area: Tensor
    area_present: Tensor
    concept_area: Tensor
    samples: int
    union: str = "all"
    detector: float = 0.04

    def __post_init__(self) -> None:
        check_reading(self.union, self.detector)

    @classmethod
    def of(cls, found: Overlap, concepts: Concepts, threshold: Tensor, union: str = "all") -> DissectionResult:
        """The counts of samples, pooled."""
        return cls(
            concepts=concepts,
            threshold=threshold,
            intersection=found.intersection.sum(0),
            area=found.area.sum(0),
            area_present=area_where_present(found, concepts),
            concept_area=found.concept_area.sum(0),
            samples=len(found.area),
            union=union,
        )

    @property
    def iou(self) -> Tensor:
        """IoU [U, Q]."""
        area = self.area.unsqueeze(1) if self.union == "all" else self.area_present
        return intersection_over_union(self.intersection, area, self.concept_area)

    @property
    def best(self) -> Tensor:
        """The concept [U] that each unit overlaps most, the first of equals; -1 if it overlaps none."""
        iou = self.iou
        return torch.where(iou.amax(1) > 0, iou.argmax(1), NO_CONCEPT)

    @property
    def best_iou(self) -> Tensor:
        """The largest IoU [U] of each unit."""
        return self.iou.amax(1)

    @property
    def is_detector(self) -> Tensor:
        """The units that detect their best concept, Boolean [U]."""
        return self.best_iou > self.detector

    def read(self, union: str) -> DissectionResult:
        """Return these counts under another reading of the union."""
        return replace(self, union=union)

    def joined(self, other: DissectionResult) -> DissectionResult:
        """The counts of two parts of the data together, which are those of all of it.

        Raises:
            ValueError: If they are of other concepts or thresholds.
        """
        if self.concepts != other.concepts or not torch.equal(self.threshold, other.threshold):
            raise ValueError("parts of a dissection must have the same concepts and thresholds.")
        names = ("intersection", "area", "area_present", "concept_area", "samples")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def strongest(self, concept: str, n: int) -> list[int]:
        """The n units of the largest IoU with a concept, ties by smaller unit.

        Raises:
            ValueError: If the concept is unknown.
        """
        check_known("concept", concept, self.concepts.names)
        column = self.iou[:, list(self.concepts.names).index(concept)]
        return [int(unit) for unit in column.sort(descending=True, stable=True).indices[:n]]

    def rows(self) -> list[Row]:
        """A row per unit, by falling IoU."""
        own = self.concepts.categories or self.concepts.names
        best, iou, is_detector = self.best.tolist(), self.best_iou, self.is_detector.tolist()
        table = []
        for unit in iou.sort(descending=True, stable=True).indices.tolist():
            concept = best[unit]
            name, category = ("", "") if concept == NO_CONCEPT else (self.concepts.names[concept], own[concept])
            table.append(Row(unit, name, category, float(iou[unit]), is_detector[unit], float(self.threshold[unit])))
        return table


def dissect(
    model: nn.Module,
    inputs: InputsLike,
    masks: Masks,
    *,
    layer: Layer,
    concepts: Concepts | Sequence[str],
    p: float = 0.005,
    threshold: Tensor | Sequence[float] | float | None = None,
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    union: str = "all",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> DissectionResult:
    r"""Find the concept that every unit of a layer detects.

    .. math:: \mathrm{IoU}_{k,c} = \frac{\sum_x |M_k(x) \cap L_c(x)|}{\sum_x |M_k(x) \cup L_c(x)|}, \qquad
        M_k(x) = [\,\mathrm{upsample}(A_k(x)) > T_k\,]

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes; or
            :class:`~lightning_xai.inputs.Inputs`.
        masks: A concept per cell [N, \*S] (-1 for none), Boolean masks [N, Q, \*S], or a segmenter: a function of some
            inputs that returns one or the other.
        layer: A layer with maps [N, K, \*P]: its dotted name, or the module itself.
        concepts: The concepts that the masks label.
        p: The share of the activations of these inputs that are above T, if no threshold is given.
        threshold: T [U], or one for all units, e.g. of :func:`activation_threshold`.
        unit: ``"channel"``, or groups of channels.
        activation: The activation function or its name; the one that follows the layer in the model unless given, and
            none where none follows.
        union: ``"all"`` or ``"present"``; see :class:`DissectionResult`.
        sample_ids: The samples' ids [N].
        chunk_size: The most inputs per forward pass; found automatically unless given.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer is unknown or has no positions, the masks do not fit, p is not inside (0, 1), or an
            activation is not finite.

    Source: :cite:`bau2017`.

    Example:
        A unit that is the input itself, and a concept that covers half of what is above its threshold:

        >>> x = torch.tensor([[[[0.0, 0.0, 5.0, 5.0]]]])
        >>> masks = torch.tensor([[[-1, -1, -1, 0]]])
        >>> found = dissect(nn.Sequential(nn.Identity()), x, masks, layer="0", concepts=["peak"], threshold=1.0)
        >>> found.iou, found.rows()[0].concept
        (tensor([[0.5000]], dtype=torch.float64), 'peak')
    """
    concepts = concepts if isinstance(concepts, Concepts) else Concepts(concepts)
    check_reading(union, 0.0)
    check_share(p)
    with layer_reader(model, inputs, layer, unit, activation, sample_ids, chunk_size) as reader:
        labelled = concepts.masks(masks(reader.inputs) if callable(masks) else masks, reader.inputs)
        limits = _threshold(reader, p) if threshold is None else torch.as_tensor(threshold)

        def run(rows: slice, maps: Tensor) -> Overlap:
            maps = with_positions(maps, reader.site.layer)
            absent = absent_cells(at_rows(reader.model, rows))
            return overlap(maps, labelled[rows], fitting(limits, maps), absent)

        found = Overlap(*map(torch.cat, zip(*reader.imap(run), strict=True)))
    return DissectionResult.of(found, concepts, limits.to(found.area.device).expand(found.area.shape[1]), union)


def area_where_present(found: Overlap, concepts: Concepts) -> Tensor:
    """|M| over the samples labelled with each concept's category [U, Q]."""
    present = concepts.present(found.concept_area)
    # Sums of products of integers below 2**53, so exact; integers have no matrix product on a GPU.
    return (found.area.double().T @ present.double()).long()


def _threshold(reader: LayerReader, p: float) -> Tensor:
    """T [U] above which a share p of the activations lies, exact whatever it takes to remember them."""
    stream: UpperQuantile | None = None
    for maps, there in reader.imap(lambda rows, maps: (maps, reader.there(rows))):
        values = with_positions(maps, reader.site.layer).flatten(2)
        if stream is None:
            count = len(reader.inputs) * values.shape[2]
            kept = (math.floor(p * count) + 1) * values.shape[1] * values.element_size()
            # Half of the budget is room for new values, of which as many as a part holds may come at once.
            stream = UpperQuantile(p, budget=max(4 * kept, DEFAULT_BUDGET), expected=count)
        stream.add(values, units_there(there, maps, "channel"))
    assert stream is not None
    return stream.result().value


def fitting(threshold: Tensor, maps: Tensor) -> Tensor:
    """T [U], on the device of the maps.

    Raises:
        ValueError: If there is neither one number per unit nor one for all.
    """
    if threshold.ndim and threshold.shape != maps.shape[1:2]:
        raise ValueError(f"threshold must be one per unit, [{maps.shape[1]}], got shape {list(threshold.shape)}.")
    if not bool(threshold.isfinite().all()):
        raise ValueError("threshold holds NaN or infinite values.")
    return threshold.to(maps.device).expand(maps.shape[1])


def check_reading(union: str, detector: float) -> None:
    """Refuse an unknown reading of the union, or an IoU outside 0 to 1.

    Raises:
        ValueError: If so.
    """
    check_known("union", union, UNIONS)
    if not 0 <= detector < 1:
        raise ValueError(f"detector must be an IoU, 0 or more and less than 1, got {detector}.")
