"""Which pixels hold a detection?

A detector finds digits on a canvas of 48 x 48 and returns what detectors of torchvision return: a list of dicts of
boxes, scores and labels. ``Box(0)`` follows its first detection: how far some box of the same label still overlaps it,
times its score. Windows that take evidence away lower it; each detection is held by its own digit.

``python examples/detector.py [folder]`` prints where the evidence lies, and writes ``detector.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from lightning_xai import Windows
from lightning_xai.app.data import MNISTSample
from lightning_xai.perturbation import importance, kinds
from lightning_xai.relevance import Saliency
from lightning_xai.scores import Box

SIZE, CELL, CELLS = 48, 8, 6
DIGIT = 20


class Detector(nn.Module):
    """Says for every cell of 8 x 8 whether the middle of a digit lies in it, where, and which one it is."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 24), (24, 48), (48, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 1 + 2 + 10, 1))

    def cells(self, images: Tensor) -> Tensor:
        """Logits of a digit, its offset, and logits of its class, [N, 13, 6, 6]."""
        return self.net(images)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of every image, the strongest first."""
        found = []
        for cells in self.cells(images):
            there, offset, classes = cells[0].sigmoid(), cells[1:3], cells[3:].softmax(0)
            peak = nn.functional.max_pool2d(there[None], 3, 1, 1)[0] == there
            row, column = (peak & (there > 0.3)).nonzero().unbind(1)
            y = (row + 0.5 + offset[0, row, column]) * CELL
            x = (column + 0.5 + offset[1, row, column]) * CELL
            half = DIGIT / 2
            scores, labels = classes[:, row, column].max(0)
            scores = scores * there[row, column]
            order = scores.argsort(descending=True)
            boxes = torch.stack([x - half, y - half, x + half, y + half], 1)
            found.append({"boxes": boxes[order], "scores": scores[order], "labels": labels[order]})
        return found


def scene(digits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Canvases with a digit in the left half and one in the right; their middles [N, 2, 2] and classes [N, 2]."""
    small = nn.functional.interpolate(digits, size=(DIGIT, DIGIT), mode="bilinear", antialias=True)
    chosen = torch.randint(len(labels), (count, 2))
    corners = torch.stack([torch.randint(0, SIZE - DIGIT, (count, 2)), torch.randint(0, 4, (count, 2))], 2)
    corners[:, 1, 1] += SIZE - DIGIT - 4
    canvas = torch.zeros(count, 1, SIZE, SIZE)
    for row in range(count):
        for place in range(2):
            y, x = corners[row, place].tolist()
            window = canvas[row, :, y : y + DIGIT, x : x + DIGIT]
            window.copy_(torch.maximum(window, small[chosen[row, place]]))
    return canvas, corners + DIGIT / 2, labels[chosen]


def trained(steps: int = 350) -> Detector:
    """A detector after half a minute of training."""
    torch.manual_seed(0)
    model = Detector()
    digits, labels = MNISTSample().train_dataloader().dataset.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        canvas, middles, classes = scene(digits, labels, 32)
        cell = (middles / CELL).long().clamp(max=CELLS - 1)
        row, (y, x) = torch.arange(32).unsqueeze(1).expand(-1, 2), cell.unbind(2)
        wanted = torch.zeros(32, CELLS, CELLS)
        wanted[row, y, x] = 1.0
        cells = model.cells(canvas)
        at = cells[row, :, y, x]
        loss = nn.functional.binary_cross_entropy_with_logits(cells[:, 0], wanted, pos_weight=torch.tensor(4.0))
        loss = loss + nn.functional.smooth_l1_loss(at[..., 1:3], middles / CELL - cell - 0.5)
        loss = loss + nn.functional.cross_entropy(at[..., 3:].flatten(0, 1), classes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main(folder: Path = Path()) -> dict[str, float]:
    """Train, explain two detections of each canvas, print, draw; the share of the evidence inside each box."""
    model = trained()
    digits, labels = next(iter(MNISTSample(batch_size=400).val_dataloader()))
    canvas, _, _ = scene(digits, labels, 24)
    with torch.no_grad():
        found = model(canvas)
    both = [row for row, detections in enumerate(found) if len(detections["scores"]) >= 2]
    print(f"{len(both)} of {len(canvas)} canvases with two detections or more")
    canvas, found = canvas[both], [found[row] for row in both]

    regions, shares, maps = Windows(6, stride=3), {}, []
    bound = regions.bind(canvas.shape)
    for index in range(2):
        local = importance(model, canvas, regions=regions, perturbation=kinds.Constant(0.0), score=Box(index))
        maps.append(bound.paint(local))
        slope = Saliency(score=Box(index))(model, canvas)[:, 0]
        for name, values in (("importance", maps[-1].nan_to_num(0.0).clamp(min=0)), ("saliency", slope)):
            inside = []
            for row, detections in enumerate(found):
                left, top, right, bottom = detections["boxes"][index].round().long().clamp(0, SIZE).tolist()
                inside.append(values[row, top:bottom, left:right].sum() / values[row].sum().clamp(min=1e-9))
            shares[f"{name}, detection {index}"] = float(torch.stack(inside).mean())
    for name, share in shares.items():
        print(f"{name:24s} {share:.0%} of the evidence lies in its box")

    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    panels = figure.subplots(3, 5)
    for column in range(min(5, len(canvas))):
        panels[0, column].imshow(canvas[column, 0].numpy(), cmap="gray")
        for index, colour in enumerate(("C1", "C0")):
            left, top, right, bottom = found[column]["boxes"][index].tolist()
            box = {"xy": (left, top), "width": right - left, "height": bottom - top, "fill": False, "edgecolor": colour}
            panels[0, column].add_patch(Rectangle(**box))
            end = float(maps[index][column].nan_to_num(0.0).abs().max())
            panel = panels[1 + index, column]
            panel.imshow(maps[index][column].numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
            panel.add_patch(Rectangle(**box))
            label, score = (int(found[column]["labels"][index]), float(found[column]["scores"][index]))
            panel.set_title(f"a {label}, {score:.2f}", fontsize=9)
    for panel in panels.flat:
        panel.axis("off")
    figure.savefig(folder / "detector.png", dpi=120)
    return shares


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
