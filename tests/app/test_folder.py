"""The folder of a run belongs to it alone, and what it holds starts another run elsewhere."""

import math
import pickle

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_xai.app import loggers, main
from lightning_xai.app.errors import build
from lightning_xai.app.folder import WholeCheckpointIO, check_unused, config_to_run_again
from lightning_xai.app.run import objective_of, saved_arguments

TINY = ["model._target_=my_module.Net", "data._target_=my_module.Data", "trainer.max_epochs=0", "metrics=importance"]
TINY += ["regions.size=4", "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("lightning_xai.callbacks.monitor.draw", lambda *_: {})


def test_a_saved_config_runs_again_in_a_folder_of_its_own(command, here):
    assert command(*TINY, "hydra.run.dir=first", "seed=7")[0] == 0  # explains the network as it is built
    first = {path: path.read_bytes() for path in (here / "first").rglob("*") if path.is_file()}
    assert command("--config-path=first", "--config-name=config", "hydra.run.dir=again")[0] == 0
    assert {path: path.read_bytes() for path in first} == first
    for name in ("results.json", "config.yaml"):
        assert (here / "again" / name).read_bytes() == first[here / "first" / name]
    assert (here / "again" / "metrics.csv").exists()  # what refers to the folder goes with it
    assert "first holds a run already: name another folder" in command(*TINY, "hydra.run.dir=first", "seed=8")[2]
    assert {path: path.read_bytes() for path in first} == first  # Hydra has not written there either


def test_a_saved_config_is_resolved_but_for_its_folder(composed):
    saved = OmegaConf.create(config_to_run_again(composed("score=margin")))
    assert OmegaConf.to_container(saved.logger)["save_dir"] == "${folder}"
    assert OmegaConf.to_container(saved, resolve=False)["folder"] == "${hydra:runtime.output_dir}"
    assert saved.hydra.searchpath == ["pkg://lightning_xai.conf"]


@pytest.mark.parametrize("holds", ["config.yaml", "0/config.yaml"])
def test_only_the_first_process_of_a_new_job_refuses_a_used_folder(holds, tmp_path, monkeypatch):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    (tmp_path / "error.txt").touch()
    check_unused(tmp_path)  # what failed before it began may be tried again
    (tmp_path / holds).parent.mkdir(exist_ok=True)
    (tmp_path / holds).touch()
    with pytest.raises(ValueError, match="holds a run already"):
        check_unused(tmp_path)
    with monkeypatch.context() as other:
        other.setenv("LOCAL_RANK", "1")
        check_unused(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    check_unused(tmp_path)


def test_a_checkpoint_that_is_cut_short_leaves_the_former_one(tmp_path, monkeypatch):
    path, files = tmp_path / "last.ckpt", WholeCheckpointIO()
    files.save_checkpoint({"epoch": 1}, path)

    def fails(self, checkpoint, path, storage_options=None):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("lightning.pytorch.plugins.TorchCheckpointIO.save_checkpoint", fails)
    with pytest.raises(OSError, match="the disk is full"):
        files.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_objective_is_a_number_of_the_run():
    numbers = {"network": {"val/acc": 0.5}, "importance": {"samples": 4, "gini": math.nan}}
    ask = lambda name: objective_of(OmegaConf.create({"objective": name}), numbers)  # noqa: E731
    assert (ask(None), ask("network/val/acc"), ask("importance/samples")) == (None, 0.5, 4.0)
    assert math.isnan(ask("importance/gini"))
    with pytest.raises(ValueError, match="objective 'importance/none' is unknown"):
        ask("importance/none")


def test_a_checkpoint_brings_the_arguments_that_are_not_given(tmp_path):
    entry = OmegaConf.create({"_target_": "lightning_xai.app.models.DemoCNN", "lr": 0.5})
    saved = {"width": 3, "lr": 0.1, "gone": 1}
    torch.save({"hyper_parameters": saved, "state_dict": {}}, tmp_path / "last.ckpt")
    assert saved_arguments(entry, str(tmp_path / "last.ckpt")) == {"width": 3}
    assert saved_arguments(entry, None) == {}


def test_what_a_checkpoint_names_is_not_called(tmp_path, capsys):
    entry = OmegaConf.create({"_target_": "lightning_xai.app.models.DemoCNN"})
    saved = {"lr": {"_target_": "builtins.print", "_args_": ["called"]}}
    torch.save({"hyper_parameters": saved, "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(TypeError, match=r"lr must be a number, got .*builtins\.print"):
        build("model", entry, **saved_arguments(entry, str(tmp_path / "evil.ckpt")))
    assert capsys.readouterr().out == ""


class Evil:
    def __reduce__(self):
        return print, ("called",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"hyper_parameters": {}, "state_dict": {"weight": Evil()}}, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        saved_arguments(OmegaConf.create({"_target_": "lightning_xai.app.models.DemoCNN"}), str(tmp_path / "evil.ckpt"))
    assert capsys.readouterr().out == ""


def test_an_interrupted_run_says_what_it_has_written(command, here, monkeypatch):
    def interrupted(config):
        (here / "run" / "last.ckpt").touch()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904, as Lightning does

    monkeypatch.setattr("lightning_xai.app.run.run", interrupted)
    message = (
        "interrupted. run holds last.ckpt. The network of the last whole epoch is explained by checkpoint=run/last"
    )
    assert command() == (1, "", f"lightning-xai: {message}.ckpt.\n")


def test_the_version_is_that_of_the_package(command):
    code, out, _ = command("--version")
    assert (code, out.split()[0]) == (0, "lightning-xai")


@pytest.mark.parametrize("option", ["hydra.run.dir=file/in/the/way", "folder=file/in/the/way"])
def test_a_folder_that_cannot_be_made_is_one_message(option, command, here):
    (here / "file").touch()
    code, _, err = command(*TINY, option)
    assert code == 1
    assert "Traceback" not in err
    assert "ame another folder" in err
    assert "hydra.run.dir=..." in err


@pytest.mark.parametrize(("sweeper", "told"), [("OptunaSweeper", None), ("BasicSweeper", math.nan)])
def test_a_sweeper_of_optuna_is_told_nothing_where_there_is_no_number(monkeypatch, sweeper, told):
    config = OmegaConf.create({"sweeper": {"_target_": f"hydra_plugins.{sweeper.lower()}.{sweeper}"}})
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    assert main._to_sweeper(0.5) == 0.5
    assert main._to_sweeper(None) is None
    assert main._to_sweeper(math.nan) is told


def test_paths_are_from_where_the_command_was_given(command, here):
    (here / "given.ckpt").write_text("no checkpoint")
    said = command("hydra.job.chdir=true", "checkpoint=given.ckpt", "folder=own")[2]
    assert said == (
        "lightning-xai: checkpoint=given.ckpt is not a checkpoint: name a file that Lightning has saved.\n"
        "The whole trace is in own/error.txt.\n"
    )
    assert (here / "own" / "error.txt").is_file()


def test_a_shell_is_told_how_to_go_on(command, monkeypatch):
    line = "lightning-xai perturbation=bl"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert command("--shell-completion", "query=bash")[:2] == (0, "perturbation=blur\n")


def test_mlflow_has_a_database_in_the_folder_unless_a_server_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(loggers, "MLFlowLogger", lambda _experiment, **arguments: arguments)
    assert loggers.mlflow_logger(str(tmp_path / "run")) == {
        "tracking_uri": f"sqlite:///{tmp_path}/run/mlflow.db",
        "artifact_location": f"file://{tmp_path}/run/mlflow",
    }
    named = {"tracking_uri": "http://server"}
    assert loggers.mlflow_logger(str(tmp_path), **named) == named
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert loggers.mlflow_logger(str(tmp_path)) == named
