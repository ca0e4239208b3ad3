"""The model of a sweep with its watches, the size of its passes, and the report of its progress."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from lightning_xai._guard import forward_context
from lightning_xai.batching import Batches
from lightning_xai.inputs.bound_model import BoundModel, at_rows
from lightning_xai.perturbation.capture import Capture, Watch

_progress: ContextVar[Callable[[int], object] | None] = ContextVar("progress", default=None)

# Small inputs are perturbed, and their outputs read, many passes at a time: for a small network that costs as much as
# the passes do.
_BLOCK_BYTES = 2**20


@contextmanager
def progress_to(report: Callable[[int], object]) -> Iterator[None]:
    """Call ``report(n)`` whenever n more perturbed inputs have been scored; n < 0 if some must be scored again."""
    with ExitStack() as stack:
        stack.callback(_progress.reset, _progress.set(report))
        yield


class Network:
    """A model, the watches of its captures, and the batches that it takes."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, chunk_size: int | None, captures: Sequence[Capture] = ()
    ) -> None:
        self.model = model
        self.is_table, self.device = inputs.ndim == 2, inputs.device
        self.watches: dict[Capture, Watch] = {}
        self._reported = 0

        def watch() -> None:
            for capture in dict.fromkeys(captures):
                self.watches[capture] = capture.watch(at_rows(model, slice(1)), inputs[:1].clone())

        # A watch mostly looks at one pass itself, which tells the size of a pass, too.
        self.batches = Batches(model, inputs, chunk_size, probe=watch)

    def __call__(self, model: nn.Module, inputs: Tensor, watches: Collection[Watch] = ()) -> Any:
        """Run the model, bound to the rows of the inputs."""
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.forward_context())
            stack.enter_context(forward_context())
            return model(inputs)

    @property
    def share(self) -> float:
        """The share of the multiplications of whole passes that a pass makes: fewer where it begins at a site."""
        return self.model.share if isinstance(self.model, BoundModel) else 1.0

    def features_per_pass(self, samples: int) -> int:
        """Return the number of features of so many samples that go into one pass."""
        return max(1, self.batches.limit // samples)

    def features_per_block(self, inputs: Tensor, features_per_pass: int) -> int:
        """Return the number of features that are perturbed and read at once: those of one pass, or of several."""
        size = features_per_pass * inputs.numel() * inputs.element_size()
        return features_per_pass * max(1, _BLOCK_BYTES // size)

    def start(self) -> None:
        """Take back the progress of a block that ran out of memory."""
        if self._reported:
            self.report(-self._reported)

    def finish(self) -> None:
        """Keep the progress of a block."""
        self._reported = 0

    def report(self, inputs: int) -> None:
        """Report that some perturbed inputs have been scored."""
        report = _progress.get()
        if report is not None:
            self._reported += inputs
            report(inputs)
