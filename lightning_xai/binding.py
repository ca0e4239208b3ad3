"""A network and what it is given, bound to a function of the one tensor that is explained."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_model, layer_name, named_layer, unknown
from lightning_xai._guard import detach_for_autograd, forward, isolated_eval
from lightning_xai.bound_model import Arguments, Binding, BoundModel, at_rows, network_of
from lightning_xai.following import following_arguments
from lightning_xai.inputs import Inputs, InputsLike, Site, as_inputs, is_plain
from lightning_xai.layout import unit_axis
from lightning_xai.operations import unwrapped
from lightning_xai.places import Key, LayerOutput, Place
from lightning_xai.prefix_search import keeping

_MASK = "attention_mask"
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
        values = _accepted(network, {key: _detached(value) for key, value in inputs.values.items()})
        arguments = Arguments(values, inputs.explain)
        if len(inputs) == 0:
            raise ValueError("inputs must hold at least one sample.")
        for source in arguments.source():
            if source.ndim < 2:
                raise ValueError(f"what is explained must be [N, ...], got {list(source.shape)}.")
        with isolated_eval(network):
            following = following_arguments(network, arguments, inputs.constant)
            arguments = Arguments(values, inputs.explain, following)
            place = _place(network, arguments, inputs)
            with keeping(network, arguments, place) as kept:
                explained = _explained_tensor(network, arguments, place)
        mask = values.get(_MASK)
        present = mask != 0 if isinstance(mask, Tensor) and mask.ndim == 2 and _MASK in following else None
        absent = _absent_cells(explained, present, inputs.absent)
        last = None if present is None else _last(present)
        # A wrapper or compiled code would hide the site.
        called = model if place is None else network
        prefix = None if kept is None else kept.prefix()
        binding = Binding(arguments, place, absent=absent, last=last, position=inputs.position, prefix=prefix)
        return BoundModel(called, binding), explained


def _absent_cells(explained: Tensor, present: Tensor | None, absent: Tensor | None) -> Tensor | None:
    """The cells that are no features, Boolean [N, *S]: padding, and those that are named; None if there are none."""
    shape = (len(explained), *(explained.shape[2:] or explained.shape[1:]))
    cells = torch.zeros(shape, dtype=torch.bool, device=explained.device)
    if present is not None and present.shape == shape:
        cells |= ~present
    if absent is not None:
        if absent.shape != shape:
            raise ValueError(f"absent must be [N, *S], {list(shape)}, got {list(absent.shape)}.")
        cells |= absent.to(cells.device)
    return cells if bool(cells.any()) else None


def restored(model: nn.Module, values: Tensor) -> Tensor:
    """Return a map [N, C, *S] with the axes of the output of the module that is explained."""
    site = model.binding.site if isinstance(model, BoundModel) else None
    return values if site is None or values.ndim < 3 else values.movedim(1, site.axis)


def _has_embedding(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Embedding) for module in model.modules())


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
    with LayerOutput(network, Place(layer, 1, site.part, site.call), to_the_end=True) as seen:
        forward(twice, first.expand(2, *first.shape[1:]))
    tensor = seen.output
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
