"""Endpoints and their connections: which one takes the next call, and who waits when all are full.

The pool knows addresses, connections, counts and who is well; requests, retries and what a model is
belong to `calls` and the client. It lives on one event loop and does its work in plain functions between
awaits, so it needs no lock: `try_acquire` returns a connection at once whenever there is room, and only a
full pool makes anybody wait.

How a connection is chosen
    Of the endpoints that are well (`health`), and have the model, by `balancing`. Of that endpoint's
    connections the one with the fewest calls in flight. A further connection counts as having
    `PoolOptions.open_another_at` calls in flight until it is open, so it is opened when the others have
    more than that. (HTTP/2 interleaves calls well: up to some fifty at a time, one connection was as fast
    as several or faster, and small calls beside large ones were answered sooner;
    `bench/bench_connections.py`.)

How an endpoint or a connection ends
    It is *retired*: it gets no more calls, those under way end, and then it is closed. So go endpoints
    that are removed, and connections whose certificates were replaced. A connection that does not answer
    is *given up*: its calls end at once, with an error that `calls` answers by going elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aioserving import errors
from aioserving.balancing import Balancer, BalancingOptions, Load, make_balancer
from aioserving.health import (
    HEALTHY,
    UNREACHABLE,
    EndpointHealth,
    Health,
    HealthOptions,
    find_outliers,
    may_eject,
)
from aioserving.latency import Latency, LatencyHistogram
from aioserving.limits import AdaptiveLimit, Limit, make_limit
from aioserving.observers import Observers
from aioserving.queueing import CallTime, QueueStats, WaitingQueue
from aioserving.retry import is_connection_failure
from aioserving.targets import Target
from aioserving.transport import Transport

__all__ = ["Connection", "ConnectionStats", "Endpoint", "EndpointStats", "Place", "Pool", "PoolOptions"]


class Place(NamedTuple):
    """What a call is for, and what an endpoint has or does not have."""

    model: str
    version: int | None = None
    version_label: str | None = None

    def __str__(self) -> str:
        version = f" version {self.version}" if self.version is not None else ""
        label = f" version {self.version_label!r}" if self.version_label is not None else ""
        return f"{self.model}{version}{label}"


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
    #: Calls in flight at one endpoint: a number, or a limit that finds the number by itself; None: no
    #: limit but the connections'.
    max_in_flight: int | AdaptiveLimit | None = None
    #: Callers that may wait for room, beyond which calls are refused at once.
    max_waiting: int = 10_000
    #: Endpoints that this client uses of a large fleet, lest everybody connect to everything; None: all.
    subset: int | None = None
    #: What tells this client from others, of which each uses another subset; None: host, process and chance.
    subset_id: str | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("connections_per_endpoint", 1),
            ("open_another_at", 0),
            ("max_in_flight_per_connection", 1),
            ("max_waiting", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.subset is not None and (not isinstance(self.subset, int) or self.subset < 1):
            raise ValueError(f"subset must be a whole number of at least 1, or None, got {self.subset!r}")


class Connection:
    """A slot for one TCP connection of an endpoint, with its counts; `transport` opens on first use."""

    __slots__ = (
        "_open",
        "answered_at",
        "busy_until",
        "calls",
        "endpoint",
        "errors",
        "in_flight",
        "index",
        "probed_at",
        "quiet_since",
        "retired",
        "transport",
    )

    def __init__(self, endpoint: Endpoint, index: int, open_transport: Callable[[Target], Transport]) -> None:
        self.endpoint = endpoint
        self.index = index
        self._open = open_transport
        self.transport: Transport | None = None
        #: Until when a large message may keep it from answering anything else.
        self.busy_until = 0.0
        #: Calls under way now.
        self.in_flight = 0
        #: Calls that were started, ever.
        self.calls = 0
        #: Calls that ended in an error, ever.
        self.errors = 0
        #: Whether it gets no more calls and is closed after the last one.
        self.retired = False
        #: When the first answer came; calls that began before have waited for the connection, too.
        self.answered_at = math.inf
        #: Since when calls have been under way without any answer; 0 if none are.
        self.quiet_since = 0.0
        #: When it was last probed; infinity while it is.
        self.probed_at = 0.0

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
            transport = self.transport = self._open(self.endpoint.address)
            if not self.retired:
                self.endpoint.opened += 1
        return transport

    def shut(self) -> None:
        """Let nobody open it any more: who was given it in the last moment must not leave one behind."""
        self._open = _refuse_to_open


def _refuse_to_open(target: Target) -> Transport:
    raise errors.ClientClosedError("the client was closed before the call was sent")


class Endpoint(Load):
    """One address, its connections, and what is known of it.

    Args:
        address: where it is.
        options: limits.
        health: when it is ejected.
        open_transport: makes the transport for an address.
    """

    __slots__ = (
        "_crowded",
        "_open",
        "_options",
        "address",
        "connections",
        "health",
        "latencies",
        "limiter",
        "missing",
        "opened",
        "removed",
        "target",
    )

    def __init__(
        self,
        address: Target,
        options: PoolOptions,
        health: HealthOptions,
        open_transport: Callable[[Target], Transport],
    ) -> None:
        capacity = options.connections_per_endpoint * options.max_in_flight_per_connection
        super().__init__(address.weight, capacity)
        self.address = address
        self.target = address.address
        self.health = Health(health)
        #: What it does not have though others do, and when to ask for it next.
        self.missing: dict[Place, float] = {}
        self.latencies = LatencyHistogram()
        #: Finds the limit, if it is not fixed.
        self.limiter: Limit | None = None
        if options.max_in_flight is not None:
            self.limiter = make_limit(options.max_in_flight)
            self.limit = min(capacity, self.limiter.limit)
        #: Whether it was removed from the fleet.
        self.removed = False
        #: Connections that are open.
        self.opened = 0
        #: Calls on the only connection from which on another one is looked for.
        self._crowded = min(options.open_another_at, options.max_in_flight_per_connection)
        self._options = options
        self._open = open_transport
        self.connections = [
            Connection(self, index, open_transport) for index in range(options.connections_per_endpoint)
        ]

    def __repr__(self) -> str:
        return f"<Endpoint {self.target}, {self.health.state}, {self.in_flight} in flight>"

    def pick(self) -> Connection | None:
        """The connection with the fewest calls; None if all are full."""
        first = self.connections[0]
        if self.opened <= 1 and first.in_flight < self._crowded and first.transport is not None:
            return first
        options = self._options
        best: Connection | None = None
        fewest = full = options.max_in_flight_per_connection
        for connection in self.connections:
            in_flight = connection.in_flight
            if in_flight >= full:
                continue
            unopened = connection.transport is None and connection.index > 0
            if unopened:
                in_flight = max(in_flight, options.open_another_at)
            if best is None or in_flight < fewest:
                best, fewest = connection, in_flight
            elif unopened and in_flight == fewest and best.transport is not None:
                best = connection
        return best

    def replace(self, connection: Connection) -> None:
        """Retire a connection and put an unopened one in its place."""
        connection.retired = True
        if connection.transport is not None:
            self.opened -= 1
        self.connections[connection.index] = Connection(self, connection.index, self._open)


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
    #: ``"healthy"``, ``"outlier"`` or ``"unreachable"``.
    state: str
    weight: float
    #: Calls that may be in flight.
    limit: float
    #: Latencies, in seconds, of the calls that were answered.
    latency: Latency

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
    """Connections to endpoints that serve the same models.

    Args:
        targets: the endpoints to begin with.
        open_transport: makes the transport for a target; called on the event loop.
        options: limits.
        balancer: which endpoint takes a call; a policy's name or settings.
        health: when endpoints are ejected.
        observers: who is told.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        targets: Iterable[Target],
        open_transport: Callable[[Target], Transport],
        *,
        options: PoolOptions | None = None,
        balancer: Balancer | BalancingOptions | str | None = None,
        health: HealthOptions | None = None,
        observers: Observers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or PoolOptions()
        self.health_options = health or HealthOptions()
        self.balancer = balancer if isinstance(balancer, Balancer) else make_balancer(balancer)
        self.clock = clock
        #: Called when there may be something to watch: calls under way, or an endpoint that is out.
        self.on_activity: Callable[[], None] = lambda: None
        #: Called when an endpoint was lost, and when one that was is back.
        self.on_loss: Callable[[], None] = lambda: None
        self.on_return: Callable[[], None] = lambda: None
        #: Called, again and again, while probes find that no endpoint can be reached.
        self.on_outage: Callable[[], None] = lambda: None
        #: Whether somebody watches; if not, `on_activity` is called with the next call.
        self.watched = False
        self._observers = observers or Observers()
        self.open_transport = open_transport
        self.endpoints: tuple[Endpoint, ...] = tuple(map(self._endpoint, targets))
        self._eligible: tuple[Endpoint, ...] = self.endpoints
        self._eligible_for: dict[Place, tuple[Endpoint, ...]] = {}
        # In order of arrival: those who would be too late are told so at once, and goodput is as high as
        # with any other order as long as deadlines are known (`bench/overload.py`).
        self._queue: WaitingQueue[Connection] = WaitingQueue(self.options.max_waiting)
        #: What a call of each model takes once it has its turn.
        self._call_times: dict[str, CallTime] = {}
        #: What those in line wait for.
        self._wanted: dict[
            asyncio.Future[Connection], tuple[Place | None, Sequence[Endpoint], Endpoint | None]
        ] = {}
        self._retired: set[Connection] = set()  # with calls under way
        self._goodbyes: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self._closing = False
        self._drained: asyncio.Event | None = None

    def __repr__(self) -> str:
        connections = [connection for endpoint in self.endpoints for connection in endpoint.connections]
        opened = sum(connection.transport is not None for connection in connections)
        out = sum(endpoint.health.state != HEALTHY for endpoint in self.endpoints)
        return (
            f"<Pool of {len(self.endpoints)} endpoints{f', {out} of them out' if out else ''}, "
            f"{opened} of {len(connections)} connections open, "
            f"{self.in_flight} in flight, {self.waiting} waiting>"
        )

    @property
    def waiting(self) -> int:
        """Callers waiting for room."""
        return len(self._queue)

    def stats(self) -> Iterator[EndpointStats]:
        """A snapshot of every endpoint."""
        for endpoint in self.endpoints:
            yield EndpointStats(
                endpoint.target,
                tuple(ConnectionStats(c.state, c.in_flight, c.calls, c.errors) for c in endpoint.connections),
                endpoint.health.state,
                endpoint.weight,
                endpoint.limit,
                endpoint.latencies.snapshot(),
            )

    def queue_stats(self) -> QueueStats:
        """A snapshot of the queue of those who wait for room."""
        return self._queue.stats(self.clock())

    def health(self) -> tuple[EndpointHealth, ...]:
        """How every endpoint is."""
        return tuple(
            EndpointHealth(
                endpoint.target,
                endpoint.health.state,
                endpoint.health.reason,
                tuple(sorted(map(str, endpoint.missing))),
            )
            for endpoint in self.endpoints
        )

    # -- the fleet --------------------------------------------------------------------------------------

    def _endpoint(self, target: Target) -> Endpoint:
        return Endpoint(target, self.options, self.health_options, self.open_transport)

    def add(self, targets: Iterable[Target]) -> None:
        """Let further endpoints take part; those that are not the first get few calls to begin with.

        One that is there already takes the weight of its new self.
        """
        from aioserving.events import EndpointAdded

        known = {endpoint.target: endpoint for endpoint in self.endpoints}
        new = []
        now = self.clock()
        for target in targets:
            if target.address in known:
                known[target.address].weight = target.weight
                continue
            endpoint = known[target.address] = self._endpoint(target)
            if self.endpoints:
                self.balancer.admit(endpoint, now)
            new.append(endpoint)
        self.endpoints = (*self.endpoints, *new)
        self._choose_eligible()
        for endpoint in new:
            self._observers.emit(EndpointAdded(endpoint.target, endpoint.weight))

    def remove(self, targets: Collection[str]) -> None:
        """Let endpoints get no more calls; those under way end."""
        from aioserving.events import EndpointRemoved

        gone = [endpoint for endpoint in self.endpoints if endpoint.target in targets]
        self.endpoints = tuple(endpoint for endpoint in self.endpoints if endpoint not in gone)
        self._choose_eligible()
        for endpoint in gone:
            endpoint.removed = True
            for connection in tuple(endpoint.connections):
                self._retire(connection)
            self._observers.emit(EndpointRemoved(endpoint.target))

    def renew(self) -> None:
        """Have every connection replaced by a new one, without losing a call."""
        for endpoint in self.endpoints:
            for connection in tuple(endpoint.connections):
                if connection.transport is not None:
                    self._retire(connection)

    def _retire(self, connection: Connection) -> None:
        connection.endpoint.replace(connection)
        if connection.in_flight:
            self._retired.add(connection)
        else:
            self._say_goodbye(connection)

    def _say_goodbye(self, connection: Connection) -> None:
        self._retired.discard(connection)
        transport, connection.transport = connection.transport, None
        if transport is not None and not self._closing:
            task = asyncio.get_running_loop().create_task(transport.close())
            self._goodbyes.add(task)
            task.add_done_callback(self._goodbyes.discard)
        elif transport is not None:
            transport.abandon()

    def _choose_eligible(self) -> None:
        """Of the endpoints those that get calls: the healthy ones, or all if there is none."""
        healthy = tuple(endpoint for endpoint in self.endpoints if endpoint.health.state == HEALTHY)
        self._eligible = healthy or self.endpoints
        self._eligible_for = {}
        for place in {place for endpoint in self.endpoints for place in endpoint.missing}:
            having = tuple(endpoint for endpoint in self._eligible if place not in endpoint.missing)
            if having:
                self._eligible_for[place] = having
        if self._queue:
            self._hand_over()  # those in line may go elsewhere now

    def others(self, place: Place | None, tried: Collection[Endpoint]) -> bool:
        """Whether there is an endpoint that may have `place` and is not among those tried."""
        return any(endpoint not in tried for endpoint in self._having(place))

    def _having(self, place: Place | None) -> tuple[Endpoint, ...]:
        return self._eligible if place is None else self._eligible_for.get(place, self._eligible)

    # -- health -----------------------------------------------------------------------------------------

    def lose(self, endpoint: Endpoint, reason: str) -> None:
        """An endpoint cannot be reached: no calls until a probe is answered (where there are others)."""
        from aioserving.events import EndpointEjected

        known = endpoint.health.state == UNREACHABLE
        endpoint.health.lose(reason, self.clock())
        if not known and not endpoint.removed:
            self._choose_eligible()
            seconds = self.health_options.probe_interval[0]
            self._observers.emit(EndpointEjected(endpoint.target, reason, seconds))
            self.on_activity()
            self.on_loss()

    def eject(self, endpoint: Endpoint, reason: str) -> bool:
        """An endpoint answers badly: no calls for a while, unless too many are out already."""
        from aioserving.events import EndpointEjected

        most = self.health_options.most_ejected
        if endpoint.removed or not may_eject((other.health for other in self.endpoints), most):
            return False
        seconds = endpoint.health.eject(reason, self.clock())
        self._choose_eligible()
        self._observers.emit(EndpointEjected(endpoint.target, reason, seconds))
        self.on_activity()
        return True

    def readmit(self, endpoint: Endpoint) -> None:
        """An endpoint is well again: it gets calls, few at first."""
        from aioserving.events import EndpointReturned

        if endpoint.health.state == HEALTHY or endpoint.removed:
            return
        now = self.clock()
        was_unreachable = endpoint.health.state == UNREACHABLE
        seconds = endpoint.health.recover(now)
        if any(other is not endpoint and other.health.state == HEALTHY for other in self.endpoints):
            self.balancer.admit(endpoint, now)
        self._choose_eligible()
        self._observers.emit(EndpointReturned(endpoint.target, seconds))
        if was_unreachable:  # an outlier was alive all the time, so this says nothing new of a fleet
            self.on_return()

    def look_for_outliers(self) -> None:
        """Compare the endpoints with each other, and eject those that are out of line."""
        now = self.clock()
        endpoints = self.endpoints  # observers may change them meanwhile
        fleet = [(endpoint.health, self.balancer.latency(endpoint, now)) for endpoint in endpoints]
        for index, reason in find_outliers(fleet, self.health_options):
            self.eject(endpoints[index], reason)
        for endpoint in endpoints:
            endpoint.health.next_interval()

    def give_up(self, connection: Connection, reason: str) -> None:
        """A connection does not answer: end its calls, which are then tried elsewhere."""
        from aioserving.events import ConnectionReplaced

        transport = connection.transport
        if transport is None:
            return
        if not connection.retired:
            self._retire(connection)
        calls = transport.give_up(reason)
        connection.quiet_since = 0.0  # nobody waits for an answer on it any more
        self._observers.emit(ConnectionReplaced(connection.endpoint.target, reason, calls))

    def reopen(self, connection: Connection) -> None:
        """Have a connection that cannot be made tried again now, not when gRPC thinks fit."""
        if not connection.retired:
            self._retire(connection)

    def miss(self, endpoint: Endpoint, place: Place) -> None:
        """An endpoint does not have what others have: it gets no calls for it until it has."""
        from aioserving.events import ModelMissing

        if place not in endpoint.missing and not endpoint.removed:
            endpoint.missing[place] = self.clock() + self.health_options.model_interval
            self._choose_eligible()
            self._observers.emit(ModelMissing(endpoint.target, str(place)))
            self.on_activity()

    def find(self, endpoint: Endpoint, place: Place) -> None:
        """An endpoint has what it did not have."""
        from aioserving.events import ModelFound

        if endpoint.missing.pop(place, None) is not None and not endpoint.removed:
            self._choose_eligible()
            self._observers.emit(ModelFound(endpoint.target, str(place)))

    # -- calls ------------------------------------------------------------------------------------------

    def try_acquire(
        self,
        place: Place | None = None,
        tried: Sequence[Endpoint] = (),
        now: float | None = None,
        *,
        endpoint: Endpoint | None = None,
    ) -> Connection | None:
        """The best connection with room for a call, counted as taken; None if there is none.

        Args:
            place: what the call is for: endpoints that do not have it are passed over.
            tried: endpoints that are taken only if there is no other.
            now: the time, if the caller knows it.
            endpoint: take none but this endpoint's.

        Raises:
            ClientClosedError: the pool is closed or closing.
        """
        if self._closing:
            raise errors.ClientClosedError("the client is closed")
        if self._queue:
            return None  # first come, first served
        return self._take(place, tried, self.clock() if now is None else now, endpoint)

    def _take(
        self, place: Place | None, tried: Sequence[Endpoint], now: float, endpoint: Endpoint | None
    ) -> Connection | None:
        if endpoint is None:
            eligible = self._eligible
            if self._eligible_for:
                eligible = self._eligible_for.get(place, eligible) if place else eligible
            if not eligible:
                return None
            endpoint = self.balancer.choose(eligible, now, tried) if len(eligible) > 1 else eligible[0]
        if endpoint.in_flight >= endpoint.limit:
            return None
        connection = endpoint.pick()
        if connection is not None:
            endpoint.in_flight += 1
            connection.in_flight += 1
            connection.calls += 1
            self.in_flight += 1
            if endpoint.removed:  # somebody wants this one and no other
                self._retired.add(connection)
            if not connection.quiet_since:
                connection.quiet_since = now
            if not self.watched:
                self.on_activity()
        return connection

    async def acquire(
        self,
        timeout: float | None = None,
        place: Place | None = None,
        tried: Sequence[Endpoint] = (),
        *,
        endpoint: Endpoint | None = None,
    ) -> Connection:
        """A connection with room for a call, counted as taken, after waiting in line if need be.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.
            place: what the call is for.
            tried: endpoints that are taken only if there is no other.
            endpoint: take none but this endpoint's.

        Raises:
            ClientClosedError: the pool is closed or closing, now or while waiting.
            ResourceExhaustedError: too many wait already, or there would be no room before the deadline.
            DeadlineExceededError: there was no room in time.
        """
        connection = self.try_acquire(place, tried, endpoint=endpoint)
        if connection is not None:
            return connection
        queue, now = self._queue, self.clock()
        deadline = None if timeout is None else now + timeout
        model = place.model if place is not None else ""
        target: Hashable = endpoint or (place if place in self._eligible_for else None)
        needs = self._call_time(place).seconds
        refusal = queue.refuse(model, deadline, now, needs=needs, target=target)
        if refusal is not None:
            raise refusal
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        waiter = queue.push(future, model, now, deadline, needs=needs, target=target)
        self._wanted[future] = place, tried, endpoint
        try:
            self._hand_over()  # those in line may wait for another endpoint than this caller
            if not future.done():
                await asyncio.wait((future,), timeout=timeout)
        except BaseException:
            given = queue.withdraw(waiter, self.clock())
            if given is not None:
                self.release(given)  # room was given in the same moment: pass it on
            raise
        finally:
            del self._wanted[future]
            if not future.done():
                queue.withdraw(waiter, self.clock())
        if not future.cancelled():
            return future.result()
        raise errors.DeadlineExceededError(
            f"waited {timeout:.3g} s for room: {self.in_flight} calls are in flight, as many as the limits "
            f"of {len(self.endpoints)} endpoints allow ({self._limits()})"
        )

    def _call_time(self, place: Place | None) -> CallTime:
        model = place.model if place is not None else ""
        found = self._call_times.get(model)
        if found is None:
            found = self._call_times[model] = CallTime()
        return found

    def _limits(self) -> str:
        options = self.options
        if options.max_in_flight is not None:
            limits = sorted({endpoint.limit for endpoint in self.endpoints})
            return f"max_in_flight={', '.join(f'{limit:g}' for limit in limits)}"
        return (
            f"max_in_flight_per_connection={options.max_in_flight_per_connection}, "
            f"connections_per_endpoint={options.connections_per_endpoint}"
        )

    def _has_room(self, model: str, target: Hashable | None) -> bool:
        """Whether there is room for somebody who waits for `target`."""
        if isinstance(target, Endpoint):
            return target.in_flight < target.limit
        place = target if isinstance(target, Place) else None
        return any(endpoint.in_flight < endpoint.limit for endpoint in self._having(place))

    def _hand_over(self) -> None:
        """Give free room to those in line."""
        queue = self._queue
        while queue:
            now = self.clock()
            waiter = queue.pop(now, self._has_room)
            if waiter is None:
                return
            place, tried, endpoint = self._wanted[waiter.future]
            connection = self._take(place, tried, now, endpoint)
            if connection is None:  # where those not tried are full, one that was tried will do
                connection = self._take(place, (), now, endpoint)
            if connection is None:  # where those with room turn out not to have the model, they say so
                connection = self._take(None, (), now, None)
            assert connection is not None
            waiter.future.set_result(connection)

    def _dismiss(self) -> None:
        """Send everybody in line away."""
        self._queue.fail_all(
            lambda: errors.ClientClosedError("the client was closed while waiting"), self.clock()
        )

    def release(
        self,
        connection: Connection,
        error: BaseException | None = None,
        seconds: float | None = None,
        now: float | None = None,
        place: Place | None = None,
    ) -> None:
        """Give back what `acquire` or `try_acquire` gave, once, telling how the call ended.

        Args:
            connection: what was given.
            error: why the call failed; None if it was answered. A cancellation says nothing about the
                endpoint.
            seconds: how long it took; None if it was not sent.
            now: the time, if the caller knows it.
            place: what it was for.
        """
        endpoint = connection.endpoint
        endpoint.in_flight -= 1
        connection.in_flight -= 1
        self.in_flight -= 1
        if now is None:
            now = self.clock()
        if error is None:
            if seconds is not None:
                if connection.in_flight:
                    connection.quiet_since = now
                else:
                    connection.quiet_since = connection.busy_until = 0.0
                if now - seconds >= connection.answered_at:
                    self.balancer.record(endpoint, seconds, now)
                    if endpoint.limiter is not None:
                        self._learn_limit(endpoint, seconds, now, dropped=False)
                elif connection.answered_at == math.inf:
                    # How long a connection takes to make says nothing about the endpoint. Taken for its
                    # latency, it left the one that got a client's first call without calls for a minute.
                    connection.answered_at = now
                self._call_time(place).record(seconds)
                endpoint.latencies.record(seconds)
                health = endpoint.health
                health.succeeded()
                if health.state != HEALTHY:
                    self._answered(endpoint, now - seconds)
        elif isinstance(error, errors.RPCError):
            connection.errors += 1
            self._note_failure(connection, error, seconds, now, place)
        if connection.transport is None:
            connection.quiet_since = 0.0  # nothing was sent on it
        if not connection.in_flight and (connection.retired or endpoint.removed):
            self._say_goodbye(connection)
        if self._queue:
            self._hand_over()
        self._check_drained()

    def _check_drained(self) -> None:
        """Let `close` go on when nothing is under way any more."""
        if self._drained is None or self.in_flight:
            return
        if self._queue:
            self._dismiss()  # no endpoint is left, and nobody makes room for them any more
        self._drained.set()

    def _answered(self, endpoint: Endpoint, begun: float) -> None:
        """An endpoint that is out answered a call that began then: is it back?

        Not an outlier, which answers all the time, if badly; nor one that only ends what it had begun
        before it went.
        """
        health = endpoint.health
        if health.state == UNREACHABLE and begun >= health.ejected_at:
            self.readmit(endpoint)

    def _note_failure(
        self,
        connection: Connection,
        error: errors.RPCError,
        seconds: float | None,
        now: float,
        place: Place | None,
    ) -> None:
        endpoint = connection.endpoint
        code = error.code
        if code not in {"DEADLINE_EXCEEDED", "CANCELLED"}:  # which the server may know nothing of
            connection.quiet_since = now if connection.in_flight else 0.0
        if code not in _BLAMED or isinstance(error, errors.MessageTooLargeError):
            endpoint.health.succeeded()  # it answered, if not what the caller wanted
            if seconds is not None:
                self._answered(endpoint, now - seconds)
            return
        if connection.retired:
            return
        transport = connection.transport
        if is_connection_failure(error) and transport is not None and transport.state != "ready":
            self.lose(endpoint, error.details or code)
            return
        if code == "CANCELLED":
            return
        if code == "DEADLINE_EXCEEDED" and seconds is not None:
            call_time = self._call_time(place)
            enough = seconds >= call_time.seconds
            call_time.record(seconds, missed=True)
            if not enough:
                return  # the caller was in more of a hurry than calls are: nobody's fault
        if seconds is not None:
            self.balancer.record(endpoint, seconds, now, failed=True)
            if endpoint.limiter is not None and code in _DROPPED:
                self._learn_limit(endpoint, seconds, now, dropped=True)
        if endpoint.health.failed():
            self.eject(endpoint, f"{endpoint.health.in_a_row} calls in a row failed: {code}")

    def _learn_limit(self, endpoint: Endpoint, seconds: float, now: float, *, dropped: bool) -> None:
        limiter = endpoint.limiter
        assert limiter is not None
        before = limiter.limit
        limiter.record(seconds, endpoint.in_flight + 1, dropped, now)
        if limiter.limit != before:
            options = self.options
            capacity = options.connections_per_endpoint * options.max_in_flight_per_connection
            endpoint.limit = min(capacity, limiter.limit)

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
            self._check_drained()
        try:
            if self._drained is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), grace)
        finally:
            # Also when this is cancelled: a client that is being closed must not stay half open.
            self._dismiss()
            try:
                for connection in self._shut():
                    if connection.transport is not None:
                        await connection.transport.close()
                if self._goodbyes:
                    await asyncio.wait(self._goodbyes)
            except BaseException:  # cancelled again
                self.abandon()
                raise

    def abandon(self) -> None:
        """Forget every connection without a loop to close it on."""
        self._closing = True
        for connection in self._shut():
            if connection.transport is not None:
                connection.transport.abandon()

    def _shut(self) -> list[Connection]:
        """All connections, none of which can be opened any more."""
        connections = self.connections()
        for connection in connections:
            connection.shut()
        return connections

    def connections(self) -> list[Connection]:
        """All connections, also those that are retired and have calls under way."""
        return [
            *(connection for endpoint in self.endpoints for connection in endpoint.connections),
            *self._retired,
        ]


#: Codes for which the endpoint is to blame, not the request.
_BLAMED = frozenset(
    {
        "UNAVAILABLE",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "UNKNOWN",
        "DATA_LOSS",
        "CANCELLED",
    }
)
#: Codes by which a limit learns that there were too many calls.
_DROPPED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
