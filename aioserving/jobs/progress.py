"""How a job's progress is shown: a live bar on a terminal, a widget in a notebook, else lines in a log.

    Progress       what `Job.run` tells of its progress; write your own for other places
    LiveProgress   a bar with figures, by `rich`: on terminals, and as a widget in notebooks
    LogProgress    a line now and then

What is shown is counted by `aioserving.jobs.engine`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from aioserving.jobs.summary import JobProgress, JobSummary

__all__ = ["LiveProgress", "LogProgress", "Progress", "display_for"]

logger = logging.getLogger("aioserving")


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
    if sys.stderr is not None and sys.stderr.isatty():
        return LiveProgress()
    if "IPython" in sys.modules:
        console = _rich("console").Console(stderr=True)
        if console.is_jupyter:
            return LiveProgress(_rich("console").Console())
    return LogProgress()


def _rich(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"rich.{name}")
    except ImportError as error:
        raise ImportError("showing progress needs rich: pip install 'aioserving[batch]'") from error


class LiveProgress:
    """One live line, and a summary in its place at the end.

    Args:
        console: the `rich.console.Console` to write to; standard error if None.
        interval: seconds between updates.
        summarize: whether to print the summary at the end.
    """

    def __init__(self, console: Any = None, *, interval: float = 0.25, summarize: bool = True) -> None:
        self.interval = interval
        self._summarize = summarize
        self._console = console if console is not None else _rich("console").Console(stderr=True)
        self._bars: Any = None
        self._task: Any = None

    def __repr__(self) -> str:
        return f"<LiveProgress, {'shown' if self._bars is not None else 'not shown'}>"

    def begin(self, title: str) -> None:
        """Show an empty bar."""
        bars = _rich("progress")
        escape = _rich("markup").escape
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.fields[done]}"),
            bars.TextColumn("[dim]{task.fields[rate]}[/dim]"),
            bars.TextColumn("{task.fields[eta]}"),
            bars.TextColumn("{task.fields[flight]}"),
            bars.TextColumn("{task.fields[trouble]}"),
            console=self._console,
            auto_refresh=False,  # the job's own beat; a thread more would only contend with it
            transient=True,
            expand=True,
        )
        self._bars.start()
        self._task = self._bars.add_task(
            escape(title), total=None, done="", rate="", eta="", flight="", trouble=""
        )

    def update(self, progress: JobProgress) -> None:
        """Show how far it is."""
        if self._bars is None:
            return
        done = (
            f"{progress.rows:,}" + (f" of {progress.total:,}" if progress.total is not None else "") + " rows"
        )
        trouble = []
        if progress.refused:
            trouble.append(f"[red]{progress.refused:,} left out[/red]")
        if progress.failing_for >= 1:
            trouble.append(f"[yellow]nothing answers for {progress.failing_for:.0f} s[/yellow]")
        self._bars.update(
            self._task,
            total=progress.total,
            completed=progress.rows,
            done=done,
            rate=f"{progress.rows_per_second:,.0f}/s",
            eta=f"{_clock(progress.eta)} left" if progress.eta is not None else "",
            flight=f"{progress.in_flight} in flight, {progress.retries} retries",
            trouble=", ".join(trouble),
        )
        self._bars.refresh()

    def end(self, progress: JobProgress, summary: JobSummary | None) -> None:
        """Take the bar away, and print what was done."""
        bars, self._bars = self._bars, None
        if bars is None:
            return
        bars.stop()
        if summary is not None and not self._summarize:
            return
        text = str(summary) if summary is not None else f"stopped: {_stopped(progress)}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


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
