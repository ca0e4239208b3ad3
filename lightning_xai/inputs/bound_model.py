"""A network as a function of the one tensor that is explained; everything else it takes or does is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_xai._compiled import eager
from lightning_xai.inputs.leaves import Path, rebuilt
from lightning_xai.inputs.places import Deviation, LayerOutput, LayerReached, Substitution
from lightning_xai.sites import Key, Place

if TYPE_CHECKING:
    from lightning_xai.prefix.replay import Prefix, Replay


@dataclass(frozen=True)
class Containers:
    """Arguments that hold others.

    Attributes:
        values: The arguments, by place.
        paths: The paths of their leaves, by name.
    """

    values: Mapping[Key, Any]
    paths: Mapping[Key, Path]


@dataclass(frozen=True)
class Arguments:
    """The arguments of a network, one or several of which are explained.

    Attributes:
        values: All arguments by place; of one that is a container, its leaves by their names.
        explained: The places of those that are explained.
        following: The places of those that hold something for every sample, so that they follow the samples.
        containers: The arguments that are containers, by place, and the paths of their leaves by name.
        axis: The axis of the channels of what is explained.
    """

    values: Mapping[Key, Any]
    explained: tuple[Key, ...]
    following: frozenset[Key] = frozenset()
    containers: Containers = field(default_factory=lambda: Containers({}, {}))
    axis: int = 1

    def at(self, rows: Tensor | None) -> dict[Key, Any]:
        """Return the arguments for some samples; None for all of them, in their order."""
        if rows is None:
            return dict(self.values)
        moving = self.following | set(self.explained)
        return {key: pick(value, rows) if key in moving else value for key, value in self.values.items()}

    def source(self, rows: Tensor | None = None) -> list[Tensor]:
        """Return the explained arguments as tensors [N, ...], channels first."""
        found = self.at(rows)
        sources = [stacked(found[key]) for key in self.explained]
        return sources if self.axis == 1 else [source.movedim(self.axis, 1) for source in sources]

    def form(self) -> tuple[Any, ...]:
        """Return what of the arguments may change which operations a pass makes, and the shapes of their results."""
        moving = self.following | set(self.explained)
        return tuple((key, _form(value, key in moving)) for key, value in self.values.items())

    def assembled(self, values: Mapping[Key, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the named arguments that hold values, by place or name of a leaf."""
        paths = self.containers.paths
        leaves = {paths[key]: value for key, value in values.items() if key in paths}
        whole = {key: value for key, value in values.items() if key not in paths}
        whole |= {key: rebuilt(value, (key,), leaves) for key, value in self.containers.values.items()}
        args = [whole[key] for key in sorted(key for key in whole if isinstance(key, int))]
        return args, {key: value for key, value in whole.items() if isinstance(key, str)}


def _form(value: Any, moving: bool) -> Any:
    if isinstance(value, Tensor):
        return moving, tuple(value.shape[1:] if moving else value.shape), value.dtype, value.device
    if isinstance(value, list | tuple):
        parts = [_form(part, False) for part in value]
        return frozenset(parts) if moving else tuple(parts)
    if isinstance(value, Mapping):
        return tuple((key, _form(part, moving)) for key, part in value.items())
    return repr(value) if isinstance(value, bool | int | float | str) else type(value)


def stacked(value: Any) -> Tensor:
    """Return a list or tuple of tensors of one shape as a tensor [N, ...]; a tensor as it is."""
    return value if isinstance(value, Tensor) else torch.stack(list(value))


def pick(value: Any, rows: Tensor) -> Any:
    """Select the rows of a tensor, of a list or tuple, or of those in a dict."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, Mapping):
        return {key: pick(part, rows) for key, part in value.items()}
    return type(value)([value[row] for row in rows.tolist()])


@dataclass(frozen=True)
class Binding:
    """The parts of a call that a :class:`BoundModel` fixes.

    Attributes:
        arguments: The arguments.
        site: The place that is explained instead of the arguments; None for the arguments themselves.
        reads: The place that is the output; None for the network's own output.
        absent: Cells of the explained tensor that are no features, Boolean [N, *S]; None if there are none.
        there: Which positions of the output are no padding, by their mask, Boolean [N, T]; why that is not known; None
            without masks.
        decoded: Whether these positions are those of a decoder, which are none of what an encoder is given.
        position: The position of the output [N] that is read of every sample; None if nothing is said.
        rows: Which sample each row is; None for all of them in their order.
        prefix: What comes before the site; None if every pass is a whole one.
    """

    arguments: Arguments
    site: Place | None = None
    reads: Place | None = None
    absent: Tensor | None = None
    there: Tensor | str | None = None
    decoded: bool = False
    position: Tensor | None = None
    rows: Tensor | None = None
    prefix: Prefix | None = None


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
        return self if network is self.network else BoundModel(network, replace(self.binding, prefix=None))

    def whole(self) -> BoundModel:
        """Return the same function by passes through the whole network."""
        return BoundModel(self.network, replace(self.binding, prefix=None))

    @property
    def share(self) -> float:
        """The share of the multiplications of passes through the whole network that its calls have made."""
        return 1.0 if self.binding.prefix is None else self.binding.prefix.share(self.binding.reads)

    def reading(self, place: Place) -> BoundModel:
        """Return the same function with the output of a module as its output."""
        return BoundModel(self.network, replace(self.binding, reads=place))

    @property
    def axis(self) -> int:
        """The axis of the channels in the user's form of what is explained."""
        site, axis = self.binding.site, self.binding.arguments.axis
        return axis if site is None or site.axis is None else site.axis

    @property
    def absent(self) -> Tensor | None:
        """Cells that are no features, Boolean [rows, *S]."""
        return self._of_rows(self.binding.absent)

    @property
    def there(self) -> Tensor | str | None:
        """Which positions of the output are no padding, Boolean [rows, T], or why that is not known."""
        there = self.binding.there
        return there if isinstance(there, str) else self._of_rows(there)

    @property
    def decoded(self) -> Tensor | None:
        """Which positions of a decoder's output are no padding, Boolean [rows, T]; None if it is none, or not known."""
        there = self.there
        return there if self.binding.decoded and isinstance(there, Tensor) else None

    @property
    def position(self) -> Tensor | None:
        """The position of the output that is read of every row."""
        return self._of_rows(self.binding.position)

    def _of_rows(self, values: Tensor | None) -> Tensor | None:
        rows = self.binding.rows
        return values if values is None or rows is None else values[rows.to(values.device)]

    @property
    def count(self) -> int:
        """The number of rows that the model is bound to."""
        arguments, rows = self.binding.arguments, self.binding.rows
        return len(arguments.values[arguments.explained[0]] if rows is None else rows)

    def __call__(self, x: Tensor) -> Any:
        """Run the network with x in the place of what is explained.

        Raises:
            ValueError: If x has another number of rows than is bound.
        """
        binding = self.binding
        if len(x) != self.count:
            raise ValueError(
                f"the model is bound to {self.count} samples and got {len(x)} rows: say with at(rows) which samples "
                f"they are."
            )
        values = binding.arguments.at(binding.rows)
        if binding.site is None:
            explained = binding.arguments.explained
            for key, part in zip(explained, split_columns(x, [stacked(values[key]) for key in explained]), strict=True):
                part = part if binding.arguments.axis == 1 else part.movedim(1, binding.arguments.axis)
                values[key] = part if isinstance(values[key], Tensor) else type(values[key])(part)
        args, kwargs = binding.arguments.assembled(values)
        prefix = binding.prefix
        replay = None if prefix is None else prefix.replay(binding.reads, binding.rows)
        if prefix is not None and replay is not None:
            try:
                with replay:
                    output = self._run(x, args, kwargs, replay)
                prefix.made(len(x), is_whole=False)
                return output
            except Deviation:
                prefix.deviates()
        if prefix is not None:
            prefix.made(len(x), is_whole=True)
        return self._run(x, args, kwargs)

    def _run(self, x: Tensor, args: list[Any], kwargs: dict[str, Any], replay: Replay | None = None) -> Any:
        binding = self.binding
        with ExitStack() as stack:
            if binding.site is not None or binding.reads is not None:
                stack.enter_context(eager())  # compiled code has forgotten hooks that are set later
            site = None
            if binding.site is not None:
                site = stack.enter_context(Substitution(self.network, binding.site, x, replay))
            if binding.reads is None:
                return self.network(*args, **kwargs)
            with LayerOutput(self.network, binding.reads, site=site) as seen, suppress(LayerReached):
                self.network(*args, **kwargs)
            return binding.reads.units_first(seen.output)


def split_columns(x: Tensor, sources: list[Tensor]) -> list[Tensor]:
    """Return the explained arguments that a tensor stands for: itself, or its columns [N, F] in their shapes."""
    if len(sources) == 1:
        return [x]
    parts = torch.split(x, [source[0].numel() for source in sources], 1)
    return [part.reshape(source.shape) for part, source in zip(parts, sources, strict=True)]


def at_rows(model: nn.Module, rows: Tensor | slice) -> nn.Module:
    """Return the model for some of its samples; a network that takes one tensor is the same for all of them."""
    if not isinstance(model, BoundModel):
        return model
    if isinstance(rows, slice):
        rows = torch.arange(model.count)[rows]
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
