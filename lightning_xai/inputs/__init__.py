"""The arguments of a network and the one of them that is explained, bound to a function of one tensor."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
