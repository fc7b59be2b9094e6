"""Progress is shown where one looks: on terminals, in notebooks, in logs; with figures that are right."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

pytest.importorskip("rich", reason="needs the extra `batch`")

from rich.console import Console

from aioserving.jobs import progress as module
from aioserving.jobs.progress import LiveProgress, LogProgress, NotebookProgress, Progress, display_for
from aioserving.jobs.summary import JobProgress, JobSummary
from tests.jobs.test_summary import a_summary, facts


def test_a_terminal_gets_a_live_line() -> None:
    """The bar shows all figures, says what is wrong, and gives way to the summary."""
    file = io.StringIO()
    display = LiveProgress(Console(file=file, force_terminal=True, width=200))
    display.begin("m to [out]")
    display.update(facts())
    display.update(facts(rows=3_000, refused=3, failing_for=4.0))
    shown = file.getvalue()
    for part in ("m to [out]", "1,500 of 6,000 rows", "3 in flight, 2 retries", "0:45 left"):
        assert part in shown
    for part in ("3,000 of 6,000", "3 left out", "nothing answers for 4 s"):
        assert part in shown
    assert "shown" in repr(display)
    display.end(facts(), a_summary())
    assert "5,990 rows in 2 parts" in file.getvalue()
    display.update(facts())
    display.end(facts(), None)


def test_a_live_line_that_is_stopped_says_what_is_safe() -> None:
    """Without a summary it tells how many rows need not be done again; without one wanted, nothing."""
    for summary, summarize, told in ((None, True, True), (None, False, True), (a_summary(), False, False)):
        file = io.StringIO()
        display = LiveProgress(Console(file=file, force_terminal=True, width=200), summarize=summarize)
        display.begin("m")
        display.update(facts(total=None))
        display.end(facts(total=None), summary)
        assert ("1,000 rows are safe" in file.getvalue()) == told
        assert "5,990" not in file.getvalue()


def test_a_bar_takes_the_room_there_is() -> None:
    """One line where everything fits, else whole figures below the bar, never wider than the console."""
    figures = "1,500 of 6,000 rows, 100 rows/s, 0:45 left, 3 in flight, 2 retries, 3 left out"
    enough = len(f"digits to out ---bar---- {figures}")
    for width, lines in ((enough, 1), (enough - 1, 3), (50, 4), (25, 6)):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=width, color_system=None)
        display = LiveProgress(console, summarize=False)
        display.begin("digits to out")
        file.truncate(file.seek(0))
        display.update(facts(refused=3))
        told = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", file.getvalue()).split("\n")
        display.end(facts(refused=3), a_summary())
        assert len(told) == lines, told
        assert max(map(len, told)) <= width
        assert "1,500 of 6,000 rows, 100 rows/s, 0:45 left, 3 in flight, 2 retries, 3 left out" in " ".join(
            told
        )


class Shell:
    """What IPython calls the shell of a notebook's kernel."""

    kernel = object()


class Handle:
    """What IPython gives for something that is displayed."""

    def __init__(self, shown: list[dict[str, str]]) -> None:
        self._shown = shown

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self._shown.append(bundle)


def in_notebook(monkeypatch: pytest.MonkeyPatch, shell: object) -> list[dict[str, str]]:
    """Let this look like a process of IPython; gives what is displayed."""
    shown: list[dict[str, str]] = []
    package, part = type(sys)("IPython"), type(sys)("IPython.display")
    package.get_ipython = lambda: shell  # type: ignore[attr-defined]

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        shown.append(bundle)
        return Handle(shown)

    part.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    return shown


def test_a_notebook_gets_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's output has the bar and the figures, as a page and as text, and the summary at the end."""
    shown = in_notebook(monkeypatch, Shell())
    display = display_for(True)
    assert isinstance(display, NotebookProgress)
    display.update(facts())
    assert not shown, "nothing before it has begun"
    display.begin("m to <out>")
    assert "<progress style" in shown[-1]["text/html"]
    display.update(facts(refused=3, failing_for=4.0))
    page, plain = shown[-1]["text/html"], shown[-1]["text/plain"]
    assert 'm to &lt;out&gt; <progress value="1500" max="6000"' in page
    assert "1,500 of 6,000 rows" in page
    assert '">3 left out</span>' in page
    assert plain == (
        "m to <out>: 1,500 of 6,000 rows, 100 rows/s, 0:45 left, 3 in flight, 2 retries, 3 left out, "
        "nothing answers for 4 s"
    )
    assert "shown" in repr(display)
    display.end(facts(rows=6_000), a_summary())
    assert "5,990 rows in 2 parts" in shown[-1]["text/html"]
    assert "6,000 of 6,000 rows" in shown[-1]["text/plain"]
    count = len(shown)
    display.update(facts())
    display.end(facts(), None)
    assert len(shown) == count, "it has ended"
    display.begin("m")
    display.end(facts(), None)
    assert "1,000 of 6,000 rows are safe" in shown[-1]["text/plain"]


def test_ipython_on_a_terminal_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell without a kernel has no cells to show anything in."""
    in_notebook(monkeypatch, object())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(display_for(True), LiveProgress)
    in_notebook(monkeypatch, None)
    assert isinstance(display_for(True), LiveProgress)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written over there is no bar."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display_for(True), LogProgress)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(display_for(True), LiveProgress)


def test_a_log_gets_lines() -> None:
    """Some soon, then one each interval, whatever the number of updates; and the summary at the end."""
    lines: list[str] = []
    now = 0.0
    display = LogProgress(lines.append, interval=30.0, clock=lambda: now)
    display.begin("m to out")
    for second in range(1, 301):
        now = float(second)
        display.update(facts(seconds=now))
    assert 8 <= len(lines) <= 16
    assert lines[0] == "m to out: begun"
    assert lines[1].startswith("m to out: 1,500 of 6,000 (25.0%) rows, 100 rows/s")
    display.end(facts(), a_summary())
    assert "5,990 rows in 2 parts in out, by version 3 of 'm'" in lines
    display.end(facts(), None)
    assert lines[-1] == "m to out: stopped: 1,000 of 6,000 rows are safe; the same job goes on from there"
    assert "every 30 s" in repr(display)


def test_lines_go_to_the_logger_that_listens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the logger tells INFO, lines are its; where not, they are on standard error, so never lost."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with caplog.at_level(logging.INFO, logger="aioserving"):
        LogProgress().begin("logged")
    assert "logged: begun" in caplog.text
    assert stream.getvalue() == ""
    with caplog.at_level(logging.WARNING, logger="aioserving"):
        LogProgress().begin("written")
    assert stream.getvalue() == "written: begun\n"


def test_what_shows_it_is_chosen_by_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing if it is not wanted, lines where there is no terminal, one's own object if given."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert display_for(False) is None
    assert isinstance(display_for(True), LogProgress)

    class Mine:
        interval = 1.0

        def begin(self, title: str) -> None: ...

        def update(self, progress: JobProgress) -> None: ...

        def end(self, progress: JobProgress, summary: JobSummary | None) -> None: ...

    mine: Progress = Mine()
    assert display_for(mine) is mine
    with pytest.raises(TypeError, match="begin"):
        display_for("yes")  # type: ignore[arg-type]


def test_without_rich_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live bar needs rich, and the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'aioserving\[batch\]'"):
        module._rich("console")
