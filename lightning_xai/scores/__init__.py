r"""The scalar of a model's output that is explained.

A :class:`Score` :math:`s` is bound to the clean output and the target first: the class, the runner-up of a margin and
the region of a segmentation are fixed on the clean input, and the bound score then reads any perturbed output.
"""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
