"""Measuring under load, on a clock of its own, against servers that are a formula."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving.cli.load import (
    UNFINISHED,
    Bisection,
    Load,
    Measurement,
    Plan,
    acceptable,
    constant_arrivals,
    cycle,
    measure,
    parse_loads,
    poisson_arrivals,
    run_precisely,
)
from aioserving.errors import UnavailableError
from aioserving.histogram import Histogram
from tests.fakes import run

CLOSED = Load("concurrency", 8)


def takes(seconds: float, rows: int = 1) -> Callable[[], Awaitable[int]]:
    """A server with any number of hands, each of which takes `seconds`."""

    async def call() -> int:
        await asyncio.sleep(seconds)
        return rows

    return call


class Single:
    """A server with `hands` hands, each of which takes `seconds`; and a time in which it stands still."""

    def __init__(
        self, seconds: float, hands: int = 1, still: tuple[float, float] = (math.inf, math.inf)
    ) -> None:
        self.seconds = seconds
        self.still = still
        self._hands = asyncio.Semaphore(hands)
        self._began = asyncio.get_running_loop().time()

    async def __call__(self) -> int:
        async with self._hands:
            loop = asyncio.get_running_loop()
            now = loop.time() - self._began
            if self.still[0] <= now < self.still[1]:
                await asyncio.sleep(self.still[1] - now)
            await asyncio.sleep(self.seconds)
            return 1


def measured(make: Callable[[], Callable[[], Awaitable[int]]], load: Load, **plan: Any) -> Measurement:
    async def story() -> Measurement:
        return await measure(make(), load, Plan(**plan), cpu=lambda: asyncio.get_running_loop().time() / 10)

    return run(story())


# -- closed loop --------------------------------------------------------------------------------------------


def test_closed_loop() -> None:
    """So many callers get so many answers a second; only what lies in the measured time counts."""
    found = measured(lambda: takes(0.1, rows=3), CLOSED, duration=10, warmup=1)
    assert found.calls_per_second == pytest.approx(80, rel=0.02)
    assert found.rows_per_second == pytest.approx(240, rel=0.02)
    assert found.latency.percentiles((0, 0.5, 1)) == pytest.approx([0.1] * 3, rel=0.003)
    assert found.latency.count == pytest.approx(800, abs=8)
    assert (found.errors, found.error_share) == ({}, 0.0)
    # The clock that stands for CPU time goes at a tenth of the other's speed, for 10 s and about 800 calls.
    assert found.cpu_per_call == pytest.approx(0.1 / 80, rel=0.02)
    assert not found.lag


def test_warmup_does_not_count() -> None:
    """A server that is slow at first is not slow in the numbers."""

    def cold() -> Callable[[], Awaitable[int]]:
        began = asyncio.get_running_loop().time()

        async def call() -> int:
            await asyncio.sleep(1.0 if asyncio.get_running_loop().time() - began < 2 else 0.01)
            return 1

        return call

    assert measured(cold, CLOSED, duration=5, warmup=4).latency.maximum < 0.011
    assert measured(cold, CLOSED, duration=5, warmup=0).latency.maximum > 0.9


@given(st.integers(1, 40), st.floats(0.001, 0.5), st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_littles_law(callers: int, seconds: float, hands: int) -> None:
    """Callers are calls a second times latency, whatever the server: nothing is left out of either."""
    duration = 400 * seconds
    found = measured(
        lambda: Single(seconds, hands), Load("concurrency", callers), duration=duration, warmup=50 * seconds
    )
    assert found.calls_per_second * found.latency.mean == pytest.approx(callers, rel=0.25)
    assert found.calls_per_second == pytest.approx(min(callers, hands) / seconds, rel=0.05)


# -- open loop ----------------------------------------------------------------------------------------------


def test_open_loop() -> None:
    """Calls are made at the rate that was asked for, evenly or at random, whatever they take."""
    for poisson in (False, True):
        found = measured(lambda: takes(3.0), Load("rate", 50), duration=60, warmup=5, poisson=poisson)
        assert found.calls_per_second == pytest.approx(50, rel=0.05)
        assert found.latency.percentile(0.99) == pytest.approx(3.0, rel=0.01)
        assert found.lag.maximum < 1e-6
    assert found.lag.count == found.latency.count
    assert found.cpu_seconds == pytest.approx(6.0)  # of the whole time, though the last call ended before


def test_coordinated_omission_is_not_hidden() -> None:
    """A server that stands still for a second spoils the latency of every call that was due meanwhile."""

    def make() -> Single:
        return Single(0.001, 1, still=(5.0, 6.0))

    open_ = measured(make, Load("rate", 100), duration=10, warmup=0, poisson=False)
    closed = measured(make, Load("concurrency", 1), duration=10, warmup=0)
    # 100 of 1,000 calls were due while it stood still; each waits for what was left of the second.
    assert open_.latency.count == 1000
    assert open_.latency.percentile(0.95) == pytest.approx(0.5, abs=0.15)
    assert open_.latency.maximum == pytest.approx(1.0, abs=0.02)
    # In a closed loop one call tells of it, and the 99th percentile knows nothing.
    assert closed.latency.percentile(0.99) < 0.002
    assert closed.latency.maximum == pytest.approx(1.0, abs=0.02)


def test_bounded_calls_under_way_are_late_and_tell() -> None:
    """When no more calls may be under way, the next are made late, and their latencies tell."""
    found = measured(
        lambda: takes(0.1),
        Load("rate", 100),
        duration=10,
        warmup=0,
        poisson=False,
        max_in_flight=5,
        drain=100,
    )
    # 5 hands of 0.1 s do 50 a second: the last call is made 10 s after it was due.
    assert found.calls_per_second == pytest.approx(50, rel=0.03)
    assert found.latency.count == 1000
    assert found.latency.maximum == pytest.approx(10, rel=0.03)
    assert found.lag.maximum == pytest.approx(9.9, rel=0.03)


def test_what_never_ends_is_counted() -> None:
    """Calls without an answer, and those that there was no room for, are errors, and as long as they took."""
    found = measured(
        lambda: takes(1e6), Load("rate", 10), duration=10, warmup=0, poisson=False, max_in_flight=20, drain=5
    )
    assert found.errors == {UNFINISHED: 100}
    assert found.error_share == 1.0
    assert found.calls == 0
    assert found.latency.count == 100
    assert found.latency.maximum == pytest.approx(15, rel=0.01)
    assert math.isnan(found.cpu_per_call)
    closed = measured(lambda: takes(1e6), CLOSED, duration=10, warmup=0, drain=5)
    assert closed.errors == {UNFINISHED: 8}


@given(st.floats(0.5, 5000), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_arrivals(rate: float, seed: int) -> None:
    """Arrivals never go back; constant ones do not drift, random ones keep the rate and repeat by seed."""
    even = list(itertools.islice(constant_arrivals(rate), 2000))
    drawn = list(itertools.islice(poisson_arrivals(rate, seed), 2000))
    assert even == sorted(even)
    assert drawn == sorted(drawn)
    assert even[-1] == pytest.approx(1999 / rate)
    assert drawn[-1] == pytest.approx(2000 / rate, rel=0.15)
    assert drawn == list(itertools.islice(poisson_arrivals(rate, seed), 2000))
    gaps = [later - earlier for earlier, later in itertools.pairwise(drawn)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(mean, rel=0.2)  # that of an exponential distribution


# -- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [CLOSED, Load("rate", 200)])
def test_errors_by_code(load: Load) -> None:
    """Failed calls are counted by code, with an example, and are in no latency and no throughput."""

    def make() -> Callable[[], Awaitable[int]]:
        draw = random.Random(1)

        async def call() -> int:
            await asyncio.sleep(0.01)
            chance = draw.random()
            if chance < 0.1:
                raise UnavailableError("down\nfor a while")
            if chance < 0.2:
                raise KeyError("x")
            return 1

        return call

    found = measured(make, load, duration=20, warmup=1)
    assert set(found.errors) == {"UNAVAILABLE", "KeyError"}
    assert "down for a while" in found.examples["UNAVAILABLE"]
    assert found.error_share == pytest.approx(0.2, rel=0.15)
    assert found.latency.maximum < 0.011


def test_refusals_at_once_do_not_spin() -> None:
    """A call that fails without waiting neither stops the clock nor the other callers."""

    async def refused() -> int:
        raise ConnectionError("refused")

    found = measured(lambda: refused, CLOSED, duration=1, warmup=0)
    assert found.errors["ConnectionError"] == pytest.approx(8000, rel=0.02)


# -- living with others -------------------------------------------------------------------------------------


def test_ticks() -> None:
    """Progress is told while it runs, and goes from nothing to everything."""
    seen: list[tuple[int, float]] = []

    async def story() -> Measurement:
        return await measure(
            takes(0.1), CLOSED, Plan(duration=10, warmup=0),
            tick=lambda found, share: seen.append((found.calls, share)), interval=1.0,
        )  # fmt: skip

    run(story())
    assert len(seen) >= 9
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert abs(seen[4][0] - 400) <= 8
    assert seen[4][1] == pytest.approx(0.5)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot be told what loop to run")
def test_timers_are_precise() -> None:
    """A wait of 0.3 ms takes less than the whole millisecond that the usual loop makes of it."""

    async def story() -> float:
        loop = asyncio.get_running_loop()
        taken = []
        for _ in range(50):
            began = loop.time()
            await asyncio.sleep(0.0003)
            taken.append(loop.time() - began)
        return min(taken)  # others may be at work on this machine

    assert 0.0003 <= run_precisely(story()) < 0.0009


def test_cancelled() -> None:
    """A measurement that is cancelled leaves no call and no timer behind."""
    ended: list[int] = []

    async def call() -> int:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(1)
        return 1

    async def story() -> None:
        for load in (CLOSED, Load("rate", 10)):
            task = asyncio.ensure_future(measure(call, load, Plan(duration=100, warmup=0)))
            await asyncio.sleep(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(story())  # which asserts that no task is left
    assert len(ended) > 30


def test_cycle() -> None:
    """Inputs are taken in turn, over and over; none are a mistake."""
    seen: list[str] = []

    async def call(given: str) -> int:
        seen.append(given)
        return 1

    async def story() -> None:
        one = cycle(call, ["a", "b", "c"])
        for _ in range(5):
            await one()

    run(story())
    assert seen == ["a", "b", "c", "a", "b"]
    with pytest.raises(ValueError, match="no inputs"):
        cycle(call, [])


# -- loads and limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8", [8]),
        ("1,8,64", [1, 8, 64]),
        ("1:64", [1, 2, 4, 8, 16, 32, 64]),
        ("3:20", [3, 6, 12, 20]),
        ("10:50:10", [10, 20, 30, 40, 50]),
        ("1:4,4,100", [1, 2, 4, 100]),
        ("5:5", [5]),
    ],
)
def test_parse_loads(text: str, values: list[float]) -> None:
    """Single values, lists, doubled ranges and steps; each value once, in order."""
    assert [load.value for load in parse_loads(text, "concurrency")] == values


@pytest.mark.parametrize("text", ["", "x", "0", "1:", "8:1", "1:8:0", "1:8:1:1", "-1", "nan", "inf", "1.5"])
def test_loads_that_are_none(text: str) -> None:
    """What is no number of callers is refused with an example of what is."""
    with pytest.raises(ValueError, match="concurrency"):
        parse_loads(text, "concurrency")
    assert parse_loads("1.5", "rate") == [Load("rate", 1.5)]


@pytest.mark.parametrize(
    "wrong", [{"duration": 0}, {"duration": math.inf}, {"warmup": -1}, {"drain": -1}, {"max_in_flight": 0}]
)
def test_plans_that_make_no_sense(wrong: dict[str, Any]) -> None:
    """A setting that is out of range is named."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 600))
def test_bisection_of_whole_numbers(low: int, more: int, limit: int) -> None:
    """The highest good number is found, in as many steps as it has bits, and no value is tried twice."""
    high = low + more
    search = Bisection(low, high)
    tried = []
    while (value := search.next()) is not None:
        tried.append(value)
        search.tell(value <= limit)
    assert search.best == (None if limit < low else min(limit, high))
    assert len(tried) == len(set(tried)) <= 2 + max(more, 1).bit_length()
    assert all(value == int(value) for value in tried)
    with pytest.raises(ValueError, match="over"):
        search.tell(True)


@given(st.floats(1, 1000), st.floats(1, 100), st.floats(0, 2000))
def test_bisection_of_rates(low: float, resolution: float, limit: float) -> None:
    """A rate is found within the resolution."""
    search = Bisection(low, 1000, resolution)
    while (value := search.next()) is not None:
        search.tell(value <= limit)
    if limit < low:
        assert search.best is None
    else:
        best = search.best
        assert best is not None
        assert best <= limit
        assert best == 1000 or limit - best <= resolution


def test_acceptable() -> None:
    """A load is well borne if few calls fail, the latency is within its limit, and the rate is kept up."""

    def found(load: Load, seconds: float, calls: int = 1000, errors: int = 0) -> Measurement:
        item = Measurement(load, 10.0, Histogram(), calls=calls)
        item.latency.record(seconds, calls)
        item.errors["UNAVAILABLE"] += errors
        return item

    fine = {"limit": 0.02, "share": 0.99}
    assert acceptable(found(CLOSED, 0.019), **fine)
    assert not acceptable(found(CLOSED, 0.021), **fine)
    assert acceptable(found(CLOSED, 0.019, errors=10), **fine)
    assert not acceptable(found(CLOSED, 0.019, errors=11), **fine)
    assert acceptable(found(Load("rate", 100), 0.019), **fine)
    assert not acceptable(found(Load("rate", 110), 0.019), **fine)
    assert not acceptable(Measurement(CLOSED, 10.0), **fine)


def test_as_json() -> None:
    """A measurement is written with plain values, its load under its own name, and no NaN."""
    found = measured(lambda: takes(0.1), CLOSED, duration=5, warmup=0).to_dict()
    assert (found["concurrency"], found["errors"], found["lag"]) == (8, {}, None)
    assert set(found["latency"]) == {"mean", "min", "p50", "p90", "p95", "p99", "p99.9", "max"}
    assert Measurement(Load("rate", 2.5), 1.0).to_dict()["cpu_seconds_per_call"] is None
    assert (str(CLOSED), str(Load("rate", 2.5))) == ("8", "2.5 calls/s")
