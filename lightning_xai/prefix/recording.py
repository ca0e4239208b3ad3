"""Records which modules have ended when a site is reached, and what they return."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._guard import compiled_types
from lightning_xai.operations import Operations
from lightning_xai.operations.kinds import LINEAR, kind_of
from lightning_xai.operations.multiplications import count_multiplications
from lightning_xai.prefix.replay import Opaque, mapped
from lightning_xai.sites import Place

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Call:
    """A call of a module.

    Attributes:
        module: The module's dotted name.
        began: When, by a clock that counts the beginnings and ends of calls.
        ended: When it ended.
        output: What it returned, copied; None if that holds more than plain tensors and constants.
        cost: The multiplications inside.
    """

    module: str
    began: int
    ended: int
    output: Any
    cost: float


class Counter(Operations):
    """Counts multiplications, and knows the results of linear operations."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.total = 0.0
        self.linear: Any = WeakTensorKeyDictionary()

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: D102 - where it is abstract
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.total += count_multiplications(func, args, kwargs, result.numel())
            if kind_of(func) in LINEAR:
                self.linear[result] = None
        return result


class Recording:
    """Records the calls of modules that end before a site is reached, that of the site itself the last.

    Args:
        network: The network.
        site: The site.
        counter: Counts the multiplications of the pass.

    Attributes:
        calls: The calls.
        site: What the site's module returned there; None before.
        is_linear: Whether the tensor there is the result of a linear operation.
    """

    def __init__(self, network: nn.Module, site: Place, counter: Counter | None = None) -> None:
        self.calls: list[Call] = []
        self.site: Tensor | None = None
        self.is_linear = False
        self._network, self._place, self._counter = network, site, counter
        self._clock, self._runs = 0, 0
        self._open: list[tuple[str, int, float]] = []
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        hidden: tuple[type[nn.Module], ...] = (torch.jit.ScriptModule, *compiled_types())
        for name, module in self._network.named_modules():
            if name and self.looks_at(name) and not isinstance(module, hidden):
                self._hooks.callback(
                    module.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True).remove
                )
                self._hooks.callback(module.register_forward_hook(partial(self._end, name)).remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()

    def looks_at(self, name: str) -> bool:  # noqa: ARG002 - some do not look at all
        """Tell whether a module is looked at."""
        return True

    def began(self, name: str, given: Any) -> None:
        """Be told of the arguments of a call; the default does nothing."""

    def copied(self, name: str, output: Any) -> Any:  # noqa: ARG002 - some ask for the name
        """Copy what a call returned; None if that holds more than plain tensors and constants."""
        try:
            return mapped(output, _copied)
        except Opaque:
            return None

    def _begin(self, name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.began(name, [args, kwargs])
        self._clock += 1
        self._open.append((name, self._clock, self._counter.total if self._counter else 0.0))

    def _end(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.site is not None:
            return
        self._clock += 1
        while self._open[-1][0] != name:  # one that has raised never ends
            self._open.pop()
        _, began, count = self._open.pop()
        cost = self._counter.total - count if self._counter else 0.0
        self.calls.append(Call(name, began, self._clock, self.copied(name, output), cost))
        if name == self._place.layer:
            if self._runs == (self._place.call or 0):
                found = self._place.read(output)
                self.is_linear = self._counter is not None and found in self._counter.linear
                self.site = found.detach().clone()
            self._runs += 1


def _copied(leaf: Any) -> Any:
    if type(leaf) in (Tensor, nn.Parameter) and not leaf.is_inference():
        return leaf.detach().clone()
    if leaf is None or isinstance(leaf, bool | int | float | str | torch.Size):
        return leaf
    raise Opaque
