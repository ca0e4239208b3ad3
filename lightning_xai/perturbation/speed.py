r"""Speed: how fast importance grows with the strength of the perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds import Perturbation, as_perturbation
from lightning_xai.perturbation.sweep import Plan, Request, sweep
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import ScoreLike, Target

_ABSCISSAE = ("index", "strength")


class SlopeFit(NamedTuple):
    r"""A least-squares line through the local importances of the states.

    Attributes:
        slope: [N, J], units of the score per unit of the abscissa.
        r_squared: [N, J], the share of variance the line explains; 1 if the points do not vary.
    """

    slope: Tensor
    r_squared: Tensor


def speed(
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    *,
    regions: RegionsLike,
    perturbations: Sequence[str | Perturbation],
    abscissa: str = "index",
    score: ScoreLike = "probability",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> SlopeFit:
    r"""The slope of importance over the states :math:`R_1 \dots R_K` of a perturbation.

    .. math:: v_j = \frac{\sum_k (t_k - \bar t)(LI_{j,k} - \overline{LI}_j)}{\sum_k (t_k - \bar t)^2},
        \qquad LI_{j,k} = s(x) - s(R_{k,j}\, x)

    Every state starts from the clean input. A state whose importance is NaN is left out of the fit; with fewer than
    two left the slope is NaN.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: Class indices [N], one index for all, or ``"predicted"``; not needed for an output with one column.
        regions: The features j.
        perturbations: The K states, e.g. ``[kinds.Negative(d) for d in (0.1, 0.2, 0.3)]``.
        abscissa: :math:`t_k`: ``"index"``, 1..K, or ``"strength"``, the value of the field each kind names.
        score: s: a name, a :class:`~lightning_xai.scores.Score`, or a function of (output, target).
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Raises:
        ValueError: If there is one state only, abscissae are equal, or something does not fit the model.

    Source: :cite:`grauluque2023`.

    Example:
        For a linear score and ``Negative`` by :math:`k \delta`, :math:`v_j = \delta \sum_{p \in j} w_p x_p`:

        >>> from lightning_xai.perturbation import Windows, kinds
        >>> model = nn.Linear(3, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, 4.0, 8.0]])
        >>> states = [kinds.Negative(0.25), kinds.Negative(0.5)]
        >>> fit = speed(model, torch.ones(1, 3), 0, regions=Windows(1), perturbations=states, score="value")
        >>> fit.slope, fit.r_squared
        (tensor([[0.5000, 1.0000, 2.0000]]), tensor([[1., 1., 1.]]))
    """
    states = as_states(perturbations)
    abscissae = state_abscissae(states, abscissa)
    requests = [Request.of(state, score) for state in states]
    swept = sweep(model, inputs, target, requests, Plan(as_regions(regions), chunk_size, engine), sample_ids)
    return fit_slope(abscissae, torch.stack([swept.local(request) for request in requests]))


def fit_slope(abscissae: Sequence[float], values: Tensor) -> SlopeFit:
    """Least-squares lines through the points (abscissae [K], values [K, N, J]), values that are NaN left out.

    >>> fit_slope([1.0, 2.0, 3.0], torch.tensor([[[1.0]], [[3.0]], [[5.0]]])).slope
    tensor([[2.]])
    """
    used = values.isfinite()
    count = used.sum(0)
    t = values.new_tensor(list(abscissae)).view(-1, 1, 1).expand_as(values)
    t_off, y_off = _centered(t, used, count), _centered(values, used, count)
    slope = (t_off * y_off).sum(0) / (t_off**2).sum(0)
    total = (y_off**2).sum(0)
    left = ((y_off - slope * t_off) ** 2).sum(0)
    r_squared = torch.where(total > 0, 1 - left / total, 1.0)
    enough = count >= 2
    return SlopeFit(
        torch.where(enough, slope, float("nan")), torch.where(enough, r_squared.clamp(min=0.0), float("nan"))
    )


def _centered(points: Tensor, used: Tensor, count: Tensor) -> Tensor:
    mean = torch.where(used, points, 0.0).sum(0) / count.clamp(min=1)
    return torch.where(used, points - mean, 0.0)


def as_states(perturbations: Sequence[str | Perturbation]) -> list[Perturbation]:
    """The states of a perturbation, each of which may be given by name.

    Raises:
        TypeError: If it is a single perturbation.
    """
    if isinstance(perturbations, str | Perturbation):
        raise TypeError("perturbations must be a list of states, e.g. [kinds.Negative(d) for d in (0.1, 0.2, 0.3)].")
    return [as_perturbation(state) for state in perturbations]


def state_abscissae(perturbations: Sequence[Perturbation], abscissa: str) -> list[float]:
    """The abscissae of the states.

    Raises:
        ValueError: If there is one state only or two abscissae are equal.
        TypeError: If a kind has no strength.

    >>> from lightning_xai.perturbation import kinds
    >>> state_abscissae([kinds.Blur(1.0), kinds.Blur(4.0)], "strength")
    [1.0, 4.0]
    """
    if abscissa not in _ABSCISSAE:
        raise ValueError(f"abscissa must be one of {', '.join(_ABSCISSAE)}, got {abscissa!r}.")
    if len(perturbations) < 2:
        raise ValueError(f"perturbations must be two states or more to fit a slope, got {len(perturbations)}.")
    if abscissa == "index":
        return [float(state) for state in range(1, len(perturbations) + 1)]
    for kind in perturbations:
        if kind.strength is None:
            raise TypeError(f"{type(kind).__name__} has no strength; use abscissa='index'.")
    values = [float(getattr(kind, str(kind.strength))) for kind in perturbations]
    if len(set(values)) < len(values):
        raise ValueError(f"perturbations must differ in strength, got {values}.")
    return values
