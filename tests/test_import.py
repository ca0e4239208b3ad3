"""Importing is cheap: the package by itself loads nothing heavy, chapter 1 nothing but torch."""

import importlib
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "matplotlib", "torchmetrics", "lightning", "pytorch_lightning", "hydra", "safetensors"}
COMPILER = "torch._dynamo.eval_frame"  # seconds to import, and used by compiled models only


def loaded_by(code, watched):
    """The modules, of those watched, that a fresh interpreter has loaded after running the code."""
    code = f"{code}\nimport sys\nprint(*sys.modules.keys() & {watched!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split("\n")[-2].split())


def test_the_package_loads_nothing_heavy():
    assert loaded_by("import lightning_xai; dir(lightning_xai)", HEAVY) == set()


def test_what_is_loaded_is_seen():
    assert loaded_by("import lightning_xai, numpy", HEAVY) == {"numpy"}


def test_explaining_loads_torch_alone_and_not_its_compiler():
    code = """
import torch
from lightning_xai import Windows
from lightning_xai.perturbation import importance, kinds
importance(torch.nn.Linear(2, 2), torch.ones(1, 2), 0, regions=Windows(1), perturbation=kinds.Constant())
"""
    assert loaded_by(code, HEAVY | {COMPILER}) == {"torch", "numpy"}


def test_an_unknown_name_is_an_attribute_error():
    import lightning_xai

    with pytest.raises(AttributeError, match="module 'lightning_xai' has no attribute 'windows'"):
        lightning_xai.windows  # noqa: B018


def test_every_public_name_can_be_had():
    import lightning_xai

    for name in lightning_xai.__all__:
        assert getattr(lightning_xai, name).__name__ == name
        assert name in dir(lightning_xai)


LAZY = [
    "lightning_xai.perturbation",
    "lightning_xai.perturbation.kinds",
    "lightning_xai.relevance",
    "lightning_xai.units",
]
LAZY += ["lightning_xai.metrics", "lightning_xai.figures", "lightning_xai.callbacks"]
LAZY += ["lightning_xai.axes", "lightning_xai.operations"]


@pytest.mark.parametrize("package", [*LAZY, "lightning_xai.units.maximization"])
def test_a_chapter_loads_nothing_before_a_name_is_used_and_then_has_every_name(package):
    assert loaded_by(f"import {package}", {"torch", f"{package}.base", f"{package}.importance"}) == set()
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__name__.split(".")[-1] == name
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_a_module_does_not_hide_the_function_of_the_same_name():
    code = (
        "import lightning_xai.perturbation.speed\nfrom lightning_xai.perturbation import speed\nassert callable(speed)"
    )
    assert "lightning_xai.perturbation.speed" in loaded_by(code, {"lightning_xai.perturbation.speed"})


def test_the_command_loads_nothing_heavy_before_a_run():
    code = "import sys\nfrom lightning_xai.app.main import main\nsys.argv[1:] = ['--cfg', 'job']\nmain()"
    assert loaded_by(code, HEAVY - {"hydra"}) == set()
