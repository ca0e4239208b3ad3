"""What a sweep can read besides the model's output: an open set that other chapters fill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


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
    def during(self) -> AbstractContextManager[None]:
        """What several passes of the model are made in, with nothing but them: entering costs as much as a layer."""

    @abstractmethod
    def around(self) -> AbstractContextManager[None]:
        """What every single pass is made in."""

    @abstractmethod
    def clean(self, samples: int) -> None:
        """The pass was that of n clean inputs, repeated set after set."""

    @abstractmethod
    def passed(self, broken: Tensor | None) -> None:
        """The pass was that of an arm of the perturbed inputs [F * n], in which ``broken`` rows are not finite."""

    @abstractmethod
    def chunk(self, features: list[int]) -> dict[str, Tensor]:
        """All arms of some features have passed: what is kept of each, [F, n, ...]."""

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """What becomes of what :meth:`chunk` has kept, once that is of all features, [J, n, ...]."""
        return kept

    def finish(self) -> dict[str, Tensor]:
        """All features of the samples have passed: what is kept of each sample, [n, ...]."""
        return {}


@contextmanager
def attended(watches: Iterable[Watch]) -> Iterator[None]:
    """Let watches see the passes that are made with them."""
    with ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch.during())
        yield


@dataclass(frozen=True)
class CaptureResult:
    """What a capture found in a sweep.

    Attributes:
        features: Per sample and feature, [N, J, ...] by name; ``change`` [N, J] among them, the mean over the cells of
            a sample of |R_j x - x|, over the arms too.
        samples: Per sample, [N, ...] by name.
    """

    features: dict[str, Tensor]
    samples: dict[str, Tensor]

    @staticmethod
    def joined(blocks: Sequence[CaptureResult]) -> CaptureResult:
        """What was found in blocks of samples, in one."""
        features, samples = (
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            for parts in ([block.features for block in blocks], [block.samples for block in blocks])
        )
        return CaptureResult(features, samples)


@dataclass
class Looks:
    """The watches over one perturbation, and what they have kept so far, pass by pass."""

    watches: list[Watch]
    sets: int
    kept: list[dict[str, list[Tensor]]] = field(init=False)
    change: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = [{} for _ in self.watches]

    def note_change(self, batch: Tensor, values: Tensor) -> None:
        """Keep the mean over the arms and cells of |R x - x| of arms [A, F, n, C, *S]."""
        self.change.append((batch - values).abs_().flatten(3).mean((0, 3)))

    def end_pass(self, features: list[int]) -> None:
        """Take from every watch what it keeps of these features."""
        for watch, parts in zip(self.watches, self.kept, strict=True):
            for name, values in watch.chunk(features).items():
                parts.setdefault(name, []).append(values)

    def captured(self) -> list[CaptureResult]:
        """What every watch has kept of these samples."""
        found = []
        change = torch.cat(self.change)
        for watch, parts in zip(self.watches, self.kept, strict=True):
            joined = watch.whole({name: torch.cat(chunks) for name, chunks in parts.items()})
            features = {name: values.transpose(0, 1) for name, values in {"change": change, **joined}.items()}
            found.append(CaptureResult(features, watch.finish()))
        return found
