"""Policies, the latency estimate, restraint and subsets: functions of counts, chance and the clock."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterator
from random import Random
from typing import SupportsIndex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aioserving.balancing
from aioserving.balancing import (
    POLICIES,
    Balancer,
    BalancingOptions,
    LeastOutstanding,
    Load,
    PowerOfTwoChoices,
    RoundRobin,
    Weighted,
    make_balancer,
    subset,
)

ALL = list(POLICIES)
#: Those that spread calls evenly, whatever is in flight.
IN_TURN = ["round_robin", "weighted"]


def loads(*weights: float) -> tuple[Load, ...]:
    return tuple(Load(weight) for weight in weights)


def shares(
    balancer: Balancer,
    endpoints: tuple[Load, ...],
    calls: int,
    now: float = 0.0,
    exclude: Collection[Load] = (),
) -> list[float]:
    """The part of `calls` that each endpoint gets, when none takes any time."""
    found = Counter(id(balancer.choose(endpoints, now, exclude)) for _ in range(calls))
    return [found[id(load)] / calls for load in endpoints]


def near(share: float, calls: int) -> object:
    """`share`, give or take five standard deviations of a share of so many random calls."""
    return pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / calls))


# Which policy.


def test_every_policy_is_made_by_its_name() -> None:
    """A policy's name makes that policy; the default is the one that the simulation chose."""
    for name, kind in POLICIES.items():
        assert type(make_balancer(name)) is kind
        assert kind.name == name
    assert type(make_balancer()) is PowerOfTwoChoices
    assert next(iter(POLICIES)) == BalancingOptions().policy == "power_of_two"
    assert make_balancer(BalancingOptions(policy="weighted", ramp=3)).options.ramp == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "fastest"}, "policy must be one of power_of_two, .*; got 'fastest'"),
        ({"ramp": -1}, "ramp must be a number of seconds, at least 0, got -1"),
        ({"ramp": math.inf}, "ramp must be"),
        ({"ramp": math.nan}, "ramp must be"),
        ({"ramp_floor": 0}, "ramp_floor must be above 0 and at most 1, got 0"),
        ({"ramp_floor": 1.1}, "ramp_floor must be"),
        ({"decay": 0}, "decay must be a number of seconds above 0, got 0"),
        ({"decay": math.nan}, "decay must be"),
    ],
)
def test_options_are_checked_by_name(settings: dict[str, object], words: str) -> None:
    """A setting that makes no sense is refused with its name and value."""
    with pytest.raises(ValueError, match=words):
        BalancingOptions(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_a_weight_is_a_number_above_zero(weight: float) -> None:
    """An endpoint of no weight, or of all of it, is refused."""
    with pytest.raises(ValueError, match="weight must be a number above 0"):
        Load(weight)


@pytest.mark.parametrize("policy", ALL)
def test_without_endpoints_there_is_no_choice(policy: str) -> None:
    """An empty tuple is the caller's mistake, and said so."""
    with pytest.raises(ValueError, match="no endpoint"):
        make_balancer(policy).choose((), 0.0)


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("restrained", [False, True])
def test_the_only_endpoint_is_chosen(policy: str, restrained: bool) -> None:
    """With one endpoint there is nothing to decide, however cold, full or excluded it is."""
    balancer, (load,) = make_balancer(policy, Random(1)), loads(1)
    if restrained:
        balancer.admit(load, 0.0)
        load.limit = 0
    assert balancer.choose((load,), 0.0) is load
    assert balancer.choose((load,), 0.0, [load]) is load


@pytest.mark.parametrize("policy", ALL)
def test_the_same_seed_makes_the_same_choices(policy: str) -> None:
    """All chance comes from the generator passed in."""

    def run(seed: int) -> list[int]:
        balancer, endpoints = make_balancer(policy, Random(seed)), loads(*[1] * 20)
        return [endpoints.index(balancer.choose(endpoints, 0.0)) for _ in range(100)]

    assert run(1) == run(1)
    assert run(1) != run(2)


# Who gets how much.


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 5), (3, 1), (0.5, 0.5, 2, 1) * 5])
def test_idle_endpoints_get_calls_by_weight(policy: str, weights: tuple[float, ...]) -> None:
    """Where nothing else distinguishes endpoints, each gets its weight's part of the calls."""
    calls = 20_000
    found = shares(make_balancer(policy, Random(5)), loads(*weights), calls)
    for share, weight in zip(found, weights, strict=True):
        assert share == near(weight / sum(weights), calls)


@pytest.mark.parametrize("policy", [*IN_TURN, "least_outstanding"])
def test_turns_of_equals_come_round(policy: str) -> None:
    """In turn means: nobody is called twice before everybody has been called once."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(*[2] * 7)
    for _ in range(20):
        assert {id(balancer.choose(endpoints, 0.0)) for _ in endpoints} == set(map(id, endpoints))


@pytest.mark.parametrize("policy", [*IN_TURN, "least_outstanding"])
def test_turns_of_a_heavy_endpoint_are_spread(policy: str) -> None:
    """An endpoint with five of seven turns has them in between the others', not in one go."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(5, 1, 1)
    order = [balancer.choose(endpoints, 0.0) for _ in range(700)]
    heavy = [index for index, load in enumerate(order) if load is endpoints[0]]
    assert max(after - before for before, after in itertools.pairwise(heavy)) <= 3
    for light in endpoints[1:]:
        turns = [index for index, load in enumerate(order) if load is light]
        assert min(after - before for before, after in itertools.pairwise(turns)) >= 5


@pytest.mark.parametrize("policy", ALL)
def test_clients_do_not_begin_at_the_same_endpoint(policy: str) -> None:
    """The first calls of many clients are spread, or a restart of all would hit one server."""
    endpoints = loads(*[1] * 10)
    firsts = Counter(id(make_balancer(policy, Random(seed)).choose(endpoints, 0.0)) for seed in range(500))
    assert max(firsts.values()) < 150


@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=8),
    st.integers(0, 99),
)
def test_least_outstanding_is_the_least_of_few(state: list[tuple[int, float]], seed: int) -> None:
    """Among few endpoints the one with the fewest calls in flight for its weight is chosen, always."""
    endpoints = tuple(Load(weight) for _, weight in state)
    for load, (in_flight, _) in zip(endpoints, state, strict=True):
        load.in_flight = in_flight
    chosen = make_balancer("least_outstanding", Random(seed)).choose(endpoints, 0.0)
    assert chosen.in_flight / chosen.weight == min(load.in_flight / load.weight for load in endpoints)


@pytest.mark.parametrize("policy", ["least_outstanding", "power_of_two"])
@pytest.mark.parametrize("count", [3, 100])
def test_calls_in_flight_stay_level(policy: str, count: int) -> None:
    """When no call ends, the policies that look at calls in flight keep them nearly the same everywhere."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(*[1] * count)
    for _ in range(count * 40):
        balancer.choose(endpoints, 0.0).in_flight += 1
    in_flight = [load.in_flight for load in endpoints]
    assert sum(in_flight) == count * 40
    assert max(in_flight) <= 56
    assert min(in_flight) >= 24
    by_chance = Counter(Random(5).choices(range(count), k=count * 40)).values()
    if count == 100:
        assert statistics.pstdev(in_flight) < statistics.pstdev(by_chance)


@pytest.mark.parametrize("policy", ["least_outstanding", "power_of_two"])
def test_calls_in_flight_go_by_weight(policy: str) -> None:
    """When no call ends, an endpoint of three times the weight holds three times the calls."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(1, 3, 1, 3)
    for _ in range(800):
        balancer.choose(endpoints, 0.0).in_flight += 1
    for load in endpoints:
        assert load.in_flight / load.weight == pytest.approx(100, rel=0.25)


def test_two_choices_take_the_cheaper() -> None:
    """Of two endpoints the one with clearly fewer calls, or clearly lower latency, gets every call."""
    balancer, endpoints = make_balancer("power_of_two", Random(5)), loads(1, 1)
    endpoints[0].in_flight = 5
    assert shares(balancer, endpoints, 100) == [0, 1]
    endpoints[0].in_flight = 0
    balancer.record(endpoints[0], 0.010, 0.0)
    balancer.record(endpoints[1], 0.020, 0.0)
    assert shares(balancer, endpoints, 100) == [1, 0]
    endpoints[0].in_flight = 3  # 10 ms x 4 against 20 ms x 1
    assert shares(balancer, endpoints, 100) == [0, 1]


def test_two_choices_ignore_small_differences() -> None:
    """A latency that is a tenth higher does not move the whole traffic to the other endpoint."""
    balancer, endpoints = make_balancer("power_of_two", Random(5)), loads(1, 1)
    balancer.record(endpoints[0], 0.010, 0.0)
    balancer.record(endpoints[1], 0.011, 0.0)
    assert shares(balancer, endpoints, 2000)[0] == near(0.5, 2000)


@pytest.mark.parametrize(("policy", "most"), [("power_of_two", 0.3), ("weighted", 0.4)])
@pytest.mark.parametrize("count", [4, 40])
def test_a_slow_endpoint_gets_less(policy: str, most: float, count: int) -> None:
    """Policies that look at latency send a server of five times the latency less than its share."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(*[1] * count)
    now = 0.0
    calls: Counter[int] = Counter()
    for index in range(count * 200):
        now += 0.5 / count
        chosen = balancer.choose(endpoints, now)
        calls[endpoints.index(chosen)] += index >= count * 50
        balancer.record(chosen, 0.05 if chosen is endpoints[0] else 0.01, now)
    assert calls[0] > 0
    assert calls[0] / (calls.total() / count) < most


def test_weighted_goes_by_measured_speed() -> None:
    """In turn by speed: of two endpoints the one that takes half the time gets twice the calls."""
    balancer, endpoints = make_balancer("weighted", Random(5)), loads(1, 1)
    now = 0.0
    calls: Counter[int] = Counter()
    for _ in range(3000):
        now += 0.001
        chosen = balancer.choose(endpoints, now)
        calls[endpoints.index(chosen)] += 1
        balancer.record(chosen, 0.01 if chosen is endpoints[0] else 0.02, now)
    assert calls[0] / calls[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("latency", "turns"), [(1e-9, 10), (1e9, 0.1)])
def test_weighted_keeps_within_its_range(latency: float, turns: float) -> None:
    """However slow or fast an endpoint seems, it gets a tenth to ten times its usual turns."""
    balancer, endpoints = make_balancer("weighted", Random(5)), loads(*[1] * 20)
    for load in endpoints * 5:
        balancer.record(load, 1.0, 0.0)
    extreme = endpoints[0]
    extreme.latency = latency
    found = shares(balancer, endpoints, 20_000)
    assert found[0] / statistics.mean(found[1:]) == pytest.approx(turns, rel=0.05)


# Whom not to choose.

_Endpoint = st.tuples(
    st.sampled_from([1.0, 1.0, 4.0]),
    st.integers(0, 4),  # in flight; 3 is full
    st.sampled_from(["usual", "cold", "failing"]),
    st.booleans(),  # excluded
)


@settings(max_examples=300)
@given(st.sampled_from(ALL), st.lists(_Endpoint, min_size=1, max_size=20), st.integers(0, 1000))
def test_excluded_and_full_ones_are_last(
    policy: str, state: list[tuple[float, int, str, bool]], seed: int
) -> None:
    """An excluded endpoint is chosen only if there is no other, a full one only if others are excluded."""
    balancer = make_balancer(policy, Random(seed))
    endpoints = tuple(Load(weight, limit=3) for weight, *_ in state)
    excluded = []
    for load, (_, in_flight, kind, out) in zip(endpoints, state, strict=True):
        load.in_flight = in_flight
        if kind == "cold":
            balancer.admit(load, 100.0)
        elif kind == "failing":
            for _ in range(10):
                balancer.record(load, 0.01, 100.0, failed=True)
        if out:
            excluded.append(load)
    for step in range(5):
        chosen = balancer.choose(endpoints, 100.0 + step, excluded)
        others = [load for load in endpoints if load not in excluded]
        best = [load for load in others if load.in_flight < load.limit] or others or list(endpoints)
        assert chosen in best


@pytest.mark.parametrize("policy", ALL)
def test_what_is_left_is_shared_by_weight(policy: str) -> None:
    """Where one is excluded, the others get its calls in proportion to their weights."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(1, 2, 9, 1)
    found = shares(balancer, endpoints, 8000, exclude=(endpoints[2],))
    assert found[2] == 0
    for share, weight in zip(found, (1, 2, 0, 1), strict=True):
        assert share == pytest.approx(weight / 4, abs=0.1)


# What is learned.


def test_a_slow_answer_counts_at_once_and_fades() -> None:
    """The estimate jumps to a slow answer, and faster ones bring it down with the time constant."""
    balancer, (load, other) = make_balancer(BalancingOptions(decay=10), Random(1)), loads(1, 1)
    for step in range(100):
        balancer.record(load, 0.010, step * 0.1)
        balancer.record(other, 0.010, step * 0.1)
    assert balancer.latency(load, 10.0) == pytest.approx(0.010)
    balancer.record(load, 0.050, 10.0)
    assert load.latency == pytest.approx(0.050)
    for step in range(1, 101):
        balancer.record(load, 0.010, 10 + step * 0.1)
    assert load.latency == pytest.approx(0.010 + 0.040 / math.e, rel=1e-6)


def test_what_is_not_renewed_is_forgotten() -> None:
    """An endpoint that nobody calls is expected to be as fast as the mean again, from either side."""
    balancer, (slow, fast, other) = make_balancer(BalancingOptions(decay=10), Random(1)), loads(1, 1, 1)
    for _ in range(200):
        balancer.record(other, 0.010, 0.0)
    balancer.record(slow, 0.020, 0.0)
    balancer.record(fast, 0.001, 0.0)
    mean = balancer.latency(Load(), 0.0)
    assert mean == pytest.approx(0.010, rel=0.05)
    for load in (slow, fast):
        gaps = [abs(balancer.latency(load, now) - mean) for now in range(0, 100, 5)]  # type: ignore[operator]
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[2] == pytest.approx(gaps[0] / math.e)
        assert gaps[-1] < 1e-5


def test_an_unknown_endpoint_counts_as_an_average_one() -> None:
    """A cold endpoint has no estimate of its own; it is neither the fastest nor the slowest."""
    balancer, (known, cold) = make_balancer("power_of_two", Random(1)), loads(1, 1)
    assert balancer.latency(cold, 0.0) is None
    balancer.record(known, 0.010, 0.0)
    assert balancer.latency(cold, 0.0) == pytest.approx(0.010)
    assert shares(balancer, (known, cold), 2000)[1] == near(0.5, 2000)


def test_one_that_hung_is_not_avoided_for_ever() -> None:
    """A call that hung a thousand times as long as usual weighs ten times as much as a usual one."""
    balancer, (load, other) = make_balancer("power_of_two", Random(1)), loads(1, 1)
    for _ in range(100):
        balancer.record(other, 0.010, 0.0)
    for _ in range(5):
        balancer.record(load, 10.0, 1.0)
    assert 0.08 < load.latency < 0.2
    assert balancer.latency(Load(), 1.0) < 0.015  # type: ignore[operator]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(1e-6, 100), st.floats(0, 30), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_estimates_stay_within_what_was_seen(outcomes: list[tuple[int, float, float, bool]]) -> None:
    """Whatever happens, an estimate lies between the lowest and highest latency, and a share in (0, 1]."""
    balancer, endpoints = make_balancer("power_of_two", Random(1)), loads(1, 1, 1)
    balancer.record(endpoints[0], 1.0, 0.0)
    now, low, high = 0.0, 1.0, 1.0
    for which, latency, later, failed in outcomes:
        now += later
        low, high = min(low, latency), max(high, latency)
        balancer.record(endpoints[which], latency, now, failed=failed)
        for load in endpoints:
            assert 0 < balancer.share(load, now) <= 1
            assert 0 <= load.failing <= 1
            estimate = balancer.latency(load, now)
            assert estimate is not None
            assert low * (1 - 1e-9) <= estimate <= high * (1 + 1e-9)
        assert balancer.choose(endpoints, now) in endpoints


def test_how_long_a_failure_took_counts_if_it_was_waited_for() -> None:
    """A refusal in a millisecond is no sign of speed; a timeout after a second is one of slowness."""
    balancer, (load, other) = make_balancer("power_of_two", Random(1)), loads(1, 1)
    for _ in range(100):
        balancer.record(load, 0.010, 0.0)
        balancer.record(other, 0.010, 0.0)
    balancer.record(load, 0.001, 0.0, failed=True)
    assert balancer.latency(load, 0.0) == pytest.approx(0.010)
    balancer.record(load, 0.090, 0.0, failed=True)
    assert balancer.latency(load, 0.0) == pytest.approx(0.090)


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("count", [3, 30])
def test_one_that_fails_fast_attracts_nothing(policy: str, count: int) -> None:
    """An endpoint that fails in a millisecond looks idle and fast; it gets a small part of its share."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(*[1] * count)
    # Five calls in flight everywhere but there, as if each took a while.
    for load in endpoints[1:]:
        load.in_flight = 5
    now, calls = 0.0, Counter[bool]()
    for _ in range(300 * count):
        now += 0.001 / count
        chosen = balancer.choose(endpoints, now)
        failed = chosen is endpoints[0]
        calls[failed] += 1
        balancer.record(chosen, 0.001 if failed else 0.010, now, failed=failed)
    assert calls[True] >= 5  # it was tried
    assert calls[True] / 300 < 0.4  # of what an equal one gets


@pytest.mark.parametrize("policy", ALL)
def test_one_that_failed_is_tried_again(policy: str) -> None:
    """An endpoint whose calls all failed keeps a little, and has its share again some time after."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(1, 1, 1)
    for _ in range(20):
        balancer.record(endpoints[0], 0.001, 0.0, failed=True)
    assert balancer.share(endpoints[0], 0.0) == pytest.approx(Balancer.LEAST_TRUST)
    assert 0 < shares(balancer, endpoints, 5000)[0] < 0.1
    after = [balancer.share(endpoints[0], now) for now in range(40)]
    assert after == sorted(after)
    assert after[-1] == 1
    assert shares(balancer, endpoints, 6000, now=40.0)[0] == near(1 / 3, 6000)


def test_successes_restore_trust() -> None:
    """Answers bring back the share of one that failed sooner than time alone."""
    balancer, (load, _) = make_balancer("power_of_two", Random(5)), loads(1, 1)
    for _ in range(5):
        balancer.record(load, 0.01, 0.0, failed=True)
    before = balancer.share(load, 0.0)
    for _ in range(10):
        balancer.record(load, 0.01, 0.0)
    assert before < 0.2
    assert balancer.share(load, 0.0) > 0.8


# The ramp.


@given(
    st.floats(0.1, 1000),
    st.floats(0.01, 1),
    st.lists(st.floats(0, 1200), min_size=2, max_size=20),
)
def test_the_ramp_rises_from_its_floor_to_all(ramp: float, floor: float, ages: list[float]) -> None:
    """The share of an admitted endpoint begins at the floor, never falls, and is 1 after the ramp."""
    balancer = make_balancer(BalancingOptions(ramp=ramp, ramp_floor=floor))
    load = Load()
    balancer.admit(load, 50.0)
    assert balancer.share(load, 50.0) == pytest.approx(floor)
    found = [balancer.share(load, 50.0 + age) for age in sorted(ages)]
    assert found == sorted(found)
    assert balancer.share(load, 50.0 + ramp * 1.001) == 1


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("count", [2, 3, 30])
def test_a_cold_endpoint_is_not_flooded(policy: str, count: int) -> None:
    """With no call in flight where all others have some, a new endpoint still gets less than its share."""

    def cold_share(ramp: float) -> float:
        options = BalancingOptions(policy=policy, ramp=ramp)
        balancer, endpoints = make_balancer(options, Random(5)), loads(*[1] * count)
        for load in endpoints[1:]:
            load.in_flight = 5
            balancer.record(load, 0.01, 100.0)
        balancer.admit(endpoints[0], 100.0)
        return shares(balancer, endpoints, 3000 * count, now=100.0)[0] * count

    # Of two, it gets a tenth of the calls at most: one chance in ten in every decision.
    assert 0 < cold_share(10.0) < (0.25 if count == 2 else 0.5)
    if policy in {"power_of_two", "least_outstanding"}:
        assert cold_share(0.0) > 1.5  # which is what the ramp is there to prevent


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("count", [3, 30])
def test_traffic_follows_the_ramp(policy: str, count: int) -> None:
    """An endpoint's calls grow through the ramp to its full share, and stay there: nothing is made up for."""
    balancer, endpoints = (
        make_balancer(BalancingOptions(policy=policy, ramp=10), Random(5)),
        loads(*[1] * count),
    )
    shares(balancer, endpoints, 50 * count)
    balancer.admit(endpoints[0], 100.0)
    found = [
        shares(balancer, endpoints, 2000 * count, now=100.0 + age)[0] * count for age in (0, 3, 6, 9.99, 12)
    ]
    assert found[0] == pytest.approx(0.1, abs=0.07)
    assert found == pytest.approx(sorted(found), abs=0.12)
    assert 0.25 < found[1] < 0.55
    assert found[3] == pytest.approx(1, abs=0.15)
    assert found[4] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("policy", ALL)
def test_if_all_are_cold_all_are_used(policy: str) -> None:
    """Restraint is relative: when the whole fleet has come back, calls are spread as ever."""
    balancer, endpoints = make_balancer(policy, Random(5)), loads(*[1] * 5)
    for load in endpoints:
        balancer.admit(load, 100.0)
    for share in shares(balancer, endpoints, 5000, now=100.0):
        assert share == pytest.approx(0.2, abs=0.05)


def test_admission_forgets() -> None:
    """An endpoint that comes back is a new process: its latency and failures are not held against it."""
    balancer, (load, other) = make_balancer(BalancingOptions(ramp=5), Random(1)), loads(1, 1)
    balancer.record(other, 0.010, 0.0)
    balancer.record(load, 0.090, 0.0)
    for _ in range(20):
        balancer.record(load, 0.090, 0.0, failed=True)
    balancer.admit(load, 1.0)
    assert balancer.latency(load, 1.0) == balancer.latency(Load(), 1.0)
    assert balancer.share(load, 6.0) == 1
    assert load.admitted_at == 1.0


# What it costs.


class Counted(tuple[Load, ...]):
    """Endpoints that count how often one is looked at."""

    looks = 0

    def __getitem__(self, index: SupportsIndex) -> Load:  # type: ignore[override]
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Load]:
        self.looks += len(self)
        return super().__iter__()


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("weights", [(1,), (1, 3)])
def test_a_decision_does_not_look_at_all_endpoints(policy: str, weights: tuple[float, ...]) -> None:
    """However large the fleet, a decision looks at a few endpoints; only the first one sees them all."""
    endpoints = Counted(loads(*weights * (1000 // len(weights))))
    balancer = make_balancer(policy, Random(5))
    balancer.choose(endpoints, 100.0)
    for index in range(0, 1000, 50):
        balancer.admit(endpoints[index], 100.0)
    endpoints.looks = 0
    most = 0
    for _ in range(500):
        before = endpoints.looks
        balancer.choose(endpoints, 100.0)
        most = max(most, endpoints.looks - before)
    assert most <= Balancer.DRAWS
    assert endpoints.looks / 500 <= 3.5


def test_a_new_tuple_brings_new_weights() -> None:
    """What is known of one tuple is not used for another, though the endpoints are the same."""
    for policy in ALL:
        balancer, endpoints = make_balancer(policy, Random(5)), loads(1, 1)
        assert shares(balancer, endpoints, 4000)[0] == near(0.5, 4000)
        endpoints[0].weight = 3
        endpoints = (endpoints[0], endpoints[1], Load(4))
        found = shares(balancer, endpoints, 8000)
        assert found == [near(3 / 8, 8000), near(1 / 8, 8000), near(4 / 8, 8000)]


def test_tuples_are_not_remembered_for_ever() -> None:
    """Endpoints that come and go for weeks leave nothing behind, and no id is taken for another."""
    balancer = make_balancer("round_robin", Random(5))
    for _ in range(1000):
        endpoints = loads(1, 1, 1)
        assert balancer.choose(endpoints, 0.0) in endpoints
        assert len(balancer._views) <= Balancer.VIEWS
    assert all(key == id(view.endpoints) for key, view in balancer._views.items())


def test_sets_of_endpoints_can_alternate() -> None:
    """Two models with endpoints of their own share a balancer, and each goes on with its own turns."""
    balancer = make_balancer("round_robin", Random(5))
    first, second = loads(1, 1, 1), loads(1, 1)
    found = Counter[int]()
    for _ in range(30):
        found[id(balancer.choose(first, 0.0))] += 1
        found[id(balancer.choose(second, 0.0))] += 1
    assert [found[id(load)] for load in first + second] == [10, 10, 10, 15, 15]


def test_reprs_tell_the_state() -> None:
    """What is logged of a load and a balancer says what they know."""
    balancer, (load,) = make_balancer(), loads(2)
    assert repr(load) == "<Load of weight 2, 0 in flight, latency unknown, 0% failing>"
    assert repr(balancer) == "<PowerOfTwoChoices, typical latency unknown>"
    load.in_flight = 3
    balancer.record(load, 0.0125, 0.0)
    balancer.record(load, 0.001, 0.0, failed=True)
    assert repr(load) == "<Load of weight 2, 3 in flight, latency 0.0125 s, 20% failing>"
    assert repr(balancer) == "<PowerOfTwoChoices, typical latency 0.0125 s>"


def test_all_names_are_exported() -> None:
    """Every policy is public under its class's name."""
    kinds = {RoundRobin, LeastOutstanding, PowerOfTwoChoices, Weighted}
    assert set(POLICIES.values()) == kinds
    assert {kind.__name__ for kind in kinds} <= set(aioserving.balancing.__all__)


# Subsets.

_Names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


@given(_Names, st.text(max_size=100), st.integers(1, 40), st.randoms())
def test_a_subset_is_the_clients_own(targets: list[str], client: str, size: int, random: Random) -> None:
    """The same targets in another order, or named twice, give the same subset, each target once."""
    found = subset(targets, client, size)
    assert len(found) == len(set(found)) == min(size, len(targets))
    assert set(found) <= set(targets)
    shuffled = targets + targets[:2]
    random.shuffle(shuffled)
    assert subset(shuffled, client, size) == found
    assert subset(targets, client, size + 1)[:size] == found


@given(_Names, st.text(max_size=20), st.integers(1, 10), st.text(min_size=1, max_size=8), st.data())
def test_a_subset_changes_as_little_as_can_be(
    targets: list[str], client: str, size: int, added: str, data: st.DataObject
) -> None:
    """One target less changes a subset only if it was in it, by one; one more changes it by one at most."""
    before = subset(targets, client, size)
    gone = data.draw(st.sampled_from(targets))
    after = subset([target for target in targets if target != gone], client, size)
    if gone in before:
        kept = tuple(target for target in before if target != gone)
        assert after[: len(kept)] == kept
    else:
        assert after == before
    more = subset([*targets, added], client, size)
    assert len(set(before) - set(more)) <= 1
    assert set(more) - set(before) <= {added}


def test_subsets_spread_over_the_targets() -> None:
    """Over thousands of clients each target is taken by about as many, as a fair draw would have it."""
    targets = [f"10.0.{index // 256}.{index % 256}:8500" for index in range(100)]
    clients, size = 5000, 10
    taken = Counter(
        target for client in range(clients) for target in subset(targets, f"client-{client}", size)
    )
    expected = clients * size / len(targets)
    deviation = math.sqrt(expected * (1 - size / len(targets)))
    assert set(taken) == set(targets)
    assert max(abs(count - expected) for count in taken.values()) < 4.5 * deviation
    # A sum of squares of a hundred normal deviations, not of some that are alike and some far off.
    assert 50 < sum((count - expected) ** 2 / deviation**2 for count in taken.values()) < 170
    firsts = Counter(subset(targets, f"client-{client}", size)[0] for client in range(clients))
    assert max(firsts.values()) < 2 * clients / len(targets)


def test_the_clients_of_a_lost_target_spread_over_the_rest() -> None:
    """When a target is gone, its clients do not all go to the same other one."""
    targets = [f"server-{index}" for index in range(20)]
    gained: Counter[str] = Counter()
    for client in range(2000):
        before = set(subset(targets, f"{client}", 4))
        gained.update(set(subset(targets[1:], f"{client}", 4)) - before)
    assert gained.total() == pytest.approx(2000 * 4 / 20, rel=0.15)
    assert len(gained) == 19
    assert max(gained.values()) < 3 * gained.total() / 19


def test_a_subset_is_the_same_in_every_process() -> None:
    """The order is a matter of the names alone: of no seed, process, platform or release."""
    targets = [f"server-{index}" for index in range(10)]
    assert subset(targets, "host-1/42", 4) == ("server-8", "server-9", "server-6", "server-2")


def test_a_subset_of_none_is_refused() -> None:
    """A client without any target could not make a call."""
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        subset(["a"], "client", 0)
    assert subset([], "client", 3) == ()
