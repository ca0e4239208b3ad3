r"""The perturbations :math:`R`: what happens to the values of a feature.

A kind is a frozen dataclass with one method. Letters: :math:`v` the value of a cell, :math:`b` the bias. Every kind
takes ``channels=`` to leave the other channels as they are. Random kinds draw from generators keyed by their seed and
the sample's id, so a sample is perturbed the same way in any batch and on any process.
"""

from lightning_xai._lazy import lazy

__all__ = lazy(__name__)
