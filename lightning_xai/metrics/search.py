"""Search for the strongest samples of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.metrics.activation import ACTIVATION
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric
from lightning_xai.operations import unwrapped
from lightning_xai.results import Entries, Matrix, Result
from lightning_xai.scores import RawOutput, Target
from lightning_xai.units._capture import capture
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.search import Peaks, Strongest, candidates, check_ids, merged, nothing, peaks

RANKED = ("unit", "rank")


class TopSamples(ExplanationMetric):
    r"""The n samples that activate each unit most, :math:`\mathrm{top}_n\{ \max_p A_{k,p}(x) : x \}`.

    The state is the n strongest so far, [U, n]; those of several processes are merged into the n strongest of all,
    ties by smaller id, a sample that several have seen counted once.

    A sample with activations that are not finite is not among the strongest of a unit.

    Args:
        layer: The dotted name of a layer that gives [N, K] or maps [N, K, \*P].
        n: How many samples per unit.
        groups: Search for groups of units instead of single ones.
        output: Which tensor of the model's output holds the classes, if it returns several.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the layer is no name.
        ValueError: If ``n`` is no integer of at least 1.

    Source: :cite:`zeiler2014`.

    Example:
        >>> metric = TopSamples("0", n=2)
        >>> model = nn.Sequential(nn.Identity())
        >>> metric.update(model, torch.tensor([[1.0, 5.0], [3.0, 5.0]]), "predicted", [7, 4])
        >>> metric.update(model, torch.tensor([[2.0, 4.0]]), "predicted", [1])
        >>> metric.compute()["sample_id"]
        tensor([[4, 1],
                [4, 7]])
    """

    formula: ClassVar[str] = r"\mathrm{top}_n\{\, \max_p A_{k,p}(x) : x \,\}"
    interpretation: ClassVar[str] = "The samples to look at to see what a unit responds to."

    results: Mapping[str, Result] = {
        **ExplanationMetric.results,
        "value": Matrix(
            "activation",
            ACTIVATION,
            "How strong a unit is there.",
            "top-samples",
            axes=RANKED,
            listed="given",
        ),
        "sample_id": Entries("sample", "", "Which sample it is; -1 where there were fewer.", axes=RANKED),
        "position": Entries("position", "cells of the layer", "Where in the map it is.", axes=RANKED),
    }

    strongest: Tensor

    def __init__(
        self,
        layer: str,
        *,
        n: int = 10,
        groups: UnitGroups | None = None,
        output: str | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not isinstance(layer, str):
            raise TypeError(f"layer must be a dotted name such as 'features.0', got {type(layer).__name__}.")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be an integer of at least 1, got {n!r}.")
        self.layer = layer
        self.n = n
        self.groups = groups
        self.output = output
        self.add_state("strongest", torch.zeros((), dtype=torch.float64), dist_reduce_fx=partial(_joined, n=n))
        self.fingerprint(layer, n, id(groups), output)

    def run(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> BatchExplanation:
        """Find the peaks of a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        ids = check_inputs(inputs, sample_ids)
        check_ids(ids)
        model = unwrapped(model)
        with isolated_eval(model):
            inputs = detach_for_autograd(inputs)
            output, maps = capture(model, inputs, self.layer)
            maps = maps if self.groups is None else self.groups.combine(maps)
            broken = ~maps.flatten(2).isfinite().all(2) if maps.ndim > 2 else ~maps.isfinite()
            found = peaks(torch.where(broken.view(*broken.shape, *[1] * (maps.ndim - 2)), 0.0, maps))
            reader = RawOutput(output=self.output).bind(output, target, len(ids))
        value = found.value.masked_fill(broken, float("nan"))
        tensors = {"value": value, "position": found.position, "id": torch.tensor(ids, device=value.device)}
        return BatchExplanation(tensors, reader.target, reader.prediction, broken.sum(1), reader.classes)

    def add(self, found: BatchExplanation) -> None:
        """Keep the strongest of a batch and those so far."""
        tensors = found.tensors
        batch = candidates(Peaks(tensors["value"], tensors["position"]), tensors["id"])
        before = self.strongest.to(batch.device)
        if not before.ndim:
            before = nothing(batch.shape[0], 0, batch.shape[2] - 2).to(batch.device)
        if before.shape[::2] != batch.shape[::2]:
            raise ValueError(
                f"layer {self.layer!r} gave {before.shape[0]} units before and gives {batch.shape[0]} now, or maps of "
                f"other axes; use one metric per model."
            )
        self.strongest = merged(torch.cat([before, batch], 1), self.n)

    def result(self) -> Strongest:
        """The strongest so far, of all processes if they have been synchronised."""
        if not self.strongest.ndim:
            raise ValueError("TopSamples has seen no sample: call update before compute.")
        return Strongest.unpacked(self.strongest)

    def compute(self) -> dict[str, Tensor]:
        """The results declared above."""
        found = self.result()
        results = {"value": found.value, "sample_id": found.sample_id, "position": found.position}
        return {**self.sample_counts(), **results}

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Merge another state, of which one may not have seen its first sample."""
        own, other = self.strongest, incoming_state["strongest"]
        if not own.ndim and other.ndim:
            self.strongest = torch.full_like(other, -1.0)
        if not other.ndim and own.ndim:
            incoming_state = {**incoming_state, "strongest": torch.full_like(own, -1.0)}
        super()._reduce_states(incoming_state)


def _joined(states: Tensor, n: int) -> Tensor:
    """The states [processes, U, n, 2 + D] of several processes as one."""
    return merged(states.transpose(0, 1).flatten(1, 2), n) if states.ndim > 1 else states[0]
