"""Pictures of re-activation: where it comes from, which units it reaches, and both together."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai.figures import _figure, _height, _is_number, _limits, _plane, _show, _slice, _without_ticks
from lightning_xai.regions import Regions
from lightning_xai.units.counts import Reactivation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BARS = 16


def draw_reactivation(result: Mapping[str, Any], title: str) -> Figure:
    r"""The counts over the input, the strongest features and units as bars, and a heat map of features and units.

    Args:
        result: What ``Reactivation.compute()`` gave, or :func:`as_result`: ``by_feature`` [\*S], ``by_unit``, and
            ``by_feature_and_unit`` [J, K] if there is one.
        title: The metric's name.
    """
    painted, by_unit = result["by_feature"].detach().cpu(), result["by_unit"].detach().cpu()
    matrix = result.get("by_feature_and_unit")
    names = [f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in result.items() if _is_number(value)]
    map_width = 3.0 if painted.ndim == 1 else 2.4
    widths = [map_width, *([1.7, 1.7, 3.4] if matrix is not None else [1.9])]
    height = 2.6 if painted.ndim == 1 else min(max(_height(painted, 2.2) + 0.5, 2.4), 3.4)
    heading = textwrap.fill(f"{title}: {', '.join(names)}", round(13 * sum(widths)))
    with _figure(sum(widths) + 0.4, height + 0.2 * (1 + heading.count("\n"))) as figure:
        panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        values = _plane(painted)
        _show(figure, panels[0], values, (0.0, _limits(values)[1]))
        panels[0].set_title(f"re-activations{_slice(painted)}")
        if values.ndim == 2:
            _without_ticks(panels[0])
        if matrix is not None:
            matrix = matrix.detach().cpu()
            _bars(panels[1], matrix.sum(1), "features j")
            _bars(panels[2], by_unit, "units k", result.get("dead_units"))
            counts = matrix.float()
            _show(figure, panels[3], counts, (0.0, max(1.0, float(counts.max()))))
            panels[3].set_aspect("auto")
            panels[3].set_xlabel("unit k")
            panels[3].set_ylabel("feature j")
            panels[3].set_title("samples in which j re-activates k")
        else:
            _bars(panels[1], by_unit, "positions k")
        figure.suptitle(heading, fontsize=9)
    return figure


def as_result(found: Reactivation, regions: Regions, inputs: Tensor) -> dict[str, Any]:
    """Counts as :func:`draw_reactivation` takes them.

    Args:
        found: What :func:`lightning_xai.units.reactivation` gave.
        regions: The features, the same in every sample.
        inputs: The inputs [N, C, *S], of which the size is taken.
    """
    bound = regions.bind(inputs[:1])
    result: dict[str, Any] = {
        "samples": found.samples,
        "total": found.total,
        "per_window": found.per_window,
        "per_change": found.per_change,
        "by_feature": bound.paint(found.by_feature.double().unsqueeze(0))[0],
        "by_unit": found.by_unit,
    }
    if found.by_feature_and_unit is not None:
        result["by_feature_and_unit"] = found.by_feature_and_unit
    return result


def _bars(axes: Axes, counts: Tensor, what: str, dead: Tensor | None = None) -> None:
    """The strongest of some counts, from the top; those of units that never were active in grey."""
    flat = counts.flatten()
    order = flat.argsort(descending=True, stable=True)[:_MOST_BARS]
    places = torch.unravel_index(order, counts.shape)
    labels = ["/".join(map(str, place)) for place in zip(*(axis.tolist() for axis in places), strict=True)]
    grey = torch.zeros(len(order), dtype=torch.bool) if dead is None else dead.detach().cpu().flatten()[order]
    axes.barh(range(len(order)), flat[order].tolist(), color=["0.7" if each else "C0" for each in grey])
    axes.set_yticks(range(len(order)), labels, fontsize=6)
    axes.invert_yaxis()
    left = f"strongest {len(order)}\nof {len(flat)} {what}" if len(flat) > len(order) else f"all {what}"
    axes.set_title(f"{left}\n(grey: never active)" if bool(grey.any()) else left)
