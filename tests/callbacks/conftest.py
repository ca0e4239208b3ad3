"""What the tests of the callback share."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

MODULES = [import_module(f"lightning_xai.callbacks.{name}") for name in ("explain", "monitor")]

sys.path.insert(0, str(Path(__file__).parent))  # for `subjects`, which spawned processes must be able to import too


@pytest.fixture
def pictures():
    """Asks for pictures to be drawn, as they are for users; most tests here do without, since it takes time."""


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        for module in MODULES:
            monkeypatch.setattr(module, "draw", lambda *_: iter(()))


@pytest.fixture
def trainer(tmp_path):
    """Makes a Trainer that writes under ``tmp_path`` and otherwise keeps quiet."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False, **quiet}
    return lambda **options: Trainer(**{**usual, "default_root_dir": tmp_path, **options})
