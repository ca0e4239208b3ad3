"""Pictures of texts: tokens on the colours of their maps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_xai.figures import canvas
from lightning_xai.figures.canvas import Pictures
from lightning_xai.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHARACTERS = 44  # of a line
_INCHES = 3.3  # its width
_LINE_INCHES = 0.17
_LONGEST_WORD = 24


def is_text(inputs: Tensor) -> bool:
    """Tell whether inputs are ids of tokens [N, T]."""
    return inputs.ndim == 2 and not inputs.is_floating_point()


def words_of(ids: Tensor, pictures: Pictures) -> list[str]:
    """Return the tokens of ids [T]: by ``Pictures(words=...)``, or their numbers."""
    numbers = ids.tolist()
    if pictures.words is None:
        return [str(number) for number in numbers]
    words = list(pictures.words(numbers))
    if len(words) != len(numbers):
        raise ValueError(f"words must return one word per id, got {len(words)} for {len(numbers)} ids.")
    return [textwrap.shorten(str(word), _LONGEST_WORD, placeholder="…") or "␣" for word in words]


def wrapped(words: Sequence[str]) -> list[tuple[int, int]]:
    """Place words in lines: the line and the first character of each.

    >>> wrapped(["a" * 20, "b" * 20, "c" * 20])
    [(0, 0), (0, 21), (1, 0)]
    """
    places, line, start = [], 0, 0
    for word in words:
        if start and start + len(word) > _CHARACTERS:
            line, start = line + 1, 0
        places.append((line, start))
        start += len(word) + 1
    return places


def draw_texts(
    explained: Mapping[str, Tensor],
    columns: Mapping[str, Result],
    caption: Callable[[int], str],
    pictures: Pictures,
) -> Figure:
    """Draw texts row by row, once per map, every token on the colour of its value; tokens without one are grey.

    Args:
        explained: Per-sample tensors [N, ...] by name, ids ``input`` [N, T] among them.
        columns: The declarations of the maps [N, T] to draw, by their names.
        caption: Says which sample a row shows.
        pictures: How to draw them.
    """
    rows = min(pictures.samples, len(explained["input"]))
    shown = [_shown(explained, list(columns), row) for row in range(rows)]
    words = [words_of(explained["input"][row, :length], pictures) for row, length in enumerate(shown)]
    lines = [wrapped(some)[-1][0] + 1 for some in words]
    width = _INCHES * len(columns) + 1.1
    heights = [count * _LINE_INCHES + 0.35 for count in lines]
    with canvas.new_figure(width, sum(heights) + 0.4) as figure:
        grid = figure.subplots(rows, len(columns), squeeze=False, height_ratios=heights)
        for row in range(rows):
            grid[row, 0].set_ylabel(caption(row), rotation=0, ha="right", va="center")
            for axes, (name, result) in zip(grid[row], columns.items(), strict=True):
                values = explained[name][row, : shown[row]].detach().cpu().float()
                _draw_words(axes, words[row], values, result.signed, lines[row])
                if row == 0:
                    axes.set_title(textwrap.fill(result.title, 40))
    return figure


def _shown(explained: Mapping[str, Tensor], columns: Sequence[str], row: int) -> int:
    """How many tokens are drawn: up to the last one that has a value in some map."""
    there = torch.stack([(explained[name][row].nan_to_num(0.0) != 0).cpu() for name in columns]).any(0)
    last = there.nonzero().flatten()
    return int(last[-1]) + 1 if len(last) else explained["input"].shape[1]


def _draw_words(axes: Axes, words: Sequence[str], values: Tensor, signed: bool, lines: int) -> None:
    limits = canvas.map_limits(values, signed)
    colours = canvas.map_pixels(values.unsqueeze(0), limits)[0]
    axes.set(xlim=(0, _CHARACTERS), ylim=(lines - 0.3, -0.7))
    canvas.remove_ticks(axes)
    for word, (line, start), colour in zip(words, wrapped(words), colours.tolist(), strict=True):
        dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 0.45
        axes.text(
            start,
            line,
            word,
            family="monospace",
            fontsize=7.5,
            va="center",
            color="white" if dark else "black",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2},
        )
