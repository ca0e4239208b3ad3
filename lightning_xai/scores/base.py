"""Scores, and what of them is fixed on the clean inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai.inputs.bound_model import BoundModel
from lightning_xai.present import present_positions
from lightning_xai.scores.output_axes import class_axis_of
from lightning_xai.scores.target import BoundTarget, Target, as_target, check_range
from lightning_xai.sites import Site

_LOGITS = "logits"  # what the outputs of transformers, dicts with attributes, call them
_WRAP = "wrap the model in a module whose forward returns the tensor to be scored"


@dataclass(frozen=True)
class Score(ABC):
    """A scalar per sample, read off the model's output [N, classes] or [N, classes, *positions].

    An output with positions (a segmentation, the tokens of a text) is averaged over the region in which the target
    class is predicted for the clean input; padding is in no region. A sample without such a region has the score NaN.

    Args:
        output: Which tensor to read if the model returns a dict (its key), a tuple (its index) or an object (its
            attribute); ``logits`` of an output of transformers unless given.
        class_axis: The axis of the classes of an output with positions; found by what the axes of the input become
            unless given (see :func:`~lightning_xai.axes.axis_facts`).
        position: Which position of an output with one axis of them is read instead of a region: an index, or
            ``"last"``, the last one that the mask of the output's positions does not hide: of a decoder its
            ``decoder_attention_mask``, of any other network ``attention_mask``.

    Class attributes:
        by_region: Whether an output with positions is read where the target is predicted.
        by_class: Whether an axis of the output holds classes.
        by_position: Whether what follows the classes are positions, of which those of padding are left out.
        fixes_values: Whether what :meth:`fix` returns are values of the output, and no choices (a class, a place), so
            that it is made anew for a noisy variant of the clean input.
    """

    by_region: ClassVar[bool] = True
    by_class: ClassVar[bool] = True
    by_position: ClassVar[bool] = True
    fixes_values: ClassVar[bool] = False

    output: str | int | None = field(default=None, kw_only=True)
    class_axis: int | None = field(default=None, kw_only=True, repr=False)
    position: int | str | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.class_axis is not None:
            as_integer("class_axis", self.class_axis)
            if self.class_axis == 0:
                raise ValueError("class_axis=0 is the axis of the samples.")
        if self.position not in (None, "last"):
            as_integer("position", self.position)

    @property
    def reads(self) -> Site | None:
        """The module inside the model whose output is read; None for the model's own."""
        return None

    def fix(self, clean: Tensor, target: Tensor, region: Tensor | None) -> tuple[Tensor, ...]:
        """Return what is fixed on the clean output [N, classes, *P] besides target and region: tensors [N, ...]."""
        return ()

    @abstractmethod
    def read(self, output: Tensor, target: Tensor, region: Tensor | None, *fixed: Tensor) -> Tensor:
        """Return the score [N] of an output [N, classes, *P], given the target [N] and the region [N, *P] or None."""

    def bind(
        self, output: Any, target: Target, samples: int, *, of: tuple[nn.Module, Tensor] | None = None
    ) -> BoundScore:
        """Bind the score to a clean output: target, region and what else it fixes.

        Args:
            output: What the model returned for the clean inputs.
            target: The explained classes, in any form that :func:`as_target` takes; a score that is bound already
                stays as it is.
            samples: N, the number of samples that went in.
            of: The model and what went in, by which the axis of the classes and the positions of padding are found
                where the output has positions; axis 1, and none, unless given.

        Raises:
            ValueError: If the output cannot be read or the target does not fit it.
        """
        if isinstance(target, BoundScore):
            return self._held(target, output, samples)
        columns = self._columns(output, samples)
        axis = self.class_axis
        if axis is None and columns.ndim > 2 and self.by_class and of is not None:
            axis = class_axis_of(*of, self, columns.ndim)
        clean = _classes_second(columns, axis)
        places = self._places(clean, None if of is None else of[0])
        clean = _at_places(clean, places)
        present = None
        if clean.ndim > 2 and self.by_position and of is not None:
            present = present_positions(*of, self.pick, 1 if axis is None else axis, "the model's output", self)
            decoded = of[0].decoded if isinstance(of[0], BoundModel) else None
            if decoded is not None and decoded.shape == (len(clean), *clean.shape[2:]):
                present = decoded.to(clean.device) if present is None else present & decoded.to(present.device)
        resolved = self._resolve(target, clean, present)
        region = present
        if clean.ndim > 2 and self.by_region:
            region = clean.argmax(1) == resolved.view(-1, *[1] * (clean.ndim - 2))
            region = region if present is None else region & present
        fixed = self.fix(clean, resolved, region)
        predicted, classes = self.predict(clean, present), self.classes(clean)
        return BoundScore(self, resolved, region, fixed, predicted, classes, axis, places, present)

    def _held(self, bound: BoundScore, output: Any, samples: int) -> BoundScore:
        if bound.score != self:
            raise ValueError(f"the target is bound to the score {bound.score}, which is not {self}.")
        if not self.fixes_values:
            return bound
        clean = _at_places(bound.columns(output, samples), bound.places)
        return replace(bound, fixed=self.fix(clean, bound.target, bound.region))

    def _places(self, clean: Tensor, model: nn.Module | None) -> Tensor | None:
        given = model.position if isinstance(model, BoundModel) else None
        if self.position is None and given is None:
            return None
        if clean.ndim != 3:
            raise ValueError(
                f"position={self.position!r} needs an output with one axis of positions, [N, classes, positions], got "
                f"{list(clean.shape)}."
            )
        length = clean.shape[2]
        if self.position is None:
            places = given
        elif self.position == "last":
            return _last(model.there if isinstance(model, BoundModel) else None, len(clean), length).to(clean.device)
        else:
            places = torch.full((len(clean),), int(self.position))
        assert places is not None
        places = places.to(clean.device)
        if bool(((places < -length) | (places >= length)).any()):
            raise ValueError(f"position {places.tolist()} is out of range: the output has {length} positions.")
        return places % length

    def predict(self, clean: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the predicted class [N] of an output [N, classes, *P]; with positions, the most frequent one.

        Args:
            clean: The output.
            present: The positions that are no padding, Boolean [N, *P]; all of them unless given.
        """
        classes = clean.argmax(1)
        if clean.ndim == 2:
            return classes
        if present is None:
            return classes.flatten(1).mode(1).values
        rows = zip(classes, present, strict=True)
        return torch.stack([(row[there] if bool(there.any()) else row.flatten()).mode().values for row, there in rows])

    def classes(self, clean: Tensor) -> int:
        """Return the number of classes that a target may name; 0 if it is not known."""
        return clean.shape[1]

    def _resolve(self, target: Target, clean: Tensor, present: Tensor | None) -> Tensor:
        classes = self.classes(clean)
        indices = as_target(target, len(clean))
        assert not isinstance(indices, BoundTarget)
        if isinstance(indices, str):
            return self.predict(clean, present)
        if indices is None and classes != 1:
            raise ValueError("the output has classes, so a target is needed: class indices or 'predicted'.")
        if indices is None:
            return torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        if classes:
            check_range(indices, classes)
        return indices.to(clean.device)

    def _columns(self, output: Any, samples: int) -> Tensor:
        tensor = self.pick(output)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else f"{type(tensor).__name__}: {self._remedy(tensor)}"
            raise ValueError(f"the model's output must be a floating-point tensor to be scored, got {got}.")
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            raise ValueError(
                f"the model's output must have one row per sample, [{samples}, classes] for {samples} of them, got "
                f"{list(tensor.shape)}; a squeeze() in the model must name its axis, e.g. squeeze(1)."
            )
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor

    def _remedy(self, output: Any) -> str:
        held = vars(output) if is_dataclass(output) else {}
        parts = [name for name, part in held.items() if isinstance(part, Tensor)]
        example = f"score={type(self).__name__}(output={parts[0]!r})" if parts else ""
        return f"say which of {parts} to explain, e.g. {example}" if parts else _WRAP

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the columns [n, classes, *P] of several outputs."""
        return torch.cat(list(parts))

    def pick(self, output: Any) -> Any:
        """Return the part of a model's output that is read.

        Raises:
            ValueError: If there are several and none is named, or there is no such part.
        """
        key = self.output
        if key is None and not isinstance(output, Mapping | tuple | list):
            return output
        if key is None and isinstance(output, Mapping) and hasattr(output, _LOGITS):
            return getattr(output, _LOGITS)
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
class BoundScore(BoundTarget):
    """A score fixed on the clean inputs; call it with an output of as many rows.

    It is also a target: what it has fixed then holds for other inputs, such as noisy variants of the clean ones.

    Attributes:
        score: The score.
        target: The explained classes [N].
        region: Where an output with positions is read, Boolean [N, *P]; None if it has none.
        fixed: What else the score fixes, tensors [N, ...].
        prediction: The predicted classes [N].
        classes: The number of classes.
        class_axis: The axis of the classes in the model's output; 1 if it is None.
        places: The position [N] that is read, -1 where there is none; None for all of them.
        present: Which positions of the output are no padding, Boolean [N, *P]; None if all are.

    The runners-up stay classes 2 and 0, whatever is read later:

    >>> from lightning_xai.scores import Margin
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
    class_axis: int | None = None
    places: Tensor | None = None
    present: Tensor | None = None

    def at(self, rows: Tensor | slice) -> BoundScore:
        """Select or repeat samples: row i reads like sample ``rows[i]``."""
        names = ("target", "region", "prediction", "places", "present")
        of_samples = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {name: None if tensor is None else tensor[rows] for name, tensor in of_samples.items()}
        return replace(self, fixed=tuple(tensor[rows] for tensor in self.fixed), **chosen)

    def as_target(self) -> Tensor | BoundScore:
        """Return the target that fixes the same for other inputs: class indices [N] where nothing else is fixed."""
        only_target = not self.fixed and self.region is None and self.places is None
        return self.target if only_target else self

    def columns(self, output: Any, rows: int) -> Tensor:
        """Return the tensor [rows, classes, *P] that the score reads from a model's output."""
        return _classes_second(self.score._columns(output, rows), self.class_axis)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the columns of several outputs."""
        return self.score.join(parts)

    def predict(self, output: Any) -> Tensor:
        """Return the predicted classes [N] of a model's output."""
        columns = self.columns(output, self.target.shape[0])
        return self.score.predict(_at_places(columns, self.places), self.present)

    def __call__(self, output: Any) -> Tensor:
        """Return the score [N] of a model's output."""
        return self.read(self.columns(output, self.target.shape[0]))

    def read(self, columns: Tensor) -> Tensor:
        """Return the score [N] of the columns of all rows."""
        value = self.score.read(_at_places(columns, self.places), self.target, self.region, *self.fixed)
        if value.shape != self.target.shape:
            raise ValueError(
                f"{type(self.score).__name__} must return one value per sample, [{self.target.shape[0]}], "
                f"got {list(value.shape)}."
            )
        return value


def over(region: Tensor | None, values: Tensor) -> Tensor:
    """Return the mean of values [N, *P] over a region [N, *P]; over all positions if there is none."""
    if values.ndim == 1:
        return values
    if region is None:
        return values.flatten(1).mean(1)
    values = torch.where(region, values, 0.0).flatten(1).sum(1)
    return values / region.flatten(1).sum(1)


def _classes_second(columns: Tensor, axis: int | None) -> Tensor:
    if axis is None or axis == 1 or columns.ndim < 3:
        return columns
    if not -columns.ndim < axis < columns.ndim:
        raise ValueError(f"class_axis={axis} is out of range: the output has the shape {list(columns.shape)}.")
    return columns.movedim(axis, 1)


def _last(there: Tensor | str | None, samples: int, length: int) -> Tensor:
    """The last position of each sample [N] that is there; -1 where none is.

    Raises:
        ValueError: If it is not known which are.
    """
    if there is None:
        return torch.full((samples,), length - 1)
    why = there if isinstance(there, str) else f"the mask is of {there.shape[1]} positions, the output has {length}"
    if isinstance(there, str) or there.shape[1] != length:
        raise ValueError(
            f"position='last' cannot be told, as {why}: write position=-1 for the very last one, or "
            f"Inputs(..., position=...) for one of each sample."
        )
    last = (there.long() * torch.arange(1, length + 1, device=there.device)).argmax(1)
    return torch.where(there.any(1), last, -1)


def _at_places(columns: Tensor, places: Tensor | None) -> Tensor:
    if places is None:
        return columns
    found = columns.gather(2, places.clamp(min=0).view(-1, 1, 1).expand(-1, columns.shape[1], 1)).squeeze(2)
    return found.masked_fill((places < 0).unsqueeze(1), float("nan"))
