"""What the monitor logs, draws and shows while it works."""

import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from subjects import (
    FIRST,
    NUMBERS,
    Classifier,
    equal,
    loader,
    metrics,
    only,
    quiet,
    tqdm_lines,
)

from lightning_xai import ExplanationMonitor
from lightning_xai.callbacks.logging import check_names

pytestmark = quiet


@pytest.mark.parametrize(("mode", "epochs"), [("max", 2), ("min", 2)])
def test_results_drive_early_stopping(trainer, mode, epochs):
    stopping = EarlyStopping("val/zero/mean_abs", patience=1, mode=mode, min_delta=1e3)
    run = trainer(callbacks=[ExplanationMonitor(only(), max_samples=FIRST), stopping], max_epochs=5)
    run.fit(Classifier(), loader(), loader())
    assert run.current_epoch == epochs
    assert stopping.best_score != torch.inf
    equal(run.callback_metrics["val/zero/mean_abs"].double().isfinite(), torch.tensor(True))


@pytest.mark.usefixtures("pictures")
def test_results_choose_the_checkpoint_and_reach_the_logger(trainer, tmp_path):
    monitor, best = ExplanationMonitor(only(), max_samples=FIRST), ModelCheckpoint(monitor="val/zero/gini")
    logger = CSVLogger(tmp_path, version=0)
    run = trainer(callbacks=[monitor, best], max_epochs=2, logger=logger, enable_checkpointing=True)
    run.fit(Classifier(), loader(), loader())
    assert best.best_model_score is not None
    header, *rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    assert {f"val/zero/{key}" for key in NUMBERS["zero"]} <= set(header.split(","))
    assert (tmp_path / "lightning_logs" / "version_0" / "figures" / "validate-epoch1-step12" / "zero.png").is_file()


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.usefixtures("pictures")
def test_tensorboard_gets_the_pictures(trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, version=0)
    run = trainer(callbacks=[ExplanationMonitor(only(), max_samples=2)], logger=logger)
    run.fit(Classifier(), loader(), loader())
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert set(events.Tags()["images"]) == {"val/zero", "val/samples"}
    (image,) = events.Images("val/zero")
    assert image.step == events.Scalars("val/zero/gini")[0].step
    height, width, _ = pixels(tmp_path / "lightning_logs/version_0/figures/validate-epoch0-step6/zero.png").shape
    assert image.width / image.height == pytest.approx(width / height, rel=0.02)
    assert {f"val/zero/{key}" for key in NUMBERS["zero"]} <= set(events.Tags()["scalars"])


class Fake:
    """The part of a logger that Lightning itself uses."""

    def __init__(self, folder):
        self.folder, self.images, self.numbers = folder, {}, {}
        self._run_id = "run"

    experiment = property(lambda self: self)
    name = version = "fake"
    save_dir = property(lambda self: str(self.folder))
    root_dir = log_dir = save_dir
    run_id = property(lambda self: self._run_id)

    def log_hyperparams(self, *_args, **_kwargs):
        pass

    log_graph = save = finalize = after_save_checkpoint = log_hyperparams

    def log_metrics(self, metrics, step=None):
        self.numbers.update(metrics)
        self.step = step


class FakeWandb(Fake, WandbLogger):
    def log_image(self, key, images, step=None, **_):
        assert all(image.dtype == np.uint8 and image.ndim == 3 for image in images)
        self.images[key, step] = images


class FakeMLflow(Fake, MLFlowLogger):
    def log_figure(self, run_id, figure, artifact_file):
        assert run_id == "run"
        self.images[artifact_file] = figure


class FakeComet(Fake, CometLogger):
    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):  # comet_ml 3.58
        self.images[figure_name, step] = figure


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (FakeWandb, lambda name: (f"val/{name}", 5)),
        (FakeComet, lambda name: (f"val/{name}", 5)),
        (FakeMLflow, lambda name: f"val/{name}/step5.png"),
    ],
)
def test_other_loggers_get_the_pictures(trainer, tmp_path, kind, key):
    logger = kind(tmp_path)
    run = trainer(callbacks=[ExplanationMonitor(only(), max_samples=2)], logger=[logger, CSVLogger(tmp_path)])
    run.fit(Classifier(), loader(), loader())
    assert set(logger.images) == {key("zero"), key("samples")}
    assert {f"val/zero/{number}" for number in NUMBERS["zero"]} <= logger.numbers.keys()
    assert logger.step == 5  # of the last batch, counted from 0


class Watch(Callback):
    """Looks at the line on the progress bar after every batch."""

    def __init__(self, lines):
        self.lines, self.during, self.after = lines, [], None

    def on_validation_batch_end(self, trainer, *_args, **_kwargs):
        self.during += self.lines(trainer.progress_bar_callback)

    def on_validation_end(self, trainer, *_args):
        self.after = self.lines(trainer.progress_bar_callback)


def rich_lines(bar):
    return [(task.completed, task.total) for task in bar.progress.tasks if task.description == "Explaining"]


@pytest.mark.parametrize(("bar", "lines"), [(RichProgressBar, rich_lines), (TQDMProgressBar, tqdm_lines)])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_progress_is_shown_on_the_trainers_bar(trainer, bar, lines, stage):
    watch, monitor = Watch(lines), ExplanationMonitor(metrics(), max_samples=FIRST)
    run = trainer(callbacks=[monitor, bar(), watch], enable_progress_bar=True)
    if stage == "fit":
        run.fit(Classifier(), loader(), loader())
    else:
        run.validate(Classifier(), loader(), verbose=False)
    per_sample = 4 + 2 * 4 + 6  # zero; two states; pairs, which use zero again
    total = per_sample * FIRST
    assert watch.during == [(4 * per_sample, total), *[(total, total)] * 5]
    assert watch.after == []


@pytest.mark.parametrize("name", ["a@b", "share, %", "zero+one", "x=1"])
def test_names_that_mlflow_refuses_are_refused_before_the_training(name):
    mlflow = object.__new__(MLFlowLogger)
    with pytest.raises(ValueError, match=f"give metric '{re.escape(name)}' another one"):
        check_names([mlflow], ["zero", name])
    check_names([mlflow], ["zero", "größe 2.5-fold"])
    check_names([object.__new__(WandbLogger)], [name])
