"""Re-activation over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_xai.metrics.activation import ACTIVATION, DEAD, ERROR, THRESHOLD, QuantileMetric
from lightning_xai.metrics.base import BatchExplanation
from lightning_xai.metrics.sweeps import FeatureLabels, SweepMetric, check_shared
from lightning_xai.perturbation.capture import Capture
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request, SweepResult
from lightning_xai.regions import BoundRegions, RegionsLike, as_regions
from lightning_xai.results import Entries, Labels, Map, Matrix, Number, PerFeature, PerUnit, Result
from lightning_xai.scores import ScoreLike
from lightning_xai.sites import Layer, as_layer
from lightning_xai.units.activation import check_unit
from lightning_xai.units.change import LayerChange, PositionChange, check_fit
from lightning_xai.units.counts import per_change, without_units
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function
from lightning_xai.units.quantile import Quantile, UpperQuantile
from lightning_xai.units.reactivation import check_dead, check_threshold, hits, nonfinite_changes, present

COUNTS, QUESTIONS = "counts", "reactivation-questions"
_RANKED: dict[str, Any] = {"signed": False, "listed": "strongest"}


class Reactivation(QuantileMetric, SweepMetric):
    r"""Count how often perturbing a feature switches on a unit, :math:`M_{j,k} = \#\{x : \Delta a_{k,j} > T_k\}`.

    :math:`\Delta a = \sigma(B_k(R_j x) - B_k(x)) - \sigma(0)` at the layer's pre-activations B, the largest over the
    positions of a channel; see :func:`lightning_xai.units.reactivation`. With :class:`Importance` over the same
    regions, perturbation and score it shares every forward pass of a perturbed input.

    ``by_feature_and_unit`` is not there for positions; what concerns thresholds is there if they come from the data.
    The threshold of a unit that never was active is 0, so that every rise would count: see ``dead``.

    A threshold that is not given is known at the end only. So each sample's largest change per feature and channel is
    kept, up to ``budget`` bytes (64 MiB) per process; beyond that, give a threshold. Positions always need one.

    Args:
        layer: A layer: its dotted name, the module, or a :class:`~lightning_xai.sites.Site`; if None, the last
            convolution (or linear layer) with an activation.
        regions: The features j, the same in every sample.
        perturbation: R.
        p: The share of a unit's activations (or changes) above T.
        threshold: ``"activation"``, ``"delta"``, or T itself [K] ([K, \*P] for positions).
        unit: ``"channel"``, ``"position"``, or groups of channels: K are the groups.
        activation: The activation function or its name; the one that follows the layer unless given.
        dead: ``"exclude"``: units that never were active are listed apart and enter no answer; ``"count"``: they do.
        score: Which output tells the explained class; the same as that of an importance to share its passes.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the regions differ from sample to sample, or something makes no sense.

    Source: :cite:`grauluque2023`, :cite:`bau2017`.

    Example:
        >>> from torch import nn
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> linear = nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0]])
        >>> metric = Reactivation("0", Windows(1), kinds.Constant(0.0), score="logit", dead="count")
        >>> metric.update(nn.Sequential(linear, nn.ReLU()), torch.tensor([[1.0, 4.0, 2.0], [3.0, 2.0, 1.0]]), 0)
        >>> found = metric.compute()
        >>> found["by_feature"], found["by_unit"], found["total"]
        (tensor([0, 2, 0]), tensor([0, 2]), tensor(2))
    """

    sample_maps: ClassVar[Mapping[str, Result]] = {"map": Map("re-activation, mean Δa", ACTIVATION)}
    formula: ClassVar[str] = r"M_{j,k} = \#\{x : \sigma(B_k(R_j x) - B_k(x)) - \sigma(0) > T_k\}"
    interpretation: ClassVar[str] = "How many units are switched on where a part of the input is perturbed."

    results: Mapping[str, Result] = {
        **QuantileMetric.results,
        **SweepMetric.results,
        "map": Map("re-activations", COUNTS, "How often a cell's feature re-activates.", "reactivation", signed=False),
        "by_feature": PerFeature(
            "re-activations by feature",
            COUNTS,
            "How often perturbing a feature re-activates any unit.",
            QUESTIONS,
            **_RANKED,
        ),
        "by_unit": PerUnit(
            "re-activations by unit",
            COUNTS,
            "How often a unit is re-activated by any feature.",
            QUESTIONS,
            apart="dead_units",
            **_RANKED,
        ),
        "by_feature_and_unit": Matrix(
            "re-activations of k by j",
            "samples",
            "In how many samples a feature re-activates a unit.",
            "reactivation",
            axes=("feature", "unit"),
            apart="dead_units",
            **_RANKED,
        ),
        "total": Number("re-activations", COUNTS, "How often any feature re-activates any unit.", QUESTIONS),
        "per_window": Number("re-activations per feature", "", "The mean over the features.", QUESTIONS),
        "per_change": Number(
            "re-activations per change", "per unit of mean |R x - x|", "The total per change of the input.", QUESTIONS
        ),
        "threshold": PerUnit("threshold T", ACTIVATION, "What a unit's change must exceed.", THRESHOLD, signed=False),
        "error": ERROR,
        "dead": DEAD,
        "dead_units": Entries("dead", "", "Which units never were active.", axes=("unit",)),
    }

    def __init__(
        self,
        layer: Layer | None,
        regions: RegionsLike,
        perturbation: str | Perturbation,
        *,
        p: float = 0.005,
        threshold: str | Tensor | Sequence[float] = "activation",
        unit: str | UnitGroups = "channel",
        activation: str | Function | None = None,
        dead: str = "exclude",
        score: ScoreLike = "probability",
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(p, **options)
        check_unit(unit)
        if not isinstance(threshold, str):
            threshold = torch.as_tensor(threshold)
        check_threshold(threshold)
        check_dead(dead)
        self.layer = layer = None if layer is None else as_layer(layer)
        self.unit, self.threshold, self.dead = unit, threshold, dead
        self.plan = Plan(as_regions(regions), chunk_size=chunk_size, engine=engine)
        check_shared(self.plan.regions, "Reactivation")
        self.requests = [Request.of(perturbation, score)]
        from_activations = isinstance(threshold, str) and threshold == "activation"
        groups = unit if isinstance(unit, UnitGroups) else None
        capture: Capture = LayerChange(layer, activation, keep_activation=from_activations, groups=groups)
        if unit == "position":
            if isinstance(threshold, str):
                raise ValueError(
                    "threshold must be given for positions: compute it with units.activation_threshold(..., "
                    "unit='position')."
                )
            capture = PositionChange(layer, threshold, activation)
        self.captures = [CaptureRequest(self.requests[0].perturbation, capture)]
        self.add_state("changes", [], dist_reduce_fx="cat")
        self.add_sum_state("change_sum")
        self.add_sum_state("counts", "feature_counts", "unit_counts", dtype=torch.long)
        missing = {"by_feature_and_unit"} if unit == "position" else set()
        missing |= set() if isinstance(threshold, str) else {"threshold", "error", "dead", "dead_units"}
        self.results = {key: result for key, result in self.results.items() if key not in missing}
        if dead == "count":  # then dead units are ranked with the others
            self.results = {key: replace(result, apart=None) for key, result in self.results.items()}
        self.fingerprint(layer, self.plan, self.requests, p, threshold, unit, activation, dead)

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compute the changes of a sweep, and paint their mean over the units."""
        (asked,) = self.captures
        captured = present(swept.captured[asked], swept.regions)
        kept = captured.features | captured.samples
        shown = kept["by_feature"].to(kept["change"]) if self.unit == "position" else kept["largest"].mean(2)
        nonfinite = nonfinite_changes(captured)
        if "activation" in kept:
            broken = ~kept["activation"].isfinite()
            nonfinite = nonfinite + (broken & kept["present"] if "present" in kept else broken).flatten(1).sum(1)
        tensors, constants = {"map": swept.regions.paint(shown)}, {"shape": swept.regions.spatial}
        return self._scored(swept, tensors, nonfinite, kept=kept, constants=constants)

    def add(self, found: BatchExplanation) -> None:
        """Count the changes of a batch, or store them until the threshold is known."""
        kept = found.kept
        self._note_extent(found.constants["shape"])
        self.add_to_state("change_sum", kept["change"].double().nansum(0))
        if self.unit == "position":
            self.add_to_state("feature_counts", kept["by_feature"].sum(0))
            self.add_to_state("unit_counts", kept["by_unit"].sum(0))
            return
        if isinstance(self.threshold, Tensor):
            check_fit(self.threshold, tuple(kept["largest"].shape[2:]), str(self.layer or "the last layer"))
            self.add_to_state("counts", hits(kept["largest"], self.threshold).sum(0))
            return
        assert isinstance(self.changes, list)
        self.changes.append(kept["largest"])
        size = sum(part.numel() * part.element_size() for part in self.changes)
        if size > self.budget:
            raise ValueError(
                f"the changes of {sum(map(len, self.changes))} samples take {size} bytes, more than the budget of "
                f"{self.budget}: give a threshold, e.g. units.activation_threshold(...).value."
            )
        if "activation" in kept:
            self._feed(kept["activation"], kept.get("present"))

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        if self.unit == "position":
            assert isinstance(self.threshold, Tensor)
            return self._results(self.feature_counts, self.unit_counts.view(self.threshold.shape))
        if isinstance(self.threshold, Tensor):
            results = self._results(self.counts.sum(1), self.counts.sum(0))
            return {**results, "by_feature_and_unit": self.counts}
        changes = dim_zero_cat(self.changes)
        quantile = self._quantile() if self.threshold == "activation" else self._quantile_of(changes)
        counts = hits(changes, quantile.value).sum(0)
        dead = torch.zeros_like(quantile.value, dtype=torch.bool)
        dead[list(quantile.dead)] = True
        ranked = without_units(counts, quantile.dead if self.dead == "exclude" else ())
        return {
            **self._results(ranked.sum(1), counts.sum(0)),
            "by_feature_and_unit": counts,
            "threshold": quantile.value,
            "error": torch.tensor(quantile.error, device=counts.device),
            "dead": dead.sum(),
            "dead_units": dead,
        }

    @property
    def axis_labels(self) -> Labels:
        """Name features by their numbers and first cells."""
        return {"feature": FeatureLabels(self._bound())}

    def _bound(self) -> BoundRegions:
        return self.plan.regions.bind((1, 1, *self._shape()))

    def _results(self, by_feature: Tensor, by_unit: Tensor) -> dict[str, Tensor]:
        if not self.extent.ndim:
            raise ValueError("Reactivation has seen no sample: call update before compute.")
        total, change = by_feature.sum(), self.change_sum.sum()
        return {
            **self.sample_counts(),
            "map": self._bound().paint(by_feature.double().unsqueeze(0))[0],
            "by_feature": by_feature,
            "by_unit": by_unit,
            "total": total,
            "per_window": total / len(by_feature),
            "per_change": torch.tensor(per_change(int(total), float(change)), device=total.device),
        }

    def _quantile_of(self, changes: Tensor) -> Quantile:
        """Compute the thresholds of changes [N, J, K]."""
        stream = UpperQuantile(self.p, budget=8 * max(1, changes.numel()) * changes.element_size())
        stream.add(changes.transpose(1, 2))
        return stream.result()
