"""Which words does a text classifier read?

A small transformer learns to tell from which library a sentence comes, out of the docstrings that PyTorch and
scikit-learn ship. Its batches are those of the usual text models: ids, a mask and labels. Nothing has to be unpacked:
ids are explained at their embedding, padding is no feature, and the picture has words instead of numbers.

``python examples/text.py [folder]`` prints the words that speak most for each library, and writes ``samples.png``.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import sklearn
import torch
from sklearn.utils.discovery import all_estimators
from torch import Tensor, nn

from lightning_xai import Inputs, Pictures, explain
from lightning_xai.metrics import Importance, Relevance
from lightning_xai.perturbation import importance, kinds
from lightning_xai.relevance import LRP

LIBRARIES = ("PyTorch", "scikit-learn")
LENGTH, WORDS = 20, 1200
PAD, OTHER = "", "?"


def sentences() -> list[tuple[list[str], int]]:
    """The words of sentences of the two libraries' docstrings, and whose they are."""
    objects = [found for found in vars(nn).values() if inspect.isclass(found)], [kind for _, kind in all_estimators()]
    names = {"torch", "pytorch", "nn", "sklearn", "scikit", "learn", sklearn.__name__}
    found = set()
    for label, documented in enumerate(objects):
        for text in filter(None, map(inspect.getdoc, documented)):
            for sentence in re.split(r"\n\s*\n|(?<=\.)\s", text):
                words = [word for word in re.findall(r"[a-z]{2,}", sentence.lower()) if word not in names]
                if 5 <= len(words) <= LENGTH and len(words) > len(sentence.split()) / 2:
                    found.add((tuple(words), label))
    ordered = sorted(found)
    order = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0)).tolist()
    return [(list(ordered[index][0]), ordered[index][1]) for index in order]


class Reader(nn.Module):
    """One transformer block over embeddings, and the mean over what is not padding."""

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(words, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.2, batch_first=True, norm_first=True)
        self.classifier = nn.Linear(width, len(LIBRARIES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [N, 2] of ids [N, T]."""
        read = self.block(self.embeddings(input_ids), src_key_padding_mask=attention_mask == 0)
        present = attention_mask.unsqueeze(2).to(read)
        return self.classifier((read * present).sum(1) / present.sum(1))


def batch_of(samples: list[tuple[list[str], int]], vocabulary: list[str]) -> dict[str, Tensor]:
    """A batch as tokenizers make them."""
    number = {word: index for index, word in enumerate(vocabulary)}
    ids = torch.zeros(len(samples), LENGTH, dtype=torch.long)
    for row, (words, _) in enumerate(samples):
        ids[row, : len(words)] = torch.tensor([number.get(word, 1) for word in words])
    labels = torch.tensor([label for _, label in samples])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def train(model: nn.Module, batch: dict[str, Tensor], steps: int = 400) -> None:
    """Train on random draws of 64 sentences."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(batch["labels"]), (64,))
        optimizer.zero_grad()
        logits = model(batch["input_ids"][rows], batch["attention_mask"][rows])
        nn.functional.cross_entropy(logits, batch["labels"][rows]).backward()
        optimizer.step()
    model.eval()


def main(folder: Path = Path()) -> dict[str, list[str]]:
    """Train, explain, print, draw; the strongest words of each library."""
    torch.manual_seed(0)
    samples = sentences()
    counts = Counter(word for words, _ in samples for word in words)
    vocabulary = [PAD, OTHER, *(word for word, _ in counts.most_common(WORDS))]
    held_out = len(samples) // 5
    model = Reader(len(vocabulary))
    train(model, batch_of(samples[held_out:], vocabulary))

    test = batch_of(samples[:held_out], vocabulary)
    inputs = Inputs(input_ids=test["input_ids"], attention_mask=test["attention_mask"])
    with torch.no_grad():
        right = (model(test["input_ids"], test["attention_mask"]).argmax(1) == test["labels"]).double().mean()
    print(f"{len(samples)} sentences, {float(right):.0%} of {held_out} new ones told apart")

    # Every word in turn becomes padding; where there is none the importance is NaN.
    absent = kinds.ChannelVector.of(model.embeddings, 0)
    local = importance(model, inputs, test["labels"], regions=1, perturbation=absent, score="margin")
    strongest = {}
    for label, library in enumerate(LIBRARIES):
        chosen = (test["labels"] == label).unsqueeze(1) & local.isfinite()
        total, count = torch.zeros(len(vocabulary)), torch.zeros(len(vocabulary))
        total.index_add_(0, test["input_ids"][chosen], local[chosen])
        count.index_add_(0, test["input_ids"][chosen], torch.ones(int(chosen.sum())))
        mean = torch.where(count >= 5, total / count, float("-inf"))
        strongest[library] = [vocabulary[index] for index in mean.topk(8).indices]
        print(f"{library:13s} {', '.join(strongest[library])}")

    # Of each library in turn.
    order = torch.cat([(test["labels"] == label).nonzero()[:32] for label in range(2)], 1).flatten()
    shown = {name: part[order] for name, part in test.items()}
    pictures = Pictures(samples=6, class_names=LIBRARIES, words=lambda ids: [vocabulary[index] for index in ids])
    metrics = {"importance": Importance(1, absent, score="margin"), "relevance": Relevance(LRP("attn_lrp"))}
    explain(model, [shown], metrics, folder=folder / "text", pictures=pictures, progress=False)
    shutil.copy(folder / "text" / "figures" / "samples.png", folder / "text.png")
    return strongest


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
