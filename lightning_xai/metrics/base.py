"""The base class of metrics: ``run`` explains a batch, ``accumulate`` adds it to the states."""

from __future__ import annotations

import functools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_xai._checks import check_inputs
from lightning_xai.inputs import InputsLike
from lightning_xai.inputs.binding import bind
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.results import Labels, Number, Result, Table, tables
from lightning_xai.scores import Target, as_target, check_range
from lightning_xai.scores.target import target_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

Ids = Tensor | Sequence[int] | None  # of the samples of a batch


@dataclass(frozen=True)
class BatchExplanation:
    """Holds what one metric computed of a batch.

    Attributes:
        tensors: Per-sample tensors [N, ...] by name, written to disk.
        target: The explained classes [N].
        prediction: The predicted classes [N].
        nonfinite: How many values of each sample are not finite [N].
        classes: The number of classes.
        kept: Per-sample tensors [N, ...] that are counted but not written.
        totals: Sums over the samples by name, of what is not known per sample.
        constants: What is the same for every sample, by name.
        score: :math:`s(x)` [N] of the clean inputs; None where nothing is scored.
        is_value: Whether the score is the output as it is, of a regression or of a model that ends in probabilities.
        made: How it was made, by name: ``layer``, that of a class activation map; ``engine`` of a sweep, and ``share``,
            its share of the multiplications of dense passes.
    """

    tensors: dict[str, Tensor]
    target: Tensor
    prediction: Tensor
    nonfinite: Tensor
    classes: int
    kept: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    score: Tensor | None = None
    is_value: bool = False
    made: dict[str, Any] = field(default_factory=dict)

    def without_samples(self) -> BatchExplanation:
        """Return an explanation of no sample, whose tensors have the shapes of this one's."""
        return replace(
            self,
            tensors={name: tensor[:0] for name, tensor in self.tensors.items()},
            target=self.target[:0],
            prediction=self.prediction[:0],
            nonfinite=self.nonfinite[:0],
            kept={name: tensor[:0] for name, tensor in self.kept.items()},
            totals={name: torch.zeros_like(total) for name, total in self.totals.items()},
        )


class ExplanationMetric(Metric, ABC):
    """A torchmetrics metric of explanations: ``update`` is :meth:`run`, then :meth:`accumulate`.

    Its states are sums and counts; their size is that of the results and does not grow with the data.

    Attributes:
        results: The declaration of every result of ``compute()``, by key. Pictures, tables, the report and the loggers
            read it; a result that is not declared is a number, a curve or a matrix by its shape.
        sample_maps: The per-sample maps worth drawing, by their names in ``BatchExplanation.tensors``.
        formula: The definition, in LaTeX.
        interpretation: What its values mean, for people who look at a report.
        made: How the last batch was explained, by name: ``layer``, or ``engine`` and ``share``; empty if there is
            nothing to say.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    results: Mapping[str, Result] = {
        "samples": Number("samples", "", "How many samples were explained."),
        "nonfinite": Number(
            "values that are not finite",
            "",
            "How many values are NaN or infinite and enter no result.",
            usually_zero=True,
        ),
        "excluded": Number(
            "samples left out", "", "How many samples were left out, as their inputs are not finite.", usually_zero=True
        ),
        "skipped": Number(
            "samples skipped", "", "How many samples were not explained, as the time was up.", usually_zero=True
        ),
    }
    sample_maps: ClassVar[Mapping[str, Result]] = {}
    formula: ClassVar[str] = ""
    interpretation: ClassVar[str] = ""
    if TYPE_CHECKING:  # the states, which `add_state` makes attributes

        def __getattr__(self, name: str) -> Any: ...

    samples: Tensor
    nonfinite: Tensor
    excluded: Tensor
    skipped: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made: dict[str, Any] = {}
        self.fingerprint()  # the first state, as torchmetrics 1.5 compares no other
        self.add_sum_state("samples", "nonfinite", "excluded", "skipped", dtype=torch.long)

    def _wrap_compute(self, compute: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Give results of one entry the axes that they are declared with, which torchmetrics takes from them."""
        shapes: dict[str, torch.Size] = {}

        @functools.wraps(compute)
        def see_shapes() -> dict[str, Tensor]:
            found = compute()
            shapes.update((key, value.shape) for key, value in found.items() if isinstance(value, Tensor))
            return found

        squeezed = super()._wrap_compute(see_shapes)

        @functools.wraps(compute)
        def reshaped() -> dict[str, Tensor]:
            found = squeezed()
            return {key: value.reshape(shapes[key]) if key in shapes else value for key, value in found.items()}

        return reshaped

    @abstractmethod
    def run(self, model: nn.Module, inputs: Tensor, target: Target = None, sample_ids: Ids = None) -> BatchExplanation:
        """Explain a batch and leave the states as they are.

        Args:
            model: The network; left as it was.
            inputs: Inputs [N, C, *S], or a table [N, F].
            target: Class indices [N], one index for all, or ``"predicted"``; not needed for an output with one column.
            sample_ids: The samples' ids [N]; 0..N-1 unless given.
        """

    def check(self, model: nn.Module, inputs: InputsLike, target: Target = None) -> int:
        """Raise the errors that :meth:`run` would raise for a batch, at the cost of its first sample.

        Returns:
            The number of classes; 0 if it is not known.
        """
        return self._check_first(model, inputs, target)

    def _check_first(self, model: nn.Module, inputs: InputsLike, target: Target, **further: Tensor | None) -> int:
        """Run the first sample, with the first of ``further`` arguments."""
        model, values = bind(model, inputs)
        check_inputs(values)
        indices = as_target(target, len(values))
        first = target_at(indices, slice(1))
        own = {name: None if value is None else value[:1] for name, value in further.items()}
        explained = self.run(at_rows(model, slice(1)), values[:1], first, **own)
        if isinstance(indices, Tensor) and explained.classes:
            check_range(indices, explained.classes)
        return explained.classes

    @abstractmethod
    def add(self, found: BatchExplanation) -> None:
        """Add the explanation of a batch to the states."""

    def accumulate(self, found: BatchExplanation) -> None:
        """Add what :meth:`run` returned to the states, and count it as an update."""
        self._update_count += 1
        self._computed = None
        self._accumulate(found)

    def update(
        self,
        model: nn.Module,
        inputs: InputsLike,
        target: Target = None,
        sample_ids: Ids = None,
        **further: Tensor | None,
    ) -> None:
        """Explain a batch and count it; the arguments are those of :meth:`run`, all of them, such as ``masks``."""
        model, values = bind(model, inputs)
        self._accumulate(self.run(model, values, target, sample_ids, **further))

    @property
    def takes_masks(self) -> bool:
        """Whether :meth:`run`, :meth:`check` and ``update`` take ``masks``, where the objects of the samples are."""
        return False

    def masked(self, masks: Tensor | None) -> dict[str, Any]:
        r"""Return the argument for masks [N, \*S], if the metric takes any."""
        return {"masks": masks} if self.takes_masks else {}

    def begin(self, epoch: int, history: Mapping[str, Any]) -> None:
        """Begin an explained epoch, after what ``history`` kept of those before; nothing unless a metric looks back."""

    @property
    def history(self) -> dict[str, Any]:
        """The state that later epochs need of this one and of those before; tensors and plain data."""
        return {}

    def exclude(self, count: int) -> None:
        """Count samples that could not be explained."""
        self.excluded = self.excluded + count

    def skip(self, count: int) -> None:
        """Count samples for which there was no time."""
        self.skipped = self.skipped + count

    @property
    def axis_labels(self) -> Labels:
        """Name the entries of axes, by axis; none unless a metric knows some."""
        return {}

    def plot(self, val: Mapping[str, Any] | None = None, ax: Any = None) -> tuple[Figure | SubFigure, Any]:
        """Draw the results, a panel for each that is no number; for each class one if there are maps per class.

        Args:
            val: Results to draw; those of ``compute()`` unless given.
            ax: Matplotlib axes to draw into: one if there is one panel, otherwise a sequence of as many as panels.

        Returns:
            The figure, and its axes in the form of ``ax``.

        Raises:
            ValueError: If every result is a number, or there are more or fewer axes than panels.
        """
        from lightning_xai.figures.results import draw_into, draw_results

        values = self.compute() if val is None else val
        if ax is not None:
            drawn = draw_into(ax, self.results, values, type(self).__name__, labels=self.axis_labels)
            return drawn[0].figure, ax
        figure = draw_results(self.results, values, type(self).__name__, labels=self.axis_labels)
        axes = [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
        return figure, axes if len(axes) > 1 else axes[0]

    def tables(self, values: Mapping[str, Any]) -> dict[str, Table]:
        """List the results that are declared to be listed: one table for all results over the same axes."""
        return tables(self.results, values, self.axis_labels)

    def _accumulate(self, found: BatchExplanation) -> None:
        with torch.no_grad():
            self.add(found)  # first, as it is what refuses inputs of another size
            self.samples = self.samples + len(found.target)
            self.nonfinite = self.nonfinite + found.nonfinite.sum()
            self.made = {**self.made, **found.made}

    def add_sum_state(self, *names: str, dtype: torch.dtype = torch.float32) -> None:
        """Add states that start as the number 0 and take the shape and precision of what is first added."""
        for name in names:
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def add_to_state(self, name: str, values: Tensor) -> None:
        """Add values summed over the samples to a state, in double precision where the device has it."""
        before = getattr(self, name)
        if before.ndim and before.shape != values.shape:
            raise ValueError(
                f"means over the data need inputs of one size: {name} was {list(before.shape)} so far and is "
                f"{list(values.shape)} now. Resize the inputs, or use one metric per size."
            )
        setattr(self, name, before.to(values.device) + values)

    def fingerprint(self, *configuration: Any) -> None:
        """Keep a ``MetricCollection`` from taking two metrics for one because their first results agree."""
        code = zlib.crc32(full_repr((type(self).__name__, configuration)).encode())
        bits = torch.tensor([code >> bit & 1 for bit in range(32)], dtype=torch.uint8)
        self.add_state("configuration", bits, dist_reduce_fx="max")

    def sample_counts(self) -> dict[str, Tensor]:
        """Return the results of every metric: how many samples, values not finite, and samples not explained."""
        return {name: getattr(self, name) for name in ("samples", "nonfinite", "excluded", "skipped")}


def full_repr(value: Any) -> str:
    """Represent a value like ``repr``, with a checksum of every tensor."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{value.dtype}{list(value.shape)}{zlib.crc32(raw.numpy().tobytes())}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{part.name}={full_repr(getattr(value, part.name))}" for part in fields(value))
        return f"{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(full_repr, value))}]"
    return repr(value)


def precise(values: Tensor) -> Tensor:
    """Convert values to double precision, except on devices that have none."""
    return values if values.device.type == "mps" else values.double()
