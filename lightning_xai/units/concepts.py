"""Concepts, and masks of where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NO_CONCEPT = -1


@dataclass(frozen=True)
class Concepts:
    """The concepts that the masks label.

    Args:
        names: The Q concepts, in the order of their labels 0..Q-1.
        categories: The category of each concept, e.g. ``"color"``; every concept its own unless given.

    Raises:
        ValueError: If there is no name, one occurs twice, or the categories are not one per concept.

    >>> Concepts(["disk", "stripes"]).count
    2
    """

    names: Sequence[str]
    categories: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise TypeError(f"names must be a sequence of names, got the string {self.names!r}; use [{self.names!r}].")
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be different names, at least one, got {list(self.names)}.")
        if self.categories is not None:
            object.__setattr__(self, "categories", tuple(str(name) for name in self.categories))
            if len(self.categories) != len(self.names):
                raise ValueError(
                    f"categories must be one per concept: got {len(self.categories)} for {len(self.names)} concepts."
                )

    @property
    def count(self) -> int:
        """Q, the number of concepts."""
        return len(self.names)

    def masks(self, labels: Tensor, inputs: Tensor) -> Tensor:
        r"""Labels as masks L [N, Q, \*S].

        Args:
            labels: A concept per cell [N, \*S], integers 0..Q-1 or -1 for none; or Boolean masks [N, Q, \*S].
            inputs: The inputs [N, C, \*S] that they belong to.

        Raises:
            TypeError: If the labels are neither integers nor Boolean.
            ValueError: If they are of another size, or a label is outside the concepts.
        """
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"masks must be integer labels [N, *S] or Boolean [N, Q, *S], got {found}.")
        is_mask = labels.dtype == torch.bool
        expected = [len(inputs), *([self.count] if is_mask else []), *inputs.shape[2:]]
        if list(labels.shape) != expected:
            raise ValueError(
                f"masks are {list(labels.shape)}; {self.count} concepts of inputs {list(inputs.shape)} need "
                f"{expected}: resize them to the inputs, without mixing labels (nearest)."
            )
        labels = labels.to(inputs.device)
        if is_mask:
            return labels
        outside = sorted(set(labels[(labels < NO_CONCEPT) | (labels >= self.count)].tolist()))
        if outside:
            raise ValueError(
                f"masks hold the labels {outside}, but there are {self.count} concepts, 0 to {self.count - 1}; mark "
                f"cells without a concept by {NO_CONCEPT}."
            )
        numbers = torch.arange(self.count, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
        return labels.unsqueeze(1) == numbers

    def present(self, areas: Tensor) -> Tensor:
        """Find the samples that are labelled with a concept's category, Boolean [N, Q], from the areas |L| [N, Q]."""
        own = self.categories or self.names
        there = areas > 0
        same = torch.tensor([[a == b for b in own] for a in own], device=areas.device)
        return (there.unsqueeze(1) & same).any(2)
