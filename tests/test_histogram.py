"""Histograms keep percentiles within their error in fixed memory, and lose nothing when merged or written."""

from __future__ import annotations

import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.histogram import Histogram, duration_text

durations = st.floats(1e-6, 3600.0)
any_durations = st.floats(0, 1e9)
shares = st.floats(0, 1)
precisions = st.sampled_from((0.25, 0.022, 0.01, 0.002, 0.0003))


def filled(values: list[float], **settings: float) -> Histogram:
    histogram = Histogram(**settings)
    for value in values:
        histogram.record(value)
    return histogram


def true_percentile(values: list[float], q: float) -> float:
    """By the definition of nearest rank."""
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


@given(st.lists(durations, min_size=1, max_size=100), shares, precisions)
def test_percentiles_are_within_their_error(values: list[float], q: float, precision: float) -> None:
    """Over the whole range and for every precision, a percentile is within the error that was asked for."""
    got = filled(values, precision=precision).percentile(q)
    assert got == pytest.approx(true_percentile(values, q), rel=precision * (1 + 1e-9))


@given(durations, precisions)
def test_one_duration_among_others(seconds: float, precision: float) -> None:
    """The error holds at both edges of every bucket, where no minimum or maximum gives the answer away."""
    histogram = filled([0, seconds, 1e6], precision=precision)
    assert histogram.percentile(0.5) == pytest.approx(seconds, rel=precision * (1 + 1e-9))


@pytest.mark.parametrize("precision", [0.25, 0.01, 0.002])
def test_edges_of_buckets(precision: float) -> None:
    """Powers of two, and the floats beside them, are the edges where an index is easily one off."""
    for exponent in range(-19, 12):
        for seconds in (math.nextafter(2.0**exponent, 0), 2.0**exponent, math.nextafter(2.0**exponent, 9e9)):
            got = filled([0, seconds, 1e6], precision=precision).percentile(0.5)
            assert got == pytest.approx(seconds, rel=precision * (1 + 1e-9))


@given(st.lists(any_durations, min_size=1, max_size=50), st.lists(shares, min_size=2, max_size=8))
def test_percentiles_grow_with_the_share(values: list[float], many: list[float]) -> None:
    """A greater share never has a lower percentile, wherever the durations are; the ends are exact."""
    histogram = filled(values)
    got = histogram.percentiles(sorted(many))
    assert got == sorted(got)
    assert histogram.percentiles((0, 1)) == [min(values), max(values)]
    assert histogram.percentiles(many) == [histogram.percentile(q) for q in many]


@given(st.lists(any_durations, max_size=50))
def test_what_is_exact(values: list[float]) -> None:
    """Count, sum, mean, shortest and longest are not rounded to buckets."""
    histogram = filled(values)
    assert (histogram.count, len(histogram), bool(histogram)) == (len(values), len(values), bool(values))
    assert histogram.total == pytest.approx(sum(values))
    assert (histogram.minimum, histogram.maximum) == (min(values, default=0), max(values, default=0))
    assert histogram.mean == pytest.approx(sum(values) / len(values) if values else 0)


@given(st.lists(any_durations, max_size=30), st.lists(any_durations, max_size=30))
def test_merging_is_recording(first: list[float], second: list[float]) -> None:
    """Two histograms merged are the one that all durations were recorded in, empty ones too."""
    merged = filled(first)
    merged.merge(filled(second))
    whole = filled(first + second)
    assert merged.percentiles((0, 0.3, 0.5, 0.99, 1)) == whole.percentiles((0, 0.3, 0.5, 0.99, 1))
    assert (merged.count, merged.minimum, merged.maximum) == (whole.count, whole.minimum, whole.maximum)
    assert merged.total == pytest.approx(whole.total)


@given(st.lists(any_durations, max_size=30), precisions)
def test_written_and_read_back(values: list[float], precision: float) -> None:
    """A histogram that went through JSON is equal to the one that was written, and goes on counting."""
    histogram = filled(values, precision=precision)
    again = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert again == histogram
    again.record(1.0)
    assert again != histogram


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [[-1, 1]]},
        {"counts": [[10**9, 1]]},
        {"counts": [[1, 2]]},
        {"counts": [[1, -1]]},
        {"counts": None},
        {"precision": 0},
        {"count": "many"},
    ],
)
def test_what_is_no_histogram_is_refused(change: dict[str, object]) -> None:
    """A file that was edited or cut is a ValueError, not a histogram with wrong numbers."""
    data = {**filled([1.0]).to_dict(), **change}
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_dict(data)
    data.pop("count")
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_dict(data)


def test_memory_does_not_grow() -> None:
    """A million durations take the memory of one."""
    histogram = Histogram()
    before = sys.getsizeof(histogram._counts)
    for number in range(10_000):
        histogram.record(number * 1e-4, 100)
    assert histogram.count == 1_000_000
    assert sys.getsizeof(histogram._counts) == before < 70_000


def test_recording_several_at_once() -> None:
    """`count` is as many calls of `record`, and none for 0."""
    once = filled([0.5, 0.5, 0.5])
    many = Histogram()
    many.record(0.5, 3)
    many.record(7.0, 0)
    assert many == once


def test_beyond_the_range() -> None:
    """What is too short or too long is counted, and known by the exact minimum and maximum."""
    histogram = filled([1e-9, 1e-8, 5e3, 7e3], lowest=1e-6, highest=1.0)
    assert histogram.percentiles((0, 0.5, 0.75, 1)) == [1e-9, pytest.approx(1e-6, rel=0.002), 7e3, 7e3]
    assert filled([-1e-9]).minimum == 0


def test_nothing_recorded() -> None:
    """An empty histogram is all zeros, not NaN and not an error."""
    histogram = Histogram()
    assert histogram.percentiles((0, 0.5, 1)) == [0, 0, 0]
    assert (histogram.mean, histogram.minimum, histogram.maximum, histogram.bars()) == (0, 0, 0, [])
    assert repr(histogram) == "<Histogram of no durations>"


def test_repr() -> None:
    """The repr tells what one looks for first."""
    text = repr(filled([0.001] * 99 + [0.5]))
    assert text == "<Histogram of 100 durations: mean 5.99 ms, p50 1 ms, p99 1 ms, maximum 500 ms>"


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_no_durations(seconds: float) -> None:
    """What is not finite is refused, and changes nothing."""
    histogram = Histogram()
    with pytest.raises(ValueError, match="finite"):
        histogram.record(seconds)
    assert histogram == Histogram()


@pytest.mark.parametrize(
    "settings",
    [{"lowest": 0.0}, {"lowest": 2.0, "highest": 1.0}, {"highest": math.inf}, {"precision": 0.5}],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    """Settings that could not keep the promised error are refused when the histogram is made."""
    with pytest.raises(ValueError, match="must be"):
        Histogram(**settings)


def test_arguments_out_of_range() -> None:
    """Negative counts, shares above one and foreign histograms are errors."""
    histogram = Histogram()
    with pytest.raises(ValueError, match="count must be"):
        histogram.record(1.0, -1)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            histogram.percentile(q)
    with pytest.raises(ValueError, match="different settings"):
        histogram.merge(Histogram(precision=0.01))


def test_bars() -> None:
    """The picture has a line per step of 1, 2, 5, gaps included, and bars in proportion."""
    lines = filled([0.0011] * 50 + [0.0013] * 50 + [0.0061] * 50).bars(width=8)
    assert [line.split() for line in lines] == [
        ["1", "ms", "-", "2", "ms", "100", "66.7%", "████████"],
        ["2", "ms", "-", "5", "ms", "0", "0.0%"],
        ["5", "ms", "-", "10", "ms", "50", "33.3%", "████"],
    ]
    assert len({line.index("%") for line in lines}) == 1


@given(st.lists(any_durations, min_size=1, max_size=50))
def test_bars_show_every_duration(values: list[float]) -> None:
    """The lines' numbers add up, and no range with a duration in it looks empty."""
    lines = filled(values).bars(10)
    numbers = [int(line.split("%")[0].split()[-2].replace(",", "")) for line in lines]
    assert sum(numbers) == len(values)
    for number, line in zip(numbers, lines, strict=True):
        assert (number > 0) == (line[-1] != "%")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-9, "2.5 ns"),
        (1e-6, "1 µs"),
        (0.00099949, "999 µs"),
        (0.0009996, "1 ms"),
        (0.01234, "12.3 ms"),
        (0.9996, "1 s"),
        (12.34, "12.3 s"),
        (4321.0, "4,321 s"),
        (math.nan, "-"),
    ],
)
def test_duration_text(seconds: float, text: str) -> None:
    """Durations are told with three digits in the unit that fits, and never as 1e+03."""
    assert duration_text(seconds) == text
