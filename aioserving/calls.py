"""One call, however many attempts it takes: retries, hedges, and going elsewhere.

A call that is idempotent, as all are but reloads, may be sent more than once. What is worth another
attempt is decided by `retry`, `hedging` and `circuit`, where it goes by the pool; here they are put
together, with one deadline for everything and the story of every attempt in the result or the error.

The way of a call that meets no fault has no task, no lock and no timer of its own. Nor has that of a call
which may be hedged: all of them share one timer (`_Line`).
"""

from __future__ import annotations

import asyncio
import functools
import math
import random as random_module
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aioserving import errors
from aioserving.attempts import Attempt
from aioserving.circuit import Circuit, CircuitOptions, State
from aioserving.hedging import Hedging, HedgingPolicy
from aioserving.latency import Latency, LatencyHistogram
from aioserving.observers import Observers
from aioserving.pool import Connection, Endpoint, Place, Pool
from aioserving.retry import Retry, RetryBudget, RetryPolicy, decide, is_connection_failure
from aioserving.security import Credentials, obtain
from aioserving.transport import Slot

if TYPE_CHECKING:
    from aioserving._types import Metadata

__all__ = ["Answer", "Calls", "ModelRecord", "ModelStats"]

#: The serialized response, and the attempts it took; the last one of them is where it came from.
Answer = tuple[bytes, tuple[Attempt, ...]]

#: Bytes from which a message keeps a connection from answering anything else, and bytes per second that it
#: takes at the least: until then silence says nothing.
_LARGE: Final = 1024 * 1024
_SLOW: Final = 4e6

#: Seconds by which a timer may ring early, as clocks are only so fine.
_PUNCTUAL: Final = 1e-4

#: Codes of calls that ended on this side, maybe, and so tell nothing of whether anybody is there.
_UNANSWERED: Final = frozenset({"DEADLINE_EXCEEDED", "CANCELLED"})

#: Codes of requests that are wrong wherever they are sent.
_WRONG: Final = frozenset({"INVALID_ARGUMENT", "OUT_OF_RANGE"})

#: Codes with which an endpoint that does not have a model says so.
_ABSENT: Final = (errors.ModelNotFoundError, errors.VersionLabelNotFoundError)


@dataclass(frozen=True, slots=True)
class ModelStats:
    """The calls of one model, at one moment."""

    model: str
    #: Calls that have ended, with an answer or an error.
    calls: int
    #: Calls that ended in an error.
    errors: int
    #: Attempts beyond the first of each call.
    retries: int
    #: Calls that were sent a second time because the answer was late.
    hedges: int
    #: Seconds that calls took from beginning to end, with waiting and all attempts.
    latency: Latency

    def __str__(self) -> str:
        counts = f"{self.errors} errors, {self.retries} retries, {self.hedges} hedges"
        return f"{self.model}: {self.latency}, {counts}"


class ModelRecord:
    """What is counted of the calls of one model."""

    __slots__ = ("answer_size", "calls", "errors", "hedging", "latencies", "model", "retries")

    def __init__(self, model: str, hedging: Hedging | None) -> None:
        self.model = model
        self.calls = 0
        self.errors = 0
        self.retries = 0
        #: Bytes of the last answer.
        self.answer_size = 0
        self.hedging = hedging
        self.latencies = LatencyHistogram()

    def __repr__(self) -> str:
        return f"<ModelRecord of {self.model}: {self.calls} calls, {self.errors} errors>"

    def snapshot(self) -> ModelStats:
        """The numbers as they are now."""
        hedges = self.hedging.hedged if self.hedging is not None else 0
        latency = self.latencies.snapshot()
        return ModelStats(self.model, self.calls, self.errors, self.retries, hedges, latency)


class Calls:
    """How the calls of one client are made.

    Args:
        pool: where they go.
        retry: what is tried again, and how often.
        hedging: when a call is sent a second time; None for never.
        circuit: when nothing is sent any more because nothing answers.
        credentials: what calls carry to say who makes them.
        metadata: what all calls carry.
        observers: who is told.
        ensure_endpoints: finds endpoints when there are none yet, until a deadline.
        explain: adds to an error of a connection what may have caused it.
        random: where chance comes from.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        retry: RetryPolicy,
        hedging: HedgingPolicy | None,
        circuit: CircuitOptions,
        credentials: Credentials | None,
        metadata: Metadata,
        observers: Observers,
        ensure_endpoints: Callable[[float | None], Awaitable[None]],
        explain: Callable[[errors.RPCError, Endpoint], None],
        random: random_module.Random | None = None,
    ) -> None:
        self._pool = pool
        self._retry = retry
        self._hedging = hedging
        self._random = random or random_module.Random()  # noqa: S311 - nothing secret
        self._circuit = Circuit(circuit, self._random)
        self._opened_at = 0.0
        self._budget = RetryBudget(retry.budget_ratio, retry.budget_reserve, retry.budget_window)
        self._credentials = credentials
        self._metadata = tuple(metadata)
        self._observers = observers
        #: Seconds; deadlines are on it.
        self.clock: Callable[[], float] = time.monotonic
        self._ensure_endpoints = ensure_endpoints
        self._explain = explain
        self._records: dict[str, ModelRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._line = _Line()
        pool.on_return = self._something_is_back
        pool.on_outage = self._nothing_can_be_reached

    def __repr__(self) -> str:
        return f"<Calls, circuit {self._circuit.state.value}, {self._budget!r}>"

    @property
    def circuit_state(self) -> str:
        """``"closed"`` if calls are made; ``"open"`` or ``"half-open"`` if nothing answers."""
        return self._circuit.state.value

    def record(self, model: str) -> ModelRecord:
        """What is counted of a model."""
        found = self._records.get(model)
        if found is None:
            hedging = Hedging(self._hedging) if self._hedging is not None else None
            found = self._records[model] = ModelRecord(model, hedging)
        return found

    def stats(self) -> tuple[ModelStats, ...]:
        """A snapshot of every model's numbers."""
        return tuple(record.snapshot() for record in self._records.values())

    async def call(
        self,
        method: str,
        request: bytes,
        deadline: float | None,
        place: Place,
        record: ModelRecord,
        metadata: Metadata = (),
    ) -> Answer:
        """Make a call that may be sent more than once.

        Args:
            method: full name of the RPC.
            request: the serialized request.
            deadline: when everything must be over, on the clock; None for no limit.
            place: what the call is for.
            record: where it is counted.
            metadata: what this call carries besides.

        Raises:
            RPCError: it failed, as the last attempt did that was not superseded; with all `attempts`.
            ClientClosedError: the client is closed, or was closed meanwhile.
        """
        clock = self.clock
        begun = now = clock()
        attempts: list[Attempt] = []
        self._budget.deposit(begun)
        pool = self._pool
        circuit = self._circuit
        credentials = self._credentials
        tried: list[Endpoint] = []
        absent: tuple[Endpoint, ...] = ()
        mine: Metadata = ()
        refreshed = False
        number = 0
        last: errors.RPCError | None = None
        try:
            while True:
                if circuit.state is not State.CLOSED and not circuit.allow(now):
                    if last is None:
                        raise self._refused(now)
                    last.gave_up = "nothing answers any more, so it was not sent again"
                    raise last
                number += 1
                try:
                    pairs: Metadata = self._metadata
                    if credentials is not None:
                        found = credentials.metadata()
                        mine = await self._obtain(credentials, deadline) if found is None else found
                        pairs = (*pairs, *mine, *metadata)
                    elif metadata:
                        pairs = (*pairs, *metadata)
                    if number > 1:
                        pairs = (*pairs, ("grpc-previous-rpc-attempts", str(number - 1)))
                    response, failure, endpoint = await self._attempt(
                        method,
                        request,
                        deadline,
                        place,
                        pairs,
                        begun,
                        attempts,
                        tried,
                        record,
                        None,
                        self._retry.attempt_timeout,
                    )
                except BaseException as error:
                    if last is not None and isinstance(error, errors.ClientClosedError):
                        raise last from None  # it was closing, and had failed before
                    if circuit.state is State.HALF_OPEN:
                        circuit.release(clock())
                    if isinstance(error, (errors.ResourceExhaustedError, errors.DeadlineExceededError)):
                        from aioserving.events import CallRefused

                        self._observers.emit(CallRefused(place.model, _short(method), error.details))
                    raise
                now = clock()
                if failure is None:
                    if circuit.success(now) is not None:
                        self._closed(now)
                    for other in absent:
                        if other is not endpoint:  # which has got it meanwhile
                            pool.miss(other, place)
                    break
                if is_connection_failure(failure):
                    self._explain(failure, endpoint)
                    change = circuit.failure(now)
                    if change is not None and change.before is State.CLOSED:
                        self._opened(now)
                elif failure.code in _UNANSWERED:
                    circuit.release(now)
                elif circuit.success(now) is not None:
                    self._closed(now)
                last = failure
                if isinstance(failure, errors.UnauthenticatedError) and not refreshed:
                    refreshed = True
                    if credentials is not None and credentials.invalidate(mine):
                        from aioserving.events import CredentialsRefreshed

                        self._observers.emit(CredentialsRefreshed(endpoint.target))
                        continue
                if endpoint not in tried:
                    tried.append(endpoint)
                if isinstance(failure, _ABSENT):
                    absent = (*absent, endpoint)
                decision = decide(
                    self._retry,
                    failure,
                    attempt=number,
                    remaining=None if deadline is None else deadline - now,
                    elsewhere=pool.others(place, tried),
                    budget=self._budget,
                    pushback=failure.pushback,
                    now=now,
                    random=self._random,
                )
                if not isinstance(decision, Retry):
                    if number > 1 or failure.code in self._retry.codes:
                        failure.gave_up = decision.reason
                    raise failure
                record.retries += 1
                from aioserving.events import CallRetried

                self._observers.emit(CallRetried(place.model, _short(method), attempts[-1], decision.delay))
                if decision.delay:
                    await asyncio.sleep(decision.delay)
                    now = clock()
        except errors.RPCError as error:
            record.calls += 1
            record.errors += 1
            error.model, error.method = place.model, _short(method)
            error.attempts = tuple(attempts)
            if self._observers:
                seconds = clock() - begun
                self._observers.call_ended(record.model, _short(method), error.code, seconds, error.attempts)
            raise
        seconds = now - begun
        record.calls += 1
        record.answer_size = len(response)
        record.latencies.record(seconds)
        story = tuple(attempts)
        if record.hedging is not None:
            record.hedging.record(seconds, now)
        if self._observers:
            self._observers.call_ended(record.model, _short(method), "OK", seconds, story)
        return response, story

    async def call_once(
        self,
        method: str,
        request: bytes,
        deadline: float | None,
        model: str | None,
        metadata: Metadata = (),
        endpoint: Endpoint | None = None,
    ) -> Answer:
        """Make a call that is sent once, whatever the state of the circuit.

        Args:
            method: full name of the RPC.
            request: the serialized request.
            deadline: when it must be over, on the clock; None for no limit.
            model: the model that it is about.
            metadata: what this call carries besides.
            endpoint: where to send it; None for anywhere.

        Raises:
            RPCError: it failed.
            ClientClosedError: the client is closed, or was closed meanwhile.
        """
        begun = self.clock()
        attempts: list[Attempt] = []
        place = Place(model) if model is not None else None
        try:
            mine: Metadata = ()
            if self._credentials is not None:
                found = self._credentials.metadata()
                mine = await self._obtain(self._credentials, deadline) if found is None else found
            pairs = (*self._metadata, *mine, *metadata)
            response, failure, where = await self._attempt(
                method, request, deadline, place, pairs, begun, attempts, [], None, endpoint, None
            )
        except errors.RPCError as error:
            error.model, error.method = model, _short(method)
            raise
        if failure is not None:
            if is_connection_failure(failure):
                self._explain(failure, where)
            failure.model, failure.method, failure.attempts = model, _short(method), tuple(attempts)
            raise failure
        return response, tuple(attempts)

    async def aclose(self) -> None:
        """End the hedges that are still under way."""
        self._line.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- attempts -----------------------------------------------------------------------------------------

    async def _attempt(
        self,
        method: str,
        request: bytes,
        deadline: float | None,
        place: Place | None,
        metadata: Metadata,
        begun: float,
        attempts: list[Attempt],
        tried: list[Endpoint],
        record: ModelRecord | None,
        only: Endpoint | None,
        limit: float | None,
    ) -> tuple[bytes, errors.RPCError | None, Endpoint]:
        """One attempt, perhaps with a hedge: the response, or the error; and where it came from."""
        pool, clock = self._pool, self.clock
        now = clock()
        connection = pool.try_acquire(place, tried, now, endpoint=only)
        if connection is None:
            connection = await self._wait_for_room(deadline, place, tried, only)
            now = clock()
        timeout = None
        if deadline is not None:
            timeout = deadline - now
            if timeout <= 0:
                pool.release(connection)
                raise _late(attempts)
        if limit is not None and (timeout is None or limit < timeout):
            timeout = limit
        if record is not None:
            size = len(request) + record.answer_size
            if size > _LARGE:
                connection.busy_until = max(connection.busy_until, now + size / _SLOW)
            hedging = record.hedging
        else:
            hedging = None
        race: _Race | None = None
        if hedging is not None:
            delay = hedging.delay(now)
            if delay is not None and len(pool.endpoints) > 1:
                race = _Race(
                    now, delay, self, connection, method, request, deadline, place, metadata, begun, tried
                )
                self._line.add(race, now)
        endpoint = connection.endpoint
        try:
            transport = connection.transport or connection.open()
            response = await transport.call(method, request, timeout, metadata, race)
        except errors.RPCError as failure:
            end = clock()
            if race is not None and (second := race.finish()) is not None:
                return await second.first_failed(failure, now, end, attempts)
            pool.release(connection, failure, end - now, end, place)
            attempts.append(_failed(endpoint, now - begun, end - now, failure))
            return b"", failure, endpoint
        except BaseException as error:
            pool.release(connection, error)
            if race is not None and (second := race.finish()) is not None:
                second.cancel()
            raise
        end = clock()
        pool.release(connection, None, end - now, end, place)
        if race is not None and (second := race.finish()) is not None:
            second.first_answered(end, attempts)
        attempts.append(Attempt(endpoint.target, now - begun, end - now))
        return response, None, endpoint

    async def _wait_for_room(
        self, deadline: float | None, place: Place | None, tried: Sequence[Endpoint], only: Endpoint | None
    ) -> Connection:
        pool = self._pool
        if not pool.endpoints:
            await self._ensure_endpoints(deadline)
        left = None if deadline is None else deadline - self.clock()
        if left is not None and left <= 0:
            raise _late(())
        return await pool.acquire(left, place, tried, endpoint=only)

    async def _obtain(self, credentials: Credentials, deadline: float | None) -> Metadata:
        """What credentials have a call carry, where it has to be fetched first."""
        left = None if deadline is None else max(deadline - self.clock(), 0.0)
        try:
            return await asyncio.wait_for(obtain(credentials), left)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise errors.DeadlineExceededError(
                f"{credentials!r} did not come in time: nothing was sent"
            ) from error

    # -- circuit and telling ------------------------------------------------------------------------------

    def _refused(self, now: float) -> errors.UnavailableError:
        last = self._circuit.last
        why = f": {last.reason}" if last is not None else ""
        wells = "; ".join(str(health) for health in self._pool.health()[:5])
        return errors.UnavailableError(
            f"nothing was sent, because nothing answers{why}; the next attempt is let through in "
            f"{self._circuit.retry_after(now):.2g} s ({wells})"
        )

    def _opened(self, now: float) -> None:
        from aioserving.events import CircuitOpened

        self._opened_at = now
        last = self._circuit.last
        self._observers.emit(CircuitOpened(last.reason if last is not None else ""))

    def _closed(self, now: float) -> None:
        from aioserving.events import CircuitClosed

        self._observers.emit(CircuitClosed(now - self._opened_at))

    def _nothing_can_be_reached(self) -> None:
        now = self.clock()
        if self._circuit.all_down(now) is not None:
            self._opened(now)

    def _something_is_back(self) -> None:
        now = self.clock()
        if self._circuit.success(now) is not None:
            self._closed(now)


class _Race(Slot):
    """A first attempt that gets company when it is late: what has to be known of it to send a second one."""

    __slots__ = (
        "begun",
        "calls",
        "connection",
        "deadline",
        "delay",
        "due",
        "metadata",
        "method",
        "place",
        "request",
        "second",
        "tried",
    )

    def __init__(
        self,
        now: float,
        delay: float,
        calls: Calls,
        connection: Connection,
        method: str,
        request: bytes,
        deadline: float | None,
        place: Place | None,
        metadata: Metadata,
        begun: float,
        tried: list[Endpoint],
    ) -> None:
        self._call = None
        self.superseded = False
        #: When it is late; minus infinity once it is over.
        self.due = now + delay
        self.delay = delay
        #: None once it is over, so that nothing is kept alive by a race that stands in line.
        self.calls: Calls | None = calls
        self.connection: Connection | None = connection
        self.method = method
        self.request = request
        self.deadline = deadline
        self.place = place
        self.metadata = metadata
        self.begun = begun
        self.tried = tried
        self.second: _Second | None = None

    def __repr__(self) -> str:
        state = "over" if self.calls is None else "alone" if self.second is None else "hedged"
        return f"<_Race of {_short(self.method)}, {state}>"

    def finish(self) -> _Second | None:
        """The first attempt is over; gives the second, if there was one."""
        self.due = -math.inf
        self.calls = self.connection = self._call = None
        self.request = b""
        return self.second

    def hedge(self) -> None:
        """The time has come: begin the second attempt, if there is somewhere to go."""
        from aioserving.events import CallHedged

        calls, connection = self.calls, self.connection
        assert calls is not None and connection is not None  # noqa: PT018 - both or none
        first, pool = connection.endpoint, calls._pool
        now = calls.clock()
        elsewhere = (*self.tried, first)
        if not pool.others(self.place, elsewhere):
            return
        try:
            other = pool.try_acquire(self.place, elsewhere, now)
        except errors.ClientClosedError:
            return
        if other is None:
            return
        place = self.place
        hedging = calls.record(place.model).hedging if place is not None else None
        if (
            other.endpoint in elsewhere
            or hedging is None
            or not calls._budget.affords(now)
            or not hedging.try_hedge(now)
        ):
            pool.release(other)
            return
        calls._budget.try_withdraw(now)  # hedges and retries together are what may come on top of the calls
        self.second = _Second(self, calls, connection, other, now)
        model = place.model if place is not None else None
        targets = (first.target, other.endpoint.target)
        calls._observers.emit(CallHedged(model, _short(self.method), targets, self.delay))


class _Line:
    """First attempts in the order in which they will be late, and one timer for all of them.

    A timer each, cancelled nearly always, would cost half as much as all the rest of the client: besides,
    the event loop keeps cancelled ones in its heap until there are so many that it is built anew.
    """

    __slots__ = ("__weakref__", "_races", "_rings_at", "_timer")

    def __init__(self) -> None:
        self._races: deque[_Race] = deque()
        self._timer: asyncio.TimerHandle | None = None
        #: When the timer rings.
        self._rings_at = math.inf

    def __repr__(self) -> str:
        return f"<_Line of {len(self._races)} attempts>"

    def add(self, race: _Race, now: float) -> None:
        """Have `race.hedge` called when it is due, unless it is over by then."""
        races = self._races
        while races and races[0].calls is None:
            races.popleft()
        due = race.due
        if races and due < races[-1].due:
            # The delay has become shorter a moment ago; those that are over may be anywhere in the line.
            waiting = sorted((*(it for it in races if it.calls is not None), race), key=_due)
            races.clear()
            races.extend(waiting)
        else:
            races.append(race)
        if due < self._rings_at:
            self._set_timer(due, now)

    def _set_timer(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = due
        # Nobody who has forgotten a client unclosed is to find it kept alive by a timer.
        self._timer = asyncio.get_running_loop().call_later(max(due - now, 0.0), _ring, weakref.ref(self))

    def ring(self) -> None:
        """Hedge what is late, and wait for what is next."""
        self._timer, self._rings_at = None, math.inf
        races = self._races
        while races:
            race = races[0]
            calls = race.calls
            if calls is not None:
                now = calls.clock()
                if race.due - now > _PUNCTUAL:
                    self._set_timer(race.due, now)
                    return
            races.popleft()
            if calls is not None:
                race.hedge()

    def close(self) -> None:
        """Hedge nothing any more."""
        self._races.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, math.inf


def _due(race: _Race) -> float:
    return race.due


def _ring(reference: weakref.ref[_Line]) -> None:
    line = reference()
    if line is not None:
        line.ring()


class _Second:
    """The second attempt of a race, in a task of its own; whoever answers first wins.

    Args:
        race: what is sent.
        calls: whose it is.
        first: where the first attempt is.
        connection: where the second goes.
        now: the time.
    """

    __slots__ = (
        "_answer",
        "_calls",
        "_connection",
        "_first",
        "_race",
        "_started",
        "_story",
        "_task",
        "_unsent",
    )

    def __init__(
        self, race: _Race, calls: Calls, first: Connection, connection: Connection, now: float
    ) -> None:
        self._race = race
        self._calls = calls
        self._first = first
        self._connection = connection
        self._started = now
        #: Whether its task has yet to begin.
        self._unsent = True
        self._answer: bytes | None = None
        self._story: Attempt | None = None
        work = self._run(race.request, now)
        self._task = asyncio.get_running_loop().create_task(work)
        calls._tasks.add(self._task)
        self._task.add_done_callback(self._ended)

    def __repr__(self) -> str:
        state = "under way" if self._story is None else self._story.code
        return f"<_Second to {self._connection.endpoint.target}, {state}>"

    def cancel(self) -> None:
        """End it, if it has not ended."""
        self._task.cancel()

    def first_answered(self, end: float, attempts: list[Attempt]) -> None:
        """The first attempt has won: end this one and tell of it."""
        self.cancel()
        story = self._story
        if story is None:
            target, started = self._connection.endpoint.target, self._started
            story = Attempt(target, started - self._race.begun, end - started, "SUPERSEDED", "", True)
        attempts.append(story)

    async def first_failed(
        self, failure: errors.RPCError, now: float, end: float, attempts: list[Attempt]
    ) -> tuple[bytes, errors.RPCError | None, Endpoint]:
        """The first attempt, sent `now`, has failed or was superseded; gives what `Calls._attempt` does."""
        race, pool, first = self._race, self._calls._pool, self._first
        endpoint = first.endpoint
        if race.superseded:
            # It was late, which the balancer has to know, but it did not fail.
            pool.balancer.record(endpoint, end - now, end)
            pool.release(first, asyncio.CancelledError())
            attempts.append(Attempt(endpoint.target, now - race.begun, end - now, "SUPERSEDED"))
        else:
            pool.release(first, failure, end - now, end, race.place)
            attempts.append(_failed(endpoint, now - race.begun, end - now, failure))
        try:
            if race.superseded or failure.code not in _WRONG or isinstance(failure, _ABSENT):
                await asyncio.wait((self._task,))
        finally:
            self.cancel()
        if self._story is not None:
            attempts.append(self._story)
        if self._answer is not None:
            return self._answer, None, self._connection.endpoint
        return b"", failure, endpoint

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls._tasks.discard(task)
        if self._unsent:  # a task that is cancelled before its first step runs no line at all
            self._calls._pool.release(self._connection, asyncio.CancelledError())

    async def _run(self, request: bytes, now: float) -> None:
        self._unsent = False
        race, calls, connection = self._race, self._calls, self._connection
        pool, clock, endpoint = calls._pool, calls.clock, connection.endpoint
        started = now - race.begun
        try:
            timeout = None if race.deadline is None else max(race.deadline - now, 0.0)
            transport = connection.transport or connection.open()
            response = await transport.call(race.method, request, timeout, race.metadata)
        except errors.RPCError as error:
            end = clock()
            pool.release(connection, error, end - now, end, race.place)
            race.tried.append(endpoint)
            self._story = _failed(endpoint, started, end - now, error, hedge=True)
            return
        except BaseException as error:
            pool.release(connection, error)
            if not isinstance(error, errors.ClientClosedError):
                raise
            return
        end = clock()
        pool.release(connection, None, end - now, end, race.place)
        self._story = Attempt(endpoint.target, started, end - now, "OK", "", True)
        self._answer = response
        race.supersede()


def _failed(
    endpoint: Endpoint, started: float, seconds: float, error: errors.RPCError, *, hedge: bool = False
) -> Attempt:
    return Attempt(endpoint.target, started, seconds, error.code, error.details, hedge)


def _late(attempts: Sequence[Attempt]) -> errors.DeadlineExceededError:
    if attempts:
        return errors.DeadlineExceededError("the deadline passed before the call could be sent again")
    return errors.DeadlineExceededError("the deadline had passed before the call was sent")


@functools.cache  # of the few methods that there are
def _short(method: str) -> str:
    return method.rpartition("/")[2]
