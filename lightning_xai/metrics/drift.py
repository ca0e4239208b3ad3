"""Drift of an attribution over the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.drift import blank_pairs, cosine_drift, first_stable_epoch, spearman_drift, top_drift
from lightning_xai.evaluation.features import ExplainedBatch
from lightning_xai.evaluation.masking import pooled
from lightning_xai.evaluation.refusals import an_attribution, disjoint
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids, precise
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.measures import measure_results
from lightning_xai.metrics.sweeps import check_shared
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Number, Result
from lightning_xai.scores import RawOutput, Target, as_score
from lightning_xai.units.search import check_ids

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


class Drift(ExplanationMetric):
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

    kept: Tensor

    def __init__(
        self, attribution: Attribution, regions: RegionsLike | None = None, *, samples: int = 64, **options: Any
    ) -> None:
        an_attribution(attribution)
        self._explained: Tensor | None = None  # torchmetrics resets while it is built
        super().__init__(**options)
        self.attribution = attribution
        self.regions = None if regions is None else disjoint(as_regions(regions))
        check_shared(self.regions, "Drift")
        self.followed = as_integer("samples", samples, least=1)
        self.add_state("kept", torch.zeros((), dtype=torch.float64), dist_reduce_fx=partial(_joined, n=samples))
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
        check_ids(batch.ids)
        if self.regions is None:
            features = pooled(batch.relevance).flatten(1)
        else:
            found = batch.features(self.regions)
            features = torch.where(found.ordered, found.values, float("nan"))
        ids = torch.tensor(batch.ids, device=features.device)
        columns = [precise(each.to(features.device)).unsqueeze(1) for each in (ids, clean.target, clean.score)]
        return BatchExplanation(
            {},
            clean.target,
            clean.prediction,
            (~clean.map.isfinite()).flatten(1).sum(1),
            clean.classes,
            kept={"rows": torch.cat([*columns, precise(features)], 1)},
            score=clean.score,
            is_value=isinstance(as_score(self.attribution.score), RawOutput),
        )

    def add(self, found: BatchExplanation) -> None:
        """Keep the samples of a batch with the smallest ids."""
        rows = found.kept["rows"]
        before = self.kept.to(rows.device)
        if before.ndim and before.shape[1] != rows.shape[1]:
            raise ValueError(
                f"maps can be followed over inputs of one size: there were {before.shape[1] - _FEATURES} features and "
                f"there are {rows.shape[1] - _FEATURES} now. Resize the inputs, or give regions of the same number."
            )
        self.kept = _first(torch.cat([before, rows]) if before.ndim else rows, self.followed)

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        now = self.kept.cpu() if self.kept.ndim else self.kept.new_zeros(0, _FEATURES).cpu()
        self._explained = now[now[:, _ID] >= 0]
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
        found = self.sample_counts()
        for name, value in values.items():
            known = value[value.isfinite()]
            found[name] = known.mean()
            found[f"{name}_error"] = (
                known.std() / math.sqrt(len(known)) if len(known) > 1 else known.new_tensor(math.nan)
            )
            found[f"{name}_undefined"] = torch.tensor(len(value) - len(known))
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

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Merge another state, of which one may not have seen its first sample."""
        own, other = self.kept, incoming_state["kept"]
        if not own.ndim and other.ndim:
            self.kept = torch.full_like(other, -1.0)
        if not other.ndim and own.ndim:
            incoming_state = {**incoming_state, "kept": torch.full_like(own, -1.0)}
        super()._reduce_states(incoming_state)


def _first(rows: Tensor, n: int) -> Tensor:
    """Keep the n rows with the smallest ids, each once, filled up by rows of -1."""
    rows = rows[rows[:, _ID] >= 0]
    rows = rows[rows[:, _ID].argsort(stable=True)]
    new = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    new[1:] = rows[1:, _ID] != rows[:-1, _ID]
    rows = rows[new][:n]
    return torch.cat([rows, rows.new_full((n - len(rows), rows.shape[1]), -1.0)])


def _joined(states: Tensor, n: int) -> Tensor:
    """Merge the states [processes, n, 3 + J] of several processes."""
    return _first(states.flatten(0, 1), n) if states.ndim > 1 else states[0]


def _matched(before: Tensor | None, now: Tensor) -> tuple[Tensor, Tensor, int]:
    """Find the rows of the samples that are in both, in the order of their ids, and count those that are in one."""
    if before is None or before.shape[1] != now.shape[1]:
        return now[:0], now[:0], 0 if before is None else len(before) + len(now)
    old = torch.isin(before[:, _ID], now[:, _ID])
    new = torch.isin(now[:, _ID], before[:, _ID])
    return before[old], now[new], int((~old).sum() + (~new).sum())
