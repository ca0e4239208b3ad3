"""The network, the data and the metrics that are explained on devices."""

from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import ExplanationMonitor, Segments, Windows, load_explanations
from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import kinds

SAMPLES = 21


@contextmanager
def exact():
    """Products and convolutions that are not rounded to TF32, always by the same algorithms."""
    settings = [
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "deterministic", True),
    ]
    before = [getattr(module, name) for module, name, _ in settings]
    try:
        for module, name, value in settings:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(settings, before, strict=True):
            setattr(module, name, value)


class Network(LightningModule):
    """Three classes of images 8 x 8; always the same weights, and it learns nothing."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Flatten(),
                nn.Linear(256, 3),
            )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return 0.0 * sum(parameter.sum() for parameter in self.parameters())

    def validation_step(self, batch, batch_idx):
        assert batch[0].is_cuda

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    """Inputs in double precision, and labels."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return torch.randn(SAMPLES, 2, 8, 8, dtype=torch.float64), torch.randint(3, (SAMPLES,))


def loader(dtype=torch.float32, **options):
    inputs, labels = data()
    return DataLoader(TensorDataset(inputs.to(dtype), labels), batch_size=4, **options)


def own_segments(inputs):
    """Labels -1 to 3 that differ from sample to sample."""
    return inputs.sum(1).floor().clamp(-1, 3).long()


def metrics():
    noise = kinds.GaussianNoise(seed=1)
    return {
        "noise": Importance(Windows(4, stride=2), noise),
        "window": Importance(Windows(4), kinds.RandomScale()),
        "segments": Importance(Segments(own_segments), kinds.Blur(1.0), score="margin"),
        "speed": Speed(Windows(4), noise, strengths=[0.5, 1.0, 1.5]),
        "pairs": Synergy(Windows(4), kinds.Permute()),
        "log": Importance(Windows(4), kinds.Log(), score="logit"),
    }


def trainer(folder, **options):
    """A quiet Trainer on CUDA devices."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual = {"accelerator": "cuda", "enable_checkpointing": False, **quiet}
    return Trainer(**{**usual, "default_root_dir": folder, **options})


def monitored(folder, stage, precision="64-true", **options):
    """The numbers that are logged, and the maps on disk, when all samples are explained."""
    monitor = ExplanationMonitor(metrics(), max_samples=SAMPLES)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    run = trainer(folder, max_epochs=1, callbacks=[monitor], precision=precision, **options)
    if stage == "fit":
        run.fit(Network(), loader(dtype), loader(dtype))
    else:
        run.validate(Network(), loader(dtype), verbose=False)
    logged = {key: value.item() for key, value in run.callback_metrics.items()}
    return logged, load_explanations(Path(folder) / "explanations" / f"validate-epoch0-step{run.global_step}")
