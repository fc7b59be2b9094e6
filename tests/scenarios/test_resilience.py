"""Fleets of real server processes that restart, die, hang, lose models and come back, under steady load.

Each story is run twice: bounded, with every run of the tests, where nothing is asserted that hangs on how
busy the machine is (no call fails, where traffic goes, what is told); and at full rate behind the marker
``nightly``, where the times that are promised are held to, too. Both print what they measured (``-s``).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from aioserving import AsyncClient
from aioserving.balancing import BalancingOptions
from aioserving.events import (
    EndpointEjected,
    EndpointReturned,
    Event,
    ModelFound,
    ModelMissing,
)
from aioserving.health import HealthOptions
from aioserving.prediction import PredictResult

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


async def rolling_restart(rate: float, calm: float, rounds: int) -> tuple[float, float]:
    """Restart three servers one after the other; gives p99 before and during, in seconds."""
    diary = Diary()
    async with fleet(3) as servers, client_of(servers, diary) as client:
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
    before, during = run(rolling_restart(FULL_RATE, calm=15.0, rounds=3), 110)
    print(f"  p99 {before * 1e3:.2f} ms before, {during * 1e3:.2f} ms during: {during / before:.2f} x")
    assert during <= 3 * before


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
    assert shares[0] < 0.2 < shares[3] + shares[2]


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
        assert shares[0] < shares[1] < shares[3]


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
