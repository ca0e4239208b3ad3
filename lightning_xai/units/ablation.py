r"""Ablation: what the classes lose when units, or groups of them, are silenced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs, check_model, named_layer, unknown
from lightning_xai._guard import detach_for_autograd, forward_context, hook_outputs, isolated_eval
from lightning_xai.operations import largest_activation, unwrapped
from lightning_xai.scores import BoundScore, Score, Target, as_score, as_target
from lightning_xai.units._capture import CaptureResult, all_finite, capture, rows_of_units
from lightning_xai.units.groups import UnitGroups, _membership

ENGINES = ("auto", "replay", "repeat")

_ACTIVATION_BYTES = 64 * 2**20
_MOST_VARIANTS = 256

Units = Sequence[int] | Sequence[Sequence[int]] | UnitGroups | None


@dataclass(frozen=True)
class Plan:
    """How units are ablated.

    Args:
        layer: The dotted name of a layer that gives [N, K] or [N, K, *P] and runs once.
        units: Units, sets of units, or groups, each ablated by itself; every single unit unless given.
        value: What a silenced unit gives everywhere: a number, one per unit [K], or ``"mean"`` for the mean of its
            activations over the inputs at hand.
        engine: ``"replay"``: each sample runs up to the layer once and from there on as one row per variant.
            ``"repeat"``: each variant runs through the whole network. ``"auto"``: replay, if it gives the scores of
            repeat on the first sample, to rounding.
        chunk_size: The most variants of a sample per forward pass; found automatically unless given.

    Raises:
        TypeError: If a field is of the wrong type.
        ValueError: If the engine or the value is unknown, or the chunk size is not positive.
    """

    layer: str
    units: Units = None
    value: float | str | Tensor = 0.0
    engine: str = "auto"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str):
            raise TypeError(f"layer must be a dotted name such as 'features.0', got {type(self.layer).__name__}.")
        if isinstance(self.value, str) and self.value != "mean":
            raise ValueError(f"value must be a number, a tensor [K] or 'mean', got {self.value!r}.")
        if self.engine not in ENGINES:
            raise ValueError(unknown("engine", self.engine, ENGINES))
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}.")

    def silenced(self, count: int) -> Tensor:
        """Which units each variant silences, Boolean [U, K], of the K units of the layer.

        Raises:
            ValueError: If a unit does not exist.
        """
        units = self.units
        if units is None:
            return torch.eye(count, dtype=torch.bool)
        if isinstance(units, UnitGroups):
            if units.units != count:
                raise ValueError(f"groups are of {units.units} units, layer {self.layer!r} has {count}.")
            return units.membership.cpu()
        return _membership([[unit] if isinstance(unit, int) else unit for unit in units], count)


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class AblationResult:
    r"""What happened to each sample when each set of units was silenced.

    Attributes:
        score_change: :math:`s(x) - s(x; u \text{ silenced})` [N, U]; positive where the units are evidence for the
            target.
        prediction: The predicted class [N, U].
        clean_prediction: The predicted class [N] with all units.
        target: The class [N] that the score is of.
        classes: The number of classes.
        engine: How it was computed, ``"replay"`` or ``"repeat"``.
    """

    score_change: Tensor
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
        """The same [classes] with all units."""
        right = (self.clean_prediction == self.target).unsqueeze(1)
        return per_class(right, self.target, self.classes)[0]

    @property
    def accuracy_change(self) -> Tensor:
        """Accuracy without the units minus accuracy with them [U, classes]."""
        return self.accuracy - self.clean_accuracy

    @property
    def mean_score_change(self) -> Tensor:
        """The mean change of the score over the samples of each class [U, classes]."""
        return per_class(self.score_change, self.target, self.classes)


def per_class(values: Tensor, target: Tensor, classes: int) -> Tensor:
    """Means over the samples of each class [U, classes], in double precision, of values [N, U]; NaN where none is.

    >>> per_class(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 1]), 3)
    tensor([[1., 3., nan]], dtype=torch.float64)
    """
    sums = class_sums(values.double(), target, classes)
    return sums / target.bincount(minlength=classes)


def class_sums(values: Tensor, target: Tensor, classes: int) -> Tensor:
    """Sums over the samples of each class [U, classes] of values [N, U]."""
    return values.new_zeros(classes, values.shape[1]).index_add(0, target, values).T


def ablate_units(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    *,
    layer: str,
    units: Units = None,
    value: float | str | Tensor = 0.0,
    score: str | Score = "logit",
    sample_ids: Tensor | Sequence[int] | None = None,
    engine: str = "auto",
    chunk_size: int | None = None,
) -> AblationResult:
    r"""Silence units of a layer, each (or each set) by itself, and see what its samples' scores and classes do.

    .. math:: \Delta_u = s(x) - s(x;\; A_k := v_k \;\forall k \in u)

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, \*S], or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``; accuracy needs the labels.
        layer: The dotted name of a layer that gives [N, K] or [N, K, \*P] and runs once; what is silenced is what it
            gives, so name the one after the activation to silence units as the next layer sees them.
        units: Units, sets of units, or groups; every single unit unless given.
        value: v: a number, a number per unit [K], or ``"mean"``: the unit's mean over positions and these inputs.
        score: s.
        sample_ids: The samples' ids [N].
        engine: ``"auto"``, ``"replay"`` or ``"repeat"``; see :class:`Plan`.
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
        >>> ablated.score_change, ablated.prediction
        (tensor([[1.0000, 2.0000, 1.5000]]), tensor([[0, 0, 0]]))
    """
    check_inputs(inputs, sample_ids)
    return ablation(model, inputs, target, Plan(layer, units, value, engine, chunk_size), as_score(score), sample_ids)


def ablation(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    plan: Plan,
    score: Score,
    sample_ids: Tensor | Sequence[int] | None = None,
    strict: bool = True,
) -> AblationResult:
    """:func:`ablate_units` by a plan.

    Args:
        model: The network; left as it was.
        inputs: Inputs [N, C, *S], or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        plan: What is ablated, and how.
        score: s.
        sample_ids: The samples' ids [N].
        strict: Refuse activations that are not finite; otherwise the score changes of those samples are NaN.
    """
    ids = check_inputs(inputs, sample_ids)
    target = as_target(target, len(ids))
    check_model(model)
    model = unwrapped(model)
    named_layer(model, plan.layer)
    with isolated_eval(model):
        inputs = detach_for_autograd(inputs)
        engine = plan.engine
        at_once = plan.chunk_size or _variants_at_once(model, inputs[:1])
        values = _mean(model, inputs, plan.layer) if isinstance(plan.value, str) else plan.value
        rows = []
        for row, name in enumerate(ids):
            sample = inputs[row : row + 1]
            clean = capture(model, sample, plan.layer)
            if strict:
                all_finite(clean.maps, plan.layer, (name,))
            wanted = target[row : row + 1] if isinstance(target, Tensor) else target
            reader = score.bind(clean.output, wanted, 1)
            variants = _Variants(model, sample, plan, plan.silenced(clean.maps.shape[1]), values, at_once)
            if engine == "auto":
                engine = variants.engine(reader)
            rows.append(variants.scores(clean, reader, engine))
    change, prediction, clean_prediction, resolved, classes = zip(*rows, strict=True)
    return AblationResult(
        torch.cat(change), torch.cat(prediction), torch.cat(clean_prediction), torch.cat(resolved), classes[0], engine
    )


@dataclass(frozen=True)
class _Variants:
    """One sample, and the variants of the layer's output that are tried on it.

    One sample at a time, so that in a replay whatever goes around the layer (a residual) has one row, which broadcasts
    over the variants.
    """

    model: nn.Module
    sample: Tensor
    plan: Plan
    silenced: Tensor
    values: float | Tensor
    at_once: int

    def scores(self, clean: CaptureResult, reader: BoundScore, engine: str) -> tuple[Any, ...]:
        """The score changes [1, U], the predictions [1, U], and what was read of the clean output."""
        own = reader(clean.output)
        change, prediction = [], []
        for some in torch.split(self.silenced, self.at_once):
            repeated = reader.at(torch.zeros(len(some), dtype=torch.long, device=own.device))
            output = self.run(some, engine)
            change.append(own - repeated(output))
            prediction.append(reader.score.predict(reader.score._columns(output, len(some))))
        found = torch.cat(change)
        found = torch.where(found.isfinite(), found, float("nan"))
        return found.unsqueeze(0), torch.cat(prediction).unsqueeze(0), reader.prediction, reader.target, reader.classes

    def run(self, silenced: Tensor, engine: str) -> Any:
        """What the model returns for some variants, one row each."""
        count = len(silenced)
        inputs = self.sample
        if engine == "repeat":
            inputs = inputs.expand(count, *inputs.shape[1:]).contiguous()

        def silence(output: Tensor) -> Tensor:
            rows_of_units(output, self.plan.layer, len(inputs))
            chosen = silenced.to(output.device).view(count, -1, *[1] * (output.ndim - 2))
            values = torch.as_tensor(self.values, dtype=output.dtype, device=output.device)
            if values.ndim and values.shape != output.shape[1:2]:
                raise ValueError(f"value must be one per unit, [{output.shape[1]}], got shape {list(values.shape)}.")
            values = values.view(1, -1, *[1] * (output.ndim - 2))
            return torch.where(chosen, values, output)

        with hook_outputs(self.model, {self.plan.layer: silence}), forward_context():
            return self.model(inputs.clone())

    def engine(self, reader: BoundScore) -> str:
        """Whether a replay gives what repeating does: not if the model mixes rows, or fixes their number early."""
        some = self.silenced[: min(3, len(self.silenced))]
        repeated = reader.at(torch.zeros(len(some), dtype=torch.long, device=reader.target.device))
        expected = repeated(self.run(some, "repeat"))
        try:
            found = repeated(self.run(some, "replay"))
        except (RuntimeError, ValueError):
            return "repeat"  # which has just shown that it works
        tolerance = 1e-4 if found.dtype == torch.float32 else 1e-9
        same = torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        return "replay" if same else "repeat"


def _variants_at_once(model: nn.Module, sample: Tensor) -> int:
    with forward_context():
        largest = largest_activation(model, sample)
    return min(max(_ACTIVATION_BYTES // largest, 1), _MOST_VARIANTS)


def _mean(model: nn.Module, inputs: Tensor, layer: str) -> Tensor:
    """The mean activation [K] of each unit over positions and samples, in double precision."""
    total: Tensor | float = 0.0
    for row in range(len(inputs)):
        maps = capture(model, inputs[row : row + 1], layer).maps
        total = total + maps.double().flatten(2).mean(2)[0] if maps.ndim > 2 else total + maps.double()[0]
    return torch.as_tensor(total) / len(inputs)
