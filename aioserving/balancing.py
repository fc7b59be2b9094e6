"""Which endpoint takes the next call: policies as functions of counts, estimates and the clock.

A `Load` is what a policy has to know of an endpoint; endpoints derive from it. A `Balancer` chooses one
(`Balancer.choose`) and is told how calls went (`Balancer.record`). `subset` gives a client of a very
large fleet the few endpoints that it should connect to. Nothing here reads a clock, waits or sends:
who counts calls in flight, resolves names, ejects endpoints and retries is the pool above, which passes in
the endpoints that may be chosen.

Policies
    ``"power_of_two"``       two endpoints at random, of which the one with the lower cost: its latency
                             times the calls it would have in flight. The default.
    ``"least_outstanding"``  the fewest calls in flight for its weight; in turn among equals.
    ``"round_robin"``        in turn, as often as the weights say.
    ``"weighted"``           in turn, as often as weight and measured speed say.

Cost of a decision
    None looks at all endpoints of a large fleet: `power_of_two` takes the same time for 3 and for 3000,
    `least_outstanding` compares a sample when there are more than `LeastOutstanding.SCAN`, and the turns
    are kept in a heap. What depends on the set of endpoints is computed once per tuple, so pass the same
    tuple object as long as the set stays the same, and a new one when members or weights change.

Latency
    A peak-sensitive moving average: a slow answer counts at once and in full, faster ones bring the
    estimate down with the time constant `BalancingOptions.decay`. What was learned is forgotten at the
    same pace, towards the mean of the fleet, so that an endpoint that was slow once is tried again, and
    one that nobody has tried yet counts as an average one, not as the fastest.

Restraint
    An endpoint that has just been admitted (`Balancer.admit`) has no calls in flight, and one that fails
    at once never has: to all policies they look idle. So an endpoint under restraint takes part in a
    decision only with the probability `Balancer.share`, which after admission grows from `ramp_floor` to
    1 within `ramp` seconds, and drops with the share of calls that failed lately.

Why these defaults
    They were chosen by simulation, on fleets of three and of two hundred servers with slow and uneven
    machines, restarts, crashes, pauses and growth (`bench/bench_balancing.py`; the tables are in
    `bench/results/balancing.md`). `power_of_two` had the lowest 99th percentile in nearly all of them, and
    was never far from it; each of the others was bad somewhere: those that go by turns alone where servers
    are slow or hang, `least_outstanding` where each client of a large fleet has few calls in flight to
    judge by. A ramp of 10 s kept servers from being flooded that take 5 s to warm up, and nearly so 10 s;
    with 20 s or more a fleet of three misses the one that is held back.
"""

from __future__ import annotations

import heapq
import math
import random as random_module
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, TypeVar

__all__ = [
    "POLICIES",
    "Balancer",
    "BalancingOptions",
    "LeastOutstanding",
    "Load",
    "PowerOfTwoChoices",
    "RoundRobin",
    "Weighted",
    "make_balancer",
    "subset",
]


@dataclass(frozen=True, kw_only=True)
class BalancingOptions:
    """How endpoints are chosen, and how carefully new ones are."""

    #: Name of the policy, one of `POLICIES`.
    policy: str = "power_of_two"
    #: Seconds in which the share of an endpoint that was added or came back grows to the full one; 0 gives
    #: it its full share at once.
    ramp: float = 10.0
    #: Share at the beginning of the ramp, above 0 and up to 1.
    ramp_floor: float = 0.1
    #: Seconds in which what is known of latencies and failures loses its weight (to 1/e).
    decay: float = 10.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}; got {self.policy!r}")
        if not 0 <= self.ramp < math.inf:
            raise ValueError(f"ramp must be a number of seconds, at least 0, got {self.ramp!r}")
        if not 0 < self.ramp_floor <= 1:
            raise ValueError(f"ramp_floor must be above 0 and at most 1, got {self.ramp_floor!r}")
        if not 0 < self.decay < math.inf:
            raise ValueError(f"decay must be a number of seconds above 0, got {self.decay!r}")


class Load:
    """What a policy knows of one endpoint; endpoints derive from it.

    `weight`, `limit` and `in_flight` are kept by the owner, the rest by the `Balancer`.

    Args:
        weight: how many calls it should get in proportion to others, above 0.
        limit: calls in flight from which on others are preferred.

    Raises:
        ValueError: the weight is not a number above 0.
    """

    __slots__ = (
        "admitted_at",
        "failed_at",
        "failing",
        "in_flight",
        "latency",
        "limit",
        "observed_at",
        "restrained_until",
        "turn",
        "weight",
    )

    def __init__(self, weight: float = 1.0, limit: float = math.inf) -> None:
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be a number above 0, got {weight!r}")
        self.weight = weight
        self.limit = limit
        #: Calls under way now.
        self.in_flight = 0
        #: When it was last admitted; minus infinity if it has been there from the beginning.
        self.admitted_at = -math.inf
        #: The latency estimate, in seconds, as it was at `observed_at`.
        self.latency = 0.0
        #: When the latency estimate was last renewed; minus infinity if it never was.
        self.observed_at = -math.inf
        #: The share of calls that failed lately, from 0 to 1, as it was at `failed_at`, less later successes.
        self.failing = 0.0
        #: When a call last failed; minus infinity if none did.
        self.failed_at = -math.inf
        #: When the last of its restraints ends.
        self.restrained_until = -math.inf
        #: When it is due again, on the balancer's count of turns.
        self.turn = 0.0

    def __repr__(self) -> str:
        known = "latency unknown" if self.observed_at == -math.inf else f"latency {self.latency:.3g} s"
        return (
            f"<{type(self).__name__} of weight {self.weight:g}, {self.in_flight} in flight, {known}, "
            f"{self.failing:.0%} failing>"
        )


L = TypeVar("L", bound=Load)


class _View:
    """What can be known in advance of one tuple of endpoints."""

    __slots__ = ("cumulative", "due", "endpoints", "pairs", "total", "unit")

    def __init__(self, endpoints: tuple[Load, ...]) -> None:
        # Held, so that no other tuple can get its id.
        self.endpoints = endpoints
        #: Ordered pairs of two different endpoints.
        self.pairs = len(endpoints) * (len(endpoints) - 1)
        weights = [load.weight for load in endpoints]
        self.total = sum(weights)
        #: The mean weight.
        self.unit = self.total / len(endpoints)
        #: Sums of the weights so far; None if all are alike.
        self.cumulative = None if min(weights) == max(weights) else list(accumulate(weights))
        #: A heap of (turn, index), of the policies that go by turns.
        self.due: list[tuple[float, int]] = []


class Balancer(ABC):
    """A policy with its memory; one for each client, or for each model if their latencies differ much.

    All methods are plain functions of this memory, the loads and the time, which is passed in: seconds on
    any clock that does not run backwards.

    Args:
        options: settings; of them `BalancingOptions.policy` is not looked at here.
        random: where chance comes from.
    """

    #: The name that `make_balancer` knows it by.
    name: ClassVar[str]

    #: Weight of one outcome in the share of failures: five failures in a row give two thirds.
    FAILURE_GAIN: ClassVar[float] = 0.2
    #: Share of its traffic that an endpoint keeps though all its calls fail, lest it were never tried again.
    LEAST_TRUST: ClassVar[float] = 0.02
    #: Weight of one answer in the fleet's mean latency, in the long run.
    FLEET_GAIN: ClassVar[float] = 0.02
    #: The highest value, in terms of that mean, with which an answer enters it.
    FLEET_CAP: ClassVar[float] = 3.0
    #: The highest estimate in terms of the fleet's mean. Without it an endpoint that hung for seconds would
    #: be avoided for a minute after.
    CEILING: ClassVar[float] = 10.0
    #: Candidates looked at before all endpoints are: enough unless nearly all are full or restrained.
    DRAWS: ClassVar[int] = 8
    #: Tuples of endpoints that are remembered.
    VIEWS: ClassVar[int] = 64

    def __init__(
        self, options: BalancingOptions | None = None, random: random_module.Random | None = None
    ) -> None:
        self.options = options or BalancingOptions()
        self._random = (random or random_module.Random()).random  # noqa: S311 - nothing secret
        self._ramp = self.options.ramp
        self._floor = self.options.ramp_floor
        self._rate = -1 / self.options.decay
        #: Mean latency of the fleet; any number above 0 until the first answer, which replaces it.
        self._typical = 1.0
        self._gain = 1.0
        self._views: dict[int, _View] = {}

    def __repr__(self) -> str:
        typical = "unknown" if self._gain == 1 else f"{self._typical:.3g} s"
        return f"<{type(self).__name__}, typical latency {typical}>"

    @abstractmethod
    def choose(self, endpoints: tuple[L, ...], now: float, exclude: Collection[Load] = ()) -> L:
        """The endpoint to send the next call to; its `in_flight` is left to the caller to count.

        Args:
            endpoints: those that may be chosen, at least one.
            now: the time.
            exclude: those of them that are chosen only if there is no other, because this same call has
                been there.

        Returns:
            One that is neither full nor excluded if there is such a one; else one that is not excluded, if
            there is; else any.
        """

    def record(self, load: Load, latency: float, now: float, *, failed: bool = False) -> None:
        """Learn how a call ended.

        Args:
            load: the endpoint that it was sent to.
            latency: seconds that it took.
            now: the time at its end.
            failed: the endpoint is to blame; a request refused as wrong is none of its failures.
        """
        typical = self._typical
        if failed:
            failing = load.failing * math.exp((now - load.failed_at) * self._rate)
            load.failing = failing + (1 - failing) * self.FAILURE_GAIN
            load.failed_at = now
            # Three time constants later, what is left of it does not matter any more.
            load.restrained_until = max(load.restrained_until, now - 3 / self._rate)
            # How long a failure took tells something only if an answer would have come sooner.
            kept = math.exp((now - load.observed_at) * self._rate)
            if latency <= typical + (load.latency - typical) * kept:
                return
        else:
            if load.failing:
                load.failing *= 1 - self.FAILURE_GAIN
            gain = self._gain
            # Capped, lest a few calls that hung for seconds make seconds look usual.
            seen = latency if gain == 1 or latency < typical * self.FLEET_CAP else typical * self.FLEET_CAP
            self._typical = typical = typical + gain * (seen - typical)
            if gain > self.FLEET_GAIN:
                self._gain = gain / (1 + gain)
        estimate = load.latency
        if latency < estimate:
            latency += (estimate - latency) * math.exp((now - load.observed_at) * self._rate)
        ceiling = typical * self.CEILING
        load.latency = latency if latency < ceiling else ceiling  # noqa: FURB136 - quicker than min()
        load.observed_at = now

    def admit(self, load: Load, now: float) -> None:
        """Begin the ramp of an endpoint that was added, or came back, and forget what was known of it.

        Endpoints of the first hour need not be admitted: where all are new, none has to be spared.
        """
        load.admitted_at = now
        load.restrained_until = now + self._ramp
        load.latency = load.failing = 0.0
        load.observed_at = load.failed_at = -math.inf

    def latency(self, load: Load, now: float) -> float | None:
        """The latency, in seconds, that an endpoint is expected to have; None if there was no answer yet."""
        if self._gain == 1 and load.observed_at == -math.inf:
            return None
        kept = math.exp((now - load.observed_at) * self._rate)
        return self._typical + (load.latency - self._typical) * kept

    def share(self, load: Load, now: float) -> float:
        """The part, above 0 and up to 1, of its usual traffic that an endpoint gets now."""
        if now >= load.restrained_until:
            return 1.0
        share = 1.0
        age = now - load.admitted_at
        if age < self._ramp:
            share = self._floor + (1 - self._floor) * max(age, 0.0) / self._ramp
        if load.failing:
            trust = 1 - load.failing * math.exp((now - load.failed_at) * self._rate)
            share *= max(trust * trust, self.LEAST_TRUST)
        return share

    def _view(self, endpoints: tuple[Load, ...]) -> _View:
        if not endpoints:
            raise ValueError("there is no endpoint to choose")
        if len(self._views) >= self.VIEWS:
            self._views.clear()
        view = self._views[id(endpoints)] = _View(endpoints)
        return view

    def _takes_part(self, load: Load, now: float, exclude: Collection[Load]) -> bool:
        if load.in_flight >= load.limit or (exclude and load in exclude):
            return False
        return now >= load.restrained_until or self._random() < self.share(load, now)

    def _draw(self, view: _View) -> int:
        """The index of an endpoint, at random by weight."""
        if view.cumulative is None:
            return int(self._random() * len(view.endpoints))
        return min(bisect(view.cumulative, self._random() * view.total), len(view.endpoints) - 1)

    def _any(self, endpoints: tuple[L, ...], now: float, exclude: Collection[Load]) -> L:
        """The last resort: one of the best kind there is, by weight and share."""
        rest: Sequence[L] = [load for load in endpoints if load not in exclude] or endpoints
        rest = [load for load in rest if load.in_flight < load.limit] or rest
        if len(rest) == 1:
            return rest[0]
        sums = list(accumulate(load.weight * self.share(load, now) for load in rest))
        return rest[min(bisect(sums, self._random() * sums[-1]), len(rest) - 1)]


class PowerOfTwoChoices(Balancer):
    """Of two endpoints drawn by weight the one with the lower cost: latency x (1 + in flight / weight).

    Two choices are enough to keep the longest queue short, and, other than choosing the best of all, do
    not send every client of a fleet to the same endpoint at the same time. The second one has to be better
    by the factor `TOLERANCE`, or the first is taken: so differences that mean nothing leave the spread by
    weight as it is.
    """

    name = "power_of_two"

    #: How many times lower the cost of the second must be.
    TOLERANCE: ClassVar[float] = 1.25

    def choose(self, endpoints: tuple[L, ...], now: float, exclude: Collection[Load] = ()) -> L:
        """Of two at random, the one with the lower cost; see `Balancer.choose`."""
        view = self._views.get(id(endpoints)) or self._view(endpoints)
        pairs = view.pairs
        if not pairs:
            return endpoints[0]
        if exclude or view.cumulative is not None:
            return self._choose_among(endpoints, view, now, exclude, [])
        # One random number gives an ordered pair of two different ones.
        index, other = divmod(int(self._random() * pairs), len(endpoints) - 1)
        first = endpoints[index]
        second = endpoints[other + 1 if other >= index else other]
        in_flight, others = first.in_flight, second.in_flight
        if (
            now < first.restrained_until
            or now < second.restrained_until
            or in_flight >= first.limit
            or others >= second.limit
        ):
            return self._choose_among(endpoints, view, now, exclude, [first, second])
        typical, rate = self._typical, self._rate
        latency = typical + (first.latency - typical) * math.exp((now - first.observed_at) * rate)
        its = typical + (second.latency - typical) * math.exp((now - second.observed_at) * rate)
        return second if its * (others + 1) * self.TOLERANCE < latency * (in_flight + 1) else first

    def _choose_among(
        self, endpoints: tuple[L, ...], view: _View, now: float, exclude: Collection[Load], drawn: list[L]
    ) -> L:
        """The same where not all can be chosen; candidates in `drawn` come first."""
        first: L | None = None
        # One chance in a decision, or the share of those that are passed over would be more than it should.
        seen: list[Load] = []
        for index in range(self.DRAWS):
            load = drawn[index] if index < len(drawn) else endpoints[self._draw(view)]
            if load in seen:
                continue
            seen.append(load)
            if not self._takes_part(load, now, exclude):
                continue
            if first is None:
                first = load
                continue
            better = self._cost(load, view, now) * self.TOLERANCE < self._cost(first, view, now)
            return load if better else first
        return self._any(endpoints, now, exclude) if first is None else first

    def _cost(self, load: Load, view: _View, now: float) -> float:
        typical = self._typical
        latency = typical + (load.latency - typical) * math.exp((now - load.observed_at) * self._rate)
        # Not (in flight + 1) / weight: two idle ones would differ by their weight, which has had its
        # effect when they were drawn, and the lighter would never be taken.
        return latency * (1 + load.in_flight * view.unit / load.weight)


class LeastOutstanding(Balancer):
    """The endpoint with the fewest calls in flight for its weight; among equals, in turn by weight.

    With more than `SCAN` endpoints it is the best of `SAMPLE` drawn by chance.
    """

    name = "least_outstanding"

    #: Endpoints up to which all are compared.
    SCAN: ClassVar[int] = 8
    #: How many are compared of more.
    SAMPLE: ClassVar[int] = 3

    def __init__(
        self, options: BalancingOptions | None = None, random: random_module.Random | None = None
    ) -> None:
        super().__init__(options, random)
        #: The turn of the one chosen last: what a newcomer starts from.
        self._turn = 0.0

    def choose(self, endpoints: tuple[L, ...], now: float, exclude: Collection[Load] = ()) -> L:
        """The one with the fewest calls in flight for its weight; see `Balancer.choose`."""
        candidates: Sequence[L] = endpoints
        count = len(endpoints)
        if count > self.SCAN:
            view = self._views.get(id(endpoints)) or self._view(endpoints)
            if view.cumulative is None:
                number = self._random
                candidates = [endpoints[int(number() * count)] for _ in range(self.SAMPLE)]
            else:
                candidates = [endpoints[self._draw(view)] for _ in range(self.SAMPLE)]
        out = exclude
        while True:
            best: L | None = None
            best_load = best_turn = math.inf
            for load in candidates:
                in_flight: float = load.in_flight
                if in_flight >= load.limit or (out and load in out):
                    continue
                if in_flight:
                    in_flight /= load.weight
                if in_flight < best_load or (in_flight == best_load and load.turn < best_turn):
                    best, best_load, best_turn = load, in_flight, load.turn
            if best is None:
                if not endpoints:
                    raise ValueError("there is no endpoint to choose")
                last = self._any(endpoints, now, exclude)
                self._take_turn(last)
                return last
            self._take_turn(best)
            # Decided when it has won, so that one that is passed over goes to the end of the line, too.
            if now >= best.restrained_until or self._random() < self.share(best, now):
                return best
            out = (*out, best)

    def _take_turn(self, load: Load) -> None:
        turn = self._turn
        if load.turn > turn:
            self._turn = turn = load.turn
        load.turn = turn + 1 / load.weight


class RoundRobin(Balancer):
    """Each in turn, as often as its weight says, and evenly spread over a round.

    Clients begin at random, so that a thousand of them do not call the same endpoint together.
    """

    name = "round_robin"

    def choose(self, endpoints: tuple[L, ...], now: float, exclude: Collection[Load] = ()) -> L:
        """The one whose turn it is; see `Balancer.choose`."""
        view = self._views.get(id(endpoints)) or self._view(endpoints)
        due = view.due
        for _ in range(self.DRAWS):
            turn, index = due[0]
            load = endpoints[index]
            heapq.heapreplace(due, (turn + self._interval(load, now), index))
            if (
                now >= load.restrained_until and load.in_flight < load.limit and not exclude
            ) or self._takes_part(load, now, exclude):
                return load
        return self._any(endpoints, now, exclude)

    def _interval(self, load: Load, now: float) -> float:
        """Until its next turn."""
        return 1 / load.weight

    def _view(self, endpoints: tuple[Load, ...]) -> _View:
        view = super()._view(endpoints)
        view.due = [(self._random() / load.weight, index) for index, load in enumerate(endpoints)]
        heapq.heapify(view.due)
        return view


class Weighted(RoundRobin):
    """Each in turn, as often as its weight says times its measured speed.

    The speed is the fleet's mean latency in terms of the endpoint's own, within the factor `RANGE`.
    """

    name = "weighted"

    #: How many times as often, and as seldom, as its weight says an endpoint gets its turn.
    RANGE: ClassVar[float] = 10.0

    def _interval(self, load: Load, now: float) -> float:
        typical = self._typical
        slowness = 1 + (load.latency / typical - 1) * math.exp((now - load.observed_at) * self._rate)
        if slowness > self.RANGE:
            slowness = self.RANGE
        elif slowness * self.RANGE < 1:
            slowness = 1 / self.RANGE
        return slowness / load.weight


#: Every policy by its name, the default first.
POLICIES: dict[str, type[Balancer]] = {
    kind.name: kind for kind in (PowerOfTwoChoices, LeastOutstanding, RoundRobin, Weighted)
}


def make_balancer(
    options: BalancingOptions | str | None = None, random: random_module.Random | None = None
) -> Balancer:
    """The balancer of a policy.

    Args:
        options: settings, or the name of a policy with all else left at its default.
        random: where chance comes from; a generator of its own if not given.

    Raises:
        ValueError: there is no policy of that name.
    """
    if options is None or isinstance(options, str):
        options = BalancingOptions() if options is None else BalancingOptions(policy=options)
    return POLICIES[options.policy](options, random)


def subset(targets: Iterable[str], client_id: str, size: int) -> tuple[str, ...]:
    """The targets that one of many clients should use, so that not everybody connects to everything.

    Rendezvous hashing: each client ranks all targets in an order of its own and takes the first `size`.
    The same client gets the same answer in every process, whatever the order of `targets`. Over many
    clients each target is taken equally often (its number of clients is binomially distributed). When a
    target disappears, only the clients that had it change, each by one target; when one is added, each
    client changes by one at most.

    Args:
        targets: all targets; one named twice counts once.
        client_id: what tells this client from others, such as host name and process id.
        size: targets to take, at least 1; all of them if there are not more.

    Returns:
        Targets in the order of this client's preference.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    # Hashed first, because a key may have 64 bytes at most.
    import hashlib  # OpenSSL, for those few who have so many targets

    key = hashlib.blake2b(client_id.encode()).digest()

    def rank(target: str) -> tuple[bytes, str]:
        return hashlib.blake2b(target.encode(), key=key, digest_size=8).digest(), target

    return tuple(heapq.nsmallest(size, dict.fromkeys(targets), key=rank))
