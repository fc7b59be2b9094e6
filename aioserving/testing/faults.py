"""`FaultProxy`: a network that misbehaves on demand, between client and server; and models that misbehave.

    async with FaultProxy(server.target) as proxy, AsyncClient(proxy.target) as client:
        proxy.set(Delay(0.05, jitter=0.01))                 # from now on, on every connection
        proxy.set(Throttle(10_000), direction="to_client", share=0.2)
        with proxy.fault(BlackHole()):                      # only in here
            ...
        proxy.heal()                                        # all is well again

The proxy listens on a TCP port or a Unix socket and passes bytes on, whatever they are (gRPC, TLS, HTTP).
Faults can be set and healed at any time and act at once, on running connections too. They are decided by
seeded random numbers.

    Delay        chunks arrive later, in order; throughput stays
    Throttle     so many bytes per second
    Cut          the connection ends after so many bytes, by FIN or RST
    Reset        RST, now and for every new connection
    BlackHole    connections are taken and nothing passes; when healed, what was held goes on
    HalfOpen     one direction is lost, the other goes on, and nobody is told
    Corrupt      flipped bits
    Refuse       nobody listens: connection refused
    SlowAccept   new connections wait before they are taken up

Faults stack. Of several of one kind the latest that covers a connection and direction counts, so
``set(Delay(0.01))`` and then ``set(Delay(1.0), share=0.05)`` give one connection in twenty a second.

Three ways to run it
    ``async with FaultProxy(...)`` on this event loop; ``with FaultProxy(...)`` on a thread of its own; and
    ``with FaultProxyProcess(...)`` in a process of its own, which takes no time from the loop under test.
    By hand: ``python -m aioserving.testing.faults --target 127.0.0.1:8500 --fault 'Delay(0.05)'``.

What it cannot do is lose or reorder packets: it sees streams, not packets. `slow` and `failing` make the
model function misbehave instead of the network. Servers that die or hang are the business of `process`.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import dataclasses
import errno
import functools
import inspect
import json
import logging
import math
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, TypeVar, cast

from aioserving.testing.status import StatusCode, StatusError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "BlackHole",
    "BlockingFaultProxy",
    "Connections",
    "Corrupt",
    "Cut",
    "Delay",
    "Direction",
    "Fault",
    "FaultProxy",
    "FaultProxyError",
    "FaultProxyProcess",
    "FaultStats",
    "HalfOpen",
    "Refuse",
    "Reset",
    "Rule",
    "SlowAccept",
    "Throttle",
    "failing",
    "parse_fault",
    "slow",
]

logger = logging.getLogger("aioserving.testing")

#: Which way the bytes go that a fault is about.
Direction: TypeAlias = Literal["both", "to_target", "to_client"]

#: Which connections a fault is about: by when they came, seen from the moment it is set.
Connections: TypeAlias = Literal["all", "new", "existing"]

#: Bytes that may be on their way in one direction of a delayed connection, on top of the buffer.
_LINE: Final = 64 * 1024 * 1024
#: Bytes that a socket's own buffer may hold before its source is held back.
_SOCKET_BUFFER: Final = 64 * 1024
#: Seconds of traffic that a throttled connection passes on at a time.
_TICK: Final = 0.01
#: Seconds for which a connection that was cut waits for its peers to close.
_LINGER: Final = 1.0

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


# -- faults -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What all faults are."""

    #: Which directions the fault can be limited to; the first is the default.
    directions: ClassVar[tuple[Direction, ...]] = ("both", "to_target", "to_client")
    #: Whether it can be limited to some connections.
    partial: ClassVar[bool] = True


@dataclass(frozen=True)
class _Latency(Fault):
    #: Seconds.
    seconds: float
    #: Seconds more or less, uniformly; at most `seconds`.
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _check_number(self, "seconds", self.seconds, 0)
        _check_number(self, "jitter", self.jitter, 0)
        if self.jitter > self.seconds:
            raise ValueError(f"{type(self).__name__}: jitter must be at most seconds, got {self!r}")

    def at(self, position: float) -> float:
        """Seconds for a random `position` between -1 and 1."""
        return self.seconds + self.jitter * position


@dataclass(frozen=True)
class Delay(_Latency):
    """Every chunk arrives `seconds` later, give or take `jitter`; the order is kept, and so is throughput."""


@dataclass(frozen=True)
class SlowAccept(_Latency):
    """A new connection is taken up, and the target connected, only after `seconds`, give or take `jitter`."""

    directions: ClassVar[tuple[Direction, ...]] = ("both",)


@dataclass(frozen=True)
class Throttle(Fault):
    """At most `bytes_per_second` pass on each connection, in each direction; the sender is held back."""

    bytes_per_second: float

    def __post_init__(self) -> None:
        _check_number(self, "bytes_per_second", self.bytes_per_second, 0)
        if not self.bytes_per_second > 0:
            raise ValueError(f"Throttle: bytes_per_second must be above 0, got {self!r}; see BlackHole")


@dataclass(frozen=True)
class Cut(Fault):
    """A connection ends once `after` bytes passed in a direction, counted from when the fault is set.

    Both sides get a clean end (FIN), or with `reset` an RST, which may overtake the last bytes. With
    ``after=0`` it ends at the first byte, which does not pass.
    """

    after: int = 0
    reset: bool = False

    def __post_init__(self) -> None:
        _check_count(self, "after", self.after)


@dataclass(frozen=True)
class Reset(Fault):
    """Running connections are reset (RST) on both sides, and new ones as soon as they are taken."""

    directions: ClassVar[tuple[Direction, ...]] = ("both",)


@dataclass(frozen=True)
class BlackHole(Fault):
    """Connections are taken, and nothing passes: no byte, no end of stream, no reset.

    When healed, what was held goes on, as after a network partition that TCP outlived. New connections
    reach the target only then, even if just one direction is held.
    """


@dataclass(frozen=True)
class HalfOpen(Fault):
    """One direction is lost for good, bytes and ends of streams, while the other goes on; nobody is told.

    When healed, connections that lost something are reset: their streams have holes.
    """

    directions: ClassVar[tuple[Direction, ...]] = ("to_client", "to_target")


@dataclass(frozen=True)
class Corrupt(Fault):
    """One random bit is flipped: in a random `share` of all bytes, or once, in byte number `at`.

    `at` counts from 0, per connection and direction, from when the fault is set.
    """

    share: float | None = None
    at: int | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.at is None):
            raise ValueError(f"Corrupt: give share or at, and not both; got {self!r}")
        if self.at is not None:
            _check_count(self, "at", self.at)
        elif self.share is not None:
            _check_share(self, self.share)


@dataclass(frozen=True)
class Refuse(Fault):
    """The listener is closed: new connections are refused. The port stays taken, and is reopened when healed.

    Running connections go on; add `Reset` to end them.
    """

    directions: ClassVar[tuple[Direction, ...]] = ("both",)
    partial: ClassVar[bool] = False


_KINDS: Final[dict[str, type[Fault]]] = {
    kind.__name__: kind
    for kind in (BlackHole, Corrupt, Cut, Delay, HalfOpen, Refuse, Reset, SlowAccept, Throttle)
}


def parse_fault(text: str) -> Fault:
    """The fault that `text` describes, as Python and its repr do: ``"Delay(0.05, jitter=0.01)"``.

    Raises:
        ValueError: it is not the call of a fault with numbers.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not a call")
        kind = _KINDS[call.func.id]
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, KeyError) as error:
        raise ValueError(
            f"{text!r} is not a fault such as 'Delay(0.05, jitter=0.01)'; there are {', '.join(_KINDS)}"
        ) from error
    try:
        return kind(*arguments, **named)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error


@dataclass(frozen=True)
class Rule:
    """A fault that is set, and for what. Give it to `heal` to end it."""

    #: Counts the rules of a proxy, from 1.
    number: int
    fault: Fault
    direction: Direction
    #: Share of connections, 0 to 1; which ones is decided at random, for each connection once.
    share: float
    connections: Connections
    #: Number of the first connection that came after the rule.
    first: int

    def __str__(self) -> str:
        text = repr(self.fault)
        if len(type(self.fault).directions) > 1:
            text += f" {self.direction}"
        if self.share < 1:
            text += f" {self.share:.3g} of"
        if self.share < 1 or self.connections != "all":
            text += f" {self.connections} connections"
        return text

    def covers(self, older: Rule) -> bool:
        """Whether nothing is left for `older` to do, now that this rule is there."""
        return (
            self is not older
            and type(self.fault) is type(older.fault)
            and self.direction in ("both", older.direction)
            and self.share == 1
            and self.connections == "all"
        )


@dataclass(frozen=True)
class FaultStats:
    """What a proxy holds and has done, at one moment."""

    #: Connections taken and not ended.
    connections: int
    #: Connections taken, ever.
    connections_ever: int
    #: Connections ended because the target could not be connected.
    target_failures: int
    #: Bytes passed on to the target.
    bytes_to_target: int
    #: Bytes passed on to clients.
    bytes_to_client: int
    #: Bytes read and not passed on yet.
    bytes_held: int
    #: Bytes that `HalfOpen` swallowed.
    bytes_lost: int
    #: Name of a fault -> how often it acted: chunks delayed; chunks cut up or kept waiting by a throttle;
    #: bits flipped; connections cut, reset, held, half open or taken late; closings of the listener.
    faults: Mapping[str, int]
    #: The faults set, in the order in which they were.
    rules: tuple[Rule, ...]


class FaultProxyError(RuntimeError):
    """The proxy cannot do this now, or its process did not get ready or is gone."""


# -- the proxy --------------------------------------------------------------------------------------------


class FaultProxy:
    """Forwards connections to `target`, with faults; see the module.

    Args:
        target: where to forward to: ``"host:port"`` or ``"unix:/path"``.
        listen: where to listen: ``"host:port"`` (port 0: any free one) or ``"unix:/path"``.
        seed: of every random decision: with the same faults set in the same order, the same connections and
            the same bytes are hit, counting connections as they come and bytes as they pass.
        buffer_size: bytes kept for a receiver, per connection and direction, before the sender is held back.

    Use it with ``async with`` on the running loop; all methods are to be called there, and none of them
    blocks. ``with FaultProxy(...) as proxy`` runs it on a thread and gives a `BlockingFaultProxy`. Faults may
    be set before it starts.

    Raises:
        ValueError: an address is malformed, or `buffer_size` is not above 0.
    """

    def __init__(
        self, target: str, *, listen: str = "127.0.0.1:0", seed: int = 0, buffer_size: int = 256 * 1024
    ) -> None:
        self.forwards_to = target
        self.seed = seed
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be above 0, got {buffer_size!r}")
        self.buffer_size = buffer_size
        self._to = _address(target)
        self._listen = _address(listen)
        self._socket: socket.socket | None = None
        self._listening = False
        self._refusing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state: Literal["not started", "running", "closed"] = "not started"
        self._connections: set[_Connection] = set()
        self._ever = 0
        self._rules: tuple[Rule, ...] = ()
        self._rules_ever = 0
        self._applied: Counter[str] = Counter()
        self._passed = {"to_target": 0, "to_client": 0}
        self._lost = 0
        self._target_failures = 0
        self._again: asyncio.TimerHandle | None = None
        self._blocking: BlockingFaultProxy | None = None

    # -- life

    @property
    def target(self) -> str:
        """What a client connects to: ``"127.0.0.1:PORT"`` (0 until started) or ``"unix:/path"``."""
        if isinstance(self._listen, str):
            return f"unix:{self._listen}"
        host, port = self._listen
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def port(self) -> int | None:
        """The TCP port, 0 until started; None on a Unix socket."""
        return None if isinstance(self._listen, str) else self._listen[1]

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.
            FaultProxyError: started before.
        """
        if self._state != "not started":
            raise FaultProxyError(f"{self!r} cannot be started again")
        self._loop = asyncio.get_running_loop()
        self._socket = self._bind()
        if not isinstance(self._listen, str):
            self._listen = (self._listen[0], self._socket.getsockname()[1])
        self._state = "running"
        try:
            self._apply()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the listener and all connections; returns when they are closed. Safe to call again."""
        if self._state == "not started":
            self._state = "closed"
        if self._state == "closed":
            return
        self._check_loop()
        self._state = "closed"
        self._deafen()
        if isinstance(self._listen, str):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._listen)
        ends = [connection.ended for connection in self._connections]
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.gather(*ends)

    async def __aenter__(self) -> FaultProxy:  # noqa: PYI034 - typing.Self needs Python 3.11
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> BlockingFaultProxy:
        """Run on a thread of its own, for code that is not async."""
        self._blocking = BlockingFaultProxy(self)
        self._blocking.start()
        return self._blocking

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            blocking.close()

    def __repr__(self) -> str:
        faults = ", ".join(map(str, self._rules)) or "no fault"
        state = f"{len(self._connections)} connections" if self._state == "running" else self._state
        return f"<FaultProxy {self.target} -> {self.forwards_to}, {state}, {faults}>"

    # -- faults

    def set(
        self,
        fault: Fault,
        *,
        direction: Direction | None = None,
        share: float = 1.0,
        connections: Connections = "all",
    ) -> Rule:
        """Let `fault` act from now on, until it is healed.

        Args:
            fault: what goes wrong. It takes the place of earlier ones of its kind, but for connections and
                directions that it does not take.
            direction: ``"to_target"``, ``"to_client"`` or ``"both"``, each direction for itself. By default
                both; for `HalfOpen`, to the client.
            share: share of connections, 0 to 1, that it takes, decided at random for each.
            connections: ``"new"`` for those that come from now on, ``"existing"`` for those that are there
                (as when a firewall forgets idle connections), ``"all"`` for both.

        Raises:
            ValueError: the fault cannot be limited so.
            OSError: the listener cannot be reopened.
        """
        rule = self._push(fault, direction=direction, share=share, connections=connections)
        self._rules = tuple(older for older in self._rules if not rule.covers(older))
        return rule

    def _push(
        self, fault: Fault, *, direction: Direction | None, share: float, connections: Connections
    ) -> Rule:
        self._check_loop()
        kind = type(fault)
        if kind.__name__ not in _KINDS:
            raise ValueError(f"a fault is one of {', '.join(_KINDS)}; got {fault!r}")
        if direction is None:
            direction = kind.directions[0]
        if direction not in kind.directions:
            raise ValueError(
                f"{kind.__name__} has direction {' or '.join(map(repr, kind.directions))}, not {direction!r}"
            )
        _check_share(fault, share)
        if connections not in ("all", "new", "existing"):
            raise ValueError(f"connections is 'all', 'new' or 'existing', got {connections!r}")
        if not kind.partial and (share < 1 or connections != "all"):
            raise ValueError(f"{kind.__name__} cannot be limited to some connections")
        self._rules_ever += 1
        rule = Rule(self._rules_ever, fault, direction, share, connections, self._ever)
        self._rules = (*self._rules, rule)
        self._apply()
        return rule

    def heal(self, what: Rule | type[Fault] | None = None) -> None:
        """End one rule, all faults of one kind, or everything; what is not there is no error.

        What was held or delayed goes on at once. Connections that were ended stay so.

        Raises:
            OSError: the listener cannot be reopened.
        """
        self._check_loop()
        if what is None:
            self._rules = ()
        elif isinstance(what, Rule):
            self._rules = tuple(rule for rule in self._rules if rule.number != what.number)
        else:
            self._rules = tuple(rule for rule in self._rules if not isinstance(rule.fault, what))
        self._apply()

    @contextlib.contextmanager
    def fault(
        self,
        fault: Fault,
        *,
        direction: Direction | None = None,
        share: float = 1.0,
        connections: Connections = "all",
    ) -> Iterator[Rule]:
        """Let `fault` act as with `set`, and end it on leaving: what was set before is back then."""
        rule = self._push(fault, direction=direction, share=share, connections=connections)
        try:
            yield rule
        finally:
            self.heal(rule)

    def stats(self) -> FaultStats:
        """Connections, bytes and faults, at this moment."""
        return FaultStats(
            connections=len(self._connections),
            connections_ever=self._ever,
            target_failures=self._target_failures,
            bytes_to_target=self._passed["to_target"],
            bytes_to_client=self._passed["to_client"],
            bytes_held=sum(flow.queued for connection in self._connections for flow in connection.flows),
            bytes_lost=self._lost,
            faults=dict(self._applied),
            rules=self._rules,
        )

    # -- the inside

    def _check_loop(self) -> None:
        if self._loop is not None and self._state == "running" and _running_loop() is not self._loop:
            raise FaultProxyError(
                f"{self!r} is to be used on its own event loop; `with FaultProxy(...)`, without async, gives "
                "one for every thread"
            )

    def _bind(self) -> socket.socket:
        """A socket with the proxy's address, which does not listen: who connects is refused."""
        if isinstance(self._listen, str):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.stat(self._listen).st_mode):
                    os.unlink(self._listen)
            family, address = socket.AF_UNIX, cast("Any", self._listen)
        else:
            host, port = self._listen
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            bound.close()
            raise OSError(error.errno, f"cannot listen on {self.target}: {error.strerror}") from error
        return bound

    def _apply(self) -> None:
        """Make the listener and every connection follow the rules."""
        if self._state != "running":
            return
        refuse = any(isinstance(rule.fault, Refuse) for rule in self._rules)
        if refuse and not self._refusing:
            self._applied["Refuse"] += 1
            if self._listening:
                self._deafen()
        self._refusing = refuse
        if self._socket is None:
            # A socket that is bound and does not listen keeps the port from going to anybody else.
            self._socket = self._bind()
        if not refuse and not self._listening:
            self._socket.listen(1024)
            self._listening = True
            self._hear()
        for connection in tuple(self._connections):
            connection.apply(self._rules)

    def _hear(self) -> None:
        self._again = None
        if self._loop is not None and self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _deafen(self) -> None:
        """Close the listener, with the connections that nobody has taken yet."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._socket is not None and self._loop is not None:
            if self._listening:
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._socket = None
        self._listening = False

    def _accept(self) -> None:
        while self._socket is not None and self._loop is not None:
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logger.warning("%r cannot take a connection: %s", self, error)
                    self._loop.remove_reader(self._socket.fileno())
                    self._again = self._loop.call_later(0.1, self._hear)
                    return
                continue  # one that its client gave up
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, self._ever, accepted, self._loop)
            self._ever += 1
            self._connections.add(connection)
            connection.apply(self._rules)
            connection.begin()

    async def _connect_target(self, leg: _Leg) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self._to, str):
            await loop.create_unix_connection(lambda: leg, self._to)
        else:
            await loop.create_connection(lambda: leg, *self._to)

    def _draws(self, rule: Rule, connection: int) -> bool:
        """Whether `rule` takes the connection of this number."""
        if rule.connections == "new" and connection < rule.first:
            return False
        if rule.connections == "existing" and connection >= rule.first:
            return False
        if rule.share >= 1:
            return True
        return random.Random(f"{self.seed}/{rule.number}/{connection}").random() < rule.share  # noqa: S311


class _Connection:
    """A client's socket, the target's, and a flow each way."""

    def __init__(
        self, proxy: FaultProxy, number: int, accepted: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.proxy = proxy
        self.number = number
        self.loop = loop
        self.ended: asyncio.Future[None] = loop.create_future()
        #: The client's socket until its leg has it; the loop owns it from `_handed_over` on.
        self.accepted: socket.socket | None = accepted
        self._handed_over = False
        self.to_target = _Flow(self, "to_target")
        self.to_client = _Flow(self, "to_client")
        self.flows = (self.to_target, self.to_client)
        self.client = _Leg(self, reads=self.to_target, writes=self.to_client)
        self.target = _Leg(self, reads=self.to_client, writes=self.to_target)
        self.to_target.join(self.client, self.target)
        self.to_client.join(self.target, self.client)
        #: Set once the proxy itself ends the connection: nothing passes any more.
        self.closing = False
        self._taken: dict[int, bool] = {}
        self._rules: tuple[Rule, ...] = ()
        self._wake = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._position = self._random("accept").uniform(-1, 1)

    def __repr__(self) -> str:
        return f"<_Connection {self.number}{' closing' if self.closing else ''} {self.flows}>"

    def _random(self, what: str) -> random.Random:
        return random.Random(f"{self.proxy.seed}/{self.number}/{what}")  # noqa: S311 - not for secrets

    # -- coming

    def begin(self) -> None:
        if not self.closing:
            self._opening = self.loop.create_task(self._open())
            self._opening.add_done_callback(self._opened)

    async def _open(self) -> None:
        """Wait as the faults want it, connect the target, and then read from the client."""
        begun = self.loop.time()
        counted = set()
        while True:
            self._wake.clear()
            hole = any(self._rule(BlackHole, flow.direction) for flow in self.flows)
            late = self._rule(SlowAccept)
            left: float | None = None
            if not hole:
                if late is None:
                    break
                left = begun + cast("SlowAccept", late.fault).at(self._position) - self.loop.time()
                if left <= 0:
                    break
                counted.add("SlowAccept")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)
        self.proxy._applied.update(counted)
        try:
            await self.proxy._connect_target(self.target)
        except OSError as error:
            logger.info("%r cannot connect its target: %s", self.proxy, error)
            self.proxy._target_failures += 1
            self.reset()
            return
        if self.accepted is not None:
            self._handed_over = True
            await self.loop.connect_accepted_socket(lambda: self.client, self.accepted)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if self._handed_over:
            self.accepted = None
        if opening.cancelled():
            for leg in (self.client, self.target):
                leg.check_lost()
        elif (error := opening.exception()) is not None:
            logger.error("%r failed to take a connection", self.proxy, exc_info=error)
            self.abort()
        self.check_end()

    # -- following the rules

    def _rule(self, kind: type[Fault], direction: str | None = None) -> Rule | None:
        """The rule of this kind that counts here."""
        for rule in reversed(self._rules):
            if type(rule.fault) is kind and (direction is None or rule.direction in ("both", direction)):
                return rule
        return None

    def apply(self, rules: tuple[Rule, ...]) -> None:
        """Follow `rules` from now on."""
        taken = self._taken
        for rule in rules:
            if rule.number not in taken:
                taken[rule.number] = self.proxy._draws(rule, self.number)
        self._rules = tuple(rule for rule in rules if taken[rule.number])
        if (
            len(taken) > 2 * len(rules) + 16
        ):  # a rule that returns would only be drawn anew, with this outcome
            self._taken = {rule.number: taken[rule.number] for rule in rules}
        if self.closing:
            return
        if self._rule(Reset) is not None:
            self.proxy._applied["Reset"] += 1
            self.reset()
            return
        held = any(flow.held for flow in self.flows)
        for flow in self.flows:
            flow.follow(
                delay=self._rule(Delay, flow.direction),
                throttle=self._rule(Throttle, flow.direction),
                cut=self._rule(Cut, flow.direction),
                corrupt=self._rule(Corrupt, flow.direction),
                held=self._rule(BlackHole, flow.direction) is not None,
                swallow=self._rule(HalfOpen, flow.direction) is not None,
            )
        if not held and any(flow.held for flow in self.flows):
            self.proxy._applied["BlackHole"] += 1
        if any(flow.holed and not flow.swallow for flow in self.flows):
            self.reset()
            return
        self._wake.set()
        for flow in self.flows:
            flow.pump()

    # -- going

    def check_done(self) -> None:
        """Close both sides, once each has said all it had to say."""
        if not self.closing and all(flow.over for flow in self.flows):
            self.closing = True
            for leg in (self.client, self.target):
                leg.close()

    def end(self) -> None:
        """End both sides by FIN. What they still send is read, since closing on it would send an RST."""
        if self.closing:
            return
        self.closing = True
        for flow in self.flows:
            flow.stop()
        for leg in (self.client, self.target):
            leg.end()
        self._linger = self.loop.call_later(_LINGER, self.abort)

    def reset(self) -> None:
        """End both sides by RST (on Unix sockets, which have none, by closing)."""
        for leg in (self.client, self.target):
            leg.reset_on_close()
        if self.accepted is not None:
            _reset_on_close(self.accepted)
        self.abort()

    def abort(self) -> None:
        """Close both sides at once."""
        self.closing = True
        for flow in self.flows:
            flow.stop()
        if self._opening is not None:
            self._opening.cancel()
        if self.accepted is not None and not self._handed_over:
            self.accepted.close()
            self.accepted = None
        for leg in (self.client, self.target):
            leg.abort()
        self.check_end()

    def check_end(self) -> None:
        """Forget the connection, once nothing is left of it."""
        if self._opening is not None or self.accepted is not None or self.client.open or self.target.open:
            return
        if self._linger is not None:
            self._linger.cancel()
        for flow in self.flows:
            flow.stop()
        self.proxy._connections.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)


class _Leg(asyncio.Protocol):
    """One socket of a connection: what it reads goes into one flow, and the other flow writes into it."""

    def __init__(self, connection: _Connection, *, reads: _Flow, writes: _Flow) -> None:
        self.connection = connection
        self.reads = reads
        self.writes = writes
        self.transport: asyncio.Transport | None = None
        #: Whether there is a socket.
        self.open = False
        #: Whether there was one and it is gone.
        self.gone = False
        #: Whether it cannot take bytes now: not there yet, or its buffer is full.
        self.blocked = True
        self.at_eof = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.open = True
        self.blocked = False
        self.check_lost()
        if self.gone:
            return
        self.transport.set_write_buffer_limits(high=_SOCKET_BUFFER)
        if self.connection.closing:
            self.abort()
            return
        self.reads.regulate()
        self.writes.pump()

    def data_received(self, data: bytes) -> None:
        self.reads.feed(data)

    def eof_received(self) -> bool:
        if not self.at_eof:
            self.at_eof = True
            if self.connection.closing:
                self.close()
            else:
                self.reads.feed(b"")
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self.gone = True
        self.blocked = True
        if not self.connection.closing:
            self.reads.feed(None)
            self.writes.drop()
        self.connection.check_end()

    def check_lost(self) -> None:
        """Take a socket that was closed while it was opened for lost: uvloop says nothing more of it."""
        if self.open and self.transport is not None and self.transport.is_closing():
            self.open = False
            self.gone = True
            self.blocked = True

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self.writes.pump()

    def pause_reading(self, paused: bool) -> None:
        """Leave what comes to the kernel, and so to the sender, or read again."""
        transport = self.transport
        if transport is None or paused == self._paused or self.at_eof or transport.is_closing():
            return
        self._paused = paused
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def write(self, data: bytes | memoryview) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the peer has reset it, and connection_lost is to come
                self.transport.write_eof()

    def end(self) -> None:
        """FIN; and then read, for nobody, until the peer's."""
        self.write_eof()
        if self.at_eof:
            self.close()
        else:
            self.pause_reading(False)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset_on_close(self) -> None:
        if self.transport is not None and self.open:
            _reset_on_close(self.transport.get_extra_info("socket"))

    def abort(self) -> None:
        if self.transport is not None and self.open:
            self.transport.abort()


class _Flow:
    """One direction of a connection: from its source, through the faults, into its sink."""

    source: _Leg
    sink: _Leg

    def __init__(self, connection: _Connection, direction: Literal["to_target", "to_client"]) -> None:
        self.connection = connection
        self.proxy = connection.proxy
        self.direction = direction
        self.queued = 0
        self.held = False
        self.swallow = False
        #: Whether `swallow` took something, so that the stream can never be whole again.
        self.holed = False
        #: Whether the end of the stream has passed, or nobody is left to take it.
        self.done = False
        self._plain = True
        #: When it came, a random number for the jitter, and the bytes; b"" is the end, None a reset.
        self._queue: deque[tuple[float, float, bytes | memoryview | None]] = deque()
        self._random = connection._random(direction)
        self._timer: asyncio.TimerHandle | None = None
        self._limit = self.proxy.buffer_size
        self._delay: Delay | None = None
        self._throttle: Throttle | None = None
        self._free_at = 0.0
        self._waited = False
        self._cut: Rule | None = None
        self._cut_left = 0
        self._corrupt: Rule | None = None
        self._flips: Iterator[int] = iter(())
        self._flip = math.inf  # bytes from here to the next one to be flipped
        self._corruptions: random.Random = self._random

    def __repr__(self) -> str:
        return f"<_Flow {self.direction} {self.queued} queued>"

    @property
    def over(self) -> bool:
        """Whether nothing can come out of it any more."""
        return self.done or (self.source.gone and not self._queue)

    def join(self, source: _Leg, sink: _Leg) -> None:
        self.source, self.sink = source, sink

    def follow(
        self,
        *,
        delay: Rule | None,
        throttle: Rule | None,
        cut: Rule | None,
        corrupt: Rule | None,
        held: bool,
        swallow: bool,
    ) -> None:
        """Take these faults from now on; the caller pumps afterwards."""
        self._delay = cast("Delay", delay.fault) if delay is not None else None
        limit = self.proxy.buffer_size
        if throttle is not None:
            rate = cast("Throttle", throttle.fault).bytes_per_second
            if self._throttle is None or self._throttle.bytes_per_second != rate:
                self._throttle, self._free_at = Throttle(rate), 0.0
            if self._delay is not None:
                limit += int(min(_LINE, rate * (self._delay.seconds + self._delay.jitter)))
        else:
            self._throttle = None
            if self._delay is not None:
                limit += _LINE
        self._limit = limit
        if cut is not self._cut:
            self._cut = cut
            self._cut_left = cast("Cut", cut.fault).after if cut is not None else 0
        if corrupt is not self._corrupt:
            self._corrupt = corrupt
            fault = cast("Corrupt", corrupt.fault) if corrupt is not None else None
            # A generator of its own: how the bytes are cut into chunks must not decide which are flipped.
            self._corruptions = self.connection._random(f"{self.direction}/{corrupt and corrupt.number}")
            self._flip = math.inf if fault is None else self._next_flip(fault, first=True)
        self.held = held
        if swallow and not self.swallow and not self.done:
            self.proxy._applied["HalfOpen"] += 1
        self.swallow = swallow
        if swallow:
            self._swallow_queue()
        self._plain = delay is throttle is cut is corrupt is None and not held and not swallow

    def feed(self, data: bytes | None) -> None:
        """What the source read: bytes, b"" for the end of the stream, None when the connection was lost."""
        if self.connection.closing or (self.done and data is not None):
            return
        if self.sink.gone:
            if not data:  # nobody is left on either side
                self.done = True
                self.connection.check_done()
            return
        if self._plain and data and not self._queue and not self.sink.blocked:
            self.proxy._passed[self.direction] += len(data)
            self.sink.write(data)
            return
        if self.swallow:
            self.holed = True
            self.proxy._lost += len(data or b"")
            return
        if self._delay is not None and data:
            self.proxy._applied["Delay"] += 1
        position = self._random.uniform(-1, 1)
        self._queue.append((self.connection.loop.time(), position, data))
        self.queued += len(data or b"")
        if len(self._queue) == 1:
            self.pump()
        else:
            self.regulate()

    def pump(self) -> None:
        """Pass on what is due, and come back when more is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, loop = self._queue, self.connection.loop
        while queue and not self.held and not self.sink.blocked and not self.connection.closing:
            came, position, data = queue[0]
            due = came if self._delay is None else came + self._delay.at(position)
            if self._throttle is not None and data:
                due = max(due, self._free_at)
            now = loop.time()
            if due > now:
                self._waited = self._throttle is not None and due == self._free_at
                self._timer = loop.call_at(due, self.pump)
                break
            if not data:
                queue.clear()
                self._finish(data)
                return
            self._pass(queue, data, due, now)
        self.regulate()

    def _pass(self, queue: deque[Any], data: bytes | memoryview, due: float, now: float) -> None:
        """Write the first of the queue, or as much of it as the faults let pass."""
        came, position, _ = queue.popleft()
        size = len(data)
        if self._throttle is not None:
            rate = self._throttle.bytes_per_second
            size = min(size, max(1, int(rate * _TICK)))
            # From when it was due, not from now: a late timer would make it slower than it should be.
            self._free_at = max(due, now - _TICK) + size / rate
            if size < len(data) or self._waited:
                self.proxy._applied["Throttle"] += 1
            self._waited = False
        cut = self._cut is not None and self._cut_left <= size
        if cut:
            size = self._cut_left
        piece = data
        if size < len(data):
            whole = memoryview(data)
            piece = whole[:size]
            queue.appendleft((came, position, whole[size:]))
        self._cut_left -= size
        self.queued -= size
        if self._flip < math.inf:
            piece = self._flipped(piece)
        self.proxy._passed[self.direction] += size
        if size:
            self.sink.write(piece)
        if cut:
            self._cut_now()

    def _finish(self, data: bytes | memoryview | None) -> None:
        """Pass on the end of the stream (b""), or that the connection was lost (None)."""
        self.queued = 0
        if data is None:
            self.connection.reset()
        else:
            self.done = True
            self.sink.write_eof()
            self.connection.check_done()

    def _cut_now(self) -> None:
        self.proxy._applied["Cut"] += 1
        if self._cut is not None and cast("Cut", self._cut.fault).reset:
            self.connection.reset()
        else:
            self.connection.end()

    def _next_flip(self, fault: Corrupt, first: bool = False) -> float:
        """Bytes that stay whole before the next one that is flipped."""
        if fault.at is not None:
            return fault.at if first else math.inf
        share = fault.share or 0.0
        if not 0 < share < 1:
            return 0 if share else math.inf
        # Bytes between two hits have a geometric distribution: one random number a hit, not one a byte.
        return int(math.log(1 - self._corruptions.random()) / math.log1p(-share))

    def _flipped(self, data: bytes | memoryview) -> bytes | memoryview:
        if self._flip >= len(data) or self._corrupt is None:
            self._flip -= len(data)
            return data
        fault = cast("Corrupt", self._corrupt.fault)
        changed = bytearray(data)
        while self._flip < len(changed):
            changed[int(self._flip)] ^= 1 << self._corruptions.randrange(8)
            self.proxy._applied["Corrupt"] += 1
            self._flip += 1 + self._next_flip(fault)
        self._flip -= len(changed)
        return bytes(changed)

    def regulate(self) -> None:
        """Read from the source unless enough is waiting."""
        self.source.pause_reading(self.held or self.queued >= self._limit)

    def _swallow_queue(self) -> None:
        if self._queue:
            self.holed = True
            self.proxy._lost += self.queued
        self._queue.clear()
        self.queued = 0

    def drop(self) -> None:
        """The sink is gone: nobody takes what is queued, but what the source still says has to be read."""
        self._queue.clear()
        self.queued = 0
        if self.source.at_eof or self.source.gone:
            self.done = True
        self.connection.check_done()
        self.regulate()

    def stop(self) -> None:
        """Nothing passes any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue.clear()
        self.queued = 0


def _reset_on_close(connected: Any) -> None:
    if connected is not None and connected.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


# -- the proxy from elsewhere -----------------------------------------------------------------------------


class _Remote:
    """`FaultProxy`'s methods, blocking, for a proxy that runs elsewhere."""

    def _push(
        self, *, keep: bool, fault: Fault, direction: Direction | None, share: float, connections: Connections
    ) -> Rule:
        raise NotImplementedError

    def heal(self, what: Rule | type[Fault] | None = None) -> None:
        """See `FaultProxy.heal`."""
        raise NotImplementedError

    def stats(self) -> FaultStats:
        """See `FaultProxy.stats`."""
        raise NotImplementedError

    def set(
        self,
        fault: Fault,
        *,
        direction: Direction | None = None,
        share: float = 1.0,
        connections: Connections = "all",
    ) -> Rule:
        """See `FaultProxy.set`."""
        return self._push(keep=False, fault=fault, direction=direction, share=share, connections=connections)

    @contextlib.contextmanager
    def fault(
        self,
        fault: Fault,
        *,
        direction: Direction | None = None,
        share: float = 1.0,
        connections: Connections = "all",
    ) -> Iterator[Rule]:
        """See `FaultProxy.fault`."""
        rule = self._push(keep=True, fault=fault, direction=direction, share=share, connections=connections)
        try:
            yield rule
        finally:
            self.heal(rule)


_T = TypeVar("_T")


class BlockingFaultProxy(_Remote):
    """A `FaultProxy` on a thread and an event loop of its own: what ``with FaultProxy(...)`` gives.

    Its methods may be called from any thread, and return when they have taken effect.

    Attributes:
        proxy: the `FaultProxy` underneath.
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def target(self) -> str:
        """See `FaultProxy.target`."""
        return self.proxy.target

    @property
    def port(self) -> int | None:
        """See `FaultProxy.port`."""
        return self.proxy.port

    def start(self) -> None:
        """See `FaultProxy.start`."""
        if self._loop is not None:
            raise FaultProxyError(f"{self!r} is running already")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="aioserving.testing fault proxy", daemon=True
        )
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.proxy.start(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the proxy and end its thread; safe to call again."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self.proxy.aclose(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_default_executor())  # which looked up names
            loop.close()

    def _push(
        self, *, keep: bool, fault: Fault, direction: Direction | None, share: float, connections: Connections
    ) -> Rule:
        method = self.proxy._push if keep else self.proxy.set
        return self._run(lambda: method(fault, direction=direction, share=share, connections=connections))

    def heal(self, what: Rule | type[Fault] | None = None) -> None:
        """See `FaultProxy.heal`."""
        self._run(lambda: self.proxy.heal(what))

    def stats(self) -> FaultStats:
        """See `FaultProxy.stats`."""
        return self._run(self.proxy.stats)

    def _run(self, function: Callable[[], _T]) -> _T:
        if self._loop is None:
            return function()

        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def __repr__(self) -> str:
        return f"<BlockingFaultProxy of {self.proxy!r}>"


class FaultProxyProcess(_Remote):
    """A `FaultProxy` in a process of its own, so that it takes no time from the loop under test.

        with FaultProxyProcess(server.target) as proxy:
            proxy.set(Delay(0.05))

    Args:
        target: as for `FaultProxy`; so are `listen`, `seed` and `buffer_size`.
        start_timeout: seconds until the process has to listen.

    The methods are those of `FaultProxy`, blocking for well under a millisecond. The process ends with this
    one, however this one ends.
    """

    def __init__(
        self,
        target: str,
        *,
        listen: str = "127.0.0.1:0",
        seed: int = 0,
        buffer_size: int = 256 * 1024,
        start_timeout: float = 30.0,
    ) -> None:
        FaultProxy(target, listen=listen, seed=seed, buffer_size=buffer_size)  # for its checks
        self.forwards_to = target
        #: What a client connects to, once started; what was asked for, before.
        self.target = listen
        self.start_timeout = start_timeout
        self._arguments = [
            *(f"--target={target}", f"--listen={listen}", f"--seed={seed}"),
            *(f"--buffer-size={buffer_size}", "--control"),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._finalizer: weakref.finalize[Any, FaultProxyProcess] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process id, or None when not running."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the process and wait until it listens.

        Raises:
            FaultProxyError: it did not get ready (what it said is on standard error), or runs already.
        """
        if self.pid is not None:
            raise FaultProxyError(f"{self!r} is running already")
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "aioserving.testing.faults", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._finalizer = weakref.finalize(self, _end, self._process)
        late = threading.Timer(self.start_timeout, self._process.kill)
        late.daemon = True
        late.start()
        assert self._process.stdout is not None
        word, _, place = self._process.stdout.readline().strip().partition(" ")
        late.cancel()
        late.join()
        if word != "ready":
            self.close()
            raise FaultProxyError(
                f"the process of {self!r} was not ready within {self.start_timeout} s; see its standard error"
            )
        self.target = place

    def close(self) -> None:
        """End the process; safe to call again."""
        self._process = None
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> FaultProxyProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> FaultProxyProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _push(
        self, *, keep: bool, fault: Fault, direction: Direction | None, share: float, connections: Connections
    ) -> Rule:
        options = f"share={share} connections={connections}"
        if direction is not None:
            options += f" direction={direction}"
        return _rule_of(self._command(f"{'push' if keep else 'set'} {fault!r} {options}"))

    def heal(self, what: Rule | type[Fault] | None = None) -> None:
        """See `FaultProxy.heal`."""
        name = "" if what is None else what.number if isinstance(what, Rule) else what.__name__
        self._command(f"heal {name}")

    def stats(self) -> FaultStats:
        """See `FaultProxy.stats`."""
        answer = self._command("stats")
        return FaultStats(**{**answer, "rules": tuple(map(_rule_of, answer["rules"]))})

    def _command(self, line: str) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise FaultProxyError(f"{self!r} is not running")
        with self._lock:
            try:
                process.stdin.write(line + "\n")
                process.stdin.flush()
                text = process.stdout.readline()
            except (OSError, ValueError):
                text = ""
        if not text:
            raise FaultProxyError(f"the process of {self!r} is gone")
        answer = json.loads(text)
        if "error" in answer:
            raise {"ValueError": ValueError, "OSError": OSError}.get(answer["error"], FaultProxyError)(
                answer["text"]
            )
        return answer["result"]

    def __repr__(self) -> str:
        state = "not running" if self.pid is None else f"pid {self.pid}"
        return f"<FaultProxyProcess {self.target} -> {self.forwards_to}, {state}>"


def _rule_of(answer: Mapping[str, Any]) -> Rule:
    return Rule(**{**answer, "fault": parse_fault(answer["fault"])})


def _end(process: subprocess.Popen[str]) -> None:
    """End a `FaultProxyProcess`: it goes when its standard input does."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


# -- models that misbehave --------------------------------------------------------------------------------

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Dice:
    """Decides, for one call after the other, which are in a share; for several threads."""

    def __init__(self, share: float, seed: int) -> None:
        _check_share(None, share)
        self._share = share
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._lock = threading.Lock()

    def hit(self) -> bool:
        with self._lock:
            return self._random.random() < self._share


def slow(function: _Function, delay: float, *, share: float = 1.0, seed: int = 0) -> _Function:
    """`function`, of which a random `share` of calls take `delay` seconds more: latency outliers of a model.

        CallableServable(slow(score, 0.2, share=0.05), inputs=..., outputs=...)

    Sync and async functions stay what they are. The time is slept, not computed. A servable made of it
    should not be `inline`: that would stop the server's event loop with it.

    Raises:
        ValueError: `delay` is negative or `share` not between 0 and 1.
    """
    _check_number(None, "delay", delay, 0)
    dice = _Dice(share, seed)
    if _is_async(function):

        @functools.wraps(function)
        async def slow_async(*args: Any, **kwargs: Any) -> Any:
            if dice.hit():
                await asyncio.sleep(delay)
            return await function(*args, **kwargs)

        return cast("_Function", slow_async)

    @functools.wraps(function)
    def slow_sync(*args: Any, **kwargs: Any) -> Any:
        if dice.hit():
            time.sleep(delay)
        return function(*args, **kwargs)

    return cast("_Function", slow_sync)


def failing(
    function: _Function,
    code: int = StatusCode.UNAVAILABLE,
    message: str = "failing on purpose",
    *,
    share: float = 1.0,
    seed: int = 0,
) -> _Function:
    """`function`, of which a random `share` of calls raise `StatusError(code, message)` instead.

    Sync and async functions stay what they are.

    Raises:
        ValueError: `code` is no status code, or OK, or `share` is not between 0 and 1.
    """
    StatusError(code, message)  # for its checks
    dice = _Dice(share, seed)
    if _is_async(function):

        @functools.wraps(function)
        async def failing_async(*args: Any, **kwargs: Any) -> Any:
            if dice.hit():
                raise StatusError(code, message)
            return await function(*args, **kwargs)

        return cast("_Function", failing_async)

    @functools.wraps(function)
    def failing_sync(*args: Any, **kwargs: Any) -> Any:
        if dice.hit():
            raise StatusError(code, message)
        return function(*args, **kwargs)

    return cast("_Function", failing_sync)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


# -- checks -----------------------------------------------------------------------------------------------


def _check_number(fault: Fault | None, name: str, value: float, least: float) -> None:
    if not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise ValueError(f"{_of(fault)}{name} must be a number of at least {least}, got {value!r}")


def _check_count(fault: Fault | None, name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{_of(fault)}{name} must be a whole number of at least 0, got {value!r}")


def _check_share(fault: Fault | None, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{_of(fault)}share must be a number between 0 and 1, got {value!r}")


def _of(fault: Fault | None) -> str:
    return "" if fault is None else f"{type(fault).__name__}: "


def _address(text: str) -> tuple[str, int] | str:
    """Host and port of ``"host:port"``, or the path of ``"unix:/path"``."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if path:
            return path
    else:
        host, _, port = text.removeprefix("dns:///").rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if host and port.isascii() and port.isdigit() and int(port) < 65536:
            return host, int(port)
    raise ValueError(f"an address is 'host:port' or 'unix:/path', got {text!r}")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# -- python -m aioserving.testing.faults ------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a proxy until SIGTERM, Ctrl-C or, with ``--control``, the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m aioserving.testing.faults",
        description="A TCP proxy that misbehaves on demand.",
        epilog="A fault is written as in Python, with options behind it: 'Delay(0.05, jitter=0.01) "
        "direction=to_client share=0.2 connections=new'. With --control, lines of standard input are "
        "commands, each answered by a line of JSON: set FAULT, heal [FAULT NAME or RULE NUMBER], stats. "
        f"There are {', '.join(_KINDS)}.",
    )
    parser.add_argument("--target", required=True, help="where to forward to: host:port or unix:/path")
    parser.add_argument("--listen", default="127.0.0.1:0", help="where to listen (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random decisions (default: 0)")
    parser.add_argument("--buffer-size", type=int, default=256 * 1024, help="bytes per direction")
    parser.add_argument("--fault", action="append", default=[], help="in force from the start; repeatable")
    parser.add_argument("--control", action="store_true", help="take commands from standard input")
    options = parser.parse_args(arguments)
    try:
        proxy = FaultProxy(
            options.target, listen=options.listen, seed=options.seed, buffer_size=options.buffer_size
        )
        for fault in options.fault:
            _execute(proxy, f"set {fault}")
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(proxy, control=options.control))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _serve(proxy: FaultProxy, *, control: bool) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with proxy:
        _say(f"ready {proxy.target}")
        if control:

            def read() -> None:
                # A thread, since standard input may be a file or a terminal, which loops cannot wait for.
                for line in sys.stdin:
                    loop.call_soon_threadsafe(_reply, proxy, line)
                with contextlib.suppress(RuntimeError):  # the loop ended first
                    loop.call_soon_threadsafe(stopping.set)

            threading.Thread(target=read, daemon=True).start()
        await stopping.wait()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _reply(proxy: FaultProxy, line: str) -> None:
    answer: dict[str, Any]
    try:
        answer = {"result": _execute(proxy, line)}
    except (ValueError, OSError) as error:
        kind = "ValueError" if isinstance(error, ValueError) else "OSError"
        answer = {"error": kind, "text": str(error)}
    _say(json.dumps(answer))


def _execute(proxy: FaultProxy, line: str) -> Any:
    """Do what a line of a user, or of `FaultProxyProcess`, says; gives something for JSON."""
    verb, _, rest = line.strip().partition(" ")
    if verb in ("set", "push"):
        words = rest.split()
        options: dict[str, Any] = {"direction": None, "share": 1.0, "connections": "all"}
        while words and words[-1].partition("=")[0] in options and not words[-1].endswith(")"):
            name, _, value = words.pop().partition("=")
            options[name] = float(value) if name == "share" else value
        method = proxy.set if verb == "set" else proxy._push
        return _for_json(method(parse_fault(" ".join(words)), **options))
    if verb == "heal":
        rest = rest.strip()
        if rest.isdigit():
            for rule in proxy.stats().rules:
                if rule.number == int(rest):
                    proxy.heal(rule)
        elif not rest or rest in _KINDS:
            proxy.heal(_KINDS[rest] if rest else None)
        else:
            raise ValueError(f"heal takes a rule's number or one of {', '.join(_KINDS)}; got {rest!r}")
        return None
    if verb == "stats":
        stats = proxy.stats()
        fields = {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}
        return {**fields, "rules": [_for_json(rule) for rule in stats.rules]}
    raise ValueError(f"commands are set, heal and stats; got {verb!r}")


def _for_json(rule: Rule) -> dict[str, Any]:
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    return {**fields, "fault": repr(rule.fault)}


if __name__ == "__main__":
    sys.exit(main())
