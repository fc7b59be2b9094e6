"""Callers that wait for room: who is next, who need not wait at all, and how long it takes.

The queue is bounded and fair between models: models take turns (in proportion to their weights), each
serves its callers in order, so a model that is called too much makes nobody wait but its own callers. It
knows deadlines: a caller that would not get its turn in time is told so at once, by `WaitingQueue.refuse`,
and one whose time has run out while waiting is passed over.

In order, or newest first
    In an overload, callers served in order have all waited almost as long as they can. Where the queue knows
    their deadlines and what a call needs (`CallTime`), that costs little: at 3 times the capacity
    `bench/overload.py` finds 0.92 to 0.98 of the capacity answered in time, and 0.99 to 1.01 newest first.
    Where it does not, as with `asyncio.timeout`, which nobody can see from inside, everyone is served
    just before giving up: 0.00 in order, 0.99 to 1.01 newest first. The median answer comes after 39 ms
    instead of 450 of the 500 allowed. The price: callers without a deadline may wait as long as the overload
    lasts, and those who are not served learn it at their deadline, not at once. So ``order="fifo"`` is
    the default, and ``order="adaptive"`` serves a model newest first while its callers have been
    waiting for more than a moment without a break.

It does no waiting itself and sets no timers. The contract with the pool, which does:

1. A caller makes a future and calls `WaitingQueue.push`; it waits for the future, with its own timeout.
2. Whoever has room calls `WaitingQueue.pop`. The waiter it gets has left the queue and its future is not
   done; the room must be put into it with ``set_result`` before anything else runs.
3. A caller that stops waiting for whatever reason other than the future's being done (a timeout, its own
   cancellation) calls `WaitingQueue.withdraw`. If that returns something, room was given in
   the same moment, and the caller has to give it back, or the turn is lost.

Every waiter thus ends in exactly one way: it was given room, or withdrew, or its future got an
exception from the queue (it expired, was crowded out or the queue was emptied).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from aioserving import errors
from aioserving.latency import Latency, LatencyHistogram

__all__ = ["CallTime", "QueueStats", "Waiter", "WaitingQueue"]

T = TypeVar("T")

#: Departures that the rate is taken from: at most so many, ...
_DEPARTURES = 256
#: ... not older than so many seconds of waiting, ...
_RECENT = 10.0
#: ... but at least so many.
_FEW = 8


class Waiter(Generic[T]):
    """One caller that waits."""

    __slots__ = ("_lane", "_number", "deadline", "future", "latest", "model", "since", "target")

    def __init__(
        self,
        future: asyncio.Future[T],
        model: str,
        since: float,
        deadline: float,
        latest: float,
        target: Hashable | None,
        lane: _Lane[T],
        number: int,
    ) -> None:
        #: Where the caller gets its room.
        self.future = future
        self.model = model
        #: When it began to wait.
        self.since = since
        #: When its call must have ended; infinity for never.
        self.deadline = deadline
        #: The last moment at which its turn is of any use.
        self.latest = latest
        #: The only place where it wants room, or None for anywhere.
        self.target = target
        self._lane: _Lane[T] | None = lane
        self._number = number

    def __repr__(self) -> str:
        state = "done" if self.future.done() else "pending" if self._lane is None else "waiting"
        where = "" if self.target is None else f" at {self.target!r}"
        return (
            f"<Waiter for {self.model!r}{where}, {state}, "
            f"since {self.since:.3f}, at the latest {self.latest:.3f}>"
        )


class _Lane(Generic[T]):
    """Waiters of one model for one target. Those that left early stay in `waiters` until they are met."""

    __slots__ = ("line", "target", "waiters", "waiting")

    def __init__(self, line: _Line[T], target: Hashable | None) -> None:
        self.line = line
        self.target = target
        self.waiters: deque[Waiter[T]] = deque()
        self.waiting = 0


class _Line(Generic[T]):
    """Waiters of one model."""

    __slots__ = ("credit", "lanes", "model", "since", "waiting", "weight")

    def __init__(self, model: str, weight: float, since: float) -> None:
        self.model = model
        self.weight = weight
        #: Since when anybody has been waiting without a break.
        self.since = since
        #: Turns that it may take before the next model's.
        self.credit = 0.0
        self.lanes: dict[Hashable | None, _Lane[T]] = {}
        self.waiting = 0


class CallTime:
    """Seconds within which 19 of 20 calls are answered: what a waiter must have left when its turn comes.

    With the mean, every other call let in at the last moment would miss its deadline. Percentiles of answers
    alone would not do either: of a server so slow that every call misses its deadline there are no answers
    to learn from. So this is a quantile that every call moves by itself: one that took longer raises it by a
    fifth, one that did not lowers it by a hundredth (in balance when 1 of 19 took longer), and one given up
    before its answer raises it if it was given as long, and tells nothing if it was not.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        #: The time a call needs; 0.0 while nothing is known.
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"CallTime({self.seconds:.3g} s)"

    def record(self, seconds: float, *, missed: bool = False) -> None:
        """Learn from a call.

        Args:
            seconds: from sending the call to its answer, or to giving it up.
            missed: it was given up at its deadline.
        """
        current = self.seconds
        if missed:
            if seconds >= current:
                self.seconds = (current or seconds) * 1.2
        elif seconds > current:
            self.seconds = current * 1.2 if current else seconds
        else:
            self.seconds = current * 0.99


@dataclass(frozen=True)
class QueueStats:
    """A queue at one moment."""

    #: Callers waiting.
    waiting: int
    #: Callers waiting, by model; models without any are left out.
    waiting_by_model: Mapping[str, int]
    #: Callers that got their turn, ever.
    served: int
    #: Callers refused at once because the queue was full, or that had to make way.
    refused_full: int
    #: Callers refused at once because their turn would have come too late.
    refused_late: int
    #: Callers whose time ran out while they waited.
    expired: int
    #: Callers that gave up, or were cancelled, while they waited.
    withdrawn: int
    #: Turns given per second of late, while anybody waited; None when too few are known.
    rate: float | None
    #: How long those waited who got their turn, ever.
    wait: Latency


class WaitingQueue(Generic[T]):
    """Callers that wait for room, bounded, fair between models and aware of deadlines.

    Args:
        max_waiting: callers that may wait at the same time. In an overload it is deadlines that keep the
            queue short; the bound is for callers without any, and for memory (each holds its request). The
            default lets a program start some thousand calls at once and have them done in order.
        weights: turns that a model gets for each turn of the others, 0.01 to 100; 1.0 where not given.
        order: ``"fifo"`` serves a model's callers in order; ``"adaptive"`` newest first while it has had
            callers waiting for more than `patience` seconds without a break.
        patience: for the adaptive order.
    """

    def __init__(
        self,
        max_waiting: int = 10_000,
        *,
        weights: Mapping[str, float] | None = None,
        order: Literal["fifo", "adaptive"] = "fifo",
        patience: float = 0.1,
    ) -> None:
        if not isinstance(max_waiting, int) or isinstance(max_waiting, bool) or max_waiting < 0:
            raise ValueError(f"max_waiting must be a whole number of at least 0, got {max_waiting!r}")
        if order not in {"fifo", "adaptive"}:
            raise ValueError(f"order must be 'fifo' or 'adaptive', got {order!r}")
        if not 0 <= patience < math.inf:
            raise ValueError(f"patience must be a number of seconds, at least 0, got {patience!r}")
        self.max_waiting = max_waiting
        self.order = order
        #: Newest first for models that have had callers waiting for longer than this.
        self._patience = patience if order == "adaptive" else math.inf
        self._weights = dict(weights or {})
        for model, weight in self._weights.items():
            if not 0.01 <= weight <= 100:
                raise ValueError(f"the weight of model {model!r} must be 0.01 to 100, got {weight!r}")
        self._lines: dict[str, _Line[T]] = {}
        #: The lines in the order of their turns.
        self._ring: deque[_Line[T]] = deque()
        self._waiting = 0
        self._numbers = 0
        # The rate of departures is counted in time during which anybody waited: idle time says nothing.
        self._departures: deque[float] = deque(maxlen=_DEPARTURES)
        self._idle = 0.0
        self._empty_since: float | None = None
        self._waits = LatencyHistogram()
        self._refused_full = 0
        self._refused_late = 0
        self._expired = 0
        self._withdrawn = 0

    def __repr__(self) -> str:
        return (
            f"<WaitingQueue of {self._waiting} callers for {len(self._lines)} models, "
            f"at most {self.max_waiting}, {self.order}, {self._waits.count} served, "
            f"{self._refused_full + self._refused_late} refused, {self._expired} expired, "
            f"{self._withdrawn} withdrawn>"
        )

    def __len__(self) -> int:
        """Callers waiting."""
        return self._waiting

    def count(self, model: str) -> int:
        """Callers waiting for the model."""
        line = self._lines.get(model)
        return 0 if line is None else line.waiting

    def stats(self, now: float) -> QueueStats:
        """A snapshot."""
        return QueueStats(
            waiting=self._waiting,
            waiting_by_model={line.model: line.waiting for line in self._ring},
            served=self._waits.count,
            refused_full=self._refused_full,
            refused_late=self._refused_late,
            expired=self._expired,
            withdrawn=self._withdrawn,
            rate=self.rate(now),
            wait=self._waits.snapshot(),
        )

    def push(
        self,
        future: asyncio.Future[T],
        model: str,
        now: float,
        deadline: float | None = None,
        *,
        needs: float = 0.0,
        target: Hashable | None = None,
    ) -> Waiter[T]:
        """Let a caller wait.

        Where the queue is full, a caller of a model with fewer waiting than another takes the place of the
        newest one there (the oldest, where the newest is served first), whose future gets a
        ResourceExhaustedError.

        Args:
            future: gets the caller's room, or an exception.
            model: whose turns it takes.
            now: the time.
            deadline: when its call must have ended; None for never.
            needs: seconds its call will take (see `CallTime`), which must be left at its turn.
            target: the only place where it wants room; None for anywhere.

        Raises:
            ResourceExhaustedError: the queue is full.
        """
        if self._waiting >= self.max_waiting:
            longest = self._crowding(model, now)
            if longest is None:
                raise self._full(model)
            self._crowd_out(longest, now)
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = _Line(model, self._weights.get(model, 1.0), now)
            self._ring.append(line)
        lane = line.lanes.get(target)
        if lane is None:
            lane = line.lanes[target] = _Lane(line, target)
        if deadline is None:
            deadline = latest = math.inf
        else:
            latest = deadline - needs
        self._numbers += 1
        waiter = Waiter(future, model, now, deadline, latest, target, lane, self._numbers)
        lane.waiters.append(waiter)
        lane.waiting += 1
        line.waiting += 1
        if not self._waiting and self._empty_since is not None:
            self._idle += now - self._empty_since
        self._waiting += 1
        return waiter

    def pop(
        self, now: float, allowed: Callable[[str, Hashable | None], bool] | None = None
    ) -> Waiter[T] | None:
        """The waiter whose turn it is, taken off the queue; its future is not done. None if there is none.

        Those met on the way that are done are dropped; those whose time has run out get a
        DeadlineExceededError.

        Args:
            now: the time.
            allowed: tells of a model and a target (None for anywhere) whether there is room; a model whose
                waiters have none holds up nobody and keeps its place. None: there is room for anyone.
        """
        ring = self._ring
        passed = 0
        while passed < len(ring):
            line = ring[passed]
            waiter = self._first(line, now, allowed)
            if waiter is None:
                if line.waiting:
                    passed += 1  # otherwise it has left the ring, and another stands here
                continue
            alone = len(ring) == 1
            if not alone and line.credit < 1.0:
                line.credit += line.weight
                if line.credit < 1.0:
                    del ring[passed]
                    ring.append(line)
                    continue
            line.credit = 0.0 if alone else line.credit - 1.0
            lane = waiter._lane
            assert lane is not None
            if waiter is lane.waiters[0]:
                lane.waiters.popleft()
            else:
                lane.waiters.pop()
            self._leave(waiter, lane, now)
            if line.credit < 1.0 and line.waiting and not alone:
                del ring[passed]
                ring.append(line)
            departures = self._departures
            time = now - self._idle
            departures.append(time)
            if time - departures[0] > _RECENT and len(departures) > _FEW:
                departures.popleft()
            self._waits.record(now - waiter.since)
            return waiter
        return None

    def withdraw(self, waiter: Waiter[T], now: float) -> T | None:
        """Stop waiting, at any moment and any number of times.

        Returns:
            What the waiter had been given already, which the caller has to give back; None if nothing.
        """
        lane = waiter._lane
        if lane is not None:
            self._withdrawn += 1
            self._leave(waiter, lane, now)
            # Those that left early are cleared away before they outnumber those that wait.
            if len(lane.waiters) > 2 * lane.waiting + 32:
                lane.waiters = deque(other for other in lane.waiters if other._lane is not None)
        future = waiter.future
        if not future.done():
            future.cancel()
            return None
        # `exception` also tells the event loop that somebody has seen it.
        return None if future.cancelled() or future.exception() is not None else future.result()

    def fail_all(self, error: Callable[[], BaseException], now: float) -> int:
        """Empty the queue, each waiter with an exception of its own; returns how many there were."""
        waiters = [
            waiter
            for line in self._ring
            for lane in line.lanes.values()
            for waiter in lane.waiters
            if waiter._lane is not None
        ]
        for waiter in waiters:
            lane = waiter._lane
            assert lane is not None
            self._leave(waiter, lane, now)
            if not waiter.future.done():
                waiter.future.set_exception(error())
        return len(waiters)

    def rate(self, now: float) -> float | None:
        """Turns given per second of late, while anybody waited; None when too few are known."""
        departures = self._departures
        if len(departures) < _FEW:
            return None
        if not self._waiting and self._empty_since is not None:
            now = self._empty_since
        span = now - self._idle - departures[0]
        return (len(departures) - 1) / span if span > 0 else None

    def estimate(self, model: str, now: float, *, target: Hashable | None = None) -> float:
        """Seconds until a caller that began to wait now would get its turn; 0.0 while too little is known.

        That is its place in the order of turns by the recent rate of turns. Waiters for other targets are not
        counted: they have turns only when their own target has room.
        """
        rate = self.rate(now)
        return 0.0 if rate is None else self._place(model, now, target) / rate

    def refuse(
        self,
        model: str,
        deadline: float | None,
        now: float,
        *,
        needs: float = 0.0,
        target: Hashable | None = None,
    ) -> errors.ResourceExhaustedError | errors.DeadlineExceededError | None:
        """Why a caller should fail at once instead of waiting, as the error to raise; None if it may wait.

        A caller is never refused by estimate while nobody waits: the rate of turns is known only from those
        who wait.

        Args:
            model: whose turns it would take.
            deadline: when its call must have ended; None for never.
            now: the time.
            needs: seconds its call will take from its turn on; see `CallTime`.
            target: the only place where it wants room; None for anywhere.
        """
        waiting = self._waiting
        if waiting >= self.max_waiting and self._crowding(model, now) is None:
            return self._full(model)
        if deadline is None or not waiting:
            return None
        rate = self.rate(now)
        if rate is None or now + (waiting + 1) / rate + needs <= deadline:
            return None  # in time even if it were the last of all
        place = self._place(model, now, target)
        wait = place / rate
        if now + wait + needs <= deadline:
            return None
        self._refused_late += 1
        call = f", the call itself takes about {needs:.2g} s" if needs else ""
        return errors.DeadlineExceededError(
            f"{_callers(waiting)} for a turn, which would come in about {wait:.2g} s "
            f"(at {rate:.3g} turns per second, place {place:.0f}){call}; "
            f"the deadline is in {deadline - now:.2g} s",
            model=model,
        )

    def _place(self, model: str, now: float, target: Hashable | None) -> float:
        """Turns until that of a new caller, its own included."""
        own = self._lines.get(model)
        weight = self._weights.get(model, 1.0)
        turns = 1 if own is None or self._newest_first(own, now) else _ahead(own, target) + 1
        place = float(turns)
        for line in self._ring:
            if line is not own:
                place += min(_ahead(line, target), turns * line.weight / weight)
        return place

    def _newest_first(self, line: _Line[T], now: float) -> bool:
        return now - line.since > self._patience

    def _first(
        self, line: _Line[T], now: float, allowed: Callable[[str, Hashable | None], bool] | None
    ) -> Waiter[T] | None:
        """The model's first waiter that there is room for; drops what is done or expired before it."""
        best: Waiter[T] | None = None
        newest = self._newest_first(line, now)
        # Dropping may empty lanes, so a line with several is walked on a copy.
        lanes = line.lanes.values() if len(line.lanes) == 1 else list(line.lanes.values())
        for lane in lanes:
            if allowed is not None and not allowed(line.model, lane.target):
                continue
            first = self._head(lane, now, newest)
            if first is not None and (best is None or (first._number > best._number) is newest):
                best = first
            if not line.lanes:
                break
        return best

    def _head(self, lane: _Lane[T], now: float, newest: bool) -> Waiter[T] | None:
        waiters = lane.waiters
        end = -1 if newest else 0
        while waiters:
            waiter = waiters[end]
            if waiter._lane is not None:
                done = waiter.future.done()
                if not done and waiter.latest >= now:
                    return waiter
                self._leave(waiter, lane, now)
                if done:
                    self._withdrawn += 1
                else:
                    self._expire(waiter, now)
            del waiters[end]
        return None

    def _leave(self, waiter: Waiter[T], lane: _Lane[T], now: float) -> None:
        """Count a waiter out, and its lane and line when it was their last."""
        waiter._lane = None
        line = lane.line
        self._waiting -= 1
        if not self._waiting:
            self._empty_since = now
        line.waiting -= 1
        lane.waiting -= 1
        if not lane.waiting:
            del line.lanes[lane.target]
            if not line.waiting:
                del self._lines[line.model]
                self._ring.remove(line)

    def _expire(self, waiter: Waiter[T], now: float) -> None:
        self._expired += 1
        left = waiter.deadline - now
        rest = (
            f"with {left:.2g} s left before the deadline, too few for a call"
            if left > 0
            else "until the deadline had passed"
        )
        waiter.future.set_exception(
            errors.DeadlineExceededError(
                f"waited {now - waiter.since:.2g} s for a turn, {rest}", model=waiter.model
            )
        )

    def _crowding(self, model: str, now: float) -> _Line[T] | None:
        """The line that has to make way for a caller of the model, if another takes more than its share."""
        longest = max(self._ring, key=_share, default=None)
        if longest is None:
            return None
        if longest.model == model:
            return longest if self._newest_first(longest, now) else None
        own = (self.count(model) + 1) / self._weights.get(model, 1.0)
        return longest if _share(longest) > own else None

    def _crowd_out(self, line: _Line[T], now: float) -> None:
        """Drop the one of the line that would be served last."""
        end = 0 if self._newest_first(line, now) else -1
        last: Waiter[T] | None = None
        for lane in line.lanes.values():
            while lane.waiters[end]._lane is None:
                del lane.waiters[end]
            other = lane.waiters[end]
            if last is None or (other._number > last._number) is (end == -1):
                last = other
        assert last is not None
        lane_of = last._lane
        assert lane_of is not None
        del lane_of.waiters[end]
        self._leave(last, lane_of, now)
        if last.future.done():
            self._withdrawn += 1
        else:
            last.future.set_exception(self._full(last.model))

    def _full(self, model: str) -> errors.ResourceExhaustedError:
        self._refused_full += 1
        return errors.ResourceExhaustedError(
            f"{_callers(self._waiting)} for a turn, {self.count(model)} of them for this model, and "
            f"max_waiting={self.max_waiting} allows no more",
            model=model,
        )


def _ahead(line: _Line[T], target: Hashable | None) -> int:
    """Waiters of the line that want room where one with this target wants it."""
    if len(line.lanes) == 1:
        lane = next(iter(line.lanes.values()))
        return lane.waiting if lane.target is None or lane.target == target else 0
    anywhere = line.lanes.get(None)
    there = line.lanes.get(target) if target is not None else None
    return (anywhere.waiting if anywhere is not None else 0) + (there.waiting if there is not None else 0)


def _share(line: _Line[T]) -> float:
    return line.waiting / line.weight


def _callers(count: int) -> str:
    return "1 caller waits" if count == 1 else f"{count} callers wait"
