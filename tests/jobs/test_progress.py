"""Progress is shown where one looks: on terminals, in notebooks, in logs; with figures that are right."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs the extra `batch`")

from rich.console import Console

from aioserving.jobs import progress as module
from aioserving.jobs.progress import LiveProgress, LogProgress, Progress, display_for
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


def test_a_notebook_gets_a_widget(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Jupyter the bar is shown through rich's own widget support, chosen by itself."""
    shown: list[Any] = []

    class InNotebook(Console):
        def __init__(self, **options: Any) -> None:
            super().__init__(force_jupyter=True, file=io.StringIO())
            shown.append(self)

    monkeypatch.setitem(sys.modules, "IPython", type(sys)("IPython"))
    monkeypatch.setattr("rich.console.Console", InNotebook)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(display_for(True), LiveProgress)
    assert len(shown) == 2


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
