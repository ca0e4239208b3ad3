r"""The sweep over the features: the scores of :math:`R_j x` for every feature, block by block.

Everything of chapter 1 asks for a :class:`Request`; requests that need the same perturbed inputs share their forward
passes. How perturbed inputs get their scores is up to an :class:`~lightning_xai.perturbation.engine.Engine`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs, check_known
from lightning_xai._guard import detach_for_autograd, forward_context, isolated_eval
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.inputs.reading import reading
from lightning_xai.perturbation.capture import Capture, CaptureBuffer, CaptureResult, active
from lightning_xai.perturbation.dense import Dense
from lightning_xai.perturbation.engine import Engine, Features, Samples
from lightning_xai.perturbation.incremental.engine import Incremental
from lightning_xai.perturbation.kinds.base import COMBINATIONS, Perturbation, as_perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.perturbation.pairing import Pairing, SamplePairing, count_of, of_rows, per_sample
from lightning_xai.perturbation.sets import CellMasks, FeatureSets, SampleRows
from lightning_xai.present import bind_present
from lightning_xai.regions import BoundRegions, Regions
from lightning_xai.rows import check_alone
from lightning_xai.scores import BoundScore, Score, ScoreLike, Target, as_score, as_target
from lightning_xai.scores.target import target_at

ENGINES = ("auto", "dense", "incremental")

# A sweep that captures makes its clean pass as large as a perturbed one: with this many of these that costs little.
_PASSES_PER_CLEAN_PASS = 16


@dataclass(frozen=True)
class Request:
    """The request of one quantity: a perturbation, a score, and the features that are perturbed together.

    Args:
        perturbation: R.
        score: s.
        pairing: None for every feature alone; ``"all"`` for every pair; an anchor (or one per sample) for every
            feature together with it; sets of features of every sample's own, or a mask over its cells.
    """

    perturbation: Perturbation
    score: Score
    pairing: Pairing = None

    @classmethod
    def of(cls, perturbation: str | Perturbation, score: ScoreLike, pairing: Pairing = None) -> Request:
        """A request by names: ``Request.of("blur", "margin")``."""
        return cls(as_perturbation(perturbation), as_score(score), pairing)


@dataclass(frozen=True)
class CaptureRequest:
    """A request to read something inside the model while every feature is perturbed alone.

    Args:
        perturbation: R.
        capture: What is read.
    """

    perturbation: Perturbation
    capture: Capture


@dataclass(frozen=True)
class SweepResult:
    r"""The results of a sweep.

    Attributes:
        regions: The regions, bound to the inputs.
        clean: s(x) [N] of each score.
        target: The explained class [N] of each score.
        prediction: The predicted class [N] of each score.
        classes: The number of classes of each score.
        arms: The scores of the perturbed inputs of each request: [A, N, J]; the pairs i < j row by row, [A, N, P], for
            the pairing ``"all"``; [A, M] for sets of features, [A, N] for masks.
            NaN where a perturbed cell or the score is not finite, for a feature that a sample
            does not have, and for an anchor with itself.
        captured: What each capture kept.
        engine: The engine that made the passes, ``"dense"`` or ``"incremental"``.
        share: The share of the multiplications of whole passes of all perturbed inputs that was made, by an estimate.
    """

    regions: BoundRegions
    clean: dict[Score, Tensor]
    target: dict[Score, Tensor]
    prediction: dict[Score, Tensor]
    classes: dict[Score, int]
    arms: dict[Request, Tensor]
    captured: dict[CaptureRequest, CaptureResult] = field(default_factory=dict)
    engine: str = "dense"
    share: float = 1.0

    @property
    def made(self) -> dict[str, Any]:
        """The engine and the share, by which it was made."""
        return {"engine": self.engine, "share": self.share}

    def local(self, request: Request) -> Tensor:
        r"""Local importance :math:`s(x) - s(R x)`, [N, J] or [N, P], the arms combined as the perturbation says."""
        clean = self.clean[request.score].unsqueeze(1)
        return COMBINATIONS[request.perturbation.combine](clean, self.arms[request])


@dataclass(frozen=True)
class Plan:
    """The regions, the chunk size and the engine of a sweep.

    Args:
        regions: The features.
        chunk_size: The most inputs per forward pass; found from the size of the activations unless given. It is
            halved when memory runs out.
        engine: ``"dense"``, every perturbed input goes through the whole network; ``"incremental"``, only what a
            feature can reach is computed again, as far as that can be; ``"auto"`` estimates which is faster.
    """

    regions: Regions
    chunk_size: int | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_known("engine", self.engine, ENGINES)
        if self.chunk_size is not None:
            as_integer("chunk_size", self.chunk_size, least=1)


def sweep(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    requests: Sequence[Request],
    plan: Plan,
    sample_ids: Tensor | Sequence[int] | None = None,
    captures: Sequence[CaptureRequest] = (),
) -> SweepResult:
    """Score the perturbed inputs of all requests; an input that several need is scored once.

    Args:
        model: The network; called in eval mode, restored afterwards.
        inputs: Inputs [N, C, *S] with one to three spatial axes, or a table [N, F]; or
            :class:`~lightning_xai.inputs.Inputs`.
        target: Class indices [N], one index for all, or ``"predicted"``.
        requests: What is asked for.
        plan: The features, and how to go about it.
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        captures: What is to be read inside the model in the same passes.

    Raises:
        ValueError: If the inputs, the target or the regions do not fit each other or the model.
    """
    model, values = bind(model, inputs)
    ids = check_inputs(values, sample_ids)
    model = reading(model, values, [request.score for request in requests])
    target = as_target(target, len(ids))
    with isolated_eval(model):
        values = detach_for_autograd(values)
        bound = bind_present(plan.regions, model, values)
        pairings = {r: per_sample(r.pairing, bound.count, len(values)) for r in requests}
        network = Network(model, values, plan.chunk_size, [request.capture for request in captures])
        copies = max(bound.count, evaluations(requests, bound.count))
        engine: Engine = Dense(network)
        by_feature = [r for r in requests if not isinstance(r.pairing, FeatureSets | CellMasks)]
        if plan.engine != "dense" and (by_feature or captures):
            count = len(values) * max(bound.count, evaluations(by_feature, bound.count))
            forced = plan.engine == "incremental"
            engine = Incremental(network, count, forced=forced, scored=bool(by_feature))

        def run(rows: slice) -> _Block:
            network.start()
            own = values[rows]
            places = torch.arange(len(own), device=own.device)
            samples = Samples(own, bound.rows(rows), ids[rows], places, at_rows(model, rows))
            wanted = target_at(target, rows)
            chosen = {r: of_rows(pairing, rows) for r, pairing in pairings.items()}
            block = _Sweep(samples, engine, rows.start == 0).run(wanted, chosen, captures)
            network.finish()
            return block

        blocks = network.batches.map(run, len(values), copies=copies)
    alone, every = evaluations(by_feature, bound.count), evaluations(requests, bound.count)
    share = engine.share if alone == every else (alone * engine.share + (every - alone) * network.share) / every
    return _cat(blocks, bound, engine, share)


def check_sweep(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    requests: Sequence[Request],
    plan: Plan,
    captures: Sequence[CaptureRequest] = (),
) -> int:
    """Raise what a sweep of these samples would refuse, at the cost of one forward pass of the first one.

    Returns:
        The number of classes; 0 if it is not known.
    """
    model, values = bind(model, inputs)
    check_inputs(values)
    model = reading(model, values, [request.score for request in requests])
    target = as_target(target, len(values))
    with isolated_eval(model):
        values = detach_for_autograd(values)
        bound = plan.regions.bind(values)
        first, model = values[:1], at_rows(model, slice(1))
        for asked in captures:
            asked.capture.watch(model, first.clone())
        with forward_context():
            output = model(first.clone())
        for request in requests:
            per_sample(request.pairing, bound.count, len(values))
            if not request.perturbation.windowed:
                request.perturbation.arms(first.unsqueeze(1) if first.ndim == 2 else first)
            wanted = target_at(target, slice(1))
            bound_score = request.score.bind(output, wanted, 1, of=(model, first))
            bound_score(output)
        return bound_score.classes


def evaluations(requests: Iterable[Request], count: int) -> int:
    """Count the perturbed inputs that the requests need per sample over ``count`` features, each once."""
    needed = {(request.perturbation, request.pairing) for request in requests}
    return sum(kind.arm_count * count_of(pairing, count) for kind, pairing in needed)


@dataclass(frozen=True)
class _Block:
    """The results of some samples."""

    bound_scores: dict[Score, BoundScore]
    clean: dict[Score, Tensor]
    arms: dict[Request, Tensor]
    captured: dict[CaptureRequest, CaptureResult]


@dataclass(frozen=True)
class _Sweep:
    """The sweep of the samples of one block: its clean pass, and the scores of every pairing by an engine."""

    samples: Samples
    engine: Engine
    first: bool

    def run(
        self, target: Target, requests: dict[Request, SamplePairing], captures: Sequence[CaptureRequest] = ()
    ) -> _Block:
        """Return the clean scores, the arms [A, n, F] of every request, and the results of the captures."""
        network, samples = self.engine.network, len(self.samples.ids)
        per_pass = self._features_per_pass() if captures else 1
        watches = network.watches.values()
        for watch in watches:
            watch.start()
        # The clean inputs are repeated to the size of a perturbed pass: batches of another size are rounded otherwise.
        with active(watches):
            output, copies = self.engine.clean(self.samples, per_pass, watches)
        for watch in watches:
            watch.on_clean(samples, self.samples.model, self.samples.inputs)
        repeated = torch.arange(samples).repeat(copies)
        wanted, model = target_at(target, repeated), at_rows(self.samples.model, repeated)
        of = (model, self.samples.inputs)
        scores = {r.score: r.score.bind(output, wanted, copies * samples, of=of) for r in requests}
        clean = {score: _nan_unless_finite(bound(output))[:samples] for score, bound in scores.items()}
        if self.first and network.batches.limit > 1:
            # Only what is scored: a matrix of samples by samples may stand beside it.
            read = list(dict.fromkeys(request.score for request in requests))
            alone = network.batches.alone
            check_alone(self.samples.model, self.samples.inputs, output, copies * samples, alone, read)
        if copies > 1:
            scores = {score: bound.at(self.samples.rows) for score, bound in scores.items()}
        del output
        found: dict[Request, Tensor] = {}
        captured: dict[CaptureRequest, CaptureResult] = {}
        by_row = [r for r in requests if isinstance(r.pairing, FeatureSets | CellMasks)]
        groups = [(r.perturbation, r.pairing) for r in requests if r not in by_row] + [
            (c.perturbation, None) for c in captures
        ]
        for kind, pairing in dict.fromkeys(groups):
            same = [r for r in requests if (r.perturbation, r.pairing) == (kind, pairing)]
            wanting = [c for c in captures if c.perturbation == kind] if pairing is None else []
            bound_scores = [scores[r.score] for r in same]
            buffer = CaptureBuffer([network.watches[c.capture] for c in wanting], per_pass) if wanting else None
            with active(buffer.watches if buffer else ()):
                arms = self._paired_scores(kind, requests[same[0]] if same else None, bound_scores, buffer)
            found.update(zip(same, arms, strict=True))
            if buffer:
                captured.update(zip(wanting, buffer.results(), strict=True))
        for kind in dict.fromkeys(request.perturbation for request in by_row):
            same = [request for request in by_row if request.perturbation == kind]
            asked = [(requests[request], request.score) for request in same]
            alone = {r.score: arms for r, arms in found.items() if r.perturbation == kind and r.pairing is None}
            own = SampleRows(self.samples, self.engine.network, scores, clean, alone)
            found.update(zip(same, own.scores(kind, asked), strict=True))
        return _Block(scores, clean, found, captured)

    def _features_per_pass(self) -> int:
        """The number of features in every pass of a sweep that captures."""
        count = self.samples.regions.count
        most = min(
            self.engine.network.features_per_pass(len(self.samples.ids)), max(1, count // _PASSES_PER_CLEAN_PASS)
        )
        return -(-count // -(-count // most))

    def _paired_scores(
        self, kind: Perturbation, pairing: SamplePairing, bound_scores: list[BoundScore], buffer: CaptureBuffer | None
    ) -> Tensor:
        """The arms [scores, A, n, F] of the features of a pairing."""
        count = self.samples.regions.count
        if not isinstance(pairing, Tensor):
            together = itertools.combinations(range(count), 1 if pairing is None else 2)
            return self._scores(self.samples, kind, list(together), bound_scores, buffer)
        found: Tensor | None = None
        for anchor in sorted(set(pairing.tolist())):
            rows = (pairing == anchor).nonzero().flatten()
            others = [feature for feature in range(count) if feature != anchor]
            pairs: list[Features] = [(anchor, other) for other in others]
            arms = self._scores(self.samples.at(rows), kind, pairs, [bound.at(rows) for bound in bound_scores], None)
            if found is None:
                found = arms.new_full((*arms.shape[:2], len(pairing), count), float("nan"))
            found[:, :, rows.unsqueeze(1), torch.tensor(others, dtype=torch.long, device=rows.device)] = arms
        assert found is not None
        return found

    def _scores(
        self,
        samples: Samples,
        kind: Perturbation,
        features: list[Features],
        bound_scores: list[BoundScore],
        buffer: CaptureBuffer | None,
    ) -> Tensor:
        """The scores [scores, A, n, F] of an engine; NaN where one is not finite or a sample lacks the feature."""
        found = _nan_unless_finite(self.engine.scores(samples, kind, features, bound_scores, buffer))
        present = samples.regions.present()
        if present is not None and features:
            index = torch.tensor(features, device=present.device)
            found = torch.where(present[:, index].all(2), found, float("nan"))
        return found


def _nan_unless_finite(scores: Tensor) -> Tensor:
    return torch.where(scores.isfinite(), scores, float("nan"))


def _cat(blocks: Sequence[_Block], bound: BoundRegions, engine: Engine, share: float) -> SweepResult:
    first, scores = blocks[0], blocks[0].bound_scores
    return SweepResult(
        regions=bound,
        clean={score: torch.cat([block.clean[score] for block in blocks]) for score in scores},
        target={score: torch.cat([block.bound_scores[score].target for block in blocks]) for score in scores},
        prediction={score: torch.cat([block.bound_scores[score].prediction for block in blocks]) for score in scores},
        classes={score: found.classes for score, found in scores.items()},
        arms={request: torch.cat([block.arms[request] for block in blocks], 1) for request in first.arms},
        captured={c: CaptureResult.cat([block.captured[c] for block in blocks]) for c in first.captured},
        engine=engine.name,
        share=share,
    )
