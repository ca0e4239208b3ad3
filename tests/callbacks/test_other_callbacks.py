"""What other callbacks and ways of training do to the weights is what they do without the monitor."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, callbacks
from subjects import Classifier, loader, only, quiet, samples
from torch import nn

from lightning_xai import ExplanationMonitor

pytestmark = [
    quiet,
    pytest.mark.filterwarnings(
        "ignore:Found 1 module.s. in eval mode at the start of training",
        "ignore:The .*dataloader.* does not have many workers",
        "ignore:You're resuming from a checkpoint that ended before the epoch ended",
        "ignore:Be aware that when using `ckpt_path`",
    ),
]


class Tunable(Classifier):
    """Has a learning rate and a batch size for others to find."""

    def __init__(self):
        super().__init__()
        self.lr = 0.1

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Manual(Tunable):
    """Steps by itself, two optimizers in turn."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()[batch_idx % 2]
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1]))
        optimizer.step()

    def configure_optimizers(self):
        first, *_, last = self.net
        return torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(last.parameters())


class Data(LightningDataModule):
    batch_size = 2

    def train_dataloader(self):
        return loader(*samples(8), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return loader(*samples(4))


def trained(trainer, monitored, others=(), module=Tunable, resume=None, **options):
    """The weights, the optimizer's state and what was found after training."""
    torch.manual_seed(3)
    network, data = module(), Data()
    monitor = [ExplanationMonitor(only(), max_samples=3)] if monitored else []
    run = trainer(callbacks=[*others, *monitor], num_sanity_val_steps=0, **options)
    run.fit(network, datamodule=data, ckpt_path=resume)
    if monitored:
        assert monitor[0].results["zero"]["samples"] == 3
    states = [optimizer.state_dict() for optimizer in run.optimizers]
    return network.state_dict(), states, (network.lr, data.batch_size), torch.get_rng_state()


def check_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


OTHERS = {
    "SWA": lambda: callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
    "batch size": lambda: callbacks.BatchSizeFinder(steps_per_trial=1, max_trials=2),
    "learning rate": lambda: callbacks.LearningRateFinder(num_training_steps=3, early_stop_threshold=None),
}
if hasattr(callbacks, "EMAWeightAveraging"):  # since Lightning 2.6
    OTHERS["EMA"] = lambda: callbacks.EMAWeightAveraging(decay=0.5)


@pytest.mark.parametrize("name", OTHERS)
def test_callbacks_that_change_the_training_do_as_ever(trainer, name, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # which the search for a batch size calls at every try
    bare, monitored = (trained(trainer, on, [OTHERS[name]()], max_epochs=3) for on in (False, True))
    check_same(monitored, bare)


def test_manual_optimisation_goes_on_as_ever(trainer):
    bare, monitored = (trained(trainer, on, module=Manual, max_epochs=2) for on in (False, True))
    check_same(monitored, bare)


def test_a_training_resumed_within_an_epoch_goes_on_as_ever(trainer, tmp_path):
    found = []
    for on in (False, True):
        folder = tmp_path / str(on)
        saved = callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        checked = {"val_check_interval": 2, "enable_checkpointing": True}
        trained(trainer, on, [saved], max_epochs=1, **checked)
        again = {"max_epochs": 2, "val_check_interval": 2, "default_root_dir": folder / "again"}
        found.append(trained(trainer, on, resume=folder / "step=3.ckpt", **again))
    check_same(*found)
