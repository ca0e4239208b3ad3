r"""Re-activation: which units are switched on by perturbing which feature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs, check_known, check_model, unknown
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.perturbation.capture import Capture, CaptureResult
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, sweep
from lightning_xai.regions import BoundRegions, RegionsLike, as_regions
from lightning_xai.sites import Layer
from lightning_xai.units.activation import (
    DEAD,
    ThresholdResult,
    activation_threshold,
    check_none_nonfinite,
    check_unit,
    given_layers,
    unit_shape,
)
from lightning_xai.units.change import LayerChange, PositionChange, check_fit
from lightning_xai.units.counts import Pairs, ReactivationResult, without_units
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function, PreActivationSite, preactivation_sites
from lightning_xai.units.quantile import DEFAULT_BUDGET, UpperQuantile, check_share

RULES = ("activation", "delta")
_SAMPLES_AT_ONCE = 64

_Sweep = dict[str, CaptureResult]


@overload
def reactivation(
    model: nn.Module,
    inputs: InputsLike,
    *,
    layer: Layer,
    layers: None = ...,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    p: float = ...,
    threshold: str | Tensor | Mapping[str, Tensor] = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    dead: str = ...,
    sample_ids: Tensor | Sequence[int] | None = ...,
    engine: str = ...,
) -> ReactivationResult: ...


@overload
def reactivation(
    model: nn.Module,
    inputs: InputsLike,
    *,
    layer: None = ...,
    layers: Sequence[Layer],
    regions: RegionsLike,
    perturbation: str | Perturbation,
    p: float = ...,
    threshold: str | Tensor | Mapping[str, Tensor] = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    dead: str = ...,
    sample_ids: Tensor | Sequence[int] | None = ...,
    engine: str = ...,
) -> dict[str, ReactivationResult]: ...


def reactivation(
    model: nn.Module,
    inputs: InputsLike,
    *,
    layer: Layer | None = None,
    layers: Sequence[Layer] | None = None,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    p: float = 0.005,
    threshold: str | Tensor | Mapping[str, Tensor] = "activation",
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    dead: str = "exclude",
    sample_ids: Tensor | Sequence[int] | None = None,
    engine: str = "auto",
) -> ReactivationResult | dict[str, ReactivationResult]:
    r"""Count how often perturbing a feature switches on a unit that was off.

    .. math:: M_{j,k} = \#\{x : \max_{\text{positions}} \Delta a_{k,j} > \max(T_k, \tau)\}, \qquad
        \Delta a_{k,j} = \sigma(B_k(R_j\, x) - B_k(x)) - \sigma(0)

    B is what the activation :math:`\sigma` receives; positions of padding are left out. :math:`\tau` is 1e-5 of the
    largest :math:`|B|` of the unit's channel in the sample (of the layer, if it has no positions), below which single
    precision makes differences of its own. A kind of several arms hits where one of them does. The change of a group of
    channels, and what is rounding of it, is the weighted mean of theirs, as its activation is.

    The threshold T is that of the units' activations on these inputs (``"activation"``), of the distribution of their
    largest :math:`\Delta a` over samples and features (``"delta"``: then about p N J samples and features hit each
    unit by construction, and only the strongest features and pairs say something), or given. For channels it costs no
    further pass, unless there are so many changes that they do not fit 64 MiB; for positions and ``"activation"`` it
    costs one more clean pass, for positions and ``"delta"`` one more sweep.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        layer: The layer: its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`, which says where
            its units lie.
        layers: Several layers, which then share the passes.
        regions: The features j.
        perturbation: R.
        p: The share of a unit's activations (or changes) above T, in (0, 1).
        threshold: ``"activation"``, ``"delta"``, or T itself [K] ([K, \*P] for positions), per layer if several.
        unit: ``"channel"``: hit if any of its positions is; or ``"position"``: each is a unit of its own, and the
            counts are kept by feature, by unit and for the strongest pairs; or groups of channels: M is [J, G].
        activation: The activation function or its name; the one that follows the layer in the model unless given.
        dead: A unit that never is active on these inputs has the threshold 0, so that every rise is a hit. With
            ``"exclude"`` such units are listed in ``dead`` and enter no ranking and no answer (their columns of M stay
            as they are), with ``"count"`` they do. Of a threshold that is given, no unit is known to be dead.
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Returns:
        A :class:`~lightning_xai.units.counts.ReactivationResult`; for several layers a dict by layer.

    Raises:
        ValueError: If a layer does not exist or has no units, no activation is found nor named, p is not in (0, 1),
            the threshold does not fit, or activations of the clean inputs are not finite.
        TypeError: If an argument is of the wrong type.

    Source: :cite:`grauluque2023`, :cite:`bau2017`.

    Example:
        Without the feature that it is inhibited by, the second unit is switched on. It never was active:

        >>> from lightning_xai.perturbation import Windows, kinds
        >>> linear = nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0]])
        >>> model = nn.Sequential(linear, nn.ReLU())
        >>> found = reactivation(
        ...     model,
        ...     torch.tensor([[1.0, 4.0, 2.0], [3.0, 2.0, 1.0]]),
        ...     layer="0",
        ...     regions=Windows(1),
        ...     perturbation=kinds.Constant(0.0),
        ...     dead="count",
        ... )
        >>> found.by_feature_and_unit, found.total, found.threshold, found.dead
        (tensor([[0, 0],
                [0, 2],
                [0, 0]]), 2, tensor([3., 0.]), (1,))
    """
    check_model(model)
    check_share(p)
    check_unit(unit)
    check_threshold(threshold)
    check_dead(dead)
    model, inputs = bind(model, inputs)
    ids = check_inputs(inputs, sample_ids)
    named = given_layers(model, layer, layers)
    plan, kind = Plan(as_regions(regions), engine=engine), as_perturbation(perturbation)
    with isolated_eval(model):
        sites = preactivation_sites(model, detach_for_autograd(inputs[:1]), named, activation)
    names = [site.layer for site in sites]
    job = _Job(model, inputs, ids, plan, kind, unit, activation, p, dead, sites)
    if not isinstance(threshold, str):
        results = job.count(_thresholds_by_layer(threshold, names))
    elif threshold == "activation" and not job.changes_fit:
        own = [site.site for site in sites]
        results = job.count(activation_threshold(model, inputs, layers=own, p=p, unit=unit, activation=activation))
    else:
        results = job.count(*job.measure_thresholds(threshold))
    return results[names[0]] if layers is None else results


@dataclass(frozen=True)
class _Job:
    """A sweep, some samples at a time, so that memory does not grow with their number."""

    model: nn.Module
    inputs: Tensor
    ids: tuple[int, ...]
    plan: Plan
    perturbation: Perturbation
    unit: str | UnitGroups
    activation: str | Function | None
    p: float
    dead: str
    sites: list[PreActivationSite]

    @cached_property
    def features(self) -> int:
        """J."""
        return self.plan.regions.bind(self.inputs).count

    @cached_property
    def changes_fit(self) -> bool:
        """Whether the largest changes [N, J, K] of every layer fit the budget; those of positions are not kept."""
        units = max(math.prod(unit_shape(site, self.unit)) for site in self.sites)
        size = len(self.ids) * self.features * units * self.inputs.element_size()
        return self.unit != "position" and size <= DEFAULT_BUDGET

    def measure_thresholds(self, rule: str) -> tuple[dict[str, ThresholdResult], list[_Sweep] | None]:
        """Find the thresholds of clean activations or of changes by a sweep; it is returned if its changes fit."""
        clean = rule == "activation"
        streams: dict[str, UpperQuantile] = {}
        captures: dict[str, Capture] = {}
        for site in self.sites:
            per_sample = math.prod(site.shape[2:]) if clean else self.features
            stream = streams[site.layer] = UpperQuantile(self.p, expected=len(self.ids) * per_sample)
            if self.unit == "position":
                captures[site.layer] = PositionChange(site.site, None, self.activation, changes=stream)
            else:
                captures[site.layer] = self._channels(site, clean)
        sweeps = []
        for results in self._sweeps(captures):
            for name, result in results.items():
                if clean:
                    # Too many to be kept with the changes.
                    streams[name].add(result.samples.pop("activation"), result.samples.pop("present", None))
                elif self.unit != "position":
                    streams[name].add(result.features["largest"].transpose(1, 2))
            if self.changes_fit:
                sweeps.append(results)
        thresholds = {}
        for site in self.sites:
            quantile = streams[site.layer].result()
            if clean:
                check_none_nonfinite(quantile.nonfinite, site.layer)
            shape = unit_shape(site, self.unit)
            thresholds[site.layer] = ThresholdResult.of(quantile, site.layer, self.unit, self.p, shape)
        return thresholds, sweeps if self.changes_fit else None

    def count(
        self, thresholds: Mapping[str, Tensor | ThresholdResult], sweeps: Iterable[_Sweep] | None = None
    ) -> dict[str, ReactivationResult]:
        """Count hits, in sweeps that were made for the thresholds or in new ones."""
        tallies: dict[str, _Tally] = {}
        captures: dict[str, Capture] = {}
        for site in self.sites:
            name = site.layer
            tally = tallies[name] = _Tally(self.features, thresholds[name], self.dead)
            check_fit(tally.threshold, unit_shape(site, self.unit), name)
            if self.unit == "position":
                tally.pairs = Pairs()
                captures[name] = PositionChange(
                    site.site, tally.threshold, self.activation, tally.pairs, unranked=tally.unranked
                )
            else:
                captures[name] = self._channels(site)
        for results in self._sweeps(captures) if sweeps is None else sweeps:
            for name, result in results.items():
                tallies[name].add(result)
        return {name: tally.result() for name, tally in tallies.items()}

    def _channels(self, site: PreActivationSite, keep_activation: bool = False) -> LayerChange:
        groups = None if isinstance(self.unit, str) else self.unit
        return LayerChange(site.site, self.activation, keep_activation, groups)

    def _sweeps(self, captures: Mapping[str, Capture]) -> Iterator[_Sweep]:
        requests = {name: CaptureRequest(self.perturbation, capture) for name, capture in captures.items()}
        for first in range(0, len(self.ids), _SAMPLES_AT_ONCE):
            rows = slice(first, first + _SAMPLES_AT_ONCE)
            some, ids = self.inputs[rows], self.ids[rows]
            swept = sweep(at_rows(self.model, rows), some, "predicted", [], self.plan, ids, list(requests.values()))
            yield {name: present(swept.captured[request], swept.regions) for name, request in requests.items()}


class _Tally:
    """Sums of counts over samples whose features may not be equally many."""

    def __init__(self, features: int, threshold: Tensor | ThresholdResult, dead: str) -> None:
        self.features = features
        self.measured = threshold if isinstance(threshold, ThresholdResult) else None
        self.threshold = threshold.value if isinstance(threshold, ThresholdResult) else threshold
        self.unranked = self.measured.dead if self.measured is not None and dead == "exclude" else ()
        self.pairs: Pairs | None = None
        self.sums: dict[str, Tensor] = {}
        self.samples = 0
        self.nonfinite = 0

    def add(self, result: CaptureResult) -> None:
        """Add the counts of some samples, how much these were changed, and how many changes are not numbers."""
        self._add("change", result.features["change"].double().nansum(0), self.features)
        if self.pairs is None:
            self._add("matrix", hits(result.features["largest"], self.threshold).sum(0), self.features)
        else:
            self._add("by_feature", result.features["by_feature"].sum(0), self.features)
            by_unit = result.samples["by_unit"].sum(0)
            self._add("by_unit", by_unit, len(by_unit))
        self.samples += len(result.features["change"])
        self.nonfinite += int(nonfinite_changes(result).sum())

    def _add(self, name: str, counts: Tensor, length: int) -> None:
        total = self.sums.setdefault(name, counts.new_zeros(length, *counts.shape[1:]))
        total[: len(counts)] += counts

    def result(self) -> ReactivationResult:
        """The counts of all samples."""
        sums, matrix = self.sums, self.sums.get("matrix")
        by_unit = sums["by_unit"].view(self.threshold.shape) if matrix is None else matrix.sum(0)
        by_feature = sums["by_feature"] if matrix is None else without_units(matrix, self.unranked).sum(1)
        counts = (matrix, by_feature, by_unit, sums["change"], self.threshold, self.samples, self.nonfinite)
        return ReactivationResult(*counts, self.measured, self.pairs, self.unranked)


def hits(largest: Tensor, threshold: Tensor) -> Tensor:
    """Find the units that are re-activated, Boolean [N, J, K], by their largest changes [N, J, K] and T [K].

    Changes that are rounding are 0 or less, and no hits whatever the threshold.

    >>> hits(torch.tensor([[[3.0, 3.0, 0.0]]]), torch.tensor([2.0, 3.0, -1.0]))
    tensor([[[ True, False, False]]])
    """
    return largest > threshold.to(largest).clamp(min=0)


def nonfinite_changes(part: CaptureResult) -> Tensor:
    """Count the changes of each sample that are not numbers [N], over its features and the units."""
    if "nonfinite" in part.features:
        return part.features["nonfinite"].sum(1)
    return (part.features["largest"].isnan() & part.features["there"].unsqueeze(2)).flatten(1).sum(1)


def present(captured: CaptureResult, regions: BoundRegions) -> CaptureResult:
    """Set the changes to NaN where a sample does not have a feature, and add ``there`` [N, J], where it has."""
    there = regions.present()
    change = captured.features["change"]
    shown = torch.ones_like(change, dtype=torch.bool) if there is None else there.to(change.device).expand_as(change)
    change = torch.where(change.isfinite(), change, float("nan"))
    features = {**captured.features, "there": shown, "change": change}
    if "largest" in features and there is not None:
        features["largest"] = torch.where(shown.unsqueeze(2), features["largest"], float("nan"))
    return CaptureResult(features, captured.samples)


def check_threshold(threshold: str | Tensor | Mapping[str, Tensor]) -> None:
    """Refuse a threshold that is neither a rule nor numbers.

    Raises:
        ValueError: If it is an unknown rule.
        TypeError: If it is something else.
    """
    if isinstance(threshold, str):
        if threshold not in RULES:
            raise ValueError(unknown("threshold", threshold, RULES) + " Or give a tensor [K].")
    elif not isinstance(threshold, Tensor | Mapping):
        raise TypeError(f"threshold must be 'activation', 'delta' or a tensor [K], got {type(threshold).__name__}.")


def check_dead(dead: str) -> None:
    """Refuse what is no way to treat dead units.

    Raises:
        ValueError: If it is unknown.
    """
    check_known("dead", dead, DEAD)


def _thresholds_by_layer(threshold: Tensor | Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    if isinstance(threshold, Tensor):
        if len(names) > 1:
            raise ValueError(f"threshold must be one tensor per layer, a dict with the keys {names}.")
        return {names[0]: threshold}
    if missing := [name for name in names if name not in threshold]:
        raise ValueError(f"threshold lacks the layers {missing}.")
    return {name: threshold[name] for name in names}
