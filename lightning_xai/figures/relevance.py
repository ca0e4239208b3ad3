"""Pictures of relevance: over an input, as a histogram, per feature, and its way through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_xai.figures import (
    Pictures,
    _figure,
    _height,
    _limits,
    _plane,
    _show,
    _slice,
    _without_ticks,
    input_pixels,
    map_pixels,
    show_input,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOR, _AGAINST, _NEITHER = "#b2182b", "#2166ac", "0.55"
_MOST_BARS = 30


def draw_heat_map(relevance: Tensor, sample: Tensor, pictures: Pictures | None = None) -> Figure:
    r"""One sample, its relevance, and the relevance over the sample's outlines.

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
    values = _plane(relevance)
    limits = _limits(values)
    if values.ndim == 1:
        with _figure(3.6, 3.0) as figure:
            upper, lower = figure.subplots(2, 1, sharex=True)
            show_input(upper, sample, pictures)
            _show(figure, lower, values, limits)
            upper.set_title("input")
            lower.set_title("relevance")
        return figure
    with _figure(6.6, _height(values, 2.0) + 0.4) as figure:
        grid = figure.subplots(1, 3)
        show_input(grid[0], sample, pictures)
        _show(figure, grid[1], values, limits)
        grey = input_pixels(sample, pictures).mean(-1, keepdim=True)
        # The stronger the relevance, the more of its colour.
        weight = (values.abs() / max(abs(limits[0]), limits[1])).nan_to_num(0.0).unsqueeze(-1)
        blend = weight * map_pixels(values, limits).float() + (1 - weight) * grey
        grid[2].imshow(blend.clamp(0, 1).numpy())
        titles = (f"input{_slice(relevance)}", "relevance", "both")
        for axes, title in zip(grid, titles, strict=True):
            axes.set_title(title)
            _without_ticks(axes)
    return figure


def draw_histogram(counts: Tensor, title: str) -> Figure:
    """How many cells have which relevance, in units of the strongest cell of their sample, on a logarithmic scale.

    Args:
        counts: Counts in equal intervals from -1 to 1.
        title: The metric's name.
    """
    counts = counts.detach().cpu().double()
    edges = torch.linspace(-1, 1, len(counts) + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).round(decimals=6).tolist()
    colours = [_NEITHER if middle == 0 else _FOR if middle > 0 else _AGAINST for middle in middles]
    with _figure(4.2, 2.4) as figure:
        axes = figure.subplots()
        axes.bar(edges[:-1].numpy(), counts.numpy(), width=2 / len(counts), align="edge", color=colours)
        if float(counts.max()) > 0:
            axes.set_yscale("log")
        axes.set_xlim(-1, 1)
        axes.set_xlabel("relevance ÷ strongest of the sample")
        axes.set_ylabel("cells")
        axes.set_title(f"{title}: histogram")
    return figure


def draw_shares(shares: Tensor, title: str, names: Sequence[str] | None = None) -> Figure:
    """The share of relevance per feature, the strongest features from the top.

    Args:
        shares: Signed shares [J] of the magnitude.
        title: The metric's name.
        names: The features' names; their numbers unless given.

    Raises:
        ValueError: If there are not as many names as shares.
    """
    shares = shares.detach().cpu().double().nan_to_num(0.0)
    labels = [f"feature {feature}" for feature in range(len(shares))] if names is None else [str(n) for n in names]
    if len(labels) != len(shares):
        raise ValueError(f"names must be one per feature: got {len(labels)} for {len(shares)}.")
    order = shares.abs().argsort(descending=True, stable=True)[:_MOST_BARS].tolist()
    left = f" (strongest {_MOST_BARS} of {len(shares)})" if len(shares) > _MOST_BARS else ""
    values = [float(shares[feature]) for feature in order]
    with _figure(4.2, 0.16 * len(order) + 0.8) as figure:
        axes = figure.subplots()
        colours = [_FOR if value > 0 else _AGAINST for value in values]
        axes.barh(range(len(order)), [100 * value for value in values], color=colours)
        axes.set_yticks(range(len(order)), [labels[feature] for feature in order])
        axes.invert_yaxis()
        axes.axvline(0, color="0.4", linewidth=0.6)
        axes.set_xlabel("share of the relevance's magnitude, %")
        axes.set_title(f"{title}: share per feature{left}")
    return figure


def draw_ledger(ledger: Tensor, layers: Sequence[str], title: str, ends: Mapping[str, float] | None = None) -> Figure:
    """The relevance of every layer, from the output down to the input, as a share of the score.

    Args:
        ledger: Shares [L] in the order of the forward pass.
        layers: The layers' names.
        title: The metric's name.
        ends: What arrives at the input, or is absorbed on the way, as shares by name.

    Raises:
        ValueError: If there are not as many layers as shares.
    """
    if len(layers) != len(ledger):
        raise ValueError(f"layers must be one per share: got {len(layers)} for {len(ledger)}.")
    values = [100 * value for value in ledger.detach().cpu().double().flip(0).tolist()]
    labels = [name or "the model itself" for name in reversed(layers)]
    colours = [_FOR if value > 0 else _AGAINST for value in values]
    for name, share in (ends or {}).items():
        labels.append(f"to {name}")
        values.append(100 * share)
        colours.append(_NEITHER)
    with _figure(4.6, 0.16 * len(labels) + 0.8) as figure:
        axes = figure.subplots()
        axes.barh(range(len(labels)), values, color=colours)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(0, color="0.4", linewidth=0.6)
        axes.axvline(100, color="0.4", linewidth=0.6, linestyle=":")
        axes.set_xlabel("relevance, % of the score")
        axes.set_title(f"{title}: conservation ledger, output to input")
    return figure
