"""A network and what it is given, bound to a function of the one tensor that is explained."""

from __future__ import annotations

import inspect
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_model, unknown
from lightning_xai._guard import detach_for_autograd, forward, isolated_eval, observe_modules
from lightning_xai.axes.layout import place_of_units, unplaced
from lightning_xai.batching import is_out_of_memory
from lightning_xai.inputs import Inputs, InputsLike, as_inputs, is_plain
from lightning_xai.inputs.bound_model import Arguments, Binding, BoundModel, at_rows, network_of
from lightning_xai.inputs.following import following_arguments
from lightning_xai.inputs.leaves import tensors_held
from lightning_xai.inputs.lengths import present_by_lengths
from lightning_xai.inputs.masks import Masks
from lightning_xai.inputs.places import LayerOutput, times
from lightning_xai.operations import tensors_in, unwrapped
from lightning_xai.prefix.search import keeping
from lightning_xai.sites import Key, Place, Site, layer_name, named_layer

# The label of a position that is not predicted, by the convention of torch's cross entropy.
_NO_LABEL = -100
_DECODER_MASK = "decoder_attention_mask"
# What batches hold for the loss; dropped unless the network takes it.
_LABELS = ("label", "target", "targets")


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
        values = _accepted(network, {key: _detached(value) for key, value in inputs.values.items()}, inputs)
        arguments = inputs.arguments(values)
        if len(inputs) == 0:
            raise ValueError("inputs must hold at least one sample.")
        for source in arguments.source():
            if source.ndim < 2:
                raise ValueError(f"what is explained must be [N, ...], got {list(source.shape)}.")
            if inputs.axis is not None and not (source.is_floating_point() and inputs.at is None):
                raise ValueError(
                    "axis=... is that of an argument of numbers; for a module write at=Site(..., axis=...)."
                )
        with isolated_eval(network):
            arguments = replace(arguments, following=following_arguments(network, arguments, inputs.constant))
            _check_alone(network, arguments, inputs.constant)
            place = _place(network, arguments, inputs)
            with keeping(network, arguments, place) as kept:
                explained = _explained_tensor(network, arguments, place)
            within = present_by_lengths(network, arguments, place, explained, inputs.absent is not None)
        masks = Masks(network, arguments)
        sources = arguments.source() if place is None else [explained]
        present = masks.present(arguments.explained, sources, place is not None, inputs.absent is not None)
        absent = _absent_cells(explained, [present, within], inputs.absent)
        # A wrapper or compiled code would hide the site.
        called = model if place is None else network
        prefix = None if kept is None else kept.prefix()
        there = masks.of_output()
        there = within if there is None and within is not None and within.ndim == 2 else there
        binding = Binding(arguments, place, None, absent, there, masks.decode, inputs.position, prefix=prefix)
        return BoundModel(called, binding), explained


# Networks that were seen to take one sample alone, and the places of what made that doubtful.
_taken_alone: WeakKeyDictionary[nn.Module, set[tuple[Key, ...]]] = WeakKeyDictionary()


def _check_alone(network: nn.Module, arguments: Arguments, constant: Sequence[Key] | None) -> None:
    """Refuse lists and objects that may hold something for every sample but do not follow them, by a pass of the first.

    Raises:
        ValueError: If the network does not take it alone.
    """
    samples = len(arguments.values[arguments.explained[0]])
    lists = [key for key in arguments.explained if not isinstance(arguments.values[key], Tensor)]
    objects = {} if constant is not None else _objects(arguments, samples)
    doubtful = (*lists, *objects)
    known = _taken_alone.setdefault(network, set())
    if not doubtful or doubtful in known or samples == 1:
        return
    first = replace(arguments, values=arguments.at(torch.zeros(1, dtype=torch.long)))
    error: Exception | None = None
    try:
        output = forward(BoundModel(network, Binding(first)), _explained_tensor(network, first, None))
        parts = [output] if isinstance(output, list) else [part for part in tensors_in(output) if part.ndim]
        alone = any(len(part) == 1 for part in parts)
    except Exception as raised:  # what a network raises for one of two streams is its own
        if is_out_of_memory(raised):
            raise
        alone, error = False, raised
    if not alone and lists:
        key = lists[0]
        raise ValueError(
            f"the argument {key!r} is a list of {len(arguments.values[key])} tensors, but the network does not take "
            f"one of them as one sample: if these are several inputs, say which is explained, e.g. explain='{key}.0'."
        ) from error
    if not alone:
        key, kind = next(iter(objects.items()))
        raise ValueError(
            f"the argument {key!r} is a {kind}, whose tensors do not follow the samples, and the network does not take "
            f"one sample with them: hold what is given per sample in a dict, namespace, dataclass or named tuple."
        ) from error
    known.add(doubtful)


def _objects(arguments: Arguments, samples: int) -> dict[Key, str]:
    """The types, by place, of what stays whole but holds tensors with as many rows as there are samples."""
    fixed = arguments.values.keys() - arguments.following - set(arguments.explained)
    values = {key: value for key, value in arguments.values.items() if key in fixed and not isinstance(value, Tensor)}
    return {
        key: type(value).__name__
        for key, value in values.items()
        if any(tensor.ndim and len(tensor) == samples for tensor in tensors_held(value))
    }


def _absent_cells(explained: Tensor, present: Sequence[Tensor | None], absent: Tensor | None) -> Tensor | None:
    """The cells that are no features, Boolean [N, *S]: padding, and those that are named; None if there are none."""
    shape = (len(explained), *(explained.shape[2:] or explained.shape[1:]))
    cells = torch.zeros(shape, dtype=torch.bool, device=explained.device)
    for part in present:
        if part is not None:
            cells |= ~part.to(cells.device)
    if absent is not None:
        if absent.shape != shape:
            raise ValueError(f"absent must be [N, *S], {list(shape)}, got {list(absent.shape)}.")
        cells |= absent.to(cells.device)
    return cells if bool(cells.any()) else None


def restored(model: nn.Module, values: Tensor) -> Tensor:
    """Return a map [N, C, *S] with the axes of what is explained as the user has it."""
    return values.movedim(1, model.axis) if isinstance(model, BoundModel) and values.ndim > 2 else values


def _has_embedding(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return detach_for_autograd(value)
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        return type(value)([detach_for_autograd(part) for part in value])
    return value


def _accepted(network: nn.Module, values: dict[Key, Any], inputs: Inputs) -> dict[Key, Any]:
    """The arguments that the network's forward takes, leaves of containers among them.

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
    for name, place in inputs.claimed.items():
        own = parameters[int(place)].name if int(place) < len(parameters) else None
        if own != name:
            raise ValueError(f"{unknown('argument', name, [str(own)])} It is the one given by place {place}.")
    held = {key for key in values if key in inputs.containers.paths}
    for key in [*inputs.containers.values, *(key for key in values if key not in held)]:
        if isinstance(key, str) and key not in named and not anything:
            if key in _LABELS:
                del values[key]
                continue
            message = unknown(f"{type(network).__name__}.forward's argument", key, sorted(named))
            raise ValueError(
                f"{message} What **kwargs take must be named in the signature: a misspelt name would be lost."
            )
    if isinstance(inputs.labels, Tensor) and inputs.labels.ndim > 1:
        values |= _decoded(network, inputs.labels, named - values.keys())
    if "use_cache" in named and "use_cache" not in values:
        values["use_cache"] = False  # the output would carry the keys and values of every layer
    return values


def _decoded(network: nn.Module, labels: Tensor, missing: Set[str]) -> dict[Key, Tensor]:
    """What the decoder of a network is given unless the user says so: the labels before, as in training.

    Raises:
        ValueError: If the network does not say how it makes that of them.
    """
    if not missing >= {"decoder_input_ids", "decoder_inputs_embeds"}:
        return {}
    shift = getattr(network, "prepare_decoder_input_ids_from_labels", None)
    if shift is None:
        raise ValueError(
            f"{type(network).__name__} makes the inputs of its decoder of the labels, which do not enter when it is "
            f"explained: give decoder_input_ids=... ."
        )
    there = (labels != _NO_LABEL).long()
    masked = _DECODER_MASK in missing and not bool(there.all())
    return {"decoder_input_ids": shift(labels=labels), **({_DECODER_MASK: there} if masked else {})}


def _place(network: nn.Module, arguments: Arguments, inputs: Inputs) -> Place | None:
    sources = arguments.source()
    site, source = inputs.at, sources[0]
    if site is None and all(part.is_floating_point() or part.is_complex() for part in sources):
        return None
    if len(inputs.explain) > 1:
        raise ValueError("at=... and integer ids explain one argument: name one with explain=... .")
    if site is None:
        site = Site(_embedding_of(network, arguments))
    if site.reshape is not None:
        raise ValueError(
            f"what is explained goes back into the network as layer {layer_name(network, site.layer)!r} returns it, "
            f"which reshape=... does not allow: say with axis=... where its units lie, or name another layer."
        )
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
    place = unplaced(network_of(model), site)
    network, layer, axis = network_of(model), place.layer, place.axis
    if axis is None and isinstance(named_layer(network, layer), nn.Embedding):
        axis = -1
    # A pass to the end also tells whether the module runs once, and the sample twice whether it gives a row for each.
    twice = at_rows(model, torch.zeros(2, dtype=torch.long))
    found = Place(layer, 1, site.part, site.call)
    seen = LayerOutput(network, found, to_the_end=True)
    try:
        with seen:
            forward(twice, first.expand(2, *first.shape[1:]))
    except ValueError as error:
        if site.call is None and seen.count > 1:
            _check_loop(model, first, found, seen.count, error)
        raise
    tensor = seen.output
    if not tensor.is_floating_point():
        raise ValueError(f"layer {layer!r} returns {tensor.dtype}: only floating-point numbers can be explained.")
    if tensor.ndim == 0 or len(tensor) != 2:
        raise ValueError(
            f"layer {layer!r} returns {list(tensor.shape)} for two samples, which is not one row per sample: name "
            f"another, e.g. the block around it."
        )
    if site.reshape is not None:
        tensor = place.units_first(tensor)
    if axis is None:
        axis = place_of_units(model, first, site).axis
    assert axis is not None
    if not -tensor.ndim <= axis < tensor.ndim or axis % tensor.ndim == 0:
        raise ValueError(
            f"axis={axis} cannot hold the units of layer {layer!r}, which returns {list(tensor.shape)} for two samples."
        )
    return replace(place, axis=axis % tensor.ndim)


def _check_loop(model: nn.Module, first: Tensor, place: Place, count: int, error: ValueError) -> None:
    """Refuse a layer that runs more often for two samples than for one, of which no call holds all samples."""
    names: list[str] = []
    with observe_modules(network_of(model), lambda name, _: names.append(name)):
        forward(model, first)
    alone = names.count(place.layer)
    if alone != count:
        raise ValueError(
            f"layer {place.layer!r} runs {times(alone)} for one sample and {times(count)} for two, so that none of its "
            f"calls holds all samples: name a module that is given the whole batch."
        ) from error


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
