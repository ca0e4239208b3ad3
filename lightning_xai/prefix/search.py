"""Finds which modules can be left out before a site, and proves on a few rows that nothing changes without them."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_xai._compiled import is_sharded
from lightning_xai._guard import forward
from lightning_xai.inputs.bound_model import Arguments, Binding, BoundModel
from lightning_xai.operations import tensors_in
from lightning_xai.prefix.proof import (
    ChangedAttributes,
    Leaf,
    Rehearsal,
    Trace,
    same_steps,
    storages_of,
    version,
    versions,
    written,
)
from lightning_xai.prefix.recording import Call, Counter, Recording
from lightning_xai.prefix.replay import CachedTensor, Prefix, is_hooked, is_plain_context, mapped
from lightning_xai.rows import row_difference
from lightning_xai.sites import Place

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)

# Where less than this share of a pass lies before the site, finding out costs more than it saves.
_LEAST = 0.1
# How far results may lie apart, as a share of the largest: kernels round batches of another size otherwise.
_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-4}
_COARSE = 5e-2


@dataclass(frozen=True)
class _Mark:
    """A tensor among what a module returns: the rows that each sample has of it, and whether its numbers are read."""

    width: int
    is_read: bool


class _Keeping(Recording):
    """Records the calls of a plan, and copies what will be read of what they return.

    Args:
        network: The network.
        plan: The plan.
        samples: How many samples the pass has.
    """

    def __init__(self, network: nn.Module, plan: PrefixPlan, samples: int) -> None:
        super().__init__(network, plan.site)
        self._plan, self._samples = plan, samples
        self._names = {call.module for call in plan.calls}
        self._outputs: list[tuple[str, Any]] | None = []
        # What is read of what was returned, with its version then and the copy.
        self._read: dict[Leaf, tuple[Tensor, int, Tensor]] = {}
        self._exposed: dict[int | Leaf, Tensor] = {}
        self._before: dict[int | Leaf, int] = {}

    def looks_at(self, name: str) -> bool:
        return name in self._names or name == self._plan.site.layer

    def began(self, name: str, given: Any) -> None:
        """Remember what a call of the plan could write to."""
        if name in self._names and not self._is_inside():
            read = {leaf: tensor for leaf, (tensor, *_) in self._read.items()}
            self._exposed = dict(enumerate(tensors_in(given))) | read
            self._before = versions(self._exposed)

    def copied(self, name: str, output: Any) -> Any:
        """Keep what a call of the plan returned, unless it lies in another one or the plan does not hold."""
        if name not in self._names or self._is_inside() or self._outputs is None:
            return None
        place = len(self._outputs)
        planned = self._plan.calls[place] if place < len(self._plan.calls) else None
        has_written = written(self._exposed, self._before)
        # What is written to may depend on the samples.
        if planned is None or name != planned.module or not has_written <= planned.writes:
            self._outputs = None
            return None
        try:
            kept = _kept(output, planned.marks, self._samples)
        except ValueError:
            self._outputs = None
            return None
        self._outputs.append((name, kept))
        for number, (tensor, part) in enumerate(zip(_leaves(output), _leaves(kept), strict=True)):
            if isinstance(part, CachedTensor) and part.is_read:
                self._read[place, number] = tensor, version(tensor), part.value
        return None

    def _is_inside(self) -> bool:
        return any(opened in self._names for opened, *_ in self._open)

    def prefix(self) -> Prefix | None:
        """Return what was kept; None if the pass was not as planned."""
        if self._outputs is None or len(self._outputs) != len(self._plan.calls):
            return None
        for tensor, before, value in self._read.values():
            # Not every write counts a version up, as those through .data and numpy.
            if version(tensor) == before and not torch.equal(
                *(_as_real(part).nan_to_num() for part in (tensor, value))
            ):
                return None
        return Prefix(self._network, self._plan.site, self._outputs, self._plan.share)


def _kept(output: Any, marks: Sequence[_Mark | None], samples: int) -> Any:
    """Keep what a call returned for some samples.

    Raises:
        ValueError: If it does not have the marks.
    """
    rest = iter(marks)

    def keep(leaf: Any) -> Any:
        mark = next(rest, None)
        if isinstance(leaf, Tensor) != (mark is not None):
            raise ValueError
        if mark is None:
            return leaf
        if mark.width and len(leaf) != mark.width * samples:
            raise ValueError
        value = leaf[:0] if mark.width and not mark.is_read else leaf
        return CachedTensor(value.detach().clone(), samples, mark.width, mark.is_read)

    return mapped(output, keep)


class _IncomparableError(Exception):
    """Says that nothing finite was there to compare, so that another batch may tell."""


@dataclass(frozen=True)
class _PlannedCall:
    """A call that is left out.

    Attributes:
        module: The module's dotted name.
        marks: What is known of each tensor that it returns; None for constants.
        writes: What it writes to: tensors by their number among its arguments, and what earlier calls return, by the
            number of the call and the place there. Nothing else reads them afterwards.
    """

    module: str
    marks: tuple[_Mark | None, ...]
    writes: frozenset[int | Leaf]


@dataclass(frozen=True)
class PrefixPlan:
    """The calls that are left out before a site.

    Attributes:
        site: The site.
        calls: These.
        share: The share of the multiplications of a whole pass that is left.
    """

    site: Place
    calls: tuple[_PlannedCall, ...]
    share: float


# Plans by the network, what it is given and who looks at it; None where passes have to be whole.
_plans: WeakKeyDictionary[nn.Module, dict[Any, PrefixPlan | None]] = WeakKeyDictionary()


@contextmanager
def keeping(network: nn.Module, arguments: Arguments, site: Place | None) -> Iterator[_Keeping | None]:
    """Keep of a pass of all samples, which may end at the site, what passes that begin there need.

    Inside :func:`lightning_xai._guard.isolated_eval`. At first it is found what that is, and proved by passes of a few
    rows: a pass that begins at the site must give what a whole one gives.

    Args:
        network: The network.
        arguments: Its arguments.
        site: The site; None if an argument is explained.
    """
    plan = None if site is None else _plan(network, arguments, site)
    if plan is None:
        yield None
        return
    with _Keeping(network, plan, len(arguments.source()[0])) as recording:
        yield recording


def _plan(network: nn.Module, arguments: Arguments, site: Place) -> PrefixPlan | None:
    plain = all(type(part.data) is Tensor for part in (*network.parameters(), *network.buffers()))
    if not plain or not is_plain_context() or is_sharded(network):
        return None
    samples = len(arguments.source()[0])
    hooked = tuple(name for name, module in [("", None), *network.named_modules()] if is_hooked(module))
    key = site, arguments.explained, arguments.form(), samples > 1, hooked
    known = _plans.setdefault(network, {})
    if key not in known:
        few = arguments.at(torch.tensor([0, samples - 1]))
        try:
            known[key] = plan = _searched(network, replace(arguments, values=few), site)
        except _IncomparableError:
            return None
        if plan is not None:
            left = f"{100 * plan.share:.0f} % of the multiplications are left"
            _log.info("Passes begin at %r: %s.", site.layer, left)
    return known[key]


def _searched(network: nn.Module, few: Arguments, site: Place) -> PrefixPlan | None:
    """Find the plan by two samples; None if there is none that pays and holds."""
    rows = torch.tensor([1, 1, 0])
    source = few.source()[0]
    attributes = ChangedAttributes(network.modules())
    counter = Counter(network)
    with Recording(network, site, counter) as whole, counter:
        expected = forward(BoundModel(network, Binding(few, rows=rows)), source[rows.to(source.device)])
    before = sum(call.cost for call in _outermost(whole.calls))
    if whole.site is None or not before or before < _LEAST * counter.total:
        return None
    # Other rows, and after the whole pass: what modules keep for each other besides would be of the wrong rows.
    with Recording(network, site) as part:
        forward(BoundModel(network, Binding(few, reads=site)), source)
    if [(call.module, call.began) for call in part.calls] != [(call.module, call.began) for call in whole.calls]:
        return None
    kept: dict[int, Any] = {}
    for call, other in zip(part.calls, whole.calls, strict=True):
        # The rules of relevance have to see the linear operation that makes what they are given.
        if not (whole.is_linear and other is whole.calls[-1]):
            output = _same_call(call, other, rows)
            if output is not None:
                kept[call.began] = output
    chosen = _outermost(whole.calls, kept)
    share = 1 - sum(call.cost for call in chosen) / counter.total
    if share > 1 - _LEAST:
        return None
    outputs = [(call.module, kept[call.began]) for call in chosen]
    if not Prefix(network, site, outputs, share).share(None) < 1:
        return None
    storages = storages_of(network)
    traces: list[Trace] = []
    found: list[Any] = []
    inside = {module for call in chosen for module in network.get_submodule(call.module).modules()}
    # The shorter one first: what it finds of earlier passes is of other rows.
    for is_whole in (False, True):
        traces.append(Trace(storages))
        prefix = Rehearsal(network, site, outputs, traces[-1], is_whole=is_whole)
        bound = BoundModel(network, Binding(few, site, rows=rows, prefix=prefix))
        try:
            with nullcontext() if is_whole else attributes.withheld(inside), traces[-1]:
                found.append(forward(bound, site.units_first(whole.site)))
        except Exception as error:  # whole passes work, as was seen: what is wrong is to begin at the site
            _log.debug("Passes that begin at %r fail: %r.", site.layer, error)
            return None
        if prefix.has_deviated:
            return None
    if not same_steps(*traces) or not _agree(tensors_in(found[0]), tensors_in(expected)):
        return None
    calls = tuple(
        _PlannedCall(call.module, _marks(kept[call.began]), writes)
        for call, writes in zip(chosen, traces[1].writes, strict=True)
    )
    return PrefixPlan(site, calls, share)


def _outermost(calls: Iterable[Call], chosen: Container[int] | None = None) -> list[Call]:
    """The calls that lie in no other one of them, or of those that began when ``chosen`` says."""
    found: list[Call] = []
    for call in sorted(calls, key=lambda call: call.began):
        if (not found or call.began > found[-1].ended) and (chosen is None or call.began in chosen):
            found.append(call)
    return found


def _same_call(call: Call, other: Call, rows: Tensor) -> Any:
    """What a call of two samples returned, to be kept, if it is what another one returned for ``rows`` of them."""
    if call.output is None or other.output is None:
        return None
    rest = iter(_leaves(other.output))
    same = True

    def keep(leaf: Any) -> Any:
        nonlocal same
        peer = next(rest, None)
        if not isinstance(leaf, Tensor) or not isinstance(peer, Tensor):
            same = same and type(leaf) is type(peer) and leaf == peer
            return leaf
        width = 0 if leaf.shape == peer.shape or not leaf.ndim else len(leaf) // 2
        found = CachedTensor(leaf, 2, width, True)
        value = found.at(rows) if len(leaf) == 2 * width else leaf
        same = same and _agree([value], [peer])
        found.is_read = None
        return found

    output = mapped(call.output, keep)
    return output if same and not [*rest] else None


def _marks(output: Any) -> tuple[_Mark | None, ...]:
    return tuple(
        _Mark(leaf.width, bool(leaf.is_read)) if isinstance(leaf, CachedTensor) else None for leaf in _leaves(output)
    )


def _leaves(output: Any) -> list[Any]:
    leaves: list[Any] = []
    mapped(output, leaves.append)
    return leaves


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether tensors are the same, to rounding.

    Raises:
        _IncomparableError: If there is no number by which that could be told.
    """
    if len(found) != len(expected):
        return False
    for one, other in zip(map(_as_real, found), map(_as_real, expected), strict=True):
        if other.is_floating_point() and other.numel() and not bool(other.isfinite().any()):
            raise _IncomparableError
        allowed = _ROUNDING.get(other.dtype, _COARSE) if other.is_floating_point() else 0.0
        if one.dtype != other.dtype or row_difference([other], [one]) > allowed:
            return False
    return True


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
