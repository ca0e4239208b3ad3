"""Measures that read the curves of :func:`perturbation_curves`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from lightning_xai.evaluation.curves import perturbation_curves
from lightning_xai.evaluation.features import MapLike
from lightning_xai.inputs import InputsLike
from lightning_xai.scores import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lightning_xai.evaluation.options import CurveOptions


def deletion(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the area under the curve of the most relevant features first [N]: low is good.

    .. math:: \sum_{k=1}^{K} (q_k - q_{k-1}) \frac{c_k + c_{k-1}}{2}

    In units of the score: where a map is right, the score falls at once.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`petsiuk2018`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> deletion(model, torch.ones(1, 2), 0, weight, **how).item()
    1.5
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("morf",), **options).deletion


def insertion(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the area under the curve of the least relevant features first [N]: high is good.

    .. math:: \sum_{k=1}^{K} (q_k - q_{k-1}) \frac{l_k + l_{k-1}}{2}

    Read backwards it is the curve of restoring the most relevant features first.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`petsiuk2018`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> insertion(model, torch.ones(1, 2), 0, weight, **how).item()
    2.5
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("lerf",), **options).insertion


def srg(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the symmetric relevance gain, the area between the curves [N]: high is good, 0 is chance.

    .. math:: \mathrm{insertion} - \mathrm{deletion}

    Curves under one perturbation share what it does by itself; their difference is free of it.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`bluecher2024`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> srg(model, torch.ones(1, 2), 0, weight, **how).item()
    1.0
    """
    return perturbation_curves(model, inputs, target, explanation, **options).srg


def aopc_morf(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the area over the perturbation curve, the most relevant features first [N]: high is good.

    .. math:: \frac{1}{K + 1} \sum_{k=0}^{K} (c_0 - c_k)

    The term of the clean input, which is 0, counts.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`samek2017`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> round(aopc_morf(model, torch.ones(1, 2), 0, weight, **how).item(), 2)
    2.33
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("morf",), **options).aopc_morf


def aopc_lerf(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the area over the perturbation curve, the least relevant features first [N]: low is good.

    .. math:: \frac{1}{K + 1} \sum_{k=0}^{K} (l_0 - l_k)

    The term of the clean input, which is 0, counts.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`samek2017`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> round(aopc_lerf(model, torch.ones(1, 2), 0, weight, **how).item(), 2)
    1.67
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("lerf",), **options).aopc_lerf


def irof(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the area over the curve as a share of the clean score [N]: high is good.

    .. math:: 1 - \sum_{k=1}^{K} (q_k - q_{k-1}) \frac{c_k + c_{k-1}}{2\, c_0}

    NaN where the clean score is not positive. Published with ``Segments`` of an image.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`rieger2020`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> irof(model, torch.ones(1, 2), 0, weight, **how).item()
    0.625
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("morf",), **options).irof


def monotone(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the share of the steps at which the score does not rise as evidence is removed [N]: high is good.

    .. math:: \frac{1}{K} \big|\{k \ge 1 : c_k \le c_{k-1} + \tau \max |c|\}\big|

    A share, where the source asks for all steps.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`arya2019`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> monotone(model, torch.ones(1, 2), 0, weight, **how).item()
    1.0
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("morf",), **options).monotone


def sufficient_share(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[CurveOptions]
) -> Tensor:
    r"""Compute the least share of the features that gives the score back [N]: low is good.

    .. math:: \min \{1 - q_k : l_k \ge s(x) - \varepsilon |s(x)|\}

    1 where only all of them do. The source counts features, in the order of magnitudes.
    The arguments and errors are those of :func:`perturbation_curves`. Source: :cite:`nguyen2020`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> sufficient_share(model, torch.ones(1, 2), 0, weight, **how, epsilon=0.25).item()
    0.5
    """
    return perturbation_curves(model, inputs, target, explanation, orders=("lerf",), **options).sufficient_share
