"""Three times as many calls as a server can work on: how many are still answered, and what the others see."""

from __future__ import annotations

import asyncio
import collections
import statistics
import time
from dataclasses import dataclass, field

import pytest

from aioserving import AsyncClient, DeadlineExceededError, ResourceExhaustedError, RPCError
from aioserving.events import CallRefused, Event
from aioserving.limits import AdaptiveLimit
from aioserving.pool import PoolOptions
from tests.scenarios.leaks import settled
from tests.scenarios.timed import INPUTS, process

#: Calls a second that the server can work on: 4 at a time, 20 ms each.
CAPACITY = 200
#: Seconds that callers have.
PATIENCE = 0.3


@dataclass
class Load:
    """What became of calls that arrived at a steady rate, however many were still under way."""

    seconds: float
    answered: int = 0
    #: Seconds until the error, by what the error says: ``late`` and ``full`` were refused at once, ``waited``
    #: had waited in vain, ``sent`` had been sent.
    failed: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    errors: list[RPCError] = field(default_factory=list)
    most_waiting: int = 0

    @property
    def goodput(self) -> float:
        """Calls answered in time, each second."""
        return self.answered / self.seconds

    def __str__(self) -> str:
        failures = {kind: len(times) for kind, times in self.failed.items()}
        return f"{self.goodput:.0f} answered a second, failed: {failures}, up to {self.most_waiting} waiting"


def _kind(error: RPCError) -> str:
    if isinstance(error, ResourceExhaustedError) and "max_waiting=" in error.details:
        return "full"
    if isinstance(error, DeadlineExceededError) and "for a turn, which would come in about" in error.details:
        return "late"
    if "waited" in error.details:
        return "waited"
    return "sent" if error.attempts else f"{error.code}: {error.details}"


async def arrive(client: AsyncClient, model: str, rate: float, seconds: float, patience: float) -> Load:
    """Calls at a steady rate for some seconds; returns when the last one has ended."""
    load = Load(seconds)

    async def call() -> None:
        begun = time.perf_counter()
        try:
            await client.predict(model, INPUTS, timeout=patience, validate=False)
        except RPCError as error:
            load.failed[_kind(error)].append(time.perf_counter() - begun)
            load.errors.append(error)
        else:
            load.answered += 1

    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        ahead = start + number / rate - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(call())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        load.most_waiting = max(load.most_waiting, client.stats().waiting)
    if tasks:
        await asyncio.wait(set(tasks))
    return load


LIMITS: dict[str, int | AdaptiveLimit] = {
    "fixed": 6,
    "gradient": AdaptiveLimit(initial=6),
    "aimd": AdaptiveLimit(kind="aimd", initial=6),
}


async def overload(limit: int | AdaptiveLimit, seconds: float) -> tuple[Load, Load]:
    """The same client at its server's capacity, then at three times of it."""
    before = asyncio.all_tasks()
    async with (
        process(callables={"m": "tests.scenarios.timed:gate"}) as server,
        AsyncClient(server.target, pool=PoolOptions(max_in_flight=limit), retry=None) as client,
    ):
        await arrive(client, "m", CAPACITY, 0.5, PATIENCE)
        normal = await arrive(client, "m", CAPACITY, seconds, PATIENCE)
        heavy = await arrive(client, "m", 3 * CAPACITY, seconds, PATIENCE)
        stats = client.stats()
        print(f"\nat capacity: {normal}\nat 3 times: {heavy}\n{stats}\n{stats.queue}")
        print(f"{heavy.goodput / normal.goodput:.2f} of the peak; limit {stats.endpoints[0].limit:g}")
        assert await settled(client, before) == []
        again = await asyncio.gather(*(client.predict("m", INPUTS) for _ in range(50)))
        assert len(again) == 50
    return normal, heavy


def check(normal: Load, heavy: Load) -> None:
    """What holds for every run, however busy the machine is."""
    assert set(heavy.failed) <= {"late", "full", "waited", "sent"}
    late, waited, sent = (heavy.failed[kind] for kind in ("late", "waited", "sent"))
    assert heavy.answered > 0
    assert heavy.answered + sum(map(len, heavy.failed.values())) == int(3 * CAPACITY * heavy.seconds)
    assert len(late) + len(waited) > CAPACITY * heavy.seconds
    # Few are sent in vain: those without a chance are kept on this side.
    assert len(sent) < 0.2 * CAPACITY * heavy.seconds
    # Nobody waits for longer than allowed, so it is no more than arrive in that time.
    assert statistics.median(waited or [0.0]) < PATIENCE + 0.1
    assert heavy.most_waiting <= 1.5 * 3 * CAPACITY * PATIENCE
    assert any("for a turn" in str(error) or "for room" in str(error) for error in heavy.errors)


@pytest.mark.parametrize("limit", LIMITS)
def test_overload(limit: str) -> None:
    """At 3 times the capacity calls are answered on, nobody waits beyond the deadline, and errors say why."""

    async def story() -> None:
        normal, heavy = await overload(LIMITS[limit], 1.5)
        check(normal, heavy)

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_full_queue_refuses_at_once() -> None:
    """Where as many wait as are allowed, one is refused for every one more, and told why."""

    async def story() -> None:
        refusals: list[Event] = []
        before = asyncio.all_tasks()
        async with (
            process(callables={"m": "tests.scenarios.timed:gate"}) as server,
            AsyncClient(
                server.target,
                pool=PoolOptions(max_in_flight=6, max_waiting=10),
                observers=[lambda event: refusals.append(event) if isinstance(event, CallRefused) else None],
            ) as client,
        ):
            load = await arrive(client, "m", 3 * CAPACITY, 2.0, 30.0)
            print(f"\n{load}\n{client.stats().queue}")
            assert set(load.failed) == {"full"}
            assert load.most_waiting == 10
            assert load.answered >= 16
            assert len(load.errors) == len(refusals) == client.stats().queue.refused_full
            assert all("max_waiting=10 allows no more" in error.details for error in load.errors)
            assert all("max_waiting=10" in str(event) for event in refusals)
            # A place among ten is had, or lost, within the time that ten calls take.
            assert statistics.median(load.failed["full"]) < 0.5
            assert await settled(client, before) == []

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_flood_for_one_model_leaves_the_other_its_share() -> None:
    """One model is called at 3 times the capacity: the other, within its share, is answered on."""

    async def story() -> None:
        gates = dict.fromkeys(("flooded", "quiet"), "tests.scenarios.timed:gate")
        before = asyncio.all_tasks()
        async with (
            process(callables=gates) as server,
            AsyncClient(server.target, pool=PoolOptions(max_in_flight=6)) as client,
        ):
            await arrive(client, "flooded", CAPACITY, 0.5, PATIENCE)
            flooded, quiet = await asyncio.gather(
                arrive(client, "flooded", 3 * CAPACITY, 3.0, PATIENCE),
                arrive(client, "quiet", 0.25 * CAPACITY, 3.0, PATIENCE),
            )
            print(f"\nflooded: {flooded}\nquiet:   {quiet}")
            assert quiet.answered >= 0.9 * 0.25 * CAPACITY * 3.0
            assert flooded.answered > 0
            by_model = {model.model: model for model in client.stats().models}
            assert by_model["quiet"].errors <= 0.1 * 0.25 * CAPACITY * 3.0
            assert await settled(client, before) == []

    asyncio.run(asyncio.wait_for(story(), 60))


@pytest.mark.nightly
@pytest.mark.parametrize("limit", LIMITS)
def test_overload_keeps_nine_tenths_of_the_peak(limit: str) -> None:
    """At 3 times the capacity at least 90 % of the peak goodput is left."""

    async def story() -> None:
        normal, heavy = await overload(LIMITS[limit], 20.0)
        check(normal, heavy)
        assert heavy.goodput >= 0.9 * normal.goodput

    asyncio.run(asyncio.wait_for(story(), 120))
