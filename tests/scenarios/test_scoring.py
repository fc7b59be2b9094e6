"""Scoring against real server processes that are killed, paused and restarted in mid-run, and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioserving import AsyncClient, Client, Model, RetryPolicy, UnavailableError
from aioserving.scoring import ScoredBatch, Scoring
from aioserving.testing import CallableServable, ServerProcess, StatusCode, StatusError
from tests.scenarios.leaks import settled

ROOT = Path(__file__).parents[2]
ROWS = 4000


def picky() -> CallableServable:
    """Doubles ``x`` after a few milliseconds, and refuses negative numbers as an operation would."""

    async def run(x: Any) -> Any:
        await asyncio.sleep(0.004)
        if (x < 0).any():
            raise StatusError(StatusCode.INVALID_ARGUMENT, f"{(x < 0).sum()} negative numbers")
        return x * 2

    vector = {"x": ("float32", (None,))}
    return CallableServable(run, inputs=vector, outputs={"y": ("float32", (None,))})


def process() -> ServerProcess:
    return ServerProcess(
        callables={"picky": "tests.scenarios.test_scoring:picky"}, env={"PYTHONPATH": str(ROOT)}
    )


def numbers(start: int = 0, stop: int = ROWS) -> Any:
    return np.arange(start, stop, dtype=np.float32)


OPTIONS: dict[str, Any] = {"batch_size": 20, "max_in_flight": 6, "outage": 60.0, "timeout": 5.0}


def score(model: Model, source: Any, **options: Any) -> Scoring:
    return model.score(source, **(OPTIONS | options))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 100))


def check(batches: list[ScoredBatch], source: Any) -> None:
    """Every row is in one result, and it is this row's."""
    batches = sorted(batches, key=lambda batch: batch.start)
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert rows == list(range(len(source)))
    found = np.concatenate([batch.outputs["y"] for batch in batches])
    assert found.tolist() == (source * 2).tolist()


async def _async(items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.mark.parametrize(("kind", "ordered"), [("array", False), ("rows", True), ("async rows", False)])
def test_servers_are_restarted_all_through_the_run(kind: str, ordered: bool) -> None:
    """A server that is killed, shut down gently and started again costs and repeats no row."""

    async def story() -> None:
        async with process() as server, AsyncClient(server.target) as client:
            before = asyncio.all_tasks()
            source: Any = numbers()
            if kind != "array":
                rows = ({"x": value} for value in numbers())
                source = rows if kind == "rows" else _async(rows)
            batches = []
            restarts = 0
            async with score(client.model("picky"), source, ordered=ordered) as results:
                async for batch in results:
                    batches.append(batch)
                    if len(batches) in (20, 70, 120):
                        await server.arestart(grace=None if len(batches) < 100 else 5)
                        restarts += 1
                progress = results.progress()
            assert restarts == 3
            check(batches, numbers())
            assert [batch.index for batch in batches] == list(range(200)) or not ordered
            assert progress.consumed == progress.rows_done == ROWS
            assert progress.errors == 0
            assert progress.retries > 0
            assert (await client.predict("picky", [4.0]))["y"].tolist() == [8.0]
            assert not await settled(client, before)

    run(story())


def test_one_server_of_a_fleet_comes_and_goes() -> None:
    """While one of two servers is down the other does the work, and bad rows are told from failures."""

    async def story() -> None:
        source = numbers()
        bad = [0, 777, 778, 1999, 3999]
        source[bad] = -1
        async with (
            process() as one,
            process() as two,
            AsyncClient([one.target, two.target]) as client,
        ):

            async def restart() -> None:
                for server in (one, two, one):
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(server.kill)
                    await asyncio.sleep(0.2)
                    await server.astart()

            restarting = asyncio.create_task(restart())
            async with score(
                client.model("picky"), source, on_error="collect", max_in_flight=None
            ) as results:
                batches = [batch async for batch in results]
            await restarting
            found = [row for batch in batches for row in batch.errors]
            assert [row.row for row in found] == bad
            assert all("1 negative numbers" in str(row.error) for row in found)
            rows = [row for batch in batches for row in batch.rows.tolist()]
            assert rows == sorted(set(range(ROWS)) - set(bad))
            outputs = np.concatenate([batch.outputs["y"] for batch in batches])
            assert outputs.tolist() == (np.delete(source, bad) * 2).tolist()

    run(story())


def test_a_server_that_hangs_for_a_while() -> None:
    """Calls that got no answer in time are made again, and no row is lost or repeated."""

    async def story() -> None:
        async with process() as server, AsyncClient(server.target) as client:
            batches = []
            async with score(client.model("picky"), numbers(), timeout=0.5) as results:
                async for batch in results:
                    batches.append(batch)
                    if len(batches) == 50:
                        server.pause()
                        asyncio.get_running_loop().call_later(1.2, server.resume)
            check(batches, numbers())
            assert results.progress().retries > 0

    run(story())


def test_an_outage_beyond_the_limit_can_be_resumed() -> None:
    """The error comes after every result there is, and a run from `consumed` gives the rest, no row twice."""

    async def story() -> None:
        async with (
            process() as server,
            AsyncClient(server.target, retry=RetryPolicy(max_attempts=2)) as client,
        ):
            model = client.model("picky")
            batches = []
            with pytest.raises(UnavailableError, match=r"the limit is 0\.5 s"):
                async with score(model, numbers(), outage=0.5) as results:
                    async for batch in results:
                        batches.append(batch)
                        if len(batches) == 50:
                            await asyncio.to_thread(server.kill)
            assert results.consumed == batches[-1].stop < ROWS
            await server.astart()
            on = results.consumed
            async with score(model, numbers(on), first_row=on) as rest:
                batches += [batch async for batch in rest]
            check(batches, numbers())

    run(story())


def test_plain_code_while_the_server_is_restarted() -> None:
    """The blocking client gives the same: every row once, in order."""
    with process() as server, Client(server.target) as client:
        scoring = client.model("picky").score(({"x": value} for value in numbers()), **OPTIONS)
        restart = threading.Timer(0.2, server.restart)
        restart.start()
        with scoring as results:
            batches = list(results)
        restart.join()
        check(batches, numbers())
        assert [batch.index for batch in batches] == list(range(200))
        assert results.progress().retries > 0


_PLAIN = """
import itertools, sys
from tests.scenarios.test_scoring import OPTIONS
from aioserving import Client

closed = False
def rows():
    global closed
    try:
        for number in itertools.count():
            yield float(number)
    finally:
        closed = True

with Client(sys.argv[1]) as client:
    seen = 0
    results = client.model("picky").score(rows(), **OPTIONS)
    try:
        with results:
            for batch in results:
                assert batch.start == seen
                seen = batch.stop
                print("at", seen, flush=True)
    except KeyboardInterrupt:
        pass
    assert seen - 20 <= results.consumed <= seen, (results.consumed, seen)
    print("usable", closed, client.predict("picky", [4.0])["y"].tolist(), flush=True)
"""

_ASYNC = """
import asyncio, itertools, sys
from tests.scenarios.test_scoring import score
from aioserving import AsyncClient

closed = False
def rows():
    global closed
    try:
        for number in itertools.count():
            yield float(number)
    finally:
        closed = True

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        results = score(client.model("picky"), rows())
        seen = 0
        try:
            async with results:
                async for batch in results:
                    assert batch.start == seen
                    seen = batch.stop
                    print("at", seen, flush=True)
        except asyncio.CancelledError:
            assert seen - 20 <= results.consumed <= seen, (results.consumed, seen)
            assert asyncio.all_tasks() - {asyncio.current_task()} == client_tasks(client)
            print("usable", closed, (await client.predict("picky", [4.0]))["y"].tolist(), flush=True)
            raise

def client_tasks(client):
    return {task for task in asyncio.all_tasks() if "score" not in repr(task)} - {asyncio.current_task()}

try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
"""


@contextlib.contextmanager
def child(script: str, target: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(_PLAIN, id="plain"),
        pytest.param(
            _ASYNC,
            id="asyncio",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11),
                reason="before Python 3.11 Ctrl-C is raised inside the event loop, it cancels no task",
            ),
        ),
    ],
)
def test_ctrl_c_leaves_a_usable_client(script: str) -> None:
    """After Ctrl-C the source is closed, it is known how far results came, and the client makes calls."""
    with process() as server, child(script, server.target) as started:
        assert started.stdout is not None
        for _ in range(30):
            assert started.stdout.readline().startswith("at ")
        started.send_signal(signal.SIGINT)
        output, problems = started.communicate(timeout=30)
        assert output.splitlines()[-1] == "usable True [8.0]", problems
        assert problems == ""
        assert started.returncode == 0


def test_ctrl_c_twice_ends_the_program() -> None:
    """A second Ctrl-C right after the first ends plain code within seconds, wherever it hits.

    Under `asyncio.run` it is raised inside the event loop, which may lose the wake-up of the main task by
    it and then wait for ever: seen once in fifty, and nothing that a library could prevent.
    """
    with process() as server:
        for pause in (0.0, 0.001, 0.01):
            with child(_PLAIN, server.target) as started:
                assert started.stdout is not None
                for _ in range(10):
                    assert started.stdout.readline().startswith("at ")
                started.send_signal(signal.SIGINT)
                time.sleep(pause)
                started.send_signal(signal.SIGINT)
                begun = time.monotonic()
                started.communicate(timeout=30)
                assert time.monotonic() - begun < 20
