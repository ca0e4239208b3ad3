"""Training with the monitor attached is bit for bit training without it."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from subjects import Classifier, loader, quiet, samples
from torch import nn

from lightning_xai import ExplanationMonitor, Pictures, Segments, Windows
from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import kinds

pytestmark = [quiet, pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training")]


class Student(Classifier):
    """Learns with everything that is easily disturbed: dropout, noise, batch norms, one of them frozen in eval mode."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(1).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.modes = []

    def forward(self, x):
        self.calls += 1
        return self.net(self.frozen(x)) + 0 * torch.rand(1)

    def training_step(self, batch, batch_idx):
        self.frozen.eval()
        noise = 0.1 * torch.randn_like(batch[0]) + random.random() * np.random.rand()  # noqa: NPY002
        loss = nn.functional.cross_entropy(self(batch[0] + noise), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_end(self):
        self.modes.append({name: module.training for name, module in self.named_modules()})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Watch(Callback):
    """Keeps the gradients of every step, and the modes of all modules."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen += [parameter.grad.clone() for parameter in pl_module.parameters() if parameter.grad is not None]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append({name: module.training for name, module in pl_module.named_modules()})
        self.seen.append(batch[0].clone())


def trained(trainer, callback, epochs=3, **options):
    """What is left after training: by name, everything that the callback could have touched."""
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002
    module, watch = Student(), Watch()
    run = trainer(callbacks=[watch, *([callback] if callback else [])], max_epochs=epochs, **options)
    run.fit(module, loader(shuffle=True), loader())
    kept = run.callback_metrics
    return {
        "weights": {name: parameter.detach() for name, parameter in module.named_parameters()},
        "buffers": dict(module.named_buffers()),
        "gradients, batches and modes on the way": watch.seen,
        "modes": {name: child.training for name, child in module.named_modules()},
        "modes after validation": module.modes,
        "hooks": [{name: len(v) for name, v in vars(child).items() if "hooks" in name} for child in module.modules()],
        "attributes": sorted(vars(module)),
        "optimizer": run.optimizers[0].state_dict()["state"],
        "torch's randomness": torch.get_rng_state(),
        "numpy's randomness": [*np.random.get_state()[1].tolist(), *np.random.get_state()[2:]],  # noqa: NPY002
        "Python's randomness": random.getstate(),
        "logged": {name: value for name, value in kept.items() if not name.startswith("val/")},
        "settings": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
    }


def differences(first, second):
    """The names of what is not bit for bit the same."""
    return {name for name in first if _differ(first[name], second[name])}


def _differ(first, second):
    if isinstance(first, torch.Tensor):
        return not torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() != second.keys() or any(_differ(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) != len(second) or any(map(_differ, first, second))
    return first != second


def monitor(**options):
    regions = Windows(3)
    metrics = {
        "noise": Importance(regions, kinds.GaussianNoise()),
        "permuted": Synergy(regions, kinds.Permute()),
        "speed": Speed(regions, [kinds.Negative(0.1), kinds.Negative(0.2)]),
    }
    return ExplanationMonitor(metrics, max_samples=10, pictures=Pictures(samples=2), **options)


@pytest.mark.usefixtures("pictures")
def test_training_with_the_monitor_is_training_without_it(trainer):
    assert differences(trained(trainer, monitor(), epochs=2), trained(trainer, None, epochs=2)) == set()


def test_regions_may_draw_and_the_progress_bar_may_count_them(trainer):
    drawn = Segments(lambda inputs: torch.randint(0, 4, (len(inputs), *inputs.shape[2:])))
    callback = ExplanationMonitor({"drawn": Importance(drawn, kinds.Constant(0.0))}, max_samples=10)
    bar = {"enable_progress_bar": True}
    assert differences(trained(trainer, callback, epochs=1, **bar), trained(trainer, None, epochs=1, **bar)) == set()


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"val_check_interval": 2, "accumulate_grad_batches": 4}],
    ids=lambda options: next(iter(options)),
)
def test_training_with_any_strategy_is_bit_identical(trainer, options):
    callback = monitor(precision="trainer" if "precision" in options else "32")
    with_it = trained(trainer, callback, **options)
    assert callback.results["noise"]["samples"] == 10
    assert differences(with_it, trained(trainer, None, **options)) == set()


class Careless(Callback):
    """A callback that does one thing to the module at the end of every validation."""

    def __init__(self, deed):
        self.deed = deed

    def on_validation_batch_end(self, trainer, pl_module, *_args, **_kwargs):
        with torch.no_grad():
            self.deed(pl_module)


DEEDS = {
    "draws from torch": (lambda module: torch.rand(1), "torch's randomness"),
    "draws from numpy": (lambda module: np.random.rand(), "numpy's randomness"),  # noqa: NPY002
    "draws from Python": (lambda module: random.random(), "Python's randomness"),
    "switches modes": (lambda module: module.train(), "modes after validation"),
    "calls the model": (lambda module: module(samples()[0]), "buffers"),
    "logs in its name": (lambda module: module.log("val_loss", 0.0), "logged"),
    "changes a weight": (lambda module: module.net[0].bias.add_(1e-7), "weights"),
    "adds a hook": (lambda module: module.register_forward_hook(lambda *_: None), "hooks"),
    "adds an attribute": (lambda module: setattr(module, "relevance", 1.0), "attributes"),
}


@pytest.mark.filterwarnings("ignore:It is recommended to use .* when logging on epoch level")
@pytest.mark.parametrize(("deed", "trace"), DEEDS.values(), ids=DEEDS)
def test_a_careless_callback_is_found_out(trainer, deed, trace):
    assert trace in differences(trained(trainer, Careless(deed), epochs=2), trained(trainer, None, epochs=2))


def draw(value):
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    return value


class Drawing(Importance):
    def compute(self):
        return draw(super().compute())


class DrawingLogger(CSVLogger):
    @property
    def log_dir(self):
        return draw(super().log_dir)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("place", ["unpack", "denormalize", "compute", "logger"])
def test_what_the_user_gives_may_draw(trainer, tmp_path, place):
    kind = Drawing if place == "compute" else Importance
    pictures = Pictures(samples=2, denormalize=draw if place == "denormalize" else None)
    callback = ExplanationMonitor(
        {"zero": kind(Windows(3), kinds.Constant(0.0))},
        max_samples=2,
        pictures=pictures,
        unpack=draw if place == "unpack" else None,
    )
    logger = lambda: DrawingLogger(tmp_path) if place == "logger" else False  # noqa: E731
    found = trained(trainer, callback, epochs=2, logger=logger())
    assert callback.results["zero"]["samples"] == 2
    assert differences(found, trained(trainer, None, epochs=2, logger=logger())) == set()
