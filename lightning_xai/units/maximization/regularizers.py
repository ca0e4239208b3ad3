"""Regularisers of inputs that are maximised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai._checks import check_number
from lightning_xai.perturbation.kinds import Blur


class Regularizer(ABC):
    r"""A frozen dataclass that penalises inputs: :math:`\lambda` times a penalty [N] of inputs [N, C, \*S]."""

    @abstractmethod
    def penalty(self, x: Tensor) -> Tensor:
        r"""The penalty [N] of inputs x [N, C, \*S]."""


@dataclass(frozen=True)
class _Weighted(Regularizer):
    weight: float = 1e-3

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)


@dataclass(frozen=True)
class L2(_Weighted):
    r"""Penalises large values: :math:`\lambda \|x\|^2`.

    Args:
        weight: :math:`\lambda`.

    Raises:
        ValueError: If the weight is negative.

    Source: :cite:`simonyan2014`.

    >>> L2(0.5).penalty(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([7.])
    """

    def penalty(self, x: Tensor) -> Tensor:
        r"""The penalty [N] of inputs x [N, C, \*S]."""
        return self.weight * x.square().flatten(1).sum(1)


@dataclass(frozen=True)
class TotalVariation(_Weighted):
    r"""Penalises differences of neighbours: :math:`\lambda \sum_i \sum_p |x_{p + e_i} - x_p|` over the spatial axes i.

    Args:
        weight: :math:`\lambda`.

    Raises:
        ValueError: If the weight is negative.

    Source: :cite:`mahendran2015`.

    >>> TotalVariation(0.5).penalty(torch.tensor([[[1.0, 2.0, 0.0]]]))
    tensor([1.5000])
    """

    def penalty(self, x: Tensor) -> Tensor:
        r"""The penalty [N] of inputs x [N, C, \*S]."""
        steps = [x.diff(dim=axis).abs().flatten(1).sum(1) for axis in range(2, x.ndim)]
        return self.weight * torch.stack(steps).sum(0)


@dataclass(frozen=True)
class Blurred(_Weighted):
    r"""Penalises the high frequencies, which a blur removes: :math:`\lambda \|x - G_\sigma x\|^2`.

    Args:
        weight: :math:`\lambda`.
        sigma: Of the Gaussian :math:`G_\sigma`, in cells.

    Raises:
        ValueError: If the weight is negative, or sigma not positive.

    Source: :cite:`olah2017`.

    >>> Blurred(1.0, sigma=1.0).penalty(torch.ones(1, 2, 5, 4)).round(decimals=6)
    tensor([0.])
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        Blur(self.sigma)  # which checks it

    def penalty(self, x: Tensor) -> Tensor:
        r"""The penalty [N] of inputs x [N, C, \*S]."""
        return self.weight * (x - Blur(self.sigma).arms(x)[0]).square().flatten(1).sum(1)
