"""Models whose passes cannot be recorded, as far as it shows before one is made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_xai._guard import compiled_types
from lightning_xai.perturbation.incremental.record import NotReplayable


def refuse(model: nn.Module) -> None:
    """Refuse models whose passes cannot be recorded, before one is made.

    Raises:
        NotReplayable: If modules are sharded, compiled or scripted, carry hooks, or are in training mode.
    """
    hooks = vars(torch.nn.modules.module)  # torch 2.6 has no function that asks for all
    if any(hooks[f"_global_{when}_hooks"] for when in ("forward", "forward_pre", "backward", "backward_pre")):
        raise NotReplayable("all modules carry hooks")
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if type(module).__name__.startswith("FSDP"):
            raise NotReplayable(f"{where} is sharded")
        if isinstance(module, (torch.jit.ScriptModule, *compiled_types())) or getattr(
            module, "_compiled_call_impl", None
        ):
            raise NotReplayable(f"{where} hides its operations")
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotReplayable(f"{where} carries hooks")
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
            raise NotReplayable(f"{where} is in training mode")
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is not Tensor:
            raise NotReplayable(f"it holds a {type(tensor.data).__name__}")
