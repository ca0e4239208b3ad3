"""Clean passes: recorded, compared with the passes before, and reduced to what will be read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_xai.perturbation.capture import Watch
from lightning_xai.perturbation.incremental.gathering import Table
from lightning_xai.perturbation.incremental.record import NotReplayable, Record, Recorder, Tap
from lightning_xai.perturbation.incremental.template import Template
from lightning_xai.perturbation.network import Network


@dataclass(eq=False)
class CleanPass:
    """A recorded pass.

    Attributes:
        record: The record.
        template: What it has in common with passes of other rows.
        tables: The tables of clean cells that were made.
    """

    record: Record
    template: Template
    tables: dict[int, Table] = field(default_factory=dict)


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
    some = inputs[:1].expand(rows, *inputs.shape[1:])
    return known(clean_pass(network, some, places, keep=())[1])


def template(network: Network, inputs: Tensor, pair: Record, places: Collection[Tap] = ()) -> Template:
    """What passes of any number of rows have in common with one of two rows.

    Raises:
        NotReplayable: If they differ in more than in their rows.
    """
    try:
        return Template.of(pair, probe(network, inputs, places, 1))
    except NotReplayable:  # some models take one row for none
        if network.batches.limit < 3:
            raise
        return Template.of(pair, probe(network, inputs, places, 3))


def known(record: Record | NotReplayable) -> Record:
    """A record.

    Raises:
        NotReplayable: If there is none.
    """
    if isinstance(record, NotReplayable):
        raise record
    return record
