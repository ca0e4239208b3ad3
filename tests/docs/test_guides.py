"""The Python of the guides runs as it stands, page by page."""

import re
from pathlib import Path

import pytest
import torch

from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = {path.stem: re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) for path in GUIDES.glob("*.md")}
PAGES = {page: snippets for page, snippets in PAGES.items() if snippets}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_guide_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {
        "__name__": f"guide_{page}",
        "model": DemoCNN(width=2),
        "inputs": torch.rand(4, 1, 28, 28),
        "target": torch.tensor([3, 1, 4, 1]),
        "data": MNISTSample(limit=8),
    }
    for snippet in PAGES[page]:
        exec(compile(snippet, f"docs/guides/{page}.md", "exec"), names)


def test_there_are_guides():
    assert {"start", "trainer", "perturbations", "rules", "reactivation", "own", "scale", "coming-from"} <= set(PAGES)


def test_files_that_the_guides_name_are_there():
    text = (GUIDES / "benchmarks.md").read_text()
    named = re.findall(r"python (tests/\S+?\.py)", text)
    assert named
    assert [name for name in named if not (GUIDES.parents[1] / name).exists()] == []
