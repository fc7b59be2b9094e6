"""Calls cancelled at random points, by the thousand: nothing stays behind, and the client goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aioserving import AsyncClient
from aioserving.events import CallHedged, Event
from aioserving.hedging import HedgingPolicy
from aioserving.pool import PoolOptions
from aioserving.retry import RetryPolicy
from tests.scenarios.leaks import resources, settled
from tests.scenarios.timed import INPUTS, process

_HEDGING = HedgingPolicy(delay=0.002, max_extra_load=1.0)
_RETRIES = RetryPolicy(max_attempts=12, initial_backoff=0.002, max_backoff=0.01, budget_ratio=1.0)
_FEW = PoolOptions(max_in_flight=6, connections_per_endpoint=2)

#: What is switched on, by name: the model's attribute and the client's options.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("quick", {"retry": None}),
    "hedging": ("quick", {"hedging": _HEDGING}),
    "retries": ("fifth_fails", {"retry": _RETRIES}),
    "waiting": ("quick", {"pool": _FEW}),
    "everything": ("fifth_fails", {"hedging": _HEDGING, "retry": _RETRIES, "pool": _FEW}),
}


@contextlib.asynccontextmanager
async def fleet(model: str, size: int = 2) -> AsyncIterator[list[str]]:
    """The targets of server processes that serve ``m``."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [process(callables={"m": f"tests.scenarios.timed:{model}"}) for _ in range(size)]
        await asyncio.gather(*(stack.enter_async_context(server) for server in servers))
        yield [server.target for server in servers]


async def cancelled_call(client: AsyncClient, dice: random.Random, outcomes: dict[str, int]) -> None:
    """A call that is cancelled after some steps of the event loop, or some time, or never in time."""
    task = asyncio.create_task(client.predict("m", INPUTS, timeout=30))
    kind = dice.randrange(4)
    if kind == 0:
        for _ in range(dice.randrange(8)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(dice.expovariate((0, 1000, 100, 10)[kind]))
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    name = type(outcome).__name__
    outcomes[name] = outcomes.get(name, 0) + 1


async def many_cancelled(client: AsyncClient, count: int, seed: int) -> dict[str, int]:
    """So many calls, 50 at a time; how they ended."""
    dice = random.Random(seed)
    outcomes: dict[str, int] = {}
    left = count

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await cancelled_call(client, dice, outcomes)

    await asyncio.gather(*(worker() for _ in range(50)))
    return outcomes


async def all_succeed(client: AsyncClient, count: int) -> None:
    """So many calls, 20 at a time, every one answered."""
    for _ in range(count // 20):
        results = await asyncio.gather(*(client.predict("m", INPUTS, timeout=30) for _ in range(20)))
        assert all(result["y"].sum() == 16 for result in results)


@pytest.mark.parametrize("setting", SETTINGS)
def test_cancelled_at_random_points(setting: str) -> None:
    """1,000 calls cancelled anywhere leave no task, no count and no waiter; then 200 calls succeed."""
    model, options = SETTINGS[setting]
    hedges: list[Event] = []

    async def story() -> None:
        before = asyncio.all_tasks()
        async with fleet(model) as targets:
            async with AsyncClient(
                targets,
                observers=[lambda event: hedges.append(event) if isinstance(event, CallHedged) else None],
                **options,
            ) as client:
                await all_succeed(client, 20)
                outcomes = await many_cancelled(client, 1000, seed=17)
                assert set(outcomes) == {"CancelledError", "PredictResult"}, outcomes
                assert min(outcomes.values()) >= 10, outcomes
                assert await settled(client, before) == []
                await all_succeed(client, 200)
                assert await settled(client, before) == []
            assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(story(), 90))
    assert bool(hedges) == ("hedging" in options)


async def _cancelled_while(client: AsyncClient, steps: Sequence[int]) -> None:
    for count in steps:
        task = asyncio.create_task(client.predict("m", INPUTS))
        for _ in range(count):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_cancelled_while_the_client_closes() -> None:
    """Calls cancelled, and calls under way, while the client closes: none hangs and no task is left."""

    async def story() -> None:
        before = asyncio.all_tasks()
        dice = random.Random(23)
        async with fleet("quick") as targets:
            for _ in range(8):
                client = AsyncClient(targets, hedging=_HEDGING, pool=_FEW)
                await client.predict("m", INPUTS)
                outcomes: dict[str, int] = {}
                calls = [asyncio.create_task(cancelled_call(client, dice, outcomes)) for _ in range(40)]
                await asyncio.sleep(dice.expovariate(1000))
                await client.aclose(grace=dice.choice((0.0, 0.001, 0.01, None)))
                await asyncio.gather(*calls)
                assert set(outcomes) <= {"CancelledError", "PredictResult", "ClientClosedError"}, outcomes
                assert await settled(client, before) == []

    asyncio.run(asyncio.wait_for(story(), 90))


def test_a_cancelled_call_costs_no_memory() -> None:
    """gRPC by itself loses a kilobyte with every call that is cancelled under way; here none is lost."""
    count = 6000

    async def story() -> None:
        before = asyncio.all_tasks()
        async with fleet("quick", 1) as targets, AsyncClient(targets) as client:

            async def cancel(number: int) -> None:
                for _ in range(number // 50):
                    tasks = [asyncio.create_task(client.predict("m", INPUTS)) for _ in range(50)]
                    while client.stats().in_flight < 50:
                        await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    for task in tasks:
                        task.cancel()
                    assert {type(item) for item in await asyncio.gather(*tasks, return_exceptions=True)} == {
                        asyncio.CancelledError
                    }
                assert await settled(client, before) == []
                await all_succeed(client, 20)
                await asyncio.sleep(1)  # gRPC's threads clear up in their own time

            await all_succeed(client, 20)
            await cancel(9000)  # until buffers and arenas have their size
            early = resources()
            await cancel(count)
            late = resources()
            print(f"\n{(late.memory - early.memory) / count:.0f} bytes a call")
            assert late.memory - early.memory < 500 * count

    asyncio.run(asyncio.wait_for(story(), 90))


@pytest.mark.nightly
def test_100_000_cancelled_calls() -> None:
    """100,000 calls cancelled anywhere: memory stays flat, nothing is left, and 1,000 calls succeed."""
    model, options = SETTINGS["everything"]

    async def story() -> None:
        before = asyncio.all_tasks()
        async with fleet(model) as targets, AsyncClient(targets, **options) as client:
            await many_cancelled(client, 20_000, seed=1)  # so that buffers have their size
            assert await settled(client, before) == []
            early = resources()
            for seed in range(2, 10):
                outcomes = await many_cancelled(client, 10_000, seed)
                assert set(outcomes) == {"CancelledError", "PredictResult"}, outcomes
                assert await settled(client, before) == []
            late = resources()
            print(
                f"{(late.memory - early.memory) / 1e6:+.1f} MB from 20,000 to 100,000 calls; {client.stats()}"
            )
            assert late.memory - early.memory < 20_000_000
            assert late.files <= early.files + 4
            assert late.threads <= early.threads + 1
            await all_succeed(client, 1000)
            assert await settled(client, before) == []

    asyncio.run(asyncio.wait_for(story(), 1200))
