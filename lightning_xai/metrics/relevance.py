"""Relevance over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_flag
from lightning_xai.attribution import Attribution
from lightning_xai.inputs.binding import bind
from lightning_xai.metrics.base import BatchExplanation, Ids, precise
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.maps import SCORE, MapMetric, map_results
from lightning_xai.metrics.sweeps import FeatureLabels, check_shared
from lightning_xai.present import without_absent
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.relevance.ledger import Ledger
from lightning_xai.relevance.pooling import part_of, pool_channels, pool_features
from lightning_xai.results import Histogram, Labels, Map, Number, PerFeature, PerLayer, Result
from lightning_xai.scores import RawOutput, Target, as_score

BINS = 65  # odd, so that 0 lies in the middle of one

RELEVANCE = "units of the attribution"
WHOLE = "share of the scores' sum"
# Where relevance ends, in the ledger.
_ENDS = {"input_share": "input", "bias_share": "biases", "epsilon_share": "stabilizers"}


class Relevance(MapMetric):
    r"""Average the relevance :math:`R` of any attribution, summed over the channels.

    Cells that are not finite are left out; maps per class are left out over 2**24 numbers. A map that is 0 has the
    entropy, shares and coefficients 0; scores that are all 0 do not divide.

    ``by_feature`` is there with ``regions``, or for the columns of a table. ``conservation_gap`` is there for an
    attribution that promises conservation,

    .. math:: \frac{\sum_n |s_n - \sum R_n|}{\sum_n |s_n|},

    and the ledger for one that keeps it. Its shares are sums over all samples with their sign, divided by the sum of
    their scores,

    .. math:: \text{bias share} = \frac{\sum_n b_n}{\sum_n s_n}.

    These are shares of one sum, not means over the samples: amounts of opposite sign cancel, and so do scores. A share
    can be negative or above 1, and says little where the scores nearly cancel, which logits can and probabilities
    cannot; scores that sum to 0 do not divide. What an attribution gives besides its map (``completeness_gap`` of
    :class:`~lightning_xai.relevance.IntegratedGradients`) is a mean over the samples.

    Args:
        attribution: R, e.g. ``LRP()`` or ``GradCAM()``.
        part: What is summed over the channels: ``"signed"``, ``"positive"`` or ``"absolute"`` relevance.
        regions: Features to share the relevance out over; the columns of a table unless given.
        ledger: Whether to keep the ledger of an attribution that has one.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution or the regions are none, or a score is given.
        ValueError: If the part is unknown, or the regions are not the same for all samples.

    Example:
        >>> from lightning_xai.relevance import GradientXInput
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
        >>> metric = Relevance(GradientXInput())
        >>> metric.update(model, torch.ones(3, 4), torch.tensor([0, 0, 1]))
        >>> found = metric.compute()
        >>> found["map_per_class"][0], found["conservation_gap"]
        (tensor([ 1., -2.,  3.,  4.], dtype=torch.float64), tensor(0., dtype=torch.float64))
    """

    formula: ClassVar[str] = r"R, \quad \sum_p R_p \approx s(x)"
    interpretation: ClassVar[str] = "Red cells speak for the target, blue cells against it."
    sample_maps: ClassVar[Mapping[str, Result]] = {"map": Map("relevance R", RELEVANCE)}
    results: Mapping[str, Result] = {
        **MapMetric.results,
        **map_results("relevance R", RELEVANCE),
        "positive_share": Number(
            "positive share of |R|", "0 … 1", "How much of a map speaks for the target.", "relevance-entropy"
        ),
        "entropy": Number("entropy of a map", "nats", "How widely a map is spread.", "relevance-entropy"),
        "conservation_gap": Number(
            "conservation gap", "share of the scores", "How far maps miss scores.", "conservation-gap", better="lower"
        ),
        "completeness_gap": Number(
            "completeness gap", SCORE, "How far maps are from the change of the score.", "completeness", better="lower"
        ),
        "histogram": Histogram(
            "relevance ÷ sample's strongest", "cells", "How cells are distributed.", "feature-share", extent=(-1.0, 1.0)
        ),
        "by_feature": PerFeature(
            "mean share of |R|", "share of a sample", "What share a feature holds.", "feature-share", listed="strongest"
        ),
        "ledger": PerLayer(
            "conservation ledger", WHOLE, "How much arrives at a layer's output.", "ledger", beside=tuple(_ENDS)
        ),
        **{
            key: Number(f"relevance at the {end}", WHOLE, "How much ends there.", "ledger")
            for key, end in _ENDS.items()
        },
    }

    def __init__(
        self,
        attribution: Attribution,
        *,
        part: str = "signed",
        regions: RegionsLike | None = None,
        ledger: bool = True,
        **options: Any,
    ) -> None:
        if "score" in options:
            raise TypeError("Relevance takes no score: it explains that of its attribution, e.g. LRP(score=...).")
        super().__init__(**options)
        if not isinstance(attribution, Attribution):
            raise TypeError(
                f"attribution must be one of lightning_xai.relevance, e.g. LRP(), got {type(attribution).__name__}."
            )
        self.regions = None if regions is None else as_regions(regions)
        check_shared(self.regions, "Relevance")
        part_of(torch.zeros(1), part)
        self.attribution = attribution
        self.part = part
        self.ledger = as_flag("ledger", ledger) and "ledger" in attribution.details
        self.layers: tuple[str, ...] = ()
        self.add_sum_state("positive_sum", "entropy_sum", "gap_sum", "score_sum", "histogram", "feature_sum")
        self.numbers = [name for name in attribution.details if name != "ledger"]
        self.add_sum_state(*(f"{name}_sum" for name in self.numbers), "details_count")
        if self.ledger:
            self.add_sum_state("ledger_sum", "input_sum", "bias_sum", "epsilon_sum", "start_sum")
        given = {
            "conservation_gap": attribution.conserves,
            "completeness_gap": "completeness_gap" in attribution.details,
        }
        given |= dict.fromkeys(("ledger", *_ENDS), self.ledger)
        self.results = {key: result for key, result in self.results.items() if given.get(key, True)}
        self.fingerprint(attribution, part, self.regions, ledger)

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        model, inputs = bind(model, inputs)
        names = [name for name in self.attribution.details if name != "ledger" or self.ledger]
        found = explain_once(self.attribution, model, inputs, target, sample_ids, names)
        details = dict(found.details)
        ledger = details.pop("ledger", None)
        relevance, score = found.map, found.score
        tensors = {"map": without_absent(model, pool_channels(relevance, self.part)), **details, "score": score}
        tensors["gap"] = score - relevance.to(score).flatten(1).sum(1)
        finite = without_absent(model, relevance, 0.0).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if self.regions is not None or relevance.ndim == 2:
            columns = part_of(finite, self.part)
            parts = columns if self.regions is None else pool_features(finite, self.regions, self.part)
            size = part_of(finite, "absolute").flatten(1).sum(1, keepdim=True)
            tensors["by_feature"] = torch.where(size > 0, parts / size, 0.0)
        nonfinite = (~relevance.isfinite()).flatten(1).sum(1)
        totals = {} if ledger is None else self._totals(ledger, score)
        layers = {"layers": () if ledger is None else tuple(ledger.layers)}
        about = (found.target, found.prediction, nonfinite, found.classes)
        is_value = isinstance(as_score(self.attribution.score), RawOutput)
        made = {} if found.layer is None else {"layer": found.layer}
        how: dict[str, Any] = {"score": score, "is_value": is_value, "made": made}
        return BatchExplanation(tensors, *about, totals=totals, constants=layers, **how)

    @staticmethod
    def _totals(ledger: Ledger, score: Tensor) -> dict[str, Tensor]:
        found = {
            "bias": ledger.biases,
            "epsilon": ledger.epsilon,
            "start": ledger.start.sum(),
            "input": ledger.received.sum(),
            "ledger": torch.stack([*ledger.layers.values()]) if ledger.layers else score.new_zeros(0),
        }
        # Of a batch without a score that is a number nothing is known.
        return found if score.isfinite().any() else {name: torch.zeros_like(total) for name, total in found.items()}

    def add(self, found: BatchExplanation) -> None:
        """Add the maps, gaps, shares and ledger of a batch."""
        super().add(found)
        self.layers = found.constants["layers"]
        values = precise(found.tensors["map"]).flatten(1)
        values = torch.where(values.isfinite(), values, 0.0)
        sizes = values.abs()
        total = sizes.sum(1)
        shares = sizes / torch.where(total > 0, total, 1.0).unsqueeze(1)
        self.add_to_state("positive_sum", (shares * (values > 0)).sum())
        self.add_to_state("entropy_sum", -torch.special.xlogy(shares, shares).sum())
        strongest = sizes.amax(1, keepdim=True)
        places = values / torch.where(strongest > 0, strongest, 1.0)
        bins = ((places + 1) / 2 * BINS).long().clamp(0, BINS - 1)[found.tensors["map"].flatten(1).isfinite()]
        self.add_to_state("histogram", torch.bincount(bins, minlength=BINS))
        gap, score = precise(found.tensors["gap"]), precise(found.tensors["score"])
        known = gap.isfinite()
        self.add_to_state("gap_sum", torch.where(known, gap, 0.0).abs().sum())
        self.add_to_state("score_sum", torch.where(known, score, 0.0).abs().sum())
        if "by_feature" in found.tensors:
            self.add_to_state("feature_sum", precise(found.tensors["by_feature"]).sum(0))
        details = [precise(found.tensors[name]) for name in self.numbers]
        there = torch.stack([detail.isfinite() for detail in details]).all(0) if details else known
        for name, detail in zip(self.numbers, details, strict=True):
            self.add_to_state(f"{name}_sum", torch.where(there, detail, 0.0).sum())
        self.add_to_state("details_count", there.sum())
        for name, value in found.totals.items():
            self.add_to_state(f"{name}_sum", precise(value))

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        found = {
            **super().compute(),
            "positive_share": self.positive_sum / self.measured,
            "entropy": self.entropy_sum / self.measured,
            "histogram": self.histogram,
        }
        if self.attribution.conserves:
            found["conservation_gap"] = self.gap_sum / torch.where(self.score_sum > 0, self.score_sum, 1.0)
        if self.feature_sum.ndim:
            found["by_feature"] = self.feature_sum / self.measured
        if self.ledger:
            whole = torch.where(self.start_sum == 0, 1.0, self.start_sum)
            shares = {key: getattr(self, key.replace("_share", "_sum")) / whole for key in _ENDS}
            found |= shares | {"ledger": self.ledger_sum / whole}
        return found | {name: getattr(self, f"{name}_sum") / self.details_count for name in self.numbers}

    @property
    def axis_labels(self) -> Labels:
        """Name the layers in the ledger, and features by their numbers and first cells."""
        labels: dict[str, Sequence[str]] = {"layer": [name or "the model itself" for name in self.layers]}
        if self.regions is not None and self.map_sum.ndim:
            labels["feature"] = FeatureLabels(self.regions.bind((1, 1, *self.map_sum.shape)))
        return labels
