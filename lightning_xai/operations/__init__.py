"""What operations a forward pass makes: seen as calls of the torch API, by their plain names and kinds."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
