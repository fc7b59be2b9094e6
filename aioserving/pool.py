"""Endpoints and their connections: which one takes the next call, and who waits when all are full.

The pool knows addresses, connections and counts; requests, models and retries belong to the client.
It lives on one event loop and does all its work in plain functions between awaits, so it needs no
lock: `acquire` is a function that returns a connection at once whenever there is room, and only a
full pool makes anybody wait.

How a connection is chosen
    Of endpoints that are not resting the one with the fewest calls in flight; among equals the one used
    least recently. A further connection to an endpoint counts as having `open_another_at` calls in
    flight until it is open, so it is opened when the others have more than that. (HTTP/2 interleaves calls
    well: up to some fifty at a time, one connection was as fast as several or faster, and small calls
    beside large ones were answered sooner; `bench/bench_connections.py`.) An endpoint *rests* for a
    moment after it refused or lost a connection: it fails so fast that "fewest in flight" would send
    everything there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aioserving import errors
from aioserving.transport import Transport

__all__ = ["Connection", "ConnectionStats", "Endpoint", "EndpointStats", "Pool", "PoolOptions"]


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How many connections and calls a pool allows itself."""

    #: Separate TCP connections to each endpoint at most.
    connections_per_endpoint: int = 4
    #: Calls in flight on every open connection of an endpoint above which another one is opened.
    open_another_at: int = 50
    #: Calls in flight on one connection. Servers and proxies refuse what is beyond their stream limit
    #: (often 100 to 128), so more have to wait on this side.
    max_in_flight_per_connection: int = 100
    #: Seconds for which an endpoint is passed over, where there is another, after a failed connection.
    rest: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (
            ("connections_per_endpoint", 1),
            ("open_another_at", 0),
            ("max_in_flight_per_connection", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not self.rest >= 0:
            raise ValueError(f"rest must be a number of seconds, at least 0, got {self.rest!r}")


class Connection:
    """A slot for one TCP connection of an endpoint, with its counts; `transport` opens on first use."""

    __slots__ = ("_open", "calls", "endpoint", "errors", "in_flight", "index", "last_used", "transport")

    def __init__(self, endpoint: Endpoint, index: int, open_transport: Callable[[str], Transport]) -> None:
        self.endpoint = endpoint
        self.index = index
        self._open = open_transport
        self.transport: Transport | None = None
        #: Calls under way now.
        self.in_flight = 0
        #: Calls that were started, ever.
        self.calls = 0
        #: Calls that ended in an error, ever.
        self.errors = 0
        #: Number of the pool's call that took it last; 0 if none did.
        self.last_used = 0

    def __repr__(self) -> str:
        return (
            f"<Connection {self.index} to {self.endpoint.target}, {self.state}, "
            f"{self.in_flight} in flight, {self.calls} calls, {self.errors} errors>"
        )

    @property
    def state(self) -> str:
        """``"unopened"``, ``"closed"`` or gRPC's connectivity state."""
        return "unopened" if self.transport is None else self.transport.state

    def open(self) -> Transport:
        """The transport, made now if this is the first use."""
        transport = self.transport
        if transport is None:
            transport = self.transport = self._open(self.endpoint.target)
        return transport


class Endpoint:
    """One address and its connections."""

    __slots__ = ("connections", "resting_until", "target")

    def __init__(self, target: str, connections: int, open_transport: Callable[[str], Transport]) -> None:
        self.target = target
        self.connections = [Connection(self, index, open_transport) for index in range(connections)]
        #: Time on the pool's clock until which other endpoints are preferred.
        self.resting_until = 0.0

    def __repr__(self) -> str:
        return f"<Endpoint {self.target}, {sum(c.in_flight for c in self.connections)} in flight>"


@dataclass(frozen=True)
class ConnectionStats:
    """One connection at one moment."""

    #: ``"unopened"``, ``"closed"``, or gRPC's connectivity state: ``"idle"``, ``"connecting"``,
    #: ``"ready"``, ``"transient_failure"``.
    state: str
    #: Calls under way.
    in_flight: int
    #: Calls started so far.
    calls: int
    #: Calls that ended in an error so far.
    errors: int


@dataclass(frozen=True)
class EndpointStats:
    """One endpoint at one moment."""

    target: str
    connections: tuple[ConnectionStats, ...]

    @property
    def in_flight(self) -> int:
        """Calls under way on all connections."""
        return sum(connection.in_flight for connection in self.connections)

    @property
    def calls(self) -> int:
        """Calls started so far on all connections."""
        return sum(connection.calls for connection in self.connections)

    @property
    def errors(self) -> int:
        """Calls that ended in an error so far on all connections."""
        return sum(connection.errors for connection in self.connections)


class Pool:
    """Connections to one or more endpoints that serve the same models.

    Args:
        targets: gRPC targets, at least one, each named once.
        open_transport: makes the transport for a target; called on the event loop.
        options: limits.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        targets: Sequence[str],
        open_transport: Callable[[str], Transport],
        *,
        options: PoolOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or PoolOptions()
        self._clock = clock
        self.endpoints = [
            Endpoint(target, self.options.connections_per_endpoint, open_transport) for target in targets
        ]
        # Interleaved, so that the second call goes to the second endpoint, not to a second connection.
        self._connections = [
            endpoint.connections[index]
            for index in range(self.options.connections_per_endpoint)
            for endpoint in self.endpoints
        ]
        self._limit = self.options.max_in_flight_per_connection
        self._open_another_at = self.options.open_another_at
        self._waiting: deque[tuple[asyncio.Future[Connection], Endpoint | None]] = deque()
        self._uses = 0
        self._closing = False
        self._drained: asyncio.Event | None = None

    def __repr__(self) -> str:
        open_ = sum(connection.transport is not None for connection in self._connections)
        return (
            f"<Pool of {len(self.endpoints)} endpoints, "
            f"{open_} of {len(self._connections)} connections open, "
            f"{self.in_flight} in flight, {self.waiting} waiting>"
        )

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return sum(connection.in_flight for connection in self._connections)

    @property
    def waiting(self) -> int:
        """Callers waiting for room."""
        return sum(not future.done() for future, _ in self._waiting)

    def stats(self) -> Iterator[EndpointStats]:
        """A snapshot of every endpoint."""
        for endpoint in self.endpoints:
            yield EndpointStats(
                endpoint.target,
                tuple(ConnectionStats(c.state, c.in_flight, c.calls, c.errors) for c in endpoint.connections),
            )

    def try_acquire(self, endpoint: Endpoint | None = None) -> Connection | None:
        """The best connection with room for a call, counted as taken; None if there is none.

        Args:
            endpoint: take none but this endpoint's.

        Raises:
            ClientClosedError: the pool is closed or closing.
        """
        if self._closing:
            raise errors.ClientClosedError("the client is closed")
        if self._waiting and self.waiting:
            return None  # first come, first served
        return self._take(endpoint)

    def _take(self, endpoint: Endpoint | None) -> Connection | None:
        best = self._choose(self._connections if endpoint is None else endpoint.connections)
        if best is not None:
            best.in_flight += 1
            best.calls += 1
            self._uses += 1
            best.last_used = self._uses
        return best

    def _choose(self, connections: list[Connection]) -> Connection | None:
        best: Connection | None = None
        best_rank = (True, self._limit, 0)
        now = None
        for connection in connections:
            in_flight = connection.in_flight
            if in_flight >= self._limit:
                continue
            resting_until = connection.endpoint.resting_until
            resting = False
            if resting_until:
                if now is None:
                    now = self._clock()
                resting = resting_until > now
            if connection.index and connection.transport is None:
                in_flight = self._open_another_at
            rank = (resting, in_flight, connection.last_used)
            if best is None or rank < best_rank:
                best, best_rank = connection, rank
        return best

    async def acquire(self, timeout: float | None = None, endpoint: Endpoint | None = None) -> Connection:
        """A connection with room for a call, counted as taken, after waiting in line if need be.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.
            endpoint: take none but this endpoint's.

        Raises:
            ClientClosedError: the pool is closed or closing, now or while waiting.
            DeadlineExceededError: there was no room in time.
        """
        connection = self.try_acquire(endpoint)
        if connection is not None:
            return connection
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, endpoint))
        try:
            await asyncio.wait((future,), timeout=timeout)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # room was given in the same moment: pass it on
                raise
            future.cancel()
            raise
        if future.done():
            return future.result()
        future.cancel()
        in_flight = self.in_flight
        raise errors.DeadlineExceededError(
            f"waited {timeout:.3g} s for a connection: {in_flight} calls are in flight, as many as "
            f"{len(self._connections)} connections with max_in_flight_per_connection={self._limit} allow"
        )

    def release(self, connection: Connection, error: BaseException | None = None) -> None:
        """Give back what `acquire` or `try_acquire` gave, once, telling how the call ended."""
        connection.in_flight -= 1
        if error is not None:
            connection.errors += 1
            if isinstance(error, errors.UnavailableError):
                connection.endpoint.resting_until = self._clock() + self.options.rest
        elif connection.endpoint.resting_until:
            connection.endpoint.resting_until = 0.0
        if self._waiting:
            self._hand_over()
        if self._drained is not None and not self.in_flight and not self.waiting:
            self._drained.set()

    def _hand_over(self) -> None:
        """Give free room to those in line, in order; one that wants a full endpoint holds up nobody else."""
        still_waiting: list[tuple[asyncio.Future[Connection], Endpoint | None]] = []
        while self._waiting:
            future, endpoint = self._waiting.popleft()
            if future.done():  # gave up
                continue
            connection = self._take(endpoint)
            if connection is not None:
                future.set_result(connection)
                continue
            still_waiting.append((future, endpoint))
            if endpoint is None:
                break
        self._waiting.extendleft(reversed(still_waiting))

    async def close(self, grace: float | None = None) -> None:
        """Take no more calls, let those under way and in line end, then close every connection.

        Args:
            grace: seconds given to running calls before they are cancelled; None gives them all the
                time their own deadlines allow.
        """
        first = not self._closing
        self._closing = True
        if first and (self.in_flight or self.waiting):
            self._drained = asyncio.Event()
        try:
            if self._drained is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), grace)
        finally:
            # Also when this is cancelled: a client that is being closed must not stay half open.
            for future, _ in self._waiting:
                if not future.done():
                    future.set_exception(errors.ClientClosedError("the client was closed while waiting"))
            self._waiting.clear()
            for connection in self._connections:
                if connection.transport is not None:
                    await connection.transport.close()

    def abandon(self) -> None:
        """Forget every connection without a loop to close it on."""
        self._closing = True
        for connection in self._connections:
            if connection.transport is not None:
                connection.transport.abandon()
