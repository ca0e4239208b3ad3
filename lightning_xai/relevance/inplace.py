"""Values that a backward pass needs, and that operations in place may write over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class SavedTensor:
    """The values of a tensor as they were when it was saved, without its history.

    Autograd refuses a backward pass when a saved tensor was written over. Rules keep theirs apart, since a model may
    well write over an output in place: the values are copied before that is done, and only then.
    """

    values: Tensor | None = None
    version: int = 0

    def save(self, tensor: Tensor) -> None:
        """Save the values of a tensor."""
        self.values, self.version = tensor.detach(), tensor._version

    def copy_before_write(self) -> None:
        """Copy the values, as something is about to write over them."""
        if self.values is not None and self.values._version == self.version:
            self.save(self.values.clone())

    def accept_write(self) -> None:
        """Take the next write for one that leaves the values as good as they were."""
        self.version += 1

    def read(self, what: str = "an activation") -> Tensor:
        """The values as they were.

        Raises:
            RuntimeError: If they were written over where it could not be seen.
        """
        assert self.values is not None
        if self.values._version != self.version:
            raise RuntimeError(f"{what} was changed in place in a way that was not seen; change it out of place.")
        return self.values
