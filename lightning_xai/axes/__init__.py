"""The meaning of the axes of tensors in a network: rows of the batch, positions in the input, or units."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
