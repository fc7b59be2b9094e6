"""`aioserving score`: jobs over files from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")
pytest.importorskip("click", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

import pyarrow as pa
import pyarrow.parquet as pq

from aioserving.testing import ServerProcess
from tests.cli.conftest import ROOT, Run
from tests.cli.terminal import lines_of, on_terminal, screen
from tests.scenarios.jobs import expected, output, rows


@pytest.fixture(scope="module")
def sums() -> Iterator[ServerProcess]:
    """A server of `tests.scenarios.jobs.sums`."""
    with ServerProcess(
        callables={"m": "tests.scenarios.jobs:sums"}, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        yield process


@pytest.fixture
def scored(run: Run, sums: ServerProcess) -> Any:
    """Run `aioserving score` on that server's model."""

    def call(*arguments: str) -> Any:
        return run("score", *arguments, "-m", "m", "-t", sums.target)

    return call


def test_files_are_scored_and_the_summary_is_told(scored: Any, tmp_path: Path) -> None:
    """The output has every row once beside what was kept; the summary is on standard output, progress not."""
    pq.write_table(rows(500), tmp_path / "in.parquet")
    ran = scored(str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--keep", "id", "--batch-size", "64")
    assert ran.code == 0, ran.err
    assert output(tmp_path / "out") == expected(rows(500))
    assert ran.lines[0].startswith("500 rows in 1 part")
    assert "latency of 8 calls" in ran.out
    assert "m to " in ran.err
    again = scored(str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--keep", "id", "--batch-size", "64")
    assert again.code == 0
    assert "nothing left to do" in again.out


def test_the_summary_as_json(scored: Any, tmp_path: Path) -> None:
    """With --json standard output is one document, and --no-progress leaves standard error empty."""
    pq.write_table(rows(100), tmp_path / "in.parquet")
    ran = scored(str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--json", "--no-progress")
    assert ran.code == 0
    assert ran.json["rows"] == ran.json["written"] == 100
    assert ran.json["latency"]["count"] == 1
    assert ran.err == ""


def test_columns_formats_and_bad_rows(scored: Any, tmp_path: Path) -> None:
    """Columns by name, a new name for one that is kept, JSON lines, and bad rows set aside."""
    table = rows(40, poison=(7,))
    x = [row["x"] for row in table.to_pylist()]
    wide = pa.table({"id": table.column("id"), **{f"c{i}": [one[i] for one in x] for i in range(4)}})
    pq.write_table(wide.slice(0, 20), tmp_path / "in-1.parquet")
    pq.write_table(wide.slice(20), tmp_path / "in-2.parquet")
    ran = scored(
        str(tmp_path / "in-1.parquet"),
        str(tmp_path / "in-2.parquet"),
        str(tmp_path / "out"),
        *("--input", "x=c0,c1,c2,c3", "--keep", "number=id", "--output", "v", "--format", "jsonl"),
        *("--on-error", "aside", "--json"),
    )
    assert ran.code == 0, ran.err
    assert ran.json["refused"] == 1
    lines = (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"number": n, "v": 1} for n in range(40) if n != 7]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere.parquet", "out"], 11, "no such file"),
        (["in.parquet", "in.parquet/out"], 11, "cannot be made"),
        (["in.parquet", "taken"], 11, "has files already"),
        (["in.parquet", "out", "--input", "z=id"], 6, "'z'"),
        (["in.parquet", "out", "--input", "x"], 2, "--input is NAME=VALUE"),
        (["in.parquet", "out", "--version", "9"], 5, "9"),
        (["in.parquet", "out", "--method", "classify", "--output", "v"], 2, "output_filter"),
        (["in.parquet", "out", "--on-error", "shrug"], 2, "--on-error"),
        (["bad.parquet", "out"], 6, "row 3"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    scored: Any, arguments: list[str], code: int, told: str
) -> None:
    """Each kind of failure has its exit code, and one line that says what it is."""
    pq.write_table(rows(10), "in.parquet")
    pq.write_table(rows(10, poison=(3,)), "bad.parquet")
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("mine")
    ran = scored(*arguments, "--no-progress")
    assert ran.code == code, ran.err
    assert told in ran.err
    assert len(ran.err.splitlines()) == 1


def test_another_job_on_the_output_is_refused(scored: Any) -> None:
    """A changed setting ends with its own code and says what would help; --on-change decides."""
    pq.write_table(rows(10), "in.parquet")
    assert scored("in.parquet", "out").code == 0
    ran = scored("in.parquet", "out", "--batch-size", "5", "--no-progress")
    assert ran.code == 9
    assert "batch_size was 256 and is 5" in ran.err
    assert 'on_change="restart"' in ran.err
    assert scored("in.parquet", "out", "--batch-size", "5", "--on-change", "restart").code == 0


# -- on a terminal ------------------------------------------------------------------------------------

#: What sets the colour of text.
COLOR = r"\x1b\[([0-9]+;)*(3[0-8]|9[0-7])(;[0-9]+)*m"


@pytest.fixture(scope="module")
def slow() -> Iterator[ServerProcess]:
    """A server that takes four milliseconds a call, so that a job's progress is shown more than once."""
    with ServerProcess(
        callables={"m": "tests.scenarios.jobs:slow_sums"}, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        yield process


@pytest.fixture
def watched(environment: dict[str, str], slow: ServerProcess) -> Any:
    """What `aioserving score` of 8,000 rows, one of which is poisoned, writes to a terminal."""

    def call(more: dict[str, str] | None = None, **terminal: Any) -> str:
        pq.write_table(rows(8000, poison=(60,)), "in.parquet")
        arguments = ("score", "in.parquet", "out", "-m", "m", "-t", slow.target, "--on-error", "skip")
        limits = ("--batch-size", "50", "--in-flight", "1")
        return on_terminal({**environment, **(more or {})}, *arguments, *limits, **terminal)

    return call


def summary_lines(lines: list[str]) -> None:
    """See that these are the summary, with the histogram of latencies, and nothing else."""
    assert lines[0].startswith("7,999 rows in 1 part in out, by version 1 of 'm'")
    assert lines[1] == "1 of 8,000 rows were left out"
    assert re.fullmatch(r"[\d.]+ s, [\d,]+ rows/s, 160 calls, \d+ retries", lines[2])
    assert re.match(r"latency of 160 calls: mean .* p99 ", lines[3])
    histogram = [re.fullmatch(r" *[\d.]+ m?s to +[\d.]+ m?s #* ([\d,]+)", line) for line in lines[4:]]
    assert sum(int(line[1]) for line in histogram if line) == 160
    assert all(histogram)


def test_on_a_terminal_a_bar_moves_and_gives_way_to_the_summary(watched: Any) -> None:
    """One line with the bar, rows, rate, time left, calls in flight, retries and bad rows; then it goes."""
    written = watched(columns=130)
    shown = [line for line in lines_of(written) if "left out" in line and " of 8,000 rows, " in line]
    found = [
        re.fullmatch(
            r"m to out (.*) ([\d,]+) of 8,000 rows, ([\d,]+) rows/s, \d:\d\d left, "
            r"(\d) in flight, \d+ retries, 1 left out *",
            line,
        )
        for line in shown
    ]
    assert len(found) >= 2, written
    assert all(line is not None and set(line[1]) <= set("━╸╺ ") for line in found), shown
    counts = [int(line[2].replace(",", "")) for line in found if line]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] <= 8000
    assert re.search(COLOR, written)
    assert written.endswith("\r\n")
    assert "\x1b[?25h" in written, "the cursor is shown again"
    summary_lines([line for line in screen(written) if line])


def test_a_narrow_terminal_and_one_that_becomes_narrow(watched: Any) -> None:
    """At 40 columns the figures stand below the bar, whole, none wider than the terminal."""
    written = watched(columns=40)
    shown, _, _ = written.partition("7,999 rows")
    assert max(map(len, lines_of(shown))) <= 40
    text = " ".join(lines_of(shown))
    for figure in (r"of 8,000 rows,", r"[\d,]+ rows/s,", r"\d:\d\d left,", r"\d in\s+flight,", r"1 left out"):
        assert re.search(figure, text), text
    assert "…" not in text.replace("m to", ""), text
    summary_lines([line for line in screen(written) if line])
    Path("out").rename("before")
    written = watched(columns=130, question="0 of 8,000 rows", resized=40)
    shown, _, _ = written.partition("7,999 rows")
    assert len(lines_of(shown)[-1]) <= 40
    assert "7,999 rows in 1 part" in written


def test_terminals_without_colours_or_without_a_cursor(watched: Any) -> None:
    """NO_COLOR leaves the bar, but no colour; a dumb terminal gets plain lines."""
    written = watched({"NO_COLOR": "1"})
    assert not re.search(COLOR, written)
    assert "rows/s" in written.partition("7,999 rows")[0]
    summary_lines([line for line in screen(written) if line])
    Path("out").rename("before")
    written = watched(kind="dumb")
    assert "\x1b" not in written
    lines = written.split("\r\n")
    assert lines[0] == "m to out: begun"
    summary_lines(lines[1:-1])
