r"""Ablation: what the classes lose when units, or groups of them, are silenced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs, check_known
from lightning_xai._files import CsvTable
from lightning_xai._guard import detach_for_autograd, forward_context, hook_outputs, isolated_eval
from lightning_xai.axes.layout import place_of_units
from lightning_xai.batching import Batches, is_out_of_memory
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import unwrapped
from lightning_xai.present import absent_cells, present_at
from lightning_xai.scores import BoundScore, Score, ScoreLike, Target, as_score, as_target
from lightning_xai.scores.target import target_at
from lightning_xai.sites import Layer, Place, as_layer
from lightning_xai.units._capture import CPU_BYTES, ActivationResult, capture, check_finite, rows_of_units
from lightning_xai.units.groups import UnitGroups, membership_of
from lightning_xai.units.layers import preactivation_sites

ENGINES = ("auto", "replay", "repeat")

Units = Sequence[int] | Sequence[Sequence[int]] | UnitGroups | None


@dataclass(frozen=True)
class AblationPlan:
    """The units that are ablated, the value that they are set to, and the engine.

    Args:
        layer: A layer that runs once: its dotted name, or the module itself; None for the last convolution (or linear
            layer) whose activation is 0 at 0, so that 0 silences its units, or the batch norm that takes its output.
        units: Units, sets of units, or groups, each ablated by itself; every single unit unless given.
        value: What a silenced unit gives everywhere: a number, one per unit [K], or ``"mean"`` for the mean of its
            activations over all positions of the inputs at hand but padding.
        engine: ``"replay"``: each sample runs up to the layer once and from there on as one row per variant.
            ``"repeat"``: each variant runs through the whole network. ``"auto"``: replay, if it gives the scores of
            repeat on the first sample, to rounding.
        chunk_size: The most variants of a sample per forward pass; found automatically unless given.

    Raises:
        TypeError: If a field is of the wrong type.
        ValueError: If the engine or the value is unknown, or the chunk size is not positive.
    """

    layer: Layer | None
    units: Units = None
    value: float | str | Tensor = 0.0
    engine: str = "auto"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", None if self.layer is None else as_layer(self.layer))
        if isinstance(self.value, str) and self.value != "mean":
            raise ValueError(f"value must be a number, a tensor [K] or 'mean', got {self.value!r}.")
        check_known("engine", self.engine, ENGINES)
        if self.chunk_size is not None:
            as_integer("chunk_size", self.chunk_size, 1)

    def silenced(self, count: int) -> Tensor:
        """Return the units that each variant silences, Boolean [U, K], of the K units of the layer.

        Raises:
            ValueError: If a unit does not exist.
        """
        units = self.units
        if units is None:
            return torch.eye(count, dtype=torch.bool)
        if isinstance(units, UnitGroups):
            if units.units != count:
                raise ValueError(f"units has groups of {units.units} units, layer {self.layer!r} has {count}.")
            return units.membership.cpu()
        sets: list[Any] = [[unit] if isinstance(unit, Integral) else unit for unit in units]
        return membership_of(sets, count)


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class AblationResult(CsvTable):
    r"""The scores and predictions of each sample when sets of units are silenced.

    Attributes:
        score_drop: :math:`s(x) - s(x; u \text{ silenced})` [N, U]; positive where the units are evidence for the
            target. NaN of a sample that is all padding.
        prediction: The predicted class [N, U].
        clean_prediction: The predicted class [N] with all units.
        target: The class [N] that the score is of.
        classes: The number of classes.
        engine: How it was computed, ``"replay"`` or ``"repeat"``.
    """

    columns = ("unit", "class", "samples", "score_drop", "accuracy", "accuracy_drop")

    score_drop: Tensor
    prediction: Tensor
    clean_prediction: Tensor
    target: Tensor
    classes: int
    engine: str

    @property
    def accuracy(self) -> Tensor:
        """The share of each class's samples that is predicted right [U, classes]; NaN for a class without samples."""
        return per_class(self.prediction == self.target.unsqueeze(1), self.target, self.classes)

    @property
    def clean_accuracy(self) -> Tensor:
        """The share of each class's samples that is predicted right [classes] with all units."""
        right = (self.clean_prediction == self.target).unsqueeze(1)
        return per_class(right, self.target, self.classes)[0]

    @property
    def accuracy_drop(self) -> Tensor:
        """Accuracy with all units minus accuracy without the silenced ones [U, classes]; positive for a loss."""
        return self.clean_accuracy - self.accuracy

    @property
    def mean_score_drop(self) -> Tensor:
        """The mean drop of the score over the samples of each class [U, classes]; positive for a loss."""
        return per_class(self.score_drop, self.target, self.classes)

    def rows(self) -> list[tuple[int, int, int, float, float, float]]:
        """A row per unit, or set of units, and class that has samples."""
        samples = torch.bincount(self.target, minlength=self.classes).tolist()
        tables = (self.mean_score_drop.tolist(), self.accuracy.tolist(), self.accuracy_drop.tolist())
        return [
            (unit, label, samples[label], drop, accuracy, loss)
            for unit, row in enumerate(zip(*tables, strict=True))
            for label, (drop, accuracy, loss) in enumerate(zip(*row, strict=True))
            if samples[label]
        ]


def per_class(values: Tensor, target: Tensor, classes: int) -> Tensor:
    """Means over the samples of each class [U, classes], in double precision, of values [N, U] that are not NaN.

    NaN where there is none.

    >>> per_class(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 1]), 3)
    tensor([[1., 3., nan]], dtype=torch.float64)
    """
    there = ~values.isnan()
    counts = class_sums(there.double(), target, classes)
    return class_sums(torch.where(there, values.double(), 0.0), target, classes) / counts


def class_sums(values: Tensor, target: Tensor, classes: int) -> Tensor:
    """Sums over the samples of each class [U, classes] of values [N, U]."""
    return values.new_zeros(classes, values.shape[1]).index_add(0, target, values).T


def ablate_units(
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    *,
    layer: Layer,
    units: Units = None,
    value: float | str | Tensor = 0.0,
    score: ScoreLike = "logit",
    sample_ids: Tensor | Sequence[int] | None = None,
    engine: str = "auto",
    chunk_size: int | None = None,
) -> AblationResult:
    r"""Silence units of a layer, each (or each set) by itself, and see what its samples' scores and classes do.

    .. math:: \Delta_u = s(x) - s(x;\; A_k := v_k \;\forall k \in u)

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S], or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: Class indices [N], one index for all, or ``"predicted"``; accuracy needs the labels.
        layer: A layer that runs once: its dotted name, or the module itself. What is silenced is the output of this
            very module, not the activation that follows it: to silence units as the next layer sees them, name the
            activation's module.
        units: Units, sets of units, or groups; every single unit unless given.
        value: v: a number, a number per unit [K], or ``"mean"``: the unit's mean over all positions of these inputs but
            padding.
        score: s.
        sample_ids: The samples' ids [N].
        engine: ``"auto"``, ``"replay"`` or ``"repeat"``; see :class:`AblationPlan`.
        chunk_size: The most variants of a sample per forward pass; found automatically unless given.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer or a unit does not exist, the layer runs more than once, an activation is not finite,
            or the target does not fit the output.

    Source: :cite:`bau2020`, :cite:`morcos2018`.

    Example:
        A linear read-out: silencing unit k costs :math:`w_{ck} a_k`.

        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 2.0]])
        >>> ablated = ablate_units(model, torch.tensor([[1.0, 1.0, 0.5]]), 0, layer="0")
        >>> ablated.score_drop, ablated.prediction
        (tensor([[1.0000, 2.0000, 1.5000]]), tensor([[0, 0, 0]]))
    """
    plan = AblationPlan(layer, units, value, engine, chunk_size)
    return ablation(model, inputs, target, plan, as_score(score), sample_ids)


def ablation(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    plan: AblationPlan,
    score: Score,
    sample_ids: Tensor | Sequence[int] | None = None,
    strict: bool = True,
) -> AblationResult:
    """:func:`ablate_units` by a plan.

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, *S], or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: Class indices [N], one index for all, or ``"predicted"``; not needed for an output with one column.
        plan: What is ablated, and how.
        score: s.
        sample_ids: The samples' ids [N].
        strict: Refuse activations that are not finite; otherwise the score changes of those samples are NaN.
    """
    model, inputs = bind(model, inputs)
    ids = check_inputs(inputs, sample_ids)
    target = as_target(target, len(ids))
    model = unwrapped(model)
    engine = plan.engine
    with isolated_eval(model):
        inputs = detach_for_autograd(inputs)
        layer = _last_layer(model, inputs) if plan.layer is None else plan.layer
        batches = Batches(model, inputs, plan.chunk_size, cpu_bytes=CPU_BYTES)
        place = place_of_units(model, inputs, layer)
        if place.reshape is not None:
            raise ValueError(
                f"units are silenced in the output of layer {place.layer!r} as it is: say with axis=... where they "
                f"lie, not with reshape=... ."
            )
        values = _mean(model, inputs, place, batches) if isinstance(plan.value, str) else plan.value
        rows = []
        for row, name in enumerate(ids):
            sample = inputs[row : row + 1]
            own = at_rows(model, slice(row, row + 1))
            clean = capture(own, sample, place)
            if strict:
                there = present_at(own, sample, place)
                maps = clean.maps if there is None else torch.where(there.unsqueeze(1), clean.maps, 0.0)
                check_finite(maps, place.layer, (name,))
            wanted = target_at(target, slice(row, row + 1))
            bound = score.bind(clean.output, wanted, 1, of=(own, sample))
            variants = _Variants(own, sample, place, plan.silenced(clean.maps.shape[1]), values, bound)
            if engine == "auto":
                engine = variants.engine(batches)
            drop, prediction = variants.scores(clean, engine, batches)
            absent = absent_cells(own)
            if absent is not None and bool(absent.all()):
                drop = torch.full_like(drop, torch.nan)
            rows.append((drop, prediction, bound.prediction, bound.target))
    drop, prediction, clean_prediction, resolved = (torch.cat(column) for column in zip(*rows, strict=True))
    return AblationResult(drop, prediction, clean_prediction, resolved, bound.classes, engine)


def _last_layer(model: nn.Module, inputs: Tensor) -> str:
    """Find the layer of the last units that 0 silences.

    Raises:
        ValueError: If there is none.
    """
    (site,) = preactivation_sites(model, inputs[:1], [None])
    if site.module is None or site.activation(torch.zeros(1)).any():
        raise ValueError(
            f"the last layer with an activation, {site.layer!r}, is not silenced by 0: name a layer, best one that "
            f"follows an activation."
        )
    return site.module.layer


@dataclass(frozen=True)
class _Variants:
    """One sample, and the variants of the layer's output that are tried on it.

    One sample at a time, so that in a replay whatever goes around the layer (a residual) has one row, which broadcasts
    over the variants.
    """

    model: nn.Module
    sample: Tensor
    place: Place
    silenced: Tensor
    values: float | Tensor
    bound: BoundScore

    def scores(self, clean: ActivationResult, engine: str, batches: Batches) -> tuple[Tensor, Tensor]:
        """The drops of the score [1, U] and the predictions [1, U]."""

        def run(variants: slice) -> tuple[Tensor, Tensor]:
            silenced = self.silenced[variants]
            output, bound = self.run(silenced, engine), self._bound(len(silenced))
            return bound(output), bound.predict(output)

        found, prediction = map(torch.cat, zip(*batches.map(run, len(self.silenced)), strict=True))
        drop = self.bound(clean.output) - found
        return torch.where(drop.isfinite(), drop, float("nan")).unsqueeze(0), prediction.unsqueeze(0)

    def run(self, silenced: Tensor, engine: str) -> Any:
        """The output of the model for some variants, one row each."""
        inputs = self.sample
        if engine == "repeat":
            inputs = inputs.expand(len(silenced), *inputs.shape[1:]).contiguous()

        def silence(output: Tensor) -> Tensor:
            maps = rows_of_units(output, self.place, len(inputs))
            chosen = silenced.to(maps.device).view(len(silenced), -1, *[1] * (maps.ndim - 2))
            values = torch.as_tensor(self.values, dtype=output.dtype, device=maps.device)
            if values.ndim and values.shape != maps.shape[1:2]:
                raise ValueError(f"value must be one per unit, [{maps.shape[1]}], got shape {list(values.shape)}.")
            values = values.view(1, -1, *[1] * (maps.ndim - 2))
            return self.place.units_back(torch.where(chosen, values, self.place.units_first(output)))

        with hook_outputs(self.model, {self.place: silence}), forward_context():
            return at_rows(self.model, torch.zeros(len(inputs), dtype=torch.long))(inputs.clone())

    def engine(self, batches: Batches) -> str:
        """The engine for ``"auto"``: a replay if it gives what repeating does, as where no rows are mixed."""

        def agree(variants: slice) -> bool:
            some = self.silenced[variants]
            read = self._bound(len(some))
            expected = read(self.run(some, "repeat"))
            try:
                found = read(self.run(some, "replay"))
            except (RuntimeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                return False  # repeating has just shown that it works
            tolerance = 1e-4 if found.dtype == torch.float32 else 1e-9
            return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)

        return "replay" if all(batches.map(agree, min(3, len(self.silenced)))) else "repeat"

    def _bound(self, rows: int) -> BoundScore:
        """The score for so many rows of the sample."""
        return self.bound.at(torch.zeros(rows, dtype=torch.long, device=self.bound.target.device))


def _mean(model: nn.Module, inputs: Tensor, place: Place, batches: Batches) -> Tensor:
    """The mean activation [K] of each unit over the positions of all samples but padding, in double precision."""

    def run(rows: slice) -> tuple[Tensor, int]:
        own = at_rows(model, rows)
        maps = capture(own, inputs[rows], place).maps.double()
        there = present_at(own, inputs[rows], place)
        if there is None:
            return maps.flatten(2).sum((0, 2)) if maps.ndim > 2 else maps.sum(0), len(maps) * maps[0, 0].numel()
        return torch.where(there.unsqueeze(1), maps, 0.0).flatten(2).sum((0, 2)), int(there.sum())

    sums, counts = zip(*batches.map(run, len(inputs)), strict=True)
    return torch.stack(sums).sum(0).div(sum(counts))
