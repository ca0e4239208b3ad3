"""Who may import whom: the layer table of the architecture, read off the source."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_xai"

BASE = {
    "_checks",
    "_compiled",
    "_files",
    "_guard",
    "_lazy",
    "_state",
    "attribution",
    "axes",
    "batching",
    "inputs",
    "network_facts",
    "operations",
    "prefix",
    "present",
    "regions",
    "resizing",
    "results",
    "rows",
    "scores",
    "sites",
}
CHAPTERS = {"perturbation", "relevance", "units", "evaluation"}

# From the bottom up: a row may import what stands beside it, itself, and whatever the rows below it may.
# `typing_extensions` comes with torch, `tqdm` with Lightning.
ROWS = [
    (BASE, {"torch", "numpy", "typing_extensions"}),
    (CHAPTERS, {"sklearn"}),
    ({"figures"}, {"matplotlib"}),
    ({"metrics"}, {"torchmetrics"}),
    ({"callbacks"}, {"lightning", "safetensors", "tqdm"}),
    ({"app"}, {"hydra", "omegaconf", "rich", "mlxtend", "jinja2", "latex2mathml", "markupsafe", "matplotlib"}),
]
NEIGHBOURS = {"units": {"perturbation"}, "evaluation": {"perturbation"}}


def allowed(room):
    """What the modules of a room may import: names below `lightning_xai`, and other packages."""
    ours, others = set(), set(sys.stdlib_module_names)
    for rooms, packages in ROWS:
        others |= packages
        if room in rooms:
            return ours | (NEIGHBOURS.get(room, set()) | {room} if rooms == CHAPTERS else rooms), others
        ours |= rooms
    raise KeyError(f"lightning_xai/{room} stands in no row of the layer table")


def imports(source, package=()):
    """Every name that a source imports, wherever it does; relative ones from the `package` it stands in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            near = package[: len(package) - node.level + 1] if node.level else ()
            home = ".".join((*near, *([node.module] if node.module else [])))
            yield from (f"{home}.{alias.name}" for alias in node.names)


def violations(room, source, package=()):
    """The imports of a source of a room that the table forbids."""
    ours, others = allowed(room)
    found = []
    for name in imports(source, package):
        top, *inner = name.split(".")
        known = inner and inner[0] in ours if top == "lightning_xai" else top in others
        if not known:
            found.append(name)
    return found


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_keeps_to_the_table(path):
    package = path.relative_to(PACKAGE.parent).parent.parts
    assert violations(room_of(path), path.read_text(), package) == []


def test_the_package_itself_imports_its_own_names_and_the_standard_library():
    tops = {name.split(".")[0] for name in imports((PACKAGE / "__init__.py").read_text(), ("lightning_xai",))}
    assert tops <= sys.stdlib_module_names | {"lightning_xai"}


@pytest.mark.parametrize(
    ("room", "source", "forbidden"),
    [
        ("_guard", "import lightning", "lightning"),
        ("scores", "from torchmetrics import Metric", "torchmetrics.Metric"),
        ("scores", "from lightning_xai.perturbation import kinds", "lightning_xai.perturbation.kinds"),
        ("attribution", "from lightning_xai import Windows", "lightning_xai.Windows"),
        ("attribution", "import lightning_xai", "lightning_xai"),
        ("perturbation", "def late():\n    import matplotlib.pyplot as plt", "matplotlib.pyplot"),
        ("perturbation", "if TYPE_CHECKING:\n    from hydra.utils import instantiate", "hydra.utils.instantiate"),
        ("perturbation", "from lightning_xai.relevance import lrp", "lightning_xai.relevance.lrp"),
        ("perturbation", "from ..figures import preview", "lightning_xai.figures.preview"),
        ("relevance", "from lightning_xai.units.groups import x", "lightning_xai.units.groups.x"),
        ("figures", "from lightning_xai.metrics import Importance", "lightning_xai.metrics.Importance"),
        ("metrics", "from lightning.pytorch import Trainer", "lightning.pytorch.Trainer"),
        ("callbacks", "import hydra", "hydra"),
        ("app", "import pandas", "pandas"),
    ],
)
def test_a_forbidden_import_is_found(room, source, forbidden):
    package = ("lightning_xai", room) if room in CHAPTERS else ("lightning_xai",)
    assert violations(room, source, package) == [forbidden]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("_guard", "import random\nimport torch.nn as nn"),
        ("scores", "from lightning_xai._checks import unknown"),
        ("perturbation", "from .kinds import Blur\nfrom ..scores import Score\nfrom .. import scores"),
        ("units", "from lightning_xai.perturbation.kinds import Blur"),
        ("metrics", "from lightning_xai.figures import preview\nimport matplotlib"),
        ("app", "import hydra, lightning, rich\nfrom lightning_xai.callbacks import monitor"),
    ],
)
def test_an_allowed_import_is_not(room, source):
    package = ("lightning_xai", room) if room in CHAPTERS else ("lightning_xai",)
    assert violations(room, source, package) == []


def test_a_new_room_needs_a_row():
    with pytest.raises(KeyError, match="lightning_xai/helpers stands in no row"):
        violations("helpers", "import torch")
