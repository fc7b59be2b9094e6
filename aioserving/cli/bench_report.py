"""What `bench` has measured, for people, spreadsheets and eyes: rows of a table, CSV, and a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aioserving.cli.load import PERCENTILES, Measurement
from aioserving.histogram import duration_text

__all__ = ["COLUMNS", "csv_text", "plot", "table_rows"]

#: Headings of the table; the first is that of the load.
COLUMNS: Final = ("calls/s", "rows/s", *PERCENTILES, "errors", "CPU/call")

#: Kinds of files that a plot is written as.
FORMATS: Final = (".png", ".svg", ".pdf")

#: The percentiles that the plot shows, and how.
_LINES: Final = {"p50": "#4878a8", "p90": "#6aa56a", "p99": "#d9822b", "p99.9": "#b5413c"}


def table_rows(found: Sequence[Measurement]) -> list[list[str]]:
    """A row of text for each measurement: the load, and a cell for each of `COLUMNS`."""
    return [
        [
            f"{item.load.value:g}",
            f"{item.calls_per_second:,.1f}",
            f"{item.rows_per_second:,.1f}",
            *(duration_text(value) if item.latency else "-" for value in item.percentiles().values()),
            _errors(item),
            duration_text(item.cpu_per_call),
        ]
        for item in found
    ]


def _errors(item: Measurement) -> str:
    if not item.errors:
        return "0"
    return ", ".join(f"{count:,} {code}" for code, count in item.errors.most_common())


def csv_text(found: Sequence[Measurement]) -> str:
    """A line for each measurement, under a line of headings; times are in seconds."""
    codes = sorted({code for item in found for code in item.errors})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "kind", "load", "seconds", "calls", "calls_per_second", "rows_per_second", "mean",
            *PERCENTILES, "errors", *codes, "cpu_seconds_per_call",
        ]
    )  # fmt: skip
    for item in found:
        cpu = item.cpu_per_call
        writer.writerow(
            [
                item.load.kind,
                f"{item.load.value:g}",
                item.seconds,
                item.calls,
                item.calls_per_second,
                item.rows_per_second,
                item.latency.mean,
                *item.percentiles().values(),
                sum(item.errors.values()),
                *(item.errors[code] for code in codes),
                "" if math.isnan(cpu) else cpu,
            ]
        )
    return stream.getvalue()


def plot(found: Sequence[Measurement], path: Path, title: str) -> None:
    """Draw throughput, and percentiles of the latency, over the load.

    Args:
        found: what was measured, of one kind of load.
        path: file to write; its suffix says in what format.
        title: a line above.

    Raises:
        ImportError: matplotlib is not installed (the extra ``bench``).
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'aioserving[bench]'") from error
    items = sorted(found, key=lambda item: item.load.value)
    loads = [item.load.value for item in items]
    figure: Any = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    closed = items[0].load.kind == "concurrency"
    left.plot(loads, [item.calls_per_second for item in items], marker="o", color="#4878a8", label="calls/s")
    if not closed:
        left.plot(loads, loads, linestyle=":", color="grey", label="asked for")
        left.legend()
    left.set_ylabel("calls per second")
    left.set_ylim(bottom=0)
    for name, color in _LINES.items():
        values = [
            item.latency.percentile(PERCENTILES[name]) * 1e3 if item.latency else math.nan for item in items
        ]
        right.plot(loads, values, marker="o", color=color, label=name)
    right.set_ylabel("latency, ms")
    if any(item.latency for item in items):
        right.set_yscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        right.yaxis.set_major_formatter(plain)
        right.yaxis.set_minor_formatter(plain)
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("calls at a time" if closed else "calls due per second")
        axes.grid(visible=True, alpha=0.3)
        if len(loads) > 2 and loads[-1] / loads[0] > 8:
            axes.set_xscale("log", base=2)
            axes.set_xticks(loads, [f"{load:g}" for load in loads])
    # No date in it: the same numbers make the same file.
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
