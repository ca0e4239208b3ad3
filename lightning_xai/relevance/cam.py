r"""Class activation maps: the channels of a layer, weighted by what they mean for the score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_xai._checks import named_layer
from lightning_xai._guard import forward, hook_outputs, isolated_eval, leaf_at, observe_modules, uncompiled
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.operations import unwrapped
from lightning_xai.relevance.gradients import gradient
from lightning_xai.scores import BoundScore, Logit, RawOutput, Target

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_WRAPPERS = ("module.", "_orig_mod.")


class Seen(NamedTuple):
    r"""What a clean pass shows of a layer.

    Attributes:
        model: The network.
        layer: The layer's name.
        inputs: The inputs [N, C, \*S].
        activation: What the layer returned, as it is.
        bound: The score, bound to the clean output.
        score: The clean scores [N].
    """

    model: nn.Module
    layer: str
    inputs: Tensor
    activation: Tensor
    bound: BoundScore
    score: Tensor


@dataclass(frozen=True)
class LayerAttribution(ScoreAttribution, ABC):
    r"""A map [N, 1, \*S] made of the activation of one layer.

    Args:
        layer: The layer's dotted name, relative to the model. Unless given, the last one whose output has the spatial
            axes of the inputs with more than one cell: before global pooling, in a classifier.
        reshape: Turns the layer's output into [N, K, \*S'] where it has another form, e.g. tokens
            ``lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (14, 14))``: moves and drops elements, changes none.
        upsample: ``"bilinear"``, to the size of the inputs, linear along every axis; None for the layer's own size.
        relu: Set what is negative to 0 (before upsampling).
        score: s.
    """

    layer: str | None = None
    reshape: Callable[[Tensor], Tensor] | None = None
    upsample: str | None = "bilinear"
    relu: bool = field(default=True, kw_only=True)

    def check(self) -> None:
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"layer must be a dotted name such as 'features.0', got {type(self.layer).__name__}.")
        if self.reshape is not None and not callable(self.reshape):
            raise TypeError(f"reshape must be a function of the layer's output, got {type(self.reshape).__name__}.")
        if self.reshape is not None and self.layer is None:
            raise ValueError("reshape needs the name of the layer whose output it reshapes: layer='...'.")
        if self.upsample not in ("bilinear", None):
            raise ValueError(f"upsample must be 'bilinear' or None, got {self.upsample!r}.")

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        if inputs.ndim < 3:
            raise ValueError(
                f"{type(self).__name__} needs inputs with spatial axes [N, C, *S], got a table {list(inputs.shape)}: "
                f"use a gradient method or LRP."
            )
        model = unwrapped(model)
        with isolated_eval(model), uncompiled(model):
            found = self.map(model, self._found(model, inputs), inputs, target)
            relevance = found.map.detach()
            relevance = relevance.relu() if self.relu else relevance
            if self.upsample is not None and relevance.shape[2:] != inputs.shape[2:]:
                mode = _MODES[inputs.ndim - 2]
                relevance = functional.interpolate(relevance, inputs.shape[2:], mode=mode, align_corners=False)
            return replace(found, map=relevance)

    def check_map(self, relevance: Tensor, inputs: Tensor) -> None:
        # The layer's own size is what `upsample=None` asks for.
        super().check_map(relevance, inputs if self.upsample is not None else relevance)

    @abstractmethod
    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        r"""The explanation by a map [N, 1, \*S'] of the layer's own size."""

    def shaped(self, activation: Tensor, x: Tensor) -> Tensor:
        r"""The layer's output, or something of its form, as [N, K, \*S'].

        Raises:
            ValueError: If it is not, and there is no reshape that makes it so.
        """
        found = activation if self.reshape is None else self.reshape(activation)
        if not isinstance(found, Tensor) or found.ndim != x.ndim or len(found) != len(x):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            remedy = "give reshape=..." if self.reshape is None else "reshape must make it"
            raise ValueError(
                f"layer {self.layer!r} gives {got}, which is not [{len(x)}, channels] and {x.ndim - 2} spatial axes; "
                f"{remedy} such a tensor."
            )
        return found

    def see(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Seen:
        """A clean pass without gradients."""
        shown: list[Tensor] = []
        with hook_outputs(model, {layer: lambda output: shown.append(output.detach().clone())}):
            output = forward(model, x)
        bound = self.bind(output, target, len(x))
        return Seen(model, layer, x, only(shown, layer), bound, bound(output))

    def _found(self, model: nn.Module, x: Tensor) -> str:
        if self.layer is not None:
            name = self.layer
            while name.startswith(_WRAPPERS) and name not in dict(model.named_modules(remove_duplicate=False)):
                name = name.partition(".")[2]
            named_layer(model, name)
            return name
        spatial: list[str] = []
        runs: dict[str, int] = {}

        def see(name: str, output: Any) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(output, Tensor) and output.ndim == x.ndim and output.shape[2:].numel() > 1:
                spatial.append(name)

        with observe_modules(model, see):
            forward(model, x[:1])
        once = [name for name in spatial if runs[name] == 1]
        if not once:
            raise ValueError(
                f"no layer was found that runs once and returns [N, channels] and {x.ndim - 2} spatial axes with more "
                f"than one cell: name one with layer='...', and for tokens say with reshape=... where they lie."
            )
        return once[-1]


@dataclass(frozen=True)
class GradientCAM(LayerAttribution, ABC):
    """A map made of a layer's activation and the gradient there: implements :meth:`combine`."""

    @abstractmethod
    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        r"""The map [N, 1, \*S'], from activation and gradient [N, K, \*S']."""

    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        with leaf_at(model, layer) as leaves:
            output = forward(model, x)
        leaf = only(leaves, layer)
        bound = self.bind(output, target, len(x))
        score = bound(output)
        slope = gradient(score, leaf, f"layer {layer!r}")
        return Explanation.of(bound, score, self.combine(self.shaped(leaf.detach(), x), self.shaped(slope, x)))


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    r"""Channels weighted by their mean gradient.

    .. math::
        M = \mathrm{ReLU}\Big(\sum_k w_k A_k\Big), \qquad w_k = \frac{1}{|S'|} \sum_p \frac{\partial s}{\partial A_{kp}}

    Source: :cite:`selvaraju2017`. Arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[-1.0]]])
    >>> model[3].weight.data = torch.tensor([[4.0, 2.0]])
    >>> GradCAM(layer="0", upsample=None)(model, torch.tensor([[[2.0, 4.0, -1.0, 3.0]]]), 0)
    tensor([[[1.0000, 2.0000, 0.0000, 1.5000]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return weighted(activation, means(gradient))


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    r"""Channels weighted by their positive gradients, every place by its share in the channel.

    .. math::
        w_k = \sum_p \alpha_{kp} \mathrm{ReLU}(g_{kp}), \qquad
        \alpha_{kp} = \frac{g_{kp}^2}{2 g_{kp}^2 + g_{kp}^3 \sum_q A_{kq}}

    with :math:`g = \partial s / \partial A`. The paper explains :math:`e^s`, whose map is this one times
    :math:`e^s`. :math:`\alpha` is 0 where its denominator is.

    Source: :cite:`chattopadhay2018`. Arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, 1.0]])
    >>> GradCAMPlusPlus(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[0.3667, 1.1000]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        square = gradient.square()
        below = 2 * square + square * gradient * sums(activation)
        alpha = torch.where(below == 0, 0.0, square / torch.where(below == 0, 1.0, below))
        return weighted(activation, sums(alpha * gradient.relu()))


@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    r"""Channels weighted by the mean of their gradient under their activation.

    .. math:: w_k = \sum_p \frac{A_{kp}}{\sum_q A_{kq}} \frac{\partial s}{\partial A_{kp}}

    A channel whose activations sum to 0 has the weight 0.

    Source: :cite:`fu2020`. Arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, 1.0]])
    >>> XGradCAM(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[1.2500, 3.7500]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        total = sums(activation)
        weights = torch.where(total == 0, 0.0, sums(activation * gradient) / torch.where(total == 0, 1.0, total))
        return weighted(activation, weights)


@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    r"""Every place of every channel weighted by its own gradient, where that is positive.

    .. math:: M = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\big(\partial s / \partial A_k\big) \odot A_k\Big)

    Source: :cite:`jiang2021`. Arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, -1.0]])
    >>> LayerCAM(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[2., 0.]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.relu() * activation).sum(1, keepdim=True)


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    r"""Every place of every channel weighted by its own gradient; signed.

    .. math:: M = \sum_k \frac{\partial s}{\partial A_k} \odot A_k

    It sums to :math:`s - b` before upsampling if what follows the layer is affine, b being its bias.

    Source: :cite:`draelos2020`. Arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, -1.0]])
    >>> HiResCAM(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[ 2., -3.]]])
    """

    relu: bool = field(default=False, kw_only=True)

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient * activation).sum(1, keepdim=True)


@dataclass(frozen=True)
class CAM(LayerAttribution):
    r"""Channels weighted by the classifier that reads their mean or sum; signed.

    .. math:: M = \sum_k w_k^c A_k

    It sums to :math:`s - b` before upsampling after sum pooling, to :math:`|S'| (s - b)` after mean pooling. Only for
    networks in which nothing but global pooling, dropout in eval mode and reshapes stands between the layer and one
    linear layer that gives the classes: this is checked.

    Args:
        classifier: The dotted name of the linear layer; the last one that runs unless given.
        score: ``"logit"`` or ``"value"``.

    Raises:
        ValueError: If the score is another, or more than pooling and a linear layer follow.

    Source: :cite:`zhou2016`. Further arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[-1.0]]])
    >>> model[3].weight.data = torch.tensor([[4.0, 2.0]])
    >>> CAM(layer="0", upsample=None)(model, torch.tensor([[[2.0, 4.0, -1.0, 3.0]]]), 0)
    tensor([[[ 4.,  8., -2.,  6.]]])
    """

    classifier: str | None = field(default=None, kw_only=True)
    relu: bool = field(default=False, kw_only=True)

    def check(self) -> None:
        super().check()
        if type(self.score) not in (Logit, RawOutput):
            raise ValueError(f"CAM explains a class's logit: score must be 'logit' or 'value', got {self.score!r}.")

    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        linear: dict[str, nn.Linear] = {}

        def see(name: str, _output: Any) -> None:
            module = named_layer(model, name)
            if isinstance(module, nn.Linear):
                linear[name] = module

        with observe_modules(model, see):
            seen = self.see(model, layer, x, target)
        name = next(reversed(linear), "") if self.classifier is None else self.classifier
        last = linear.get(name) or named_layer(model, name)
        activation = self.shaped(seen.activation, x)
        if (
            isinstance(last, nn.Linear)
            and last.in_features == activation.shape[1]
            and last.out_features == seen.bound.classes
        ):
            weights = last.weight[seen.bound.target].to(activation)
            weights = weights.view(*weights.shape, *[1] * (x.ndim - 2))
            bias = activation.new_zeros(()) if last.bias is None else last.bias[seen.bound.target].to(activation)
            found = weighted(activation, weights)
            size = weighted(activation.abs(), weights.abs()).flatten(1)
            rounding = 0.1 * torch.finfo(activation.dtype).eps ** 0.5
            for pool in (torch.mean, torch.sum):
                off = (pool(found.flatten(1), 1) + bias - seen.score).abs()
                if bool((off <= rounding * (pool(size, 1) + bias.abs())).all()):
                    return Explanation.of(seen.bound, seen.score, found)
        raise ValueError(
            f"CAM needs global pooling and one linear layer right after the layer it looks at, which is not what "
            f"stands between {layer!r} and the output (the linear layer looked at is {name!r}): name others with "
            f"layer=... and classifier=..., or use GradCAM, which needs neither."
        )


@dataclass(frozen=True)
class ScoreCAM(LayerAttribution):
    r"""Channels weighted by the score that the input keeps when the channel masks it.

    .. math:: M = \mathrm{ReLU}\Big(\sum_k w_k A_k\Big), \qquad w = \mathrm{softmax}_k\, s(x \odot H_k)

    :math:`H_k` is the channel upsampled and stretched to [0, 1]; 0 for a channel that is the same everywhere. As many
    forward passes as channels.

    Args:
        chunk_size: The most inputs per forward pass.

    The channels below keep scores of log 3 and 0, so their weights are 3/4 and 1/4.

    Source: :cite:`wang2020`. Further arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> import math
    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(6, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[-1.0]]])
    >>> model[2].weight.data = torch.tensor([[0.0, 0.0, math.log(3.0) / 2.0, 0.0, 0.0, 0.0]])
    >>> ScoreCAM(layer="0")(model, torch.tensor([[[0.0, 1.0, 2.0]]]), 0)
    tensor([[[0.0000, 0.5000, 1.0000]]])
    """

    chunk_size: int = field(default=32, kw_only=True)

    def check(self) -> None:
        super().check()
        check_chunk(self.chunk_size)

    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        seen = self.see(model, layer, x, target)
        activation = self.shaped(seen.activation, x)

        def masked(channels: Tensor) -> Tensor:
            mask = activation[:, channels]
            if mask.shape[2:] != x.shape[2:]:
                mask = functional.interpolate(mask, x.shape[2:], mode=_MODES[x.ndim - 2], align_corners=False)
            flat = mask.flatten(2)
            low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
            width = torch.where(high > low, high - low, 1.0)
            return ((flat - low) / width).view_as(mask)

        scores = []
        for channels in chunks(activation.shape[1], self.chunk_size, x):
            mask = masked(channels).to(x.dtype)
            batch = (x.unsqueeze(1) * mask.unsqueeze(2)).flatten(0, 1)
            rows = torch.arange(len(x), device=x.device).repeat_interleave(len(channels))
            scores.append(seen.bound.at(rows)(forward(model, batch)).view(len(x), -1))
        weights = torch.cat(scores, 1).softmax(1)
        weights = weights.view(*weights.shape, *[1] * (x.ndim - 2)).to(activation)
        return Explanation.of(seen.bound, seen.score, weighted(activation, weights))


@dataclass(frozen=True)
class AblationCAM(LayerAttribution):
    r"""Channels weighted by the share of the score that is lost without them.

    .. math:: M = \mathrm{ReLU}\Big(\sum_k w_k A_k\Big), \qquad w_k = \frac{s - s_{\setminus k}}{s}

    :math:`s_{\setminus k}` is the score with channel k set to 0. A score of exactly 0 does not divide. As many forward
    passes as channels.

    Args:
        chunk_size: The most inputs per forward pass.

    Source: :cite:`desai2020`. Further arguments: those of :class:`~lightning_xai.relevance.cam.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[2.0]]])
    >>> model[2].weight.data = torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    >>> AblationCAM(layer="0")(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[1.5556, 4.6667]]])
    """

    chunk_size: int = field(default=32, kw_only=True)

    def check(self) -> None:
        super().check()
        check_chunk(self.chunk_size)

    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        seen = self.see(model, layer, x, target)
        activation = self.shaped(seen.activation, x)
        channel_of = self._channels(seen.activation, x)
        lost = []
        for channels in chunks(activation.shape[1], self.chunk_size, x):
            rows = torch.arange(len(x), device=x.device).repeat_interleave(len(channels))
            removed = channel_of.eq(channels.view(-1, *[1] * channel_of.ndim)).repeat(len(x), *[1] * channel_of.ndim)

            def ablate(output: Tensor, removed: Tensor = removed) -> Tensor:
                return output.masked_fill(removed, 0.0)

            with hook_outputs(model, {layer: ablate}):
                scores = seen.bound.at(rows)(forward(model, x[rows]))
            lost.append(seen.score.unsqueeze(1) - scores.view(len(x), -1))
        total = torch.where(seen.score == 0, 1.0, seen.score).unsqueeze(1)
        weights = torch.cat(lost, 1) / total
        weights = weights.view(*weights.shape, *[1] * (x.ndim - 2)).to(activation)
        return Explanation.of(seen.bound, seen.score, weighted(activation, weights))

    def _channels(self, activation: Tensor, x: Tensor) -> Tensor:
        """Which channel every element of a sample of the layer's output belongs to after reshaping; -1 for none."""
        numbers = torch.arange(1, activation.numel() + 1, dtype=torch.float64, device=activation.device)
        moved = self.shaped(numbers.view_as(activation), x)
        place = moved.round().long() - 1
        if not bool((moved == place + 1).all()) or int(place.min()) < 0 or torch.unique(place).numel() < place.numel():
            raise ValueError("AblationCAM needs a reshape that moves and drops elements but makes no new ones.")
        channel = torch.full((activation.numel(),), -1, device=activation.device)
        names = torch.arange(moved.shape[1], device=activation.device).view(1, -1, *[1] * (x.ndim - 2))
        channel[place.flatten()] = names.expand_as(moved).flatten()
        return channel.view_as(activation)[0]


def only(outputs: list[Tensor], layer: str) -> Tensor:
    """The one output of a layer.

    Raises:
        ValueError: If it has not run, or several times.
    """
    if len(outputs) != 1:
        times = f"ran {len(outputs)} times" if outputs else "did not run"
        raise ValueError(f"layer {layer!r} {times} in one pass of the model: name one that runs once.")
    return outputs[0]


def weighted(activation: Tensor, weights: Tensor) -> Tensor:
    r"""The sum [N, 1, \*S] of channels [N, K, \*S] by weights [N, K, 1, ...]."""
    return (weights * activation).sum(1, keepdim=True)


def sums(values: Tensor) -> Tensor:
    """Sums over the places of each channel [N, K, 1, ...]."""
    return values.sum(tuple(range(2, values.ndim)), keepdim=True)


def means(values: Tensor) -> Tensor:
    """Means over the places of each channel [N, K, 1, ...]."""
    return values.mean(tuple(range(2, values.ndim)), keepdim=True)


def chunks(channels: int, limit: int, x: Tensor) -> Iterator[Tensor]:
    """Some channels at a time, at least one, so that no pass has more inputs than the limit if it can be helped."""
    yield from torch.split(torch.arange(channels, device=x.device), max(1, limit // len(x)))


def check_chunk(chunk_size: int) -> None:
    """Refuse a number of inputs per pass that makes no sense.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive integer, got {chunk_size!r}.")
