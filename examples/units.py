"""What do units detect, and does a class need them?

A generated image shows a patch with one of three textures, or none, and beside it a disk in one of three colours. The
class is the texture; the colour has nothing to do with it. A small network learns to tell the textures apart. Its units
are dissected against textures and colours, whose places are known; then the few units that are most sensitive to one
texture are silenced. If the units that a dissection names are those that the network uses, that texture becomes
unpredictable, and the others suffer less.

``python examples/units.py [folder]`` prints the tables and writes ``units.csv``, ``units.png`` (what the best detector
of each concept sees) and ``crops.png`` (the same, cut out by the receptive field).
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai import Pictures
from lightning_xai.figures import save
from lightning_xai.figures.units import detected, draw_crops, draw_units
from lightning_xai.units import (
    CoActivation,
    Concepts,
    ablate_units,
    dissect,
    group_units,
    receptive_field,
    top_samples,
    unit_activations,
)

SIZE, LAYER = 40, "5"
TEXTURES, COLOURS = ("vertical", "horizontal", "diagonal"), ("red", "green", "blue")
CLASSES = (*TEXTURES, "none")
CONCEPTS = Concepts([*TEXTURES, *COLOURS], ["texture"] * 3 + ["color"] * 3)
ABOVE, SILENCED = 0.05, 4
RGB = torch.tensor([[1.0, 0.3, 0.3], [0.3, 0.9, 0.3], [0.4, 0.5, 1.0]])


def images(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [count, 3, SIZE, SIZE], their classes [count], and the concept of every cell [count, SIZE, SIZE]."""
    draw = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    waves = torch.stack([columns, rows, rows + columns, torch.zeros_like(rows)])
    label = torch.randint(len(CLASSES), (count,), generator=draw)
    concept = torch.full((count, SIZE, SIZE), -1)
    x = 0.2 + 0.06 * torch.randn(count, 3, SIZE, SIZE, generator=draw)
    for i, texture in enumerate(label.tolist()):
        # The patch in one half of the image, the disk in the other.
        left, side, top, colour = between(0, 1), between(12, 16), between(2, 22), between(0, 2)
        first = between(1, 3) if left else SIZE - side - between(1, 3)
        patch = (rows >= top) & (rows < top + side) & (columns >= first) & (columns < first + side)
        lines = ((waves[texture] + between(0, 3)) % 4 < 2).float()
        height = 0.6 + 0.1 * between(0, 4)
        middle = between(9, 30), between(29, 31) if left else between(8, 10)
        disk = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= between(5, 7) ** 2
        if texture < len(TEXTURES):
            x[i] = torch.where(patch, x[i] + height * lines, x[i])
            concept[i][patch] = texture
        x[i] = torch.where(disk, x[i] + 0.7 * RGB[colour].view(3, 1, 1), x[i])
        concept[i][disk] = len(TEXTURES) + colour
    return x.clamp(0, 1), label, concept


def train(x: Tensor, y: Tensor, steps: int = 120) -> nn.Module:
    """Three convolutions; the class is read off the mean of each of the last one's units."""
    torch.manual_seed(0)
    widths, layers = (3, 16, 16, 24), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 5, stride=1 if not layers else 2, padding=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(CLASSES)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def main(folder: Path = Path()) -> dict[str, dict[str, float]]:
    """Train, dissect, silence, draw; the accuracy of every class after silencing the units of each texture."""
    model = train(*images(800, seed=1)[:2])
    x, y, masks = images(240, seed=2)
    found = dissect(model, x, masks, layer=LAYER, concepts=CONCEPTS, p=ABOVE)
    found.to_csv(folder / "units.csv")
    print(f"{int(found.is_detector.sum())} of {len(found.area)} units detect a concept (IoU > {found.detector})")
    for row in found.rows()[:8]:
        print(f"  unit {row.unit:2d}  {row.concept:10s} IoU {row.iou:.2f}")

    sets = {texture: found.strongest(texture, SILENCED) for texture in TEXTURES}
    silenced = ablate_units(model, x, y, layer=LAYER, units=list(sets.values()))
    shares = {"all units": silenced.clean_accuracy, **dict(zip(sets, silenced.accuracy, strict=True))}
    accuracy = {name: dict(zip(CLASSES, row.tolist(), strict=True)) for name, row in shares.items()}
    print(f"\naccuracy, {SILENCED} units silenced{''.join(f'{name:>11s}' for name in CLASSES)}")
    for name, row in accuracy.items():
        print(f"{name:>27s}{''.join(f'{share:11.2f}' for share in row.values())}")

    groups = group_units(unit_activations(model, x, layer=LAYER), CoActivation(groups=4))
    grouped = dissect(model, x, masks, layer=LAYER, concepts=CONCEPTS, p=ABOVE, unit=groups)
    print("\ngroups of units that are active together:")
    for row in grouped.rows():
        members = groups.membership[row.unit].nonzero().flatten().tolist()
        print(f"  {len(members):2d} units  {row.concept:10s} IoU {row.iou:.2f}")

    strongest = top_samples(model, x, layer=LAYER, n=6)
    best = list(dict.fromkeys(found.strongest(name, 1)[0] for name in CONCEPTS.names))
    look = Pictures(samples=6, denormalize=lambda image: image)
    maps = unit_activations(model, x, layer=LAYER)
    save(
        draw_units(x, maps, strongest, found.threshold, units=best, titles=detected(found), pictures=look),
        folder / "units.png",
    )
    field = receptive_field(model, x, layer=LAYER)
    save(draw_crops(x, strongest, field, units=best, titles=detected(found), pictures=look), folder / "crops.png")
    return accuracy


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
