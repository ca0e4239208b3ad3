"""The data loaders of a stage, as Lightning numbers and names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor

from lightning_xai.callbacks.batch import Unpack
from lightning_xai.callbacks.failures import Failures
from lightning_xai.callbacks.order import Order, Source, orders_of, source_of
from lightning_xai.inputs import Inputs

UNKNOWN_PART = (
    "which samples the data loader gives cannot be seen (of combined ones, unpack must return a tensor of the batch as "
    "it is): sample ids are the order in which they arrive, and what a shorter loader repeats is explained again."
)


class Loaders:
    """The data loaders that Lightning goes through in a stage; every process must make it.

    Args:
        trainer: The trainer.
        stage: ``"validate"`` or ``"test"``.
        failures: What becomes of a loader that cannot be understood.

    Attributes:
        flattened: Every data loader.
        count: How many Lightning numbers: all of them one after the other, or one that combines them.
        orders: Which samples of each the process meets.
    """

    def __init__(self, trainer: Trainer, stage: str, failures: Failures) -> None:
        loop: Any = trainer.test_loop if stage == "test" else trainer.validate_loop
        if trainer.state.fn == "fit":
            loop = trainer.fit_loop.epoch_loop.val_loop
        combined: CombinedLoader = loop._combined_loader
        self.flattened = list(combined.flattened)
        self._structure = combined.iterables
        self._sequential = combined._mode == "sequential"
        self._part: int | None = None
        self.count = len(self.flattened) if self._sequential else 1
        world, rank = trainer.world_size, trainer.global_rank
        self._arriving = Order(world, rank, notes=(UNKNOWN_PART,))
        sources = [Source(self._arriving)] * len(self.flattened)
        for index, loader in enumerate(self.flattened):
            with failures.contain("the order of a data loader"):
                sources[index] = source_of(loader, world, rank)
        self.orders = orders_of(sources, world, rank)

    def suffix(self, index: int) -> str:
        """Return the suffix of the names of one data loader, Lightning's own."""
        return f"/dataloader_idx_{index}" if self.count > 1 else ""

    def order(self, index: int, batch: Any, unpack: Unpack) -> Order:
        """Return which samples a data loader gives; of combined ones that from which the inputs are taken."""
        if self._sequential or len(self.flattened) == 1:
            return self.orders[index]
        if self._part is None:
            inputs, held = unpack(batch)[0], self._held(batch)
            self._part = next((part for part, some in enumerate(held) if _holds(some, inputs)), len(held))
        return (*self.orders, self._arriving)[self._part]

    def is_over(self, batch: Any) -> bool:
        """Tell whether the loader from which the inputs are taken has no more of them, while others go on."""
        return self._part is not None and (*self._held(batch), batch)[self._part] is None

    def _held(self, batch: Any) -> list[Any]:
        """List the batches of combined loaders in the order in which Lightning lists the loaders."""
        return list(_batches_in(self._structure, batch))


def _batches_in(structure: Any, batch: Any) -> Iterator[Any]:
    if isinstance(structure, Mapping):
        for key, part in structure.items():
            yield from _batches_in(part, batch[key])
    elif isinstance(structure, tuple | list):
        for part, some in zip(structure, batch, strict=True):
            yield from _batches_in(part, some)
    else:
        yield batch


def _holds(batch: Any, inputs: Any) -> bool:
    if isinstance(inputs, Inputs):
        return _holds(batch, inputs.values[inputs.explain[0]])
    if isinstance(batch, Tensor) and isinstance(inputs, Tensor):
        return batch.numel() > 0 and batch.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr()
    if isinstance(batch, Mapping):
        return any(_holds(part, inputs) for part in batch.values())
    return isinstance(batch, tuple | list) and any(_holds(part, inputs) for part in batch)
