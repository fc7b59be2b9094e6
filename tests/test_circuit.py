"""The circuit opens when a whole fleet fails, and no story leaves it shut for good."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aioserving.circuit import Circuit, CircuitOptions, State, Transition


def make(seed: int = 1, **options: Any) -> Circuit:
    return Circuit(CircuitOptions(**options), random.Random(seed))


def opened(now: float = 100.0) -> Circuit:
    circuit = make()
    transition = circuit.all_down(now)
    assert transition is not None
    return circuit


# --- opening


def test_a_circuit_begins_closed() -> None:
    """As long as nothing is known, calls pass."""
    circuit = make()
    assert circuit.state is State.CLOSED
    assert circuit.allow(0.0)
    assert circuit.retry_after(0.0) == 0
    assert circuit.last is None
    assert repr(circuit) == "<Circuit closed, 0 failures in a row>"


def test_failures_that_are_many_and_last_open_it() -> None:
    """Twenty failures in a row that span half a second open the circuit; the transition says why."""
    circuit = make()
    for number in range(19):
        assert circuit.failure(10 + number * 0.05) is None
    transition = circuit.failure(10.95)
    assert transition == circuit.last
    assert transition == Transition(
        State.CLOSED,
        State.OPEN,
        10.95,
        "20 attempts in a row failed within 0.95 s, at all endpoints",
    )
    assert str(transition) == "closed -> open: 20 attempts in a row failed within 0.95 s, at all endpoints"
    assert not circuit.allow(10.95)


def test_a_burst_that_fails_together_does_not_open_it() -> None:
    """A thousand calls lost with one connection are one event, until failures go on for half a second."""
    circuit = make()
    for _ in range(1000):
        assert circuit.failure(10.0) is None
    assert circuit.failure(10.49) is None
    assert circuit.state is State.CLOSED
    assert circuit.failure(10.5) is not None


def test_few_failures_do_not_open_it_however_long() -> None:
    """A client that calls once a minute has to fail as often as any other."""
    circuit = make()
    assert all(circuit.failure(number * 60.0) is None for number in range(19))
    assert circuit.failure(19 * 60.0) is not None


def test_one_answer_among_the_failures_keeps_it_closed() -> None:
    """Both counts, of failures and of time, begin anew with any success."""
    circuit = make()
    for number in range(2000):
        assert circuit.failure(number * 0.01) is None
        if number % 19 == 18:
            assert circuit.success(number * 0.01) is None
    circuit = make(threshold=3)
    circuit.failure(0.0)
    circuit.success(1.0)
    assert [circuit.failure(now) for now in (2.0, 2.1, 2.2, 2.4)] == [None] * 4
    assert circuit.failure(2.5) is not None


def test_told_that_all_are_down_it_opens_at_once() -> None:
    """Who knows of every connection need not wait for failures; telling it twice changes nothing."""
    circuit = make()
    assert circuit.all_down(5.0) == Transition(State.CLOSED, State.OPEN, 5.0, "every endpoint is down")
    assert circuit.all_down(5.01) is None
    assert not circuit.allow(5.01)
    assert 0 < circuit.retry_after(5.01) <= 0.1


# --- probing


def test_one_probe_at_a_time() -> None:
    """When a probe is due one attempt passes, and no other until it has ended."""
    circuit = opened()
    due = 100.0 + circuit.retry_after(100.0)
    assert 100.05 <= due <= 100.1
    assert not circuit.allow(due - 1e-6)
    assert circuit.allow(due)
    assert circuit.last == Transition(State.OPEN, State.HALF_OPEN, due, "probe 1 is let through")
    assert [circuit.allow(due + wait) for wait in (0.0, 0.1, 0.9)] == [False] * 3
    assert repr(circuit) == "<Circuit half-open after 1 probes>"


def test_a_probe_that_succeeds_closes_it() -> None:
    """All calls pass again, and it takes as many failures as ever to open it."""
    circuit = opened()
    assert circuit.allow(101.0)
    assert circuit.success(101.01) == Transition(
        State.HALF_OPEN, State.CLOSED, 101.01, "an endpoint answered"
    )
    assert all(circuit.allow(101.01) for _ in range(100))
    for number in range(19):
        assert circuit.failure(102.0 + number) is None


def test_pauses_grow() -> None:
    """Failed probes follow each other within 0.1, 0.2, 0.4, 0.8, then always 1 second, half of it sure."""
    for seed in range(50):
        circuit = make(seed)
        circuit.all_down(0.0)
        now = 0.0
        for limit in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0):
            pause = circuit.retry_after(now)
            assert limit / 2 <= pause <= limit
            now += pause
            assert circuit.allow(now)
            transition = circuit.failure(now)
            assert transition is not None
            assert transition.reason.startswith("probe ")


def test_every_outage_begins_with_short_pauses() -> None:
    """How long the last outage was says nothing of the next."""
    circuit = make()
    circuit.all_down(0.0)
    for now in range(1, 9):
        assert circuit.allow(now)
        circuit.failure(now)
    assert circuit.retry_after(8) >= 0.5
    circuit.success(9.0)
    circuit.all_down(10.0)
    assert circuit.retry_after(10.0) <= 0.1


def test_probes_of_many_clients_do_not_coincide() -> None:
    """Clients that lost the same fleet at the same moment spread their probes over half the pause."""
    waits = []
    for seed in range(500):
        circuit = make(seed)
        circuit.all_down(0.0)
        waits.append(circuit.retry_after(0.0))
    assert [sum(low <= wait * 200 - 10 < low + 2.5 for wait in waits) for low in (0, 2.5, 5, 7.5)] == (
        pytest.approx([125] * 4, rel=0.3)
    )


def test_a_lost_probe_is_replaced() -> None:
    """A probe of which nothing is heard is waited for as long as the longest pause, not for ever."""
    circuit = opened()
    assert circuit.allow(101.0)
    assert circuit.retry_after(101.25) == 0.75
    assert not circuit.allow(101.99)
    assert circuit.allow(102.0)
    assert circuit.last is not None
    assert circuit.last.reason == "probe 2 is let through, the last one was lost"
    assert not circuit.allow(102.5)


def test_a_cancelled_probe_makes_room() -> None:
    """A probe whose caller went away is no failure of the fleet, and another follows after a pause."""
    circuit = opened()
    assert circuit.allow(101.0)
    transition = circuit.release(101.001)
    assert transition is not None
    assert (transition.after, transition.reason) == (State.OPEN, "probe 1 ended without an outcome")
    assert circuit.retry_after(101.001) <= 0.2
    assert circuit.release(101.002) is None
    closed = make()
    assert closed.release(0.0) is None
    assert closed.state is State.CLOSED


def test_stragglers_of_an_open_circuit() -> None:
    """Of attempts that began before it opened a failure changes nothing, an answer closes it."""
    circuit = opened()
    due = circuit.retry_after(100.0)
    assert circuit.failure(100.01) is None
    assert circuit.retry_after(100.0) == due
    transition = circuit.success(100.02)
    assert transition is not None
    assert (transition.before, transition.after) == (State.OPEN, State.CLOSED)


@given(
    st.floats(0, 6),
    st.floats(0, 3),
    st.floats(0.01, 0.2),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_recovery_is_noticed_within_two_seconds(
    outage: float, answer: float, rhythm: float, hung: bool, seed: int
) -> None:
    """However long the fleet was away, and though it let probes hang, calls pass 2 s after its return."""
    circuit = make(seed)
    circuit.all_down(0.0)
    now, pending = 0.0, math.inf
    while now < outage:
        if now >= pending:
            circuit.failure(now)
            pending = math.inf
        if circuit.allow(now):
            pending = math.inf if hung else now + answer
        now += rhythm
    while circuit.state is not State.CLOSED:
        assert now < outage + 2.0
        if circuit.allow(now):
            circuit.success(now)
        now += rhythm


class AnyStory(RuleBasedStateMachine):
    """Everything that can be said to a circuit, in any order and rhythm."""

    @initialize(
        seed=st.integers(0, 2**32),
        threshold=st.integers(1, 5),
        span=st.sampled_from([0.0, 0.5, 3.0]),
    )
    def begin(self, seed: int, threshold: int, span: float) -> None:
        self.now = 100.0
        self.circuit = make(seed, threshold=threshold, span=span)
        self.streak: list[float] = []
        self.probed_at = -math.inf

    @rule(seconds=st.sampled_from([0.0001, 0.03, 0.11, 0.45, 1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        circuit, before = self.circuit, self.circuit.state
        promised = circuit.retry_after(self.now)
        allowed = circuit.allow(self.now)
        assert allowed == (promised == 0)
        if before is State.CLOSED:
            assert allowed
            assert circuit.state is State.CLOSED
        elif allowed:
            # One at a time: after the end of the last one, or when it was given up.
            assert before is State.OPEN or self.now - self.probed_at >= circuit.options.last_probe - 1e-9
            assert circuit.state is State.HALF_OPEN
            assert circuit.last is not None
            assert circuit.last.at == self.now
            self.probed_at = self.now
        else:
            assert circuit.state is before

    @rule()
    def succeed(self) -> None:
        self.check(self.circuit.state, self.circuit.success(self.now))
        assert self.circuit.state is State.CLOSED
        self.streak = []

    @rule()
    def fail(self) -> None:
        before, options = self.circuit.state, self.circuit.options
        streak = [*self.streak, self.now]
        spent = len(streak) >= options.threshold and self.now - streak[0] >= options.span
        self.check(before, self.circuit.failure(self.now))
        if before is State.CLOSED and not spent:
            assert self.circuit.state is State.CLOSED
            self.streak = streak
        else:
            assert self.circuit.state is State.OPEN

    @rule()
    def lose_all(self) -> None:
        self.check(self.circuit.state, self.circuit.all_down(self.now))
        assert self.circuit.state is not State.CLOSED

    @rule()
    def release(self) -> None:
        before = self.circuit.state
        self.check(before, self.circuit.release(self.now))
        assert self.circuit.state is (State.OPEN if before is State.HALF_OPEN else before)

    def check(self, before: State, transition: Transition | None) -> None:
        """What is returned is what happened."""
        after = self.circuit.state
        if transition is None:
            assert after is before
        else:
            assert transition is self.circuit.last
            assert (transition.before, transition.after, transition.at) == (before, after, self.now)
            assert transition.reason
        if after is not State.CLOSED:
            self.streak = []

    @invariant()
    def never_shut_for_good(self) -> None:
        """From any state an attempt passes within the longest pause, and its success lets all pass."""
        if hasattr(self, "circuit"):
            assert 0 <= self.circuit.retry_after(self.now) <= self.circuit.options.last_probe
            assert self.circuit.state is not State.CLOSED or self.circuit.retry_after(self.now) == 0


TestAnyStory = AnyStory.TestCase


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold must be at least 1"),
        ({"span": -0.1}, "span must be"),
        ({"span": math.nan}, "span must be"),
        ({"first_probe": 0}, "first_probe must be"),
        ({"first_probe": 2.0}, "last_probe must be"),
        ({"last_probe": math.inf}, "last_probe must be"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    """Settings out of range are refused with their name."""
    with pytest.raises(ValueError, match=message):
        CircuitOptions(**options)
