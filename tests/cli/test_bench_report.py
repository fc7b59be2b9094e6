"""Tables, CSV and plots say what was measured."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aioserving.cli.bench_report import COLUMNS, csv_text, plot, table_rows
from aioserving.cli.load import Load, Measurement


def made(kind: Any, value: float, *, calls: int = 100, errors: dict[str, int] | None = None) -> Measurement:
    found = Measurement(Load(kind, value), 10.0, calls=calls, rows=4 * calls, errors=Counter(errors or {}))
    for number in range(calls):
        found.latency.record(0.001 * (number + 1))
    found.cpu_seconds = 0.5
    return found


FOUND = [
    made("concurrency", 1),
    made("concurrency", 8, calls=1000, errors={"UNAVAILABLE": 3, "INTERNAL": 1}),
    made("concurrency", 64, calls=0, errors={"RESOURCE_EXHAUSTED": 7}),
]


def test_table() -> None:
    """A row for each load, a cell for each heading; without a success there are dashes, not zeros."""
    rows = table_rows(FOUND)
    assert all(len(row) == 1 + len(COLUMNS) for row in rows)
    assert rows[0] == [
        "1", "10.0", "40.0", "50.1 ms", "90.1 ms", "95.1 ms", "99.1 ms", "100 ms", "100 ms", "0", "5 ms",
    ]  # fmt: skip
    assert rows[1][-2] == "3 UNAVAILABLE, 1 INTERNAL"
    assert rows[2][3:] == ["-", "-", "-", "-", "-", "-", "7 RESOURCE_EXHAUSTED", "-"]


def test_csv() -> None:
    """Numbers are whole and in seconds; each code has a column, in every line."""
    lines = list(csv.DictReader(io.StringIO(csv_text(FOUND))))
    assert [line["load"] for line in lines] == ["1", "8", "64"]
    assert [line["UNAVAILABLE"] for line in lines] == ["0", "3", "0"]
    assert [line["errors"] for line in lines] == ["0", "4", "7"]
    assert float(lines[0]["p50"]) == pytest.approx(0.05, rel=0.002)
    assert float(lines[0]["calls_per_second"]) == 10
    assert lines[2]["cpu_seconds_per_call"] == ""


@pytest.mark.parametrize("kind", ["concurrency", "rate"])
def test_plot(tmp_path: Path, kind: str) -> None:
    """Two panels with a line for each percentile, in the format of the suffix."""
    pytest.importorskip("matplotlib", reason="needs the extra `bench`")
    found = [made(kind, value, calls=10) for value in (64, 1, 8)]
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / f"plot{suffix}"
        plot(found, path, "a title")
        assert path.read_bytes().startswith(magic)
    text = (tmp_path / "plot.svg").read_text()
    for word in ("a title", "calls per second", "latency, ms", "p50", "p99.9"):
        assert f"<!-- {word} -->" in text
    plot(FOUND[2:], tmp_path / "none.svg", "nothing succeeded")


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib the error names the extra."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"aioserving\[bench\]"):
        plot(FOUND, tmp_path / "x.png", "x")
