"""What does a network read of an image, and what of the table beside it?

A network sees a digit and three numbers, and says whether the digit is larger than the first of them; the other two
mean nothing. ``Inputs`` names the arguments: both are explained in one pass, or one while the other stays that of its
sample.

``python examples/two_inputs.py [folder]`` prints how much each part takes, and writes ``two_inputs.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_xai import Inputs, Windows
from lightning_xai.app.data import MNISTSample
from lightning_xai.perturbation import importance, kinds
from lightning_xai.relevance import LRP, IntegratedGradients

COLUMNS = ("threshold", "noise", "noise")


class Larger(nn.Module):
    """Compares a digit with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.digit = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 32), nn.ReLU(),
        )  # fmt: skip
        self.table = nn.Sequential(nn.Linear(3, 32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        """Logits [N, 2] of digits [N, 1, 28, 28] and numbers [N, 3]."""
        return self.head(torch.cat([self.digit(image), self.table(table)], 1))


def asked(digits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Digits with a threshold each, and whether they are larger."""
    table = torch.rand(len(digits), 3) * 2 - 1
    return digits, table, (labels > 4.5 + 4.5 * table[:, 0]).long()


def trained(steps: int = 500) -> Larger:
    """A network after some seconds of training."""
    torch.manual_seed(0)
    model = Larger()
    digits, labels = MNISTSample().train_dataloader().dataset.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        image, table, larger = asked(digits[rows], labels[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image, table), larger).backward()
        optimizer.step()
    return model.eval()


def main(folder: Path = Path()) -> dict[str, Tensor]:
    """Train, explain, print, draw; the mean magnitudes per column of the table."""
    model = trained()
    digits, labels = next(iter(MNISTSample(batch_size=200).val_dataloader()))
    image, table, larger = asked(digits, labels)
    with torch.no_grad():
        print(f"{float((model(image, table).argmax(1) == larger).double().mean()):.0%} of 200 new pairs are right")

    both = Inputs(image=image, table=table, explain=("image", "table"))
    shares = {}
    for name, method in {
        "integrated gradients": IntegratedGradients(steps=32, score="margin"),
        "LRP, EpsilonPlus": LRP(),
    }.items():
        maps = method.explain(model, both, larger).maps
        columns = maps["table"].abs().mean(0)
        shares[name] = columns
        image_part = float(maps["image"].abs().flatten(1).sum(1).mean())
        print(f"{name:21s} image {image_part:6.2f}   " + "   ".join(
            f"{column} {float(value):5.2f}" for column, value in zip(COLUMNS, columns, strict=True)
        ))  # fmt: skip

    how = {"perturbation": kinds.Constant(0.0), "score": "margin"}
    tables = importance(model, Inputs(image, table, explain=1), larger, regions=1, **how)
    regions = Windows(4)
    images = importance(model, Inputs(image, table, explain=0), larger, regions=regions, **how)
    shares["importance"] = tables.abs().mean(0)

    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    painted = regions.bind(image.shape).paint(images)
    end = float(images[:5].abs().max())
    for place in range(5):
        digit, colours = figure.add_subplot(3, 5, place + 1), figure.add_subplot(3, 5, place + 6)
        digit.imshow(image[place, 0].numpy(), cmap="gray")
        question = f"larger than {4.5 + 4.5 * float(table[place, 0]):.1f}? {('no', 'yes')[int(larger[place])]}"
        digit.set_title(question, fontsize=8)
        colours.imshow(painted[place].numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
        bars = figure.add_subplot(3, 5, place + 11)
        bars.bar(range(3), tables[place].numpy(), color=["C0", "0.7", "0.7"])
        bars.set_xticks(range(3), COLUMNS, fontsize=7)
        for axes in (digit, colours):
            axes.axis("off")
    figure.savefig(folder / "two_inputs.png", dpi=120)
    return shares


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
