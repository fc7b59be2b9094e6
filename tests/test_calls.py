"""Whole calls: retries, hedges, circuit and credentials around the pool, on a fleet in memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aioserving import errors
from aioserving._types import Metadata
from aioserving.calls import Answer, Calls
from aioserving.circuit import CircuitOptions
from aioserving.events import (
    CallEnded,
    CallHedged,
    CallRefused,
    CallRetried,
    CircuitClosed,
    CircuitOpened,
    CredentialsRefreshed,
    ModelMissing,
)
from aioserving.health import HealthOptions
from aioserving.hedging import HedgingPolicy
from aioserving.monitor import watch
from aioserving.observers import Observers
from aioserving.pool import Endpoint, Place
from aioserving.retry import NO_RETRIES, RetryPolicy
from aioserving.security import Credentials
from tests.fakes import PREDICT, Events, Fleet, make_pool, run, turns

MODEL = Place("half_plus_two")
PREVIOUS = "grpc-previous-rpc-attempts"

#: A hedge after 50 ms, as long as the budget has something; and calls that pay for it in full.
HEDGING = HedgingPolicy(delay=0.05, max_extra_load=1.0)


class Client:
    """What a client is made of, less what it knows of models and tensors."""

    def __init__(
        self,
        *targets: str,
        retry: RetryPolicy | None = None,
        hedging: HedgingPolicy | None = None,
        circuit: CircuitOptions | None = None,
        credentials: Credentials | None = None,
        metadata: Metadata = (),
        **options: Any,
    ) -> None:
        self.events = Events()
        self.fleet = Fleet(*targets)
        self.pool = make_pool(self.fleet, events=self.events, **options)
        self.explained: list[str] = []
        self.calls = Calls(
            self.pool,
            retry=retry or RetryPolicy(),
            hedging=hedging,
            circuit=circuit or CircuitOptions(),
            credentials=credentials,
            metadata=metadata,
            observers=Observers([self.events.observe]),
            ensure_endpoints=self._ensure,
            explain=lambda error, endpoint: self.explained.append(endpoint.target),
            random=random.Random(7),
        )
        self.calls.clock = self.pool.clock
        self.record = self.calls.record(MODEL.model)
        self.monitor = watch(self.pool, self._has)
        self.ensured = 0

    async def _ensure(self, deadline: float | None) -> None:
        self.ensured += 1

    async def _has(self, endpoint: Endpoint, place: Place, timeout: float) -> bool:
        return False

    @property
    def now(self) -> float:
        return self.pool.clock()

    async def call(
        self, timeout: float | None = 10.0, request: bytes = b"x", metadata: Metadata = ()
    ) -> Answer:
        deadline = None if timeout is None else self.now + timeout
        return await self.calls.call(PREDICT, request, deadline, MODEL, self.record, metadata)

    async def once(self, timeout: float | None = 10.0, endpoint: Endpoint | None = None) -> Answer:
        deadline = None if timeout is None else self.now + timeout
        return await self.calls.call_once(PREDICT, b"x", deadline, MODEL.model, (), endpoint)

    async def fails(self, timeout: float | None = 10.0) -> errors.RPCError:
        with pytest.raises(errors.RPCError) as caught:
            await self.call(timeout)
        return caught.value

    def check_books(self) -> None:
        assert self.pool.in_flight == self.pool.waiting == 0
        for connection in self.pool.connections():
            assert connection.in_flight == 0
        assert not [endpoint for endpoint in self.pool.endpoints if endpoint.in_flight]
        assert not self.calls._tasks


@contextlib.asynccontextmanager
async def client(*targets: str, **options: Any) -> AsyncIterator[Client]:
    it = Client(*targets, **options)
    yield it
    await turns()
    it.check_books()
    await it.pool.close(0.0)
    await it.monitor.aclose()
    await it.calls.aclose()
    assert not it.fleet.leaked()


def warm(it: Client) -> None:
    """Pay for some hedges and retries."""
    for _ in range(20):
        it.calls._budget.deposit(it.now)
        if it.record.hedging is not None:
            it.record.hedging.delay(it.now)


def codes(answer: Answer | errors.RPCError) -> list[tuple[str, str]]:
    attempts = answer.attempts if isinstance(answer, errors.RPCError) else answer[1]
    return [(attempt.target, attempt.code) for attempt in attempts]


# -- without a fault ------------------------------------------------------------------------------------


def test_a_call_without_a_fault_is_one_attempt() -> None:
    """The response, the story of one attempt, its metadata, the counts and the one event."""

    async def story() -> None:
        async with client("a:1", metadata=(("x-team", "fruit"),)) as it:
            answer = await it.call(metadata=(("x-call", "7"),))
            assert answer[0] == b"x!"
            (attempt,) = answer[1]
            assert (attempt.target, attempt.code, attempt.hedge) == ("a:1", "OK", False)
            assert attempt.seconds == pytest.approx(0.01)
            ((_, request, metadata),) = it.fleet["a:1"].calls
            assert request == b"x"
            assert metadata == {"x-team": "fruit", "x-call": "7"}
            (stats,) = it.calls.stats()
            assert (stats.calls, stats.errors, stats.retries, stats.hedges) == (1, 0, 0, 0)
            assert str(stats).startswith("half_plus_two: 1 call")
            (ended,) = it.events
            assert isinstance(ended, CallEnded)
            assert (ended.code, ended.method, ended.attempts) == ("OK", "Predict", answer[1])

    run(story())


def test_a_client_without_endpoints_waits_for_some() -> None:
    """The resolver is asked, and the deadline holds meanwhile."""

    async def story() -> None:
        async with client() as it:
            with pytest.raises(errors.DeadlineExceededError):
                await it.call(0.5)
            assert it.ensured == 1

    run(story())


# -- retries --------------------------------------------------------------------------------------------


def test_a_call_made_once_tells_what_may_have_cost_it_its_connection() -> None:
    """Advice on TLS and proxies belongs to statuses and reloads as well."""

    async def story() -> None:
        async with client("a:1") as it:
            it.fleet["a:1"].down = True
            with pytest.raises(errors.UnavailableError):
                await it.once()
            assert it.explained == ["a:1"]

    run(story())


def test_a_lost_connection_is_answered_elsewhere_at_once() -> None:
    """The other endpoint is asked without a pause, told which attempt it is, and the story is told."""

    async def story() -> None:
        async with client("a:1", "b:1") as it:
            it.fleet["a:1"].down = True
            begun = it.now
            answer = await it.call()
            assert codes(answer) == [("a:1", "UNAVAILABLE"), ("b:1", "OK")]
            assert it.now - begun == pytest.approx(0.01, abs=0.001)
            assert PREVIOUS not in it.fleet["a:1"].calls[0][2]
            assert it.fleet["b:1"].calls[0][2][PREVIOUS] == "1"
            (retried,) = it.events.of(CallRetried)
            assert (retried.attempt.target, retried.delay) == ("a:1", 0.0)
            assert it.explained == ["a:1"]
            assert it.record.retries == 1

    run(story())


def test_every_endpoint_is_tried_before_one_is_tried_again() -> None:
    """With three endpoints, the first three attempts go to three of them."""

    async def story() -> None:
        async with client("a:1", "b:1", "c:1") as it:
            for server in it.fleet.servers.values():
                server.rule = lambda request: errors.ResourceExhaustedError("full")
            error = await it.fails()
            assert [target for target, _ in codes(error)[:3]] == ["a:1", "b:1", "c:1"]
            assert len(error.attempts) == 4
            assert error.gave_up == "all 4 attempts are used up"
            assert [calls[2].get(PREVIOUS) for calls in it.fleet["c:1"].calls][:1] == ["2"]
            assert (error.model, error.method) == ("half_plus_two", "Predict")
            assert it.record.errors == 1

    run(story())


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgumentError("wrong"),
        errors.InternalError("broken"),
        errors.UnknownError("?"),
        errors.PermissionDeniedError("no"),
        errors.MessageTooLargeError("large"),
        errors.DeadlineExceededError("the server's own"),
    ],
)
def test_what_would_end_the_same_way_is_not_repeated(error: errors.RPCError) -> None:
    """One attempt, and the server's error as it is."""

    async def story() -> None:
        async with client("a:1", "b:1") as it:
            it.fleet["a:1"].rule = it.fleet["b:1"].rule = lambda request: error
            raised = await it.fails()
            assert raised is error
            assert len(raised.attempts) == 1

    run(story())


def test_a_busy_server_is_asked_again_after_a_pause_within_the_deadline() -> None:
    """Backoff keeps within its bounds, and a retry that would come too late is not made."""

    async def story() -> None:
        retry = RetryPolicy(max_attempts=10, initial_backoff=0.4, max_backoff=0.4)
        async with client("a:1", retry=retry) as it:
            it.fleet["a:1"].rule = lambda request: errors.ResourceExhaustedError("full")
            begun = it.now
            error = await it.fails(0.5)
            assert it.now - begun <= 0.5
            assert error.code == "RESOURCE_EXHAUSTED"
            assert error.gave_up.startswith("no time left")
            assert all(event.delay <= 0.4 for event in it.events.of(CallRetried))

    run(story())


@pytest.mark.parametrize(("pushback", "attempts"), [(0.3, 2), (-1.0, 1)])
def test_the_server_says_when_to_try_again(pushback: float, attempts: int) -> None:
    """A pause that it asks for is kept exactly; if it asks for none at all, there is none."""

    async def story() -> None:
        async with client("a:1") as it:
            busy = errors.ResourceExhaustedError("full")
            busy.pushback = pushback
            it.fleet["a:1"].script.append(busy)
            begun = it.now
            if attempts == 2:
                await it.call()
                assert it.now - begun == pytest.approx(0.32, abs=0.001)
            else:
                assert (await it.fails()).gave_up == "the server asked not to retry"
            assert len(it.fleet["a:1"].calls) == attempts

    run(story())


def test_retries_stop_when_the_budget_is_used_up() -> None:
    """A fleet that fails gets its calls once, and a share of them again."""

    async def story() -> None:
        async with client("a:1", health=HealthOptions(consecutive_failures=0)) as it:
            it.fleet["a:1"].rule = lambda request: errors.ResourceExhaustedError("full")
            raised = [await it.fails() for _ in range(100)]
            assert len(it.fleet["a:1"].calls) <= 100 * 1.15 + 10 + 3
            assert "the retry budget is empty" in raised[-1].gave_up
            assert "the retry budget is empty" in str(raised[-1])

    run(story())


def test_without_retries_there_is_one_attempt() -> None:
    """`NO_RETRIES` means none, and the error says so."""

    async def story() -> None:
        async with client("a:1", "b:1", retry=NO_RETRIES) as it:
            it.fleet["a:1"].down = True
            error = await it.fails()
            assert codes(error) == [("a:1", "UNAVAILABLE")]
            assert error.gave_up == "retries are switched off"

    run(story())


def test_an_attempt_has_a_time_of_its_own() -> None:
    """`attempt_timeout` ends an attempt that hangs in favour of another endpoint."""

    async def story() -> None:
        async with client("a:1", "b:1", retry=RetryPolicy(attempt_timeout=0.2)) as it:
            it.fleet["a:1"].rule = lambda request: None
            begun = it.now
            answer = await it.call()
            assert codes(answer) == [("a:1", "DEADLINE_EXCEEDED"), ("b:1", "OK")]
            assert it.now - begun == pytest.approx(0.21, abs=0.001)

    run(story())


def test_a_call_that_is_sent_once_has_all_its_time_for_one_attempt() -> None:
    """`call_once` is cut off by its deadline only, and never repeated, whatever the circuit says."""

    async def story() -> None:
        async with client("a:1", "b:1", retry=RetryPolicy(attempt_timeout=0.2)) as it:
            it.fleet["a:1"].latency = it.fleet["b:1"].latency = 1.0
            assert codes(await it.once()) == [("a:1", "OK")]
            assert codes(await it.once(10.0, it.pool.endpoints[0])) == [("a:1", "OK")]
            it.fleet["b:1"].down = True
            with pytest.raises(errors.UnavailableError) as caught:
                await it.once(10.0, it.pool.endpoints[1])
            assert codes(caught.value) == [("b:1", "UNAVAILABLE")]
            it.pool.on_outage()
            assert it.calls.circuit_state == "open"
            assert (await it.once())[0] == b"x!"

    run(story())


def test_a_deadline_that_has_passed_sends_nothing() -> None:
    """Neither does a retry whose time is over when its turn comes."""

    async def story() -> None:
        async with client("a:1") as it:
            error = await it.fails(0.0)
            assert error.code == "DEADLINE_EXCEEDED"
            assert not it.fleet["a:1"].calls

    run(story())


# -- models ---------------------------------------------------------------------------------------------


def test_a_model_that_is_missing_at_one_endpoint_is_asked_for_at_the_others() -> None:
    """The call is answered, and the next one does not go there at all."""

    async def story() -> None:
        async with client("a:1", "b:1") as it:
            it.fleet["a:1"].rule = lambda request: errors.ModelNotFoundError("none")
            assert codes(await it.call()) == [("a:1", "NOT_FOUND"), ("b:1", "OK")]
            assert [event.target for event in it.events.of(ModelMissing)] == ["a:1"]
            assert codes(await it.call()) == [("b:1", "OK")]

    run(story())


def test_a_model_that_nobody_has_is_missing_nowhere() -> None:
    """A wrong name says nothing about endpoints: all are asked, none is marked, the server's error stays."""

    async def story() -> None:
        async with client("a:1", "b:1") as it:
            for server in it.fleet.servers.values():
                server.rule = lambda request: errors.ModelNotFoundError("none")
            error = await it.fails()
            assert codes(error) == [("a:1", "NOT_FOUND"), ("b:1", "NOT_FOUND")]
            assert isinstance(error, errors.ModelNotFoundError)
            assert not it.events.of(ModelMissing)

    run(story())


def test_an_endpoint_that_gets_the_model_meanwhile_is_not_marked() -> None:
    """Who did not have it at first and answered in the end has it."""

    async def story() -> None:
        async with client("a:1", "b:1") as it:
            it.fleet["a:1"].script.append(errors.ModelNotFoundError("loading"))
            it.fleet["b:1"].rule = lambda request: errors.ResourceExhaustedError("full")
            warm(it)
            answer = await it.call()
            assert answer[1][-1].target == "a:1"
            assert not it.events.of(ModelMissing)

    run(story())


# -- credentials ----------------------------------------------------------------------------------------


class Tokens(Credentials):
    """Gives "old" until it is refused, then "new"; or has nothing until it is refreshed."""

    def __init__(self, *, slow: float | None = None, stubborn: bool = False) -> None:
        self.token = "old"
        self.slow = slow
        self.stubborn = stubborn
        self.refused: list[Metadata] = []

    def metadata(self) -> Metadata | None:
        return None if self.slow is not None else (("authorization", f"Bearer {self.token}"),)

    async def refresh(self) -> None:
        assert self.slow is not None
        await asyncio.sleep(self.slow)
        self.slow = None

    def invalidate(self, sent: Metadata) -> bool:
        self.refused.append(sent)
        self.token = "new"
        return not self.stubborn


@pytest.mark.parametrize("stubborn", [False, True])
def test_refused_credentials_are_refreshed_once(stubborn: bool) -> None:
    """A second UNAUTHENTICATED, or credentials that have nothing else, end the call."""

    async def story() -> None:
        tokens = Tokens(stubborn=stubborn)
        async with client("a:1", credentials=tokens, retry=NO_RETRIES) as it:
            it.fleet["a:1"].script.append(errors.UnauthenticatedError("expired"))
            if stubborn:
                assert (await it.fails()).code == "UNAUTHENTICATED"
            else:
                assert codes(await it.call()) == [("a:1", "UNAUTHENTICATED"), ("a:1", "OK")]
                sent = [call[2]["authorization"] for call in it.fleet["a:1"].calls]
                assert sent == ["Bearer old", "Bearer new"]
            assert tokens.refused == [(("authorization", "Bearer old"),)]
            assert len(it.events.of(CredentialsRefreshed)) == (0 if stubborn else 1)
            it.fleet["a:1"].rule = lambda request: errors.UnauthenticatedError("never")
            before = len(it.fleet["a:1"].calls)
            error = await it.fails()
            assert len(it.fleet["a:1"].calls) - before == (1 if stubborn else 2)
            assert "Bearer" not in str(error) + repr(it.events) + repr(it.calls)

    run(story())


def test_credentials_that_do_not_come_in_time_end_the_call() -> None:
    """Fetching them shares the deadline; nothing is sent, and no room is taken meanwhile."""

    async def story() -> None:
        async with client("a:1", credentials=Tokens(slow=5.0)) as it:
            error = await it.fails(1.0)
            assert error.code == "DEADLINE_EXCEEDED"
            assert "nothing was sent" in error.details
            assert not it.fleet["a:1"].calls

    run(story())


# -- the circuit ----------------------------------------------------------------------------------------


def test_the_circuit_opens_fails_fast_and_closes() -> None:
    """One event when it opens, however many probes fail, and one when the fleet is back within 2 s."""

    async def story() -> None:
        async with client("a:1", "b:1") as it:
            for server in it.fleet.servers.values():
                server.down, server.latency = True, 0.0
            while it.calls.circuit_state == "closed":
                await it.fails(1.0)
                await asyncio.sleep(0.02)
            opened_at, sent = it.now, sum(len(s.calls) for s in it.fleet.servers.values())
            refused = 0
            while it.now < opened_at + 10:
                error = await it.fails(1.0)
                refused += not error.attempts
                await asyncio.sleep(0.02)
            assert refused > 450
            assert sum(len(s.calls) for s in it.fleet.servers.values()) - sent < 40
            assert len(it.events.of(CircuitOpened)) == 1
            error = errors.UnavailableError("")
            while error.attempts or not error.details:
                error = await it.fails(1.0)
            assert error.details.startswith("nothing was sent, because nothing answers")
            assert "a:1: unreachable" in error.details
            assert (error.model, error.method) == ("half_plus_two", "Predict")
            for server in it.fleet.servers.values():
                server.down = False
            back = it.now
            while it.calls.circuit_state != "closed":
                await asyncio.sleep(0.05)
            assert it.now - back < 2.0
            (closed,) = it.events.of(CircuitClosed)
            assert closed.seconds == pytest.approx(it.now - opened_at, abs=0.2)
            assert (await it.call())[0] == b"x!"

    run(story())


def test_a_fleet_that_swallows_everything_opens_the_circuit_too() -> None:
    """Where calls end by deadline only, probes find out; a probe call that times out does not close it."""

    async def story() -> None:
        async with client("a:1", "b:1", retry=NO_RETRIES) as it:
            for server in it.fleet.servers.values():
                server.silent = True

            begun = it.now

            async def caller() -> None:
                while it.now < begun + 12:
                    with contextlib.suppress(errors.RPCError):
                        await it.call(0.4)
                    await asyncio.sleep(0.05)

            callers = [asyncio.create_task(caller()) for _ in range(4)]
            await asyncio.sleep(6.5)
            assert it.calls.circuit_state != "closed"
            await asyncio.gather(*callers)
            assert it.calls.circuit_state != "closed"
            assert len(it.events.of(CircuitOpened)) == 1
            for server in it.fleet.servers.values():
                server.silent = False
            await asyncio.sleep(2.2)
            assert it.calls.circuit_state == "closed"
            assert (await it.call(1.0))[0] == b"x!"

    run(story())


def test_answers_of_any_kind_keep_the_circuit_closed() -> None:
    """A server that refuses every request is there."""

    async def story() -> None:
        async with client("a:1") as it:
            it.fleet["a:1"].rule = lambda request: errors.InvalidArgumentError("wrong")
            for _ in range(200):
                await it.fails()
            assert it.calls.circuit_state == "closed"

    run(story())


def test_a_call_that_fails_while_the_circuit_opens_says_why_it_ends() -> None:
    """Its own failure is the error, with the reason that there was no further attempt."""

    async def story() -> None:
        async with client("a:1") as it:
            busy = errors.ResourceExhaustedError("full")
            busy.pushback = 0.02
            it.fleet["a:1"].script.append(busy)
            call = asyncio.create_task(it.fails())
            await asyncio.sleep(0.025)
            it.pool.on_outage()
            error = await call
            assert codes(error) == [("a:1", "RESOURCE_EXHAUSTED")]
            assert "nothing answers any more, so it was not sent again" in str(error)

    run(story())


def test_a_probe_that_is_cancelled_makes_room_for_the_next() -> None:
    """A caller that gives up does not leave the circuit half open."""

    async def story() -> None:
        async with client("a:1") as it:
            it.pool.on_outage()
            await asyncio.sleep(1.0)
            it.fleet["a:1"].rule = lambda request: None
            call = asyncio.create_task(it.call())
            await asyncio.sleep(0.05)
            assert it.calls.circuit_state == "half-open"
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert it.calls.circuit_state == "open"
            it.fleet["a:1"].rule = lambda request: b"y"
            await asyncio.sleep(1.0)
            assert (await it.call())[0] == b"y"
            assert it.calls.circuit_state == "closed"

    run(story())


# -- overload -------------------------------------------------------------------------------------------


def test_a_call_that_cannot_wait_is_refused_and_told() -> None:
    """With all room taken and the line full, the caller fails at once."""

    async def story() -> None:
        async with client("a:1", max_in_flight=1, max_waiting=1) as it:
            first, second = (asyncio.create_task(it.call()) for _ in range(2))
            await turns()
            begun = it.now
            error = await it.fails()
            assert error.code == "RESOURCE_EXHAUSTED"
            assert it.now == begun
            (refused,) = it.events.of(CallRefused)
            assert "max_waiting=1" in refused.reason
            assert (await first)[0] == (await second)[0] == b"x!"

    run(story())


# -- hedging --------------------------------------------------------------------------------------------


def test_no_hedge_where_the_first_is_in_time() -> None:
    """An answer within the delay costs no second attempt."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            assert codes(await it.call()) == [("a:1", "OK")]
            await asyncio.sleep(1)
            assert not it.fleet["b:1"].calls

    run(story())


def test_the_hedge_wins_when_the_first_is_late() -> None:
    """The caller has the second's answer; the first is ended, and blamed by nobody."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            it.fleet["a:1"].latency = 5.0
            begun = it.now
            answer = await it.call()
            assert it.now - begun == pytest.approx(0.06, abs=0.001)
            assert codes(answer) == [("a:1", "SUPERSEDED"), ("b:1", "OK")]
            assert [attempt.hedge for attempt in answer[1]] == [False, True]
            (event,) = it.events.of(CallHedged)
            assert (event.targets, event.delay) == (("a:1", "b:1"), 0.05)
            assert sum(stats.errors for stats in it.pool.stats()) == 0
            assert it.calls.stats()[0].hedges == 1

    run(story())


def test_the_first_wins_when_the_hedge_is_later() -> None:
    """The second attempt is ended, and the story names it."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            it.fleet["a:1"].latency, it.fleet["b:1"].latency = 0.07, 5.0
            answer = await it.call()
            assert codes(answer) == [("b:1", "SUPERSEDED"), ("a:1", "OK")]
            assert answer[1][-1].target == "a:1"

    run(story())


def test_a_hedge_makes_good_a_first_that_fails() -> None:
    """When the first fails under way, the second's answer is the call's."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            it.fleet["a:1"].latency, it.fleet["b:1"].latency = 0.06, 0.2
            it.fleet["a:1"].rule = lambda request: errors.InternalError("broken")
            answer = await it.call()
            assert codes(answer) == [("a:1", "INTERNAL"), ("b:1", "OK")]

    run(story())


def test_a_request_that_is_wrong_does_not_wait_for_its_hedge() -> None:
    """The other endpoint would only say the same, later."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            it.fleet["a:1"].latency, it.fleet["b:1"].latency = 0.06, 5.0
            it.fleet["a:1"].rule = lambda request: errors.InvalidArgumentError("wrong")
            begun = it.now
            with pytest.raises(errors.InvalidArgumentError) as caught:
                await it.call()
            assert it.now - begun == pytest.approx(0.06, abs=0.001)
            assert [attempt.code for attempt in caught.value.attempts] == ["INVALID_ARGUMENT"]
        assert it.pool.in_flight == 0

    run(story())


def test_calls_that_may_be_hedged_share_one_timer() -> None:
    """However many calls are under way, and whatever order they end in, each is hedged when it is late."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            loop = asyncio.get_running_loop()
            it.fleet["a:1"].latency = it.fleet["b:1"].latency = 0.2
            calls = []
            for _ in range(10):
                calls.append(asyncio.ensure_future(it.call()))
                await asyncio.sleep(0.001)
            timers: Any = loop._scheduled  # type: ignore[attr-defined]
            assert sum("_ring" in repr(timer) and not timer.cancelled() for timer in timers) == 1
            answers = await asyncio.gather(*calls)
            assert len(it.events.of(CallHedged)) == 10
            for _, story in answers:
                assert sorted(attempt.hedge for attempt in story) == [False, True]
                hedge = next(attempt for attempt in story if attempt.hedge)
                assert hedge.started == pytest.approx(0.05, abs=0.001)

    run(story())


def test_when_both_fail_neither_is_asked_again_before_the_others() -> None:
    """Both endpoints count as tried; the error or the answer tells of both."""

    async def story() -> None:
        async with client("a:1", "b:1", "c:1", hedging=HEDGING) as it:
            warm(it)
            for target in ("a:1", "b:1"):
                it.fleet[target].latency = 0.1
                it.fleet[target].rule = lambda request: errors.ResourceExhaustedError("full")
            held = it.pool.try_acquire(endpoint=it.pool.endpoints[2])  # so the others seem the better choice
            answer = await it.call()
            assert held is not None
            it.pool.release(held)
            assert codes(answer) == [
                ("a:1", "RESOURCE_EXHAUSTED"),
                ("b:1", "RESOURCE_EXHAUSTED"),
                ("c:1", "OK"),
            ]

    run(story())


@pytest.mark.parametrize("full", [False, True])
def test_no_hedge_where_there_is_nowhere_to_go(full: bool) -> None:
    """A single endpoint is not sent the same twice, nor is one without room."""

    async def story() -> None:
        targets = ("a:1", "b:1") if full else ("a:1",)
        async with client(*targets, hedging=HEDGING, max_in_flight=1) as it:
            warm(it)
            it.fleet["a:1"].latency = 0.3
            held = None
            if full:
                held = it.pool.try_acquire(endpoint=it.pool.endpoints[1])
            assert codes(await it.call()) == [("a:1", "OK")]
            assert not it.events.of(CallHedged)
            if held is not None:
                it.pool.release(held)

    run(story())


@pytest.mark.parametrize("first", [0.0499, 0.05 - 2e-10, 0.05, 0.0501, 0.06, 0.0601])
@pytest.mark.parametrize("second", [0.0, 0.01, 0.0101])
def test_answers_in_the_same_moment(first: float, second: float) -> None:
    """Whichever of timer, first and second answer come together: one answer, all room given back.

    With the first answer a moment before the timer, the hedge is cancelled before its task has begun.
    """

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            for _ in range(3):
                warm(it)
                it.fleet["a:1"].latency, it.fleet["b:1"].latency = first, second
                answer = await it.call()
                assert answer[0] == b"x!"
                assert answer[1][-1].code == "OK"
                await turns()
                it.check_books()

    run(story())


@pytest.mark.parametrize("moment", [0.01, 0.05, 0.055, 0.06])
def test_a_client_that_is_closed_in_a_race_ends_both(moment: float) -> None:
    """The caller is told that the client was closed; no task and no connection is left."""

    async def story() -> None:
        async with client("a:1", "b:1", hedging=HEDGING) as it:
            warm(it)
            it.fleet["a:1"].latency = it.fleet["b:1"].latency = 5.0
            call = asyncio.create_task(it.call())
            await asyncio.sleep(moment)
            await it.pool.close(0.0)
            await it.calls.aclose()
            with pytest.raises(errors.ClientClosedError):
                await call
            it.check_books()
            with pytest.raises(errors.ClientClosedError):
                await it.call()

    run(story())


# -- cancellation ---------------------------------------------------------------------------------------


def _retrying(it: Client) -> None:
    it.fleet["a:1"].down = True
    it.fleet["b:1"].script.extend(errors.ResourceExhaustedError("full") for _ in range(2))


def _hedged(it: Client) -> None:
    warm(it)
    it.fleet["a:1"].latency, it.fleet["b:1"].latency = 0.2, 0.1


def _hedge_fails(it: Client) -> None:
    warm(it)
    it.fleet["a:1"].latency, it.fleet["b:1"].latency = 0.06, 0.1
    it.fleet["a:1"].rule = lambda request: errors.InternalError("broken")


def _waiting(it: Client) -> None:
    it.fleet["a:1"].latency = it.fleet["b:1"].latency = 0.05


def _fetching(it: Client) -> None:
    it.fleet["a:1"].script.append(errors.UnauthenticatedError("expired"))


@pytest.mark.parametrize("prepare", [_retrying, _hedged, _hedge_fails, _waiting, _fetching])
def test_a_call_can_be_cancelled_at_every_step(prepare: Callable[[Client], None]) -> None:
    """After any number of steps of the loop, until the calls are over: no room, waiter or task is left."""

    async def story(steps: int) -> bool:
        credentials = Tokens(slow=0.01) if prepare is _fetching else None
        async with client("a:1", "b:1", hedging=HEDGING, credentials=credentials, max_in_flight=1) as it:
            prepare(it)
            calls = [asyncio.create_task(it.call()) for _ in range(5 if prepare is _waiting else 1)]
            for _ in range(steps):
                await asyncio.sleep(0)
                if not it.pool.in_flight and all(task.done() for task in calls):
                    break
                loop: Any = asyncio.get_running_loop()
                if not loop._ready:  # nothing is left to do now: let time pass
                    await asyncio.sleep(0.005)
            done = all(task.done() for task in calls)
            for task in calls:
                task.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                assert isinstance(result, (tuple, asyncio.CancelledError, errors.RPCError)), result
            await turns(3)
            it.check_books()
            assert (await it.call(30.0))[0] == b"x!"
            return done

    steps = 0
    while not run(story(steps)):
        steps += 1
        assert steps < 500
    assert steps > 3


def test_repr_tells_the_state() -> None:
    """Reprs show circuit, budget and counts."""

    async def story() -> None:
        async with client("a:1") as it:
            assert repr(it.calls).startswith("<Calls, circuit closed, <RetryBudget")
            await it.call()
            assert repr(it.record) == "<ModelRecord of half_plus_two: 1 calls, 0 errors>"

    run(story())
