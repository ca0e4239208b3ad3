"""Mosaics: samples of several classes in one input, of which a map should mark the right one; no masks are needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_xai._checks import as_integer, check_inputs
from lightning_xai._guard import keyed_generator
from lightning_xai.attribution import Attribution
from lightning_xai.batching import is_out_of_memory
from lightning_xai.evaluation.localisation import relevance_mass
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.inputs import Inputs
from lightning_xai.resizing import resize
from lightning_xai.scores import as_target


@dataclass(frozen=True, eq=False)
class Mosaics:
    r"""Samples laid out in cells.

    Attributes:
        inputs: The mosaics [N, C, \*S], every axis as many times as long as there are cells along it.
        cell: The cell [N] that holds the sample itself, row by row.
        mask: The positions of that cell, Boolean [N, \*S].
        tiles: The background sample of every cell [N, cells], -1 for the sample itself.
    """

    inputs: Tensor
    cell: Tensor
    mask: Tensor
    tiles: Tensor


def mosaics(
    inputs: Tensor,
    target: Tensor | int | Sequence[int],
    background: Tensor,
    classes: Tensor | Sequence[int],
    *,
    cells: int = 2,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Mosaics:
    r"""Lay every sample out with others, of other and different classes: n cells along every axis.

    The sample's own cell and the others are drawn by its id from a background that is the same for all, never from the
    batch, so that a mosaic does not depend on the company of its sample.

    Args:
        inputs: Samples [N, C, \*S] with one or two spatial axes.
        target: Their classes [N].
        background: Other samples [B, C, \*S], whose classes the network knows.
        classes: Their classes [B].
        cells: n, the number of cells along every axis.
        seed: Keys the draws together with the samples' ids.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.

    Raises:
        TypeError: If the background is no tensor.
        ValueError: If the shapes do not fit, or the background has too few other classes.

    >>> found = mosaics(torch.ones(1, 1, 3), [0], torch.zeros(2, 1, 3), [1, 2])
    >>> found.inputs.shape, found.inputs.sum().item(), found.mask.sum().item()
    (torch.Size([1, 1, 6]), 3.0, 3)
    """
    ids = check_inputs(inputs, sample_ids)
    if not isinstance(background, Tensor):
        raise TypeError(f"background must be a tensor [B, C, *S], got {type(background).__name__}.")
    axes = inputs.ndim - 2
    if axes not in (1, 2):
        raise ValueError(f"mosaics need inputs [N, C, *S] with one or two spatial axes, got {list(inputs.shape)}.")
    if background.shape[1:] != inputs.shape[1:]:
        raise ValueError(
            f"background must hold samples like the inputs, {list(inputs.shape[1:])}, got {list(background.shape[1:])}."
        )
    own = as_target(target, len(ids))
    others = as_target(classes, len(background)) if len(background) else torch.empty(0, dtype=torch.long)
    if not isinstance(own, Tensor) or not isinstance(others, Tensor):
        raise ValueError("mosaics need the classes of the samples and of the background, as integers.")
    count = as_integer("cells", cells, least=2) ** axes
    tiles, place = [], []
    for sample, label in zip(ids, own.tolist(), strict=True):
        generator = keyed_generator(seed, "mosaic", sample)
        order = torch.randperm(len(background), generator=generator).tolist()
        chosen: dict[int, int] = {}
        for row in order:
            other = int(others[row])
            if other != label and other not in chosen:
                chosen[other] = row
        if len(chosen) < count - 1:
            raise ValueError(
                f"a mosaic of {count} cells needs {count - 1} other classes than {label}, the background has "
                f"{len(chosen)}: give more, or fewer cells."
            )
        cell = int(torch.randint(count, (), generator=generator))
        laid = list(chosen.values())[: count - 1]
        tiles.append([*laid[:cell], -1, *laid[cell:]])
        place.append(cell)
    return laid_out(inputs, background, torch.tensor(tiles), torch.tensor(place), cells)


def laid_out(inputs: Tensor, background: Tensor, tiles: Tensor, cell: Tensor, cells: int) -> Mosaics:
    """Lay samples out whose tiles [N, cells] are given."""
    axes, size = inputs.ndim - 2, inputs.shape[2:]
    whole = inputs.new_empty(*inputs.shape[:2], *(cells * length for length in size))
    mask = torch.zeros(len(inputs), *whole.shape[2:], dtype=torch.bool, device=inputs.device)
    for index, box in enumerate(_boxes(size, cells, axes)):
        tile = tiles[:, index]
        others = background[tile.clamp(min=0).to(background.device)].to(inputs)
        here = (tile == -1).view(-1, *[1] * (inputs.ndim - 1)).to(inputs.device)
        window: tuple[Any, ...] = (..., *box)
        whole[window] = torch.where(here, inputs, others)
        mask[window] = here.view(-1, *[1] * axes)
    return Mosaics(whole, cell, mask, tiles)


def gridpg(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int | Sequence[int],
    attribution: Attribution,
    *,
    background: Tensor,
    classes: Tensor | Sequence[int],
    shrink: bool = False,
    **options: Any,
) -> Tensor:
    r"""Play the grid pointing game: the share of positive relevance in the right cell [N]; high is good.

    .. math:: \frac{\sum_{p \in cell} \max(\tilde a_p, 0)}{\sum_p \max(\tilde a_p, 0)}

    A constant positive map scores 1 / (number of cells). One map of the whole mosaic.

    Args:
        model: The network; it must take inputs of the size of a mosaic.
        inputs: Samples [N, C, \*S] with one or two spatial axes.
        target: Their classes [N].
        attribution: What is measured.
        background: Other samples [B, C, \*S].
        classes: Their classes [B].
        shrink: Shrink the mosaic to the size of a sample, for a network of one size.
        **options: Those of :func:`mosaics`.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If something does not fit, or the network does not take the size of a mosaic.

    Source: :cite:`boehle2021`, :cite:`rao2022`.

    >>> from lightning_xai.evaluation import RandomMap
    >>> model = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())
    >>> x, others = torch.ones(2, 3, 4), torch.ones(5, 3, 4)
    >>> gridpg(model, x, [0, 1], RandomMap(), background=others, classes=[0, 1, 2, 0, 1]).shape
    torch.Size([2])
    """
    return relevance_mass(
        *gridpg_maps(model, inputs, target, attribution, background, classes, shrink=shrink, **options)
    )


def gridpg_maps(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int | Sequence[int],
    attribution: Attribution,
    background: Tensor,
    classes: Tensor | Sequence[int],
    *,
    shrink: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    r"""Explain mosaics, and say where the sample itself is: maps [N, C, \*S], and Boolean [N, \*S]."""
    an_attribution(attribution)
    found = mosaics(inputs, target, background, classes, **options)
    whole, mask = found.inputs, found.mask
    if shrink:
        whole = resize(whole, inputs.shape[2:], antialias=True)
        mask = functional.interpolate(mask.unsqueeze(1).to(whole), inputs.shape[2:], mode="area").squeeze(1) > 0.5
    try:
        relevance = attribution(model, whole, target, options.get("sample_ids"))
    except RuntimeError as error:
        if shrink or is_out_of_memory(error):
            raise
        raise ValueError(
            f"the network does not take a mosaic of size {list(whole.shape[2:])} ({error}): use shrink=True, or difull."
        ) from error
    return relevance, mask


def difull(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int | Sequence[int],
    attribution: Attribution,
    *,
    background: Tensor,
    classes: Tensor | Sequence[int],
    **options: Any,
) -> Tensor:
    r"""Play the grid pointing game where only the right cell can matter [N]: the right answer is 1.

    .. math:: \frac{\sum_{p \in cell} \max(\tilde a_p, 0)}{\sum_p \max(\tilde a_p, 0)}, \qquad
       F(x) = (f(x_1), \dots, f(x_{cells}))

    The network runs on every cell alone, and the explained output is that of the sample's cell: no other cell can
    matter to any score. The other arguments are those of :func:`gridpg`; any network will do. An attribution that reads
    a layer, such as a CAM, sees a layer whose rows are the cells, and is refused.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If something does not fit, or the attribution reads a layer.

    Source: :cite:`rao2022`.

    >>> from lightning_xai.relevance import GradientXInput
    >>> linear, x, others = nn.Linear(4, 3), torch.ones(2, 1, 4), torch.ones(5, 1, 4)
    >>> linear.weight.data = torch.ones(3, 4)
    >>> model = nn.Sequential(nn.Flatten(), linear)
    >>> difull(model, x, [0, 1], GradientXInput(), background=others, classes=[0, 1, 2, 0, 1])
    tensor([1., 1.], dtype=torch.float64)
    """
    return relevance_mass(*difull_maps(model, inputs, target, attribution, background, classes, **options))


def difull_maps(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int | Sequence[int],
    attribution: Attribution,
    background: Tensor,
    classes: Tensor | Sequence[int],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    r"""Explain the cells of mosaics alone, and say where the sample is: maps [N, C, \*S], and Boolean [N, \*S]."""
    an_attribution(attribution)
    check_difull(attribution)
    found = mosaics(inputs, target, background, classes, **options)
    network = _Apart(model, tuple(inputs.shape[2:]), options.get("cells", 2))
    of_cell = Inputs(found.inputs, found.cell.to(inputs.device), explain=0)
    relevance = attribution(network, of_cell, as_target(target, len(inputs)), options.get("sample_ids"))
    return relevance, found.mask


def check_difull(attribution: Attribution) -> None:
    """Refuse an attribution that reads a layer.

    Raises:
        ValueError: If it does.
    """
    inner: Any = attribution
    while inner is not None:  # a smoothed attribution has another one inside
        if hasattr(inner, "layer"):
            raise ValueError(
                f"{type(inner).__name__} reads a layer, whose rows are the cells of the mosaic here: use gridpg, or an "
                f"attribution of the input."
            )
        inner = getattr(inner, "attribution", None)


class _Apart(nn.Module):
    """A network that runs on the cells of a mosaic one by one, and returns what it finds in one of them."""

    def __init__(self, model: nn.Module, size: tuple[int, ...], cells: int) -> None:
        super().__init__()
        self.model = model
        self.boxes = list(_boxes(size, cells, len(size)))
        self.training = model.training

    def forward(self, x: Tensor, cell: Tensor) -> Tensor:
        """Run the network on every cell; return the output of one cell per sample."""
        windows: list[tuple[Any, ...]] = [(..., *box) for box in self.boxes]
        outputs = [self.model(x[window]) for window in windows]
        if not all(isinstance(output, Tensor) and output.ndim == 2 for output in outputs):
            raise ValueError("difull needs a network whose output is [N, classes].")
        return torch.stack(outputs, 1)[torch.arange(len(x), device=x.device), cell]


def _boxes(size: Sequence[int], cells: int, axes: int) -> list[tuple[slice, ...]]:
    """The cells of a mosaic, row by row."""
    grid = itertools.product(range(cells), repeat=axes)
    return [
        tuple(slice(place * length, (place + 1) * length) for place, length in zip(index, size, strict=True))
        for index in grid
    ]
