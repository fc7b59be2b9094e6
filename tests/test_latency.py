"""Histograms tell percentiles within their error, and forget what is too old."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.latency import Latency, LatencyHistogram, RecentLatency

durations = st.floats(1e-6, 1e3)
shares = st.floats(0, 1)


def true_percentile(values: list[float], q: float) -> float:
    """By the definition of nearest rank."""
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


def filled(values: list[float]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(durations, min_size=1, max_size=200), shares)
def test_percentiles_are_within_their_error(values: list[float], q: float) -> None:
    """Over nine orders of magnitude a percentile is within 2.2 % of the true one, and below the maximum."""
    got = filled(values).percentile(q)
    assert got == pytest.approx(true_percentile(values, q), rel=0.022)
    assert got <= max(values)


@given(durations)
def test_one_duration(seconds: float) -> None:
    """Every duration is told from itself: the error holds at both edges of every bucket."""
    assert filled([seconds, 1e3]).percentile(0) == pytest.approx(seconds, rel=0.022)


@given(st.lists(durations, min_size=1, max_size=100), st.lists(shares, min_size=2, max_size=8))
def test_percentiles_grow_with_the_share(values: list[float], many: list[float]) -> None:
    """A greater share never has a lower percentile; the whole is the maximum."""
    histogram = filled(values)
    got = [histogram.percentile(q) for q in sorted(many)]
    assert got == sorted(got)
    assert histogram.percentile(1) == max(values)


def test_nothing_recorded() -> None:
    """An empty histogram is all zeros, not NaN and not an error."""
    histogram = LatencyHistogram()
    assert (histogram.count, histogram.total, histogram.mean, histogram.maximum) == (0, 0, 0, 0)
    assert [histogram.percentile(q) for q in (0, 0.5, 1)] == [0, 0, 0]
    assert histogram.snapshot() == Latency(0, 0, 0, 0, 0, 0, 0)
    assert str(histogram.snapshot()) == "no calls"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, 0.0), (-1.0, 0.0), (1e-9, 1e-9), (5e-324, 5e-324), (1e3, 1e3), (9e9, 9e9)]
)
def test_beyond_the_range(seconds: float, told: float) -> None:
    """What is too short, too long or negative is counted, and bounded by the maximum."""
    histogram = filled([seconds])
    assert histogram.count == 1
    assert histogram.percentile(0.5) == told
    assert histogram.total == told


def test_too_long_ones_do_not_hide_the_others() -> None:
    """With some durations out of range the percentiles of the rest stay what they are."""
    histogram = filled([0.01] * 98 + [5e3, 6e3])
    assert histogram.percentile(0.5) == pytest.approx(0.01, rel=0.022)
    assert histogram.percentile(0.99) == 6e3


@pytest.mark.parametrize("seconds", [math.nan])
def test_not_a_number_is_refused(seconds: float) -> None:
    """NaN would spoil the sum for ever; it is refused and leaves no trace."""
    histogram = LatencyHistogram()
    with pytest.raises(ValueError, match="NaN"):
        histogram.record(seconds)
    assert histogram.snapshot() == Latency(0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("q", [-0.01, 1.01, 95, math.nan])
def test_a_share_is_from_0_to_1(q: float) -> None:
    """A percentile given in percent is refused, also while there is nothing to tell."""
    with pytest.raises(ValueError, match="q must be"):
        LatencyHistogram().percentile(q)
    with pytest.raises(ValueError, match="q must be"):
        RecentLatency().percentile(q, 0.0)


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_merging(first: list[float], second: list[float]) -> None:
    """Merged histograms say what one that recorded everything says; the other is left as it was."""
    merged, other = filled(first), filled(second)
    merged.merge(other)
    together = filled(first + second)
    assert merged.count == together.count
    assert merged.maximum == together.maximum
    assert merged.total == pytest.approx(together.total)
    for q in (0, 0.5, 0.9, 0.99, 0.999, 1):
        assert merged.percentile(q) == together.percentile(q)
    assert other.count == len(second)


def test_snapshot_and_its_text() -> None:
    """A snapshot is a value that does not change with the histogram, and reads well."""
    histogram = filled([0.002] * 900 + [0.0005] * 90 + [1.5] * 10)
    snapshot = histogram.snapshot()
    histogram.record(7.0)
    assert snapshot.count == 1000
    assert snapshot.mean == pytest.approx((1.8 + 0.045 + 15) / 1000)
    assert snapshot.p50 == snapshot.p90 == pytest.approx(0.002, rel=0.022)
    assert snapshot.p999 == snapshot.maximum == 1.5
    text = str(snapshot)
    assert text.startswith("1,000 calls: mean 16.8 ms, p50 2")
    assert text.endswith("maximum 1.5 s")
    assert str(filled([0.0001]).snapshot()).startswith("1 call: mean 100 µs, ")
    assert "7 s" in repr(histogram)


def test_only_the_window_counts() -> None:
    """A duration counts for at least four fifths of the window, and no longer than the window."""
    recent = RecentLatency(10.0, 5)
    recent.record(1.0, 101.9)
    for later in (0.0, 4.0, 7.99):
        assert recent.count(101.9 + later) == 1
    assert recent.percentile(0.5, 109.0) == 1.0
    assert recent.count(111.95) == 0
    assert recent.percentile(0.5, 111.95) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 5), durations), min_size=1, max_size=60),
    st.floats(0, 30),
    st.integers(2, 8),
)
def test_the_window_against_a_list(steps: list[tuple[float, float]], wait: float, slices: int) -> None:
    """Whatever the rhythm, all of the last (slices - 1) / slices are there, and nothing beyond the window."""
    window = 10.0
    recent = RecentLatency(window, slices)
    now, log = 50.0, []
    for step, seconds in steps:
        now += step
        recent.record(seconds, now)
        log.append((now, seconds))
    now += wait
    certain = sum(at > now - window * (slices - 1) / slices + 1e-3 for at, _ in log)
    possible = sum(at >= now - window - 1e-3 for at, _ in log)
    count = recent.count(now)
    assert certain <= count <= possible
    newest = [seconds for at, seconds in log][len(log) - count :]
    snapshot = recent.snapshot(now)
    assert snapshot.count == count
    assert snapshot.maximum == max(newest, default=0)
    if newest:
        assert recent.percentile(0.9, now) == pytest.approx(true_percentile(newest, 0.9), rel=0.022)


def test_a_percentile_is_remembered_for_a_moment() -> None:
    """Between two computations a tenth of a second passes; other percentiles have a memory of their own."""
    recent = RecentLatency()
    recent.record(0.25, 5.0)
    assert recent.percentile(0.5, 5.0) == pytest.approx(0.25, rel=0.022)
    for _ in range(9):
        recent.record(1.0, 5.01)
    assert recent.percentile(0.5, 5.09) == pytest.approx(0.25, rel=0.022)
    assert recent.percentile(0.9, 5.09) == 1.0
    assert recent.percentile(0.5, 5.11) == 1.0


def test_the_memory_of_percentiles_is_bounded() -> None:
    """Asking for ever new percentiles does not fill the memory."""
    recent = RecentLatency()
    recent.record(0.25, 5.0)
    for number in range(1000):
        assert recent.percentile(number / 1000, 5.0) == pytest.approx(0.25, rel=0.022)
    assert len(recent._remembered) <= 16


def test_memory_is_bounded_however_long_it_runs() -> None:
    """There are never more histograms than slices."""
    recent = RecentLatency(1.0, 4)
    for number in range(500):
        recent.record(0.001, number * 0.07)
        assert len(recent._slices) <= 4
    assert "RecentLatency over 1 s of" in repr(recent)


@pytest.mark.parametrize(
    ("window", "slices", "message"),
    [(0, 5, "window"), (math.inf, 5, "window"), (math.nan, 5, "window"), (1, 1, "slices")],
)
def test_a_window_that_makes_no_sense(window: float, slices: int, message: str) -> None:
    """Settings out of range are refused with their name."""
    with pytest.raises(ValueError, match=message):
        RecentLatency(window, slices)


@given(st.lists(st.floats(0, 2e3), max_size=100))
def test_buckets_hold_all_durations(values: list[float]) -> None:
    """The buckets follow one another, count every duration once, and each lies where it was counted."""
    buckets = filled(values).buckets()
    assert sum(count for _, _, count in buckets) == len(values)
    assert all(count > 0 for _, _, count in buckets)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(buckets))
    for low, high, count in buckets:
        near = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        assert len(near) >= count
