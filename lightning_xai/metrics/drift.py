"""Drift of an attribution over the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.drift import blank_pairs, cosine_drift, first_stable_epoch, spearman_drift, top_drift
from lightning_xai.evaluation.features import ExplainedBatch
from lightning_xai.evaluation.refusals import an_attribution, disjoint
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.kept import KeptSamples, means_of
from lightning_xai.metrics.measures import measure_results
from lightning_xai.metrics.sweeps import check_shared
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target, as_score

_UNIT = "0 unchanged, 1 unrelated"
MEASURES = {
    "spearman": Number("drift of the ranks", _UNIT, "How far the order of the features has moved.", "drift"),
    "cosine": Number("drift of the direction", _UNIT, "How far a map has turned.", "drift"),
    "top": Number("drift of the top fifth", "0 … 1", "How many of the strongest features are new.", "drift"),
    "spearman_from_first": Number(
        "drift of the ranks from the first epoch", _UNIT, "How far the order has moved in all.", "drift"
    ),
    "score_change": Number("change of the score", "units of the score", "How far the score has moved.", "drift"),
}
COUNTS = {
    "matched": Number("samples in both epochs", "samples", "How many samples are compared.", "drift"),
    "unmatched": Number(
        "samples in one epoch only", "samples", "How many are not compared.", "drift", usually_zero=True
    ),
    "retargeted": Number(
        "samples of another class", "samples", "How many changed their explained class.", "drift", usually_zero=True
    ),
    "blank": Number(
        "constant maps", "samples", "How many maps say nothing, before or now.", "drift", usually_zero=True
    ),
    "first_stable_epoch": Number(
        "first stable epoch", "-1 for none", "From where on the drift stays under 0.1.", "first-stable-epoch"
    ),
}
_ID, _TARGET, _SCORE, _FEATURES = 0, 1, 2, 3  # columns of what is kept of a sample


class Drift(KeptSamples):
    r"""Average how far the explanations of the same samples move from one explained epoch to the next.

    Samples are found again by their ids: those of the M smallest are followed. One that was not explained before, or
    of another class, is not compared, and counted. The callback keeps what was explained in its checkpoints, so that a
    resumed training goes on. Without it, ``reset()`` begins an epoch.

    Before the second epoch there is nothing to compare, and the results are NaN.

    Args:
        attribution: What is followed.
        regions: The features j, which must not overlap; every position unless given.
        samples: M.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If the regions overlap or differ from sample to sample.

    Example:
        >>> from lightning_xai.relevance import GradientXInput
        >>> model, x = nn.Linear(3, 1), torch.ones(2, 3)
        >>> metric, drifts = Drift(GradientXInput()), []
        >>> for weight in ([[1.0, 2.0, 3.0]], [[2.0, 4.0, 6.0]], [[3.0, 2.0, 1.0]]):
        ...     model.weight.data = torch.tensor(weight)
        ...     metric.reset()
        ...     metric.update(model, x, 0)
        ...     drifts.append(metric.compute()["spearman"].item())
        >>> drifts
        [nan, 0.0, 2.0]
    """

    formula: ClassVar[str] = r"1 - \rho(A^e, A^{e'})"
    interpretation: ClassVar[str] = (
        "How far the maps of the same samples have moved since the explained epoch before: near 0 the explanation has "
        "settled. Read it beside the change of the score."
    )
    results: Mapping[str, Result] = {**ExplanationMetric.results, **measure_results(MEASURES), **COUNTS}

    about: ClassVar[int] = _FEATURES

    def __init__(
        self, attribution: Attribution, regions: RegionsLike | None = None, *, samples: int = 64, **options: Any
    ) -> None:
        an_attribution(attribution)
        self._explained: Tensor | None = None  # torchmetrics resets while it is built
        super().__init__(samples=samples, **options)
        self.attribution = attribution
        self.regions = None if regions is None else disjoint(as_regions(regions))
        check_shared(self.regions, "Drift")
        self.fingerprint(attribution, self.regions, samples)
        self.epoch, self.before, self._drift = 0, dict[str, Any](), math.nan

    def begin(self, epoch: int, history: Mapping[str, Any]) -> None:
        """Begin an epoch, after what was kept of those before."""
        self.epoch, self.before, self._explained = epoch, dict(history), None

    @property
    def history(self) -> dict[str, Any]:
        """The features of the first and the last epoch, which later ones are compared with, and the drifts so far."""
        if self._explained is None:
            return self.before
        epochs, drifts = self._drifts()
        first = self.before.get("first", self._explained)
        return {"first": first, "last": self._explained, "epochs": epochs, "drifts": drifts}

    def reset(self) -> None:
        """Forget the samples of an epoch, and begin the next one."""
        if self._explained is not None:
            self.begin(self.epoch + 1, self.history)
        super().reset()

    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain a batch; the arguments are those of :meth:`ExplanationMetric.run`."""
        clean = explain_once(self.attribution, model, inputs, target, sample_ids)
        batch = ExplainedBatch.of(model, inputs, target, clean, sample_ids)
        return BatchExplanation(
            {},
            clean.target,
            clean.prediction,
            (~clean.map.isfinite()).flatten(1).sum(1),
            clean.classes,
            kept={"rows": self.rows_of(batch, self.regions, clean.target, clean.score)},
            score=clean.score,
            is_value=isinstance(as_score(self.attribution.score), RawOutput),
        )

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        self._explained = self.rows
        past, present, unmatched = _matched(self.before.get("last"), self._explained)
        first, later, _ = _matched(self.before.get("first"), self._explained)
        same, same_first = past[:, _TARGET] == present[:, _TARGET], first[:, _TARGET] == later[:, _TARGET]
        then, features = past[same][:, _FEATURES:], present[same][:, _FEATURES:]
        values = {
            "spearman": spearman_drift(features, then),
            "cosine": cosine_drift(features, then),
            "top": top_drift(features, then),
            "spearman_from_first": spearman_drift(later[same_first][:, _FEATURES:], first[same_first][:, _FEATURES:]),
            "score_change": (present[same][:, _SCORE] - past[same][:, _SCORE]).abs(),
        }
        found = {**self.sample_counts(), **means_of(values)}
        found["matched"] = same.sum()
        found["unmatched"] = torch.tensor(unmatched)
        found["retargeted"] = (~same).sum()
        found["blank"] = blank_pairs(features, then).sum()
        self._drift = found["spearman"].item()
        found["first_stable_epoch"] = torch.tensor(first_stable_epoch(*self._drifts()))
        return found

    def _drifts(self) -> tuple[list[int], list[float]]:
        """The epochs that could be compared with the one before, this one included, and their drifts."""
        epochs, drifts = list(self.before.get("epochs", [])), list(self.before.get("drifts", []))
        if "last" in self.before:
            epochs.append(self.epoch)
            drifts.append(self._drift)
        return epochs, drifts


def _matched(before: Tensor | None, now: Tensor) -> tuple[Tensor, Tensor, int]:
    """Find the rows of the samples that are in both, in the order of their ids, and count those that are in one."""
    if before is None or before.shape[1] != now.shape[1]:
        return now[:0], now[:0], 0 if before is None else len(before) + len(now)
    old = torch.isin(before[:, _ID], now[:, _ID])
    new = torch.isin(now[:, _ID], before[:, _ID])
    return before[old], now[new], int((~old).sum() + (~new).sum())
