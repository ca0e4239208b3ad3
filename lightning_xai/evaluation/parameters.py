"""New parameters for a network, layer by layer, and the trained ones back at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_xai._checks import unknown
from lightning_xai._guard import eager, forward, isolated_eval, keyed_generator, observe_modules
from lightning_xai._state import held_attributes
from lightning_xai.inputs.bound_model import network_of
from lightning_xai.operations import unwrapped

_PARAMETRISED = "parametrizations"  # the child in which torch keeps what a module's tensors are made of


def check_replaceable(model: nn.Module) -> None:
    """Refuse a network with parameters that cannot be exchanged.

    Raises:
        ValueError: If so; the first such module is named.

    >>> check_replaceable(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))
    Traceback (most recent call last):
    ValueError: the parameters of '1' cannot be replaced, as they do not exist before its first pass: run it once.
    """
    network = _network(model)
    owned = 0
    for name, module in network.named_modules():
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        owned += len(parameters)
        reason = _module_reason(module) or next(filter(None, map(_reason, parameters)), None)
        if reason:
            raise ValueError(f"the parameters of {name or 'the network'!r} cannot be replaced, as {reason}.")
    if not owned:
        raise ValueError("the network has no parameters, so none can be replaced.")


def _module_reason(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted"
    if type(module).__name__.startswith(("FSDP", "FullyShardedDataParallel")):
        return "it is sharded (fully_shard)"
    home = type(module).__module__
    if home.startswith("torch.") and "quantized" in home:
        return "it is quantised: measure the network that it was made from"
    return None


def _reason(parameter: Tensor) -> str | None:
    if is_lazy(parameter):
        return "they do not exist before its first pass: run it once"
    if parameter.is_meta:
        return "they are on the meta device, without values"
    if type(parameter.data) is not Tensor:
        return f"they are no plain tensors but {type(parameter.data).__name__}s"
    if parameter.is_inference():
        return "they were made in inference mode: make the network outside it"
    return None


def layers_of(model: nn.Module, inputs: Tensor) -> dict[str, list[str]]:
    """Return the parameters of every layer by their dotted names, in the order of the layers' first calls.

    What a module that does not run itself hands to its parent belongs to the parent's layer; what nothing reads is in
    no layer. A parameter of two modules has its first name in both.
    """
    network = _network(model)
    ended: list[str] = []
    see, read = (lambda name, _: ended.append(name)), _Read()
    with isolated_eval(model), observe_modules(network, see), read:
        forward(model, inputs)
    called = {"", *(name for name in ended if _PARAMETRISED not in name.split("."))}
    # A module ends after those inside it, and begins before them.
    found: dict[str, list[str]] = {"": []}
    found |= {outer: [] for name in ended for outer in _path(name) if outer in called}
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    for name, module in network.named_modules():
        home = next(outer for outer in reversed(_path(name)) if outer in found)
        own = [id(parameter) for parameter in module._parameters.values() if parameter is not None]
        found[home] += [first[one] for one in own if name in found or one in read.seen]
    return {name: keys for name, keys in found.items() if keys}


class _Read(TorchFunctionMode):
    """Sees the tensors that are handed to operations, by identity."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Make a call, and note its arguments."""
        self.seen.update(id(part) for part in tree_leaves((args, kwargs)) if isinstance(part, nn.Parameter))
        return func(*args, **(kwargs or {}))


def _path(name: str) -> list[str]:
    """The names of a module and of those around it, from the network on."""
    parts = name.split(".") if name else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


class Replace:
    """Exchanges parameters by name; inside :func:`replaced_parameters` only."""

    def __init__(self, trained: Mapping[str, tuple[nn.Parameter, Tensor]]) -> None:
        self._trained = trained

    def __call__(self, new: Mapping[str, Tensor], *, keep: bool = False) -> None:
        """Replace parameters; the others are the trained ones again unless those before are kept."""
        for name, (parameter, data) in self._trained.items():
            if name in new:
                parameter.data = new[name].detach().to(data)
            elif not keep:
                parameter.data = data


@contextmanager
def replaced_parameters(model: nn.Module) -> Iterator[Replace]:
    """Give a function that replaces parameters by name, and put the trained ones back in the end.

    The tensors are exchanged, not written to, so what comes back is what was there. So does what a module computes
    from its parameters and keeps, as of a weight norm.
    """
    network = _network(model)
    trained = {name: (parameter, parameter.data) for name, parameter in network.named_parameters()}
    with eager(), held_attributes(network):
        replace = Replace(trained)
        try:
            yield replace
        finally:
            replace({})


def new_parameters(model: nn.Module, given: Mapping[str, Tensor] | None, seed: int) -> dict[str, Tensor]:
    """Return the new values of parameters, by dotted name: those that are given, or all of them, drawn.

    Raises:
        TypeError: If what is given is no dict of tensors.
        ValueError: If a name or a shape of those that are given does not fit, or an initialiser fails.
    """
    network = _network(model)
    known = dict(network.named_parameters())  # of a parameter that has several names, the first
    if given is not None:
        if not isinstance(given, Mapping):
            raise TypeError(f"parameters must be a dict of tensors by dotted name, got {type(given).__name__}.")
        for name, values in given.items():
            if name not in known:
                raise ValueError(unknown("parameters", name, known))
            if not isinstance(values, Tensor):
                raise TypeError(f"parameters[{name!r}] must be a tensor, got {type(values).__name__}.")
            if values.shape != known[name].shape:
                raise ValueError(f"parameters[{name!r}] must be {list(known[name].shape)}, got {list(values.shape)}.")
        return dict(given)
    new: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        own = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
        reset = getattr(module, "reset_parameters", None)
        drawn: Mapping[str, Tensor] = {}
        if own and callable(reset):
            drawn = _reset(name, module, reset, _generator(seed, name).initial_seed())
        for key, parameter in own.items():
            values = drawn.get(key, parameter.detach())
            # An initialiser has no say in what it leaves as it is, such as the factors of a weight norm.
            new[prefix + key] = values if not torch.equal(values, parameter) else _permuted(values, seed, prefix + key)
    return {name: values for name, values in new.items() if name in known}


def _reset(name: str, module: nn.Module, reset: Callable[[], object], seed: int) -> dict[str, Tensor]:
    """What a module's own initialiser makes of its parameters; the module is left as it was."""
    parts = list(module.modules())
    registers = [(part, dict(part._parameters)) for part in parts]
    held = [(parameter, parameter.data) for parameter in module.parameters()]
    devices = {data.device for _, data in held if data.device.type == "cuda"}
    with isolated_eval(module), held_attributes(module):
        try:
            for parameter, data in held:
                parameter.data = data.clone()
            for part in parts:  # a weight that is computed from others is no parameter, but is written to like one
                kept = {key: value.clone() for key, value in vars(part).items() if isinstance(value, Tensor)}
                vars(part).update(kept)
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device.index].manual_seed(seed)
            reset()
            return {key: own.detach() for key, own in module._parameters.items() if own is not None}
        except Exception as error:
            raise ValueError(
                f"the initialiser of layer {name!r} failed ({type(error).__name__}: {error}): give new parameters, "
                f"parameters={{...}}."
            ) from error
        finally:
            for part, parameters in registers:
                part._parameters.clear()
                part._parameters.update(parameters)
            for parameter, data in held:
                parameter.data = data


def _permuted(values: Tensor, seed: int, name: str) -> Tensor:
    order = torch.randperm(values.numel(), generator=_generator(seed, name))
    return values.flatten()[order.to(values.device)].view(values.shape)


def _generator(seed: int, name: str) -> torch.Generator:
    """Key draws by the name that a module has where nothing is compiled."""
    return keyed_generator(seed, "parameters", name.replace("_orig_mod.", ""))


def _network(model: nn.Module) -> nn.Module:
    return unwrapped(network_of(model))
