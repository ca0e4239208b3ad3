"""Pictures of relevance over an input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lightning_xai.figures import canvas
from lightning_xai.figures.canvas import Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_heat_map(relevance: Tensor, sample: Tensor, pictures: Pictures | None = None) -> Figure:
    r"""Draw one sample, its relevance, and the relevance over the sample's outlines.

    Args:
        relevance: A map [\*S], as :func:`lightning_xai.relevance.pool_channels` gives it for one sample.
        sample: The input [C, \*S], or [F].
        pictures: How to draw the input.

    Raises:
        ValueError: If the two have different spatial shapes.
    """
    spatial = sample.shape[1:] or sample.shape
    if relevance.shape != spatial:
        raise ValueError(f"relevance must be {list(spatial)} as the sample is, got {list(relevance.shape)}.")
    values = canvas.plane(relevance)
    limits = canvas.map_limits(values)
    if values.ndim == 1:
        with canvas.new_figure(3.6, 3.0) as figure:
            upper, lower = figure.subplots(2, 1, sharex=True)
            canvas.show_input(upper, sample, pictures)
            canvas.show_map(lower, values, limits)
            upper.set_title("input")
            lower.set_title("relevance")
        return figure
    with canvas.new_figure(6.6, canvas.height_at(values, 2.0) + 0.4) as figure:
        grid = figure.subplots(1, 3)
        canvas.show_input(grid[0], sample, pictures)
        canvas.show_map(grid[1], values, limits)
        grey = canvas.input_pixels(sample, pictures).mean(-1, keepdim=True)
        # The stronger the relevance, the more of its colour.
        weight = (values.abs() / max(abs(limits[0]), limits[1])).nan_to_num(0.0).unsqueeze(-1)
        blend = weight * canvas.map_pixels(values, limits).float() + (1 - weight) * grey
        grid[2].imshow(blend.clamp(0, 1).numpy())
        titles = (f"input{canvas.slice_note(relevance)}", "relevance", "both")
        for axes, title in zip(grid, titles, strict=True):
            axes.set_title(title)
            canvas.remove_ticks(axes)
    return figure
