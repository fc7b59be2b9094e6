"""A job's figures add up, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from aioserving.jobs.summary import JobProgress, JobSummary
from aioserving.latency import LatencyHistogram


def facts(**changes: Any) -> JobProgress:
    found = JobProgress(
        rows=1_500,
        total=6_000,
        resumed=500,
        committed=1_000,
        refused=0,
        parts=1,
        in_flight=3,
        max_in_flight=8,
        retries=2,
        failing_for=0.0,
        seconds=10.0,
        rows_per_second=100.0,
        latency=LatencyHistogram().snapshot(),
    )
    return dataclasses.replace(found, **changes)


def a_summary(**changes: Any) -> JobSummary:
    latencies = LatencyHistogram()
    for milliseconds in (1.5, 3, 3, 3, 20):
        latencies.record(milliseconds / 1000)
    found = JobSummary(
        model="m",
        version=3,
        output="out",
        rows=6_000,
        written=5_990,
        refused=10,
        parts=2,
        resumed=1_000,
        scored=5_000,
        seconds=100.0,
        total_seconds=120.0,
        runs=2,
        calls=5,
        retries=1,
        latency=latencies.snapshot(),
        histogram=tuple(latencies.buckets()),
        changes=({"row": 5, "version": 2, "changes": ["x"]},),
    )
    return dataclasses.replace(found, **changes)


def test_what_is_derived_from_the_facts() -> None:
    """Share and remaining time follow from rows, total and rate, and are None where they cannot be known."""
    assert facts().fraction == 0.25
    assert facts().eta == 45.0
    assert facts(total=None).fraction is None
    assert facts(total=None).eta is None
    assert facts(rows_per_second=0.0).eta is None
    assert facts(total=0, rows=0).fraction == 1.0
    text = str(facts(refused=7, failing_for=12.3))
    for part in (
        "1,500 of 6,000 (25.0%)",
        "100 rows/s",
        "45.0 s left",
        "2 retries",
        "7 rows left out",
        "12 s",
    ):
        assert part in text
    assert "left" not in str(facts(total=None))


def test_the_summary_for_people() -> None:
    """Printed, it says what was done and ends with a bar for each octave of latencies, gaps included."""
    lines = str(a_summary()).splitlines()
    assert lines[0] == "5,990 rows in 2 parts in out, by version 3 of 'm'"
    assert "10 of 6,000 rows were left out" in lines
    assert "1,000 rows were done before, 5,000 now" in lines
    assert any("1 min 40 s, 50 rows/s, 5 calls, 1 retries" in line for line in lines)
    bars = [line for line in lines if " to " in line and "#" in line]
    assert sum(int(line.rsplit(" ", 1)[1]) for line in bars) == 5
    assert "nothing left to do" in str(a_summary(scored=0))
    assert "2 h 46 min" in str(a_summary(seconds=10_000.0))


def test_the_summary_for_programs() -> None:
    """It is strict JSON, with the buckets of the histogram, also those beyond all bounds."""
    found = a_summary(histogram=((0.0, 1e-6, 1), (1e3, math.inf, 2)))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["rows_per_second"] == 50.0
    assert told["histogram"] == [[0.0, 1e-6, 1], [1e3, None, 2]]
    assert told["latency"]["count"] == 5
    assert told["changes"] == [{"row": 5, "version": 2, "changes": ["x"]}]
    assert a_summary(seconds=0.0).rows_per_second == 0.0
