r"""The perturbations :math:`R`: what happens to the values of a feature.

A kind is a frozen dataclass with one method. Letters: :math:`v` the value of a cell, :math:`b` the bias. Every kind
takes ``channels=`` to leave the other channels as they are. Random kinds draw from generators keyed by their seed and
the sample's id, so a sample is perturbed the same way in any batch and on any process.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Keys:
    """What the draws of a random kind depend on besides its seed: the samples' ids, and the window if it matters."""

    sample_ids: tuple[int, ...]
    feature: int | None = None

    def of(self, seed: int) -> list[torch.Generator]:
        """One generator per sample."""
        return [_generator(seed, sample, self.feature) for sample in self.sample_ids]


def _generator(seed: int, sample: int, feature: int | None) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{sample}/{feature}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


@dataclass(frozen=True, eq=False)  # a kind that holds tensors compares by identity, and must not inherit another way
class Perturbation(ABC):
    """A perturbation of whole inputs; the sweep keeps of it what lies inside a window.

    A subclass is a frozen dataclass that implements :meth:`perturb`; it names the field that :meth:`at` varies in
    ``strength``, and a kind of several arms says how many in ``arm_count``.

    Args:
        channels: The channels that are perturbed; all unless given.
    """

    channels: int | Sequence[int] | None = field(default=None, kw_only=True)

    strength: ClassVar[str | None] = None
    arm_count: ClassVar[int] = 1
    windowed: ClassVar[bool] = False
    combine = "mean"  # not annotated: a kind may make it a field of its own

    def __post_init__(self) -> None:
        if self.channels is not None:
            chosen = tuple(self.channels) if isinstance(self.channels, Sequence) else (self.channels,)
            if not chosen or not all(isinstance(channel, int) and channel >= 0 for channel in chosen):
                raise ValueError(f"channels must be channel indices from 0, got {self.channels!r}.")
            object.__setattr__(self, "channels", chosen)
        self.check()

    def check(self) -> None:  # noqa: B027 - most kinds accept every number
        """Refuse hyper-parameters that make no sense; called once, when the kind is built."""

    @abstractmethod
    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        """The perturbed values [N, C, *S], or [A, N, C, *S] for a kind of A arms."""

    def at(self, strength: float) -> Self:
        """This kind at another strength.

        Raises:
            TypeError: If the kind has no strength.

        >>> Negative(delta=0.1).at(0.4)
        Negative(channels=None, delta=0.4, bias=0.0)
        """
        if self.strength is None:
            raise TypeError(f"{type(self).__name__} has no strength to vary; choose a kind with one, e.g. Negative.")
        changes: dict[str, Any] = {self.strength: strength}
        return replace(self, **changes)

    def arms(self, values: Tensor, keys: Keys | None = None) -> Tensor:
        """One or more perturbed copies [A, N, C, *S] of values [N, C, *S].

        Args:
            values: The values to perturb.
            keys: The samples' ids for the draws of random kinds; 0..N-1 unless given.

        >>> Bidirectional(delta=0.5).arms(torch.tensor([[[2.0, 4.0]]]))
        tensor([[[[3., 6.]]],
        <BLANKLINE>
        <BLANKLINE>
                [[[1., 2.]]]])
        """
        keys = Keys(tuple(range(values.shape[0]))) if keys is None else keys
        if self.channels is None:
            return self._stacked(values, keys)
        channels = list(self.channels)  # type: ignore[arg-type]
        if max(channels) >= values.shape[1]:
            raise ValueError(f"channels={tuple(channels)} is out of range: the input has {values.shape[1]} channels.")
        perturbed = self._stacked(values, keys)
        whole = values.unsqueeze(0).repeat(perturbed.shape[0], *[1] * values.ndim)
        whole[:, :, channels] = perturbed[:, :, channels]
        return whole

    def _stacked(self, values: Tensor, keys: Keys) -> Tensor:
        perturbed = self.perturb(values, keys)
        perturbed = perturbed if perturbed.ndim > values.ndim else perturbed.unsqueeze(0)
        if perturbed.shape != (self.arm_count, *values.shape):
            raise ValueError(
                f"{type(self).__name__} made {list(perturbed.shape)} of an input of shape {list(values.shape)}; with "
                f"its {self.arm_count} arms it must make {[self.arm_count, *values.shape]}."
            )
        return perturbed


class WindowPerturbation(Perturbation, ABC):
    """A perturbation whose values depend on the window: :meth:`perturb` is given the cells of one, [N, C, cells].

    Where two windows are perturbed together and overlap, the cells in both take the values of the first one.
    """

    windowed = True


def _draw(values: Tensor, keys: Keys, seed: int, fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """A draw per sample, shaped like ``values``; always single precision, so that the dtype does not change it."""
    draws = [fill(torch.empty(values.shape[1:]), generator) for generator in keys.of(seed)]
    return torch.stack(draws).to(values) if draws else torch.empty_like(values)


@dataclass(frozen=True)
class Bidirectional(Perturbation):
    r""":math:`(v + b)(1 \pm \delta)`, two arms.

    Args:
        delta: :math:`\delta`.
        bias: :math:`b`.
        combine: How the arms' scores make one importance: ``mean``
            :math:`s(x) - \tfrac12 (s(R^+x) + s(R^-x))`, a second difference, 0 where s is linear; ``central``
            :math:`\tfrac12 (s(R^+x) - s(R^-x))`, positive for supporting evidence; ``max_abs`` the larger of the two
            :math:`s(x) - s(R^\pm x)` in magnitude.
    """

    strength: ClassVar[str | None] = "delta"
    arm_count: ClassVar[int] = 2

    delta: float = 0.1
    bias: float = 0.0
    combine: str = "mean"

    def check(self) -> None:
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine!r}.")

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        biased = values + self.bias
        return torch.stack([biased * (1 + self.delta), biased * (1 - self.delta)])


@dataclass(frozen=True)
class Positive(Perturbation):
    r""":math:`(v + b)(1 + \delta)`."""

    strength: ClassVar[str | None] = "delta"

    delta: float = 0.1
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (1 + self.delta)


@dataclass(frozen=True)
class Negative(Perturbation):
    r""":math:`(v + b)(1 - \delta)`; :math:`\delta = 1` fades the window to 0."""

    strength: ClassVar[str | None] = "delta"

    delta: float = 0.1
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (1 - self.delta)


@dataclass(frozen=True)
class Log(Perturbation):
    r""":math:`\log_{base}(v + b)`; not a number below 0 and infinite at 0, which is counted, not hidden."""

    strength: ClassVar[str | None] = "base"

    base: float = 10.0
    bias: float = 0.0

    def check(self) -> None:
        if self.base <= 0 or self.base == 1:
            raise ValueError(f"base must be positive and not 1, got {self.base}.")

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias).log() / math.log(self.base)


@dataclass(frozen=True)
class RandomPtn(WindowPerturbation):
    r""":math:`(v + b)\, u`, one :math:`u \sim U(low, high)` per sample and window."""

    strength: ClassVar[str | None] = "high"

    low: float = 0.0
    high: float = 1.0
    bias: float = 0.0
    seed: int = 0

    def check(self) -> None:
        _check_range(self.low, self.high)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        one = values.flatten(1)[:, :1].view(-1, *[1] * (values.ndim - 1))
        factor = _draw(one, keys, self.seed, lambda blank, generator: blank.uniform_(generator=generator))
        return (values + self.bias) * (self.low + (self.high - self.low) * factor)


@dataclass(frozen=True)
class Exp(Perturbation):
    r""":math:`(v + b)^{exponent}`."""

    strength: ClassVar[str | None] = "exponent"

    exponent: float = 2.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) ** self.exponent


@dataclass(frozen=True)
class Binary(Perturbation):
    r"""``upper`` where :math:`v` > threshold, ``lower`` elsewhere."""

    strength: ClassVar[str | None] = "threshold"

    threshold: float = 0.0
    upper: float = 1.0
    lower: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.full_like(values, self.lower).masked_fill(values > self.threshold, self.upper)


@dataclass(frozen=True)
class Sinusoidal(Perturbation):
    r""":math:`(v + b) \sin(frequency \cdot v) + amplitude`."""

    strength: ClassVar[str | None] = "frequency"

    frequency: float = 30.0
    amplitude: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (self.frequency * values).sin() + self.amplitude


@dataclass(frozen=True)
class Gaussian(Perturbation):
    r""":math:`(v + b) \exp(-(v - mean)^2 / 2\, std^2)`."""

    strength: ClassVar[str | None] = "std"

    mean: float = 1.0
    std: float = 1.0
    bias: float = 0.0

    def check(self) -> None:
        _check_positive("std", self.std)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias) * (-((values - self.mean) ** 2) / (2 * self.std**2)).exp()


@dataclass(frozen=True)
class Tanh(Perturbation):
    r""":math:`\tanh(scale (v + b))`."""

    strength: ClassVar[str | None] = "scale"

    scale: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (self.scale * (values + self.bias)).tanh()


@dataclass(frozen=True)
class Sigmoid(Perturbation):
    r""":math:`1 / (1 + e^{-scale (v + b)})`."""

    strength: ClassVar[str | None] = "scale"

    scale: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (self.scale * (values + self.bias)).sigmoid()


@dataclass(frozen=True)
class ReLU(Perturbation):
    r""":math:`\max(0, v + b)`."""

    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (values + self.bias).relu()


@dataclass(frozen=True)
class LeakyReLU(Perturbation):
    r""":math:`v + b`, times ``slope`` where it is negative."""

    strength: ClassVar[str | None] = "slope"

    slope: float = 0.01
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return functional.leaky_relu(values + self.bias, self.slope)


@dataclass(frozen=True)
class Softplus(Perturbation):
    r""":math:`\ln(1 + e^{scale (v + b)})`."""

    strength: ClassVar[str | None] = "scale"

    scale: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        scaled = self.scale * (values + self.bias)
        return torch.logaddexp(scaled, torch.zeros_like(scaled))


@dataclass(frozen=True)
class Inverse(Perturbation):
    r""":math:`1 / (v + b)`; infinite at 0, which is counted, not hidden."""

    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return 1 / (values + self.bias)


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    r""":math:`v + b + n`, an :math:`n \sim N(mean, std^2)` per cell."""

    strength: ClassVar[str | None] = "std"

    mean: float = 0.0
    std: float = 1.0
    bias: float = 0.0
    seed: int = 0

    def check(self) -> None:
        if self.std < 0:
            raise ValueError(f"std must not be negative, got {self.std}.")

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        noise = _draw(values, keys, self.seed, lambda blank, generator: blank.normal_(generator=generator))
        return values + self.bias + self.mean + self.std * noise


@dataclass(frozen=True)
class UniformNoise(Perturbation):
    r""":math:`v + b + u`, a :math:`u \sim U(low, high)` per cell."""

    strength: ClassVar[str | None] = "high"

    low: float = -1.0
    high: float = 1.0
    bias: float = 0.0
    seed: int = 0

    def check(self) -> None:
        _check_range(self.low, self.high)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        noise = _draw(values, keys, self.seed, lambda blank, generator: blank.uniform_(generator=generator))
        return values + self.bias + self.low + (self.high - self.low) * noise


@dataclass(frozen=True)
class Offset(Perturbation):
    r""":math:`v + b + offset`."""

    strength: ClassVar[str | None] = "offset"

    offset: float = 1.0
    bias: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values + self.bias + self.offset


@dataclass(frozen=True)
class Constant(Perturbation):
    r""":math:`c`."""

    strength: ClassVar[str | None] = "c"

    c: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.full_like(values, self.c)


@dataclass(frozen=True, eq=False)
class Custom(Perturbation):
    r""":math:`v \cdot factor`, with a factor per cell: anything that broadcasts to a sample [C, \*S]."""

    factor: float | Sequence[Any] | Tensor = 1.0

    def check(self) -> None:
        object.__setattr__(self, "factor", _tensor(self.factor))

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values * _over_samples("factor", self.factor, values)


@dataclass(frozen=True, eq=False)
class CustomSum(Perturbation):
    r""":math:`v + summand`, with a summand per cell: anything that broadcasts to a sample [C, \*S]."""

    summand: float | Sequence[Any] | Tensor = 0.0

    def check(self) -> None:
        object.__setattr__(self, "summand", _tensor(self.summand))

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values + _over_samples("summand", self.summand, values)


@dataclass(frozen=True)
class UpperThreshold(Perturbation):
    r""":math:`c` where :math:`v` > threshold."""

    strength: ClassVar[str | None] = "threshold"

    threshold: float = 0.0
    c: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.where(values > self.threshold, self.c, values)


@dataclass(frozen=True)
class LowerThreshold(Perturbation):
    r""":math:`c` where :math:`v` < threshold."""

    strength: ClassVar[str | None] = "threshold"

    threshold: float = 0.0
    c: float = 0.0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return torch.where(values < self.threshold, self.c, values)


@dataclass(frozen=True, eq=False)
class ClassInterchange(Perturbation):
    r""":math:`(1 - amount)\, v + amount \cdot other`, with a sample of another class [C, \*S]."""

    strength: ClassVar[str | None] = "amount"

    other: float | Sequence[Any] | Tensor = 0.0
    amount: float = 1.0

    def check(self) -> None:
        object.__setattr__(self, "other", _tensor(self.other))

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (1 - self.amount) * values + self.amount * _over_samples("other", self.other, values)


@dataclass(frozen=True)
class Blur(Perturbation):
    r"""A Gaussian filter of standard deviation ``sigma`` (in cells) over the spatial axes.

    The kernel reaches :math:`4 \sigma`; its weights are renormalised at the border, so a constant stays as it is.
    """

    strength: ClassVar[str | None] = "sigma"

    sigma: float = 3.0

    def check(self) -> None:
        _check_positive("sigma", self.sigma)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        for axis in range(2, values.ndim):
            lines = values.movedim(axis, -1)
            radius = min(math.ceil(4 * self.sigma), lines.shape[-1] - 1)
            steps = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
            kernel = (-(steps**2) / (2 * self.sigma**2)).exp().view(1, 1, -1)
            flat = lines.reshape(-1, 1, lines.shape[-1])
            weight = functional.conv1d(torch.ones_like(flat[:1]), kernel, padding=radius)
            smooth = functional.conv1d(flat, kernel, padding=radius) / weight
            values = smooth.view(lines.shape).movedim(-1, axis)
        return values


@dataclass(frozen=True)
class LocalMean(WindowPerturbation):
    """The mean of the window's own cells, per channel."""

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)


@dataclass(frozen=True)
class ChannelMean(Perturbation):
    """The mean of the sample, per channel."""

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)


@dataclass(frozen=True)
class Permute(WindowPerturbation):
    """The window's own cells in a random order, the same for every channel."""

    seed: int = 0

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        flat = values.flatten(2)
        if flat.shape[0] == 0:
            return values
        orders = [torch.randperm(flat.shape[2], generator=generator) for generator in keys.of(self.seed)]
        order = torch.stack(orders).to(values.device).unsqueeze(1)
        return flat.gather(2, order.expand_as(flat)).view_as(values)


@dataclass(frozen=True, eq=False)
class Replace(Perturbation):
    r"""The cells of a background sample, drawn by the sample's key.

    Args:
        background: Samples to draw from [B, C, \*S], of the inputs' shape; for a table [B, 1, F] or [B, F].
        seed: Keys the draw together with the sample's id.
    """

    background: Sequence[Any] | Tensor = ()
    seed: int = 0

    def check(self) -> None:
        background = _tensor(self.background)
        if background.ndim < 2 or background.shape[0] == 0:
            raise ValueError("background must hold at least one sample [B, C, *S].")
        object.__setattr__(self, "background", background.unsqueeze(1) if background.ndim == 2 else background)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        background = torch.as_tensor(self.background)
        if background.shape[1:] != values.shape[1:]:
            raise ValueError(
                f"background holds samples of shape {list(background.shape[1:])}, "
                f"the inputs are {list(values.shape[1:])}."
            )
        chosen = [int(torch.randint(len(background), (), generator=generator)) for generator in keys.of(self.seed)]
        return background[chosen].to(values)


def _mean(clean: Tensor, scores: Tensor) -> Tensor:
    return (clean - scores).mean(0)


def _central(_clean: Tensor, scores: Tensor) -> Tensor:
    return (scores[0] - scores[1]) / 2


def _max_abs(clean: Tensor, scores: Tensor) -> Tensor:
    local = clean - scores
    strongest = local.nan_to_num(nan=float("inf")).abs().argmax(0, keepdim=True)
    return local.gather(0, strongest).squeeze(0)


COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "central": _central,
    "max_abs": _max_abs,
}


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def _check_range(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low must not exceed high, got {low} and {high}.")


def _tensor(value: Any) -> Tensor:
    """A tensor as it is; numbers in double precision, so that inputs of any dtype see them unrounded."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def _over_samples(name: str, value: Any, values: Tensor) -> Tensor:
    tensor = torch.as_tensor(value).to(values)
    try:
        return tensor.expand(values.shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"{name} of shape {list(tensor.shape)} does not broadcast to a sample {list(values.shape[1:])}."
        ) from error
