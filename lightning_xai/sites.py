"""Where in a network: modules by their names, and the tensors that they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from torch import Tensor, nn

from lightning_xai._checks import as_integer, unknown

_WRAPPERS = ("module.", "_orig_mod.")

Key = int | str
"""The place of an argument, or of a part of what a module returns: its number, or its name."""


@dataclass(frozen=True)
class _Module:
    """A layer that was given as the module: compares by its identity, is shared by copies, prints as its type."""

    module: nn.Module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Module:
        return self

    def __repr__(self) -> str:
        return f"<{type(self.module).__name__}>"


@dataclass(frozen=True)
class Site:
    r"""The output of a module: accepted wherever a layer is named, and as ``Inputs(at=...)``.

    Args:
        layer: The module, by its dotted name or the module itself.
        axis: The axis of its units (channels, features); found by :func:`~lightning_xai.axes.axis_facts` unless given.
        part: Which part of a module that returns a tuple, list or dict: a number or a key.
        call: Which call of a module that runs several times, counted from 0.
        reshape: A function that turns the output into [N, K, \*P], units first, where no axis of it holds the units
            alone; it moves and drops elements. Not for ``at=``, where what is explained goes back into the network.

    Raises:
        TypeError: If the layer is neither a name nor a module, or ``reshape`` no function.
        ValueError: If both ``axis`` and ``reshape`` are given.

    >>> Site("embeddings", axis=-1)
    Site('embeddings', axis=-1)
    """

    layer: str | nn.Module | _Module
    axis: int | None = None
    part: Key | None = None
    call: int | None = None
    reshape: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layer, Site):
            raise TypeError("layer of a Site must be a module or its dotted name, not a Site.")
        object.__setattr__(self, "layer", as_layer(self.layer))
        if self.axis is not None:
            as_integer("axis", self.axis)
        if self.call is not None:
            as_integer("call", self.call, least=0)
        if self.reshape is not None and not callable(self.reshape):
            raise TypeError(f"reshape must be a function of the layer's output, got {type(self.reshape).__name__}.")
        if self.reshape is not None and self.axis is not None:
            raise ValueError("give axis= or reshape=, not both: what reshape returns has its units on axis 1.")

    def __repr__(self) -> str:
        given = [f"{part.name}={getattr(self, part.name)!r}" for part in fields(self)[1:] if self._has(part.name)]
        return f"Site({', '.join([repr(self.layer), *given])})"

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


Layer = str | nn.Module | _Module | Site
SiteLike: TypeAlias = Layer | None


def as_layer(layer: Layer) -> str | _Module | Site:
    """Convert a layer to what a frozen dataclass may hold: its dotted name, the module in a wrapper, or a site.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(layer, nn.Module):
        return _Module(layer)
    if not isinstance(layer, str | _Module | Site):
        raise TypeError(f"layer must be a module or a dotted name such as 'features.0', got {type(layer).__name__}.")
    return layer


def as_site(at: SiteLike) -> Site | None:
    """Convert a layer to its :class:`Site`."""
    return at if at is None or isinstance(at, Site) else Site(at)


def layer_name(model: nn.Module, layer: Layer) -> str:
    """Return the dotted name of a layer relative to a model, without the prefixes of wrappers.

    Raises:
        TypeError: If ``layer`` is neither a module nor a string.
        ValueError: If the model has no such layer.

    >>> layer_name(nn.Sequential(nn.ReLU()), "module.0")
    '0'
    """
    layer = as_layer(layer)
    layer = as_layer(layer.layer) if isinstance(layer, Site) else layer
    if isinstance(layer, _Module):
        for name, module in model.named_modules():
            if module is layer.module:
                return str(name)
        raise ValueError(f"layer is a {layer} that is no part of the model; name it, e.g. layer='features.0'.")
    assert isinstance(layer, str)
    name = layer
    while name.startswith(_WRAPPERS) and not hasattr(model, name.partition(".")[0]):
        name = name.partition(".")[2]
    named_layer(model, name)
    return name


def named_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return the module with a dotted name relative to ``model``; ``""`` is the model itself.

    Raises:
        ValueError: If there is no such module; the message lists the near misses.
    """
    module: nn.Module | None = model
    for part in layer.split(".") if layer else ():  # not all names are listed, as this is asked at every pass
        module = None if module is None else dict(module._modules.items()).get(part)
    if module is None:
        known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        raise ValueError(unknown("layer", layer, known))
    return module


@dataclass(frozen=True)
class Place:
    """The output of a module in a forward pass: a :class:`Site` whose units are found.

    Attributes:
        layer: The module's dotted name.
        axis: The axis of its units; None as long as it is not found.
        part: Which part of a tuple, list or dict it is; None if the module returns a tensor.
        call: Which of the module's calls, counted from 0; None if it runs once.
        reshape: Turns the tensor into [N, K, *P]; None if moving the axis of the units does.
    """

    layer: str
    axis: int | None = 1
    part: Key | None = None
    call: int | None = None
    reshape: Callable[[Tensor], Tensor] | None = None

    def __str__(self) -> str:
        part = "" if self.part is None else f"[{self.part!r}]"
        return f"{self.layer}{part}" + ("" if self.call is None else f" call {self.call}")

    def units_first(self, tensor: Tensor) -> Tensor:
        """Return the tensor at this place as [N, K, *P]."""
        if self.reshape is not None:
            return self.reshape(tensor)
        assert self.axis is not None
        return tensor.movedim(self.axis, 1)

    def units_back(self, tensor: Tensor) -> Tensor:
        """Return a tensor [N, K, *P] with the axes of the module's output, where none was reshaped."""
        assert self.axis is not None
        return tensor.movedim(1, self.axis)

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
