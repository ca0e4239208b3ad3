r"""The features :math:`j \in J` of an input: windows of a regular grid, or the segments of a label map."""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
