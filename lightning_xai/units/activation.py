r"""Activation maps :math:`A_k` and the thresholds :math:`T_k` that few of their values exceed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs, check_model
from lightning_xai._guard import detach_for_autograd, forward_context, isolated_eval
from lightning_xai.operations import largest_activation
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function, PreActivationSite, hook_preactivations, preactivation_sites
from lightning_xai.units.quantile import DEFAULT_BUDGET, Quantile, UpperQuantile, check_share

UNITS = ("channel", "position")
_CHUNK_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Threshold:
    r"""The activation thresholds of a layer's units.

    Attributes:
        layer: The layer.
        unit: What a unit is: ``"channel"``, ``"position"`` or ``"group"``.
        p: The share of a unit's activations above its threshold.
        value: :math:`T` [K], or [K, \*P] for positions.
        exact: Whether T is exact; if not, it is read off a histogram, as the data did not fit the budget.
        error: The relative error of T; 0 if it is exact.
        dead: The units that never were active (T = 0 and nothing is larger), by their flat index.
        count: How many activations a unit had.
        nonfinite: How many activations were not finite; they are left out.
    """

    layer: str
    unit: str
    p: float
    value: Tensor
    exact: bool
    error: float
    dead: tuple[int, ...]
    count: int
    nonfinite: int

    @staticmethod
    def of(found: Quantile, layer: str, unit: str | UnitGroups, p: float, shape: Sequence[int]) -> Threshold:
        """The thresholds of units of a shape [K] or [K, *P] from their quantiles."""
        value, count = found.value.view(*shape), int(found.count.max())
        name = unit if isinstance(unit, str) else "group"
        return Threshold(layer, name, p, value, found.exact, found.error, found.dead, count, found.nonfinite)


@overload
def activation_threshold(  # type: ignore[overload-overlap]  # a string is a sequence of strings
    model: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    layer: str,
    p: float = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    samples: int | None = ...,
    budget: int = ...,
) -> Threshold: ...


@overload
def activation_threshold(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    layer: Sequence[str],
    p: float = ...,
    unit: str | UnitGroups = ...,
    activation: str | Function | None = ...,
    samples: int | None = ...,
    budget: int = ...,
) -> dict[str, Threshold]: ...


def activation_threshold(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    layer: str | Sequence[str],
    p: float = 0.005,
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    samples: int | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Threshold | dict[str, Threshold]:
    r"""The threshold that a share p of a unit's activations exceeds.

    .. math:: P(A_k > T_k) = p

    over all positions (of a channel) of all samples; with ties fewer. T is the activation of rank
    :math:`\lfloor p N \rfloor + 1` from above. It is exact, whatever the batches, if so many activations fit into half
    of the budget; otherwise it is read off a histogram, and the result says so and how well. Where the number of
    samples is known (a tensor, a loader with a length, or ``samples``), no more than needed is kept; where not, all
    that fits.

    Args:
        model: The network; called in eval mode and left as it was.
        data: Inputs [N, C, \*S], or an iterable of batches: inputs, or tuples that start with them.
        layer: The dotted name of a layer, or several, which then share the passes.
        p: The share, in (0, 1).
        unit: ``"channel"``; ``"position"``: every position of a channel is a unit of its own; or groups of channels.
        activation: The activation function or its name; the one that follows the layer in the model unless given.
        samples: N, if it is known and the data do not tell.
        budget: Bytes per layer.

    Returns:
        A :class:`Threshold`; for several layers a dict by layer.

    Raises:
        ValueError: If a layer does not exist or has no units, no activation is found nor named, p is not in (0, 1),
            there are no data, or the activations are not finite.
        TypeError: If the data are not tensors of floating-point numbers.

    Source: :cite:`bau2017`.

    Example:
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
    layers = layer_names(layer)
    streams: dict[str, UpperQuantile] = {}
    sites: dict[str, PreActivationSite] = {}
    raised: set[str] = set()
    total = _samples(data) if samples is None else samples
    seen = 0

    def see(name: str, values: Tensor) -> None:
        site, stream = sites[name], streams[name]
        late = _ranks_alike(site, unit, stream, values)
        stream.add(as_units(values if late else site.activation(values), unit))
        if late:
            raised.add(name)

    with isolated_eval(model):
        for inputs in _batches(model, data):
            if not sites:
                sites.update((site.layer, site) for site in preactivation_sites(model, inputs[:1], layers, activation))
                streams.update((name, _stream(site, unit, p, budget, total)) for name, site in sites.items())
            with hook_preactivations(model, list(sites.values()), see), forward_context():
                model(inputs.clone())
            seen += len(inputs)
    if seen == 0:
        raise ValueError("data hold no sample.")
    found = {}
    for name, stream in streams.items():
        quantile = stream.result()
        check_finite(quantile.nonfinite, name)
        if name in raised:
            activated = sites[name].activation
            quantile = replace(quantile, value=activated(quantile.value), peak=activated(quantile.peak))
        found[name] = Threshold.of(quantile, name, unit, p, unit_shape(sites[name], unit))
    return found[layer] if isinstance(layer, str) else found


def as_units(values: Tensor, unit: str | UnitGroups) -> Tensor:
    """Activations [N, K, *P] (or [N, K]) as [N, units, positions of a unit]."""
    if isinstance(unit, UnitGroups):
        values = unit.combine(values)
    flat = values.reshape(*values.shape[:2], -1)
    return flat.reshape(len(flat), -1, 1) if unit == "position" else flat


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


def check_finite(nonfinite: int, layer: str) -> None:
    """Refuse activations that are not finite.

    Raises:
        ValueError: If there were any.
    """
    if nonfinite:
        raise ValueError(
            f"{nonfinite} activations of layer {layer!r} are NaN or infinite; look at the inputs and the model's "
            f"weights."
        )


def layer_names(layer: str | Sequence[str]) -> list[str]:
    """One name or several, as a list.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is none.
    """
    if not isinstance(layer, str | Sequence):
        raise TypeError(f"layer must be a dotted name such as 'features.0', or several, got {type(layer).__name__}.")
    names = [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise ValueError("layer is empty: name at least one.")
    return names


def _ranks_alike(site: PreActivationSite, unit: str | UnitGroups, stream: UpperQuantile, values: Tensor) -> bool:
    """Whether ranks may be taken before the activation: it never falls, so it moves none, and it need not be made."""
    units = math.prod(unit_shape(site, unit))
    return isinstance(unit, str) and site.monotone and stream.certain(units, values.element_size())


def _stream(
    site: PreActivationSite, unit: str | UnitGroups, p: float, budget: int, samples: int | None
) -> UpperQuantile:
    unit_shape(site, unit)  # refuses groups of something else
    positions = 1 if unit == "position" else math.prod(site.shape[2:])
    return UpperQuantile(p, budget=budget, expected=None if samples is None else samples * positions)


def _samples(data: Any) -> int | None:
    """How many samples there are at most, if the data tell."""
    if isinstance(data, Tensor):
        return len(data) or None
    dataset = getattr(data, "dataset", None)
    if isinstance(dataset, Sized) and getattr(data, "batch_size", None) is not None:
        return len(dataset) or None
    if isinstance(data, list | tuple):
        return sum(len(_inputs(batch)) for batch in data) or None
    return None


def _batches(model: nn.Module, data: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    if not isinstance(data, Tensor):
        for batch in data:
            inputs = _inputs(batch)
            check_inputs(inputs)
            yield detach_for_autograd(inputs)
        return
    check_inputs(data)
    with forward_context():
        largest = largest_activation(model, data[:1])
    yield from torch.split(detach_for_autograd(data), max(1, _CHUNK_BYTES // largest))


def _inputs(batch: Any) -> Tensor:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(f"data must be inputs [N, C, *S] or batches of them, got {type(inputs).__name__}.")
    return inputs
