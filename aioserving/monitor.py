"""Watching a pool: probes of what does not answer, and of what was ejected, until it is well again.

A timer looks at the pool a few times a second while there is something to watch: calls under way, or an
endpoint that is out. An idle client has no timer, and nothing keeps a forgotten client alive.

What is asked is ``grpc.health.v1.Health/Check``. Any answer proves that a server is alive, also that it
does not know the method (the real server has the service only with a flag); only NOT_SERVING, and no
answer, count against it. Whether a model is there is for `ModelCheck` to say.

A connection on which calls wait and nothing came back for `HealthOptions.probe_after` seconds is probed.
If it does not answer that either, it is given up, and its calls are tried elsewhere. Where there is no
other endpoint, only if a new connection to the same one answers: a server that is slow is not helped by
sending everything twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from aioserving import errors
from aioserving.health import HEALTHY, OUTLIER, UNREACHABLE
from aioserving.pool import Connection, Endpoint, Place, Pool
from aioserving.retry import is_connection_failure
from aioserving.transport import Transport

__all__ = ["ModelCheck", "Monitor", "check_connection", "probe", "watch"]

logger = logging.getLogger("aioserving")

#: Asks an endpoint whether it has a place now; None if it cannot tell. Raises `RPCError`.
ModelCheck: TypeAlias = Callable[[Endpoint, Place, float], Awaitable["bool | None"]]

_CHECK = "/grpc.health.v1.Health/Check"
_NOT_SERVING = b"\x08\x02"

#: Seconds between two looks at the pool: while an endpoint is out, and otherwise.
_TICKS = (0.1, 0.25)


async def probe(transport: Transport, timeout: float) -> str:
    """Ask a server whether it is alive; gives what is wrong, empty if nothing is.

    Args:
        transport: the connection to ask on.
        timeout: seconds.
    """
    try:
        answer = await transport.call(_CHECK, b"", timeout, ())
    except errors.DeadlineExceededError:
        return f"it did not answer a probe within {timeout:g} s"
    except errors.ClientClosedError:
        return "the connection was closed"
    except errors.RPCError as error:
        lost = isinstance(error, errors.UnavailableError) or is_connection_failure(error)
        return error.details or error.code if lost else ""
    return "it says that it is not serving" if answer == _NOT_SERVING else ""


async def check_connection(pool: Pool, endpoint: Endpoint, timeout: float) -> str:
    """What is wrong with a new connection to an endpoint; empty if nothing is.

    Args:
        pool: opens the connection.
        endpoint: where to.
        timeout: seconds.
    """
    transport = pool.open_transport(endpoint.address)
    try:
        return await probe(transport, timeout)
    finally:
        await transport.close()


class Monitor:
    """Watches one pool, on the event loop that the pool is on.

    Args:
        pool: what to watch.
        check_model: how to find out whether an endpoint has a model.
        also: what else is to be done at every look.
    """

    def __init__(self, pool: Pool, check_model: ModelCheck, also: Callable[[], None] = lambda: None) -> None:
        self._also = also
        self._pool = pool
        self._check_model = check_model
        self._options = pool.health_options
        self._tasks: set[asyncio.Task[None]] = set()
        self._probed: set[Endpoint] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = -math.inf
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._timer is None else "watching"
        return f"<Monitor: {state}, {len(self._tasks)} probes under way>"

    def wake(self) -> None:
        """Begin to watch, if it does not yet; for `Pool.on_activity`."""
        if self._timer is None and not self._closed:
            self._schedule(_TICKS[0])
        self._pool.watched = True

    async def aclose(self) -> None:
        """Stop watching; returns when no probe is under way."""
        self._closed = True
        self.abandon()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def abandon(self) -> None:
        """Stop watching, without a loop to wait on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:  # one at a time, also if something happens during a look
            self._timer.cancel()
        self._timer = loop.call_later(seconds, _tick, weakref.ref(self))

    def tick(self) -> None:
        """Look at the pool once: start the probes that are due."""
        self._timer = None
        if self._closed:
            return
        try:
            self._also()
        except Exception:
            logger.exception("%r failed", self._also)
        now = self._pool.clock()
        busy, out, down = False, False, bool(self._pool.endpoints)
        for endpoint in self._pool.endpoints:
            # An outage is what has lasted: a server that restarts, alone, is retried meanwhile.
            if (
                endpoint.health.state != UNREACHABLE
                or now - endpoint.health.ejected_at < self._options.probe_after
            ):
                down = False
            if endpoint.health.state != HEALTHY:
                out = True
                if endpoint not in self._probed and endpoint.health.probe_due(now):
                    self._spawn(self._probe_endpoint(endpoint))
            for place, due in tuple(endpoint.missing.items()):
                out = True
                if now >= due:
                    endpoint.missing[place] = now + self._options.model_interval
                    self._spawn(self._ask_for(endpoint, place))
        for connection in self._pool.connections():
            # Also where nothing is under way now: calls may all have ended at their deadlines, unanswered.
            quiet_since = connection.quiet_since
            if quiet_since or connection.in_flight:
                busy = True
            quiet_since = max(quiet_since, connection.busy_until) if quiet_since else 0.0
            if quiet_since and now - max(quiet_since, connection.probed_at) >= self._options.probe_after:
                connection.probed_at = math.inf
                self._spawn(self._probe_connection(connection))
        if down:
            self._pool.on_outage()
        if now >= self._next_look:
            if self._next_look > -math.inf and len(self._pool.endpoints) > 1:
                self._pool.look_for_outliers()
            self._next_look = now + self._options.interval
        if busy or out or self._tasks:
            self._schedule(_TICKS[0] if out else _TICKS[1])
        else:
            self._pool.watched = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="aioserving probe")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a probe failed", exc_info=error)

    async def _probe_connection(self, connection: Connection) -> None:
        pool, endpoint = self._pool, connection.endpoint
        transport, quiet_since = connection.transport, connection.quiet_since
        try:
            if transport is None:
                return
            wrong = await probe(transport, self._options.probe_timeout)
            if not wrong and connection.quiet_since == quiet_since:
                connection.quiet_since = pool.clock() if connection.in_flight else 0.0
            if not wrong:
                return
            retired = connection.retired
            alone = not retired and not pool.others(None, (endpoint,))
            if alone and await check_connection(pool, endpoint, self._options.probe_timeout):
                if connection.quiet_since == quiet_since and not endpoint.removed:
                    pool.lose(endpoint, wrong)  # it keeps its calls, as there is nowhere to go
                return
            if connection.quiet_since != quiet_since or connection.transport is not transport:
                return  # it answered meanwhile, or is gone
            pool.give_up(connection, f"{endpoint.target} was given up: {wrong}")
            if not alone and not retired:
                pool.lose(endpoint, wrong)
        finally:
            connection.probed_at = pool.clock()

    async def _probe_endpoint(self, endpoint: Endpoint) -> None:
        """See if an endpoint is back. On a connection of its own: gRPC's would wait before it tries again."""
        self._probed.add(endpoint)
        try:
            wrong = await check_connection(self._pool, endpoint, self._options.probe_timeout)
            if wrong:
                if endpoint.health.state == OUTLIER:
                    self._pool.lose(endpoint, wrong)
                endpoint.health.reason = wrong
                return
            for connection in tuple(endpoint.connections):
                if connection.transport is not None and connection.state == "transient_failure":
                    self._pool.reopen(connection)
            self._pool.readmit(endpoint)
        finally:
            self._probed.discard(endpoint)

    async def _ask_for(self, endpoint: Endpoint, place: Place) -> None:
        try:
            has = await self._check_model(endpoint, place, self._options.probe_timeout)
        except errors.ServingError:
            return
        if has is not False:
            self._pool.find(endpoint, place)


def _tick(reference: weakref.ref[Monitor]) -> None:
    monitor = reference()
    if monitor is not None:
        monitor.tick()


def watch(pool: Pool, check_model: ModelCheck, also: Callable[[], None] = lambda: None) -> Monitor:
    """A monitor that wakes when the pool has something to watch; see `Monitor`."""
    monitor = Monitor(pool, check_model, also)
    reference = weakref.ref(monitor)

    def wake() -> None:
        found = reference()
        if found is not None:
            found.wake()

    pool.on_activity = wake
    return monitor
