"""Chapter 4: is the explanation any good? Measures of a finished map, an explanation, or any attribution."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
