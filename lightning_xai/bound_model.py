"""A network as a function of the one tensor that is explained; everything else it takes or does is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._compiled import uncompiled

Key = int | str
"""The place of an argument: its number, or its name."""


@dataclass(frozen=True)
class Place:
    """The output of a module in a forward pass.

    Attributes:
        layer: The module's dotted name.
        axis: The axis of its units.
        part: Which part of a tuple, list or dict it is; None if the module returns a tensor.
        call: Which of the module's calls, counted from 0; None if it runs once.
    """

    layer: str
    axis: int = 1
    part: Key | None = None
    call: int | None = None

    def read(self, output: Any) -> Tensor:
        """Return the tensor at this place of what the module returns.

        Raises:
            ValueError: If there is none.
        """
        found = output
        if self.part is not None:
            try:
                found = output[self.part]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"layer {self.layer!r} returns no part {self.part!r}.") from error
        if not isinstance(found, Tensor):
            several = list(found) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(f"layer {self.layer!r} returns {several}, not a tensor: name one with part=... .")
        return found

    def write(self, output: Any, value: Tensor) -> Any:
        """Return what the module returned with another tensor at this place."""
        if self.part is None:
            return value
        if isinstance(output, tuple):
            place = range(len(output))[int(self.part)]  # which may be counted from the end
            parts = [value if index == place else part for index, part in enumerate(output)]
            return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
        copied = type(output)(output)
        copied[self.part] = value
        return copied

    def is_at(self, count: int) -> bool:
        """Whether the call of a number is the one that is meant."""
        return self.call in (None, count)


_REPLACED: Any = WeakTensorKeyDictionary()


def replaced_output(tensor: Tensor) -> Tensor | None:
    """Return what a module has returned in the place of an explained tensor; None if the tensor is not explained."""
    found: Tensor | None = _REPLACED.get(tensor)
    return found


class LayerReached(BaseException):
    """Ends a forward pass at the layer that is read; no ``except Exception`` of a model catches it."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a network, one or several of which are explained.

    Attributes:
        values: All arguments by place.
        explained: The places of those that are explained.
        following: The places of those that hold something for every sample, so that they follow the samples.
    """

    values: Mapping[Key, Any]
    explained: tuple[Key, ...]
    following: frozenset[Key] = frozenset()

    def at(self, rows: Tensor | None) -> dict[Key, Any]:
        """Return the arguments for some samples; None for all of them, in their order."""
        if rows is None:
            return dict(self.values)
        moving = self.following | set(self.explained)
        return {key: pick(value, rows) if key in moving else value for key, value in self.values.items()}

    def source(self, rows: Tensor | None = None) -> list[Tensor]:
        """Return the explained arguments as tensors [N, ...]."""
        found = self.at(rows)
        return [
            torch.stack(list(value)) if not isinstance(value := found[key], Tensor) else value for key in self.explained
        ]


def pick(value: Any, rows: Tensor) -> Any:
    """Select the rows of a tensor, of a list or tuple, or of those in a dict."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, Mapping):
        return {key: pick(part, rows) for key, part in value.items()}
    return type(value)([value[row] for row in rows.tolist()])


@dataclass(frozen=True)
class Binding:
    """What a :class:`BoundModel` fixes.

    Attributes:
        arguments: The arguments.
        site: The place that is explained instead of the arguments; None for the arguments themselves.
        reads: The place that is the output; None for the network's own output.
        absent: Cells of the explained tensor that are no features, Boolean [N, *S]; None if there are none.
        last: The last position [N] of every sample that is not padding; None if it is not known.
        position: The position of the output [N] that is read of every sample; None if nothing is said.
        rows: Which sample each row is; None for all of them in their order.
    """

    arguments: Arguments
    site: Place | None = None
    reads: Place | None = None
    absent: Tensor | None = None
    last: Tensor | None = None
    position: Tensor | None = None
    rows: Tensor | None = None


class BoundModel(nn.Module):
    """A network of which all but the explained tensor is fixed: ``model(x)``, x [N, C, *S] or [N, F].

    It has the network's modules, parameters, hooks and modes, and none of its own, so that whatever looks at the
    network sees it as it is: names have no prefix. A call takes as many rows as it is bound to, and never guesses which
    samples they are; :meth:`at` says so.

    Args:
        network: The network.
        binding: What is fixed.
    """

    network: nn.Module
    binding: Binding

    def __init__(self, network: nn.Module, binding: Binding) -> None:
        # Without the initialiser of `Module` there are no registers of its own, and `__getattr__` finds the network's.
        self.__dict__.update(network=network, binding=binding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["network"], name, value)

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own modules, the network itself among them."""
        return self.network.named_modules(*args, **kwargs)

    def train(self, mode: bool = True) -> BoundModel:
        """Set the network's mode."""
        self.network.train(mode)
        return self

    def at(self, rows: Tensor) -> BoundModel:
        """Select or repeat samples: row i is sample ``rows[i]`` of the present ones."""
        known = self.binding.rows
        rows = rows if known is None else known[rows.to(known.device)]
        return BoundModel(self.network, replace(self.binding, rows=rows))

    def around(self, network: nn.Module) -> BoundModel:
        """Return the same binding of another network, e.g. of the one inside a wrapper."""
        return self if network is self.network else BoundModel(network, self.binding)

    def reading(self, place: Place) -> BoundModel:
        """Return the same function with the output of a module as its output."""
        return BoundModel(self.network, replace(self.binding, reads=place))

    @property
    def absent(self) -> Tensor | None:
        """Cells that are no features, Boolean [rows, *S]."""
        binding: Binding = self.binding
        absent, rows = binding.absent, binding.rows
        return absent if absent is None or rows is None else absent[rows.to(absent.device)]

    @property
    def last(self) -> Tensor | None:
        """The last position of every row that is not padding."""
        binding: Binding = self.binding
        last, rows = binding.last, binding.rows
        return last if last is None or rows is None else last[rows.to(last.device)]

    @property
    def position(self) -> Tensor | None:
        """The position of the output that is read of every row."""
        binding: Binding = self.binding
        position, rows = binding.position, binding.rows
        return position if position is None or rows is None else position[rows.to(position.device)]

    def __call__(self, x: Tensor) -> Any:
        """Run the network with x in the place of what is explained.

        Raises:
            ValueError: If x has another number of rows than is bound.
        """
        binding = self.binding
        sources = binding.arguments.source(binding.rows)
        if len(x) != len(sources[0]):
            raise ValueError(
                f"the model is bound to {len(sources[0])} samples and got {len(x)} rows: say with at(rows) which "
                f"samples they are."
            )
        values = binding.arguments.at(binding.rows)
        if binding.site is None:
            for key, part in zip(binding.arguments.explained, split_columns(x, sources), strict=True):
                values[key] = part if isinstance(values[key], Tensor) else type(values[key])(part)
        args = [values[key] for key in sorted(key for key in values if isinstance(key, int))]
        kwargs = {key: value for key, value in values.items() if isinstance(key, str)}
        with ExitStack() as stack:
            if binding.site is not None or binding.reads is not None:
                stack.enter_context(uncompiled(self.network))  # compiled code has forgotten hooks that are set later
            stack.enter_context(_hooked(self.network, binding, x))
            if binding.reads is None:
                return self.network(*args, **kwargs)
            seen = stack.enter_context(_Reading(self.network, binding.reads))
            with suppress(LayerReached):
                self.network(*args, **kwargs)
            return seen.value()


def split_columns(x: Tensor, sources: list[Tensor]) -> list[Tensor]:
    """Return the explained arguments that a tensor stands for: itself, or its columns [N, F] in their shapes."""
    if len(sources) == 1:
        return [x]
    parts = torch.split(x, [source[0].numel() for source in sources], 1)
    return [part.reshape(source.shape) for part, source in zip(parts, sources, strict=True)]


def _hooked(network: nn.Module, binding: Binding, x: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if binding.site is None else _Substituting(network, binding.site, x)


class _LayerHook:
    """A hook on the output of a module that counts its calls."""

    def __init__(self, network: nn.Module, place: Place) -> None:
        self.place = place
        self.count = 0
        self._network = network

    def __enter__(self) -> Any:
        module = self._network.get_submodule(self.place.layer)
        self._handle = module.register_forward_hook(self._hook)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._handle.remove()
        if kind is None:
            self.check()

    def _hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        count, self.count = self.count, self.count + 1
        return self.on_output(output) if self.place.is_at(count) else None

    def on_output(self, output: Any) -> Any:
        raise NotImplementedError

    def check(self) -> None:
        """Raise if the module did not run as often as the place says.

        Raises:
            ValueError: If so.
        """
        layer, call = self.place.layer, self.place.call
        if self.count == 0 or (call is not None and call >= self.count):
            raise ValueError(
                f"layer {layer!r} "
                + ("does not run" if self.count == 0 else f"runs {self.count} times only")
                + " in a forward pass of the model: name a module that runs."
            )
        if call is None and self.count > 1:
            raise ValueError(
                f"layer {layer!r} runs {self.count} times in a forward pass: say which of its calls is meant, "
                f"call=0 to call={self.count - 1}."
            )


class _Substituting(_LayerHook):
    """Puts x [N, C, *S] in the place of a module's output."""

    def __init__(self, network: nn.Module, place: Place, x: Tensor) -> None:
        super().__init__(network, place)
        self.x = x

    def on_output(self, output: Any) -> Any:
        clean = self.place.read(output)
        if self.x.requires_grad and not torch.is_grad_enabled():
            torch.set_grad_enabled(True)  # until the model's own no_grad() ends
        # What follows may work in place, which must not reach what was given.
        value = self.x.movedim(1, self.place.axis).clone()
        if value.shape != clean.shape:
            raise ValueError(f"layer {self.place.layer!r} returns {list(clean.shape)} here, not {list(value.shape)}.")
        _REPLACED[value] = clean
        return self.place.write(output, value)


class _Reading(_LayerHook):
    """Keeps the output of a module, and ends the pass there unless something needs the rest of it."""

    def __init__(self, network: nn.Module, place: Place) -> None:
        super().__init__(network, place)
        self._outputs: list[Tensor] = []
        # Parameters of a sharded module stay gathered if its pass does not end.
        self._whole = any(type(module).__name__.startswith("FSDP") for module in network.modules())

    def on_output(self, output: Any) -> Any:
        self._outputs.append(self.place.read(output).clone())
        if not self._whole:
            raise LayerReached
        return None

    def value(self) -> Tensor:
        """Return the output [N, K] or [N, K, *P], its units on axis 1."""
        if not self._outputs:
            self.check()
        return self._outputs[-1].movedim(self.place.axis, 1)


def at_rows(model: nn.Module, rows: Tensor | slice) -> nn.Module:
    """Return the model for some of its samples; a network that takes one tensor is the same for all of them."""
    if not isinstance(model, BoundModel):
        return model
    if isinstance(rows, slice):
        count = len(model.binding.arguments.source(model.binding.rows)[0])
        rows = torch.arange(count)[rows]
    return model.at(rows)


def explained_arguments(model: nn.Module) -> list[Tensor]:
    """Return the explained arguments of a :class:`BoundModel`, [N, ...] each."""
    assert isinstance(model, BoundModel)
    return model.binding.arguments.source(model.binding.rows)


def shown_inputs(model: nn.Module, values: Tensor) -> Tensor:
    """Return what people look at: the input itself, where what is explained lies inside the network."""
    inside = isinstance(model, BoundModel) and model.binding.site is not None
    return explained_arguments(model)[0] if inside else values


def column_widths(model: nn.Module, columns: Tensor) -> list[int]:
    """Return how many of the columns [N, F] of what is explained belong to each explained argument."""
    sources = model.binding.arguments.source() if isinstance(model, BoundModel) else []
    return [source[0].numel() for source in sources] if len(sources) > 1 else [columns.shape[1]]


def network_of(model: nn.Module) -> nn.Module:
    """Return the network itself, without what is fixed of it."""
    return model.network if isinstance(model, BoundModel) else model
