"""One call of the torch API in a forward pass, as patterns and rules meet it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_xai.operations.kinds import arguments, is_in_place, kind_of, operation_name
from lightning_xai.relevance.functions import Rewired, scaled

if TYPE_CHECKING:
    from lightning_xai.relevance.linear import LinearCall
    from lightning_xai.relevance.trace import Trace


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass, as patterns see it.

    Attributes:
        name: The function of the torch API, e.g. ``"conv2d"``.
        kind: Its kind, e.g. ``"convolution"``; None if it has none.
        module: The dotted name of the module that runs; ``""`` for the model itself.
        first: Whether it is a linear operation that the model's input reaches through no other one.
        last: Whether it is the linear operation nearest to the score.
        alias: ``"relu"`` or ``"relu6"`` where it is one that is written as ``hardtanh`` or ``clamp``.

    Example:
        >>> from lightning_xai.relevance import composites
        >>> stem = Operation("conv2d", "convolution", "stem.conv", first=True)
        >>> print(stem)
        conv2d in 'stem.conv'
        >>> composites.EpsilonPlusFlat().rule_for(stem), composites.EpsilonPlus().rule_for(stem)
        (Flat(), ZPlus(epsilon=1e-06, bias=True))
    """

    name: str
    kind: str | None
    module: str
    first: bool = False
    last: bool = False
    alias: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.module!r}" if self.module else f"{self.name} in the model itself"


@dataclass(eq=False)
class Call:
    """One call of the torch API whose result depends on the explained input.

    A rule makes it with :meth:`make`, and says how relevance goes back through it: by what it makes it with (factors
    with a :meth:`share`, constants), or with a backward of its own (:meth:`with_backward`).

    Attributes:
        func: The function of the torch API.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        operation: What patterns see of it.
        tensors: The tensors among its arguments.
        live: Those of them that depend on the explained input.
        trace: What the pass knows of its tensors.
        linear: What a convolution or linear operation was called with.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operation: Operation
    tensors: list[Tensor]
    live: list[Tensor]
    trace: Trace
    linear: LinearCall | None = field(default=None, repr=False)

    @property
    def in_place(self) -> bool:
        """Whether the call writes its result into its first argument."""
        return is_in_place(self.func, self.kwargs)

    def named(self) -> dict[str, Any]:
        """The arguments by their names, those that were given."""
        return arguments(self.func, self.args, self.kwargs)

    def make(self, *args: Any, **kwargs: Any) -> Any:
        """Make the call, with other arguments if there are some: all positional ones, or all by their names."""
        if self.in_place:
            self.trace.before_write(self)
        if kwargs:
            return self.func(**kwargs)
        args = args or self.args
        if self.operation.name in ("view", "as_strided"):
            return _viewed(self.func, args, self.kwargs)
        return self.func(*args, **self.kwargs)

    def with_backward(self, backward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Make a call of one tensor x, and go back by g_x = backward(g_y, x, y), with R = x g."""
        if len(self.live) != 1 or self.live[0] is not self.args[0]:
            raise ValueError(
                f"with_backward is for calls of one tensor, but {self.operation} reads {len(self.live)} that depend on "
                f"the input; make it with shares or constants instead."
            )

        def run(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            y = self.applied(x)
            return y, (x.clone() if self.in_place else x, y)

        return self.rewired(run, backward)

    def rewired(
        self, run: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]], backward: Callable[..., Tensor]
    ) -> Tensor:
        """Make a call by ``run``, which gives the result and what ``backward(g, *saved)`` needs to go back."""
        found: Tensor = Rewired.apply(self.args[0], run, backward)
        if self.in_place:
            self.trace.before_write(self)
            found = self.args[0].copy_(found)
        return found

    def applied(self, x: Tensor) -> Tensor:
        """The result for another first argument, which is left as it is."""
        found: Tensor = self.func(x.clone() if self.in_place else x, *self.args[1:], **self.kwargs)
        return found

    def share(self, argument: Any, share: float) -> Any:
        """An argument that hands on only a share of its relevance."""
        return scaled(argument, share) if is_live(argument) else argument

    def on_gradient(self, result: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
        """The result, whose g is replaced by ``hook(g)`` on the way back."""
        result.register_hook(hook)  # type: ignore[no-untyped-call]
        return result

    def has_parameters(self) -> bool:
        """Whether tensors that do not depend on the input take part."""
        return len(self.live) < len(self.tensors)


def is_live(argument: Any) -> bool:
    """Whether an argument is a tensor that depends on the explained input.

    A leaf that requires a gradient is a parameter that the model does not own up to.
    """
    return isinstance(argument, Tensor) and argument.requires_grad and not argument.is_leaf


def is_added(name: str) -> bool:
    """Whether a matrix product adds a third tensor, as ``addmm`` and ``baddbmm`` do."""
    return name.startswith(("add", "badd"))


def kind_in(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], live: list[Tensor]) -> str | None:
    """The kind of a call: that of its function, where its arguments do not make it another."""
    name, kind, named = operation_name(func), kind_of(func), arguments(func, args, kwargs)
    if kind == "matmul":
        return "linear" if len(live) == 1 or is_added(name) else "product"
    if name == "instance_norm" and not named.get("use_input_stats", True):
        return "affine_norm"  # by statistics that were kept
    if name in ("pow", "float_power") and isinstance(exponent := named.get("exponent"), int | float) and exponent < 0:
        return "statistic"  # what a norm written by hand divides by
    if name in ("scatter_reduce", "index_reduce") and named.get("reduce") == "prod":
        return None
    return kind


def bounds(name: str, named: dict[str, Any]) -> tuple[float | None, float | None]:
    """The numbers between which a function keeps its results; None for no bound, and for those of other functions."""
    found: dict[str, tuple[Any, Any]] = {
        "relu": (0, None),
        "relu6": (0, 6),
        "hardtanh": (named.get("min_val", -1.0), named.get("max_val", 1.0)),
        "clamp": (named.get("min"), named.get("max")),
        "clip": (named.get("min"), named.get("max")),
        "clamp_min": (named.get("min"), None),
    }
    low, high = found.get(name, (None, None))
    return (None, None) if isinstance(low, Tensor) or isinstance(high, Tensor) else (low, high)


def alias_of(name: str, named: dict[str, Any]) -> str:
    """The name of an operation; a ReLU has its own also where it is written as ``clamp`` or ``hardtanh`` (nn.ReLU6)."""
    found = bounds(name, named)
    return "relu" if found == (0, None) else "relu6" if found == (0, 6) else name


def is_rectifier(name: str, named: dict[str, Any]) -> bool:
    """Whether a function of single numbers is 0 wherever they are negative, and never negative."""
    low, high = bounds(name, named)
    return low == 0 and (high is None or high >= 0)


def _viewed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # The explained input may lie in another memory layout than the model counts on.
    if func is torch.as_strided or func is Tensor.as_strided:
        return func(args[0].contiguous(), *args[1:], **kwargs)
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        if args[0].is_contiguous():
            raise
        return func(args[0].contiguous(), *args[1:], **kwargs)
