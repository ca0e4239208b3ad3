"""Upper quantiles of activations, over more data than memory holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai._checks import as_integer

DEFAULT_BUDGET = 2**26

_LEAST_EXPONENT, _EXPONENTS = -32, 64
_MOST_BITS = 10
# Shorter blocks take longer to reduce, longer ones hold a large value more often.
_BLOCKS = (64, 257)
# One value of so many is looked at to guess a bound: primes, as other steps stay in some columns of an image.
_STEPS = (17, 11, 5, 3, 1)
_FEWEST_SAMPLED = 4096
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
    relative error of at most :math:`2^{-b-1}` (and
    that of single precision) when there are more values.

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
    table: Tensor
    fill: Tensor
    least: Tensor
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

    def add(self, values: Tensor) -> None:
        """Take values [n, K, P]: of n samples, K units, P positions."""
        if values.ndim != 3:
            raise ValueError(f"values must be [samples, units, positions], got shape {list(values.shape)}.")
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        if not self.started:
            self._start(values)
        elif values.shape[1] != len(self.count):
            raise ValueError(f"values have {values.shape[1]} units, they had {len(self.count)} so far.")
        elif values.dtype != self.table.dtype:
            raise ValueError(f"values are {values.dtype}, they were {self.table.dtype} so far.")
        if values.numel() == 0:
            return
        if self.most and self._guess(values):
            noted = (self.count, self.peak, self.nonfinite)
            self._take(values)
            if bool((self.fill >= self.most).all()):
                return  # so many are larger: T is, too
            self.count, self.peak, self.nonfinite = noted
            self._clear(values)
        self._take(values)

    @property
    def bins(self) -> int:
        """The number of bins of the histogram; 0 if the budget is too small for one."""
        return 2 * _EXPONENTS << self.bits if self.bits >= 0 else 0

    def merge(self, other: UpperQuantile) -> None:
        """Take what another stream with the same p and budget has seen."""
        if (other.p, other.budget, other.expected) != (self.p, self.budget, self.expected):
            raise ValueError("only streams with the same p, budget and expected number of values can be merged.")
        if other.started:
            self.absorb(*other.state(), other.nonfinite)

    def state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the state to merge: the largest values [m, K], counts [K], peaks [K], histogram [K, B] or [K, 0].

        A unit that has had fewer than m values is filled up with -inf.
        """
        self._shrink()
        return self.table[:, : int(self.fill.max())].T, self.count, self.peak, self.histogram

    def absorb(self, largest: Tensor, count: Tensor, peak: Tensor, histogram: Tensor, nonfinite: int = 0) -> None:
        """Take a state, or several at once: their largest values one below the other, the rest added up."""
        if not self.started:
            self._start(largest.T.unsqueeze(0))
        self.count, self.nonfinite = self.count + count, self.nonfinite + nonfinite
        self.peak = torch.maximum(self.peak, peak)
        if bool(histogram.any()):
            self._open()
            self.histogram += histogram
        if self.most == 0:
            return
        if 0 < len(largest) <= self.most and not bool(self.fill.any()) and bool((largest > -torch.inf).all()):
            self.table = largest.T.clone(memory_format=torch.contiguous_format)
            self.fill = torch.full_like(self.fill, len(largest))
            return
        for part in torch.split(largest.T, self.most, 1) if len(largest) else ():
            self._keep(part.unsqueeze(0), _block_peaks(part.unsqueeze(0)))

    def result(self) -> Quantile:
        """T so far.

        Raises:
            ValueError: If there was nothing yet.
        """
        if not self.started:
            raise ValueError("there are no values to take a quantile of.")
        self._shrink()
        rank = torch.tensor([int(self.p * count) for count in self.count.tolist()], device=self.count.device)
        # Of a unit with few values everything is kept.
        exact = self.most > 0 and int(rank.max()) < self.most
        if exact:
            width = max(1, int(self.fill.max()))
            rank = rank.clamp(max=width - 1)
            deepest = int(rank.max())
            one = bool((rank == deepest).all())
            largest = self.table[:, :width].topk(deepest + 1, 1, sorted=not one).values
            value = largest.amin(1) if one else largest.gather(1, rank.unsqueeze(1)).squeeze(1)
            error = 0.0
        else:
            value, inside = self._read(rank)
            error = 2.0 ** -(self.bits + 1) + 2.0**-24 if inside else math.inf
        value = torch.where(self.count > 0, value, float("nan"))
        return Quantile(value, exact, error, self.count.clone(), self.peak.clone(), self.nonfinite)

    def _start(self, values: Tensor) -> None:
        units, size = values.shape[1], values.element_size()
        most = self.budget // (2 * units * size)
        self.bits = -1
        while self.bits < _MOST_BITS and units * 2 ** (self.bits + 1) * 2 * _EXPONENTS * 8 <= self.budget:
            self.bits += 1
        if most < 1:
            raise ValueError(
                f"a budget of {self.budget} bytes is too small for {units} units: give at least {2 * units * size}."
            )
        if self.expected is not None:
            needed = int(self.p * self.expected) + 1
            most = needed if needed <= most else 0
        self.most = most
        self._clear(values)
        self.count = torch.zeros(units, dtype=torch.long, device=values.device)
        self.peak = values.new_full((units,), -torch.inf)
        self.histogram = torch.zeros(units, 0, dtype=torch.long, device=values.device)
        self.started = True

    def _clear(self, values: Tensor) -> None:
        units = values.shape[1]
        self.table = values.new_empty(units, 0)
        self.fill = torch.zeros(units, dtype=torch.long, device=values.device)
        self.least = values.new_full((units,), -torch.inf)

    def _without_nonfinite(self, values: Tensor) -> Tensor:
        finite = values.isfinite()
        self.nonfinite += int((~finite).sum())
        return torch.where(finite, values, -torch.inf)

    def _guess(self, values: Tensor) -> bool:
        """Guess what T exceeds from every few of the first values, before any is kept; whether there is a guess.

        It spares most of the values the way through the table, and is proven if ``most`` of them turn out larger.
        """
        size = values.shape[0] * values.shape[2]
        if self.expected is None or size < 2 * self.most or bool(self.fill.any()):
            return False
        step = next((step for step in _STEPS if step * _FEWEST_SAMPLED <= size), 1)
        sample = values[:, :, ::step].transpose(0, 1).flatten(1)
        rank = self.most * sample.shape[1] / size
        rank = rank if step == 1 else rank + 5 * math.sqrt(rank) + 1
        low = sample.topk(min(math.ceil(rank), sample.shape[1]), 1, sorted=False).values
        self.least = torch.nextafter(low.amin(1), torch.full_like(self.least, -torch.inf))
        return True

    def _take(self, values: Tensor) -> None:
        """Count values [n, K, P] and keep the large ones, a few samples at a time, so that each is read once."""
        for some in torch.split(values, max(1, _PART_BYTES // (values[0].numel() * values.element_size()))):
            peaks = _block_peaks(some)
            # No sum hides what is not finite, and where it overflows a second look does no harm.
            if bool(some.sum().isfinite()):
                self.count = self.count + some.shape[0] * some.shape[2]
            else:
                some = self._without_nonfinite(some)
                peaks = _block_peaks(some)
                self.count = self.count + (some > -torch.inf).sum((0, 2))
            self.peak = torch.maximum(self.peak, peaks.amax((0, 2)))
            if self.most:
                self._keep(some, peaks)
            else:
                self._bin(some)
        if self.expected is not None and int(self.count.max()) > self.expected:
            raise ValueError(f"there are more values per unit than the {self.expected} expected.")

    def _keep(self, values: Tensor, peaks: Tensor) -> None:
        """Add to the table what is larger than ``least``: values [n, K, P], the largest of equal blocks [n, K, B]."""
        found, total = self._larger(values, peaks)
        if int((self.fill + total).max()) > 2 * self.most:
            self._shrink()
            longest = 0 if len(values) > 1 else 2
            if values.shape[0] * values.shape[2] > self.most:
                for half in torch.split(values, -(-values.shape[longest] // 2), longest):
                    self._keep(half, _block_peaks(half))
                return
            found, total = self._larger(values, peaks)
        if self.expected is None and bool((self.least > -torch.inf).any()):
            self._bin(torch.where(values > self.least.view(-1, 1), -torch.inf, values))
        self._widen(int((self.fill + total).max()))
        start = int(self.fill[0])
        if len(found) == values.numel() and bool((self.fill == start).all()):
            self.table[:, start : start + int(total[0])] = found.view(len(total), -1)
        else:
            starts = torch.arange(len(total), device=total.device) * self.table.shape[1] + self.fill
            places = torch.repeat_interleave(starts - total.cumsum(0) + total, total, output_size=len(found))
            places += torch.arange(len(found), device=places.device)
            self.table.view(-1).scatter_(0, places, found)
        self.fill = self.fill + total

    def _larger(self, values: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """The values [m] that are larger than ``least``, unit after unit, and how many each unit has [K]."""
        units, blocks = peaks.shape[1:]
        if bool((self.least == -torch.inf).all()):
            return values.transpose(0, 1).flatten(), torch.full_like(self.fill, values.numel() // units)
        # Most blocks have nothing to add: only the others are looked at closely.
        unit, sample, block = (peaks > self.least.view(-1, 1)).transpose(0, 1).nonzero(as_tuple=True)
        rows = values.reshape(peaks.numel(), -1).index_select(0, (sample * units + unit) * blocks + block)
        places = (rows > self.least[unit].unsqueeze(1)).flatten().nonzero().flatten()
        ends = torch.bincount(unit, minlength=units).cumsum(0) * rows.shape[1]
        upto = torch.searchsorted(places, ends)
        return rows.flatten().index_select(0, places), upto.diff(prepend=upto.new_zeros(1))

    def _widen(self, width: int) -> None:
        if width > self.table.shape[1]:
            wider = self.table.new_full((len(self.table), min(2 * self.most, max(2 * width, 64))), -torch.inf)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider

    def _shrink(self) -> None:
        """Keep the ``most`` largest values of each unit that has more."""
        width = int(self.fill.max()) if len(self.fill) else 0
        if width <= self.most:
            return
        full = (self.fill > self.most).nonzero().flatten()
        table = self.table[:, :width].index_select(0, full)
        largest = table.topk(self.most, 1, sorted=False)
        if self.expected is None:
            rest = torch.full_like(self.table[:, :width], -torch.inf)
            rest[full] = table.scatter_(1, largest.indices, -torch.inf)
            self._bin(rest.unsqueeze(0))
        self.table[full, : self.most] = largest.values
        self.table[full, self.most :] = -torch.inf
        self.fill = self.fill.clamp(max=self.most)
        self.least[full] = torch.maximum(self.least[full], largest.values.amin(1))

    def _open(self) -> None:
        if self.bits < 0:
            least = len(self.count) * 2 * _EXPONENTS * 8
            raise ValueError(
                f"there are more values than a budget of {self.budget} bytes keeps, and it is too small for a "
                f"histogram of {len(self.count)} units: give at least {least}."
            )
        if self.histogram.shape[1] == 0:
            self.histogram = self.histogram.new_zeros(len(self.count), self.bins)

    def _bin(self, values: Tensor) -> None:
        """Count values [n, K, P] in the histogram; those of -inf are none."""
        self._open()
        there = values > -torch.inf
        unit = torch.arange(values.shape[1], device=values.device).view(-1, 1).expand(values.shape)[there]
        bins = self.histogram.shape[1]
        found = torch.bincount(unit * bins + _bins(values[there], self.bits), minlength=bins * len(self.count))
        self.histogram += found.view(-1, bins)

    def _read(self, rank: Tensor) -> tuple[Tensor, bool]:
        """The value of a rank from above off the histogram of everything, and whether its bin has two ends."""
        self._open()
        width = int(self.fill.max()) if self.most else 0
        if width:
            before = self.histogram.clone()
            self._bin(self.table[:, :width].unsqueeze(0))
            counted, self.histogram = self.histogram, before
        else:
            counted = self.histogram
        above = counted.flip(1).cumsum(1)
        place = counted.shape[1] - 1 - (above <= rank.unsqueeze(1)).sum(1).clamp(max=counted.shape[1] - 1)
        half = _EXPONENTS << self.bits
        inside = bool(((place > 0) & (place < 2 * half - 1))[self.count > 0].all())
        return _middles(self.bits, self.table.device)[place].to(self.table), inside


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
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < 1:
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
    low = torch.ldexp(1 + (size % 2**bits) / 2**bits, (size // 2**bits + _LEAST_EXPONENT).int())
    width = torch.ldexp(torch.full_like(size, 2.0**-bits), (size // 2**bits + _LEAST_EXPONENT).int())
    middle = low + width / 2
    middle[0] = 0
    return torch.cat([-middle.flip(0), middle]).to(device)
