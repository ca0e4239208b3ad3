"""Measures of how far a map agrees with what the score loses without features, alone or in sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.features import MapLike
from lightning_xai.evaluation.refusals import contributions
from lightning_xai.evaluation.single import feature_drops
from lightning_xai.evaluation.subsets import (
    SHARES,
    SubsetDrops,
    check_subsets,
    mean_correlation,
    set_size,
    subset_drops,
)
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.present import bind_present
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.scores import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lightning_xai.evaluation.options import DropOptions, SubsetOptions


def faithfulness_correlation(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[SubsetOptions]
) -> Tensor:
    r"""Correlate the sum of a map over random sets with the loss of the score [N]: high is good.

    .. math:: \operatorname{corr}_b(l_b, d_b)

    Pearson's, -1 to 1; NaN where a side does not vary, or a set is everything.
    The arguments and errors are those of :func:`subset_drops`. Source: :cite:`bhatt2020`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> round(faithfulness_correlation(model, torch.ones(1, 3), 0, weight, **how).item(), 6)
    1.0
    """
    return subset_drops(model, inputs, target, explanation, **options).correlation


def infidelity(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[SubsetOptions]
) -> Tensor:
    r"""Compute the mean squared difference of both sides [N]: low is good.

    .. math:: \frac{1}{B} \sum_b (l_b - d_b)^2

    In squared units of the score. With ``units="slope"`` it is the published form for gradients, which have another
    unit and are refused without. The arguments and further errors are those of :func:`subset_drops`.
    Source: :cite:`yeh2019`.

    Raises:
        ValueError: If an attribution says what a change costs, not what there is, under ``units="contribution"``.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> infidelity(model, torch.ones(1, 3), 0, weight, **how).item()
    0.0
    """
    contributions(explanation, options.get("units", "contribution"))
    return subset_drops(model, inputs, target, explanation, **options).infidelity


def infidelity_scaled(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[SubsetOptions]
) -> Tensor:
    r"""Compute the mean squared difference, the map times the factor that fits best [N]: low is good.

    .. math:: \frac{1}{B} \sum_b (\beta l_b - d_b)^2, \qquad \beta = \frac{\sum_b l_b d_b}{\sum_b l_b^2}

    A map that is 0 has :math:`\beta = 0`.
    The arguments and errors are those of :func:`subset_drops`. Source: :cite:`yeh2019`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> infidelity_scaled(model, torch.ones(1, 3), 0, weight, **how).item()
    0.0
    """
    return subset_drops(model, inputs, target, explanation, **options).infidelity_scaled


def infidelity_relative(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[SubsetOptions]
) -> Tensor:
    r"""Compute the scaled infidelity as a share of what the score does [N]: low is good.

    .. math:: \frac{\sum_b (\beta l_b - d_b)^2}{\sum_b d_b^2} = 1 - \cos^2(l, d)

    0 to 1, so that epochs whose scores differ in scale compare. NaN where no set changes the score.
    The arguments and errors are those of :func:`subset_drops`. Source: :cite:`yeh2019`, normalised here.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> infidelity_relative(model, torch.ones(1, 3), 0, weight, **how).item()
    0.0
    """
    return subset_drops(model, inputs, target, explanation, **options).infidelity_relative


def faithfulness_estimate(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[DropOptions]
) -> Tensor:
    r"""Correlate the map with the importance of every feature alone [N]: high is good.

    .. math:: \operatorname{corr}_j(A_j, LI_j)

    Pearson's, -1 to 1; NaN where a side does not vary.
    The arguments and errors are those of :func:`feature_drops`. Source: :cite:`alvarezmelis2018`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> round(faithfulness_estimate(model, torch.ones(1, 3), 0, weight, **how).item(), 6)
    1.0
    """
    return feature_drops(model, inputs, target, explanation, **options).estimate


def monotonicity_correlation(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[DropOptions]
) -> Tensor:
    r"""Correlate the ranks of the magnitudes of map and importances [N]: high is good.

    .. math:: \operatorname{corr}_j\big(\operatorname{rank} |A_j|, \operatorname{rank} |LI_j|\big)

    Spearman's, -1 to 1; NaN where a side does not vary.
    The arguments and errors are those of :func:`feature_drops`. Source: :cite:`nguyen2020`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> round(monotonicity_correlation(model, torch.ones(1, 3), 0, weight, **how).item(), 6)
    1.0
    """
    return feature_drops(model, inputs, target, explanation, **options).monotonicity_correlation


def non_sensitivity(
    model: nn.Module, inputs: InputsLike, target: Target, explanation: MapLike, **options: Unpack[DropOptions]
) -> Tensor:
    r"""Compute the share of the features that matter by only one of map and score [N]: low is good.

    .. math:: \frac{|Z_A \mathbin{\triangle} Z_{LI}|}{J}, \qquad Z_A = \{|A_j| \le 10^{-5} \max |A|\}, \quad
       Z_{LI} = \{|LI_j| \le 10^{-5} \max(|s(x)|, |LI|)\}

    0 to 1; a count in the source.
    The arguments and errors are those of :func:`feature_drops`. Source: :cite:`nguyen2020`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> non_sensitivity(model, torch.ones(1, 3), 0, weight, **how).item()
    0.0
    """
    return feature_drops(model, inputs, target, explanation, **options).non_sensitivity


def sensitivity_n(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    explanation: MapLike,
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    shares: Sequence[float] = SHARES,
    **options: Any,
) -> Tensor:
    r"""Average :func:`faithfulness_correlation` over sets of several sizes [N]: high is good.

    .. math:: \frac{1}{|\{m\}|} \sum_m \operatorname{corr}_{|S_b| = m}(l_b, d_b)

    Sizes that coincide count once, that of all features not at all. NaN where no size has a correlation. The other
    arguments and errors are those of :func:`subset_drops`; B passes per size. Source: :cite:`ancona2018`.

    >>> import torch
    >>> from lightning_xai.perturbation import Windows, kinds
    >>> model, weight = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, 1.0, 2.0]])
    >>> model.weight.data = weight
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "value"}
    >>> round(sensitivity_n(model, torch.ones(1, 3), 0, weight, **how).item(), 6)
    1.0
    """
    if not shares:
        raise ValueError("shares is empty: give at least one, e.g. shares=[0.2].")
    for share in shares:
        check_subsets(share)
    model, inputs = bind(model, inputs)
    if isinstance(explanation, Attribution):
        explanation = explanation.explain(model, inputs, target, options.get("sample_ids"))
    bound = bind_present(as_regions(regions), model, inputs)
    there = bound.present()
    counts = [bound.count] * len(inputs) if there is None else there.expand(len(inputs), -1).sum(1).tolist()
    found: dict[tuple[int, ...], SubsetDrops] = {}
    for share in shares:
        sizes = tuple(set_size(count, share) for count in counts)
        if sizes not in found:
            found[sizes] = subset_drops(
                model, inputs, target, explanation, regions=regions, perturbation=perturbation, share=share, **options
            )
    return mean_correlation(list(found.values()), list(found))
