"""Captures: tensors inside the model that a sweep reads besides the output; an open set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_xai.operations.next_operation import CallSite
from lightning_xai.sites import Place


class Capture(ABC):
    """Something to be read inside the model, e.g. at a layer: a frozen dataclass, compared like a score.

    Every pass of a sweep that captures has the same number of rows, the clean pass too, so that what differs between
    a perturbed and a clean row is not how the batch was rounded.
    """

    @abstractmethod
    def watch(self, model: nn.Module, inputs: Tensor) -> Watch:
        """Get ready for a sweep of a model; ``inputs`` is one clean sample."""


class Watch(ABC):
    """A capture at work on one model: it sees pass after pass and keeps what is needed, never a whole sweep."""

    @abstractmethod
    def start(self) -> None:
        """Forget the samples before; the next pass is a clean one."""

    @abstractmethod
    def sweep_context(self) -> AbstractContextManager[None]:
        """The context of several passes of the model and nothing else; entering one costs as much as a small layer."""

    @abstractmethod
    def forward_context(self) -> AbstractContextManager[None]:
        """The context of a single pass."""

    def takers(self) -> dict[Place | CallSite, Callable[[Tensor], object]] | None:
        """The functions that take outputs in a pass, by module or call; None if only whole passes show what is needed.

        An engine that does not run the model gives these outputs instead.
        """
        return None

    @abstractmethod
    def on_clean(self, samples: int, model: nn.Module, inputs: Tensor) -> None:
        """Take the pass of n clean inputs, which are repeated to the size of the perturbed passes; outside of a pass.

        Args:
            samples: n.
            model: The model, bound to the samples.
            inputs: The clean inputs.
        """

    @abstractmethod
    def on_perturbed(self, broken: Tensor | None) -> None:
        """Take the pass of one arm of perturbed inputs [F * n], in which the rows ``broken`` are not finite."""

    @abstractmethod
    def collect(self, features: list[int]) -> dict[str, Tensor]:
        """Return what is kept of some features [F, n, ...], all arms of which have passed."""

    def finalize_features(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the results per feature [J, n, ...], once :meth:`collect` has seen all features."""
        return kept

    def finalize_samples(self) -> dict[str, Tensor]:
        """Return the results per sample [n, ...], once all features have passed."""
        return {}


@contextmanager
def active(watches: Iterable[Watch]) -> Iterator[None]:
    """Let watches see the passes that are made in this context."""
    with ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch.sweep_context())
        yield


@dataclass(frozen=True)
class CaptureResult:
    """The results of a capture in a sweep.

    Attributes:
        features: Per sample and feature, [N, J, ...] by name; ``change`` [N, J] among them, the mean over the cells of
            a sample of |R_j x - x|, over the arms too.
        samples: Per sample, [N, ...] by name.
    """

    features: dict[str, Tensor]
    samples: dict[str, Tensor]

    @staticmethod
    def cat(blocks: Sequence[CaptureResult]) -> CaptureResult:
        """Join the results of blocks of samples."""
        return CaptureResult(_cat([block.features for block in blocks]), _cat([block.samples for block in blocks]))


def _cat(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass
class CaptureBuffer:
    """Collects pass by pass what the watches of one perturbation keep.

    Args:
        watches: The watches.
        features_per_pass: How many features every pass has.
    """

    watches: list[Watch]
    features_per_pass: int
    collected: list[list[dict[str, Tensor]]] = field(default_factory=list)
    change: list[Tensor] = field(default_factory=list)

    def add_change(self, batch: Tensor, values: Tensor, absent: Tensor | None) -> None:
        """Keep the mean over the arms and cells of |R x - x| of arms [A, F, n, C, *S].

        Args:
            batch: The arms.
            values: The clean inputs [n, C, *S].
            absent: Cells that are no features, as padding, Boolean [n, *S]; None if there are none.
        """
        change = (batch - values).abs_()
        if absent is None:
            self.change.append(change.flatten(3).mean((0, 3)))
            return
        there = (~absent).unsqueeze(1).to(change)
        cells = there.expand_as(values).flatten(1).sum(1)
        self.change.append((change * there).flatten(3).sum(3).mean(0) / cells)

    def collect(self, features: list[int]) -> None:
        """Take from every watch what it keeps of these features."""
        self.collected.append([watch.collect(features) for watch in self.watches])

    def results(self) -> list[CaptureResult]:
        """The results of every watch for these samples."""
        change = torch.cat(self.change)
        results = []
        for watch, *parts in zip(self.watches, *self.collected, strict=True):
            joined = {"change": change, **watch.finalize_features(_cat(parts))}
            features = {name: values.transpose(0, 1) for name, values in joined.items()}
            results.append(CaptureResult(features, watch.finalize_samples()))
        return results
