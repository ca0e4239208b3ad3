"""Chapter 3: what single units and groups of units do."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
