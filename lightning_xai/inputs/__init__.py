"""What a network is given and which of it is explained, as a function of the one tensor that is explained."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
