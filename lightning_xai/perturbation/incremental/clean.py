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
    network: Network,
    inputs: Tensor,
    places: Collection[Tap] = (),
    watches: Collection[Watch] = (),
    keep: Collection[int] | None = None,
) -> tuple[Any, Record | NotReplayable]:
    """Make a pass of the model; return its output and its record, or why it cannot be made again.

    Args:
        network: The network.
        inputs: The inputs of the pass.
        places: The places whose outputs are wanted.
        watches: What looks at the pass.
        keep: Which of the values that depend on the input are kept; None for all.
    """
    own = inputs.clone()
    recorder = Recorder(network.model, own, places, keep)
    with recorder:
        output = network(network.model, own, watches)
    try:
        return output, recorder.finish(output)
    except NotReplayable as reason:
        return output, reason


def probe(network: Network, inputs: Tensor, places: Collection[Tap], rows: int) -> Record:
    """A pass of some rows of the first input, without its values.

    Raises:
        NotReplayable: If it cannot be made again, or so many rows are too many.
    """
    if rows > network.batches.limit:
        raise NotReplayable("passes are of one input only")
    probes = _probes.setdefault(network.model, {})
    key = (rows, tuple(inputs.shape[1:]), inputs.dtype, inputs.device, tuple(places))
    if key not in probes:
        some = inputs[:1].expand(rows, *inputs.shape[1:])
        probes[key] = known(clean_pass(network, some, places, keep=())[1]).skeleton()
    return probes[key]


def probed(network: Network, inputs: Tensor, places: Collection[Tap]) -> CleanPass:
    """A pass of two rows, without its values, with what follows the number of rows marked.

    Raises:
        NotReplayable: If it cannot be made again.
    """
    pair = probe(network, inputs, places, 2)
    try:
        return CleanPass(pair, follow_rows(pair, probe(network, inputs, places, 1)))
    except NotReplayable:  # some models take one row for none
        if network.batches.limit < 3:
            raise
        return CleanPass(pair, follow_rows(pair, probe(network, inputs, places, 3)))


def as_clean_pass(
    network: Network, inputs: Tensor, record: Record | NotReplayable, places: Collection[Tap] = ()
) -> CleanPass:
    """A recorded pass of some inputs as one that can be made for other rows.

    Raises:
        NotReplayable: If it cannot.
    """
    own = known(record)
    rows = 2 if len(inputs) != 2 else 1
    try:
        return CleanPass(own, follow_rows(own, probe(network, inputs, places, rows)))
    except NotReplayable:  # the model has changed since, or takes one row for none
        _probes.pop(network.model, None)
        return CleanPass(own, follow_rows(own, probe(network, inputs, places, 3 if rows == 1 else rows)))


def known(record: Record | NotReplayable) -> Record:
    """A record.

    Raises:
        NotReplayable: If there is none.
    """
    if isinstance(record, NotReplayable):
        raise record
    return record
