"""The activations of a layer, read while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai._guard import detach_for_autograd, forward_context, hook_outputs, isolated_eval
from lightning_xai.batching import Batches
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import unwrapped
from lightning_xai.present import present_at
from lightning_xai.scores import RawOutput, Target, as_target
from lightning_xai.scores.target import target_at
from lightning_xai.sites import Layer, Place
from lightning_xai.units.groups import UnitGroups, as_groups
from lightning_xai.units.layers import Function, PreActivationSite, hook_preactivations, preactivation_sites

T = TypeVar("T")

# Few large passes keep the largest activations of a layer faster than many small ones that stay in a CPU's caches.
CPU_BYTES = 2**26


class ActivationResult(NamedTuple):
    """One forward pass.

    Attributes:
        output: The output of the model.
        maps: The activations of the layer, [N, K] or [N, K, *P].
    """

    output: Any
    maps: Tensor


def capture(model: nn.Module, inputs: Tensor, place: Place) -> ActivationResult:
    """Run the model, inside :func:`lightning_xai._guard.isolated_eval`, and keep the output of a layer.

    Args:
        model: The network.
        inputs: Its inputs.
        place: The layer.

    Raises:
        ValueError: If there is no such layer, it does not run exactly once, or its output is not one row per sample.
    """
    seen: list[Tensor] = []
    # A copy, as an in-place activation that follows would change what was seen.
    with hook_outputs(model, {place: lambda output: seen.append(output.clone())}), forward_context():
        output = model(inputs.clone())
    if len(seen) != 1:
        times = f"runs {len(seen)} times" if seen else "does not run"
        raise ValueError(
            f"layer {place.layer!r} {times} in a forward pass; name one that runs once, such as a block around it"
            + (f", or say which call, layer=Site({place.layer!r}, call=0)." if seen else ".")
        )
    return ActivationResult(output, rows_of_units(seen[0], place, len(inputs)))


def read_activations(
    model: nn.Module, inputs: Tensor, sites: Sequence[PreActivationSite]
) -> tuple[Any, dict[str, Tensor]]:
    """Run the model, inside :func:`lightning_xai._guard.isolated_eval`; return its output and each layer's A."""
    found: dict[str, Tensor] = {}

    def see(site: PreActivationSite, values: Tensor) -> None:
        found[site.layer] = rows_of_units(site.activate(values), Place(site.layer), len(inputs))

    with hook_preactivations(model, sites, see), forward_context():
        output = model(inputs.clone())
    return output, found


def rows_of_units(maps: Tensor, place: Place, samples: int) -> Tensor:
    """The output of a layer as [N, K, *P], if it has a row per sample, in single precision at least.

    Raises:
        ValueError: If it has not.
    """
    found = maps if maps.ndim < 2 else place.units_first(maps)
    if maps.ndim < 2 or found.shape[0] != samples:
        raise ValueError(
            f"layer {place.layer!r} returns {list(maps.shape)} for {samples} samples; units need [N, K] or [N, K, *P]."
        )
    maps = found
    return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps


def with_positions(maps: Tensor, layer: str) -> Tensor:
    """The maps of a convolutional layer [N, K, *P].

    Raises:
        ValueError: If there are no positions, or more than three axes of them.
    """
    if not 3 <= maps.ndim <= 5:
        raise ValueError(
            f"layer {layer!r} returns {list(maps.shape)}, which is no map of positions [N, K, *P]; name a convolution, "
            f"or what follows it."
        )
    return maps


def check_finite(maps: Tensor, layer: str, ids: tuple[int, ...]) -> None:
    """Refuse activations that are not finite.

    Raises:
        ValueError: If some are; the samples are named.
    """
    broken = ~maps.isfinite().flatten(1).all(1)
    if broken.any():
        rows = [ids[row] for row in broken.nonzero().flatten().tolist()]
        raise ValueError(f"layer {layer!r} is NaN or infinite in the samples {rows}; leave those out.")


@dataclass(frozen=True)
class LayerReader:
    """Reads the activations of the units of a layer, batch by batch.

    Activations at padding are 0, and :meth:`there` says where it is.

    Attributes:
        model: The network, without wrappers.
        inputs: The inputs.
        ids: The samples' ids.
        site: Where the layer's pre-activation is.
        groups: The groups that are read instead of single units.
        batches: The sizes of the passes.
    """

    model: nn.Module
    inputs: Tensor
    ids: tuple[int, ...]
    site: PreActivationSite
    groups: UnitGroups | None
    batches: Batches

    def maps(self, rows: slice) -> Tensor:
        """The activations [n, U, *P] of some samples.

        Raises:
            ValueError: If one is not finite.
        """
        maps = read_activations(at_rows(self.model, rows), self.inputs[rows], [self.site])[1][self.site.layer]
        there = self.there(rows)
        maps = maps if there is None else torch.where(there.unsqueeze(1), maps, 0.0)
        check_finite(maps, self.site.layer, self.ids[rows])
        return maps if self.groups is None else self.groups.combine(maps)

    def there(self, rows: slice) -> Tensor | None:
        """The positions of some samples that are no padding, Boolean [n, *P]; None if all are."""
        return present_at(at_rows(self.model, rows), self.inputs[rows], self.site.place)

    def imap(self, run: Callable[[slice, Tensor], T]) -> Iterator[T]:
        """Yield ``run(rows, maps)`` for batches of samples."""
        return self.batches.imap(lambda rows: run(rows, self.maps(rows)), len(self.inputs))


def activation_site(
    model: nn.Module, inputs: Tensor, layer: Layer | None, activation: str | Function | None
) -> PreActivationSite:
    """The site of a layer's activation A; where no activation function takes its output, A is the output itself.

    None is the last convolution, or linear layer if there is none, that has an activation.
    """
    return preactivation_sites(model, inputs[:1], [layer], activation, fallback="identity")[0]


class UnitBatch(NamedTuple):
    """The activations of a batch, and what the model predicts.

    Attributes:
        maps: Activations [N, K] or [N, K, *P].
        there: The positions that are no padding, Boolean [N, *P]; None if all are.
        target: The classes that are explained [N].
        prediction: The predicted classes [N].
        score: The outputs of these classes [N].
        classes: The number of classes.
    """

    maps: Tensor
    there: Tensor | None
    target: Tensor
    prediction: Tensor
    score: Tensor
    classes: int


def read_batch(
    model: nn.Module, inputs: Tensor, site: PreActivationSite, target: Target, output: str | int | None
) -> UnitBatch:
    """Read the activations of a batch and the model's predictions in one pass, or in as few as memory allows."""
    target = as_target(target, len(inputs))

    def run(rows: slice) -> UnitBatch:
        returned, maps = read_activations(at_rows(model, rows), inputs[rows], [site])
        wanted = target_at(target, rows)
        of = (at_rows(model, rows), inputs[rows])
        bound = RawOutput(output=output).bind(returned, wanted, rows.stop - rows.start, of=of)
        return UnitBatch(maps[site.layer], None, bound.target, bound.prediction, bound(returned), bound.classes)

    parts = Batches(model, inputs, len(inputs)).map(run, len(inputs))
    names = ("maps", "target", "prediction", "score")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    there = present_at(model, inputs, site.place)
    if there is not None:
        joined["maps"] = torch.where(there.unsqueeze(1), joined["maps"], 0.0)
    return UnitBatch(there=there, classes=parts[0].classes, **joined)


@contextmanager
def layer_reader(
    model: nn.Module,
    inputs: InputsLike,
    layer: Layer,
    unit: str | UnitGroups,
    activation: str | Function | None,
    sample_ids: Tensor | Sequence[int] | None,
    chunk_size: int | None,
) -> Iterator[LayerReader]:
    """Yield a reader of the activations of a layer; inside, the model is in :func:`isolated_eval`."""
    model, values = bind(model, inputs)
    ids = check_inputs(values, sample_ids)
    model = unwrapped(model)
    with isolated_eval(model):
        values = detach_for_autograd(values)
        site = activation_site(model, values, layer, activation)
        batches = Batches(model, values, chunk_size, cpu_bytes=CPU_BYTES)
        yield LayerReader(model, values, ids, site, as_groups(unit), batches)
