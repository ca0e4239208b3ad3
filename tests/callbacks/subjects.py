"""The small network, data and metrics that the callback's tests explain."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import Windows
from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import kinds

SAMPLES = 21

# Lightning's own remarks about runs as small as these.
quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:The number of training batches .* is smaller than the logging interval",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
    "ignore:.*pkg_resources is deprecated",
)


class Classifier(LightningModule):
    """Three classes of images 6 x 6, by a network with batch norm and dropout."""

    def __init__(self, width: int = 2):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(16 * width, 3),
        )
        self.inference_modes = set()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.inference_modes.add(torch.is_inference_mode_enabled())

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def samples(count=SAMPLES):
    """Inputs [count, 1, 6, 6] and labels, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return torch.randn(count, 1, 6, 6), torch.randint(3, (count,))


def loader(*tensors, batch_size=4, **options):
    """A loader of some tensors, of :func:`samples` unless given."""
    return DataLoader(TensorDataset(*(tensors or samples())), batch_size=batch_size, **options)


class Still(Classifier):
    """Learns nothing, so that any number of processes validates the same network, in which rounding is not seen."""

    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double())

    def training_step(self, batch, batch_idx):
        return 0.0 * sum(parameter.sum() for parameter in self.parameters())


FIRST = 6  # more than a batch of 4, less than two
REGIONS, ZERO, FADE = Windows(3), kinds.Constant(0.0), [kinds.Negative(0.2), kinds.Negative(0.4)]
COUNTS = {"samples", "nonfinite", "excluded", "skipped", "pass_share"}
NUMBERS = {
    "zero": COUNTS | {"mean_abs", "gini", "top_share"},
    "speed": COUNTS | {"mean_abs", "gini", "top_share"},
    "pairs": COUNTS | {"interaction_mean_abs", "redundant_share"},
}


def metrics():
    return {"zero": Importance(REGIONS, ZERO), "speed": Speed(REGIONS, FADE), "pairs": Synergy(REGIONS, ZERO)}


def only(**options):
    """The first of the metrics, with other options."""
    return {"zero": Importance(**{"regions": REGIONS, "perturbation": ZERO, **options})}


def expected(module, count=FIRST, target=None, names=tuple(NUMBERS)):
    """The results of the metrics over the first samples, without Lightning."""
    inputs, labels = samples()
    found = {}
    for name in names:
        metric = metrics()[name]
        metric.update(module, inputs[:count], labels[:count] if target is None else target)
        found[name] = {key: value if value.ndim else value.item() for key, value in metric.compute().items()}
    return found


def equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7, equal_nan=True)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Stop(Callback):
    def on_train_start(self, trainer, pl_module):
        raise KeyboardInterrupt


def tqdm_lines(bar):
    from tqdm import tqdm

    return [(line.n, line.total) for line in list(tqdm._instances) if line.desc and line.desc.startswith("Explaining")]
