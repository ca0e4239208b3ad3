"""The interface of attributions: ``explain(model, inputs, target)`` gives a map over the inputs and its score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_fields, check_inputs, unknown
from lightning_xai._guard import detach_for_autograd, forward, isolated_eval
from lightning_xai.batching import Batches
from lightning_xai.inputs import Inputs, InputsLike, as_inputs, is_plain
from lightning_xai.inputs.binding import bind, restored
from lightning_xai.inputs.bound_model import at_rows, explained_arguments, split_columns
from lightning_xai.inputs.reading import reading
from lightning_xai.scores import BoundScore, CombClasses, ScoreLike, Target, as_score, as_target
from lightning_xai.scores.target import target_at

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Explanation:
    r"""The explanation of a batch.

    Attributes:
        map: R [N, C, \*S], its channel axis may be 1, or [N, F] of a table; NaN for a sample whose score is not finite.
        score: :math:`s(x)` [N], of the clean inputs.
        target: The explained classes [N].
        prediction: The predicted classes [N].
        classes: The number of classes; 0 if only the score knows.
        details: The further results that were asked for, by name: numbers [N], or an object.
        layer: The layer that the map was made from, if it was made from one.
        maps: The map of every argument of the model that was explained, by its number or name, where these are several:
            ``map`` then holds them side by side, [N, F].

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    >>> found = GradientXInput().explain(model, torch.tensor([[1.0, 2.0]]), target=0)
    >>> found.map, found.score, found.prediction
    (tensor([[ 1., -4.]]), tensor([-3.]), tensor([1]))
    """

    map: Tensor
    score: Tensor
    target: Tensor
    prediction: Tensor
    classes: int
    details: dict[str, Any] = field(default_factory=dict)
    layer: str | None = None
    maps: Mapping[Any, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, bound: BoundScore, score: Tensor, relevance: Tensor, **details: Any) -> Explanation:
        """Combine a map with the score that it explains.

        Args:
            bound: The score, bound to the clean output.
            score: Its values [N] there.
            relevance: The map.
            **details: Further results by name.
        """
        return cls(relevance, score.detach(), bound.target, bound.prediction, bound.classes, details)

    @classmethod
    def joined(cls, parts: Sequence[Explanation]) -> Explanation:
        """Join the explanations of parts of a batch; a detail that is no tensor joins itself, by ``joined``."""
        first, *others = parts
        if not others:
            return first
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("map", "score", "target", "prediction")
        }
        details = {}
        for name, detail in first.details.items():
            found = [part.details[name] for part in parts]
            details[name] = torch.cat(found) if isinstance(detail, Tensor) else type(detail).joined(found)
        return replace(first, **tensors, details=details)


class Attribution(ABC):
    """A way to attribute a model's score to its inputs: a frozen dataclass that implements :meth:`attribute`.

    Class attributes:
        details: The names of the further results that :meth:`explain` can give.
        conserves: Whether the map promises to sum to the score, where biases and stabilisers absorb nothing.
        joint: Whether several arguments of a model are explained in one pass, as columns of a table side by side;
            otherwise each is explained with the others as they are.

    >>> @dataclass(frozen=True)
    ... class Contrast(Attribution):
    ...     def attribute(self, model, inputs, target, sample_ids, details):
    ...         bound, score = self.clean(model, inputs, target)
    ...         return Explanation.of(bound, score, inputs - inputs.mean(1, keepdim=True))
    >>> Contrast()(nn.Linear(3, 1), torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-2., -1.,  3.]])
    """

    details: ClassVar[tuple[str, ...]] = ()
    conserves: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    @property
    def is_slope(self) -> bool:
        """Whether a map says what the score loses per unit of the input, not what a cell contributes to it."""
        return False

    @property
    def score(self) -> ScoreLike:
        """The explained score; the logit, unless an attribution has another."""
        return "logit"

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:  # noqa: B027 - some have none
        """Raise if hyper-parameters are invalid; called once, when the attribution is built."""

    @abstractmethod
    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        """Explain inputs that have been checked; :meth:`explain` checks the result.

        Args:
            model: The network, as it was given.
            inputs: Inputs as for :meth:`explain`, detached.
            target: Class indices [N], ``"predicted"``, None, or a bound score, which holds what it has fixed on other
                inputs: :meth:`clean` and :meth:`bind` take any of them.
            sample_ids: The samples' ids [N].
            details: The names of the further results to give, all of them in ``details``.
        """

    def explain(
        self,
        model: nn.Module,
        inputs: InputsLike,
        target: Target = None,
        sample_ids: Tensor | Sequence[int] | None = None,
        *,
        details: Sequence[str] = (),
    ) -> Explanation:
        r"""Attribute the score of every sample to its cells.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F]; of a model with several
                arguments, or to explain the output of a module, :class:`~lightning_xai.inputs.Inputs`.
            target: Class indices [N] as a tensor or a list, one index for all, or ``"predicted"``; not needed where the
                model's output has one column. A bound score of other inputs (see :meth:`bind`) holds what it has
                fixed there.
            sample_ids: The samples' ids [N], which key random draws; 0..N-1 unless given.
            details: The names of further results to give, out of ``self.details``.

        Raises:
            TypeError: If the inputs are not floating-point numbers.
            ValueError: If the inputs or the target cannot be explained, or there is no such detail.
        """
        for name in details:
            if name not in self.details:
                raise ValueError(unknown(f"a detail of {type(self).__name__}", name, self.details))
        if not is_plain(inputs) and len((several := as_inputs(inputs)).explain) > 1:
            return self._explain_several(model, several, target, sample_ids, details)
        bound, values = bind(model, inputs)
        explanation = self._explain(bound, values, target, sample_ids, details)
        return explanation if bound is model else replace(explanation, map=restored(bound, explanation.map))

    def _explain_several(
        self,
        model: nn.Module,
        inputs: Inputs,
        target: Target,
        sample_ids: Tensor | Sequence[int] | None,
        details: Sequence[str],
    ) -> Explanation:
        if self.joint:
            bound, values = bind(model, inputs, joint=True)
            explanation = self._explain(bound, values, target, sample_ids, details)
            parts = split_columns(explanation.map, explained_arguments(bound))
            return replace(explanation, maps=dict(zip(inputs.explain, parts, strict=True)))
        if details:
            raise ValueError(f"details={list(details)} are given of one explained argument: name it with explain=... .")
        found = {key: self.explain(model, inputs.only(key), target, sample_ids) for key in inputs.explain}
        first = found[inputs.explain[0]]
        maps = {key: explanation.map for key, explanation in found.items()}
        return replace(first, map=torch.cat([part.flatten(1) for part in maps.values()], 1), maps=maps)

    def _explain(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Target,
        sample_ids: Tensor | Sequence[int] | None,
        details: Sequence[str],
    ) -> Explanation:
        ids = check_inputs(inputs, sample_ids)
        model = reading(model, inputs, [as_score(self.score)])
        with torch.inference_mode(False):
            clean, labels = detach_for_autograd(inputs), as_target(target, len(ids))
            how = self.resolved(model, clean, labels)

            def attribute(rows: slice) -> Explanation:
                some = target_at(labels, rows)
                found = how.attribute(at_rows(model, rows), clean[rows], some, ids[rows], tuple(details))
                if not isinstance(found, Explanation):
                    name, got = type(self).__name__, type(found).__name__
                    raise TypeError(f"{name}.attribute must return an Explanation, got {got}.")
                return found

            # In one piece, unless memory runs out.
            explanation = Explanation.joined(Batches(model, clean, len(ids)).map(attribute, len(ids)))
        self.check_map(explanation.map, inputs)
        unscored = ~explanation.score.isfinite()
        if unscored.any():
            unscored = unscored.view(-1, *[1] * (explanation.map.ndim - 1))
            explanation = replace(explanation, map=explanation.map.masked_fill(unscored, float("nan")))
        return explanation

    def resolved(self, model: nn.Module, inputs: Tensor, target: Target) -> Self:  # noqa: ARG002 - some need them
        """Return this attribution with what it chooses by the inputs chosen, e.g. its layer.

        :meth:`explain` asks for it once, so that parts of a batch, and noisy variants of it, are treated alike.
        """
        return self

    def __call__(
        self,
        model: nn.Module,
        inputs: InputsLike,
        target: Target = None,
        sample_ids: Tensor | Sequence[int] | None = None,
    ) -> Any:
        """Return the map of :meth:`explain`, which has the same arguments; of several arguments a dict of maps."""
        explanation = self.explain(model, inputs, target, sample_ids)
        return explanation.maps or explanation.map

    def bind(
        self, output: Any, target: Target, samples: int, *, of: tuple[nn.Module, Tensor] | None = None
    ) -> BoundScore:
        """Bind the score to a clean output, ``of`` the model and its inputs: see :meth:`Score.bind`."""
        return as_score(self.score).bind(output, target, samples, of=of)

    def clean(self, model: nn.Module, inputs: Tensor, target: Target) -> tuple[BoundScore, Tensor]:
        """Return the bound score and its values [N], by one pass of the clean inputs without gradients."""
        with isolated_eval(model):
            output = forward(model, inputs)
            bound = self.bind(output, target, len(inputs), of=(model, inputs))
            return bound, bound(output)

    def check_map(self, relevance: Tensor, inputs: Tensor) -> None:
        """Raise if a map does not have the shape of the inputs.

        Raises:
            ValueError: If the shapes differ.
        """
        channels = {inputs.shape[1]} if inputs.ndim == 2 else {1, inputs.shape[1]}
        if relevance.shape not in {(len(inputs), channel, *inputs.shape[2:]) for channel in channels}:
            raise ValueError(
                f"{type(self).__name__} made a map {list(relevance.shape)} for inputs {list(inputs.shape)}; it must be "
                f"shaped like them."
            )


@dataclass(frozen=True)
class ScoreAttribution(Attribution, ABC):
    """An attribution with a field for the explained score.

    Args:
        score: s: a name, a :class:`~lightning_xai.scores.Score`, or a function of (output, target).

    Class attributes:
        needs_gradient: Whether a score without a derivative at the clean input cannot be explained.
    """

    needs_gradient: ClassVar[bool] = True

    score: ScoreLike = field(default="logit", kw_only=True)

    def __post_init__(self) -> None:
        score = as_score(self.score)
        if self.needs_gradient and isinstance(score, CombClasses):
            raise ValueError(
                "score='comb_classes' is 0 at the clean input, where it has no gradient: use score='margin' instead."
            )
        object.__setattr__(self, "score", score)
        super().__post_init__()
