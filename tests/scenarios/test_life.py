"""Event loops, processes and the garbage collector end in their own ways: what a client makes of each."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from aioserving import AsyncClient, Client, DeadlineExceededError, EventLoopError
from aioserving.hedging import HedgingPolicy
from aioserving.testing import ModelServer
from tests.models import digits
from tests.scenarios.leaks import Resources, resources, settled
from tests.scenarios.timed import ROOT, process

IMAGES = np.ones((1, 784), np.float32)


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """A server in a process of its own."""
    with process(callables={"digits": "tests.models:digits"}) as server:
        yield server.target


@pytest.fixture
def dead() -> Iterator[str]:
    """The target of nobody: connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A target that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def connections(*targets: str) -> int:
    """TCP connections of this process to the targets."""
    ports = {int(target.rpartition(":")[2]) for target in targets}
    found = psutil.Process().net_connections(kind="tcp")
    return sum(
        bool(item.raddr) and item.raddr.port in ports and item.status != "CLOSE_WAIT" for item in found
    )


async def gone(*targets: str, seconds: float = 10.0) -> int:
    """`connections` once there are none, or after some seconds."""
    end = time.monotonic() + seconds
    while (count := connections(*targets)) and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return count


async def use(client: AsyncClient, calls: int = 20) -> None:
    """Some calls, all answered."""
    results = await asyncio.gather(*(client.predict("digits", IMAGES, timeout=20) for _ in range(calls)))
    assert all(result["version"] == 1 for result in results)


async def until_one_is_out(client: AsyncClient) -> None:
    """Use the client until it has found that an endpoint is down, so that it is being probed."""
    end = time.monotonic() + 15
    while all(endpoint.ok for endpoint in client.health().endpoints):
        await use(client, 4)
        await asyncio.sleep(0.01)
        assert time.monotonic() < end, client.health()


def run(coroutine: Any, seconds: float = 60.0) -> None:
    asyncio.run(asyncio.wait_for(coroutine, seconds))


# -------------------------------------------------------------------------------------- programs of their own

_BEGINNING = """
import asyncio, os, sys, warnings
from aioserving import AsyncClient, Client, errors
IMAGES = [[1.0] * 784]
targets = sys.argv[1:]

async def use(client, calls=20):
    results = await asyncio.gather(*(client.predict("digits", IMAGES, timeout=20) for _ in range(calls)))
    assert all(result["version"] == 1 for result in results)

async def until_one_is_out(client):
    for _ in range(300):
        await use(client, 4)
        if not all(endpoint.ok for endpoint in client.health().endpoints):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(client.health())
"""


def program(text: str, *targets: str, seconds: float = 40.0) -> str:
    """What a program writes on standard output; it ends in time, with 0, and without a complaint."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGINNING + textwrap.dedent(text), *targets],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"},
    )
    assert done.returncode == 0, done.stderr
    for complaint in ("Traceback", "Exception ignored", "never awaited", "was destroyed", "Fatal"):
        assert complaint not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_while_names_are_looked_up_and_endpoints_probed(target: str, dead: str) -> None:
    """The child gets ForkError from the old client and a new one, and ends; the parent goes on."""
    name = f"dns:///localhost:{target.rpartition(':')[2]}"
    output = program(
        """
        warnings.simplefilter("ignore")

        async def child(client):
            for forked in (client, AsyncClient(targets[0])):
                try:
                    await forked.predict("digits", IMAGES, timeout=5)
                except errors.ForkError as error:
                    print("child:", type(error).__name__, "forked" in str(error), flush=True)

        async def main():
            async with AsyncClient([targets[1], targets[0]]) as client:
                await client.wait_ready("digits")
                await until_one_is_out(client)
                pid = os.fork()
                if not pid:
                    asyncio.run(child(client))
                    os._exit(7)
                await use(client)
                while True:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        break
                    await use(client)
                    await asyncio.sleep(0.01)
                print("child ended with", os.waitstatus_to_exitcode(status))
                await use(client, 100)
                print("parent:", client.stats().in_flight, "in flight")

        asyncio.run(asyncio.wait_for(main(), 30))
        """,
        name,
        dead,
    )
    assert output.splitlines() == [
        "child: ForkError True",
        "child: ForkError True",
        "child ended with 7",
        "parent: 0 in flight",
    ]


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("asyncio.run(main())", id="asyncio.run"),
        pytest.param(
            "loop = asyncio.new_event_loop(); loop.run_until_complete(main())", id="a loop left as it is"
        ),
        pytest.param(
            "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
            id="a loop closed",
        ),
    ],
)
def test_a_program_that_ends_with_a_client_open(target: str, dead: str, silent: str, ending: str) -> None:
    """Calls made, one endpoint down and one silent, probes under way: the program ends, and says nothing."""
    output = program(
        f"""
        client = AsyncClient(targets)

        async def main():
            await until_one_is_out(client)
            while not client._monitor._tasks:  # probes of the silent one
                await asyncio.sleep(0.01)
            print("open")

        {ending}
        print("end", flush=True)
        """,
        target,
        dead,
        silent,
    )
    assert output.split() == ["open", "end"]


def test_a_program_that_ends_with_a_blocking_client_open(target: str, dead: str, silent: str) -> None:
    """Nobody closes the facade, whose loop is in a thread: the program ends all the same."""
    output = program(
        """
        client = Client(targets, timeout=20)
        for _ in range(30):
            client.predict("digits", IMAGES)
        print("end", flush=True)
        """,
        target,
        dead,
        silent,
    )
    assert output.split() == ["end"]


# ------------------------------------------------------------------------------------------ loops and garbage


def test_a_loop_closed_under_a_client(target: str, dead: str) -> None:
    """The next call says what happened, aclose() is quiet, and the sockets are gone."""
    client = AsyncClient([target, dead])
    run(until_one_is_out(client))

    async def afterwards() -> None:
        with pytest.raises(EventLoopError, match="event loop that is closed"):
            await client.predict("digits", IMAGES)
        await client.aclose()
        assert await gone(target) == 0
        async with AsyncClient(target) as another:
            await use(another)

    run(afterwards())


@pytest.mark.parametrize("state", ["idle", "probing", "hedging"])
def test_a_forgotten_client_is_collected(target: str, dead: str, state: str) -> None:
    """Unclosed and unreferenced: a ResourceWarning, no socket and no task left, on a loop that runs on."""

    async def story() -> None:
        before = asyncio.all_tasks()
        targets = [target, dead] if state == "probing" else [target, target.replace("127.0.0.1", "localhost")]
        hedging = HedgingPolicy(delay=0.0, max_extra_load=1.0) if state == "hedging" else None
        client = AsyncClient(targets, hedging=hedging)
        if state == "probing":
            await until_one_is_out(client)
        await use(client, 50)
        assert connections(target) > 0
        del client
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            end = time.monotonic() + 15
            while not caught and time.monotonic() < end:
                gc.collect()
                await asyncio.sleep(0.02)
            assert await gone(target) == 0
            while asyncio.all_tasks() != before and time.monotonic() < end:
                await asyncio.sleep(0.02)
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w) for w in caught]
        assert "unclosed <AsyncClient of" in str(caught[0].message)
        assert asyncio.all_tasks() == before

    run(story())


def test_uvloop_and_everything_switched_on(dead: str) -> None:
    """On uvloop: retries past a dead endpoint, hedges, cancellation, deadlines, and nothing is left."""
    uvloop = pytest.importorskip("uvloop", reason="needs uvloop (the uvloop extra)")

    async def story() -> None:
        async with ModelServer({"digits": digits()}) as one, ModelServer({"digits": digits()}) as two:
            before = asyncio.all_tasks()
            async with AsyncClient(
                [one.target, dead, two.target], hedging=HedgingPolicy(delay=0.001, max_extra_load=1.0)
            ) as client:
                assert (await client.wait_ready("digits", timeout=20)).ok
                await until_one_is_out(client)
                for _ in range(10):
                    await use(client, 50)
                assert [endpoint.ok for endpoint in client.health().endpoints] == [True, False, True]
                calls = [asyncio.create_task(client.predict("digits", IMAGES)) for _ in range(100)]
                for number, call in enumerate(calls):
                    if number % 5 == 0:
                        await asyncio.sleep(0)
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                with pytest.raises(DeadlineExceededError):
                    await client.predict("digits", IMAGES, timeout=0)
                await use(client)
                assert client.stats().models[0].hedges > 0
                assert [found for found in await settled(client, before, 2) if "task" not in found] == []

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(story(), 60))
    finally:
        loop.close()


# ----------------------------------------------------------------------------------------------- many clients


async def _lives(count: int, targets: list[str]) -> None:
    for _ in range(count):
        async with AsyncClient(targets, hedging=HedgingPolicy(delay=0.5)) as client:
            await client.predict("digits", {"images": IMAGES}, timeout=20, validate=False)


def _compare(early: Resources, late: Resources, megabytes: int) -> None:
    print(f"\n{early}\n{late}")
    assert late.threads <= early.threads + 1
    assert late.sockets <= early.sockets + 2
    assert late.files <= early.files + 10
    assert late.memory - early.memory < megabytes * 1_000_000


def test_1000_clients_leave_the_process_as_it_was(target: str, dead: str) -> None:
    """Opened, used with a dead endpoint beside the good one, closed: threads, sockets, memory are flat."""

    async def story() -> None:
        before = asyncio.all_tasks()
        await _lives(150, [target, dead])
        early = resources()
        await _lives(1000, [target, dead])
        assert await gone(target) == 0
        assert asyncio.all_tasks() == before
        _compare(early, resources(), 30)

    run(story(), 120)


@pytest.mark.nightly
def test_thousands_of_clients_at_once_and_in_a_row(target: str, dead: str) -> None:
    """10,000 in a row and 20 times 200 at the same time: nothing grows."""

    async def story() -> None:
        await _lives(1000, [target, dead])
        await asyncio.gather(*(_lives(1, [target]) for _ in range(200)))
        early = resources()
        await _lives(10_000, [target, dead])
        for _ in range(20):
            await asyncio.gather(*(_lives(1, [target]) for _ in range(200)))
        assert await gone(target) == 0
        _compare(early, resources(), 40)

    run(story(), 900)


def test_blocking_clients_come_and_go(target: str) -> None:
    """100 facades, each with a loop in a thread while it lives: no thread, socket or memory is left."""

    def once() -> None:
        with Client(target) as client:
            client.predict("digits", {"images": IMAGES}, validate=False)

    for _ in range(20):
        once()
    early = resources()
    for _ in range(100):
        once()
    _compare(early, resources(), 20)
