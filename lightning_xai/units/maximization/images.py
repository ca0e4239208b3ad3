r"""Parametrizations and bounds of inputs that are maximised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_xai._checks import check_number

Numbers = float | Sequence[float]


@dataclass(frozen=True)
class Bounds:
    r"""The values an input may have: :math:`x = l + (h - l)\,\sigma(z)` of unbounded z.

    Args:
        low: l, one number or one per channel.
        high: h, likewise.

    Raises:
        ValueError: If low is not below high.

    >>> Bounds(0.0, 2.0).apply(torch.zeros(1, 3, 2))[0, 0]
    tensor([1., 1.])
    """

    low: Numbers = 0.0
    high: Numbers = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            ends = torch.as_tensor(getattr(self, name), dtype=torch.float64).flatten()
            if not bool(ends.isfinite().all()):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}.")
            object.__setattr__(self, name, tuple(ends.tolist()))
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (self.low, self.high))
        if len({1, len(low), len(high)}) > 2 or not bool((low < high).all()):
            raise ValueError(f"low must be below high, channel by channel, got {low.tolist()} and {high.tolist()}.")

    @classmethod
    def normalized(cls, mean: Sequence[float], std: Sequence[float]) -> Bounds:
        r"""The bounds of values 0 to 1 after :math:`(x - \mathrm{mean}) / \mathrm{std}`, per channel.

        >>> Bounds.normalized([0.5, 0.25], [0.5, 0.25])
        Bounds(low=(-1.0, -1.0), high=(1.0, 3.0))
        """
        channels = list(zip(mean, std, strict=True))
        return cls([-m / s for m, s in channels], [(1 - m) / s for m, s in channels])

    def apply(self, z: Tensor) -> Tensor:
        r"""Unbounded values z [N, C, \*S] within the bounds."""
        low, high = self.ends(z)
        return low + (high - low) * z.sigmoid()

    def inverse(self, x: Tensor) -> Tensor:
        r"""The z of inputs x [N, C, \*S]; values at the bounds are moved inside by a thousandth of the range."""
        low, high = self.ends(x)
        return ((x - low) / (high - low)).clamp(1e-3, 1 - 1e-3).logit()

    def clip(self, x: Tensor) -> Tensor:
        r"""Inputs x [N, C, \*S] cut at the bounds."""
        low, high = self.ends(x)
        return x.clamp(low, high)

    def ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds, ready to be combined with a tensor [N, C, *S].

        Raises:
            ValueError: If there are neither one nor C of them.
        """
        ends = []
        for name in ("low", "high"):
            numbers = torch.tensor(getattr(self, name), dtype=like.dtype, device=like.device)
            if len(numbers) not in (1, like.shape[1]):
                raise ValueError(f"{name} must be one bound or one per channel, {like.shape[1]}, got {len(numbers)}.")
            ends.append(numbers.view(-1, *[1] * (like.ndim - 2)))
        return ends[0], ends[1]


class Parametrization(ABC):
    r"""A frozen dataclass that maps the optimised parameters to unbounded values z [N, C, \*S]."""

    std: float

    @abstractmethod
    def parameters(self, z: Tensor) -> Tensor:
        """The parameters of values z."""

    @abstractmethod
    def values(self, parameters: Tensor, shape: Sequence[int]) -> Tensor:
        """The values z, of a shape [N, C, *S], of parameters."""

    @abstractmethod
    def random(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Parameters to start from, in double precision."""


@dataclass(frozen=True)
class Pixel(Parametrization):
    r"""The values themselves.

    Args:
        std: Of the random start.

    Raises:
        ValueError: If ``std`` is negative.

    Example:
        The start is the same noise, ``std`` times:

        >>> starts = [Pixel(std).random((1, 2, 3), torch.Generator().manual_seed(0)) for std in (0.25, 0.5)]
        >>> torch.equal(starts[1], 2 * starts[0])
        True
        >>> Pixel().values(torch.tensor([1.0, -2.0, 3.0]), (1, 1, 3))
        tensor([[[ 1., -2.,  3.]]])
    """

    std: float = 0.01

    def __post_init__(self) -> None:
        check_number("std", self.std, least=0)

    def parameters(self, z: Tensor) -> Tensor:
        """Return the values themselves."""
        return z

    def values(self, parameters: Tensor, shape: Sequence[int]) -> Tensor:
        """The parameters themselves."""
        return parameters.view(tuple(shape))

    def random(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Gaussian noise."""
        return self.std * torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Fourier(Parametrization):
    r"""Fourier coefficients, those of low frequencies the larger, over all spatial axes.

    .. math:: z = \mathcal{F}^{-1}\left[ \frac{\hat z_f}{\max(|f|, 1/\max S)^{\mathrm{decay}}} \right]

    A step then changes all frequencies alike, where pixels would take up the high ones first.

    Args:
        std: Of the random start.
        decay: How much smaller the coefficients of high frequencies are.
        mixing: Rows of a matrix [C, C] that mixes channels, e.g. :func:`channel_mixing` of photos, so that a step
            changes all colours alike as well; none unless given.

    Raises:
        ValueError: If a number is negative or not finite, or the matrix is not square or has no inverse.

    Source: :cite:`olah2017`.

    Example:
        Of four cells there are the frequencies 0, 1/4 and 1/2. The last coefficient counts
        :math:`(1/2)^{-1} = 2` times, the others four times, 0 as if it were 1/4:

        >>> coefficients = torch.zeros(3, 1, 3, 2)
        >>> coefficients[range(3), 0, range(3), 0] = 1.0
        >>> (Fourier().values(coefficients, (3, 1, 4)).squeeze(1).round(decimals=4) + 0.0).tolist()
        [[2.0, 2.0, 2.0, 2.0], [4.0, 0.0, -4.0, 0.0], [1.0, -1.0, 1.0, -1.0]]
    """

    std: float = 0.01
    decay: float = 1.0
    mixing: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        check_number("std", self.std, least=0)
        check_number("decay", self.decay, least=0)
        if self.mixing is not None:
            rows = tuple(tuple(float(number) for number in row) for row in self.mixing)
            if any(len(row) != len(rows) for row in rows) or not torch.tensor(rows).isfinite().all():
                raise ValueError(f"mixing must be finite rows of a square matrix [C, C], got {self.mixing!r}.")
            if not torch.linalg.matrix_rank(torch.tensor(rows, dtype=torch.float64)) == len(rows):
                raise ValueError("mixing must have an inverse: its rows depend on each other.")
            object.__setattr__(self, "mixing", rows)

    def parameters(self, z: Tensor) -> Tensor:
        """The coefficients [N, C, *F, 2] of values z."""
        if self.mixing is not None:
            z = torch.einsum("cd,nd...->nc...", torch.linalg.inv(self._matrix(z)), z)
        axes = tuple(range(2, z.ndim))
        return torch.view_as_real(torch.fft.rfftn(z, dim=axes, norm="ortho") / self._scale(z.shape, z))

    def values(self, parameters: Tensor, shape: Sequence[int]) -> Tensor:
        """The values z of coefficients."""
        axes = tuple(range(2, len(shape)))
        spectrum = torch.view_as_complex(parameters) * self._scale(shape, parameters)
        z = torch.fft.irfftn(spectrum, s=tuple(shape[2:]), dim=axes, norm="ortho")
        return z if self.mixing is None else torch.einsum("cd,nd...->nc...", self._matrix(z), z)

    def random(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Gaussian coefficients."""
        frequencies = (*shape[2:-1], shape[-1] // 2 + 1)
        return self.std * torch.randn(*shape[:2], *frequencies, 2, generator=generator, dtype=torch.float64)

    def _matrix(self, like: Tensor) -> Tensor:
        matrix = torch.tensor(self.mixing, dtype=like.dtype, device=like.device)
        if len(matrix) != like.shape[1]:
            raise ValueError(f"mixing is of {len(matrix)} channels, the inputs have {like.shape[1]}.")
        return matrix

    def _scale(self, shape: Sequence[int], like: Tensor) -> Tensor:
        sizes = tuple(shape[2:])
        axes = [torch.fft.fftfreq(size, dtype=torch.float64) for size in sizes[:-1]]
        axes.append(torch.fft.rfftfreq(sizes[-1], dtype=torch.float64))
        squares: Any = sum(part.square() for part in torch.meshgrid(*axes, indexing="ij"))
        scale: Tensor = squares.sqrt().clamp(min=1 / max(sizes)).pow(-self.decay)
        return scale.to(device=like.device, dtype=like.dtype)


def channel_mixing(inputs: Tensor) -> tuple[tuple[float, ...], ...]:
    r"""Estimate how the channels of inputs vary together, as a matrix for :class:`Fourier`.

    .. math:: m = \Sigma^{1/2} / \max_c \|\Sigma^{1/2}_c\|, \qquad \Sigma \text{ the channels' covariance}

    Args:
        inputs: Inputs [N, C, \*S], e.g. some photos.

    Raises:
        ValueError: If the channels depend on each other.

    >>> channel_mixing(torch.tensor([[[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.5, -0.5]]]))
    ((1.0, 0.0), (0.0, 0.5))
    """
    values = inputs.detach().double().movedim(1, 0).flatten(1)
    variance, axes = torch.linalg.eigh(torch.cov(values).view(len(values), len(values)))
    if not bool((variance > 1e-9 * variance.max()).all()):
        raise ValueError("inputs have channels that depend on each other; use Fourier without mixing.")
    root = axes @ variance.sqrt().diag() @ axes.T
    root = root / root.norm(dim=0).max()
    return tuple(tuple(row) for row in root.tolist())
