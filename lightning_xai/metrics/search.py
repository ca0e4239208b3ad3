"""Search for the strongest samples of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.inputs.binding import bind
from lightning_xai.metrics.activation import ACTIVATION
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.operations import unwrapped
from lightning_xai.results import Entries, Matrix, Result
from lightning_xai.scores import Target
from lightning_xai.sites import Layer, as_layer
from lightning_xai.units._capture import activation_site, read_batch
from lightning_xai.units.groups import UnitGroups, as_groups
from lightning_xai.units.layers import Function
from lightning_xai.units.search import Peaks, SearchResult, candidates, check_ids, merged, nothing, peaks

RANKED = ("unit", "rank")


class TopSamples(ExplanationMetric):
    r"""Find the n samples that activate each unit most, :math:`\mathrm{top}_n\{ \max_p A_{k,p}(x) : x \}`.

    The state is the n strongest so far, [U, n]; those of several processes are merged into the n strongest of all,
    ties by smaller id, a sample that several have seen counted once.

    A sample with activations that are not finite is not among the strongest of a unit.

    Args:
        layer: A layer with activations [N, K] or [N, K, \*P]: its dotted name, the module, or a
            :class:`~lightning_xai.sites.Site`; unless given, the last convolution (or linear layer) with an activation.
        n: How many samples per unit.
        unit: ``"channel"``, or groups of channels.
        activation: The activation function or its name; the one that follows the layer unless given, and none where
            none follows.
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
            "activation", ACTIVATION, "How strong a unit is there.", "top-samples", axes=RANKED, listed="given"
        ),
        "sample_id": Entries("sample", "", "Which sample it is; -1 where there were fewer.", axes=RANKED),
        "position": Entries("position", "cells of the layer", "Where in the map it is.", axes=RANKED),
    }

    strongest: Tensor

    def __init__(
        self,
        layer: Layer | None = None,
        *,
        n: int = 10,
        unit: str | UnitGroups = "channel",
        activation: str | Function | None = None,
        output: str | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.layer = None if layer is None else as_layer(layer)
        self.n = as_integer("n", n, 1)
        self.groups, self.activation = as_groups(unit), activation
        self.output = output
        self.add_state("strongest", torch.zeros((), dtype=torch.float64), dist_reduce_fx=partial(_joined, n=n))
        self.fingerprint(layer, n, id(self.groups), activation, output)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Find the peaks of a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        model, inputs = bind(model, inputs)
        ids = check_inputs(inputs, sample_ids)
        check_ids(ids)
        model = unwrapped(model)
        with isolated_eval(model):
            inputs = detach_for_autograd(inputs)
            site = activation_site(model, inputs, self.layer, self.activation)
            batch = read_batch(model, inputs, site, target, self.output)
            maps = batch.maps if self.groups is None else self.groups.combine(batch.maps)
            broken = ~maps.flatten(2).isfinite().all(2) if maps.ndim > 2 else ~maps.isfinite()
            found = peaks(torch.where(broken.view(*broken.shape, *[1] * (maps.ndim - 2)), 0.0, maps), batch.there)
        value = found.value.masked_fill(broken, float("nan"))
        tensors = {"value": value, "position": found.position, "id": torch.tensor(ids, device=value.device)}
        about = (batch.target, batch.prediction, broken.sum(1), batch.classes)
        return BatchExplanation(tensors, *about, score=batch.score)

    def add(self, found: BatchExplanation) -> None:
        """Merge the strongest samples of a batch with those so far."""
        tensors = found.tensors
        batch = candidates(Peaks(tensors["value"], tensors["position"]), tensors["id"])
        before = self.strongest.to(batch.device)
        if not before.ndim:
            before = nothing(batch.shape[0], 0, batch.shape[2] - 2).to(batch.device)
        if before.shape[::2] != batch.shape[::2]:
            raise ValueError(
                f"the layer gave {before.shape[0]} units before and gives {batch.shape[0]} now, or maps of "
                f"other axes; use one metric per model."
            )
        self.strongest = merged(torch.cat([before, batch], 1), self.n)

    def result(self) -> SearchResult:
        """Return the strongest samples so far, of all processes if they have been synchronised."""
        if not self.strongest.ndim:
            raise ValueError("TopSamples has seen no sample: call update before compute.")
        return SearchResult.unpacked(self.strongest)

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
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
    """Merge the states [processes, U, n, 2 + D] of several processes."""
    return merged(states.transpose(0, 1).flatten(1, 2), n) if states.ndim > 1 else states[0]
