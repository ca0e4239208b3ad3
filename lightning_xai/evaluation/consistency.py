"""Consistency over a data set: do samples that are explained alike have the same prediction?"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_xai._checks import as_integer, check_number
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.features import precise
from lightning_xai.evaluation.refusals import same_samples


def codes(features: Tensor, count: int = 2) -> Tensor:
    r"""Code samples by their strongest features and the signs of these, in any order, [N, count].

    A sample without a finite feature has no code: -1.

    Args:
        features: :math:`A_j` [N, J].
        count: How many features a code has; all of them if there are fewer.

    >>> codes(torch.tensor([[1.0, -3.0, 2.0]]), 2)
    tensor([[3, 4]])
    """
    as_integer("count", count, least=1)
    if features.ndim != 2:
        raise ValueError(f"features must be [N, J], got {list(features.shape)}.")
    known = features.isfinite()
    features = torch.where(known, features, 0.0)
    order = features.abs().argsort(dim=1, descending=True, stable=True)[:, :count]
    code = (2 * order + (features.gather(1, order) < 0)).sort(dim=1).values
    return torch.where(known.any(1, keepdim=True), code, -1)


def consistency(code: Tensor, prediction: Tensor) -> Tensor:
    r"""Compute per sample the share of the other samples with the same code that have the same prediction.

    .. math:: \frac{|\{m \ne n : K_m = K_n, \hat y_m = \hat y_n\}|}{|\{m \ne n : K_m = K_n\}|}

    A sample that is alone with its code, or has none (-1), is NaN. Source: :cite:`dasgupta2022`.

    Args:
        code: K, e.g. of :func:`codes` [N, k].
        prediction: The predicted classes [N].

    >>> consistency(torch.tensor([[1], [1], [1], [2]]), torch.tensor([0, 0, 5, 0]))
    tensor([0.5000, 0.5000, 0.0000,    nan], dtype=torch.float64)
    """
    same_samples(code, prediction, 1)
    _, group = torch.unique(code, dim=0, return_inverse=True)
    same = _sizes(group)
    both = _sizes(torch.unique(torch.stack((group, prediction), 1), dim=0, return_inverse=True)[1])
    return _share(both - 1, same - 1).masked_fill((code < 0).any(1), UNDEFINED)


def sufficiency(features: Tensor, prediction: Tensor, *, threshold: float = 0.9) -> Tensor:
    r"""Compute per sample the share of the other samples with a similar map that have the same prediction.

    .. math:: \frac{|\{m \ne n : \cos(A_n, A_m) \ge \tau, \hat y_m = \hat y_n\}|}
       {|\{m \ne n : \cos(A_n, A_m) \ge \tau\}|}

    A sample without a similar one is NaN. Source: :cite:`dasgupta2022`.

    Args:
        features: :math:`A_j` [N, J].
        prediction: The predicted classes [N].
        threshold: :math:`\tau`.

    >>> sufficiency(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([3, 3, 3]))
    tensor([1., 1., nan], dtype=torch.float64)
    """
    check_number("threshold", threshold)
    same_samples(features, prediction, 1)
    values = precise(features)
    size = values.norm(dim=1, keepdim=True)
    unit = values / torch.where(size > 0, size, 1.0)
    near = unit @ unit.T >= threshold
    near.fill_diagonal_(False)
    same = prediction.unsqueeze(0) == prediction.unsqueeze(1)
    return _share((near & same).sum(1), near.sum(1))


def _sizes(group: Tensor) -> Tensor:
    return group.bincount()[group]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, precise(part) / whole.clamp(min=1), UNDEFINED)
