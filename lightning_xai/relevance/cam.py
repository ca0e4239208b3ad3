r"""Class activation maps: the channels of a layer, weighted by what they mean for the score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai._guard import forward, hook_outputs, observe_modules
from lightning_xai.attribution import Explanation
from lightning_xai.batching import Batches
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.present import without_absent
from lightning_xai.relevance.layer import GradientCAM, LayerAttribution
from lightning_xai.resizing import resize
from lightning_xai.scores import Logit, RawOutput, Target
from lightning_xai.sites import Layer, Place, layer_name, named_layer


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    r"""Channels weighted by their mean gradient.

    .. math::
        M = \mathrm{ReLU}\Big(\sum_k w_k A_k\Big), \qquad w_k = \frac{1}{|S'|} \sum_p \frac{\partial s}{\partial A_{kp}}

    Source: :cite:`selvaraju2017`. Arguments: those of :class:`~lightning_xai.relevance.layer.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[-1.0]]])
    >>> model[3].weight.data = torch.tensor([[4.0, 2.0]])
    >>> GradCAM(layer="0", upsample=None)(model, torch.tensor([[[2.0, 4.0, -1.0, 3.0]]]), 0)
    tensor([[[1.0000, 2.0000, 0.0000, 1.5000]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor, positions: Tensor | int) -> Tensor:
        return weighted(activation, gradient.flatten(2).sum(2) / positions)


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    r"""Channels weighted by their positive gradients, every place by its share in the channel.

    .. math::
        w_k = \sum_p \alpha_{kp} \mathrm{ReLU}(g_{kp}), \qquad
        \alpha_{kp} = \frac{g_{kp}^2}{2 g_{kp}^2 + g_{kp}^3 \sum_q A_{kq}}

    with :math:`g = \partial s / \partial A`. The paper explains :math:`e^s`, whose map is this one times
    :math:`e^s`. :math:`\alpha` is 0 where its denominator is.

    Source: :cite:`chattopadhay2018`. Arguments: those of :class:`~lightning_xai.relevance.layer.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, 1.0]])
    >>> GradCAMPlusPlus(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[0.3667, 1.1000]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor, positions: Tensor | int) -> Tensor:
        g, total = gradient.flatten(2), activation.flatten(2).sum(2, keepdim=True)
        return weighted(activation, (divided(g**2, 2 * g**2 + g**3 * total) * g.relu()).sum(2))


@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    r"""Channels weighted by the mean of their gradient under their activation.

    .. math:: w_k = \sum_p \frac{A_{kp}}{\sum_q A_{kq}} \frac{\partial s}{\partial A_{kp}}

    A channel whose activations sum to 0 has the weight 0.

    Source: :cite:`fu2020`. Arguments: those of :class:`~lightning_xai.relevance.layer.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, 1.0]])
    >>> XGradCAM(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[1.2500, 3.7500]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor, positions: Tensor | int) -> Tensor:
        total = activation.flatten(2).sum(2)
        return weighted(activation, divided((activation * gradient).flatten(2).sum(2), total))


@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    r"""Every place of every channel weighted by its own gradient, where that is positive.

    .. math:: M = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\big(\partial s / \partial A_k\big) \odot A_k\Big)

    Source: :cite:`jiang2021`. Arguments: those of :class:`~lightning_xai.relevance.layer.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, -1.0]])
    >>> LayerCAM(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[2., 0.]]])
    """

    def combine(self, activation: Tensor, gradient: Tensor, positions: Tensor | int) -> Tensor:
        return (gradient.relu() * activation).sum(1, keepdim=True)


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    r"""Every place of every channel weighted by its own gradient; signed.

    .. math:: M = \sum_k \frac{\partial s}{\partial A_k} \odot A_k

    It sums to :math:`s - b` before upsampling if what follows the layer is affine, b being its bias.

    Source: :cite:`draelos2020`. Arguments: those of :class:`~lightning_xai.relevance.layer.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[[1.0]]]), torch.tensor([[2.0, -1.0]])
    >>> HiResCAM(layer="0", upsample=None)(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[ 2., -3.]]])
    """

    relu: bool = field(default=False, kw_only=True)

    def combine(self, activation: Tensor, gradient: Tensor, positions: Tensor | int) -> Tensor:
        return (gradient * activation).sum(1, keepdim=True)


@dataclass(frozen=True)
class CAM(LayerAttribution):
    r"""Channels weighted by the classifier that reads their mean or sum; signed.

    .. math:: M = \sum_k w_k^c A_k

    It sums to :math:`s - b` before upsampling after sum pooling, to :math:`|S'| (s - b)` after mean pooling. Only for
    networks in which nothing but global pooling, dropout in eval mode and reshapes stands between the layer and one
    linear layer that gives the classes: this is checked.

    Args:
        classifier: The linear layer, by its dotted name or the module itself; the last one that runs unless given.
        score: ``"logit"`` or ``"value"``.

    Raises:
        ValueError: If the score is another, or more than pooling and a linear layer follow.

    Source: :cite:`zhou2016`. Further arguments: those of :class:`~lightning_xai.relevance.layer.LayerAttribution`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[-1.0]]])
    >>> model[3].weight.data = torch.tensor([[4.0, 2.0]])
    >>> CAM(layer="0", upsample=None)(model, torch.tensor([[[2.0, 4.0, -1.0, 3.0]]]), 0)
    tensor([[[ 4.,  8., -2.,  6.]]])
    """

    classifier: Layer | None = field(default=None, kw_only=True)
    relu: bool = field(default=False, kw_only=True)

    def check(self) -> None:
        super().check()
        if type(self.score) not in (Logit, RawOutput):
            raise ValueError(f"CAM explains a class's logit: score must be 'logit' or 'value', got {self.score!r}.")

    def map(self, model: nn.Module, layer: Place, x: Tensor, target: Target) -> Explanation:
        linear = [""]

        def see(name: str, _output: Any) -> None:
            if isinstance(named_layer(model, name), nn.Linear):
                linear.append(name)

        with observe_modules(model, see):
            activation, bound, score = self.see(model, layer, x, target)
        name = linear[-1] if self.classifier is None else layer_name(model, self.classifier)
        last, activation = named_layer(model, name), self.shaped(activation, x)
        fits = activation.shape[1], bound.classes
        if isinstance(last, nn.Linear) and (last.in_features, last.out_features) == fits:
            weights = last.weight[bound.target].to(activation)
            bias = activation.new_zeros(()) if last.bias is None else last.bias[bound.target].to(activation)
            relevance = weighted(activation, weights)
            size = weighted(activation.abs(), weights.abs()).flatten(1)
            rounding = 0.1 * torch.finfo(activation.dtype).eps ** 0.5
            for pool in (torch.mean, torch.sum):
                off = (pool(relevance.flatten(1), 1) + bias - score).abs()
                if bool(((off <= rounding * (pool(size, 1) + bias.abs())) | ~score.isfinite()).all()):
                    return Explanation.of(bound, score, relevance)
        raise ValueError(
            f"CAM needs global pooling and one linear layer right after the layer it looks at, which is not what "
            f"stands between {layer.layer!r} and the output (the linear layer looked at is {name!r}): name others with "
            f"layer=... and classifier=..., or use GradCAM, which needs neither."
        )


@dataclass(frozen=True)
class ChannelwiseCAM(LayerAttribution, ABC):
    """An attribution whose channel weights come from further passes, one for every channel of a sample.

    Args:
        chunk_size: The most inputs per forward pass; halved when memory runs out.
    """

    chunk_size: int = field(default=32, kw_only=True)

    def check(self) -> None:
        super().check()
        as_integer("chunk_size", self.chunk_size, least=1)

    @abstractmethod
    def passes(self, model: nn.Module, layer: Place, x: Tensor, activation: Tensor) -> Callable[[Tensor, Tensor], Any]:
        """Return a function that runs the model for samples [B], each for its channel [B]."""

    @abstractmethod
    def weights(self, score: Tensor, scores: Tensor) -> Tensor:
        """Return the weights [N, K], given the clean score [N] and the scores of the passes [N, K]."""

    def map(self, model: nn.Module, layer: Place, x: Tensor, target: Target) -> Explanation:
        output, bound, score = self.see(model, layer, x, target)
        activation = self.shaped(output, x)
        run = self.passes(model, layer, x, output)
        batches, channels = Batches(model, x, self.chunk_size), activation.shape[1]
        index = torch.arange(max(len(x), channels), device=x.device)

        def scores_of(samples: slice, some: slice) -> Tensor:
            sample, channel = torch.cartesian_prod(index[: len(x)][samples], index[some]).unbind(1)
            return bound.at(sample)(run(sample, channel)).view(-1, len(index[some]))

        def block(samples: slice) -> Tensor:
            parts = batches.map(partial(scores_of, samples), channels, width=samples.stop - samples.start)
            return torch.cat(parts, 1)

        scores = torch.cat(batches.map(block, len(x), copies=channels))
        there = self.there(model, layer, x)
        activation = activation if there is None else activation * there
        return Explanation.of(bound, score, weighted(activation, self.weights(score, scores).to(activation)))


@dataclass(frozen=True)
class ScoreCAM(ChannelwiseCAM):
    r"""Channels weighted by the score that the input keeps when the channel masks it.

    .. math:: M = \mathrm{ReLU}\Big(\sum_k w_k A_k\Big), \qquad w = \mathrm{softmax}_k\, s(x \odot H_k)

    :math:`H_k` is the channel upsampled and stretched to [0, 1]; 0 for a channel that is the same everywhere. As many
    forward passes as channels.

    The channels below keep scores of log 3 and 0, so their weights are 3/4 and 1/4.

    Source: :cite:`wang2020`. Arguments: those of :class:`~lightning_xai.relevance.cam.ChannelwiseCAM`.

    >>> import math
    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(6, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[-1.0]]])
    >>> model[2].weight.data = torch.tensor([[0.0, 0.0, math.log(3.0) / 2.0, 0.0, 0.0, 0.0]])
    >>> ScoreCAM(layer="0")(model, torch.tensor([[[0.0, 1.0, 2.0]]]), 0)
    tensor([[[0.0000, 0.5000, 1.0000]]])
    """

    def passes(self, model: nn.Module, layer: Place, x: Tensor, activation: Tensor) -> Callable[[Tensor, Tensor], Any]:
        maps = self.shaped(activation, x)

        def masked(sample: Tensor, channel: Tensor) -> Any:
            mask = resize(maps[sample, channel].unsqueeze(1), x.shape[2:])
            own = at_rows(model, sample)
            low, high = (
                sign * without_absent(own, sign * mask, -torch.inf).flatten(1).amax(1, keepdim=True) for sign in (-1, 1)
            )
            mask = ((mask.flatten(1) - low) / torch.where(high > low, high - low, 1.0)).view_as(mask)
            return forward(own, x[sample] * mask.to(x.dtype))

        return masked

    def weights(self, score: Tensor, scores: Tensor) -> Tensor:
        return scores.softmax(1)


@dataclass(frozen=True)
class AblationCAM(ChannelwiseCAM):
    r"""Channels weighted by the share of the score that is lost without them.

    .. math:: M = \mathrm{ReLU}\Big(\sum_k w_k A_k\Big), \qquad w_k = \frac{s - s_{\setminus k}}{s}

    :math:`s_{\setminus k}` is the score with channel k set to 0. A score of exactly 0 does not divide. As many forward
    passes as channels.

    Source: :cite:`desai2020`. Arguments: those of :class:`~lightning_xai.relevance.cam.ChannelwiseCAM`.

    >>> model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[[1.0]], [[2.0]]])
    >>> model[2].weight.data = torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    >>> AblationCAM(layer="0")(model, torch.tensor([[[1.0, 3.0]]]), 0)
    tensor([[[1.5556, 4.6667]]])
    """

    def passes(self, model: nn.Module, layer: Place, x: Tensor, activation: Tensor) -> Callable[[Tensor, Tensor], Any]:
        channel_of = self._channels(activation, x)

        def without(sample: Tensor, channel: Tensor) -> Any:
            removed = channel_of == channel.view(-1, *[1] * channel_of.ndim)
            with hook_outputs(model, {layer: lambda output: output.masked_fill(removed, 0.0)}):
                return forward(at_rows(model, sample), x[sample])

        return without

    def weights(self, score: Tensor, scores: Tensor) -> Tensor:
        score = score.unsqueeze(1)
        return (score - scores) / torch.where(score == 0, 1.0, score)

    def _channels(self, activation: Tensor, x: Tensor) -> Tensor:
        """Return the channel after reshaping of every element of a sample of the layer's output; -1 for none."""
        numbers = torch.arange(1, activation.numel() + 1, dtype=torch.float64, device=activation.device)
        moved = self.shaped(numbers.view_as(activation), x)
        place = moved.round().long() - 1
        if not bool((moved == place + 1).all()) or int(place.min()) < 0 or torch.unique(place).numel() < place.numel():
            raise ValueError("AblationCAM needs a reshape that moves and drops elements but makes no new ones.")
        channel = torch.full((activation.numel(),), -1, device=activation.device)
        names = torch.arange(moved.shape[1], device=activation.device).view(1, -1, *[1] * (x.ndim - 2))
        channel[place.flatten()] = names.expand_as(moved).flatten()
        return channel.view_as(activation)[0]


def weighted(activation: Tensor, weights: Tensor) -> Tensor:
    r"""Sum channels [N, K, \*S] by weights [N, K]: [N, 1, \*S]."""
    return (weights.view(*weights.shape, *[1] * (activation.ndim - 2)) * activation).sum(1, keepdim=True)


def divided(values: Tensor, by: Tensor) -> Tensor:
    """Divide, with 0 where the denominator is 0."""
    return torch.where(by == 0, 0.0, values / torch.where(by == 0, 1.0, by))
