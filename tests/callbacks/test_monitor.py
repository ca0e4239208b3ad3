"""The monitor in a Trainer: what it explains, writes and refuses."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from subjects import (
    FADE,
    FIRST,
    NUMBERS,
    REGIONS,
    SAMPLES,
    ZERO,
    Classifier,
    Stop,
    equal,
    expected,
    files,
    loader,
    metrics,
    only,
    quiet,
    samples,
    tqdm_lines,
)
from torch import nn

from lightning_xai import ExplanationMonitor, Pictures, Windows, explain, load_explanations
from lightning_xai.metrics import ActivationThreshold, Importance, Reactivation
from lightning_xai.perturbation import importance, interaction, kinds, speed

pytestmark = quiet

# Where it runs


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_stages_choose_validation_or_test(trainer, tmp_path, stage, inference_mode):
    module = Classifier()
    monitor = ExplanationMonitor(metrics(), max_samples=FIRST, stages=("validate", "test"))
    run = trainer(callbacks=[monitor], inference_mode=inference_mode)
    if stage == "fit":
        run.fit(module, loader(), loader())
    else:
        getattr(run, stage)(module, loader(), verbose=False)
    assert module.inference_modes == {inference_mode and stage != "fit"}
    equal(monitor.results, expected(module))

    prefix = "test" if stage == "test" else "val"
    logged = {f"{prefix}/{name}/{key}" for name, keys in NUMBERS.items() for key in keys}
    assert set(run.callback_metrics) == logged
    for key, value in run.callback_metrics.items():
        _, name, number = key.split("/")
        assert value.item() == pytest.approx(monitor.results[name][number])

    place = {"fit": "validate-epoch0-step6", "validate": "validate-epoch0-step0", "test": "test-epoch0-step0"}[stage]
    assert files(tmp_path) == {f"explanations/{place}/rank0-{shard}.safetensors" for shard in range(2)}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("save_maps", [True, False])
def test_monitor_writes_maps_and_pictures(trainer, tmp_path, save_maps):
    module, monitor = Classifier(), ExplanationMonitor(metrics(), max_samples=FIRST, save_maps=save_maps)
    trainer(callbacks=[monitor]).validate(module, loader(), verbose=False)
    equal(monitor.results, expected(module))
    assert files(tmp_path) == {
        *(f"explanations/validate-epoch0-step0/rank0-{shard}.safetensors" for shard in range(2) if save_maps),
        *(f"figures/validate-epoch0-step0/{name}.png" for name in (*NUMBERS, "samples")),
    }


def test_tables_stand_beside_the_pictures(trainer, tmp_path):
    names = {f"seen.{what}.csv" for what in ("by_feature", "by_unit", "by_feature_and_unit")}
    metrics = {"zero": Importance(REGIONS, ZERO), "seen": Reactivation("net.0", REGIONS, ZERO, p=0.2)}
    monitor = ExplanationMonitor(metrics, save_maps=False)
    trainer(callbacks=[monitor]).validate(Classifier(), [loader(), loader()], verbose=False)
    assert files(tmp_path) == {
        f"figures/validate-epoch0-step0/dataloader_idx_{i}/{name}" for i in range(2) for name in names
    }
    table = (tmp_path / "figures/validate-epoch0-step0/dataloader_idx_1/seen.by_unit.csv").read_text().splitlines()
    counts = monitor.results["seen/dataloader_idx_1"]["by_unit"]
    assert table[0] == "unit,re-activations by unit,threshold T,dead"
    assert {int(unit): int(count) for unit, count, _, _ in (row.split(",") for row in table[1:])} == {
        unit: int(count) for unit, count in enumerate(counts) if count
    }
    assert counts.any()
    explain(Classifier(), loader(), metrics, folder=tmp_path / "alone", progress=False)
    assert {f"alone/figures/{name}" for name in names} < files(tmp_path)
    before = files(tmp_path)
    trainer(callbacks=[monitor], fast_dev_run=True).validate(Classifier(), loader(), verbose=False)
    assert files(tmp_path) == before


def test_only_the_chosen_stages(trainer, tmp_path):
    monitor = ExplanationMonitor(only())
    trainer(callbacks=[monitor]).test(Classifier(), loader(), verbose=False)
    assert monitor.results == {}
    assert files(tmp_path) == set()


def test_what_is_on_disk_is_what_the_functions_give(trainer, tmp_path):
    module, (inputs, labels) = Classifier(), samples()
    trainer(callbacks=[ExplanationMonitor(metrics(), max_samples=FIRST)]).validate(module, loader(), verbose=False)
    found = load_explanations(tmp_path / "explanations" / "validate-epoch0-step0")
    inputs, labels = inputs[:FIRST], labels[:FIRST]
    local = importance(module, inputs, labels, regions=REGIONS, perturbation=ZERO)
    slope, r_squared = speed(module, inputs, labels, regions=REGIONS, perturbations=FADE)
    paint = REGIONS.bind(inputs).paint
    equal(found["sample_id"], torch.arange(FIRST))
    equal(found["target"], labels)
    equal(found["prediction"], module.eval()(inputs).argmax(1))
    equal(found["input"], inputs)
    equal(found["zero/local"], local)
    equal(found["zero/map"], paint(local))
    equal(found["speed/map"], paint(slope))
    equal(found["speed/map_r_squared"], paint(r_squared))
    equal(found["pairs/interaction"], interaction(module, inputs, labels, regions=REGIONS, perturbation=ZERO))
    low, high = local.amin(1, keepdim=True), local.amax(1, keepdim=True)
    equal(found["zero/map_relative"], paint((local - low) / (high - low)))


@pytest.mark.parametrize("names", [{}, {"target": "predicted"}, {"target": 2}], ids=str)
def test_target_may_be_labels_predictions_or_one_class(trainer, names):
    module, monitor = Classifier(), ExplanationMonitor(metrics(), max_samples=FIRST, **names)
    trainer(callbacks=[monitor]).validate(module, loader(), verbose=False)
    equal(monitor.results, expected(module, target=names.get("target")))


@pytest.mark.parametrize("batch_size", [1, 5, 30])
@pytest.mark.parametrize("count", [1, 5, SAMPLES, 100])
def test_the_first_samples_are_explained(trainer, tmp_path, count, batch_size):
    module, monitor = Classifier(), ExplanationMonitor(only(), max_samples=count)
    trainer(callbacks=[monitor]).validate(module, loader(batch_size=batch_size), verbose=False)
    equal(monitor.results, expected(module, min(count, SAMPLES), names=["zero"]))
    found = load_explanations(tmp_path / "explanations" / "validate-epoch0-step0")
    assert found["sample_id"].tolist() == list(range(min(count, SAMPLES)))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_n_epochs(trainer, tmp_path, every):
    module, monitor = Classifier(), ExplanationMonitor(only(), every_n_epochs=every, max_samples=FIRST)
    run = trainer(callbacks=[monitor], max_epochs=4)
    run.fit(module, loader(), loader())
    due = {f"validate-epoch{epoch}-step{6 * (epoch + 1)}" for epoch in range(4) if (epoch + 1) % every == 0}
    assert {path.name for path in (tmp_path / "explanations").iterdir()} == due
    assert monitor.results["zero"]["samples"] == FIRST
    run.validate(module, loader(), verbose=False)  # whatever the epoch
    equal(monitor.results, expected(module, names=["zero"]))


def test_the_sanity_check_is_not_explained(trainer, tmp_path):
    module, monitor = Classifier(), ExplanationMonitor(only())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(callbacks=[monitor, Stop()], num_sanity_val_steps=2).fit(module, loader(), loader())
    assert module.inference_modes == {False}  # it was validated
    assert monitor.results == {}
    assert files(tmp_path) == set()


@pytest.mark.usefixtures("pictures")
def test_several_dataloaders(trainer, tmp_path):
    module, monitor = Classifier(), ExplanationMonitor(metrics(), max_samples=FIRST)
    inputs, labels = samples()
    run = trainer(callbacks=[monitor])
    run.validate(module, [loader(), loader(inputs.flip(0), labels.flip(0), batch_size=3)], verbose=False)
    plain = expected(module)
    for name in NUMBERS:
        equal(monitor.results[f"{name}/dataloader_idx_0"], plain[name])
    last = only()["zero"]
    last.update(module, inputs[-FIRST:], labels[-FIRST:])
    equal(monitor.results["zero/dataloader_idx_1"]["map"], last.compute()["map"])
    logged = {f"val/{name}/{key}/dataloader_idx_{i}" for name in NUMBERS for key in NUMBERS[name] for i in range(2)}
    assert set(run.callback_metrics) == logged
    for index in range(2):
        found = load_explanations(tmp_path / "explanations" / "validate-epoch0-step0" / f"dataloader_idx_{index}")
        equal(found["input"], (inputs if index == 0 else inputs.flip(0))[:FIRST])
        pictures = files(tmp_path / "figures" / "validate-epoch0-step0" / f"dataloader_idx_{index}")
        assert pictures == {"zero.png", "speed.png", "pairs.png", "samples.png"}


# Precision


def hand_made(module, inputs, labels):
    """Importance of four corners by zeroing them, in whatever autocast is active."""
    module.eval()

    def score(x):
        output = module(x)
        output = output.float() if output.dtype == torch.bfloat16 else output
        return output.softmax(1)[torch.arange(len(x)), labels]

    columns = []
    for row in (0, 3):
        for column in (0, 3):
            perturbed = inputs.clone()
            perturbed[:, :, row : row + 3, column : column + 3] = 0
            columns.append(score(inputs) - score(perturbed))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("precision", ["32", "trainer"])
@pytest.mark.parametrize("trainers", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precision_32_explains_outside_autocast(trainer, tmp_path, stage, precision, trainers):
    module, (inputs, labels) = Classifier(), samples()
    monitor = ExplanationMonitor(only(chunk_size=FIRST), max_samples=FIRST, precision=precision)
    run = trainer(callbacks=[monitor], precision=trainers)
    if stage == "fit":
        run.fit(module, loader(), loader(batch_size=FIRST))
    else:
        run.validate(module, loader(batch_size=FIRST), verbose=False)
    found = load_explanations(tmp_path / "explanations" / f"validate-epoch0-step{run.global_step}")["zero/local"]
    inputs, labels = inputs[:FIRST].to(next(module.parameters()).dtype), labels[:FIRST]
    mixed = precision == "trainer" and trainers == "bf16-mixed"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        local = hand_made(module, inputs, labels)
        # Exact, unless a pass is split another way: then within single precision.
        torch.testing.assert_close(found, local, rtol=0, atol=1e-6 if local.dtype == torch.float32 else 1e-12)
    if mixed:
        with torch.no_grad():
            assert not torch.allclose(local, hand_made(module, inputs, labels), rtol=0, atol=1e-4)
    assert monitor.results["zero"]["map"].dtype == torch.float64


@pytest.mark.parametrize("precision", ["32", "trainer"])
def test_captures_see_the_precision_of_the_passes(trainer, precision):
    module, (inputs, _) = Classifier(), samples()
    sought = {"units": ActivationThreshold("net.0", p=0.2), "changes": Reactivation("net.0", REGIONS, ZERO, p=0.2)}
    monitor = ExplanationMonitor(sought, max_samples=SAMPLES, precision=precision, save_maps=False)
    trainer(callbacks=[monitor], precision="bf16-mixed").validate(module, loader(), verbose=False)
    values = {}
    for mixed in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            values[mixed] = module.eval().net[:3](inputs).float().transpose(0, 1).flatten(1)  # [K, N * P]
    thresholds = {mixed: v.sort(1, descending=True).values[:, int(0.2 * v.shape[1])] for mixed, v in values.items()}
    own = thresholds[precision == "trainer"]
    for name in sought:
        torch.testing.assert_close(monitor.results[name]["threshold"], own, rtol=0, atol=1e-6)
    assert not thresholds[False].equal(thresholds[True])


# Options


@pytest.mark.usefixtures("pictures")
def test_a_fast_dev_run_leaves_no_files(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = ExplanationMonitor(only())
    trainer(callbacks=[monitor], fast_dev_run=True).fit(Classifier(), loader(), loader())
    assert monitor.results["zero"]["samples"] == 4
    assert files(tmp_path) == set()


def test_a_second_run_replaces_the_maps_of_the_first(trainer, tmp_path):
    module = Classifier()
    for count in (SAMPLES, FIRST):
        monitor = ExplanationMonitor(only(), max_samples=count)
        trainer(callbacks=[monitor]).validate(module, loader(batch_size=2), verbose=False)
        assert len(load_explanations(tmp_path / "explanations" / "validate-epoch0-step0")["sample_id"]) == count


def test_every_validation_of_an_epoch_keeps_its_maps_and_what_an_earlier_run_left_is_named(trainer, tmp_path):
    (tmp_path / "explanations" / "validate-epoch0-step9").mkdir(parents=True)
    (tmp_path / "figures" / "validate-epoch0-step3").mkdir(parents=True)
    (tmp_path / "figures" / "validate-epoch0-step3" / "old.png").touch()
    run = trainer(callbacks=[ExplanationMonitor(only(), max_samples=2)], val_check_interval=0.5)
    with pytest.warns(UserWarning, match="validate-epoch0-step9, figures/validate-epoch0-step3 of an earlier run: rem"):
        run.fit(Classifier(), loader(), loader())
    maps = sorted((tmp_path / "explanations").iterdir())
    assert [path.name for path in maps] == [f"validate-epoch0-step{step}" for step in (3, 6, 9)]
    three, six = (load_explanations(path)["zero/local"] for path in maps[:2])
    assert not torch.equal(three, six)  # the weights have moved on
    assert not (tmp_path / "figures" / "validate-epoch0-step3" / "old.png").exists()


@pytest.mark.usefixtures("pictures")
def test_two_monitors_write_to_folders_of_their_own(trainer, tmp_path):
    module = Classifier()
    names = [["zero"], ["speed", "pairs"]]
    monitors = [
        ExplanationMonitor({name: metrics()[name] for name in some}, max_samples=count, save_maps=save)
        for some, count, save in zip(names, (FIRST, 3), (False, True), strict=True)
    ]
    checkpoint = ModelCheckpoint(save_last=True, dirpath=tmp_path / "checkpoints")
    run = trainer(callbacks=[*monitors, checkpoint], enable_checkpointing=True)
    run.fit(module, loader(), loader())
    equal(monitors[0].results, expected(module, names=names[0]))
    equal(monitors[1].results, expected(module, 3, names=names[1]))
    kept = torch.load(checkpoint.last_model_path, weights_only=True)["callbacks"]
    for monitor in monitors:
        assert kept[monitor.state_key]["results"].keys() == monitor.results.keys()
    folders = {path.parent for path in tmp_path.rglob("*.safetensors")}
    assert len(folders) == 1
    found = load_explanations(folders.pop())
    assert found["sample_id"].tolist() == [0, 1, 2]
    assert {name for name in found if "/" in name} >= {"speed/map", "pairs/joint"}
    assert len([name for name in files(tmp_path) if name.endswith("samples.png")]) == 2


def test_two_monitors_must_not_log_under_one_name(trainer):
    twins = [ExplanationMonitor(only()), ExplanationMonitor({**metrics()})]
    with pytest.raises(ValueError, match="two ExplanationMonitors have a metric 'zero': give it another name"):
        trainer(callbacks=twins).validate(Classifier(), loader(), verbose=False)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_resuming_brings_the_last_results_back(trainer, tmp_path):
    first = ExplanationMonitor(metrics(), max_samples=FIRST)
    checkpoint = ModelCheckpoint(save_last=True, dirpath=tmp_path / "checkpoints")
    trainer(callbacks=[first, checkpoint], enable_checkpointing=True).fit(Classifier(), loader(), loader())

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            self.results = second.results

    second, look = ExplanationMonitor(metrics(), max_samples=FIRST), Look()
    module = Classifier()
    run = trainer(callbacks=[second, look], max_epochs=2)
    run.fit(module, loader(), loader(), ckpt_path=checkpoint.last_model_path)
    numbers = {name: {key: first.results[name][key] for key in NUMBERS[name]} for name in NUMBERS}
    assert look.results == numbers
    assert (tmp_path / "explanations" / "validate-epoch1-step12").is_dir()
    equal(second.results, expected(module))


class Data(LightningDataModule):
    def val_dataloader(self):
        return loader()


def test_built_by_the_lightning_cli(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cli"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning itself calls
    config = tmp_path / "config.yaml"
    config.write_text(f"""
model: {{width: 3}}
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: lightning_xai.ExplanationMonitor
      init_args:
        max_samples: {FIRST}
        stages: [validate, test]
        pictures: {{samples: 2, class_names: [a, b, c]}}
        metrics:
          zero:
            class_path: lightning_xai.metrics.Importance
            init_args:
              regions: {{class_path: lightning_xai.Windows, init_args: {{size: [3, 3]}}}}
              perturbation: {{class_path: lightning_xai.perturbation.kinds.Constant, init_args: {{c: 0.0}}}}
              score: probability
          speed:
            class_path: lightning_xai.metrics.Speed
            init_args:
              regions: {{class_path: lightning_xai.Windows, init_args: {{size: 3}}}}
              perturbations: {{class_path: lightning_xai.perturbation.kinds.Negative}}
              strengths: [0.2, 0.4]
""")
    cli = LightningCLI(
        Classifier,
        Data,
        run=False,
        args=["--config", str(config)],
        seed_everything_default=False,
        save_config_callback=None,
    )
    cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    (monitor,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, ExplanationMonitor)]
    assert monitor.pictures.class_names == ("a", "b", "c")
    equal(monitor.results, expected(cli.model, names=["zero", "speed"]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": {}}, ValueError, "metrics is empty"),
        ({"metrics": [1]}, TypeError, "metrics must be a dict by name"),
        ({"metrics": {"net": nn.Linear(1, 1)}}, TypeError, r"metrics\['net'\] must be one of lightning_xai.metrics"),
        ({"max_samples": 0}, ValueError, "max_samples must be at least 1, got 0"),
        ({"metrics": {"a/b": None}}, ValueError, "metric 'a/b' cannot name a file"),
        ({"metrics": {"samples": None}}, ValueError, "metric 'samples' needs another name"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs must be at least 1, got 0"),
        ({"stages": ("validat",)}, ValueError, "stage 'validat' is unknown. Did you mean 'validate'"),
        ({"stages": "predict"}, ValueError, "stage 'predict' is unknown"),
        ({"stages": 3}, TypeError, "stages must be a list of validate, test, got 3"),
        ({"target": "labels"}, ValueError, "target must be 'label', 'predicted' or a class index, got 'labels'"),
        ({"precision": "bf16"}, ValueError, "precision must be '32' or 'trainer', got 'bf16'"),
        ({"save_maps": 1}, TypeError, "save_maps must be True or False, got 1"),
    ],
)
def test_a_monitor_is_checked_when_it_is_built(options, error, message):
    with pytest.raises(error, match=message):
        ExplanationMonitor(**{"metrics": only(), **options})


# Failing


class Fails(Classifier):
    """Breaks on a whole pass, or while it is explained."""

    where = None

    def validation_step(self, batch, batch_idx):
        if self.where == "step" and batch_idx == 1:
            raise RuntimeError("the step fails")

    def forward(self, x):
        if self.where == "forward" and not bool(x.all()):
            raise RuntimeError("the forward fails")
        return self.net(x)


@pytest.mark.parametrize("where", ["step", "forward"])
@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_run_that_fails_leaves_nothing_behind(trainer, where, bar):
    module, monitor = Fails(), ExplanationMonitor(metrics(), max_samples=FIRST, on_error="raise")
    module.where = where
    with pytest.raises(RuntimeError, match=f"the {where} fails"):
        trainer(callbacks=[monitor, bar()], enable_progress_bar=True).validate(module, loader(), verbose=False)
    assert monitor._run is None
    assert tqdm_lines(None) == []
    assert "log" not in vars(module)
    module.where = None
    trainer(callbacks=[monitor]).validate(module, loader(), verbose=False)
    equal(monitor.results, expected(module))


@pytest.mark.parametrize("save_maps", [True, False])
def test_a_run_that_fails_keeps_the_maps_only_if_they_are_to_be_kept(trainer, tmp_path, save_maps):
    class Breaks(Classifier):
        def validation_step(self, batch, batch_idx):
            assert batch_idx == 0

    monitor = ExplanationMonitor(metrics(), max_samples=FIRST, save_maps=save_maps)
    with pytest.raises(AssertionError):
        trainer(callbacks=[monitor]).validate(Breaks(), loader(), verbose=False)
    assert files(tmp_path) == ({"explanations/validate-epoch0-step0/rank0-0.safetensors"} if save_maps else set())


@pytest.mark.parametrize(
    ("options", "metric", "message"),
    [
        ({}, Importance(Windows(99), kinds.Constant()), "size 99 of axis 0 is larger"),
        ({"target": 9}, Importance(Windows(2), kinds.Constant()), "target .9. is out of range"),
        ({"unpack": lambda batch: batch[0]}, Importance(Windows(2), kinds.Constant()), "unpack must return"),
    ],
)
def test_what_cannot_be_explained_is_said_before_any_training(trainer, options, metric, message):
    module, steps = Classifier(), []
    module.on_train_batch_start = lambda *_: steps.append(1)
    monitor = ExplanationMonitor({"metric": metric}, **options)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer(callbacks=[monitor], num_sanity_val_steps=1).fit(module, loader(), loader())
    assert steps == []


class MakesTensors(Classifier):
    """Makes a tensor of the default type in its forward."""

    def forward(self, x):
        return super().forward(x) @ torch.eye(3)


@pytest.mark.parametrize("precision", ["32", "trainer"])
@pytest.mark.parametrize("trains_in", ["bf16-true", "64-true"])
def test_a_model_in_another_precision_is_explained_in_that(trainer, trains_in, precision):
    monitor = ExplanationMonitor(only(), max_samples=2, precision=precision)
    trainer(callbacks=[monitor], precision=trains_in).validate(MakesTensors(), loader(), verbose=False)
    assert monitor.results["zero"]["samples"] == 2


def test_a_trainer_of_another_package_is_refused():
    other = type("Trainer", (), {"__module__": "pytorch_lightning.trainer.trainer"})()
    with pytest.raises(TypeError, match=r"of lightning.pytorch, not of pytorch_lightning: write `import lightning.pyt"):
        ExplanationMonitor(metrics()).setup(other, Classifier(), "fit")


def test_a_wrong_number_of_class_names_is_refused_before_training(trainer):
    monitor = ExplanationMonitor(only(), pictures=Pictures(class_names=["cat", "dog"]), max_samples=1)
    words = r"Pictures\(class_names=...\) has 2 names, and the model's output 3 classes: give one name per class"
    with pytest.raises(ValueError, match=words):
        trainer(callbacks=[monitor]).fit(Classifier(), loader(), loader())
    with pytest.raises(ValueError, match=words):
        explain(Classifier(), loader(), only(), max_samples=1, pictures=monitor.pictures, progress=False)
    with pytest.warns(UserWarning, match=words):  # where nothing was checked, the names cost no explanation
        trainer(callbacks=[monitor], num_sanity_val_steps=0).fit(Classifier(), loader(), loader())
    assert monitor.results["zero"]["samples"] == 1
