r"""The scalar of a model's output that is explained.

A :class:`Score` :math:`s` is bound to the clean output and the target first: the class, the runner-up of a margin and
the region of a segmentation are fixed on the clean input, and the bound score then reads any perturbed output.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from lightning_xai._checks import check_known
from lightning_xai._guard import detach_for_autograd

Target = Tensor | int | Sequence[int] | Literal["predicted"] | None

_ONE_COLUMN = "score='sigmoid' for a binary classifier or score='value' for a regression"
_LOGITS = "logits"  # what models of transformers call them
_WRAP = "wrap the model in a module whose forward returns the tensor to be scored"


@overload
def as_target(target: Tensor | int | Sequence[int], samples: int) -> Tensor: ...


@overload
def as_target(target: Target, samples: int) -> Tensor | Literal["predicted"] | None: ...


def as_target(target: Target, samples: int) -> Tensor | Literal["predicted"] | None:
    """Convert a target to one of three forms: class indices [N], ``"predicted"`` or None.

    Args:
        target: Class indices [N], as a tensor, an array, a list or a tuple; one index for all samples; a tensor without
            axes for one sample; ``"predicted"``; None for an output with one column.
        samples: N.

    Raises:
        TypeError: If the target is none of these.
        ValueError: If it does not hold integers, or not ``samples`` of them.

    >>> as_target([0, 2], samples=2), as_target(1, samples=3), as_target(torch.tensor(4), samples=1)
    (tensor([0, 2]), tensor([1, 1, 1]), tensor([4]))
    >>> as_target(torch.tensor([0, 2, 1]), samples=2)
    Traceback (most recent call last):
    ValueError: target must have one class index per sample, shape [2], got [3].
    """
    if isinstance(target, str) and target != "predicted":
        raise ValueError(f"target must be class indices or 'predicted', got {target!r}.")
    if target is None or isinstance(target, str):
        return target
    try:
        indices = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"target must be class indices or 'predicted', got {type(target).__name__}.") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"target must hold integer class indices, got {indices.dtype}; use target.long().")
    # A tensor without axes is the argmax over a whole batch as likely as one index for all samples.
    if indices.ndim == 0 and (samples == 1 or not isinstance(target, Tensor)):
        indices = indices.expand(samples)
    if indices.shape != (samples,):
        raise ValueError(f"target must have one class index per sample, shape [{samples}], got {list(indices.shape)}.")
    return detach_for_autograd(indices).long()


class TargetRangeError(ValueError):
    """Says that a target is no class of the model.

    Attributes:
        classes: The number of classes that the model has.
    """

    def __init__(self, message: str, classes: int) -> None:
        super().__init__(message, classes)
        self.classes = classes

    def __str__(self) -> str:
        return str(self.args[0])


def check_range(target: Tensor, classes: int) -> None:
    """Raise if the model's output does not have a class index.

    Raises:
        TargetRangeError: If an index is out of range; a ValueError.

    >>> try:
    ...     check_range(torch.tensor([0, 2, 5]), classes=5)
    ... except ValueError as error:
    ...     print(error)
    target [5] is out of range: the model's output has 5 classes, so a target is 0 to 4.
    """
    outside = sorted({index for index in target.tolist() if not 0 <= index < classes})
    if outside:
        columns = f"{classes} classes, so a target is 0 to {classes - 1}"
        if classes == 1:
            columns = f"one column. Use target=0, with {_ONE_COLUMN}"
        raise TargetRangeError(f"target {outside} is out of range: the model's output has {columns}.", classes)


@dataclass(frozen=True)
class Score(ABC):
    """A scalar per sample, read off the model's output [N, classes] or [N, classes, *positions].

    An output with positions (a segmentation) is averaged over the region in which the target class is predicted for
    the clean input. A sample without such a region has the score NaN.

    Args:
        output: Which tensor to read if the model returns a dict (its key), a tuple (its index) or an object (its
            attribute); ``logits`` of a dict that has them unless given.

    Class attributes:
        by_region: Whether an output with positions is read where the target is predicted.
    """

    by_region: ClassVar[bool] = True

    output: str | int | None = field(default=None, kw_only=True)

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        """Return what is fixed on the clean output [N, classes, *P] besides target and region: tensors [N, ...]."""
        return ()

    @abstractmethod
    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        """Return the score [N] of an output [N, classes, *P], given the target [N] and the region [N, *P] or None."""

    def bind(self, output: Any, target: Target, samples: int) -> BoundScore:
        """Bind the score to a clean output: target, region and what else it fixes.

        Args:
            output: What the model returned for the clean inputs.
            target: The explained classes, in any form that :func:`as_target` takes.
            samples: N, the number of samples that went in.

        Raises:
            ValueError: If the output cannot be read or the target does not fit it.
        """
        clean = self._columns(output, samples)
        resolved = self._resolve(target, clean)
        region = None
        if clean.ndim > 2 and self.by_region:
            region = clean.argmax(1) == resolved.view(-1, *[1] * (clean.ndim - 2))
        fixed = self.fix(clean, resolved, region)
        return BoundScore(self, resolved, region, fixed, self.predict(clean), self.classes(clean))

    def predict(self, clean: Tensor) -> Tensor:
        """Return the predicted class [N] of an output [N, classes, *P]; with positions, the most frequent one."""
        return clean.argmax(1).flatten(1).mode(1).values if clean.ndim > 2 else clean.argmax(1)

    def classes(self, clean: Tensor) -> int:
        """Return the number of classes that a target may name; 0 if it is not known."""
        return clean.shape[1]

    def _resolve(self, target: Target, clean: Tensor) -> Tensor:
        classes = self.classes(clean)
        indices = as_target(target, len(clean))
        if isinstance(indices, str):
            return self.predict(clean)
        if indices is None and classes != 1:
            raise ValueError("the output has classes, so a target is needed: class indices or 'predicted'.")
        if indices is None:
            return torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        if classes:
            check_range(indices, classes)
        return indices.to(clean.device)

    def _columns(self, output: Any, samples: int) -> Tensor:
        tensor = self._pick(output)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else f"{type(tensor).__name__}: {_WRAP}"
            raise ValueError(f"the model's output must be a floating-point tensor to be scored, got {got}.")
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            raise ValueError(
                f"the model's output must have one row per sample, [{samples}, classes] for {samples} of them, got "
                f"{list(tensor.shape)}; a squeeze() in the model must name its axis, e.g. squeeze(1)."
            )
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor

    def _pick(self, output: Any) -> Any:
        key = self.output
        if key is None and not isinstance(output, Mapping | tuple | list):
            return output
        if key is None and isinstance(output, Mapping) and _LOGITS in output:
            return output[_LOGITS]
        if key is None:
            parts = list(output.values() if isinstance(output, Mapping) else output)
            several = f"a dict with the keys {list(output)}" if isinstance(output, Mapping) else f"{len(parts)} values"
            if any(isinstance(part, Tensor) for part in parts):
                remedy = f"say which to explain, e.g. score={type(self).__name__}(output=...)"
            else:
                remedy = f"none of them is a tensor; {_WRAP}"
            raise ValueError(f"the model returned {several}: {remedy}.")
        try:
            return getattr(output, key) if isinstance(key, str) and not isinstance(output, Mapping) else output[key]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            known = list(output) if isinstance(output, Mapping) else type(output).__name__
            raise ValueError(
                f"the score's output={key!r} is not in the model's output ({known}); where it is nested, {_WRAP}."
            ) from error


@dataclass(frozen=True)
class BoundScore:
    """A score fixed on the clean inputs; call it with an output of as many rows.

    Attributes:
        score: The score.
        target: The explained classes [N].
        region: Where an output with positions is read, Boolean [N, *P]; None if it has none.
        fixed: What else the score fixes, tensors [N, ...].
        prediction: The predicted classes [N].
        classes: The number of classes.

    The runners-up stay classes 2 and 0, whatever is read later:

    >>> z = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    >>> bound = Margin().bind(z, torch.tensor([1, 2]), samples=2)
    >>> bound(z), bound(torch.tensor([[9.0, 5.0, 1.0], [4.0, 9.0, 1.0]]))
    (tensor([ 3., -3.]), tensor([ 4., -3.]))
    """

    score: Score
    target: Tensor
    region: Tensor | None
    fixed: tuple[Tensor, ...]
    prediction: Tensor
    classes: int

    def at(self, rows: Tensor) -> BoundScore:
        """Select or repeat samples: row i reads like sample ``rows[i]``."""
        region = None if self.region is None else self.region[rows]
        fixed = tuple(tensor[rows] for tensor in self.fixed)
        return replace(self, target=self.target[rows], region=region, fixed=fixed, prediction=self.prediction[rows])

    def columns(self, output: Any, rows: int) -> Tensor:
        """Return the tensor [rows, classes, *P] that the score reads from a model's output."""
        return self.score._columns(output, rows)

    def __call__(self, output: Any) -> Tensor:
        """Return the score [N] of a model's output."""
        return self.read(self.columns(output, self.target.shape[0]))

    def read(self, columns: Tensor) -> Tensor:
        """Return the score [N] of the columns of all rows."""
        value = self.score.read(columns, self.target, self.region, *self.fixed)
        if value.shape != self.target.shape:
            raise ValueError(
                f"{type(self.score).__name__} must return one value per sample, [{self.target.shape[0]}], "
                f"got {list(value.shape)}."
            )
        return value


def _column(output: Tensor, index: Tensor) -> Tensor:
    """Return the column ``index`` [N] or [N, *P] of an output [N, classes, *P]: [N, *P]."""
    if output.ndim == 2:
        return output.gather(1, index.unsqueeze(1)).squeeze(1)
    index = index.view(*index.shape, *[1] * (output.ndim - 1 - index.ndim))
    return output.gather(1, index.expand(output.shape[0], *output.shape[2:]).unsqueeze(1)).squeeze(1)


def _over(region: Tensor | None, values: Tensor) -> Tensor:
    """Return the mean of values [N, *P] over a region [N, *P]; over all positions if there is none."""
    if values.ndim == 1:
        return values
    if region is None:
        return values.flatten(1).mean(1)
    values = torch.where(region, values, 0.0).flatten(1).sum(1)
    return values / region.flatten(1).sum(1)


def _softmax_fits(clean: Tensor) -> None:
    if clean.shape[1] == 1:
        raise ValueError(f"the model's output has one column, whose softmax is always 1: use {_ONE_COLUMN}.")
    if clean.numel() and bool((clean >= 0).all()) and torch.allclose(clean.sum(1), torch.ones_like(clean.sum(1))):
        warnings.warn(
            "the model's output already looks like probabilities: use score='value' to read it as it is, "
            "softmax would be applied a second time.",
            UserWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class Probability(Score):
    r"""Softmax probability of the target, :math:`p_y = e^{z_y} / \sum_c e^{z_c}`.

    >>> z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    >>> Probability().bind(z, 1, samples=3)(z)
    tensor([0.5000, 0.5000, 0.5000])
    """

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        _softmax_fits(clean)
        return ()

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return _over(region, _column(output.softmax(1), target))


@dataclass(frozen=True)
class LogProbability(Probability):
    r"""Log-softmax of the target, :math:`\ln p_y`, in nats.

    >>> z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    >>> LogProbability().bind(z, 1, samples=3)(z)
    tensor([-0.6931, -0.6931, -0.6931])
    """

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return _over(region, _column(output.log_softmax(1), target))


@dataclass(frozen=True)
class Logit(Score):
    r"""The target's output as it is, :math:`z_y`.

    >>> z = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    >>> Logit().bind(z, "predicted", samples=2)(z)
    tensor([5., 4.])
    """

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return _over(region, _column(output, target))


@dataclass(frozen=True)
class Margin(Score):
    r"""Lead over the runner-up, :math:`z_y - z_r` with :math:`r = \arg\max_{c \ne y} z_c(x)` fixed on the clean input.

    >>> clean, perturbed = torch.tensor([[5.0, 4.0, 1.0]]), torch.tensor([[5.0, 0.0, 9.0]])
    >>> Margin().bind(clean, 0, samples=1)(perturbed)
    tensor([5.])
    """

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        if clean.shape[1] < 2:
            raise ValueError("score='margin' needs two classes or more, the model's output has one column.")
        own = target.view(-1, *[1] * (clean.ndim - 1)).expand(-1, 1, *clean.shape[2:])
        return (clean.scatter(1, own, float("-inf")).argmax(1),)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return _over(region, _column(output, target) - _column(output, fixed[0]))


@dataclass(frozen=True)
class Sigmoid(Score):
    r"""Probability of one label of several, :math:`\sigma(z_y) = 1 / (1 + e^{-z_y})`.

    An output of one column is a binary classifier: target 1 is :math:`\sigma(z)`, target 0 is :math:`1 - \sigma(z)`.

    >>> z = torch.tensor([0.0, 0.0])
    >>> Sigmoid().bind(z, torch.tensor([0, 1]), samples=2)(z)
    tensor([0.5000, 0.5000])
    """

    def _columns(self, output: Any, samples: int) -> Tensor:
        columns = super()._columns(output, samples)
        return torch.cat([-columns, columns], 1) if columns.shape[1] == 1 else columns

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return _over(region, _column(output.sigmoid(), target))


@dataclass(frozen=True)
class RawOutput(Logit):
    r"""The output itself, :math:`z_y`: a regression, or a model that already ends in probabilities.

    With one column no target is needed. Positions are averaged over all of them, not over a predicted region.

    >>> z = torch.tensor([1.5, -2.0])
    >>> RawOutput().bind(z, None, samples=2)(z)
    tensor([ 1.5000, -2.0000])
    """

    by_region: ClassVar[bool] = False


@dataclass(frozen=True)
class CombClasses(Score):
    r"""The strongest gain of any class on the target.

    .. math:: D_c = (p_c - p_y)(R x) - (p_c - p_y)(x), \qquad s(x) - s(R x) = D_{c^*},\; c^* = \arg\max_{c \ne y} |D_c|

    The score is 0 for the clean input and :math:`-D_{c^*}` for a perturbed one: a local importance is positive where
    evidence for the target is lost. :func:`lightning_xai.perturbation.comb_classes` also reports :math:`c^*`.

    Probabilities of 0.5, 0.3, 0.2 become 0.2, 0.3, 0.5: class 1 gains 0.3 on class 0, and class 2 twice as much.

    >>> clean, perturbed = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    >>> CombClasses().bind(clean, 0, samples=1)(perturbed)
    tensor([-0.6000])
    """

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        _softmax_fits(clean)
        return (self._lead(clean, target, region),)

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        gain = self._gain(output, target, region, *fixed)
        return -gain.gather(1, gain.abs().argmax(1, keepdim=True)).squeeze(1)

    def _gain(self, output: Tensor, target: Tensor, region: Tensor | None, clean_lead: Tensor) -> Tensor:
        """D [N, classes], 0 for the target itself."""
        return self._lead(output, target, region) - clean_lead

    def _lead(self, output: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        share = torch.stack([_over(region, column) for column in output.softmax(1).unbind(1)], 1)
        return share - _column(share, target).unsqueeze(1)


@dataclass(frozen=True)
class _StrongestClass(CombClasses):
    """The class :math:`c^*` of :class:`CombClasses`, as a number.

    >>> clean, perturbed = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    >>> _StrongestClass().bind(clean, 0, samples=1)(perturbed)
    tensor([2.])
    """

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        gain = self._gain(output, target, region, *fixed).abs()
        return gain.scatter(1, target.unsqueeze(1), -1.0).argmax(1).to(output.dtype)


@dataclass(frozen=True)
class Custom(Score):
    """Any function ``(output [N, classes, *P], target [N]) -> [N]``.

    The function decides which axis of an output with positions holds the classes: targets are not compared with it.

    Args:
        function: Reads the score; a function of a module, not a lambda, if the metric is to be pickled.
        output: Which tensor of the model's output the function is given.

    Raises:
        TypeError: If the function is not callable.

    >>> def over_last(output, target):
    ...     return output.gather(1, target.unsqueeze(1)).squeeze(1) - output[:, -1]
    >>> z = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    >>> Custom(over_last).bind(z, torch.tensor([1, 0]), samples=2)(z)
    tensor([3., 3.])
    """

    by_region: ClassVar[bool] = False

    function: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}.")

    def classes(self, clean: Tensor) -> int:
        return super().classes(clean) if clean.ndim == 2 else 0

    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        return self.function(output, target)


BY_NAME: dict[str, type[Score]] = {
    "probability": Probability,
    "logit": Logit,
    "log_probability": LogProbability,
    "margin": Margin,
    "sigmoid": Sigmoid,
    "comb_classes": CombClasses,
    "value": RawOutput,
}


ScoreLike = str | Score | Callable[[Tensor, Tensor], Tensor]


def as_score(score: ScoreLike) -> Score:
    """Convert a name, a score or a function to a score.

    Raises:
        ValueError: If the name is unknown; near misses are listed.
        TypeError: If it is neither a name, a score nor callable.

    >>> as_score("margin")
    Margin(output=None)
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, type):
        raise TypeError(f"score must be an object, not a class: score={score.__name__}().")
    if isinstance(score, str):
        check_known("score", score, BY_NAME)
        return BY_NAME[score]()
    if callable(score):
        return Custom(function=score)
    raise TypeError(f"score must be a name, a Score or a function, got {type(score).__name__}.")
