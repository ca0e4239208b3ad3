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

from lightning_xai._checks import as_integer, check_inputs, unknown
from lightning_xai._guard import detach_for_autograd, forward_context, isolated_eval
from lightning_xai.perturbation.capture import Capture, CaptureResult, Looks, Watch, attended
from lightning_xai.perturbation.kinds.base import COMBINATIONS, Keys, Perturbation, as_perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.regions import BoundRegions, Regions
from lightning_xai.scores import BoundScore, Score, Target, as_score, as_target

ENGINES = ("auto", "dense")

Features = tuple[int, ...]
Partner = int | tuple[int, ...] | str | None

# A sweep that captures makes its clean pass as large as a chunk: with this many chunks that costs little.
_CHUNKS_PER_CLEAN_PASS = 16


@dataclass(frozen=True)
class Request:
    """What one quantity needs: a perturbation, a score, and which features are perturbed together.

    Args:
        perturbation: R.
        score: s.
        partner: None for every feature alone; ``"all"`` for every pair; an anchor (or one per sample) for every
            feature together with it.
    """

    perturbation: Perturbation
    score: Score
    partner: Partner = None

    @classmethod
    def of(cls, perturbation: str | Perturbation, score: str | Score, partner: Partner = None) -> Request:
        """A request by names: ``Request.of("blur", "margin")``."""
        return cls(as_perturbation(perturbation), as_score(score), partner)


@dataclass(frozen=True)
class CaptureRequest:
    """What is read inside the model while every feature is perturbed alone.

    Args:
        perturbation: R.
        capture: What is read.
    """

    perturbation: Perturbation
    capture: Capture


@dataclass(frozen=True)
class SweepResult:
    r"""What a sweep found.

    Attributes:
        regions: The regions, bound to the inputs.
        clean: s(x) [N] of each score.
        target: The explained class [N] of each score.
        prediction: The predicted class [N] of each score.
        classes: The number of classes of each score.
        arms: The scores of the perturbed inputs of each request: [A, N, J]; the pairs i < j row by row, [A, N, P], for
            the partner ``"all"``. NaN where a perturbed cell or the score is not finite, for a feature that a sample
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
    """How a sweep is made.

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
        if self.engine not in ENGINES:
            raise ValueError(unknown("engine", self.engine, ENGINES))
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
        partners = {r: _partner(r.partner, bound.count, inputs.shape[0]) for r in requests}
        network = Network(model, inputs, plan.chunk_size, [request.capture for request in captures])
        blocks: list[_Block] = []
        start = 0
        while start < inputs.shape[0]:
            rows = slice(start, min(start + network.limit, inputs.shape[0]))
            samples = _Samples(inputs[rows], bound.rows(rows), ids[rows], network)
            wanted = target[rows] if isinstance(target, Tensor) else target
            chosen = {r: partner[rows] if isinstance(partner, Tensor) else partner for r, partner in partners.items()}
            try:
                blocks.append(samples.answer(wanted, chosen, captures))
            except RuntimeError as error:
                if not _out_of_memory(error) or network.limit == 1:
                    raise
            else:
                start = rows.stop
                network.reported = 0
                continue
            network.shrink()
    return _joined(blocks, bound)


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
            _partner(request.partner, bound.count, len(inputs))
            if not request.perturbation.windowed:
                request.perturbation.arms(first.unsqueeze(1) if first.ndim == 2 else first)
            request.score.bind(output, target[:1] if isinstance(target, Tensor) else target, 1)(output)


def evaluations(requests: Iterable[Request], count: int) -> int:
    """How many perturbed inputs the requests need per sample over ``count`` features, each counted once."""
    sizes: dict[Partner, int] = {None: count, "all": count * (count - 1) // 2}
    needed = {(request.perturbation, request.partner) for request in requests}
    return sum(kind.arm_count * sizes.get(partner, count - 1) for kind, partner in needed)


@dataclass(frozen=True)
class _Block:
    """What was found for some samples."""

    readers: dict[Score, BoundScore]
    clean: dict[Score, Tensor]
    arms: dict[Request, Tensor]
    captured: dict[CaptureRequest, CaptureResult]


@dataclass(frozen=True)
class _Samples:
    """Samples that are swept together: at most as many as the network takes at once."""

    inputs: Tensor
    regions: BoundRegions
    ids: tuple[int, ...]
    network: Network

    def answer(
        self, target: Target, requests: dict[Request, _Chosen], captures: Sequence[CaptureRequest] = ()
    ) -> _Block:
        """The clean scores, the arms [A, n, F] of every request, and what was captured."""
        sets, samples = self._sets() if captures else 1, len(self.ids)
        watches = self.network.watches.values()
        for watch in watches:
            watch.start()
        with attended(watches):
            output = self.network(self.inputs.repeat(sets, *[1] * (self.inputs.ndim - 1)), watches)
        for watch in watches:
            watch.clean(samples)
        wanted = target.repeat(sets) if isinstance(target, Tensor) else target
        readers = {r.score: r.score.bind(output, wanted, sets * samples) for r in requests}
        clean = {score: _numbers(reader(output))[:samples] for score, reader in readers.items()}
        if sets > 1:
            rows = torch.arange(samples, device=self.inputs.device)
            readers = {score: reader.at(rows) for score, reader in readers.items()}
        del output
        found: dict[Request, Tensor] = {}
        captured: dict[CaptureRequest, CaptureResult] = {}
        groups = [(r.perturbation, r.partner) for r in requests] + [(c.perturbation, None) for c in captures]
        for kind, partner in dict.fromkeys(groups):
            same = [r for r in requests if (r.perturbation, r.partner) == (kind, partner)]
            looks = [c for c in captures if c.perturbation == kind] if partner is None else []
            bound = [readers[r.score] for r in same]
            if looks:
                arms, kept = self._watched(kind, bound, [self.network.watches[c.capture] for c in looks], sets)
                captured.update(zip(looks, kept, strict=True))
            else:
                arms = self._together(kind, requests[same[0]], bound)
            found.update(zip(same, arms, strict=True))
        return _Block(readers, clean, found, captured)

    def _sets(self) -> int:
        """How many features a chunk of a sweep that captures holds, as many in every chunk."""
        count = self.regions.count
        most = min(max(1, self.network.limit // len(self.ids)), max(1, count // _CHUNKS_PER_CLEAN_PASS))
        return -(-count // -(-count // most))

    def _together(self, kind: Perturbation, partner: _Chosen, readers: list[BoundScore]) -> Tensor:
        """The arms [readers, A, n, F] of one perturbation, by every reader."""
        count = self.regions.count
        if partner is None:
            return self._score(kind, [(feature,) for feature in range(count)], readers)
        if isinstance(partner, str):
            return self._score(kind, list(itertools.combinations(range(count), 2)), readers)
        found: Tensor | None = None
        for anchor in sorted(set(partner.tolist())):
            rows = (partner == anchor).nonzero().flatten()
            others = [feature for feature in range(count) if feature != anchor]
            picked = _Samples(
                self.inputs[rows], self.regions.rows(rows), tuple(self.ids[row] for row in rows), self.network
            )
            arms = picked._score(kind, [(anchor, other) for other in others], [reader.at(rows) for reader in readers])
            if found is None:
                found = arms.new_full((*arms.shape[:2], len(self.ids), count), float("nan"))
            found[:, :, rows.unsqueeze(1), torch.tensor(others, dtype=torch.long, device=rows.device)] = arms
        assert found is not None
        return found

    def _watched(
        self, kind: Perturbation, readers: list[BoundScore], watches: list[Watch], sets: int
    ) -> tuple[Tensor, list[CaptureResult]]:
        """The arms [readers, A, n, J] of the single features, and what was captured on the way."""
        looks = Looks(watches, sets)
        with attended(watches):
            arms = self._score(kind, [(feature,) for feature in range(self.regions.count)], readers, looks)
        return arms, looks.captured()

    def _score(
        self, kind: Perturbation, features: list[Features], readers: list[BoundScore], looks: Looks | None = None
    ) -> Tensor:
        """The scores [readers, A, n, F] of sets of features, in chunks of whole sets."""
        samples = len(self.ids)
        values = self.inputs.unsqueeze(1) if self.inputs.ndim == 2 else self.inputs
        copies = [None] if kind.windowed else list(kind.arms(values, Keys(self.ids)))
        suspect = any(copy is None or not bool(copy.isfinite().all()) for copy in copies)
        sets = looks.sets if looks else self.network.sets(samples)
        repeated: dict[int, list[BoundScore]] = {1: readers}
        scores = [values.new_empty(len(readers), len(copies), samples, 0)]
        block = self.network.block(self.inputs, sets)
        for first in range(0, len(features), block):
            some = features[first : first + block]
            # What captures compares rows of batches of one size, so the last pass is filled up with clean inputs.
            size = -(-len(some) // sets) * sets if looks else len(some)
            if size not in repeated:
                rows = torch.arange(samples, device=values.device).repeat(size)
                repeated[size] = [reader.at(rows) for reader in readers]
            batch = values.new_empty(len(copies), size, *values.shape).copy_(values)
            for copy, arm in zip(copies, batch, strict=True):
                for perturbed, together in zip(arm, some, strict=False):
                    for feature in sorted(together, reverse=True):
                        if copy is None:
                            self._write_window(perturbed, values, kind, feature)
                        else:
                            self.regions.write(perturbed, copy, feature)
            if looks:
                looks.note_change(batch[:, : len(some)], values)
            scores.append(self._read(batch, some, repeated[size], suspect, looks))
        found = _numbers(torch.cat(scores, 3))
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
        readers: list[BoundScore],
        suspect: bool,
        looks: Looks | None,
    ) -> Tensor:
        """The scores [readers, A, n, F] of perturbed inputs [A, F, n, C, *S]; NaN where a cell is not finite."""
        arms, size, samples = batch.shape[:3]
        flat = batch.view(arms, size * samples, *self.inputs.shape[1:])
        broken = None
        if suspect:
            broken = ~flat.isfinite().flatten(2).all(2)
            flat.masked_fill_(broken.view(*broken.shape, *[1] * (flat.ndim - 2)), 0.0)
        columns: list[list[tuple[Tensor, ...]]] = [[] for _ in range(arms)]
        sets, watches = (looks.sets, looks.watches) if looks else (self.network.sets(samples), [])
        for first in range(0, size, sets):
            some, rows = features[first : first + sets], slice(first * samples, (first + sets) * samples)
            for arm in range(arms):
                inputs = flat[arm, rows]
                output = self.network(inputs, watches)
                for watch in watches:
                    watch.passed(None if broken is None else broken[arm, rows])
                columns[arm].append(tuple(reader.columns(output, len(inputs)) for reader in readers))
                self.network.report(len(some) * samples)
            if looks:
                looks.end_pass([together[0] for together in some])
        if not readers:
            return batch.new_empty(0, arms, samples, len(features))
        scores = torch.stack(
            [
                torch.stack([reader.read(torch.cat([parts[number] for parts in arm])) for arm in columns])
                for number, reader in enumerate(readers)
            ]
        )
        if broken is not None:
            scores = scores.masked_fill(broken, float("nan"))
        return scores.view(len(readers), arms, size, samples)[:, :, : len(features)].transpose(2, 3)


def _numbers(scores: Tensor) -> Tensor:
    """The scores, NaN where they are not finite."""
    return torch.where(scores.isfinite(), scores, float("nan"))


_Chosen = Tensor | str | None


def _partner(partner: Partner, count: int, samples: int) -> _Chosen:
    """The partner with an anchor spread over the samples."""
    if partner is None or partner == "all":
        return partner
    anchors = torch.tensor(partner)
    if anchors.ndim == 0:
        anchors = anchors.expand(samples)
    if anchors.shape != (samples,):
        raise ValueError(f"anchor must be one feature or one per sample, got {anchors.numel()} for {samples} samples.")
    if int(anchors.min()) < 0 or int(anchors.max()) >= count:
        raise ValueError(
            f"anchor {sorted(set(anchors.tolist()))} is out of range: there are {count} features, 0 to {count - 1}."
        )
    return anchors


def _joined(blocks: Sequence[_Block], bound: BoundRegions) -> SweepResult:
    first = blocks[0]
    return SweepResult(
        regions=bound,
        clean={score: torch.cat([block.clean[score] for block in blocks]) for score in first.clean},
        target={score: torch.cat([block.readers[score].target for block in blocks]) for score in first.readers},
        prediction={score: torch.cat([block.readers[score].prediction for block in blocks]) for score in first.readers},
        classes={score: reader.classes for score, reader in first.readers.items()},
        arms={request: torch.cat([block.arms[request] for block in blocks], 1) for request in first.arms},
        captured={
            request: CaptureResult.joined([block.captured[request] for block in blocks]) for request in first.captured
        },
    )


def _out_of_memory(error: RuntimeError) -> bool:
    words = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
