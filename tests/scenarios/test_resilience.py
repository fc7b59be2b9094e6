"""Fleets of real server processes that restart, die, hang, lose models and come back, under steady load.

Each story is run twice: bounded, with every run of the tests, where nothing is asserted that hangs on how
busy the machine is (no call fails, where traffic goes, what is told); and at full rate behind the marker
``nightly``, where the times that are promised are held to, too. Both print what they measured (``-s``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from aioserving import AsyncClient
from aioserving.balancing import BalancingOptions
from aioserving.circuit import CircuitOptions
from aioserving.events import (
    CircuitClosed,
    CircuitOpened,
    ConnectionReplaced,
    EndpointAdded,
    EndpointEjected,
    EndpointRemoved,
    EndpointReturned,
    Event,
    ModelFound,
    ModelMissing,
)
from aioserving.health import HealthOptions
from aioserving.prediction import PredictResult
from aioserving.resolver import ResolverOptions
from aioserving.retry import RetryPolicy
from aioserving.testing.faults import BlackHole, FaultProxyProcess, HalfOpen

from .load import IMAGES, CountingServer, Load, fleet, until

#: Calls a second in the bounded runs, which leaves most of two cores to others.
RATE = 150
#: Calls a second in the nightly runs.
FULL_RATE = 500
#: Seconds that a call may take.
TIMEOUT = 5.0
#: Endpoints that hang are noticed sooner than by default, so that the bounded runs are short.
QUICK = HealthOptions(probe_after=0.5, probe_timeout=0.5)
#: Endpoints that return have their full share sooner than by default.
SHORT_RAMP = BalancingOptions(ramp=2.0)

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Event)


def run(story: Coroutine[Any, Any, _T], seconds: float = 60) -> _T:
    return asyncio.run(asyncio.wait_for(story, seconds))


class Diary:
    """An observer that keeps what it is told, with the time."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self.entries.append((time.monotonic(), event))

    def __repr__(self) -> str:
        return f"<Diary of {len(self.entries)} events>"

    def of(self, kind: type[_E], target: str | None = None) -> list[tuple[float, _E]]:
        """Events of a kind, of one target if given, with their times."""
        return [
            (at, event)
            for at, event in self.entries
            if isinstance(event, kind) and (target is None or getattr(event, "target", None) == target)
        ]

    def last(self, kind: type[_E], target: str | None = None) -> float:
        """When the last event of a kind was; an `IndexError` if there was none."""
        return self.of(kind, target)[-1][0]


def client_of(servers: Sequence[CountingServer], diary: Diary, **options: Any) -> AsyncClient:
    options = {"timeout": TIMEOUT, "balancing": SHORT_RAMP, "health": QUICK, **options}
    return AsyncClient([server.target for server in servers], observers=[diary], **options)


def predicting(client: AsyncClient, model: str = "digits", rate: float = RATE) -> Load:
    async def call() -> PredictResult:
        return await client.predict(model, IMAGES)

    return Load(call, rate=rate)


def has_executed(server: CountingServer, calls: int) -> bool:
    return server.executed >= calls


def attempts_at(load: Load, target: str, begin: float, end: float) -> list[float]:
    """When attempts at a target began between two times of the monotonic clock, from the first of them."""
    origin = time.monotonic() - load.mark()
    begun = (
        origin + call.begun + a.started for call in load.calls() for a in call.attempts if a.target == target
    )
    return sorted(at - begin for at in begun if begin <= at < end)


# -- rolling restart --------------------------------------------------------------------------------------


async def rolling_restart(rate: float, calm: float, rounds: int, **options: Any) -> tuple[float, float]:
    """Restart three servers one after the other; gives p99 before and during, in seconds."""
    diary = Diary()
    async with fleet(3) as servers, client_of(servers, diary, **options) as client:
        await client.wait_ready("digits", every_endpoint=True)
        async with predicting(client, rate=rate) as load:
            await asyncio.sleep(calm)
            restarting = load.mark()
            for server in servers * rounds:
                others = sum(other.executed for other in servers if other is not server)
                await server.arestart(grace=10)
                assert sum(other.executed for other in servers if other is not server) > others
                await until(functools.partial(has_executed, server, server.executed + 10), within=30)
            restarted = load.mark()
            await asyncio.sleep(calm)
        before, during = load.calls(0, restarting), load.calls(restarting, restarted)
        print(f"\n  before: {before.summary()}\n  rolling restart: {during.summary()}")
        print(f"  after: {load.calls(restarted).summary()}, by server {load.calls(restarted).by_target()}")
        assert load.failures == {}, load.calls().errors
        assert len(load.calls()) == load.started
        for server in servers:
            assert diary.of(EndpointReturned, server.target)
        return before.quantile(0.99), during.quantile(0.99)


def test_a_rolling_restart_fails_no_call() -> None:
    """Three servers are restarted in turn, with grace: no call fails, and each gets calls again after."""
    run(rolling_restart(RATE, calm=1.0, rounds=1))


@pytest.mark.nightly
def test_a_rolling_restart_at_full_rate() -> None:
    """At 500 calls a second, no call fails in three rounds of restarts, and p99 stays within 3 x before."""
    before, during = run(rolling_restart(FULL_RATE, calm=15.0, rounds=3, balancing=None, health=None), 110)
    print(f"  p99 {before * 1e3:.2f} ms before, {during * 1e3:.2f} ms during: {during / before:.2f} x")
    assert during <= 3 * before


def test_what_a_server_that_ends_has_not_taken_up() -> None:
    """A graceful end cancels the calls that wait for the server's attention; they are made elsewhere."""

    async def story() -> None:
        diary = Diary()
        policy = RetryPolicy(budget_ratio=1.0, budget_reserve=1000)  # for all of a burst at once
        async with fleet(2) as servers, client_of(servers, diary, retry=policy) as client:
            await client.wait_ready("digits", every_endpoint=True)
            cancelled = 0
            for number in range(5):
                server = servers[number % 2]
                calls = [asyncio.create_task(client.predict("digits", IMAGES)) for _ in range(300)]
                await until(functools.partial(has_executed, server, server.executed + 5), within=30)
                await server.aterminate()
                for result in await asyncio.gather(*calls):
                    cancelled += sum(attempt.code == "CANCELLED" for attempt in result.attempts)
                await server.astart()
                await until(lambda: not any_out(client), within=30)
                if cancelled:
                    break
            print(f"\n  {cancelled} of {300 * (number + 1)} calls were cancelled by a server that ended")
            assert cancelled

    run(story())


# -- killed and paused ------------------------------------------------------------------------------------


async def killed_and_paused(
    rate: float, health: HealthOptions, down: float, ramp: float
) -> tuple[float, float, list[float]]:
    """One of three killed and one paused, then back.

    Gives the seconds for which attempts went on being sent to the killed and to the paused one, and the
    returning one's share of the calls in the four quarters of its ramp.
    """
    diary = Diary()
    balancing = BalancingOptions(ramp=ramp)
    async with fleet(3) as servers, client_of(servers, diary, health=health, balancing=balancing) as client:
        killed, paused, spared = servers
        await client.wait_ready("digits", every_endpoint=True)
        async with predicting(client, rate=rate) as load:
            await asyncio.sleep(1)
            for server in servers:
                assert server.executed
            kill_time = time.monotonic()
            killed.kill()
            pause_time = time.monotonic()
            paused.pause()
            await until(lambda: diary.of(EndpointEjected, paused.target), within=30)
            await asyncio.sleep(down)
            back_time = time.monotonic()
            states = {endpoint.target: endpoint.state for endpoint in client.health().endpoints}
            assert states == {
                killed.target: "unreachable",
                paused.target: "unreachable",
                spared.target: "healthy",
            }
            paused.resume()
            await killed.arestart()
            await until(
                lambda: (
                    diary.of(EndpointReturned, killed.target) and diary.of(EndpointReturned, paused.target)
                ),
                within=30,
            )
            await asyncio.sleep(ramp * 1.5)
        print(f"\n  {load.calls().summary()}")
        assert load.failures == {}, load.calls().errors
        ejected = {server: diary.of(EndpointEjected, server.target)[0][0] for server in (killed, paused)}
        # 10 ms: what an event and the note of an attempt that began before may lie apart.
        assert attempts_at(load, killed.target, ejected[killed] + 0.01, back_time) == []
        assert attempts_at(load, paused.target, ejected[paused] + 0.01, back_time) == []
        to_killed = attempts_at(load, killed.target, kill_time, back_time)
        to_paused = attempts_at(load, paused.target, pause_time, back_time)
        print(f"  killed: {len(to_killed)} attempts, paused: {len(to_paused)} attempts after the fault")
        returned = diary.last(EndpointReturned, killed.target)
        shares = []
        for quarter in range(4):
            begin, end = (returned + ramp * n / 4 for n in (quarter, quarter + 1))
            counts = [len(attempts_at(load, server.target, begin, end)) for server in servers]
            shares.append(counts[0] / max(sum(counts), 1))
        settled = load.calls(returned + ramp - (time.monotonic() - load.mark()))
        print(f"  after the ramp: {settled.by_target()}")
        assert settled.share(killed.target) > 0.1
        assert settled.share(paused.target) > 0.1
        return max(to_killed, default=0.0), max(to_paused, default=0.0), shares


def test_one_server_killed_and_one_paused() -> None:
    """No call fails; nothing goes to either once it is out; back again, they get few calls at first."""
    off_killed, off_paused, shares = run(killed_and_paused(RATE, QUICK, down=1.0, ramp=2.5))
    print(f"  off the killed one in {off_killed:.3f} s, off the paused one in {off_paused:.3f} s")
    print(f"  shares in the quarters of the ramp: {', '.join(f'{share:.0%}' for share in shares)}")
    assert shares[0] < 0.3
    assert max(shares[2:]) > shares[0]


@pytest.mark.nightly
def test_one_server_killed_and_one_paused_in_time() -> None:
    """Off the killed one within 1 s, off the paused one within the time that the settings say."""
    for _ in range(3):
        health = HealthOptions()
        off_killed, off_paused, shares = run(killed_and_paused(FULL_RATE, health, down=5.0, ramp=10.0), 110)
        print(f"  off the killed one in {off_killed:.3f} s, off the paused one in {off_paused:.3f} s")
        print(f"  shares in the quarters of the ramp: {', '.join(f'{share:.0%}' for share in shares)}")
        assert off_killed <= 1
        assert off_paused <= health.probe_after + health.probe_timeout + 0.3
        assert shares[0] < 0.25
        assert max(shares[2:]) > shares[0]


# -- a model unloaded on one server -----------------------------------------------------------------------


async def model_unloaded(rate: float, without: float) -> None:
    """A model is unloaded on one of three servers and loaded again, while it and another one are called."""
    diary = Diary()
    digits = {"name": "digits", "base_path": "/callable/digits"}
    letters = {"name": "letters", "base_path": "/callable/letters"}
    async with (
        fleet(3) as servers,
        client_of(servers, diary) as client,
        AsyncClient(servers[0].target) as admin,
    ):
        poor, *others = servers
        await client.wait_ready("digits", "letters", every_endpoint=True)
        async with predicting(client, "letters", rate / 2) as load, predicting(client, rate=rate / 2) as rest:
            await asyncio.sleep(1)
            await admin.reload_config([digits], wait=True)
            await until(lambda: diary.of(ModelMissing, poor.target), within=30)
            missing = time.monotonic()
            (endpoint,) = (one for one in client.health().endpoints if one.target == poor.target)
            assert endpoint.missing_models == ("letters",)
            counts = dict(poor.executed_by_model)
            elsewhere = sum(other.executed_by_model["letters"] for other in others)
            await asyncio.sleep(without)
            assert sum(other.executed_by_model["letters"] for other in others) > elsewhere
            assert poor.executed_by_model["digits"] > counts["digits"]
            assert poor.executed_by_model["letters"] == counts["letters"]
            await admin.reload_config([digits, letters], wait=True)
            loaded = time.monotonic()
            await until(lambda: poor.executed_by_model["letters"] > counts["letters"] + 20, within=30)
        print(f"\n  letters: {load.calls().summary()}\n  digits: {rest.calls().summary()}")
        found = diary.last(ModelFound, poor.target)
        print(f"  found {found - loaded:+.3f} s after it was loaded")
        assert load.failures == {}, load.calls().errors
        assert rest.failures == {}, rest.calls().errors
        assert attempts_at(load, poor.target, missing + 0.01, found) == []
        assert len(diary.of(ModelMissing)) == len(diary.of(ModelFound)) == 1


def test_a_model_unloaded_on_one_server() -> None:
    """Its calls go to the others, other models' go on there; it is back when the model is."""
    run(model_unloaded(RATE, without=1.0))


@pytest.mark.nightly
def test_a_model_unloaded_on_one_server_at_full_rate() -> None:
    """The same at 500 calls a second, again and again."""
    for _ in range(5):
        run(model_unloaded(FULL_RATE, without=3.0))


# -- total outage -----------------------------------------------------------------------------------------


async def outage(rate: float, kind: str, down: float) -> float:
    """All three servers are killed, or paused, and come back; gives the seconds until calls succeed again.

    Counted from when the first server is back, while the others are still out.
    """
    diary = Diary()
    async with fleet(3) as servers, client_of(servers, diary) as client:
        await client.wait_ready("digits", every_endpoint=True)
        async with predicting(client, rate=rate) as load:
            await asyncio.sleep(1)
            stopped = load.mark()
            for server in servers:
                server.kill() if kind == "killed" else server.pause()
            await until(lambda: diary.of(CircuitOpened), within=30)
            opened = load.mark()
            await asyncio.sleep(down)
            ending = load.mark()
            first, *others = servers
            await first.astart() if kind == "killed" else first.resume()
            back = load.mark()
            await until(lambda: any(call.code == "OK" for call in load.calls(ending)), within=30)
            await until(lambda: client.health().circuit == "closed", within=30)
            recovered = load.mark()
            for server in others:
                await server.astart() if kind == "killed" else server.resume()
            await until(lambda: not any_out(client), within=30)
            await asyncio.sleep(1)
        falling, out, after = load.calls(stopped, opened), load.calls(opened, ending), load.calls(recovered)
        answered = min(call.end for call in load.calls(ending) if call.code == "OK")
        print(f"\n  {kind}: {opened - stopped:.2f} s until the circuit opened: {falling.summary()}")
        print(f"  during the outage: {out.summary()}, {out.attempts} attempts")
        print(f"  recovered {answered - back:.3f} s after the first server; then: {after.summary()}")
        assert not [call for call in load.calls() if call.end < stopped and call.code != "OK"]
        assert after.failures == {}, after.errors
        assert len(load.calls()) == load.started
        executed = sum(server.executed for server in servers)
        print(f"  the servers executed {executed} calls, of {load.started} that were made")
        assert executed <= load.started
        # Nobody waits for a server that is not there: the refusal comes before the deadline.
        assert set(falling.failures) | set(out.failures) == {"UNAVAILABLE"}
        assert len(out) > out.attempts * 2
        assert diary.of(CircuitClosed)
        return answered - back


def any_out(client: AsyncClient) -> bool:
    return not all(endpoint.ok for endpoint in client.health().endpoints)


@pytest.mark.parametrize("kind", ["killed", "paused"])
def test_a_total_outage(kind: str) -> None:
    """Calls fail at once when nothing answers, instead of at their deadlines, and succeed again after."""
    run(outage(RATE, kind, down=1.0))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["killed", "paused"])
def test_a_total_outage_ends_in_time(kind: str) -> None:
    """At 500 calls a second, calls succeed again within 2 s of the return of the first server."""
    for down in (2.0, 5.0, 20.0):
        assert run(outage(FULL_RATE, kind, down)) <= 2


async def failing_fleet(rate: float, seconds: float, circuit: CircuitOptions) -> tuple[float, float]:
    """Every server answers UNAVAILABLE for some time.

    Gives the calls executed there in terms of those made, less what the budget had saved up before, and the
    seconds until calls succeed again.
    """
    diary = Diary()
    async with fleet(3) as servers, client_of(servers, diary, circuit=circuit) as client:
        await client.wait_ready("digits", every_endpoint=True)
        async with predicting(client, rate=rate) as load:
            await asyncio.sleep(1)
            budget = RetryPolicy()
            saved = budget.budget_reserve + budget.budget_ratio * load.started
            executed, started = sum(server.executed for server in servers), load.started
            for server in servers:
                server.fail()
            await asyncio.sleep(seconds)
            executed = sum(server.executed for server in servers) - executed
            started = load.started - started
            for server in servers:
                server.fail(False)
            well = load.mark()
            await until(lambda: any(call.code == "OK" for call in load.calls(well)), within=30)
        answered = min(call.end for call in load.calls(well) if call.code == "OK")
        print(f"\n  {started} calls, {executed} executed: {executed / started:.1%}; {load.calls().summary()}")
        print(f"  at most {saved:.0f} of them were paid out of what had been saved")
        print(f"  recovered after {answered - well:.3f} s")
        assert set(load.failures) == {"UNAVAILABLE"}
        assert bool(diary.of(CircuitOpened)) is (circuit.threshold < 1000)
        return (executed - saved) / started, answered - well


def test_retries_add_little_load_to_a_fleet_that_fails() -> None:
    """Without a circuit, retries are 15 % of the calls and what was saved before."""
    load, _ = run(failing_fleet(RATE, 3.0, CircuitOptions(threshold=10**9)))
    assert 1 < load <= 1.16


def test_a_fleet_that_fails_is_left_alone() -> None:
    """With the circuit as it is by default, a fraction of the calls is sent to it, retries included."""
    load, _ = run(failing_fleet(RATE, 3.0, CircuitOptions()))
    assert load < 0.6


@pytest.mark.nightly
def test_retries_add_little_load_for_long() -> None:
    """The same at 500 calls a second for half a minute; calls succeed within 2 s of the repair."""
    load, recovery = run(failing_fleet(FULL_RATE, 30.0, CircuitOptions(threshold=10**9)))
    assert 1 < load <= 1.16
    assert recovery <= 2
    load, recovery = run(failing_fleet(FULL_RATE, 30.0, CircuitOptions()))
    assert load < 0.2
    assert recovery <= 2


# -- endpoints that come and go ---------------------------------------------------------------------------


def uses(client: AsyncClient, targets: Sequence[str]) -> bool:
    """Whether these are the client's endpoints."""
    return {endpoint.target for endpoint in client.health().endpoints} == set(targets)


async def come_and_go(rate: float, rounds: int) -> None:
    """Endpoints are added and removed under load, and servers ended that have been removed."""
    diary = Diary()
    async with fleet(3) as servers, client_of(servers[:1], diary) as client:
        await client.wait_ready("digits")
        async with predicting(client, rate=rate) as load:
            for number in range(rounds * 3):
                old, new = servers[number % 3], servers[(number + 1) % 3]
                if not new.running:
                    await new.astart()
                client.add_targets(new.target)
                await until(functools.partial(has_executed, new, new.executed + 10), within=30)
                client.remove_targets(old.target)
                await until(functools.partial(load.settled, load.mark()), within=30)
                executed, others = old.executed, new.executed
                await until(functools.partial(has_executed, new, others + 30), within=30)
                assert old.executed == executed
                await old.aterminate()
        print(f"\n  {load.calls().summary()}")
        assert load.failures == {}, load.calls().errors
        assert len(diary.of(EndpointAdded)) == len(diary.of(EndpointRemoved)) == rounds * 3
        assert not diary.of(EndpointEjected)


def test_endpoints_added_and_removed_under_load() -> None:
    """A new endpoint gets calls, a removed one gets none, and not one call fails."""
    run(come_and_go(RATE, rounds=1))


@pytest.mark.nightly
def test_endpoints_added_and_removed_for_long() -> None:
    """The same, 15 times over, at 500 calls a second."""
    run(come_and_go(FULL_RATE, rounds=15), 110)


async def names(rate: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name stands for changing sets of addresses, each of which has a server on the same port."""
    diary = Diary()
    addresses = ["127.0.0.2"]

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "replicas.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    resolver = ResolverOptions(interval=0.1, min_interval=0.05)
    async with contextlib.AsyncExitStack() as stack:
        (first,) = await stack.enter_async_context(fleet(1, testing_host="127.0.0.2"))
        servers = {"127.0.0.2": first}
        for host in ("127.0.0.3", "127.0.0.4"):
            (other,) = await stack.enter_async_context(fleet(1, testing_host=host, port=first.port))
            servers[host] = other
        client = AsyncClient(
            f"dns:///replicas.test:{first.port}",
            timeout=TIMEOUT,
            balancing=SHORT_RAMP,
            health=QUICK,
            resolver=resolver,
            observers=[diary],
        )
        await stack.enter_async_context(client)
        await client.wait_ready("digits")
        async with predicting(client, rate=rate) as load:
            sets = (["127.0.0.2", "127.0.0.3"], [*servers], ["127.0.0.4"], ["127.0.0.3", "127.0.0.2"])
            for now in [*sets, ["127.0.0.2"]] * rounds:
                addresses[:] = now
                for host in now:
                    server = servers[host]
                    await until(functools.partial(has_executed, server, server.executed + 10), within=30)
                await until(
                    functools.partial(uses, client, [servers[host].target for host in now]), within=30
                )
                await until(functools.partial(load.settled, load.mark()), within=30)
                for host, server in servers.items():
                    if host not in now:
                        server.kill()
                        await server.astart()
            addresses.clear()  # an empty answer is no reason to be without servers
            await until(functools.partial(has_executed, first, int(first.executed + rate / 2)), within=30)
        print(f"\n  {load.calls().summary()}, by server {load.calls().by_target()}")
        assert load.failures == {}, load.calls().errors
        targets = {server.target for server in servers.values()}
        assert {event.target for _, event in diary.of(EndpointAdded)} == targets
        assert len(diary.of(EndpointRemoved)) >= 4 * rounds
        assert not diary.of(EndpointEjected)


@pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and its like, which only Linux has")
def test_a_name_with_changing_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that join a DNS name get calls, those that leave it none, and not one call fails."""
    run(names(RATE, 1, monkeypatch))


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and its like, which only Linux has")
def test_a_name_with_changing_addresses_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, eight times over, at 500 calls a second."""
    run(names(FULL_RATE, 8, monkeypatch), 110)


# -- connections that say nothing -------------------------------------------------------------------------


async def silent_connections(rate: float, health: HealthOptions) -> None:
    """One of two endpoints is behind a network that swallows everything, then one direction; and heals."""
    diary = Diary()
    async with contextlib.AsyncExitStack() as stack:
        hidden, plain = await stack.enter_async_context(fleet(2))
        proxy = await stack.enter_async_context(FaultProxyProcess(hidden.target))
        targets = [proxy.target, plain.target]
        client = AsyncClient(targets, timeout=TIMEOUT, balancing=SHORT_RAMP, health=health, observers=[diary])
        await stack.enter_async_context(client)
        await client.wait_ready("digits", every_endpoint=True)
        async with predicting(client, rate=rate) as load:
            for fault in (BlackHole(), HalfOpen()):
                await until(functools.partial(has_executed, hidden, hidden.executed + 20), within=30)
                seen = len(diary.of(EndpointEjected, proxy.target))
                proxy.set(fault)
                begun = load.mark()
                await until(lambda: len(diary.of(EndpointEjected, proxy.target)) > seen, within=30)
                print(f"\n  {fault}: out after {load.mark() - begun:.2f} s")
                await until(functools.partial(has_executed, plain, int(plain.executed + rate / 2)), within=30)
                proxy.heal()
                await until(lambda: not any_out(client), within=30)
            await until(functools.partial(has_executed, hidden, hidden.executed + 20), within=30)
        print(f"  {load.calls().summary()}")
        assert load.failures == {}, load.calls().errors
        assert diary.of(ConnectionReplaced, proxy.target)


def test_one_endpoint_falls_silent() -> None:
    """A black hole, and a connection open in one direction only: calls go elsewhere in time, none fails."""
    run(silent_connections(RATE, QUICK))


async def silent_connection_to_the_only_endpoint(rate: float, health: HealthOptions) -> None:
    """The connections to the only endpoint fall silent, as behind a firewall that forgot them."""
    diary = Diary()
    async with contextlib.AsyncExitStack() as stack:
        (server,) = await stack.enter_async_context(fleet(1))
        proxy = await stack.enter_async_context(FaultProxyProcess(server.target))
        client = AsyncClient(proxy.target, timeout=TIMEOUT, health=health, observers=[diary])
        await stack.enter_async_context(client)
        await client.wait_ready("digits")
        async with predicting(client, rate=rate) as load:
            for fault in (BlackHole(), HalfOpen()):
                await until(functools.partial(has_executed, server, server.executed + 20), within=30)
                seen = len(diary.of(ConnectionReplaced))
                proxy.set(fault, connections="existing")
                begun = load.mark()
                await until(lambda: len(diary.of(ConnectionReplaced)) > seen, within=30)
                print(f"\n  {fault}: replaced after {load.mark() - begun:.2f} s")
                await until(functools.partial(has_executed, server, int(server.executed + rate)), within=30)
                proxy.heal()
        print(f"  {load.calls().summary()}")
        assert load.failures == {}, load.calls().errors


def test_the_connection_to_the_only_endpoint_falls_silent() -> None:
    """A new connection to the same server is tried, found good, and takes over; no call fails."""
    run(silent_connection_to_the_only_endpoint(RATE, QUICK))


def test_a_client_that_is_held_up_itself_blames_nobody() -> None:
    """Code that blocks the client's event loop for longer than a probe may wait costs no call, no server."""

    async def story() -> None:
        diary = Diary()
        # Probed soon, and judged late: what is tested is who is blamed, not how busy the machine is.
        health = HealthOptions(probe_after=0.3, probe_timeout=4.0)
        async with fleet(2) as servers, client_of(servers, diary, health=health) as client:
            await client.wait_ready("digits", every_endpoint=True)
            async with predicting(client) as load:
                for _ in range(3):
                    await until(
                        functools.partial(has_executed, servers[0], servers[0].executed + 5), within=30
                    )
                    time.sleep(0.8)  # noqa: ASYNC251 - this is the fault
            print(f"\n  {load.calls().summary()}")
            assert load.failures == {}, load.calls().errors
            assert not diary.of(EndpointEjected)
            assert not diary.of(ConnectionReplaced)

    run(story())


@pytest.mark.nightly
def test_connections_fall_silent_at_full_rate() -> None:
    """Both at 500 calls a second, with the settings that clients have by default."""
    run(silent_connections(FULL_RATE, HealthOptions()))
    run(silent_connection_to_the_only_endpoint(FULL_RATE, HealthOptions()))
