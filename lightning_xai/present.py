"""Features and positions that are absent in some samples, as padding and special tokens are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._guard import isolated_eval
from lightning_xai.axes.facts import output_places
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.network_facts import NetworkFacts, question_of
from lightning_xai.operations import unwrapped
from lightning_xai.regions import BoundRegions, Regions
from lightning_xai.sites import Place


class PresentRegions(BoundRegions):
    """Regions of which a sample lacks those that have no cell but absent ones.

    Args:
        regions: The regions.
        present: Which features each sample has, Boolean [N, J].
    """

    def __init__(self, regions: BoundRegions, present: Tensor) -> None:
        self._regions, self._present = regions, present
        self.count, self.spatial = regions.count, regions.spatial

    def paint(self, values: Tensor) -> Tensor:
        return self._regions.paint(values)

    def cells(self, inputs: Tensor, feature: int) -> Iterator[tuple[slice, Tensor]]:
        return self._regions.cells(inputs, feature)

    def write(self, target: Tensor, source: Tensor, feature: int) -> None:
        self._regions.write(target, source, feature)

    def put(self, target: Tensor, rows: slice, values: Tensor, feature: int) -> None:
        self._regions.put(target, rows, values, feature)

    def rows(self, rows: slice | Tensor) -> PresentRegions:
        return PresentRegions(self._regions.rows(rows), self._present[rows])

    def present(self) -> Tensor:
        return self._present


def absent_cells(model: nn.Module) -> Tensor | None:
    r"""Return the cells of what is explained that are no features, Boolean [N, \*S]; None if all are."""
    return model.absent if isinstance(model, BoundModel) else None


def without_absent(model: nn.Module, maps: Tensor, value: float = float("nan")) -> Tensor:
    r"""Return maps [N, C, \*S] or [N, \*S] that are NaN, or something else, where there is no feature, as at padding.

    Maps of another size, as those of a layer's own, stay as they are.
    """
    absent = absent_cells(model)
    if absent is None or maps.shape[-absent.ndim + 1 :] != absent.shape[1:]:
        return maps
    absent = absent if maps.ndim == absent.ndim else absent.unsqueeze(1)
    return maps.masked_fill(absent.to(maps.device), value)


def draws_of_present(
    shape: Sequence[int],
    absent: Tensor | None,
    generators: Sequence[torch.Generator],
    draw: Callable[..., Tensor] = torch.randn,
) -> Tensor:
    r"""Return a draw [N, \*shape] per sample, of its present cells alone, so that it is the same without padding.

    Args:
        shape: The shape [C, \*S], or [\*S], of a sample.
        absent: The absent cells, Boolean [N, \*S], where the draw is 0; None if there are none.
        generators: One per sample.
        draw: Draws a tensor of a shape with ``generator=...``.

    >>> def generators(): return [torch.Generator().manual_seed(0)]
    >>> draws_of_present((2, 3), torch.tensor([[False, True, False]]), generators(), torch.rand)
    tensor([[[0.4963, 0.0000, 0.7682],
             [0.0885, 0.0000, 0.1320]]])
    >>> draws_of_present((2, 2), None, generators(), torch.rand)
    tensor([[[0.4963, 0.7682],
             [0.0885, 0.1320]]])
    """
    draws = []
    present = None if absent is None else ~absent.cpu()
    for row, generator in enumerate(generators):
        there = None if present is None else present[row]
        if there is None or bool(there.all()):
            draws.append(draw(tuple(shape), generator=generator))
            continue
        drawn = torch.zeros(tuple(shape))
        drawn[..., there] = draw((*shape[: len(shape) - there.ndim], int(there.sum())), generator=generator)
        draws.append(drawn)
    return torch.stack(draws)


# Where positions lie in the input, by network, shape and what is read: it is the same for every batch.
_places: NetworkFacts[tuple[Tensor, ...] | None] = NetworkFacts()


def present_positions(
    model: nn.Module, inputs: Tensor, pick: Callable[[Any], Any], axis: int, what: str, key: Hashable
) -> Tensor | None:
    r"""Tell which positions of a tensor of the model's output stand for a cell of the input that is there.

    A position stands for the cells that are nearer to its place in the input than half a step; one that has no place
    (a class token, a learned query) is there. The places are found by :func:`~lightning_xai.axes.output_places`; where
    they cannot be, all positions count, with a warning.

    Args:
        model: The model, bound to the samples.
        inputs: Its inputs; the first one is used.
        pick: Returns the tensor of an output.
        axis: The axis of its units.
        what: What it is, in the words of the warning.
        key: Tells it from other tensors of this network.

    Returns:
        Boolean [N, \*P]; None if all are there.
    """
    absent = absent_cells(model)
    if absent is None:
        return None
    assert isinstance(model, BoundModel)
    known, question = _places.of(model), (question_of(model, inputs), axis, key)
    if question not in known:
        with isolated_eval(model), torch.no_grad():
            known[question] = output_places(model, inputs.detach(), pick, axis)
    places = known[question]
    if places is None:
        warnings.warn(
            f"which positions of {what} stand for padding cannot be told, so that all of them count.",
            UserWarning,
            stacklevel=2,
        )
        return None
    return positions_of(~absent, places) if places and places[0].ndim else None


def present_at(model: nn.Module, inputs: Tensor, place: Place) -> Tensor | None:
    r"""Tell which positions of a module's output [N, K, \*P] stand for cells that are there; None if all do."""
    if absent_cells(model) is None:
        return None
    bound = unwrapped(model)
    assert isinstance(bound, BoundModel)
    return present_positions(bound.reading(place), inputs, lambda output: output, 1, f"layer {place.layer!r}", None)


def positions_of(cells: Tensor, places: Sequence[Tensor]) -> Tensor:
    r"""Tell which positions stand for a marked cell, Boolean [N, \*P].

    Args:
        cells: The marked cells, Boolean [N, \*S].
        places: The coordinate [\*P] of every position per axis of S; NaN for none.

    >>> cells = torch.tensor([[True, False, False, False, True]])
    >>> positions_of(cells, [torch.tensor([float("nan"), 0.5, 2.5, 4.0])])
    tensor([[ True,  True, False,  True]])
    """
    shape = places[0].shape
    near = [_near(place.flatten(), length) for place, length in zip(places, cells.shape[1:], strict=True)]
    found = torch.ones(len(cells), shape.numel(), dtype=torch.bool)
    somewhere = torch.stack([place.flatten().isfinite() for place in places]).any(0).cpu()
    for sample, marked in enumerate(cells.cpu().double()):
        reached = (near[0] @ marked.flatten(1)).view(-1, *marked.shape[1:]) if marked.ndim > 1 else near[0] @ marked
        for part in near[1:]:  # an axis of the input at a time
            reached = torch.einsum("pa...,pa->p...", reached, part)
        found[sample] = (reached > 0) | ~somewhere
    return found.view(-1, *shape).to(cells.device)


def _near(places: Tensor, length: int) -> Tensor:
    """Mark the cells of an axis that every position stands for, [P, length]; all of them for one without a place."""
    places = places.double().cpu()
    steps = places[places.isfinite()].sort().values.diff()
    steps = steps[steps > 1e-3]
    half = max(float(steps.median()) / 2 if len(steps) else 0.0, 0.5)
    cells = torch.arange(length, dtype=torch.float64)
    off = (places.unsqueeze(1) - cells).abs()
    return ((off <= half) | places.isnan().unsqueeze(1)).double()


def bind_present(regions: Regions, model: nn.Module, inputs: Tensor) -> BoundRegions:
    """Bind regions to inputs; features of a :class:`BoundModel` without any cell that is present are absent."""
    bound = regions.bind(inputs)
    absent = absent_cells(model)
    if absent is None:
        return bound
    cells = (~absent).unsqueeze(1)
    columns = []
    for feature in range(bound.count):
        there = [part.flatten(1).any(1) for _, part in bound.cells(cells, feature)]
        columns.append(torch.cat(there))
    present, own = torch.stack(columns, 1), bound.present()
    return PresentRegions(bound, present if own is None else present & own.to(present.device))
