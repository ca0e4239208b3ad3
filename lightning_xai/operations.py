"""What operations a forward pass makes, seen as calls of the torch API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _LargestResult(TorchFunctionMode):
    def __init__(self, least: int) -> None:
        super().__init__()
        self.bytes = least

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self.bytes = max(self.bytes, _bytes(part))
        return result


def largest_activation(model: nn.Module, inputs: Tensor) -> int:
    """Bytes of the largest tensor that one operation of ``model(inputs)`` takes or returns.

    Compiled and scripted models hide their operations: for them it is estimated as 64 times the input.
    """
    hidden: tuple[type[nn.Module], ...] = (torch.jit.ScriptModule,)
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # takes seconds to import; loaded if a module was compiled
    if compiler is not None:
        hidden += (compiler.OptimizedModule,)
    if any(isinstance(module, hidden) for module in model.modules()):
        return 64 * _bytes(inputs)
    with _LargestResult(_bytes(inputs)) as seen:
        model(inputs)
    return int(seen.bytes)


def _bytes(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
