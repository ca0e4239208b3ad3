"""Upper quantiles of activations, over more data than memory holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from lightning_xai._checks import as_integer

DEFAULT_BUDGET = 2**26

_LEAST_EXPONENT, _EXPONENTS = -32, 64
_MOST_BITS = 10
# Shorter blocks take longer to reduce, longer ones hold a large value more often.
_BLOCKS = (64, 257)
_PART_BYTES = 2**22


@dataclass(frozen=True, eq=False)
class Quantile:
    """The upper quantiles of some units, and how they were found.

    Attributes:
        value: T [K]: at most a share p of a unit's values is larger. NaN for a unit without values.
        exact: Whether T is the quantile itself; if not, it is read off a histogram.
        error: The largest error: ``|value - T| <= error * |T| + 2**-31``; 0 if exact, infinite if T is too large for
            the histogram.
        count: How many values each unit has had [K].
        peak: The largest value of each unit [K].
        nonfinite: How many values were NaN or infinite; they are left out.
    """

    value: Tensor
    exact: bool
    error: float
    count: Tensor
    peak: Tensor
    nonfinite: int

    @property
    def dead(self) -> tuple[int, ...]:
        """The units that never were active: T = 0, and nothing is larger."""
        return tuple(((self.value == 0) & (self.peak == 0)).nonzero().flatten().tolist())


class UpperQuantile:
    r"""T with :math:`P(a_k > T_k) \le p`, over values that come in parts; parts may be merged in any order.

    T is the value with the rank :math:`\lfloor p N \rfloor + 1` from above. So the largest values of each unit are
    kept, as many as the budget allows (half of it is room for new ones), and T is exact as long as that rank is among
    them, whatever the parts and their order. What is dropped is counted in a histogram with logarithmic bins (64
    powers of two, each in :math:`2^b` bins, b as large as the budget allows and at most 10); off it T is read with a
    relative error of at most :math:`2^{-b-1}` (and that of single precision) when there are more values.

    Args:
        p: The share of the values above T, in (0, 1).
        budget: Bytes for the largest values; the histogram, once needed, takes no more than as many again.
        expected: N, the number of values of each unit, if it is known: no more than needed is kept.

    Raises:
        ValueError: If p is not in (0, 1), or the budget is too small for the units.

    >>> stream = UpperQuantile(p=0.4)
    >>> stream.add(torch.tensor([[[3.0, 1.0]], [[2.0, 5.0]], [[4.0, 0.0]]]))
    >>> stream.result().value
    tensor([3.])
    """

    most: int
    bits: int
    tables: list[Tensor]
    count: Tensor
    peak: Tensor
    histogram: Tensor

    def __init__(self, p: float, *, budget: int = DEFAULT_BUDGET, expected: int | None = None) -> None:
        check_share(p)
        as_integer("budget", budget, 1)
        if expected is not None:
            as_integer("expected", expected, 1)
        self.p = p
        self.budget = budget
        self.expected = expected
        self.nonfinite = 0
        self.started = False

    def add(self, values: Tensor, there: Tensor | None = None) -> None:
        """Add values [n, K, P]: of n samples, K units, P positions; only what is there, Boolean [n, 1 or K, P]."""
        if values.ndim != 3:
            raise ValueError(f"values must be [samples, units, positions], got shape {list(values.shape)}.")
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        if not self.started:
            self._start(values)
        elif values.shape[1] != len(self.count):
            raise ValueError(f"values have {values.shape[1]} units, they had {len(self.count)} so far.")
        elif values.dtype != self.peak.dtype:
            raise ValueError(f"values are {values.dtype}, they were {self.peak.dtype} so far.")
        if values.numel() == 0:
            return
        # A few samples at a time, so that each value is read from memory once.
        step = max(1, _PART_BYTES // (values[0].numel() * values.element_size()))
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            self._add(values[rows], None if there is None else there[rows])
        if self.expected is not None and int(self.count.max()) > self.expected:
            raise ValueError(f"there are more values per unit than the {self.expected} expected.")

    @property
    def bins(self) -> int:
        """The number of bins of the histogram; 0 if the budget is too small for one."""
        return 2 * _EXPONENTS << self.bits if self.bits >= 0 else 0

    @property
    def table(self) -> Tensor:
        """The largest values [K, m], in any order; a unit that has had fewer is filled up with -inf."""
        self.tables = [torch.cat(self.tables, 1)]
        return self.tables[0]

    def state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the state to merge: the largest values [m, K], counts [K], peaks [K], histogram [K, B] or [K, 0].

        A unit that has had fewer than m values is filled up with -inf.
        """
        self._shrink()
        return self.table.T, self.count, self.peak, self.histogram

    def absorb(self, largest: Tensor, count: Tensor, peak: Tensor, histogram: Tensor, nonfinite: int = 0) -> None:
        """Add a state, or several at once: their largest values one below the other, the rest added up."""
        if not self.started:
            self._start(largest.T.unsqueeze(0))
        self.count, self.nonfinite = self.count + count, self.nonfinite + nonfinite
        self.peak = torch.maximum(self.peak, peak)
        if bool(histogram.any()):
            self.histogram = histogram + self.histogram if self.histogram.numel() else histogram
        if self.most:
            self._append(largest.T)

    def result(self) -> Quantile:
        """T so far.

        Raises:
            ValueError: If there was nothing yet.
        """
        if not self.started:
            raise ValueError("there are no values to take a quantile of.")
        self._shrink()
        rank = torch.tensor([int(self.p * count) for count in self.count.tolist()], device=self.count.device)
        deepest = int(rank.max())
        # Of a unit with few values everything is kept.
        exact = deepest < self.most
        if exact:
            largest = self.table.topk(deepest + 1, 1).values
            value, error = largest.gather(1, rank.unsqueeze(1)).squeeze(1), 0.0
        else:
            value, inside = self._read(rank)
            error = 2.0 ** -(self.bits + 1) + 2.0**-24 if inside else math.inf
        value = torch.where(self.count > 0, value, float("nan"))
        return Quantile(value, exact, error, self.count.clone(), self.peak.clone(), self.nonfinite)

    def _start(self, values: Tensor) -> None:
        units, size = values.shape[1], values.element_size()
        most = self.budget // (2 * units * size)
        self.bits = min((self.budget // (units * 2 * _EXPONENTS * 8)).bit_length() - 1, _MOST_BITS)
        if most < 1:
            raise ValueError(
                f"a budget of {self.budget} bytes is too small for {units} units: give at least {2 * units * size}."
            )
        if self.expected is not None:
            needed = int(self.p * self.expected) + 1
            most = needed if needed <= most else 0
        self.most = most
        self.tables = [values.new_full((units, 1), -torch.inf)]
        self.least = values.new_full((units,), -torch.inf)
        self.count = torch.zeros(units, dtype=torch.long, device=values.device)
        self.peak = values.new_full((units,), -torch.inf)
        self.histogram = torch.zeros(units, 0, dtype=torch.long, device=values.device)
        self.started = True

    def _add(self, values: Tensor, there: Tensor | None) -> None:
        peaks = _block_peaks(values)
        # The sum of finite values may overflow, and then a second look does no harm.
        if there is None and bool(values.sum().isfinite()):
            self.count = self.count + values.shape[0] * values.shape[2]
        else:
            finite = values.isfinite()
            counted = finite if there is None else finite & there
            self.nonfinite += int((~finite if there is None else ~finite & there).sum())
            values = torch.where(counted, values, -torch.inf)
            peaks = _block_peaks(values)
            self.count = self.count + counted.sum((0, 2))
        self.peak = torch.maximum(self.peak, peaks.amax((0, 2)))
        least = self.least.view(-1, 1)
        if self.most == 0:
            self.histogram = self._counts(values.transpose(0, 1))
        elif not bool((least > -torch.inf).any()):
            self._append(values.transpose(0, 1).flatten(1))
        else:
            if self.expected is None:
                self.histogram = self._counts(torch.where(values > least, -torch.inf, values).transpose(0, 1))
            self._append(self._larger(values, peaks))

    def _larger(self, values: Tensor, peaks: Tensor) -> Tensor:
        """The values [K, m] that are larger than ``least``: of values [n, K, P], the largest of equal blocks [n, K, B].

        A unit that has fewer is filled up with -inf.
        """
        # Most blocks hold none: only the others are looked at closely.
        unit, sample, block = (peaks > self.least.view(-1, 1)).transpose(0, 1).nonzero(as_tuple=True)
        rows = values.reshape(*peaks.shape, -1)[sample, unit, block]
        larger = rows > self.least[unit].unsqueeze(1)
        unit = unit.repeat_interleave(larger.sum(1))
        total = unit.bincount(minlength=len(self.least))
        column = torch.arange(len(unit), device=unit.device) - (total.cumsum(0) - total)[unit]
        found = values.new_full((len(total), int(total.max())), -torch.inf)
        found[unit, column] = rows[larger]
        return found

    def _append(self, values: Tensor) -> None:
        """Add values [K, m] to the table."""
        if values.shape[1] > self.most:
            values = self._largest(values)
        if sum(table.shape[1] for table in self.tables) + values.shape[1] > 2 * self.most:
            self._shrink()
        self.tables.append(values)

    def _largest(self, values: Tensor) -> Tensor:
        """The ``most`` largest of values [K, m]; the others are counted, unless T is known to be among these."""
        largest = values.topk(self.most, 1, sorted=False)
        if self.expected is None:
            self.histogram = self._counts(values.scatter(1, largest.indices, -torch.inf))
        return largest.values

    def _shrink(self) -> None:
        """Keep the ``most`` largest values of each unit."""
        if self.table.shape[1] > self.most > 0:
            self.tables = [self._largest(self.table)]
            self.least = torch.maximum(self.least, self.table.amin(1))

    def _counts(self, values: Tensor) -> Tensor:
        """The histogram [K, B] of everything that is counted and of values [K, ...]; those of -inf are none."""
        if self.bits < 0:
            least = len(self.count) * 2 * _EXPONENTS * 8
            raise ValueError(
                f"there are more values than a budget of {self.budget} bytes keeps, and it is too small for a "
                f"histogram of {len(self.count)} units: give at least {least}."
            )
        values = values.flatten(1)
        there = values > -torch.inf
        unit = torch.arange(len(values), device=values.device).repeat_interleave(there.sum(1))
        bins = unit * self.bins + _bins(values[there], self.bits)
        counts = torch.bincount(bins, minlength=self.bins * len(values)).view(-1, self.bins)
        return counts + self.histogram if self.histogram.numel() else counts

    def _read(self, rank: Tensor) -> tuple[Tensor, bool]:
        """The value of a rank from above off the histogram of everything, and whether its bin has two ends."""
        above = self._counts(self.table).flip(1).cumsum(1)
        place = self.bins - 1 - (above <= rank.unsqueeze(1)).sum(1).clamp(max=self.bins - 1)
        inside = bool(((place > 0) & (place < self.bins - 1))[self.count > 0].all())
        return _middles(self.bits, self.peak.device)[place].to(self.peak), inside


def _block_peaks(values: Tensor) -> Tensor:
    """The largest values of short blocks of values [n, K, P], [n, K, B]."""
    positions = values.shape[2]
    block = next((size for size in range(*_BLOCKS) if positions % size == 0), max(1, positions))
    return values.reshape(*values.shape[:2], -1, block).amax(3)


def check_share(p: float) -> None:
    """Refuse a share that is not one.

    Raises:
        ValueError: If p is not between 0 and 1, both left out.
    """
    if isinstance(p, bool) or not isinstance(p, Real) or not 0 < p < 1:
        raise ValueError(f"p must be a share between 0 and 1, both left out, e.g. 0.005, got {p!r}.")


def _bins(values: Tensor, bits: int) -> Tensor:
    """The bin of each value: by sign, power of two and leading bits, in the order of the values."""
    raw = values.to(torch.float32).abs().view(torch.int32) >> (23 - bits)
    half = _EXPONENTS << bits
    size = (raw - ((127 + _LEAST_EXPONENT) << bits)).clamp_(0, half - 1).long()
    return torch.where(values >= 0, half + size, half - 1 - size)


def _middles(bits: int, device: torch.device) -> Tensor:
    """The middle of every bin; 0 for the two at zero."""
    half = _EXPONENTS << bits
    size = torch.arange(half, dtype=torch.float64)
    middle = torch.ldexp(1 + (size % 2**bits + 0.5) / 2**bits, (size // 2**bits + _LEAST_EXPONENT).int())
    middle[0] = 0
    return torch.cat([-middle.flip(0), middle]).to(device)
