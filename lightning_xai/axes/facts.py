"""The meaning of the axes of a module's output: rows of the batch, positions in the input, or units."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._guard import (
    detach_for_autograd,
    forward_context,
    hook_outputs,
    isolated_eval,
    observe_modules,
)
from lightning_xai.axes.means import compact, marginal, spread
from lightning_xai.axes.shadows import Shadow, ShadowedPass
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.network_facts import NetworkFacts, question_of
from lightning_xai.operations import Operations, tensors_in, unwrapped
from lightning_xai.operations.kinds import KINDS, operation_name
from lightning_xai.sites import Place, named_layer

if TYPE_CHECKING:
    from lightning_xai.inputs import InputsLike

_ROWS = 2
# An axis varies if by more than half a step of the longest one: at borders, and where kernels of several sizes stand
# side by side, coordinates shift by less.
_LEAST_STEP = 0.5 + 1e-6
_LEAST_SPREAD = 1e-9
# Coordinates of one cell agree to rounding; those of two are apart by no less than this share of the widest gap.
_SAME_CELL = 0.05


@dataclass(frozen=True)
class AxisFacts:
    """The axes of a tensor [N, ...] of a forward pass; None for what cannot be proved.

    Attributes:
        shape: The shape of the tensor, of two rows.
        batch: The axis of the rows.
        positions: The axes along which a coordinate of the input varies.
        unit: The axis of the units: the only one that is longer than 1 and holds neither rows nor positions.
        folded: Whether windows or heads lie on the axis of the rows, too.
        grid: The cells per spatial axis of the input, if every cell of a full grid is there once.
        order: The position, counted over the axes ``positions``, of each cell of the grid in reading order; None for
            positions that lie in reading order themselves.
        dropped: The positions that are no cell, such as class tokens.

    >>> facts = AxisFacts((2, 5, 8), 0, (1,), 2, grid=(2, 2), order=(1, 2, 3, 4), dropped=(0,))
    >>> print(facts)
    [2 rows, 5 positions, 8 units], grid 2 x 2 without 1 token
    >>> facts.to_grid(torch.zeros(7, 5, 8)).shape
    torch.Size([7, 8, 2, 2])
    """

    shape: tuple[int, ...]
    batch: int | None = None
    positions: tuple[int, ...] = ()
    unit: int | None = None
    folded: bool = False
    grid: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    dropped: tuple[int, ...] = ()

    @property
    def has_rows(self) -> bool:
        """Whether axis 0 holds the rows and nothing else, and one axis the units."""
        return self.batch == 0 and not self.folded and self.unit is not None

    def to_grid(self, tensor: Tensor) -> Tensor:
        r"""Lay out a tensor of any number of rows as [N, K, \*grid]; class tokens are left out.

        Raises:
            ValueError: If unit axis and grid are not known.
        """
        if self.unit is None or self.grid is None:
            raise ValueError(f"no grid of positions is known of {self}.")
        cells = tensor.movedim(self.unit, 1).flatten(2)
        if self.order is not None:
            cells = cells[..., torch.tensor(self.order, device=tensor.device)]
        return cells.reshape(*cells.shape[:2], *self.grid)

    def __str__(self) -> str:
        parts = []
        for axis, length in enumerate(self.shape):
            held = {"rows": axis == self.batch, "positions": axis in self.positions, "units": axis == self.unit}
            what = " and ".join(name for name, there in held.items() if there)
            parts.append(f"{length} {what or '?'}" + (" and more" if what == "rows" and self.folded else ""))
        text = f"[{', '.join(parts)}]"
        if self.grid is not None and self.positions:
            text += f", grid {' x '.join(map(str, self.grid))}"
            text += " in another order" if self.order is not None and not self.dropped else ""
            text += f" without {len(self.dropped)} token{'s' * (len(self.dropped) > 1)}" if self.dropped else ""
        return text


class AxisTable(dict[str, AxisFacts | None]):
    """The facts of every module's output by the module's name, in the order in which they ran; prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {'unknown' if facts is None else facts}" for name, facts in self.items())


def axis_facts(model: nn.Module, inputs: InputsLike) -> AxisTable:
    r"""Find which axes of every module's output hold rows, positions and units, by one forward pass of two rows.

    Beside every tensor of the pass run tensors of its shape that say which row, and which place along every spatial
    axis of the input, an element stands for. Operations move these as they move the numbers; a convolution takes the
    middle of its kernel, attention the place of its query, and what constants bring in has none. An axis holds what
    varies along it by more than half a step, and units if nothing does. After global attention this is the convention
    that a token stays its patch.

    Args:
        model: The network; called in eval mode and left as it was.
        inputs: Inputs [N, C, \*S], a table [N, F], or :class:`~lightning_xai.inputs.Inputs`; the first one is used.

    Returns:
        The :class:`AxisFacts` of the modules that return one tensor, by their dotted names; of a module that runs
        several times those of the last time. None where nothing is known.

    >>> model = nn.Sequential(nn.Conv1d(1, 4, 2, stride=2), nn.Flatten(2), nn.Linear(5, 3))
    >>> print(axis_facts(model, torch.zeros(1, 1, 10)))
    0  [2 rows, 4 units, 5 positions], grid 5
    1  [2 rows, 4 units, 5 positions], grid 5
    2  [2 rows, 4 ?, 3 ?]
    """
    from lightning_xai.inputs.binding import bind  # which looks for the axes of a site here

    model, values = bind(unwrapped(model), inputs)
    with isolated_eval(model), torch.no_grad():
        traced = trace_axes(model, detach_for_autograd(values))
    return AxisTable({name: output.facts for name, output in traced.items()})


class TracedOutput(NamedTuple):
    """The output of a module in the shadowed pass.

    Attributes:
        facts: What is proved of its axes; None if nothing is.
        convention: The axis of the units by the convention of the operation that made it; None if it has none.
    """

    facts: AxisFacts | None
    convention: int | None


def trace_axes(model: nn.Module, inputs: Tensor, layers: Collection[str] | None = None) -> dict[str, TracedOutput]:
    """The facts of the outputs of some modules, or of all, inside :func:`lightning_xai._guard.isolated_eval`."""
    traced: dict[str, TracedOutput] = {}
    first_names = {id(module): name for name, module in model.named_modules()}
    names = {name: name for name in first_names.values()}
    if layers is not None:  # a module of two names is told by its first one
        names = {first_names[id(named_layer(model, layer))]: layer for layer in layers}
    rows = inputs[:1].expand(_ROWS, *inputs.shape[1:]).clone()
    model = at_rows(model, torch.zeros(_ROWS, dtype=torch.long))
    shadows = ShadowedPass(model, rows)

    def see(name: str, output: Any) -> None:
        with torch._C.DisableTorchFunction():  # what is computed here is no operation of the model
            if isinstance(output, Tensor) and name in names:
                traced.pop(names[name], None)
                facts = facts_of(output, shadows.shadow_of(output))
                traced[names[name]] = TracedOutput(facts, shadows.unit_axis_of(output))

    with observe_modules(model, see), shadows, forward_context():
        model(rows)
    return traced


def output_facts(model: nn.Module, inputs: Tensor, pick: Callable[[Any], Any]) -> TracedOutput:
    """The facts of a tensor of the model's output, inside :func:`lightning_xai._guard.isolated_eval`.

    Args:
        model: The network.
        inputs: Its inputs; the first one is used.
        pick: Returns the tensor of an output.
    """
    tensor, shadow, axis = _shadowed_output(model, inputs, pick)
    return TracedOutput(None if tensor is None else facts_of(tensor, shadow), axis)


def output_places(model: nn.Module, inputs: Tensor, pick: Callable[[Any], Any], axis: int) -> tuple[Tensor, ...] | None:
    r"""Find the places in the input that the positions [\*P] of a tensor of the model's output stand for.

    The arguments are those of :func:`output_facts`, and the axis of the tensor's units.

    Returns:
        One coordinate [\*P] per spatial axis of the input (the columns of a table), NaN where a position stands for
        none, as a class token does; None if it cannot be told.
    """
    tensor, shadow, _ = _shadowed_output(model, inputs, pick)
    facts = None if tensor is None else facts_of(tensor, shadow)
    if shadow is None or facts is None or facts.batch != 0 or facts.folded:
        return None
    with torch._C.DisableTorchFunction():
        return tuple(_along(coordinate, axis) for coordinate in shadow[1:])


def _along(coordinate: Tensor, axis: int) -> Tensor:
    """A coordinate at every position, the mean over rows and units."""
    axes = (0, axis % coordinate.ndim)
    rest = [length for place, length in enumerate(coordinate.shape) if place not in axes]
    found = compact(coordinate).nanmean(axes).expand(rest)
    return found if _varying(found) else torch.full_like(found, float("nan"))


def _shadowed_output(
    model: nn.Module, inputs: Tensor, pick: Callable[[Any], Any]
) -> tuple[Tensor | None, Shadow | None, int | None]:
    """A tensor of the output for the first sample twice, its shadow, and the axis of its units by convention."""
    model = at_rows(unwrapped(model), torch.zeros(_ROWS, dtype=torch.long))
    rows = inputs[:1].expand(_ROWS, *inputs.shape[1:]).clone()
    shadows = ShadowedPass(model, rows, columns=rows.ndim == 2)
    with shadows, forward_context():
        tensor = pick(model(rows))
    if not isinstance(tensor, Tensor):
        return None, None, None
    return tensor, shadows.shadow_of(tensor), shadows.unit_axis_of(tensor)


# Operations whose result has the axes of what they read, as long as there are as many.
_KEEPING_KINDS = """convolution affine_norm norm activation softmax sum product concatenation pooling interpolation
dropout identity"""
_KEEPING = {name for kind in _KEEPING_KINDS.split() for name in KINDS[kind].names}
_KEEPING = (_KEEPING | {"contiguous", "pad", "split", "chunk"}) - {"kron", "roi_align", "ps_roi_align", "roi_pool"}


class _ChannelsFirst(Operations):
    """Follows which tensors have the axes of the input [N, C, *S], by the kinds of the operations alone."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__(model)
        self.ndim = inputs.ndim
        self.followed = WeakTensorKeyDictionary()
        self.followed[inputs] = True

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._follow(func(*args, **kwargs), args)  # `detach`

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if operation_name(func) in _KEEPING:
            return self._follow(result, [args, kwargs])
        for tensor in tensors_in(result):
            if tensor in self.followed:  # its axes were changed in place
                del self.followed[tensor]
        return result

    def _follow(self, result: Any, read: Any) -> Any:
        if any(tensor in self.followed for tensor in tensors_in(read)):
            for tensor in tensors_in(result):
                if tensor.ndim == self.ndim:
                    self.followed[tensor] = True
        return result


# Layers that were seen to return [N, K] or [N, K, *S].
_channels_first: NetworkFacts[bool] = NetworkFacts()


@contextmanager
def follow_channels(model: nn.Module, inputs: Tensor, layers: Collection[Place]) -> Iterator[set[Place]]:
    r"""Find layers that return [N, K] or, by what they are made of, [N, K, \*S], in a pass that is made anyway.

    It costs less than :func:`axis_facts`, and proves less: it follows convolutions, pooling, norms and what works cell
    by cell, from the input on. What is known of all layers already costs nothing.

    Args:
        model: The network.
        inputs: The very tensor, or what is cloned, with which the model is called inside the context.
        layers: The places of the layers.

    Yields:
        A set to which the layers are added as they run.
    """
    known, question = _channels_first.of(model), question_of(model, inputs)
    proved = {layer for layer in layers if known.get((layer, question))}
    if len(proved) == len(layers):
        yield proved
        return
    following = _ChannelsFirst(model, inputs)

    def look(layer: Place, output: Tensor) -> None:
        if output.ndim == 2 or output in following.followed:
            proved.add(layer)

    with hook_outputs(model, {layer: partial(look, layer) for layer in layers}), following:
        yield proved
    known.update({(layer, question): True for layer in proved if layer.reshape is None})


def facts_of(tensor: Tensor, shadow: Shadow | None) -> AxisFacts | None:
    """The facts of a tensor of two rows from its shadow; None without one."""
    if shadow is None:
        return None
    row, *coordinates = shadow
    rows = sorted(_varying(row))
    along = [_varying(coordinate) for coordinate in coordinates]
    positions = tuple(sorted(set[int]().union(*along)))
    batch = rows[0] if len(rows) == 1 else None
    folded = batch is not None and (tensor.shape[batch] != _ROWS or batch in positions)
    if tensor.ndim == 2 and batch == 0 and not folded:
        return AxisFacts(tuple(tensor.shape), 0, (), 1)  # [N, K]: flattened positions are units, too
    rest = [axis for axis in range(tensor.ndim) if axis not in rows and axis not in positions]
    rest = [axis for axis in rest if tensor.shape[axis] > 1] or rest
    unit = rest[0] if len(rest) == 1 else None
    facts = AxisFacts(tuple(tensor.shape), batch, positions, unit, folded)
    return replace(facts, **_layout(coordinates, along, positions)) if facts.has_rows and positions else facts


def _varying(coordinate: Tensor) -> set[int]:
    """The axes along which a coordinate varies."""
    values = compact(coordinate)
    places = {axis: marginal(values, axis) for axis, length in enumerate(values.shape) if length > 1}
    spreads = {axis: spread(along) for axis, along in places.items()}
    longest = max(spreads, key=lambda axis: spreads[axis], default=None)
    if longest is None or spreads[longest] <= _LEAST_SPREAD:
        return set()
    steps = places[longest][places[longest].isfinite()].sort().values.diff()
    return {axis for axis, wide in spreads.items() if wide > _LEAST_STEP * float(steps.max())}


def _layout(coordinates: Sequence[Tensor], along: Sequence[set[int]], positions: Sequence[int]) -> dict[str, Any]:
    """Grid, order and dropped positions, if the coordinates of the positions form a full grid."""
    places = [_at_positions(coordinate, positions) for coordinate in coordinates]
    there = torch.stack([place.isfinite() for place, axes in zip(places, along, strict=True) if axes]).all(0)
    cells = there.flatten().nonzero().flatten()
    index, grid = torch.zeros_like(cells), []
    for place, axes in zip(places, along, strict=True):
        rank = _rank(place, there, [positions.index(axis) for axis in axes], sum(axes <= other for other in along) == 1)
        level = rank.flatten()[cells]
        grid.append(int(level.max()) + 1)
        index = index * grid[-1] + level
    if math.prod(grid) != len(cells) or len(torch.unique(index)) != len(cells):
        return {}
    ordered = cells[index.argsort()]
    dropped = there.flatten().logical_not().nonzero().flatten()
    straight = len(ordered) == there.numel() and bool((ordered.diff() > 0).all())
    order = None if straight else tuple(ordered.tolist())
    return {"grid": tuple(grid), "order": order, "dropped": tuple(dropped.tolist())}


def _at_positions(coordinate: Tensor, positions: Sequence[int]) -> Tensor:
    """A coordinate at every position, the mean over all other axes."""
    others = [axis for axis in range(coordinate.ndim) if axis not in positions]
    return compact(coordinate).nanmean(others).expand([coordinate.shape[axis] for axis in positions])


def _rank(places: Tensor, there: Tensor, axes: Sequence[int], alone: bool) -> Tensor:
    """Which cell along one axis of the input every position is, counted from 0."""
    if not axes:
        return torch.zeros_like(places, dtype=torch.long)
    if alone and len(axes) == 1:  # the positions of an axis of their own are cells even where a border made them equal
        rank = marginal(places, axes[0]).argsort(stable=True).argsort()
        return rank.view(-1, *[1] * (places.ndim - axes[0] - 1)).expand_as(places)
    ordered, back = torch.unique(places[there], return_inverse=True)
    gaps = ordered.diff()
    level = torch.cat([gaps.new_zeros(1), (gaps > _SAME_CELL * gaps.max()).cumsum(0)]).long()
    ranks = torch.zeros_like(places, dtype=torch.long)
    ranks[there] = level[back]
    return ranks
