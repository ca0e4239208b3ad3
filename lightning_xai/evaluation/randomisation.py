"""Randomisation: does a map depend on the network's parameters, and on the class?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_flag, as_integer, check_inputs, check_known
from lightning_xai._guard import keyed_generator
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.features import precise
from lightning_xai.evaluation.masking import pooled
from lightning_xai.evaluation.parameters import check_replaceable, layers_of, new_parameters, replaced_parameters
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.evaluation.similarity import check_similarity, map_similarity
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.reading import reading
from lightning_xai.present import without_absent
from lightning_xai.scores import Target, as_score, as_target

ORDERS = ("top_down", "bottom_up", "independent")


@dataclass(frozen=True, eq=False)
class RandomisationStages:
    """The similarity of maps under new parameters with the map under the trained ones.

    Attributes:
        layers: The layer that is new at each stage, by its dotted name.
        similarity: [N, stages].
    """

    layers: tuple[str, ...]
    similarity: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over the stages in which it is defined [N]."""
        return self.similarity.nanmean(1)


def mprt(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    order: str = "top_down",
    similarity: str = "spearman",
    absolute: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> RandomisationStages:
    r"""Replace parameters layer by layer, and compare the maps with the one of the trained network: low is good.

    .. math:: \operatorname{sim}(a_\theta, a_{\theta_1}), \dots, \operatorname{sim}(a_\theta, a_{\theta_L})

    A layer is a module that owns parameters, in the order of the first calls; what it is parametrised by belongs to it,
    and a parameter of two layers becomes new with either. New parameters come from the module's own
    ``reset_parameters`` on a generator keyed by the seed and its dotted name; those that it has no say in are a
    permutation of the trained ones. Running statistics stay. The trained parameters are back at the end, bit by bit,
    whatever fails. What the score fixes (the class, a region, a box) is that of the trained network; padding is left
    out. One map per stage.

    Args:
        model: The network.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``: the class under the trained parameters.
        attribution: What is measured.
        order: ``"top_down"``: from the output on, cumulative; ``"bottom_up"``: from the input on, cumulative;
            ``"independent"``: one layer at a time, from the output on.
        similarity: ``"spearman"``, ``"cosine"`` or ``"ssim"``.
        absolute: Compare magnitudes, as published, which hides a flipped sign.
        parameters: The new parameters by dotted name; drawn unless given.
        seed: Keys the draws.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If something does not fit, or the network's parameters cannot be replaced.

    Source: :cite:`adebayo2018sanity`.

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> found = mprt(model, torch.randn(2, 4), 0, GradientXInput())
    >>> found.layers, found.similarity.shape
    (('2', '0'), torch.Size([2, 2]))
    """
    check_known("order", order, ORDERS)
    check_similarity(similarity)
    as_flag("absolute", absolute)
    as_integer("seed", seed)
    an_attribution(attribution)
    check_replaceable(model)
    clean, held, bound, values, ids = _clean(model, inputs, target, attribution, sample_ids)
    check_similarity(similarity, clean.map)
    layers = layers_of(bound, values)
    names = list(layers) if order == "bottom_up" else list(reversed(layers))
    found = []
    with replaced_parameters(bound) as replace:
        new = new_parameters(bound, parameters, seed)
        for name in names:
            replace({key: new[key] for key in layers[name] if key in new}, keep=order != "independent")
            moved = without_absent(bound, attribution.explain(bound, values, held, ids).map)
            found.append(map_similarity(clean.map, moved, similarity, absolute=absolute))
    shown = tuple(name.replace("_orig_mod.", "") for name in names)
    return RandomisationStages(shown, torch.stack(found, 1))


def emprt(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Compute how much the entropy of the map rises where all parameters are new [N]: high is good, at least -1.

    .. math:: \frac{H(a_{rand}) - H(a)}{H(a)}

    H is the entropy of the histogram of the map in :math:`\min(100, \lceil \sqrt P \rceil)` equal bins from its least
    to its largest value; 0 of a constant map, whose result is NaN. With few positions it says nothing. One map more.
    The other arguments and errors are those of :func:`mprt`. Source: :cite:`hedstrom2024`.

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> emprt(model, torch.randn(2, 4), 0, GradientXInput()).shape
    torch.Size([2])
    """
    as_integer("seed", seed)
    an_attribution(attribution)
    check_replaceable(model)
    clean, held, bound, values, ids = _clean(model, inputs, target, attribution, sample_ids)
    with replaced_parameters(bound) as replace:
        replace(new_parameters(bound, parameters, seed))
        moved = without_absent(bound, attribution.explain(bound, values, held, ids).map)
    before, after = histogram_entropy(clean.map), histogram_entropy(moved)
    return torch.where(before > 0, (after - before) / torch.where(before > 0, before, 1.0), UNDEFINED)


def random_logit(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    other: Tensor | None = None,
    similarity: str = "spearman",
    absolute: bool = False,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Compare the map of a class with that of another class [N]: low is good.

    .. math:: \operatorname{sim}(a_y, a_{y'}), \qquad y' \ne y \text{ uniform}

    One map more; NaN for a network of one class.

    Args:
        model: The network.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: y.
        attribution: What is measured.
        other: y' [N]; drawn unless given.
        similarity: ``"spearman"``, ``"cosine"`` or ``"ssim"``.
        absolute: Compare magnitudes, which hides a flipped sign.
        seed: Keys the draws together with the samples' ids.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If the number of classes is not known, or another class is the target.

    Source: :cite:`sixt2020`.

    Two logits that are opposite have opposite maps:

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Linear(3, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    >>> random_logit(model, torch.ones(1, 3), 0, GradientXInput())
    tensor([-1.], dtype=torch.float64)
    """
    check_similarity(similarity)
    as_flag("absolute", absolute)
    as_integer("seed", seed)
    clean, _, bound, values, ids = _clean(model, inputs, target, attribution, sample_ids)
    check_similarity(similarity, clean.map)
    if clean.classes == 1:
        return precise(clean.score).new_full((len(ids),), UNDEFINED)
    if other is None:
        if not clean.classes:
            raise ValueError("the score does not tell how many classes there are: give the other classes, other=... .")
        draws = [int(torch.randint(clean.classes - 1, (), generator=keyed_generator(seed, "class", i))) for i in ids]
        drawn = torch.tensor(draws, device=clean.target.device)
        other = drawn + (drawn >= clean.target)
    elif bool((torch.as_tensor(other, device=clean.target.device) == clean.target).any()):
        raise ValueError("other must hold another class than the target of every sample: a map is equal to itself.")
    moved = without_absent(bound, attribution.explain(bound, values, other, ids).map)
    return map_similarity(clean.map, moved, similarity, absolute=absolute)


def histogram_entropy(relevance: Tensor) -> Tensor:
    r"""Compute the entropy, in nats, of the histogram of a map [N].

    .. math:: H = -\sum_b h_b \ln h_b

    with :math:`h_b` the share of the positions in bin b; NaN of a map without a finite cell.

    Args:
        relevance: Maps [N, C, \*S] or [N, F], summed over channels.

    >>> histogram_entropy(torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    positions = precise(pooled(relevance)).flatten(1)
    found = []
    for row in positions:
        values = row[row.isfinite()]
        if not len(values) or values.min() == values.max():
            found.append(row.new_tensor(0.0 if len(values) else UNDEFINED))
            continue
        bins = min(100, math.ceil(math.sqrt(len(values))))
        place = ((values - values.min()) / (values.max() - values.min()) * bins).long().clamp(max=bins - 1)
        shares = place.bincount(minlength=bins) / precise(place.new_tensor(len(place)))
        found.append(torch.special.entr(shares).sum())
    return torch.stack(found)


def _clean(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    sample_ids: Tensor | Sequence[int] | None,
) -> tuple[Explanation, Target, nn.Module, Tensor, tuple[int, ...]]:
    """The explanation, its map NaN at padding, and the target that holds what its score has fixed."""
    an_attribution(attribution)
    bound, values = bind(model, inputs)
    ids = check_inputs(values, sample_ids)
    bound = reading(bound, values, [as_score(attribution.score)])
    held = attribution.clean(bound, values, as_target(target, len(ids)))[0].as_target()
    clean = attribution.explain(bound, values, held, ids)
    return dataclasses.replace(clean, map=without_absent(bound, clean.map)), held, bound, values, ids
