"""Pictures of what a metric computed: a panel for each result that is no number, by its declaration."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai import results as declarations
from lightning_xai.figures import canvas
from lightning_xai.figures.canvas import Pictures
from lightning_xai.results import Labels, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FOR, _AGAINST, _NEITHER = "#b2182b", "#2166ac", "0.55"
_MOST_PANELS = 16
_MOST_BARS = 20
_MOST_NAMES = 24
_PAGE = 10.6  # inches across


@dataclass(frozen=True)
class Panel:
    """Describes one part of a picture.

    Attributes:
        title: What it shows.
        width: In inches.
        height: In inches.
        draw: Draws into axes.
        is_map: Whether it is a map over the input, which stand together.
    """

    title: str
    width: float
    height: float
    draw: Callable[[Axes], None]
    is_map: bool = False


def draw_results(
    results: Mapping[str, Result],
    values: Mapping[str, Any],
    title: str,
    pictures: Pictures | None = None,
    *,
    labels: Labels | None = None,
) -> Figure:
    """Draw what a metric computed, its numbers as the heading and every other result as a panel.

    Args:
        results: The declarations, e.g. ``Importance.results``.
        values: What ``compute()`` gave.
        title: The metric's name.
        pictures: The names of the classes.
        labels: The names of the entries of an axis, by axis.

    Raises:
        ValueError: If every result is a number, or a value is not what is declared.
    """
    panels = panels_of(results, values, pictures, labels)
    if not panels:
        raise ValueError(f"{title} has nothing to draw, as all of its results are numbers: {', '.join(values)}.")
    found = declarations.declared(results, values)
    beside = declarations.companions(found)
    numbers = [
        each.describe(values[key], values.get(each.error or "", math.nan))
        for key, each in found.items()
        if isinstance(each, declarations.Number) and key not in beside and each.shows(values[key])
    ]
    rows = _rows(panels)
    width = max(sum(panel.width for panel in row) for row in rows) + 0.3
    heights = [max(panel.height for panel in row) for row in rows]
    heading = textwrap.fill(f"{title}: {', '.join(numbers)}", round(14 * width))
    with canvas.new_figure(width, sum(heights) + 0.25 * (2 + heading.count("\n"))) as figure:
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            widths = [panel.width for panel in row]
            while sum(widths) + row[-1].width <= width:  # maps of all rows are of one size
                widths.append(row[-1].width)
            grid = part.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
            for axes, panel in zip(grid, row, strict=False):
                _draw(axes, panel)
            for axes in grid[len(row) :]:
                axes.set_visible(False)
        figure.suptitle(heading, fontsize=9)
    return figure


def draw_into(
    ax: Any, results: Mapping[str, Result], values: Mapping[str, Any], title: str, *, labels: Labels | None = None
) -> list[Axes]:
    """Draw the panels of :func:`draw_results` into existing axes, as many as there are panels.

    Raises:
        ValueError: If there are more or fewer axes than panels.
    """
    panels = panels_of(results, values, None, labels)
    axes = list(getattr(ax, "flat", ax if isinstance(ax, Sequence) else [ax]))
    if len(axes) != len(panels):
        titles = ", ".join(panel.title.replace("\n", " ") for panel in panels)
        raise ValueError(f"{title} has {len(panels)} panels ({titles}): ax must be as many axes, got {len(axes)}.")
    for each, panel in zip(axes, panels, strict=True):
        _draw(each, panel)
    return axes


def panels_of(
    results: Mapping[str, Result],
    values: Mapping[str, Any],
    pictures: Pictures | None = None,
    labels: Labels | None = None,
) -> list[Panel]:
    """List the panels of results, in their order; the arguments are those of :func:`draw_results`."""
    labels = {"class": (pictures or Pictures()).class_names or (), **(labels or {})}
    return [
        panel
        for key, result in declarations.declared(results, values).items()
        if isinstance(result, DRAWN)
        for panel in _BY_KIND[type(result)](_Drawn(result, values[key].detach().cpu(), values, results, labels))
    ]


@dataclass(frozen=True)
class _Drawn:
    """Holds a result with its value, and those around it."""

    result: Any  # a Result of the kind that is drawn
    value: Tensor
    values: Mapping[str, Any]
    results: Mapping[str, Result]
    labels: Labels

    def names(self, axis: str, indices: Sequence[int]) -> list[str]:
        return [str(declarations.name_of(self.labels, axis, index)) for index in indices]


def _draw(axes: Axes, panel: Panel) -> None:
    panel.draw(axes)
    axes.set_title(panel.title)


def _rows(panels: list[Panel]) -> list[list[Panel]]:
    """Arrange panels in rows; several maps do not share a row with charts."""
    rows: list[list[Panel]] = [[]]
    for panel in panels:
        mixed = len(rows[-1]) > 1 and rows[-1][-1].is_map and not panel.is_map
        if mixed or sum(other.width for other in rows[-1]) + panel.width > _PAGE:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _maps(drawn: _Drawn) -> Iterator[Panel]:
    result, value = drawn.result, drawn.value
    maps = enumerate(value if result.axes else value.unsqueeze(0))
    shown = [(index, canvas.plane(each)) for index, each in maps if not result.axes or bool(each.isfinite().any())]
    planes = dict(shown[:_MOST_PANELS])
    limits = canvas.map_limits(torch.stack([*planes.values()]), result.signed) if planes else (0.0, 1.0)
    for index, values in planes.items():
        title = f"{result.title}{canvas.slice_note(value)}"
        if result.axes:
            title = f"{result.axes[0]} {declarations.name_of(drawn.labels, result.axes[0], index)}"

        def draw(axes: Axes, values: Tensor = values) -> None:
            canvas.show_map(axes, values, limits, "" if result.axes else result.unit)
            if values.ndim == 2:
                canvas.remove_ticks(axes)
                return
            axes.set_ylabel(result.unit)
            if result.axes:
                axes.set_ylim(1.08 * limits[0], 1.08 * limits[1])

        size = (3.2, 1.7) if values.ndim == 1 else (2.1, canvas.height_at(values, 1.55) + 0.35)
        yield Panel(textwrap.fill(title, 30 if values.ndim == 1 else 22), *size, draw, is_map=True)


def _curve(drawn: _Drawn) -> Iterator[Panel]:
    result = drawn.result

    def draw(axes: Axes) -> None:
        if result.extent is None:
            canvas.show_map(axes, drawn.value.float(), canvas.map_limits(drawn.value, result.signed))
            _name_ticks(axes.xaxis, drawn, result.axes[0], len(drawn.value))
        else:
            axes.plot(result.places(len(drawn.value)), drawn.value.tolist(), linewidth=1.4)
        axes.set_xlabel(result.axes[0])
        axes.set_ylabel(result.unit)

    yield Panel(textwrap.fill(result.title, 30), 3.2, 1.9, draw)


def _matrix(drawn: _Drawn) -> Iterator[Panel]:
    result, values = drawn.result, drawn.value.float()
    down, across = result.axes
    title, apart = result.title, drawn.values.get(result.apart or "")
    if apart is not None and bool(apart.any()):
        values = values.masked_fill(apart.cpu(), float("nan"))
        title += f" (grey: {int(apart.sum())} {drawn.results[result.apart].title})"

    def draw(axes: Axes) -> None:
        canvas.show_map(axes, values, canvas.map_limits(values, result.signed), result.unit)
        if len(set(values.shape)) > 1:
            axes.set_aspect("auto")
        for axis, name, length in ((axes.xaxis, across, values.shape[1]), (axes.yaxis, down, values.shape[0])):
            _name_ticks(axis, drawn, name, length)
        axes.set_xlabel(across)
        axes.set_ylabel(down)

    yield Panel(textwrap.fill(title, 34), 3.4, 3.0, draw)


def _histogram(drawn: _Drawn) -> Iterator[Panel]:
    result, counts = drawn.result, drawn.value.double()
    edges = torch.linspace(result.extent[0], result.extent[1], len(counts) + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).round(decimals=6).tolist()

    def draw(axes: Axes) -> None:
        colours = [_colour(middle, result.signed) for middle in middles]
        axes.bar(edges[:-1].numpy(), counts.numpy(), width=edges.diff().numpy(), align="edge", color=colours)
        if float(counts.max()) > 0:
            from matplotlib.ticker import LogFormatter, NullFormatter

            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the default one writes formulas
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(*result.extent)
        axes.set_ylabel(result.unit)

    yield Panel(result.title, 3.6, 2.4, draw)


def _bars(drawn: _Drawn) -> Iterator[Panel]:
    """Draw the strongest entries from the top; the title counts those apart from the ranking."""
    result, value = drawn.result, drawn.value
    places, apart = declarations.strongest(value, drawn.values.get(result.apart or ""))
    shown = places[:_MOST_BARS]
    first, *further = (axis.tolist() for axis in torch.unravel_index(shown, value.shape))
    names = ["/".join(map(str, name)) for name in zip(drawn.names(result.axes[0], first), *further, strict=True)]
    title = f"{result.title}\nof {value.numel()} {result.axes[0]}s"
    if len(shown) < value.numel():
        title = f"{result.title}\nstrongest {len(shown)} of {value.numel()} {result.axes[0]}s"
    if len(apart):
        title += f"\nand {len(apart)} {drawn.results[str(result.apart)].title}, not shown"

    def draw(axes: Axes) -> None:
        _draw_bars(axes, names, value.flatten()[shown].tolist(), result)

    yield Panel(title, 2.4, 0.16 * max(len(shown), 4) + 0.9, draw)


def _layers(drawn: _Drawn) -> Iterator[Panel]:
    """Draw every layer from the output down to the input, then the numbers beside them."""
    result = drawn.result
    names = drawn.names(result.axes[0], range(len(drawn.value)))[::-1]
    beside = [key for key in result.beside if key in drawn.values]
    values = [*drawn.value.double().flip(0).tolist(), *(float(drawn.values[key]) for key in beside)]
    labels = [*names, *(drawn.results[key].title for key in beside)]

    def draw(axes: Axes) -> None:
        _draw_bars(axes, labels, values, result, neutral=len(beside))
        axes.axvline(1, color="0.4", linewidth=0.6, linestyle=":")

    yield Panel(result.title, 4.2, 0.16 * max(len(labels), 4) + 0.9, draw)


_BY_KIND: dict[type[Result], Callable[[_Drawn], Iterator[Panel]]] = {
    declarations.Map: _maps,
    declarations.Curve: _curve,
    declarations.Matrix: _matrix,
    declarations.Histogram: _histogram,
    declarations.PerFeature: _bars,
    declarations.PerUnit: _bars,
    declarations.PerLayer: _layers,
}
DRAWN = tuple(_BY_KIND)  # the kinds of results that have panels


def _draw_bars(axes: Axes, names: Sequence[str], values: Sequence[float], result: Result, neutral: int = 0) -> None:
    colours = [_colour(value, result.signed) for value in values]
    colours[len(values) - neutral :] = [_NEITHER] * neutral
    axes.barh(range(len(values)), values, color=colours)
    axes.set_yticks(range(len(values)), names, fontsize=6)
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.6)
    axes.set_xlabel(result.unit)


def _colour(value: float, signed: bool) -> str:
    if not signed:
        return "C0"
    return _NEITHER if value == 0 else _FOR if value > 0 else _AGAINST


def _name_ticks(axis: Any, drawn: _Drawn, name: str, length: int) -> None:
    """Put ticks at the entries by their names where they fit, and at whole numbers otherwise."""
    if drawn.labels.get(name) and length <= _MOST_NAMES:
        axis.set_ticks(range(length), drawn.names(name, range(length)), fontsize=6)
        axis.set_tick_params(rotation=90 if axis.axis_name == "x" else 0)
    else:
        canvas.whole_ticks(axis)
