"""Outputs of the modules before a site, kept for every sample, so that the passes of an explanation begin there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_xai._guard import forward_context
from lightning_xai.inputs.places import Deviation
from lightning_xai.sites import Place

if TYPE_CHECKING:
    from typing_extensions import Self


class Opaque(Exception):
    """Says that what a module returns holds more than plain tensors and constants."""


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tree of lists, tuples and dicts with every leaf changed."""
    if type(tree) in (list, tuple):
        return type(tree)(mapped(part, change) for part in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(part, change) for part in tree))
    if type(tree) is dict:
        return {name: mapped(part, change) for name, part in tree.items()}
    return change(tree)


class Placeholder(Tensor):
    """Stands for a tensor until an operation reads it; its shape can be asked for without."""

    leaf: tuple[int, int]
    """The number of the call that returns it, and its place there."""
    _read: Callable[[], Tensor]
    _numbers: Tensor | None = None

    @classmethod
    def of(cls, shape: Sequence[int], like: Tensor, read: Callable[[], Tensor]) -> Placeholder:
        """Make one of a shape, with the type and device of another tensor."""
        made: Placeholder = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made._read = read
        return made

    @property
    def is_read(self) -> bool:
        """Whether an operation has read it."""
        return self._numbers is not None

    def numbers(self) -> Tensor:
        """Return what it stands for."""
        if self._numbers is None:
            self._numbers = self._read()
        return self._numbers

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map(lambda leaf: leaf.numbers() if isinstance(leaf, cls) else leaf, (args, kwargs or {}))
        return func(*args, **kwargs)


@dataclass
class CachedTensor:
    """A tensor that a module returns for some samples.

    Attributes:
        value: It; none of its samples if nothing but modules that are left out themselves reads it.
        samples: How many samples it is of.
        width: How many rows of it each sample has; 0 if it is the same for all.
        is_read: Whether anything else reads it; None while that is to be found out.
    """

    value: Tensor
    samples: int
    width: int
    is_read: bool | None = None

    def at(self, rows: Tensor | None) -> Tensor:
        """Return a copy for some samples, which may be written to; None for all of them in their order."""
        if self.is_read:
            return self._picked(rows)
        count = self.samples if rows is None else len(rows)
        shape = (count * self.width, *self.value.shape[1:]) if self.width else self.value.shape
        return Placeholder.of(shape, self.value, partial(self._read, rows))

    def _read(self, rows: Tensor | None) -> Tensor:
        if self.is_read is False:
            raise Deviation
        self.is_read = True
        return self._picked(rows)

    def _picked(self, rows: Tensor | None) -> Tensor:
        if not self.width or rows is None:
            return self.value.clone()
        rows = rows.to(self.value.device)
        if self.width > 1:
            rows = (rows.unsqueeze(1) * self.width + torch.arange(self.width, device=rows.device)).flatten()
        return self.value[rows]


class Prefix:
    """The modules that have ended when a site is reached, in the order of their calls, with what they returned.

    Modules inside others of them are left out. As they end before the site, nothing of it depends on what is put there.

    Args:
        network: The network.
        site: The site.
        outputs: Per call the module's dotted name and what it returned, tensors as :class:`CachedTensor`.
        share: The share of the multiplications of a whole pass that is left.

    Attributes:
        has_deviated: Whether a pass was not as those before, after which all are whole.
    """

    def __init__(self, network: nn.Module, site: Place, outputs: Sequence[tuple[str, Any]], share: float) -> None:
        self._calls = [(network.get_submodule(name), output) for name, output in outputs]
        self._inside = {module: None for own, _ in self._calls for module in own.modules()}
        self._site = network.get_submodule(site.layer)
        self._network = network
        self._share, self.has_deviated = share, False
        self._shorter, self._whole = 0, 0
        self._before = self._state()

    def share(self, reads: Place | None) -> float:
        """Return the share of the multiplications of whole passes that was made; of one to come before the first."""
        made = self._shorter + self._whole
        if not made:
            return self._share if self._holds(reads) else 1.0
        return (self._share * self._shorter + self._whole) / made

    def replay(self, reads: Place | None, rows: Tensor | None) -> Replay | None:
        """Return the context of a pass that begins at the site; None if it has to be a whole one.

        That is where somebody looks at a module that would be left out, in passes of mixed precision, and once
        parameters or buffers have changed or a pass was not as those before.

        Args:
            reads: The place that the pass ends at.
            rows: The samples of the pass.
        """
        return Replay(self._calls, rows) if self._holds(reads) else None

    def made(self, rows: int, *, is_whole: bool) -> None:
        """Count a pass of some rows."""
        if is_whole:
            self._whole += rows
        else:
            self._shorter += rows

    def _holds(self, reads: Place | None) -> bool:
        watched = any(map(is_hooked, (None, *self._inside)))
        if reads is not None:
            place = self._network.get_submodule(reads.layer)
            watched = watched or (place in self._inside and place is not self._site)
        self.has_deviated = self.has_deviated or self._state() != self._before
        return not (watched or self.has_deviated) and is_plain_context()

    def deviates(self) -> None:
        """Begin no pass at the site any more."""
        self.has_deviated = True

    def _state(self) -> list[tuple[int, int]]:
        """Return what changes if parameters or buffers are written to or replaced."""
        held = [part for module in self._inside for part in (*module._parameters.values(), *module._buffers.values())]
        return [(part.data_ptr(), -1 if part.is_inference() else part._version) for part in held if part is not None]


def is_hooked(module: nn.Module | None) -> bool:
    """Tell whether somebody looks at the passes of a module; None for those who look at all modules."""
    if module is not None:
        return bool(module._forward_hooks or module._forward_pre_hooks)
    every = vars(nn.modules.module)  # torch 2.6 has no function that asks for all
    return any(every[f"_global_{when}_hooks"] for when in ("forward", "forward_pre"))


def is_plain_context() -> bool:
    """Tell whether the passes of an explanation are made as they are, not e.g. in mixed precision."""
    autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    return isinstance(forward_context(), nullcontext) and not autocast


class Replay:
    """Lets modules return what they returned before, until the site is reached.

    Args:
        calls: The calls that are left out.
        rows: The samples of the pass.
    """

    def __init__(self, calls: Sequence[tuple[nn.Module, Any]], rows: Tensor | None) -> None:
        self._calls, self._rows = calls, rows
        self._next = 0
        self._own: dict[nn.Module, Any] = {}

    def __enter__(self) -> Self:
        for module, _ in self._calls:
            if module not in self._own:
                self._own[module] = vars(module).get("forward")
                vars(module)["forward"] = partial(self._forward, module)
        return self

    def __exit__(self, *_: Any) -> None:
        for module, own in self._own.items():
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
        self._own = {}

    def reached(self) -> None:
        """Let all modules run from here on.

        Raises:
            Deviation: If some that did have not run before.
        """
        if self._next != len(self._calls):
            raise Deviation
        self.__exit__()

    def _forward(self, module: nn.Module, *_args: Any, **_kwargs: Any) -> Any:
        if self._next == len(self._calls) or self._calls[self._next][0] is not module:
            raise Deviation
        output = self._calls[self._next][1]
        self._next += 1
        return mapped(output, lambda leaf: leaf.at(self._rows) if isinstance(leaf, CachedTensor) else leaf)
