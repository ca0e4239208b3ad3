"""Torchmetrics metrics of the quantities of all chapters, and the base class to derive from."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
