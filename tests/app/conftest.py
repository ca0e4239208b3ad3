"""The command line, run inside this process."""

import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
from hydra import compose, initialize_config_module

from lightning_xai.app.main import main


@pytest.fixture
def composed(tmp_path):
    """A config composed of overrides."""

    def with_overrides(*overrides):
        with initialize_config_module("lightning_xai.conf", version_base="1.3"):
            return compose("config", [f"folder={tmp_path}", *overrides])

    return with_overrides


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, but for a user's own module."""
    shutil.copy(Path(__file__).with_name("my_module.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
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
