"""The pool chooses connections by state and clock alone, and loses no room to waiters that give up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aioserving import errors
from aioserving.pool import Connection, Pool, PoolOptions


class FakeTransport:
    """Stands where a channel would be."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.state = "ready"
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1
        self.state = "closed"

    def abandon(self) -> None:
        self.state = "closed"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_pool(
    targets: tuple[str, ...] = ("a:1", "b:1"),
    *,
    connections: int = 2,
    limit: int = 3,
    open_another_at: int = 0,
    clock: Callable[[], float] | None = None,
) -> Pool:
    options = PoolOptions(
        connections_per_endpoint=connections,
        max_in_flight_per_connection=limit,
        open_another_at=open_another_at,
    )
    return Pool(targets, FakeTransport, options=options, clock=clock or Clock())  # type: ignore[arg-type]


def take(pool: Pool) -> Connection:
    connection = pool.try_acquire()
    assert connection is not None
    connection.open()
    return connection


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


def test_calls_spread_over_endpoints_before_connections() -> None:
    """Concurrent calls go to every endpoint before any gets a second one, then to second connections."""
    pool = make_pool()
    taken = [take(pool) for _ in range(4)]
    assert [connection.endpoint.target for connection in taken] == ["a:1", "b:1", "a:1", "b:1"]
    assert len(set(taken)) == 4


def test_further_connections_open_only_when_the_open_ones_are_busy() -> None:
    """Another one is opened above `open_another_at` calls in flight, or when the open ones are full."""
    pool = make_pool(("a:1",), connections=3, limit=100, open_another_at=2)
    used = [take(pool).index for _ in range(9)]
    assert used == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    full = make_pool(("a:1",), connections=2, limit=3, open_another_at=50)
    assert [take(full).index for _ in range(6)] == [0, 0, 0, 1, 1, 1]
    assert full.try_acquire() is None


def test_an_open_connection_is_preferred_to_an_unopened_one() -> None:
    """One call after another uses one connection of an endpoint and opens no second."""
    pool = make_pool(("a:1",), connections=4, open_another_at=50)
    for _ in range(10):
        connection = take(pool)
        pool.release(connection)
    (stats,) = pool.stats()
    assert [item.calls for item in stats.connections] == [10, 0, 0, 0]
    assert [item.state for item in stats.connections] == ["ready", "unopened", "unopened", "unopened"]


def test_equally_loaded_endpoints_take_turns() -> None:
    """Calls one after another are spread evenly over endpoints."""
    pool = make_pool(("a:1", "b:1", "c:1"), connections=1)
    for _ in range(9):
        pool.release(take(pool))
    assert [stats.calls for stats in pool.stats()] == [3, 3, 3]


def test_the_least_loaded_connection_is_taken() -> None:
    """Fewest calls in flight wins over order."""
    pool = make_pool(connections=1)
    first, second = take(pool), take(pool)
    pool.release(second)
    assert take(pool) is second
    assert first.in_flight == 1


def test_an_endpoint_rests_after_a_failed_connection() -> None:
    """An endpoint that refuses at once must not attract every call; after its rest it is tried again."""
    clock = Clock()
    pool = make_pool(connections=1, clock=clock)
    connection = take(pool)
    assert connection.endpoint.target == "a:1"
    pool.release(connection, errors.UnavailableError("refused"))
    for _ in range(5):
        other = take(pool)
        assert other.endpoint.target == "b:1"
        pool.release(other)
    clock.now += 1.1
    assert take(pool).endpoint.target == "a:1"


def test_a_lone_endpoint_never_rests() -> None:
    """Where there is no other endpoint, a resting one still takes calls."""
    pool = make_pool(("a:1",), connections=1)
    pool.release(take(pool), errors.UnavailableError("refused"))
    assert take(pool).endpoint.target == "a:1"


def test_other_errors_do_not_make_an_endpoint_rest() -> None:
    """INVALID_ARGUMENT says nothing about the server's health, but is counted."""
    pool = make_pool(connections=1)
    pool.release(take(pool), errors.InvalidArgumentError("bad"))
    assert [endpoint.resting_until for endpoint in pool.endpoints] == [0.0, 0.0]
    assert [stats.errors for stats in pool.stats()] == [1, 0]


def test_a_full_pool_gives_no_connection() -> None:
    """No connection gets more calls in flight than its limit."""
    pool = make_pool(("a:1",), connections=2, limit=3)
    for _ in range(6):
        take(pool)
    assert pool.try_acquire() is None
    assert [c.in_flight for c in pool.endpoints[0].connections] == [3, 3]


def test_waiters_are_served_first_come_first_served() -> None:
    """Room goes to the longest waiter, and a newcomer cannot overtake the line."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1, limit=1)
        connection = take(pool)
        order: list[int] = []

        async def caller(number: int) -> None:
            got = await pool.acquire()
            order.append(number)
            await asyncio.sleep(0)
            pool.release(got)

        tasks = [asyncio.create_task(caller(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert pool.waiting == 5
        pool.release(connection)
        assert pool.try_acquire() is None
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert pool.in_flight == pool.waiting == 0

    run(story())


def test_waiting_ends_with_the_deadline() -> None:
    """A caller that gets no connection in time is told what is in the way, and leaves the line."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1, limit=1)
        connection = take(pool)
        with pytest.raises(errors.DeadlineExceededError, match="max_in_flight_per_connection=1"):
            await pool.acquire(timeout=0.01)
        assert pool.waiting == 0
        pool.release(connection)
        assert take(pool) is connection

    run(story())


def test_a_cancelled_waiter_leaves_the_line() -> None:
    """Cancelling one waiter costs nobody else a place."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1, limit=1)
        connection = take(pool)
        first = asyncio.create_task(pool.acquire())
        second = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        pool.release(connection)
        assert await second is connection
        assert pool.in_flight == 1

    run(story())


def test_room_given_to_a_waiter_cancelled_in_the_same_moment_is_passed_on() -> None:
    """The race of hand-over and cancellation leaks no room."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1, limit=1)
        connection = take(pool)
        first = asyncio.create_task(pool.acquire())
        second = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        pool.release(connection)  # gives it to `first`, which has not run since …
        first.cancel()  # … and never will
        await asyncio.gather(first, return_exceptions=True)
        assert await asyncio.wait_for(second, 1) is connection
        pool.release(connection)
        assert pool.in_flight == 0

    run(story())


def test_a_waiter_for_one_endpoint_holds_up_nobody() -> None:
    """Who wants a certain endpoint waits for it; others pass."""

    async def story() -> None:
        pool = make_pool(connections=1, limit=1)
        a, b = take(pool), take(pool)
        wants_a = asyncio.create_task(pool.acquire(endpoint=a.endpoint))
        wants_any = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        pool.release(b)
        assert await wants_any is b
        assert not wants_a.done()
        pool.release(a)
        assert await wants_a is a

    run(story())


def test_close_lets_running_calls_end() -> None:
    """A graceful close refuses new calls, waits for those under way and in line, then closes channels."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1, limit=1)
        connection = take(pool)
        in_line = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        with pytest.raises(errors.ClientClosedError):
            pool.try_acquire()
        assert connection.state == "ready"
        pool.release(connection)
        pool.release(await in_line)
        await closing
        assert connection.state == "closed"

    run(story())


def test_close_after_its_grace_ends_those_in_line() -> None:
    """When the grace is over nobody is left waiting."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1, limit=1)
        take(pool)
        in_line = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        await pool.close(grace=0.01)
        with pytest.raises(errors.ClientClosedError):
            await in_line

    run(story())


def test_a_cancelled_close_still_closes() -> None:
    """Cancelling a graceful close leaves no connection open."""

    async def story() -> None:
        pool = make_pool(("a:1",), connections=1)
        connection = take(pool)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert connection.state == "closed"

    run(story())


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections_per_endpoint": 0},
        {"max_in_flight_per_connection": 0},
        {"connections_per_endpoint": 1.5},
        {"open_another_at": -1},
        {"rest": -1},
    ],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    """An option out of range is refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PoolOptions(**wrong)


def test_repr_tells_the_state() -> None:
    """Reprs show endpoints, connections and counts."""
    pool = make_pool(("a:1",), connections=2)
    connection = take(pool)
    assert repr(pool) == "<Pool of 1 endpoints, 1 of 2 connections open, 1 in flight, 0 waiting>"
    assert repr(connection) == "<Connection 0 to a:1, ready, 1 in flight, 1 calls, 0 errors>"
    assert repr(pool.endpoints[0]) == "<Endpoint a:1, 1 in flight>"
