"""The one form of an explanation: ``(model, inputs, target) -> map`` shaped like the inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai.scores import Target


class Attribution(ABC):
    """A way to attribute a model's score to its inputs: a frozen dataclass that implements :meth:`attribute`.

    Class attributes:
        details: The names of what :meth:`with_details` gives besides the map.
    """

    details: ClassVar[tuple[str, ...]] = ()

    @property
    def own_size(self) -> bool:
        """Whether the map's spatial size is its own and not that of the inputs."""
        return False

    @abstractmethod
    def attribute(self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...]) -> Tensor:
        r"""The map, shaped like the inputs [N, C, \*S], or [N, 1, \*S]."""

    def __call__(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        r"""Attribute the score of every sample to its cells.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
            target: Class indices [N], one index for all, or ``"predicted"``.
            sample_ids: The samples' ids [N], which key random draws; 0..N-1 unless given.

        Returns:
            A map shaped like the inputs; its channel axis may be 1.

        Raises:
            TypeError: If the inputs are not floating-point numbers.
            ValueError: If the inputs or the target cannot be explained.
        """
        return self._checked(inputs, self.attribute(model, inputs, target, check_inputs(inputs, sample_ids)))

    def with_details(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The map, and numbers [N] that a method gives along with it, by the names in ``details``.

        The arguments are those of a call.
        """
        found, details = self.attribute_with_details(model, inputs, target, check_inputs(inputs, sample_ids))
        return self._checked(inputs, found), details

    def attribute_with_details(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The map, and what ``details`` names; a method that names something implements this."""
        return self.attribute(model, inputs, target, sample_ids), {}

    def _checked(self, inputs: Tensor, found: Tensor) -> Tensor:
        spatial = found.shape[2:] if self.own_size and found.ndim == inputs.ndim else inputs.shape[2:]
        channels = {inputs.shape[1]} if inputs.ndim == 2 else {1, inputs.shape[1]}
        if found.shape not in {(inputs.shape[0], channel, *spatial) for channel in channels}:
            raise ValueError(
                f"{type(self).__name__} made a map {list(found.shape)} for inputs {list(inputs.shape)}; it must be "
                f"shaped like them."
            )
        return found
