"""Figures without pyplot; inputs, maps and curves in one style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai._files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIGNED, _UNSIGNED = "RdBu_r", "viridis"
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "image.interpolation": "nearest",
    "savefig.dpi": 150,
    "text.parse_math": False,  # names of classes and metrics may hold a dollar
}
NO_VALUE = "0.8"


@dataclass(frozen=True)
class Pictures:
    """Configures how pictures are drawn.

    Args:
        samples: How many samples a picture shows.
        denormalize: Turns an input [C, *S] back into what people look at, values 0 to 1; an input is stretched over
            its own range unless given.
        class_names: The classes' names, in the order of the model's outputs.
        words: Turns the ids of a text into its tokens, e.g. ``tokenizer.convert_ids_to_tokens``; the numbers are shown
            unless given.

    Raises:
        TypeError: If ``denormalize`` or ``words`` cannot be called, or the names are one string.
        ValueError: If ``samples`` is no integer of at least 1.

    Example:
        >>> pictures = Pictures(class_names=["cat", "dog"])
        >>> pictures.name(1), pictures.name(2)
        ('dog', '2')
    """

    samples: int = 6
    denormalize: Callable[[Tensor], Tensor] | None = None
    class_names: Sequence[str] | None = None
    words: Callable[[list[int]], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        as_integer("samples", self.samples, least=1)
        if self.denormalize is not None and not callable(self.denormalize):
            raise TypeError(f"denormalize must be a function of one input, got {type(self.denormalize).__name__}.")
        if self.words is not None and not callable(self.words):
            raise TypeError(f"words must be a function of a list of ids, got {type(self.words).__name__}.")
        if isinstance(self.class_names, str) or not isinstance(self.class_names, Iterable | None):
            raise TypeError(f"class_names must be a list of names, got {self.class_names!r}.")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))

    def name(self, index: int) -> str:
        """Return the name of a class, its number if it has none."""
        names = self.class_names or ()
        return names[index] if 0 <= index < len(names) else str(index)


def show_input(axes: Axes, sample: Tensor, pictures: Pictures | None = None) -> None:
    """Draw one input [C, *S] (or [F]) as an image, a curve per channel, steps of a table, or a volume's slice."""
    shown = _denormalized(sample, pictures)
    if shown.ndim == 1:
        draw_steps(axes, shown, color="0.25")
    elif shown.ndim == 2:
        axes.plot(shown.T.numpy(), linewidth=0.8, color="0.25" if len(shown) == 1 else None)
        axes.set_xlim(-0.5, shown.shape[-1] - 0.5)
    else:
        axes.imshow(input_pixels(sample, pictures).numpy())


def input_pixels(sample: Tensor, pictures: Pictures | None = None) -> Tensor:
    """Convert one input [C, *S] to the pixels [H, W, 3] that :func:`show_input` shows; a volume's middle slice."""
    shown = _denormalized(sample, pictures)
    if shown.ndim == 4:
        shown = shown[:, shown.shape[1] // 2]
    if pictures is None or pictures.denormalize is None:  # stretched over its own range
        low, high = shown.min(), shown.max()
        shown = (shown - low) / (high - low if high > low else 1.0)
    shown = shown.clamp(0, 1)
    return (shown if shown.shape[0] == 3 else shown.mean(0, keepdim=True).expand(3, -1, -1)).movedim(0, -1)


def _denormalized(sample: Tensor, pictures: Pictures | None) -> Tensor:
    sample = sample.detach().cpu().float()
    if pictures is not None and pictures.denormalize is not None:
        sample = pictures.denormalize(sample).detach().cpu().float()
    return sample


def map_pixels(values: Tensor, limits: tuple[float, float]) -> Tensor:
    """Convert a map [H, W] to pixels [H, W, 3] in the colours of the other pictures; grey where there is no value."""
    import matplotlib as mpl

    low, high = limits
    values = plane(values)
    colours = mpl.colormaps[_SIGNED if low < 0 else _UNSIGNED]
    pixels = torch.from_numpy(colours(((values.nan_to_num(0.0) - low) / (high - low)).clamp(0, 1).numpy())[..., :3])
    return torch.where(values.isfinite().unsqueeze(-1), pixels, float(NO_VALUE))


def map_limits(values: Tensor, signed: bool = True) -> tuple[float, float]:
    """Compute the ends of one colour scale for values: centred on zero if they have a sign, from zero on otherwise."""
    finite = values.detach().cpu().float()
    finite = finite[finite.isfinite()]
    end = float(finite.abs().max()) if finite.numel() else 1.0
    return (-(end or 1.0) if signed else 0.0), end or 1.0


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG; the folder is made."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=STYLE["savefig.dpi"])


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Make a figure of that many inches, and draw on it in one style."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def plane(values: Tensor) -> Tensor:
    """Reduce values [*S] to a curve or a plane: of a volume the middle slice."""
    values = values.detach().cpu().float()
    return values[values.shape[0] // 2] if values.ndim == 3 else values


def show_map(axes: Axes, values: Tensor, limits: tuple[float, float], unit: str = "") -> None:
    """Draw values [F] as steps or [H, W] as colours with a bar, grey where there is no value."""
    low, high = limits
    if values.ndim == 1:
        axes.axhline(0, color="0.6", linewidth=0.6)
        draw_steps(axes, values, color="C0")
        for start, stop in runs_of(~values.isfinite()):
            axes.axvspan(start - 0.5, stop - 0.5, color=NO_VALUE, linewidth=0, zorder=0)
        return
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(NO_VALUE)
    image = axes.imshow(values.numpy(), cmap=_SIGNED if low < 0 else _UNSIGNED, vmin=low, vmax=high)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=16)
    bar.set_label(unit, fontsize=6)
    bar.locator = MaxNLocator(4, symmetric=low < 0)
    bar.ax.ticklabel_format(axis="y", scilimits=(-2, 3))
    bar.ax.tick_params(length=2, labelsize=6)
    bar.ax.yaxis.get_offset_text().set_fontsize(6)
    bar.outline.set_visible(False)
    bar.update_ticks()


def whole_ticks(axis: Any) -> None:
    """Put ticks at whole numbers, as rows and columns have no others."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def draw_steps(axes: Axes, values: Tensor, color: str) -> None:
    """Draw a level per cell [F], also for a cell whose neighbours have none."""
    edges = torch.arange(len(values) + 1) - 0.5
    axes.stairs(values.numpy(), edges.numpy(), baseline=None, color=color, linewidth=1.0)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)


def runs_of(marked: Tensor) -> list[tuple[int, int]]:
    """Find where runs of marked cells [F] begin and end."""
    changes = torch.nn.functional.pad(marked.int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(changes[::2], changes[1::2], strict=True))


def height_at(values: Tensor, width: float) -> float:
    """Compute the height of a picture of values [..., H, W] at a width, within reason."""
    rows, columns = values.shape[-2:]
    return width * min(max(rows / columns, 0.4), 2.0)


def slice_note(values: Tensor) -> str:
    """Say in a title that of a volume [*S] one slice is shown."""
    return ", middle slice" if values.ndim == 3 else ""


def remove_ticks(axes: Axes) -> None:
    """Remove ticks and frame, as an image has neither."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
