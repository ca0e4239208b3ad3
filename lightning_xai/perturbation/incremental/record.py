"""The record of a clean pass: every operation with what it takes and makes, to be made again on other rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai._guard import hook_outputs
from lightning_xai.operations import Operations, tensors_in, unwrapped
from lightning_xai.operations.kinds import arguments, is_in_place, operation_name
from lightning_xai.operations.next_operation import CallSite
from lightning_xai.perturbation.incremental.trees import Held, Ref, leaves, mapped
from lightning_xai.sites import Place

Tap = Place | CallSite
"""A place in the model whose output is wanted: a module's name, or a call."""

_READS = frozenset(("item", "bool", "tolist", "numpy", "is_nonzero", "data_ptr", "storage", "untyped_storage"))
_SHAPED_BY_DATA = frozenset(("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"))


class NotReplayable(Exception):
    """Says why a model's passes cannot be made again from a record."""


@dataclass
class Call:
    """One operation of a pass.

    Attributes:
        func: The function of the torch API.
        name: Its plain name.
        args: Its arguments, tensors that were made in the pass as :class:`Ref`, others as :class:`Held`.
        kwargs: The same for those by name.
        outputs: The values that it makes.
        module: The dotted name of the module that ran.
        in_place: Whether it writes into its first argument.
        returns_first: Whether its result is its first argument, which it does not return.
    """

    func: Callable[..., Any]
    name: str
    args: Any
    kwargs: Any
    outputs: list[int]
    module: str
    in_place: bool
    returns_first: bool = False

    @cached_property
    def leaves(self) -> list[Any]:
        """The arguments without what holds them."""
        return leaves((self.args, self.kwargs))

    def inputs(self) -> list[int]:
        """The values that the call takes, in their order."""
        return [leaf.index for leaf in self.leaves if isinstance(leaf, Ref)]

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model'!r}"


@dataclass
class Record:
    """A pass of some rows.

    Attributes:
        rows: How many.
        calls: The operations.
        shapes: The shape of every value; value 0 is the input.
        dtypes: Their types.
        values: The values, as far as they are kept.
        from_input: Whether a value depends on the input.
        output: The model's output, tensors as :class:`Ref`.
        taps: The values at the places that were asked for.
        held: The tensors that were there before the pass and are taken by its operations.
    """

    rows: int
    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    values: dict[int, Tensor] = field(default_factory=dict)
    from_input: list[bool] = field(default_factory=list)
    output: Any = None
    taps: dict[Tap, int] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)

    def tensor(self, leaf: Any) -> Any:
        """An argument that is the same in all passes, as the tensor that it stands for."""
        if isinstance(leaf, Ref):
            return self.values[leaf.index]
        return self.held[leaf.index] if isinstance(leaf, Held) else leaf

    def skeleton(self) -> Record:
        """The same with values that do not depend on the input only."""
        constants = {index: value for index, value in self.values.items() if not self.from_input[index]}
        parts = (self.calls, self.shapes, self.dtypes, constants, self.from_input, self.output, self.taps, self.held)
        return Record(self.rows, *parts)


class Recorder(Operations):
    """Records a pass of a model while it is active.

    Args:
        model: The network.
        inputs: The inputs of the pass.
        places: The places whose outputs are wanted.
        keep: Which values that depend on the input are kept, the others live as long as the model has them; None: all.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, places: Collection[Tap] = (), keep: Collection[int] | None = None
    ) -> None:
        model = unwrapped(model)
        super().__init__(model)
        self.record = Record(len(inputs))
        self._devices = {tensor.device for tensor in (inputs, *model.parameters()) if tensor.is_cuda}
        self._reason: NotReplayable | None = None
        self._model = model
        self._places = places
        self._modules = [place for place in places if isinstance(place, Place)]
        self._counts: dict[tuple[str, str], int] = {}
        self._held: dict[int, int] = {}
        self._keep = keep
        # A tensor is known by itself and its version.
        self._known: Any = WeakTensorKeyDictionary()
        self._hooks = ExitStack()
        self._add(inputs, True)

    def __enter__(self) -> Recorder:
        self._random = _random_states(self._devices)
        super().__enter__()  # type: ignore[no-untyped-call]
        self._hooks.enter_context(hook_outputs(self._model, {name: partial(self._see, name) for name in self._modules}))
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def finish(self, output: Any) -> Record:
        """Return the record, given the model's output.

        Raises:
            NotReplayable: If something in the pass cannot be made again.
        """
        if self._reason is not None:
            raise self._reason
        if not all(map(torch.equal, self._random, _random_states(self._devices))):
            raise NotReplayable("it draws random numbers")
        self.record.output = self._refer(output, "its output")
        for place in self._places:
            if place not in self.record.taps:
                raise NotReplayable(f"{place} was not seen")
        if not all(isinstance(leaf, Ref) for leaf in leaves(self.record.output)):
            raise NotReplayable("it returns more than tensors")
        return self.record

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The pass itself goes on whatever becomes of its record.
        call: Call | None = None
        with self._noting():
            call = self._before(func, args, kwargs)
        result = func(*args, **kwargs)
        if call is not None:
            with self._noting():
                self._after(call, args, result)
        return result

    def query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if self._reason is None:
            with self._noting():
                self._asked(operation_name(func), args, result)
        return result

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note why the pass cannot be recorded."""
        try:
            yield
        except NotReplayable as reason:
            self._reason = reason

    def _before(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if self._reason is not None:
            return None
        name, module = operation_name(func), self.current_module()
        if kwargs.get("out") is not None:
            raise NotReplayable(f"{name} in {module!r} writes into `out`")
        referred = self._refer((args, kwargs), f"{name} in {module!r}")
        call = Call(func, name, referred[0], referred[1], [], module, is_in_place(func, kwargs))
        if name == "batch_norm" and _takes_statistics(func, args, kwargs):
            raise NotReplayable(f"{call} takes the statistics of the batch")
        if self._is_from_input(call) and (name in _SHAPED_BY_DATA or _masks(name, args)):
            raise NotReplayable(f"{call} makes shapes of numbers")
        if call.in_place:
            self._keep_before_write(call, args)
        return call

    def _after(self, call: Call, args: tuple[Any, ...], result: Any) -> None:
        made, from_input = tensors_in(result), self._is_from_input(call)
        if from_input and not made and not call.in_place:
            raise NotReplayable(f"{call} reads numbers off a tensor")
        if call.in_place and not made:
            made, call.returns_first = [args[0]], True
        if call.in_place or any(self._index(tensor) is None for tensor in made):
            call.outputs = [self._add(tensor, from_input) for tensor in made]
            self.record.calls.append(call)
        place = call.module, call.name
        site = CallSite(*place, self._counts.get(place, 0))
        self._counts[place] = site.occurrence + 1
        if site in self._places and len(made) == 1:
            self._tap(site, made[0])

    def _is_from_input(self, call: Call) -> bool:
        return any(self.record.from_input[index] for index in call.inputs())

    def _asked(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        known = self._index(args[0]) if args and isinstance(args[0], Tensor) else None
        if known is None or not self.record.from_input[known]:
            return
        if isinstance(result, Tensor):
            if name != "detach":
                raise NotReplayable(f"{name} takes a tensor out of the pass")
            self._remember(result, known)
        elif name in _READS:
            raise NotReplayable(f"{name} in {self.current_module()!r} reads numbers off a tensor")

    def _see(self, name: Place, output: Tensor) -> None:
        if self._reason is None:
            with self._noting():
                self._tap(name, output)

    def _tap(self, place: Tap, output: Tensor) -> None:
        index = self._index(output)
        if index is None:
            raise NotReplayable(f"the output of {place} was not seen")
        self.record.taps[place] = index

    def _index(self, tensor: Tensor) -> int | None:
        """The value that a tensor is; None if it is not known as it is now."""
        version, index = self._known.get(tensor, (None, None))
        # What the model holds may have been made in inference mode, where tensors have no versions.
        return index if version is not None and version == tensor._version else None

    def _add(self, tensor: Tensor, from_input: bool) -> int:
        if tensor.is_inference():
            raise NotReplayable("it runs in inference mode")
        index = len(self.record.shapes)
        self.record.shapes.append(tuple(tensor.shape))
        self.record.dtypes.append(tensor.dtype)
        if self._keep is None or index in self._keep or not from_input:
            self.record.values[index] = tensor
        self.record.from_input.append(from_input)
        self._remember(tensor, index)
        return index

    def _remember(self, tensor: Tensor, index: int) -> None:
        self._known[tensor] = tensor._version, index

    def _keep_before_write(self, call: Call, args: Sequence[Any]) -> None:
        first = call.args[0] if call.args else None
        if not isinstance(first, Ref):
            raise NotReplayable(f"{call} writes into what the model holds")
        if first.index in self.record.values:
            self.record.values[first.index] = args[0].clone()

    def _refer(self, arguments: Any, where: str) -> Any:
        """The arguments with marks in place of tensors."""

        def refer(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            index = self._index(leaf)
            if index is not None:
                return Ref(index)
            if leaf.requires_grad and leaf.grad_fn is not None:
                raise NotReplayable(f"{where} takes a tensor of unknown origin")
            if id(leaf) not in self._held:
                self._held[id(leaf)] = len(self.record.held)
                self.record.held.append(leaf)
            return Held(self._held[id(leaf)])

        return mapped(arguments, refer)


def _random_states(devices: Collection[torch.device]) -> list[Tensor]:
    """The random states of the CPU and of devices."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]


def _takes_statistics(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a batch norm normalizes by what it is given."""
    given = arguments(func, args, kwargs)
    return bool(given.get("training")) or given.get("running_mean") is None


def _masks(name: str, args: Sequence[Any]) -> bool:
    """Whether a call selects by a Boolean mask."""
    if name != "getitem" or len(args) < 2:
        return False
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in tensors_in([args[1]]))
