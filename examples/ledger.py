"""What the conservation ledger tells.

Relevance that is shared out should arrive: the map should sum to the score. It rarely does, and the ledger says why:
how much each layer received, what biases absorbed, what stabilisers absorbed, and what a rule itself created or lost.
Four composites on one small network and 64 digits.

``python examples/ledger.py [folder]`` prints the books of each and writes ``ledger.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN
from lightning_xai.relevance import LRP, Ledger, composites, rules

COMPOSITES = {
    "LRP-0": composites.RuleList([("*", rules.Zero())]),
    "epsilon 0.5": composites.AttnLRP(epsilon=0.5),
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
}


def trained(steps: int = 200) -> nn.Module:
    """A small network after a few seconds of training."""
    torch.manual_seed(0)
    model = DemoCNN(width=8)
    images, labels = MNISTSample().train_dataloader().dataset.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for rows in torch.randperm(len(labels)).repeat(4).split(64)[:steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def main(folder: Path = Path()) -> dict[str, Ledger]:
    """Explain, print the books, draw; the ledgers by composite."""
    model = trained()
    digits = next(iter(MNISTSample(batch_size=64).val_dataloader()))[0]
    ledgers = {name: LRP(rules).with_ledger(model, digits, "predicted")[1] for name, rules in COMPOSITES.items()}

    print("share of the logits   arrives   biases  epsilon   other   balance")
    for name, ledger in ledgers.items():
        whole = ledger.start.sum()
        parts = [ledger.received.sum(), ledger.biases, ledger.epsilon, sum(ledger.remainder.values(), whole * 0)]
        print(f"{name:20s}" + "".join(f"{float(part / whole):9.3f}" for part in parts) + f"{ledger.balance:10.0e}")

    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    for name, ledger in ledgers.items():
        whole = float(ledger.start.sum())
        path = [1.0, *(float(value) / whole for value in reversed(ledger.layers.values()))]
        axes.plot([*path, float(ledger.received.sum()) / whole], marker="o", markersize=3, label=name)
    names = ["score", *reversed(ledger.layers), "input"]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    axes.axhline(1, color="0.6", linewidth=0.6, zorder=0)
    axes.set_ylabel("share of the logits")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(folder / "ledger.png", dpi=120)
    return ledgers


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
