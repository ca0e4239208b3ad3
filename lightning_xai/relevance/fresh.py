"""How far the model's input comes before a linear operation mixes its numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.operations import is_in_place, kind_of, operation_name, tensors_in
from lightning_xai.relevance.calls import swapped

MOVES = frozenset({"reshape", "identity", "dropout"})
"""Kinds that move numbers, and change none."""
_SINGLE = frozenset({"sum", "product", "activation", "affine_norm"})
"""Kinds that change single numbers if they take one tensor and keep its shape."""


class Fresh:
    """The tensors that the model's input has become through no linear operation.

    Attributes:
        receivers: To each of them the tensor whose gradient takes relevance that is no multiple of it, moved the same
            way; None if there is none, or what has been done cannot be done to it.
    """

    def __init__(self) -> None:
        self.receivers: Any = WeakTensorKeyDictionary()

    def all(self, live: list[Tensor]) -> bool:
        """Whether everything that comes in is such a tensor."""
        return all(tensor in self.receivers for tensor in live)

    def stay(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], live: list[Tensor], result: Any) -> None:
        """Take up the results of an operation, all of whose inputs are such tensors."""
        name, kind = operation_name(func), kind_of(func)
        receivers = {id(tensor): self.receivers[tensor] for tensor in live}
        results = [part for part in tensors_in(result) if part.requires_grad]
        known = all(receiver is not None for receiver in receivers.values())
        if known and (kind in MOVES or kind == "concatenation") and not is_in_place(func, kwargs):
            moved = tensors_in(func(*swapped(args, receivers), **kwargs))
            if len(moved) == len(results):
                for part, place in zip(results, moved, strict=True):
                    self.receivers[part] = place
                return
        (receiver, *others) = receivers.values()
        for part in results:
            same = kind in _SINGLE and not others and receiver is not None and part.shape == receiver.shape
            self.receivers[part] = receiver if same and name != "cumsum" else None
