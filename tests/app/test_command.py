"""The command line as users start it: as a process of its own, or several."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf

from lightning_xai import load_explanations

CHECKOUT = Path(__file__).parents[2]
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
SCRIPT = Path(sys.executable).with_name("lightning-xai")
QUANTITIES = ("importance", "speed", "synergy", "relevance")
FEW = ("+data.limit=7", "monitor.max_samples=7")


def start(*command, folder, **environment):
    """Runs a command in a folder; it does not see that it is started from a test."""
    outside = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return subprocess.run(
        command, cwd=folder, env=outside | environment, capture_output=True, text=True, timeout=240, check=False
    )


def numbers(run):
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which the command was run without an argument, and what it printed."""
    folder = tmp_path_factory.mktemp("default")
    ended = start(SCRIPT, "hydra.run.dir=run", folder=folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended


def test_the_default_run_says_what_it_does_and_nothing_else(trained):
    _, ended = trained
    assert ended.stderr == ""
    first, *_ = ended.stdout.splitlines()
    assert first.startswith(
        "Training DemoCNN, then explaining up to 64 samples by importance, speed, synergy, relevance"
    )
    assert "Epoch 2/2" in ended.stdout
    assert "│ importance   │ samples  " in ended.stdout
    assert "  pictures: run/figures\n" in ended.stdout


def test_the_default_run_writes_what_it_found(trained):
    run = trained[0] / "run"
    found = numbers(run)
    assert found["network"]["val/acc"] > 0.9
    assert [found[metric]["samples"] for metric in QUANTITIES] == [64] * len(QUANTITIES)
    assert found["importance"]["gini"] > 0.5
    maps = load_explanations(run / "explanations" / "validate-epoch2-step189")
    assert maps["importance/map"].shape == (64, 28, 28)
    assert {path.name for path in (run / "figures" / "validate-epoch2-step189").iterdir()} >= {
        "importance.png",
        "speed.png",
        "synergy.png",
        "relevance.png",
        "relevance.by_feature.csv",
        "samples.png",
    }
    assert (run / "last.ckpt").is_file()
    config = OmegaConf.load(run / "config.yaml")
    assert (config.trainer.max_epochs, config.regions.size) == (3, 4)


def test_the_csv_logger_has_the_same_numbers(trained):
    run = trained[0] / "run"
    with (run / "metrics.csv").open() as file:
        logged = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    for metric in QUANTITIES:
        for key, number in numbers(run)[metric].items():
            assert logged[f"val/{metric}/{key}"] == pytest.approx(number, rel=1e-6)


def test_two_processes_find_what_one_does(trained, command, here, monkeypatch):
    folder, _ = trained
    choices = (
        "perturbation=blur",
        "perturbation.sigma=2",
        "regions.size=[4,4]",
        f"checkpoint={folder}/run/last.ckpt",
        *FEW,
    )
    choices += ("metrics.synergy.anchor=24",)  # all pairs would take a minute
    two = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "hydra.run.dir=two")
    both = start(SCRIPT, *choices, *two, folder=here)
    assert both.returncode == 0, both.stderr
    monkeypatch.setattr("lightning_xai.callbacks.monitor.draw", lambda *_: {})  # the numbers count here
    assert command(*choices, "hydra.run.dir=one")[0] == 0
    assert both.stdout.count("What the network looked at") == 1
    expected, found = numbers(here / "one"), numbers(here / "two")
    assert expected.keys() == found.keys()
    for metric in QUANTITIES:
        assert found[metric]["samples"] == 7
        assert found[metric] == pytest.approx(expected[metric], rel=1e-6)
    shards = sorted((here / "two" / "explanations").rglob("*.safetensors"))
    assert {path.name[:5] for path in shards} == {"rank0", "rank1"}
    assert load_explanations(shards[0].parent)["sample_id"].tolist() == list(range(7))


def test_a_multirun_explains_a_trained_network_in_several_ways(trained, command, here):
    choices = ("perturbation=zero,blur", f"checkpoint={trained[0]}/run/last.ckpt", "metrics=importance", *FEW)
    code, out, err = command("--multirun", *choices, "hydra.sweep.dir=sweep")
    assert (code, err) == (0, "")
    assert "Comparison" in out
    with (here / "sweep" / "comparison.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["result", "0: perturbation=zero", "1: perturbation=blur"]
    found = {name: values for name, *values in rows}
    assert found["importance/samples"] == ["7", "7"]
    assert len(set(found["importance/mean_abs"])) == 2


def test_a_multirun_lays_rules_side_by_side(trained, command, here):
    rules = ("rule=epsilon_plus,epsilon_gamma_box", "metrics=relevance", f"checkpoint={trained[0]}/run/last.ckpt")
    code, _, err = command("--multirun", *rules, *FEW, "hydra.sweep.dir=rules")
    assert (code, err) == (0, "")
    picture = here / "rules" / "comparison.relevance.png"
    height, width, _ = imread(picture).shape
    assert width > height * 0.45  # an input and two maps across, six samples down
    with (here / "rules" / "comparison.csv").open() as file:
        found = {name: values for name, *values in csv.reader(file)}
    assert found["result"] == ["0: rule=epsilon_plus", "1: rule=epsilon_gamma_box"]
    assert len(set(found["relevance/entropy"])) == 2


def test_the_rule_of_every_operation_is_shown_before_anything_runs(command, here):
    code, out, err = command("show_rules=true", "rule=epsilon_plus_flat")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["module", "operation", "rule"]
    assert lines[1].split()[:3] == ["net.0", "conv2d", "Flat()"]
    assert lines[-1].split()[:2] == ["net.7", "linear"]
    assert not (here / "run" / "results.json").exists()


def test_own_networks_and_data_are_found_in_the_current_folder(command, here):
    own = ("model._target_=my_module.Net", "+model.hidden=8", "data._target_=my_module.Data", "metrics=speed")
    code, out, err = command(*own)
    assert (code, err) == (0, "")
    assert "Training Net" in out
    assert numbers(here / "run")["speed"]["samples"] == 9


def test_a_wrong_name_is_one_message(tmp_path):
    ended = start(sys.executable, "-m", "lightning_xai.app.main", "perturbation=blr", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("lightning-xai: perturbation 'blr' is unknown. Did you mean 'blur'?")
    assert ended.stderr.count("\n") == 1


OWN_APP = """
import hydra, lightning_xai
from importlib.resources import files
from hydra.utils import instantiate

@hydra.main(version_base="1.3", config_path=".", config_name="mine")
def main(config):
    print(lightning_xai.__file__, files("lightning_xai.conf").joinpath("config.yaml"))
    print(instantiate(config.regions), config.score._target_)

main()
"""
MINE = """
defaults: [{regions: windows}, {score: margin}, _self_]
regions: {size: 3}
hydra: {searchpath: ["pkg://lightning_xai.conf"]}
"""


@pytest.mark.parametrize("conf", ["conf", "lightning_xai/conf"], ids=["checkout", "wheel"])
def test_own_apps_find_the_configs_wherever_they_lie(conf, tmp_path):
    installed, mine = tmp_path / "installed", tmp_path / "mine"
    shutil.copytree(CHECKOUT / "lightning_xai", installed / "lightning_xai")
    shutil.copytree(CHECKOUT / "conf", installed / conf)
    mine.mkdir()
    (mine / "app.py").write_text(OWN_APP)
    (mine / "mine.yaml").write_text(MINE)
    ended = start(sys.executable, "app.py", folder=mine, PYTHONPATH=str(installed))
    assert (ended.returncode, ended.stderr) == (0, "")
    package, configs, regions = ended.stdout.split(maxsplit=2)
    assert package == str(installed / "lightning_xai" / "__init__.py")
    assert configs == str(installed / conf / "config.yaml")
    assert regions.startswith("Windows(size=3, stride=3")
    assert regions.endswith("lightning_xai.scores.Margin\n")
