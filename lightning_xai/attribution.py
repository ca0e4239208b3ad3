"""The one form of an explanation: ``(model, inputs, target) -> map`` shaped like the inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai.targets import Target


class Attribution(ABC):
    """A way to attribute a model's score to its inputs: a frozen dataclass that implements :meth:`attribute`."""

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
        ids = check_inputs(inputs, sample_ids)
        found = self.attribute(model, inputs, target, ids)
        pooled = inputs.shape if inputs.ndim == 2 else (inputs.shape[0], 1, *inputs.shape[2:])
        if found.shape not in (inputs.shape, pooled):
            raise ValueError(
                f"{type(self).__name__} made a map {list(found.shape)} for inputs {list(inputs.shape)}; it must be "
                f"shaped like them."
            )
        return found
