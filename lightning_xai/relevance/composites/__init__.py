"""Which rule where: ordered lists "pattern -> rule", and the presets of the literature."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
