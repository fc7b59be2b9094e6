"""How long calls take: histograms that cost a tenth of a microsecond per call.

A `LatencyHistogram` counts durations in buckets of equal ratio, 16 to the octave, from a microsecond to a
thousand seconds: whatever the load, it is 481 counters, and a percentile read from it is within 2.2 % of the
true one (the DDSketch of Masson, Rim and Lee, VLDB 2019, with a fixed range). A `RecentLatency` keeps some
of them in turn, so that only the last seconds count. A `Latency` is what either says at one moment.

Durations are only put down when they are recorded; they are counted some hundreds at a time, or when somebody
asks.

Which calls are recorded, and under what name, is the business of those who make them. The clock is an
argument: seconds on any clock that does not run backwards.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from math import log2
from typing import Final

import numpy as np

__all__ = ["Latency", "LatencyHistogram", "RecentLatency"]

#: Durations from here on are told apart; shorter ones count as this one.
_SHORTEST: Final = 1e-6
#: Durations up to here are told apart; longer ones are known by their maximum.
_LONGEST: Final = 1e3
#: Buckets in which durations double. The worst relative error is (r - 1) / (r + 1) with r = 2 ** (1 / 16).
_PER_OCTAVE: Final = 16
#: Makes the bucket of `_SHORTEST` number 1; number 0 is for what is shorter.
_OFFSET: Final = 1 - math.floor(log2(_SHORTEST) * _PER_OCTAVE)
#: The bucket of what is longer than `_LONGEST`.
_LAST: Final = int(log2(_LONGEST) * _PER_OCTAVE + _OFFSET) + 1
#: Durations that are counted together; beyond some hundreds they cost no less each.
_TOGETHER: Final = 512


def _representative(index: int) -> float:
    """The duration that is relatively closest to all of a bucket."""
    if index == 0:
        return _SHORTEST
    if index == _LAST:
        return math.inf
    low, high = (2 ** ((index + end - _OFFSET) / _PER_OCTAVE) for end in (0, 1))
    return 2 * low * high / (low + high)


_REPRESENTATIVES: Final = tuple(_representative(index) for index in range(_LAST + 1))


def _text(seconds: float) -> str:
    """A duration with three digits and a unit that suits it."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.4g} s"


@dataclass(frozen=True, slots=True)
class Latency:
    """The durations of some calls, in seconds; all 0 if there were none.

    Percentiles are within 2.2 % of the true ones; `count`, `mean` and `maximum` are exact.
    """

    #: Number of calls.
    count: int
    mean: float
    #: The median.
    p50: float
    p90: float
    p99: float
    #: Of a thousand calls one takes longer.
    p999: float
    maximum: float

    def __str__(self) -> str:
        if not self.count:
            return "no calls"
        return (
            f"{self.count:,} {'call' if self.count == 1 else 'calls'}: mean {_text(self.mean)}, "
            f"p50 {_text(self.p50)}, p90 {_text(self.p90)}, p99 {_text(self.p99)}, "
            f"p99.9 {_text(self.p999)}, maximum {_text(self.maximum)}"
        )


class LatencyHistogram:
    """Counts of durations, from which percentiles can be read; starts empty."""

    __slots__ = ("_counts", "_maximum", "_pending", "_total")

    def __init__(self) -> None:
        self._total = 0.0
        self._maximum = 0.0
        self._counts = np.zeros(_LAST + 1, np.int64)
        #: What was recorded and not counted yet.
        self._pending: list[float] = []

    def __repr__(self) -> str:
        return f"<LatencyHistogram of {self.snapshot()}>"

    @property
    def count(self) -> int:
        """Number of durations recorded."""
        return int(self._counts.sum()) + len(self._pending)

    @property
    def total(self) -> float:
        """Their sum, in seconds."""
        self._settle()
        return self._total

    @property
    def maximum(self) -> float:
        """The longest, in seconds; 0 if there is none."""
        self._settle()
        return self._maximum

    @property
    def mean(self) -> float:
        """The mean duration in seconds; 0 if there is none."""
        count = self.count
        return self.total / count if count else 0.0

    def record(self, seconds: float) -> None:
        """Count one duration, in seconds.

        Raises:
            ValueError: it is not a number.
        """
        if seconds != seconds:  # noqa: PLR0124 - quicker than math.isnan
            raise ValueError("a duration must be a number of seconds, got NaN")
        pending = self._pending
        pending.append(seconds)
        if len(pending) >= _TOGETHER:
            self._settle()

    def _settle(self) -> None:
        """Count what is pending."""
        pending = self._pending
        if not pending:
            return
        values = np.array(pending, np.float64)
        del pending[: len(values)]
        np.maximum(values, 0.0, out=values)  # they may be differences of two clocks
        self._total += float(values.sum())
        self._maximum = max(self._maximum, float(values.max()))
        np.clip(values, _SHORTEST / 2, _LONGEST * 2, out=values)
        buckets = (np.log2(values) * _PER_OCTAVE + _OFFSET).astype(np.int64)
        self._counts += np.bincount(np.clip(buckets, 0, _LAST), minlength=_LAST + 1)

    def percentile(self, q: float) -> float:
        """The shortest duration that is not exceeded by the share `q` of all, in seconds; 0 if there is none.

        Args:
            q: from 0 to 1, such as 0.99.

        Raises:
            ValueError: `q` is out of range.
        """
        return self._percentiles(q)[0]

    def _percentiles(self, *shares: float) -> list[float]:
        for q in shares:
            if not 0 <= q <= 1:
                raise ValueError(f"q must be a number from 0 to 1, got {q!r}")
        self._settle()
        upto = np.cumsum(self._counts)
        count, maximum = int(upto[-1]), self._maximum
        if not count:
            return [0.0] * len(shares)
        return [
            min(_REPRESENTATIVES[int(np.searchsorted(upto, max(1, math.ceil(q * count))))], maximum)
            if q < 1
            else maximum
            for q in shares
        ]

    def buckets(self) -> list[tuple[float, float, int]]:
        """The buckets that are not empty, the shortest durations first.

        Returns:
            For each: the duration it begins at, the one it ends before, both in seconds, and how many were
            counted in it.
        """
        inner = (2 ** ((index - _OFFSET) / _PER_OCTAVE) for index in range(1, _LAST + 1))
        edges = [0.0, *inner, math.inf]
        self._settle()
        counts = self._counts.tolist()
        return [(edges[index], edges[index + 1], count) for index, count in enumerate(counts) if count]

    def merge(self, other: LatencyHistogram) -> None:
        """Count all that `other` has counted, too."""
        # `other` may be in use on another thread, and is not touched.
        pending = other._pending.copy()
        self._counts += other._counts
        self._total += other._total
        self._maximum = max(self._maximum, other._maximum)
        self._pending += pending

    def snapshot(self) -> Latency:
        """What is known now."""
        p50, p90, p99, p999 = self._percentiles(0.5, 0.9, 0.99, 0.999)
        return Latency(self.count, self.mean, p50, p90, p99, p999, self.maximum)


class RecentLatency:
    """The durations of the last seconds: histograms of a slice of time each, the oldest dropped in turn.

    What is recorded counts for at least ``window * (slices - 1) / slices`` seconds and at most `window`.

    Args:
        window: seconds that count, above 0.
        slices: histograms in which they are kept, at least 2.

    Raises:
        ValueError: an argument is out of range.
    """

    #: Seconds for which a percentile is remembered before it is computed again.
    RENEWAL: Final = 0.1

    __slots__ = ("_edge", "_record", "_remembered", "_slices", "_width", "slices", "window")

    def __init__(self, window: float = 10.0, slices: int = 5) -> None:
        if not 0 < window < math.inf:
            raise ValueError(f"window must be a number of seconds above 0, got {window!r}")
        if slices < 2:
            raise ValueError(f"slices must be at least 2, got {slices!r}")
        self.window = window
        self.slices = slices
        self._width = window / slices
        #: When each began, and what it counted; the last is the current one.
        self._slices: deque[tuple[float, LatencyHistogram]] = deque()
        #: When the current one ends.
        self._edge = -math.inf
        self._record = LatencyHistogram().record
        #: Until when a percentile is good, and its value.
        self._remembered: dict[float, tuple[float, float]] = {}

    def __repr__(self) -> str:
        merged = self._merged()
        return f"<RecentLatency over {self.window:g} s of {merged.snapshot()}>"

    def record(self, seconds: float, now: float) -> None:
        """Count one duration, in seconds, of a call that ended `now`."""
        if now >= self._edge:
            self._turn(now)
        self._record(seconds)

    def count(self, now: float) -> int:
        """How many were recorded within the window that ends `now`."""
        if now >= self._edge:
            self._turn(now)
        return sum(histogram.count for _, histogram in self._slices)

    def percentile(self, q: float, now: float) -> float:
        """As `LatencyHistogram.percentile`, of the window that ends `now`; up to `RENEWAL` seconds old."""
        until, value = self._remembered.get(q, (-math.inf, 0.0))
        if now < until:
            return value
        if now >= self._edge:
            self._turn(now)
        value = self._merged().percentile(q)
        if len(self._remembered) >= 16:
            self._remembered.clear()
        self._remembered[q] = (now + self.RENEWAL, value)
        return value

    def snapshot(self, now: float) -> Latency:
        """What is known of the window that ends `now`."""
        if now >= self._edge:
            self._turn(now)
        return self._merged().snapshot()

    def _merged(self) -> LatencyHistogram:
        merged = LatencyHistogram()
        for _, histogram in self._slices:
            if histogram.count:
                merged.merge(histogram)
        return merged

    def _turn(self, now: float) -> None:
        """Begin the slice that `now` falls into, and drop those that are too old."""
        late = now - self._edge
        began = now if late == math.inf else self._edge + late // self._width * self._width
        self._edge = began + self._width
        oldest = self._edge - self.window - self._width * 1e-6
        while self._slices and self._slices[0][0] < oldest:
            self._slices.popleft()
        histogram = LatencyHistogram()
        self._slices.append((began, histogram))
        self._record = histogram.record
