"""Pictures of inputs: their maps side by side, and the regions over them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_xai._checks import spatial_shape
from lightning_xai.figures import canvas
from lightning_xai.figures.canvas import Pictures
from lightning_xai.figures.text import draw_texts, is_text
from lightning_xai.regions import Regions
from lightning_xai.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def preview(regions: Regions, inputs: Tensor, index: int = 0) -> Figure:
    """Draw the regions over one sample: their borders, and how many cells and features there are.

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
    with canvas.new_figure(4.5, 4.2 if len(spatial_shape(inputs)) > 1 else 2.4) as figure:
        axes = figure.subplots()
        canvas.show_input(axes, inputs[index])
        cells = canvas.plane(cells)
        if cells.ndim == 2:
            _draw_borders(axes, cells.nan_to_num(-1.0))
        else:
            for border in (cells.nan_to_num(-1.0).diff() != 0).nonzero().flatten().tolist():
                axes.axvline(border + 0.5, color="C3", linewidth=0.8)
        share = float(covered.float().mean())
        axes.set_title(f"{bound.count} features over {share:.0%} of the cells{canvas.slice_note(covered)}")
    return figure


def draw_samples(
    explained: Mapping[str, Tensor], columns: Mapping[str, Result], pictures: Pictures | None = None
) -> Figure:
    """Draw samples row by row: the input, then one map per column, each on a scale of its own.

    Args:
        explained: Per-sample tensors [N, ...] by name; ``input``, ``target``, ``prediction`` and ``sample_id`` among
            them.
        columns: The declarations of the maps [N, *S] to draw, by their names.
        pictures: How to draw them.
    """
    pictures = pictures or Pictures()
    if is_text(explained["input"]):
        return draw_texts(explained, columns, lambda row: _caption(explained, row, pictures), pictures)
    rows = min(pictures.samples, len(explained["input"]))
    curves = explained["input"].ndim <= 3
    width, height = (3.0, 1.2) if curves else (1.85, canvas.height_at(explained["input"], 1.35) + 0.15)
    with canvas.new_figure(width * (1 + len(columns)) + 0.4, height * rows + 0.5) as figure:
        grid = figure.subplots(rows, 1 + len(columns), squeeze=False, sharex=curves)
        grid[0, 0].set_title(f"input{canvas.slice_note(explained['input'][0, 0])}")
        for row in range(rows):
            canvas.show_input(grid[row, 0], explained["input"][row], pictures)
            grid[row, 0].set_ylabel(_caption(explained, row, pictures), rotation=0, ha="right", va="center")
            for axes, (name, result) in zip(grid[row, 1:], columns.items(), strict=True):
                values = canvas.plane(explained[name][row])
                canvas.show_map(axes, values, canvas.map_limits(values, result.signed))
                if row == 0:
                    axes.set_title(textwrap.fill(result.title, 20))
        if not curves:
            for axes in grid.flat:
                canvas.remove_ticks(axes)
    return figure


def _draw_borders(axes: Axes, cells: Tensor) -> None:
    from matplotlib.collections import LineCollection

    lines = [((x + 0.5, y - 0.5), (x + 0.5, y + 0.5)) for y, x in (cells.diff(dim=1) != 0).nonzero().tolist()]
    lines += [((x - 0.5, y + 0.5), (x + 0.5, y + 0.5)) for y, x in (cells.diff(dim=0) != 0).nonzero().tolist()]
    axes.add_collection(LineCollection(lines, colors="C3", linewidths=0.8))


def _caption(explained: Mapping[str, Tensor], row: int, pictures: Pictures) -> str:
    target, prediction = (explained[name][row].item() for name in ("target", "prediction"))
    lines = [f"#{int(explained['sample_id'][row])}"]
    if "output" in explained:  # a regression
        lines += [f"output {int(explained['output'][row])}"] if explained["output"].any() else []
        lines += [] if isnan(target) else [f"target {target:.4g}"]
        return "\n".join([*lines, f"predicted {prediction:.4g}"])
    name = pictures.name(int(target))
    lines.append(name if explains_labels(explained) else f"explained class:\n{name}")
    return "\n".join(lines if prediction == target else [*lines, f"seen as {pictures.name(int(prediction))}"])


def explains_labels(explained: Mapping[str, Tensor]) -> bool:
    """Tell whether the explained classes of samples are their labels."""
    label = explained.get("label")
    target = explained.get("target")
    return target is not None and label is not None and label.shape == target.shape and bool((label == target).all())
