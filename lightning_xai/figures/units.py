"""Pictures of units: what they detect, their strongest samples, and the inputs that they respond to most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai.figures import canvas
from lightning_xai.figures.canvas import Pictures
from lightning_xai.regions import Regions
from lightning_xai.resizing import resize
from lightning_xai.units.concepts import NO_CONCEPT
from lightning_xai.units.counts import ReactivationResult
from lightning_xai.units.dissection import DissectionResult
from lightning_xai.units.field import ReceptiveField
from lightning_xai.units.search import NO_SAMPLE, SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OUTLINE = "#ffd400"
_LINE = "C3"
_WIDTH = 1.35
_MOST_UNITS = 16


def draw_units(
    inputs: Tensor,
    activations: Tensor,
    strongest: SearchResult,
    threshold: Tensor,
    *,
    units: Sequence[int] | None = None,
    titles: Mapping[int, str] | None = None,
    pictures: Pictures | None = None,
) -> Figure:
    r"""Draw a row per unit: its strongest samples, with what lies above its threshold outlined and the rest dimmed.

    Args:
        inputs: Inputs [N, C, \*S]; sample i has the id i.
        activations: What the layer gives for them, [N, U, \*P].
        strongest: The samples to show.
        threshold: T [U].
        units: Which units, in order; the first ones unless given.
        titles: What to write beside a unit besides its number, e.g. :func:`detected`.
        pictures: How to draw inputs, and how many per unit.

    Raises:
        ValueError: If there is no sample of an id.
    """

    def show(axes: Axes, unit: int, _place: int, sample: int) -> None:
        canvas.show_input(axes, inputs[sample], pictures)
        activation = activations[sample : sample + 1, unit : unit + 1].detach().cpu().float()
        _outline(axes, resize(activation, inputs.shape[2:])[0, 0] > float(threshold[unit]))
        axes.set_title(f"#{sample}", fontsize=6, pad=2)

    return _draw_rows(inputs, strongest, units, titles, pictures, show)


def detected(found: DissectionResult) -> dict[int, str]:
    """Title the units of :func:`draw_units`: the best concept and its IoU, a star for a detector."""
    best, iou, star = found.best.tolist(), found.best_iou.tolist(), found.is_detector.tolist()
    return {
        unit: "no concept"
        if concept == NO_CONCEPT
        else f"{found.concepts.names[concept]}\n{iou[unit]:.2f}{' *' * star[unit]}"
        for unit, concept in enumerate(best)
    }


def reactivation_values(found: ReactivationResult, regions: Regions, inputs: Tensor) -> dict[str, Any]:
    """Key a result of :func:`lightning_xai.units.reactivation` as ``metrics.Reactivation.results`` declares it.

    Args:
        found: The counts.
        regions: The features, the same in every sample.
        inputs: The inputs [N, C, *S], of which the size is taken.
    """
    painted = regions.bind(inputs[:1]).paint(found.by_feature.double().unsqueeze(0))[0]
    keys = ("samples", "total", "per_window", "per_change", "by_feature", "by_unit", "by_feature_and_unit")
    values = {"map": painted, **{key: getattr(found, key) for key in keys}}
    return {key: value for key, value in values.items() if value is not None}


def draw_crops(
    inputs: Tensor,
    strongest: SearchResult,
    field: ReceptiveField,
    *,
    units: Sequence[int] | None = None,
    titles: Mapping[int, str] | None = None,
    pictures: Pictures | None = None,
) -> Figure:
    r"""Draw a row per unit: what it could see of its strongest samples, cut out by the receptive field.

    Args:
        inputs: Inputs [N, C, \*S]; sample i has the id i.
        strongest: The samples to show, and where in the layer's map they are strongest.
        field: The layer's receptive field.
        units: Which units, in order; the first ones unless given.
        titles: What to write beside a unit besides its number.
        pictures: How to draw inputs, and how many per unit.

    Raises:
        ValueError: If there is no sample of an id, or the positions do not fit the field.
    """

    def show(axes: Axes, unit: int, place: int, sample: int) -> None:
        box = field.box(strongest.position[unit, place].tolist())
        canvas.show_input(axes, inputs[sample][(slice(None), *box)], pictures)
        axes.set_title(f"#{sample}  {float(strongest.value[unit, place]):.3g}", fontsize=6, pad=2)

    return _draw_rows(inputs, strongest, units, titles, pictures, show)


def draw_maximized(
    inputs: Tensor, titles: Sequence[str] | None = None, pictures: Pictures | None = None, across: int = 4
) -> Figure:
    r"""Draw inputs side by side, e.g. those of :func:`lightning_xai.units.maximize_activation`.

    Args:
        inputs: Inputs [N, C, \*S].
        titles: One per input.
        pictures: How to draw inputs; ``denormalize`` should undo the normalisation.
        across: How many in a row.

    Raises:
        ValueError: If there are not as many titles as inputs.
    """
    if titles is not None and len(titles) != len(inputs):
        raise ValueError(f"titles must be one per input: got {len(titles)} for {len(inputs)} inputs.")
    across = min(across, len(inputs))
    down = -(-len(inputs) // across)
    width = 2.2
    with canvas.new_figure(width * across, (canvas.height_at(inputs, width) + 0.25) * down) as figure:
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(inputs) :]:
            axes.set_visible(False)
        for axes, each, title in zip(grid.flat, inputs, titles or [""] * len(inputs), strict=False):
            canvas.show_input(axes, each, pictures)
            canvas.remove_ticks(axes)
            axes.set_title(title)
    return figure


def _outline(axes: Axes, inside: Tensor) -> None:
    """Draw the border of some cells [*S] over an input; of a volume the middle slice."""
    if inside.ndim == 3:
        inside = inside[inside.shape[0] // 2]
    if inside.ndim == 1:
        for start, stop in canvas.runs_of(inside):
            axes.axvspan(start - 0.5, stop - 0.5, color=_LINE, alpha=0.25, linewidth=0)
        return
    veil = torch.zeros(*inside.shape, 4)
    veil[..., 3] = torch.where(inside, 0.0, 0.45)
    axes.imshow(veil.numpy())
    if bool(inside.any()) and not bool(inside.all()):
        axes.contour(inside.float().numpy(), levels=[0.5], colors=[_OUTLINE], linewidths=1.0)


def _draw_rows(
    inputs: Tensor,
    strongest: SearchResult,
    units: Sequence[int] | None,
    titles: Mapping[int, str] | None,
    pictures: Pictures | None,
    show: Callable[[Axes, int, int, int], None],
) -> Figure:
    """Draw a row per unit; ``show`` draws the sample of a unit at a place of its row."""
    largest = int(strongest.sample_id.max())
    if largest >= len(inputs):
        raise ValueError(
            f"there are {len(inputs)} inputs, but the strongest samples have ids up to {largest}: give all the data, "
            f"sample i at place i."
        )
    chosen = list(range(len(strongest.value))[:_MOST_UNITS] if units is None else units)
    across = min((pictures or Pictures()).samples, strongest.n)
    width, height = (2.2, 1.0) if inputs.ndim <= 3 else (_WIDTH, canvas.height_at(inputs, _WIDTH) + 0.15)
    with canvas.new_figure(width * across + 1.1, (height + 0.15) * len(chosen) + 0.1) as figure:
        grid = figure.subplots(len(chosen), across, squeeze=False)
        for row, unit in zip(grid, chosen, strict=True):
            title = (titles or {}).get(unit, "")
            row[0].set_ylabel(f"unit {unit}\n{title}".strip(), rotation=0, ha="right", va="center")
            for place, axes in enumerate(row):
                canvas.remove_ticks(axes)
                sample = int(strongest.sample_id[unit, place])
                if sample != NO_SAMPLE:
                    show(axes, unit, place, sample)
    return figure
