"""How far the model's input comes before a linear operation mixes its numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.operations import tensors_in
from lightning_xai.operations.kinds import KINDS
from lightning_xai.relevance.call import Call

_RELOCATING = frozenset({"cumsum", "scatter_add", "index_add", "cross"})
"""Sums and products that take numbers to other places, though the shape may stay."""


class InputTracker:
    """The tensors that the model's input has become through no linear operation.

    Attributes:
        receivers: To each of them the tensor whose gradient takes relevance that is no multiple of it, moved the same
            way; None if there is none, or what has been done cannot be done to it.
    """

    def __init__(self) -> None:
        self.receivers: Any = WeakTensorKeyDictionary()

    def covers(self, live: list[Tensor]) -> bool:
        """Whether everything that comes in is such a tensor."""
        return all(tensor in self.receivers for tensor in live)

    def follow(self, call: Call, results: list[Tensor]) -> None:
        """Take up the results of an operation, all of whose inputs are such tensors."""
        facts = KINDS.get(call.operation.kind or "")
        receivers = {id(tensor): self.receivers[tensor] for tensor in call.live}
        known = all(receiver is not None for receiver in receivers.values())
        moves = facts is not None and (facts.moving or call.operation.kind == "concatenation")
        drops = call.operation.kind == "dropout" and call.named().get("training", True)  # another draw for a receiver
        if known and moves and not call.in_place and not drops:
            moved = tensors_in(call.func(*swapped(call.args, receivers), **call.kwargs))
            if len(moved) == len(results):
                self.receivers.update(zip(results, moved, strict=True))
                return
        (receiver, *others) = receivers.values()
        elementwise = facts is not None and facts.elementwise and call.operation.name not in _RELOCATING and not others
        for part in results:
            same = elementwise and receiver is not None and part.shape == receiver.shape
            self.receivers[part] = receiver if same else None


def swapped(argument: Any, others: dict[int, Tensor]) -> Any:
    """An argument with other tensors in the place of some."""
    if isinstance(argument, tuple | list):
        return type(argument)(swapped(part, others) for part in argument)
    return others.get(id(argument), argument)
