r"""The one perturb-and-forward loop: the scores of :math:`R_j x` for every feature, in chunks.

Everything of chapter 1 asks for a :class:`Request`; requests that need the same perturbed inputs share their forward
passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs, check_known
from lightning_xai._guard import detach_for_autograd, forward_context, isolated_eval
from lightning_xai.perturbation.capture import Capture, CaptureBuffer, CaptureResult, Watch, active
from lightning_xai.perturbation.kinds.base import COMBINATIONS, Keys, Perturbation, as_perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.regions import BoundRegions, Regions
from lightning_xai.scores import BoundScore, Score, ScoreLike, Target, as_score, as_target

ENGINES = ("auto", "dense")

Features = tuple[int, ...]
Pairing = int | tuple[int, ...] | str | None

# A sweep that captures makes its clean pass as large as a perturbed one: with this many of these that costs little.
_PASSES_PER_CLEAN_PASS = 16


@dataclass(frozen=True)
class Request:
    """The request of one quantity: a perturbation, a score, and the features that are perturbed together.

    Args:
        perturbation: R.
        score: s.
        pairing: None for every feature alone; ``"all"`` for every pair; an anchor (or one per sample) for every
            feature together with it.
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
            the pairing ``"all"``. NaN where a perturbed cell or the score is not finite, for a feature that a sample
            does not have, and for an anchor with itself.
        captured: What each capture kept.
    """

    regions: BoundRegions
    clean: dict[Score, Tensor]
    target: dict[Score, Tensor]
    prediction: dict[Score, Tensor]
    classes: dict[Score, int]
    arms: dict[Request, Tensor]
    captured: dict[CaptureRequest, CaptureResult] = field(default_factory=dict)

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
        engine: ``"dense"``, every perturbed input goes through the whole network; ``"auto"`` chooses.
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
    inputs: Tensor,
    target: Target,
    requests: Sequence[Request],
    plan: Plan,
    sample_ids: Tensor | Sequence[int] | None = None,
    captures: Sequence[CaptureRequest] = (),
) -> SweepResult:
    """Score the perturbed inputs of all requests; an input that several need is scored once.

    Args:
        model: The network; called in eval mode, restored afterwards.
        inputs: Inputs [N, C, *S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``.
        requests: What is asked for.
        plan: The features, and how to go about it.
        sample_ids: The samples' ids [N], which key the draws of random perturbations; 0..N-1 unless given.
        captures: What is to be read inside the model in the same passes.

    Raises:
        ValueError: If the inputs, the target or the regions do not fit each other or the model.
    """
    ids = check_inputs(inputs, sample_ids)
    target = as_target(target, len(ids))
    with isolated_eval(model):
        inputs = detach_for_autograd(inputs)
        bound = plan.regions.bind(inputs)
        pairings = {r: _per_sample(r.pairing, bound.count, len(inputs)) for r in requests}
        network = Network(model, inputs, plan.chunk_size, [request.capture for request in captures])

        def run(rows: slice) -> _Block:
            network.start()
            samples = _Samples(inputs[rows], bound.rows(rows), ids[rows], network)
            wanted = target[rows] if isinstance(target, Tensor) else target
            chosen = {r: pairing[rows] if isinstance(pairing, Tensor) else pairing for r, pairing in pairings.items()}
            block = samples.run(wanted, chosen, captures)
            network.finish()
            return block

        copies = max(bound.count, evaluations(requests, bound.count))
        blocks = network.batches.map(run, len(inputs), copies=copies)
    return _cat(blocks, bound)


def check_sweep(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    requests: Sequence[Request],
    plan: Plan,
    captures: Sequence[CaptureRequest] = (),
) -> None:
    """Raise what a sweep of these samples would refuse, at the cost of one forward pass of the first one."""
    check_inputs(inputs)
    target = as_target(target, len(inputs))
    with isolated_eval(model):
        inputs = detach_for_autograd(inputs)
        bound = plan.regions.bind(inputs)
        first = inputs[:1]
        for wanted in captures:
            wanted.capture.watch(model, first.clone())
        with forward_context():
            output = model(first.clone())
        for request in requests:
            _per_sample(request.pairing, bound.count, len(inputs))
            if not request.perturbation.windowed:
                request.perturbation.arms(first.unsqueeze(1) if first.ndim == 2 else first)
            request.score.bind(output, target[:1] if isinstance(target, Tensor) else target, 1)(output)


def evaluations(requests: Iterable[Request], count: int) -> int:
    """Count the perturbed inputs that the requests need per sample over ``count`` features, each once."""
    sizes: dict[Pairing, int] = {None: count, "all": count * (count - 1) // 2}
    needed = {(request.perturbation, request.pairing) for request in requests}
    return sum(kind.arm_count * sizes.get(pairing, count - 1) for kind, pairing in needed)


@dataclass(frozen=True)
class _Block:
    """The results of some samples."""

    bound_scores: dict[Score, BoundScore]
    clean: dict[Score, Tensor]
    arms: dict[Request, Tensor]
    captured: dict[CaptureRequest, CaptureResult]


@dataclass(frozen=True)
class _Samples:
    """Samples that are swept together: at most as many as go into one pass."""

    inputs: Tensor
    regions: BoundRegions
    ids: tuple[int, ...]
    network: Network

    def run(
        self, target: Target, requests: dict[Request, _SamplePairing], captures: Sequence[CaptureRequest] = ()
    ) -> _Block:
        """Return the clean scores, the arms [A, n, F] of every request, and the results of the captures."""
        per_pass, samples = self._features_per_pass() if captures else 1, len(self.ids)
        watches = self.network.watches.values()
        for watch in watches:
            watch.start()
        # The clean inputs are repeated to the size of a perturbed pass: batches of another size are rounded otherwise.
        with active(watches):
            output = self.network(self.inputs.repeat(per_pass, *[1] * (self.inputs.ndim - 1)), watches)
        for watch in watches:
            watch.on_clean(samples)
        wanted = target.repeat(per_pass) if isinstance(target, Tensor) else target
        scores = {r.score: r.score.bind(output, wanted, per_pass * samples) for r in requests}
        clean = {score: _nan_unless_finite(bound(output))[:samples] for score, bound in scores.items()}
        if per_pass > 1:
            rows = torch.arange(samples, device=self.inputs.device)
            scores = {score: bound.at(rows) for score, bound in scores.items()}
        del output
        found: dict[Request, Tensor] = {}
        captured: dict[CaptureRequest, CaptureResult] = {}
        groups = [(r.perturbation, r.pairing) for r in requests] + [(c.perturbation, None) for c in captures]
        for kind, pairing in dict.fromkeys(groups):
            same = [r for r in requests if (r.perturbation, r.pairing) == (kind, pairing)]
            wanting = [c for c in captures if c.perturbation == kind] if pairing is None else []
            bound_scores = [scores[r.score] for r in same]
            buffer = CaptureBuffer([self.network.watches[c.capture] for c in wanting], per_pass) if wanting else None
            with active(buffer.watches if buffer else ()):
                arms = self._paired_scores(kind, requests[same[0]] if same else None, bound_scores, buffer)
            found.update(zip(same, arms, strict=True))
            if buffer:
                captured.update(zip(wanting, buffer.results(), strict=True))
        return _Block(scores, clean, found, captured)

    def _features_per_pass(self) -> int:
        """The number of features in every pass of a sweep that captures."""
        count = self.regions.count
        most = min(self.network.features_per_pass(len(self.ids)), max(1, count // _PASSES_PER_CLEAN_PASS))
        return -(-count // -(-count // most))

    def _paired_scores(
        self, kind: Perturbation, pairing: _SamplePairing, bound_scores: list[BoundScore], buffer: CaptureBuffer | None
    ) -> Tensor:
        """The arms [scores, A, n, F] of the features of a pairing."""
        count = self.regions.count
        if not isinstance(pairing, Tensor):
            together = itertools.combinations(range(count), 1 if pairing is None else 2)
            return self._scores(kind, list(together), bound_scores, buffer)
        found: Tensor | None = None
        for anchor in sorted(set(pairing.tolist())):
            rows = (pairing == anchor).nonzero().flatten()
            others = [feature for feature in range(count) if feature != anchor]
            ids = tuple(self.ids[row] for row in rows)
            samples = _Samples(self.inputs[rows], self.regions.rows(rows), ids, self.network)
            pairs: list[Features] = [(anchor, other) for other in others]
            arms = samples._scores(kind, pairs, [bound.at(rows) for bound in bound_scores], None)
            if found is None:
                found = arms.new_full((*arms.shape[:2], len(self.ids), count), float("nan"))
            found[:, :, rows.unsqueeze(1), torch.tensor(others, dtype=torch.long, device=rows.device)] = arms
        assert found is not None
        return found

    def _scores(
        self, kind: Perturbation, features: list[Features], bound_scores: list[BoundScore], buffer: CaptureBuffer | None
    ) -> Tensor:
        """The scores [scores, A, n, F] of features that are perturbed together, block by block."""
        samples = len(self.ids)
        values = self.inputs.unsqueeze(1) if self.inputs.ndim == 2 else self.inputs
        copies = [None] if kind.windowed else list(kind.arms(values, Keys(self.ids)))
        suspect = any(copy is None or not bool(copy.isfinite().all()) for copy in copies)
        per_pass = buffer.features_per_pass if buffer else self.network.features_per_pass(samples)
        scores = [values.new_empty(len(bound_scores), len(copies), samples, 0)]
        block = self.network.features_per_block(self.inputs, per_pass)
        for first in range(0, len(features), block):
            some = features[first : first + block]
            # What captures compares rows of batches of one size, so the last pass is filled up with clean inputs.
            size = -(-len(some) // per_pass) * per_pass if buffer else len(some)
            rows = torch.arange(samples, device=values.device).repeat(size)
            batch = values.new_empty(len(copies), size, *values.shape).copy_(values)
            for copy, arm in zip(copies, batch, strict=True):
                for perturbed, together in zip(arm, some, strict=False):
                    for feature in sorted(together, reverse=True):
                        if copy is None:
                            self._write_window(perturbed, values, kind, feature)
                        else:
                            self.regions.write(perturbed, copy, feature)
            if buffer:
                buffer.add_change(batch[:, : len(some)], values)
            scores.append(self._read(batch, some, [b.at(rows) for b in bound_scores], suspect, buffer))
        found = _nan_unless_finite(torch.cat(scores, 3))
        present = self.regions.present()
        if present is not None and features:
            index = torch.tensor(features, device=present.device)
            found = torch.where(present[:, index].all(2), found, float("nan"))
        return found

    def _write_window(self, target: Tensor, values: Tensor, kind: Perturbation, feature: int) -> None:
        for rows, cells in self.regions.cells(values, feature):
            if cells.shape[2]:
                perturbed = kind.arms(cells, Keys(self.ids[rows], feature))
                self.regions.put(target, rows, perturbed[0], feature)

    def _read(
        self,
        batch: Tensor,
        features: list[Features],
        bound_scores: list[BoundScore],
        suspect: bool,
        buffer: CaptureBuffer | None,
    ) -> Tensor:
        """The scores [scores, A, n, F] of perturbed inputs [A, F, n, C, *S]; NaN where a cell is not finite."""
        arms, size, samples = batch.shape[:3]
        flat = batch.view(arms, size * samples, *self.inputs.shape[1:])
        broken = None
        if suspect:
            broken = ~flat.isfinite().flatten(2).all(2)
            flat.masked_fill_(broken.view(*broken.shape, *[1] * (flat.ndim - 2)), 0.0)
        columns: list[list[list[Tensor]]] = [[[] for _ in range(arms)] for _ in bound_scores]
        per_pass = buffer.features_per_pass if buffer else self.network.features_per_pass(samples)
        watches: list[Watch] = buffer.watches if buffer else []
        for first in range(0, size, per_pass):
            some, rows = features[first : first + per_pass], slice(first * samples, (first + per_pass) * samples)
            for arm in range(arms):
                inputs = flat[arm, rows]
                output = self.network(inputs, watches)
                for watch in watches:
                    watch.on_perturbed(None if broken is None else broken[arm, rows])
                for bound, per_arm in zip(bound_scores, columns, strict=True):
                    per_arm[arm].append(bound.columns(output, len(inputs)))
                self.network.report(len(some) * samples)
            if buffer:
                buffer.collect([together[0] for together in some])
        if not bound_scores:
            return batch.new_empty(0, arms, samples, len(features))
        pairs = [(bound, parts) for bound, per_arm in zip(bound_scores, columns, strict=True) for parts in per_arm]
        scores = torch.stack([bound.read(torch.cat(parts)) for bound, parts in pairs]).view(len(columns), arms, -1)
        if broken is not None:
            scores = scores.masked_fill(broken, float("nan"))
        return scores.view(len(bound_scores), arms, size, samples)[:, :, : len(features)].transpose(2, 3)


def _nan_unless_finite(scores: Tensor) -> Tensor:
    return torch.where(scores.isfinite(), scores, float("nan"))


_SamplePairing = Tensor | str | None


def _per_sample(pairing: Pairing, count: int, samples: int) -> _SamplePairing:
    """A pairing, with its anchor spread over the samples."""
    if pairing is None or pairing == "all":
        return pairing
    anchors = torch.tensor(pairing)
    if anchors.ndim == 0:
        anchors = anchors.expand(samples)
    if anchors.shape != (samples,):
        raise ValueError(f"anchor must be one feature or one per sample, got {anchors.numel()} for {samples} samples.")
    if int(anchors.min()) < 0 or int(anchors.max()) >= count:
        raise ValueError(
            f"anchor {sorted(set(anchors.tolist()))} is out of range: there are {count} features, 0 to {count - 1}."
        )
    return anchors


def _cat(blocks: Sequence[_Block], bound: BoundRegions) -> SweepResult:
    first, scores = blocks[0], blocks[0].bound_scores
    return SweepResult(
        regions=bound,
        clean={score: torch.cat([block.clean[score] for block in blocks]) for score in scores},
        target={score: torch.cat([block.bound_scores[score].target for block in blocks]) for score in scores},
        prediction={score: torch.cat([block.bound_scores[score].prediction for block in blocks]) for score in scores},
        classes={score: found.classes for score, found in scores.items()},
        arms={request: torch.cat([block.arms[request] for block in blocks], 1) for request in first.arms},
        captured={c: CaptureResult.cat([block.captured[c] for block in blocks]) for c in first.captured},
    )
