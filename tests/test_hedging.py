"""Hedges cut the tail, and never cost more than their share."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.hedging import Hedging, HedgingPolicy


def fed(policy: HedgingPolicy, latencies: list[float], now: float = 100.0) -> Hedging:
    """One for which calls of these latencies have ended within the last second."""
    hedging = Hedging(policy)
    for number, seconds in enumerate(latencies):
        at = now - 1 + number / len(latencies)
        hedging.delay(at)
        hedging.record(seconds, at)
    return hedging


def test_a_fixed_delay() -> None:
    """A delay that is given needs no measurements, only calls that pay for the hedge."""
    hedging = Hedging(HedgingPolicy(delay=0.03, max_extra_load=0.5))
    assert [hedging.delay(now) for now in (1.0, 1.1, 1.2)] == [None, 0.03, 0.03]
    hedging.record(5.0, 1.3)
    assert hedging.delay(1.4) == 0.03
    assert repr(hedging) == "<Hedging after 0.03 s, 0 calls so far>"


def test_the_delay_is_the_percentile_of_recent_calls() -> None:
    """Of calls that take 10 ms but for a fifth that takes 50, the latter are not waited for."""
    latencies = [0.01, 0.01, 0.05, 0.01, 0.01] * 40
    assert fed(HedgingPolicy(percentile=0.7, times_median=0), latencies).delay(100.0) == (
        pytest.approx(0.01, rel=0.022)
    )
    assert fed(HedgingPolicy(percentile=0.9), latencies).delay(100.0) == pytest.approx(0.05, rel=0.022)


def test_a_call_a_little_later_than_most_is_not_late() -> None:
    """Where all calls take the same time nothing is hedged before twice that time."""
    assert fed(HedgingPolicy(), [0.01] * 100).delay(100.0) == pytest.approx(0.02, rel=0.022)
    policy = HedgingPolicy(times_median=0)
    assert fed(policy, [0.01] * 100).delay(100.0) == pytest.approx(0.01, rel=0.022)


def test_the_delay_stays_between_its_bounds() -> None:
    """No hedge before the minimum, which is a millisecond unless told, nor after the maximum."""
    assert fed(HedgingPolicy(), [0.0001] * 100).delay(100.0) == 0.001
    assert fed(HedgingPolicy(minimum=0.005), [0.0001] * 100).delay(100.0) == 0.005
    assert fed(HedgingPolicy(maximum=0.3), [2.0] * 100).delay(100.0) == 0.3


def test_too_few_calls_say_nothing() -> None:
    """Without enough measurements in the window there is no delay; they expire with the window."""
    policy = HedgingPolicy(min_samples=50)
    assert fed(policy, [0.01] * 49).delay(100.0) is None
    hedging = fed(policy, [0.01] * 50)
    assert hedging.delay(100.0) is not None
    assert hedging.delay(100.0 + Hedging.WINDOW) is None
    assert repr(hedging) == "<Hedging not at present, 0 calls so far>"


def test_the_delay_follows_the_calls() -> None:
    """When all calls become slower, so does the hedge: a slow fleet is not hedged to death."""
    hedging = fed(HedgingPolicy(), [0.01] * 500)
    for number in range(500):
        at = 100.0 + number / 100
        hedging.delay(at)
        hedging.record(0.2, at)
    assert hedging.delay(106.0) == pytest.approx(0.2, rel=0.5)


def test_a_share_that_is_used_up() -> None:
    """Then no timer is set, until calls have paid for another hedge."""
    hedging = fed(HedgingPolicy(max_extra_load=0.1), [0.01] * 100)
    granted = [hedging.try_hedge(100.0) for _ in range(12)]
    assert granted == [True] * 10 + [False] * 2
    assert hedging.hedged == 10
    delays = [hedging.delay(100.0) for _ in range(10)]
    assert delays[:9] == [None] * 9
    assert delays[9] is not None


@given(
    st.floats(0.001, 1),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30), st.integers(0, 30)), max_size=80),
)
def test_no_story_exceeds_the_share(share: float, steps: list[tuple[float, int, int]]) -> None:
    """Whatever the rhythm of calls and wishes, hedges are at most the share of the calls so far."""
    hedging = Hedging(HedgingPolicy(delay=0.01, max_extra_load=share))
    now, calls = 10.0, 0
    for wait, starting, late in steps:
        now += wait
        for _ in range(starting):
            delay = hedging.delay(now)
            calls += 1
            assert delay in {None, 0.01}
        for _ in range(late):
            hedging.try_hedge(now)
        assert hedging.hedged <= share * calls


def test_a_client_with_few_calls_may_hedge() -> None:
    """A call a minute pays for a hedge every ten minutes, and not for a storm after a day."""
    hedging = Hedging(HedgingPolicy(delay=0.01, max_extra_load=0.1))
    delays = [hedging.delay(minute * 60.0) for minute in range(12)]
    assert delays[8:] == [None, 0.01, 0.01, 0.01]
    for minute in range(12, 1440):
        hedging.delay(minute * 60.0)
    assert sum(hedging.try_hedge(1440 * 60.0) for _ in range(100)) == Hedging.RESERVE


def simulate(policy: HedgingPolicy | None, slow: float) -> tuple[float, float]:
    """The 99th percentile and the share of hedges of 200 calls a second over a minute.

    Latencies are log-normal around 20 ms; a share `slow` of all attempts takes ten times as long.
    """
    source = random.Random(5)
    hedging = None if policy is None else Hedging(policy)
    events: list[tuple[float, int, bool, float, float]] = []
    latencies = []

    def attempt() -> float:
        return 0.02 * source.lognormvariate(0, 0.3) * (10 if source.random() < slow else 1)

    for number in range(12_000):
        now = number / 200
        while events and events[0][0] <= now:
            at, key, late, began, end = heapq.heappop(events)
            if not late:
                latencies.append(at - began)
                if hedging is not None:
                    hedging.record(at - began, at)
                continue
            if hedging is not None and hedging.try_hedge(at):
                end = min(end, at + attempt())
            heapq.heappush(events, (end, key, False, began, end))
        delay = None if hedging is None else hedging.delay(now)
        end = now + attempt()
        late = delay is not None and now + delay < end
        heapq.heappush(events, (now + delay if late and delay else end, number, late, now, end))
    return sorted(latencies[2000:])[-100], 0 if hedging is None else hedging.hedged / 12_000


@pytest.mark.parametrize("slow", [0.02, 0.05, 0.07])
def test_the_tail_is_cut(slow: float) -> None:
    """With some calls at ten times the latency the 99th percentile falls to a third, for 10 % more calls."""
    plain, _ = simulate(None, slow)
    hedged, extra = simulate(HedgingPolicy(), slow)
    assert hedged * 3 <= plain
    assert extra <= 0.1


def test_a_healthy_fleet_is_hardly_hedged() -> None:
    """When nothing is wrong, one call in fifty at most is sent twice."""
    _, extra = simulate(HedgingPolicy(), 0.0)
    assert extra <= 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delay": -0.1}, "delay must be"),
        ({"delay": math.nan}, "delay must be"),
        ({"percentile": None}, "give a delay or a percentile"),
        ({"percentile": 95}, "percentile must be"),
        ({"percentile": 0}, "percentile must be"),
        ({"times_median": -1}, "times_median must be"),
        ({"minimum": -1}, "minimum must be"),
        ({"maximum": 0.0001}, "maximum must be"),
        ({"max_extra_load": 0}, "max_extra_load must be"),
        ({"max_extra_load": 1.1}, "max_extra_load must be"),
        ({"min_samples": 0}, "min_samples must be"),
    ],
)
def test_a_policy_that_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    """Settings out of range are refused with their name; gRPC would ignore them in silence."""
    with pytest.raises(ValueError, match=message):
        HedgingPolicy(**arguments)
