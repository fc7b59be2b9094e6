"""Batching on real server processes: many callers, a poisoned row, a version roll-out, threads."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from aioserving import (
    AsyncClient,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    InvalidArgumentError,
    PredictResult,
)
from aioserving.batching import BatchedModel, BatchingOptions, BlockingBatchedModel
from aioserving.testing import CallableServable, ServerProcess, StatusCode, StatusError

from ..test_batching import bound
from .timed import ROOT

BASE = "/callable/digits"
GENERATOR = np.random.default_rng(5)
IMAGES = GENERATOR.random((300, 784), dtype=np.float32)


def picky() -> CallableServable:
    """Sums rows, and refuses all of a request if one of its rows begins with -1; 2 ms a call."""

    async def run(x: Any) -> dict[str, Any]:
        await asyncio.sleep(0.002)
        if np.any(x[:, 0] == -1):
            raise StatusError(StatusCode.INVALID_ARGUMENT, "indices[0] = -1 is not in [0, 10)")
        return {"sum": x.sum(axis=1), "rows": np.full(len(x), len(x), np.int64)}

    return CallableServable(
        run,
        inputs={"x": ("float32", (None, 4))},
        outputs={"sum": ("float32", (None,)), "rows": ("int64", (None,))},
    )


def tokens() -> CallableServable:
    """Sums every row of `ids` up to its `length`, and gives back `ids` plus one."""

    def run(ids: Any, length: Any) -> dict[str, Any]:
        valid = np.arange(ids.shape[1]) < length[:, None]
        return {"sum": np.where(valid, ids, 0).sum(axis=1), "next": ids + 1}

    return CallableServable(
        run,
        inputs={"ids": ("int64", (None, None)), "length": ("int64", (None,))},
        outputs={"sum": ("int64", (None,)), "next": ("int64", (None, None))},
        inline=True,
    )


def process() -> ServerProcess:
    return ServerProcess(
        callables={
            "digits": "tests.models:versions",
            "picky": "tests.scenarios.test_batching:picky",
            "tokens": "tests.scenarios.test_batching:tokens",
        },
        env={"PYTHONPATH": str(ROOT)},
        file_system_poll_wait_seconds=0.1,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with process() as started:
        yield started


@contextlib.asynccontextmanager
async def batching(
    server: ServerProcess, model: str, **options: Any
) -> AsyncIterator[tuple[AsyncClient, BatchedModel]]:
    async with (
        AsyncClient(server.target) as client,
        BatchedModel(bound(client.model(model)), BatchingOptions(**options)) as batched,
    ):
        yield client, batched


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 90))


def test_64_callers(server: ServerProcess) -> None:
    """64 callers in a loop are answered bit for bit as without batching, with a small part of the calls."""

    async def story() -> None:
        async with batching(server, "digits") as (client, batched):
            alone = [
                (await client.predict("digits", image[None], output_filter=["scores"]))["scores"]
                for image in IMAGES[:64]
            ]
            before = client.stats().calls

            async def caller(index: int) -> None:
                for turn in range(20):
                    wanted = (index + turn) % 64
                    result = await batched.predict(
                        {"images": IMAGES[wanted : wanted + 1]}, output_filter=["scores"]
                    )
                    assert result["scores"].tobytes() == alone[wanted].tobytes()
                    assert result.attempts[-1].target == server.target

            await asyncio.gather(*map(caller, range(64)))
            stats = batched.stats()
            assert stats.calls == 64 * 20
            assert client.stats().calls - before == stats.batches
            assert stats.mean_size > 16

    run(story())


def test_a_poisoned_row(server: ServerProcess) -> None:
    """One caller sends a row that sinks the whole request: it alone gets the error, again and again."""

    async def story() -> None:
        async with batching(server, "picky") as (_, batched):
            found: collections.Counter[str] = collections.Counter()

            async def caller(index: int) -> None:
                for turn in range(6):
                    row = np.full((1, 4), -1 if index == 11 else index + turn, np.float32)
                    if index == 11:
                        with pytest.raises(InvalidArgumentError, match=r"indices\[0\] = -1") as caught:
                            await batched.predict({"x": row})
                        assert caught.value.endpoint == server.target
                        found["refused"] += 1
                    else:
                        result = await batched.predict({"x": row})
                        assert result["sum"].tolist() == [4 * (index + turn)]
                        found["answered"] += 1

            await asyncio.gather(*map(caller, range(64)))
            assert found == {"refused": 6, "answered": 63 * 6}
            assert batched.stats().resent > 0

    run(story())


def test_a_version_is_rolled_out_under_load() -> None:
    """Version 2 replaces 1: no caller sees an error, and every answer says truly which version it is of."""

    async def story() -> None:
        async with process() as server, AsyncClient(server.target) as client:
            await client.reload_config(
                [{"name": "digits", "base_path": BASE, "model_version_policy": {"specific": [1]}}], wait=True
            )
            options = BatchingOptions(shared_outputs="broadcast", max_batch_size=16)
            batched = BatchedModel(bound(client.model("digits")), options)
            seen: list[int] = []
            enough = asyncio.Event()

            async def caller(index: int) -> None:
                # The last one's requests are larger than a batch, and still of one version.
                images = IMAGES[:40] if index == 0 else IMAGES[index : index + 1]
                while not enough.is_set():
                    result = await batched.predict({"images": images})
                    assert len(result["scores"]) == len(images)
                    assert result.model_spec.version == int(result["version"])
                    seen.append(int(result["version"]))

            callers = [asyncio.create_task(caller(index)) for index in range(16)]
            await asyncio.sleep(0.2)
            await client.reload_config(
                [{"name": "digits", "base_path": BASE, "model_version_policy": {"specific": [2]}}], wait=True
            )
            until = len(seen) + 100
            while len(seen) < until or seen[-1] != 2:
                assert not any(call.done() for call in callers)
                await asyncio.sleep(0.01)
            enough.set()
            await asyncio.gather(*callers)
            assert set(seen) == {1, 2}
            assert set(seen[-50:]) == {2}
            await batched.aclose()

    run(story())


def test_threads(server: ServerProcess) -> None:
    """Threads over the blocking client share batches, too, and closing lets them end."""
    with Client(server.target) as client:
        batched = BlockingBatchedModel(
            client._run, BatchedModel(bound(client.model("picky")._model), BatchingOptions())
        )
        start = threading.Barrier(32)

        def caller(index: int) -> int:
            start.wait(30)
            largest = 0
            for turn in range(10):
                result = batched.predict({"x": np.full((1, 4), index * turn, np.float32)})
                assert result["sum"].tolist() == [4.0 * index * turn]
                largest = max(largest, int(result["rows"][0]))
            return largest

        with batched, ThreadPoolExecutor(32) as threads:
            largest = list(threads.map(caller, range(32)))
        stats = batched.stats()
        assert stats.calls == 320
        assert stats.batches < 160
        assert max(largest) >= 8
        with pytest.raises(ClientClosedError, match="handle is closed"):
            batched.predict({"x": np.zeros((1, 4), np.float32)})
        client.predict("picky", {"x": np.zeros((1, 4), np.float32)})


def test_sequences_of_different_lengths(server: ServerProcess) -> None:
    """Ragged inputs go together, the model is told their lengths, and everyone gets its own length back."""

    async def story() -> None:
        async with batching(server, "tokens", pad_axis=1, length_input="length", cut_outputs=("next",)) as (
            client,
            batched,
        ):
            sequences = [np.arange(index % 9 + 1)[None] + index for index in range(40)]
            results = await asyncio.gather(*map(batched.predict, sequences))
            for sequence, result in zip(sequences, results, strict=True):
                assert result["next"].tolist() == (sequence + 1).tolist()
                assert result["sum"].tolist() == [sequence.sum()]
            assert client.stats().calls < 10

    run(story())


def test_impatient_callers(server: ServerProcess) -> None:
    """Callers that give up, by deadline or by cancellation, disturb none of those who stay."""

    async def story() -> None:
        async with batching(server, "picky", max_batch_size=8) as (_, batched):
            row = np.ones((1, 4), np.float32)
            await batched.predict({"x": row})

            async def caller(index: int) -> str:
                try:
                    if index % 3 == 0:
                        await asyncio.wait_for(batched.predict({"x": row}), 0.001 * (index % 7))
                    elif index % 3 == 1:
                        await batched.predict({"x": row}, timeout=0.001 * (index % 11 + 1))
                    else:
                        await batched.predict({"x": row}, timeout=None)
                except DeadlineExceededError:
                    assert index % 3 == 1
                    return "late"
                except (asyncio.TimeoutError, TimeoutError):
                    assert index % 3 == 0
                    return "gone"
                return "answered"

            found = collections.Counter(await asyncio.gather(*map(caller, range(300))))
            assert found["answered"] >= 100
            assert found["late"] + found["gone"] > 20
            stats = batched.stats()
            assert (stats.waiting, stats.in_flight) == (0, 0)

    run(story())


def test_closing_the_client_ends_everything(server: ServerProcess) -> None:
    """Callers of a handle whose client is closed meanwhile get an answer or a ClientClosedError, soon."""

    async def story() -> None:
        async with AsyncClient(server.target) as client:
            batched = BatchedModel(bound(client.model("picky")), BatchingOptions(max_batch_size=2))
            await batched.predict({"x": np.ones((1, 4), np.float32)})
            calls = [
                asyncio.create_task(batched.predict({"x": np.full((1, 4), index, np.float32)}))
                for index in range(40)
            ]
            await asyncio.sleep(0.003)
            await client.aclose()
            found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            for index, item in enumerate(found):
                if isinstance(item, PredictResult):
                    assert item["sum"].tolist() == [4.0 * index]
                else:
                    assert isinstance(item, ClientClosedError)
            await batched.aclose()

    run(story())
