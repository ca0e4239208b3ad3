"""The mode that shows the operations of a forward pass, seen as calls of the torch API."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_xai._guard import SCRIPTED, compiled_types, count_forwards
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.operations.kinds import by_position, operation_name

# What asks about a tensor, or takes it out of the pass: no operation of the network.
_QUERY_NAMES = """get set size dim ndimension numel nelement stride storage_offset is_contiguous is_floating_point
is_complex len bool item tolist numpy detach data_ptr get_device is_inference element_size is_pinned is_set_to storage
untyped_storage is_same_size register_hook retain_grad is_nonzero format repr str hash set_grad_enabled is_signed
is_conj is_neg resolve_conj resolve_neg result_type assert"""
_QUERIES = frozenset(_QUERY_NAMES.split())
_MODULE_CALL = nn.Module._call_impl.__code__


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers for several processes or devices, and inside ``torch.compile``."""
    if isinstance(model, BoundModel):
        return model.around(unwrapped(model.network))
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.get_submodule("module")
        elif isinstance(model, compiled_types()):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def module_names(model: nn.Module) -> dict[int, str]:
    """The dotted name of every module by its id, without what wrappers add; a shared module has its first name."""
    return {id(module): name.replace("_orig_mod.", "") for name, module in model.named_modules()}


class Operations(TorchFunctionMode):
    """Shows every operation that a model makes while it is active; nothing is installed on the model.

    A subclass implements :meth:`operation`. Calls that only ask about tensors (``x.shape``, ``x.dim()``) are left out,
    and ``multi_head_attention_forward`` is opened into the projections and the attention that it is made of.

    Args:
        model: The network, for the names of its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = module_names(model)

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one operation; the default just calls the function."""
        return func(*args, **kwargs)

    def current_module(self) -> str:
        """The dotted name of the module that is running; ``""`` for the model itself. To ask inside a call only."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _MODULE_CALL:
                name = self._names.get(id(frame.f_locals["self"]))
                if name is not None:
                    return name
            frame = frame.f_back
        return ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = by_position(func, args, kwargs) if kwargs else (args, {})
        if operation_name(func) in _QUERIES:
            return self.query(func, args, kwargs)
        if func is functional.multi_head_attention_forward:
            self.open_attention(kwargs)
            with self:  # its inner calls come here; the function itself, seen from outside, would hide them
                return _open_attention()(*args, **kwargs)
        return self.operation(func, args, kwargs)

    def open_attention(self, kwargs: dict[str, Any]) -> None:
        """Be told that a multi-head attention is about to be opened; the default does nothing."""

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one call that is no operation; the default just calls the function."""
        return func(*args, **kwargs)


@functools.lru_cache(maxsize=1)
def _open_attention() -> Callable[..., Any]:
    """The Python code of ``multi_head_attention_forward``, told that nobody is watching it."""
    outer = functional.multi_head_attention_forward
    unseen = {name: lambda *_: False for name in ("has_torch_function", "has_torch_function_unary")}
    opened = types.FunctionType(
        outer.__code__, {**outer.__globals__, **unseen}, outer.__name__, outer.__defaults__, outer.__closure__
    )
    opened.__kwdefaults__ = outer.__kwdefaults__
    return opened


def tensors_in(arguments: Any) -> list[Tensor]:
    """The tensors among arguments, also inside lists, tuples and dicts."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if not isinstance(arguments, _CONTAINERS):
        return []
    parts = arguments.values() if isinstance(arguments, dict) else arguments
    return [tensor for part in parts if isinstance(part, _HOLDERS) for tensor in tensors_in(part)]


_CONTAINERS = (tuple, list, dict)
_HOLDERS = (Tensor, *_CONTAINERS)


class _LargestResult(Operations):
    def __init__(self, model: nn.Module, least: int) -> None:
        super().__init__(model)
        self.bytes = least

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self.bytes = max([self.bytes, *(tensor.nbytes for tensor in tensors_in(result))])
        return result


def largest_activation(
    model: nn.Module, inputs: Tensor, probe: Callable[[], object] = lambda: None, *, outputs: list[Any] | None = None
) -> int:
    """Bytes of the largest tensor that one operation of ``model(inputs)`` takes or returns.

    Compiled and scripted models hide their operations: for them it is estimated as 64 times the input.

    Args:
        model: The network, already in the mode and context in which it is to be called.
        inputs: Any inputs of the model.
        probe: Something to be done that may run the model on these inputs: then its passes are looked at, and
            none of their own are made.
        outputs: Takes the output of the pass that is made to find out.
    """
    hidden: tuple[type[nn.Module], ...] = (torch.jit.ScriptModule, *compiled_types())
    if any(isinstance(module, hidden) for module in model.modules()):
        probe()
        return 64 * inputs.nbytes
    with _LargestResult(model, inputs.nbytes) as found, count_forwards(unwrapped(model)) as runs:
        probe()
        if not runs:
            output = model(inputs.clone())  # it may work in place on what it gets
            if outputs is not None:
                outputs.append(output)
    return int(found.bytes)


def check_visible(model: nn.Module) -> None:
    """Refuse a model whose operations cannot be seen.

    Raises:
        ValueError: If a module is scripted or traced; the message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{f'module {name!r}' if name else 'the model'} {SCRIPTED}")
