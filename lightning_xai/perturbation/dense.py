"""The dense engine: every perturbed input goes through the whole network, many of them in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.perturbation.capture import CaptureBuffer, Watch
from lightning_xai.perturbation.engine import Engine, Features, Samples, all_finite, mask_broken
from lightning_xai.perturbation.kinds.base import Perturbation
from lightning_xai.present import absent_cells
from lightning_xai.scores import BoundScore


class Dense(Engine):
    """Passes every perturbed input through the whole network."""

    def scores(
        self,
        samples: Samples,
        kind: Perturbation,
        features: Sequence[Features],
        bound_scores: Sequence[BoundScore],
        buffer: CaptureBuffer | None,
    ) -> Tensor:
        """Score features block by block: as many as are perturbed and read at once."""
        count = len(samples.ids)
        arms = samples.arms(kind)
        suspect = not all_finite(arms)
        per_pass = buffer.features_per_pass if buffer else self.network.features_per_pass(count)
        block = self.network.features_per_block(samples.inputs, per_pass)
        scores = [samples.values.new_empty(len(bound_scores), len(arms), count, 0)]
        for first in range(0, len(features), block):
            some = features[first : first + block]
            # What captures compares rows of batches of one size, so the last pass is filled up with clean inputs.
            size = -(-len(some) // per_pass) * per_pass if buffer else len(some)
            batch = samples.perturb(kind, arms, some, size)
            if buffer:
                buffer.add_change(batch[:, : len(some)], samples.values, absent_cells(samples.model))
            rows = torch.arange(count, device=batch.device).repeat(size)
            broken = mask_broken(batch) if suspect else None
            inputs = batch.view(len(arms), size * count, *samples.inputs.shape[1:])
            scores.append(
                self._read(samples.model, inputs, broken, some, count, [b.at(rows) for b in bound_scores], buffer)
            )
        return torch.cat(scores, 3)

    def _read(
        self,
        model: nn.Module,
        inputs: Tensor,
        broken: Tensor | None,
        features: Sequence[Features],
        samples: int,
        bound_scores: Sequence[BoundScore],
        buffer: CaptureBuffer | None,
    ) -> Tensor:
        """The scores [scores, A, n, F] of perturbed inputs [A, F * n, ...]; NaN where they are ``broken``."""
        arms, total = inputs.shape[:2]
        broken = None if broken is None else broken.view(arms, total)
        columns: list[list[list[Tensor]]] = [[[] for _ in range(arms)] for _ in bound_scores]
        per_pass = buffer.features_per_pass if buffer else self.network.features_per_pass(samples)
        watches: list[Watch] = buffer.watches if buffer else []
        for first in range(0, total // samples, per_pass):
            some, rows = features[first : first + per_pass], slice(first * samples, (first + per_pass) * samples)
            for arm in range(arms):
                batch = inputs[arm, rows]
                output = self.network(at_rows(model, torch.arange(len(batch)) % samples), batch, watches)
                for watch in watches:
                    watch.on_perturbed(None if broken is None else broken[arm, rows])
                for bound, per_arm in zip(bound_scores, columns, strict=True):
                    per_arm[arm].append(bound.columns(output, len(batch)))
                self.network.report(len(some) * samples)
            if buffer:
                buffer.collect([together[0] for together in some])
        if not bound_scores:
            return inputs.new_empty(0, arms, samples, len(features))
        pairs = [(bound, parts) for bound, per_arm in zip(bound_scores, columns, strict=True) for parts in per_arm]
        scores = torch.stack([bound.read(bound.join(parts)) for bound, parts in pairs]).view(len(columns), arms, -1)
        if broken is not None:
            scores = scores.masked_fill(broken, float("nan"))
        return scores.view(len(bound_scores), arms, -1, samples)[:, :, : len(features)].transpose(2, 3)
