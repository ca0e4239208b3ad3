"""The operations of a forward pass: calls of the torch API, their plain names and their kinds."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
