"""Measuring a server under load: closed and open loops, what they count, and the search for a limit.

A closed loop has so many callers, each of which waits for its answer and calls again: it finds out what a
server can do, and slows down with it. An open loop calls at a given rate whatever comes back, as users do. In
both a latency is that of one call; in the open loop it counts from when the call was due, not from when it
could be made, so that a server which stops for a second spoils the latencies of all calls due in that second
(else only one would tell: "coordinated omission").

Time is the event loop's, and the call is any coroutine function, so that all of it runs in tests on a clock
of their own, against servers that are a formula.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import selectors
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, TypeVar

from aioserving.histogram import Histogram

__all__ = [
    "PERCENTILES",
    "Bisection",
    "Call",
    "Load",
    "Measurement",
    "Plan",
    "acceptable",
    "constant_arrivals",
    "cycle",
    "measure",
    "parse_loads",
    "poisson_arrivals",
    "run_precisely",
]

_T = TypeVar("_T")

#: Makes one call; returns how many rows it had. What it raises is counted by its ``code``, or its type.
Call: TypeAlias = Callable[[], Awaitable[int]]

#: The percentiles that are reported, by name.
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}

#: What is counted for calls that did not end before their time was up.
UNFINISHED: Final = "UNFINISHED"

#: Seconds that a caller pauses after a failed call: refusals may come faster than anything else can run.
_PAUSE: Final = 0.001


@dataclass(frozen=True)
class Load:
    """How a server is loaded: by so many callers, or by so many calls a second."""

    kind: Literal["concurrency", "rate"]
    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf or (self.kind == "concurrency" and self.value != int(self.value)):
            what = "a whole number" if self.kind == "concurrency" else "a number of calls a second"
            raise ValueError(f"{self.kind} is {what} above 0, got {self.value!r}")

    def __str__(self) -> str:
        return f"{self.value:g}" + (" calls/s" if self.kind == "rate" else "")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a measurement takes, and how calls arrive in an open loop."""

    #: Seconds that are measured.
    duration: float = 10.0
    #: Seconds before them, in which all is as it is then, but does not count.
    warmup: float = 1.0
    #: Seconds that calls may take to end when the time is up.
    drain: float = 60.0
    #: Calls of an open loop that may be under way; the next ones are late, and their latencies tell.
    max_in_flight: int = 10_000
    #: Whether calls of an open loop arrive at random, as those of many users do, or evenly.
    poisson: bool = True
    #: Seed of the random arrivals.
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.duration < math.inf:
            raise ValueError(f"duration must be a number of seconds above 0, got {self.duration!r}")
        for name in ("warmup", "drain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number of seconds, at least 0; got {getattr(self, name)!r}"
                )
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, got {self.max_in_flight!r}")


@dataclass
class Measurement:
    """What was counted under one load."""

    load: Load
    #: Seconds that were measured.
    seconds: float
    #: Latencies of the calls that began (in an open loop: were due) in the measured time and succeeded; of
    #: those that never ended, how long they had taken.
    latency: Histogram = field(default_factory=Histogram)
    #: By how much calls of an open loop were made later than they were due.
    lag: Histogram = field(default_factory=Histogram)
    #: Calls that succeeded within the measured time, and their rows.
    calls: int = 0
    rows: int = 0
    #: Failed calls of those that began in the measured time, by code.
    errors: Counter[str] = field(default_factory=Counter)
    #: What one of each code said.
    examples: dict[str, str] = field(default_factory=dict)
    #: CPU time of this process in the measured time, of all its threads.
    cpu_seconds: float = 0.0

    @property
    def calls_per_second(self) -> float:
        """Successful calls a second."""
        return self.calls / self.seconds if self.seconds else 0.0

    @property
    def rows_per_second(self) -> float:
        """Their rows a second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def error_share(self) -> float:
        """Failed calls as a share of all."""
        failed = sum(self.errors.values())
        return failed / (failed + self.latency.count - self.errors[UNFINISHED]) if failed else 0.0

    @property
    def cpu_per_call(self) -> float:
        """Seconds of this process's CPU time for a successful call; NaN without one."""
        return self.cpu_seconds / self.calls if self.calls else math.nan

    def percentiles(self) -> dict[str, float]:
        """The latencies, in seconds, by the names of `PERCENTILES`."""
        return dict(zip(PERCENTILES, self.latency.percentiles(PERCENTILES.values()), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON has; times are in seconds."""
        return {
            self.load.kind: int(self.load.value) if self.load.kind == "concurrency" else self.load.value,
            "seconds": self.seconds,
            "calls": self.calls,
            "calls_per_second": self.calls_per_second,
            "rows_per_second": self.rows_per_second,
            "latency": {"mean": self.latency.mean, "min": self.latency.minimum, **self.percentiles()}
            if self.latency
            else None,
            "lag": {"p50": self.lag.percentile(0.5), "p99": self.lag.percentile(0.99)} if self.lag else None,
            "errors": dict(sorted(self.errors.items())),
            "error_examples": dict(sorted(self.examples.items())),
            "cpu_seconds_per_call": self.cpu_per_call if self.calls else None,
        }


# -- arrivals -----------------------------------------------------------------------------------------------


def constant_arrivals(rate: float) -> Iterator[float]:
    """When calls are due at a constant rate: seconds from the start, without end."""
    number = 0
    while True:
        yield number / rate  # not a sum, whose rounding would add up
        number += 1


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """When calls are due that have nothing to do with each other: seconds from the start, without end."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    due = 0.0
    while True:
        due += draw.expovariate(rate)
        yield due


# -- measuring ----------------------------------------------------------------------------------------------


class _Run:
    """One measurement while it is under way."""

    def __init__(self, call: Call, load: Load, plan: Plan, cpu: Callable[[], float]) -> None:
        self._call = call
        self._plan = plan
        self._cpu = cpu
        self._time = asyncio.get_running_loop().time
        self.found = Measurement(load, plan.duration)
        self.started = self._time()
        #: What counts lies between these.
        self.begin = self.started + plan.warmup
        self.end = self.begin + plan.duration
        #: Calls under way, and when each was due.
        self.pending: dict[asyncio.Task[Any], float] = {}
        #: When calls of an open loop are due, within its time.
        self.due = self._schedule() if load.kind == "rate" else iter(())
        #: The one that comes next and has not been made yet.
        self._next: float | None = None
        self._freed = asyncio.Event()

    def _schedule(self) -> Iterator[float]:
        plan, rate = self._plan, self.found.load.value
        arrivals = poisson_arrivals(rate, plan.seed) if plan.poisson else constant_arrivals(rate)
        return itertools.takewhile(lambda due: due < self.end, (self.started + offset for offset in arrivals))

    def counts(self, moment: float) -> bool:
        """Whether a moment is in the measured time."""
        return self.begin <= moment < self.end

    async def one(self, due: float) -> bool:
        """Make a call that was due at `due`, and count it; whether it succeeded."""
        found = self.found
        try:
            rows = await self._call()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if self.counts(due):
                code = str(getattr(error, "code", None) or type(error).__name__)
                found.errors[code] += 1
                found.examples.setdefault(code, " ".join(str(error).split()))
            return False
        now = self._time()
        if self.counts(due):
            found.latency.record(now - due)
        if self.counts(now):
            found.calls += 1
            found.rows += rows
        return True

    # -- closed loop ----------------------------------------------------------------------------------------

    async def caller(self) -> None:
        """Call again and again until the time is up."""
        task = asyncio.current_task()
        assert task is not None
        while (now := self._time()) < self.end:
            self.pending[task] = now
            if not await self.one(now):
                del self.pending[task]
                await asyncio.sleep(_PAUSE)
        self.pending.pop(task, None)

    # -- open loop ------------------------------------------------------------------------------------------

    async def arrive(self) -> None:
        """Make each call when it is due, whatever becomes of the others."""
        for made, due in enumerate(self.due):
            self._next = due
            delay = due - self._time()
            if delay > 0:
                await asyncio.sleep(delay)
            elif made % 64 == 63:
                await asyncio.sleep(0)  # behind the schedule: answers have to be read meanwhile, too
            while len(self.pending) >= self._plan.max_in_flight:
                self._freed.clear()
                await self._freed.wait()
            now = self._time()
            if self.counts(due):
                self.found.lag.record(now - due)
            self._next = None
            task = asyncio.ensure_future(self.one(due))
            self.pending[task] = due
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.pending.pop(task, None)
        self._freed.set()

    # -- the end --------------------------------------------------------------------------------------------

    def _unfinished(self, due: float, now: float) -> None:
        """Count a call that has not ended: as failed, and as having taken at least so long."""
        if self.counts(due):
            self.found.errors[UNFINISHED] += 1
            self.found.examples.setdefault(UNFINISHED, "no answer before the measurement ended")
            self.found.latency.record(now - due)

    async def watch_cpu(self) -> None:
        """Take the CPU time at both ends of what is measured."""
        await asyncio.sleep(self.begin - self._time())
        before = self._cpu()
        await asyncio.sleep(self.end - self._time())
        self.found.cpu_seconds = self._cpu() - before

    async def finish(self, work: set[asyncio.Task[None]]) -> None:
        """Wait for what is under way when the time is up, but not for ever; then end it."""
        await asyncio.wait(work, timeout=max(self.end + self._plan.drain - self._time(), 0))
        while self.pending and (left := self.end + self._plan.drain - self._time()) > 0:
            await asyncio.wait(set(self.pending), timeout=left)
        now = self._time()
        for due in list(self.pending.values()):
            self._unfinished(due, now)
        if self._next is not None:  # calls that there was no room for
            self._unfinished(self._next, now)
            for due in self.due:
                self._unfinished(due, now)

    async def cancel(self, tasks: set[asyncio.Task[None]]) -> None:
        """End everything, and wait for that."""
        every = {*tasks, *self.pending}
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)


async def measure(
    call: Call,
    load: Load,
    plan: Plan,
    *,
    tick: Callable[[Measurement, float], None] | None = None,
    interval: float = 0.25,
    cpu: Callable[[], float] = time.process_time,
) -> Measurement:
    """Load a server for a while.

    Args:
        call: makes one call.
        load: how many callers, or how many calls a second.
        plan: for how long, and how.
        tick: told every now and then what was counted so far, and the share of the time that has passed.
        interval: seconds between two ticks.
        cpu: CPU time used so far, in seconds.

    Returns:
        What was counted. Calls that did not end within `Plan.drain` seconds after the time was up are errors
        with the code ``UNFINISHED``; their latency is how long they had taken by then.
    """
    run = _Run(call, load, plan, cpu)
    if load.kind == "concurrency":
        work = {asyncio.ensure_future(run.caller()) for _ in range(int(load.value))}
    else:
        work = {asyncio.ensure_future(run.arrive())}
    watcher = asyncio.ensure_future(run.watch_cpu())
    beside = {watcher}
    if tick is not None:
        beside.add(asyncio.ensure_future(_ticking(run, tick, interval)))
    try:
        await run.finish(work)
        for task in work:
            if task.done():
                task.result()  # an error of our own
        await watcher  # the last call of an open loop may have ended before the time is up
    finally:
        await run.cancel(work | beside)
    return run.found


async def _ticking(run: _Run, tick: Callable[[Measurement, float], None], interval: float) -> None:
    time_of = asyncio.get_running_loop().time
    whole = run.end - run.started
    while True:
        await asyncio.sleep(interval)
        tick(run.found, min((time_of() - run.started) / whole, 1.0))


# -- loads and the search for one ---------------------------------------------------------------------------


def parse_loads(text: str, kind: Literal["concurrency", "rate"]) -> list[Load]:
    """The loads that ``"1,8,64"``, ``"1:64"`` (doubled each time) or ``"10:50:10"`` (by steps of 10) mean.

    Raises:
        ValueError: it is none of these.
    """
    values: list[float] = []
    try:
        for part in text.split(","):
            numbers = [float(number) for number in part.split(":")]
            if len(numbers) == 1:
                values += numbers
                continue
            first, last, *rest = numbers
            if not 0 < first <= last or len(rest) > 1 or (rest and not rest[0] > 0):
                raise ValueError(part)
            if rest:
                values += [first + step * rest[0] for step in range(int((last - first) / rest[0] + 1e-9) + 1)]
                continue
            while first < last:
                values.append(first)
                first *= 2
            values.append(last)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no {kind}: write 8, or 1,8,64, or 1:64 (doubled), or 10:50:10"
        ) from error
    return [Load(kind, value) for value in dict.fromkeys(values)]


class Bisection:
    """The search for the highest value that is good enough, between two.

        search = Bisection(1, 64, resolution=1)
        while (value := search.next()) is not None:
            search.tell(good(value))
        search.best

    It takes for granted that what is too much stays so when it grows. The ends are tried first.

    Args:
        low: the lowest value of interest.
        high: the highest.
        resolution: how close is close enough; whole numbers stay whole with 1.
    """

    def __init__(self, low: float, high: float, resolution: float = 1.0) -> None:
        if not 0 < low <= high or not resolution > 0:
            raise ValueError(
                f"a search needs 0 < low <= high and a resolution, got {low}, {high}, {resolution}"
            )
        self._whole = resolution == 1 and low == int(low) and high == int(high)
        self._high = high
        self._resolution = resolution
        #: The highest value that was good; None if none was.
        self.best: float | None = None
        #: The lowest value that was not; None if all were.
        self.worst: float | None = None
        self._next: float | None = low

    def __repr__(self) -> str:
        return f"<Bisection: {self.best} is good, {self.worst} is not>"

    def next(self) -> float | None:
        """What to try; None if the search is over."""
        return self._next

    def tell(self, good: bool) -> None:
        """Whether what `next` gave was good enough."""
        tried = self._next
        if tried is None:
            raise ValueError("the search is over")
        if good:
            self.best = tried
        else:
            self.worst = tried
        self._next = self._choose()

    def _choose(self) -> float | None:
        if self.best is None or self.best == self._high:
            return None
        if self.worst is None:
            return self._high
        if self.worst - self.best <= self._resolution:
            return None
        middle = (self.best + self.worst) / 2
        return float(int(middle)) if self._whole else middle


def acceptable(
    measurement: Measurement, *, limit: float, share: float, errors: float = 0.01, kept_up: float = 0.95
) -> bool:
    """Whether a load was well borne.

    Args:
        measurement: what was counted.
        limit: seconds that the latency may be.
        share: of the calls, from 0 to 1, for which that goes: 0.99.
        errors: failed calls that are allowed, as a share of all.
        kept_up: calls that have to be answered in time, as a share of the rate asked for.
    """
    if not measurement.latency or measurement.error_share > errors:
        return False
    if measurement.load.kind == "rate" and measurement.calls_per_second < kept_up * measurement.load.value:
        return False
    return measurement.latency.percentile(share) <= limit


def run_precisely(work: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` on a loop whose timers are good to some microseconds.

    The usual loop of Linux rounds every wait up to a millisecond, which would be counted as latency of calls
    that are due between two. (On Python 3.10, which cannot be told what loop to run, it is.)
    """
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            return runner.run(work)
    return asyncio.run(work)


def _precise_loop() -> asyncio.AbstractEventLoop:
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    # epoll and poll count in milliseconds, select in microseconds; a client has few sockets to watch.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def cycle(call: Callable[[Any], Awaitable[int]], inputs: Sequence[Any]) -> Call:
    """A call that takes the inputs in turn."""
    if not inputs:
        raise ValueError("there are no inputs to call with")
    number = 0

    async def one() -> int:
        nonlocal number
        chosen = inputs[number % len(inputs)]
        number += 1
        return await call(chosen)

    return one
