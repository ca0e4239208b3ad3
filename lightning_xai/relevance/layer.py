r"""Attributions by the activation of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lightning_xai._checks import Layer, as_layer, layer_name
from lightning_xai._guard import forward, hook_outputs, isolated_eval, leaf_at, observe_modules, uncompiled
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.operations import check_visible, unwrapped
from lightning_xai.relevance.gradients import gradient
from lightning_xai.scores import BoundScore, Target

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def upsampled(maps: Tensor, x: Tensor) -> Tensor:
    """Interpolate maps [N, K, *S'] linearly to the spatial size of the inputs."""
    if maps.shape[2:] == x.shape[2:]:
        return maps
    return functional.interpolate(maps, x.shape[2:], mode=_MODES[x.ndim - 2], align_corners=False)


@dataclass(frozen=True)
class LayerAttribution(ScoreAttribution, ABC):
    r"""An attribution by the activation of one layer: a map [N, 1, \*S].

    Args:
        layer: The layer, by its dotted name or the module itself. Unless given, the last one whose output has the
            spatial axes of the inputs with more than one cell (before global pooling, in a classifier), which takes a
            further pass of the first sample.
        reshape: Turns the layer's output into [N, K, \*S'] where it has another form, e.g. tokens
            ``lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (14, 14))``: moves and drops elements, changes none.
        upsample: ``"bilinear"``, to the size of the inputs, linear along every axis; None for the layer's own size.
        relu: Set what is negative to 0 (before upsampling).
        score: s.
    """

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
            name = self._last_spatial(model, inputs) if self.layer is None else layer_name(model, self.layer)
            explanation = self.map(model, name, inputs, target)
            relevance = explanation.map.detach()
            relevance = relevance.relu() if self.relu else relevance
            return replace(explanation, map=relevance if self.upsample is None else upsampled(relevance, inputs))

    def check_map(self, relevance: Tensor, inputs: Tensor) -> None:
        # The layer's own size is what `upsample=None` asks for.
        super().check_map(relevance, inputs if self.upsample is not None else relevance)

    @abstractmethod
    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        r"""Explain by a map [N, 1, \*S'] of the layer's own size."""

    def shaped(self, activation: Tensor, x: Tensor) -> Tensor:
        r"""Reshape the layer's output, or a tensor of its shape, to [N, K, \*S'].

        Raises:
            ValueError: If it is not, and there is no reshape that makes it so.
        """
        maps = activation if self.reshape is None else self.reshape(activation)
        if not isinstance(maps, Tensor) or maps.ndim != x.ndim or len(maps) != len(x):
            got = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            remedy = "give reshape=..." if self.reshape is None else "reshape must make it"
            raise ValueError(
                f"layer {self.layer!r} gives {got}, which is not [{len(x)}, channels] and {x.ndim - 2} spatial axes; "
                f"{remedy} such a tensor."
            )
        return maps

    def see(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> tuple[Tensor, BoundScore, Tensor]:
        """Return the layer's output for the clean inputs, the bound score, and its values, by one pass."""
        shown: list[Tensor] = []
        with hook_outputs(model, {layer: lambda output: shown.append(output.detach().clone())}):
            bound, score = self.clean(model, x, target)
        return only(shown, layer), bound, score

    def _last_spatial(self, model: nn.Module, x: Tensor) -> str:
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
            check_visible(model)
            raise ValueError(
                f"no layer was found that runs once and returns [N, channels] and {x.ndim - 2} spatial axes with more "
                f"than one cell: name one with layer='...', and for tokens say with reshape=... where they lie."
            )
        return once[-1]


@dataclass(frozen=True)
class GradientCAM(LayerAttribution, ABC):
    """An attribution by a layer's activation and the gradient there; a subclass implements :meth:`combine`."""

    @abstractmethod
    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        r"""Return the map [N, 1, \*S'], given activation and gradient [N, K, \*S']."""

    def map(self, model: nn.Module, layer: str, x: Tensor, target: Target) -> Explanation:
        with leaf_at(model, layer) as leaves:
            output = forward(model, x)
        leaf = only(leaves, layer)
        bound = self.bind(output, target, len(x))
        score = bound(output)
        slope = gradient(score, leaf, f"layer {layer!r}")
        return Explanation.of(bound, score, self.combine(self.shaped(leaf.detach(), x), self.shaped(slope, x)))


def only(outputs: list[Tensor], layer: str) -> Tensor:
    """Return the single output of a layer.

    Raises:
        ValueError: If it has not run, or several times.
    """
    if len(outputs) != 1:
        times = f"ran {len(outputs)} times" if outputs else "did not run"
        raise ValueError(f"layer {layer!r} {times} in one pass of the model: name one that runs once.")
    return outputs[0]
