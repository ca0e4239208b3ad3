"""Reference inputs: numbers, tensors, or functions of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cells:
    """Numbers cell by cell, which compare by identity."""

    values: Tensor

    def __repr__(self) -> str:
        return f"Cells(shape={list(self.values.shape)})"


Reference = float | Tensor | Sequence[Any] | Cells | Callable[[Tensor], Tensor]


def as_reference(name: str, reference: Reference) -> float | Cells | Callable[[Tensor], Tensor]:
    """Convert a reference to a number, to :class:`Cells` (nested lists and tensors), or to a function.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a number is not finite.
    """
    if isinstance(reference, Cells) or (callable(reference) and not isinstance(reference, Tensor)):
        return reference
    try:
        values = (
            reference.detach() if isinstance(reference, Tensor) else torch.as_tensor(reference, dtype=torch.float64)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a number, a tensor or a function of the inputs, got {type(reference).__name__}."
        ) from error
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must hold finite numbers only.")
    return float(reference) if isinstance(reference, int | float) else Cells(values)


def at_reference(name: str, reference: Reference, inputs: Tensor) -> Tensor:
    r"""Return the reference for inputs [N, C, \*S], in their shape.

    Raises:
        TypeError: If a function does not return a tensor.
        ValueError: If it does not fit the inputs: it must broadcast to a sample, or be shaped like the inputs.
    """
    reference = as_reference(name, reference)
    if isinstance(reference, float):
        return torch.full_like(inputs, reference)
    values = reference.values if isinstance(reference, Cells) else reference(inputs)
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(values).__name__}.")
    values = values.detach().to(inputs)
    try:
        fitting = values if values.shape == inputs.shape else values.expand(inputs.shape[1:]).expand_as(inputs)
    except RuntimeError as error:
        raise ValueError(
            f"{name} of shape {list(values.shape)} fits neither the inputs {list(inputs.shape)} nor one sample "
            f"{list(inputs.shape[1:])}."
        ) from error
    if not bool(fitting.isfinite().all()):
        raise ValueError(f"{name} must hold finite numbers only.")
    return fitting
