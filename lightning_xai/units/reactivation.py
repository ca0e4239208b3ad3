r"""Re-activation: which units are switched on by perturbing which feature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs, check_model, unknown
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.perturbation.capture import Capture, CaptureResult
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, sweep
from lightning_xai.regions import BoundRegions, Regions, RegionsLike, as_regions
from lightning_xai.units.activation import (
    Threshold,
    activation_threshold,
    check_finite,
    check_unit,
    layer_names,
    unit_shape,
)
from lightning_xai.units.change import LayerChange, PositionChange, check_fit
from lightning_xai.units.counts import Pairs, Reactivation, padded
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function, PreActivationSite, preactivation_sites
from lightning_xai.units.quantile import DEFAULT_BUDGET, UpperQuantile, check_share

RULES = ("activation", "delta")
_SAMPLES_AT_ONCE = 64


@overload
def reactivation(  # type: ignore[overload-overlap]  # a string is a sequence of strings
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: str,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    p: float = ...,
    threshold: str | Tensor | Mapping[str, Tensor] = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    sample_ids: Tensor | Sequence[int] | None = ...,
) -> Reactivation: ...


@overload
def reactivation(
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: Sequence[str],
    regions: RegionsLike,
    perturbation: str | Perturbation,
    p: float = ...,
    threshold: str | Tensor | Mapping[str, Tensor] = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    sample_ids: Tensor | Sequence[int] | None = ...,
) -> dict[str, Reactivation]: ...


def reactivation(
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: str | Sequence[str],
    regions: RegionsLike,
    perturbation: str | Perturbation,
    p: float = 0.005,
    threshold: str | Tensor | Mapping[str, Tensor] = "activation",
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Reactivation | dict[str, Reactivation]:
    r"""How often perturbing a feature switches on a unit that was not.

    .. math:: M_{j,k} = \#\{x : \max_{\text{positions}} \Delta a_{k,j} > \max(T_k, \tau)\}, \qquad
        \Delta a_{k,j} = \sigma(B_k(R_j\, x) - B_k(x)) - \sigma(0)

    B is what the activation :math:`\sigma` receives. :math:`\tau` is 1e-5 of the largest :math:`|B|` of the unit's
    channel in the sample (of the layer, if it has no positions), below which single precision makes differences of
    its own. A kind of several arms hits where one of them does. The change of a group of channels, and what is
    rounding of it, is the weighted mean of theirs, as its activation is.

    The threshold T is that of the units' activations on these inputs (``"activation"``), of the distribution of their
    largest :math:`\Delta a` over samples and features (``"delta"``: then about p N J samples and features hit each
    unit by construction, and only the strongest features and pairs say something), or given. For channels it costs no
    further pass, unless there are so many changes that they do not fit 64 MiB; for positions and ``"activation"`` it
    costs one more clean pass, for positions and ``"delta"`` one more sweep.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        layer: The dotted name of a layer, or several, which then share the passes.
        regions: The features j.
        perturbation: R.
        p: The share of a unit's activations (or changes) above T, in (0, 1).
        threshold: ``"activation"``, ``"delta"``, or T itself [K] ([K, \*P] for positions), per layer if several.
        unit: ``"channel"``: hit if any of its positions is; or ``"position"``: each is a unit of its own, and the
            counts are kept by feature, by unit and for the strongest pairs; or groups of channels: M is [J, G].
        activation: The activation function or its name; the one that follows the layer in the model unless given.
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.

    Returns:
        A :class:`~lightning_xai.units.counts.Reactivation`; for several layers a dict by layer.

    Raises:
        ValueError: If a layer does not exist or has no units, no activation is found nor named, p is not in (0, 1),
            the threshold does not fit, or activations of the clean inputs are not finite.
        TypeError: If an argument is of the wrong type.

    Source: :cite:`grauluque2023`, :cite:`bau2017`.

    Example:
        Without the feature that it is inhibited by, the second unit is switched on:

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
        ... )
        >>> found.by_feature_and_unit, found.total, found.threshold
        (tensor([[0, 0],
                [0, 2],
                [0, 0]]), 2, tensor([3., 0.]))
    """
    check_model(model)
    check_share(p)
    check_unit(unit)
    check_threshold(threshold)
    ids = check_inputs(inputs, sample_ids)
    names = layer_names(layer)
    regions = as_regions(regions)
    job = _Job(model, inputs, ids, regions, as_perturbation(perturbation), activation)
    with isolated_eval(model):
        found = preactivation_sites(model, detach_for_autograd(inputs[:1]), names, activation)
        sites = {site.layer: site for site in found}
    given = _given(threshold, names)
    if not given:
        rule = str(threshold)
        count, size = regions.bind(inputs).count, inputs.element_size()
        largest = max(len(ids) * count * math.prod(unit_shape(site, unit)) * size for site in sites.values())
        if unit != "position" and largest <= DEFAULT_BUDGET:
            results = job.at_once(sites, rule, p, unit)
        elif rule == "activation":
            thresholds = activation_threshold(model, inputs, layer=names, p=p, unit=unit, activation=activation)
            results = job.counted(sites, {name: had.value for name, had in thresholds.items()}, unit, thresholds)
        else:
            thresholds = job.delta_thresholds(sites, p, unit)
            results = job.counted(sites, {name: had.value for name, had in thresholds.items()}, unit, thresholds)
    else:
        results = job.counted(sites, given, unit, {})
    return results[layer] if isinstance(layer, str) else results


@dataclass(frozen=True)
class _Job:
    """What is swept, some samples at a time, so that memory does not grow with their number."""

    model: nn.Module
    inputs: Tensor
    ids: tuple[int, ...]
    regions: Regions
    perturbation: Perturbation
    activation: str | Function | None

    def at_once(
        self, sites: Mapping[str, PreActivationSite], rule: str, p: float, unit: str | UnitGroups
    ) -> dict[str, Reactivation]:
        """Channels or groups in one sweep: changes are kept, and counted once the thresholds are known."""
        clean = rule == "activation"
        captures = {name: LayerChange(name, self.activation, clean, _groups(unit)) for name in sites}
        streams: dict[str, UpperQuantile] = {}
        kept: dict[str, list[Tensor]] = {name: [] for name in sites}
        tallies = {name: _Tally(self.regions.bind(self.inputs).count) for name in sites}
        for captured in self._sweeps(captures):
            for name, part in captured.items():
                values = part.samples["activation"] if clean else part.features["largest"].transpose(1, 2)
                if name not in streams:
                    streams[name] = UpperQuantile(p, expected=len(self.ids) * values.shape[2])
                streams[name].add(values)
                kept[name].append(part.features["largest"])
                tallies[name].note(part)
        found = {}
        for name, stream in streams.items():
            quantile = stream.result()
            if clean:
                check_finite(quantile.nonfinite, name)
            threshold = Threshold.of(quantile, name, unit, p, quantile.value.shape)
            for largest in kept[name]:
                tallies[name].count(hits(largest, threshold.value))
            found[name] = tallies[name].result(threshold.value, threshold)
        return found

    def counted(
        self,
        sites: Mapping[str, PreActivationSite],
        given: Mapping[str, Tensor],
        unit: str | UnitGroups,
        thresholds: Mapping[str, Threshold],
    ) -> dict[str, Reactivation]:
        """Counts with thresholds that are known beforehand."""
        channel = unit != "position"
        count = self.regions.bind(self.inputs).count
        pairs = {name: Pairs() for name in sites}
        captures: dict[str, Capture] = {}
        tallies = {name: _Tally(count) for name in sites}
        for name, site in sites.items():
            check_fit(given[name], unit_shape(site, unit), name)
            if channel:
                captures[name] = LayerChange(name, self.activation, groups=_groups(unit))
            else:
                captures[name] = PositionChange(name, given[name], self.activation, pairs[name])
        for captured in self._sweeps(captures):
            for name, part in captured.items():
                tallies[name].note(part)
                if channel:
                    tallies[name].count(hits(part.features["largest"], given[name]))
                else:
                    tallies[name].add(part.features["by_feature"].sum(0), part.samples["by_unit"].sum(0))
        return {
            name: tallies[name].result(
                given[name].view(unit_shape(site, unit)), thresholds.get(name), None if channel else pairs[name]
            )
            for name, site in sites.items()
        }

    def delta_thresholds(
        self, sites: Mapping[str, PreActivationSite], p: float, unit: str | UnitGroups
    ) -> dict[str, Threshold]:
        """Thresholds of the changes themselves, by a sweep of their own."""
        expected = len(self.ids) * self.regions.bind(self.inputs).count
        streams = {name: UpperQuantile(p, expected=expected) for name in sites}
        captures: dict[str, Capture] = {}
        for name in sites:
            if unit != "position":
                captures[name] = LayerChange(name, self.activation, groups=_groups(unit))
            else:
                captures[name] = PositionChange(name, None, self.activation, changes=streams[name])
        for captured in self._sweeps(captures):
            for name, part in captured.items():
                if unit != "position":
                    streams[name].add(part.features["largest"].transpose(1, 2))
        return {
            name: Threshold.of(stream.result(), name, unit, p, unit_shape(sites[name], unit))
            for name, stream in streams.items()
        }

    def _sweeps(self, captures: Mapping[str, Capture]) -> Iterator[dict[str, CaptureResult]]:
        requests = {name: CaptureRequest(self.perturbation, capture) for name, capture in captures.items()}
        for first in range(0, len(self.ids), _SAMPLES_AT_ONCE):
            rows = slice(first, first + _SAMPLES_AT_ONCE)
            some, ids = self.inputs[rows], self.ids[rows]
            swept = sweep(self.model, some, "predicted", [], Plan(self.regions), ids, list(requests.values()))
            yield {name: present(swept.captured[request], swept.regions) for name, request in requests.items()}


class _Tally:
    """Sums of counts over samples whose features may not be equally many."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.matrix: Tensor | None = None
        self.by_feature: Tensor | None = None
        self.by_unit: Tensor | None = None
        self.change: Tensor | None = None
        self.samples = 0
        self.nonfinite = 0

    def note(self, part: CaptureResult) -> None:
        change = padded(part.features["change"].double().nansum(0), self.features)
        self.change = change if self.change is None else self.change + change
        self.samples += len(part.features["change"])
        self.nonfinite += int(nonfinite_changes(part).sum())

    def count(self, hit: Tensor) -> None:
        matrix = padded(hit.sum(0), self.features)
        self.matrix = matrix if self.matrix is None else self.matrix + matrix

    def add(self, by_feature: Tensor, by_unit: Tensor) -> None:
        by_feature = padded(by_feature, self.features)
        self.by_feature = by_feature if self.by_feature is None else self.by_feature + by_feature
        self.by_unit = by_unit if self.by_unit is None else self.by_unit + by_unit

    def result(self, value: Tensor, threshold: Threshold | None, pairs: Pairs | None = None) -> Reactivation:
        by_feature, by_unit = self.by_feature, self.by_unit
        if self.matrix is not None:
            by_feature, by_unit = self.matrix.sum(1), self.matrix.sum(0)
        assert by_feature is not None
        assert by_unit is not None
        assert self.change is not None
        by_unit = by_unit.view(value.shape)
        counts = (self.matrix, by_feature, by_unit)
        return Reactivation(*counts, self.change, value, self.samples, self.nonfinite, threshold, pairs)


def hits(largest: Tensor, threshold: Tensor) -> Tensor:
    """Which units are re-activated, Boolean [N, J, K], by their largest changes [N, J, K] and T [K].

    Changes that are rounding are 0 or less, and no hits whatever the threshold.

    >>> hits(torch.tensor([[[3.0, 3.0, 0.0]]]), torch.tensor([2.0, 3.0, -1.0]))
    tensor([[[ True, False, False]]])
    """
    return largest > threshold.to(largest).clamp(min=0)


def nonfinite_changes(part: CaptureResult) -> Tensor:
    """How many changes of each sample are not numbers [N], over its features and the units."""
    if "nonfinite" in part.features:
        return part.features["nonfinite"].sum(1)
    return (part.features["largest"].isnan() & part.features["there"].unsqueeze(2)).flatten(1).sum(1)


def present(captured: CaptureResult, regions: BoundRegions) -> CaptureResult:
    """The same, NaN where a sample does not have a feature; ``there`` [N, J] says where it has."""
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


def _groups(unit: str | UnitGroups) -> UnitGroups | None:
    return None if isinstance(unit, str) else unit


def _given(threshold: str | Tensor | Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    if isinstance(threshold, str):
        return {}
    if isinstance(threshold, Tensor):
        if len(names) > 1:
            raise ValueError(f"threshold must be one tensor per layer, a dict with the keys {names}.")
        return {names[0]: threshold}
    if missing := [name for name in names if name not in threshold]:
        raise ValueError(f"threshold lacks the layers {missing}.")
    return {name: threshold[name] for name in names}
