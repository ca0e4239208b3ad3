r"""The changes of a layer's pre-activations when features are perturbed, read in the passes of a sweep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_xai.operations.next_operation import CallSite
from lightning_xai.perturbation.capture import Capture, Watch
from lightning_xai.present import present_at
from lightning_xai.sites import Layer, Place
from lightning_xai.units.activation import as_units, unit_shape, units_there
from lightning_xai.units.counts import Pairs
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function, PreActivationSite, hook_preactivations, preactivation_sites
from lightning_xai.units.quantile import UpperQuantile

TOLERANCE = 1e-5


@dataclass(frozen=True)
class LayerChange(Capture):
    r"""The largest change of each channel of a layer.

    .. math:: \Delta a = \sigma(\Delta B) - \sigma(0), \qquad \Delta B_{k,j} = B_k(R_j\, x) - B_k(x)

    ``largest`` [N, J, K] is the largest over the positions of the channel, padding left out, and the arms of the
    perturbation. One that does not exceed 1e-5 of the channel's largest :math:`|B|` in the sample (the layer's, if
    there are no positions) is rounding: such are 0 or less.

    Args:
        layer: The layer; the last convolution or linear layer with an activation if None.
        activation: :math:`\sigma` or its name; the one that follows the layer in the model unless given.
        keep_activation: Whether the clean activations ``activation`` [N, K, P] are kept, too.
        groups: Groups of channels to look at instead of single ones: K are the groups, and a group's :math:`\Delta a`
            and rounding are the weighted means of its channels'.
    """

    layer: Layer | None
    activation: str | Function | None = None
    keep_activation: bool = False
    groups: UnitGroups | None = None

    def watch(self, model: nn.Module, inputs: Tensor) -> Watch:
        """Find the site of B; refuse groups that do not fit."""
        (site,) = preactivation_sites(model, inputs, [self.layer], self.activation)
        if self.groups is not None:
            unit_shape(site, self.groups)
        return _ChannelWatch(model, site, self)


@dataclass(frozen=True, eq=False)
class PositionChange(Capture):
    """The positions of a layer that features hit, counted during the sweep, as there are too many to keep.

    ``by_feature`` [N, J] counts the positions that a feature hits, ``by_unit`` [N, K, P] the features that hit a
    position, ``nonfinite`` [N, J] the positions whose change is not a number.

    Args:
        layer: The layer; the last convolution or linear layer with an activation if None.
        threshold: T [K, *P]; None if only the changes are wanted, in ``changes``.
        activation: The activation function or its name; the one that follows the layer unless given.
        pairs: Where the pairs of feature and position are counted, if they are.
        changes: Where the largest changes of each sample and feature go, if they are wanted.
        unranked: Positions that count in ``by_unit`` only, by their flat index.
    """

    layer: Layer | None
    threshold: Tensor | None
    activation: str | Function | None = None
    pairs: Pairs | None = None
    changes: UpperQuantile | None = None
    unranked: tuple[int, ...] = ()

    def watch(self, model: nn.Module, inputs: Tensor) -> Watch:
        """Find the site of B; refuse a threshold that does not fit."""
        (site,) = preactivation_sites(model, inputs, [self.layer], self.activation)
        if self.threshold is not None:
            check_fit(self.threshold, unit_shape(site, "position"), site.layer)
        return _PositionWatch(model, site, self)


class _LayerWatch(Watch):
    """Compares B of the perturbed inputs with B of the clean ones, row by row, while the model runs."""

    def __init__(self, model: nn.Module, site: PreActivationSite) -> None:
        self.site = site
        self.hook = partial(hook_preactivations, model, [site], self._see)
        self.samples = 0
        self.own = site.module is None
        self.there: Tensor | None = None
        self.reference: Tensor | None = None
        self.found: Tensor | None = None
        self.strongest: Tensor | None = None
        self.buffer: Tensor | None = None

    def start(self) -> None:
        self.reference, self.strongest, self.buffer = None, None, None

    def sweep_context(self) -> AbstractContextManager[None]:
        return nullcontext() if self.site.module is None else self.hook()

    def forward_context(self) -> AbstractContextManager[None]:
        return self.hook() if self.site.module is None else self._own_pass()

    @contextmanager
    def _own_pass(self) -> Iterator[None]:
        """Take what is seen for this pass; a score or a progress report may run the model between two."""
        self.own = True
        try:
            yield
        finally:
            self.own = False

    def takers(self) -> dict[Place | CallSite, Callable[[Tensor], object]]:
        place = self.site.call if self.site.module is None else self.site.module
        assert place is not None

        def take(values: Tensor) -> None:
            with nullcontext() if self.site.module is None else self._own_pass():
                self._see(self.site, self.site.as_read(values))

        return {place: take}

    def on_clean(self, samples: int, model: nn.Module, inputs: Tensor) -> None:
        assert self.reference is not None
        self.samples = samples
        self.there = present_at(model, inputs, self.site.place)
        first = self.reference[:samples]
        first = first if self.there is None else torch.where(self.there.unsqueeze(1), first, 0.0)
        # Per sample, so that no sample's hits depend on another one. A number alone says nothing about what it was
        # summed from, so a unit without positions is judged by the whole layer.
        size = first.abs().flatten(2).amax(2) if first.ndim > 2 else first.abs().amax(1, keepdim=True)
        self.tolerance = TOLERANCE * size.expand(first.shape[:2])
        self.rest = self.site.activation(torch.zeros_like(self.reference[:1]))

    def on_perturbed(self, broken: Tensor | None) -> None:
        assert self.found is not None
        if broken is not None:
            self.found = self.found.masked_fill(broken.view(-1, *[1] * (self.found.ndim - 1)), float("nan"))
        self.strongest = self.found if self.strongest is None else torch.maximum(self.strongest, self.found)
        self.found = None

    def _see(self, _site: PreActivationSite, values: Tensor) -> None:
        if not self.own:
            return
        # Entering a context costs as much as the work of a small layer.
        kind = values.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            if self.reference is None:
                self.reference = values.clone()
                return
            if self.buffer is None or self.buffer.shape != values.shape:
                self.buffer = torch.empty_like(values)
            # Into memory that the next pass writes to again: fresh memory costs more than the subtraction.
            each = (-1, *self.reference.shape)
            torch.sub(values.view(each), self.reference, out=self.buffer.view(each))
            self.found = self.reduce(self.buffer)

    def _without_padding(self, change: Tensor, value: float) -> Tensor:
        """Changes [rows, K, *P] with a value at padding; the rows are those of the clean pass, over and over."""
        if self.there is None:
            return change
        there = self.there.repeat(len(change) // len(self.there), *[1] * (self.there.ndim - 1))
        return torch.where(there.unsqueeze(1), change, value)

    @abstractmethod
    def reduce(self, change: Tensor) -> Tensor:
        """Reduce the changes [rows, K, *P] of a pass; of two arms, the larger result is kept.

        The result shares no memory with the changes, which the next pass overwrites.
        """

    def _take_strongest(self, features: list[int]) -> Tensor:
        """The reduced changes [F, n, ...] of the strongest arm, without the rows that filled the pass up."""
        assert self.strongest is not None
        strongest, self.strongest = self.strongest, None
        return strongest.view(-1, self.samples, *strongest.shape[1:])[: len(features)]


class _ChannelWatch(_LayerWatch):
    def __init__(self, model: nn.Module, site: PreActivationSite, capture: LayerChange) -> None:
        super().__init__(model, site)
        self.capture = capture
        # A monotone function is largest at the largest change; a mean of several such functions need not be.
        self.activate_last = site.monotone and capture.groups is None

    def on_clean(self, samples: int, model: nn.Module, inputs: Tensor) -> None:
        super().on_clean(samples, model, inputs)
        if self.capture.groups is not None:
            self.tolerance = self.capture.groups.combine(self.tolerance)

    def reduce(self, change: Tensor) -> Tensor:
        if not self.activate_last:
            change = self.site.activation(change) - self.rest
        if self.capture.groups is not None:
            change = self.capture.groups.combine(change)
        change = self._without_padding(change, -torch.inf) if change.ndim > 2 else change
        return change.flatten(2).amax(2) if change.ndim > 2 else change.clone()

    def collect(self, features: list[int]) -> dict[str, Tensor]:
        return {"largest": self._take_strongest(features)}

    def finalize_features(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        largest = kept["largest"]
        if self.activate_last:
            largest = self.site.activation(largest) - self.site.activation(torch.zeros_like(largest[:1, :1]))
        return {**kept, "largest": torch.where(largest > self.tolerance, largest, largest.clamp(max=0))}

    def finalize_samples(self) -> dict[str, Tensor]:
        if not self.capture.keep_activation:
            return {}
        assert self.reference is not None
        unit = "channel" if self.capture.groups is None else self.capture.groups
        values = self.site.activation(self.reference[: self.samples])
        there = units_there(self.there, values, unit)
        return {"activation": as_units(values, unit), **({} if there is None else {"present": there})}


class _PositionWatch(_LayerWatch):
    def __init__(self, model: nn.Module, site: PreActivationSite, capture: PositionChange) -> None:
        super().__init__(model, site)
        self.capture = capture
        self.hits: list[Tensor] = []
        self.by_unit: Tensor | None = None

    def start(self) -> None:
        super().start()
        self.hits, self.by_unit = [], None

    def reduce(self, change: Tensor) -> Tensor:
        return self._without_padding(self.site.activation(change) - self.rest, 0.0)

    def collect(self, features: list[int]) -> dict[str, Tensor]:
        strongest = self._take_strongest(features)
        change = strongest.reshape(*strongest.shape[:3], -1)
        change = torch.where(change > self.tolerance.unsqueeze(2), change, change.clamp(max=0))
        nonfinite = (~change.isfinite()).flatten(2).sum(2)
        if self.capture.changes is not None:
            there = units_there(self.there, self.rest.expand(self.samples, *self.rest.shape[1:]), "position")
            self.capture.changes.add(
                change.reshape(len(features) * self.samples, -1, 1),
                None if there is None else there.repeat(len(features), 1, 1),
            )
        if self.capture.threshold is None:
            return {"nonfinite": nonfinite}
        threshold = self.capture.threshold.to(change).reshape(change.shape[2:]).clamp(min=0)
        hit = (change > threshold).contiguous()  # flattened and written to below
        by_unit = hit.sum(0)
        self.by_unit = by_unit if self.by_unit is None else self.by_unit + by_unit
        hit.flatten(2)[..., list(self.capture.unranked)] = False
        if self.capture.pairs is not None:
            feature, _, unit = hit.flatten(2).nonzero(as_tuple=True)
            feature = torch.tensor(features, device=feature.device)[feature]
            self.hits.append(feature * hit[0, 0].numel() + unit)
        return {"by_feature": hit.flatten(2).sum(2), "nonfinite": nonfinite}

    def finalize_samples(self) -> dict[str, Tensor]:
        if self.capture.pairs is not None and self.hits:
            self.capture.pairs.add(torch.cat(self.hits))
        self.hits, by_unit, self.by_unit = [], self.by_unit, None
        return {} if by_unit is None else {"by_unit": by_unit}


def check_fit(threshold: Tensor, shape: tuple[int, ...], layer: str) -> None:
    """Refuse thresholds that do not fit the units of a layer.

    Raises:
        ValueError: If they are not one per unit, or not numbers.
    """
    if tuple(threshold.shape) != shape:
        raise ValueError(f"threshold is {list(threshold.shape)}, the units of layer {layer!r} are {list(shape)}.")
    if bool(threshold.isnan().any()):
        raise ValueError(f"threshold of layer {layer!r} holds NaN.")
