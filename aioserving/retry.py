"""Whether a failed attempt is worth another one, and after how long.

`decide` judges one failure: a function of the policy, the error, the time left, and chance. It follows
gRPC's retry design (proposal A6) where that has a rule: codes, push-back by the server, one deadline for all
attempts. Delays have full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A
`RetryBudget` keeps retries to a share of the calls, as in the SRE book ("Handling Overload": a budget per
client besides the limit per call) and Finagle's ``RetryBudget``: without one, a fleet that is
down or overloaded gets `RetryPolicy.max_attempts` times its load.

What a retried call must be is decided elsewhere: Predict and its kin are idempotent, a reload is never
retried blindly. So are the endpoint of the next attempt, the waiting, and the telling of the story.
"""

from __future__ import annotations

import math
import random as random_module
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from aioserving.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ModelNotFoundError,
    RPCError,
    VersionLabelNotFoundError,
)

__all__ = [
    "NO_RETRIES",
    "Decision",
    "GiveUp",
    "Retry",
    "RetryBudget",
    "RetryPolicy",
    "decide",
    "is_connection_failure",
]

_CODES: Final = frozenset(
    {
        "ABORTED",
        "ALREADY_EXISTS",
        "CANCELLED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INTERNAL",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
        "UNKNOWN",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Which failures are retried, how often, and after how long.

    Raises:
        ValueError: a setting is out of range.
    """

    #: Attempts of one call, the first included; 1 switches retries off.
    max_attempts: int = 4
    #: Seconds within which the first retry starts; the moment is drawn at random.
    initial_backoff: float = 0.025
    #: Seconds within which any retry starts.
    max_backoff: float = 1.0
    #: Growth of that time from one retry to the next.
    multiplier: float = 2.0
    #: Names of the status codes that are retried. Besides these, a model that one endpoint does not have is
    #: asked for at the others, and an attempt that ran into `attempt_timeout` is made again.
    #: CANCELLED is among them because a server that shuts down ends so what has not had its turn.
    codes: frozenset[str] = field(
        default_factory=lambda: frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"})
    )
    #: Seconds after which an attempt is given up in favour of the next; None for no limit but the deadline.
    attempt_timeout: float | None = None
    #: Retries in proportion to calls, in the long run.
    budget_ratio: float = 0.15
    #: Retries beyond that proportion, for clients with few calls.
    budget_reserve: int = 10
    #: Seconds for which a call's contribution to the budget can be spent.
    budget_window: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(
                f"max_attempts must be at least 1, the first included; got {self.max_attempts!r}"
            )
        if not 0 <= self.initial_backoff < math.inf:
            raise ValueError(
                f"initial_backoff must be a number of seconds, at least 0; got {self.initial_backoff!r}"
            )
        if not self.initial_backoff <= self.max_backoff < math.inf:
            raise ValueError(
                f"max_backoff must be a number of seconds, at least initial_backoff; got {self.max_backoff!r}"
            )
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier must be a number of at least 1, got {self.multiplier!r}")
        if isinstance(self.codes, str):
            raise ValueError(f"codes must be a set of status code names, got {self.codes!r}")
        object.__setattr__(self, "codes", frozenset(self.codes))
        if unknown := self.codes - _CODES:
            raise ValueError(f"codes must be names of gRPC status codes; {sorted(unknown)!r} are none")
        if self.attempt_timeout is not None and not 0 < self.attempt_timeout < math.inf:
            raise ValueError(
                f"attempt_timeout must be a number of seconds above 0, or None; got {self.attempt_timeout!r}"
            )
        _check_budget(self.budget_ratio, self.budget_reserve, self.budget_window, "budget_")

    def ceiling(self, attempt: int) -> float:
        """Seconds within which the retry after the attempt of this number, from 1, starts."""
        try:
            return min(self.max_backoff, self.initial_backoff * self.multiplier ** (attempt - 1))
        except OverflowError:
            return self.max_backoff


def _check_budget(ratio: float, reserve: float, window: float, prefix: str = "") -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"{prefix}ratio must be a number from 0 to 1, got {ratio!r}")
    if not 0 <= reserve < math.inf:
        raise ValueError(f"{prefix}reserve must be a number, at least 0; got {reserve!r}")
    if not 0 < window < math.inf:
        raise ValueError(f"{prefix}window must be a number of seconds above 0, got {window!r}")


#: One attempt, and no more.
NO_RETRIES: Final = RetryPolicy(max_attempts=1)

#: What a token is made of.
_TOKEN: Final = 1_000_000


class RetryBudget:
    """Tokens that calls pay in and attempts beyond a call's first pay out of; one for each client.

    Every call pays in `ratio` tokens, a retry costs one. What has not been spent after `window` seconds goes
    into a reserve, which holds no more than `reserve` tokens: so a long calm does not save up for a storm,
    while clients with few calls have something to spend, too. The reserve starts full, and is also refilled
    by `trickle` tokens a second, but not while retries are wanted: time counts only after `window` seconds in
    which nobody asked for a token. So as long as calls keep failing, retries are at most `ratio` of all
    calls plus what had been saved before, however long it takes.

    All amounts are whole millionths of a token, so that sums are exact.

    Args:
        ratio: tokens paid in by a call, from 0 to 1.
        reserve: tokens that the reserve can hold.
        window: seconds for which a call's contribution is kept in full (less up to a tenth).
        initial: tokens in the reserve at the beginning; None for as many as it can hold.
        trickle: tokens a second that refill the reserve in calm times.

    Raises:
        ValueError: an argument is out of range.
    """

    #: Parts of the window that are settled one by one.
    SLICES: Final = 10

    __slots__ = (
        "_began",
        "_edge",
        "_fresh",
        "_kept",
        "_older",
        "_stock",
        "_unit",
        "_wanted_at",
        "_width",
        "ratio",
        "reserve",
        "trickle",
        "window",
    )

    def __init__(
        self,
        ratio: float = 0.15,
        reserve: float = 10,
        window: float = 2.0,
        *,
        initial: float | None = None,
        trickle: float = 1.0,
    ) -> None:
        _check_budget(ratio, reserve, window)
        if initial is None:
            initial = reserve
        if not 0 <= initial <= reserve:
            raise ValueError(f"initial must be a number from 0 to {reserve!r} (the reserve), got {initial!r}")
        if not 0 <= trickle < math.inf:
            raise ValueError(f"trickle must be a number, at least 0; got {trickle!r}")
        self.ratio = ratio
        self.reserve = reserve
        self.window = window
        self.trickle = trickle
        self._unit = int(ratio * _TOKEN)
        self._width = window / self.SLICES
        #: What is left of the current slice's payments, and when it began and ends.
        self._fresh = 0
        self._began = self._edge = -math.inf
        #: When earlier slices began, and what is left of each; and the sum.
        self._older: deque[tuple[float, int]] = deque()
        self._kept = 0
        #: What is in the reserve, but for what trickled in since a token was last asked for.
        self._stock = int(initial * _TOKEN)
        self._wanted_at = math.inf  # nothing is missing before the first withdrawal

    @classmethod
    def of(cls, policy: RetryPolicy) -> RetryBudget:
        """The budget that a policy prescribes."""
        return cls(policy.budget_ratio, policy.budget_reserve, policy.budget_window)

    def __repr__(self) -> str:
        left = (self._fresh + self._kept + self._stock) / _TOKEN
        return f"<RetryBudget of {self.ratio:g} a call and {self.reserve:g} in reserve, {left:.3g} left>"

    def deposit(self, now: float) -> None:
        """Pay in for a call that starts `now`; not for its retries."""
        if now >= self._edge:
            self._turn(now)
        self._fresh += self._unit

    def affords(self, now: float) -> bool:
        """Whether `try_withdraw` would succeed `now`; asking is not wanting."""
        if now >= self._edge:
            self._turn(now)
        settled = self._fresh + self._kept + self._stock
        return settled >= _TOKEN or (self.trickle > 0 and settled + self._trickled(now) >= _TOKEN)

    def balance(self, now: float) -> float:
        """Tokens that can be spent `now`."""
        if now >= self._edge:
            self._turn(now)
        return (self._fresh + self._kept + self._stock + self._trickled(now)) / _TOKEN

    def try_withdraw(self, now: float) -> bool:
        """Take a token for an attempt that is not a call's first; False if there is none."""
        if now >= self._edge:
            self._turn(now)
        self._stock += self._trickled(now)
        self._wanted_at = now
        if self._fresh + self._kept + self._stock < _TOKEN:
            return False
        owed = _TOKEN
        older = self._older
        while owed and older:  # what expires first is spent first, the reserve last
            began, amount = older.popleft()
            paid = min(owed, amount)
            if paid < amount:
                older.appendleft((began, amount - paid))
            self._kept -= paid
            owed -= paid
        paid = min(owed, self._fresh)
        self._fresh -= paid
        self._stock -= owed - paid
        return True

    def _trickled(self, now: float) -> int:
        """What the calm since a token was last asked for adds to the reserve."""
        room = self.reserve * _TOKEN - self._stock
        calm = now - self._wanted_at - self.window
        return int(min(room, calm * self.trickle * _TOKEN)) if calm > 0 < room and self.trickle else 0

    def _turn(self, now: float) -> None:
        """Begin the slice that `now` falls into, and put into the reserve what is too old."""
        if self._fresh:
            self._older.append((self._began, self._fresh))
            self._kept += self._fresh
            self._fresh = 0
        late = now - self._edge
        self._began = now if late == math.inf else self._edge + late // self._width * self._width
        self._edge = self._began + self._width
        oldest = self._edge - self.window - self._width * 1e-6
        while self._older and self._older[0][0] < oldest:
            expired = self._older.popleft()[1]
            self._kept -= expired
            self._stock = min(int(self.reserve * _TOKEN), self._stock + expired)


@dataclass(frozen=True, slots=True)
class Retry:
    """Make another attempt."""

    #: Seconds to wait before.
    delay: float
    #: Why, in a sentence for the call's story.
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Let the caller have the error."""

    #: Why, in a sentence for the call's story and the error.
    reason: str


Decision: TypeAlias = Retry | GiveUp

# UNAVAILABLE is mostly gRPC's word for a connection that cannot be made or was lost. These are the cases in
# which a server that is alive and well says it (serving-behaviour 1.1 and 3.3; HTTP/2's REFUSED_STREAM when
# there are more calls on a connection than it takes).
_SAID_BY_A_LIVE_SERVER: Final = re.compile(
    r"batch scheduling queue|Model labels does not init yet|"
    r"RST_STREAM(?: with)? error code 7\b|REFUSED_STREAM"
)

# gRPC's words for a call that a server which shuts down, however gracefully, has not taken up yet.
_SAID_BY_A_SERVER_THAT_ENDS: Final = frozenset({"", "CANCELLED"})


def is_connection_failure(error: RPCError) -> bool:
    """Whether a call failed because the endpoint could not be reached or went away, not by its answer."""
    if error.code == "CANCELLED":
        return error.details in _SAID_BY_A_SERVER_THAT_ENDS
    return error.code == "UNAVAILABLE" and _SAID_BY_A_LIVE_SERVER.search(error.details) is None


def decide(
    policy: RetryPolicy,
    error: RPCError,
    *,
    attempt: int,
    remaining: float | None,
    elsewhere: bool,
    budget: RetryBudget,
    pushback: float | None,
    now: float,
    random: random_module.Random,
) -> Decision:
    """Whether the call gets another attempt; if so, its token is taken from `budget`.

    The attempt that replaces one which this side has withdrawn (`RPCError.withdrawn`) costs nothing.

    Args:
        policy: the settings.
        error: what the last attempt ended with.
        attempt: number of that attempt, the first is 1.
        remaining: seconds until the call's deadline, None if it has none.
        elsewhere: whether there is an endpoint that may be asked and was not yet, in this call.
        budget: the client's.
        pushback: seconds that the server told us to wait (``grpc-retry-pushback-ms``); negative, or no
            finite number, if it told us not to retry; None if it said nothing.
        now: the time, on the budget's clock.
        random: where chance comes from.
    """
    code = error.code
    absent = isinstance(error, (ModelNotFoundError, VersionLabelNotFoundError))
    timed_out = isinstance(error, DeadlineExceededError) and policy.attempt_timeout is not None
    if isinstance(error, MessageTooLargeError):
        return GiveUp("a message that is too large stays too large")
    if code not in policy.codes and not timed_out:
        if not absent:
            return GiveUp(f"{code} is not retried")
        if not elsewhere:
            return GiveUp("there is no other endpoint to ask for the model")
    if attempt >= policy.max_attempts:
        if policy.max_attempts == 1:
            return GiveUp("retries are switched off")
        return GiveUp(f"all {policy.max_attempts} attempts are used up")
    if pushback is not None and not 0 <= pushback < math.inf:
        return GiveUp("the server asked not to retry")

    where = error.endpoint or "the endpoint"
    if pushback is not None:
        delay = pushback
        reason = f"{where} asked to wait {delay:.3f} s before the next attempt"
    elif absent and elsewhere:
        delay = 0.0
        reason = f"{where} does not have the model; another endpoint is asked at once"
    elif timed_out and elsewhere:
        delay = 0.0
        reason = f"{where} did not answer in {policy.attempt_timeout:g} s; another endpoint is asked at once"
    elif attempt == 1 and elsewhere and is_connection_failure(error):
        delay = 0.0
        reason = f"{where} cannot be reached; another endpoint is asked at once"
    else:
        delay = random.random() * policy.ceiling(attempt)
        reason = f"{code} is retried after {delay:.3f} s"
    if remaining is not None and delay >= remaining:
        return GiveUp(
            f"no time left: the next attempt would start after {delay:.3f} s, "
            + (f"the deadline is in {remaining:.3f} s" if remaining > 0 else "the deadline has passed")
        )
    # An attempt that never got anywhere, or that this side has ended, is replaced, not added to; and all of
    # a connection's end together, more than a budget can pay for.
    if not error.withdrawn and not budget.try_withdraw(now):
        return GiveUp(
            f"the retry budget is empty: too many calls failed lately, and retries are kept to "
            f"{budget.ratio:.0%} of all calls"
        )
    return Retry(delay, reason)
