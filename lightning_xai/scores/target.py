"""Which class is explained: targets and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from lightning_xai._guard import detach_for_autograd

if TYPE_CHECKING:
    from typing_extensions import Self


class BoundTarget:
    """What a score has fixed on the clean output, the target among it: a :class:`~lightning_xai.scores.BoundScore`.

    Attributes:
        target: The explained classes [N].
    """

    target: Tensor

    def at(self, rows: Tensor | slice) -> Self:
        """Select or repeat samples."""
        raise NotImplementedError


Target = Tensor | int | Sequence[int] | Literal["predicted"] | BoundTarget | None

ONE_COLUMN = "score='sigmoid' for a binary classifier or score='value' for a regression"


@overload
def as_target(target: Tensor | int | Sequence[int], samples: int) -> Tensor: ...


@overload
def as_target(target: Target, samples: int) -> Tensor | BoundTarget | Literal["predicted"] | None: ...


def as_target(target: Target, samples: int) -> Tensor | BoundTarget | Literal["predicted"] | None:
    """Convert a target to one of four forms: class indices [N], ``"predicted"``, None, or a bound score as it is.

    Args:
        target: Class indices [N], as a tensor, an array, a list or a tuple; one index for all samples; a tensor without
            axes for one sample; ``"predicted"``; None for an output with one column; a bound score.
        samples: N.

    Raises:
        TypeError: If the target is none of these.
        ValueError: If it does not hold integers, or not ``samples`` of them.

    >>> as_target([0, 2], samples=2), as_target(1, samples=3), as_target(torch.tensor(4), samples=1)
    (tensor([0, 2]), tensor([1, 1, 1]), tensor([4]))
    >>> as_target(torch.tensor([0, 2, 1]), samples=2)
    Traceback (most recent call last):
    ValueError: target must have one class index per sample, shape [2], got [3].
    """
    if isinstance(target, str) and target != "predicted":
        raise ValueError(f"target must be class indices or 'predicted', got {target!r}.")
    if target is None or isinstance(target, str):
        return target
    if isinstance(target, BoundTarget):
        if len(target.target) != samples:
            raise ValueError(f"the target is bound to {len(target.target)} samples, there are {samples}.")
        return target
    try:
        indices = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"target must be class indices or 'predicted', got {type(target).__name__}.") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"target must hold integer class indices, got {indices.dtype}; use target.long().")
    # A tensor without axes is the argmax over a whole batch as likely as one index for all samples.
    if indices.ndim == 0 and (samples == 1 or not isinstance(target, Tensor)):
        indices = indices.expand(samples)
    if indices.shape != (samples,):
        raise ValueError(f"target must have one class index per sample, shape [{samples}], got {list(indices.shape)}.")
    return detach_for_autograd(indices).long()


def target_at(target: Target, rows: Tensor | slice) -> Target:
    """Select or repeat samples of a target in one of the forms of :func:`as_target`."""
    if isinstance(target, BoundTarget):
        return target.at(rows)
    return target[rows] if isinstance(target, Tensor) else target


class TargetRangeError(ValueError):
    """Says that a target is no class of the model.

    Attributes:
        classes: The number of classes that the model has.
    """

    def __init__(self, message: str, classes: int) -> None:
        super().__init__(message, classes)
        self.classes = classes

    def __str__(self) -> str:
        return str(self.args[0])


def check_range(target: Tensor, classes: int) -> None:
    """Raise if the model's output does not have a class index.

    Raises:
        TargetRangeError: If an index is out of range; a ValueError.

    >>> try:
    ...     check_range(torch.tensor([0, 2, 5]), classes=5)
    ... except ValueError as error:
    ...     print(error)
    target [5] is out of range: the model's output has 5 classes, so a target is 0 to 4.
    """
    outside = sorted({index for index in target.tolist() if not 0 <= index < classes})
    if outside:
        columns = f"{classes} classes, so a target is 0 to {classes - 1}"
        if classes == 1:
            columns = f"one column. Use target=0, with {ONE_COLUMN}"
        raise TargetRangeError(f"target {outside} is out of range: the model's output has {columns}.", classes)
