"""What callers see when servers die, hang and come back: real processes, sockets and signals."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from aioserving import AsyncClient, Client, DeadlineExceededError, RPCError, UnavailableError
from aioserving.testing import ModelServer, ServerProcess

from ..models import digits

ROOT = Path(__file__).parents[2]
IMAGES = np.ones((2, 784), np.float32)


def process() -> ServerProcess:
    return ServerProcess(callables={"digits": "tests.models:digits"}, env={"PYTHONPATH": str(ROOT)})


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 90))


def test_a_server_killed_in_mid_call() -> None:
    """SIGKILL under waiting calls: every one fails with UNAVAILABLE at once, and none hangs."""

    async def story() -> None:
        async with process() as server, AsyncClient(server.target) as client:
            await client.predict("digits", IMAGES)
            server.pause()  # so that the calls are surely under way when it dies
            calls = [asyncio.create_task(client.predict("digits", IMAGES)) for _ in range(50)]
            while client.stats().in_flight < 50:
                await asyncio.sleep(0)
            begun = time.monotonic()
            server.kill()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - begun < 10
            assert {type(outcome) for outcome in outcomes} == {UnavailableError}
            assert client.stats().in_flight == 0

    run(story())


def test_a_server_that_comes_back() -> None:
    """After a restart on the same port the same client goes on, within moments."""

    async def story() -> None:
        async with process() as server, AsyncClient(server.target) as client:
            await client.predict("digits", IMAGES)
            server.kill()
            with pytest.raises(UnavailableError):
                await client.predict("digits", IMAGES, timeout=5)
            server.restart()
            await client.wait_until_available("digits", timeout=30)
            assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


def test_a_server_that_hangs() -> None:
    """SIGSTOP: calls end with their deadlines; after SIGCONT the client goes on."""

    async def story() -> None:
        async with process() as server, AsyncClient(server.target) as client:
            await client.predict("digits", IMAGES)
            server.pause()
            begun = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                await client.predict("digits", IMAGES, timeout=0.3)
            assert time.monotonic() - begun < 5
            server.resume()
            assert (await client.predict("digits", IMAGES, timeout=20))["version"] == 1

    run(story())


def test_one_of_two_servers_killed() -> None:
    """Traffic goes to the other one; only calls that were with the dead one fail."""

    async def story() -> None:
        async with (
            process() as one,
            process() as two,
            AsyncClient([one.target, two.target]) as client,
        ):
            await asyncio.gather(*(client.predict("digits", IMAGES) for _ in range(20)))
            one.kill()
            failures = 0
            for _ in range(200):
                try:
                    await client.predict("digits", IMAGES)
                except RPCError:
                    failures += 1
            assert failures <= 5
            dead, alive = client.stats().endpoints
            assert (dead.target, alive.target) == (one.target, two.target)
            assert alive.calls >= 195

    run(story())


def test_random_cancellations_leak_nothing() -> None:
    """2,000 calls cancelled at random points: no task, no in-flight count left, and the client goes on."""
    generator = np.random.default_rng(7)

    async def story() -> None:
        async with ModelServer({"digits": digits()}) as server, AsyncClient(server.target) as client:
            await client.predict("digits", IMAGES)
            before = len(asyncio.all_tasks())

            async def cancelled_call(delay: float) -> None:
                task = asyncio.create_task(client.predict("digits", IMAGES))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            for _ in range(40):
                delays = generator.exponential(0.01, 50)
                await asyncio.gather(*map(cancelled_call, delays))
            assert client.stats().in_flight == 0
            results = await asyncio.gather(*(client.predict("digits", IMAGES) for _ in range(100)))
            assert all(result["version"] == 1 for result in results)
            assert len(asyncio.all_tasks()) <= before + 60  # the server's own, which end in their time

    run(story())


def resources() -> tuple[int, int, int]:
    gc.collect()
    this = psutil.Process()
    return this.num_fds(), threading.active_count(), this.memory_info().rss


def test_many_clients_leak_neither_sockets_nor_threads_nor_memory() -> None:
    """300 clients opened, used and closed leave the process as it was."""

    async def story() -> None:
        async with ModelServer({"digits": digits()}) as server:

            async def once() -> None:
                async with AsyncClient(server.target) as client:
                    await client.predict("digits", {"images": IMAGES}, validate=False)

            for _ in range(30):
                await once()
            files, threads, memory = resources()
            for _ in range(300):
                await once()
            await asyncio.sleep(0.1)
            files_after, threads_after, memory_after = resources()
            assert files_after <= files + 20
            assert threads_after <= threads + 2
            assert memory_after - memory < 30_000_000

    run(story())


def test_many_blocking_clients_leak_nothing() -> None:
    """The same for the facade, one after the other: its thread comes and goes with them."""
    with ModelServer({"digits": digits()}) as server:

        def once() -> None:
            with Client(server.target) as client:
                client.predict("digits", {"images": IMAGES}, validate=False)

        for _ in range(10):
            once()
        files, threads, _ = resources()
        for _ in range(100):
            once()
        files_after, threads_after, _ = resources()
        assert files_after <= files + 20
        assert threads_after <= threads


def test_uvloop() -> None:
    """The client works on uvloop's event loop: calls, deadlines, cancellation, close."""
    uvloop = pytest.importorskip("uvloop", reason="needs uvloop (the uvloop extra)")

    async def story() -> None:
        async with ModelServer({"digits": digits()}) as server, AsyncClient(server.target) as client:
            results = await asyncio.gather(*(client.predict("digits", IMAGES) for _ in range(200)))
            assert all(result["version"] == 1 for result in results)
            task = asyncio.create_task(client.predict("digits", IMAGES))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(DeadlineExceededError):
                await client.predict("digits", IMAGES, timeout=0)
            assert client.stats().in_flight == 0

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(story(), 60))
    finally:
        loop.close()


@pytest.mark.nightly
def test_soak() -> None:
    """Minutes of calls, cancellations, pauses and kills over three servers: memory flat, nothing stuck."""
    seconds = float(os.environ.get("AIOSERVING_SOAK_SECONDS", "300"))
    generator = np.random.default_rng(11)

    async def story() -> None:
        servers = [process() for _ in range(3)]
        for server in servers:
            server.start()
        try:
            async with AsyncClient([server.target for server in servers], timeout=2.0) as client:
                stop = time.monotonic() + seconds
                outcomes: dict[str, int] = {}

                async def caller() -> None:
                    while time.monotonic() < stop:
                        task = asyncio.create_task(client.predict("digits", IMAGES))
                        if generator.random() < 0.05:
                            await asyncio.sleep(generator.exponential(0.005))
                            task.cancel()
                        (outcome,) = await asyncio.gather(task, return_exceptions=True)
                        name = type(outcome).__name__
                        outcomes[name] = outcomes.get(name, 0) + 1
                        if isinstance(outcome, UnavailableError):
                            await asyncio.sleep(0.01)

                async def troublemaker() -> None:
                    while time.monotonic() < stop - 10:
                        await asyncio.sleep(2)
                        server = servers[int(generator.integers(3))]
                        if generator.random() < 0.5:
                            server.kill()
                            await server.arestart()
                        else:
                            server.pause()
                            await asyncio.sleep(1)
                            server.resume()

                callers = [asyncio.create_task(caller()) for _ in range(32)]
                trouble = asyncio.create_task(troublemaker())
                await asyncio.sleep(seconds / 4)
                _, _, early = resources()
                await asyncio.gather(*callers, trouble)
                _, _, late = resources()
                assert late - early < 50_000_000
                assert client.stats().in_flight == 0
                assert outcomes["PredictResult"] > 0.8 * sum(outcomes.values())
                await client.wait_until_available("digits", timeout=30)
                for _ in range(100):
                    await client.predict("digits", IMAGES)
        finally:
            for server in servers:
                server.close()

    asyncio.run(asyncio.wait_for(story(), seconds + 120))
