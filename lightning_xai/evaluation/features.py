"""What an explanation says of every feature, in the one form that the measures read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai._guard import detach_for_autograd, keyed_generator
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.perturbation.kinds.base import MaskPerturbation
from lightning_xai.perturbation.sets import cell_features
from lightning_xai.perturbation.sweep import Plan, Request, SweepResult, sweep
from lightning_xai.present import absent_cells, bind_present, draws_of_present, without_absent
from lightning_xai.regions import BoundRegions, Regions
from lightning_xai.resizing import resize
from lightning_xai.scores import ScoreLike, Target

MapLike = Tensor | Attribution | Explanation


def precise(values: Tensor) -> Tensor:
    """Convert values to double precision, except on devices that have none."""
    return values if values.device.type == "mps" else values.double()


def tolerance(values: Tensor) -> float:
    """What counts as equal, as a share: 1e-12 in double precision, 1e-6 in less."""
    return 1e-12 if values.dtype == torch.float64 else 1e-6


@dataclass(frozen=True, eq=False)
class ExplainedBatch:
    r"""The samples of a batch and their maps, as all measures take them.

    Attributes:
        model: The network as a function of what is explained.
        inputs: What is explained, [N, C, \*S] or a table [N, F].
        target: What the maps speak of.
        relevance: The maps, [N, C, \*S] or [N, F]; the channel axis may be 1. NaN at padding.
        ids: The samples' ids.
    """

    model: nn.Module
    inputs: Tensor
    target: Target
    relevance: Tensor
    ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: InputsLike,
        target: Target,
        explanation: MapLike,
        sample_ids: Tensor | Sequence[int] | None = None,
    ) -> ExplainedBatch:
        """Take a finished map, an explanation, or the map of an attribution.

        A map of its own size is resized to the inputs. The target of an explanation is its own unless one is given.

        Raises:
            TypeError: If it is none of the three.
            ValueError: If it is not one map per sample with as many axes as the inputs.

        >>> ExplainedBatch.of(nn.Identity(), torch.zeros(1, 2, 4), 0, torch.tensor([[[1.0, 3.0]]])).relevance
        tensor([[[1.0000, 1.5000, 2.5000, 3.0000]]])
        """
        bound, values = bind(model, inputs)
        ids = check_inputs(values, sample_ids)
        found: Tensor | Attribution | Explanation = explanation
        if isinstance(found, Attribution):
            found = found.explain(bound, values, target, ids).map
        elif isinstance(found, Explanation):
            target = found.target if target is None else target
            # What was explained of a bound model has its units on axis 1 already.
            found = found.map if bound is model else _units_first(bound, found.map)
        elif isinstance(found, Tensor):
            found = found if bound is model else _units_first(bound, found)
        else:
            raise TypeError(
                f"an explanation must be a map, an Explanation or an Attribution, got {type(explanation).__name__}; "
                f"a map is a tensor [N, C, *S]."
            )
        relevance = without_absent(bound, _like_inputs(detach_for_autograd(found), values))
        return cls(bound, values, target, relevance, ids)

    def features(self, regions: Regions) -> FeatureMap:
        """Sum the maps over features, which must not overlap."""
        return FeatureMap.of(self.relevance, self.bind(regions), absent_cells(self.model))

    def bind(self, regions: Regions) -> BoundRegions:
        """Bind regions to the inputs; those of padding are absent."""
        return bind_present(regions, self.model, self.inputs)

    def sweep(self, requests: Sequence[Request], plan: Plan) -> SweepResult:
        """Score what is asked for; the errors are those of :meth:`check`."""
        self.check(requests)
        return sweep(self.model, self.inputs, self.target, requests, plan, self.ids)

    def check(self, requests: Iterable[Request]) -> None:
        """Refuse requests that do not fit the inputs.

        Raises:
            ValueError: If cells of a table are to be filled from their neighbours.
        """
        for request in requests:
            if self.inputs.ndim == 2 and isinstance(request.perturbation, MaskPerturbation):
                raise ValueError(
                    f"{type(request.perturbation).__name__} fills cells from their neighbours, and the columns of a "
                    f"table have none: use another perturbation, e.g. Constant or Replace."
                )


def _units_first(model: nn.Module, relevance: Tensor) -> Tensor:
    """A finished map with its channels on axis 1, where they lie elsewhere in what is explained."""
    return relevance.movedim(model.axis, 1) if isinstance(model, BoundModel) and relevance.ndim > 2 else relevance


def _like_inputs(relevance: Tensor, inputs: Tensor) -> Tensor:
    if relevance.is_meta:
        raise ValueError("a map on the meta device has no values.")
    found = relevance.to(inputs.device)
    fits = found.ndim == inputs.ndim and len(found) == len(inputs) and found.is_floating_point()
    if inputs.ndim == 2:
        fits = fits and found.shape == inputs.shape
    elif fits:
        fits = found.shape[1] in (1, inputs.shape[1]) and 0 not in found.shape
    if not fits:
        raise ValueError(
            f"a map must be shaped like the inputs {list(inputs.shape)}, with one channel or as many, and hold "
            f"floating-point numbers; got {list(found.shape)}, {found.dtype}."
        )
    return resize(found, inputs.shape[2:])


@dataclass(frozen=True, eq=False)
class FeatureMap:
    r"""A map over the features.

    Attributes:
        cells: The map [N, C, \*S] in double precision, one channel or those of the inputs; a table has one.
        labels: The feature of every cell [N, \*S], -1 for none.
        values: :math:`A_j = \sum_{p \in j} \sum_c a_{cp}` [N, J] over the finite cells; 0 of a feature without any.
        ordered: The features that are there and have a finite cell, Boolean [N, J].
        present: The features that are there, Boolean [N, J].
        nonfinite: The cells of features that are not finite [N].
        tau: What counts as equal, as a share.
    """

    cells: Tensor
    labels: Tensor
    values: Tensor
    ordered: Tensor
    present: Tensor
    nonfinite: Tensor
    tau: float

    @property
    def known(self) -> Tensor:
        """Whether a map says anything of any feature, Boolean [N]."""
        return self.ordered.any(1)

    @classmethod
    def of(cls, relevance: Tensor, bound: BoundRegions, absent: Tensor | None = None) -> FeatureMap:
        r"""Sum a map, over features that do not overlap; cells that are absent, Boolean [N, \*S], are not missing."""
        cells = precise(relevance.unsqueeze(1) if relevance.ndim == 2 else relevance)
        labels = cell_features(bound, len(cells), cells)
        values = per_feature(cells, labels, bound.count)
        finite = cells.isfinite()
        has_finite = _scatter(finite.any(1).to(cells), labels, bound.count) > 0
        there = bound.present()
        present = torch.ones_like(has_finite) if there is None else there.to(cells.device).expand_as(has_finite)
        inside = (labels >= 0 if absent is None else (labels >= 0) & ~absent.to(labels.device)).unsqueeze(1)
        nonfinite = (~finite & inside).flatten(1).sum(1)
        return cls(cells, labels, values, has_finite & present, present, nonfinite, tolerance(relevance))


def per_feature(cells: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sum the finite cells [N, C, *S] over channels and features: [N, J]."""
    return _scatter(torch.where(cells.isfinite(), cells, 0.0).sum(1), labels, count)


def _scatter(values: Tensor, labels: Tensor, count: int) -> Tensor:
    flat = values.flatten(1)
    sums = flat.new_zeros(len(flat), count + 1)
    return sums.scatter_add_(1, labels.flatten(1) + 1, flat)[:, 1:]


@dataclass(frozen=True)
class RandomMap(Attribution):
    r"""A map that knows nothing: independent :math:`N(0, 1)` cells, keyed by the sample's id; the floor of a measure.

    Args:
        seed: Keys the draws together with the samples' ids.

    >>> x = torch.zeros(2, 1, 3)
    >>> both, one = RandomMap()(nn.Flatten(), x, 0, [4, 7]), RandomMap()(nn.Flatten(), x[:1], 0, [7])
    >>> torch.equal(both[1], one[0])
    True
    """

    seed: int = 0

    @property
    def score(self) -> ScoreLike:
        """The raw output, which every model has."""
        return "value"

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        """Draw a map per sample; in single precision, so that the dtype does not change it."""
        bound, score = self.clean(model, inputs, target)
        generators = [keyed_generator(self.seed, "map", sample) for sample in sample_ids]
        drawn = draws_of_present(inputs.shape[1:], absent_cells(model), generators).to(inputs)
        return Explanation.of(bound, score, drawn, **dict.fromkeys(details))
