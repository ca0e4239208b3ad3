"""Drift: how far the explanations of the same samples move from one epoch to another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, check_number
from lightning_xai.evaluation.correlation import UNDEFINED, is_constant, spearman
from lightning_xai.evaluation.features import precise, tolerance
from lightning_xai.evaluation.refusals import same_samples


def spearman_drift(features: Tensor, before: Tensor) -> Tensor:
    r"""Compute :math:`1 - \rho(A, A')` [N], 0 unchanged, 1 unrelated, 2 reversed, by Spearman's correlation.

    Two constant maps have not moved: 0; one constant map: 1. NaN without a feature that is finite in both, as of the
    other two.

    Args:
        features: The features' relevances A [N, J] now.
        before: A' [N, J], of the same samples.

    >>> spearman_drift(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]]))
    tensor([2.], dtype=torch.float64)
    """
    return _with_blanks(features, before, 1 - spearman(features, before, _there(features, before)), _constant)


def cosine_drift(features: Tensor, before: Tensor) -> Tensor:
    r"""Compute :math:`1 - \cos(A, A')` [N], 0 unchanged up to a factor, 1 unrelated, 2 reversed.

    Two maps that are 0 have not moved: 0; one that is 0: 1.

    Args:
        features: The features' relevances A [N, J] now.
        before: A' [N, J], of the same samples.

    >>> cosine_drift(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
    tensor([1.], dtype=torch.float64)
    """
    there = _there(features, before)
    now, then = (torch.where(there, precise(side), 0.0) for side in (features, before))
    size = now.norm(dim=1) * then.norm(dim=1)
    cosine = ((now * then).sum(1) / torch.where(size > 0, size, 1.0)).clamp(-1, 1)
    return _with_blanks(features, before, 1 - cosine, _zero)


def top_drift(features: Tensor, before: Tensor, count: int | None = None) -> Tensor:
    r"""Compute the share of the k most relevant features [N] that are no longer among them.

    .. math:: 1 - \frac{|T_k(A) \cap T_k(A')|}{k}, \qquad k = \max\big(1, \lfloor J / 5 + \tfrac12 \rfloor\big)

    Ties go to the smaller index, so the first k features are those of a constant map.

    Args:
        features: The features' relevances A [N, J] now.
        before: A' [N, J], of the same samples.
        count: k; all features if there are fewer.

    >>> top_drift(torch.tensor([[9.0, 8.0, 0.0]]), torch.tensor([[9.0, 0.0, 8.0]]), count=2)
    tensor([0.5000], dtype=torch.float64)
    """
    count = max(1, int(features.shape[1] / 5 + 0.5)) if count is None else as_integer("count", count, least=1)
    there = _there(features, before)
    size = there.sum(1).clamp(max=count)
    marks = []
    for side in (features, before):
        order = torch.where(there, side, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]
        marks.append(torch.zeros_like(there).scatter_(1, order, True) & there)
    return torch.where(size > 0, 1 - precise((marks[0] & marks[1]).sum(1)) / size.clamp(min=1), UNDEFINED)


def blank_pairs(features: Tensor, before: Tensor) -> Tensor:
    """Tell of which pairs one map or both are constant [N]; not of those without a feature that both know."""
    there = _there(features, before)
    return (_constant(features, there) | _constant(before, there)) & there.any(1)


def first_stable_epoch(
    epochs: Sequence[int], drifts: Sequence[float], *, threshold: float = 0.1, least: int = 3
) -> int:
    r"""Find the first epoch from which on no drift from the epoch before exceeds a threshold; -1 if there is none.

    Args:
        epochs: The epochs that drifts were measured at.
        drifts: The mean drift at each.
        threshold: :math:`\tau`.
        least: How many epochs there must be from it on.

    Raises:
        ValueError: If there are more of the ones than of the others, or ``least`` is less than 1.

    >>> first_stable_epoch([2, 4, 6, 8], [0.5, 0.1, 0.02, 0.05])
    4
    """
    as_integer("least", least, least=1)
    check_number("threshold", threshold)
    if len(epochs) != len(drifts):
        raise ValueError(f"epochs and drifts must be as many, got {len(epochs)} and {len(drifts)}.")
    stable = len(drifts)
    while stable and drifts[stable - 1] <= threshold:
        stable -= 1
    return epochs[stable] if len(drifts) - stable >= least else -1


def _there(features: Tensor, before: Tensor) -> Tensor:
    same_samples(features, before)
    return features.isfinite() & before.isfinite()


def _constant(values: Tensor, there: Tensor) -> Tensor:
    return is_constant(values, there, tolerance(values), torch.where(there, values, 0.0).abs().sum(1))


def _zero(values: Tensor, there: Tensor) -> Tensor:
    return (torch.where(there, values, 0.0) == 0).all(1)


def _with_blanks(features: Tensor, before: Tensor, drift: Tensor, blank: object) -> Tensor:
    assert callable(blank)
    there = _there(features, before)
    one, other = blank(features, there), blank(before, there)
    found = torch.where(one & other, 0.0, torch.where(one | other, 1.0, drift))
    return torch.where(there.any(1), found, UNDEFINED)
