"""The numbers of units of the convolutions of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_model
from lightning_xai._files import CsvTable
from lightning_xai._guard import forward_context, isolated_eval
from lightning_xai.operations import Operations, check_visible, unwrapped
from lightning_xai.operations.kinds import arguments, operation_name
from lightning_xai.units.field import per_axis

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class LayerUnits:
    r"""The units of one convolution.

    Attributes:
        layer: Its dotted name; that of the module in whose ``forward`` it runs if it is called as a function.
        channels: f, the output channels: the units, if channels are.
        size: The output's spatial size, e.g. :math:`(H_o, W_o)`.
    """

    layer: str
    channels: int
    size: tuple[int, ...]

    @property
    def positions(self) -> int:
        r""":math:`f \cdot H_o \cdot W_o`: the units, if positions are."""
        return self.channels * math.prod(self.size)


@dataclass(frozen=True)
class UnitCount(CsvTable):
    """The units of a network, convolution by convolution in the order in which they run.

    Attributes:
        layers: One entry per call of a convolution.
    """

    columns = ("layer", "channels", "size", "positions")

    layers: tuple[LayerUnits, ...]

    @property
    def channels(self) -> int:
        """The number of channels of all layers."""
        return sum(layer.channels for layer in self.layers)

    @property
    def positions(self) -> int:
        """The number of positions of all layers."""
        return sum(layer.positions for layer in self.layers)

    def rows(self) -> list[tuple[str, int, str, int]]:
        """The table: layer, channels, output size, positions; the totals last."""
        table = [(part.layer, part.channels, "x".join(map(str, part.size)), part.positions) for part in self.layers]
        return [*table, ("total", self.channels, "", self.positions)]

    def __str__(self) -> str:
        table = [[str(cell) for cell in row] for row in (self.columns, *self.rows())]
        a, b, c, d = (max(map(len, column)) for column in zip(*table, strict=True))
        lines = [f"{name:<{a}}  {count:>{b}}  {size:<{c}}  {places:>{d}}" for name, count, size, places in table]
        return "\n".join(lines)


def count_units(model: nn.Module, input_shape: Sequence[int]) -> UnitCount:
    r"""The units of every convolution of a model, or of one layer.

    .. math:: f \cdot H_o \cdot W_o, \qquad
        H_o = \left\lfloor \frac{h + 2p - d(k - 1) - 1}{s} \right\rfloor + 1

    for every spatial axis, with the size h of the layer's input, its padding p, dilation d, kernel size k and stride
    s; groups do not change it. The model is run once on zeros, which tells the sizes that its convolutions (one to
    three axes; modules or functions, transposed ones left out) meet, and their outputs are compared with the formula.

    Args:
        model: A network or a single convolution; called in eval mode and left as it was.
        input_shape: The shape [C, \*S] of one sample (or [F] of a row of a table).

    Returns:
        A :class:`UnitCount`: ``channels``, ``positions``, and both per layer; printed as a table.

    Raises:
        ValueError: If the shape does not fit the model, there is no convolution, or an output has another size.
        TypeError: If ``model`` is not a module.

    Source: :cite:`grauluque2023`.

    Example:
        >>> layer = nn.Conv2d(3, 8, kernel_size=(3, 5), stride=2, padding=(1, 0), dilation=(1, 2))
        >>> found = count_units(layer, (3, 9, 16))
        >>> found.channels, found.layers[0].size, found.positions
        (8, (5, 4), 160)
    """
    check_model(model)
    check_visible(model)
    shape = tuple(as_integer("input_shape", length, 1) for length in input_shape)
    if not shape:
        raise ValueError("input_shape must be the shape [C, *S] of one sample, got none.")
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    network = unwrapped(model)
    with isolated_eval(model), _Convolutions(network) as seen, forward_context():
        try:
            network(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
        except RuntimeError as error:
            raise ValueError(f"the model does not take a sample of shape {list(shape)}: {error}") from error
    if not seen.found:
        raise ValueError(f"{type(model).__name__} has no convolution: name a model or a layer that has.")
    return UnitCount(tuple(seen.found))


def convolved_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> tuple[int, ...]:
    """The spatial size of a convolution's output.

    Args:
        size: The spatial size of its input.
        kernel: The size of the kernel.
        stride: s, one number or one per axis.
        padding: p on either side, one number or one per axis, or ``"same"`` or ``"valid"``.
        dilation: d, one number or one per axis.

    >>> convolved_size((28, 28), (5, 3), stride=2, padding=1)
    (13, 14)
    """
    if padding == "same":
        return tuple(size)
    axes = len(size)
    strides, dilations = per_axis(stride, axes), per_axis(dilation, axes)
    paddings = per_axis(0 if isinstance(padding, str) else padding, axes)
    each = zip(size, kernel, strides, paddings, dilations, strict=True)
    return tuple((h + 2 * p - d * (k - 1) - 1) // s + 1 for h, k, s, p, d in each)


class _Convolutions(Operations):
    """Records the units of every convolution that runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: list[LayerUnits] = []

    def operation(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operation_name(func) not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        layer = self.current_module()
        given = arguments(func, args, kwargs)
        size, weight = given["input"].shape, given["weight"]
        result: Tensor = func(*args, **kwargs)
        axes = weight.ndim - 2
        how = {name: given[name] for name in given.keys() & {"stride", "padding", "dilation"}}
        expected = (weight.shape[0], *convolved_size(size[-axes:], weight.shape[2:], **how))
        real = tuple(result.shape[-axes - 1 :])
        if real != expected:
            raise ValueError(f"the convolution in {layer or 'the model'!r} gave {real}, its formula {expected}.")
        self.found.append(LayerUnits(layer, weight.shape[0], expected[1:]))
        return result
