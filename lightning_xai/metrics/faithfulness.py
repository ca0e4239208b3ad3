"""Faithfulness of an attribution over a data set: the core measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import IncompatibleError, check_known
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation.core import MASKED, CoreMeasures, CoreRequests
from lightning_xai.evaluation.features import ExplainedBatch
from lightning_xai.evaluation.refusals import disjoint
from lightning_xai.evaluation.subsets import SHARES
from lightning_xai.inputs import InputsLike
from lightning_xai.metrics.base import BatchExplanation, ExplanationMetric, Ids, precise
from lightning_xai.metrics.explanations import explain_once
from lightning_xai.metrics.measures import MeasureMetric, measure_results
from lightning_xai.metrics.sweeps import SweepMetric
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.perturbation.kinds.pointwise import Constant
from lightning_xai.perturbation.sweep import CaptureRequest, Plan, Request, SweepResult
from lightning_xai.regions import RegionsLike, as_regions
from lightning_xai.results import Curve, Number, Result
from lightning_xai.scores import CombClasses, RawOutput, ScoreLike, Target, as_score
from lightning_xai.sites import Site

SCORE = "units of the score"
SHARE = "0 … 1"

MEASURES: dict[str, Number] = {
    "deletion": Number(
        "deletion", SCORE, "The mean score while the most relevant features go first.", "deletion", better="lower"
    ),
    "insertion": Number(
        "insertion", SCORE, "The mean score while the least relevant go first.", "insertion", better="higher"
    ),
    "srg": Number(
        "symmetric relevance gain", f"{SCORE}, 0 chance", "Insertion less deletion of a map.", "srg", better="higher"
    ),
    "aopc_morf": Number(
        "AOPC", SCORE, "The mean loss while the most relevant features go first.", "aopc", better="higher"
    ),
    "sufficient_share": Number(
        "sufficient share of the features",
        SHARE,
        "The least share that gives the score back.",
        "sufficient-share",
        better="lower",
    ),
    "faithfulness_correlation": Number(
        "faithfulness correlation",
        "-1 … 1, 0 chance",
        "Whether random sets lose what the map says.",
        "faithfulness-correlation",
        better="higher",
    ),
    "infidelity_relative": Number(
        "relative infidelity", "0 … 1", "What random sets lose beyond the map.", "infidelity-relative", better="lower"
    ),
    "average_drop": Number(
        "average drop",
        "share of the probability",
        "What is lost where only what the map marks is left.",
        "average-drop",
        better="lower",
    ),
    "average_increase": Number(
        "average increase",
        "share of the samples",
        "How often it helps to leave only what the map marks.",
        "average-increase",
        better="higher",
    ),
    "gini": Number("Gini coefficient", "0 even … 1 one cell", "How unevenly a map is spread.", "gini"),
    "entropy": Number("entropy of a map", "nats", "How widely a map is spread.", "map-entropy"),
}

FURTHER_MEASURES: dict[str, Number] = {
    "aopc_lerf": Number(
        "AOPC, the least relevant first", SCORE, "The mean loss while the least relevant go.", "aopc", better="lower"
    ),
    "irof": Number("IROF", "share of the score", "The area over the curve.", "irof", better="higher"),
    "monotone": Number("steps that do not rise", SHARE, "Whether the score falls.", "monotone", better="higher"),
    "infidelity": Number(
        "infidelity", "squared units of the score", "How far random sets differ.", "infidelity", better="lower"
    ),
    "infidelity_scaled": Number(
        "scaled infidelity", "squared units of the score", "The same, of the best factor.", "infidelity", better="lower"
    ),
    "average_gain": Number(
        "average gain",
        "share of what there is to win",
        "What is won where only what the map marks is left.",
        "average-gain",
        better="higher",
    ),
    "sensitivity_n": Number(
        "sensitivity-n",
        "-1 … 1, 0 chance",
        "The correlation over sets of three sizes.",
        "sensitivity-n",
        better="higher",
    ),
    "road_accuracy_morf": Number(
        "accuracy, the most relevant first",
        "share of the samples",
        "The mean accuracy while the most relevant features go first.",
        "road-accuracy",
        better="lower",
    ),
    "road_accuracy_lerf": Number(
        "accuracy, the least relevant first",
        "share of the samples",
        "The mean accuracy while the least relevant go first.",
        "road-accuracy",
        better="higher",
    ),
}
_ALONG: dict[str, Any] = {
    "unit": SCORE,
    "meaning": "As features are replaced, from none to all.",
    "equation": "curves",
    "axes": ("share of the features that are gone",),
    "extent": (0.0, 1.0),
}
FURTHER: dict[str, Result] = {
    "completeness_gap": Number(
        "completeness gap",
        "share of the changes",
        "How far maps miss the change of the score.",
        "completeness-gap",
        better="lower",
    ),
    "blank": Number("blank maps", "samples", "How many maps have no positive cell.", "average-drop", usually_zero=True),
    "deletion_curve": Curve("score, the most relevant features first", **_ALONG),
    "insertion_curve": Curve("score, the least relevant features first", **_ALONG),
}

ROAD = {"road_accuracy_morf": "morf", "road_accuracy_lerf": "lerf"}


class Faithfulness(MeasureMetric, SweepMetric):
    r"""Average the core measures of an attribution: is the explanation any good?

    Per sample: deletion, insertion, srg, aopc_morf and sufficient_share by one pair of curves of K steps,
    the faithfulness correlation and the relative infidelity by B random sets, the average drop and increase by one
    masked input, the Gini coefficient and the entropy of the map. Each with its standard error, and with the number of
    samples in which it is undefined. Over the data set: the completeness gap, and both curves at the shares k/K.
    Maps and passes are shared with other metrics of the same attribution or regions.

    The average drop and increase are shares of a probability, and are not there under a score that is none.

    Args:
        attribution: What is measured, e.g. ``LRP()``; ``RandomMap()`` gives the floor.
        regions: The features j; they must not overlap.
        perturbation: R.
        score: s of the curves, sets and masks; that of the completeness gap is the attribution's.
        steps: K.
        share: f, the share of the features in a random set.
        draws: B.
        mask_perturbation: R behind the map as a mask.
        seed: Keys the random sets together with the samples' ids.
        further: Measures that the same passes give beside: ``"aopc_lerf"``, ``"irof"``, ``"monotone"``,
            ``"infidelity"``, ``"infidelity_scaled"``, ``"average_gain"``, and ``"road_accuracy_morf"`` and
            ``"road_accuracy_lerf"``, each with its curve, which are those of ROAD under
            :class:`~lightning_xai.perturbation.kinds.NoisyLinear`; and ``"sensitivity_n"``, which takes B more random
            sets of each of the shares .2, .5 and .8 that is not ``share``.
        chunk_size: The most inputs per forward pass; found automatically unless given.
        engine: ``"auto"``, ``"dense"`` or ``"incremental"``; see :class:`~lightning_xai.perturbation.sweep.Plan`.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        TypeError: If the attribution is none, or an argument is of the wrong type.
        ValueError: If the perturbation, the score or the regions do not fit, or ``"infidelity"`` is asked of gradients.

    Example:
        >>> from lightning_xai.perturbation import Windows, kinds
        >>> from lightning_xai.relevance import GradientXInput
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> model.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
        >>> metric = Faithfulness(GradientXInput(), Windows(1), kinds.Constant(0.0), score="logit")
        >>> metric.update(model, torch.ones(2, 4), 0)
        >>> found = metric.compute()
        >>> found["deletion"], found["insertion"], found["completeness_gap"]
        (tensor(3.7500, dtype=torch.float64), tensor(6.2500, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """

    formula: ClassVar[str] = r"\mathrm{srg} = \mathrm{insertion} - \mathrm{deletion}"
    interpretation: ClassVar[str] = (
        "A good map loses the score early when its strongest features go (deletion low) and late when its weakest go "
        "(insertion high). Compare attributions with each other and with a random map, not with 0 … 1."
    )
    results: Mapping[str, Result] = {**SweepMetric.results, **measure_results(MEASURES), **FURTHER}

    def __init__(
        self,
        attribution: Attribution,
        regions: RegionsLike,
        perturbation: str | Perturbation,
        *,
        score: ScoreLike = "probability",
        steps: int = 10,
        share: float = 0.2,
        draws: int = 32,
        mask_perturbation: str | Perturbation = Constant(0.0),  # noqa: B008 - frozen
        seed: int = 0,
        further: Sequence[str] = (),
        chunk_size: int | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        if not isinstance(attribution, Attribution):
            raise TypeError(
                f"attribution must be one of lightning_xai.relevance, e.g. LRP(), got {type(attribution).__name__}."
            )
        own_score = as_score(attribution.score)
        core = CoreMeasures(
            perturbation,
            score=score,
            steps=steps,
            share=share,
            draws=draws,
            mask_perturbation=mask_perturbation,
            completeness_score=None if isinstance(own_score, CombClasses) else own_score,
            seed=seed,
            sensitivity_shares=SHARES if "sensitivity_n" in further else (),
            road=bool(ROAD.keys() & {*further}),
        )
        left_out = () if core.masks else MASKED
        measures = {name: result for name, result in MEASURES.items() if name not in left_out}
        super().__init__(measures | _further(further, core, attribution), **options)
        self.core = core
        self.plan = Plan(disjoint(as_regions(regions)), chunk_size, engine)
        self.requests: list[Request] = []  # they depend on the maps
        self.own_evaluations = 2 * steps - 1 + core.set_count + core.masks
        missing = measure_results({name: MEASURES[name] for name in left_out})
        self.results = {key: result for key, result in self.results.items() if key not in missing}
        self.road = tuple(name for name in ROAD if name in self.measures)
        for name in self.road:
            self.results[f"{name}_curve"] = Curve(
                FURTHER_MEASURES[name].title, **_ALONG | {"unit": "share of the samples", "equation": "road-accuracy"}
            )
            self.add_sum_state(f"{name}_sum", f"{name}_count")
        self.add_sum_state("gap_sum", "change_sum")
        self.add_sum_state("deletion_sum", "insertion_sum", "curve_count")
        self.add_sum_state("blank_count", dtype=torch.long)
        self.ask(attribution, self.plan.regions, replace(core, completeness_score=None), *further)

    @property
    def compared(self) -> dict[str, Number]:
        """The declarations of the numbers by which attributions are compared."""
        return {**super().compared, "completeness_gap": self._number("completeness_gap")}

    @property
    def reads(self) -> Site | None:
        """The module whose output the score reads; None for the model's own."""
        return as_score(self.core.score).reads

    def prepare(
        self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None
    ) -> FaithfulnessUse:
        """Explain a batch, and say what its maps need of a sweep."""
        explanation = explain_once(self.attribution, model, inputs, target, sample_ids)
        batch = ExplainedBatch.of(model, inputs, target, explanation, sample_ids)
        return FaithfulnessUse(self, self.core.of(batch, self.plan.regions))

    def explained(self, swept: SweepResult) -> BatchExplanation:  # noqa: ARG002
        """Refuse a sweep that is not of prepared maps."""
        raise TypeError("Faithfulness reads a sweep of its own requests: call prepare(...).explained(swept).")

    def check(self, model: nn.Module, inputs: InputsLike, target: Target = None) -> int:
        """Raise the errors that :meth:`run` would raise for a batch, at the cost of its first sample."""
        return ExplanationMetric.check(self, model, inputs, target)

    def add(self, found: BatchExplanation) -> None:
        """Add the measures, gaps and curves of a batch."""
        super().add(found)
        gap, change = precise(found.kept["gap"]), precise(found.kept["change"])
        known = gap.isfinite()
        self.add_to_state("gap_sum", torch.where(known, gap, 0.0).abs().sum())
        self.add_to_state("change_sum", torch.where(known, change, 0.0).abs().sum())
        for name, total in found.totals.items():
            self.add_to_state(name, precise(total))
        self.add_to_state("blank_count", found.kept["blank"].sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute the results that ``results`` declares."""
        return {
            **super().compute(),
            "completeness_gap": self.gap_sum / self.change_sum,
            "blank": self.blank_count,
            "deletion_curve": self.deletion_sum / self.curve_count,
            "insertion_curve": self.insertion_sum / self.curve_count,
            **{f"{name}_curve": getattr(self, f"{name}_sum") / getattr(self, f"{name}_count") for name in self.road},
        }


def _further(names: Sequence[str], core: CoreMeasures, attribution: Attribution) -> dict[str, Number]:
    if isinstance(names, str):
        raise TypeError(f"further must list measures, e.g. further=[{names!r}].")
    for name in names:
        check_known("further", name, FURTHER_MEASURES)
    if "average_gain" in names and not core.masks:
        raise TypeError("average_gain is a share of a probability: use score='probability', or 'sigmoid'.")
    if "infidelity" in names and attribution.is_slope:
        raise IncompatibleError(
            f"infidelity compares contributions, and {type(attribution).__name__} says what the score loses per unit "
            f"of the input: ask for infidelity_scaled, or of an attribution of contributions, e.g. GradientXInput."
        )
    return {name: FURTHER_MEASURES[name] for name in names}


@dataclass(frozen=True, eq=False)
class FaithfulnessUse:
    """What the core measures of one batch need of a sweep.

    Attributes:
        metric: The metric.
        wanted: What its maps need.
    """

    metric: Faithfulness
    wanted: CoreRequests

    @property
    def requests(self) -> list[Request]:
        """The requests."""
        return list(self.wanted.asked.values())

    @property
    def captures(self) -> tuple[CaptureRequest, ...]:
        """Nothing is read inside the model."""
        return ()

    def explained(self, swept: SweepResult) -> BatchExplanation:
        """Compute the measures of the batch from a sweep that holds the requests."""
        found = self.wanted.read(swept)
        steps = self.metric.core.steps
        deletion, count = found.curves.mean_curve(found.curves.morf, steps)
        insertion, _ = found.curves.mean_curve(found.curves.lerf, steps)
        score = self.wanted.asked["curves"].score
        totals = {"deletion_sum": deletion, "insertion_sum": insertion, "curve_count": count}
        for name in self.metric.road:
            assert found.road is not None
            sums = found.road.mean_curve(getattr(found.road, ROAD[name]), steps)
            totals[f"{name}_sum"], totals[f"{name}_count"] = sums
        about = (swept.target[score], swept.prediction[score], found.nonfinite, swept.classes[score])
        return BatchExplanation(
            {name: {**found.values, **found.further}[name] for name in self.metric.measures},
            *about,
            kept={"gap": found.gap, "change": found.change, "blank": found.blank},
            totals=totals,
            score=swept.clean[score],
            is_value=isinstance(score, RawOutput),
            made=swept.made,
        )
