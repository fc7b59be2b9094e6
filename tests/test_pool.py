"""The pool chooses by state and clock alone, and loses no room, no waiter and no connection."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aioserving import errors
from aioserving.events import (
    ConnectionReplaced,
    EndpointAdded,
    EndpointEjected,
    EndpointRemoved,
    EndpointReturned,
    ModelFound,
    ModelMissing,
)
from aioserving.health import HealthOptions
from aioserving.limits import AdaptiveLimit
from aioserving.pool import Connection, Endpoint, Place, Pool, PoolOptions
from aioserving.targets import Target
from tests.fakes import Clock, Events, FakeTransport, Fleet, make_pool, run, turns

MODEL = Place("half_plus_two")


def take(pool: Pool, place: Place | None = None, tried: Any = ()) -> Connection:
    connection = pool.try_acquire(place, tried)
    assert connection is not None
    connection.open()
    return connection


def transport_of(connection: Connection) -> FakeTransport:
    assert isinstance(connection.transport, FakeTransport)
    return connection.transport


def targets_of(taken: list[Connection]) -> list[str]:
    return [connection.endpoint.target for connection in taken]


def call(pool: Pool, place: Place | None = None, seconds: float = 0.01) -> str:
    """One call from beginning to end; gives where it went."""
    connection = take(pool, place)
    if isinstance(pool.clock, Clock):
        pool.clock.now += seconds
    pool.release(connection, None, seconds)
    return connection.endpoint.target


# -- which connection -----------------------------------------------------------------------------------


def test_calls_spread_over_endpoints_before_connections() -> None:
    """Concurrent calls go to every endpoint before any gets a second one, then to second connections."""
    pool = make_pool(Fleet("a:1", "b:1"), connections_per_endpoint=2, open_another_at=0)
    taken = [take(pool) for _ in range(4)]
    assert targets_of(taken) == ["a:1", "b:1", "a:1", "b:1"]
    assert len(set(taken)) == 4


def test_further_connections_open_only_when_the_open_ones_are_busy() -> None:
    """Another one is opened above `open_another_at` calls in flight, or when the open ones are full."""
    pool = make_pool(Fleet("a:1"), connections_per_endpoint=3, open_another_at=2)
    assert [take(pool).index for _ in range(9)] == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    full = make_pool(Fleet("a:1"), connections_per_endpoint=2, max_in_flight_per_connection=3)
    assert [take(full).index for _ in range(6)] == [0, 0, 0, 1, 1, 1]
    assert full.try_acquire() is None


def test_an_open_connection_is_preferred_to_an_unopened_one() -> None:
    """One call after another uses one connection of an endpoint and opens no second."""
    pool = make_pool(Fleet("a:1"))
    for _ in range(10):
        pool.release(take(pool))
    (stats,) = pool.stats()
    assert [item.calls for item in stats.connections] == [10, 0, 0, 0]
    assert [item.state for item in stats.connections] == ["idle", "unopened", "unopened", "unopened"]


def test_equally_loaded_endpoints_take_turns() -> None:
    """Calls one after another are spread evenly over endpoints."""
    pool = make_pool(Fleet("a:1", "b:1", "c:1"))
    for _ in range(9):
        pool.release(take(pool))
    assert [stats.calls for stats in pool.stats()] == [3, 3, 3]


def test_the_least_loaded_connection_is_taken() -> None:
    """Fewest calls in flight wins over order."""
    pool = make_pool(Fleet("a:1", "b:1"), connections_per_endpoint=1)
    first, second = take(pool), take(pool)
    pool.release(second)
    assert take(pool) is second
    assert first.in_flight == 1


def test_weights_divide_the_calls() -> None:
    """An endpoint of three times the weight gets three times the calls, also once the weight is changed."""
    pool = make_pool(Fleet("a:1", "b:1"), policy="round_robin", weights={"a:1": 3.0})
    assert collections.Counter(call(pool) for _ in range(400))["a:1"] == pytest.approx(300, abs=4)
    pool.add([Target("a:1", 1.0)])
    assert len(pool.endpoints) == 2
    assert collections.Counter(call(pool) for _ in range(400))["a:1"] == pytest.approx(200, abs=4)


def test_where_a_call_was_before_it_goes_only_if_there_is_no_other() -> None:
    """An endpoint that was tried is passed over, unless all others are full."""
    pool = make_pool(Fleet("a:1", "b:1"), max_in_flight=2)
    a, b = pool.endpoints
    assert targets_of([take(pool, None, (a,)) for _ in range(2)]) == ["b:1", "b:1"]
    assert pool.others(None, (a,))
    assert not pool.others(None, (a, b))


def test_a_caller_that_was_everywhere_with_room_is_served_at_once() -> None:
    """A retry whose untried endpoints are full does not wait while one that was tried has room."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1", "b:1"), max_in_flight=1)
        a, _ = pool.endpoints
        take(pool, None, (a,))
        got = await pool.acquire(1, MODEL, (a,))
        assert got.endpoint is a

    run(story())


def test_a_retry_goes_back_to_who_has_the_model_rather_than_to_who_does_not() -> None:
    """In line, an endpoint that was tried comes before one that is known not to have the model."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1", "b:1", "c:1"), max_in_flight=1)
        a, b, c = pool.endpoints
        pool.miss(c, MODEL)
        held = {connection.endpoint: connection for connection in (take(pool), take(pool), take(pool))}
        waiting = asyncio.create_task(pool.acquire(1, MODEL, (a,)))
        await turns()
        pool.release(held[c])
        await turns()
        assert not waiting.done()  # room without the model is none
        a.turn = c.turn + 1  # it would not be chosen for its own sake
        pool.release(held[a])
        assert (await waiting).endpoint is a
        assert b.in_flight == 1

    run(story())


# -- who is out -----------------------------------------------------------------------------------------


def test_an_endpoint_that_cannot_be_reached_gets_no_calls_until_it_is_back() -> None:
    """One refused connection is enough; the others take over, and its return is an event."""
    events, fleet = Events(), Fleet("a:1", "b:1")
    pool = make_pool(fleet, events=events)
    lost = take(pool)
    transport_of(lost).state = "transient_failure"
    pool.release(lost, errors.UnavailableError("Connection refused"), 0.001)
    assert {call(pool) for _ in range(20)} == {"b:1"}
    assert [event.target for event in events.of(EndpointEjected)] == ["a:1"]
    pool.readmit(pool.endpoints[0])
    assert {call(pool) for _ in range(20)} == {"a:1", "b:1"}
    assert [event.target for event in events.of(EndpointReturned)] == ["a:1"]


def test_an_endpoint_that_is_alive_is_not_lost() -> None:
    """UNAVAILABLE on a connection that stands, or as a live server says it, is a failure like others."""
    for details, state in (
        ("overloaded", "ready"),
        ("The batch scheduling queue to which this task was submitted is full", "idle"),
        ("Received RST_STREAM with error code 7", "idle"),
    ):
        pool = make_pool(Fleet("a:1", "b:1"))
        connection = take(pool)
        transport_of(connection).state = state
        pool.release(connection, errors.UnavailableError(details), 0.001)
        assert [item.state for item in pool.health()] == ["healthy", "healthy"]


def test_a_lone_endpoint_takes_calls_however_it_is() -> None:
    """Where all are out, all get calls: one of them may be back already."""
    pool = make_pool(Fleet("a:1"))
    pool.lose(pool.endpoints[0], "refused")
    assert call(pool) == "a:1"
    both = make_pool(Fleet("a:1", "b:1"))
    for endpoint in both.endpoints:
        both.lose(endpoint, "refused")
    assert {take(both).endpoint.target for _ in range(2)} == {"a:1", "b:1"}


def test_an_answer_proves_that_an_endpoint_is_back() -> None:
    """A call that was sent to a lost endpoint (all were) and is answered, with whatever code, readmits it."""
    for error in (None, errors.InvalidArgumentError("wrong")):
        clock = Clock()
        pool = make_pool(Fleet("a:1"), clock=clock)
        pool.lose(pool.endpoints[0], "refused")
        connection = take(pool)
        clock.now += 0.01
        pool.release(connection, error, 0.01)
        assert pool.health()[0].ok


def test_the_last_answers_of_a_server_that_goes_do_not_bring_it_back() -> None:
    """A server that shuts down ends what it had begun; calls sent before it was lost prove nothing."""
    clock = Clock()
    pool = make_pool(Fleet("a:1", "b:1"), clock=clock)
    connection = take(pool)
    clock.now += 0.5
    pool.lose(connection.endpoint, "going away")
    clock.now += 0.5
    pool.release(connection, None, 1.0)
    assert pool.health()[0].state == "unreachable"


def test_an_outlier_serves_its_time() -> None:
    """Calls that were under way when it was ejected, and succeed, do not readmit it."""
    clock = Clock()
    pool = make_pool(Fleet("a:1", "b:1", "c:1"), clock=clock)
    first = take(pool)
    assert pool.eject(first.endpoint, "slow")
    clock.now += 0.1
    pool.release(first, None, 0.05)
    assert pool.health()[0].state == "outlier"
    assert {call(pool) for _ in range(20)} == {"b:1", "c:1"}


def test_failures_in_a_row_eject_but_never_more_than_the_floor_allows() -> None:
    """Five failures in a row eject an endpoint; of three, one may be out as an outlier."""
    events = Events()
    pool = make_pool(Fleet("a:1", "b:1", "c:1"), events=events)
    for _ in range(60):
        connection = take(pool)
        pool.release(connection, errors.InternalError("broken"), 0.01)
    assert sorted(item.state for item in pool.health()) == ["healthy", "healthy", "outlier"]
    (event,) = events.of(EndpointEjected)
    assert "5 calls in a row failed: INTERNAL" in event.reason


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgumentError("bad"),
        errors.ModelNotFoundError("none"),
        errors.UnauthenticatedError("who?"),
        errors.MessageTooLargeError("large"),
        errors.CancelledError("by the server"),
        asyncio.CancelledError(),
    ],
)
def test_errors_that_are_not_the_endpoints_fault_eject_nobody(error: BaseException) -> None:
    """A wrong request says nothing about the server's health; a caller's cancellation is no error at all."""
    pool = make_pool(Fleet("a:1", "b:1"))
    for _ in range(30):
        pool.release(take(pool), error, 0.01)
    assert all(item.ok for item in pool.health())
    counted = 0 if isinstance(error, asyncio.CancelledError) else 30
    assert sum(stats.errors for stats in pool.stats()) == counted


def test_a_hurried_caller_ejects_nobody() -> None:
    """A deadline shorter than calls take, missed again and again, is the caller's affair."""
    pool = make_pool(Fleet("a:1", "b:1", "c:1"))
    for _ in range(30):
        call(pool, MODEL, 0.1)
    for _ in range(60):
        pool.release(take(pool), errors.DeadlineExceededError("late"), 0.001, None, MODEL)
    assert all(item.ok for item in pool.health())


def test_outliers_of_the_fleet_are_ejected() -> None:
    """An endpoint that is far slower than the others gets no calls once somebody looks."""
    clock = Clock()
    pool = make_pool(Fleet("a:1", "b:1", "c:1"), policy="round_robin", clock=clock)
    for _ in range(300):
        connection = take(pool)
        seconds = 1.0 if connection.endpoint.target == "b:1" else 0.01
        clock.now += seconds
        pool.release(connection, None, seconds)
    pool.look_for_outliers()
    assert [item.state for item in pool.health()] == ["healthy", "outlier", "healthy"]
    assert "latency" in pool.health()[1].reason


def test_one_that_comes_back_is_spared_at_first() -> None:
    """A readmitted endpoint gets a tenth of its share, and its full share after the ramp."""
    clock = Clock()
    pool = make_pool(Fleet("a:1", "b:1"), clock=clock, policy="power_of_two", ramp=10.0)
    a = pool.endpoints[0]
    pool.lose(a, "refused")
    pool.readmit(a)
    early = collections.Counter(call(pool) for _ in range(100))
    assert 0 < early["a:1"] < 25
    clock.now += 30
    late = collections.Counter(call(pool) for _ in range(1000))
    assert 350 < late["a:1"] < 650


def test_a_model_that_one_endpoint_lacks_is_asked_for_elsewhere() -> None:
    """Only calls for that model and version pass it over; when all lack it, all may be asked."""
    events = Events()
    pool = make_pool(Fleet("a:1", "b:1"), events=events)
    a, b = pool.endpoints
    pool.miss(a, MODEL)
    pool.miss(a, MODEL)
    assert {call(pool, MODEL) for _ in range(10)} == {"b:1"}
    assert {call(pool, Place("half_plus_two", 2)) for _ in range(10)} == {"a:1", "b:1"}
    assert not pool.others(MODEL, (b,))
    assert pool.health()[0].missing_models == ("half_plus_two",)
    pool.miss(b, MODEL)
    assert {call(pool, MODEL) for _ in range(10)} == {"a:1", "b:1"}
    pool.find(a, MODEL)
    pool.find(a, MODEL)
    assert {call(pool, MODEL) for _ in range(10)} == {"a:1"}
    assert len(events.of(ModelMissing)) == 2
    assert len(events.of(ModelFound)) == 1


# -- who comes and goes ---------------------------------------------------------------------------------


def test_endpoints_come_and_go_without_losing_calls() -> None:
    """A removed endpoint gets no more calls, its calls end, and then its connections are closed."""

    async def story() -> None:
        events, fleet = Events(), Fleet("a:1", "b:1")
        pool = make_pool(fleet, events=events)
        held = take(pool)
        transport = transport_of(held)
        pool.remove({"a:1"})
        assert {call(pool) for _ in range(10)} == {"b:1"}
        await turns()
        assert transport.closed == 0
        pool.release(held, None, 0.01)
        await turns()
        assert transport.closed == 1
        pool.add([Target("c:1", 2.0)])
        assert {call(pool) for _ in range(10)} == {"b:1", "c:1"}
        assert [str(event) for event in events] == [
            "endpoint a:1 removed",
            "endpoint c:1 added, weight 2",
        ]
        assert isinstance(events[0], EndpointRemoved)
        assert isinstance(events[1], EndpointAdded)
        await pool.close()
        assert not fleet.leaked()

    run(story())


def test_who_waits_is_served_by_an_endpoint_that_is_added() -> None:
    """Those in line go where there is room as soon as there is some: also with no endpoint at first."""

    async def story() -> None:
        pool = make_pool(Fleet(), max_in_flight=1)
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await turns()
        pool.add([Target("a:1"), Target("b:1")])
        assert {(await task).endpoint.target for task in waiting} == {"a:1", "b:1"}

    run(story())


def test_who_waits_goes_elsewhere_when_the_healthy_are_gone() -> None:
    """With the last healthy endpoint lost or removed, room at the others is given out at once."""

    async def story(how: str) -> None:
        pool = make_pool(Fleet("a:1", "b:1"), max_in_flight=1)
        a, b = pool.endpoints
        pool.lose(b, "refused")
        take(pool)
        waiting = asyncio.create_task(pool.acquire())
        await turns()
        if how == "lost":
            pool.lose(a, "refused")
        else:
            pool.remove({"a:1"})
        assert (await waiting).endpoint is b

    run(story("lost"))
    run(story("removed"))


def test_a_call_to_a_removed_endpoint_is_closed_with_the_pool() -> None:
    """Whoever still wants a removed endpoint, and no other, leaves no connection behind."""

    async def story() -> None:
        fleet = Fleet("a:1", "b:1")
        pool = make_pool(fleet)
        gone = pool.endpoints[0]
        pool.remove({"a:1"})
        connection = pool.try_acquire(endpoint=gone)
        assert connection is not None
        connection.open()
        assert connection in pool.connections()
        await pool.close(grace=0.1)
        assert not fleet.leaked()
        pool.release(connection, asyncio.CancelledError())
        assert connection not in pool.connections()

    run(story())


def test_nothing_is_told_of_endpoints_that_are_gone() -> None:
    """Probes and answers that come in for a removed endpoint change nothing and emit nothing."""

    async def story() -> None:
        events = Events()
        pool = make_pool(Fleet("a:1", "b:1", "c:1"), events=events)
        gone = pool.endpoints[0]
        pool.lose(gone, "refused")
        pool.miss(gone, MODEL)
        returned = []
        pool.on_return = lambda: returned.append(1)
        pool.remove({"a:1"})
        count = len(events)
        pool.readmit(gone)
        pool.lose(gone, "refused")
        pool.find(gone, MODEL)
        pool.miss(gone, MODEL)
        gone.health.recover(0.0)
        assert not pool.eject(gone, "slow")
        assert len(events) == count
        assert not returned

    run(story())


def test_an_outlier_that_gets_its_next_chance_is_no_sign_of_life() -> None:
    """Only an endpoint that could not be reached, and can be again, ends the circuit's waiting."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1", "b:1", "c:1"))
        outlier, lost, _ = pool.endpoints
        returned = []
        pool.on_return = lambda: returned.append(1)
        assert pool.eject(outlier, "it answers UNAVAILABLE")
        pool.readmit(outlier)
        assert not returned
        pool.lose(lost, "refused")
        pool.readmit(lost)
        assert returned == [1]

    run(story())


def test_new_certificates_replace_connections_without_losing_calls() -> None:
    """`renew` leaves calls under way on the old connections, which are closed after the last one."""

    async def story() -> None:
        fleet = Fleet("a:1")
        pool = make_pool(fleet)
        held = take(pool)
        old = transport_of(held)
        pool.renew()
        new = take(pool)
        assert transport_of(new) is not old
        assert old.closed == 0
        assert pool.in_flight == 2
        assert pool.endpoints[0].opened == 1
        pool.release(held, None, 0.01)
        await turns()
        assert old.closed == 1
        pool.release(new, None, 0.01)
        pool.renew()
        await turns()
        assert not fleet.leaked()

    run(story())


def test_a_connection_that_is_given_up_ends_its_calls_and_is_replaced() -> None:
    """Calls on it fail at once, the next call gets a new connection, and the old one is closed."""

    async def story() -> None:
        events, fleet = Events(), Fleet("a:1")
        fleet["a:1"].silent = True
        pool = make_pool(fleet, events=events)
        connection = take(pool)
        transport = transport_of(connection)
        under_way = asyncio.create_task(transport.call("/x/y", b"", None, ()))
        await turns()
        pool.give_up(connection, "nothing comes back")
        with pytest.raises(errors.UnavailableError, match="nothing comes back") as caught:
            await under_way
        pool.release(connection, caught.value, 1.0)
        assert [(event.target, event.calls) for event in events.of(ConnectionReplaced)] == [("a:1", 1)]
        assert pool.health()[0].ok
        assert take(pool) is not connection
        await turns()
        assert transport.closed == 1

    run(story())


def test_a_retired_connection_can_be_given_up_too() -> None:
    """One that was replaced, and then does not answer, does not hold its calls for ever."""

    async def story() -> None:
        fleet = Fleet("a:1")
        fleet["a:1"].silent = True
        pool = make_pool(fleet)
        connection = take(pool)
        under_way = asyncio.create_task(transport_of(connection).call("/x/y", b"", None, ()))
        await turns()
        pool.renew()
        pool.give_up(connection, "nothing comes back")
        with pytest.raises(errors.UnavailableError):
            await under_way
        pool.release(connection, errors.UnavailableError("nothing comes back"), 1.0)
        await turns()
        assert not fleet.leaked()

    run(story())


# -- limits ---------------------------------------------------------------------------------------------


def test_a_full_pool_gives_no_connection() -> None:
    """No connection gets more calls in flight than its limit."""
    pool = make_pool(Fleet("a:1"), connections_per_endpoint=2, max_in_flight_per_connection=3)
    for _ in range(6):
        take(pool)
    assert pool.try_acquire() is None
    assert [c.in_flight for c in pool.endpoints[0].connections] == [3, 3]


def test_a_limit_holds_for_an_endpoint() -> None:
    """`max_in_flight` bounds the calls of an endpoint over all its connections."""
    pool = make_pool(Fleet("a:1", "b:1"), max_in_flight=3)
    taken = [take(pool) for _ in range(6)]
    assert pool.try_acquire() is None
    pool.release(taken[0], None, 0.01)
    assert take(pool).endpoint is taken[0].endpoint


def test_an_adaptive_limit_follows_what_is_dropped() -> None:
    """Dropped calls lower an endpoint's limit, answers raise it; refused connections leave it alone."""
    clock = Clock()
    pool = make_pool(Fleet("a:1"), max_in_flight=AdaptiveLimit(kind="aimd", initial=10), clock=clock)
    endpoint = pool.endpoints[0]
    assert endpoint.limit == 10
    pool.release(take(pool), errors.ResourceExhaustedError("queue full"), 0.01)
    assert endpoint.limit < 10
    lowered = endpoint.limit
    connection = take(pool)
    transport_of(connection).state = "transient_failure"
    pool.release(connection, errors.UnavailableError("refused"), 0.01)
    assert endpoint.limit == lowered
    for _ in range(60):
        taken = [take(pool) for _ in range(int(endpoint.limit))]
        clock.now += 0.001
        for connection in taken:
            pool.release(connection, None, 0.001)
    assert endpoint.limit > lowered


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections_per_endpoint": 0},
        {"max_in_flight_per_connection": 0},
        {"connections_per_endpoint": 1.5},
        {"open_another_at": -1},
        {"max_waiting": -1},
    ],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    """An option out of range is refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PoolOptions(**wrong)


# -- who waits ------------------------------------------------------------------------------------------


def test_waiters_are_served_first_come_first_served() -> None:
    """Room goes to the longest waiter, and a newcomer cannot overtake the line."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        connection = take(pool)
        order: list[int] = []

        async def caller(number: int) -> None:
            got = await pool.acquire()
            order.append(number)
            await asyncio.sleep(0)
            pool.release(got)

        tasks = [asyncio.create_task(caller(number)) for number in range(5)]
        await turns(1)
        assert pool.waiting == 5
        pool.release(connection)
        assert pool.try_acquire() is None
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert pool.in_flight == pool.waiting == 0

    run(story())


def test_models_take_turns_in_line() -> None:
    """A model with a long line makes nobody wait but its own callers."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        connection = take(pool)
        order: list[str] = []

        async def caller(model: str) -> None:
            got = await pool.acquire(None, Place(model))
            order.append(model)
            pool.release(got)

        tasks = [asyncio.create_task(caller(model)) for model in ("busy",) * 20 + ("rare",) * 2]
        await turns(1)
        pool.release(connection)
        await asyncio.gather(*tasks)
        assert [place for place, model in enumerate(order) if model == "rare"][-1] < 6

    run(story())


def test_waiting_ends_with_the_deadline() -> None:
    """A caller that gets no connection in time is told what is in the way, and leaves the line."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), connections_per_endpoint=1, max_in_flight_per_connection=1)
        connection = take(pool)
        with pytest.raises(errors.DeadlineExceededError, match="max_in_flight_per_connection=1"):
            await pool.acquire(timeout=0.01)
        assert pool.waiting == 0
        pool.release(connection)
        assert take(pool) is connection
        limited = make_pool(Fleet("a:1"), max_in_flight=1)
        take(limited)
        with pytest.raises(errors.DeadlineExceededError, match="max_in_flight=1"):
            await limited.acquire(timeout=0.01)

    run(story())


def test_the_line_is_bounded() -> None:
    """A caller beyond `max_waiting` is refused at once."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1, max_waiting=2)
        connection = take(pool)
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await turns(1)
        with pytest.raises(errors.ResourceExhaustedError, match="max_waiting=2"):
            await pool.acquire()
        pool.release(connection)
        pool.release(await waiting[0])
        pool.release(await waiting[1])
        assert pool.queue_stats().refused_full == 1

    run(story())


def test_a_caller_that_cannot_make_it_fails_at_once() -> None:
    """With a known pace, a caller whose turn would come after its deadline does not wait for it."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        loop = asyncio.get_running_loop()

        async def caller() -> None:
            got = await pool.acquire(None, MODEL)
            await asyncio.sleep(0.1)
            pool.release(got, None, 0.1, None, MODEL)

        tasks = [asyncio.create_task(caller()) for _ in range(40)]
        await asyncio.sleep(2.05)
        before = loop.time()
        with pytest.raises(errors.DeadlineExceededError, match="which would come in about"):
            await pool.acquire(0.05, MODEL)
        assert loop.time() == before
        await asyncio.gather(*tasks)
        assert pool.queue_stats().refused_late == 1

    run(story())


def test_a_slow_model_does_not_have_the_calls_of_a_quick_one_refused() -> None:
    """What a call needs is known by model: a deadline too short for one may do for another."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        for _ in range(5):
            call_slow = take(pool, Place("slow"))
            pool.release(call_slow, None, 10.0, None, Place("slow"))
        held = take(pool)
        quick = asyncio.create_task(pool.acquire(1.0, Place("quick")))
        slow = asyncio.create_task(pool.acquire(1.0, Place("slow")))
        await turns()
        pool.release(held)
        pool.release(await quick)
        with pytest.raises(errors.DeadlineExceededError, match="too few for a call"):
            await slow

    run(story())


def test_a_cancelled_waiter_leaves_the_line() -> None:
    """Cancelling one waiter costs nobody else a place."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        connection = take(pool)
        first = asyncio.create_task(pool.acquire())
        second = asyncio.create_task(pool.acquire())
        await turns(1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        pool.release(connection)
        assert await second is connection
        assert pool.in_flight == 1

    run(story())


def test_room_given_to_a_waiter_cancelled_in_the_same_moment_is_passed_on() -> None:
    """The race of hand-over and cancellation leaks no room."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        connection = take(pool)
        first = asyncio.create_task(pool.acquire())
        second = asyncio.create_task(pool.acquire())
        await turns(1)
        pool.release(connection)  # gives it to `first`, which has not run since …
        first.cancel()  # … and never will
        await asyncio.gather(first, return_exceptions=True)
        assert await asyncio.wait_for(second, 1) is connection
        pool.release(connection)
        assert pool.in_flight == 0

    run(story())


def test_a_waiter_for_one_endpoint_holds_up_nobody() -> None:
    """Who wants a certain endpoint waits for it; others pass, also those that come later."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1", "b:1"), max_in_flight=1)
        a, b = take(pool), take(pool)
        wants_a = asyncio.create_task(pool.acquire(endpoint=a.endpoint))
        wants_any = asyncio.create_task(pool.acquire())
        await turns(1)
        pool.release(b)
        assert await wants_any is b
        pool.release(b)
        assert pool.waiting == 1
        assert await asyncio.wait_for(pool.acquire(), 1) is b  # nothing was released meanwhile
        assert not wants_a.done()
        pool.release(a)
        assert await wants_a is a

    run(story())


# -- the end --------------------------------------------------------------------------------------------


def test_close_lets_running_calls_end() -> None:
    """A graceful close refuses new calls, waits for those under way and in line, then closes channels."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        connection = take(pool)
        in_line = asyncio.create_task(pool.acquire())
        await turns(1)
        closing = asyncio.create_task(pool.close())
        await turns(1)
        with pytest.raises(errors.ClientClosedError):
            pool.try_acquire()
        assert connection.state == "idle"
        pool.release(connection)
        pool.release(await in_line)
        await closing
        assert connection.state == "closed"
        await pool.close()

    run(story())


def test_close_after_its_grace_ends_those_in_line() -> None:
    """When the grace is over nobody is left waiting, and calls under way are ended."""

    async def story() -> None:
        fleet = Fleet("a:1")
        fleet["a:1"].silent = True
        pool = make_pool(fleet, max_in_flight=1)
        connection = take(pool)
        under_way = asyncio.create_task(transport_of(connection).call("/x/y", b"", None, ()))
        in_line = asyncio.create_task(pool.acquire())
        await turns(1)
        await pool.close(grace=0.01)
        for task in (in_line, under_way):
            with pytest.raises(errors.ClientClosedError):
                await task
        assert not fleet.leaked()

    run(story())


@pytest.mark.parametrize("leaves", ["cancelled", "late", "stays"])
def test_close_waits_for_nobody_whom_nobody_will_serve(leaves: str) -> None:
    """With no endpoint left, those in line do not keep `close` from ending, however they leave."""

    async def story() -> None:
        pool = make_pool(Fleet("a:1"), max_in_flight=1)
        held = take(pool)
        in_line = asyncio.create_task(pool.acquire(0.5 if leaves == "late" else None))
        await turns(1)
        pool.remove({"a:1"})
        closing = asyncio.create_task(pool.close())
        await turns(1)
        if leaves == "cancelled":
            in_line.cancel()
        if leaves == "late":
            await asyncio.sleep(1)
        pool.release(held)
        await asyncio.wait_for(closing, 5)
        with pytest.raises((errors.ServingError, asyncio.CancelledError)):
            await in_line

    run(story())


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_close_still_closes(times: int) -> None:
    """Cancelling a graceful close, once or again while it hurries, leaves no connection open."""

    async def story() -> None:
        fleet = Fleet("a:1", "b:1")
        pool = make_pool(fleet)
        taken = [take(pool) for _ in range(2)]
        stuck = asyncio.Event()
        original = transport_of(taken[0]).close

        async def close_slowly() -> None:
            await stuck.wait()
            await original()

        if times == 2:
            transport_of(taken[0]).close = close_slowly  # type: ignore[method-assign]
        closing = asyncio.create_task(pool.close())
        for _ in range(times):
            await turns()
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert [connection.state for connection in taken] == ["closed", "closed"]

    run(story())


def test_nobody_opens_a_connection_of_a_closed_pool() -> None:
    """Room given in the last moment before the end of the grace leaves no connection behind."""

    async def story() -> None:
        fleet = Fleet("a:1")
        pool = make_pool(fleet)
        connection = pool.try_acquire()
        assert connection is not None
        await pool.close(grace=0.0)
        with pytest.raises(errors.ClientClosedError):
            connection.open()
        pool.release(connection, errors.ClientClosedError("closed"))
        assert not fleet.transports
        assert pool.in_flight == 0

    run(story())


def test_an_abandoned_pool_lets_go_of_every_connection() -> None:
    """Without a loop connections are let go of, retired ones too, and none can be opened."""
    fleet = Fleet("a:1")
    pool = make_pool(fleet, open_another_at=0)
    first, second = take(pool), take(pool)
    pool.renew()
    pool.abandon()
    assert first.state == second.state == "closed"
    with pytest.raises(errors.ClientClosedError):
        pool.endpoints[0].connections[0].open()
    with pytest.raises(errors.ClientClosedError):
        pool.try_acquire()


def test_repr_tells_the_state() -> None:
    """Reprs show endpoints, connections and counts."""
    pool = make_pool(Fleet("a:1"), connections_per_endpoint=2)
    connection = take(pool)
    assert repr(pool) == "<Pool of 1 endpoints, 1 of 2 connections open, 1 in flight, 0 waiting>"
    assert repr(connection) == "<Connection 0 to a:1, idle, 1 in flight, 1 calls, 0 errors>"
    assert repr(pool.endpoints[0]) == "<Endpoint a:1, healthy, 1 in flight>"
    pool.lose(pool.endpoints[0], "refused")
    assert "1 of them out" in repr(pool)


# -- everything in any order ----------------------------------------------------------------------------


class PoolMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the books are right and nothing is left behind."""

    MODELS = (None, Place("x"), Place("y"), Place("x", 2))

    def __init__(self) -> None:
        super().__init__()
        from tests.fakes import VirtualLoop

        self.loop = VirtualLoop()
        self.fleet = Fleet("a:1", "b:1", "c:1")
        self.held: list[Connection] = []
        self.waiting: list[asyncio.Task[Connection]] = []
        self.closing: asyncio.Task[None] | None = None
        self.number = 0
        self.pool = self.do(self._make())

    async def _make(self) -> Pool:
        return make_pool(
            self.fleet,
            connections_per_endpoint=2,
            max_in_flight_per_connection=2,
            max_in_flight=AdaptiveLimit(kind="aimd", initial=2, maximum=3),
            max_waiting=4,
            open_another_at=1,
            health=HealthOptions(consecutive_failures=2, minimum_calls=1),
        )

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _sync(self, function: Any, *args: Any) -> Any:
        result = function(*args)
        await turns(2)
        return result

    def act(self, function: Any, *args: Any) -> Any:
        return self.do(self._sync(function, *args))

    def endpoint(self, data: Any) -> Endpoint:
        found: Endpoint = data.draw(st.sampled_from(self.pool.endpoints))
        return found

    @precondition(lambda self: self.closing is None)
    @rule(place=st.sampled_from(MODELS), opens=st.booleans(), data=st.data())
    def acquire(self, place: Place | None, opens: bool, data: Any) -> None:
        tried = [e for e in self.pool.endpoints if data.draw(st.booleans())]
        connection = self.pool.try_acquire(place, tried)
        if connection is not None:
            if opens:
                connection.open()
            self.held.append(connection)

    @precondition(lambda self: self.closing is None)
    @rule(place=st.sampled_from(MODELS), timeout=st.sampled_from([None, 0.5, 3.0]), only=st.booleans())
    def wait(self, place: Place | None, timeout: float | None, only: bool) -> None:
        endpoint = self.pool.endpoints[0] if only and self.pool.endpoints else None

        async def begin() -> None:
            self.waiting.append(asyncio.create_task(self.pool.acquire(timeout, place, endpoint=endpoint)))
            await turns(2)

        self.do(begin())

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        error=st.sampled_from(
            [
                None,
                asyncio.CancelledError(),
                errors.UnavailableError("Socket closed"),
                errors.DeadlineExceededError("late"),
                errors.InternalError("broken"),
                errors.InvalidArgumentError("wrong"),
                errors.ResourceExhaustedError("full"),
                errors.ClientClosedError("closed"),
            ]
        ),
        seconds=st.sampled_from([None, 0.0, 0.1, 2.0]),
        broken=st.booleans(),
    )
    def release(self, data: Any, error: BaseException | None, seconds: float | None, broken: bool) -> None:
        connection = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        transport = connection.transport
        if broken and isinstance(transport, FakeTransport) and transport.state != "closed":
            transport.break_down()
        self.act(self.pool.release, connection, error, seconds)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), after=st.booleans())
    def cancel(self, data: Any, after: bool) -> None:
        task = data.draw(st.sampled_from(self.waiting))

        async def end() -> None:
            if after and self.held:  # in the same moment as room is given
                self.pool.release(self.held.pop())
            task.cancel()
            await turns(2)

        self.do(end())

    @precondition(lambda self: self.pool.endpoints)
    @rule(data=st.data(), how=st.sampled_from(["lose", "eject", "readmit", "miss", "find", "remove"]))
    def change(self, data: Any, how: str) -> None:
        endpoint = self.endpoint(data)
        if how in {"lose", "eject"}:
            self.act(getattr(self.pool, how), endpoint, "why")
        elif how == "readmit":
            self.act(self.pool.readmit, endpoint)
        elif how == "remove":
            self.act(self.pool.remove, {endpoint.target})
        else:
            self.act(getattr(self.pool, how), endpoint, data.draw(st.sampled_from(self.MODELS[1:])))

    @rule()
    def add(self) -> None:
        self.number += 1
        self.act(self.pool.add, [Target(f"new{self.number}:1")])

    @rule()
    def renew(self) -> None:
        self.act(self.pool.renew)

    @rule()
    def look(self) -> None:
        self.act(self.pool.look_for_outliers)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["give_up", "reopen"]))
    def replace(self, data: Any, how: str) -> None:
        connection = data.draw(st.sampled_from(self.held))
        if how == "give_up":
            self.act(self.pool.give_up, connection, "quiet")
        else:
            self.act(self.pool.reopen, connection)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def sleep(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @precondition(lambda self: self.closing is None)
    @rule(grace=st.sampled_from([None, 0.0, 1.0]))
    def close(self, grace: float | None) -> None:
        async def begin() -> None:
            self.closing = asyncio.create_task(self.pool.close(grace))
            await turns(2)

        self.do(begin())

    @invariant()
    def books(self) -> None:
        for task in tuple(self.waiting):
            if task.done():
                self.waiting.remove(task)
                if not task.cancelled() and task.exception() is None:
                    self.held.append(task.result())
        held = collections.Counter(self.held)
        pool = self.pool
        assert pool.in_flight == len(self.held)
        assert pool.waiting == len(self.waiting)
        assert len(pool._wanted) == len(self.waiting)
        for connection in pool.connections():
            assert connection.in_flight == held.pop(connection, 0)
        assert not held
        for endpoint in pool.endpoints:
            assert endpoint.in_flight == sum(c.endpoint is endpoint for c in self.held)
            assert endpoint.opened == sum(c.transport is not None for c in endpoint.connections)
            for connection in endpoint.connections:
                assert connection.in_flight <= 2
        if self.closing is None:  # nobody waits while there is room
            room = {e for e in pool._eligible if e.in_flight < e.limit}
            for _, _, endpoint in pool._wanted.values():
                assert endpoint is not None or not room or pool._eligible_for

    def teardown(self) -> None:
        async def end() -> None:
            closing = self.closing or asyncio.create_task(self.pool.close(1.0))
            await turns(2)
            while self.held:
                self.pool.release(self.held.pop())
                await turns(2)
                for task in tuple(self.waiting):
                    if task.done():
                        self.waiting.remove(task)
                        if not task.cancelled() and task.exception() is None:
                            self.held.append(task.result())
            await asyncio.wait_for(closing, 60)
            await turns(3)
            await asyncio.gather(*self.waiting, return_exceptions=True)

        self.do(end())
        assert self.pool.in_flight == self.pool.waiting == 0
        assert not self.fleet.leaked()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
