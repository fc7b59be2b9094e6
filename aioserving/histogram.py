"""Durations counted in fixed memory, from which any percentile can be read within a stated error.

A `Histogram` is what measurements are kept in: of a load test, of a job of millions of batches. Its buckets
are linear within each doubling of the duration (those of HdrHistogram), so that the error of a percentile is
relative and bounded: 0.2 % unless told otherwise. Histograms are merged, written to JSON and read back
without loss, and drawn as a few lines of text.

`aioserving.latency` keeps what steers the client while it runs: coarser (2.2 %), smaller, and forgetful.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from math import frexp
from typing import Any, Final

__all__ = ["Histogram", "duration_text"]

#: Beyond these the counters would be too many, or floating-point numbers not fine enough, to keep it.
_PRECISIONS: Final = (1e-5, 0.25)

#: The steps of a text histogram within a power of ten.
_STEPS: Final = (1.0, 2.0, 5.0)

_BARS: Final = " ▏▎▍▌▋▊▉█"


def duration_text(seconds: float) -> str:
    """A duration with three digits and the unit that suits it: ``12.3 ms``, ``850 µs``, ``2.5 s``."""
    if math.isnan(seconds):
        return "-"
    size = abs(seconds)
    if size == 0:
        return "0 s"
    if size < 0.9995e-6:
        return f"{seconds * 1e9:.3g} ns"
    if size < 0.9995e-3:
        return f"{seconds * 1e6:.3g} µs"
    if size < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if size < 999.5 else f"{seconds:,.0f} s"


class Histogram:
    """Counts of durations, in seconds; starts empty.

    Its memory is that of its counters, 64 KB by default, however many durations are recorded. `count`,
    `total`, `mean`, `minimum` and `maximum` are exact (`total` as floating-point sums are).

    Args:
        lowest: durations from here on are told apart; shorter ones count as this long.
        highest: durations up to here are told apart; of longer ones only the maximum is known.
        precision: largest relative error of a percentile between them, from 0.00001 to 0.25.

    Raises:
        ValueError: an argument is out of range.
    """

    __slots__ = (
        "_base",
        "_counts",
        "_first",
        "_per_octave",
        "count",
        "highest",
        "lowest",
        "maximum",
        "minimum",
        "precision",
        "total",
    )

    def __init__(self, lowest: float = 1e-6, highest: float = 3600.0, precision: float = 0.002) -> None:
        if not 0 < lowest < highest < math.inf:
            raise ValueError(
                f"lowest and highest must be 0 < lowest < highest, in seconds; got {lowest!r} and {highest!r}"
            )
        if not _PRECISIONS[0] <= precision <= _PRECISIONS[1]:
            raise ValueError(
                f"precision must be a number from {_PRECISIONS[0]:g} to {_PRECISIONS[1]:g}, got {precision!r}"
            )
        self.lowest = lowest
        self.highest = highest
        self.precision = precision
        #: Number of durations recorded.
        self.count = 0
        #: Their sum.
        self.total = 0.0
        #: The shortest; 0 if there is none.
        self.minimum = 0.0
        #: The longest; 0 if there is none.
        self.maximum = 0.0
        # The harmonic mean of a bucket's ends is off by (high - low) / (high + low), which is largest in the
        # first bucket of an octave, [1, 1 + 1/n): 1 / (2n + 1).
        self._per_octave = math.ceil((1 / precision - 1) / 2)
        # So that positions are never negative, where int() would round up.
        self._base = frexp(lowest)[1] + 1
        self._first = self._position(lowest)
        # The last is for what is longer than `highest`.
        self._counts = array("Q", bytes(8 * (self._position(highest) - self._first + 2)))

    def __repr__(self) -> str:
        if not self.count:
            return "<Histogram of no durations>"
        p50, p99 = self.percentiles((0.5, 0.99))
        return (
            f"<Histogram of {self.count:,} durations: mean {duration_text(self.mean)}, "
            f"p50 {duration_text(p50)}, p99 {duration_text(p99)}, maximum {duration_text(self.maximum)}>"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def mean(self) -> float:
        """The mean; 0 if there is none."""
        return self.total / self.count if self.count else 0.0

    def record(self, seconds: float, count: int = 1) -> None:
        """Count one duration, or `count` of the same.

        Differences of clocks may be negative by a little: such a duration counts as 0.

        Raises:
            ValueError: `seconds` is not a finite number, or `count` is negative.
        """
        if not -math.inf < seconds < math.inf:
            raise ValueError(f"a duration is a finite number of seconds, got {seconds!r}")
        if count < 1:
            if count < 0:
                raise ValueError(f"count must be at least 0, got {count!r}")
            return
        if seconds < self.lowest:
            seconds = max(seconds, 0.0)
            index = 0
        elif seconds > self.highest:
            index = -1
        else:
            mantissa, exponent = frexp(seconds)
            index = int((exponent - self._base + 2 * mantissa) * self._per_octave) - self._first
        self._counts[index] += count
        if seconds > self.maximum:  # noqa: PLR1730 - a call of max() costs as much as all the rest
            self.maximum = seconds
        if seconds < self.minimum or not self.count:
            self.minimum = seconds
        self.count += count
        self.total += seconds * count

    def merge(self, other: Histogram) -> None:
        """Count all that `other` has counted, too.

        Raises:
            ValueError: `other` has another range or precision.
        """
        own, others = self._settings(), other._settings()
        if own != others:
            raise ValueError(f"histograms of different settings cannot be merged: {own} and {others}")
        if not other.count:
            return
        for index, count in enumerate(other._counts):
            if count:
                self._counts[index] += count
        self.minimum = min(self.minimum, other.minimum) if self.count else other.minimum
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count
        self.total += other.total

    def percentile(self, q: float) -> float:
        """The shortest duration that is not exceeded by the share `q` of all; 0 if there is none.

        Args:
            q: from 0 to 1, such as 0.99.

        Raises:
            ValueError: `q` is out of range.
        """
        return self.percentiles((q,))[0]

    def percentiles(self, shares: Iterable[float]) -> list[float]:
        """As `percentile`, for each of `shares`, which costs little more than one."""
        wanted = list(shares)
        for q in wanted:
            if not 0 <= q <= 1:
                raise ValueError(f"q must be a number from 0 to 1, got {q!r}")
        if not self.count:
            return [0.0] * len(wanted)
        found = dict.fromkeys(wanted, self.maximum)
        ranks = sorted((max(1, math.ceil(q * self.count)), q) for q in found if 0 < q < 1)
        upto = accumulate(self._counts)
        index, reached = 0, next(upto)
        for rank, q in ranks:
            while reached < rank:
                index, reached = index + 1, next(upto)
            found[q] = self._value(index)
        if 0 in found:
            found[0] = self.minimum
        return [found[q] for q in wanted]

    def bars(self, width: int = 40) -> list[str]:
        """A picture in text: a line for each step of 1, 2, 5, 10, ... between the shortest and the longest.

        A line has the range, the number of durations, their share and a bar of at most `width` characters.
        A duration within the histogram's error of a step's edge may be counted on its other side.
        """
        steps = list(self._steps())
        most = max((count for _, _, count in steps), default=1)
        names = [f"{duration_text(low)} - {duration_text(high)}" for low, high, _ in steps]
        wide = max(map(len, names), default=0)
        counts = [f"{count:,}" for _, _, count in steps]
        digits = max(map(len, counts), default=0)
        lines = []
        for name, text, (_, _, count) in zip(names, counts, steps, strict=True):
            eighths = max(round(8 * width * count / most), 1) if count else 0
            bar = "█" * (eighths // 8) + (_BARS[eighths % 8] if eighths % 8 else "")
            share = f"{count / self.count:6.1%}"
            lines.append(f"{name.rjust(wide)}  {text.rjust(digits)}  {share}  {bar}".rstrip())
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON has; `from_dict` makes an equal histogram of it."""
        return {
            **self._settings(),
            "count": self.count,
            "total": self.total,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "counts": [[index, count] for index, count in enumerate(self._counts) if count],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        """The histogram that `to_dict` wrote.

        Raises:
            ValueError: `data` is not what `to_dict` writes.
        """
        try:
            histogram = cls(float(data["lowest"]), float(data["highest"]), float(data["precision"]))
            for index, count in data["counts"]:
                if not 0 <= index < len(histogram._counts):
                    raise ValueError(f"there is no counter {index}")
                histogram._counts[index] = count
            histogram.count = int(data["count"])
            histogram.total = float(data["total"])
            histogram.minimum = float(data["minimum"])
            histogram.maximum = float(data["maximum"])
        except (KeyError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(f"not a histogram: {type(error).__name__}: {error}") from error
        if histogram.count != sum(histogram._counts):
            raise ValueError("not a histogram: its counters do not add up to its count")
        return histogram

    def _settings(self) -> dict[str, float]:
        return {"lowest": self.lowest, "highest": self.highest, "precision": self.precision}

    def _position(self, seconds: float) -> int:
        """The bucket of a duration, counted from the octave of `lowest`; `record` has the same formula."""
        mantissa, exponent = frexp(seconds)
        return int((exponent - self._base + 2 * mantissa) * self._per_octave)

    def _edge(self, position: int) -> float:
        """The shortest duration of the bucket at `position`."""
        octave, step = divmod(position, self._per_octave)
        return math.ldexp(1 + step / self._per_octave, octave + self._base - 2)

    def _value(self, index: int) -> float:
        """The duration that is relatively closest to all of a bucket, within what was recorded."""
        if index == len(self._counts) - 1:
            return self.maximum
        low, high = self._edge(index + self._first), self._edge(index + self._first + 1)
        return min(max(2 * low * high / (low + high), self.minimum), self.maximum)

    def _steps(self) -> Iterator[tuple[float, float, int]]:
        """Ranges of 1, 2, 5, ... from the shortest to the longest duration, and how many are in each."""
        if not self.count:
            return
        edges = _edges(max(self.minimum, self.lowest), self.maximum)
        counts = [0] * (len(edges) - 1)
        at = 0
        for index, count in enumerate(self._counts):
            if not count:
                continue
            value = self._value(index)
            while at < len(counts) - 1 and value >= edges[at + 1]:
                at += 1
            counts[at] += count
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            yield low, high, count


def _edges(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... times a power of ten: from the last at or below `low` to the first above `high`."""
    exponent = math.floor(math.log10(low)) - 1  # the logarithm may have been rounded up
    edges: list[float] = []
    while True:
        for step in _STEPS:
            edge = float(f"{step}e{exponent}")
            if edge <= low:
                edges = [edge]
            else:
                edges.append(edge)
                if edge > high:
                    return edges
        exponent += 1
