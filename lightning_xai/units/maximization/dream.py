r"""DeepDream: more of what a layer sees in a photo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs
from lightning_xai._guard import detach_for_autograd, isolated_eval
from lightning_xai.operations import unwrapped
from lightning_xai.resizing import resize
from lightning_xai.units.maximization.ascent import Report, check_gradient, check_steps, evaluate, objective_place
from lightning_xai.units.maximization.images import Bounds
from lightning_xai.units.maximization.objectives import Energy, Objective


@dataclass(frozen=True, kw_only=True)
class Dream:
    """The settings of DeepDream.

    Args:
        octaves: At how many sizes, the last one that of the input.
        scale: How much larger each is than the one before.
        steps: Steps at each size.
        rate: The mean magnitude of a step, in units of the input.
        jitter: Shifts by up to so many cells, in circles.
        bounds: The values that an input may have; any unless given.
        seed: Of the shifts.

    Raises:
        TypeError: If the bounds are none.
        ValueError: If a number is out of range.

    Example:
        Where the gradient is the same everywhere, each of three times two steps adds the rate, up to the bound:

        >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False))
        >>> model[0].weight.data.fill_(1.0)
        tensor([[[1.]]])
        >>> for bounds in (None, Bounds(0.0, 3.0)):
        ...     how = Dream(octaves=3, scale=2.0, steps=2, rate=0.5, bounds=bounds)
        ...     deep_dream(model, torch.ones(1, 1, 8), layer="0", dream=how).unique()
        tensor([4.])
        tensor([3.])
    """

    octaves: int = 4
    scale: float = 1.4
    steps: int = 10
    rate: float = 0.02
    jitter: int = 16
    bounds: Bounds | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_steps(self.steps, self.rate)
        as_integer("octaves", self.octaves, 1)
        as_integer("jitter", self.jitter, 0)
        if not 1 < self.scale < float("inf"):
            raise ValueError(f"scale must be larger than 1, got {self.scale!r}.")
        if not isinstance(self.bounds, Bounds | None):
            raise TypeError(f"bounds must be Bounds(low, high) or None, got {type(self.bounds).__name__}.")


def deep_dream(
    model: nn.Module,
    image: Tensor,
    *,
    layer: str | Objective,
    dream: Dream | None = None,
    report: Report | None = None,
) -> Tensor:
    r"""Change images so that a layer gives more of what it already sees in them.

    From the smallest size on, with :math:`f` the mean square of what the layer gives,

    .. math:: x \leftarrow x + r\, \frac{\nabla f(x)}{\mathrm{mean}\,|\nabla f(x)|}

    and what has changed at one size is carried over to the next, on top of the image at that size.

    Args:
        model: The network; left as it was.
        image: Inputs [N, C, \*S] with one to three spatial axes.
        layer: The dotted name of a layer, or another objective.
        dream: How; :class:`Dream` with its defaults unless given.
        report: Called with 1 after every step.

    Returns:
        The changed inputs, [N, C, \*S].

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer is unknown, there is no spatial axis, an octave is too small for the network, or the
            objective gives no gradient.

    Source: :cite:`mordvintsev2015`.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False))
    >>> model[0].weight.data.fill_(1.0)
    tensor([[[1.]]])
    >>> deep_dream(model, torch.tensor([[[1.0, 3.0]]]), layer="0", dream=Dream(octaves=1, steps=1, rate=0.5, jitter=0))
    tensor([[[1.2500, 3.7500]]])
    """
    check_inputs(image)
    if image.ndim < 3:
        raise ValueError(f"image must be [N, C, *S], got shape {list(image.shape)}.")
    objective = layer if isinstance(layer, Objective) else Energy(layer)
    model = unwrapped(model)
    how = dream or Dream()
    generator = torch.Generator().manual_seed(how.seed)
    with isolated_eval(model, gradients=True):
        image = detach_for_autograd(image)
        place = objective_place(model, image, objective)  # what does not fit is refused before the first step
        detail = torch.zeros_like(image)
        for octave in reversed(range(how.octaves)):
            size = [max(1, round(length / how.scale**octave)) for length in image.shape[2:]]
            base, detail = resize(image, size, antialias=True), resize(detail, size, antialias=True)
            x = base + detail
            for step in range(how.steps):
                shift = [int(torch.randint(-how.jitter, how.jitter + 1, (), generator=generator)) for _ in size]
                axes = list(range(2, image.ndim))
                x = x.roll(shift, axes).requires_grad_()
                value = evaluate(model, x, objective, place)
                (gradient,) = torch.autograd.grad(value.sum(), x, materialize_grads=True)
                check_gradient(value, gradient, objective, first=step == 0)
                pace = gradient.abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
                x = x.detach() + how.rate * gradient / pace.clamp(min=torch.finfo(x.dtype).tiny)
                x = x.roll([-cells for cells in shift], axes)
                if how.bounds is not None:
                    x = how.bounds.clip(x)
                if report is not None:
                    report(1)
            detail = x - base
    return x
