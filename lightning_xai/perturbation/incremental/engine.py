"""The incremental engine: a clean pass is recorded, and of every perturbed input only what its box reaches is made."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_xai._guard import forward_context
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.operations import tensors_in
from lightning_xai.perturbation.capture import CaptureBuffer, Watch
from lightning_xai.perturbation.dense import Dense
from lightning_xai.perturbation.engine import Engine, Features, Samples
from lightning_xai.perturbation.incremental.check import disagreement
from lightning_xai.perturbation.incremental.choice import Choice, pass_rows, worth_planning
from lightning_xai.perturbation.incremental.clean import CleanPass, as_clean_pass, clean_pass, probe, probed
from lightning_xai.perturbation.incremental.geometry import Boxes
from lightning_xai.perturbation.incremental.operations import State
from lightning_xai.perturbation.incremental.patches import boxes_of, by_size, cut_patches
from lightning_xai.perturbation.incremental.plan import Plan, dense_cost, output_values
from lightning_xai.perturbation.incremental.record import NotReplayable, Record, Tap, mapped, refuse
from lightning_xai.perturbation.kinds.base import MaskPerturbation, Perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.scores import BoundScore

_log = logging.getLogger(__name__)
_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
# Why sweeps of a model were dense, so that the next ones like them need not find out again.
_dense: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()

# Pairs share their first feature with others; so many make a pass with that feature perturbed worth while.
_FEWEST_PER_BASE = 4
# Plans are kept for the samples, arms and states to come, as long as their indices take no more memory.
_PLAN_BYTES = 64 * 2**20
_VERDICTS = 256


class Incremental(Engine):
    """Makes what boxes reach, and goes on densely where that cannot be done or does not pay.

    Args:
        network: The model, its watches and the size of its passes.
        evaluations: How many perturbed inputs there will be.
        forced: Whether it is used where it does not pay, too.
        scored: Whether outputs are scored; if not, passes end where something is captured.

    Attributes:
        reason: Why everything is dense; None while it is not.
    """

    def __init__(self, network: Network, evaluations: int, *, forced: bool, scored: bool = True) -> None:
        super().__init__(network)
        self.reason: str | None = None
        self.name = "incremental"
        self._dense = Dense(network)
        self._evaluations, self._forced, self._scored = evaluations, forced, scored
        self._clean: CleanPass | None = None
        self._choice: Choice | None = None
        self._kept: set[int] = set()
        self._plans: dict[Any, Plan] = {}
        self._checked = False
        self._takers: dict[Watch, dict[Tap, Callable[[Tensor], object]]] = {}
        self._places: list[Tap] = []
        try:
            if network.is_table:
                raise NotReplayable("a table has no positions")
            if isinstance(network.model, BoundModel):
                raise NotReplayable("the model has several inputs, or is explained at a layer")
            if not forced and network.device.type != "cpu":
                raise NotReplayable(f"what it gains on {network.device.type} has not been measured")
            refuse(network.model)
            for watch in network.watches.values():
                takers = watch.takers()
                if takers is None:
                    raise NotReplayable(f"{type(watch).__name__} has to see whole passes")
                self._takers[watch] = takers
                self._places += takers
        except NotReplayable as reason:
            self._give_up(str(reason))

    def _give_up(self, reason: str) -> None:
        self.reason, self.name = reason, "dense"
        self._clean, self._plans, self._choice = None, {}, None
        self._say(f"The sweep is dense: {reason}.")

    @property
    def share(self) -> float:
        """The share of the multiplications of whole passes that it makes."""
        return super().share if self._choice is None else self._choice.share

    def _say(self, what: str) -> None:
        """Log something once per model."""
        said = _said.setdefault(self.network.model, set())
        if what not in said:
            said.add(what)
            _log.info(what)

    def clean(self, samples: Samples, copies: int, watches: Collection[Watch]) -> tuple[Any, int]:
        """Record the clean pass, unless everything is dense."""
        self._clean = None
        known = _dense.setdefault(self.network.model, {})
        key = None if self.reason is not None else self._like(samples)
        if self._choice is None and key in known:
            self._give_up(known[key])
        if self.reason is None:
            output, record = None, None
            try:
                if self._choice is None:
                    self._choose(samples)
                output, record = clean_pass(self.network, samples.inputs, self._places, watches, self._kept)
                self._clean = self._started(output, record, samples)
            except NotReplayable as reason:
                if len(known) >= _VERDICTS:
                    known.clear()
                known[key] = str(reason)
                self._give_up(str(reason))
            if record is not None and (self._clean is not None or copies == 1):
                return output, 1
        for watch in watches:
            watch.start()
        return self._dense.clean(samples, copies, watches)

    def _like(self, samples: Samples) -> Any:
        """What sweeps have in common of which one is dense if another is."""
        extents = samples.regions.extents()
        boxes = None if extents is None else extents.numpy().tobytes()
        shape, dtype = tuple(samples.inputs.shape[1:]), samples.inputs.dtype
        return shape, dtype, boxes, self._evaluations, self._forced, self._scored, tuple(self._places)

    def _choose(self, samples: Samples) -> None:
        """Choose what is made and what is kept of clean passes, by passes of a few rows.

        Raises:
            NotReplayable: If everything has to go densely, or dense passes are faster.
        """
        extents = samples.regions.extents()
        if extents is None:
            raise NotReplayable("the features are not known to lie in boxes")
        record = probe(self.network, samples.inputs, self._places, 2)
        outputs, taps = output_values(record), [record.taps[place] for place in self._places]
        dense = dense_cost(record, [*outputs, *taps])
        if not self._forced and not worth_planning(dense, self._evaluations):
            raise NotReplayable("there is too little to be saved")
        trees = probed(self.network, samples.inputs, self._places).trees
        wanted = list(dict.fromkeys([*(outputs if self._scored else []), *taps]))
        first = replace(samples, rows=samples.rows[:1] * 0)
        boxes, rows = boxes_of(extents[:1], [(j,) for j in range(samples.regions.count)], first, record.rows)
        plan = Plan(record, trees, boxes, rows, wanted)
        cost, on_cpu = plan.cost(), samples.inputs.device.type == "cpu"
        most, limit = pass_rows(cost.largest, samples.inputs.element_size(), on_cpu), self.network.batches.limit
        most = most if self.network.batches.estimated else min(most, limit)
        choice = Choice(dense, cost, self._evaluations, limit, most, plan.first_whole)
        if not (self._forced or choice.pays):
            raise NotReplayable(choice.why_not())
        self._choice, self._kept = choice, plan.read_by_any()
        self._say(f"The sweep is incremental: {100 * self.share:.0f} % of the multiplications are left.")

    def _started(self, output: Any, record: Record | NotReplayable, samples: Samples) -> CleanPass | None:
        """The pass to start from; None for samples that go densely.

        Raises:
            NotReplayable: If everything has to go densely.
        """
        clean = as_clean_pass(self.network, samples.inputs, record, self._places)
        # What is not finite would spread by what is read off the record, though a perturbation may replace it.
        finite = all(bool(part.isfinite().all()) for part in (samples.inputs, *tensors_in(output)))
        return clean if finite else None

    def scores(
        self,
        samples: Samples,
        kind: Perturbation,
        features: Sequence[Features],
        bound_scores: Sequence[BoundScore],
        buffer: CaptureBuffer | None,
    ) -> Tensor:
        """Score features; pairs start from a pass in which their first feature is perturbed."""
        arms = samples.arms(kind)
        parts = [samples.values.new_empty(len(bound_scores), len(arms), len(samples.ids), 0)]
        for base, group in itertools.groupby(features, lambda together: together[:-1]):
            some = list(group)
            made = None
            # What fills several features together reaches into the first one, too.
            starts = not base or (len(some) >= _FEWEST_PER_BASE and not isinstance(kind, MaskPerturbation))
            if self._clean is not None and starts:
                if base:
                    made = self._from_base(samples, kind, arms, some, bound_scores)
                else:
                    made = self._from_pass(self._clean, samples, kind, arms, some, bound_scores, buffer)
            if made is None:
                made = self._dense.scores(samples, kind, some, bound_scores, buffer)
            parts.append(made)
        return torch.cat(parts, 3)

    def _from_base(
        self,
        samples: Samples,
        kind: Perturbation,
        arms: Sequence[Tensor | None],
        features: Sequence[Features],
        bound_scores: Sequence[BoundScore],
    ) -> Tensor | None:
        """The scores of pairs that share their first feature, [scores, A, n, F]; None if passes cannot be recorded."""
        found = []
        alone = replace(samples, rows=torch.arange(len(samples.ids)))
        for arm in arms:
            inputs = samples.perturb(kind, [arm], [features[0][:-1]], 1)[0, 0]
            if not bool(inputs.isfinite().all()):
                return None
            try:
                record = clean_pass(self.network, inputs, keep=self._kept)[1]
                clean = as_clean_pass(self.network, inputs, record, self._places)
            except NotReplayable as reason:
                self._give_up(str(reason))
                return None
            made = self._from_pass(clean, alone, kind, [arm], features, bound_scores, None)
            if made is None:
                return None
            found.append(made)
        return torch.cat(found, 1)

    def _from_pass(
        self,
        clean: CleanPass,
        samples: Samples,
        kind: Perturbation,
        arms: Sequence[Tensor | None],
        features: Sequence[Features],
        bound_scores: Sequence[BoundScore],
        buffer: CaptureBuffer | None,
    ) -> Tensor | None:
        """The scores [scores, A, n, F] of inputs that differ from a pass in the last feature of each tuple.

        None if they have turned out to differ from dense ones.
        """
        count, extents = len(samples.ids), samples.regions.extents()
        assert extents is not None
        assert self._choice is not None
        outputs = output_values(clean.record) if bound_scores else []
        takers = [taker for watch in buffer.watches for taker in self._takers[watch].items()] if buffer else []
        taps = [clean.record.taps[place] for place, _ in takers]
        wanted = list(dict.fromkeys([*outputs, *taps]))
        most = (
            self._choice.rows if self.network.batches.estimated else min(self._choice.rows, self.network.batches.limit)
        )
        block = self.network.features_per_block(samples.inputs, 1)
        per_pass = max(1, most // count)
        per_pass = -(-len(features) // -(-len(features) // per_pass))
        # Boxes of one pass have one size; what is captured comes in the order of the features.
        order = list(range(len(features))) if buffer else by_size(extents, features)
        scores = [samples.values.new_empty(len(bound_scores), len(arms), count, 0)]
        for first in range(0, len(features), per_pass):
            some = [features[place] for place in order[first : first + per_pass]]
            plan = self._plan(clean, samples, extents, some, wanted)
            patches, broken = cut_patches(samples, kind, arms, some, plan.boxes, block, buffer)
            index = torch.arange(count, device=patches.device).repeat(len(some))
            bound = [score.at(index) for score in bound_scores]
            columns = []
            for arm, patch in enumerate(patches):
                intact = torch.ones(len(patch), dtype=torch.bool) if broken is None else ~broken[arm]
                perturb = partial(samples.perturb, kind, [arms[arm]], size=1)
                if not self._checked and not self._agrees(clean, samples, plan, perturb, some, patch, intact, wanted):
                    return None
                with forward_context():
                    made = dict(zip(wanted, plan.run(State(clean.record, clean.tables), patch), strict=True))
                for (_, take), tap in zip(takers, taps, strict=True):
                    take(made[tap])
                for watch in buffer.watches if buffer else ():
                    watch.on_perturbed(None if broken is None else broken[arm])
                if bound:
                    output = _filled(clean.record.output, made)
                    columns.append(torch.stack([score(output) for score in bound]))
                self.network.report(len(patch))
            if buffer:
                buffer.collect([together[0] for together in some])
            if bound:
                read = torch.stack(columns, 1)
                if broken is not None:
                    read = read.masked_fill(broken, float("nan"))
                scores.append(read.view(len(bound), len(arms), len(some), count).transpose(2, 3))
            else:
                scores.append(patches.new_empty(0, len(arms), count, len(some)))
        return torch.cat(scores, 3)[..., torch.tensor(order, device=samples.values.device).argsort()]

    def _plan(
        self, clean: CleanPass, samples: Samples, extents: Tensor, features: Sequence[Features], wanted: Sequence[int]
    ) -> Plan:
        """A plan, made before if the boxes are the same for all samples."""
        last = [together[-1:] for together in features]
        key = (tuple(last), tuple(samples.rows.tolist()), clean.record.rows, tuple(wanted))
        if key in self._plans:
            return self._plans[key]
        boxes, rows = boxes_of(extents, last, samples, clean.record.rows)
        plan = Plan(clean.record.skeleton(), clean.trees, boxes, rows, wanted)
        if len(extents) == 1:
            self._plans[key] = plan
            while sum(kept.bytes for kept in self._plans.values()) > _PLAN_BYTES:
                del self._plans[next(iter(self._plans))]
        return plan

    def _agrees(
        self,
        clean: CleanPass,
        samples: Samples,
        plan: Plan,
        perturb: Callable[[Sequence[Features]], Tensor],
        features: Sequence[Features],
        patch: Tensor,
        intact: Tensor,
        wanted: Sequence[int],
    ) -> bool:
        """Check some rows of the first sample against a dense pass; go on densely if they differ."""
        count = len(samples.ids)
        own = (intact[::count].nonzero().flatten() * count).tolist()
        if not own:  # none of them is finite
            return True
        self._checked = True
        rows = sorted({own[0], own[len(own) // 2]})[: self.network.batches.limit]
        positions = torch.tensor(rows) // (len(patch) // plan.boxes.count)
        inputs = torch.cat([perturb([features[row // count]])[0, 0, :1] for row in rows])
        boxes = Boxes(tuple(s[positions] for s in plan.boxes.starts), plan.boxes.sizes, plan.boxes.spatial)
        with forward_context():
            where = disagreement(self.network, clean, int(samples.rows[0]), inputs, patch[rows], boxes, wanted)
        if where is not None:
            warnings.warn(
                f"the incremental engine differs from dense passes in {where}; the sweep goes on densely. Please "
                f"report this; engine='dense' avoids the check.",
                UserWarning,
                stacklevel=2,
            )
            self._give_up(f"it differed in {where}")
        return where is None


def _filled(output: Any, made: dict[int, Tensor]) -> Any:
    """A model's output with its tensors put in."""
    return mapped(output, lambda ref: made[ref.index])
