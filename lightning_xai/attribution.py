"""The one form of an explanation: ``explain(model, inputs, target)`` gives a map over the inputs and its score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_fields, check_inputs, unknown
from lightning_xai._guard import detach_for_autograd, forward, isolated_eval
from lightning_xai.scores import BoundScore, CombClasses, Score, Target, as_score, as_target


@dataclass(frozen=True, eq=False)
class Explanation:
    r"""A batch, explained.

    Attributes:
        map: R [N, C, \*S], its channel axis may be 1, or [N, F] of a table; NaN for a sample whose score is not finite.
        score: :math:`s(x)` [N], of the clean inputs.
        target: The explained classes [N].
        prediction: The predicted classes [N].
        classes: The number of classes; 0 if only the score knows.
        details: What was asked for besides the map, by its name: numbers [N], or an object.
    """

    map: Tensor
    score: Tensor
    target: Tensor
    prediction: Tensor
    classes: int
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bound: BoundScore, score: Tensor, relevance: Tensor, **details: Any) -> Explanation:
        """Put a map together with the score that it explains.

        Args:
            bound: The score, bound to the clean output.
            score: Its values [N] there.
            relevance: The map.
            **details: What else was found, by its name.
        """
        return cls(relevance, score.detach(), bound.target, bound.prediction, bound.classes, details)


class Attribution(ABC):
    """A way to attribute a model's score to its inputs: a frozen dataclass that implements :meth:`attribute`.

    Class attributes:
        details: The names of what :meth:`explain` can give besides the map.
        conserves: Whether the map promises to sum to the score, where biases and stabilisers absorb nothing.
    """

    details: ClassVar[tuple[str, ...]] = ()
    conserves: ClassVar[bool] = False

    @property
    def score(self) -> str | Score | Callable[[Tensor, Tensor], Tensor]:
        """What is explained: the logit, unless an attribution says otherwise."""
        return "logit"

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:  # noqa: B027 - some have none
        """Refuse hyper-parameters that make no sense; called once, when the attribution is built."""

    @abstractmethod
    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        """Explain checked inputs; :meth:`explain` checks what is returned.

        Args:
            model: The network, as it was given.
            inputs: Inputs as for :meth:`explain`, detached.
            target: Class indices [N], ``"predicted"``, or None.
            sample_ids: The samples' ids [N].
            details: The names of what is asked for besides the map, all of them in :attr:`details`.
        """

    def explain(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Target = None,
        sample_ids: Tensor | Sequence[int] | None = None,
        *,
        details: Sequence[str] = (),
    ) -> Explanation:
        r"""Attribute the score of every sample to its cells.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
            target: Class indices [N] as a tensor or a list, one index for all, or ``"predicted"``; not needed where the
                model's output has one column.
            sample_ids: The samples' ids [N], which key random draws; 0..N-1 unless given.
            details: What to give besides the map: names out of ``self.details``.

        Raises:
            TypeError: If the inputs are not floating-point numbers.
            ValueError: If the inputs or the target cannot be explained, or there is no such detail.
        """
        ids = check_inputs(inputs, sample_ids)
        for name in details:
            if name not in self.details:
                raise ValueError(unknown(f"a detail of {type(self).__name__}", name, self.details))
        with torch.inference_mode(False):
            found = self.attribute(model, detach_for_autograd(inputs), as_target(target, len(ids)), ids, tuple(details))
        if not isinstance(found, Explanation):
            raise TypeError(f"{type(self).__name__}.attribute must return an Explanation, got {type(found).__name__}.")
        self.check_map(found.map, inputs)
        unscored = ~found.score.isfinite()
        if unscored.any():
            unscored = unscored.view(-1, *[1] * (found.map.ndim - 1))
            found = replace(found, map=found.map.masked_fill(unscored, float("nan")))
        return found

    def __call__(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Target = None,
        sample_ids: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """The map of :meth:`explain`, which has the same arguments."""
        return self.explain(model, inputs, target, sample_ids).map

    def bind(self, output: Any, target: Target, samples: int) -> BoundScore:
        """Bind the score to a clean output."""
        return as_score(self.score).bind(output, target, samples)

    def clean(self, model: nn.Module, inputs: Tensor, target: Target) -> tuple[BoundScore, Tensor]:
        """The bound score and its values [N], by one pass of the clean inputs without gradients."""
        with isolated_eval(model):
            output = forward(model, inputs)
            bound = self.bind(output, target, len(inputs))
            return bound, bound(output)

    def check_map(self, relevance: Tensor, inputs: Tensor) -> None:
        """Refuse a map that does not have the shape of the inputs.

        Raises:
            ValueError: If it has another.
        """
        channels = {inputs.shape[1]} if inputs.ndim == 2 else {1, inputs.shape[1]}
        if relevance.shape not in {(len(inputs), channel, *inputs.shape[2:]) for channel in channels}:
            raise ValueError(
                f"{type(self).__name__} made a map {list(relevance.shape)} for inputs {list(inputs.shape)}; it must be "
                f"shaped like them."
            )


@dataclass(frozen=True)
class ScoreAttribution(Attribution, ABC):
    """An attribution of a score that is its own choice.

    Args:
        score: s: a name, a :class:`~lightning_xai.scores.Score`, or a function of (output, target).

    Class attributes:
        needs_gradient: Whether a score without a derivative at the clean input cannot be explained.
    """

    needs_gradient: ClassVar[bool] = True

    score: str | Score | Callable[[Tensor, Tensor], Tensor] = field(default="logit", kw_only=True)

    def __post_init__(self) -> None:
        score = as_score(self.score)
        if self.needs_gradient and isinstance(score, CombClasses):
            raise ValueError(
                "score='comb_classes' is 0 at the clean input, where it has no gradient: use score='margin' instead."
            )
        object.__setattr__(self, "score", score)
        super().__post_init__()
