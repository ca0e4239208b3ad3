r"""Synergy and interaction: what is lost when two features are perturbed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_xai.inputs import InputsLike
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.pairing import Pairing
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult, sweep
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import ScoreLike, Target


def synergy(
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    anchor: int | Tensor | None = None,
    score: ScoreLike = "probability",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> Tensor:
    r"""Importance of two features that are perturbed in the same input.

    .. math:: LI_{j^*,j} = s(x) - s(R_{j^*} R_j\, x), \qquad j \ne j^*

    Both windows are perturbed once, also where they overlap, so the matrix is symmetric; its diagonal is NaN. Where a
    kind's values depend on the window, cells in both windows take those of the window with the smaller index.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: Class indices [N], one index for all, or ``"predicted"``; not needed for an output with one column.
        regions: The features j.
        perturbation: R.
        anchor: :math:`j^*`, one feature or one per sample [N]; None for all pairs, J(J-1)/2 evaluations.
        score: s: a name, a :class:`~lightning_xai.scores.Score`, or a function of (output, target).
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.

    Returns:
        [N, J] for anchors, [N, J, J] for all pairs, in units of the score.

    Raises:
        ValueError: If the anchor is out of range, or something does not fit the model.

    Source: :cite:`grauluque2023`.

    Example:
        For :math:`s = x_0 x_1` and zeros, losing both costs what losing either does:

        >>> from lightning_xai.perturbation import Windows, kinds
        >>> class Product(nn.Module):
        ...     def forward(self, x):
        ...         return x[:, 0] * x[:, 1] + x[:, 2]
        >>> x = torch.tensor([[2.0, 3.0, 5.0]])
        >>> synergy(Product(), x, 0, regions=Windows(1), perturbation=kinds.Constant(0.0), anchor=0, score="value")
        tensor([[nan, 6., 11.]])
    """
    pair, _ = _requests(perturbation, score, anchor)
    swept = sweep(model, inputs, target, [pair], Plan(as_regions(regions), chunk_size, engine), sample_ids)
    return joint_importance(swept, pair)


def interaction(
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    anchor: int | Tensor | None = None,
    score: ScoreLike = "probability",
    sample_ids: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    engine: str = "auto",
) -> Tensor:
    r"""The joint importance of two features beyond the importance of each alone.

    .. math:: I_{j^*,j} = LI_{j^*,j} - LI_{j^*} - LI_j

    Positive: the evidence is redundant, both must be lost before the score falls. Negative: either loss already costs
    what both give, they need each other. 0 for an additive score.

    The arguments, errors and shapes are those of :func:`synergy`.

    Source: :cite:`grauluque2023`, :cite:`grabisch1999`.

    >>> from lightning_xai.perturbation import Windows, kinds
    >>> class Product(nn.Module):
    ...     def forward(self, x):
    ...         return x[:, 0] * x[:, 1] + x[:, 2]
    >>> x = torch.tensor([[2.0, 3.0, 5.0]])
    >>> interaction(Product(), x, 0, regions=Windows(1), perturbation=kinds.Constant(0.0), anchor=0, score="value")
    tensor([[nan, -6., 0.]])
    """
    pair, single = _requests(perturbation, score, anchor)
    swept = sweep(model, inputs, target, [pair, single], Plan(as_regions(regions), chunk_size, engine), sample_ids)
    return beyond_single(joint_importance(swept, pair), swept.local(single), pair.pairing)


def joint_importance(swept: SweepResult, pair: Request) -> Tensor:
    """The joint importances [N, J] of an anchor, [N, J, J] of all pairs: symmetric, the diagonal NaN."""
    local = swept.local(pair)
    if pair.pairing != "all":
        return local
    count = swept.regions.count
    first, second = torch.triu_indices(count, count, offset=1, device=local.device)
    joint = local.new_full((local.shape[0], count, count), float("nan"))
    joint[:, first, second] = local
    joint[:, second, first] = local
    return joint


def beyond_single(joint: Tensor, single: Tensor, pairing: Pairing) -> Tensor:
    """Interaction: joint importance [N, J] or [N, J, J] less the single ones [N, J]."""
    if joint.ndim == 3:
        return joint - single.unsqueeze(1) - single.unsqueeze(2)
    anchors = torch.as_tensor(pairing, device=single.device).expand(single.shape[0]).unsqueeze(1)
    return joint - single.gather(1, anchors) - single


def _requests(
    perturbation: str | Perturbation, score: ScoreLike, anchor: int | Tensor | None
) -> tuple[Request, Request]:
    """The requests of the pairs and of the single features."""
    pairing: Pairing = "all"
    if anchor is not None:
        anchors = torch.as_tensor(anchor)
        if anchors.is_floating_point():
            raise TypeError(f"anchor must be a feature index or one per sample, got {anchors.dtype}.")
        pairing = tuple(anchors.tolist()) if anchors.ndim else int(anchors)
    return Request.of(perturbation, score, pairing), Request.of(perturbation, score)
