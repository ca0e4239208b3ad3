"""Finds which modules can be left out before a site, and proves on a few rows that nothing changes without them."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._guard import compiled_types, forward
from lightning_xai.bound_model import Arguments, Binding, BoundModel
from lightning_xai.multiplications import count_multiplications
from lightning_xai.operation_kinds import LINEAR, kind_of
from lightning_xai.operations import Operations
from lightning_xai.prefix import Kept, Opaque, Prefix, is_plain_context, mapped
from lightning_xai.sites import Place

if TYPE_CHECKING:
    from typing_extensions import Self

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


@dataclass
class _Call:
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


class _Counter(Operations):
    """Counts multiplications, and knows the results of linear operations."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.total = 0.0
        self.linear: Any = WeakTensorKeyDictionary()

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    def __init__(self, network: nn.Module, site: Place, counter: _Counter | None = None) -> None:
        self.calls: list[_Call] = []
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
                self._hooks.callback(module.register_forward_pre_hook(partial(self._begin, name)).remove)
                self._hooks.callback(module.register_forward_hook(partial(self._end, name)).remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()

    def looks_at(self, name: str) -> bool:  # noqa: ARG002 - some do not look at all
        """Tell whether a module is looked at."""
        return True

    def copied(self, name: str, output: Any) -> Any:  # noqa: ARG002 - some ask for the name
        """Copy what a call returned; None if that holds more than plain tensors and constants."""
        try:
            return mapped(output, _copied)
        except Opaque:
            return None

    def _begin(self, name: str, _module: nn.Module, _args: Any) -> None:
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
        self.calls.append(_Call(name, began, self._clock, self.copied(name, output), cost))
        if name == self._place.layer:
            if self._runs == (self._place.call or 0):
                found = self._place.read(output)
                self.is_linear = self._counter is not None and found in self._counter.linear
                self.site = found.detach().clone()
            self._runs += 1


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
        self._names = {name for name, _ in plan.calls}
        self._outputs: list[tuple[str, Any]] | None = []

    def looks_at(self, name: str) -> bool:
        return name in self._names or name == self._plan.site.layer

    def copied(self, name: str, output: Any) -> Any:
        """Keep what a call of the plan returned, unless it lies in another one or the plan does not hold."""
        around = any(opened in self._names for opened, *_ in self._open)
        if name not in self._names or around or self._outputs is None:
            return None
        place = len(self._outputs)
        planned, marks = self._plan.calls[place] if place < len(self._plan.calls) else ("", ())
        try:
            self._outputs.append((name, _kept(output, marks, self._samples)))
        except ValueError:
            planned = ""
        if name != planned:
            self._outputs = None
        return None

    def prefix(self) -> Prefix | None:
        """Return what was kept; None if the pass was not as planned."""
        if self._outputs is None or len(self._outputs) != len(self._plan.calls):
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
        return Kept(value.detach().clone(), samples, mark.width, mark.is_read)

    return mapped(output, keep)


def _copied(leaf: Any) -> Any:
    if type(leaf) in (Tensor, nn.Parameter) and not leaf.is_inference():
        return leaf.detach().clone()
    if leaf is None or isinstance(leaf, bool | int | float | str | torch.Size):
        return leaf
    raise Opaque


@dataclass(frozen=True)
class PrefixPlan:
    """The calls that are left out before a site.

    Attributes:
        site: The site.
        calls: Per call the module and what is known of each tensor that it returns; None for constants.
        share: The share of the multiplications of a whole pass that is left.
    """

    site: Place
    calls: tuple[tuple[str, tuple[_Mark | None, ...]], ...]
    share: float


# Plans by the network and what it is given; None where passes have to be whole.
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
    if not plain or not is_plain_context() or any(type(part).__name__.startswith("FSDP") for part in network.modules()):
        return None
    samples = len(arguments.source()[0])
    key = site, arguments.explained, arguments.form(), samples > 1
    known = _plans.setdefault(network, {})
    if key not in known:
        few = arguments.at(torch.tensor([0, samples - 1]))
        known[key] = plan = _searched(network, replace(arguments, values=few), site)
        if plan is not None:
            left = f"{100 * plan.share:.0f} % of the multiplications are left"
            _log.info("Passes begin at %r: %s.", site.layer, left)
    return known[key]


def _searched(network: nn.Module, few: Arguments, site: Place) -> PrefixPlan | None:
    """Find the plan by two samples; None if there is none that pays and holds."""
    rows = torch.tensor([1, 1, 0])
    source = few.source()[0]
    counter = _Counter(network)
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
    prefix = Prefix(network, site, [(call.module, kept[call.began]) for call in chosen], share)
    if prefix.replay(None, None) is None:
        return None
    bound = BoundModel(network, Binding(few, site, rows=rows, prefix=prefix))
    try:
        found = forward(bound, site.units_first(whole.site))
    except Exception as error:  # whole passes work, as was seen: what is wrong is to begin at the site
        _log.debug("Passes that begin at %r fail: %r.", site.layer, error)
        return None
    if prefix.share == 1 or not _agree(found, expected):
        return None
    return PrefixPlan(site, tuple((call.module, _marks(kept[call.began])) for call in chosen), share)


def _outermost(calls: Iterable[_Call], chosen: Container[int] | None = None) -> list[_Call]:
    """The calls that lie in no other one of them, or of those that began when ``chosen`` says."""
    found: list[_Call] = []
    for call in sorted(calls, key=lambda call: call.began):
        if (not found or call.began > found[-1].ended) and (chosen is None or call.began in chosen):
            found.append(call)
    return found


def _same_call(call: _Call, other: _Call, rows: Tensor) -> Any:
    """What a call of two samples returned, to be kept, if it is what another one returned for ``rows`` of them."""
    if call.output is None or other.output is None:
        return None
    others: list[Any] = []
    mapped(other.output, others.append)
    rest = iter(others)
    same = True

    def keep(leaf: Any) -> Any:
        nonlocal same
        peer = next(rest, None)
        if not isinstance(leaf, Tensor) or not isinstance(peer, Tensor):
            same = same and type(leaf) is type(peer) and leaf == peer
            return leaf
        width = 0 if leaf.shape == peer.shape or not leaf.ndim else len(leaf) // 2
        found = Kept(leaf, 2, width, True)
        same = same and _agree(found.at(rows) if len(leaf) == 2 * width else leaf, peer)
        found.is_read = None
        return found

    output = mapped(call.output, keep)
    return output if same and not [*rest] else None


def _marks(output: Any) -> tuple[_Mark | None, ...]:
    leaves: list[Any] = []
    mapped(output, leaves.append)
    return tuple(_Mark(leaf.width, bool(leaf.is_read)) if isinstance(leaf, Kept) else None for leaf in leaves)


def _agree(found: Any, expected: Any) -> bool:
    """Whether two results are the same, to rounding."""
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and _close(found, expected)
    if type(found) is not type(expected):
        return False
    if isinstance(expected, Mapping):
        return [*found] == [*expected] and all(_agree(found[key], expected[key]) for key in expected)
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(_agree, found, expected))
    return expected is None or (isinstance(expected, bool | int | float | str) and bool(found == expected))


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    number = expected.isfinite()
    if not torch.equal(number, found.isfinite()):
        return False
    allowed = _ROUNDING.get(expected.dtype, _COARSE)
    found, expected = found[number], expected[number]
    return not expected.numel() or bool((found - expected).abs().max() <= allowed * expected.abs().max())
