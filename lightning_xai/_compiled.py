"""What was made of modules: compiled ones, and how to run what they were made from, and sharded ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn


def compiled_types() -> tuple[type[nn.Module], ...]:
    """The types of modules that ``torch.compile`` returns; none while nothing is compiled, as they import slowly."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return (compiler.OptimizedModule,) if compiler is not None else ()


def is_sharded(model: nn.Module) -> bool:
    """Whether a module in ``model`` is sharded, so that its passes wait for those of other processes."""
    return any(type(module).__name__.startswith("FSDP") for module in model.modules())


_is_eager: ContextVar[bool] = ContextVar("is_eager", default=False)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code as it was written: it hides its operations, and has forgotten hooks that are set later."""
    if _is_eager.get() or not compiled_types():
        yield
        return
    token = _is_eager.set(True)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _is_eager.reset(token)
