r"""Attributions by the activation of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._guard import KeptGradients, forward, hook_outputs, isolated_eval, leaf_at
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.axes.facts import AxisFacts, follow_channels
from lightning_xai.axes.layout import traced_output, unplaced
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import unwrapped
from lightning_xai.present import present_at, without_absent
from lightning_xai.relevance.default_layer import default_layer
from lightning_xai.relevance.gradients import gradient
from lightning_xai.resizing import resize
from lightning_xai.scores import BoundScore, Target
from lightning_xai.scores.target import target_at
from lightning_xai.sites import Layer, Place, Site, as_layer

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class LayerAttribution(ScoreAttribution, ABC):
    r"""An attribution by the activation of one layer: a map [N, 1, \*S].

    Padding is left out: its positions count neither in sums and means over positions nor in the map, where they are 0.

    Args:
        layer: The layer, by its dotted name, the module itself, or a :class:`~lightning_xai.sites.Site`, which also
            names a part of its output, or one of several calls, e.g. in a siamese network. Unless given, the last one
            that runs once, has a grid of positions with more than one cell, and of which the score's gradient is not 0
            at more than half of the cells and in more than one channel; linear layers and dropout are passed over, and
            so are branches that are pooled before they join, as that of a spatial transformer is.
            Finding it takes a further pass of two rows. ``Explanation.layer`` says which it was.
        reshape: Turns the layer's output into [N, K, \*S'], e.g. ``lambda t: t[:, 1:].transpose(1, 2).unflatten(2,
            (14, 14))`` for tokens: moves and drops elements, changes none. Unless given, it is found by
            :func:`~lightning_xai.axes.axis_facts`: units are moved to axis 1, tokens put in the order of the grid,
            class tokens left out.
        upsample: ``"bilinear"``, to the size of the inputs, linear along every axis; None for the layer's own size.
        relu: Set what is negative to 0 (before upsampling).
        score: s.
    """

    joint: ClassVar[bool] = False

    layer: Layer | None = None
    _: KW_ONLY
    reshape: Callable[[Tensor], Tensor] | None = None
    upsample: str | None = "bilinear"
    relu: bool = True

    def check(self) -> None:
        if self.layer is not None:
            object.__setattr__(self, "layer", as_layer(self.layer))
        if self.reshape is not None and not callable(self.reshape):
            raise TypeError(f"reshape must be a function of the layer's output, got {type(self.reshape).__name__}.")
        if self.reshape is not None and self.layer is None:
            raise ValueError("reshape needs the layer whose output it reshapes: layer='...'.")
        if self.reshape is not None and isinstance(self.layer, Site) and (self.layer.reshape or self.layer.axis):
            raise ValueError("the layer says already where its units lie: give reshape= there, or here.")
        if self.upsample not in ("bilinear", None):
            raise ValueError(f"upsample must be 'bilinear' or None, got {self.upsample!r}.")

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        how = self.resolved(model, inputs, target)
        model = unwrapped(model)
        assert how.layer is not None
        place = unplaced(model, how.layer)
        with isolated_eval(model), ExitStack() as stack:
            if how.reshape is None and place.axis is not None:
                how = replace(how, layer=place.layer, reshape=place.units_first)
            elif how.reshape is None:
                proved = stack.enter_context(follow_channels(model, inputs, [place]))
                how = replace(how, layer=place.layer, reshape=_FoundLayout(model, inputs, place, proved))
            place = replace(place, reshape=how.reshape)
            explanation = how.map(model, place, inputs, target)
            relevance = explanation.map.detach()
            relevance = relevance.relu() if self.relu else relevance
            if self.upsample is not None:
                relevance = without_absent(model, resize(relevance, inputs.shape[2:]), 0.0)
            return replace(explanation, map=relevance, layer=str(place))

    def resolved(self, model: nn.Module, inputs: Tensor, target: Target) -> Self:
        if inputs.ndim < 3:
            raise ValueError(
                f"{type(self).__name__} needs inputs with spatial axes [N, C, *S], got a table {list(inputs.shape)}: "
                f"use a gradient method or LRP."
            )
        if self.layer is not None:
            return self
        model = unwrapped(model)
        with isolated_eval(model):
            of = (model, inputs)
            name, facts = default_layer(*of, lambda output: self.score_of_rows(output, target, of))
        return replace(self, layer=name, reshape=facts.to_grid)

    def score_of_rows(self, output: Any, target: Target, of: tuple[nn.Module, Tensor]) -> Tensor:
        """The score [2] of an output for the first sample twice."""
        twice = torch.zeros(2, dtype=torch.long)
        first, model, inputs = target_at(target, twice), at_rows(of[0], twice), of[1]
        score: Tensor = self.bind(output, first, 2, of=(model, inputs))(output)
        return score

    def check_map(self, relevance: Tensor, inputs: Tensor) -> None:
        # The layer's own size is what `upsample=None` asks for.
        super().check_map(relevance, inputs if self.upsample is not None else relevance)

    @abstractmethod
    def map(self, model: nn.Module, layer: Place, x: Tensor, target: Target) -> Explanation:
        r"""Explain by a map [N, 1, \*S'] of the layer's own size."""

    def there(self, model: nn.Module, layer: Place, x: Tensor) -> Tensor | None:
        r"""Return which positions are no padding, Boolean [N, 1, \*S']; None if all are."""
        found = present_at(model, x, layer)
        return None if found is None else found.unsqueeze(1)

    def shaped(self, activation: Tensor, x: Tensor) -> Tensor:
        r"""Reshape the layer's output, or a tensor of its shape, to [N, K, \*S'].

        Raises:
            ValueError: If it is not, and there is no reshape that makes it so.
        """
        maps = activation if self.reshape is None else self.reshape(activation)
        if not isinstance(maps, Tensor) or maps.ndim != x.ndim or len(maps) != len(x):
            got = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"layer {self.layer!r} gives {got}, which is not [{len(x)}, channels] and {x.ndim - 2} spatial axes; "
                f"reshape must make it such a tensor."
            )
        return maps

    def see(self, model: nn.Module, layer: Place, x: Tensor, target: Target) -> tuple[Tensor, BoundScore, Tensor]:
        """Return the layer's output for the clean inputs, the bound score, and its values, by one pass."""
        shown: list[Tensor] = []
        with hook_outputs(model, {layer: lambda output: shown.append(output.detach().clone())}):
            bound, score = self.clean(model, x, target)
        return only(shown, layer), bound, score


@dataclass(frozen=True, eq=False)
class _FoundLayout:
    """Lays out the output of a layer as [N, K, *S'] once it has run.

    Args:
        model: The network.
        inputs: Its inputs.
        place: The layer.
        proved: Holds the layer if it needs no reshaping.
    """

    model: nn.Module
    inputs: Tensor
    place: Place
    proved: set[Place]

    @cached_property
    def facts(self) -> AxisFacts | None:
        """The facts of the layer's output; None if it has the axes [N, K, *S'] by the convention of its operation.

        Raises:
            ValueError: If neither is known.
        """
        facts, convention = traced_output(self.model, self.inputs, self.place)
        if facts is not None and facts.has_rows and facts.grid is not None:
            return facts
        if facts is None and convention == 1:
            return None
        known = "" if facts is None else f" (known is {facts})"
        raise ValueError(
            f"the positions of layer {self.place.layer!r} do not form a grid over the input that can be found{known}: "
            f"name another layer, or give reshape=..., a function that turns its output into [N, channels] and "
            f"{self.inputs.ndim - 2} spatial axes."
        )

    def __call__(self, output: Tensor) -> Tensor:
        """Return an output, or what has its shape, as [N, K, *S']."""
        if self.place in self.proved and output.ndim == self.inputs.ndim:
            return output
        return output if self.facts is None else self.facts.to_grid(output)


@dataclass(frozen=True)
class GradientCAM(LayerAttribution, ABC):
    """An attribution by a layer's activation and the gradient there; a subclass implements :meth:`combine`."""

    @abstractmethod
    def combine(self, activation: Tensor, gradient: Tensor, positions: Tensor | int) -> Tensor:
        r"""Return the map [N, 1, \*S'].

        Args:
            activation: The activation [N, K, \*S']; 0 at padding.
            gradient: The gradient of the score there, of the same shape; 0 at padding.
            positions: How many positions there are, padding left out, [N, 1] or one number.
        """

    def map(self, model: nn.Module, layer: Place, x: Tensor, target: Target) -> Explanation:
        # A second pass only for a layer under the model's own `no_grad`, as seeing every call costs time.
        for context in (nullcontext, KeptGradients):
            with context(), leaf_at(model, layer) as leaves:
                output = forward(model, x)
            leaf = only(leaves, layer)
            bound = self.bind(output, target, len(x), of=(model, x))
            score = bound(output)
            if score.requires_grad:
                break
        activation, there = self.shaped(leaf.detach(), x), self.there(model, layer, x)
        slope = self.shaped(gradient(score, leaf, f"layer {layer.layer!r}"), x)
        positions: Tensor | int = slope[0, 0].numel()
        if there is not None:
            activation, slope = activation * there, slope * there
            positions = there.flatten(1).sum(1, keepdim=True)
        return Explanation.of(bound, score, self.combine(activation, slope, positions))


def only(outputs: list[Tensor], place: Place) -> Tensor:
    """Return the single output of a layer.

    Raises:
        ValueError: If it has not run, or several times.
    """
    if len(outputs) != 1:
        times = f"ran {len(outputs)} times" if outputs else "did not run"
        which = f", or say which call, layer=Site({place.layer!r}, call=0)" if outputs else ""
        raise ValueError(f"layer {place.layer!r} {times} in one pass of the model: name one that runs once{which}.")
    return outputs[0]
