"""The model of a sweep, and how many inputs are given to it at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._guard import forward_context
from lightning_xai.operations import largest_activation
from lightning_xai.perturbation.capture import Capture, Watch

_progress: ContextVar[Callable[[int], object] | None] = ContextVar("progress", default=None)

# How large the largest activation of a chunk may be. On a CPU it should stay in the cores' caches, beyond that fresh
# pages cost more than a larger chunk gains; on a GPU only memory limits it.
_ACTIVATION_BYTES = {"cpu": 2**20}
_ACTIVATION_BYTES_ELSEWHERE = 512 * 2**20
_FEWEST_INPUTS, _MOST_INPUTS = 4, 1024
# Small inputs are perturbed, and their outputs read, many passes at a time: for a small network that costs as much.
_BLOCK_BYTES = 2**20


@contextmanager
def progress_to(report: Callable[[int], object]) -> Iterator[None]:
    """Call ``report(n)`` whenever n more perturbed inputs have been scored."""
    token = _progress.set(report)
    try:
        yield
    finally:
        _progress.reset(token)


class Network:
    """The model, and the most inputs that are made and given to it at once; that shrinks when memory runs out."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, chunk_size: int | None, captures: Sequence[Capture] = ()
    ) -> None:
        self.model = model
        self.reported = 0
        self.watches: dict[Capture, Watch] = {}

        def watch() -> None:
            for capture in dict.fromkeys(captures):
                self.watches[capture] = capture.watch(model, inputs[:1].clone())

        if chunk_size is None:
            budget = _ACTIVATION_BYTES.get(inputs.device.type, _ACTIVATION_BYTES_ELSEWHERE)
            # What is watched mostly looks at one pass itself, which tells the size of a pass, too.
            with forward_context():
                largest = largest_activation(model, inputs[:1], watch)
            chunk_size = min(max(budget // largest, _FEWEST_INPUTS), _MOST_INPUTS)
        else:
            watch()
        self.limit = chunk_size

    def __call__(self, inputs: Tensor, watches: Collection[Watch] = ()) -> Any:
        if not watches:
            with forward_context():
                return self.model(inputs)
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.around())
            stack.enter_context(forward_context())
            return self.model(inputs)

    def sets(self, samples: int) -> int:
        """How many features of so many samples go into one pass."""
        return max(1, self.limit // samples)

    def block(self, inputs: Tensor, sets: int) -> int:
        """How many features of these inputs are perturbed and read at once: those of one pass, or of several."""
        return sets * max(1, _BLOCK_BYTES // (sets * inputs.numel() * inputs.element_size()))

    def report(self, inputs: int) -> None:
        """Some perturbed inputs have been scored."""
        report = _progress.get()
        if report is not None:
            self.reported += inputs
            report(inputs)

    def shrink(self) -> None:
        """Halve the limit; what was scored of the samples at hand is scored again."""
        self.limit //= 2
        self.report(-self.reported)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
