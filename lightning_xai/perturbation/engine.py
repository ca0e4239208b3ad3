"""How perturbed inputs get their scores: an open set of engines, which must all give the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.perturbation.capture import CaptureBuffer, Watch
from lightning_xai.perturbation.kinds.base import Keys, MaskPerturbation, Perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.present import absent_cells
from lightning_xai.regions import BoundRegions
from lightning_xai.scores import BoundScore

Features = tuple[int, ...]


@dataclass(frozen=True)
class Samples:
    """Samples that are swept together: at most as many as go into one pass.

    Attributes:
        inputs: Their inputs [n, C, *S], or a table [n, F].
        regions: The features, bound to them.
        ids: Their ids.
        rows: Their places among the samples of the clean pass.
        model: The model, bound to them.
    """

    inputs: Tensor
    regions: BoundRegions
    ids: tuple[int, ...]
    rows: Tensor
    model: nn.Module

    @property
    def values(self) -> Tensor:
        """The inputs [n, C, *S]; a table has one channel."""
        return self.inputs.unsqueeze(1) if self.inputs.ndim == 2 else self.inputs

    @property
    def keys(self) -> Keys:
        """The keys of draws for whole samples."""
        return Keys(self.ids, absent=absent_cells(self.model))

    def at(self, rows: Tensor) -> Samples:
        """Select some of the samples."""
        ids = tuple(self.ids[row] for row in rows)
        return Samples(self.inputs[rows], self.regions.rows(rows), ids, self.rows[rows], at_rows(self.model, rows))

    def arms(self, kind: Perturbation) -> list[Tensor | None]:
        """The whole perturbed copies [n, C, *S], one per arm; None for a kind that depends on what is perturbed."""
        whole = not (kind.windowed or isinstance(kind, MaskPerturbation))
        return list(kind.arms(self.values, self.keys)) if whole else [None]

    def perturb(
        self, kind: Perturbation, arms: Sequence[Tensor | None], features: Sequence[Features], size: int
    ) -> Tensor:
        """The inputs with features perturbed together, [A, F, n, C, *S]; F is ``size``, filled up with clean ones."""
        values = self.values
        batch = values.new_empty(len(arms), size, *values.shape).copy_(values)
        for copy, arm in zip(arms, batch, strict=True):
            for perturbed, together in zip(arm, features, strict=False):
                if isinstance(kind, MaskPerturbation):
                    perturbed.copy_(kind.replaced(values, self._mask(together), self.keys))
                    continue
                for feature in sorted(together, reverse=True):
                    if copy is None:
                        self._write_window(perturbed, kind, feature)
                    else:
                        self.regions.write(perturbed, copy, feature)
        return batch

    def _mask(self, features: Features) -> Tensor:
        """The cells of features [n, *S]."""
        inside = torch.zeros_like(self.values[:, :1])
        for feature in features:
            self.regions.write(inside, torch.ones_like(inside), feature)
        return inside.squeeze(1) > 0

    def _write_window(self, target: Tensor, kind: Perturbation, feature: int) -> None:
        for rows, cells in self.regions.cells(self.values, feature):
            if cells.shape[2]:
                perturbed = kind.arms(cells, Keys(self.ids[rows], feature))
                self.regions.put(target, rows, perturbed[0], feature)


class Engine(ABC):
    """Scores perturbed inputs of one model.

    Args:
        network: The model, its watches and the size of its passes.

    Attributes:
        name: The engine at work.
    """

    name = "dense"

    def __init__(self, network: Network) -> None:
        self.network = network

    @property
    def share(self) -> float:
        """The share of the multiplications of whole passes that it makes."""
        return self.network.share

    def clean(self, samples: Samples, copies: int, watches: Collection[Watch]) -> tuple[Any, int]:
        """Make the clean pass of the samples of the scores to come.

        Args:
            samples: The samples.
            copies: How often the inputs are repeated, so that what is captured is compared in passes of one size.
            watches: What looks at the pass.

        Returns:
            The model's output, and how often the inputs were repeated.
        """
        rows = torch.arange(len(samples.ids)).repeat(copies)
        inputs = samples.inputs.repeat(copies, *[1] * (samples.inputs.ndim - 1))
        return self.network(at_rows(samples.model, rows), inputs, watches), copies

    @abstractmethod
    def scores(
        self,
        samples: Samples,
        kind: Perturbation,
        features: Sequence[Features],
        bound_scores: Sequence[BoundScore],
        buffer: CaptureBuffer | None,
    ) -> Tensor:
        """Score features that are perturbed together.

        Args:
            samples: All samples of the clean pass, or some of them.
            kind: R.
            features: F tuples of features.
            bound_scores: What reads the outputs, bound to these samples.
            buffer: Takes what is captured in the passes.

        Returns:
            The scores [scores, A, n, F]; not finite where the score is not, NaN where a perturbed cell is not finite.
        """


def mask_broken(batch: Tensor) -> Tensor:
    """Set perturbed inputs [..., n, C, *S] with a cell that is not finite to 0; return which they are [..., n]."""
    broken = ~batch.isfinite().flatten(3).all(3)
    batch.masked_fill_(broken.view(*broken.shape, *[1] * (batch.ndim - 3)), 0.0)
    return broken


def all_finite(arms: Sequence[Tensor | None]) -> bool:
    """Tell whether whole perturbed copies are known to hold finite numbers only."""
    return all(copy is not None and bool(torch.isfinite(copy).all()) for copy in arms)
