"""The resolver: when names are looked up, what follows from the answers, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import random
import socket
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import errors
from aioserving.resolver import Resolver, ResolverOptions, Schedule, SystemLookup, endpoints_of
from aioserving.targets import Target, parse_targets

OPTIONS = ResolverOptions()
NAME = Target("dns:///models:8500")


class Clock:
    """A clock that moves when told to, and wakes those who sleep on it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleeping: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, delay: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleeping.append((self.now + delay, future))
        await future

    @property
    def sleeping(self) -> int:
        return sum(not future.done() for _, future in self._sleeping)

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at every moment at which somebody wakes."""
        end = self.now + seconds
        await settle()
        while True:
            due = [when for when, future in self._sleeping if not future.done() and when <= end]
            if not due:
                break
            self.now = max(self.now, min(due))
            for when, future in self._sleeping:
                if when <= self.now and not future.done():
                    future.set_result(None)
            self._sleeping = [entry for entry in self._sleeping if not entry[1].done()]
            await settle()
        self.now = end
        await settle()


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(30):
        await asyncio.sleep(0)


class DNS:
    """Answers of names that change, fail or hang; remembers when they were asked for."""

    def __init__(self, clock: Clock, **answers: Any) -> None:
        self.clock = clock
        self.answers: dict[str, Any] = answers
        self.asked: list[tuple[str, float]] = []
        self.cancelled = 0
        self.under_way = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, self.clock.now))
        answer = self.answers[host]
        self.under_way += 1
        try:
            if answer == "hangs":
                await asyncio.get_running_loop().create_future()
            if isinstance(answer, asyncio.Future):
                answer = await asyncio.shield(answer)
            if isinstance(answer, BaseException):
                raise answer
            return list(answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    def times(self, host: str) -> list[float]:
        return [when - 1000 for name, when in self.asked if name == host]


class Stage:
    """A resolver on a fake clock, and all that it told."""

    def __init__(self, targets: str | Sequence[Target], **arguments: Any) -> None:
        self.clock = Clock()
        self.dns = DNS(self.clock, models=["10.0.0.1", "10.0.0.2"])
        self.changes: list[tuple[set[str], set[str]]] = []
        parsed = parse_targets(targets)
        arguments = {"options": OPTIONS, "random": lambda: 0.5, **arguments}
        self.resolver = Resolver(
            parsed, self.on_change, lookup=self.dns, clock=self.clock, sleep=self.clock.sleep, **arguments
        )

    def on_change(self, added: Sequence[Target], removed: Sequence[Target]) -> None:
        assert self.resolver.endpoints is not None
        self.changes.append(({t.address for t in added}, {t.address for t in removed}))

    @property
    def addresses(self) -> list[str]:
        return [endpoint.address for endpoint in self.resolver.endpoints]


def play(
    story: Callable[[Stage], Awaitable[None]], targets: Any = "dns:///models:8500", **arguments: Any
) -> None:
    """Run a story, close the resolver, and see that it left nothing behind."""

    async def run() -> None:
        stage = Stage(targets, **arguments)
        try:
            await story(stage)
        finally:
            await stage.resolver.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert stage.clock.sleeping == 0
        assert stage.dns.under_way == 0

    asyncio.run(run())


# -- the schedule -------------------------------------------------------------------------------------


def test_a_schedule_begins_at_once() -> None:
    """What was never looked up is due now."""
    assert Schedule().due == -math.inf


@given(st.floats(0, 1e6), st.floats(0, 1, exclude_max=True))
def test_success_is_followed_by_the_interval(now: float, draw: float) -> None:
    """The next lookup is one interval away, give or take the jitter, and failures are forgotten."""
    after = Schedule(failures=7).succeeded(now, OPTIONS, draw)
    assert 24 - 1e-6 <= after.due - now <= 36 + 1e-6
    assert (after.failures, after.ended) == (0, now)


@given(st.floats(0, 1e6), st.floats(0, 1, exclude_max=True), st.integers(0, 5000))
def test_failures_are_followed_by_growing_delays(now: float, draw: float, failures: int) -> None:
    """One second, two, four, up to thirty, give or take the jitter, and never below the least interval."""
    after = Schedule(failures=failures).failed(now, OPTIONS, draw)
    expected = min(2.0 ** min(failures, 10), 30)
    assert max(1, expected * 0.8) - 1e-6 <= after.due - now <= expected * 1.2 + 1e-6
    assert after.failures == failures + 1


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "fail", "request", "anyway"]), st.floats(0, 100)), max_size=50),
    st.randoms(use_true_random=False),
)
def test_lookups_are_never_closer_than_the_least_interval(
    events: list[tuple[str, float]], randomness: random.Random
) -> None:
    """Whatever happens in whatever order, nothing makes a lookup due sooner than it may be, or never."""
    schedule, now = Schedule(), 0.0
    for event, pause in events:
        now += pause
        before = schedule
        if event == "ok":
            schedule = schedule.succeeded(now, OPTIONS, randomness.random())
        elif event == "fail":
            schedule = schedule.failed(now, OPTIONS, randomness.random())
        else:
            schedule = schedule.requested(now, OPTIONS, anyway=event == "anyway")
            assert schedule.due <= before.due
            assert schedule.failures == before.failures
            if event == "request" and before.failures:
                assert schedule == before
            else:
                assert schedule.due <= max(now, before.ended + OPTIONS.min_interval)
        assert schedule.due >= schedule.ended + OPTIONS.min_interval or schedule.ended == -math.inf
        assert schedule.due <= now + 36 or schedule.ended == -math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval must be a number of seconds above 0"),
        ({"interval": math.inf}, "interval"),
        ({"timeout": math.nan}, "timeout"),
        ({"backoff": -1}, "backoff"),
        ({"min_interval": -1}, "min_interval must be a number of seconds, at least 0"),
        ({"jitter": 1}, "jitter must be at least 0 and below 1"),
        ({"backoff": 10, "max_backoff": 5}, "max_backoff, 5, is less than backoff, 10"),
    ],
)
def test_options_are_checked(arguments: dict[str, float], message: str) -> None:
    """Options that make no sense are refused, by name."""
    with pytest.raises(ValueError, match=message):
        ResolverOptions(**arguments)


# -- what follows from the answers ----------------------------------------------------------------------


def test_endpoints_carry_port_weight_and_name() -> None:
    """Each address of a name is an endpoint with the name's port and weight."""
    heavy = Target("dns:///a:1", 3)
    light = Target("dns:///b.:2", 0.5)
    found = endpoints_of([heavy, light], {heavy: ["10.0.0.1", "fd00::1"], light: ["10.0.0.1"]})
    assert found == (
        Target("10.0.0.1:1", 3, "a"),
        Target("[fd00::1]:1", 3, "a"),
        Target("10.0.0.1:2", 0.5, "b"),
    )


def test_an_address_is_one_endpoint() -> None:
    """What several names, or a name and a target, have in common is there once."""
    a, b, fixed = Target("dns:///a:1", 3), Target("dns:///b:1"), Target("10.0.0.9:1")
    answers = {a: ["10.0.0.1", "10.0.0.9"], b: ["10.0.0.2", "10.0.0.1"]}
    found = endpoints_of([a, fixed, b], answers)
    assert set(found) == {Target("10.0.0.1:1", 3, "a"), fixed, Target("10.0.0.2:1", 1, "b")}
    assert len(found) == 3


def test_an_address_keeps_its_name() -> None:
    """An endpoint in use is not made anew because another name has its address, too."""
    a, b = Target("dns:///a:1"), Target("dns:///b:1")
    in_use = endpoints_of([a, b], {b: ["10.0.0.1"]})
    assert endpoints_of([a, b], {a: ["10.0.0.1"], b: ["10.0.0.1"]}, in_use) == in_use
    assert endpoints_of([a, b], {a: ["10.0.0.1"], b: []}, in_use) == (Target("10.0.0.1:1", 1, "a"),)


addresses = st.lists(st.integers(0, 6).map(lambda n: f"10.0.0.{n}"), max_size=6)


@given(st.lists(st.tuples(addresses, addresses, addresses), max_size=8))
def test_differences_add_up(history: list[tuple[list[str], ...]]) -> None:
    """Whatever names answer over time, the endpoints are what they have now, each once."""
    targets = (Target("10.0.0.0:1"), *(Target(f"dns:///{name}:1") for name in "abc"))
    current = endpoints_of(targets, {})
    for answers in history:
        known = dict(zip(targets[1:], answers, strict=True))
        current = endpoints_of(targets, known, current)
        expected = {f"{ip}:1" for answer in answers for ip in answer} | {"10.0.0.0:1"}
        assert sorted(endpoint.key for endpoint in current) == sorted(expected)
        for endpoint in current:
            if endpoint.server_name is not None:
                assert (
                    endpoint.address.removesuffix(":1") in known[Target(f"dns:///{endpoint.server_name}:1")]
                )


# -- on a fake clock --------------------------------------------------------------------------------------


def test_first_looks_names_up() -> None:
    """The first use waits for the answer; later ones have it at once and ask nobody."""

    async def story(stage: Stage) -> None:
        assert stage.resolver.endpoints == ()
        assert "not started" in repr(stage.resolver)
        found = await stage.resolver.first()
        assert [endpoint.address for endpoint in found] == ["10.0.0.1:8500", "10.0.0.2:8500"]
        assert {endpoint.server_name for endpoint in found} == {"models"}
        assert stage.changes == [({"10.0.0.1:8500", "10.0.0.2:8500"}, set())]
        assert await stage.resolver.first() == found
        assert stage.dns.times("models") == [0]
        assert repr(stage.resolver) == "<Resolver of models:8500: 2 endpoints, up to date>"

    play(story)


def test_names_are_looked_up_periodically() -> None:
    """Every interval: additions and removals are told, another order is not."""

    async def story(stage: Stage) -> None:
        await stage.resolver.first()
        stage.dns.answers["models"] = ["10.0.0.2", "10.0.0.1"]
        await stage.clock.advance(30)
        assert len(stage.changes) == 1
        stage.dns.answers["models"] = ["10.0.0.2", "10.0.0.3"]
        await stage.clock.advance(30)
        assert stage.changes[1:] == [({"10.0.0.3:8500"}, {"10.0.0.1:8500"})]
        assert stage.addresses == ["10.0.0.2:8500", "10.0.0.3:8500"]
        await stage.clock.advance(29)
        assert stage.dns.times("models") == [0, 30, 60]

    play(story)


def test_jitter_spreads_clients() -> None:
    """Clients that start together do not go on together."""

    async def story(stage: Stage) -> None:
        await stage.resolver.first()
        await stage.clock.advance(100)
        assert stage.dns.times("models") == pytest.approx([0, 24, 48, 72, 96])

    play(story, random=lambda: 0.0)


def test_requests_bring_a_lookup_forward() -> None:
    """A failing endpoint makes its name be asked for soon, but once a second at most."""

    async def story(stage: Stage) -> None:
        stage.resolver.request()  # before the start: nothing to bring forward
        await stage.resolver.first()
        await stage.clock.advance(0.25)
        for _ in range(100):
            stage.resolver.request()
        await settle()
        assert stage.dns.times("models") == [0]
        await stage.clock.advance(0.75)
        assert stage.dns.times("models") == [0, 1]
        await stage.clock.advance(10)
        stage.resolver.request()
        await settle()
        assert stage.dns.times("models") == [0, 1, 11]
        await stage.clock.advance(29)
        assert stage.dns.times("models") == [0, 1, 11]
        await stage.clock.advance(1)
        assert stage.dns.times("models") == [0, 1, 11, 41]

    play(story)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OSError("no network"), "no network"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "Temporary failure"),
        (KeyError(), "KeyError"),
        ([], "it has no addresses"),
        (["10.0.0.1", "nonsense"], "'nonsense' does not appear to be an IPv4"),
        ("hangs", "no answer within 5 s"),
    ],
)
def test_failures_keep_what_is_known(answer: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """No failed, empty or hanging lookup removes an endpoint; it is tried again after growing delays."""

    async def story(stage: Stage) -> None:
        await stage.resolver.first()
        stage.dns.answers["models"] = answer
        await stage.clock.advance(200)
        waited = 5 if answer == "hangs" else 0
        starts = [30.0]
        for delay in (1, 2, 4, 8, 16, 30, 30):
            starts.append(starts[-1] + waited + delay)
        assert stage.dns.times("models")[1:9] == pytest.approx(starts)
        assert stage.addresses == ["10.0.0.1:8500", "10.0.0.2:8500"]
        assert len(stage.changes) == 1
        assert reason in stage.resolver.failures["dns:///models:8500"]
        assert reason in repr(stage.resolver)
        assert await stage.resolver.first() == stage.resolver.endpoints
        stage.resolver.request()  # leaves a failing name alone
        asked = len(stage.dns.asked)
        await stage.clock.advance(1)
        assert len(stage.dns.asked) <= asked + (answer == "hangs")
        stage.dns.answers["models"] = ["10.0.0.3"]
        await stage.clock.advance(40)
        assert stage.addresses == ["10.0.0.3:8500"]
        assert stage.resolver.failures == {}

    with caplog.at_level(logging.INFO, logger="aioserving.resolver"):
        play(story)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1  # once, not with every further failure
    assert "its 2 addresses stay in use" in told[0]
    assert any("is resolved again" in record.getMessage() for record in caplog.records)


def test_nothing_to_call() -> None:
    """If no name has an address, the error names the name and the reason, and does not wait for a retry."""

    async def story(stage: Stage) -> None:
        stage.dns.answers["models"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        with pytest.raises(errors.UnavailableError) as caught:
            await stage.resolver.first()
        assert "'models' cannot be resolved: Name or service not known" in str(caught.value)
        assert "Kubernetes" in str(caught.value)
        assert caught.value.endpoint == "dns:///models:8500"
        for _ in range(5):  # fails at once, with the same reason, without asking again
            with pytest.raises(errors.UnavailableError, match="not known"):
                await stage.resolver.first()
        assert stage.dns.times("models") == [0]
        for _ in range(6):  # asks again, as often as it may, as long as callers come
            await stage.clock.advance(1)
            with pytest.raises(errors.UnavailableError):
                await stage.resolver.first()
        assert stage.dns.times("models") == [0, 1, 2, 3, 4, 5, 6]
        stage.dns.answers["models"] = ["10.0.0.1"]
        await stage.clock.advance(1)
        assert len(await stage.resolver.first()) == 1

    play(story)


def test_the_deadline_of_the_first_call() -> None:
    """A caller waits until its deadline, not longer; the lookup goes on for others."""

    async def story(stage: Stage) -> None:
        answer = asyncio.get_running_loop().create_future()
        stage.dns.answers["models"] = answer
        short = asyncio.create_task(stage.resolver.first(stage.clock.now + 2))
        long = asyncio.create_task(stage.resolver.first(stage.clock.now + 4))
        with pytest.raises(errors.DeadlineExceededError, match="'models' was being looked up"):
            await stage.resolver.first(stage.clock.now - 1)
        await stage.clock.advance(1.9)
        assert not short.done()
        assert "1 being looked up" in repr(stage.resolver)
        await stage.clock.advance(0.2)
        with pytest.raises(errors.DeadlineExceededError, match="'models' was being looked up"):
            await short
        answer.set_result(["10.0.0.1"])
        await settle()
        assert [endpoint.address for endpoint in await long] == ["10.0.0.1:8500"]
        assert stage.dns.times("models") == [0]

    play(story)


def test_a_hanging_first_lookup_fails() -> None:
    """Without a deadline, too: after the lookup's own timeout."""

    async def story(stage: Stage) -> None:
        stage.dns.answers["models"] = "hangs"
        first = asyncio.create_task(stage.resolver.first())
        await stage.clock.advance(4.9)
        assert not first.done()
        await stage.clock.advance(0.2)
        with pytest.raises(errors.UnavailableError, match="no answer within 5 s"):
            await first
        assert stage.dns.cancelled == 1

    play(story)


def test_several_names() -> None:
    """Names are independent: one that hangs or fails holds up no other, and removes nothing of it."""

    async def story(stage: Stage) -> None:
        stage.dns.answers.update(a="hangs", b=["10.0.0.1"], c=OSError("broken"))
        found = await stage.resolver.first()
        assert found == (Target("10.0.0.1:2", 2, "b"),)
        stage.dns.answers.update(a=["10.0.1.1"], c=["10.0.2.1", "10.0.2.2"])
        await stage.clock.advance(10)
        assert set(stage.addresses) == {"10.0.1.1:1", "10.0.0.1:2", "10.0.2.1:3", "10.0.2.2:3"}
        assert [endpoint.weight for endpoint in stage.resolver.endpoints] == [1, 2, 3, 3]
        assert stage.resolver.failures == {}

    play(story, [Target("dns:///a:1", 1), Target("dns:///b:2", 2), Target("dns:///c:3", 3)])


def test_names_with_the_same_addresses() -> None:
    """A name that has what another one has changes nothing, until the other one has it no more."""

    async def story(stage: Stage) -> None:
        answer = asyncio.get_running_loop().create_future()
        stage.dns.answers.update(a=answer, b=["10.0.0.1"])
        await stage.resolver.first()
        answer.set_result(["10.0.0.1"])
        await settle()
        assert list(stage.resolver.endpoints) == [Target("10.0.0.1:1", 1, "b")]
        assert len(stage.changes) == 1
        stage.dns.answers.update(a=["10.0.0.1"], b=["10.0.0.2"])
        await stage.clock.advance(31)
        assert list(stage.resolver.endpoints) == [Target("10.0.0.1:1", 1, "a"), Target("10.0.0.2:1", 1, "b")]
        assert stage.changes[1:] == [({"10.0.0.1:1", "10.0.0.2:1"}, {"10.0.0.1:1"})]

    play(story, "dns:///a:1,dns:///b:1")


def test_all_of_several_names_fail() -> None:
    """The error of several names waits for all of them, and has every reason, up to three."""

    async def story(stage: Stage) -> None:
        stage.dns.answers.update({name: OSError(f"broken {name}") for name in "abcde"})
        stage.dns.answers["a"] = "hangs"
        first = asyncio.create_task(stage.resolver.first())
        await settle()
        assert not first.done()
        await stage.clock.advance(6)
        with pytest.raises(
            errors.UnavailableError, match="'a' cannot .*'b' .*broken b.*and 2 more names"
        ) as caught:
            await first
        assert caught.value.endpoint is None

    play(story, ",".join(f"dns:///{name}:1" for name in "abcde"))


def test_endpoints_that_are_no_names() -> None:
    """They are there from the beginning, whatever the names beside them do."""

    async def story(stage: Stage) -> None:
        stage.dns.answers["models"] = OSError("broken")
        assert stage.addresses == ["10.0.0.9:1"]
        assert len(await stage.resolver.first()) == 1  # has not waited for anything
        assert stage.dns.asked == []
        stage.resolver.start()
        await settle()
        assert stage.resolver.failures == {"dns:///models:1": "broken"}
        assert stage.addresses == ["10.0.0.9:1"]
        stage.dns.answers["models"] = ["10.0.0.1"]
        await stage.clock.advance(1)
        assert set(stage.addresses) == {"10.0.0.9:1", "10.0.0.1:1"}

    play(story, "10.0.0.9:1,dns:///models:1")


def test_no_names_at_all() -> None:
    """Without names it is a plain list: nothing runs, and it can be started and closed all the same."""

    async def story(stage: Stage) -> None:
        assert not stage.resolver.has_names
        stage.resolver.start()
        stage.resolver.request()
        assert len(await stage.resolver.first()) == 2
        assert len(await stage.resolver.resolve_now()) == 2
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert "no names: 2 endpoints" in repr(stage.resolver)

    play(story, "a:1,b:1")
    with pytest.raises(ValueError, match="at least one"):
        Resolver([])


def test_resolve_now() -> None:
    """It looks names up whatever the schedule says, joins a lookup under way, and gives what is known."""

    async def story(stage: Stage) -> None:
        assert len(await stage.resolver.resolve_now()) == 2
        stage.dns.answers["models"] = ["10.0.0.3"]
        assert [endpoint.address for endpoint in await stage.resolver.resolve_now()] == ["10.0.0.3:8500"]
        assert stage.dns.times("models") == [0, 0]
        stage.dns.answers["models"] = OSError("broken")
        assert [endpoint.address for endpoint in await stage.resolver.resolve_now()] == ["10.0.0.3:8500"]
        assert stage.resolver.failures == {"dns:///models:8500": "broken"}
        answer = asyncio.get_running_loop().create_future()
        stage.dns.answers["models"] = answer
        both = [asyncio.create_task(stage.resolver.resolve_now()) for _ in range(2)]
        await settle()
        with pytest.raises(errors.DeadlineExceededError):
            await stage.resolver.resolve_now(stage.clock.now)
        answer.set_result(["10.0.0.4"])
        assert (await both[0])[0].address == (await both[1])[0].address == "10.0.0.4:8500"
        assert len(stage.dns.asked) == 4
        await stage.clock.advance(30)
        assert len(stage.dns.asked) == 5

    play(story)


def test_resolve_now_without_any_answer() -> None:
    """There has to be something in the end."""

    async def story(stage: Stage) -> None:
        stage.dns.answers["models"] = []
        with pytest.raises(errors.UnavailableError, match="it has no addresses"):
            await stage.resolver.resolve_now()

    play(story)


def test_a_callback_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It is told in the log, and lookups go on."""

    async def story() -> None:
        clock = Clock()
        dns = DNS(clock, models=["10.0.0.1"])

        def fail(added: Sequence[Target], removed: Sequence[Target]) -> None:
            raise RuntimeError("mistake in the callback")

        resolver = Resolver([NAME], fail, lookup=dns, clock=clock, sleep=clock.sleep, random=lambda: 0.5)
        assert len(await resolver.first()) == 1
        await clock.advance(31)
        assert len(dns.asked) == 2
        await resolver.aclose()

    asyncio.run(story())
    assert "mistake in the callback" in caplog.text


# -- ends ---------------------------------------------------------------------------------------------------


def test_closing() -> None:
    """It ends what is under way, also for those who wait, and refuses to start again."""

    async def story(stage: Stage) -> None:
        stage.dns.answers["models"] = "hangs"
        waiting = [
            asyncio.create_task(stage.resolver.first()),
            asyncio.create_task(stage.resolver.first(stage.clock.now + 10)),
            asyncio.create_task(stage.resolver.resolve_now()),
        ]
        await settle()
        await asyncio.gather(stage.resolver.aclose(), stage.resolver.aclose())
        for task in waiting:
            with pytest.raises(errors.ClientClosedError):
                await task
        for method in (stage.resolver.first, stage.resolver.resolve_now):
            with pytest.raises(errors.ClientClosedError):
                await method()
        with pytest.raises(errors.ClientClosedError):
            stage.resolver.start()
        stage.resolver.request()
        assert "closed" in repr(stage.resolver)

    play(story)


def test_closing_before_anything() -> None:
    """What was never started can be closed."""

    async def story(stage: Stage) -> None:
        await stage.resolver.aclose()
        assert stage.dns.asked == []

    play(story)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_cancellation_at_any_point(data: st.DataObject) -> None:
    """However callers come, go and are cancelled, others get their answer, and nothing is left behind."""

    async def story(stage: Stage) -> None:
        stage.dns.answers.update(a=["10.0.0.1"], b=OSError("broken"))
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(data.draw(st.integers(1, 25))):
            action = data.draw(
                st.sampled_from(["first", "now", "cancel", "time", "step", "answer", "request"])
            )
            if action == "first":
                deadline = data.draw(st.none() | st.floats(0, 10))
                deadline = None if deadline is None else stage.clock.now + deadline
                tasks.append(asyncio.create_task(stage.resolver.first(deadline)))
            elif action == "now":
                tasks.append(asyncio.create_task(stage.resolver.resolve_now()))
            elif action == "cancel" and tasks:
                data.draw(st.sampled_from(tasks)).cancel()
            elif action == "time":
                await stage.clock.advance(data.draw(st.sampled_from([0.5, 1, 5, 40])))
            elif action == "step":
                for _ in range(data.draw(st.integers(1, 6))):
                    await asyncio.sleep(0)
            elif action == "answer":
                name = data.draw(st.sampled_from("ab"))
                stage.dns.answers[name] = data.draw(
                    st.sampled_from([["10.0.0.1"], ["10.0.0.2", "10.0.0.3"], [], OSError("broken"), "hangs"])
                )
            else:
                stage.resolver.request()
        stage.dns.answers.update(a=["10.0.0.1"], b=["10.0.0.2"])
        await stage.clock.advance(60)
        assert set(stage.addresses) == {"10.0.0.1:1", "10.0.0.2:1"} or not stage.dns.asked
        assert len(await stage.resolver.resolve_now()) == 2
        told: set[str] = set()
        for added, removed in stage.changes:
            assert removed <= told
            assert not added & (told - removed)
            told = (told - removed) | added
        assert told == set(stage.addresses)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(
                outcome,
                (tuple, errors.UnavailableError, errors.DeadlineExceededError, asyncio.CancelledError),
            )

    play(story, "dns:///a:1,dns:///b:1")


@pytest.mark.parametrize("steps", range(12))
def test_closing_at_any_point(steps: int) -> None:
    """Closed after any number of steps of a lookup, it leaves no task behind; `play` looks."""

    async def story(stage: Stage) -> None:
        first = asyncio.create_task(stage.resolver.first())
        for _ in range(steps):
            await asyncio.sleep(0)
        await stage.resolver.aclose()
        with contextlib.suppress(errors.ClientClosedError):
            await first

    play(story)


def test_the_owner_is_not_kept_alive() -> None:
    """A running resolver does not keep the object alive whose method it calls, so that one can be missed."""

    class Owner:
        def __init__(self) -> None:
            self.clock = Clock()
            self.dns = DNS(self.clock, models=["10.0.0.1"])
            self.resolver = Resolver(
                [NAME], self.changed, lookup=self.dns, clock=self.clock, sleep=self.clock.sleep
            )

        def changed(self, added: Sequence[Target], removed: Sequence[Target]) -> None:
            self.added = added

    async def story() -> None:
        owner = Owner()
        await owner.resolver.first()
        assert len(owner.added) == 1
        clock, resolver, reference = owner.clock, owner.resolver, weakref.ref(owner)
        del owner
        gc.collect()
        assert reference() is None
        await clock.advance(40)  # nobody to tell, and nothing wrong
        resolver.abandon()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_abandoning_after_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """A resolver whose loop was closed under it can be let go of, without a word about tasks."""
    loop = asyncio.new_event_loop()
    resolver = Resolver([Target("dns:///localhost:1")])
    loop.run_until_complete(resolver.first())
    loop.close()
    resolver.abandon()
    resolver.abandon()
    assert "closed" in repr(resolver)
    del resolver
    gc.collect()
    assert caplog.records == []


def test_the_callers_context_is_not_kept() -> None:
    """The tasks that go on for as long as the client do not hold what belonged to the first request."""
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def story() -> None:
        seen = []

        async def lookup(host: str, port: int) -> list[str]:
            seen.append(variable.get("nothing"))
            return ["10.0.0.1"]

        variable.set("the first request's")
        resolver = Resolver([NAME], lookup=lookup)
        await resolver.first()
        await resolver.aclose()
        assert seen == ["nothing"]

    asyncio.run(story())


# -- the system's lookup ---------------------------------------------------------------------------


def test_localhost() -> None:
    """The system's lookup gives every address of a name once, and those can be connected to."""

    async def story() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        resolver = Resolver([Target(f"dns:///localhost:{port}")])
        found = await resolver.first(asyncio.get_running_loop().time() + 10)
        assert Target(f"127.0.0.1:{port}", 1, "localhost") in found
        assert {endpoint.host for endpoint in found} <= {"127.0.0.1", "::1"}
        assert len({endpoint.key for endpoint in found}) == len(found)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        await resolver.aclose()
        server.close()
        await server.wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_an_unknown_name() -> None:
    """What the system says about a name that cannot exist is the reason in the error."""

    async def story() -> None:
        resolver = Resolver([Target("dns:///nowhere.invalid:1")])
        with pytest.raises(errors.UnavailableError, match=r"'nowhere\.invalid' cannot be resolved: \w+"):
            await resolver.first(asyncio.get_running_loop().time() + 10)
        await resolver.aclose()

    asyncio.run(story())


def test_a_hanging_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a name is looked up while the system hangs, it takes one thread; the answer is used."""
    release = threading.Event()
    calls = []

    def slow(host: str, *arguments: Any, **options: Any) -> list[Any]:
        calls.append(host)
        assert release.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 8500))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def story() -> None:
        options = ResolverOptions(timeout=0.02, backoff=0.01, max_backoff=0.01, min_interval=0, jitter=0)
        resolver = Resolver([NAME], options=options)
        for _ in range(5):
            with pytest.raises(errors.UnavailableError, match="no answer within 0.02 s"):
                await resolver.resolve_now()
        assert calls == ["models"]
        release.set()
        while not resolver.endpoints:
            await asyncio.sleep(0.005)
        assert calls[:1] == ["models"]
        await resolver.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_a_late_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An error that comes when nobody waits for it any longer is not reported as one that was forgotten."""
    release = threading.Event()

    def fail(*arguments: Any, **options: Any) -> list[Any]:
        assert release.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    async def story() -> None:
        lookup = SystemLookup()
        waiting = asyncio.ensure_future(lookup("models", 1))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait((waiting,))
        release.set()
        while repr(lookup) != "<SystemLookup, 0 under way>":
            await asyncio.sleep(0.005)
        gc.collect()
        await lookup.aclose()

    asyncio.run(story())
    assert caplog.records == []


def test_closing_while_the_system_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for the system, and leaves no task, nor a word about one."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])

    async def story() -> None:
        resolver = Resolver([NAME])
        lookup = SystemLookup()
        first = asyncio.create_task(resolver.first())
        mine = asyncio.create_task(lookup("models", 1))
        await asyncio.sleep(0.02)
        assert repr(lookup) == "<SystemLookup, 1 under way>"
        await asyncio.wait_for(resolver.aclose(), 5)
        await asyncio.wait_for(lookup.aclose(), 5)
        with pytest.raises(errors.ClientClosedError):
            await first
        with pytest.raises(asyncio.CancelledError):
            await mine
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert repr(lookup) == "<SystemLookup, 0 under way>"
        release.set()

    asyncio.run(story())
