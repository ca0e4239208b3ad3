"""Chapter 2: how the output is shared out over the input."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
