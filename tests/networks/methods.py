"""The methods, each with a check of its result by another route: loops, autograd, hooks, sums, the ledger."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from cam_layers import LAYERS
from plain import Plain, WrongError, equal
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_xai import Inputs, Site
from lightning_xai._guard import keyed_generator
from lightning_xai.axes import axis_facts
from lightning_xai.inputs import as_inputs
from lightning_xai.perturbation import importance, kinds
from lightning_xai.relevance import (
    LRP,
    DeepTaylor,
    GradCAM,
    GradientXInput,
    GuidedBackprop,
    IntegratedGradients,
    Saliency,
    ScoreCAM,
    SmoothGrad,
)
from lightning_xai.scores import Unit
from lightning_xai.units import activation_threshold, reactivation


def check_importance(plain: Plain) -> None:
    windows, cells = plain.windows()
    found = importance(
        plain.model, plain.given, plain.target, regions=windows, perturbation=kinds.Constant(0.5), score=plain.score
    )
    with torch.no_grad():
        expected = torch.stack([plain.clean - plain.scores(plain.perturbed(window)) for window in cells], 1)
    mask = plain.mask
    if mask is not None:  # windows of nothing but padding are no features
        there = torch.stack([mask[:, window[0]].any(1) for window in cells], 1)
        if not found[~there].isnan().all():
            raise WrongError("padding has an importance")
        found, expected = found[there], expected[there]
    equal(found, expected, plain.tolerance)


def check_saliency(plain: Plain) -> None:
    found = Saliency(absolute=False, score=plain.score)(plain.model, plain.given, plain.target)
    equal(found, plain.gradient(plain.x), plain.tolerance)


def check_gradient_x_input(plain: Plain) -> None:
    found = GradientXInput(score=plain.score)(plain.model, plain.given, plain.target)
    equal(found, plain.gradient(plain.x) * plain.x, plain.tolerance)


def check_integrated_gradients(plain: Plain) -> None:
    """Completeness, and the sum over the three points of Gauss and Legendre."""
    torch.manual_seed(2)
    baseline = plain.x + 0.03 * torch.randn_like(plain.x)
    method = IntegratedGradients(steps=3, baseline=plain.columns(baseline), score=plain.score)
    found = method(plain.model, plain.given, plain.target)
    places, weights = [(1 - math.sqrt(0.6)) / 2, 0.5, (1 + math.sqrt(0.6)) / 2], [5 / 18, 8 / 18, 5 / 18]
    step = plain.x - baseline
    slopes = [weight * plain.gradient(baseline + t * step) for t, weight in zip(places, weights, strict=True)]
    equal(found, step * torch.stack(slopes).sum(0), 10 * plain.tolerance)
    if plain.boxes or plain.network.jumps:  # the derivative holds how far boxes overlap, or which code is the nearest
        return
    with torch.no_grad():
        change = plain.clean - plain.scores(baseline)
    gap = (found.flatten(1).sum(1) - change).abs() / found.abs().flatten(1).sum(1)
    if gap.max() > 0.05:
        raise WrongError(f"not complete: a gap of {float(gap.max()):.1e}")


def check_smoothgrad(plain: Plain) -> None:
    found = SmoothGrad(Saliency(absolute=False, score=plain.score), draws=2)(plain.model, plain.given, plain.target)
    x, total = plain.columns(plain.x), torch.zeros_like(plain.x)
    mask = plain.mask
    for draw in range(2):
        noise = torch.zeros(x.shape)
        for sample in range(2):  # what is there of it, in the order of its cells
            there = ... if mask is None else (slice(None), mask[sample].bool())
            shape = noise[sample][there].shape
            noise[sample][there] = torch.randn(shape, generator=keyed_generator(0, sample, draw))
        total += plain.gradient(plain.back(x + 0.1 * noise.to(x)))
    equal(found, total / 2, plain.tolerance)


def check_lrp(plain: Plain, rules: Any = None, given: Any = None) -> None:
    method = LRP(plain.network.rules if rules is None else rules, score=plain.score)
    given = plain.given if given is None else given
    found = method.explain(plain.model, given, plain.target, details=["ledger"])
    ledger = found.details["ledger"]
    scale = found.map.abs().sum() + sum(part.abs() for part in (ledger.biases, *ledger.remainder.values()))
    tolerance = plain.tolerance
    if not found.map.isfinite().all() or not found.map.any():
        raise WrongError("the map is 0 or not finite")
    if not ledger.balance.abs() <= tolerance * scale:
        raise WrongError(f"the ledger is off by {float(ledger.balance / scale):.1e} of what flows")
    equal(found.score, plain.clean, tolerance)


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < high))
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        return g.clamp(min=0) * ctx.saved_tensors[0], None


class _Guided(TorchFunctionMode):
    """Replaces ReLUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", "").strip("_"), kwargs or {}
        high = {"relu": math.inf, "relu6": 6.0}.get(name)
        bounds = tuple(args[1:3]) or (kwargs.get("min_val"), kwargs.get("max_val"))
        if name == "hardtanh" and bounds == (0.0, 6.0):
            high = 6.0
        if high is None or not args[0].requires_grad:
            return func(*args, **kwargs)
        return _GuidedReLU.apply(args[0], high)


def check_guided_backprop(plain: Plain) -> None:
    found = GuidedBackprop(score=plain.score)(plain.model, plain.given, plain.target)
    with _Guided():
        expected = plain.gradient(plain.x)
    equal(found, expected, plain.tolerance)


def check_deep_taylor(plain: Plain) -> None:
    check_lrp(plain, DeepTaylor().rules())


def check_grad_cam(plain: Plain) -> None:
    """Activation and gradient by a hook at the layer that was chosen; the grid by the facts, or by the convolution."""
    method = GradCAM(plain.network.cam, upsample=None, relu=False, score=plain.score)
    found = method.explain(plain.model, plain.given, plain.target)
    layer = found.layer
    expected_layer = plain.network.cam or LAYERS[plain.name][0]
    if layer != expected_layer:
        raise WrongError(f"found layer {layer!r}, not {expected_layer!r}")
    activation, slope = plain._at(layer), plain.gradient(plain._at(layer), layer)
    relevance = plain.columns(found.map)
    if activation.ndim != relevance.ndim or activation.shape[2:] != relevance.shape[2:]:
        inputs = plain.given
        facts = axis_facts(plain.model, inputs)[layer]
        activation, slope = facts.to_grid(activation), facts.to_grid(slope)
    there = _there(plain, activation)
    weights = (slope.flatten(2) * there.unsqueeze(1)).sum(2) / there.sum(1, keepdim=True)
    activation = (activation.flatten(2) * there.unsqueeze(1)).view_as(activation)
    expected = sum(
        weights[:, k].view(-1, *[1] * (activation.ndim - 2)) * activation[:, k] for k in range(activation.shape[1])
    )
    equal(relevance, expected.unsqueeze(1), plain.tolerance)


def check_score_cam(plain: Plain) -> None:
    layer = GradCAM(score=plain.score).explain(plain.model, plain.given, plain.target).layer
    found = ScoreCAM(layer, upsample=None, relu=False, score=plain.score).explain(
        plain.model, plain.given, plain.target
    )
    activation = plain._at(layer)
    if activation.ndim != found.map.ndim or activation.shape[2:] != found.map.shape[2:]:
        activation = axis_facts(plain.model, plain.given)[layer].to_grid(activation)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[plain.x.ndim - 2]
    masks = nn.functional.interpolate(activation, plain.x.shape[2:], mode=mode).flatten(2)
    low, high = masks.amin(2, keepdim=True), masks.amax(2, keepdim=True)
    masks = torch.where(high > low, (masks - low) / (high - low), masks).unflatten(2, plain.x.shape[2:])
    with torch.no_grad():
        scores = torch.stack([plain.scores(plain.x * masks[:, [k]]) for k in range(masks.shape[1])], 1)
    expected = torch.einsum("nk,nk...->n...", scores.softmax(1), activation).unsqueeze(1)
    equal(found.map, expected, plain.tolerance)


def _there(plain: Plain, maps: Tensor) -> Tensor:
    """The positions [N, P] of maps [N, K, *P] that are no padding."""
    mask, maps = plain.mask, maps.flatten(2) if maps.ndim > 2 else maps[..., None]
    if mask is None or mask.shape[1] != maps.shape[2]:
        return torch.ones(len(maps), maps.shape[2], dtype=torch.bool)
    return mask.bool()


def _units(plain: Plain) -> Callable[[Tensor], Tensor]:
    """The output [N, K, positions] of the layer whose units are read, or of the batch norm that takes it."""
    module = plain.model.get_submodule(plain.network.normed or plain.network.layer)
    convolution = isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))

    def read(x: Tensor) -> Tensor:
        seen = []
        handle = module.register_forward_hook(lambda m, a, output: seen.append(output.detach().clone()))
        with torch.no_grad():
            plain.run(x)
        handle.remove()
        (output,) = seen
        return (output if convolution else output.movedim(-1, 1)).flatten(2) if output.ndim > 2 else output[..., None]

    return read


def check_units(plain: Plain) -> None:
    layer = plain.network.layer
    found = activation_threshold(plain.model, plain.given, layer=layer, p=0.25, activation="identity")
    values = _units(plain)(plain.x)
    values = values.movedim(1, 0).flatten(1)[:, _there(plain, values).flatten()]
    rank = int(0.25 * values.shape[1])
    equal(found.value, values.sort(1, descending=True).values[:, rank], plain.tolerance)


def check_reactivation(plain: Plain) -> None:
    windows, cells = plain.windows()
    read = _units(plain)
    clean = read(plain.x)
    threshold = 0.1 * clean.abs().mean((0, 2))
    found = reactivation(
        plain.model, plain.given, layer=plain.network.layer, regions=windows, perturbation=kinds.Constant(0.5),
        threshold=threshold, activation="relu",
    )  # fmt: skip
    expected = torch.zeros(len(cells), len(threshold))
    there = _there(plain, clean).unsqueeze(1)
    floor = 1e-5 * (clean * there).abs().amax(2)
    mask = plain.mask
    for j, window in enumerate(cells):
        rise = ((read(plain.perturbed(window)) - clean).relu() * there).amax(2)
        hit = rise > torch.maximum(threshold.expand_as(rise), floor)
        if mask is not None:
            hit &= mask[:, window[0]].any(1)[:, None].bool()
        expected[j] = hit.sum(0)
    equal(found.by_feature_and_unit, expected, 0)


def _placed(plain: Plain) -> Inputs:
    inputs = copy.copy(as_inputs(plain.given))
    inputs.at, inputs.axis = Site(plain.network.normed or plain.network.layer), None
    return inputs


def check_at_layer(plain: Plain) -> None:
    layer = plain.network.normed or plain.network.layer
    found = GradientXInput(score=plain.score)(plain.model, _placed(plain), plain.target)
    activation = plain._at(layer)
    equal(found, activation * plain.gradient(activation, layer), plain.tolerance)


def check_lrp_at_layer(plain: Plain) -> None:
    check_lrp(plain, given=_placed(plain))


def check_unit_score(plain: Plain) -> None:
    layer = plain.network.normed or plain.network.layer
    found = Saliency(absolute=False, score=Unit(layer, 1))(plain.model, plain.given)
    leaf, seen = plain.x.clone().requires_grad_(), []
    handle = plain.model.get_submodule(layer).register_forward_hook(lambda m, a, output: seen.append(output.clone()))
    plain.run(leaf)
    handle.remove()
    module = plain.model.get_submodule(layer)
    convolution = isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))
    units = seen[0] if convolution else seen[0].movedim(-1, 1)
    there = _there(plain, units)
    mean = (units[:, 1].reshape(len(units), -1) * there).sum(1) / there.sum(1)
    (expected,) = torch.autograd.grad(mean.sum(), leaf)
    equal(found, expected, plain.tolerance)


METHODS: dict[str, Callable[[Plain], None]] = {
    "importance": check_importance,
    "saliency": check_saliency,
    "gradient x input": check_gradient_x_input,
    "integrated gradients": check_integrated_gradients,
    "SmoothGrad": check_smoothgrad,
    "LRP": check_lrp,
    "guided backprop": check_guided_backprop,
    "deep Taylor": check_deep_taylor,
    "Grad-CAM": check_grad_cam,
    "Score-CAM": check_score_cam,
    "units": check_units,
    "gradient of a unit": check_unit_score,
    "re-activation": check_reactivation,
    "gradient at a layer": check_at_layer,
    "LRP at a layer": check_lrp_at_layer,
}
