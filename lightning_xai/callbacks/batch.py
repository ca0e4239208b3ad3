"""What a data loader gives: inputs, targets and ids of a batch, and options about them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_xai._guard import detach_for_autograd
from lightning_xai.evaluation.localisation import Objects
from lightning_xai.inputs import Inputs, as_inputs

Unpack = Callable[[Any], Sequence[Any]]

_INPUT_KEYS = ("input", "inputs", "image", "images", "x", "pixel_values", "signal", "features", "data")
_TEXT_KEYS = ("input_ids", "input_values", "input_features")
_BESIDE_KEYS = ("pixel_mask", "attention_mask", "token_type_ids", "position_ids", *_TEXT_KEYS)
_TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class")
_OBJECT_KEYS = ("masks", "boxes")


def unpack_batch(batch: Any) -> tuple[Any, ...]:
    """Find inputs and target of a batch: a tensor, a tuple that starts with them, or fields with the usual names.

    Fields are those of a dict, a named tuple or a dataclass. Where ids of tokens or a waveform have the names that
    transformers give them, all fields but the target are arguments of the model. Fields ``masks`` or ``boxes`` say
    where the objects are, and are a third part, a dict.

    Raises:
        TypeError: If it is none of these, or what stands first cannot be the inputs of a model.

    >>> unpack_batch({"image": 1, "label": 2, "weight": 3})
    (1, 2)
    >>> unpack_batch({"input_ids": torch.zeros(2, 5), "attention_mask": torch.ones(2, 5), "labels": 3})
    (Inputs(input_ids=[2, 5], attention_mask=[2, 5], explain='input_ids'), 3)
    """
    named = _named(batch)
    if isinstance(batch, Tensor):
        return batch, None
    if named is not None:
        inputs = [key for key in _INPUT_KEYS if named.get(key) is not None]
        target = next((named[key] for key in _TARGET_KEYS if named.get(key) is not None), None)
        where = {key: named[key] for key in _OBJECT_KEYS if named.get(key) is not None}
        objects = (where,) if where else ()
        text = [key for key in _TEXT_KEYS if named.get(key) is not None]
        if (len(text) == 1 and not inputs) or (len(inputs) == 1 and any(key in named for key in _BESIDE_KEYS)):
            arguments = {key: named[key] for key in named if key not in (*_TARGET_KEYS, *_OBJECT_KEYS)}
            return Inputs.of(arguments, explain=(text or inputs) if not (text and inputs) else None), target, *objects
        if len(inputs) == 1:
            return named[inputs[0]], target, *objects
        what = f"a {type(batch).__name__} with the keys {list(named)}"
    elif isinstance(batch, tuple | list) and batch:
        first = batch[0]
        if (
            not isinstance(first, Tensor)
            or _like_inputs(first)
            or (first.ndim > 1 and not any(map(_like_inputs, batch)))
        ):
            return first, batch[1] if len(batch) > 1 else None
        what = (
            f"a {type(batch).__name__} that starts with {str(first.dtype).removeprefix('torch.')} {list(first.shape)}"
        )
    else:
        what = f"a {type(batch).__name__}"
    raise TypeError(
        f"the batch is {what}, in which the inputs cannot be told; say which they are, e.g. "
        f"unpack=lambda batch: (batch['image'], batch['label'])."
    )


def _like_inputs(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 1


def _named(batch: Any) -> Mapping[str, Any] | None:
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch):
        return {part.name: getattr(batch, part.name) for part in fields(batch)}
    return dict(zip(batch._fields, batch, strict=True)) if hasattr(batch, "_fields") else None


@dataclass(frozen=True, eq=False)
class Unpacked:
    """The parts of a batch.

    Attributes:
        inputs: What is explained, which autograd may see.
        labels: What the batch says of the samples.
        ids: The samples' own ids, if the batch has some.
        objects: Where the objects of the samples are, as the batch says it; None if it does not.
    """

    inputs: Tensor | Inputs
    labels: Any
    ids: Tensor | None
    objects: Any = None

    def masks(self, shape: Sequence[int]) -> Tensor | None:
        r"""Return where the objects are in inputs of a shape, Boolean [N, \*S]; None if the batch does not say.

        Raises:
            TypeError: If they are no Boolean masks, nor boxes of integers.
            ValueError: If they do not fit the inputs.
        """
        if self.objects is None:
            return None
        named = self.objects if isinstance(self.objects, Mapping) else {"masks": self.objects}
        if unknown := [key for key in named if key not in _OBJECT_KEYS]:
            raise TypeError(
                f"unpack says where objects are by 'masks' or 'boxes', got {', '.join(map(repr, unknown))}."
            )
        return Objects(**named).on(shape)


def read_batch(unpack: Unpack, batch: Any) -> Unpacked:
    """Unpack a batch.

    Raises:
        TypeError: If ``unpack`` returns something else than inputs, a target, and ids and objects at most.
        ValueError: If there are more or fewer ids than samples.
    """
    parts = unpack(batch)
    if not isinstance(parts, tuple | list) or not 2 <= len(parts) <= 4:
        raise TypeError(
            "unpack must return (inputs, target) or (inputs, target, sample_ids), and may add where the objects are: "
            "Boolean masks [N, *S], or a dict with 'masks' or 'boxes'."
        )
    inputs, labels = parts[0], parts[1]
    if isinstance(inputs, Mapping | tuple):
        inputs = as_inputs(inputs)
    if not isinstance(inputs, Tensor | Inputs):
        raise TypeError(
            f"the inputs of the batch are a {type(inputs).__name__}, not a tensor; say what to explain, e.g. "
            f"unpack=lambda batch: (batch[0], batch[1])."
        )
    own_ids, objects = None, None
    for part in parts[2:]:
        if objects is None and (isinstance(part, Mapping) or (isinstance(part, Tensor) and part.dtype == torch.bool)):
            objects = part
        elif own_ids is None:
            own_ids = torch.as_tensor(part)
        else:
            raise TypeError(
                f"unpack returned a part that is neither sample ids nor where objects are, a {type(part).__name__}: "
                f"give masks as Booleans, masks > 0, or a dict, {{'masks': ...}} or {{'boxes': ...}}."
            )
    if own_ids is not None and len(own_ids) != len(inputs):
        raise ValueError(f"unpack returned {len(own_ids)} sample ids for {len(inputs)} samples.")
    return Unpacked(inputs if isinstance(inputs, Inputs) else detach_for_autograd(inputs), labels, own_ids, objects)


def copy_containers(batch: Any) -> Any:
    """Copy the dicts, lists and tuples of a batch, not its tensors: what takes parts out of one leaves the other.

    >>> batch = {"image": [1], "label": 2}
    >>> kept = copy_containers(batch)
    >>> batch.pop("label"), batch["image"].append(3), kept
    (2, None, {'image': [1], 'label': 2})
    """
    if type(batch) is tuple:
        return tuple(map(copy_containers, batch))
    if isinstance(batch, MutableMapping | list):
        copied = copy.copy(batch)
        for key, value in list(batch.items() if isinstance(batch, MutableMapping) else enumerate(batch)):
            if isinstance(value, MutableMapping | list | tuple):
                copied[key] = copy_containers(value)
        return copied
    return copy.copy(batch) if is_dataclass(batch) else batch
