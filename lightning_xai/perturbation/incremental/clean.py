"""Clean passes: recorded, compared with a pass of other rows, and reduced to what will be read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lightning_xai.perturbation.capture import Watch
from lightning_xai.perturbation.incremental.record import NotReplayable, Record, Recorder, Tap, follow_rows
from lightning_xai.perturbation.network import Network

# Passes of a few rows, which show what in a pass follows the number of rows; without their values.
_probes: WeakKeyDictionary[nn.Module, dict[Any, Record]] = WeakKeyDictionary()


@dataclass(eq=False)
class CleanPass:
    """A recorded pass.

    Attributes:
        record: The record.
        trees: The arguments of its calls, with what follows the rows marked.
        tables: The tables of clean cells that were made.
    """

    record: Record
    trees: Sequence[tuple[Any, Any]]
    tables: dict[tuple[int, float], Tensor] = field(default_factory=dict)


def clean_pass(
    network: Network, inputs: Tensor, places: Collection[Tap] = (), watches: Collection[Watch] = ()
) -> tuple[Any, Record | NotReplayable]:
    """Make a pass of the model; return its output and its record, or why it cannot be made again."""
    own = inputs.clone()
    recorder = Recorder(network.model, own, places)
    with recorder:
        output = network(network.model, own, watches)
    try:
        return output, recorder.finish(output)
    except NotReplayable as reason:
        return output, reason


def as_clean_pass(network: Network, inputs: Tensor, record: Record | NotReplayable) -> CleanPass:
    """A recorded pass of some inputs as one that can be made for other rows.

    Raises:
        NotReplayable: If it cannot.
    """
    record = _known(record)
    probes = _probes.setdefault(network.model, {})
    others = [rows for rows in (2, 3, 1) if rows != len(inputs) and rows <= network.batches.limit]
    if not others:
        raise NotReplayable("passes are of one input only")
    rows = others[0]
    key = (rows, tuple(inputs.shape[1:]), inputs.dtype, inputs.device)
    if key in probes:
        try:
            return CleanPass(record, follow_rows(record, probes[key]))
        except NotReplayable:  # the model has changed since
            del probes[key]
    some = inputs[:1].expand(rows, *inputs.shape[1:])
    probes[key] = _known(clean_pass(network, some)[1]).skeleton()
    return CleanPass(record, follow_rows(record, probes[key]))


def _known(record: Record | NotReplayable) -> Record:
    if isinstance(record, NotReplayable):
        raise record
    return record
