"""Digits during training.

How do explanations move while a network learns? A small network trains on 4,000 digits of MNIST; after every epoch the
callback explains the same 64 validation digits by importance and by relevance. The maps are those of the validation
digits' own class, averaged per class; the numbers say how peaked they are, how much of the logit relevance accounts
for, how faithful it is (the symmetric relevance gain, beside that of a random map, which is 0 by chance), and how far
the maps have moved since the epoch before (the drift of their ranks: 0 unchanged, 1 unrelated).

``python examples/training.py [folder]`` prints a table over the epochs and writes ``training.png`` and
``training_maps.png``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor

from lightning_xai import ExplanationMonitor, Windows
from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN
from lightning_xai.evaluation import RandomMap
from lightning_xai.metrics import Drift, Faithfulness, Importance, Relevance
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP, composites

EPOCHS, DIGIT = 4, 4


class History(Callback):
    """Keeps what the monitor found in every epoch."""

    def __init__(self, monitor: ExplanationMonitor) -> None:
        self.monitor = monitor
        self.epochs: list[dict[str, dict[str, Tensor]]] = []
        self.accuracy: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the results of an epoch."""
        if not trainer.sanity_checking:
            self.epochs.append(self.monitor.results)
            self.accuracy.append(float(trainer.callback_metrics["val/acc"]))


def main(folder: Path = Path()) -> list[dict[str, dict[str, Tensor]]]:
    """Train and explain, print, draw; the results of every epoch."""
    for known in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=known)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    lrp = LRP(composites.EpsilonPlus())
    monitor = ExplanationMonitor(
        {
            "importance": Importance(Windows(4), kinds.Constant(0.0), score="logit"),
            "relevance": Relevance(lrp),
            "faithfulness": Faithfulness(lrp, Windows(4), kinds.Constant(0.0)),
            "random": Faithfulness(RandomMap(), Windows(4), kinds.Constant(0.0)),
            "drift": Drift(lrp, Windows(4)),
        },
        max_samples=64,
        save_maps=False,
    )
    history = History(monitor)
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=[monitor, history],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DemoCNN(width=8), datamodule=MNISTSample())

    numbers = {
        "accuracy": history.accuracy,
        "Gini of importance": [found["importance"]["gini"] for found in history.epochs],
        "Gini of relevance": [found["relevance"]["gini"] for found in history.epochs],
        "conservation gap": [found["relevance"]["conservation_gap"] for found in history.epochs],
        "srg of relevance": [found["faithfulness"]["srg"] for found in history.epochs],
        "srg of a random map": [found["random"]["srg"] for found in history.epochs],
        "drift of relevance": [found["drift"]["spearman"] for found in history.epochs],
    }
    print("epoch                " + "".join(f"{epoch:8d}" for epoch in range(EPOCHS)))
    for name, values in numbers.items():
        print(f"{name:21s}" + "".join(f"{float(value):8.3f}" for value in values))

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, values in numbers.items():
        axes.plot(range(EPOCHS), values, marker="o", markersize=3, label=name)
    axes.set_xticks(range(EPOCHS))
    axes.set_xlabel("epoch")
    axes.set_ylabel("share, coefficient")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(folder / "training.png", dpi=120)

    figure = Figure(figsize=(1.6 * EPOCHS, 3.4), layout="constrained")
    panels = figure.subplots(2, EPOCHS)
    for row, name in zip(panels, ("importance", "relevance"), strict=True):
        maps = [found[name]["map_per_class"][DIGIT] for found in history.epochs]
        end = max(float(values.abs().max()) for values in maps)
        for epoch, (panel, values) in enumerate(zip(row, maps, strict=True)):
            drawn = panel.imshow(values.numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_title(f"epoch {epoch}" if name == "importance" else "", fontsize=9)
        row[0].set_ylabel(f"{name}\nof class {DIGIT}", fontsize=8)
        figure.colorbar(drawn, ax=row, shrink=0.8, pad=0.02, label="logits")
    figure.savefig(folder / "training_maps.png", dpi=120)
    return history.epochs


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
