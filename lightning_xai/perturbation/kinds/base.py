"""The base classes of perturbations: frozen dataclasses with one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import as_choice, as_integer, check_fields, check_numbers
from lightning_xai._guard import keyed_generator

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Keys:
    """The keys of the draws of a random kind besides its seed: the samples' ids, and the window if it matters.

    Attributes:
        sample_ids: The samples' ids.
        feature: The window; None if the draws are the same for all.
        absent: The cells of whole samples for which nothing is drawn, as padding, Boolean [N, *S]; None if there are
            none.

    The draws of sample 7 are the same in any batch, but not those of another sample or of another window:

    >>> draws = [keys.of(seed=3)[-1] for keys in (Keys((5, 7)), Keys((7,)), Keys((5,)), Keys((7,), feature=2))]
    >>> first, *others = (torch.rand(3, generator=generator) for generator in draws)
    >>> [torch.equal(first, other) for other in others]
    [True, False, False]
    """

    sample_ids: tuple[int, ...]
    feature: int | None = None
    absent: Tensor | None = None

    def at(self, rows: Tensor) -> Keys:
        """Select or repeat samples."""
        ids = tuple(self.sample_ids[row] for row in rows.tolist())
        return Keys(ids, self.feature, None if self.absent is None else self.absent[rows.to(self.absent.device)])

    def of(self, seed: int) -> list[torch.Generator]:
        """One generator per sample."""
        return [keyed_generator(seed, sample, self.feature) for sample in self.sample_ids]


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
            chosen = self.channels if isinstance(self.channels, Sequence) else (self.channels,)
            if not chosen:
                raise ValueError("channels must be channel indices from 0, got none.")
            object.__setattr__(self, "channels", tuple(as_integer("channels", channel, 0) for channel in chosen))
        check_fields(self)
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

        >>> from lightning_xai.perturbation.kinds import Negative
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

        Raises:
            ValueError: If a number of the kind leaves the range of the values' dtype, or a channel is not there.

        >>> from lightning_xai.perturbation.kinds import Bidirectional
        >>> Bidirectional(delta=0.5).arms(torch.tensor([[[2.0, 4.0]]]))
        tensor([[[[3., 6.]]],
        <BLANKLINE>
        <BLANKLINE>
                [[[1., 2.]]]])
        """
        check_numbers(self, values.dtype)
        perturbed = self.perturb(_single(values), Keys(tuple(range(len(values)))) if keys is None else keys)
        perturbed = perturbed.to(values.dtype)
        perturbed = perturbed if perturbed.ndim > values.ndim else perturbed.unsqueeze(0)
        if perturbed.shape != (self.arm_count, *values.shape):
            raise ValueError(
                f"{type(self).__name__} made {list(perturbed.shape)} of an input of shape {list(values.shape)}; with "
                f"its {self.arm_count} arms it must make {[self.arm_count, *values.shape]}."
            )
        if self.channels is None:
            return perturbed
        channels = self._channels(values)
        whole = values.expand_as(perturbed).clone()
        whole[:, :, channels] = perturbed[:, :, channels]
        return whole

    def _channels(self, values: Tensor) -> list[int]:
        """The channels that are perturbed, where they are named."""
        assert isinstance(self.channels, tuple)  # what the constructor has made of them
        if max(self.channels) >= values.shape[1]:
            raise ValueError(f"channels={self.channels} is out of range: the input has {values.shape[1]} channels.")
        return list(self.channels)


class WindowPerturbation(Perturbation, ABC):
    """A perturbation whose values depend on the window: :meth:`perturb` is given the cells of one, [N, C, cells].

    Where two windows are perturbed together and overlap, the cells in both take the values of the first one.
    """

    windowed = True


class MaskPerturbation(Perturbation, ABC):
    """A perturbation whose values depend on all the cells that are replaced together: implement :meth:`fill`."""

    @abstractmethod
    def fill(self, values: Tensor, mask: Tensor, keys: Keys) -> Tensor:
        """Fill the cells of a mask, Boolean [N, *S], of values [N, C, *S]; what stands outside it is not read."""

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return self.fill(values, torch.ones_like(values[:, 0], dtype=torch.bool), keys)

    def replaced(self, values: Tensor, mask: Tensor, keys: Keys) -> Tensor:
        """Replace the cells of a mask in the channels that are perturbed, and no others."""
        inside = mask.unsqueeze(1).expand_as(values)
        if self.channels is not None:
            chosen = torch.zeros(values.shape[1], dtype=torch.bool, device=values.device)
            chosen[self._channels(values)] = True
            inside = inside & chosen.view(-1, *[1] * (mask.ndim - 1))
        check_numbers(self, values.dtype)
        return torch.where(inside, self.fill(_single(values), mask, keys).to(values.dtype), values)


def _single(values: Tensor) -> Tensor:
    """Convert values of half precision, which what is computed on the way may leave."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean(clean: Tensor, scores: Tensor) -> Tensor:
    return (clean - scores).mean(0)


def _central(_clean: Tensor, scores: Tensor) -> Tensor:
    return (scores[0] - scores[1]) / 2


def _max_abs(clean: Tensor, scores: Tensor) -> Tensor:
    local = clean - scores
    strongest = local.nan_to_num(nan=float("inf")).abs().argmax(0, keepdim=True)
    return local.gather(0, strongest).squeeze(0)


COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "central": _central, "max_abs": _max_abs}


def check_positive(name: str, value: float) -> None:
    """Refuse 0 and less."""
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def check_range(low: float, high: float) -> None:
    """Refuse an empty range."""
    if low > high:
        raise ValueError(f"low must not exceed high, got {low} and {high}.")


def as_perturbation(perturbation: str | Perturbation) -> Perturbation:
    """A perturbation, or that of a name with its defaults; names are those of the kinds in snake case.

    Raises:
        ValueError: If the name is unknown, or its kind has no defaults.
        TypeError: If it is neither.

    >>> as_perturbation("channel_mean"), as_perturbation("relu")
    (ChannelMean(channels=None), ReLU(channels=None, bias=0.0))
    """
    from lightning_xai.perturbation import kinds

    found: Perturbation = as_choice("perturbation", perturbation, Perturbation, kinds)
    return found


def as_numbers(name: str, value: Any) -> Tensor:
    """A tensor as it is; numbers in double precision, so that inputs of any dtype see them unrounded.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if not isinstance(value, bool | str):
            return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{name} must be a number, a list of numbers or a tensor, got {value!r}.")


def over_samples(name: str, value: Any, values: Tensor) -> Tensor:
    """A number per cell, spread over a sample of ``values``."""
    tensor = torch.as_tensor(value).to(values)
    try:
        return tensor.expand(values.shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"{name} of shape {list(tensor.shape)} does not broadcast to a sample {list(values.shape[1:])}."
        ) from error
