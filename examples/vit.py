"""What does a vision transformer look at?

A small vision transformer learns digits from patches of 4 x 4. Nothing needs to be said about tokens: Grad-CAM finds
the last layer whose tokens form a grid and puts them back in their places, LRP passes attention by the rules of
AttnLRP, importance perturbs patches, and a unit of an MLP is explained like a class.

``python examples/vit.py [folder]`` prints the layer and what arrives, and writes ``vit.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_xai import Inputs, Windows
from lightning_xai.app.data import MNISTSample
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import LRP, GradCAM
from lightning_xai.scores import Unit
from lightning_xai.units import unit_activations

HIDDEN = "blocks.1.mlp.act"


def trained(steps: int = 600) -> nn.Module:
    """A vision transformer after half a minute of training."""
    torch.manual_seed(0)
    size = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    model = VisionTransformer(**size, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.0)
    images, labels = MNISTSample().train_dataloader().dataset.tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main(folder: Path = Path()) -> dict[str, Tensor]:
    """Train, explain, print, draw; the maps by method."""
    model = trained()
    digits, labels = next(iter(MNISTSample(batch_size=200).val_dataloader()))
    with torch.no_grad():
        print(f"{float((model(digits).argmax(1) == labels).double().mean()):.0%} of 200 new digits are right")
    x, y = digits[:5], labels[:5]

    cam = GradCAM().explain(model, x, y)
    relevance = LRP("attn_lrp").explain(model, x, y)
    kept = float(relevance.map.sum() / relevance.score.sum())
    print(f"Grad-CAM looks at {cam.layer}; LRP brings {kept:.2f} of the logits to the pixels")
    tokens = LRP("attn_lrp")(model, Inputs(x, at="blocks.1"), y).sum(2)
    share = float(tokens[:, 0].sum() / tokens.sum())
    print(f"after block 1 the class token holds {share:.2f} of the relevance of {tokens.shape[1]} tokens")

    # The unit of the MLP that the first digit activates most, beyond what the others do.
    own, usual = (unit_activations(model, some, layer=HIDDEN).mean((0, 2)) for some in (x[:1], digits))
    unit = int((own - usual).argmax())
    maps = {
        "importance": PerturbationImportance(Windows(4), kinds.Constant(0.0), score="margin")(model, x, y),
        "AttnLRP": relevance.map,
        "Grad-CAM": cam.map,
        f"unit {unit}": LRP("attn_lrp", score=Unit(HIDDEN, unit))(model, x),
    }

    figure = Figure(figsize=(7.6, 7.4), layout="constrained")
    panels = figure.subplots(5, 5)
    for column in range(5):
        panels[0, column].imshow(x[column, 0].numpy(), cmap="gray")
        for panel, (name, found) in zip(panels[1:, column], maps.items(), strict=True):
            values = found[column, 0].nan_to_num(0.0)
            end = float(values.abs().max()) or 1.0
            panel.imshow(values.numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
            if column == 0:
                panel.set_ylabel(name)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    figure.savefig(folder / "vit.png", dpi=120)
    return maps


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
