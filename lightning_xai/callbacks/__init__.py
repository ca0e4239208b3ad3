"""The Lightning side: the callback, what it writes, and the same without a Trainer."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
