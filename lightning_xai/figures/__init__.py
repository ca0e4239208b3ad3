"""Pictures of tensors. Matplotlib is imported when the first one is drawn, and never its global state."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
