"""Activation thresholds over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lightning_xai._checks import check_inputs
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.inputs.binding import bind
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.results import Number, PerUnit, Result
from lightning_xai.scores import Target
from lightning_xai.sites import Layer, as_layer
from lightning_xai.units._capture import read_batch
from lightning_xai.units.activation import ThresholdResult, as_units, check_unit, unit_shape, units_there
from lightning_xai.units.groups import UnitGroups
from lightning_xai.units.layers import Function, preactivation_sites
from lightning_xai.units.quantile import DEFAULT_BUDGET, Quantile, UpperQuantile, check_share

ACTIVATION, THRESHOLD = "units of the activation", "activation-threshold"
DEAD = Number("dead units", "", "How many units never were active.")
ERROR = Number("relative error of T", "0 exact", "How far a threshold from a histogram can be off.", better="lower")


class QuantileMetric(ExplanationMetric):
    """Keeps the largest values of some units, and counts what the budget does not hold.

    Attributes:
        p: The share of the values above the threshold.
        budget: Bytes for the largest values; the exchange between processes takes as many.
    """

    budget: ClassVar[int] = DEFAULT_BUDGET
    p: float
    extent: Tensor

    def __init__(self, p: float, **options: Any) -> None:
        super().__init__(**options)
        check_share(p)
        self.p = p
        for name in ("largest", "histogram"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_sum_state("value_count", "value_nonfinite", dtype=torch.long)
        self.add_state("value_peak", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state("extent", torch.zeros(()), dist_reduce_fx="max")

    def _feed(self, values: Tensor, there: Tensor | None = None) -> None:
        """Add values [n, K, P] of K units; only those that are there, Boolean [n, 1 or K, P]."""
        stream = self._stream()
        stream.add(values, there)
        top, self.value_count, self.value_peak, histogram = stream.state()
        self.largest = [top]
        bins = histogram.unsqueeze(0)
        self.histogram = [bins if histogram.numel() else bins.new_zeros(0, len(histogram), stream.bins)]
        self.value_nonfinite = torch.tensor(stream.nonfinite, device=values.device)

    def _quantile(self) -> Quantile:
        """Compute the thresholds of all values so far."""
        return self._stream().result()

    def _stream(self) -> UpperQuantile:
        stream = UpperQuantile(self.p, budget=self.budget)
        if len(self.largest):
            counted = dim_zero_cat(self.histogram)
            # Mostly nobody has needed one, and to sum nothing up would take a table of zeros.
            histogram = counted.sum(0) if len(counted) else counted.new_zeros(counted.shape[1], 0)
            # To join one part would copy it, and the other way round than it lies in memory.
            one = isinstance(self.largest, list) and len(self.largest) == 1
            largest = self.largest[0] if one else dim_zero_cat(self.largest)
            stream.absorb(largest, self.value_count, self.value_peak, histogram, int(self.value_nonfinite))
        return stream

    def _note_extent(self, shape: Sequence[int]) -> None:
        """Store a shape that is the same for every sample.

        Raises:
            ValueError: If it was another one.
        """
        if self.extent.ndim and self._shape() != tuple(shape):
            raise ValueError(
                f"counts over the data need inputs of one size: it was {list(self._shape())} so far and is "
                f"{list(shape)} now. Resize the inputs, or use one metric per size."
            )
        self.extent = torch.tensor(shape, dtype=torch.float, device=self.extent.device)

    def _shape(self) -> tuple[int, ...]:
        return tuple(int(length) for length in self.extent)


class ActivationThreshold(QuantileMetric):
    r"""Find the thresholds :math:`T_k` that a share p of a unit's activations exceeds, :math:`P(A_k > T_k) = p`.

    A unit that never was active is dead: its T is 0, and nothing is larger. The largest activations of every unit are
    kept in ``budget`` bytes (64 MiB): T is exact if half of it holds a share p of them, and is read off a histogram
    otherwise. The same for any number of processes.

    Args:
        layer: A layer: its dotted name, the module, or a :class:`~lightning_xai.sites.Site`; unless given, the last
            convolution (or linear layer) with an activation.
        p: The share, in (0, 1).
        unit: ``"channel"``, ``"position"``, or groups of channels, whose activations are weighted means of theirs.
        activation: The activation function or its name; the one that follows the layer unless given.
        output: Which tensor to read the predicted class of, if the model returns several.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``p`` is no share or the kind of unit is unknown.

    Source: :cite:`bau2017`.

    Example:
        >>> layer = nn.Conv1d(1, 2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[[1.0]], [[-1.0]]])
        >>> metric = ActivationThreshold("0", p=0.4)
        >>> model = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
        >>> metric.update(model, torch.tensor([[[1.0, 5.0, 2.0]], [[4.0, 3.0, 0.0]]]), 0)
        >>> found = metric.compute()
        >>> found["threshold"], found["dead"]
        (tensor([3., 0.]), tensor(1))
    """

    formula: ClassVar[str] = r"P\left(A_k > T_k\right) = p"
    interpretation: ClassVar[str] = "What a unit must exceed for its activation to count as strong."
    results: Mapping[str, Result] = {
        **QuantileMetric.results,
        "threshold": PerUnit(
            "threshold T", ACTIVATION, "What a share p exceeds.", THRESHOLD, signed=False, listed="strongest"
        ),
        "peak": PerUnit("largest activation", ACTIVATION, "The largest activation of a unit.", signed=False),
        "error": ERROR,
        "dead": DEAD,
        "values": Number("activations of a unit", "", "How many activations a threshold is taken from."),
    }

    def __init__(
        self,
        layer: Layer | None = None,
        *,
        p: float = 0.005,
        unit: str | UnitGroups = "channel",
        activation: str | Function | None = None,
        output: str | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(p, **options)
        check_unit(unit)
        self.layer = None if layer is None else as_layer(layer)
        self.unit, self.activation, self.output = unit, activation, output
        self.fingerprint(layer, p, unit, activation, output)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Read the activations of a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        model, inputs = bind(model, inputs)
        check_inputs(inputs, sample_ids)
        with isolated_eval(model):
            inputs = detach_for_autograd(inputs)
            (site,) = preactivation_sites(model, inputs[:1], [self.layer], self.activation)
            batch = read_batch(model, inputs, site, target, self.output)
        activation = as_units(batch.maps, self.unit)
        nonfinite = (~activation.isfinite()).flatten(1).sum(1)
        about = (batch.target, batch.prediction, nonfinite, batch.classes)
        constants = {"shape": unit_shape(site, self.unit)}
        there = units_there(batch.there, batch.maps, self.unit)
        kept = {"activation": activation, **({} if there is None else {"present": there})}
        return BatchExplanation({}, *about, kept=kept, constants=constants, score=batch.score)

    def add(self, found: BatchExplanation) -> None:
        """Add the activations of a batch."""
        self._note_extent(found.constants["shape"])
        self._feed(found.kept["activation"], found.kept.get("present"))

    def result(self) -> ThresholdResult:
        """Return the thresholds so far, of all processes if they have been synchronised.

        Raises:
            ValueError: If there was no sample yet.
        """
        layer = str(self.layer or "the last layer")
        return ThresholdResult.of(self._quantile(), layer, self.unit, self.p, self._shape())

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        found = self._quantile()
        device = found.value.device
        return {
            **self.sample_counts(),
            "threshold": found.value.view(self._shape()),
            "peak": found.peak.view(self._shape()),
            "error": torch.tensor(found.error, device=device),
            "dead": torch.tensor(len(found.dead), device=device),
            "values": found.count.max(),
        }
