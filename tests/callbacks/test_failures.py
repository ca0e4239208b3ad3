"""Whatever fails while explaining stays where it happened: the training ends as it would have without the monitor."""

import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from subjects import REGIONS, ZERO, Classifier, Stop, equal, expected, loader, quiet, samples

from lightning_xai import ExplanationMonitor, load_explanations
from lightning_xai.callbacks.failures import Failures
from lightning_xai.callbacks.run import Run
from lightning_xai.metrics import Importance, Relevance
from lightning_xai.relevance import Saliency

pytestmark = quiet
MODULES = {
    name: import_module(f"lightning_xai.callbacks.{name}")
    for name in ("collector", "monitor", "outputs", "run", "order")
}


def metrics():
    return {"zero": Importance(REGIONS, ZERO), "saliency": Relevance(Saliency())}


def trained(trainer, *callbacks, epochs=2, **options):
    """The weights and the state of the optimizer after a training; what was said; the trainer."""
    torch.manual_seed(3)
    module, run = Classifier(), trainer(callbacks=list(callbacks), max_epochs=epochs, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.fit(module, loader(shuffle=True), loader())
    state = [*module.state_dict().values(), torch.get_rng_state()]
    state += [part["momentum_buffer"] for part in run.optimizers[0].state.values()]
    return state, [str(one.message) for one in said], run


def raising(*_args, **_kwargs):
    raise RuntimeError("injected")


# Every call of the monitor into user, torch, file or logger code: where it is made, and what is left out for it.
CALLS = {
    "unpack": (MODULES["collector"], "read_batch", "every metric"),
    "positions of samples": (MODULES["order"].Order, "positions", "every metric"),
    "run of a metric": (Relevance, "run", "saliency"),
    "accumulation": (Relevance, "add", "saliency"),
    "sweep": (Importance, "explained", "zero"),
    "computing": (Relevance, "compute", "saliency"),
    "shards": (MODULES["run"].ShardWriter, "write", "what is written to"),
    "logging": (MODULES["monitor"], "log_number", "what is logged of"),
    "drawing": (MODULES["outputs"], "draw_results", "the picture of zero"),
    "samples": (MODULES["outputs"], "draw_samples", "the picture of the samples"),
    "files of pictures": (MODULES["monitor"], "save", "the file"),
    "loggers": (MODULES["monitor"], "log_figure", "TensorBoardLogger"),
    "comparison": (MODULES["outputs"], "comparisons", "the comparison"),
    "start of an epoch": (Importance, "begin", "zero"),
    "what is looked back on": (Importance, "history", "zero"),
    "tables": (Importance, "tables", "the tables of zero"),
    "removal of old files": (MODULES["run"], "remove_pass", "the removal of"),
}


PICTURED = ("drawing", "samples", "files of pictures", "loggers")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return {}


@pytest.mark.parametrize("call", CALLS)
def test_training_is_bit_identical_when_explaining_fails(trainer, monkeypatch, tmp_path, alone, call):
    if not alone:
        alone["state"] = trained(trainer)[0]
    if call in PICTURED:
        monkeypatch.undo()
    place, name, left_out = CALLS[call]
    monkeypatch.setattr(place, name, property(raising) if name == "history" else raising)
    logger = {"logger": TensorBoardLogger(tmp_path)} if call == "loggers" else {}
    state, said, run = trained(trainer, ExplanationMonitor(metrics(), max_samples=2), num_sanity_val_steps=0, **logger)
    torch.testing.assert_close(state, alone["state"], rtol=0, atol=0)
    assert run.current_epoch == 2
    for epoch in range(2):
        (own, *_) = [line for line in said if left_out in line and f"left out of validate-epoch{epoch}" in line]
        assert "RuntimeError: injected" in own
        assert "in raising" in Path(own.split("(traceback in ")[1].removesuffix(")")).read_text()


def test_other_metrics_and_epochs_go_on(trainer, tmp_path, monkeypatch):
    monitor, seen, run = ExplanationMonitor(metrics(), max_samples=6), [], Relevance.run

    def sometimes(self, model, inputs, *args):
        seen.append(len(inputs))
        return raising() if len(seen) == 3 else run(self, model, inputs, *args)  # in the second epoch's first batch

    monkeypatch.setattr(Relevance, "run", sometimes)
    said, trained_by = trained(trainer, monitor, num_sanity_val_steps=0, epochs=2)[1:]
    words = "saliency is left out of validate-epoch1-step12: RuntimeError: injected"
    assert sum(words in line for line in said) == 1
    assert seen == [4, 2, 4]  # after a failure it is not asked again in that epoch
    assert list(monitor.results) == ["zero"]
    equal(monitor.results["zero"], expected(trained_by.lightning_module, names=["zero"])["zero"])
    assert load_explanations(tmp_path / "explanations/validate-epoch0-step6")["saliency/map"].shape == (6, 6, 6)
    assert load_explanations(tmp_path / "explanations/validate-epoch1-step12")["sample_id"].tolist() == list(range(6))


@pytest.mark.parametrize("call", ["unpack", "run of a metric", "computing", "shards", "files of pictures"])
@pytest.mark.usefixtures("pictures")
def test_failures_are_raised_if_asked_for(trainer, monkeypatch, call):
    monkeypatch.setattr(*CALLS[call][:2], raising)
    with pytest.raises(RuntimeError, match="injected"):
        trained(trainer, ExplanationMonitor(metrics(), on_error="raise"), num_sanity_val_steps=0)


def test_what_the_training_depends_on_is_raised(trainer, monkeypatch):
    stopping = EarlyStopping("val/saliency/gini", patience=9)
    monkeypatch.setattr(Relevance, "compute", raising)
    with pytest.raises(RuntimeError, match="injected"):
        trained(trainer, ExplanationMonitor(metrics()), stopping)
    other = EarlyStopping("val/zero/gini", patience=9)
    assert trained(trainer, ExplanationMonitor(metrics()), other)[2].current_epoch == 2


@pytest.mark.parametrize(
    ("callback", "refused"),
    [
        (lambda: EarlyStopping("val/zero/gini"), "EarlyStopping"),
        (lambda: EarlyStopping("val/zero/gini", strict=False), None),
        (lambda: ModelCheckpoint(monitor="val/zero/gini"), "ModelCheckpoint"),
        (lambda: ModelCheckpoint(monitor="val/zero/gini", every_n_epochs=4), None),
        (lambda: ModelCheckpoint(monitor="val/zero/gini", every_n_epochs=3), "ModelCheckpoint"),
    ],
)
def test_a_number_that_is_missing_in_some_epochs_is_refused_as_monitor(trainer, tmp_path, callback, refused):
    monitor, run = ExplanationMonitor(metrics(), every_n_epochs=2), None
    saving = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    if refused is None:
        run = trained(trainer, monitor, callback(), epochs=4, **saving)[2]
        assert run.current_epoch == 4
    else:
        with pytest.raises(
            ValueError, match=rf"{refused} monitors 'val/zero/gini', .* every 2 epochs: use .*n_epochs=1"
        ):
            trained(trainer, monitor, callback(), Stop(), **saving)


def test_a_scheduler_is_seen(trainer):
    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/zero/gini"}}

    run = trainer(callbacks=[ExplanationMonitor(metrics(), every_n_epochs=2), Stop()])
    with pytest.raises(ValueError, match="ReduceLROnPlateau monitors 'val/zero/gini'"):
        run.fit(Scheduled(), loader(), loader())


def test_samples_without_a_class_are_left_out(trainer):
    inputs, labels = samples()
    labels[1], labels[4], labels[5] = -100, 255, 3
    monitor = ExplanationMonitor({"zero": metrics()["zero"]}, max_samples=8)
    module = Classifier()
    with pytest.warns(UserWarning, match="whose label is no class"):
        trainer(callbacks=[monitor], num_sanity_val_steps=0).fit(module, loader(), loader(inputs, labels))
    known = torch.tensor([0, 2, 3, 6, 7])
    alone = Importance(REGIONS, ZERO)
    alone.update(module, inputs[known], labels[known], known)
    assert monitor.results["zero"]["excluded"] == 3
    torch.testing.assert_close(monitor.results["zero"]["map"], alone.compute()["map"])


def test_what_a_step_takes_out_of_its_batch_is_explained(trainer):
    class Pops(Classifier):
        def validation_step(self, batch, batch_idx):
            batch["more"].clear()
            batch.pop("y")

    class Named(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"x": samples()[0][index], "y": samples()[1][index], "more": {"z": 1}}

    module, monitor = Pops(), ExplanationMonitor({"zero": metrics()["zero"]})
    trainer(callbacks=[monitor]).validate(module, torch.utils.data.DataLoader(Named(), 4), verbose=False)
    equal(monitor.results["zero"], expected(module, names=["zero"])["zero"])


def test_a_traceback_that_cannot_be_written_stands_in_the_warning(tmp_path):
    (tmp_path / "file").touch()
    failures = Failures("validate-epoch1-step12", file=tmp_path / "file" / "trace.txt")
    with (
        pytest.warns(UserWarning, match=r"(?s)zero is left out .*could not be written.*Traceback.*injected"),
        failures.contain("zero", ["zero"]),
    ):
        raising()
    with pytest.raises(KeyboardInterrupt), failures.contain("zero", ["zero"]):
        raise KeyboardInterrupt


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("no message")


@pytest.mark.parametrize(
    "error", [Unreadable(), ValueError("9" * 10**6), StopIteration()], ids=lambda e: type(e).__name__
)
def test_errors_of_any_kind_are_told_once_and_in_short(trainer, tmp_path, alone, error):
    calls = []

    def unpack(batch):
        calls.append(batch)
        raise error

    if not alone:
        alone["state"] = trained(trainer)[0]
    monitor = ExplanationMonitor(metrics(), unpack=unpack)
    state, said, _ = trained(trainer, monitor, num_sanity_val_steps=0, enable_progress_bar=True)
    torch.testing.assert_close(state, alone["state"], rtol=0, atol=0)
    told = [line for line in said if "is left out of validate-epoch0" in line]
    assert len(told) == len({line.partition(" is left out")[0] for line in told}) <= 2
    assert all(type(error).__name__ in line and len(line) < 1500 for line in told)
    assert len(calls) <= 2 * 2  # nothing is asked again in an epoch in which everything has failed
    (written, _) = sorted((tmp_path / "explanations/failures").iterdir())
    assert written.read_text().count("Traceback") == len(told)


@pytest.mark.parametrize("value", [0.5, "no number", None])
def test_results_that_are_no_tensors(trainer, monkeypatch, value):
    compute = Relevance.compute
    monkeypatch.setattr(Relevance, "compute", lambda self: {**compute(self), "gini": value})
    monitor = ExplanationMonitor(metrics(), max_samples=2)
    said = trained(trainer, monitor, num_sanity_val_steps=0, epochs=1)[1]
    assert ("saliency" in monitor.results) == (value == 0.5)
    assert any("saliency is left out" in line for line in said) == (value != 0.5)
    assert "zero" in monitor.results


def test_labels_beyond_the_classes_alone_leave_the_results_empty(trainer):
    inputs, labels = samples()
    monitor = ExplanationMonitor({"zero": metrics()["zero"]}, max_samples=4)
    with pytest.warns(UserWarning, match="whose label is no class"):
        trainer(callbacks=[monitor], num_sanity_val_steps=0).fit(Classifier(), loader(), loader(inputs, labels + 7))
    assert (monitor.results["zero"]["samples"], monitor.results["zero"]["excluded"]) == (0, 4)


def test_an_exception_of_the_training_is_the_one_that_is_raised(trainer, monkeypatch):
    class Breaks(Classifier):
        def validation_step(self, batch, batch_idx):
            if batch_idx:
                raise KeyError("of the training")

    monkeypatch.setattr(MODULES["run"].ShardWriter, "remove", raising)
    monitor = ExplanationMonitor({"zero": metrics()["zero"]}, save_maps=False)
    with (
        pytest.raises(KeyError, match="of the training"),
        pytest.warns(UserWarning, match="the removal of .* injected"),
    ):
        trainer(callbacks=[monitor]).validate(Breaks(), loader(), verbose=False)


def test_a_loader_that_cannot_be_understood_is_explained_in_its_order(trainer, monkeypatch):
    monkeypatch.setattr(import_module("lightning_xai.callbacks.loaders"), "source_of", raising)
    module, monitor = Classifier(), ExplanationMonitor({"zero": metrics()["zero"]}, max_samples=6)
    with (
        pytest.warns(UserWarning, match="order of a data loader is left out of .*injected"),
        pytest.warns(UserWarning, match="which samples the data loader gives cannot be seen"),
    ):
        trainer(callbacks=[monitor]).validate(module, loader(), verbose=False)
    equal(monitor.results["zero"], expected(module, names=["zero"])["zero"])


@pytest.mark.parametrize("critical", [(), ("zero",)])
def test_what_another_process_raises_is_raised_here_too(monkeypatch, critical):
    run, module = Run.__new__(Run), MODULES["run"]
    run.maps, run.collectors, run.trainer = Path("validate-epoch0-step6"), {}, SimpleNamespace(world_size=2)
    run.failures = Failures("validate-epoch0-step6", critical=critical, deferred=True)
    gather = lambda everywhere, mine: everywhere.__setitem__(slice(None), [mine, ["zero: injected"]])  # noqa: E731
    monkeypatch.setattr(module, "distributed", SimpleNamespace(all_gather_object=gather))
    if not critical:
        run.raise_deferred()  # nobody meets, as nothing is to be raised
        return
    with pytest.raises(RuntimeError, match="explaining validate-epoch0-step6 failed: zero: injected"):
        run.raise_deferred()
