"""Models sharded by ``fully_shard``, which hands the inputs of every sharded module through a function of its own."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

from torch import Tensor

HANDS_ON = "RegisterPostBackwardFunction"
"""Returns what it is given, and learns in the backward pass when the gradient is there."""


def given_back(weight: Tensor) -> bool:
    """Whether a gathered weight's memory is gone, because its module has run."""
    return weight.numel() > 0 and weight.untyped_storage().size() == 0


def find_again(tensors: Iterable[Tensor], facts: Sequence[MutableMapping[Tensor, Any]]) -> None:
    """Say of tensors that were handed on what was known of those that went in.

    Args:
        tensors: What an operation reads.
        facts: What is known, by tensor; what is found is added.
    """
    for tensor in tensors:
        node, place = tensor.grad_fn, tensor.output_nr
        while node is not None and type(node).__name__ == f"{HANDS_ON}Backward":
            node, place = node.next_functions[place]
        if node is None or node is tensor.grad_fn:
            continue
        leaf = getattr(node, "variable", None)
        for known in facts:
            for before in list(known.keys()):
                if before is leaf or (before.grad_fn is node and before.output_nr == place):
                    known[tensor] = known[before]
