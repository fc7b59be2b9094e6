"""When to send a call a second time because its answer is late, and when not to.

A hedge goes to another endpoint once a call has taken longer than most do; the first answer wins, the other
attempt is cancelled (Dean and Barroso, "The Tail at Scale", 2013). The rules are those of Finagle's
``BackupRequestFilter``: a percentile of recent latencies as the delay, no shorter than a millisecond, and a
cap on the extra load. One rule is added: a call that takes less than twice the median is not late, however
few take longer. gRPC's own ``hedgingPolicy`` (proposal A6) is ignored by its C core, hence by Python.

The defaults come from a simulation (in ``tests/test_hedging.py``) in which a share of calls takes ten times
as long. With 5 % of such calls, waiting for the 95th percentile lowers the 99th by a factor of 2.5 only,
because slow calls make up that percentile; the 90th lowers it by 4.3, but sends one call in ten twice
when nothing is wrong. The 90th and at least twice the median lowers it by 3.8 with 6 % more calls, and costs
1 % when nothing is wrong.

Timers, the second attempt and the cancelling are the business of the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from aioserving.latency import RecentLatency
from aioserving.retry import RetryBudget

__all__ = ["Hedging", "HedgingPolicy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HedgingPolicy:
    """When calls are hedged: after a fixed delay, or when they are later than a share of all calls.

    Raises:
        ValueError: a setting is out of range.
    """

    #: Seconds after which a call is sent again; None to go by `percentile`.
    delay: float | None = None
    #: The share of recent calls, between 0 and 1, whose latency is waited for; not used with a fixed `delay`.
    percentile: float | None = 0.9
    #: The least delay that a percentile can give, as a multiple of the median latency; 0 for any.
    times_median: float = 2.0
    #: The least delay that a percentile can give, in seconds.
    minimum: float = 0.001
    #: The greatest delay that a percentile can give, in seconds; None for no limit.
    maximum: float | None = None
    #: The share of calls that may be sent again, above 0 and up to 1.
    max_extra_load: float = 0.1
    #: Calls in the last `Hedging.WINDOW` seconds without which a percentile is not trusted.
    min_samples: int = 50

    def __post_init__(self) -> None:
        if self.delay is not None:
            if not 0 <= self.delay < math.inf:
                raise ValueError(
                    f"delay must be a number of seconds, at least 0, or None; got {self.delay!r}"
                )
        elif self.percentile is None:
            raise ValueError("give a delay or a percentile")
        if self.percentile is not None and not 0 < self.percentile < 1:
            raise ValueError(
                f"percentile must be a number between 0 and 1, such as 0.9; got {self.percentile!r}"
            )
        if not 0 <= self.times_median < math.inf:
            raise ValueError(f"times_median must be a number, at least 0; got {self.times_median!r}")
        if not 0 <= self.minimum < math.inf:
            raise ValueError(f"minimum must be a number of seconds, at least 0; got {self.minimum!r}")
        if self.maximum is not None and not self.minimum <= self.maximum < math.inf:
            raise ValueError(
                f"maximum must be a number of seconds, at least minimum, or None; got {self.maximum!r}"
            )
        if not 0 < self.max_extra_load <= 1:
            raise ValueError(f"max_extra_load must be above 0 and at most 1, got {self.max_extra_load!r}")
        if self.min_samples < 1:
            raise ValueError(f"min_samples must be at least 1, got {self.min_samples!r}")


class Hedging:
    """A policy with its memory; one for each set of calls that take about the same time (a model, say).

    Ask `delay` once for each call, `try_hedge` when that time has passed without an answer, and `record` what
    the call took in the end, hedged or not. (Leaving out hedged calls would lower the percentile until
    everything is hedged.)

    Args:
        policy: the settings.
    """

    #: Seconds over which latencies are looked at.
    WINDOW: Final = 10.0
    #: Seconds of calls whose share of hedges can be used in one go.
    SAVINGS: Final = 2.0
    #: Hedges that can be saved up over any time, for clients with few calls.
    RESERVE: Final = 3

    __slots__ = ("_budget", "_delay", "_recent", "_renewal", "hedged", "policy")

    def __init__(self, policy: HedgingPolicy) -> None:
        self.policy = policy
        #: Calls that were hedged.
        self.hedged = 0
        # Nothing but calls pays in: at no time have more than the share of all calls been hedged.
        self._budget = RetryBudget(policy.max_extra_load, self.RESERVE, self.SAVINGS, initial=0, trickle=0)
        self._recent = RecentLatency(self.WINDOW)
        self._delay = policy.delay
        #: When the delay is to be computed again.
        self._renewal = -math.inf if policy.delay is None else math.inf

    def __repr__(self) -> str:
        after = "not at present" if self._delay is None else f"after {self._delay:.3g} s"
        return f"<Hedging {after}, {self.hedged} calls so far>"

    def delay(self, now: float) -> float | None:
        """Seconds after which the call that starts `now` should be hedged.

        None if it should not: too few calls are known, or the share of calls that may be hedged is used up.
        """
        if now >= self._renewal:
            self._renew(now)
        budget = self._budget
        budget.deposit(now)
        return self._delay if budget.affords(now) else None

    def record(self, seconds: float, now: float) -> None:
        """Take note that a call, hedged or not, got its answer `now`, `seconds` after it started."""
        if self._renewal != math.inf:
            self._recent.record(seconds, now)

    def try_hedge(self, now: float) -> bool:
        """Whether a call whose time has come may be hedged; if so, it is counted."""
        if not self._budget.try_withdraw(now):
            return False
        self.hedged += 1
        return True

    def _renew(self, now: float) -> None:
        policy = self.policy
        self._renewal = now + RecentLatency.RENEWAL
        if policy.percentile is None or self._recent.count(now) < policy.min_samples:
            self._delay = None
            return
        late = self._recent.percentile(policy.percentile, now)
        if policy.times_median:
            late = max(late, policy.times_median * self._recent.percentile(0.5, now))
        late = max(policy.minimum, late)
        self._delay = late if policy.maximum is None else min(late, policy.maximum)
