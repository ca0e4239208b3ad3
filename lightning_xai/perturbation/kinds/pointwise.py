"""Perturbations that are a function of the cell's value."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_xai.perturbation.kinds.base import COMBINATIONS, Keys, Perturbation, check_positive


@dataclass(frozen=True)
class _Faded(Perturbation, ABC):
    strength: ClassVar[str | None] = "delta"

    delta: float = 0.1
    bias: float = 0.0


@dataclass(frozen=True)
class _Scaled(Perturbation, ABC):
    strength: ClassVar[str | None] = "scale"

    scale: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True)
class Bidirectional(_Faded):
    r""":math:`(v + b)(1 \pm \delta)`, two arms.

    Args:
        delta: :math:`\delta`.
        bias: :math:`b`.
        combine: How the arms' scores make one importance: ``mean``
            :math:`s(x) - \tfrac12 (s(R^+x) + s(R^-x))`, a second difference, 0 where s is linear; ``central``
            :math:`\tfrac12 (s(R^+x) - s(R^-x))`, positive for supporting evidence; ``max_abs`` the larger of the two
            :math:`s(x) - s(R^\pm x)` in magnitude.

    Raises:
        ValueError: If there is no such way to combine.

    Example:
        3 becomes :math:`(3 + 1)(1 \pm \tfrac12)`, and a score of 6 becomes 12 or 4:

        >>> from lightning_xai.perturbation import Windows, importance
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> model.weight.data, x = torch.tensor([[2.0]]), torch.tensor([[3.0]])
        >>> for combine in ("mean", "central", "max_abs"):
        ...     kind = Bidirectional(delta=0.5, bias=1.0, combine=combine)
        ...     print(importance(model, x, 0, regions=Windows(1), perturbation=kind, score="value").item())
        -2.0
        4.0
        -6.0
    """

    arm_count: ClassVar[int] = 2

    combine: str = "mean"

    def check(self) -> None:
        if self.combine not in (*COMBINATIONS,):  # also what has no hash
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine!r}.")

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        biased = values + self.bias
        return torch.stack([biased * (1 + self.delta), biased * (1 - self.delta)])


@dataclass(frozen=True)
class Positive(_Faded):
    r""":math:`(v + b)(1 + \delta)`.

    >>> Positive(delta=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-1.5000,  0.7500,  3.0000]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (1 + self.delta)


@dataclass(frozen=True)
class Negative(_Faded):
    r""":math:`(v + b)(1 - \delta)`; :math:`\delta = 1` fades the window to 0.

    >>> Negative(delta=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.5000,  0.2500,  1.0000]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (1 - self.delta)


@dataclass(frozen=True)
class Log(Perturbation):
    r""":math:`\log_{base}(v + b)`; not a number below 0 and infinite at 0, which is counted, not hidden.

    Raises:
        ValueError: If the base is not positive, or 1.

    >>> Log(base=2.0, bias=1.0).arms(torch.tensor([[[-3.0, -0.5, 3.0]]]))[0]
    tensor([[[nan, -1.,  2.]]])
    """

    strength: ClassVar[str | None] = "base"

    base: float = 10.0
    bias: float = 0.0

    def check(self) -> None:
        if self.base <= 0 or self.base == 1:
            raise ValueError(f"base must be positive and not 1, got {self.base}.")

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias).log() / math.log(self.base)


@dataclass(frozen=True)
class Exp(Perturbation):
    r""":math:`(v + b)^{exponent}`.

    >>> Exp(exponent=2.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[1.0000, 0.2500, 4.0000]]])
    """

    strength: ClassVar[str | None] = "exponent"

    exponent: float = 2.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) ** self.exponent


@dataclass(frozen=True)
class Binary(Perturbation):
    r"""``upper`` where :math:`v` > threshold, ``lower`` elsewhere.

    >>> Binary(threshold=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0., 0., 1.]]])
    """

    strength: ClassVar[str | None] = "threshold"

    threshold: float = 0.0
    upper: float = 1.0
    lower: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.full_like(values, self.lower).masked_fill(values > self.threshold, self.upper)


@dataclass(frozen=True)
class Sinusoidal(Perturbation):
    r""":math:`(v + b) \sin(frequency \cdot v) + amplitude`.

    >>> Sinusoidal(frequency=2.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[ 1.9093,  1.4207, -0.5136]]])
    """

    strength: ClassVar[str | None] = "frequency"

    frequency: float = 30.0
    amplitude: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (self.frequency * values).sin() + self.amplitude


@dataclass(frozen=True)
class Gaussian(Perturbation):
    r""":math:`(v + b) \exp(-(v - mean)^2 / 2\, std^2)`.

    Raises:
        ValueError: If ``std`` is not positive.

    >>> Gaussian(mean=2.0, bias=1.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0.0000, 0.4870, 3.0000]]])
    """

    strength: ClassVar[str | None] = "std"

    mean: float = 1.0
    std: float = 1.0
    bias: float = 0.0

    def check(self) -> None:
        check_positive("std", self.std)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (-(((values - self.mean) / self.std) ** 2) / 2).exp()


@dataclass(frozen=True)
class Tanh(_Scaled):
    r""":math:`\tanh(scale (v + b))`.

    >>> Tanh(scale=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.4621,  0.2449,  0.7616]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (self.scale * (values + self.bias)).tanh()


@dataclass(frozen=True)
class Sigmoid(_Scaled):
    r""":math:`1 / (1 + e^{-scale (v + b)})`.

    >>> Sigmoid(scale=2.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0.1192, 0.7311, 0.9820]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (self.scale * (values + self.bias)).sigmoid()


@dataclass(frozen=True)
class ReLU(Perturbation):
    r""":math:`\max(0, v + b)`.

    >>> ReLU(bias=-1.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0., 0., 1.]]])
    """

    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias).relu()


@dataclass(frozen=True)
class LeakyReLU(Perturbation):
    r""":math:`v + b`, times ``slope`` where it is negative.

    >>> LeakyReLU(slope=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.5000,  0.5000,  2.0000]]])
    """

    strength: ClassVar[str | None] = "slope"

    slope: float = 0.01
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return functional.leaky_relu(values + self.bias, self.slope)


@dataclass(frozen=True)
class Softplus(_Scaled):
    r""":math:`\ln(1 + e^{scale (v + b)})`.

    >>> Softplus().arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[0.3133, 0.9741, 2.1269]]])
    """

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        scaled = self.scale * (values + self.bias)
        return torch.logaddexp(scaled, torch.zeros_like(scaled))


@dataclass(frozen=True)
class Inverse(Perturbation):
    r""":math:`1 / (v + b)`; infinite at 0, which is counted, not hidden.

    >>> Inverse().arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-1.0000,  2.0000,  0.5000]]])
    """

    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return 1 / (values + self.bias)


@dataclass(frozen=True)
class Offset(Perturbation):
    r""":math:`v + b + offset`.

    >>> Offset(offset=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.5000,  1.0000,  2.5000]]])
    """

    strength: ClassVar[str | None] = "offset"

    offset: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values + self.bias + self.offset


@dataclass(frozen=True)
class Constant(Perturbation):
    r""":math:`c`.

    >>> Constant(c=3.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[3., 3., 3.]]])
    """

    strength: ClassVar[str | None] = "c"

    c: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.full_like(values, self.c)


@dataclass(frozen=True)
class UpperThreshold(Perturbation):
    r""":math:`c` where :math:`v` > threshold.

    >>> UpperThreshold(threshold=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-1.0000,  0.5000,  0.0000]]])
    """

    strength: ClassVar[str | None] = "threshold"

    threshold: float = 0.0
    c: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.where(values > self.threshold, self.c, values)


@dataclass(frozen=True)
class LowerThreshold(Perturbation):
    r""":math:`c` where :math:`v` < threshold.

    >>> LowerThreshold(threshold=0.5, c=9.0).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[9.0000, 0.5000, 2.0000]]])
    """

    strength: ClassVar[str | None] = "threshold"

    threshold: float = 0.0
    c: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.where(values < self.threshold, self.c, values)
