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
from lightning_xai.perturbation.incremental import kept
from lightning_xai.perturbation.incremental.check import disagreement
from lightning_xai.perturbation.incremental.choice import Choice, features_per_pass, survey
from lightning_xai.perturbation.incremental.clean import CleanPass, clean_pass, known
from lightning_xai.perturbation.incremental.geometry import Boxes
from lightning_xai.perturbation.incremental.operations import State
from lightning_xai.perturbation.incremental.patches import boxes_of, cut_patches, in_order, sample_of_rows
from lightning_xai.perturbation.incremental.plan import Plan, output_values
from lightning_xai.perturbation.incremental.record import NotReplayable, Tap
from lightning_xai.perturbation.incremental.refusals import refuse
from lightning_xai.perturbation.incremental.trees import mapped
from lightning_xai.perturbation.kinds.base import MaskPerturbation, Perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.scores import BoundScore

_log = logging.getLogger(__name__)
_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
# Why sweeps of a model were dense, so that the next ones like them need not find out again.
_dense: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()

# Pairs share their first feature with others; so many make a pass with that feature perturbed worth while.
_FEWEST_PER_BASE = 4
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
        self._kept: kept.KeptPlans | None = None
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
        self._clean, self._kept, self._choice = None, None, None
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
        verdicts = _dense.setdefault(self.network.model, {})
        asked = None if self.reason is not None else (self._like(samples), self._evaluations, self._forced)
        if self._choice is None and asked in verdicts:
            self._give_up(verdicts[asked])
        if self.reason is None:
            output, record = None, None
            try:
                output, record = self._record(samples, watches)
                # What is not finite would spread by what is read off the record, though it may be replaced.
                finite = all(bool(part.isfinite().all()) for part in (samples.inputs, *tensors_in(output)))
                self._clean = record if finite else None
            except NotReplayable as reason:
                if len(verdicts) >= _VERDICTS:
                    verdicts.clear()
                verdicts[asked] = str(reason)
                self._give_up(str(reason))
                for watch in watches:
                    watch.start()
            if record is not None and (finite or copies == 1):
                return output, 1
        for watch in watches:
            watch.start()
        return self._dense.clean(samples, copies, watches)

    def _like(self, samples: Samples) -> Any:
        """What sweeps have in common that take the same plans, if the network has not changed."""
        extents = samples.regions.extents()
        boxes = None if extents is None else extents.numpy().tobytes()
        shape, inputs = tuple(samples.inputs.shape[1:]), samples.inputs
        return shape, inputs.dtype, inputs.device, boxes, self._scored, tuple(self._places)

    def _record(self, samples: Samples, watches: Collection[Watch]) -> tuple[Any, CleanPass]:
        """The output of the clean pass, and its record if it is as those before.

        Raises:
            NotReplayable: If everything has to go densely, or dense passes are faster.
        """
        before = self._kept is None and self._adopt(samples)
        try:
            return self._passed(samples.inputs, watches)
        except NotReplayable:
            if not before:
                raise
        # The network is not what it was when something was kept of it.
        kept.forget(self.network.model, self._like(samples))
        self._kept = self._choice = None
        for watch in watches:
            watch.start()
        self._adopt(samples)
        return self._passed(samples.inputs, watches)

    def _adopt(self, samples: Samples) -> bool:
        """Choose the engine by what is kept of the network, or by passes of a few rows; tell which it was.

        Raises:
            NotReplayable: If everything has to go densely, or dense passes are faster.
        """
        extents = samples.regions.extents()
        if extents is None:
            raise NotReplayable("the features are not known to lie in boxes")
        like = self._like(samples)
        found = kept.find(self.network.model, like)
        before = found is not None
        if found is None:
            least = None if self._forced else self._evaluations
            made = survey(self.network, samples.inputs, extents, self._places, scored=self._scored, least=least)
            found = kept.KeptPlans(made)
        choice = Choice.of(found.survey, self.network, self._evaluations, samples.inputs.element_size())
        if not (self._forced or choice.pays):
            raise NotReplayable(choice.why_not())
        if len(extents) == 1:
            kept.keep(self.network.model, like, found)
        self._kept, self._choice = found, choice
        self._say(f"The sweep is incremental: {100 * self.share:.0f} % of the multiplications are left.")
        return before

    def _passed(self, inputs: Tensor, watches: Collection[Watch] = ()) -> tuple[Any, CleanPass]:
        """The output of a pass and its record.

        Raises:
            NotReplayable: If the pass is not as those before.
        """
        assert self._kept is not None
        found = self._kept.survey
        output, record = clean_pass(self.network, inputs, self._places, watches, found.read)
        found.template.check(known(record))
        return output, CleanPass(known(record), found.template)

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
                clean = self._passed(inputs)[1]
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
        limited = not self.network.batches.estimated
        most = min(self._choice.rows, self.network.batches.limit) if limited else self._choice.rows
        per_pass = features_per_pass(len(features), most, count)
        block = self.network.features_per_block(samples.inputs, 1)
        # What is captured comes in the order of the features.
        spatial = samples.values.shape[2:]
        order = list(range(len(features))) if buffer else in_order(extents, features, per_pass, spatial)
        scores = [samples.values.new_empty(len(bound_scores), len(arms), count, 0)]
        for first in range(0, len(features), per_pass):
            some = [features[place] for place in order[first : first + per_pass]]
            plan = self._plan(clean, samples, extents, some, wanted)
            patches, broken = cut_patches(samples, kind, arms, some, plan.boxes, block, buffer)
            index = torch.arange(count, device=patches.device).repeat(len(some))
            bound = [score.at(index) for score in bound_scores]
            columns = []
            for arm, patch in enumerate(patches):
                state = State(clean.record, clean.tables, sample_of_rows(samples, len(some)), plan.boxes.count)
                with forward_context():
                    made = dict(zip(wanted, plan.run(state, patch), strict=True))
                intact = torch.ones(len(patch), dtype=torch.bool) if broken is None else ~broken[arm]
                perturb = partial(samples.perturb, kind, [arms[arm]], size=1)
                if not self._checked and not self._agrees(clean, samples, plan, perturb, some, patch, intact, made):
                    return None
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
        assert self._kept is not None

        def make() -> Plan:
            boxes = boxes_of(extents, features, samples.values.shape[2:])
            return Plan(clean.record.skeleton(), clean.template.trees, boxes, wanted)

        if len(extents) > 1:
            return make()
        return self._kept.plan((tuple(together[-1] for together in features), tuple(wanted)), make)

    def _agrees(
        self,
        clean: CleanPass,
        samples: Samples,
        plan: Plan,
        perturb: Callable[[Sequence[Features]], Tensor],
        features: Sequence[Features],
        patch: Tensor,
        intact: Tensor,
        made: dict[int, Tensor],
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
        some = {index: values[rows] for index, values in made.items()}
        with forward_context():
            where = disagreement(self.network, clean, int(samples.rows[0]), inputs, patch[rows], boxes, some)
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
