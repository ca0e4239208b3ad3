"""A place in a network, the output of a module: read or replaced in a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._compiled import is_sharded
from lightning_xai.sites import Place

if TYPE_CHECKING:
    from typing_extensions import Self

    from lightning_xai.prefix.replay import Replay

_REPLACED: Any = WeakTensorKeyDictionary()


def replaced_output(tensor: Tensor) -> Tensor | None:
    """Return what a module has returned in the place of an explained tensor; None if the tensor is not explained."""
    found: Tensor | None = _REPLACED.get(tensor)
    return found


class Deviation(BaseException):
    """Says that a pass that begins at a site is not as those before; no ``except Exception`` of a model catches it."""


class LayerReached(BaseException):
    """Ends a forward pass at the layer that is read; no ``except Exception`` of a model catches it."""


def times(count: int) -> str:
    """Say how often."""
    return "once" if count == 1 else f"{count} times"


def is_own_hook(hook: Callable[..., Any]) -> bool:
    """Tell whether a hook is one of this package, which are set for a pass and taken away after it."""
    return str(getattr(getattr(hook, "func", hook), "__module__", None)).startswith("lightning_xai.")


class _LayerHook(ABC):
    """A hook on the output of a module, for the calls of it that a place means."""

    def __init__(self, network: nn.Module, place: Place) -> None:
        self.place = place
        self._module = network.get_submodule(place.layer)
        self.count = 0

    def __enter__(self) -> Self:
        self._handle = self._module.register_forward_hook(self._hook)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._handle.remove()
        if kind is None:
            self._check()

    def _hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        count, self.count = self.count, self.count + 1
        return self.on_output(output) if self.place.call in (None, count) else None

    @abstractmethod
    def on_output(self, output: Any) -> Any:
        """Take what the module returned; what is returned takes its place, unless it is None."""

    def _check(self) -> None:
        layer, call, count = self.place.layer, self.place.call, self.count
        if count == 0:
            raise ValueError(
                f"layer {layer!r} does not run in a forward pass of the model: name a module that does, e.g. the one "
                f"around it."
            )
        if call is None and count > 1:
            raise ValueError(
                f"layer {layer!r} runs {times(count)} in a forward pass: say which call is meant, "
                f"at=Site({layer!r}, call=0) to call={count - 1}."
            )
        if call is not None and call >= count:
            raise ValueError(f"layer {layer!r} runs {times(count)} in a forward pass; there is no call={call}.")


class Substitution(_LayerHook):
    """Puts x [N, C, *S] in the place of a module's output, where a replay of what comes before ends.

    Attributes:
        is_reached: Whether that was done.
    """

    def __init__(self, network: nn.Module, place: Place, x: Tensor, replay: Replay | None) -> None:
        super().__init__(network, place)
        self._x, self._replay = x, replay
        self.is_reached = False

    def __enter__(self) -> Self:
        super().__enter__()
        hooks = self._module._forward_hooks
        for key, hook in list(hooks.items()):
            if key != self._handle.id and is_own_hook(hook):  # those that look here see what is put here
                hooks.move_to_end(key)  # type: ignore[attr-defined]
        return self

    def on_output(self, output: Any) -> Any:  # noqa: D102 - where it is abstract
        self.is_reached = True
        if self._replay is not None:
            self._replay.reached()
        clean = self.place.read(output)
        if self._x.requires_grad and not torch.is_grad_enabled():
            torch.set_grad_enabled(True)  # until the model's own no_grad() ends
        # What follows may work in place, which must not reach what was given.
        value = self.place.units_back(self._x).clone()
        if value.shape != clean.shape:
            raise ValueError(f"layer {self.place.layer!r} returns {list(clean.shape)} here, not {list(value.shape)}.")
        _REPLACED[value] = clean
        return self.place.write(output, value)


class LayerOutput(_LayerHook):
    """Keeps the output of a module, and ends the pass there unless it must go on.

    Args:
        network: The network.
        place: The module.
        to_the_end: Let the pass go on.
        site: Puts something in the place that is explained, on which the output is to depend.

    Attributes:
        output: What was kept, of the last call that is meant.
    """

    output: Tensor

    def __init__(
        self, network: nn.Module, place: Place, *, to_the_end: bool = False, site: Substitution | None = None
    ) -> None:
        super().__init__(network, place)
        self._site = site
        # Parameters of a sharded module stay gathered if its pass does not end.
        self._to_the_end = to_the_end or is_sharded(network)

    def on_output(self, output: Any) -> Any:  # noqa: D102 - where it is abstract
        if self._site is not None and not self._site.is_reached:
            raise ValueError(
                f"the score reads layer {str(self.place)!r}, which runs before {str(self._site.place)!r}, where the "
                f"explanation lies, and so cannot depend on it: read a layer that runs later, or explain at an earlier "
                f"one."
            )
        self.output = self.place.read(output).clone()
        if not self._to_the_end:
            raise LayerReached
