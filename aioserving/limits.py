"""How many calls may be in flight at one endpoint: a fixed number, or one found from the answers.

A server that is given more calls than it can work on keeps them in a queue of its own, where they grow
old unseen; kept on this side, they can be refused, reordered and given to other endpoints. So the right
limit is just above what the server works on at the same time, and nobody knows that number: it changes
with the model, the hardware and the neighbours. A `Limit` finds it from what every answer tells anyway.

`AIMDLimit` grows by one in every round of answers and shrinks by a tenth when calls are dropped: simple, and
it has to drop calls to learn. `GradientLimit` compares the latency now with the latency of a server
without a queue, and stops growing before anything is dropped.

These are state and arithmetic; the clock is an argument. Which errors count as dropped, and who has to
wait when the limit is reached, is the pool's affair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["AIMDLimit", "AdaptiveLimit", "FixedLimit", "GradientLimit", "Limit", "make_limit"]

#: Answers in one measurement at least: the mean of fewer says little.
_WINDOW = 20
#: The part of a measured latency that is believed at once, when it is below the one expected.
_FALL = 0.3


class Limit(Protocol):
    """The number of calls that may be in flight at one endpoint."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight now, at least 1."""
        ...

    def record(self, latency_seconds: float, in_flight: int, dropped: bool, now: float) -> None:
        """Learn from a call that ended.

        Args:
            latency_seconds: from sending the call to its end; the time it waited on this side before
                it was sent is no part of it.
            in_flight: calls in flight when it ended, with this one.
            dropped: it ended with DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED or UNAVAILABLE because of load. What
                says nothing about load is best not recorded at all: a message too large, a refused
                connection, a cancelled call, and a deadline that was missed by a call that had waited on
                this side for longer than it was then given.
            now: seconds on a monotonic clock.
        """
        ...


class FixedLimit:
    """Always the same number.

    Args:
        limit: calls in flight, at least 1.
    """

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        _check_whole("limit", limit, 1)
        self.limit = limit

    def __repr__(self) -> str:
        return f"FixedLimit({self.limit})"

    def record(self, latency_seconds: float, in_flight: int, dropped: bool, now: float) -> None:
        """Nothing to learn."""


class AIMDLimit:
    """Additive increase, multiplicative decrease: as TCP finds the capacity of a path.

    With every round of answers (as many as the limit) the limit grows by one, provided that at least half
    of it was in use. A dropped call multiplies it by `backoff`; of calls that were under way together only
    the first to be dropped counts, for all of them tell of the same moment.

    Args:
        initial: the limit to begin with.
        minimum: the limit never falls below it.
        maximum: the limit never grows beyond it.
        backoff: what a drop multiplies the limit by, in (0, 1).
        timeout: seconds of latency that count as a drop; None counts nothing but drops.
    """

    __slots__ = (
        "_backed_off_at",
        "_exact",
        "_full_from",
        "backoff",
        "drops",
        "limit",
        "maximum",
        "minimum",
        "timeout",
    )

    def __init__(
        self,
        *,
        initial: int = 20,
        minimum: int = 1,
        maximum: int = 1000,
        backoff: float = 0.9,
        timeout: float | None = None,
    ) -> None:
        _check_range(initial, minimum, maximum)
        _check_backoff(backoff)
        _check_timeout(timeout)
        self.minimum = minimum
        self.maximum = maximum
        self.backoff = backoff
        self.timeout = math.inf if timeout is None else timeout
        #: Times the limit was lowered.
        self.drops = 0
        self._backed_off_at = -math.inf
        self._set(float(initial))

    def __repr__(self) -> str:
        return f"<AIMDLimit {self.limit} of {self.minimum} to {self.maximum}, lowered {self.drops} times>"

    def _set(self, exact: float) -> None:
        self._exact = min(max(exact, self.minimum), self.maximum)
        self.limit = int(self._exact)
        #: Calls in flight from which the limit is in use enough to be raised.
        self._full_from = self.limit / 2

    def record(self, latency_seconds: float, in_flight: int, dropped: bool, now: float) -> None:
        """Learn from a call that ended; see `Limit.record`."""
        if dropped or latency_seconds > self.timeout:
            # A call sent before the last decrease tells nothing about the limit since.
            if now - latency_seconds >= self._backed_off_at:
                self._backed_off_at = now
                self.drops += 1
                # At least by one, or a limit of 5 would stay for two drops and one of 1.9 for ever.
                self._set(min(self._exact * self.backoff, self.limit - 1.0))
        elif in_flight >= self._full_from and self.limit < self.maximum:
            self._exact += 1.0 / self.limit
            if self._exact >= self.limit + 1:
                self._set(self._exact)


class GradientLimit:
    """The limit at which latency begins to grow, found by comparing it with that of an idle server.

    After every round of answers (as many as the limit, at least 20)::

        gradient = clamp(tolerance * expected / latency, 0.5, 1.0)
        limit = (1 - smoothing) * limit + smoothing * (limit * gradient + queue)

    where `latency` is the mean of the round and `expected` the latency without a queue at the server. So
    a server that works on `c` calls at a time is given about ``tolerance * c + queue``: enough that it
    never runs dry, and few of them waiting there. The limit does not grow while less than half of it is in
    use. A dropped call lowers it as in `AIMDLimit`.

    A moving average of latencies would not do for `expected`: in a long overload it would take the queue
    for normal, and the limit would creep up without end. `expected` falls quickly with any lower
    latency, and rises only by what is measured with room to spare: while less than half of the limit is in
    use, when the limit has halved and latency is still as high (the server became slower), and by a probe:
    every `probe_interval` seconds of use (and fifty times `expected` at least) the limit is a third for about
    two rounds, and the latency of the calls sent then is `expected`. While probes find lower values, they
    follow one another quickly. Several clients of one server disturb each other's probes: what one measures
    has the others' queue in it.

    Args:
        initial: the limit to begin with.
        minimum: the limit never falls below it, also in probes.
        maximum: the limit never grows beyond it.
        tolerance: latency that is accepted, as a multiple of `expected`; at least 1.
        smoothing: how much of a new value is taken over at once, in (0, 1].
        queue: calls that may wait at the server, on top; None is the square root of the limit.
        backoff: what a dropped call multiplies the limit by, in (0, 1).
        timeout: seconds of latency that count as a drop; None counts nothing but drops.
        probe_interval: seconds between probes.
    """

    __slots__ = (
        "_backed_off_at",
        "_base_limit",
        "_count",
        "_exact",
        "_peak",
        "_probe_at",
        "_probe_from",
        "_round",
        "_sum",
        "backoff",
        "drops",
        "expected",
        "latency",
        "limit",
        "maximum",
        "minimum",
        "probe_interval",
        "probes",
        "queue",
        "smoothing",
        "timeout",
        "tolerance",
    )

    def __init__(
        self,
        *,
        initial: int = 20,
        minimum: int = 1,
        maximum: int = 1000,
        tolerance: float = 1.5,
        smoothing: float = 0.2,
        queue: int | None = None,
        backoff: float = 0.9,
        timeout: float | None = None,
        probe_interval: float = 5.0,
    ) -> None:
        _check_range(initial, minimum, maximum)
        _check_gradient(tolerance, smoothing, queue, probe_interval)
        _check_backoff(backoff)
        _check_timeout(timeout)
        self.minimum = minimum
        self.maximum = maximum
        self.tolerance = tolerance
        self.smoothing = smoothing
        self.queue = queue
        self.backoff = backoff
        self.timeout = math.inf if timeout is None else timeout
        self.probe_interval = probe_interval
        #: Seconds that a call takes when none waits at the server, as far as is known; 0.0 at first.
        self.expected = 0.0
        #: Mean seconds of the last round; 0.0 before the first.
        self.latency = 0.0
        #: Times that a dropped call lowered the limit.
        self.drops = 0
        #: Probes that were completed.
        self.probes = 0
        self._backed_off_at = -math.inf
        #: When the next probe begins; None until the first answer tells the time.
        self._probe_at: float | None = None
        #: In a probe: calls sent before this moment do not count; None when there is no probe.
        self._probe_from: float | None = None
        #: The limit when `expected` was last confirmed.
        self._base_limit = float(initial)
        self._set(float(initial))
        self._begin_round()

    def __repr__(self) -> str:
        probing = ", probing" if self._probe_from is not None else ""
        return (
            f"<GradientLimit {self.limit} of {self.minimum} to {self.maximum}, "
            f"latency {self.latency * 1e3:.3g} ms where {self.expected * 1e3:.3g} ms are expected, "
            f"lowered {self.drops} times by drops, "
            f"{self.probes} probes{probing}>"
        )

    def _set(self, exact: float) -> None:
        self._exact = min(max(exact, self.minimum), self.maximum)
        self.limit = int(self._exact)

    def _begin_round(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._peak = 0
        self._round = max(self.limit, _WINDOW)

    def record(self, latency_seconds: float, in_flight: int, dropped: bool, now: float) -> None:
        """Learn from a call that ended; see `Limit.record`."""
        if dropped or latency_seconds > self.timeout:
            self._drop(latency_seconds, now)
            return
        probe_from = self._probe_from
        if probe_from is not None and now - latency_seconds < probe_from:
            if in_flight > self.limit:
                self._probe_from = now  # those from before the probe are still on their way
            return
        self._sum += latency_seconds
        self._count += 1
        if in_flight > self._peak:  # noqa: PLR1730 - a call of max() would double the cost of recording
            self._peak = in_flight
        if self._count >= self._round:
            self._end_round(now)

    def _drop(self, latency: float, now: float) -> None:
        if now - latency < self._backed_off_at:
            return  # sent before the last decrease: it tells nothing about the limit since
        self._backed_off_at = now
        self.drops += 1
        if self._probe_from is not None:
            self._end_probe(now, self.probe_interval)
        self._set(min(self._exact * self.backoff, self.limit - 1.0))
        self._begin_round()

    def _end_round(self, now: float) -> None:
        latency = self.latency = self._sum / self._count
        peak = self._peak
        if self._probe_from is not None:
            lower = latency < 0.9 * self.expected
            self.expected = latency
            self.probes += 1
            self._end_probe(now, self.probe_interval / 20 if lower else self.probe_interval)
            self._begin_round()
            return
        if self._probe_at is None:
            # The first round knows nothing of an idle server; have it measured soon.
            self.expected = latency
            self._probe_at = now + self.probe_interval / 20
        half_used = peak >= self._exact / 2
        if latency < self.expected:
            self.expected += _FALL * (latency - self.expected)
            self._base_limit = self._exact
        elif not half_used:
            self.expected += self.smoothing * (latency - self.expected)
            self._base_limit = self._exact
        gradient = self.tolerance * self.expected / latency if latency > 0 else 1.0
        gradient = min(max(gradient, 0.5), 1.0)
        if gradient == 1.0:
            self._base_limit = self._exact
        elif self._exact <= self._base_limit / 2:
            # Half the calls, and no faster: it is the server that has changed, not its queue.
            self.expected = latency
            self._base_limit = self._exact
            gradient = 1.0
        queue = math.sqrt(self._exact) if self.queue is None else self.queue
        goal = self._exact * gradient + queue
        if half_used or goal < self._exact:
            self._set(self._exact + self.smoothing * (goal - self._exact))
        if now >= self._probe_at and half_used and self.limit > self.minimum:
            self._probe_from = now
            # Half would still hold a queue at a small server: with c workers and a limit of 4 c.
            self.limit = max(self.minimum, self.limit // 3)
        self._begin_round()

    def _end_probe(self, now: float, pause: float) -> None:
        self._probe_from = None
        self._probe_at = now + max(pause, 50 * self.expected)
        self._base_limit = self._exact
        self.limit = int(self._exact)


@dataclass(frozen=True, kw_only=True)
class AdaptiveLimit:
    """That the number of calls in flight at each endpoint is to be found from its answers, and how."""

    #: ``"gradient"`` (by latency against that of an idle server: `GradientLimit`) or
    #: ``"aimd"`` (by dropped calls: `AIMDLimit`).
    kind: Literal["gradient", "aimd"] = "gradient"
    #: The limit to begin with.
    initial: int = 20
    #: The limit never falls below it.
    minimum: int = 1
    #: The limit never grows beyond it.
    maximum: int = 1000
    #: What a dropped call multiplies the limit by.
    backoff: float = 0.9
    #: Seconds of latency that count as a drop; None counts nothing but drops.
    timeout: float | None = None
    #: Latency that is accepted, as a multiple of an idle server's. Gradient only.
    tolerance: float = 1.5
    #: How much of a new value is taken over at once. Gradient only.
    smoothing: float = 0.2
    #: Calls that may wait at the server; None is the square root of the limit. Gradient only.
    queue: int | None = None
    #: Seconds between measurements of the idle server's latency. Gradient only.
    probe_interval: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in {"gradient", "aimd"}:
            raise ValueError(f"kind must be 'gradient' or 'aimd', got {self.kind!r}")
        _check_range(self.initial, self.minimum, self.maximum)
        _check_backoff(self.backoff)
        _check_timeout(self.timeout)
        _check_gradient(self.tolerance, self.smoothing, self.queue, self.probe_interval)


def make_limit(option: int | AdaptiveLimit) -> Limit:
    """A new limit for one endpoint.

    Args:
        option: a fixed number of calls in flight, or how to find it.

    Raises:
        ValueError: the number is not a whole number of at least 1.
    """
    if not isinstance(option, AdaptiveLimit):
        return FixedLimit(option)
    if option.kind == "aimd":
        return AIMDLimit(
            initial=option.initial,
            minimum=option.minimum,
            maximum=option.maximum,
            backoff=option.backoff,
            timeout=option.timeout,
        )
    return GradientLimit(
        initial=option.initial,
        minimum=option.minimum,
        maximum=option.maximum,
        tolerance=option.tolerance,
        smoothing=option.smoothing,
        queue=option.queue,
        backoff=option.backoff,
        timeout=option.timeout,
        probe_interval=option.probe_interval,
    )


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_range(initial: int, minimum: int, maximum: int) -> None:
    _check_whole("minimum", minimum, 1)
    _check_whole("maximum", maximum, minimum)
    _check_whole("initial", initial, minimum)
    if initial > maximum:
        raise ValueError(f"initial must be at most maximum={maximum}, got {initial!r}")


def _check_backoff(backoff: float) -> None:
    if not 0 < backoff < 1:
        raise ValueError(f"backoff must be between 0 and 1, got {backoff!r}")


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout!r}")


def _check_gradient(tolerance: float, smoothing: float, queue: int | None, probe_interval: float) -> None:
    if not 1 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be at least 1, got {tolerance!r}")
    if not 0 < smoothing <= 1:
        raise ValueError(f"smoothing must be above 0 and at most 1, got {smoothing!r}")
    if queue is not None:
        _check_whole("queue", queue, 1)
    if not 0 < probe_interval < math.inf:
        raise ValueError(f"probe_interval must be a positive number of seconds, got {probe_interval!r}")
