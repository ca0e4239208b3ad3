"""Which bands of a spectrum does a classifier read?

Two classes of generated spectra of 300 points share a broad background and a peak at 67. Class 0 also has peaks at 127
and 157, class 1 has one at 217. A small 1-d network learns to tell them apart; importance, speed and synergy then have
to find these bands and leave the shared one alone. ``python examples/spectra.py [folder]`` prints the strongest bands
and writes ``spectra.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai import Pictures, Windows, explain, load_explanations
from lightning_xai.figures import draw_samples, save
from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import kinds

POINTS, BAND = 300, 15
SHARED, OWN = 67, {0: (127, 157), 1: (217,)}


def spectra(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Spectra [count, 1, POINTS] and their classes [count]."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (count,), generator=generator)
    position = torch.arange(POINTS, dtype=torch.float32)
    background = 0.3 * torch.exp(-(((position - 140) / 120) ** 2))
    signal = background + 0.02 * torch.randn(count, POINTS, generator=generator)
    for row, index in enumerate(label.tolist()):
        for peak in (SHARED, *OWN[index]):
            height = 0.7 + 0.3 * torch.rand((), generator=generator)
            signal[row] += height * torch.exp(-(((position - peak) / 4) ** 2))
    return signal.unsqueeze(1), label


def train(x: Tensor, y: Tensor, steps: int = 80) -> nn.Module:
    """A convolution, pooling within bands, and a linear layer."""
    torch.manual_seed(0)
    pool = nn.AvgPool1d(5)
    model = nn.Sequential(nn.Conv1d(1, 8, 9, padding=4), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8 * POINTS // 5, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def main(folder: Path = Path()) -> dict[int, list[int]]:
    """Train, explain, draw; the centres of the strongest bands of each class, as many as it has peaks of its own."""
    x, y = spectra(400, seed=1)
    model = train(x, y)
    test_x, test_y = spectra(40, seed=2)
    print(f"accuracy on {len(test_y)} new spectra: {float((model(test_x).argmax(1) == test_y).float().mean()):.2f}")

    bands, fade = Windows(BAND), kinds.Negative(delta=1.0)
    metrics = {
        "importance": Importance(bands, fade, score="margin"),
        "speed": Speed(bands, fade, strengths=[0.25, 0.5, 0.75, 1.0], abscissa="strength", score="margin"),
        "synergy": Synergy(bands, fade, score="margin"),
    }
    options = {"max_samples": len(test_y), "folder": folder / "spectra", "progress": False}
    found = explain(model, [(test_x, test_y)], metrics, **options)

    strongest = {}
    for label, curve in enumerate(found["importance"]["map_per_class"]):
        centres = curve.view(-1, BAND)[:, 0].topk(len(OWN[label])).indices * BAND + BAND // 2
        strongest[label] = sorted(centres.tolist())
        print(f"class {label}: own peaks at {list(OWN[label])}, most important bands around {strongest[label]}")
    maps = load_explanations(folder / "spectra" / "explanations")
    columns = {
        f"{name}/{tensor}": result
        for name, metric in metrics.items()
        for tensor, result in metric.sample_maps.items()
        if tensor != "map_relative"
    }
    save(draw_samples(maps, columns, Pictures(samples=4, class_names=["two", "one"])), folder / "spectra.png")
    return strongest


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
