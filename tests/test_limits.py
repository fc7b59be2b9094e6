"""Limits settle near what a server works on at a time, keep goodput up in overload, and follow the server."""

from __future__ import annotations

import importlib
import math
import pathlib
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import closing
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.limits import AdaptiveLimit, AIMDLimit, FixedLimit, GradientLimit, Limit, make_limit
from aioserving.queueing import WaitingQueue

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
ADAPTIVE: dict[str, Callable[[], Limit]] = {
    "aimd": lambda: make_limit(AdaptiveLimit(kind="aimd")),
    "aimd with a timeout": lambda: make_limit(AdaptiveLimit(kind="aimd", timeout=0.1)),
    "gradient": lambda: make_limit(AdaptiveLimit()),
}


@pytest.fixture(scope="module")
def overload() -> Iterator[ModuleType]:
    """`bench/overload.py`, which is a script, not a package's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("overload")
    sys.modules.pop("overload", None)


@pytest.mark.parametrize(("workers", "service"), [(4, 0.010), (8, 0.200), (16, 0.050), (64, 0.050)])
def test_gradient_settles_near_the_servers_concurrency(
    overload: ModuleType, workers: int, service: float
) -> None:
    """In overload the gradient limit is between once and 2.5 times what the server works on at a time."""
    server = overload.Server(workers, service)
    with closing(overload.Simulation(server, make_limit(AdaptiveLimit()), deadline=1.0)) as simulation:
        simulation.run(20.0, 3.0)
        outcome = simulation.run(10.0, 3.0)
    assert workers <= outcome.limit <= 2.5 * workers


def test_gradient_does_not_creep_up_in_a_long_overload(overload: ModuleType) -> None:
    """However long the overload lasts, its own queue at the server never becomes the normal latency."""
    server = overload.Server(8, 0.020)
    with closing(overload.Simulation(server, make_limit(AdaptiveLimit()), deadline=0.5)) as simulation:
        simulation.run(20.0, 2.0)
        limits = [simulation.run(10.0, 2.0).limit for _ in range(8)]
    assert max(limits) <= 20
    assert abs(limits[-1] - limits[0]) <= 4


@pytest.mark.parametrize(
    ("kind", "order", "room"),
    [
        ("gradient", "fifo", math.inf),
        ("gradient", "adaptive", math.inf),
        # Of an endless queue at the server only latency tells, ...
        ("aimd with a timeout", "fifo", math.inf),
        ("aimd", "adaptive", math.inf),
        # ... of one that is full, refusals.
        ("aimd", "fifo", 30),
        ("gradient", "fifo", 4),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_goodput_at_three_times_the_capacity(
    overload: ModuleType, kind: str, order: Any, room: float, seed: int
) -> None:
    """At 3 and 5 times the capacity goodput is at least 90 % of the peak over all loads."""
    goodput = {}
    for load in (0.5, 0.9, 1.5, 3.0, 5.0):
        simulation = overload.Simulation(
            overload.Server(8, 0.020, room=room),
            ADAPTIVE[kind](),
            deadline=0.5,
            seed=seed,
            queue=WaitingQueue(order=order),
        )
        with closing(simulation):
            simulation.run(10.0, load)
            outcome = simulation.run(10.0, load)
        goodput[load] = outcome.goodput
        # 0.5 s at full capacity are 200 calls: in order, nobody waits who could not be served.
        assert outcome.longest_queue <= (300 if order == "fifo" else 0.5 * outcome.arrived / 10 * 1.3)
    assert goodput[0.5] > 0.45
    assert max(goodput.values()) > 0.9
    assert goodput[3.0] >= 0.9 * max(goodput.values())
    assert goodput[5.0] >= 0.9 * max(goodput.values())


def test_adaptive_order_saves_goodput_where_deadlines_are_unseen(overload: ModuleType) -> None:
    """Of callers that cancel unannounced, those served in order are all lost, newest first hardly any."""
    goodput = {}
    for order in ("fifo", "adaptive"):
        simulation = overload.Simulation(
            overload.Server(8, 0.020),
            make_limit(AdaptiveLimit()),
            deadline=0.5,
            queue=WaitingQueue(order=order),
            seen=False,
        )
        with closing(simulation):
            simulation.run(10.0, 3.0)
            goodput[order] = simulation.run(10.0, 3.0).goodput
    assert goodput["fifo"] < 0.1
    assert goodput["adaptive"] > 0.9


def test_without_a_limit_overload_leaves_nothing(overload: ModuleType) -> None:
    """The simulated server is one that collapses by itself, or the other tests would prove nothing."""
    server = overload.Server(8, 0.020)
    with closing(overload.Simulation(server, FixedLimit(1_000_000), deadline=0.5)) as simulation:
        simulation.run(10.0, 3.0)
        assert simulation.run(10.0, 3.0).goodput < 0.05


@pytest.mark.parametrize("kind", ["aimd with a timeout", "gradient"])
def test_recovers_when_the_server_gets_faster(overload: ModuleType, kind: str) -> None:
    """A server that comes back with four times the workers is used to at least 90 % after 20 s."""
    server = overload.Server(4, 0.020)
    with closing(overload.Simulation(server, ADAPTIVE[kind](), deadline=0.5)) as simulation:
        simulation.run(20.0, 3.0)
        server.workers = 16
        simulation.run(20.0, 3.0)
        assert simulation.run(10.0, 3.0).goodput >= 0.9


@pytest.mark.parametrize("order", ["fifo", "adaptive"])
def test_gradient_follows_service_times_both_ways(overload: ModuleType, order: Any) -> None:
    """A server that becomes five times slower, and fast again, is used to 90 % after 20 s each time."""
    server = overload.Server(8, 0.020)
    simulation = overload.Simulation(
        server, make_limit(AdaptiveLimit()), deadline=1.0, queue=WaitingQueue(order=order)
    )
    with closing(simulation):
        simulation.run(20.0, 3.0)
        for service in (0.100, 0.020):
            server.service = service
            simulation.run(20.0, 3.0)
            outcome = simulation.run(10.0, 3.0)
            assert outcome.goodput >= 0.9, (service, simulation.limit)
            assert 8 <= outcome.limit <= 24


def answer(
    limit: Limit, count: int, *, latency: float = 0.01, at: float = 0.0, in_flight: int = 1000
) -> None:
    for _ in range(count):
        limit.record(latency, in_flight, False, at)


def test_aimd_grows_by_one_in_a_round() -> None:
    """As many answers as the limit raise it by one, no more."""
    limit = AIMDLimit(initial=10)
    answer(limit, 9)
    assert limit.limit == 10
    answer(limit, 2)
    assert limit.limit == 11
    answer(limit, 12)
    assert limit.limit == 12


def test_aimd_backs_off_once_for_calls_that_were_under_way_together() -> None:
    """Drops of calls sent before a decrease do not decrease again; the next one sent after it does."""
    limit = AIMDLimit(initial=100)
    for _ in range(50):
        limit.record(0.5, 100, True, 10.0)
    assert limit.limit == 90
    limit.record(0.5, 90, True, 10.4)
    assert limit.limit == 90
    limit.record(0.5, 90, True, 10.6)
    assert limit.limit == 81
    assert limit.drops == 2


def test_aimd_takes_a_slow_answer_for_a_drop() -> None:
    """An answer later than `timeout` lowers the limit, one in time does not."""
    limit = AIMDLimit(initial=100, timeout=0.2)
    limit.record(0.2, 100, False, 1.0)
    assert limit.limit == 100
    limit.record(0.21, 100, False, 1.0)
    assert limit.limit == 90


@pytest.mark.parametrize("kind", ["aimd", "gradient"])
def test_no_growth_while_less_than_half_is_used(kind: str) -> None:
    """A limit that nobody comes near learns nothing and stays."""
    limit = ADAPTIVE[kind]()
    answer(limit, 1000, in_flight=9)
    assert limit.limit == 20
    answer(limit, 1000, in_flight=20)
    assert limit.limit > 20


@pytest.mark.parametrize("kind", ["aimd", "gradient"])
def test_a_drop_lowers_the_limit_to_the_minimum_at_last(kind: str) -> None:
    """Drops in round after round go down to the minimum, by one at least, and answers go up again."""
    limit = make_limit(AdaptiveLimit(kind=kind, initial=7, minimum=2))  # type: ignore[arg-type]
    seen = []
    for second in range(10):
        limit.record(0.01, 7, True, float(second))
        seen.append(limit.limit)
    assert seen[:5] == [6, 5, 4, 3, 2]
    assert seen[-1] == 2
    answer(limit, 200, at=20.0)
    assert limit.limit > 2


def test_gradient_probes_with_a_third_of_the_limit_and_ends_the_probe() -> None:
    """A probe cuts the limit until a round of calls sent under it has been measured, and counts no others."""
    limit = GradientLimit(initial=40, probe_interval=1.0)
    answer(limit, 40, latency=0.1, at=0.0)
    before = limit.limit
    answer(limit, 60, latency=0.1, at=2.0)
    assert "probing" in repr(limit)
    assert limit.limit <= before // 3 + 2
    # Still more in flight than the probe allows: none of these calls counts.
    answer(limit, 100, latency=0.1, at=2.05, in_flight=40)
    assert limit.probes == 0
    answer(limit, 100, latency=0.03, at=2.2, in_flight=13)
    assert limit.probes == 1
    assert limit.expected == pytest.approx(0.03)
    assert limit.limit >= before - 2


def test_gradient_lowers_its_limit_when_latency_rises() -> None:
    """Latency at four times the expected one lowers the limit round by round, within its bounds."""
    limit = GradientLimit(initial=100, probe_interval=1000.0)
    answer(limit, 200, latency=0.01, at=1.0)
    high = limit.limit
    assert high >= 100
    answer(limit, 3 * high, latency=0.04, at=1.0)
    assert limit.limit < 0.85 * high


@given(
    kind=st.sampled_from(["aimd", "gradient"]),
    minimum=st.integers(1, 5),
    records=st.lists(
        st.tuples(st.floats(0, 10), st.integers(1, 200), st.booleans(), st.floats(0, 2), st.integers(1, 60)),
        max_size=60,
    ),
)
def test_limits_stay_in_their_bounds(
    kind: str, minimum: int, records: list[tuple[float, int, bool, float, int]]
) -> None:
    """Whatever is recorded, the limit is a whole number from minimum to maximum, and the repr can be read."""
    limit = make_limit(
        AdaptiveLimit(kind=kind, initial=10, minimum=minimum, maximum=50, probe_interval=1.0)  # type: ignore[arg-type]
    )
    now = 0.0
    for latency, in_flight, dropped, pause, times in records:
        now += pause
        for _ in range(times):
            limit.record(latency, in_flight, dropped, now)
            assert type(limit.limit) is int
            assert minimum <= limit.limit <= 50
    assert str(limit.limit) in repr(limit)


def test_make_limit_makes_one_for_each_endpoint() -> None:
    """A number gives a fixed limit, options give what they name with all they say, and nothing is shared."""
    fixed = make_limit(7)
    fixed.record(1.0, 7, True, 0.0)
    assert (fixed.limit, repr(fixed)) == (7, "FixedLimit(7)")
    option = AdaptiveLimit(kind="aimd", initial=5, minimum=2, maximum=9, backoff=0.5, timeout=1.5)
    aimd = make_limit(option)
    assert isinstance(aimd, AIMDLimit)
    assert (aimd.limit, aimd.minimum, aimd.maximum, aimd.backoff, aimd.timeout) == (5, 2, 9, 0.5, 1.5)
    assert make_limit(option) is not aimd
    gradient = make_limit(
        AdaptiveLimit(initial=5, tolerance=2.0, smoothing=0.5, queue=3, probe_interval=9.0, maximum=8)
    )
    assert isinstance(gradient, GradientLimit)
    assert (gradient.limit, gradient.tolerance, gradient.smoothing) == (5, 2.0, 0.5)
    assert (gradient.queue, gradient.probe_interval, gradient.maximum) == (3, 9.0, 8)
    assert gradient.timeout == math.inf


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "vegas"}, "kind"),
        ({"initial": 0}, "initial"),
        ({"initial": 2.5}, "initial"),
        ({"initial": 30, "maximum": 20}, "initial"),
        ({"minimum": 0}, "minimum"),
        ({"minimum": 5, "maximum": 4}, "maximum"),
        ({"backoff": 1.0}, "backoff"),
        ({"timeout": 0.0}, "timeout"),
        ({"tolerance": 0.9}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"smoothing": 0.0}, "smoothing"),
        ({"queue": 0}, "queue"),
        ({"probe_interval": math.inf}, "probe_interval"),
    ],
)
def test_options_are_checked(options: dict[str, object], named: str) -> None:
    """A value that makes no sense is refused when it is given, by its name."""
    with pytest.raises(ValueError, match=f"^{named} must be"):
        AdaptiveLimit(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, True, 1.5, "7"])
def test_a_fixed_limit_is_checked(limit: int) -> None:
    """Only whole numbers from 1 are limits."""
    with pytest.raises(ValueError, match="^limit must be"):
        make_limit(limit)


@pytest.mark.parametrize("kind", ["aimd", "gradient"])
def test_recording_is_cheap(kind: str) -> None:
    """Recording costs below 5 µs even on a busy machine (0.1 to 0.3 µs on an idle one)."""
    limit = ADAPTIVE[kind]()
    best = min(timeit.repeat(lambda: limit.record(0.01, 5, False, 1.0), number=2000, repeat=5)) / 2000
    assert best < 5e-6
