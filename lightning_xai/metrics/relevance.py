"""Relevance over a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs
from lightning_xai.attribution import Attribution
from lightning_xai.metrics.base import BatchExplanation, MapMetric, check_shared, precise
from lightning_xai.regions import Regions
from lightning_xai.relevance.ledger import Ledger
from lightning_xai.relevance.pooling import part_of, pool_channels, pool_features
from lightning_xai.scores import Target, as_target, check_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 65  # odd, so that 0 lies in the middle of one

_ENDS = ("input", "bias", "epsilon")


@dataclass(frozen=True)
class _Accounted(BatchExplanation):
    """What was found together with a ledger.

    Attributes:
        layers: The names of the layers in ``totals["ledger"]``.
    """

    layers: tuple[str, ...] = ()


class Relevance(MapMetric):
    r"""Mean relevance :math:`R` of any attribution, summed over the channels.

    ``compute()`` gives, over the samples: ``map`` [\*S] the mean, ``map_abs`` [\*S] the mean magnitude, ``per_class``
    [classes, \*S] the mean per explained class (left out over 2**24 numbers), ``mean_abs`` the mean magnitude of a
    cell, ``gini`` and ``top_share`` how peaked a sample's map is (the Gini coefficient; the share of the strongest
    tenth of its cells), ``entropy`` of its magnitudes in nats, ``positive_share`` of its magnitude,
    ``conservation_gap`` how far the maps' sums are from the scores,

    .. math:: \frac{\sum_n |s_n - \sum R_n|}{\sum_n |s_n|},

    ``histogram`` [65] how many cells of the maps lie in 65 equal intervals from -1 to 1, in units of the strongest cell
    of their sample, ``by_feature`` [J] the mean share of a sample's magnitude that a feature has, signed (with
    ``regions``, or columns of a table), ``samples``, ``nonfinite`` how many cells were not numbers, ``excluded`` how
    many samples could not be explained; and the mean of what the attribution gives besides its map
    (``completeness_gap`` of :class:`~lightning_xai.relevance.IntegratedGradients`). Cells that are not numbers are left
    out. A map that is 0 has the entropy, shares and coefficients 0; scores that are all 0 do not divide.

    An attribution with a conservation ledger also gives ``ledger`` [L], the relevance of every named layer,
    ``input_share``, what arrives at the input, ``bias_share`` and ``epsilon_share``, what biases and stabilisers
    absorb: each summed over all samples with its sign, and divided by the sum of their scores,

    .. math:: \text{bias share} = \frac{\sum_n b_n}{\sum_n s_n}.

    These are shares of one sum, not means over the samples: amounts of opposite sign cancel, and so do scores. A share
    can be negative or above 1, and says little where the scores nearly cancel, which logits can and probabilities
    cannot; scores that sum to 0 do not divide.

    Args:
        attribution: R, e.g. ``LRP()`` or ``GradCAM()``.
        part: What is summed over the channels: ``"signed"``, ``"positive"`` or ``"absolute"`` relevance.
        regions: Features to share the relevance out over; the columns of a table unless given.
        ledger: Whether to keep the ledger of an attribution that has one.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution or the regions are none.
        ValueError: If the part is unknown, or the regions are not the same for all samples.

    Example:
        >>> from lightning_xai.relevance import GradientXInput
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
        >>> metric = Relevance(GradientXInput())
        >>> metric.update(model, torch.ones(3, 4), torch.tensor([0, 0, 1]))
        >>> found = metric.compute()
        >>> found["per_class"][0], found["conservation_gap"]
        (tensor([ 1., -2.,  3.,  4.], dtype=torch.float64), tensor(0., dtype=torch.float64))
    """

    formula: ClassVar[str] = r"R, \quad \sum_p R_p \approx s(x)"
    reading: ClassVar[str] = "Red cells speak for the target, blue cells against it."
    map_titles: ClassVar[dict[str, str]] = {"map": "relevance R"}

    positive_sum: Tensor
    entropy_sum: Tensor
    gap_sum: Tensor
    score_sum: Tensor
    histogram: Tensor
    feature_sum: Tensor
    details_count: Tensor
    ledger_sum: Tensor
    input_sum: Tensor
    bias_sum: Tensor
    epsilon_sum: Tensor
    start_sum: Tensor

    def __init__(
        self,
        attribution: Attribution,
        part: str = "signed",
        regions: Regions | None = None,
        ledger: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not isinstance(attribution, Attribution):
            raise TypeError(
                f"attribution must be one of lightning_xai.relevance, e.g. LRP(), got {type(attribution).__name__}."
            )
        if regions is not None and not isinstance(regions, Regions):
            raise TypeError(f"regions must be Windows(...) or Segments(...), got {type(regions).__name__}.")
        check_shared(regions, "Relevance")
        part_of(torch.zeros(1), part)
        self.attribution = attribution
        self.part = part
        self.regions = regions
        self.ledger = ledger and "ledger" in attribution.details
        self.layers: tuple[str, ...] = ()
        self.add_sum_state("positive_sum", "entropy_sum", "gap_sum", "score_sum", "histogram", "feature_sum")
        self.numbers = [name for name in attribution.details if name != "ledger"]
        self.add_sum_state(*(f"{name}_sum" for name in self.numbers), "details_count")
        if self.ledger:
            self.add_sum_state("ledger_sum", "input_sum", "bias_sum", "epsilon_sum", "start_sum")
        self.fingerprint(attribution, part, regions, ledger)

    def run(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: Tensor | Sequence[int] | None = None
    ) -> BatchExplanation:
        """Explain a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        names = [name for name in self.attribution.details if name != "ledger" or self.ledger]
        found = self.attribution.explain(model, inputs, target, sample_ids, details=names)
        details = dict(found.details)
        ledger = details.pop("ledger", None)
        relevance, score = found.map, found.score
        tensors = {"map": pool_channels(relevance, self.part), **details, "score": score}
        tensors["gap"] = score - relevance.to(score).flatten(1).sum(1)
        finite = relevance.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if self.regions is not None or relevance.ndim == 2:
            parts = part_of(finite, self.part) if self.regions is None else self._by_feature(finite)
            size = part_of(finite, "absolute").flatten(1).sum(1, keepdim=True)
            tensors["by_feature"] = torch.where(size > 0, parts / size, 0.0)
        nonfinite = (~relevance.isfinite()).flatten(1).sum(1)
        totals = {} if ledger is None else self._totals(ledger, score)
        layers = () if ledger is None else tuple(ledger.layers)
        return _Accounted(tensors, found.target, found.prediction, nonfinite, found.classes, totals, layers)

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

    def check(self, model: nn.Module, inputs: Tensor, target: Target) -> None:
        """Raise what :meth:`run` would refuse of a batch, at the cost of its first sample."""
        check_inputs(inputs)
        indices = as_target(target, len(inputs))
        found = self.run(model, inputs[:1], indices[:1] if isinstance(indices, Tensor) else indices)
        if isinstance(indices, Tensor) and found.classes:
            check_range(indices, found.classes)

    def add(self, found: BatchExplanation) -> None:
        """Add the maps of a batch, and what belongs to them."""
        assert isinstance(found, _Accounted)
        super().add(found)
        self.layers = found.layers
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
        """The results named above."""
        found = {
            **self._maps(),
            "positive_share": self.positive_sum / self.measured,
            "entropy": self.entropy_sum / self.measured,
            "conservation_gap": self.gap_sum / torch.where(self.score_sum > 0, self.score_sum, 1.0),
            "histogram": self.histogram,
        }
        if self.feature_sum.ndim:
            found["by_feature"] = self.feature_sum / self.measured
        if self.ledger:
            whole = torch.where(self.start_sum == 0, 1.0, self.start_sum)
            shares = {f"{name}_share": getattr(self, f"{name}_sum") / whole for name in _ENDS}
            found |= shares | {"ledger": self.ledger_sum / whole}
        return found | {name: getattr(self, f"{name}_sum") / self.details_count for name in self.numbers}

    def charts(self, result: dict[str, Any], title: str) -> dict[str, Figure]:
        """The histogram, the share of every feature, and the ledger if there is one."""
        from lightning_xai.figures import relevance

        drawn = {"histogram": relevance.draw_histogram(result["histogram"], title)}
        if "by_feature" in result:
            drawn["shares"] = relevance.draw_shares(result["by_feature"], title)
        if "ledger" in result and self.layers:
            ends = {name: float(result[f"{name}_share"]) for name in _ENDS}
            drawn["ledger"] = relevance.draw_ledger(result["ledger"], self.layers, title, ends)
        return drawn

    def _by_feature(self, relevance: Tensor) -> Tensor:
        assert self.regions is not None
        return pool_features(relevance, self.regions, self.part)
