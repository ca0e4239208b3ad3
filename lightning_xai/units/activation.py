r"""Activations :math:`A_k` of units, and the thresholds :math:`T_k` that few of them exceed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor, nn

from lightning_xai._checks import check_inputs, check_model
from lightning_xai._files import CsvTable
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.batching import Batches
from lightning_xai.inputs import Inputs, as_inputs
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import unwrapped
from lightning_xai.present import present_at
from lightning_xai.sites import Layer, Site, layer_name
from lightning_xai.units._capture import CPU_BYTES, read_activations
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function, PreActivationSite, preactivation_sites
from lightning_xai.units.quantile import DEFAULT_BUDGET, Quantile, UpperQuantile, check_share

Unit = int | tuple[int, ...]

UNITS = ("channel", "position")
DEAD = ("exclude", "count")


@dataclass(frozen=True, eq=False)
class ThresholdResult(CsvTable):
    r"""The activation thresholds of a layer's units.

    Attributes:
        layer: The layer.
        unit: What a unit is: ``"channel"``, ``"position"`` or ``"group"``.
        p: The share of a unit's activations above its threshold.
        value: :math:`T` [K], or [K, \*P] for positions; infinite for a position that is padding in every sample.
        exact: Whether T is exact; if not, it is read off a histogram, as the data did not fit the budget.
        error: The relative error of T; 0 if it is exact.
        dead: The units that never were active (T = 0 and nothing is larger), by their flat index.
        count: How many activations a unit had, at most.
        nonfinite: How many activations were not finite; they are left out.
    """

    columns = ("unit", "threshold", "dead")

    layer: str
    unit: str
    p: float
    value: Tensor
    exact: bool
    error: float
    dead: tuple[int, ...]
    count: int
    nonfinite: int

    def rows(self) -> list[tuple[int | str, float, str]]:
        """A row per unit."""
        places = itertools.product(*map(range, self.value.shape))
        values = zip(places, self.value.flatten().tolist(), strict=True)
        dead = set(self.dead)
        return [
            (unit_name(as_unit(place)), value, "yes" if k in dead else "") for k, (place, value) in enumerate(values)
        ]

    @staticmethod
    def of(found: Quantile, layer: str, unit: str | UnitGroups, p: float, shape: Sequence[int]) -> ThresholdResult:
        """The thresholds of units of a shape [K] or [K, *P] from their quantiles."""
        value = found.value if found.nonfinite else found.value.nan_to_num(nan=math.inf)
        value, count = value.view(*shape), int(found.count.max())
        name = unit if isinstance(unit, str) else "group"
        return ThresholdResult(layer, name, p, value, found.exact, found.error, found.dead, count, found.nonfinite)


def as_unit(place: Sequence[int]) -> Unit:
    """A channel as a number; a position of one as both."""
    return place[0] if len(place) == 1 else tuple(place)


def unit_name(unit: Unit) -> int | str:
    """A unit in a table: the number of a channel, or channel and position, ``"3/0/7"``."""
    return unit if isinstance(unit, int) else "/".join(map(str, unit))


@overload
def activation_threshold(
    model: nn.Module,
    data: Tensor | Inputs | Iterable[Any],
    *,
    layer: Layer,
    layers: None = ...,
    p: float = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    samples: int | None = ...,
    budget: int = ...,
) -> ThresholdResult: ...


@overload
def activation_threshold(
    model: nn.Module,
    data: Tensor | Inputs | Iterable[Any],
    *,
    layer: None = ...,
    layers: Sequence[Layer],
    p: float = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    samples: int | None = ...,
    budget: int = ...,
) -> dict[str, ThresholdResult]: ...


def activation_threshold(
    model: nn.Module,
    data: Tensor | Inputs | Iterable[Any],
    *,
    layer: Layer | None = None,
    layers: Sequence[Layer] | None = None,
    p: float = 0.005,
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    samples: int | None = None,
    budget: int = DEFAULT_BUDGET,
) -> ThresholdResult | dict[str, ThresholdResult]:
    r"""The threshold that a share p of a unit's activations exceeds.

    .. math:: P(A_k > T_k) = p

    over all positions (of a channel) of all samples but padding; with ties fewer. T is the activation of rank
    :math:`\lfloor p N \rfloor + 1` from above. It is exact, whatever the batches, if so many activations fit into half
    of the budget; otherwise it is read off a histogram, and the result says so and how well. Where the number of
    samples is known (a tensor, a loader with a length, or ``samples``), no more than needed is kept; where not, all
    that fits.

    Args:
        model: The network; called in eval mode and left as it was.
        data: Inputs [N, C, \*S], :class:`~lightning_xai.inputs.Inputs` or a dict of them, or an iterable of batches:
            inputs, or tuples that start with them.
        layer: The layer: its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`, which says where
            its units lie.
        layers: Several layers, which then share the passes.
        p: The share, in (0, 1).
        unit: ``"channel"``; ``"position"``: every position of a channel is a unit of its own; or groups of channels.
        activation: The activation function or its name; the one that follows the layer in the model unless given.
        samples: N, if it is known and the data do not tell.
        budget: Bytes per layer.

    Returns:
        A :class:`ThresholdResult`; for several layers a dict by layer.

    Raises:
        ValueError: If a layer does not exist or has no units, no activation is found nor named, p is not in (0, 1),
            there are no data, or the activations are not finite.
        TypeError: If the data are not tensors of floating-point numbers.

    Source: :cite:`bau2017`.

    Example:
        >>> import torch
        >>> layer = nn.Conv1d(1, 2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[[1.0]], [[-1.0]]])
        >>> model = nn.Sequential(layer, nn.ReLU())
        >>> found = activation_threshold(model, torch.tensor([[[1.0, 5.0, 2.0]], [[4.0, 3.0, 0.0]]]), layer="0", p=0.4)
        >>> found.value, found.exact, found.dead
        (tensor([3., 0.]), True, (1,))
    """
    check_model(model)
    check_share(p)
    check_unit(unit)
    names = given_layers(model, layer, layers)
    streams: dict[str, UpperQuantile] = {}
    sites: list[PreActivationSite] = []
    total = _samples(data) if samples is None else samples
    with isolated_eval(model):
        for bound, inputs, batches in _batches(model, data):
            if not streams:
                sites = preactivation_sites(bound, inputs[:1], names, activation)
                streams = {site.layer: _stream(site, unit, p, budget, total) for site in sites}

            def read(
                rows: slice,
                model: nn.Module = bound,
                inputs: Tensor = inputs,
                sites: list[PreActivationSite] = sites,
            ) -> dict[str, tuple[Tensor, Tensor | None]]:
                own, some = at_rows(model, rows), inputs[rows]
                found = read_activations(own, some, sites)[1]
                return {site.layer: (found[site.layer], present_at(own, some, site.place)) for site in sites}

            for found in batches.imap(read, len(inputs)):
                for name, (values, there) in found.items():
                    streams[name].add(as_units(values, unit), units_there(there, values, unit))
    if not streams:
        raise ValueError("data hold no sample.")
    results = {}
    for site in sites:
        quantile = streams[site.layer].result()
        check_none_nonfinite(quantile.nonfinite, site.layer)
        results[site.layer] = ThresholdResult.of(quantile, site.layer, unit, p, unit_shape(site, unit))
    return results[sites[0].layer] if layers is None else results


def as_units(values: Tensor, unit: str | UnitGroups) -> Tensor:
    """Activations [N, K, *P] (or [N, K]) as [N, units, positions of a unit]."""
    if isinstance(unit, UnitGroups):
        values = unit.combine(values)
    flat = values.reshape(*values.shape[:2], -1)
    return flat.reshape(len(flat), -1, 1) if unit == "position" else flat


def units_there(there: Tensor | None, values: Tensor, unit: str | UnitGroups) -> Tensor | None:
    """Reshape the mask [N, *P] of activations [N, K, *P] like :func:`as_units` does, to [N, 1 or units, positions]."""
    if there is None:
        return None
    if unit != "position":
        return there.flatten(1).unsqueeze(1)
    return there.unsqueeze(1).expand_as(values).reshape(len(values), -1, 1)


def unit_shape(site: PreActivationSite, unit: str | UnitGroups) -> tuple[int, ...]:
    """The shape of a layer's units: [K], [G] for groups, or [K, *P] for positions.

    Raises:
        ValueError: If the groups are of another number of channels.
    """
    if not isinstance(unit, UnitGroups):
        return site.shape[1:] if unit == "position" else site.shape[1:2]
    if unit.units != site.shape[1]:
        raise ValueError(f"unit has groups of {unit.units} channels, layer {site.layer!r} has {site.shape[1]}.")
    return (unit.count,)


def check_unit(unit: str | UnitGroups) -> None:
    """Refuse what is no kind of unit.

    Raises:
        ValueError: If it is neither ``"channel"`` nor ``"position"`` nor groups.
    """
    if not isinstance(unit, UnitGroups) and unit not in UNITS:
        raise ValueError(f"unit must be 'channel' or 'position', or UnitGroups, got {unit!r}.")


def check_none_nonfinite(nonfinite: int, layer: str) -> None:
    """Refuse activations that are not finite.

    Raises:
        ValueError: If there were any.
    """
    if nonfinite:
        raise ValueError(
            f"{nonfinite} activations of layer {layer!r} are NaN or infinite; look at the inputs and the model's "
            f"weights."
        )


def given_layers(model: nn.Module, layer: Layer | None, layers: Sequence[Layer] | None) -> list[Layer]:
    """The layers that the arguments ``layer`` and ``layers`` name.

    Raises:
        TypeError: If neither or both are given, or one is no layer.
        ValueError: If there is no such layer, or ``layers`` is empty.
    """
    if layer is not None and layers is None:
        layers = [layer]
    elif layer is not None or layers is None or isinstance(layers, str):
        raise TypeError("give either layer=, one layer, or layers=, a list of several.")
    if not layers:
        raise ValueError("layers is empty: name at least one.")
    network = unwrapped(model)
    return [one if isinstance(one, Site) else layer_name(network, one) for one in layers]


def _stream(
    site: PreActivationSite, unit: str | UnitGroups, p: float, budget: int, samples: int | None
) -> UpperQuantile:
    unit_shape(site, unit)  # refuses groups of something else
    positions = 1 if unit == "position" else math.prod(site.shape[2:])
    return UpperQuantile(p, budget=budget, expected=None if samples is None else samples * positions)


def _samples(data: Any) -> int | None:
    """The largest number of samples that the data can hold, None if they do not tell."""
    if isinstance(data, Tensor | Inputs | Mapping):
        return len(as_inputs(data)) or None
    dataset = getattr(data, "dataset", None)
    if isinstance(dataset, Sized) and getattr(data, "batch_size", None) is not None:
        return len(dataset) or None
    if isinstance(data, list | tuple):
        return sum(len(as_inputs(_inputs(batch))) for batch in data) or None
    return None


def _batches(model: nn.Module, data: Tensor | Inputs | Iterable[Any]) -> Iterator[tuple[nn.Module, Tensor, Batches]]:
    """The inputs, and in which batches they go through the model: a user's as they are, if there is the memory."""
    for batch in [data] if isinstance(data, Tensor | Inputs | Mapping) else data:
        bound, inputs = bind(model, _inputs(batch))
        check_inputs(inputs)
        inputs = detach_for_autograd(inputs)
        size = None if batch is data else len(inputs)
        yield bound, inputs, Batches(bound, inputs, size, cpu_bytes=CPU_BYTES)


def _inputs(batch: Any) -> Tensor | Inputs | Mapping[str, Any]:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor | Inputs | Mapping):
        raise TypeError(f"data must be inputs [N, C, *S] or batches of them, got {type(inputs).__name__}.")
    return inputs
