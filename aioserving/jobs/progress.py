"""How a job's progress is shown: a live bar on a terminal, a widget in a notebook, else lines in a log.

    Progress           what `Job.run` tells of its progress; write your own for other places
    LiveProgress       a bar with figures, by `rich`: on terminals
    NotebookProgress   the same in the output of a notebook's cell
    LogProgress        a line now and then

What is shown is counted by `aioserving.jobs.engine`.
"""

from __future__ import annotations

import html
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from aioserving.jobs.summary import JobProgress, JobSummary

__all__ = ["LiveProgress", "LogProgress", "NotebookProgress", "Progress", "display_for"]

logger = logging.getLogger("aioserving")

#: Columns of a bar that is worth its place beside text.
_LEAST_BAR: Final = 10
#: Colours on a page, light or dark, by styles of `rich`.
_COLORS: Final = {"red": "#d33", "yellow": "#b80"}


@runtime_checkable
class Progress(Protocol):
    """What is told of a job's progress, on its event loop: it must not wait for anything."""

    #: Seconds between updates.
    interval: float

    def begin(self, title: str) -> None:
        """A run begins."""

    def update(self, progress: JobProgress) -> None:
        """How far it is."""

    def end(self, progress: JobProgress, summary: JobSummary | None) -> None:
        """It has ended; `summary` is None if that was before the output was complete."""


def display_for(progress: bool | Progress) -> Progress | None:
    """What shows the progress here.

    Raises:
        ImportError: it would be a live bar, and `rich` is not installed.
        TypeError: `progress` is neither a bool nor a `Progress`.
    """
    if progress is False or progress is None:
        return None
    if progress is not True:
        if not isinstance(progress, Progress):
            raise TypeError(f"progress is True, False or has begin(), update() and end(); got {progress!r}")
        return progress
    if _in_notebook():
        return NotebookProgress()
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return LiveProgress()
    return LogProgress()


def _in_notebook() -> bool:
    """Whether this is a kernel, whose outputs somebody else shows."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


def _rich(name: str) -> Any:
    try:
        return importlib.import_module(f"rich.{name}")
    except ImportError as error:
        raise ImportError("showing progress needs rich: pip install 'aioserving[batch]'") from error


class _Shown:
    """What is shown at one moment, as texts and numbers."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.total: int | None = None
        self.rows = 0
        #: Figures, each with a style of `rich`, or none.
        self.figures: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        return f"<_Shown {self.title}: {', '.join(text for text, _ in self.figures)}>"

    def take(self, progress: JobProgress) -> None:
        self.rows, self.total = progress.rows, progress.total
        of = f" of {progress.total:,}" if progress.total is not None else ""
        figures = [(f"{progress.rows:,}{of} rows", ""), (f"{progress.rows_per_second:,.0f} rows/s", "")]
        if progress.eta is not None:
            figures.append((f"{_clock(progress.eta)} left", ""))
        figures += [(f"{progress.in_flight} in flight", ""), (f"{progress.retries:,} retries", "")]
        if progress.refused:
            figures.append((f"{progress.refused:,} left out", "red"))
        if progress.failing_for >= 1:
            figures.append((f"nothing answers for {progress.failing_for:.0f} s", "yellow"))
        self.figures = figures

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """One line where there is room for a bar, else title, bar and figures below one another."""
        text = _rich("text").Text
        told = [text(told, style=style) for told, style in self.figures]
        figures = text(", ").join(told)
        title = text(self.title, no_wrap=True, overflow="ellipsis")
        bar = _rich("progress_bar").ProgressBar(
            total=None if self.total is None else max(1, self.total),
            completed=self.rows,
            pulse=not self.figures,
        )
        if title.cell_len + figures.cell_len + 2 + _LEAST_BAR <= options.max_width:
            line = _rich("table").Table.grid("", "", "", padding=(0, 1, 0, 0), expand=True)
            line.columns[1].ratio = 1
            line.columns[2].no_wrap = True
            line.add_row(title, bar, figures)
            yield line
            return
        yield title
        yield bar
        yield _rich("segment").Segment.line()
        row: list[Any] = []
        for figure in told:
            if row and text(", ").join([*row, figure]).cell_len >= options.max_width:  # and a comma
                yield text.assemble(text(", ").join(row), ",")
                row = []
            row.append(figure)
        if row:
            yield text(", ").join(row)


class LiveProgress:
    """A bar with figures that is written over, and a summary in its place at the end.

    Args:
        console: the `rich.console.Console` to write to; standard error if None.
        interval: seconds between updates.
        summarize: whether to print the summary at the end.
    """

    def __init__(self, console: Any = None, *, interval: float = 0.25, summarize: bool = True) -> None:
        self.interval = interval
        self._summarize = summarize
        self._console = console if console is not None else _rich("console").Console(stderr=True)
        self._live: Any = None
        self._shown = _Shown("")

    def __repr__(self) -> str:
        return f"<LiveProgress, {'shown' if self._live is not None else 'not shown'}>"

    def begin(self, title: str) -> None:
        """Show an empty bar."""
        self._shown = _Shown(title)
        self._live = _rich("live").Live(
            self._shown,
            console=self._console,
            auto_refresh=False,  # the job's own beat; a thread more would only contend with it
            transient=True,
            redirect_stdout=False,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def update(self, progress: JobProgress) -> None:
        """Show how far it is."""
        if self._live is None:
            return
        self._shown.take(progress)
        self._live.refresh()

    def end(self, progress: JobProgress, summary: JobSummary | None) -> None:
        """Take the bar away, and print what was done."""
        live, self._live = self._live, None
        if live is None:
            return
        self._shown.take(progress)
        live.stop()
        if summary is not None and not self._summarize:
            return
        text = str(summary) if summary is not None else f"stopped: {_stopped(progress)}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class NotebookProgress:
    """A bar with figures in the output of a cell, changed in place, and the summary below it at the end.

    It is plain HTML by IPython's own means: no package of widgets is needed, and it is still there when the
    notebook is opened again, or made a page.

    Args:
        interval: seconds between updates.
        summarize: whether to show the summary at the end.
    """

    def __init__(self, *, interval: float = 0.5, summarize: bool = True) -> None:
        self.interval = interval
        self._summarize = summarize
        self._shown = _Shown("")
        self._handle: Any = None

    def __repr__(self) -> str:
        return f"<NotebookProgress, {'shown' if self._handle is not None else 'not shown'}>"

    def begin(self, title: str) -> None:
        """Show an empty bar."""
        self._shown = _Shown(title)
        display = importlib.import_module("IPython.display").display
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def update(self, progress: JobProgress) -> None:
        """Show how far it is."""
        if self._handle is not None:
            self._shown.take(progress)
            self._handle.update(self._bundle(), raw=True)

    def end(self, progress: JobProgress, summary: JobSummary | None) -> None:
        """Show how far it came, and what was done."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._shown.take(progress)
        text = f"stopped: {_stopped(progress)}" if summary is None else str(summary)
        handle.update(self._bundle(text if summary is None or self._summarize else ""), raw=True)

    def _bundle(self, more: str = "") -> dict[str, str]:
        """What is shown, by kinds of content; a front end takes the richest that it can show."""
        shown = self._shown
        known = "" if shown.total is None else f' value="{shown.rows}" max="{max(1, shown.total)}"'
        figures = ", ".join(
            f'<span style="color: {_COLORS.get(style, "inherit")}">{html.escape(told)}</span>'
            for told, style in shown.figures
        )
        page = (
            f"<div>{html.escape(shown.title)} "
            f'<progress{known} style="width: 16em; vertical-align: middle"></progress> {figures}</div>'
        )
        plain = f"{shown.title}: {', '.join(told for told, _ in shown.figures) or 'begun'}"
        if more:
            page += f"<pre>{html.escape(more)}</pre>"
            plain += f"\n{more}"
        return {"text/html": page, "text/plain": plain}


class LogProgress:
    """A line every `interval` seconds, more of them in the first minute.

    Args:
        write: takes a line; if None, the logger ``aioserving`` at level INFO, or standard error where that is
            not listened to.
        interval: seconds between lines.
        summarize: whether to say the summary at the end.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        *,
        interval: float = 30.0,
        summarize: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval = min(5.0, interval)
        self._between = interval
        self._summarize = summarize
        self._write = write or _say
        self._clock = clock
        self._began = self._next = 0.0
        self._title = ""

    def __repr__(self) -> str:
        return f"<LogProgress every {self._between:g} s>"

    def begin(self, title: str) -> None:
        """Say that it begins."""
        self._title = title
        self._began = self._clock()
        self._next = self._began + self.interval
        self._write(f"{title}: begun")

    def update(self, progress: JobProgress) -> None:
        """Say how far it is, if it is time."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + min(self._between, max(self.interval, (now - self._began) / 2))
        self._write(f"{self._title}: {progress}")

    def end(self, progress: JobProgress, summary: JobSummary | None) -> None:
        """Say what was done."""
        if summary is None:
            self._write(f"{self._title}: stopped: {_stopped(progress)}")
            return
        for line in str(summary).splitlines() if self._summarize else ():
            self._write(line)


def _say(line: str) -> None:
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info("%s", line)
    elif sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _stopped(progress: JobProgress) -> str:
    of = f" of {progress.total:,}" if progress.total is not None else ""
    return f"{progress.committed:,}{of} rows are safe; the same job goes on from there"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
