"""The validation batches of a data module."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_xai.callbacks.batch import Unpack, unpack_batch
from lightning_xai.inputs import InputsLike


def first_inputs(data: LightningDataModule, unpack: Unpack | None = None) -> InputsLike:
    """Return the inputs of the first validation batch; of several data loaders, the first one's.

    Args:
        data: The data module, set up for validation.
        unpack: Turns a batch into (inputs, target) or (inputs, target, sample ids); tuples and dicts with the usual
            keys are understood without.
    """
    loader, *_ = CombinedLoader(data.val_dataloader(), mode="sequential").flattened
    inputs: InputsLike = (unpack or unpack_batch)(next(iter(loader)))[0]
    return inputs
