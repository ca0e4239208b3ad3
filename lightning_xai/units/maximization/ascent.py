r"""Inputs that maximise an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_inputs, check_known, check_model
from lightning_xai._guard import detach_for_autograd, forward_context, hook_outputs, isolated_eval
from lightning_xai.axes.layout import place_of_units, unplaced
from lightning_xai.operations import unwrapped
from lightning_xai.sites import Place
from lightning_xai.units._capture import capture, rows_of_units
from lightning_xai.units.maximization.images import Bounds, Fourier, Parametrization
from lightning_xai.units.maximization.objectives import Objective
from lightning_xai.units.maximization.regularizers import Regularizer
from lightning_xai.units.maximization.transforms import Transform

OPTIMIZERS = ("adam", "sgd")

Report = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Ascent:
    r"""The settings of the gradient ascent that maximises inputs.

    Args:
        steps: How many.
        rate: The learning rate.
        optimizer: ``"adam"`` or ``"sgd"``.
        parametrization: What is optimised: ``Pixel()`` or ``Fourier()``.
        bounds: The values that an input may have; any unless given.
        regularizers: What is taken off the objective.
        robustness: What the input goes through before it is given to the network, one after the other.
        seed: Of the start and of the transformations.

    Raises:
        TypeError: If a field is of the wrong type.
        ValueError: If a number is out of range or the optimizer unknown.

    Example:
        From :math:`x = (1, 1, 1)` one step up the gradient :math:`w - 2 \lambda x` of
        :math:`w \cdot x - \lambda \|x\|^2`, at a rate of ½:

        >>> from lightning_xai.units.maximization import L2, ClassScore, Pixel
        >>> model = nn.Linear(3, 1, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, -2.0, 0.5]])
        >>> once = Ascent(steps=1, rate=0.5, optimizer="sgd", parametrization=Pixel(), regularizers=[L2(0.25)])
        >>> maximize_activation(model, ClassScore(0), (3,), ascent=once, start=torch.ones(1, 3)).inputs
        tensor([[ 1.2500, -0.2500,  1.0000]])
    """

    steps: int = 256
    rate: float = 0.05
    optimizer: str = "adam"
    parametrization: Parametrization = field(default_factory=Fourier)
    bounds: Bounds | None = None
    regularizers: Sequence[Regularizer] = ()
    robustness: Sequence[Transform] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_steps(self.steps, self.rate)
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        if not isinstance(self.parametrization, Parametrization):
            raise TypeError(f"parametrization must be e.g. Fourier(), got {type(self.parametrization).__name__}.")
        if not isinstance(self.bounds, Bounds | None):
            raise TypeError(f"bounds must be Bounds(low, high) or None, got {type(self.bounds).__name__}.")
        kinds: dict[str, type] = {"regularizers": Regularizer, "robustness": Transform}
        for name, kind in kinds.items():
            given = tuple(getattr(self, name))
            if not all(isinstance(part, kind) for part in given):
                raise TypeError(f"{name} must be a sequence of {kind.__name__}s such as L2() or Jitter(), got {given}.")
            object.__setattr__(self, name, given)


@dataclass(frozen=True, eq=False)  # holds tensors, so it compares by identity
class MaximizationResult:
    """Inputs that maximise an objective.

    Attributes:
        inputs: [N, C, *S], or [N, F].
        value: Their objective [N], without regularisers and transformations.
        history: The objective [steps, N] on the way, of the transformed inputs.
    """

    inputs: Tensor
    value: Tensor
    history: Tensor


def maximize_activation(
    model: nn.Module,
    objective: Objective,
    shape: Sequence[int],
    *,
    ascent: Ascent | None = None,
    start: Tensor | None = None,
    report: Report | None = None,
) -> MaximizationResult:
    r"""Inputs that a class, unit, group or direction responds to most.

    .. math:: x^* = \arg\max_x\; E_\tau[f(\tau(x))] - \sum_r \lambda_r\, r(x)

    Args:
        model: The network; left as it was.
        objective: f, e.g. ``ClassScore(7)`` or ``Unit("features.3", [0, 1, 2])``; an input per class or unit.
        shape: Of one input, (C, \*S), or (F,) for a row of a table.
        ascent: How; :class:`Ascent` with its defaults unless given.
        start: Inputs [N, C, \*S] to start from; the same random one for all unless given.
        report: Called with 1 after every step.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer or a unit does not exist, a shape does not fit, the objective is not finite, or the
            start gives no gradient at all (a unit that is dead there).

    Source: :cite:`erhan2009`, :cite:`simonyan2014`, :cite:`olah2017`.

    Example:
        Of :math:`w \cdot x - \lambda \|x\|^2` the maximum is at :math:`w / 2\lambda`:

        >>> from lightning_xai.units.maximization import L2, ClassScore, Pixel
        >>> model = nn.Linear(3, 1, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, -2.0, 0.5]])
        >>> plain = Ascent(steps=200, rate=0.2, optimizer="sgd", parametrization=Pixel(), regularizers=[L2(0.5)])
        >>> maximize_activation(model, ClassScore(0), (3,), ascent=plain).inputs
        tensor([[ 1.0000, -2.0000,  0.5000]])
    """
    check_model(model)
    ascent = ascent or Ascent()
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be e.g. ClassScore(7) or Unit('conv1', 3), got {type(objective).__name__}.")
    cells = tuple(int(size) for size in shape)
    if not 1 <= len(cells) <= 4 or min(cells) < 1:
        raise ValueError(f"shape must be that of one input, (C, *S) or (F,), got {list(shape)}.")
    model = unwrapped(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    with isolated_eval(model, gradients=True):
        generator = torch.Generator().manual_seed(ascent.seed)
        count = objective.count
        # The parametrization sees a row of a table as a line of one channel.
        line = (1, *cells) if len(cells) == 1 else cells
        if start is None:
            # All from the same start, so that an input does not depend on how many others are made beside it.
            alone = ascent.parametrization.random((1, *line), generator)
            parameters = alone.expand(count or 1, *alone.shape[1:])
        else:
            check_inputs(start)
            if start.shape[1:] != cells or len(start) != (count or len(start)):
                raise ValueError(
                    f"start must be {[count or 'N', *cells]}, an input for each part of the objective, got "
                    f"{list(start.shape)}."
                )
            values = detach_for_autograd(start).double().view(-1, *line)
            values = values if ascent.bounds is None else ascent.bounds.inverse(values)
            parameters = ascent.parametrization.parameters(values)
        whole = (len(parameters), *line)
        dtype = torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype
        # A copy, as steps are made in place and the start is the user's.
        parameters = parameters.detach().to(device=like.device, dtype=dtype, copy=True).requires_grad_()
        steps = torch.optim.Adam if ascent.optimizer == "adam" else torch.optim.SGD
        optimizer = steps([parameters], lr=ascent.rate)

        def made() -> Tensor:
            values = ascent.parametrization.values(parameters, whole)
            return values if ascent.bounds is None else ascent.bounds.apply(values)

        def as_inputs(x: Tensor) -> Tensor:
            return x.flatten(1) if len(cells) == 1 else x

        # What does not fit is refused before the first step.
        place = objective_place(model, as_inputs(made().detach()), objective)
        history: list[Tensor] = []
        for _ in range(ascent.steps):
            x = made()
            shown = x
            for transform in ascent.robustness:
                shown = transform.apply(shown, generator)
            value = evaluate(model, as_inputs(shown), objective, place)
            aim = value
            for regularizer in ascent.regularizers:
                aim = aim - regularizer.penalty(x)
            (gradient,) = torch.autograd.grad(aim.sum(), parameters, materialize_grads=True)
            check_gradient(aim, gradient, objective, first=not history)
            parameters.grad = -gradient
            optimizer.step()
            history.append(value.detach())
            if report is not None:
                report(1)
        with torch.no_grad():
            x = made()
            value = evaluate(model, as_inputs(x), objective, place)
    return MaximizationResult(x.detach().flatten(1) if len(cells) == 1 else x.detach(), value, torch.stack(history))


class _Reached(Exception):
    """The layer has run; what comes after it is not needed."""


def objective_place(model: nn.Module, inputs: Tensor, objective: Objective) -> Place | None:
    """The place of the units that an objective reads, after a look at whether it fits; None for the model's output.

    Raises:
        ValueError: If it does not, or it cannot be told where the units lie.
    """
    if objective.layer is None:
        evaluate(model, inputs, objective, None)
        return None
    place = unplaced(model, objective.layer)
    if place.axis is None:
        place = place_of_units(model, inputs, objective.layer) if objective.reads_units else replace(place, axis=1)
    objective.read(capture(model, inputs, place).maps, len(inputs))
    return place


def evaluate(model: nn.Module, inputs: Tensor, objective: Objective, place: Place | None) -> Tensor:
    """The objective [N] of inputs; the model runs no further than the layer that is read.

    Args:
        model: The network.
        inputs: The inputs.
        objective: What is read.
        place: The place of its units, see :func:`objective_place`.
    """
    if place is None:
        with forward_context():
            output = model(inputs)
        return objective.read(output, len(inputs))
    seen: list[Tensor] = []

    def look(output: Tensor) -> None:
        seen.append(output)
        raise _Reached

    try:
        with hook_outputs(model, {place: look}), forward_context():
            model(inputs)
    except _Reached:
        pass
    return objective.read(rows_of_units(seen[0], place, len(inputs)), len(inputs))


def check_gradient(aim: Tensor, gradient: Tensor, objective: Any, first: bool) -> None:
    """Refuse to go on from nowhere to nowhere.

    Raises:
        ValueError: If the objective or its gradient is not finite, or the gradient is 0 at the start.
    """
    if not bool(aim.isfinite().all()) or not bool(gradient.isfinite().all()):
        raise ValueError(f"{objective} is NaN or infinite on the way; use a smaller rate, or give bounds.")
    still = ~gradient.flatten(1).any(1)
    if first and bool(still.any()):
        raise ValueError(
            f"{objective} has no gradient at the start for the inputs {still.nonzero().flatten().tolist()}: the unit "
            f"is dead there. Name the layer before its activation, or take another seed, a larger std or a start."
        )


def check_steps(steps: int, rate: float) -> None:
    """Refuse a number of steps or a rate that is not positive.

    Raises:
        ValueError: If so.
    """
    as_integer("steps", steps, 1)
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise ValueError(f"rate must be a positive number, got {rate!r}.")
