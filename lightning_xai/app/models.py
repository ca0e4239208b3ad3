"""The network that the command line trains unless told otherwise."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_xai._checks import as_integer


class DemoCNN(LightningModule):
    """Two convolutions and a linear layer for digits [N, 1, 28, 28].

    Args:
        width: Channels of the first convolution; the second has twice as many.
        lr: Learning rate of Adam.
    """

    def __init__(self, width: int = 16, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        as_integer("width", width, least=1)
        if not isinstance(lr, int | float):
            raise TypeError(f"lr must be a number, got {lr!r}.")
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 7 * 7, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self._accuracy(batch, "val/acc")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self._accuracy(batch, "test/acc")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _accuracy(self, batch: tuple[Tensor, Tensor], name: str) -> None:
        x, y = batch
        self.log(name, (self(x).argmax(1) == y).float().mean(), prog_bar=True, sync_dist=True, batch_size=len(y))
