"""Attention masks among the arguments: which is that of what is explained, and which that of the output's positions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai.inputs.bound_model import Arguments
from lightning_xai.inputs.leaves import Path
from lightning_xai.sites import Key

_MASK, _DECODER = "attention_mask", "decoder_"
# What the data of a mask are called by convention (transformers), after the prefix that the mask has, too; where there
# are several, the mask is that of the first.
_IDS = ("input_ids", "inputs_embeds")
_DATA = (*_IDS, "input_values", "input_features")


@dataclass(frozen=True)
class _Mask:
    """An attention mask: its name among the arguments, its container, what stands before its last name, its values."""

    key: Key
    container: Path
    prefix: str
    values: Tensor

    @property
    def hides(self) -> bool:
        """Whether its values differ, so that they hide something."""
        return bool((self.values != self.values.flatten()[0]).any())

    @property
    def is_binary(self) -> bool:
        """Whether it holds 0 and 1 only; one that is added to the scores of attention does not."""
        return bool(((self.values == 0) | (self.values == 1)).all())


class Masks:
    """The attention masks among the arguments of a network.

    A mask is the one of data in the same container whose names begin as its own: ``decoder_attention_mask`` of
    ``decoder_input_ids``, and ``attention_mask`` of ``input_ids``. An argument of any other name has the one with the
    longest beginning in common, if no such data have it.

    Args:
        network: The network, by whose signature arguments have names that are given by their place.
        arguments: Its arguments.
    """

    def __init__(self, network: nn.Module, arguments: Arguments) -> None:
        parameters = list(inspect.signature(network.forward).parameters)
        self._names: dict[Key, tuple[Path, str]] = {}
        self._masks: list[_Mask] = []
        for key, value in arguments.values.items():
            *container, last = arguments.containers.paths.get(key, (key,))
            placed = not container and isinstance(last, int) and last < len(parameters)
            name = parameters[int(last)] if placed else str(last)
            if value is not None:
                self._names[key] = tuple(container), name
            if name.endswith(_MASK) and key in arguments.following and isinstance(value, Tensor) and value.ndim > 1:
                self._masks.append(_Mask(key, tuple(container), name[: -len(_MASK)], value))

    def present(self, keys: Sequence[Key], sources: Sequence[Tensor], inside: bool, told: bool) -> Tensor | None:
        r"""The cells of what is explained that no mask hides, Boolean [N, \*S]; None if all are there.

        Args:
            keys: The places of the explained arguments.
            sources: The arguments, channels first; or the output of a module that is explained instead of one.
            inside: Whether it is the output of a module.
            told: Whether ``absent=`` says what is there, so that a mask that cannot be read does not matter.

        Raises:
            ValueError: If a mask does not hold 0 and 1.
        """
        parts = [self._present(key, source, inside, told) for key, source in zip(keys, sources, strict=True)]
        if all(part is None for part in parts) or len(parts) == 1:
            return parts[0]
        whole = [
            torch.ones_like(source, dtype=torch.bool)
            if part is None
            else part.view(len(source), *[1] * (source.ndim - part.ndim), *part.shape[1:]).expand_as(source)
            for source, part in zip(sources, parts, strict=True)
        ]
        return torch.cat([part.flatten(1) for part in whole], 1)

    def _present(self, key: Key, source: Tensor, inside: bool, told: bool) -> Tensor | None:
        mask = self._of(key)
        if inside and source.ndim == 2:  # pooled: there are no positions any more
            return None
        strange = [mask] if mask is not None else self._nobodys()
        if mask is not None and mask.values.shape == (len(source), *(source.shape[2:] or source.shape[1:])):
            if mask.is_binary:
                return mask.values != 0
            if not told:
                raise ValueError(
                    f"{mask.key!r} holds other values than 0 (hidden) and 1, as one that is added to attention: give "
                    f"one of 0 and 1, or say with Inputs(..., absent=...) which cells are padding."
                )
        elif not told and any(one.hides for one in strange):
            names = " and ".join(f"{one.key!r} {list(one.values.shape)}" for one in strange if one.hides)
            warnings.warn(
                f"{names} may hide padding, but which cells of {key!r}, explained as {list(source.shape)}, cannot be "
                f"told, so that all of them count: say with Inputs(..., absent=...) which are padding.",
                UserWarning,
                stacklevel=2,
            )
        return None

    def _of(self, key: Key) -> _Mask | None:
        """The mask of an argument."""
        container, name = self._names[key]
        own = [mask for mask in self._masks if mask.container == container and name.startswith(mask.prefix)]
        own = [mask for mask in own if self._owner(mask) in (None, name)]
        if name.endswith(_IDS):
            own = [mask for mask in own if self._owner(mask) == name]
        return max(own, key=lambda mask: len(mask.prefix), default=None)

    def _owner(self, mask: _Mask) -> str | None:
        """The data that have the name of a mask's."""
        names = (mask.prefix + data for data in _DATA)
        return next((name for name in names if (mask.container, name) in self._names.values()), None)

    def _nobodys(self) -> list[_Mask]:
        return [mask for mask in self._masks if self._owner(mask) is None]

    @property
    def decode(self) -> bool:
        """Whether the network has a decoder that is given something."""
        beginnings = tuple(_DECODER + name for name in (*_IDS, _MASK))
        return any(name in beginnings for _, name in self._names.values())

    def of_output(self) -> Tensor | str | None:
        """Which positions of the output are no padding, Boolean [N, T]; why that is not known; None without masks."""
        if not self._masks:
            return None
        if self.decode:
            masks = [mask for mask in self._masks if mask.prefix == _DECODER]
        else:
            masks = [mask for mask in self._masks if not mask.prefix] or self._masks
        if not masks:
            return f"there is a decoder without a {_DECODER}{_MASK}"
        if len(masks) > 1:
            return f"there are several masks, {' and '.join(repr(mask.key) for mask in masks)}"
        (mask,) = masks
        if mask.values.ndim != 2 or not mask.is_binary:
            return f"{mask.key!r} {list(mask.values.shape)} is no mask [N, T] of 0 and 1"
        return mask.values != 0
