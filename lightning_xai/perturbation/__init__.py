"""Chapter 1: importance, speed and synergy of the features of an input, by perturbing them."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
