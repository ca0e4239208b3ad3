r"""Local and relative importance: what the score loses when a feature is perturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds.base import Perturbation, as_perturbation
from lightning_xai.perturbation.sweep import Plan, Request, sweep
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import CombClasses, ScoreLike, Target, as_score
from lightning_xai.scores.classes import _StrongestClass


def importance(
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    score: ScoreLike = "probability",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> Tensor:
    r"""Local importance of every feature.

    .. math:: LI_j = s(x) - s(R_j x)

    Positive where the feature is evidence *for* the target. NaN where a perturbed cell or the score is not finite.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: Class indices [N], one index for all, or ``"predicted"``; not needed for an output with one column.
        regions: The features j, e.g. ``Windows(size=4)``.
        perturbation: R, e.g. ``kinds.Blur(sigma=3.0)``.
        score: s: a name, a :class:`~lightning_xai.scores.Score`, or a function of (output, target).
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Returns:
        Importance [N, J] in units of the score; ``regions.bind(inputs.shape).paint(...)`` lays it over the input.

    Raises:
        ValueError: If the inputs, the target, the regions or the score do not fit the model or each other.
        TypeError: If an argument is of the wrong type, integer inputs among them.

    Source: :cite:`zeiler2014`, :cite:`grauluque2023`.

    Example:
        For a linear score and a constant c, :math:`LI_j = \sum_{p \in j} w_p (x_p - c)`:

        >>> from lightning_xai.perturbation import Windows, kinds
        >>> model = nn.Linear(4, 1, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 1.0]])
        >>> importance(model, x, 0, regions=Windows(size=2), perturbation=kinds.Constant(0.0), score="value")
        tensor([[3., 7.],
                [4., 4.]])
    """
    request = Request.of(perturbation, score)
    swept = sweep(model, inputs, target, [request], Plan(as_regions(regions), chunk_size, engine), sample_ids)
    return swept.local(request)


def relative_importance(local: Tensor) -> Tensor:
    r"""Importance on the scale of its own sample.

    .. math:: RI_j = \frac{LI_j - \min LI}{\max LI - \min LI}

    Minimum and maximum are over the sample's features, those that are NaN left out; a constant map gives 0.

    Args:
        local: Local importance [N, J].

    Returns:
        Relative importance [N, J], 0 to 1; NaN where the local importance is.

    Raises:
        ValueError: If ``local`` is not [N, J].

    Source: :cite:`grauluque2023`.

    >>> relative_importance(torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]))
    tensor([[0.0000, 0.5000, 1.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    if local.ndim != 2:
        raise ValueError(f"local must be [samples, features], got shape {list(local.shape)}.")
    if local.shape[1] == 0:
        return local.clone()
    number = local.isfinite()
    low = torch.where(number, local, float("inf")).min(1, keepdim=True).values
    high = torch.where(number, local, float("-inf")).max(1, keepdim=True).values
    width = high - low
    relative = (local - low) / torch.where(width > 0, width, 1.0)
    return torch.where(number, relative, float("nan"))


class CombClassesResult(NamedTuple):
    """Importance by the strongest gain of any class on the target.

    Attributes:
        local: Local importance [N, J].
        strongest: The class [N, J] that gains or loses most on the target, an index.
    """

    local: Tensor
    strongest: Tensor


def comb_classes(
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    output: str | int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> CombClassesResult:
    r""":func:`importance` with the score ``"comb_classes"``, and the class behind every value.

    .. math:: D_c = (p_c - p_y)(R_j x) - (p_c - p_y)(x), \qquad LI_j = D_{c^*},\; c^* = \arg\max_{c \ne y} |D_c|

    A two-sided kind has one :math:`D_{c^*}` per arm, combined as the kind says; the class reported is that of the arm
    with the larger one.

    The errors are those of :func:`importance`.

    Args:
        model: The network, with an output of two classes or more.
        inputs: Inputs [N, C, \*S], or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: y, class indices [N], one index for all, or ``"predicted"``.
        regions: The features j.
        perturbation: R.
        output: Which tensor to read of a model that returns several.
        sample_ids: The samples' ids [N].
        chunk_size: The most inputs per forward pass.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Returns:
        Importance [N, J], a difference of probabilities, and classes [N, J], -1 where the importance is NaN.

    Source: :cite:`grauluque2023`.

    Example:
        Without its only evidence, class 0 falls behind class 2, which the second column speaks for:

        >>> from lightning_xai.perturbation import Windows, kinds
        >>> model = nn.Linear(2, 3, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        >>> x = torch.tensor([[2.0, 1.0]])
        >>> found = comb_classes(model, x, 0, regions=Windows(1), perturbation=kinds.Constant(0.0))
        >>> found.strongest
        tensor([[2, 2]])
    """
    value, index = CombClasses(output=output), _StrongestClass(output=output)
    requests = [Request.of(perturbation, value), Request.of(perturbation, index)]
    swept = sweep(model, inputs, target, requests, Plan(as_regions(regions), chunk_size, engine), sample_ids)
    local = swept.local(requests[0])
    leading = swept.arms[requests[0]].nan_to_num().abs().argmax(0, keepdim=True)
    strongest = swept.arms[requests[1]].gather(0, leading).squeeze(0)
    return CombClassesResult(local, torch.where(local.isfinite(), strongest, -1).long())


@dataclass(frozen=True)
class PerturbationImportance(ScoreAttribution):
    r"""Importance as an attribution: :math:`LI_j` painted over the input, [N, 1, \*S].

    Args:
        regions: The features j.
        perturbation: R.
        score: s.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Cells that no feature reaches are NaN; where features overlap a cell has the mean of their importances.

    Example:
        Importances of 4 and 6; the middle cells are in both windows, in either channel:

        >>> from lightning_xai.perturbation import Windows, kinds
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, 2.0, 4.0, 1.0, 0.0, 0.0]])
        >>> own = PerturbationImportance(Windows(2, stride=1), kinds.Constant(0.0), score="value")
        >>> own(model, torch.ones(1, 2, 3), 0)
        tensor([[[4., 5., 6.]]])
    """

    needs_gradient: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    regions: RegionsLike
    perturbation: str | Perturbation
    score: ScoreLike = field(default="probability", kw_only=True)
    chunk_size: int | None = field(default=None, kw_only=True)
    engine: str = field(default="auto", kw_only=True)

    def check(self) -> None:
        object.__setattr__(self, "regions", as_regions(self.regions))
        object.__setattr__(self, "perturbation", as_perturbation(self.perturbation))
        self._plan()

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        request = Request.of(self.perturbation, as_score(self.score))
        swept = sweep(model, inputs, target, [request], self._plan(), sample_ids)
        painted = swept.regions.paint(swept.local(request))
        relevance = painted if inputs.ndim == 2 else painted.unsqueeze(1)
        score = request.score
        facts = swept.clean[score], swept.target[score], swept.prediction[score], swept.classes[score]
        return Explanation(relevance, *facts)

    def _plan(self) -> Plan:
        return Plan(as_regions(self.regions), self.chunk_size, self.engine)
