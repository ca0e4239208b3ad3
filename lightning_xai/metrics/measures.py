"""Metrics of numbers per sample: their means, the standard errors of these, and how often they are undefined."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_xai.attribution import Attribution
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, full_repr, precise
from lightning_xai.results import Number, Result


def measure_results(measures: Mapping[str, Number]) -> dict[str, Result]:
    """Declare what :class:`MeasureMetric` computes of every measure: its mean, standard error and undefined samples."""
    found: dict[str, Result] = {
        name: replace(measure, error=f"{name}_error", undefined=f"{name}_undefined")
        for name, measure in measures.items()
    }
    for name, measure in measures.items():
        found[f"{name}_error"] = Number(
            f"standard error: {measure.title}", measure.unit, "How far the mean may be off.", "mean-measure"
        )
        found[f"{name}_undefined"] = Number(
            f"undefined: {measure.title}", "samples", "How many samples have no value and are left out.", "mean-measure"
        )
    return found


class ComparableMetric(ExplanationMetric, ABC):
    """Measures an attribution by numbers over the data set, in which attributions can be compared.

    Args:
        measures: The declaration of every measure by name.
        **options: Options of ``torchmetrics.Metric``, or of another base class.
    """

    def __init__(self, measures: Mapping[str, Number], **options: Any) -> None:
        super().__init__(**options)
        self.measures = tuple(measures)
        self.results = {**type(self).results, **measure_results(measures)}

    def ask(self, attribution: Attribution, *question: Any) -> None:
        """Keep what is asked, and of which attribution: metrics that ask the same can be compared."""
        self.attribution = attribution
        self.question = full_repr((type(self).__name__, question))
        self.fingerprint(attribution, *question)

    @property
    def compared(self) -> dict[str, Number]:
        """The declarations of the numbers by which attributions are compared."""
        return {name: self._number(name) for name in self.measures}

    def _number(self, name: str) -> Number:
        result = self.results[name]
        assert isinstance(result, Number)
        return result


class MeasureMetric(ComparableMetric, ABC):
    r"""Averages numbers per sample.

    .. math:: \bar m = \frac{1}{N} \sum_n m_n, \qquad
       \mathrm{SE} = \sqrt{\frac{\sum_n (m_n - \bar m)^2}{N (N - 1)}}

    over the samples in which a measure is defined; the standard error needs two of them. A subclass puts the measures
    [N] into ``BatchExplanation.tensors`` by name.

    Args:
        measures: The declaration of every measure by name.
        **options: Options of ``torchmetrics.Metric``.
    """

    def __init__(self, measures: Mapping[str, Number], **options: Any) -> None:
        super().__init__(measures, **options)
        self.add_sum_state("measure_sum", "measure_square_sum", "measure_count")

    def add(self, found: BatchExplanation) -> None:
        """Add the measures of a batch."""
        values = torch.stack([precise(found.tensors[name]) for name in self.measures], 1)
        known = values.isfinite()
        values = torch.where(known, values, 0.0)
        self.add_to_state("measure_sum", values.sum(0))
        self.add_to_state("measure_square_sum", (values**2).sum(0))
        self.add_to_state("measure_count", known.to(values).sum(0))

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that :func:`measure_results` declares."""
        # The states are numbers until the first batch.
        count = self.measure_count.expand(len(self.measures))
        mean = self.measure_sum / count
        spread = (self.measure_square_sum - count * mean**2).clamp(min=0)
        error = (spread / (count * (count - 1))).sqrt()
        found = self.sample_counts()
        for place, name in enumerate(self.measures):
            found[name] = mean[place]
            found[f"{name}_error"] = torch.where(count[place] > 1, error[place], float("nan"))
            found[f"{name}_undefined"] = self.samples - count[place].long()
        return found
