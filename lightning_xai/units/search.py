r"""Search: the samples of the data that activate each unit most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai._files import CsvTable
from lightning_xai.inputs import InputsLike
from lightning_xai.sites import Layer
from lightning_xai.units._capture import layer_reader
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function

NO_SAMPLE = -1


class Peaks(NamedTuple):
    """The largest activation of each unit in each sample.

    Attributes:
        value: [N, U].
        position: Where it is [N, U, D], the first of equals; D = 0 for a layer without positions.
    """

    value: Tensor
    position: Tensor


def peaks(maps: Tensor, there: Tensor | None = None) -> Peaks:
    r"""The largest activation of each unit and where it is.

    Args:
        maps: Activations [N, U, \*P].
        there: The positions that count, Boolean [N, \*P]; all of them unless given.

    >>> found = peaks(torch.tensor([[[[1.0, 4.0, 4.0], [0.0, 4.0, 2.0]]]]))
    >>> found.value, found.position
    (tensor([[4.]]), tensor([[[0, 1]]]))
    """
    if maps.ndim == 2:
        return Peaks(maps, maps.new_empty(*maps.shape, 0, dtype=torch.long))
    flat = (maps if there is None else torch.where(there.unsqueeze(1), maps, -torch.inf)).flatten(2)
    # Of equals, argmax returns the first.
    position = torch.stack(torch.unravel_index(flat.argmax(2), maps.shape[2:]), -1)
    return Peaks(flat.amax(2), position)


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class SearchResult(CsvTable):
    """The samples that activate each unit most, by falling activation, ties by smaller id.

    Attributes:
        value: The activations [U, n]; NaN where there are fewer samples.
        sample_id: The samples [U, n]; -1 where there are fewer.
        position: Where in the layer's map [U, n, D]; -1 where there are fewer samples.
    """

    columns = ("unit", "rank", "sample_id", "activation", "position")

    value: Tensor
    sample_id: Tensor
    position: Tensor

    @property
    def n(self) -> int:
        """The number of samples per unit."""
        return self.value.shape[1]

    def rows(self) -> list[tuple[int, int, int, float, str]]:
        """The table: unit, rank from 0, sample, activation, position; those that are no samples are left out."""
        values, ids, positions = self.value.tolist(), self.sample_id.tolist(), self.position.tolist()
        return [
            (unit, rank, ids[unit][rank], values[unit][rank], "/".join(map(str, positions[unit][rank])))
            for unit in range(len(ids))
            for rank in range(self.n)
            if ids[unit][rank] != NO_SAMPLE
        ]

    def packed(self) -> Tensor:
        """Values, ids and positions in one tensor [U, n, 2 + D] of doubles, which hold all of them exactly."""
        parts = [self.value.unsqueeze(-1), self.sample_id.unsqueeze(-1), self.position]
        return torch.cat([part.double() for part in parts], -1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> SearchResult:
        """The reverse of :meth:`packed`."""
        return cls(packed[..., 0], packed[..., 1].long(), packed[..., 2:].long())


def merged(packed: Tensor, n: int) -> Tensor:
    """The n strongest of any number of packed candidates [U, m, 2 + D]; a sample that is there twice counts once.

    Merging parts gives what merging everything at once does, in any order and grouping.
    """
    units, _, width = packed.shape
    packed = torch.cat([packed, nothing(units, n, width - 2).to(packed)], 1)
    empty = packed[..., 1] == NO_SAMPLE
    value = packed[..., 0].masked_fill(empty, float("-inf"))
    # The last sort decides; the earlier one orders its ties.
    order = packed[..., 1].argsort(dim=1, stable=True)
    order = order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))
    ordered = packed.gather(1, order.unsqueeze(-1).expand(-1, -1, width))
    ids = ordered[..., 1]
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    repeated = same.tril(-1).any(2) | (ids == NO_SAMPLE)
    first = repeated.int().argsort(dim=1, stable=True)[:, :n]
    kept = ordered.gather(1, first.unsqueeze(-1).expand(-1, -1, width))
    gone = repeated.gather(1, first)
    return torch.where(gone.unsqueeze(-1), nothing(units, n, width - 2).to(kept), kept)


def nothing(units: int, n: int, axes: int) -> Tensor:
    """Packed candidates [units, n, 2 + axes] that are no samples."""
    packed = torch.full((units, n, 2 + axes), float(NO_SAMPLE), dtype=torch.float64)
    packed[..., 0] = float("nan")
    return packed


def candidates(found: Peaks, ids: Sequence[int] | Tensor) -> Tensor:
    """The peaks of a batch packed [U, N, 2 + D]; what is not a number is no sample."""
    named = torch.as_tensor(ids, dtype=torch.float64, device=found.value.device)
    named = torch.where(found.value.isfinite(), named.unsqueeze(1), float(NO_SAMPLE))
    parts = [found.value.unsqueeze(-1).double(), named.unsqueeze(-1), found.position.double()]
    return torch.cat(parts, -1).transpose(0, 1)


def top_samples(
    model: nn.Module,
    inputs: InputsLike,
    *,
    layer: Layer,
    n: int = 10,
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> SearchResult:
    r"""The n samples that activate each unit of a layer most, and where in its map.

    .. math:: \mathrm{top}_n\{\, \max_p A_{k,p}(x) : x \,\}

    Exact; ties by smaller id, and by the first position within a sample. Padding is left out.

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S], or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        layer: A layer with activations [N, K] or [N, K, \*P]: its dotted name, or the module itself.
        n: The number of samples per unit.
        unit: ``"channel"``, or groups of channels.
        activation: The activation function or its name; the one that follows the layer in the model unless given, and
            none where none follows.
        sample_ids: The samples' ids [N], integers from 0; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer is unknown, n is not between 1 and the number of samples, an id is negative or there
            twice, or an activation is not finite.

    Source: :cite:`zeiler2014`.

    >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 4.0]])
    >>> found = top_samples(nn.Sequential(nn.Identity()), x, layer="0", n=2)
    >>> found.sample_id, found.value
    (tensor([[1, 2],
             [0, 1]]), tensor([[3., 2.],
             [5., 5.]], dtype=torch.float64))
    """
    best: Tensor | None = None
    with layer_reader(model, inputs, layer, unit, activation, sample_ids, chunk_size) as reader:
        check_ids(reader.ids)
        if as_integer("n", n, 1) > len(reader.ids):
            raise ValueError(f"n must be at most the number of samples, {len(reader.ids)}, got {n}.")
        for found in reader.imap(lambda rows, maps: candidates(peaks(maps, reader.there(rows)), reader.ids[rows])):
            best = merged(found if best is None else torch.cat([best, found], 1), n)
    assert best is not None
    return SearchResult.unpacked(best)


def unit_activations(
    model: nn.Module,
    inputs: InputsLike,
    *,
    layer: Layer,
    unit: str | UnitGroups = "channel",
    activation: str | Function | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""The activations of the units of a layer, e.g. to group them by.

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S], or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        layer: A layer that runs once: its dotted name, or the module itself.
        unit: ``"channel"``, or groups of channels.
        activation: The activation function or its name; the one that follows the layer in the model unless given, and
            none where none follows.
        sample_ids: The samples' ids [N].
        chunk_size: The most inputs per forward pass; found automatically unless given.

    Returns:
        Activations [N, U] or [N, U, \*P]; NaN at padding.

    Raises:
        ValueError: If the layer is unknown, runs more than once, or is not finite.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> unit_activations(model, torch.ones(3, 2), layer="1").shape
    torch.Size([3, 2])
    """
    with layer_reader(model, inputs, layer, unit, activation, sample_ids, chunk_size) as reader:

        def run(rows: slice, maps: Tensor) -> Tensor:
            there = reader.there(rows)
            return maps if there is None else torch.where(there.unsqueeze(1), maps, float("nan"))

        return torch.cat(list(reader.imap(run)))


def check_ids(ids: Sequence[int]) -> None:
    """Refuse ids that name no sample or two of them.

    Raises:
        ValueError: If an id is negative, too large for a double, or there twice.
    """
    if min(ids) < 0 or max(ids) >= 2**53:
        raise ValueError(f"sample_ids must be integers from 0 to 2**53 - 1, got {min(ids)} to {max(ids)}.")
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})[:10]
        raise ValueError(f"sample_ids must be different: {twice} are there more than once.")
