"""How far a job is and what it did, as facts: for people, for programs, and for what shows progress.

    JobProgress  how far a job is, at one moment
    JobSummary   what a run did, with a histogram of its calls' latencies

Who counts is `aioserving.jobs.engine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aioserving.latency import Latency

__all__ = ["JobProgress", "JobSummary"]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is, at one moment; `print` it."""

    #: Rows of the input that are done, those of earlier runs among them.
    rows: int
    #: Rows of the input; None if that is not known before all are read.
    total: int | None
    #: Rows that earlier runs did.
    resumed: int
    #: Rows whose results are in complete parts.
    committed: int
    #: Rows left out because they could not be scored.
    refused: int
    #: Complete parts.
    parts: int
    #: Calls under way, and how many there may be.
    in_flight: int
    max_in_flight: int
    #: Attempts beyond each call's first.
    retries: int
    #: Seconds for which no call has succeeded; 0.0 if all is well.
    failing_for: float
    #: Seconds since this run began.
    seconds: float
    #: Rows per second in the last ten seconds.
    rows_per_second: float
    #: Seconds from sending a batch to its answer.
    latency: Latency

    @property
    def fraction(self) -> float | None:
        """Share of the rows that are done; None if their number is not known."""
        if self.total is None:
            return None
        return min(1.0, self.rows / self.total) if self.total else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end at the present rate; None if that cannot be known."""
        if self.total is None or not self.rows_per_second:
            return None
        return max(0, self.total - self.rows) / self.rows_per_second

    def __str__(self) -> str:
        of = f" of {self.total:,} ({self.fraction:.1%})" if self.total else ""
        eta = f", {_duration(self.eta)} left" if self.eta is not None else ""
        bad = f", {self.refused:,} rows left out" if self.refused else ""
        failing = f", nothing answers for {self.failing_for:.0f} s" if self.failing_for >= 1 else ""
        return (
            f"{self.rows:,}{of} rows, {self.rows_per_second:,.0f} rows/s{eta}, {self.in_flight} in flight, "
            f"{self.retries} retries{bad}{failing}"
        )


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What a job did; `print` it for a table with the latencies."""

    model: str
    #: The version that scored the rows of this run.
    version: int
    output: str
    #: Rows of the input, all runs together.
    rows: int
    #: Rows of the output.
    written: int
    #: Rows left out, see ``on_error``.
    refused: int
    #: Parts of the output.
    parts: int
    #: Rows that were done when this run began.
    resumed: int
    #: Rows that this run did; 0 if the job was complete already.
    scored: int
    #: Seconds that this run took, and all runs together.
    seconds: float
    total_seconds: float
    #: Runs that it took.
    runs: int
    #: Calls of this run, and attempts beyond each call's first.
    calls: int
    retries: int
    #: Seconds from sending a batch to its answer, of this run.
    latency: Latency
    #: How these are spread: from, to (seconds), number of batches.
    histogram: tuple[tuple[float, float, int], ...] = field(default=(), repr=False)
    #: What was decided with ``on_change="continue"``, in all runs.
    changes: tuple[Mapping[str, Any], ...] = ()

    @property
    def rows_per_second(self) -> float:
        """Rows per second of this run; 0.0 if it had nothing to do."""
        return self.scored / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: the fields, and ``rows_per_second``; times in seconds."""
        found = asdict(self)
        found["rows_per_second"] = self.rows_per_second
        found["histogram"] = [
            [low, high if math.isfinite(high) else None, n] for low, high, n in self.histogram
        ]
        found["changes"] = [dict(change) for change in self.changes]
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.written:,} rows in {self.parts:,} part{'s' * (self.parts != 1)} in {self.output}, "
            f"by version {self.version} of {self.model!r}"
        ]
        if self.refused:
            lines.append(f"{self.refused:,} of {self.rows:,} rows were left out")
        if not self.scored:
            lines.append("there was nothing left to do")
            return "\n".join(lines)
        if self.resumed:
            lines.append(f"{self.resumed:,} rows were done before, {self.scored:,} now")
        lines.append(
            f"{_duration(self.seconds)}, {self.rows_per_second:,.0f} rows/s, {self.calls:,} calls, "
            f"{self.retries:,} retries"
        )
        lines.append(f"latency of {self.latency}")
        lines += _bars(self.histogram)
        return "\n".join(lines)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, as few as will do."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _bars(histogram: Sequence[tuple[float, float, int]], width: int = 40) -> list[str]:
    """Lines of a histogram, one to an octave."""
    octaves: dict[int, int] = {}
    for low, _, count in histogram:
        octave = math.floor(math.log2(max(low, 1e-6)) + 1e-6)
        octaves[octave] = octaves.get(octave, 0) + count
    most = max(octaves.values(), default=0)
    lines = []
    for octave in range(min(octaves, default=0), max(octaves, default=-1) + 1):
        count = octaves.get(octave, 0)
        bar = "#" * math.ceil(width * count / most)
        lines.append(f"{_seconds(2.0**octave):>8} to {_seconds(2.0 ** (octave + 1)):>7} {bar} {count:,}")
    return lines


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
