"""aioserving.testing.faults: every fault on raw bytes and on real gRPC calls, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from aioserving import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    RPCError,
    UnavailableError,
    UnknownError,
)
from aioserving.testing import CallableServable, ModelServer, StatusCode, StatusError
from aioserving.testing import faults as faults_module
from aioserving.testing.faults import (
    BlackHole,
    Corrupt,
    Cut,
    Delay,
    Direction,
    Fault,
    FaultProxy,
    FaultProxyError,
    FaultProxyProcess,
    HalfOpen,
    Refuse,
    Reset,
    Rule,
    SlowAccept,
    Throttle,
    failing,
    parse_fault,
    slow,
)

from ..models import digits

pytestmark = pytest.mark.anyio

T = TypeVar("T")
IMAGES = np.ones((2, 784), np.float32)
PATTERN = np.random.default_rng(5).bytes(8_000_000)


async def soon(awaitable: Awaitable[T], seconds: float = 10) -> T:
    """The outcome, or a failed test instead of a hanging one."""
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that no call can be awaited for."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await soon(wait(), seconds)


async def nothing(awaitable: Awaitable[Any], seconds: float = 0.1) -> None:
    """Nothing comes within this time."""
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(awaitable, seconds)


@dataclass
class End:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await soon(self.writer.drain())

    async def read(self, size: int) -> bytes:
        return await soon(self.reader.readexactly(size))

    async def rest(self) -> bytes:
        return await soon(self.reader.read(-1))

    async def is_reset(self) -> bool:
        """Whether the connection ends with an RST; what came before does not matter."""
        try:
            await self.rest()
        except ConnectionResetError:
            return True
        return False

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
        )
        self.writer.transport.abort()


def abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


class Wire:
    """A listening target behind a proxy, and both ends of every connection."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.proxy: FaultProxy
        self.arrived: asyncio.Queue[End] = asyncio.Queue()
        self._stack = stack

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.keep(writer)
        self.arrived.put_nowait(End(reader, writer))

    def keep(self, writer: asyncio.StreamWriter) -> None:
        # Holds the writer itself: one that is collected before it is closed warns.
        self._stack.callback(abort, writer)

    async def client(self) -> End:
        """A new client's end."""
        if self.proxy.target.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(self.proxy.target.removeprefix("unix:"))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        self.keep(writer)
        return End(reader, writer)

    async def target(self) -> End:
        """The target's end of the connection that came next."""
        return await soon(self.arrived.get())

    async def connect(self) -> tuple[End, End]:
        """Both ends of a new connection."""
        client = await self.client()
        return client, await self.target()


@contextlib.asynccontextmanager
async def wired(path: Path | None = None, **arguments: Any) -> AsyncIterator[Wire]:
    """A target with a proxy in front; on Unix sockets in the folder `path`, if given."""
    async with contextlib.AsyncExitStack() as stack:
        wire = Wire(stack)
        if path is None:
            server = await asyncio.start_server(wire.accept, "127.0.0.1", 0)
            target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        else:
            server = await asyncio.start_unix_server(wire.accept, path / "target")
            target = f"unix:{path / 'target'}"
            arguments["listen"] = f"unix:{path / 'proxy'}"
        stack.callback(server.close)
        wire.proxy = await stack.enter_async_context(FaultProxy(target, **arguments))
        yield wire


@pytest.fixture(params=["tcp", "unix"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where the sockets are: None for TCP."""
    return tmp_path if request.param == "unix" else None


# -- without faults ---------------------------------------------------------------------------------------


async def test_passes_everything_on(path: Path | None) -> None:
    """Without faults bytes and ends of streams pass both ways, each direction on its own."""
    async with wired(path) as wire:
        client, target = await wire.connect()
        await client.send(b"question")
        assert await target.read(8) == b"question"
        client.writer.write_eof()
        assert await target.rest() == b""
        await target.send(b"answer")
        assert await client.read(6) == b"answer"
        target.writer.close()
        assert await client.rest() == b""
        await until(lambda: wire.proxy.stats().connections == 0)
        stats = wire.proxy.stats()
        assert (stats.connections_ever, stats.bytes_to_target, stats.bytes_to_client) == (1, 8, 6)
        assert stats.faults == {}
        assert repr(wire.proxy) == (
            f"<FaultProxy {wire.proxy.target} -> {wire.proxy.forwards_to}, 0 connections, no fault>"
        )


@pytest.mark.parametrize("fault", [None, Delay(0.01, jitter=0.01), Throttle(1e9), Cut(9_000_000)])
async def test_backpressure(fault: Fault | None) -> None:
    """A receiver that does not read holds its sender back, and gets every byte in order when it does."""
    async with wired(buffer_size=100_000) as wire:
        client, target = await wire.connect()
        if fault is not None:
            wire.proxy.set(fault)
        target.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(PATTERN + PATTERN)
        if not isinstance(fault, Delay):  # whose line holds 64 MiB
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.writer.drain(), 0.2)
            assert wire.proxy.stats().bytes_held <= 100_000 + 256 * 1024
        target.writer.transport.resume_reading()  # type: ignore[attr-defined]
        expected = PATTERN + PATTERN
        if isinstance(fault, Cut):
            expected = expected[:9_000_000]
        assert await target.read(len(expected)) == expected


async def test_resets_pass_on() -> None:
    """An RST of one side becomes an RST for the other, in both directions."""
    async with wired() as wire:
        client, target = await wire.connect()
        client.reset()
        assert await target.is_reset()
        client, target = await wire.connect()
        target.reset()
        assert await client.is_reset()
        await until(lambda: wire.proxy.stats().connections == 0)


async def test_a_reader_that_left() -> None:
    """Who sends to a client that closed gets an RST, as without a proxy, and not silence."""
    async with wired() as wire:
        client, target = await wire.connect()
        client.writer.close()
        assert await target.rest() == b""

        async def send() -> None:
            while True:
                await target.send(b"x" * 1000)
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await soon(send())
        await until(lambda: wire.proxy.stats().connections == 0)


async def test_target_is_down() -> None:
    """A client of a target that refuses connections is reset, and the proxy counts and lives on."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with FaultProxy(f"127.0.0.1:{port}") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await End(reader, writer).is_reset()
        await until(lambda: proxy.stats().connections == 0)
        assert proxy.stats().target_failures == 1
        writer.close()


# -- each fault on bytes ----------------------------------------------------------------------------------


async def echo(client: End, target: End, data: bytes = b"x") -> float:
    """Seconds that `data` takes there and back."""
    begun = time.monotonic()
    await client.send(data)
    await target.send(await target.read(len(data)))
    assert await client.read(len(data)) == data
    return time.monotonic() - begun


async def test_delay() -> None:
    """Delay adds its seconds in its direction, on running connections, and healing ends it at once."""
    async with wired() as wire:
        client, target = await wire.connect()
        assert await echo(client, target) < 1
        wire.proxy.set(Delay(0.1))
        assert 0.2 <= await echo(client, target) < 1
        wire.proxy.set(Delay(0.1, jitter=0.05), direction="to_client")
        assert 0.15 <= await echo(client, target) < 1
        assert wire.proxy.stats().faults["Delay"] == 4
        wire.proxy.set(Delay(60))
        await client.send(b"late")
        await nothing(target.reader.read(1))
        wire.proxy.heal()
        assert await target.read(4) == b"late"
        assert await echo(client, target) < 1


async def test_delay_keeps_order_and_throughput() -> None:
    """Under jitter every byte comes in order, and 8 MB take little longer than the delay, not many delays."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(Delay(0.2, jitter=0.2))
        begun = time.monotonic()
        sending = asyncio.ensure_future(client.send(PATTERN))
        assert await target.read(len(PATTERN)) == PATTERN
        assert time.monotonic() - begun < 5  # 100 chunks, one after the other, would take 20 s
        await sending
        assert wire.proxy.stats().faults["Delay"] > 20


async def test_delay_holds_the_end_of_a_stream_too() -> None:
    """An end of stream stays behind the bytes before it."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(Delay(0.15))
        await client.send(b"last words")
        client.writer.close()
        begun = time.monotonic()
        assert await target.rest() == b"last words"
        assert time.monotonic() - begun > 0.1


async def test_throttle() -> None:
    """Throttle passes so many bytes per second, at an even pace, and holds the sender back."""
    async with wired(buffer_size=10_000) as wire:
        client, target = await wire.connect()
        wire.proxy.set(Throttle(200_000), direction="to_target")
        client.writer.write(PATTERN)
        begun = time.monotonic()
        assert await target.read(25_000) == PATTERN[:25_000]
        assert 0.1 <= time.monotonic() - begun < 1.5
        assert await target.read(75_000) == PATTERN[25_000:100_000]
        assert 0.45 <= time.monotonic() - begun < 2
        assert wire.proxy.stats().faults["Throttle"] > 20
        wire.proxy.set(Throttle(100_000_000))
        assert await target.read(len(PATTERN) - 100_000) == PATTERN[100_000:]
        assert time.monotonic() - begun < 5  # it would be 40 s
        assert await echo(client, target) < 1


async def test_throttle_below_a_byte_per_tick() -> None:
    """A rate of some bytes per second passes them one by one."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(Throttle(20))
        await client.send(b"abcdef")
        begun = time.monotonic()
        assert await target.read(6) == b"abcdef"
        assert 0.2 <= time.monotonic() - begun < 1.5


@pytest.mark.parametrize("after", [0, 1, 3_000, 7_000, 100_000])
async def test_cut(after: int, path: Path | None) -> None:
    """Cut passes exactly so many bytes, and then both sides see a clean end."""
    async with wired(path) as wire:
        client, target = await wire.connect()
        await echo(client, target)
        wire.proxy.set(Cut(after), direction="to_target")
        await target.send(b"the other direction is not counted")
        await client.read(34)
        client.writer.write(PATTERN[:200_000])
        assert await target.rest() == PATTERN[:after]
        assert await client.rest() == b""
        target.writer.close()
        client.writer.close()
        await until(lambda: wire.proxy.stats().connections == 0)
        assert wire.proxy.stats().faults["Cut"] == 1


async def test_cut_does_not_wait_for_peers() -> None:
    """A cut connection is given up when its peers do not close it themselves."""
    async with wired() as wire:
        client, _ = await wire.connect()
        wire.proxy.set(Cut())
        await client.send(b"x")
        assert await client.rest() == b""
        assert wire.proxy.stats().connections == 1
        await until(lambda: wire.proxy.stats().connections == 0, 5)


async def test_cut_with_reset() -> None:
    """With `reset`, both sides see an RST, whichever direction was counted."""
    async with wired() as wire:
        directions: tuple[Direction, ...] = ("to_target", "to_client")
        for direction in directions:
            client, target = await wire.connect()
            with wire.proxy.fault(Cut(10, reset=True), direction=direction):
                await (client if direction == "to_target" else target).send(b"x" * 11)
                assert await client.is_reset()
                assert await target.is_reset()


async def test_cut_longer_than_the_stream() -> None:
    """A stream that ends before the cut ends as it always does."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(Cut(100))
        await client.send(b"short")
        client.writer.close()
        assert await target.rest() == b"short"
        assert "Cut" not in wire.proxy.stats().faults


async def test_reset() -> None:
    """Reset ends running connections on both sides and new ones at once, until it is healed."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(Reset())
        assert await client.is_reset()
        assert await target.is_reset()
        with contextlib.suppress(ConnectionResetError):  # it may come within connect()
            assert await (await wire.client()).is_reset()
        await until(lambda: wire.proxy.stats().faults["Reset"] == 2)
        assert wire.arrived.empty()
        wire.proxy.heal()
        assert await echo(*await wire.connect()) < 1


async def test_reset_while_a_connection_opens() -> None:
    """Whenever in its opening a connection is reset, its client sees an RST, and nothing is left."""
    async with wired() as wire:
        for turns in range(60):
            client = await wire.client()
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            with wire.proxy.fault(Reset()):
                assert await client.is_reset()
        await until(lambda: wire.proxy.stats().connections == 0)


async def test_black_hole_on_a_running_connection() -> None:
    """Nothing passes a black hole, neither bytes nor the end; healed, all of it comes, and nothing twice."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(BlackHole())
        await client.send(b"held")
        client.writer.close()
        await target.send(b"too")
        await nothing(target.reader.read(1))
        assert wire.proxy.stats().connections == 1
        wire.proxy.heal()
        assert await target.rest() == b"held"
        assert wire.proxy.stats().faults == {"BlackHole": 1}


async def test_black_hole_holds_senders_back() -> None:
    """What is sent into a black hole fills buffers, and then its sender waits."""
    async with wired() as wire:
        client, target = await wire.connect()
        with wire.proxy.fault(BlackHole(), direction="to_target"):
            await target.send(b"the other way")
            assert await client.read(13) == b"the other way"
            client.writer.write(PATTERN)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.writer.drain(), 0.2)
        assert await target.read(len(PATTERN)) == PATTERN


@pytest.mark.parametrize("direction", ["both", "to_target", "to_client"])
async def test_black_hole_for_new_connections(direction: Any) -> None:
    """A new connection is taken and reaches the target only when the black hole is healed."""
    async with wired() as wire:
        wire.proxy.set(BlackHole(), direction=direction)
        client = await wire.client()
        await client.send(b"hello")
        await nothing(wire.arrived.get())
        assert wire.proxy.stats().faults == {"BlackHole": 1}
        wire.proxy.heal()
        assert await (await wire.target()).read(5) == b"hello"


async def test_only_existing_or_only_new_connections() -> None:
    """A fault can be limited to the connections that are there, or to those to come."""
    async with wired() as wire:
        old = await wire.connect()
        wire.proxy.set(Delay(60), connections="existing")
        new = await wire.connect()
        assert await echo(*new) < 1
        await old[0].send(b"x")
        await nothing(old[1].reader.read(1))
        wire.proxy.heal()
        await old[1].read(1)
        wire.proxy.set(Delay(60), connections="new")
        assert await echo(*old) < 1
        assert await echo(*new) < 1
        newest = await wire.connect()
        await newest[0].send(b"x")
        await nothing(newest[1].reader.read(1))


async def test_half_open() -> None:
    """One direction is lost, its end too, the other goes on; healing resets what can never be whole again."""
    async with wired() as wire:
        client, target = await wire.connect()
        untouched_client, untouched_target = await wire.connect()
        wire.proxy.set(HalfOpen())
        await client.send(b"heard")
        assert await target.read(5) == b"heard"
        await target.send(b"unheard")
        target.writer.write_eof()
        await nothing(client.reader.read(1))
        await client.send(b"still heard")
        assert await target.read(11) == b"still heard"
        assert wire.proxy.stats().bytes_lost == 7
        assert wire.proxy.stats().faults == {"HalfOpen": 2}
        wire.proxy.heal()
        assert await client.is_reset()
        assert await target.is_reset()
        assert await echo(untouched_client, untouched_target) < 1


async def test_half_open_when_a_side_dies() -> None:
    """A client that dies is not reported to the target; the connection goes when the target closes, too."""
    async with wired() as wire:
        client, target = await wire.connect()
        wire.proxy.set(HalfOpen(), direction="to_target")
        client.reset()
        await nothing(target.reader.read(1))
        assert wire.proxy.stats().connections == 1
        target.writer.close()
        await until(lambda: wire.proxy.stats().connections == 0)


async def test_corrupt_one_byte() -> None:
    """Exactly one bit of exactly the byte asked for changes, counted from when the fault is set."""
    async with wired() as wire:
        client, target = await wire.connect()
        await echo(client, target, b"before")
        wire.proxy.set(Corrupt(at=70_000), direction="to_target")
        client.writer.write(PATTERN[:100_000])
        got = np.frombuffer(await target.read(100_000), np.uint8)
        sent = np.frombuffer(PATTERN[:100_000], np.uint8)
        assert np.flatnonzero(got != sent).tolist() == [70_000]
        assert int(got[70_000] ^ sent[70_000]).bit_count() == 1
        assert wire.proxy.stats().faults["Corrupt"] == 1


async def corrupted(seed: int, share: float, chunk: int) -> list[int]:
    """Where 200,000 bytes are hit on their way, written in chunks of this size."""
    async with wired(seed=seed) as wire:
        client, target = await wire.connect()
        wire.proxy.set(Corrupt(share), direction="to_target")
        got = b""
        for begin in range(0, 200_000, chunk):
            size = min(chunk, 200_000 - begin)
            await client.send(bytes(size))
            got += await target.read(size)
        hits: list[int] = np.flatnonzero(np.frombuffer(got, np.uint8)).tolist()
        assert wire.proxy.stats().faults.get("Corrupt", 0) == len(hits)
        return hits


async def test_corrupt_a_share() -> None:
    """A share of the bytes is hit, everywhere; the seed decides which, and how they are cut does not."""
    hits = await corrupted(1, 0.01, 200_000)
    assert 1800 < len(hits) < 2200
    assert np.histogram(hits, 4, (0, 200_000))[0].min() > 400
    assert await corrupted(1, 0.01, 7_777) == hits
    assert await corrupted(2, 0.01, 200_000) != hits
    assert len(await corrupted(1, 1, 50_000)) == 200_000
    assert await corrupted(1, 0, 50_000) == []


async def test_refuse(path: Path | None) -> None:
    """Refuse refuses new connections, leaves running ones, and reopens on the same address."""
    async with wired(path) as wire:
        client, target = await wire.connect()
        address = wire.proxy.target
        for _ in range(2):
            wire.proxy.set(Refuse())
            with pytest.raises(ConnectionRefusedError):
                await wire.client()
            assert await echo(client, target) < 1
            if path is None:  # the port is still the proxy's
                with pytest.raises(OSError, match="in use"), socket.socket() as other:
                    other.bind(("127.0.0.1", wire.proxy.port))
            wire.proxy.heal(Refuse)
            assert wire.proxy.target == address
            assert await echo(*await wire.connect()) < 1
        assert wire.proxy.stats().faults == {"Refuse": 2}
    assert path is None or not (path / "proxy").exists()


async def test_slow_accept() -> None:
    """A new connection reaches the target only after the seconds asked for, or when that is healed."""
    async with wired() as wire:
        wire.proxy.set(SlowAccept(0.2, jitter=0.05))
        begun = time.monotonic()
        client, target = await wire.connect()
        assert 0.15 <= time.monotonic() - begun < 2
        assert await echo(client, target) < 1
        wire.proxy.set(SlowAccept(60))
        client = await wire.client()
        await nothing(wire.arrived.get())
        wire.proxy.heal()
        assert await echo(client, await wire.target()) < 1
        assert wire.proxy.stats().faults == {"SlowAccept": 2}


# -- setting faults ---------------------------------------------------------------------------------------


async def hit_by(share: float, seed: int, connections: int = 60) -> list[bool]:
    """Which of so many connections are reset."""
    async with wired(seed=seed) as wire:
        pairs = [await wire.connect() for _ in range(connections)]
        wire.proxy.set(Reset(), share=share)
        survivors = wire.proxy.stats().connections
        wire.proxy.heal()
        hits = [client.reader.at_eof() or await is_dead(client, target) for client, target in pairs]
        assert hits.count(False) <= survivors
        return hits


async def is_dead(client: End, target: End) -> bool:
    try:
        await echo(client, target)
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


async def test_share_of_connections() -> None:
    """About the share asked for is hit, and the seed decides which."""
    hits = await hit_by(0.3, seed=3)
    assert 8 <= sum(hits) <= 28
    assert await hit_by(0.3, seed=3) == hits
    assert await hit_by(0.3, seed=4) != hits
    assert sum(await hit_by(0, seed=3, connections=5)) == 0


async def test_faults_stack() -> None:
    """The latest fault of a kind counts where it applies, earlier ones elsewhere; kinds act together."""
    async with wired() as wire:
        client, target = await wire.connect()
        proxy = wire.proxy
        proxy.set(Delay(0.05))
        slow_answers = proxy.set(Delay(0.5), direction="to_client")
        assert 0.55 <= await echo(client, target) < 2
        proxy.set(Throttle(100))
        assert await echo(client, target, b"x" * 10) >= 0.7
        assert [str(rule) for rule in proxy.stats().rules] == [
            "Delay(seconds=0.05, jitter=0.0) both",
            "Delay(seconds=0.5, jitter=0.0) to_client",
            "Throttle(bytes_per_second=100) both",
        ]
        proxy.heal(Throttle)
        proxy.heal(slow_answers)
        assert 0.1 <= await echo(client, target) < 0.5
        proxy.heal(slow_answers)  # harmless
        proxy.set(Delay(0.001))
        assert [rule.fault for rule in proxy.stats().rules] == [Delay(0.001)]
        proxy.set(Delay(0.002), share=0.25, connections="new")
        assert repr(proxy).endswith("Delay(seconds=0.002, jitter=0.0) both 0.25 of new connections>")


async def test_fault_for_a_while() -> None:
    """`fault` ends with its block, also when that fails, and what was set before is back."""
    async with wired() as wire:
        client, target = await wire.connect()
        before = wire.proxy.set(Delay(0.3))
        with pytest.raises(ZeroDivisionError), wire.proxy.fault(Delay(0.001)) as rule:
            assert await echo(client, target) < 0.6
            assert wire.proxy.stats().rules == (before, rule)
            raise ZeroDivisionError
        assert wire.proxy.stats().rules == (before,)
        assert await echo(client, target) >= 0.6
        with wire.proxy.fault(BlackHole()):
            wire.proxy.heal()
        assert wire.proxy.stats().rules == ()


async def test_faults_before_the_start() -> None:
    """What is set before the proxy starts is there when it listens."""
    proxy = FaultProxy("127.0.0.1:1")
    assert repr(proxy) == "<FaultProxy 127.0.0.1:0 -> 127.0.0.1:1, not started, no fault>"
    proxy.set(Refuse())
    async with proxy:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
    assert repr(proxy).endswith("closed, Refuse()>")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Delay(-1), "Delay: seconds must be a number of at least 0, got -1"),
        (lambda: Delay(float("nan")), "Delay: seconds must be a number of at least 0, got nan"),
        (lambda: Delay(float("inf")), "Delay: seconds must be"),
        (lambda: Delay("1"), "Delay: seconds must be"),  # type: ignore[arg-type]
        (lambda: SlowAccept(1, jitter=2), "SlowAccept: jitter must be at most seconds"),
        (lambda: Throttle(0), "Throttle: bytes_per_second must be above 0"),
        (lambda: Cut(-1), "Cut: after must be a whole number of at least 0, got -1"),
        (lambda: Cut(1.5), "Cut: after must be a whole number"),  # type: ignore[arg-type]
        (Corrupt, "Corrupt: give share or at, and not both"),
        (lambda: Corrupt(0.1, at=3), "Corrupt: give share or at, and not both"),
        (lambda: Corrupt(1.1), "Corrupt: share must be a number between 0 and 1, got 1.1"),
        (lambda: FaultProxy("nowhere"), "an address is 'host:port' or 'unix:/path', got 'nowhere'"),
        (lambda: FaultProxy("h:99999"), "an address is"),
        (lambda: FaultProxy("unix:"), "an address is"),
        (lambda: FaultProxy("h:1", listen=":1"), "an address is"),
        (lambda: FaultProxy("h:1", buffer_size=0), "buffer_size must be above 0"),
        (lambda: FaultProxy("h:1").set(Delay(1), share=2), "Delay: share must be a number between 0 and 1"),
        (lambda: FaultProxy("h:1").set(Refuse(), share=0.5), "Refuse cannot be limited to some"),
        (lambda: FaultProxy("h:1").set(Refuse(), connections="new"), "Refuse cannot be limited to some"),
        (lambda: FaultProxy("h:1").set(Reset(), direction="to_client"), "Reset has direction 'both', not"),
        (lambda: FaultProxy("h:1").set(HalfOpen(), direction="both"), "HalfOpen has direction 'to_client'"),
        (lambda: FaultProxy("h:1").set(Fault()), "a fault is one of BlackHole, Corrupt, Cut"),
        (
            lambda: FaultProxy("h:1").set(Cut(), connections="old"),  # type: ignore[arg-type]
            "connections is 'all', 'new' or 'existing', got 'old'",
        ),
        (lambda: slow(print, -1), "delay must be a number of at least 0, got -1"),
        (lambda: slow(print, 1, share=7), "share must be a number between 0 and 1, got 7"),
        (lambda: failing(print, StatusCode.OK), "OK is not an error"),
    ],
)
def test_refused_values(make: Callable[[], object], text: str) -> None:
    """What cannot be meant is refused where it is said, with the name and the value."""
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


def test_faults_are_values() -> None:
    """Faults are frozen, equal by their values, and their repr reads back as themselves."""
    some = [Delay(0.5, jitter=0.25), Throttle(10), Cut(5, reset=True), Corrupt(at=3), Corrupt(0.5)]
    some += [BlackHole(), HalfOpen(), Reset(), Refuse(), SlowAccept(1)]
    for fault in some:
        assert parse_fault(repr(fault)) == replace(fault) == fault
    assert {type(fault).__name__ for fault in some} == set(faults_module._KINDS)
    assert parse_fault(" Delay(0.5, 0.25) ") == some[0]
    assert parse_fault("Reset") == Reset()
    with pytest.raises(FrozenInstanceError):
        Delay(1).seconds = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["", "Dealy(1)", "Delay(1", "Delay(x)", "print('x')", "Delay(1).seconds", "1"]
)
def test_text_that_is_no_fault(text: str) -> None:
    """Text that describes no fault is refused with what there is, and never run."""
    with pytest.raises(ValueError, match=r"is not a fault such as 'Delay\(0.05, jitter=0.01\)'; there are"):
        parse_fault(text)
    with pytest.raises(ValueError, match="unexpected keyword argument 'second'"):
        parse_fault("Delay(second=1)")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:80", ("localhost", 80)),
        ("dns:///name.example:80", ("name.example", 80)),
        ("[::1]:80", ("::1", 80)),
        ("unix:/a/b", "/a/b"),
        ("unix:///a/b", "/a/b"),
    ],
)
def test_addresses(text: str, address: object) -> None:
    """Addresses are written as a client's targets are, and read back the same."""
    assert faults_module._address(text) == address
    assert faults_module._address(FaultProxy("h:1", listen=text).target) == address


# -- life -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [None, Delay(60), BlackHole(), HalfOpen(), SlowAccept(60), Throttle(10), Cut(), Refuse()]
)
async def test_close_leaves_nothing(fault: Fault | None) -> None:
    """Closing ends connections in whatever state they are, with no task, socket or timer left."""
    gc.collect()
    files = psutil.Process().num_fds()
    tasks = asyncio.all_tasks()
    async with wired() as wire:
        pairs = [await wire.connect() for _ in range(3)]
        if fault is not None:
            wire.proxy.set(fault)
        for client, target in pairs:
            client.writer.write(PATTERN[:500_000])
            target.writer.write(PATTERN[:500_000])
        if fault != Refuse():
            clients = [await wire.client() for _ in range(3)]
            for client in clients:
                client.writer.write(b"x")
            await until(lambda: wire.proxy.stats().connections_ever == 6)
        await asyncio.sleep(0.02)  # for the bytes to get where the fault keeps them
        begun = time.monotonic()
        await wire.proxy.aclose()
        assert time.monotonic() - begun < 1
        assert wire.proxy.stats().connections == 0
        await wire.proxy.aclose()
        with pytest.raises(FaultProxyError, match="cannot be started again"):
            await wire.proxy.start()
        wire.proxy.heal()
    del pairs, client, target
    await until(lambda: not asyncio.all_tasks() - tasks - {asyncio.current_task()})
    gc.collect()
    await until(lambda: psutil.Process().num_fds() <= files)


async def test_many_connections_leak_nothing() -> None:
    """Hundreds of connections that end in every way leave neither sockets nor records."""
    async with wired() as wire:
        gc.collect()
        files = psutil.Process().num_fds()
        for round_ in range(150):
            client, target = await wire.connect()
            if round_ % 3 == 0:
                client.reset()
            elif round_ % 3 == 1:
                target.writer.close()
            else:
                with wire.proxy.fault(Reset()):
                    pass
            client.writer.transport.abort()
            target.writer.transport.abort()
        await until(lambda: wire.proxy.stats().connections == 0)
        await until(lambda: psutil.Process().num_fds() <= files)


async def test_address_in_use() -> None:
    """A proxy that cannot listen says where, and leaves nothing behind."""
    async with FaultProxy("127.0.0.1:1") as proxy:
        with pytest.raises(OSError, match=f"cannot listen on {proxy.target}"):
            await FaultProxy("127.0.0.1:1", listen=proxy.target).start()


async def test_wrong_thread() -> None:
    """Used from another thread, the proxy says so instead of misbehaving itself."""
    async with FaultProxy("127.0.0.1:1") as proxy:
        with pytest.raises(FaultProxyError, match="to be used on its own event loop"):
            await asyncio.to_thread(proxy.set, Reset())


def test_uvloop() -> None:
    """On uvloop, bytes, resets, cuts, refusals and closing work as on asyncio's own loop."""
    uvloop = pytest.importorskip("uvloop", reason="needs uvloop (the uvloop extra)")

    async def story() -> None:
        await test_reset()
        await test_reset_while_a_connection_opens()
        await test_half_open()
        await test_refuse(None)
        await test_cut(3_000, None)
        await test_delay_keeps_order_and_throughput()
        await test_black_hole_on_a_running_connection()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.close()


# -- on gRPC calls ----------------------------------------------------------------------------------------


@dataclass
class Served:
    """A server, a proxy in front of it, and a client that goes through."""

    server: ModelServer
    proxy: FaultProxy
    client: AsyncClient

    async def call(self, timeout: float = 10) -> float:
        """Seconds that a call takes, whose answer is right."""
        begun = time.monotonic()
        result = await self.client.predict("digits", IMAGES, timeout=timeout)
        assert result["scores"].tolist() == [784, 784]
        return time.monotonic() - begun

    async def fails(self, kind: type[RPCError] | tuple[type[RPCError], ...], timeout: float = 10) -> float:
        """Seconds that a call takes, which fails in this way."""
        begun = time.monotonic()
        with pytest.raises(kind):
            await self.call(timeout)
        return time.monotonic() - begun

    async def recovers(self) -> None:
        """Calls succeed again, within moments."""
        give_up = time.monotonic() + 10
        while True:
            try:
                await self.call(5)
            except RPCError:  # of the old connection, or while gRPC waits before it connects again
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(0.02)
            else:
                return


@contextlib.asynccontextmanager
async def served(**arguments: Any) -> AsyncIterator[Served]:
    async with (
        ModelServer({"digits": digits()}) as server,
        FaultProxy(server.target, **arguments) as proxy,
        AsyncClient(proxy.target) as client,
    ):
        served = Served(server, proxy, client)
        await served.call()
        yield served


async def test_call_delayed() -> None:
    """A delay each way is the latency of a call, and of no call after it."""
    async with served() as place:
        place.proxy.set(Delay(0.1))
        assert 0.2 <= await place.call() < 2
        assert await place.fails(DeadlineExceededError, timeout=0.1) < 2
        place.proxy.heal()
        assert await place.call() < 1


async def test_call_throttled() -> None:
    """A request of 6 KB takes its time on a slow line."""
    async with served() as place:
        place.proxy.set(Throttle(30_000))
        assert 0.15 <= await place.call() < 5


@pytest.mark.parametrize(
    ("cut", "direction"),
    [
        (Cut(0), "to_target"),
        (Cut(3_000), "to_target"),
        (Cut(20), "to_client"),
        (Cut(3_000, reset=True), "to_target"),
        (Cut(20, reset=True), "to_client"),
    ],
)
async def test_call_cut(cut: Cut, direction: Any) -> None:
    """A connection cut within a request or an answer is UNAVAILABLE at once; the next call reconnects."""
    async with served() as place:
        place.proxy.set(cut, direction=direction)
        assert await place.fails(UnavailableError) < 5
        place.proxy.heal()
        await place.recovers()
        assert place.proxy.stats().faults["Cut"] >= 1
        assert place.proxy.stats().connections_ever >= 2


async def test_call_reset() -> None:
    """Reset connections are UNAVAILABLE at once, until the fault is healed."""
    async with served() as place:
        calls = [asyncio.create_task(place.fails(UnavailableError)) for _ in range(5)]
        place.proxy.set(Delay(5))
        await until(lambda: place.client.stats().in_flight == 5)
        place.proxy.set(Reset())
        assert max(await asyncio.gather(*calls)) < 5
        assert await place.fails(UnavailableError) < 5
        place.proxy.heal()
        await place.recovers()


async def test_call_into_a_black_hole() -> None:
    """A call into a black hole ends with its deadline; when healed, the same connection goes on."""
    async with served() as place:
        with place.proxy.fault(BlackHole()):
            assert 0.3 <= await place.fails(DeadlineExceededError, timeout=0.3) < 3
            waiting = asyncio.create_task(place.call())
            await until(lambda: place.client.stats().in_flight == 1)
        assert await waiting < 5
        assert place.proxy.stats().connections_ever == 1


async def test_first_call_into_a_black_hole() -> None:
    """A client that connects into a black hole gives up at its deadline, too."""
    async with served() as place, AsyncClient(place.proxy.target) as other:
        with place.proxy.fault(BlackHole()):
            begun = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                await other.predict("digits", {"images": IMAGES}, timeout=0.3, validate=False)
            assert time.monotonic() - begun < 3
        assert (await other.predict("digits", IMAGES))["version"] == 1


@pytest.mark.parametrize(("direction", "arrived"), [("to_client", 1), ("to_target", 0)])
async def test_call_on_a_half_open_connection(direction: Any, arrived: int) -> None:
    """The call ends with its deadline, whether the server never saw it or nobody saw its answer."""
    async with served() as place:
        before = place.server.calls.total
        with place.proxy.fault(HalfOpen(), direction=direction):
            assert 0.3 <= await place.fails(DeadlineExceededError, timeout=0.3) < 3
            assert place.server.calls.total == before + arrived
        await place.recovers()


@pytest.mark.parametrize("fault", [Corrupt(at=0), Corrupt(0.5)])
async def test_call_corrupted(fault: Corrupt) -> None:
    """A request whose frames arrive corrupted is an error; the next call has a new connection."""
    async with served() as place:
        with place.proxy.fault(fault, direction="to_target"):
            assert await place.fails((UnavailableError, InternalError)) < 5
        await place.recovers()
        assert place.proxy.stats().connections_ever >= 2


async def test_call_corrupted_under_tls() -> None:
    """Under TLS a single flipped bit, in either direction, ends the connection and the call."""
    trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")
    import grpc

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    key, chain = issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with (
        ModelServer({"digits": digits()}, credentials=grpc.ssl_server_credentials([(key, chain)])) as server,
        FaultProxy(server.target) as proxy,
        AsyncClient(proxy.target, credentials=credentials) as client,
    ):
        place = Served(server, proxy, client)
        await place.call()
        directions: tuple[Direction, ...] = ("to_target", "to_client")
        for direction in directions:
            with proxy.fault(Corrupt(at=30), direction=direction):
                # UNKNOWN is how gRPC's own client reports what it cannot decrypt.
                assert await place.fails((UnavailableError, UnknownError)) < 5
            await place.recovers()


async def test_call_refused() -> None:
    """Refuse with Reset is a dead server: UNAVAILABLE at once; a running connection alone goes on."""
    async with served() as place:
        place.proxy.set(Refuse())
        assert await place.call() < 5
        place.proxy.set(Reset())
        assert await place.fails(UnavailableError) < 5
        await until(lambda: place.proxy.stats().connections == 0)
        assert await place.fails(UnavailableError) < 5
        place.proxy.heal()
        await place.recovers()


async def test_call_on_a_slow_accept() -> None:
    """The first call of a client waits for its connection, later ones do not."""
    async with served() as place, AsyncClient(place.proxy.target) as other:
        place.proxy.set(SlowAccept(0.5))
        place.client = other
        assert 0.5 <= await place.call() < 5
        assert await place.call() < 0.5


async def test_calls_on_a_share_of_connections() -> None:
    """With half of the clients' connections in a black hole, exactly their calls hang."""
    async with (
        ModelServer({"digits": digits()}) as server,
        FaultProxy(server.target, seed=1) as proxy,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(AsyncClient(proxy.target)) for _ in range(12)]
        for client in clients:
            await client.predict("digits", IMAGES)
        assert proxy.stats().connections == 12
        proxy.set(BlackHole(), share=0.5)
        outcomes = await asyncio.gather(
            *(client.predict("digits", IMAGES, timeout=0.5) for client in clients), return_exceptions=True
        )
        late = sum(isinstance(outcome, DeadlineExceededError) for outcome in outcomes)
        assert late == proxy.stats().faults["BlackHole"]
        assert 0 < late < 12


# -- from elsewhere ---------------------------------------------------------------------------------------


@pytest.fixture(params=["thread", "process"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[tuple[Client, Any]]:
    """A blocking client, and the proxy that it goes through, on a thread or in a process."""
    with ModelServer({"digits": digits()}) as server:
        kind = FaultProxy if request.param == "thread" else FaultProxyProcess
        with kind(server.target, seed=7) as proxy, Client(proxy.target) as client:
            yield client, proxy


def test_sync_use(elsewhere: tuple[Client, Any]) -> None:
    """From sync code, on a thread or in a process, the proxy does all it does on a loop."""
    client, proxy = elsewhere
    assert client.predict("digits", IMAGES)["version"] == 1
    rule = proxy.set(Delay(0.1, jitter=0.01), direction="to_client")
    assert isinstance(rule, Rule)
    assert (rule.fault, rule.direction, rule.share) == (Delay(0.1, jitter=0.01), "to_client", 1.0)
    begun = time.monotonic()
    client.predict("digits", IMAGES)
    assert 0.09 <= time.monotonic() - begun < 1
    with proxy.fault(BlackHole(), connections="existing"), pytest.raises(DeadlineExceededError):
        client.predict("digits", IMAGES, timeout=0.3)
    assert proxy.stats().rules == (rule,)
    proxy.set(Delay(0.001))
    assert len(proxy.stats().rules) == 1
    proxy.heal(Delay)
    proxy.set(Corrupt(at=10**9), share=0.5)
    proxy.heal()
    client.predict("digits", IMAGES)
    stats = proxy.stats()
    assert (stats.connections, stats.rules) == (1, ())
    assert stats.bytes_to_target > 10_000
    assert stats.faults["BlackHole"] == 1
    with pytest.raises(ValueError, match="HalfOpen has direction"):
        proxy.set(HalfOpen(), direction="both")


def test_thread_ends() -> None:
    """A proxy on a thread takes the thread with it, and its sockets."""
    threads = threading.active_count()
    files = psutil.Process().num_fds()
    proxy = FaultProxy("127.0.0.1:1")
    with proxy as remote:
        assert threading.active_count() == threads + 1
        assert remote.port
        assert repr(remote) == f"<BlockingFaultProxy of {proxy!r}>"
        with pytest.raises(FaultProxyError, match="is running already"):
            remote.start()
    remote.close()
    assert threading.active_count() == threads
    assert psutil.Process().num_fds() <= files
    assert remote.stats().connections == 0


def test_thread_that_cannot_listen() -> None:
    """When the proxy cannot listen, neither can its thread stay."""
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="cannot listen"), FaultProxy("127.0.0.1:1", listen=place):
            pass
    assert threading.active_count() == threads


async def test_process_on_a_loop() -> None:
    """The process is started and ended from async code, too, and is gone afterwards."""
    async with ModelServer({"digits": digits()}) as server, FaultProxyProcess(server.target) as proxy:
        async with AsyncClient(proxy.target) as client:
            assert (await client.predict("digits", IMAGES))["version"] == 1
        pid = proxy.pid
        assert repr(proxy) == f"<FaultProxyProcess {proxy.target} -> {server.target}, pid {pid}>"
        with pytest.raises(FaultProxyError, match="is running already"):
            proxy.start()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert repr(proxy).endswith("not running>")
    with pytest.raises(FaultProxyError, match="is not running"):
        proxy.heal()


def test_process_that_dies_or_does_not_start() -> None:
    """A process that is gone, or never listened, is an error that says so, not a hang."""
    with FaultProxyProcess("127.0.0.1:1") as proxy:
        assert proxy.pid is not None
        os.kill(proxy.pid, signal.SIGKILL)
        with pytest.raises(FaultProxyError, match="is gone"):
            for _ in range(100):
                proxy.stats()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FaultProxyError, match="was not ready"):
            FaultProxyProcess("127.0.0.1:1", listen=place).start()


def test_forgotten_process() -> None:
    """A proxy process that nobody holds any more is ended."""
    proxy = FaultProxyProcess("127.0.0.1:1")
    proxy.start()
    process = psutil.Process(proxy.pid)
    del proxy
    gc.collect()
    assert not process.is_running()


def test_command_line() -> None:
    """By hand: faults from the start, commands on standard input with JSON answers, SIGTERM ends with 0."""
    command = [sys.executable, "-m", "aioserving.testing.faults", "--target=127.0.0.1:1"]
    with subprocess.Popen(
        [*command, "--control", "--fault=Delay(0.05, jitter=0.01) direction=to_client share=0.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready 127.0.0.1:")
        answers = []
        lines = ("stats", "set Cut(after=5)", "heal 1", "heal 77", "heal Dealy", "set Delay", "jump", "stats")
        for line in lines:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    [first] = answers[0]["result"]["rules"]
    assert (first["fault"], first["direction"]) == ("Delay(seconds=0.05, jitter=0.01)", "to_client")
    assert first["share"] == 0.5
    assert answers[1]["result"]["number"] == 2
    assert answers[2:4] == [{"result": None}] * 2
    assert [answer["error"] for answer in answers[4:7]] == ["ValueError"] * 3
    assert [rule["fault"] for rule in answers[7]["result"]["rules"]] == ["Cut(after=5, reset=False)"]
    assert subprocess.run([*command, "--fault=Dealy(1)"], capture_output=True, check=False).returncode == 2


# -- models that misbehave --------------------------------------------------------------------------------


def doubled(x: Any) -> Any:
    """Twice as much."""
    return {"y": x * 2}


async def doubled_async(x: Any) -> Any:
    return {"y": x * 2}


class Doubled:
    async def __call__(self, x: Any) -> Any:
        return {"y": x * 2}


def servable(function: Any) -> CallableServable:
    return CallableServable(function, inputs={"x": ("float32", (None,))}, outputs={"y": ("float32", (None,))})


@pytest.mark.parametrize("function", [doubled, doubled_async, Doubled()])
async def test_slow_function(function: Any) -> None:
    """About the share asked for takes longer, by the seconds asked for; the answers stay right."""
    model = slow(function, 0.15, share=0.25, seed=2)
    assert model.__doc__ == function.__doc__
    async with ModelServer({"m": servable(model)}) as server, AsyncClient(server.target) as client:
        await client.get_model_metadata("m")
        outliers = 0
        for _ in range(20):
            begun = time.monotonic()
            assert (await client.predict("m", {"x": [1.0]}))["y"].tolist() == [2.0]
            outliers += time.monotonic() - begun >= 0.15
        assert 1 <= outliers <= 12


@pytest.mark.parametrize("function", [doubled, doubled_async, Doubled()])
async def test_failing_function(function: Any) -> None:
    """About the share asked for fails with the code and message asked for; the seed decides which."""

    async def outcomes(seed: int) -> list[bool]:
        model = failing(function, StatusCode.RESOURCE_EXHAUSTED, "full", share=0.3, seed=seed)
        async with ModelServer({"m": servable(model)}) as server, AsyncClient(server.target) as client:
            failed = []
            for _ in range(40):
                try:
                    await client.predict("m", {"x": [1.0]})
                    failed.append(False)
                except ResourceExhaustedError as error:
                    failed.append("full" in str(error))
            return failed

    first = await outcomes(1)
    assert 4 <= sum(first) <= 22
    assert await outcomes(1) == first
    assert await outcomes(2) != first


async def test_wrappers_combine() -> None:
    """A function can be slow and failing; wrapped, a sync one stays sync and an async one async."""
    model = slow(failing(doubled, StatusCode.UNKNOWN, "no"), 0.1)
    assert not inspect.iscoroutinefunction(model)
    assert inspect.iscoroutinefunction(slow(failing(doubled_async), 0.1))
    with pytest.raises(StatusError, match="UNKNOWN: no"):
        model(1)
    async with ModelServer({"m": servable(model)}) as server, AsyncClient(server.target) as client:
        begun = time.monotonic()
        with pytest.raises(UnknownError, match="no"):
            await client.predict("m", {"x": [1.0]})
        assert time.monotonic() - begun >= 0.1
    assert failing(doubled, share=0)(3) == {"y": 6}
