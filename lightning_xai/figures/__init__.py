"""Tensors to pictures. Matplotlib is imported when the first picture is drawn, and never its global state."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, spatial_shape
from lightning_xai.regions import Regions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIGNED, _UNSIGNED = "RdBu_r", "viridis"
_STYLE: dict[Any, Any] = {
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
}
_UNSIGNED_NAMES = ("relative", "map_abs", "r_squared", "iou", "best_iou", "accuracy", "clean_accuracy")
_NOTHING_HERE = "0.8"
# What the columns and the rows of a matrix are; features and features unless named here.
_AXES = {
    "iou": ("concept", "unit"),
    "accuracy": ("class", "unit"),
    "accuracy_change": ("class", "unit"),
    "score_change": ("class", "unit"),
    "value": ("rank", "unit"),
}
_TABLES = ("sample_id", "position", "concept")  # names of things, which have no colour
_CHARTED = ("histogram", "by_feature", "ledger")  # drawn as bars, in pictures of their own
_MOST_PANELS = 16
_TITLES = {"map": "mean", "map_abs": "mean magnitude", "relative": "mean, relative", "r_squared": "mean R²"}


@dataclass(frozen=True)
class Pictures:
    """How pictures are drawn.

    Args:
        samples: How many samples a picture shows.
        denormalize: Turns an input [C, *S] back into what people look at, values 0 to 1; an input is stretched over
            its own range unless given.
        class_names: The classes' names, in the order of the model's outputs.

    Raises:
        TypeError: If ``denormalize`` cannot be called.
        ValueError: If ``samples`` is no integer of at least 1.

    Example:
        >>> pictures = Pictures(class_names=["cat", "dog"])
        >>> pictures.name(1), pictures.name(2)
        ('dog', '2')
    """

    samples: int = 6
    denormalize: Callable[[Tensor], Tensor] | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        as_integer("samples", self.samples, least=1)
        if self.denormalize is not None and not callable(self.denormalize):
            raise TypeError(f"denormalize must be a function of one input, got {type(self.denormalize).__name__}.")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))

    def name(self, index: int) -> str:
        """The name of a class, its number if it has none."""
        names = self.class_names or ()
        return names[index] if 0 <= index < len(names) else str(index)


def preview(regions: Regions, inputs: Tensor, index: int = 0) -> Figure:
    """A picture of the regions over one sample: their borders, and how many cells and features there are.

    Args:
        regions: The features.
        inputs: Inputs [N, C, *S], or a table [N, F].
        index: Which sample.

    Raises:
        IndexError: If there is no such sample.

    Example:
        Windows of 2 x 2 leave one of five columns out:

        >>> from lightning_xai import Windows
        >>> preview(Windows(2, remainder="left"), torch.ones(1, 3, 4, 5)).axes[0].get_title()
        '4 features over 80% of the cells'
    """
    if not 0 <= index < len(inputs):
        raise IndexError(f"index {index} is out of range: there are {len(inputs)} samples.")
    bound = regions.bind(inputs).rows(slice(index, index + 1))
    # Each cell is given the number of a feature that covers it; a border is where that number changes.
    cells = bound.paint(torch.arange(bound.count, dtype=torch.float32).unsqueeze(0))[0]
    covered = bound.paint(torch.ones(1, bound.count))[0].isfinite()
    with _figure(4.5, 4.2 if len(spatial_shape(inputs)) > 1 else 2.4) as figure:
        axes = figure.subplots()
        show_input(axes, inputs[index])
        cells = _plane(cells)
        if cells.ndim == 2:
            _borders(axes, cells.nan_to_num(-1.0))
        else:
            for border in (cells.nan_to_num(-1.0).diff() != 0).nonzero().flatten().tolist():
                axes.axvline(border + 0.5, color="C3", linewidth=0.8)
        share = float(covered.float().mean())
        axes.set_title(f"{bound.count} features over {share:.0%} of the cells{_slice(covered)}")
    return figure


def draw_samples(
    explained: Mapping[str, Tensor], columns: Mapping[str, str], pictures: Pictures | None = None
) -> Figure:
    """Samples row by row: the input, then one map per column, each on a scale of its own.

    Args:
        explained: Per-sample tensors [N, ...] by name; ``input``, ``target``, ``prediction`` and ``sample_id`` among
            them.
        columns: The names of the maps [N, *S] to draw and their titles.
        pictures: How to draw them.
    """
    pictures = pictures or Pictures()
    rows = min(pictures.samples, len(explained["input"]))
    curves = explained["input"].ndim <= 3
    width, height = (3.0, 1.2) if curves else (1.85, _height(explained["input"], 1.35) + 0.15)
    with _figure(width * (1 + len(columns)) + 0.4, height * rows + 0.5) as figure:
        grid = figure.subplots(rows, 1 + len(columns), squeeze=False, sharex=curves)
        grid[0, 0].set_title(f"input{_slice(explained['input'][0, 0])}")
        for row in range(rows):
            show_input(grid[row, 0], explained["input"][row], pictures)
            grid[row, 0].set_ylabel(_caption(explained, row, pictures), rotation=0, ha="right", va="center")
            for axes, (name, title) in zip(grid[row, 1:], columns.items(), strict=True):
                values = _plane(explained[name][row])
                _show(figure, axes, values, _limits(values, name))
                if row == 0:
                    axes.set_title(title)
        if not curves:
            for axes in grid.flat:
                _without_ticks(axes)
    return figure


def draw_result(result: Mapping[str, Any], title: str, pictures: Pictures | None = None) -> Figure:
    """What a metric computed: its 1-d results as curves, its 2-d ones as heat maps, maps per class on one scale.

    Args:
        result: The metric's ``compute()``.
        title: The metric's name.
        pictures: Names of the classes.

    Raises:
        ValueError: If the result holds nothing but numbers.
    """
    if "by_unit" in result:
        from lightning_xai.figures.reactivation import draw_reactivation

        return draw_reactivation(result, title)
    panels = _panels(result, pictures or Pictures())
    if not panels:
        raise ValueError(f"{title} has nothing to draw: its results are {list(result)}.")
    curves = all(panel.values.ndim == 1 for panel in panels)
    across = min(3 if curves else 5, len(panels))
    down = -(-len(panels) // across)
    width, room = (3.2, 1.6) if curves else (2.1, 1.55) if len(panels) > 2 else (3.4, 2.85)
    height = room if curves else max(_height(panel.values, room) for panel in panels if panel.values.ndim > 1) + 0.35
    numbers = [f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in result.items() if _is_number(value)]
    volume = isinstance(result.get("map"), Tensor) and result["map"].ndim == 3
    heading = f"{title}{', middle slices' if volume else ''}: {', '.join(numbers)}"
    heading = textwrap.fill(heading, round(14 * (width * across + 0.3)))
    with _figure(width * across + 0.3, height * down + 0.25 * (2 + heading.count("\n"))) as figure:
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _show(figure, axes, panel.values, panel.limits)
            if panel.of_class and curves:
                axes.set_ylim(1.08 * panel.limits[0], 1.08 * panel.limits[1])
            axes.set_title(panel.title)
            if panel.matrix:
                if panel.down == "unit":
                    axes.set_aspect("auto")
                _count_from_zero(axes)
                axes.set_xlabel(panel.across)
                axes.set_ylabel(panel.down)
            elif panel.values.ndim == 2:
                _without_ticks(axes)
        figure.suptitle(heading, fontsize=9)
    return figure


@dataclass(frozen=True)
class _Panel:
    title: str
    values: Tensor
    limits: tuple[float, float]
    matrix: bool = False
    across: str = "feature j"
    down: str = "feature j*"
    of_class: bool = False


def _panels(result: Mapping[str, Any], pictures: Pictures) -> list[_Panel]:
    tensors = {name: value for name, value in result.items() if isinstance(value, Tensor) and value.ndim}
    tensors = {name: value for name, value in tensors.items() if name not in (*_TABLES, *_CHARTED)}
    per_class = tensors.pop("per_class", None)
    panels = []
    for name, value in tensors.items():
        values = _plane(value)
        matrix = values.ndim == 2 and "map" not in tensors
        heading = _TITLES.get(name, name.replace("_", " "))
        axes = _AXES.get(name, (_Panel.across, _Panel.down))
        panels.append(_Panel(heading, values, _limits(values, name), matrix, *axes))
    if per_class is not None:
        planes = {index: _plane(plane) for index, plane in enumerate(per_class) if plane.isfinite().any()}
        shown = dict(list(planes.items())[:_MOST_PANELS])
        limits = _limits(torch.stack(list(shown.values()))) if shown else (0.0, 1.0)
        for index, plane in shown.items():
            panels.append(_Panel(f"class {pictures.name(index)}", plane, limits, of_class=True))
    return panels


def show_input(axes: Axes, sample: Tensor, pictures: Pictures | None = None) -> None:
    """One input [C, *S] (or [F]): an image, a curve per channel, steps for a table, or a volume's middle slice."""
    denormalize = (pictures or Pictures()).denormalize
    sample = sample.detach().cpu().float()
    if denormalize is not None:
        sample = denormalize(sample).detach().cpu().float()
    if sample.ndim == 1:
        _steps(axes, sample, color="0.25")
        return
    if sample.ndim == 2:
        axes.plot(sample.T.numpy(), linewidth=0.8, color="0.25" if len(sample) == 1 else None)
        axes.set_xlim(-0.5, sample.shape[-1] - 0.5)
        return
    axes.imshow(_stretched(sample, stretch=denormalize is None).numpy())


def input_pixels(sample: Tensor, pictures: Pictures | None = None) -> Tensor:
    """One input [C, H, W] as the pixels [H, W, 3] that :func:`show_input` shows; a volume's middle slice."""
    denormalize = (pictures or Pictures()).denormalize
    sample = sample.detach().cpu().float()
    return _stretched(sample if denormalize is None else denormalize(sample).cpu().float(), stretch=denormalize is None)


def map_pixels(values: Tensor, limits: tuple[float, float]) -> Tensor:
    """A map [H, W] as pixels [H, W, 3] in the colours of the other pictures; grey where there is no value."""
    import matplotlib as mpl

    low, high = limits
    values = _plane(values)
    colours = mpl.colormaps[_SIGNED if low < 0 else _UNSIGNED]
    pixels = torch.from_numpy(colours(((values.nan_to_num(0.0) - low) / (high - low)).clamp(0, 1).numpy())[..., :3])
    return torch.where(values.isfinite().unsqueeze(-1), pixels, float(_NOTHING_HERE))


def map_limits(values: Tensor, name: str = "") -> tuple[float, float]:
    """The ends of one colour scale for maps [N, *S]: centred on zero, unless the quantity ``name`` has no sign."""
    return _limits(values.detach().cpu().float(), name)


def _stretched(sample: Tensor, stretch: bool) -> Tensor:
    """An input [C, *S] as pixels [H, W, 3] from 0 to 1: over its own range, or as it is."""
    if sample.ndim == 4:
        sample = sample[:, sample.shape[1] // 2]
    if stretch:
        low, high = sample.min(), sample.max()
        sample = (sample - low) / (high - low if high > low else 1.0)
    sample = sample.clamp(0, 1)
    return (sample if sample.shape[0] == 3 else sample.mean(0, keepdim=True).expand(3, -1, -1)).movedim(0, -1)


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_STYLE["savefig.dpi"])


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _plane(values: Tensor) -> Tensor:
    """Values [*S] as a curve or a plane: of a volume the middle slice."""
    values = values.detach().cpu().float()
    return values[values.shape[0] // 2] if values.ndim == 3 else values


def _limits(values: Tensor, name: str = "") -> tuple[float, float]:
    """The ends of a colour scale: centred on zero, unless the quantity of that name has no sign."""
    finite = values[values.isfinite()]
    unsigned = name.rpartition("/")[2] in _UNSIGNED_NAMES
    end = float(finite.abs().max()) if finite.numel() else 1.0
    return (0.0 if unsigned else -(end or 1.0)), end or 1.0


def _show(figure: Figure, axes: Axes, values: Tensor, limits: tuple[float, float]) -> None:
    low, high = limits
    if values.ndim == 1:
        axes.axhline(0, color="0.6", linewidth=0.6)
        _steps(axes, values, color="C0")
        for start, stop in _runs(~values.isfinite()):
            axes.axvspan(start - 0.5, stop - 0.5, color=_NOTHING_HERE, linewidth=0, zorder=0)
        return
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(_NOTHING_HERE)
    image = axes.imshow(values.numpy(), cmap=_SIGNED if low < 0 else _UNSIGNED, vmin=low, vmax=high)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=16)
    bar.locator = MaxNLocator(4, symmetric=low < 0)
    bar.ax.ticklabel_format(axis="y", scilimits=(-2, 3))
    bar.ax.tick_params(length=2, labelsize=6)
    bar.ax.yaxis.get_offset_text().set_fontsize(6)
    bar.outline.set_visible(False)
    bar.update_ticks()


def _count_from_zero(axes: Axes) -> None:
    """Ticks at whole numbers, as rows and columns have no others."""
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _steps(axes: Axes, values: Tensor, color: str) -> None:
    """A level per cell [F], also for a cell whose neighbours have none."""
    edges = torch.arange(len(values) + 1) - 0.5
    axes.stairs(values.numpy(), edges.numpy(), baseline=None, color=color, linewidth=1.0)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)


def _runs(marked: Tensor) -> list[tuple[int, int]]:
    """Where marked cells [F] begin and end."""
    changes = torch.nn.functional.pad(marked.int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(changes[::2], changes[1::2], strict=True))


def _height(values: Tensor, width: float) -> float:
    """How high a picture of values [..., H, W] is at a width, within reason."""
    rows, columns = values.shape[-2:]
    return width * min(max(rows / columns, 0.4), 2.0)


def _slice(values: Tensor) -> str:
    """What to add to the title of values [*S]."""
    return ", middle slice" if values.ndim == 3 else ""


def _without_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _borders(axes: Axes, cells: Tensor) -> None:
    from matplotlib.collections import LineCollection

    lines = [((x + 0.5, y - 0.5), (x + 0.5, y + 0.5)) for y, x in (cells.diff(dim=1) != 0).nonzero().tolist()]
    lines += [((x - 0.5, y + 0.5), (x + 0.5, y + 0.5)) for y, x in (cells.diff(dim=0) != 0).nonzero().tolist()]
    axes.add_collection(LineCollection(lines, colors="C3", linewidths=0.8))


def _caption(explained: Mapping[str, Tensor], row: int, pictures: Pictures) -> str:
    target, prediction = int(explained["target"][row]), int(explained["prediction"][row])
    seen = "" if prediction == target else f"\nseen as {pictures.name(prediction)}"
    return f"#{int(explained['sample_id'][row])}\n{pictures.name(target)}{seen}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)
