"""Maximisation: inputs that a class, a unit, a group or a direction responds to most, and DeepDream."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
