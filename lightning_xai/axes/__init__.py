"""What the axes of the tensors in a network are: rows of the batch, positions in the input, or units."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
