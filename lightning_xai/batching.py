"""Batches of rows for a model: sized by its activations, halved when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai._guard import forward_context
from lightning_xai.inputs.bound_model import at_rows, network_of
from lightning_xai.network_facts import NetworkFacts, question_of
from lightning_xai.operations import largest_activation

T = TypeVar("T")

_log = logging.getLogger(__name__)

# How large the largest activation of a pass may be. On a CPU it should stay in the cores' caches, beyond that fresh
# pages cost more than a larger pass gains; on a GPU only memory limits it.
_CPU_BYTES, _DEVICE_BYTES = 4 * 2**20, 512 * 2**20
_FEWEST_ROWS, _MOST_ROWS = 2, 1024
# Every pass reads all weights: where they are larger than this, passes of twice the size are worth it.
_HEAVY_WEIGHTS = 16 * 2**20
_MESSAGES = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")

# The size that was found when memory ran out, so that the next batch does not run out of it again. Inputs of another
# shape take another amount of memory.
_found: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = WeakKeyDictionary()

_sizes: NetworkFacts[int] = NetworkFacts()


class Batches:
    """Runs work in batches of at most ``limit`` rows, and halves the limit when memory runs out.

    A limit that was found in this way is logged, and holds for later batches of the same model and input shape.

    Args:
        model: The network, in the mode and context in which it is to be called.
        inputs: Inputs [N, ...] of the model.
        chunk_size: The most rows of a pass; found from the size of the activations unless given.
        cpu_bytes: How large the largest activation of a pass may be on a CPU; unless given 4 MiB, or 8 MiB where the
            weights are heavy.
        probe: Called instead of the model to measure the activations, if it runs the model on one sample itself.

    Attributes:
        limit: The most rows of a pass.
        alone: The output for the first sample alone, if that was asked for to find the limit, as it is once.
        estimated: Whether nothing but the size of the activations has set the limit.

    Raises:
        TypeError: If ``chunk_size`` is not an integer.
        ValueError: If ``chunk_size`` is less than 1.

    >>> batches = Batches(nn.Identity(), torch.zeros(5, 2), chunk_size=2)
    >>> batches.map(lambda rows: list(range(5))[rows], 5)
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        chunk_size: int | None = None,
        *,
        cpu_bytes: int | None = None,
        probe: Callable[[], object] = lambda: None,
    ) -> None:
        self.alone: Any = None
        self._model, self._shape = network_of(model), tuple(inputs.shape[1:])
        found = _found.get(self._model, {}).get(self._shape)
        self.estimated = chunk_size is None and found is None
        if chunk_size is None:
            with forward_context():
                largest = self._largest(model, inputs, probe)
            heavy = 2 if sum(weight.nbytes for weight in model.parameters()) > _HEAVY_WEIGHTS else 1
            budget = (cpu_bytes or heavy * _CPU_BYTES) if inputs.device.type == "cpu" else _DEVICE_BYTES
            chunk_size = min(max(budget // largest, heavy * _FEWEST_ROWS), _MOST_ROWS)
        else:
            as_integer("chunk_size", chunk_size, least=1)
            probe()
        self.limit = chunk_size if found is None else min(chunk_size, found)

    def _largest(self, model: nn.Module, inputs: Tensor, probe: Callable[[], object]) -> int:
        """How many bytes the largest activation of a sample takes; a pass of the first one tells it once."""
        kind, sizes = inputs.device.type, _sizes.of(model)
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        question = question_of(model, inputs), inputs.dtype, kind, autocast
        if question in sizes:
            probe()
        else:
            outputs: list[Any] = []
            sizes[question] = largest_activation(at_rows(model, slice(1)), inputs[:1], probe, outputs=outputs)
            self.alone = outputs[0] if outputs else None
        return sizes[question]

    def map(self, run: Callable[[slice], T], count: int, *, width: int = 1, copies: int = 1) -> list[T]:
        """The list of what :meth:`imap` yields."""
        return list(self.imap(run, count, width=width, copies=copies))

    def imap(self, run: Callable[[slice], T], count: int, *, width: int = 1, copies: int = 1) -> Iterator[T]:
        """Yield ``run(items)`` for slices of ``count`` items, one after the other, each repeated in halves if need be.

        A call of ``run`` that fails must leave nothing behind. Calls may be nested: samples outside, with ``copies``
        the most rows that one of them makes (features, channels), and those inside, with ``width`` the number of
        samples. Where a pass of a single item inside is still too large, the samples outside become fewer.

        Args:
            run: Does the work for some items.
            count: How many items there are.
            width: How many rows an item takes in one pass.
            copies: The most passes of an item that ``run`` joins to one, as far as the limit allows.

        Raises:
            RuntimeError: The original one, if a single row does not fit or memory is not the reason.
        """
        start = 0
        while start < count:
            items = slice(start, min(start + max(1, self.limit // width), count))
            rows = min(self.limit, (items.stop - start) * width * copies)
            try:
                result = run(items)
            except RuntimeError as error:
                if rows <= width or not is_out_of_memory(error):
                    raise
            else:
                yield result
                start = items.stop
                continue
            # Out of the handler, whose traceback keeps the tensors of the failed pass alive.
            self._halve(rows)

    def _halve(self, rows: int) -> None:
        self.limit, self.estimated = rows // 2, False
        _found.setdefault(self._model, {})[self._shape] = self.limit
        _log.warning("Memory ran out in a pass of %d rows; going on with at most %d (chunk_size).", rows, self.limit)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _MESSAGES)
