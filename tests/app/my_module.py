"""What users bring: networks and data of their own."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, hidden=4):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Named(Net):
    def forward(self, x):
        return {"scores": self.net(x), "size": x.sum()}


class Data(LightningDataModule):
    def dataset(self):
        images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return TensorDataset(images, torch.arange(9) % 3)

    def train_dataloader(self):
        return DataLoader(self.dataset(), batch_size=3)

    def val_dataloader(self):
        return DataLoader(self.dataset(), batch_size=3)

    test_dataloader = val_dataloader


class Strange(Data):
    def val_dataloader(self):
        return DataLoader([{"seen": x, "meant": y} for x, y in self.dataset()], batch_size=3)


def unpack(batch):
    return batch["seen"], batch["meant"]
