"""Tensors to pictures. Matplotlib is imported when the first picture is drawn, and never its global state."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
