"""Results declare themselves: figures, tables, the report, the loggers and the API pages read declarations alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_xai._files import write_csv

Labels = Mapping[str, Sequence[str]]

_MOST_ROWS = 1000


@dataclass(frozen=True)
class Result:
    """Declares one result of a metric: what it is, and how it is drawn and listed.

    Args:
        title: What it is, in a few words.
        unit: In which unit, or what its ends mean.
        meaning: One sentence.
        equation: The label of its equation in the definitions.
        axes: The names of its axes, space and positions excepted; those of its kind unless given.
        better: ``"higher"`` or ``"lower"``, if either is.
        signed: Whether it has a sign, which colours show.
        listed: Whether its entries are listed in a table: ``"strongest"`` first, or in the order ``"given"``.
        apart: The key of a Boolean result over the last axes: what it marks is in no ranking, and listed after it.

    Class attributes:
        further: How many axes a value may have besides those that are named: of space, or of positions.

    Example:
        >>> gini = Number("Gini coefficient", "0 even … 1 one cell", "How unevenly a map is spread.", "gini")
        >>> gini.label, gini.describe(0.8975)
        ('Gini coefficient, 0 even … 1 one cell', 'Gini coefficient 0.897 (0 even … 1 one cell)')
    """

    title: str
    unit: str = ""
    meaning: str = ""
    equation: str | None = None
    _: KW_ONLY
    axes: tuple[str, ...] = ()
    better: Literal["higher", "lower"] | None = None
    signed: bool = True
    listed: Literal["strongest", "given"] | None = None
    apart: str | None = None

    further: ClassVar[range] = range(1)

    @property
    def label(self) -> str:
        """The title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def describe(self, value: float | Tensor, error: float | Tensor = math.nan) -> str:
        """A value with its title and unit, and its standard error if it is known."""
        number, spread = float(value), float(error)
        digits = f"{number:,.0f}" if number.is_integer() else f"{number:.3g}"
        off = f" ± {spread:.2g}" if math.isfinite(spread) else ""
        return f"{self.title} {digits}{off}{f' ({self.unit})' if self.unit else ''}"

    def check(self, key: str, value: Any) -> None:
        """Refuse a value that has not as many axes as declared.

        Raises:
            ValueError: If it has more or fewer.
        """
        shape = list(value.shape) if isinstance(value, Tensor) else []
        if len(shape) - len(self.axes) not in self.further:
            raise ValueError(
                f"{key!r} is declared as {type(self).__name__}(axes={self.axes}), but has the shape {shape}: change "
                f"the declaration in results, or what compute() returns."
            )


@dataclass(frozen=True)
class Number(Result):
    """A number, which is logged.

    Args:
        error: The key of its standard error, which is shown with it.
        undefined: The key of the count of samples in which it has no value, which is shown with it.
        usually_zero: Whether it counts what is not as it should be, so that 0 need not be shown.
    """

    error: str | None = None
    undefined: str | None = None
    usually_zero: bool = False

    def shows(self, value: float | Tensor | None) -> bool:
        """Tell whether people want to see a value.

        >>> broken = Number("samples left out", usually_zero=True)
        >>> broken.shows(0), broken.shows(2)
        (False, True)
        """
        return not self.usually_zero or value is None or float(value) != 0


@dataclass(frozen=True)
class Curve(Result):
    """Numbers [n] along an axis.

    Args:
        extent: What the axis is at its first and its last place; their numbers unless given.

    Example:
        >>> Curve("score", axes=("share",), extent=(0.0, 1.0)).places(3)
        [0.0, 0.5, 1.0]
    """

    axes: tuple[str, ...] = ("place",)
    extent: tuple[float, float] | None = None

    def places(self, count: int) -> list[float]:
        """Return what the axis is at each of so many places."""
        first, last = self.extent or (0.0, count - 1.0)
        return [first + (last - first) * place / max(count - 1, 1) for place in range(count)]


@dataclass(frozen=True)
class Map(Result):
    r"""A map [\*S] over the input, or one for every entry of an axis, e.g. per class."""

    further = range(1, 4)


@dataclass(frozen=True)
class PerFeature(Result):
    """Numbers [J], one per feature."""

    axes: tuple[str, ...] = ("feature",)


@dataclass(frozen=True)
class PerUnit(Result):
    r"""Numbers [K], one per unit, or [K, \*P] where units are positions."""

    axes: tuple[str, ...] = ("unit",)
    further = range(4)


@dataclass(frozen=True)
class PerLayer(Result):
    """Numbers [L], one per layer from the input to the output.

    Args:
        beside: The keys of numbers that are drawn with the layers.
    """

    axes: tuple[str, ...] = ("layer",)
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrix(Result):
    """Numbers [A, B]."""

    axes: tuple[str, ...] = ("row", "column")


@dataclass(frozen=True)
class Histogram(Result):
    """Counts [bins] in equal intervals.

    Args:
        extent: Where the intervals begin and end.
    """

    axes: tuple[str, ...] = ("interval",)
    extent: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Entries(Result):
    """Names, places or marks, which are listed and have no colour.

    Args:
        refer_to: The axis whose labels they refer to; -1 refers to none.
    """

    refer_to: str | None = None
    further = range(9)


# What a result that nothing declares is taken for: the one place where a shape decides.
_BY_DIMENSIONS: tuple[type[Result], ...] = (Number, Curve, Matrix)


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        columns: The names.
        rows: As many entries each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int | float | str, ...], ...]

    def to_csv(self, path: str | Path) -> None:
        """Write the names, then the rows; folders are made."""
        write_csv(path, self.columns, self.rows)


def companions(results: Mapping[str, Result]) -> set[str]:
    """Find the keys of numbers that are shown with another: standard errors, and counts of what is undefined.

    >>> sorted(companions({"srg": Number("srg", error="srg_error"), "srg_error": Number("standard error")}))
    ['srg_error']
    """
    numbers = [result for result in results.values() if isinstance(result, Number)]
    return {key for result in numbers for key in (result.error, result.undefined) if key is not None}


def declared(results: Mapping[str, Result], values: Mapping[str, Any]) -> dict[str, Result]:
    """The declaration of every value, in the order of the values.

    A value that nothing declares is a number, a curve or a matrix by its shape, and a table if it has more axes; its
    title is its key.

    Raises:
        ValueError: If a value has not as many axes as declared.

    >>> declared({}, {"lost_share": 0.25, "places": torch.ones(3)})["places"]
    Curve(title='places', unit='', meaning='', equation=None, axes=('place',), better=None, signed=True, listed=None,
          apart=None, extent=None)
    """
    found = {}
    for key, value in values.items():
        dimensions = value.ndim if isinstance(value, Tensor) else 0
        kind = _BY_DIMENSIONS[dimensions] if dimensions < len(_BY_DIMENSIONS) else Entries
        found[key] = results.get(key) or kind(key.replace("_", " "))
        found[key].check(key, value)
    return found


def strongest(values: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The places of values by their magnitude, the first among equals first; none that is 0 or not finite.

    Args:
        values: Values of any shape, flattened.
        apart: Which of them are not ranked, Boolean, for all axes or the last ones.

    Returns:
        The places in the ranking, and those apart from it.

    >>> strongest(torch.tensor([2.0, -5.0, 0.0, 9.0]), torch.tensor([False, False, False, True]))
    (tensor([1, 0]), tensor([3]))
    """
    sizes = values.detach().cpu().double().flatten().abs().nan_to_num(nan=0.0, posinf=0.0)
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    if apart is None:
        return order, order[:0]
    marked = apart.detach().cpu().expand(values.shape).flatten()[order]
    return order[~marked], order[marked]


def tables(results: Mapping[str, Result], values: Mapping[str, Any], labels: Labels | None = None) -> dict[str, Table]:
    """Tables of the results that are to be listed: one for all results over the same axes, a column for each.

    Args:
        results: The declarations.
        values: What ``compute()`` gave.
        labels: The names of the entries of an axis, by axis; their numbers unless given.

    >>> tables({"peak": PerUnit("activation", listed="strongest")}, {"peak": torch.tensor([1, 5, 0])})
    {'by_unit': Table(columns=('unit', 'activation'), rows=((1, 5), (0, 1)))}
    """
    groups: dict[tuple[str, ...], dict[str, Result]] = {}
    for key, result in declared(results, values).items():
        if result.axes and not isinstance(result, Map):
            groups.setdefault(result.axes, {})[key] = result
    return {
        f"by_{'_and_'.join(axes)}": _table(axes, group, values, labels or {})
        for axes, group in groups.items()
        if any(result.listed for result in group.values())
    }


def _table(axes: tuple[str, ...], group: Mapping[str, Result], values: Mapping[str, Any], labels: Labels) -> Table:
    key, first = next((key, result) for key, result in group.items() if result.listed)
    shape = values[key].shape if isinstance(first, PerUnit) else values[key].shape[: len(axes)]
    if first.listed == "strongest":
        places = torch.cat(strongest(values[key], values.get(first.apart or "")))
    else:
        places = torch.arange(math.prod(shape))
    rows = []
    for place in torch.stack(torch.unravel_index(places[:_MOST_ROWS], shape), 1).tolist():
        named = [name_of(labels, axis, part) for axis, part in zip(axes, place[: len(axes)], strict=True)]
        named[-1] = "/".join(map(str, (named[-1], *place[len(axes) :]))) if place[len(axes) :] else named[-1]
        rows.append((*named, *(_cell(result, values[name][tuple(place)], labels) for name, result in group.items())))
    return Table((*axes, *(result.title for result in group.values())), tuple(rows))


def _cell(result: Result, entry: Tensor, labels: Labels) -> int | float | str:
    if entry.ndim:
        return "/".join(map(str, entry.tolist()))
    if entry.dtype == torch.bool:
        return "yes" if entry else ""
    if isinstance(result, Entries) and result.refer_to is not None:
        return name_of(labels, result.refer_to, int(entry)) if entry >= 0 else "none"
    return float(f"{entry.item():.6g}") if entry.is_floating_point() else int(entry)


def name_of(labels: Labels, axis: str, index: int) -> int | str:
    """The name of an entry of an axis, its number if it has none."""
    names = labels.get(axis) or ()
    return names[index] if index < len(names) else index
