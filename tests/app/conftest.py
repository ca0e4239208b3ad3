"""The command line, run inside this process."""

import json
import os
import shutil
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig

from lightning_xai import Pictures, Windows, explain
from lightning_xai.app.attributions import side_by_side
from lightning_xai.app.main import main
from lightning_xai.app.report import write_report
from lightning_xai.metrics import Importance, Synergy
from lightning_xai.perturbation import kinds


@pytest.fixture
def composed(tmp_path):
    """A config composed of overrides."""

    def with_overrides(*overrides):
        config = deepcopy(compose_once(*overrides))
        config.folder = str(tmp_path)
        return config

    return with_overrides


@cache
def compose_once(*overrides):
    """Composing takes longer than what most tests do with a config, and many want the same."""
    with initialize_config_module("lightning_xai.conf", version_base="1.3"):
        return side_by_side(compose("config", ["folder=run", *overrides]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, but for a user's own module."""
    shutil.copy(Path(__file__).with_name("my_module.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    # A command that ran in this process before has left its config, whose folder relative paths would start from.
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with mock.patch.dict(os.environ):
        yield tmp_path


@pytest.fixture
def command(here, monkeypatch, capsys):
    """Runs the command line in this process: arguments -> exit code, what it printed, what it complained about."""

    def with_arguments(*arguments):
        quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
        flags = [argument for argument in arguments if argument.startswith("--")]
        rest = [argument for argument in arguments if argument not in flags]
        monkeypatch.setattr(sys, "argv", ["lightning-xai", *flags, "hydra.run.dir=run", *quiet, *rest])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # what the interpreter does at its end
            return 1, out, f"{err}{code}\n"
        return code, out, err

    return with_arguments


@pytest.fixture
def a_run(tmp_path):
    """Makes the files of a run and its report."""

    def make(
        shape,
        folder=tmp_path,
        stages=("validate-epoch2-step9",),
        names=("a", "b", "c"),
        save_maps=True,
        outputs=3,
        labels=(0, 1, 2, 0, 1, 2, 0),
        score="probability",
        engine="auto",
        **options,
    ):
        """The files of a run over 7 samples of a shape, and what the report is told."""
        torch.manual_seed(0)
        cells = torch.Size(shape).numel()
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(cells, outputs)).eval()
        data = [(torch.randn(7, *shape), torch.tensor(labels))]
        metrics = {
            "importance": Importance(Windows(2), kinds.Constant(0.0), score=score, engine=engine),
            "pairs": Synergy(Windows(2), kinds.Constant(0.0), score=score, engine=engine),
        }
        pictures = Pictures(class_names=names if outputs == len(names) else None)
        for stage in stages:
            place = folder / "once"
            found = explain(model, data, metrics, folder=place, pictures=pictures, progress=False, **options)
            for part in ("figures", "explanations"):
                (folder / part).mkdir(exist_ok=True)
                if part == "figures" or save_maps:
                    (place / part).rename(folder / part / stage)
        numbers = {
            name: {key: value for key, value in result.items() if not isinstance(value, torch.Tensor)}
            for name, result in found.items()
        }
        (folder / "results.json").write_text(json.dumps(numbers))
        (folder / "config.yaml").write_text("seed: 1\nscore: <b>probability</b>\n")
        report = write_report(folder, metrics, "What it looked at", pictures)
        return SimpleNamespace(folder=folder, numbers=numbers, source=report.read_text(encoding="utf-8"))

    return make
