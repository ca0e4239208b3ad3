"""The one place that touches a model's modes, gradients, buffers, logging and the random states."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_xai._checks import check_model
from lightning_xai._compiled import compiled_types as compiled_types
from lightning_xai._compiled import eager as eager
from lightning_xai._compiled import is_sharded
from lightning_xai._state import WriteWatch, held_state, is_watched
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.sites import Place, named_layer

_around_calls: ContextVar[Callable[[], AbstractContextManager[Any]]] = ContextVar("around_calls", default=nullcontext)


@contextmanager
def isolated_eval(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Run ``model`` in eval mode, outside inference mode and autocast, and leave no trace of it.

    Restored at the end, also when the model raises: the training flag of every module, buffers that the model
    replaced or wrote to, gradients that it replaced, which parameters require them, what else :func:`watch_writes` has
    seen it change, and the global random states of torch (CPU and the model's CUDA devices), numpy and Python.
    While it is active, calls of ``self.log`` made by a ``LightningModule`` in its ``forward`` are ignored, and fused
    inference paths that answer differently from the layers they replace (multi-head attention) are off.

    Args:
        model: The network to explain.
        gradients: Record gradients with respect to the inputs.

    Raises:
        TypeError: If ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model)
    modules = list(model.modules())
    devices = {tensor.device for tensor in _tensors(modules)}
    with ExitStack() as stack:
        stack.enter_context(eager())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in {"cpu", *(device.type for device in devices)}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(held_random_states(devices))
        stack.enter_context(_buffers(modules))
        stack.enter_context(_gradients(modules))
        stack.enter_context(held_state(model))
        stack.enter_context(_modes(model, modules))
        stack.enter_context(_silence(modules))
        stack.enter_context(_plain_attention())
        yield


def forward_context() -> AbstractContextManager[Any]:
    """Inside :func:`isolated_eval`, what a call of the model itself is made in; see :func:`set_forward_context`."""
    return _around_calls.get()()


@contextmanager
def set_forward_context(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Make the calls of the model in a context, e.g. an autocast, though not what is done with its outputs."""
    token = _around_calls.set(context)
    try:
        yield
    finally:
        _around_calls.reset(token)


def forward(model: nn.Module, inputs: Tensor) -> Any:
    """Call the model inside :func:`isolated_eval` on its own copy of the inputs, in which it may work in place."""
    with forward_context():
        return model(inputs.clone())


def watch_writes(model: nn.Module, inputs: Tensor) -> None:
    """See once, by one pass, what a model changes outside its buffers, so that it is restored, too, from now on.

    Models whose modules are sharded are left out, as their passes wait for those of other processes.
    """
    if not (is_watched(model) or is_sharded(model)):
        with isolated_eval(model), WriteWatch(model):
            forward(model.whole() if isinstance(model, BoundModel) else model, inputs)


def detach_for_autograd(tensor: Tensor) -> Tensor:
    """``tensor`` detached, and copied if it was made in inference mode, so that autograd can save it."""
    with torch.inference_mode(False):
        return tensor.clone().detach() if tensor.is_inference() else tensor.detach()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Take the parameters of ``model`` for constants: a tensor then requires a gradient iff the input reaches it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            if not parameter.is_leaf:  # the model has written to it
                parameter.detach_()
            parameter.requires_grad_(True)


SCRIPTED = "is scripted or traced (torch.jit), which hides its operations; use the module that it was made from."


@contextmanager
def hook_outputs(model: nn.Module, taps: Mapping[str | Place, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Show the output of layers to functions whenever the model runs; what a function returns takes its place.

    Args:
        model: The network.
        taps: Per layer, by its dotted name or its place, a function of its output; one that returns None only looks.

    Raises:
        ValueError: If a layer does not exist, is scripted or traced, or its output is not a tensor.
    """
    functions = {Place(tap) if isinstance(tap, str) else tap: function for tap, function in taps.items()}
    counts: Counter[Place] = Counter()

    def hook(place: Place, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        count, counts[place] = counts[place], counts[place] + 1
        if place.call not in (None, count):
            return None
        value = functions[place](place.read(output))
        return None if value is None else place.write(output, value)

    with ExitStack() as stack:
        stack.enter_context(eager())  # compiled code has forgotten hooks that are set later
        for place in functions:
            module = named_layer(model, place.layer)
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(f"layer {place.layer!r} {SCRIPTED}")
            stack.callback(module.register_forward_hook(partial(hook, place)).remove)
        if any(place.call is not None for place in functions):  # calls are counted pass by pass
            stack.callback(model.register_forward_pre_hook(lambda *_: counts.clear()).remove)
        yield


@contextmanager
def observe_modules(model: nn.Module, see: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``see(name, output)`` whenever a module of ``model`` has run, with its dotted name and whatever it returns.

    Args:
        model: The network.
        see: Is told of every module but the network itself and those that are scripted or traced; of a module of two
            names the first one.
    """

    def hook(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        see(name, output)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield


@contextmanager
def count_forwards(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield a list that holds the model once for every time it has run."""
    runs: list[nn.Module] = []
    handle = model.register_forward_hook(lambda module, *_: runs.append(module))
    try:
        yield runs
    finally:
        handle.remove()


@contextmanager
def leaf_at(model: nn.Module, place: Place) -> Iterator[list[Tensor]]:
    """Record gradients from the output of a layer on, and nothing before it.

    Inside ``isolated_eval(model)`` only. What is yielded holds that output, a leaf of the graph, for every time that
    the layer has run.

    Args:
        model: The network.
        place: The layer.

    Raises:
        ValueError: If the layer does not exist, or its output is not a tensor of floating-point numbers.
    """
    found: list[Tensor] = []

    def branch(output: Tensor) -> Tensor:
        if not output.is_floating_point():
            raise ValueError(f"layer {place.layer!r} returns {output.dtype}: gradients need floating-point numbers.")
        torch.set_grad_enabled(True)  # until `isolated_eval` ends, which restores what was set before it
        found.append(output.detach().clone().requires_grad_())
        return found[-1].clone()  # what follows may work in place, which a leaf does not allow

    with hook_outputs(model, {place: branch}):
        yield found


class KeptGradients(TorchFunctionMode):
    """Ignores the model's own ``torch.no_grad()`` while it is active; what is before a leaf has no history anyway."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Make a call, unless it turns the recording of gradients off."""
        if func is torch._C._set_grad_enabled and args[:1] == (False,):
            return None
        return func(*args, **(kwargs or {}))


def keyed_generator(*key: object) -> torch.Generator:
    """A random generator on the CPU whose draws depend on the key and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _tensors(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    """The parameters and buffers; ``parameters()`` and ``buffers()`` would walk the whole tree once each."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor


@contextmanager
def _modes(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    before = [(module, module.training) for module in modules]
    # A program of torch.export has the mode of its export, and raises where it is asked for another.
    exported: list[tuple[nn.Module, dict[str, Any]]] = [
        (module, {name: vars(module).pop(name) for name in ("train", "eval") if name in vars(module)})
        for module in modules
        if isinstance(module, torch.fx.GraphModule)
    ]
    # One that says itself what the mode means may hold more than its modules.
    try:
        if any(training or type(module).train is not nn.Module.train for module, training in before):
            model.eval()
        yield
    finally:
        for module, training in before:
            if module.training != training:  # setting costs much more than asking
                module.training = training
        for module, methods in exported:
            vars(module).update(methods)


@contextmanager
def _buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    # What a scripted module holds cannot be replaced, only written to.
    open_modules = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    held = [(module, dict(module._buffers)) for module in open_modules]
    every = {id(buffer): buffer for module in modules for buffer in module._buffers.values() if buffer is not None}
    # A tensor made in inference mode has no version, but cannot be written to here either.
    written = [buffer for buffer in every.values() if not buffer.is_inference()]
    before = [(buffer, buffer._version, buffer.detach().clone()) for buffer in written]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, value in before:
                if buffer._version != version:
                    buffer.copy_(value)
        for module, buffers in held:
            module._buffers.clear()
            module._buffers.update(buffers)


@contextmanager
def _gradients(modules: Sequence[nn.Module]) -> Iterator[None]:
    parameters = [parameter for module in modules for parameter in module._parameters.values() if parameter is not None]
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters if parameter.is_leaf]
    try:
        yield
    finally:
        for parameter, requires_grad, gradient in before:
            if parameter.is_leaf:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                if parameter.grad is not gradient:
                    parameter.grad = gradient


@contextmanager
def held_random_states(devices: Collection[torch.device]) -> Iterator[None]:
    """Put back the global random states of torch (CPU and the CUDA devices given), numpy and Python."""
    cuda = sorted(device.index for device in devices if device.type == "cuda")
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


@contextmanager
def _silence(modules: Sequence[nn.Module]) -> Iterator[None]:
    def ignored(*_args: Any, **_kwargs: Any) -> None:
        """A metric logged while explaining would overwrite the one that the user's step has logged."""

    shadowed = []
    for module in modules:
        if callable(getattr(type(module), "log", None)) and callable(getattr(type(module), "log_dict", None)):
            for name in {"log", "log_dict"} - vars(module).keys():
                vars(module)[name] = ignored
                shadowed.append((module, name))
    try:
        yield
    finally:
        for module, name in shadowed:
            del vars(module)[name]


@contextmanager
def _plain_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
