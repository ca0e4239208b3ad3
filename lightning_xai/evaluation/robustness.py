"""Robustness: how far a map moves when the input moves a little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs, check_number
from lightning_xai._guard import forward, isolated_eval, keyed_generator
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.features import precise
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.reading import reading
from lightning_xai.present import absent_cells, draws_of_present, without_absent
from lightning_xai.scores import BoundScore, Target, as_score

_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class MapChanges:
    r"""How maps :math:`a_t` of moved inputs :math:`x + \delta_t` differ from the map :math:`a` of the input.

    Attributes:
        size: :math:`\|a\|` [N].
        change: :math:`\|a_t - a\|` [N, T].
        relative_change: :math:`\|(a_t - a) \oslash a\|` [N, T], divided cell by cell.
        step: :math:`\|\delta_t\|` [N, T].
        relative_step: :math:`\|\delta_t \oslash x\|` [N, T].
        output_step: :math:`\|z(x_t) - z(x)\|` [N, T], of the network's outputs.
        kept: Whether the prediction is that of the input, Boolean [N, T].
    """

    size: Tensor
    change: Tensor
    relative_change: Tensor
    step: Tensor
    relative_step: Tensor
    output_step: Tensor
    kept: Tensor

    @property
    def max_sensitivity(self) -> Tensor:
        """The largest change as a share of the map [N]; NaN of a map that is 0."""
        return self._relative(self.change.amax(1))

    @property
    def avg_sensitivity(self) -> Tensor:
        """The mean change as a share of the map [N]; NaN of a map that is 0."""
        return self._relative(self.change.mean(1))

    @property
    def lipschitz(self) -> Tensor:
        """The largest change per length of the step [N]; 0 where nothing moved."""
        still = (self.step == 0) & (self.change == 0)
        return torch.where(still, 0.0, self.change / torch.where(still, 1.0, self.step)).amax(1)

    @property
    def ris(self) -> Tensor:
        """The largest relative change per relative step of the input [N], where the prediction is kept."""
        return self._kept(self.relative_change / self.relative_step.clamp(min=_SMALLEST))

    @property
    def ros(self) -> Tensor:
        """The largest relative change per step of the output [N], where the prediction is kept."""
        return self._kept(self.relative_change / self.output_step.clamp(min=_SMALLEST))

    def _relative(self, change: Tensor) -> Tensor:
        return torch.where(self.size > 0, change / torch.where(self.size > 0, self.size, 1.0), UNDEFINED)

    def _kept(self, ratio: Tensor) -> Tensor:
        largest = torch.where(self.kept, ratio, -torch.inf).amax(1)
        return torch.where(self.kept.any(1), largest, UNDEFINED)


def map_changes(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    radius: float | Sequence[float] = 0.02,
    draws: int = 10,
    noise: Tensor | None = None,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> MapChanges:
    r"""Explain moved inputs, and compare their maps with those of the inputs.

    .. math:: x_t = x + \delta_t, \qquad \delta_t \sim U(-r, r) \text{ per cell}

    Norms are Euclidean, over all cells that are finite in both maps and no padding, which does not move either. T
    further maps, of what the score has fixed on the clean input (the class, the runner-up of a margin, a region, a
    box), and 1 + T passes.

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``: the class of the clean input.
        attribution: What is measured.
        radius: r, in units of the input; one per channel if it is a sequence.
        draws: T.
        noise: The steps :math:`\delta` [N, T, C, \*S]; drawn unless given.
        seed: Keys the draws together with the samples' ids.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If something does not fit the model or each other.

    Source: :cite:`yeh2019`, :cite:`alvarezmelis2018robustness`, :cite:`agarwal2022`.

    A linear score has the same gradient everywhere:

    >>> from lightning_xai.relevance import Saliency
    >>> map_changes(nn.Linear(3, 2), torch.ones(1, 3), 0, Saliency(), draws=2).change
    tensor([[0., 0.]], dtype=torch.float64)
    """
    an_attribution(attribution)
    as_integer("draws", draws, least=1)
    model, values = bind(model, inputs)
    ids = check_inputs(values, sample_ids)
    if noise is None:
        noise = _draw(model, values, radius, draws, ids, seed)
    elif noise.shape[:1] + noise.shape[2:] != values.shape or not noise.shape[1]:
        raise ValueError(f"noise must be [N, T, *sample] for inputs {list(values.shape)}, got {list(noise.shape)}.")
    model = reading(model, values, [as_score(attribution.score)])
    bound, output, prediction = _outputs(model, values, attribution, target)

    def explained(inputs: Tensor) -> Tensor:
        found = attribution.explain(model, inputs, bound.as_target(), ids).map
        return precise(without_absent(model, found)).flatten(1)

    map_, x = explained(values), precise(values).flatten(1)
    finite = map_.isfinite()
    columns: dict[str, list[Tensor]] = {name: [] for name in _COLUMNS}
    for step in noise.unbind(1):
        step = without_absent(model, step, 0.0)
        moved = values + step.to(values)
        _, z, now = _outputs(model, moved, attribution, bound)
        moved_map, delta = explained(moved), precise(step).to(x).flatten(1)
        there = finite & moved_map.isfinite()
        change = torch.where(there, moved_map - map_, 0.0).masked_fill(~there.any(1, keepdim=True), UNDEFINED)
        columns["change"].append(change.norm(dim=1))
        columns["relative_change"].append((change / _apart(torch.where(finite, map_, 1.0))).norm(dim=1))
        columns["step"].append(delta.norm(dim=1))
        columns["relative_step"].append((delta / _apart(x)).norm(dim=1))
        before, after = bound.join([output, z]).flatten(1).chunk(2)  # a detector finds more or fewer boxes
        columns["output_step"].append((after - before).norm(dim=1))
        columns["kept"].append(now == prediction)
    size = torch.where(finite, map_, 0.0).norm(dim=1)
    return MapChanges(size, *(torch.stack(columns[name], 1) for name in _COLUMNS))


_COLUMNS = ("change", "relative_change", "step", "relative_step", "output_step", "kept")


def check_radius(radius: float | Sequence[float]) -> None:
    """Refuse a radius that is no length, or none per channel.

    Raises:
        TypeError: If it is no number and no sequence of numbers.
        ValueError: If it is negative or not finite.
    """
    for length in radius if isinstance(radius, Sequence) and not isinstance(radius, str) else (radius,):
        check_number("radius", length, least=0)


def _draw(
    model: nn.Module, values: Tensor, radius: float | Sequence[float], draws: int, ids: Sequence[int], seed: int
) -> Tensor:
    check_radius(radius)
    length = torch.as_tensor(radius, dtype=torch.float32)
    if length.ndim:
        if values.ndim == 2 or length.shape != values.shape[1:2]:
            raise ValueError(f"radius must be one number, or one per channel of inputs {list(values.shape)}.")
        length = length.view(-1, *[1] * (values.ndim - 2))
    shape, absent = values.shape[1:], absent_cells(model)
    generators = [[keyed_generator(seed, "step", sample, draw) for sample in ids] for draw in range(draws)]
    steps = torch.stack([draws_of_present(shape, absent, some, torch.rand) for some in generators], 1)
    return (length * (2 * steps - 1)).to(values)


def _outputs(
    model: nn.Module, inputs: Tensor, attribution: Attribution, target: Target
) -> tuple[BoundScore, Tensor, Tensor]:
    """The bound score, and the columns of the network's outputs and its predictions [N]."""
    with isolated_eval(model):
        output = forward(model, inputs)
        bound = attribution.bind(output, target, len(inputs), of=(model, inputs))
        columns = precise(bound.columns(output, len(inputs)))
        if bound.present is not None:
            columns = columns.masked_fill(~bound.present.unsqueeze(1), 0.0)
        return bound, columns, bound.predict(output)


def _apart(values: Tensor) -> Tensor:
    """Values no nearer to 0 than what a number is divided by may be."""
    sign = torch.where(values < 0, -1.0, 1.0)
    return sign * values.abs().clamp(min=_SMALLEST)


def max_sensitivity(
    model: nn.Module, inputs: InputsLike, target: Target, attribution: Attribution, **options: Any
) -> Tensor:
    r"""Compute the largest change of the map as a share of it [N]: low is good.

    .. math:: \max_t \frac{\|a_t - a\|}{\|a\|}

    NaN of a map that is 0. The sources do not divide: that is ``map_changes(...).change.amax(1)``. The arguments and
    errors are those of :func:`map_changes`.
    Source: :cite:`yeh2019`.

    >>> from lightning_xai.relevance import Saliency
    >>> max_sensitivity(nn.Linear(3, 2), torch.ones(1, 3), 0, Saliency(), draws=2).item()
    0.0
    """
    return map_changes(model, inputs, target, attribution, **options).max_sensitivity


def avg_sensitivity(
    model: nn.Module, inputs: InputsLike, target: Target, attribution: Attribution, **options: Any
) -> Tensor:
    r"""Compute the mean change of the map as a share of it [N]: low is good.

    .. math:: \frac{1}{T} \sum_t \frac{\|a_t - a\|}{\|a\|}

    NaN of a map that is 0. The arguments and errors are those of :func:`map_changes`.
    Source: :cite:`yeh2019`, :cite:`bhatt2020`.

    >>> from lightning_xai.relevance import Saliency
    >>> avg_sensitivity(nn.Linear(3, 2), torch.ones(1, 3), 0, Saliency(), draws=2).item()
    0.0
    """
    return map_changes(model, inputs, target, attribution, **options).avg_sensitivity


def lipschitz(model: nn.Module, inputs: InputsLike, target: Target, attribution: Attribution, **options: Any) -> Tensor:
    r"""Compute the largest change of the map per length of the step [N]: low is good.

    .. math:: \max_t \frac{\|a_t - a\|}{\|\delta_t\|}

    0 where nothing moved. The arguments and errors are those of :func:`map_changes`.
    Source: :cite:`alvarezmelis2018robustness`.

    >>> from lightning_xai.relevance import Saliency
    >>> lipschitz(nn.Linear(3, 2), torch.ones(1, 3), 0, Saliency(), draws=2).item()
    0.0
    """
    return map_changes(model, inputs, target, attribution, **options).lipschitz


def ris(model: nn.Module, inputs: InputsLike, target: Target, attribution: Attribution, **options: Any) -> Tensor:
    r"""Compute the relative input stability [N]: low is good.

    .. math:: \max_t \frac{\|(a_t - a) \oslash a\|}{\max(\|\delta_t \oslash x\|, \varepsilon)}

    Over the steps that keep the prediction; NaN if there are none. Cells of the map or the input near 0 dominate it:
    it is ill-conditioned. The arguments and errors are those of :func:`map_changes`.
    Source: :cite:`agarwal2022`.

    >>> from lightning_xai.relevance import Saliency
    >>> ris(nn.Linear(3, 2), torch.ones(1, 3), 0, Saliency(), draws=2).item()
    0.0
    """
    return map_changes(model, inputs, target, attribution, **options).ris


def ros(model: nn.Module, inputs: InputsLike, target: Target, attribution: Attribution, **options: Any) -> Tensor:
    r"""Compute the relative output stability [N]: low is good.

    .. math:: \max_t \frac{\|(a_t - a) \oslash a\|}{\max(\|z(x_t) - z(x)\|, \varepsilon)}

    Over the steps that keep the prediction; NaN if there are none. Cells of the map near 0 dominate it: it is
    ill-conditioned. The arguments and errors are those of :func:`map_changes`.
    Source: :cite:`agarwal2022`.

    >>> from lightning_xai.relevance import Saliency
    >>> ros(nn.Linear(3, 2), torch.ones(1, 3), 0, Saliency(), draws=2).item()
    0.0
    """
    return map_changes(model, inputs, target, attribution, **options).ros
