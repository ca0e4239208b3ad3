"""Linear operations as a rule needs them: applied with other weights, and transposed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class LinearMap(ABC):
    """How an operation :math:`y = W x + b` goes forward and back, for any weights of its shape."""

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """:math:`W x + b`."""

    @abstractmethod
    def transpose(self, s: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """:math:`W^T s`, in the shape of the input ``like``."""

    def samples_apart(self) -> bool:
        """Whether the first axis of inputs and outputs is that of the samples, who know nothing of each other."""
        return False

    def output_channels(self, per_channel: Tensor, y: Tensor) -> Tensor:
        """A tensor [channels of y], shaped so that it can be added to y."""
        return per_channel

    def channels(self, y: Tensor) -> int:
        """How many numbers a bias has."""
        return y.shape[-1]

    def count_share(self, r: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Relevance spread evenly over all inputs that an output reads, whatever their weights."""
        ones = torch.ones_like(weight)
        counts = self.forward(_one_sample(like), ones)
        return self.transpose(divided(r, counts), ones, like)

    def stacks(self, weight: Tensor) -> bool:
        """Whether twice as many inputs, half of them with another weight, cost less than another way of two signs."""
        return False

    def stacked(self, first: Tensor, second: Tensor) -> Tensor:
        """Two weights as one over twice as many inputs."""
        raise NotImplementedError(f"{type(self).__name__} has no stacked inputs.")

    def signs(self, x: Tensor) -> Tensor:
        """The positive parts of inputs beside their negative parts, as :meth:`stacked` weights read them."""
        raise NotImplementedError(f"{type(self).__name__} has no stacked inputs.")

    def transpose_stacked(self, s: Tensor, weight: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """:math:`W^T s` for the two weights in a stacked one."""
        raise NotImplementedError(f"{type(self).__name__} has no stacked inputs.")

    def box(self, s: Tensor, weights: tuple[Tensor, Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:math:`W^T s` for three weights."""
        first, second, third = (self.transpose(s, weight, like) for weight in weights)
        return first, second, third


@dataclass(frozen=True)
class Dense(LinearMap):
    """``linear``: x [..., inputs], weight [outputs, inputs]."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See the base class."""
        return functional.linear(x, weight, bias)

    def transpose(self, s: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """See the base class."""
        return torch.matmul(s, weight)

    def count_share(self, r: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """See the base class."""
        return (r.sum(-1, keepdim=True) / like.shape[-1]).expand_as(like)


@dataclass(frozen=True)
class Convolution(LinearMap):
    """``conv1d`` to ``conv3d`` and their transposes: x [N, C, *S]."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def _settings(self, groups: int | None = None) -> tuple[Any, ...]:
        extra = self.output_padding or tuple(0 for _ in self.stride)
        groups = self.groups if groups is None else groups
        return (*map(list, (self.stride, self.padding, self.dilation)), self.transposed, list(extra), groups)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See the base class."""
        y: Tensor = torch.ops.aten.convolution.default(x, weight, bias, *self._settings())
        return y

    def transpose(self, s: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """See the base class."""
        return self._transpose(s, weight, like, self.groups)

    def _transpose(self, s: Tensor, weight: Tensor, like: Tensor, groups: int) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward.default(
            s, like, weight, None, *self._settings(groups), [True, False, False]
        )[0]
        return found

    def samples_apart(self) -> bool:
        """See the base class."""
        return True

    def output_channels(self, per_channel: Tensor, y: Tensor) -> Tensor:
        """See the base class."""
        return per_channel.view(1, -1, *[1] * (y.ndim - 2))

    def channels(self, y: Tensor) -> int:
        """See the base class."""
        return y.shape[1]

    def count_share(self, r: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """See the base class."""
        if self.transposed:
            return super().count_share(r, weight, like)
        groups, kernel = self.groups, weight.shape[2:]
        inner = like.shape[1] // groups
        plane = like.new_ones(1, 1, *like.shape[2:])
        settings = self._settings(1)
        counts = torch.ops.aten.convolution.default(plane, plane.new_ones(1, 1, *kernel), None, *settings) * inner
        # A channel of the output reads every channel of its group alike: one channel per group says it all.
        forward_by_sign = r.reshape(r.shape[0], groups, -1, *r.shape[2:]).sum(2)
        one = like.new_empty(1).expand(like.shape[0], groups, *like.shape[2:])
        spread = self._transpose(divided(forward_by_sign, counts), r.new_ones(groups, 1, *kernel), one, groups)
        return spread.unsqueeze(2).expand(-1, -1, inner, *spread.shape[2:]).reshape(like.shape)

    def stacks(self, weight: Tensor) -> bool:
        """See the base class."""
        # One more input of an output costs less than a pass over the outputs only while there are few.
        return self.groups == 1 and not self.transposed and weight[0].numel() <= 256

    def stacked(self, first: Tensor, second: Tensor) -> Tensor:
        """See the base class."""
        return torch.cat((first, second), 1)

    def signs(self, x: Tensor) -> Tensor:
        """See the base class."""
        return torch.cat((x.clamp(min=0), x.clamp(max=0)), 1)

    def transpose_stacked(self, s: Tensor, weight: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        first, second = self.transpose(s, weight, self._several(2, like)).chunk(2, 1)
        return first, second

    @staticmethod
    def _several(times: int, like: Tensor) -> Tensor:
        """The shape of so many inputs in one, in their memory layout, which the transposed operation takes over."""
        shape = (like.shape[0], times * like.shape[1], *like.shape[2:])
        last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)

    def box(self, s: Tensor, weights: tuple[Tensor, Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        if self.transposed or self.groups > 1:
            return super().box(s, weights, like)
        first, second, third = self.transpose(s, torch.cat(weights, 1), self._several(3, like)).chunk(3, 1)
        return first, second, third


@dataclass(frozen=True, eq=False)
class Product(LinearMap):
    """Any function that is linear in one operand and in another that does not depend on the input.

    Args:
        apply: The function of the two.
    """

    apply: Callable[[Tensor, Tensor], Tensor]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See the base class."""
        y = self.apply(x, weight)
        return y if bias is None else y + bias

    def channels(self, y: Tensor) -> int:
        """See the base class."""
        return 1

    def transpose(self, s: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """See the base class."""
        with torch.enable_grad():
            x = like.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.apply(x, weight), x, s)
        return found

    def count_share(self, r: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """See the base class."""
        ones = torch.ones_like(weight)
        return self.transpose(divided(r, self.forward(torch.ones_like(like), ones)), ones, like)


def _one_sample(like: Tensor) -> Tensor:
    return like.new_ones(1, *like.shape[1:])


def divided(r: Tensor, z: Tensor) -> Tensor:
    """Divide r by z; 0 where z is 0: nothing can be handed to inputs that contribute nothing."""
    return torch.where(z == 0, 0.0, r / torch.where(z == 0, 1.0, z))


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def where_negative(x: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """``below`` where x < 0, ``above`` where it is not; either of them where x is NaN. All of one dtype.

    >>> where_negative(torch.tensor([-2.0, -0.0, 3.0]), torch.tensor(-1.0), torch.tensor([1.0, 2.0, 5.0]))
    tensor([-1.,  2.,  5.])
    """
    if x.device.type != "cpu":
        return torch.where(x < 0, below, above)
    # A CPU branches on every sign and cannot foresee it: to choose bit by bit takes a sixth of the time.
    integer = _INTEGERS[x.element_size()]
    negative = (x + 0.0).view(integer) >> 8 * x.element_size() - 1  # + 0.0 makes 0 of -0.0
    bits = above.view(integer)
    return (below.view(integer) ^ bits).bitwise_and_(negative).bitwise_xor_(bits).view(x.dtype)


def image_layout(tensor: Tensor) -> bool:
    """Whether convolutions are faster with a tensor in channels-last memory: images in single precision or less."""
    return tensor.ndim == 4 and tensor.dtype != torch.float64
