"""ROAD: how often the prediction stands as features are imputed from what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lightning_xai._checks import IncompatibleError
from lightning_xai.evaluation.curves import perturbation_curves
from lightning_xai.evaluation.features import MapLike
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.perturbation.kinds.imputed import NoisyLinear
from lightning_xai.regions import RegionsLike
from lightning_xai.scores import Box, Score, Target


@dataclass(frozen=True)
class StillPredicted(Score):
    """1 where the target is predicted, 0 where not."""

    by_region: ClassVar[bool] = False

    @classmethod
    def beside(cls, score: Score) -> StillPredicted:
        """Read the prediction from the same output as a score.

        Raises:
            IncompatibleError: If the score reads a module inside the model, or detections.
        """
        if score.reads is not None or isinstance(score, Box):
            raise IncompatibleError(
                f"{type(score).__name__} reads no classes, and ROAD accuracy counts predictions: use another score, "
                f"e.g. 'probability'."
            )
        return cls(output=score.output, class_axis=score.class_axis, position=score.position)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:  # noqa: ARG002
        """Compare the prediction at the positions of the region with the target; NaN where an output is."""
        hit = (self.predict(output, region) == target).to(output.dtype)
        broken = output.isnan().any(1) if region is None else output.isnan().any(1) & region
        return hit.masked_fill(broken.view(len(broken), -1).any(1), float("nan"))


class RoadAccuracy(NamedTuple):
    """The accuracy as features are imputed.

    Attributes:
        morf: Without the most relevant features, at the shares k / K [K+1].
        lerf: Without the least relevant features.
    """

    morf: Tensor
    lerf: Tensor


def road_accuracy(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation = NoisyLinear(),  # noqa: B008 - frozen
    steps: int = 10,
    **options: Any,
) -> RoadAccuracy:
    r"""Compute the share of the samples whose prediction is still the target, as features are imputed.

    .. math:: \frac{1}{N} \big|\{n : \arg\max z(x_n \text{ without its } m_k \text{ most relevant features}) = y_n\}
       \big|

    The other arguments and errors are those of :func:`perturbation_curves`; samples with fewer features than steps are
    interpolated. A good map loses accuracy early without the most relevant features, and late without the least. The
    same curves of a score are :func:`perturbation_curves` with ``NoisyLinear``.

    Raises:
        TypeError: If a score is given.

    Source: :cite:`rong2022`.

    >>> import torch
    >>> model = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())
    >>> x = torch.tensor([[[1.0, 1.0, 9.0, 1.0], [2.0, 2.0, 2.0, 2.0]]])  # class 0 by one cell
    >>> found = road_accuracy(model, x, 0, x[:, :1], regions=1, perturbation=NoisyLinear(noise=0.0), steps=4)
    >>> found.morf.tolist()
    [1.0, 0.0, 0.0, 0.0, 1.0]
    """
    if "score" in options:
        raise TypeError(
            "road_accuracy counts predictions and takes no score: perturbation_curves(..., perturbation=NoisyLinear(), "
            "score=...) has one."
        )
    how: dict[str, Any] = {"regions": regions, "perturbation": perturbation, "steps": steps, **options}
    curves = perturbation_curves(model, inputs, target, explanation, **how, score=StillPredicted())
    (morf, count), (lerf, _) = (curves.mean_curve(curve, steps) for curve in (curves.morf, curves.lerf))
    return RoadAccuracy(morf / count, lerf / count)
