"""What was made of modules: compiled ones, and how to run what they were made from, and sharded ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def compiled_types() -> tuple[type[nn.Module], ...]:
    """What ``torch.compile`` makes of a module; none while nothing has been compiled: it takes seconds to import."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return (compiler.OptimizedModule,) if compiler is not None else ()


def is_sharded(model: nn.Module) -> bool:
    """Whether a module in ``model`` is sharded, so that its passes wait for those of other processes."""
    return any(type(module).__name__.startswith("FSDP") for module in model.modules())


def eager() -> AbstractContextManager[Any]:
    """Run compiled code as it was written, so that nothing is compiled once more."""
    return torch.compiler.set_stance("force_eager") if compiled_types() else nullcontext()


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled modules inside ``model`` as they were written, so that their operations can be seen."""
    for module in model.modules():
        patched = hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")  # as Lightning compiles a module
        if isinstance(module, compiled_types()) or getattr(module, "_compiled_call_impl", None) or patched:
            with torch.compiler.set_stance("force_eager"):
                yield
            return
    yield
