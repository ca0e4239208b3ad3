"""The README's snippets run as they stand, and its promises point at things that are there."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN
from lightning_xai.relevance import LRP

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


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        return self.head((self.embeddings(input_ids) * attention_mask.unsqueeze(2)).sum(1))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, image, table):
        return self.linear(table) + image.mean((1, 2, 3)).unsqueeze(1)


def test_inputs_say_what_is_explained_and_where():
    layers = {"layer3": nn.Conv2d(1, 18, 3), "relu": nn.ReLU(), "flat": nn.Flatten(), "head": nn.LazyLinear(5)}
    names = {"model": nn.Sequential(OrderedDict(layers)), "bert": Bert(), "network": Both(), "LRP": LRP}
    names |= {"image": torch.rand(2, 1, 4, 4), "table": torch.rand(2, 3), "inputs": torch.rand(2, 1, 8, 8)}
    names |= {"ids": torch.tensor([[1, 2], [3, 0]]), "mask": torch.tensor([[1, 1], [1, 0]]), "target": 1}
    names["model"](names["inputs"])
    exec(SNIPPETS[2], names)
    assert set(names["maps"]) == {0, 1}
    assert names["hidden"].shape == (2, 18, 6, 6)
    assert names["neuron"].shape == (2, 1, 8, 8)


def test_what_it_links_to_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
