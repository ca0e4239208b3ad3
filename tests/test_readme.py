"""The README's snippets run as they stand, and its promises point at things that are there."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*smaller than the logging interval")
def test_the_ten_lines_explain_a_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model": DemoCNN(width=2), "data": MNISTSample(limit=8)}
    snippet = SNIPPETS[0].replace("max_epochs=3", "max_epochs=1, enable_progress_bar=False")
    exec(snippet, names)
    assert names["monitor"].results["synergy"]["joint"].shape == (49, 49)


def test_the_functions_explain_without_a_trainer():
    inputs, target = torch.rand(2, 1, 28, 28), torch.tensor([3, 4])
    names = {"model": DemoCNN(width=2), "inputs": inputs, "target": target}
    names["dataloader"] = DataLoader(TensorDataset(inputs, target))
    exec(SNIPPETS[1], names)
    assert names["local"].shape == (2, 49)
    torch.testing.assert_close(
        names["results"]["importance"]["map"][::4, ::4].flatten(), names["local"].mean(0), check_dtype=False
    )


def test_what_it_links_to_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
