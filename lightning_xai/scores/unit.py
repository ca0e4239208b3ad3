"""The score of a unit inside the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai._checks import as_integer
from lightning_xai.scores.base import Score, over
from lightning_xai.scores.target import Target
from lightning_xai.sites import Layer, Site, as_layer

_READINGS = ("mean", "max")


@dataclass(frozen=True)
class Unit(Score):
    r"""The activation of one unit of a layer: a channel of a convolution, a feature of a linear layer or of tokens.

    .. math:: s(x) = \frac{1}{|P|} \sum_p a_{kp}(x), \qquad a_{k p^*}(x) \text{ with } p^* = \arg\max_p a_{kp},
        \qquad\text{or}\quad a_{kp}(x)

    A forward pass ends at the layer. Positions of padding are in neither mean nor maximum; a sample that has no other
    has the score NaN. The target has no meaning and is ignored.

    Args:
        layer: The layer, by its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`.
        unit: k.
        at: Where an activation with positions is read: ``"mean"``, ``"max"`` (the place of the maximum is that of the
            clean input), or a position p, an index or one per axis.

    Raises:
        TypeError: If the unit is no integer.
        ValueError: If ``at`` is something else.

    Source: :cite:`leino2018`.

    >>> from torch import nn
    >>> from lightning_xai.relevance import Saliency
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 4))
    >>> model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.0, 5.0]])
    >>> Saliency(absolute=False, score=Unit("0", 1))(model, torch.ones(1, 2))
    tensor([[3., 4.]])
    """

    by_region: ClassVar[bool] = False
    by_class: ClassVar[bool] = False

    layer: Layer | Site
    unit: int
    at: str | int | Sequence[int] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layer, Site):
            object.__setattr__(self, "layer", as_layer(self.layer))
        as_integer("unit", self.unit, least=0)
        if isinstance(self.at, str) and self.at not in _READINGS:
            raise ValueError(f"at must be 'mean', 'max' or a position, got {self.at!r}.")
        if not isinstance(self.at, str):
            places = (self.at,) if isinstance(self.at, int) else tuple(self.at)
            object.__setattr__(self, "at", tuple(as_integer("at", place) for place in places))

    @property
    def reads(self) -> Site:
        return self.layer if isinstance(self.layer, Site) else Site(self.layer)

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        self._check(clean)
        maps = clean[:, self.unit]
        if self.at != "max" or maps.ndim == 1:
            return ()
        maps = maps if region is None else torch.where(region, maps, -torch.inf)
        return (maps.flatten(1).argmax(1),)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        maps = output[:, self.unit]
        if maps.ndim == 1:
            return maps
        if self.at == "mean":
            return over(region, maps)
        if self.at == "max":
            value = maps.flatten(1).gather(1, fixed[0].unsqueeze(1)).squeeze(1)
            return value if region is None else torch.where(region.flatten(1).any(1), value, torch.nan)
        assert isinstance(self.at, tuple)
        return maps[(slice(None), *self.at)]

    def classes(self, clean: Tensor) -> int:
        return 0

    def predict(self, clean: Tensor, present: Tensor | None = None) -> Tensor:
        return torch.full((len(clean),), self.unit, device=clean.device)

    def _resolve(self, target: Target, clean: Tensor, present: Tensor | None) -> Tensor:
        return self.predict(clean)

    def _check(self, clean: Tensor) -> None:
        if self.unit >= clean.shape[1]:
            raise ValueError(f"unit {self.unit} is out of range: layer {self.layer!r} has {clean.shape[1]} units.")
        if isinstance(self.at, tuple) and clean.ndim > 2:
            shape = clean.shape[2:]
            fits = len(self.at) == len(shape)
            if not fits or any(not -size <= place < size for place, size in zip(self.at, shape, strict=True)):
                raise ValueError(
                    f"at={self.at} is no position of layer {self.layer!r}, whose positions are {list(shape)}."
                )
