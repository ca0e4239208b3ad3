"""Compiled modules, and how to run what they were made from."""

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


def eager() -> AbstractContextManager[Any]:
    """Run compiled code as it was written, so that nothing is compiled once more; before torch 2.6 as it is."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None or not compiled_types() else stance("force_eager")


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled modules inside ``model`` as they were written, so that their operations can be seen.

    Raises:
        ValueError: If there are some and this torch (before 2.6) cannot.
    """
    hidden = []
    for name, module in model.named_modules():
        patched = hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")  # as Lightning compiles a module
        if isinstance(module, compiled_types()) or getattr(module, "_compiled_call_impl", None) or patched:
            hidden.append(name)
    if not hidden:
        yield
        return
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        raise ValueError(
            f"the compiled module {hidden[0]!r} hides its operations; explain the module as it was before "
            f"torch.compile, or use torch 2.6 or newer."
        )
    with stance("force_eager"):
        yield
