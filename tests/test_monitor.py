"""The monitor notices what does not answer, and what is back; idle, it does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aioserving import errors
from aioserving.events import ConnectionReplaced, EndpointEjected, EndpointReturned, ModelFound
from aioserving.health import HealthOptions
from aioserving.monitor import Monitor, check_connection, probe, watch
from aioserving.pool import Connection, Endpoint, Place, Pool
from aioserving.targets import Target
from tests.fakes import PREDICT, Events, FakeTransport, Fleet, make_pool, run, turns

MODEL = Place("half_plus_two")


class Watched:
    """A fleet, a pool and its monitor, with calls the way that clients make them."""

    def __init__(self, *targets: str, **options: Any) -> None:
        self.events = Events()
        self.fleet = Fleet(*targets)
        self.pool: Pool = make_pool(self.fleet, events=self.events, **options)
        self.has: bool | Exception | None = True
        self.asked: list[tuple[str, Place]] = []
        self.looks = 0
        self.ejecting = False
        self.monitor = watch(self.pool, self._has, self._look)
        self.failures: list[str] = []

    def _look(self) -> None:
        self.looks += 1
        if self.ejecting:
            self.pool.readmit(self.pool.endpoints[1])
            self.pool.eject(self.pool.endpoints[1], "slow")

    async def _has(self, endpoint: Endpoint, place: Place, timeout: float) -> bool | None:
        self.asked.append((endpoint.target, place))
        if isinstance(self.has, Exception):
            raise self.has
        return self.has

    async def call(self, timeout: float | None = None, endpoint: Endpoint | None = None) -> str:
        """One call; gives its status."""
        loop = asyncio.get_running_loop()
        connection = await self.pool.acquire(timeout, MODEL, endpoint=endpoint)
        begun = loop.time()
        try:
            await connection.open().call(PREDICT, b"x", timeout, ())
        except errors.RPCError as error:
            self.pool.release(connection, error, loop.time() - begun, None, MODEL)
            return error.code
        except BaseException as error:
            self.pool.release(connection, error)
            raise
        self.pool.release(connection, None, loop.time() - begun, None, MODEL)
        return "OK"

    def states(self) -> list[str]:
        return [item.state for item in self.pool.health()]

    @property
    def idle(self) -> bool:
        return self.monitor._timer is None and not self.monitor._tasks


@contextlib.asynccontextmanager
async def watched(*targets: str, **options: Any) -> AsyncIterator[Watched]:
    it = Watched(*targets, **options)
    yield it
    await it.pool.close(0.0)
    await it.monitor.aclose()
    assert it.idle
    assert it.pool.in_flight == 0
    assert not it.fleet.leaked()


def opened(connection: Connection) -> FakeTransport:
    assert isinstance(connection.transport, FakeTransport)
    return connection.transport


def test_an_idle_client_has_no_timer() -> None:
    """The timer comes with a call and goes when there is nothing to watch any more."""

    async def story() -> None:
        async with watched("a:1") as it:
            assert it.idle
            assert repr(it.monitor) == "<Monitor: idle, 0 probes under way>"
            assert await it.call() == "OK"
            assert not it.idle
            await asyncio.sleep(1)
            assert it.idle
            looks = it.looks
            await asyncio.sleep(100)
            assert it.looks == looks
            assert await it.call() == "OK"
            assert not it.idle

    run(story())


def test_there_is_one_timer_however_much_happens() -> None:
    """Ejections during a look do not set timers that live beside the first."""

    async def story() -> None:
        async with watched("a:1", "b:1", "c:1") as it:
            it.ejecting = True
            assert await it.call() == "OK"
            await asyncio.sleep(1.0)
            assert len(it.events.of(EndpointEjected)) > 1
            it.ejecting = False
            before, loop = it.looks, asyncio.get_running_loop()
            begun = loop.time()
            await asyncio.sleep(1.0)
            assert it.looks - before <= (loop.time() - begun) / 0.1 + 1

    run(story())


def test_a_quiet_connection_is_given_up_and_its_endpoint_left() -> None:
    """Calls that hang are ended a probe after they went quiet, so that they can go elsewhere."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.fleet["a:1"].silent = True
            begun = asyncio.get_running_loop().time()
            assert await it.call(endpoint=it.pool.endpoints[0]) == "UNAVAILABLE"
            assert 2.0 <= asyncio.get_running_loop().time() - begun <= 2.6
            assert it.states() == ["unreachable", "healthy"]
            assert [event.calls for event in it.events.of(ConnectionReplaced)] == [1]
            (ejected,) = it.events.of(EndpointEjected)
            assert ejected.reason == "it did not answer a probe within 1 s"
            it.fleet["a:1"].silent = False
            await asyncio.sleep(2.2)
            assert it.states() == ["healthy", "healthy"]
            assert len(it.events.of(EndpointReturned)) == 1

    run(story())


def test_a_connection_that_carries_a_large_message_is_given_its_time() -> None:
    """What is behind a hundred megabytes cannot be answered yet; when that time is over, it is probed."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.fleet["a:1"].silent = True
            begun = asyncio.get_running_loop().time()
            connection = it.pool.endpoints[0].connections[0]
            connection.busy_until = begun + 10.0
            assert await it.call(endpoint=it.pool.endpoints[0]) == "UNAVAILABLE"
            assert 12.0 <= asyncio.get_running_loop().time() - begun <= 12.6

    run(story())


def test_a_slow_server_that_answers_probes_is_left_alone() -> None:
    """A call may take long: any answer to a probe proves that somebody is there."""

    async def story(answer: bytes | errors.RPCError) -> None:
        async with watched("a:1", "b:1") as it:
            server = it.fleet["a:1"]
            server.latency, server.probe = 0.4, answer
            server.rule = lambda request: None
            calls = [asyncio.create_task(it.call(30.0, it.pool.endpoints[0])) for _ in range(3)]
            await asyncio.sleep(10)
            assert not any(task.done() for task in calls)
            assert 3 <= server.probes <= 10
            assert it.states() == ["healthy", "healthy"]
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    run(story(b"\x08\x01"))
    run(story(errors.UnimplementedError("no such service")))
    run(story(errors.UnauthenticatedError("who are you?")))


def test_a_server_that_says_it_does_not_serve_is_left() -> None:
    """NOT_SERVING counts like no answer."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.fleet["a:1"].rule = lambda request: None
            it.fleet["a:1"].probe = b"\x08\x02"
            assert await it.call(30.0, it.pool.endpoints[0]) == "UNAVAILABLE"
            assert it.states() == ["unreachable", "healthy"]
            assert it.pool.health()[0].reason == "it says that it is not serving"

    run(story())


def test_a_connection_that_answers_other_calls_is_not_given_up() -> None:
    """Answers that come while a probe waits prove more than the probe's silence."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            server = it.fleet["a:1"]
            server.latency = 1.5
            server.probe = errors.UnavailableError("probes are refused here")
            (a, _) = it.pool.endpoints
            for _ in range(3):
                calls = [asyncio.create_task(it.call(30.0, a)) for _ in range(2)]
                assert await asyncio.gather(*calls) == ["OK", "OK"]
            assert it.fleet["a:1"].probes
            assert not it.events.of(ConnectionReplaced)

    run(story())


def test_without_company_a_dead_connection_is_replaced_if_a_new_one_answers() -> None:
    """The only endpoint is asked on a new connection, and the old one given up when that answers."""

    async def story() -> None:
        async with watched("a:1") as it:
            assert await it.call() == "OK"
            opened(it.pool.endpoints[0].connections[0]).dead = True
            assert await it.call(30.0) == "UNAVAILABLE"
            assert await it.call(30.0) == "OK"
            assert it.states() == ["healthy"]
            assert len(it.events.of(ConnectionReplaced)) == 1

    run(story())


def test_without_company_a_server_that_hangs_keeps_its_calls() -> None:
    """Sending everything anew would not help it; it is known to be out of reach, and is back by itself."""

    async def story() -> None:
        async with watched("a:1") as it:
            it.fleet["a:1"].silent = True
            outages: list[float] = []
            it.pool.on_outage = lambda: outages.append(asyncio.get_running_loop().time())
            begun = asyncio.get_running_loop().time()
            call = asyncio.create_task(it.call(30.0))
            await asyncio.sleep(6)
            assert not call.done()
            assert it.states() == ["unreachable"]
            assert not it.events.of(ConnectionReplaced)
            assert 3.0 <= outages[0] - begun <= 5.0
            it.fleet["a:1"].silent = False
            await asyncio.sleep(2.2)
            assert it.states() == ["healthy"]
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    run(story())


@pytest.mark.parametrize("pause", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("timeout", [0.05, 0.4])
def test_a_dead_connection_is_found_also_by_calls_with_short_deadlines(timeout: float, pause: float) -> None:
    """Calls that each end at their own deadline, with nothing under way between, do not hide it."""

    async def story() -> None:
        async with watched("a:1", health=HealthOptions(consecutive_failures=0)) as it:
            assert await it.call() == "OK"
            opened(it.pool.endpoints[0].connections[0]).dead = True
            begun = asyncio.get_running_loop().time()
            codes: list[str] = []
            while "OK" not in codes and len(codes) < 200:
                codes.append(await it.call(timeout))
                await asyncio.sleep(pause)
            assert codes[-1] == "OK"
            assert asyncio.get_running_loop().time() - begun < 4.5
            assert set(codes[:-1]) <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}

    run(story())


def test_after_calls_were_cancelled_there_is_one_probe_and_then_peace() -> None:
    """Cancelled calls leave a doubt that one answered probe removes."""

    async def story() -> None:
        async with watched("a:1") as it:
            it.fleet["a:1"].rule = lambda request: None
            call = asyncio.create_task(it.call())
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.sleep(5)
            assert it.fleet["a:1"].probes == 1
            assert it.idle
            assert it.states() == ["healthy"]

    run(story())


def test_a_replaced_connection_is_still_watched() -> None:
    """Calls on one whose certificates were replaced do not hang on it for ever."""

    async def story() -> None:
        async with watched("a:1") as it:
            it.fleet["a:1"].silent = True
            call = asyncio.create_task(it.call())
            await turns()
            it.pool.renew()
            assert await asyncio.wait_for(call, 4) == "UNAVAILABLE"
            assert it.states() == ["healthy"]

    run(story())


def test_an_endpoint_that_is_out_is_probed_until_it_is_back() -> None:
    """Soon at first and at most a second apart; on a connection of its own, which is closed."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.fleet["a:1"].down = True
            it.fleet["a:1"].latency = 0.0
            assert await it.call(1.0, it.pool.endpoints[0]) == "UNAVAILABLE"
            assert it.states() == ["unreachable", "healthy"]
            await asyncio.sleep(1.0)
            assert 2 <= it.fleet["a:1"].probes <= 5
            before = it.fleet["a:1"].probes
            await asyncio.sleep(20.0)
            assert 15 <= it.fleet["a:1"].probes - before <= 21
            it.fleet["a:1"].down = False
            await asyncio.sleep(1.2)
            assert it.states() == ["healthy", "healthy"]
            assert await it.call(1.0, it.pool.endpoints[0]) == "OK"  # not on the one that gRPC waits with
            await asyncio.sleep(2)
            assert it.idle

    run(story())


def test_a_blip_is_over_in_a_moment() -> None:
    """An endpoint that was lost and is there at the first probe is back within a quarter of a second."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.pool.lose(it.pool.endpoints[0], "reset")
            await asyncio.sleep(0.25)
            assert it.states() == ["healthy", "healthy"]

    run(story())


def test_an_outlier_is_probed_when_its_time_is_over() -> None:
    """Not before, and if it cannot be reached then, it counts as unreachable, not as an outlier."""

    async def story() -> None:
        async with watched("a:1", "b:1", "c:1") as it:
            a = it.pool.endpoints[0]
            it.pool.eject(a, "slow")
            await asyncio.sleep(4.5)
            assert it.fleet["a:1"].probes == 0
            it.fleet["a:1"].down = True
            await asyncio.sleep(1.0)
            assert it.states()[0] == "unreachable"
            it.fleet["a:1"].down = False
            await asyncio.sleep(1.5)
            assert it.states()[0] == "healthy"

    run(story())


def test_an_outage_is_told_when_it_lasts() -> None:
    """Once all endpoints have been out of reach for a while, and not for a restart that is quicker."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            outages = []
            it.pool.on_outage = lambda: outages.append(1)
            for server in it.fleet.servers.values():
                server.down = True
            for endpoint in it.pool.endpoints:
                it.pool.lose(endpoint, "refused")
            await asyncio.sleep(0.8)
            assert not outages
            await asyncio.sleep(0.8)
            assert outages
            it.fleet["a:1"].down = False
            await asyncio.sleep(1.2)
            outages.clear()
            await asyncio.sleep(3)
            assert not outages

    run(story())


@pytest.mark.parametrize("has", [True, None])
def test_an_endpoint_is_asked_for_a_model_until_it_has_it(has: bool | None) -> None:
    """Twice a second; if it cannot tell, calls find out."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.has = False
            it.pool.miss(it.pool.endpoints[0], MODEL)
            await asyncio.sleep(3)
            assert 5 <= len(it.asked) <= 7
            assert set(it.asked) == {("a:1", MODEL)}
            it.has = errors.DeadlineExceededError("late")
            await asyncio.sleep(1)
            assert it.pool.health()[0].missing_models
            it.has = has
            await asyncio.sleep(1)
            assert not it.pool.health()[0].missing_models
            assert len(it.events.of(ModelFound)) == 1
            await asyncio.sleep(1)
            assert it.idle

    run(story())


def test_a_mistake_elsewhere_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """What is done at every look, or a probe, may raise: it is logged, and the watch goes on."""

    async def story() -> None:
        fleet = Fleet("a:1")
        pool = make_pool(fleet)

        def broken() -> None:
            raise OSError("the certificate cannot be read")

        async def has(endpoint: Endpoint, place: Place, timeout: float) -> bool:
            raise KeyError("a mistake")

        monitor = watch(pool, has, broken)
        pool.lose(pool.endpoints[0], "refused")
        pool.miss(pool.endpoints[0], MODEL)
        await asyncio.sleep(2)
        assert pool.health()[0].ok
        await monitor.aclose()
        await pool.close()
        assert not fleet.leaked()

    run(story())
    assert "the certificate cannot be read" in caplog.text
    assert "a mistake" in caplog.text
    assert {record.levelno for record in caplog.records if record.exc_info} == {logging.ERROR}


@pytest.mark.parametrize("moment", [0.05, 0.1, 0.15, 1.3, 1.35, 2.3, 2.35, 2.4, 3.2])
def test_the_end_leaves_no_task_and_no_connection(moment: float) -> None:
    """Whatever is under way when the monitor is closed: probes, second opinions, questions for models."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            for server in it.fleet.servers.values():
                server.silent = True
            calls = [asyncio.create_task(it.call(9.0, endpoint)) for endpoint in it.pool.endpoints]
            it.pool.miss(it.pool.endpoints[0], MODEL)
            await asyncio.sleep(moment)
            await it.monitor.aclose()
            await it.monitor.aclose()
            assert it.idle
            assert repr(it.monitor) == "<Monitor: closed, 0 probes under way>"
            it.pool.on_activity()
            await turns()
            assert it.idle
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    run(story())


def test_a_probe_of_what_was_removed_meanwhile_changes_nothing() -> None:
    """An endpoint that leaves the fleet while it is probed neither returns nor is lost."""

    async def story() -> None:
        async with watched("a:1", "b:1") as it:
            it.fleet["a:1"].silent = True
            call = asyncio.create_task(it.call(9.0, it.pool.endpoints[0]))
            await asyncio.sleep(1.4)
            assert it.fleet["a:1"].probes == 1
            it.pool.remove({"a:1"})
            assert await call == "UNAVAILABLE"
            await asyncio.sleep(3)
            assert not it.events.of(EndpointReturned)
            assert not it.events.of(EndpointEjected)
            assert it.idle

    run(story())


def test_nothing_keeps_a_dropped_client_alive() -> None:
    """Neither the timer nor what the pool knows of its monitor holds pool and monitor, once dropped."""

    async def story() -> None:
        it = Watched("a:1", "b:1")
        assert await it.call() == "OK"
        for server in it.fleet.servers.values():
            server.down = True
        it.pool.lose(it.pool.endpoints[0], "refused")
        await asyncio.sleep(0.5)
        assert not it.idle
        references = weakref.ref(it.pool), weakref.ref(it.monitor)
        del it
        gc.collect()
        assert [reference() for reference in references] == [None, None]
        await asyncio.sleep(1)

    run(story())


def test_a_probe_tells_what_is_wrong() -> None:
    """Nothing, if anything is answered but NOT_SERVING; else a reason for people to read."""

    async def story() -> None:
        fleet = Fleet("a:1")
        transport: FakeTransport = fleet.open(Target("a:1"))

        async def wrong(answer: bytes | errors.RPCError) -> str:
            fleet["a:1"].probe = answer
            return await probe(transport, 1.0)  # type: ignore[arg-type]

        assert not await wrong(b"\x08\x01")
        assert not await wrong(b"")
        for code in (errors.UnimplementedError, errors.PermissionDeniedError, errors.ResourceExhaustedError):
            assert not await wrong(code("no"))
        assert await wrong(b"\x08\x02") == "it says that it is not serving"
        assert await wrong(errors.UnavailableError("Connection refused")) == "Connection refused"
        assert await wrong(errors.UnavailableError("")) == "UNAVAILABLE"
        fleet["a:1"].silent = True
        assert await wrong(b"") == "it did not answer a probe within 1 s"
        await transport.close()
        assert await wrong(b"") == "the connection was closed"
        pool = make_pool(fleet)
        assert (
            await check_connection(pool, pool.endpoints[0], 0.5) == "it did not answer a probe within 0.5 s"
        )
        assert not fleet.leaked()
        assert isinstance(watch(pool, _never), Monitor)

    run(story())


async def _never(endpoint: Endpoint, place: Place, timeout: float) -> bool | None:
    raise AssertionError("nobody asks")
