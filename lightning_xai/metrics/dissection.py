"""Dissection over a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.operations import unwrapped
from lightning_xai.present import absent_cells
from lightning_xai.results import Entries, Labels, Matrix, Number, PerUnit, Result
from lightning_xai.scores import Target
from lightning_xai.sites import Layer, as_layer
from lightning_xai.units._capture import activation_site, read_batch, with_positions
from lightning_xai.units.concepts import Concepts
from lightning_xai.units.dissection import (
    DissectionResult,
    Overlap,
    area_where_present,
    check_reading,
    fitting,
    overlap,
)
from lightning_xai.units.groups import UnitGroups, as_groups
from lightning_xai.units.layers import Function

IOU = "0 disjoint … 1 the same cells"


class Dissection(ExplanationMetric):
    r"""Compare units with concepts, :math:`\mathrm{IoU}_{k,c} = \sum_x |M_k \cap L_c| / \sum_x |M_k \cup L_c|`.

    The states are counts of cells, whose sums over processes are those of all the data; the ratio is taken last.

    A sample with activations that are not finite is left out of the counts.
    :meth:`result` gives the same as a table that can be saved and drawn.

    Args:
        layer: A layer with maps [N, K, \*P]: its dotted name, the module, or a :class:`~lightning_xai.sites.Site`; None
            for the last convolution with an activation.
        concepts: What the masks label.
        threshold: T [U], e.g. of :func:`lightning_xai.units.activation_threshold`; a number for all units.
        segmenter: A function of inputs [N, C, \*S] that returns labels [N, \*S] or masks [N, Q, \*S]; unless given,
            every update needs ``masks``.
        unit: ``"channel"``, or groups of channels.
        activation: The activation function or its name; the one that follows the layer unless given, and none where
            none follows.
        union: ``"all"`` or ``"present"``; see :class:`lightning_xai.units.DissectionResult`.
        detector: The least IoU of a detector.
        output: Which tensor of the model's output holds the classes, if it returns several.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the layer is no name, or the segmenter cannot be called.
        ValueError: If a threshold is not finite, or the union or the detector is none.

    Source: :cite:`bau2017`.

    Example:
        >>> metric = Dissection("0", ["peak", "ground"], threshold=1.0)
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> metric.update(model, torch.tensor([[[[0.0, 5.0, 5.0]]]]), 0, masks=torch.tensor([[[1, -1, 0]]]))
        >>> metric.compute()["iou"]
        tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """

    formula: ClassVar[str] = r"\mathrm{IoU}_{k,c} = \frac{\sum_x |M_k(x) \cap L_c(x)|}{\sum_x |M_k(x) \cup L_c(x)|}"
    interpretation: ClassVar[str] = (
        "How much of a concept a unit's strong activations cover: 1 if they are the same cells."
    )

    results: Mapping[str, Result] = {
        **ExplanationMetric.results,
        "iou": Matrix(
            "IoU", IOU, "How far a unit covers a concept.", "dissection", axes=("unit", "concept"), signed=False
        ),
        "best_iou": PerUnit(
            "best IoU", IOU, "How far a unit covers its best concept.", "dissection", signed=False, listed="strongest"
        ),
        "concept": Entries("best concept", "", "Which concept a unit covers best.", axes=("unit",), refer_to="concept"),
        "detectors": Number("detectors", "units", "How many units have a best IoU above the detector's."),
        "concepts_detected": Number("detected concepts", "", "How many concepts the detectors detect."),
    }

    def __init__(
        self,
        layer: Layer | None,
        concepts: Concepts | Sequence[str],
        threshold: Tensor | Sequence[float] | float,
        segmenter: Callable[[Tensor], Tensor] | None = None,
        *,
        unit: str | UnitGroups = "channel",
        activation: str | Function | None = None,
        union: str = "all",
        detector: float = 0.04,
        output: str | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_reading(union, detector)
        if segmenter is not None and not callable(segmenter):
            raise TypeError(f"segmenter must be a function of inputs, got {type(segmenter).__name__}.")
        self.layer = None if layer is None else as_layer(layer)
        self.concepts = concepts if isinstance(concepts, Concepts) else Concepts(concepts)
        self.threshold = torch.as_tensor(threshold, dtype=torch.float64).detach()
        if self.threshold.ndim > 1 or not bool(self.threshold.isfinite().all()):
            raise ValueError(f"threshold must be finite, one number or one per unit, got {threshold}.")
        self.segmenter = segmenter
        self.groups, self.activation = as_groups(unit), activation
        self.union = union
        self.detector = detector
        self.output = output
        self.add_sum_state("intersection", "area", "area_present", "concept_area")
        reading = (activation, union, detector, output)
        self.fingerprint(layer, self.concepts, self.threshold, segmenter, id(self.groups), *reading)

    def run(
        self,
        model: nn.Module,
        inputs: InputsLike,
        target: Target = None,
        sample_ids: Ids = None,
        masks: Tensor | None = None,
    ) -> BatchExplanation:
        r"""Count cells of a batch; the arguments are those of :meth:`ExplanationMetric.run`, and its masks.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, \*S].
            target: Class indices [N], one index for all, or ``"predicted"``; they do not change the counts.
            sample_ids: The samples' ids [N].
            masks: Labels [N, \*S] or Boolean masks [N, Q, \*S]; made by the segmenter unless given.

        Raises:
            ValueError: If there are no masks, or they or the layer do not fit.
        """
        model, inputs = bind(model, inputs)
        check_inputs(inputs, sample_ids)
        model = unwrapped(model)
        with isolated_eval(model):
            inputs = detach_for_autograd(inputs)
            if masks is None:
                if self.segmenter is None:
                    raise ValueError("masks are missing: give Dissection a segmenter, or update(..., masks=...).")
                masks = self.segmenter(inputs)
            labelled = self.concepts.masks(masks, inputs)
            site = activation_site(model, inputs, self.layer, self.activation)
            batch = read_batch(model, inputs, site, target, self.output)
            maps = with_positions(batch.maps, site.layer)
            broken = ~maps.isfinite().flatten(1)
            usual = ~broken.any(1)
            maps = torch.where(usual.view(-1, *[1] * (maps.ndim - 1)), maps, 0.0)
            maps = maps if self.groups is None else self.groups.combine(maps)
            found = overlap(maps, labelled, fitting(self.threshold, maps), absent_cells(model))
        tensors = {
            "intersection": found.intersection * usual.view(-1, 1, 1),
            "area": found.area * usual.view(-1, 1),
            "concept_area": found.concept_area * usual.view(-1, 1),
        }
        about = (batch.target, batch.prediction, broken.sum(1), batch.classes)
        return BatchExplanation(tensors, *about, score=batch.score)

    def add(self, found: BatchExplanation) -> None:
        """Add the counts of a batch."""
        tensors = found.tensors
        counts = Overlap(tensors["intersection"], tensors["area"], tensors["concept_area"])
        self.add_to_state("area_present", area_where_present(counts, self.concepts))
        for name, count in counts._asdict().items():
            self.add_to_state(name, count.sum(0))

    def result(self) -> DissectionResult:
        """Return the counts so far, of all processes if they have been synchronised, as a table."""
        return DissectionResult(
            concepts=self.concepts,
            threshold=self.threshold.expand(self.area.shape),
            intersection=self.intersection,
            area=self.area,
            area_present=self.area_present,
            concept_area=self.concept_area,
            samples=int(self.samples),
            union=self.union,
            detector=self.detector,
        )

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        if not self.area.ndim:
            raise ValueError("Dissection has seen no sample: call update before compute.")
        found = self.result()
        detected = found.best[found.is_detector]
        return {
            **self.sample_counts(),
            "iou": found.iou,
            "best_iou": found.best_iou,
            "concept": found.best,
            "detectors": found.is_detector.sum(),
            "concepts_detected": torch.tensor(len(set(detected.tolist())), device=detected.device),
        }

    @property
    def axis_labels(self) -> Labels:
        """Name the concepts."""
        return {"concept": self.concepts.names}
