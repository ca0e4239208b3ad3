"""Rules for what is not linear: activations, norms, statistics, products and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_xai.operations import tensors_in
from lightning_xai.operations.kinds import HOMOGENEOUS
from lightning_xai.relevance import chain
from lightning_xai.relevance.call import Call, is_live
from lightning_xai.relevance.functions import at_zero, passing_factor
from lightning_xai.relevance.rules.base import Rule


@dataclass(frozen=True)
class Pass(Rule):
    r"""Relevance passes as it is, :math:`R_x = R_y`: for operations on single numbers.

    For an activation with :math:`f(0) \ne 0` (a sigmoid), f(0) counts as a bias and absorbs its share:
    :math:`R_x = \frac{f(x) - f(0)}{f(x)} R_y`, which is finite everywhere.

    Source: :cite:`bach2015,achtibat2024`.

    Example:
        The contributions 2 and -1 times :math:`\ln 3` make :math:`\sigma(\ln 3) = \tfrac34`, of which
        :math:`\sigma(0) = \tfrac12` is a bias. A fourth passes:

        >>> import math
        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Sigmoid())
        >>> model[0].weight.data = torch.tensor([[2.0, -1.0]]) * math.log(3)
        >>> choice = {"activation": rules.Pass(), "linear": rules.Zero()}
        >>> LRP(composites.RuleList(choice), score="value")(model, torch.ones(1, 2), 0)
        tensor([[ 0.5000, -0.2500]])
    """

    applies = frozenset({"activation", "affine_norm", "norm"})

    def run(self, call: Call) -> Any:
        """See the base class."""
        if call.operation.kind != "activation":
            return scale_rule(call)
        if len(call.live) > 1:
            raise ValueError(
                f"{self} is no rule for {call.operation}, whose further arguments depend on the input; give it "
                f"rules.Gradient()."
            )
        fused = chain.fuse_activation(call)
        if fused is not None:
            return fused
        if call.operation.name in HOMOGENEOUS:  # f(x) = x f'(x)
            return call.make()
        zero = at_zero(call.func, call.args, call.kwargs)

        def run(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            y = call.applied(x)
            return y, (passing_factor(x, y, *zero),)

        return call.rewired(run, lambda g, factor: g * factor)


def scale_rule(call: Call) -> Tensor:
    """A function x c(x), taken for a stretch of each number by a constant, through which relevance passes as it is."""

    def run(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = call.applied(x)
        return y, (torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x)),)

    return call.rewired(run, lambda g, factor: g * factor)


@dataclass(frozen=True)
class FixedScale(Rule):
    r"""Layer, group, instance or RMS norm whose divisor is taken as a constant, which makes it linear.

    .. math:: y = \gamma (x - \mu(x)) / \sigma + \beta

    Source: :cite:`achtibat2024`.

    Example:
        Of 3, 1, 1 and 3 the mean is 2 and the deviation 1, so :math:`y_0 = 2 (x_0 - \tfrac14 \sum_i x_i) + 5`, of which
        the inputs have 2:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.LayerNorm(4, eps=0.0)
        >>> model.weight.data, model.bias.data = torch.tensor([2.0, 1.0, 1.0, 1.0]), torch.full((4,), 5.0)
        >>> own = LRP(composites.RuleList([("norm", rules.FixedScale())]), score="value")
        >>> own(model, torch.tensor([[3.0, 1.0, 1.0, 3.0]]), 0)
        tensor([[ 4.5000, -0.5000, -0.5000, -1.5000]])
    """

    applies = frozenset({"norm"})

    def run(self, call: Call) -> Any:
        """See the base class."""
        name, x, named = call.operation.name, call.args[0], call.named()
        weight = named.get("weight")
        if name in ("layer_norm", "rms_norm"):
            dims = tuple(range(-len(named["normalized_shape"]), 0))
            return self._made(call, x.shape, dims, weight, centred=name == "layer_norm")
        if name not in ("group_norm", "instance_norm", "batch_norm"):
            return scale_rule(call)
        if weight is not None:
            weight = weight.view(-1, *[1] * (x.ndim - (2 if x.ndim > 1 else 1)))
        if name == "batch_norm":  # in training mode, where the statistics are those of the batch
            return self._made(call, x.shape, (0, *range(2, x.ndim)), weight)
        samples, channels = (1, x.shape[0]) if name == "instance_norm" and x.ndim == 2 else x.shape[:2]
        groups = named["num_groups"] if name == "group_norm" else channels
        return self._made(call, (samples, groups, -1), (2,), weight)

    def _made(
        self, call: Call, grouped: Sequence[int], dims: tuple[int, ...], weight: Tensor | None, *, centred: bool = True
    ) -> Tensor:
        """Make a norm over some axes of the input reshaped into groups."""
        eps: Any = call.named().get("eps", 1e-5 if centred else None)

        def run(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            groups = x.reshape(grouped)
            if call.operation.name == "layer_norm":  # several times faster than groups.var()
                factor = torch.native_layer_norm(x, x.shape[dims[0] :], None, None, eps)[2]
            elif centred:
                factor = torch.rsqrt(groups.var(dims, correction=0, keepdim=True) + eps)
            else:
                smallest = torch.finfo(x.dtype).eps if eps is None else eps
                factor = torch.rsqrt(groups.square().mean(dims, keepdim=True) + smallest)
            if factor.ndim != x.ndim:
                factor = factor.expand(groups.shape).reshape(x.shape)
            return call.applied(x), (factor if weight is None else factor * weight,)

        def backward(g: Tensor, factor: Tensor) -> Tensor:
            found = g * factor
            if centred:
                groups = found.reshape(grouped)
                found = (groups - groups.mean(dims, keepdim=True)).reshape(found.shape)
            return found

        return call.rewired(run, backward)


@dataclass(frozen=True)
class Constant(Rule):
    r"""What the operation gives counts as a constant, and hands nothing on: the divisor of a norm written by hand.

    The relevance of a product with it then is that of the other factor alone.

    Source: :cite:`achtibat2024`.

    Example:
        Of :math:`x / \|x\| = (3, 4) / 5` each number keeps what it is:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> class Normalised(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x / x.norm(dim=1, keepdim=True)
        >>> own = LRP(composites.RuleList([("statistic", rules.Constant())]), score="value")
        >>> own(Normalised(), torch.tensor([[3.0, 4.0]]), 0)
        tensor([[0.6000, 0.0000]])
    """

    applies = frozenset({"statistic"})

    def run(self, call: Call) -> Any:
        """See the base class."""
        args = (argument.detach() if isinstance(argument, Tensor) else argument for argument in call.args)
        named = {key: value.detach() if isinstance(value, Tensor) else value for key, value in call.kwargs.items()}
        return call.func(*args, **named)


@dataclass(frozen=True)
class Uniform(Rule):
    r"""A product of values of the network shares its relevance evenly between its factors: :math:`R_a = R_b = R/2`.

    Attention is two products around a softmax: its values get one half, its queries and keys a quarter each of what
    passes through the softmax.

    Source: :cite:`achtibat2024`.

    Example:
        3 and -5 have half of their product -15 each:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> class Product(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x[:, :1] * x[:, 1:]
        >>> own = LRP(composites.RuleList([("product", rules.Uniform())]), score="value")
        >>> own(Product(), torch.tensor([[3.0, 4.0, -5.0]]), 1)
        tensor([[-7.5000,  0.0000, -7.5000]])
    """

    applies = frozenset({"product", "attention"})

    def run(self, call: Call) -> Any:
        """See the base class."""
        if call.operation.kind == "attention":
            return self._attention(call)
        name = call.operation.name
        if call.in_place and name in ("mul", "multiply", "imul") and sum(map(is_live, tensors_in(call.args))) == 2:
            return call.on_gradient(call.make(), lambda g: g / 2)
        shared = self._shared(call, name)
        if shared is None or (call.in_place and shared[0] is not call.args[0]):
            raise ValueError(
                f"{self} is no rule for {call.operation}{' in place' if call.in_place else ''}; give it another one, "
                f"e.g. ({name!r}, rules.Gradient())."
            )
        return call.make(*shared)

    @staticmethod
    def _shared(call: Call, name: str) -> tuple[Any, ...] | None:
        """The arguments of a product, each factor with its share; None if there is no rule for this one."""
        args = call.args
        if name in _DIVISORS:  # a divisor counts as a constant
            place = _DIVISORS[name]
            return tuple(
                argument.detach() if index == place and isinstance(argument, Tensor) else argument
                for index, argument in enumerate(args)
            )
        if name == "prod":
            axis = call.kwargs.get("dim", args[1] if len(args) > 1 else None)
            count = args[0].numel() if axis is None else args[0].shape[axis]
            return (call.share(args[0], 1 / count), *args[1:])
        if name == "lerp" and is_live(args[2]):
            return None
        if name == "lerp":
            return args
        start = 1 if name.startswith("add") or name == "baddbmm" else 0
        end = len(args) if name in ("einsum", "multi_dot") else start + 2
        factors = args[start:end]
        count = sum(map(is_live, tensors_in(factors)))
        if count < 2:
            return args
        shares = (
            type(factor)(call.share(part, 1 / count) for part in factor)
            if isinstance(factor, tuple | list)
            else call.share(factor, 1 / count)
            for factor in factors
        )
        return (*args[:start], *shares, *args[end:])

    @staticmethod
    def _attention(call: Call) -> Any:
        """Queries, keys and values with their shares: two products, each of which halves if both factors count."""
        named = call.named()
        query, key, value = (is_live(named[name]) for name in ("query", "key", "value"))
        outer = 0.5 if (query or key) and value else 1.0
        inner = 0.5 * outer if query and key else outer
        shares = {"query": inner, "key": inner, "value": outer}
        return call.make(**{**named, **{name: call.share(named[name], share) for name, share in shares.items()}})


_DIVISORS = {"rdiv": 0, "rtruediv": 0, "addcdiv": 2} | dict.fromkeys(
    ("div", "divide", "true_divide", "truediv", "itruediv"), 1
)
"""Where the divisor stands among the arguments."""


@dataclass(frozen=True)
class Deconv(Rule):
    r"""Backward ReLU of the deconvnet, :math:`g_x = \max(g_y, 0)`.

    Source: :cite:`zeiler2014`.

    Example:
        What is positive of the weights passes, also where the ReLU is closed; the map is the input times that:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[3.0, 3.0, -5.0, -5.0]])
        >>> own = LRP(composites.RuleList([("relu", rules.Deconv()), ("*", rules.Gradient())]))
        >>> own(model, torch.tensor([[2.0, -2.0, 2.0, -2.0]]), 0)
        tensor([[ 6., -6.,  0.,  0.]])
    """

    applies = frozenset({"activation"})

    def run(self, call: Call) -> Any:
        """See the base class."""
        return call.rewired(lambda x: (call.applied(x), ()), lambda g: g.clamp(min=0))


@dataclass(frozen=True)
class Guided(Rule):
    r"""Backward ReLU of guided backpropagation, :math:`g_x = [x > 0] \max(g_y, 0)`.

    Source: :cite:`springenberg2015`.

    Example:
        What is positive of the weights passes where the ReLU is open; the map is the input times that:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[3.0, 3.0, -5.0, -5.0]])
        >>> own = LRP(composites.RuleList([("relu", rules.Guided()), ("*", rules.Gradient())]))
        >>> own(model, torch.tensor([[2.0, -2.0, 2.0, -2.0]]), 0)
        tensor([[6., 0., 0., 0.]])
    """

    applies = frozenset({"activation"})

    def run(self, call: Call) -> Any:
        """See the base class."""
        return call.on_gradient(call.make(), lambda g: g.clamp(min=0))
