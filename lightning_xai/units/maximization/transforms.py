"""Random transforms that inputs which are maximised have to stand."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai._checks import as_integer, check_number


class Transform(ABC):
    """A frozen dataclass that transforms inputs at random, drawn anew in every step, the same for all inputs."""

    @abstractmethod
    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Inputs x [N, C, \*S] transformed, of the same shape."""


@dataclass(frozen=True)
class Jitter(Transform):
    """Shifts by up to some cells along every axis; what comes in is mirrored at the border.

    Args:
        cells: The most; less where an axis is too short.

    Raises:
        ValueError: If ``cells`` is negative.

    Source: :cite:`mordvintsev2015`.

    Example:
        By one cell to either side, or not at all:

        >>> draws, x = torch.Generator().manual_seed(0), torch.tensor([[[1, 2, 3, 4]]])
        >>> for found in sorted({tuple(Jitter(cells=1).apply(x, draws).flatten().tolist()) for _ in range(50)}):
        ...     print(*found)
        1 2 3 4
        2 1 2 3
        2 3 4 3
    """

    cells: int = 8

    def __post_init__(self) -> None:
        as_integer("cells", self.cells, 0)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Inputs x [N, C, \*S] shifted."""
        for axis in range(2, x.ndim):
            last = x.shape[axis] - 1
            most = min(self.cells, last)
            shift = int(torch.randint(-most, most + 1, (), generator=generator))
            places = (torch.arange(last + 1) + shift).abs()
            x = x.index_select(axis, (last - (last - places).abs()).to(x.device))
        return x


@dataclass(frozen=True)
class Scale(Transform):
    """Zooms about the middle, by a factor drawn between two.

    Args:
        low: The least factor.
        high: The largest factor.

    Raises:
        ValueError: If the factors are not positive or not in order.

    Source: :cite:`olah2017`.

    Example:
        At twice the size neighbours are half as far apart; at half of it what is missing is mirrored:

        >>> draws, x = torch.Generator(), torch.tensor([[[0.0, 1.0, 2.0, 3.0, 4.0]]])
        >>> Scale(2.0, 2.0).apply(x, draws)
        tensor([[[1.0000, 1.5000, 2.0000, 2.5000, 3.0000]]])
        >>> Scale(0.5, 0.5).apply(x, draws)
        tensor([[[1., 0., 2., 4., 3.]]])
    """

    low: float = 0.9
    high: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"low and high must be positive and in order, got {self.low} and {self.high}.")

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Inputs x [N, C, \*S] zoomed."""
        draw = float(torch.rand((), generator=generator, dtype=torch.float64))
        factor = self.low + (self.high - self.low) * draw
        return _resampled(x, torch.eye(x.ndim - 2, dtype=torch.float64) / factor)


@dataclass(frozen=True)
class Rotate(Transform):
    """Turns images about their middle, by an angle drawn between two.

    Args:
        degrees: The most, either way.

    Raises:
        ValueError: If it is applied to what is not an image [N, C, H, W].

    Source: :cite:`olah2017`.

    Example:
        A ramp that rises by 1 per column then rises by the cosine of the angle per column, by minus its sine per row:

        >>> ramp = torch.arange(5.0).expand(1, 1, 3, 5)
        >>> turned = Rotate(degrees=60.0).apply(ramp, torch.Generator().manual_seed(0))[0, 0]
        >>> draw = torch.rand((), generator=torch.Generator().manual_seed(0), dtype=torch.float64).item()
        >>> angle = math.radians(60.0 * (2 * draw - 1))
        >>> column, row = turned[1, 3] - turned[1, 2], turned[2, 2] - turned[1, 2]
        >>> math.isclose(column, math.cos(angle), rel_tol=1e-5), math.isclose(row, -math.sin(angle), rel_tol=1e-5)
        (True, True)
    """

    degrees: float = 10.0

    def __post_init__(self) -> None:
        check_number("degrees", self.degrees, least=0)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs x [N, C, H, W] turned."""
        if x.ndim != 4:
            raise ValueError(f"Rotate needs images [N, C, H, W], got {list(x.shape)}: leave it out.")
        draw = 2 * float(torch.rand((), generator=generator, dtype=torch.float64)) - 1
        angle = math.radians(self.degrees * draw)
        height, width = x.shape[2:]
        # In the coordinates of grid_sample both axes go from -1 to 1, whatever their lengths.
        turn = [
            [math.cos(angle), -math.sin(angle) * height / width],
            [math.sin(angle) * width / height, math.cos(angle)],
        ]
        return _resampled(x, torch.tensor(turn, dtype=torch.float64))


def robust(cells: int = 8, degrees: float = 5.0, scale: float = 0.1) -> tuple[Transform, ...]:
    """Shifts, zooms and turns, the usual transformations for photos.

    Args:
        cells: The most cells of the first shift; half as many of the second.
        degrees: The most that is turned, either way.
        scale: The most that is zoomed, either way.

    Source: :cite:`olah2017`.

    >>> robust(cells=4, degrees=3.0, scale=0.2)
    (Jitter(cells=4), Scale(low=0.8, high=1.2), Rotate(degrees=3.0), Jitter(cells=2))
    """
    return (Jitter(cells), Scale(1 - scale, 1 + scale), Rotate(degrees), Jitter(max(1, cells // 2)))


def _resampled(x: Tensor, matrix: Tensor) -> Tensor:
    """Values x [N, C, *S] read at places moved by a matrix, linearly, mirrored at the border."""
    flat = x.ndim == 3
    if flat:
        x = x.unsqueeze(2)
        matrix = functional.pad(matrix, (0, 1, 0, 1)) + torch.diag(matrix.new_tensor([0.0, 1.0]))
    theta = torch.cat([matrix, matrix.new_zeros(len(matrix), 1)], 1).to(x)
    grid = functional.affine_grid(theta.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    found = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return found.squeeze(2) if flat else found
