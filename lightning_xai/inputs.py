"""What a network is given, and which of it is explained: an argument, or the output of one of its modules."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_xai._checks import Layer, as_integer, as_layer, check_model, layer_name, named_layer, unknown
from lightning_xai._guard import detach_for_autograd, forward, isolated_eval
from lightning_xai.bound_model import Arguments, Binding, BoundModel, Key, Place, at_rows, network_of
from lightning_xai.layout import unit_axis
from lightning_xai.operations import unwrapped
from lightning_xai.rows import DEPENDENT, REMEDY, rounding_of, row_difference, rows_of

# What the batches of data sets hold for the loss. A network that is given them returns another output.
_LABELS = ("labels", "label", "target", "targets")
# The arguments that stand for the data by convention (transformers).
_DATA = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds")
_MASK = "attention_mask"
_MOST_CANDIDATES = 6
# Outputs that agree so well are the same; of others the nearest is taken, if rounding explains what is left.
_SAME = 1e-6


@dataclass(frozen=True)
class Site:
    """The output of a module, to be explained instead of the input.

    Args:
        layer: The module, by its dotted name or the module itself.
        axis: The axis of its units (channels, features); found by :func:`~lightning_xai.axes.axis_facts` unless given.
        part: Which part of a module that returns a tuple, list or dict: a number or a key.
        call: Which call of a module that runs several times, counted from 0.

    Raises:
        TypeError: If the layer is neither a name nor a module.

    >>> Site("embeddings", axis=-1)
    Site(layer='embeddings', axis=-1, part=None, call=None)
    """

    layer: Layer
    axis: int | None = None
    part: Key | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_layer(self.layer))
        if self.axis is not None:
            as_integer("axis", self.axis)
        if self.call is not None:
            as_integer("call", self.call, least=0)


SiteLike: TypeAlias = Site | Layer | None


def as_site(at: SiteLike) -> Site | None:
    """Convert a layer to its :class:`Site`."""
    return at if at is None or isinstance(at, Site) else Site(at)


class Inputs:
    r"""The arguments of a network: which are explained, and where.

    Everything else stays as it is for its sample: what is given per sample (masks, a second input) follows the samples
    through every chunk, draw and step; what is not (a graph, a table of positions) stays whole. Which is which is found
    by a pass of two samples, unless ``constant`` says so.

    Args:
        *args: The network's positional arguments.
        explain: Which argument is explained, by its number or its name; several give a map each. Unless given, the
            only one, the only one given by position, the one with the usual name of data (``input_ids``,
            ``pixel_values``, ...), or the only one of floating-point numbers.
        at: The module whose output is explained instead, by its dotted name, or a :class:`Site`. Integer ids are
            explained at the embedding that takes them unless it is given.
        absent: Cells that are no features, Boolean [N, \*S], such as special tokens. Padding, where
            ``attention_mask`` is 0, always is absent.
        position: Which position of an output with one axis of them is read of each sample, integers [N].
        constant: The arguments that are not given per sample, by number or name; found unless given.
        **kwargs: The network's named arguments. ``labels`` do not enter the network.

    Raises:
        TypeError: If there is no argument that can be explained.
        ValueError: If it cannot be told which one is.

    >>> inputs = Inputs(torch.zeros(2, 3, 8, 8), table=torch.ones(2, 5), explain="table")
    >>> inputs
    Inputs([2, 3, 8, 8], table=[2, 5], explain='table')
    >>> len(inputs)
    2
    """

    def __init__(
        self,
        *args: Any,
        explain: Key | Sequence[Key] | None = None,
        at: SiteLike = None,
        absent: Tensor | None = None,
        position: Tensor | Sequence[int] | None = None,
        constant: Sequence[Key] | None = None,
        **kwargs: Any,
    ) -> None:
        values: dict[Key, Any] = dict(enumerate(args))
        values.update(kwargs)
        self._set(values, explain, at, absent, position, constant)

    @classmethod
    def of(cls, values: Mapping[Any, Any], explain: Key | Sequence[Key] | None = None) -> Inputs:
        """Return named arguments, which may have the names of options of this class.

        >>> Inputs.of({"x": torch.zeros(2, 3), "position": torch.ones(2, 3)}, explain="x")
        Inputs(x=[2, 3], position=[2, 3], explain='x')
        """
        found = cls.__new__(cls)
        found._set(dict(values), explain, None, None, None, None)
        return found

    def _set(
        self,
        values: dict[Key, Any],
        explain: Key | Sequence[Key] | None,
        at: SiteLike,
        absent: Tensor | None,
        position: Tensor | Sequence[int] | None,
        constant: Sequence[Key] | None,
    ) -> None:
        self.values = values
        self.values.pop(_LABELS[0], None)
        self.at = as_site(at)
        self.absent = absent
        self.position = None if position is None else torch.as_tensor(position)
        self.constant = None if constant is None else tuple(constant)
        for key in self.constant or ():
            self._known("constant", key)
        self.explain: tuple[Key, ...] = self._explained(explain)
        lengths = {key: len(self.values[key]) for key in self.explain}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the explained arguments must have as many samples each, got {lengths}.")
        if self.position is not None and (self.position.is_floating_point() or self.position.shape != (len(self),)):
            raise ValueError(f"position must be integers [{len(self)}], got {list(self.position.shape)}.")
        if absent is not None and (not isinstance(absent, Tensor) or absent.dtype != torch.bool):
            raise TypeError("absent must be a Boolean tensor [N, *S].")

    def __len__(self) -> int:
        return len(self.values[self.explain[0]])

    def __repr__(self) -> str:
        parts = [
            f"{'' if isinstance(key, int) else f'{key}='}{list(value.shape) if isinstance(value, Tensor) else value!r}"
            for key, value in self.values.items()
        ]
        chosen = self.explain[0] if len(self.explain) == 1 else self.explain
        parts += [f"explain={chosen!r}"] * (len(self.values) > 1)
        parts += [] if self.at is None else [f"at={self.at.layer!r}"]
        return f"Inputs({', '.join(parts)})"

    @property
    def sources(self) -> list[Tensor]:
        """The arguments that are explained, as tensors [N, ...]."""
        return Arguments(self.values, self.explain).source()

    def to(self, device: torch.device | str) -> Inputs:
        """Return the same arguments on another device."""
        move = partial(tree_map, lambda value: value.to(device) if isinstance(value, Tensor) else value)
        return self._with({key: move(value) for key, value in self.values.items()})

    def only(self, key: Key) -> Inputs:
        """Return the same arguments with one of them explained."""
        found = self._with(self.values)
        found.explain = (key,)
        return found

    def placed(self, at: SiteLike) -> Inputs:
        """Return the same arguments, explained at a module unless they say one themselves."""
        found = self._with(self.values)
        found.at = self.at or as_site(at)
        return found

    def _with(self, values: Mapping[Key, Any]) -> Inputs:
        found = object.__new__(Inputs)
        found.__dict__.update(self.__dict__, values=dict(values))
        return found

    def _known(self, argument: str, key: Key) -> None:
        if key not in self.values:
            raise ValueError(unknown(argument, str(key), map(str, self.values)))

    def _explained(self, explain: Key | Sequence[Key] | None) -> tuple[Key, ...]:
        can = {key: value for key, value in self.values.items() if _is_data(value)}
        if explain is not None:
            chosen = (explain,) if isinstance(explain, int | str) else tuple(explain)
            for key in chosen:
                self._known("explain", key)
                if key not in can:
                    raise TypeError(f"explain={key!r} is a {type(self.values[key]).__name__}, not a tensor [N, ...].")
            if not chosen:
                raise ValueError("explain names no argument.")
            return chosen
        if not can:
            raise TypeError(f"there is no tensor [N, ...] to explain among the arguments {list(self.values)}.")
        numbers = [key for key, value in can.items() if _first(value).is_floating_point()]
        placed = [key for key in can if isinstance(key, int)]
        for some in (list(can), placed, [key for key in can if key in _DATA], numbers):
            if len(some) == 1:
                return (some[0],)
        raise ValueError(
            f"the model takes several tensors, {', '.join(map(repr, can))}: say which is explained, e.g. "
            f"Inputs(..., explain={next(iter(can))!r})."
        )


InputsLike: TypeAlias = Tensor | Inputs | Mapping[str, Any] | tuple[Any, ...]


def as_inputs(inputs: InputsLike) -> Inputs:
    """Convert what a network is given to :class:`Inputs`: a tuple holds its arguments, a dict its named ones.

    Raises:
        TypeError: If it is none of these.

    >>> as_inputs({"input_ids": torch.zeros(2, 4, dtype=torch.long), "labels": torch.zeros(2)})
    Inputs(input_ids=[2, 4])
    """
    if isinstance(inputs, Inputs):
        return inputs
    if isinstance(inputs, Mapping):
        return Inputs.of(inputs)
    if isinstance(inputs, tuple):
        return Inputs(*inputs)
    if isinstance(inputs, Tensor):
        return Inputs(inputs)
    raise TypeError(
        f"inputs must be a tensor [N, C, *S], a tuple or dict of the model's arguments, or Inputs(...), got "
        f"{type(inputs).__name__}."
    )


def is_plain(inputs: Any) -> bool:
    """Whether the inputs are the one tensor of numbers that a network takes."""
    return isinstance(inputs, Tensor) and (inputs.is_floating_point() or inputs.is_complex())


def bind(model: nn.Module, inputs: InputsLike, *, joint: bool = False) -> tuple[nn.Module, Tensor]:
    r"""Return the model as a function of the one tensor that is explained, and that tensor [N, C, \*S] or [N, F].

    Args:
        model: The network; a :class:`BoundModel` and a plain tensor stay as they are.
        inputs: What the network is given.
        joint: Lay several explained arguments side by side as the columns of a table.

    Raises:
        TypeError: If the inputs are of the wrong type.
        ValueError: If the network does not take them, its samples depend on each other, or there is no such site.
    """
    check_model(model)
    if isinstance(inputs, Tensor) and (isinstance(model, BoundModel) or is_plain(inputs) or not _has_embedding(model)):
        return model, inputs  # integers are ids where there is an embedding, and of the wrong type elsewhere
    inputs = as_inputs(inputs)
    if len(inputs.explain) > 1 and not joint:
        raise ValueError(
            f"the arguments {', '.join(map(repr, inputs.explain))} are explained together, which gives a map each: "
            f"call an attribution, or name one, explain={inputs.explain[0]!r}."
        )
    network = unwrapped(model)
    with torch.inference_mode(False):
        values = _accepted(network, {key: _detached(value) for key, value in inputs.values.items()})
        arguments = Arguments(values, inputs.explain)
        if len(inputs) == 0:
            raise ValueError("inputs must hold at least one sample.")
        for source in arguments.source():
            if source.ndim < 2:
                raise ValueError(f"what is explained must be [N, ...], got {list(source.shape)}.")
        with isolated_eval(network):
            following = _following(network, arguments, inputs.constant)
            arguments = Arguments(values, inputs.explain, following)
            place = _place(network, arguments, inputs)
            explained = _explained_tensor(network, arguments, place)
        cells = explained.shape[2:] or explained.shape[1:]
        mask = values.get(_MASK)
        absent: Tensor | None = None
        last: Tensor | None = None
        if isinstance(mask, Tensor) and mask.ndim == 2 and _MASK in following:
            last = _last(mask != 0)
            absent = mask == 0 if mask.shape[1:] == cells else None
        if inputs.absent is not None:
            if inputs.absent.shape != (len(explained), *cells):
                raise ValueError(
                    f"absent must be [N, *S], {[len(explained), *cells]}, got {list(inputs.absent.shape)}."
                )
            own = inputs.absent.to(explained.device)
            absent = own if absent is None else absent | own
        absent = None if absent is None or not bool(absent.any()) else absent
        # A wrapper or compiled code would hide the site.
        called = model if place is None else network
        return BoundModel(
            called, Binding(arguments, place, absent=absent, last=last, position=inputs.position)
        ), explained


def restored(model: nn.Module, values: Tensor) -> Tensor:
    """Return a map [N, C, *S] with the axes of the output of the module that is explained."""
    site = model.binding.site if isinstance(model, BoundModel) else None
    return values if site is None or values.ndim < 3 else values.movedim(1, site.axis)


def _has_embedding(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def _is_data(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(part, Tensor) for part in value)
    return (isinstance(value, Tensor) and value.ndim > 0) or (whole and len({part.shape for part in value}) == 1)


def _first(value: Any) -> Tensor:
    found: Tensor = value if isinstance(value, Tensor) else value[0]
    return found


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return detach_for_autograd(value)
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        return type(value)([detach_for_autograd(part) for part in value])
    return value


def _last(present: Tensor) -> Tensor:
    """The last position of each row that is present."""
    return (present.long() * torch.arange(1, present.shape[1] + 1, device=present.device)).argmax(1)


def _accepted(network: nn.Module, values: dict[Key, Any]) -> dict[Key, Any]:
    """The arguments that the network's forward takes.

    Raises:
        ValueError: If it does not take one of them.
    """
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the arguments that {type(network).__name__} takes cannot be read, as of scripted and traced modules: use "
            f"the module that it was made from, or give it one tensor."
        ) from error
    parameters = [part for part in signature.parameters.values() if part.kind is not part.VAR_POSITIONAL]
    named = {part.name for part in parameters if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)}
    # One that takes anything names nothing; one that names some and takes the rest would drop a misspelt name silently.
    anything = not named and any(part.kind is part.VAR_KEYWORD for part in parameters)
    for key in list(values):
        if isinstance(key, str) and key not in named and not anything:
            if key in _LABELS:
                del values[key]
                continue
            message = unknown(f"{type(network).__name__}.forward's argument", key, sorted(named))
            raise ValueError(
                f"{message} What **kwargs take must be named in the signature: a misspelt name would be lost."
            )
    if "use_cache" in named and "use_cache" not in values:
        values["use_cache"] = False  # the output would carry the keys and values of every layer
    return values


def _place(network: nn.Module, arguments: Arguments, inputs: Inputs) -> Place | None:
    source = arguments.source()[0]
    site = inputs.at
    if site is None and (source.is_floating_point() or source.is_complex()):
        return None
    if len(inputs.explain) > 1:
        raise ValueError("at=... and integer ids explain one argument: name one with explain=... .")
    if site is None:
        site = Site(_embedding_of(network, arguments))
    first = BoundModel(network, Binding(arguments)).at(torch.zeros(1, dtype=torch.long))
    return place_of(first, source[:1], site)


def place_of(model: nn.Module, first: Tensor, site: Site) -> Place:
    """Find where a site is, by passes of one sample inside :func:`lightning_xai._guard.isolated_eval`.

    Args:
        model: The network, bound to the sample.
        first: The sample.
        site: The site.

    Raises:
        ValueError: If the module does not run or runs several times, or gives no numbers with an axis of units.
    """
    network = network_of(model)
    layer, axis = layer_name(network, site.layer), site.axis
    if axis is None and isinstance(named_layer(network, layer), nn.Embedding):
        axis = -1
    if axis is None and site.part is not None:
        raise ValueError(f"layer {layer!r} returns several tensors: say with axis=... where the units of this one lie.")
    # A pass to the end also tells whether the module runs once, and the sample twice whether it gives a row for each.
    twice = at_rows(model, torch.zeros(2, dtype=torch.long))
    with _CountedRuns(network, Place(layer, 1, site.part, site.call)) as runs:
        forward(twice, first.expand(2, *first.shape[1:]))
    tensor = runs.output
    if not tensor.is_floating_point():
        raise ValueError(f"layer {layer!r} returns {tensor.dtype}: only floating-point numbers can be explained.")
    if tensor.ndim == 0 or len(tensor) != 2:
        raise ValueError(
            f"layer {layer!r} returns {list(tensor.shape)} for two samples, which is not one row per sample: name "
            f"another, e.g. the block around it."
        )
    if axis is None:
        axis = unit_axis(model, first, layer)
    if not -tensor.ndim <= axis < tensor.ndim or axis % tensor.ndim == 0:
        raise ValueError(
            f"axis={axis} cannot hold the units of layer {layer!r}, which returns {list(tensor.shape)} for two samples."
        )
    return Place(layer, axis % tensor.ndim, site.part, site.call)


class _CountedRuns:
    """Sees every run of a module to the end of a pass."""

    def __init__(self, network: nn.Module, place: Place) -> None:
        self._place, self._outputs = place, list[Tensor]()
        self._module = named_layer(network, place.layer)

    def __enter__(self) -> _CountedRuns:
        self._handle = self._module.register_forward_hook(
            lambda _module, _args, output: self._outputs.append(self._place.read(output))
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()

    @property
    def output(self) -> Tensor:
        """The output of the call that is meant."""
        layer, call, count = self._place.layer, self._place.call, len(self._outputs)
        if count == 0:
            raise ValueError(
                f"layer {layer!r} does not run in a forward pass of the model: name a module that does, e.g. the one "
                f"around it."
            )
        if call is None and count > 1:
            raise ValueError(
                f"layer {layer!r} runs {count} times in a forward pass: say which call is meant, "
                f"at=Site({layer!r}, call=0) to call={count - 1}."
            )
        if call is not None and call >= count:
            raise ValueError(f"layer {layer!r} runs {count} times in a forward pass; there is no call={call}.")
        return self._outputs[call or 0]


def _embedding_of(network: nn.Module, arguments: Arguments) -> str:
    """The name of the one embedding that takes the ids which are explained."""
    ids = arguments.source()[0]
    found: list[str] = []
    handles = []

    def see(name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape == ids.shape and torch.equal(args[0], ids):
            found.append(name)

    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: see(name, m, args)))
    try:
        forward(BoundModel(network, Binding(arguments)), ids)
    finally:
        for handle in handles:
            handle.remove()
    names = list(dict.fromkeys(found))
    if len(names) != 1:
        several = f"{' and '.join(map(repr, names))} take them" if names else "no nn.Embedding takes them as they are"
        raise ValueError(
            f"inputs of {ids.dtype} are explained at what an embedding makes of them, but {several}: name the module "
            f"with Inputs(..., at='...')."
        )
    return names[0]


def _explained_tensor(network: nn.Module, arguments: Arguments, place: Place | None) -> Tensor:
    sources = arguments.source()
    if place is not None:
        found: Tensor = BoundModel(network, Binding(arguments, reads=place))(sources[0].clone())
        return found.detach()
    if len(sources) == 1:
        return sources[0]
    return torch.cat([source.flatten(1) for source in sources], 1)


def _has_rows(value: Any, samples: int) -> bool:
    """Whether a value could hold something for every sample."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and len(value) == samples
    if isinstance(value, Mapping):
        return bool(value) and all(_has_rows(part, samples) for part in value.values())
    return isinstance(value, list | tuple) and len(value) == samples


# Which arguments follow the samples, by the network and the places that could: the answer for one batch is that for
# the next.
_known_following: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], frozenset[Key]]] = WeakKeyDictionary()


def _following(network: nn.Module, arguments: Arguments, constant: Iterable[Key] | None) -> frozenset[Key]:
    """The fixed arguments that hold something for every sample."""
    source = arguments.source()[0]
    samples = len(source)
    could = [
        key for key, value in arguments.values.items() if key not in arguments.explained and _has_rows(value, samples)
    ]
    if constant is not None or not could:
        return frozenset(could) - frozenset(constant or ())
    if len(could) > _MOST_CANDIDATES:
        raise ValueError(
            f"{len(could)} arguments could be given per sample, too many to try: say with constant=[...] which are not."
        )
    question = (samples, arguments.explained, *((key, _form(arguments.values[key])) for key in could))
    known = _known_following.setdefault(network, {})
    if question in known:
        return known[question]
    found, certain = _found_following(network, arguments, could)
    if certain:  # else another batch may tell: here it makes no difference
        known[question] = found
    return found


def _form(value: Any) -> Any:
    """What tells values apart that may play different parts: the shape of a tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value)


def _found_following(network: nn.Module, arguments: Arguments, could: Sequence[Key]) -> tuple[frozenset[Key], bool]:
    """The arguments that follow, and whether no other answer fits the batch as well."""
    sources = arguments.source()
    samples = len(sources[0])
    explained = sources[0] if len(sources) == 1 else torch.cat([source.flatten(1) for source in sources], 1)
    # One sample twice, and three rows, so that what holds two things that are no samples does not fit by chance.
    rows = torch.tensor([samples - 1, samples - 1, 0])
    clean = rows_of(forward(BoundModel(network, Binding(arguments)), explained), samples, rows)
    if not clean:
        raise ValueError(
            f"the model's output has no tensor with a row per sample, by which it could be found whether the arguments "
            f"{', '.join(map(repr, could))} are given per sample: say with constant=[...] which are not."
        )
    errors: list[Exception] = []

    def difference(following: frozenset[Key]) -> float:
        bound = BoundModel(network, Binding(Arguments(arguments.values, arguments.explained, following), rows=rows))
        try:
            found = rows_of(forward(bound, explained[rows.to(explained.device)]), len(rows), torch.arange(len(rows)))
        except Exception as error:  # three rows do not fit a constant of another number of them
            errors.append(error)
            return float("inf")
        return row_difference(clean, found)

    choices = [
        frozenset(could) - frozenset(constants)
        for count in range(len(could) + 1)
        for constants in itertools.combinations(could, count)
    ]
    differences: dict[frozenset[Key], float] = {}
    for following in choices:
        differences[following] = difference(following)
        if differences[following] <= _SAME:
            break
    nearest = min(differences, key=lambda following: differences[following])
    if differences[nearest] <= rounding_of(network, clean):
        others = [nearest ^ {key} for key in could]
        return nearest, all(differences.get(other) or difference(other) > _SAME for other in others)
    why = f" ({type(errors[0]).__name__}: {errors[0]})" if errors else ""
    raise ValueError(
        f"{DEPENDENT}, whichever of the arguments {', '.join(map(repr, could))} are taken to be given per "
        f"sample{why}. {REMEDY}"
    ) from (errors[0] if errors else None)
