"""Which samples a process meets in a data loader: their positions in the whole, and their ids."""

from __future__ import annotations

import zlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, SequentialSampler

OWN_ORDER = (
    "the data loader draws its samples in an order of its own ({sampler}), so sample ids are places in that order: "
    "random perturbations are drawn anew for a sample in every epoch, and its maps cannot be compared across epochs. "
    "Let unpack return ids of your own, (inputs, target, ids), to change that."
)
SPLIT = (
    "the sampler {sampler} is taken to give every process samples of its own, and sample ids are the order in which "
    "they arrive; let unpack return ids of your own, (inputs, target, ids), if they matter."
)
UNSHARED = (
    "every process draws from all the data in an order of its own ({sampler}), so some samples may be explained twice "
    "and others never; leave use_distributed_sampler on, or use a sampler without chance for the validation data."
)
SHARED = (
    "every process is taken to go through the same data, of which each explains its part; where each has a part of its "
    "own already, let a DistributedSampler share them out."
)
ITERABLE = "iterable data are taken to be split between the processes as they are."


@dataclass(frozen=True)
class Order:
    """The samples that a process meets in a data loader.

    Attributes:
        world: How many processes go through data of their own; 1 if each goes through all of them.
        rank: Which of them this is.
        share: Of how many processes that go through the same data each explains its part: (which, of how many).
        length: How many samples the process meets before the loader starts again; None if unknown.
        total: How many samples there are in all, beyond which they are repeated; None if unknown.
        lengths: How many samples each process meets, where they are known and may differ: the processes take turns, and
            those that have more go on.
        indices: The samples' places in the data set, where they are known and differ from the positions.
        notes: What cannot be known, to be said once.

    >>> Order(world=2, rank=1, length=3, total=5).positions(torch.tensor([0, 1, 2, 3]))
    tensor([ 1,  3, -1, -1])

    The first process goes on alone where the second has one sample only:

    >>> Order(world=2, rank=0, length=4, lengths=(4, 1)).positions(torch.tensor([0, 1, 2, 3]))
    tensor([0, 2, 3, 4])
    """

    world: int = 1
    rank: int = 0
    share: tuple[int, int] = (0, 1)
    length: int | None = None
    total: int | None = None
    lengths: tuple[int, ...] | None = None
    indices: Tensor | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def open(self) -> bool:
        """Whether it is known only at the end how many samples the processes have."""
        return self.world > 1 and self.total is None and self.lengths is None

    def positions(self, places: Tensor) -> Tensor:
        """Turn places in this process' data [N] into positions in the whole, -1 for what is not to be explained here.

        Those are repetitions, and what another process explains.
        """
        which, of = self.share
        positions = self._in_turn(places)
        own = places % of == which
        if self.length is not None:
            own &= places < self.length
        if self.total is not None:
            own &= positions < self.total
        return torch.where(own, positions, -1)

    def ids(self, places: Tensor) -> Tensor:
        """Turn places in this process' data [N], explained here, into the ids of the samples."""
        return self._in_turn(places) if self.indices is None else self.indices[places]

    def _in_turn(self, places: Tensor) -> Tensor:
        if self.lengths is None:
            return places * self.world + self.rank
        lengths, turns = torch.tensor(self.lengths), places.unsqueeze(1)
        return torch.minimum(turns, lengths).sum(1) + (turns < lengths[: self.rank]).sum(1)


@dataclass(frozen=True)
class Source:
    """What a data loader says of the samples that it gives in this process.

    Attributes:
        order: The samples, if the others need not be asked: each process has its own, or there is only this one.
        name: What gives the indices.
        length: How many samples there are; None if unknown.
        indices: Their places in the data set, if they stand in a list.
        in_order: Whether it is the data set in its order.
        drawing: Whether torch draws them.
        samples: How many the data set has; None if unknown.
    """

    order: Order | None = None
    name: str = ""
    length: int | None = None
    indices: Tensor | None = None
    in_order: bool = False
    drawing: bool = False
    samples: int | None = None

    def claim(self) -> tuple[bool, int | None, int | None]:
        """What the other processes are told: whether all goes through all data, a code of the indices, the length."""
        code = None if self.indices is None else zlib.crc32(self.indices.numpy().tobytes())
        return self.in_order or self.drawing, code, self.length

    def settle(self, claims: Sequence[tuple[bool, int | None, int | None]], world: int, rank: int) -> Order:
        """The order, once the claims of all processes are known."""
        if self.order is not None:
            return self.order
        known, code, length = self.claim()
        alike = all(claim == claims[0] for claim in claims)
        if alike and (known or code is not None or (length is not None and length == self.samples)):
            words = SHARED if self.in_order else UNSHARED if self.drawing else OWN_ORDER
            notes = () if code is not None else (words.format(sampler=self.name),)
            return Order(share=(rank, world), length=self.length, indices=self.indices, notes=notes)
        split = SPLIT.format(sampler=self.name)
        known_lengths = tuple(length for _, _, length in claims if length is not None)
        lengths = known_lengths if len(known_lengths) == world else None
        return Order(world, rank, length=self.length, lengths=lengths, indices=self.indices, notes=(split,))


def source_of(loader: Any, world: int, rank: int) -> Source:
    """Find out which samples a loader gives.

    What the sampler gives is taken where it draws nothing of its own; no random number is used up.
    """
    sampler = _sampler(loader)
    name = type(sampler).__name__
    if sampler is None:
        return Source(Order(world, rank, notes=(ITERABLE,) if world > 1 else ()))
    batches = loader.batch_sampler
    batched = sampler is batches  # one of the user's own, whose length counts batches
    length = len(sampler) if isinstance(sampler, Sized) and not batched else None
    indices = _fixed_indices(sampler)
    length = length if indices is None else len(indices)
    if length is not None and not batched and batches.drop_last:
        length -= length % batches.batch_size
    if isinstance(sampler, DistributedSampler):
        indices, known = _distributed_indices(sampler)
        notes = () if known else (OWN_ORDER.format(sampler=name),)
        total = len(sampler.dataset)  # type: ignore[arg-type]  # it repeats samples to give every process as many
        order = Order(sampler.num_replicas, sampler.rank, length=length, total=total, indices=indices, notes=notes)
        return Source(order)
    in_order = type(sampler) is SequentialSampler
    if world == 1:
        notes = () if in_order or indices is not None else (OWN_ORDER.format(sampler=name),)
        return Source(Order(length=length, indices=indices, notes=notes))
    data = getattr(loader, "dataset", None)
    drawing = type(sampler).__module__.startswith("torch.") and not in_order
    samples = len(data) if isinstance(data, Sized) else None
    return Source(None, name, length, indices, in_order, drawing, samples)


def orders_of(sources: Sequence[Source], world: int, rank: int) -> list[Order]:
    """Settle which samples this process meets in data loaders; where there are several processes, all must call it."""
    everywhere: list[Any] = [None] * world
    claims = [source.claim() for source in sources]
    if world > 1:
        distributed.all_gather_object(everywhere, claims)
    else:
        everywhere = [claims]
    each = zip(sources, zip(*everywhere, strict=True), strict=True)
    return [source.settle(claims, world, rank) for source, claims in each]


def _sampler(loader: Any) -> Any:
    """Find what gives the indices of a loader; None where samples do not come by index, one by one."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    batches = getattr(loader, "batch_sampler", None)
    if batches is None:  # a loader that does not batch, or no loader at all
        return None
    return batches.sampler if type(batches) is BatchSampler else batches


def _fixed_indices(sampler: Any) -> Tensor | None:
    """Read indices that stand in a list, or in batches of them."""
    if isinstance(sampler, str) or not isinstance(sampler, Sequence):
        return None
    flat = [index for entry in sampler for index in (entry if isinstance(entry, Sequence) else [entry])]
    return torch.tensor(flat) if all(isinstance(index, int) for index in flat) else None


def _distributed_indices(sampler: Any) -> tuple[Tensor | None, bool]:
    """Read the indices that a distributed sampler gives, and whether ids are known; None if they are the positions."""
    if type(sampler) is not DistributedSampler:  # Lightning's own around another sampler, or a user's
        inner = getattr(sampler.dataset, "_sampler", None)
        fixed = _fixed_indices(inner)
        known = fixed is not None or type(inner) is SequentialSampler
        if fixed is not None and not sampler.shuffle:
            return fixed[torch.arange(sampler.rank, sampler.total_size, sampler.num_replicas) % len(fixed)], True
        return None, known and not sampler.shuffle
    return (torch.tensor(list(sampler)), True) if sampler.shuffle else (None, True)  # it has a generator of its own
