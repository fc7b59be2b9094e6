"""A fleet of servers that exist only in memory, and an event loop whose time passes at once."""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from aioserving import errors
from aioserving.balancing import BalancingOptions, make_balancer
from aioserving.events import Event
from aioserving.health import HealthOptions
from aioserving.observers import Observers
from aioserving.pool import Pool, PoolOptions
from aioserving.targets import Target
from aioserving.transport import Slot

T = TypeVar("T")

PROBE = "/grpc.health.v1.Health/Check"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class VirtualLoop(asyncio.SelectorEventLoop):
    """When there is nothing to do, it is the time of the next timer at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        inner: Any = self
        if not inner._ready:
            timers = [handle for handle in inner._scheduled if not handle._cancelled]
            assert timers, "everything waits, and nothing will ever happen"
            self.now = max(self.now, min(handle._when for handle in timers))
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a virtual clock; no task may be left."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(work)
        loop.run_until_complete(turns(5))
        left = asyncio.all_tasks(loop)
        assert not left, left
        return result
    finally:
        loop.close()


async def turns(number: int = 3) -> None:
    """Let everything run that can run now."""
    for _ in range(number):
        await asyncio.sleep(0)


class Server:
    """One server: how it answers, and what it was asked.

    Attributes:
        latency: seconds before an answer; 0 answers without a pause.
        script: what the next calls get, before the rule: bytes, or an error, or None for never an answer.
        rule: what all others get.
        down: whether connections are refused.
        silent: whether it answers nothing at all, as if the network swallowed everything.
        probe: what it says when asked for its health.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.latency = 0.01
        self.script: collections.deque[bytes | errors.RPCError | None] = collections.deque()
        self.rule: Callable[[bytes], bytes | errors.RPCError | None] = lambda request: request + b"!"
        self.down = False
        self.silent = False
        self.probe: bytes | errors.RPCError = errors.UnimplementedError("unknown service")
        self.calls: list[tuple[float, bytes, dict[str, str]]] = []
        self.probes = 0


class Fleet:
    """Servers by address, and every transport that was ever opened to them."""

    def __init__(self, *targets: str) -> None:
        self.servers = {target: Server(target) for target in targets}
        self.transports: list[FakeTransport] = []

    def __getitem__(self, target: str) -> Server:
        return self.servers[target]

    def open(self, target: Target) -> Any:
        transport = FakeTransport(self.servers.setdefault(target.address, Server(target.address)))
        self.transports.append(transport)
        return transport

    def leaked(self) -> list[FakeTransport]:
        return [transport for transport in self.transports if transport.state != "closed"]


class _Call:
    """Stands where grpc's call object would be, for `Slot`."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.cancel = lambda message: end()


class FakeTransport:
    """Keeps `Transport`'s contract without a socket."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.target = server.target
        self.state = "idle"
        self.dead = False  # connected, and nothing comes back
        self.closed = 0
        self.abandoned = 0
        self._given_up = ""
        self._active: set[asyncio.Future[bytes]] = set()

    async def call(
        self,
        method: str,
        request: bytes,
        timeout: float | None,
        metadata: Iterable[tuple[str, str | bytes]],
        slot: Slot | None = None,
    ) -> bytes:
        if self._given_up:
            raise errors.UnavailableError(self._given_up, endpoint=self.target)
        if self.state == "closed":
            raise errors.ClientClosedError("the connection was closed")
        server, loop = self.server, asyncio.get_running_loop()
        outcome: bytes | errors.RPCError | None
        if method == PROBE:
            server.probes += 1
            outcome = server.probe
        else:
            server.calls.append((loop.time(), request, {key: str(value) for key, value in metadata}))
            outcome = server.script.popleft() if server.script else server.rule(request)
        if server.down:
            self.state = "transient_failure"
            outcome = errors.UnavailableError("failed to connect to all addresses: Connection refused")
        elif server.silent or self.dead:
            outcome = None
        else:
            self.state = "ready"
        if isinstance(outcome, errors.RPCError):
            outcome.endpoint = self.target
        future: asyncio.Future[bytes] = loop.create_future()

        def end(result: bytes | BaseException) -> None:
            if future.done():
                return
            if isinstance(result, bytes):
                future.set_result(result)
            else:
                future.set_exception(result)

        timers = []
        if outcome is not None:
            timers.append(loop.call_later(0 if server.down else server.latency, end, outcome))
        if timeout is not None:
            timers.append(
                loop.call_later(timeout, end, errors.DeadlineExceededError("too late", endpoint=self.target))
            )
        if slot is not None:
            superseded = errors.CancelledError("another attempt had answered", endpoint=self.target)
            slot._call = _Call(lambda: end(superseded))
        self._active.add(future)
        try:
            return await future
        finally:
            self._active.discard(future)
            for timer in timers:
                timer.cancel()

    def break_down(self) -> None:
        """The connection is lost: calls on it end so."""
        self.state = "idle"
        for future in tuple(self._active):
            if not future.done():
                future.set_exception(errors.UnavailableError("Socket closed", endpoint=self.target))

    def give_up(self, reason: str) -> int:
        self._given_up = reason
        futures = [future for future in self._active if not future.done()]
        for future in futures:
            error = errors.UnavailableError(reason, endpoint=self.target)
            error.withdrawn = True
            future.set_exception(error)
        return len(futures)

    async def close(self) -> None:
        self.closed += 1
        self.state = "closed"
        for future in tuple(self._active):
            if not future.done():
                future.set_exception(errors.ClientClosedError("the client was closed"))
        while self._active:
            await asyncio.sleep(0)

    def abandon(self) -> None:
        self.abandoned += 1
        self.state = "closed"


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Events(list[Event]):
    """An observer that remembers."""

    def observe(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


def make_pool(
    fleet: Fleet,
    *,
    policy: str = "least_outstanding",
    clock: Callable[[], float] | None = None,
    events: Events | None = None,
    health: HealthOptions | None = None,
    ramp: float = 0.0,
    weights: dict[str, float] | None = None,
    **options: Any,
) -> Pool:
    """A pool over a fleet, without chance."""
    balancing = BalancingOptions(policy=policy, ramp=ramp)
    if "max_waiting" not in options:
        options["max_waiting"] = 100
    return Pool(
        [Target(target, (weights or {}).get(target, 1.0)) for target in fleet.servers],
        fleet.open,
        options=PoolOptions(**options),
        balancer=make_balancer(balancing, random.Random(7)),
        health=health,
        observers=Observers([events.observe] if events is not None else []),
        clock=clock or _clock(),
    )


def _clock() -> Callable[[], float]:
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return Clock()
