"""Drift over the epochs of a training: logged, the same on any number of processes, and resumed."""

import math
from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from subjects import Classifier, loader, quiet, samples

from lightning_xai import ExplanationMonitor
from lightning_xai.evaluation import spearman_drift
from lightning_xai.metrics import Drift
from lightning_xai.relevance import GradientXInput

pytestmark = [
    quiet,
    pytest.mark.filterwarnings(
        "ignore:Using `DistributedSampler` with the dataloaders",
        "ignore:The dirpath has changed",
        "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12
    ),
]
GXI, COUNT = GradientXInput(), 7


class Turning(Classifier):
    """Is turned by the epoch alone, so that any number of processes trains the same network."""

    def training_step(self, batch, batch_idx):
        return 0.0 * sum(parameter.sum() for parameter in self.parameters())

    def on_train_epoch_end(self):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.current_epoch)
            self.net[0].weight += torch.randn_like(self.net[0].weight)


class History(ExplanationMonitor):
    """Keeps the results of every epoch, and the maps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.epochs, self.maps = [], []

    def on_validation_epoch_end(self, trainer, pl_module):
        super().on_validation_epoch_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self.epochs.append(self.results)
            inputs, labels = (part[:COUNT] for part in samples())
            self.maps.append(GXI(pl_module, inputs, labels).flatten(1))


def fitted(trainer, folder, epochs, ckpt_path=None, data=None, monitor=History, **options):
    torch.manual_seed(0)
    module, monitor = Turning(), monitor({"drift": Drift(GXI)}, max_samples=COUNT)
    saved = ModelCheckpoint(folder / "checkpoints", save_last=True)
    how = {"max_epochs": epochs, "callbacks": [monitor, saved], "enable_checkpointing": True, **options}
    run = trainer(default_root_dir=folder, **how)
    run.fit(module, loader(), data or loader(), ckpt_path=ckpt_path)
    return run.callback_metrics, monitor, saved.last_model_path


def test_every_epoch_is_compared_with_the_one_before(trainer, tmp_path):
    logged, monitor, _ = fitted(trainer, tmp_path, 3)
    assert math.isnan(monitor.epochs[0]["drift"]["spearman"])
    for epoch in (1, 2):
        expected = spearman_drift(monitor.maps[epoch], monitor.maps[epoch - 1]).mean().item()
        assert monitor.epochs[epoch]["drift"]["spearman"] == pytest.approx(expected, rel=1e-5)
        assert expected > 0.01
    assert logged["val/drift/spearman"] == pytest.approx(expected, rel=1e-5)


def test_a_resumed_training_goes_on(trainer, tmp_path):
    _, whole, _ = fitted(trainer, tmp_path / "whole", 3)
    *_, checkpoint = fitted(trainer, tmp_path / "part", 2)
    _, rest, _ = fitted(trainer, tmp_path / "rest", 3, ckpt_path=checkpoint)
    torch.testing.assert_close(rest.epochs[-1], whole.epochs[-1], rtol=0, atol=0, equal_nan=True)
    assert rest.histories["val/drift"]["epochs"] == [1, 2]


def test_a_validation_after_the_training_is_compared_and_not_kept(trainer, tmp_path):
    torch.manual_seed(0)
    module, monitor = Turning(), ExplanationMonitor({"drift": Drift(GXI)}, max_samples=COUNT)
    run = trainer(callbacks=[monitor], max_epochs=2)
    run.fit(module, loader(), loader())
    for _ in range(2):
        run.validate(module, loader(), verbose=False)
        assert monitor.results["drift"]["matched"] == COUNT
        assert monitor.results["drift"]["spearman"] > 0.01  # turned after the last epoch was explained
    assert monitor.histories["val/drift"]["epochs"] == [1]


def test_every_dataloader_has_a_history_of_its_own(trainer, tmp_path):
    inputs, labels = samples()
    data = [loader(), loader(inputs.flip(0), labels.flip(0))]
    logged, monitor, _ = fitted(trainer, tmp_path, 2, data=data, monitor=ExplanationMonitor)
    assert monitor.histories.keys() == {"val/drift/dataloader_idx_0", "val/drift/dataloader_idx_1"}
    assert logged["val/drift/matched/dataloader_idx_1"] == COUNT
    one = fitted(trainer, tmp_path / "one", 2, monitor=ExplanationMonitor)[0]
    assert logged["val/drift/spearman/dataloader_idx_0"] == one["val/drift/spearman"]


def test_two_processes_find_what_one_does(trainer, tmp_path):
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    one, *_ = fitted(trainer, tmp_path / "one", 3)
    how = {"strategy": strategy, "devices": 2, "monitor": ExplanationMonitor}
    both, *_ = fitted(trainer, tmp_path / "two", 3, **how)
    drift = {key: value for key, value in one.items() if "/drift/" in key}
    assert drift["val/drift/matched"] == COUNT
    torch.testing.assert_close({key: both[key] for key in drift}, drift, rtol=1e-6, atol=1e-7, equal_nan=True)
    alone = torch.load(tmp_path / "one/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    states = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    (key,) = (key for key in states if "ExplanationMonitor" in key)
    (own,) = (key for key in alone if "History" in key)
    torch.testing.assert_close(states[key]["histories"], alone[own]["histories"], rtol=1e-6, atol=1e-7)
