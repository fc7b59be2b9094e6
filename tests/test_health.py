"""Health: who is out, why, for how long; decisions are functions of counts and the clock."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.health import (
    HEALTHY,
    OUTLIER,
    UNREACHABLE,
    ClientHealth,
    EndpointHealth,
    Health,
    HealthOptions,
    find_outliers,
    may_eject,
)

OPTIONS = HealthOptions()


def with_calls(calls: int, failures: int) -> Health:
    health = Health(HealthOptions(consecutive_failures=0))
    for number in range(calls):
        if number < failures:
            health.failed()
        else:
            health.succeeded()
    return health


def test_failures_in_a_row_count_and_a_success_ends_the_row() -> None:
    """Five failures in a row are too many, four and a success and four are not."""
    health = Health(OPTIONS)
    assert [health.failed() for _ in range(4)] == [False] * 4
    health.succeeded()
    assert [health.failed() for _ in range(5)] == [False] * 4 + [True]
    assert health.calls == 10
    assert health.failures == 9


def test_failures_in_a_row_can_be_switched_off_and_count_only_for_the_healthy() -> None:
    """With 0 no row is too long; one that is out already is not ejected again."""
    never = Health(HealthOptions(consecutive_failures=0))
    assert not any(never.failed() for _ in range(100))
    out = Health(OPTIONS)
    out.eject("slow", 0.0)
    assert not any(out.failed() for _ in range(100))


def test_a_lost_endpoint_is_probed_at_growing_intervals() -> None:
    """Probes of an unreachable endpoint come after 0.1 s, and at most 1 s apart."""
    health = Health(OPTIONS)
    health.lose("refused", 10.0)
    assert (health.state, health.reason) == (UNREACHABLE, "refused")
    due = []
    for tick in range(1000):
        now = 10.0 + tick / 100
        if health.probe_due(now):
            due.append(now)
    assert due[0] == pytest.approx(10.1, abs=0.011)
    gaps = [later - sooner for sooner, later in pairwise(due)]
    assert gaps[:3] == pytest.approx([0.2, 0.4, 0.8], abs=0.02)
    assert all(gap == pytest.approx(1.0, abs=0.02) for gap in gaps[3:])


def test_losing_what_is_lost_renews_the_reason_only() -> None:
    """A second failure does not begin the pauses anew, nor the time that it is out."""
    health = Health(OPTIONS)
    health.lose("refused", 10.0)
    assert health.probe_due(10.1)
    health.lose("no route", 10.2)
    assert health.reason == "no route"
    assert not health.probe_due(10.25)
    assert health.recover(15.0) == 5.0


def test_an_outlier_that_cannot_be_reached_is_unreachable() -> None:
    """It is out since it was ejected, and probed like all that are unreachable."""
    health = Health(OPTIONS)
    health.eject("slow", 10.0)
    health.lose("refused", 11.0)
    assert health.state == UNREACHABLE
    assert health.probe_due(11.1)
    assert health.recover(12.0) == 2.0


def test_ejections_grow_up_to_the_longest() -> None:
    """The first is 5 s, each further one twice as long, up to a minute."""
    health = Health(OPTIONS)
    seconds = []
    for _ in range(6):
        seconds.append(health.eject("slow", 0.0))
        health.recover(0.0)
    assert seconds == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_good_behaviour_makes_good() -> None:
    """Every interval with calls and without failures takes one ejection off; idle ones take none."""
    health = Health(OPTIONS)
    for _ in range(2):
        health.eject("slow", 0.0)
        health.recover(0.0)
    health.next_interval()
    assert health.ejections == 2
    health.failed()
    health.next_interval()
    assert health.ejections == 2
    health.succeeded()
    health.next_interval()
    health.succeeded()
    health.next_interval()
    assert health.eject("slow", 0.0) == 5.0


def test_an_outlier_gets_its_chance_when_its_time_is_over() -> None:
    """It is probed when the ejection ends, and then again at growing pauses until a probe is answered."""
    health = Health(OPTIONS)
    health.eject("slow", 10.0)
    assert not health.probe_due(14.9)
    assert health.probe_due(15.0)
    assert not health.probe_due(15.1)
    assert health.probe_due(15.2)
    assert health.recover(15.3) == pytest.approx(5.3)
    assert (health.state, health.reason, health.in_a_row, health.calls) == (HEALTHY, "", 0, 0)
    assert not health.probe_due(100.0)


@pytest.mark.parametrize(
    ("states", "most", "allowed"),
    [
        ([HEALTHY], 0.34, False),
        ([HEALTHY, HEALTHY], 0.34, True),
        ([HEALTHY, OUTLIER], 1.0, False),
        ([HEALTHY, HEALTHY, OUTLIER], 0.34, False),
        ([HEALTHY, HEALTHY, UNREACHABLE], 0.34, True),
        ([HEALTHY, UNREACHABLE, UNREACHABLE], 0.34, False),
        ([HEALTHY] * 9 + [OUTLIER] * 2, 0.34, True),
        ([HEALTHY] * 9 + [OUTLIER] * 3, 0.34, True),
        ([HEALTHY] * 9 + [OUTLIER] * 4, 0.34, False),
        ([HEALTHY] * 3, 0.0, True),
    ],
)
def test_the_floor_of_the_fleet(states: list[str], most: float, allowed: bool) -> None:
    """Not more than a share is out as outliers, one always may be, and the last healthy one never is."""
    fleet = []
    for state in states:
        health = Health(OPTIONS)
        health.state = state
        fleet.append(health)
    assert may_eject(fleet, most) is allowed


def test_an_endpoint_that_fails_more_than_the_others_is_an_outlier() -> None:
    """Failures count by how far they are above the median share; a fleet that fails together has none."""
    fleet = [(with_calls(50, failures), None) for failures in (1, 2, 25)]
    ((index, reason),) = find_outliers(fleet, OPTIONS)
    assert index == 2
    assert reason == "50% of its calls failed, 4% are usual"
    assert not find_outliers([(with_calls(50, 25), None) for _ in range(3)], OPTIONS)


def test_an_endpoint_that_is_far_slower_than_the_others_is_an_outlier() -> None:
    """Eight times the median latency is too slow, seven times is not."""
    fast = [(with_calls(50, 0), 0.010) for _ in range(2)]
    ((index, reason),) = find_outliers([(with_calls(50, 0), 0.080), *fast], OPTIONS)
    assert index == 0
    assert reason == "its latency is 80 ms, 10 ms are usual"
    assert not find_outliers([(with_calls(50, 0), 0.070), *fast], OPTIONS)


def test_the_worst_outlier_is_named_first() -> None:
    """Since only some may be ejected: failures before slowness, the slowest before the less slow."""
    fleet = [
        *((with_calls(50, 0), 0.010) for _ in range(5)),
        (with_calls(50, 0), 0.300),
        (with_calls(50, 50), 0.010),
        (with_calls(50, 0), 0.900),
    ]
    assert [index for index, _ in find_outliers(fleet, OPTIONS)] == [6, 7, 5]


def test_nobody_is_judged_by_few_calls_or_in_small_company() -> None:
    """It takes three endpoints with twenty calls each; those that are out do not count."""
    assert not find_outliers([(with_calls(50, 0), None), (with_calls(50, 50), None)], OPTIONS)
    few = [(with_calls(50, 0), None), (with_calls(50, 0), None), (with_calls(19, 19), None)]
    assert not find_outliers(few, OPTIONS)
    out = [(with_calls(50, 0), None), (with_calls(50, 0), None), (with_calls(50, 50), None)]
    out[0][0].lose("refused", 0.0)
    assert not find_outliers(out, OPTIONS)


def test_either_sign_can_be_switched_off() -> None:
    """A share of 1 and an infinite factor judge nobody."""
    options = HealthOptions(failure_share=1, latency_factor=math.inf)
    fleet = [(with_calls(50, 0), 0.01), (with_calls(50, 0), 0.01), (with_calls(50, 50), 9.0)]
    assert not find_outliers(fleet, options)


FLEETS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.floats(0, 1),
        st.one_of(st.none(), st.floats(1e-6, 100)),
        st.sampled_from([HEALTHY, HEALTHY, HEALTHY, OUTLIER, UNREACHABLE]),
    ),
    max_size=12,
)


@given(
    given_fleet=FLEETS,
    share=st.floats(0.01, 1),
    factor=st.floats(1.01, 50),
    most=st.floats(0, 1),
    minimum=st.integers(0, 30),
)
def test_never_are_all_out_as_outliers(
    given_fleet: list[tuple[int, float, float | None, str]],
    share: float,
    factor: float,
    most: float,
    minimum: int,
) -> None:
    """Whatever the fleet and the settings: somebody who was healthy stays so, and shares are kept."""
    options = HealthOptions(
        failure_share=share, latency_factor=factor, most_ejected=most, minimum_calls=minimum
    )
    fleet = []
    for calls, failed, latency, state in given_fleet:
        health = with_calls(calls, int(calls * failed))
        health.state = state
        fleet.append((health, latency))
    healthy = sum(health.state == HEALTHY for health, _ in fleet)
    already = sum(health.state == OUTLIER for health, _ in fleet)
    found = find_outliers(fleet, options)
    assert len(found) < max(healthy, 1)  # the median is never out of line
    for index, reason in found:
        health = fleet[index][0]
        assert health.state == HEALTHY
        if may_eject((other for other, _ in fleet), most):
            health.eject(reason, 0.0)
    assert not healthy or any(health.state == HEALTHY for health, _ in fleet)
    outliers = sum(health.state == OUTLIER for health, _ in fleet)
    assert outliers <= max(already, 1, int(len(fleet) * most))


@pytest.mark.parametrize(
    "wrong",
    [
        {"consecutive_failures": -1},
        {"minimum_calls": 1.5},
        {"failure_share": 1.1},
        {"most_ejected": -0.1},
        {"interval": 0},
        {"ejection": math.inf},
        {"longest_ejection": 0},
        {"probe_after": math.nan},
        {"probe_timeout": -1},
        {"model_interval": 0},
        {"latency_factor": 1.0},
        {"probe_interval": (0.0, 1.0)},
        {"probe_interval": (2.0, 1.0)},
    ],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    """An option out of range is refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HealthOptions(**wrong)


def test_health_can_be_read() -> None:
    """What `client.health()` prints names circuit, states, reasons and missing models."""
    well = EndpointHealth("a:1", HEALTHY, "", ("resnet version 3",))
    gone = EndpointHealth("b:1", UNREACHABLE, "Connection refused", ())
    health = ClientHealth((well, gone), "closed")
    assert str(health).splitlines() == [
        "circuit closed",
        "a:1: healthy, without resnet version 3",
        "b:1: unreachable (Connection refused)",
    ]
    assert health.ok
    assert not gone.ok
    assert not ClientHealth((gone,), "closed").ok
    assert not ClientHealth((well, gone), "open").ok
    out = Health(OPTIONS)
    assert repr(out) == "<Health: healthy>"
    out.lose("refused", 0.0)
    assert repr(out) == "<Health: unreachable (refused)>"
