"""What is retried, when, how often; and that retries never become a load of their own."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aioserving import errors
from aioserving.retry import (
    NO_RETRIES,
    Decision,
    GiveUp,
    Retry,
    RetryBudget,
    RetryPolicy,
    decide,
    is_connection_failure,
)
from aioserving.transport import error_from_status

POLICY = RetryPolicy()
REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:8500: Connection refused"
QUEUE_FULL = (
    "The batch scheduling queue to which this task was submitted is full; currently 10 batches enqueued and "
    "max_enqueued_batches is 10"
)


def failure(code: str, details: str = "") -> errors.RPCError:
    return error_from_status(code, details, endpoint="10.0.0.1:8500", method="Predict")


def judge(error: errors.RPCError, policy: RetryPolicy = POLICY, **changed: Any) -> Decision:
    """The decision on a first attempt with time, a budget and no other endpoint, but for what is changed."""
    arguments: Mapping[str, Any] = {
        "attempt": 1,
        "remaining": 10.0,
        "elsewhere": False,
        "budget": RetryBudget(),
        "pushback": None,
        "now": 100.0,
        "random": random.Random(1),
    }
    return decide(policy, error, **{**arguments, **changed})


# --- what is retried


def test_what_replaces_a_withdrawn_attempt_costs_nothing() -> None:
    """All calls on a silent connection are withdrawn together; no budget could pay for as many."""
    withdrawn = failure("UNAVAILABLE", "given up")
    withdrawn.withdrawn = True
    budget = RetryBudget(0, 0)
    assert isinstance(judge(withdrawn, elsewhere=True, budget=budget), Retry)
    assert isinstance(judge(withdrawn, attempt=POLICY.max_attempts, budget=budget), GiveUp)
    assert isinstance(judge(failure("UNAVAILABLE", "given up"), elsewhere=True, budget=budget), GiveUp)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("UNAVAILABLE", REFUSED),
        ("UNAVAILABLE", QUEUE_FULL),
        ("RESOURCE_EXHAUSTED", ""),
        ("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted"),
        ("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue"),
    ],
)
def test_what_the_server_makes_safe_is_retried(code: str, details: str) -> None:
    """A server that is away or has no room is asked again, after a backoff, with one token of the budget."""
    budget = RetryBudget()
    decision = judge(failure(code, details), budget=budget)
    assert isinstance(decision, Retry)
    assert 0 <= decision.delay < POLICY.initial_backoff
    assert decision.reason.startswith(f"{code} is retried after 0.0")
    assert budget.balance(100.0) == (10 if details == REFUSED else 9)  # what was never sent costs nobody


@pytest.mark.parametrize(
    "code",
    [
        "ABORTED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INTERNAL",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
        "UNKNOWN",
    ],
)
def test_what_would_end_the_same_way_is_not(code: str) -> None:
    """Other codes are the caller's at once, wherever else one could ask, and cost the budget nothing."""
    budget = RetryBudget()
    assert judge(failure(code), elsewhere=True, budget=budget) == GiveUp(f"{code} is not retried")
    assert budget.balance(100.0) == 10


def test_a_message_that_is_too_large_is_not_retried() -> None:
    """The client's own RESOURCE_EXHAUSTED is not the server's."""
    error = failure("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (5242880 vs. 4194304)")
    assert judge(error, elsewhere=True) == GiveUp("a message that is too large stays too large")


def test_codes_are_the_policys() -> None:
    """A code that the policy names is retried, one that it leaves out is not."""
    policy = RetryPolicy(codes=frozenset({"INTERNAL"}))
    assert isinstance(judge(failure("INTERNAL"), policy), Retry)
    assert isinstance(judge(failure("UNAVAILABLE"), policy), GiveUp)


def test_attempts_are_counted() -> None:
    """The number of attempts includes the first; the reason says that they are used up."""
    for attempt in (1, 2, 3):
        assert isinstance(judge(failure("UNAVAILABLE"), attempt=attempt), Retry)
    for attempt in (4, 5):
        assert judge(failure("UNAVAILABLE"), attempt=attempt) == GiveUp("all 4 attempts are used up")


def test_no_retries() -> None:
    """Switched off means off, for absent models and timed-out attempts too."""
    for error in (
        failure("UNAVAILABLE", REFUSED),
        failure("NOT_FOUND", "Servable not found for request: Latest(m)"),
    ):
        assert judge(error, NO_RETRIES, elsewhere=True) == GiveUp("retries are switched off")


# --- on another endpoint


def test_another_endpoint_is_asked_at_once() -> None:
    """The first retry after a lost connection does not wait if there is an endpoint not tried yet."""
    error = failure("UNAVAILABLE", REFUSED)
    assert judge(error, elsewhere=True) == Retry(
        0.0, "10.0.0.1:8500 cannot be reached; another endpoint is asked at once"
    )
    later = judge(error, elsewhere=True, attempt=2)
    assert isinstance(later, Retry)
    assert later.delay > 0


@pytest.mark.parametrize(("code", "details"), [("RESOURCE_EXHAUSTED", ""), ("UNAVAILABLE", QUEUE_FULL)])
def test_overload_always_backs_off(code: str, details: str) -> None:
    """Where one endpoint is full the others are hardly empty: no retry at once, elsewhere or not."""
    decision = judge(failure(code, details), elsewhere=True)
    assert isinstance(decision, Retry)
    assert decision.delay > 0


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (REFUSED, True),
        ("Socket closed", True),
        ("", True),
        (QUEUE_FULL, False),
        ("Model labels does not init yet.stable", False),
        ("Stream removed (Received RST_STREAM with error code 7)", False),
    ],
)
def test_connection_failures_are_told_from_answers(details: str, expected: bool) -> None:
    """UNAVAILABLE from a live server does not speak against its connection."""
    assert is_connection_failure(failure("UNAVAILABLE", details)) is expected


def test_other_codes_are_no_connection_failures() -> None:
    """A server that answers, whatever it says, is there."""
    assert not is_connection_failure(failure("RESOURCE_EXHAUSTED", REFUSED))


def test_what_a_server_that_shuts_down_has_not_taken_up_is_asked_for_elsewhere() -> None:
    """gRPC ends it with CANCELLED, also in a graceful shutdown; a model's own cancellation is an answer."""
    assert is_connection_failure(failure("CANCELLED", "CANCELLED"))
    assert not is_connection_failure(failure("CANCELLED", "Run call was cancelled"))
    decision = judge(failure("CANCELLED", "CANCELLED"), elsewhere=True)
    assert isinstance(decision, Retry)
    assert decision.delay == 0


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("NOT_FOUND", "Servable not found for request: Latest(m)"),
        ("NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
        ("INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
    ],
)
def test_a_model_that_one_endpoint_lacks_is_sought_elsewhere(code: str, details: str) -> None:
    """Each endpoint not tried yet is asked at once, for a token each; in the end the error stands."""
    budget = RetryBudget()
    error = failure(code, details)
    for attempt in (1, 2, 3):
        decision = judge(error, attempt=attempt, elsewhere=True, budget=budget)
        assert decision == Retry(
            0.0, "10.0.0.1:8500 does not have the model; another endpoint is asked at once"
        )
        assert budget.balance(100.0) == 10 - attempt
    assert judge(error, elsewhere=False, budget=budget) == GiveUp(
        "there is no other endpoint to ask for the model"
    )
    assert isinstance(judge(error, attempt=4, elsewhere=True, budget=budget), GiveUp)


def test_an_attempt_that_timed_out_is_made_again() -> None:
    """With a limit per attempt, running into it is not the end of the call; without one it is."""
    policy = RetryPolicy(attempt_timeout=0.5)
    error = failure("DEADLINE_EXCEEDED")
    assert judge(error, policy, elsewhere=True) == Retry(
        0.0, "10.0.0.1:8500 did not answer in 0.5 s; another endpoint is asked at once"
    )
    assert isinstance(judge(error, policy), Retry)
    assert judge(error, policy, elsewhere=True, remaining=0.0) == GiveUp(
        "no time left: the next attempt would start after 0.000 s, the deadline has passed"
    )
    assert isinstance(judge(error, POLICY, elsewhere=True), GiveUp)


# --- when


@given(
    st.integers(1, 5000),
    st.floats(0, 10),
    st.floats(0, 100),
    st.floats(1, 1e300),
    st.integers(0, 2**32),
)
def test_delays_are_bounded(attempt: int, initial: float, more: float, multiplier: float, seed: int) -> None:
    """Whatever the settings and the attempt, a retry starts within the backoff for it and the maximum."""
    policy = RetryPolicy(
        max_attempts=10_000,
        initial_backoff=initial,
        max_backoff=initial + more,
        multiplier=multiplier,
    )
    decision = judge(
        failure("UNAVAILABLE"), policy, attempt=attempt, remaining=None, random=random.Random(seed)
    )
    assert isinstance(decision, Retry)
    assert 0 <= decision.delay <= policy.ceiling(attempt) <= policy.max_backoff


def test_jitter_is_full() -> None:
    """Delays are spread over all of the time, so that clients that failed together do not return together."""
    source = random.Random(7)
    delays = []
    for _ in range(4000):
        decision = judge(failure("UNAVAILABLE"), attempt=3, random=source)
        assert isinstance(decision, Retry)
        delays.append(decision.delay)
    assert POLICY.ceiling(3) == 0.1
    assert [sum(low <= d * 40 < low + 1 for d in delays) for low in range(4)] == pytest.approx(
        [1000] * 4, rel=0.1
    )


def test_backoff_grows_to_its_maximum() -> None:
    """25 ms, doubled from retry to retry, up to a second."""
    assert [POLICY.ceiling(n) for n in range(1, 9)] == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("pushback", [0.0, 0.75, 3.0])
def test_the_servers_delay_is_kept(pushback: float) -> None:
    """The server's delay takes the place of the backoff, and of asking elsewhere at once."""
    decision = judge(failure("UNAVAILABLE", REFUSED), pushback=pushback, elsewhere=True)
    assert decision == Retry(
        pushback, f"10.0.0.1:8500 asked to wait {pushback:.3f} s before the next attempt"
    )


@pytest.mark.parametrize("pushback", [-0.001, -1.0, math.nan, math.inf])
def test_a_server_that_wants_no_retry_gets_none(pushback: float) -> None:
    """A negative delay, or one that is no number, means no retry at all, and costs no token."""
    budget = RetryBudget()
    decision = judge(failure("UNAVAILABLE"), pushback=pushback, elsewhere=True, budget=budget)
    assert decision == GiveUp("the server asked not to retry")
    assert budget.balance(100.0) == 10


def test_pushback_makes_nothing_retryable() -> None:
    """A delay on a code that is not retried changes nothing."""
    assert judge(failure("INVALID_ARGUMENT"), pushback=0.1) == GiveUp("INVALID_ARGUMENT is not retried")


def test_no_time_left() -> None:
    """A retry that would start at the deadline or after is not waited for, and costs no token."""
    budget = RetryBudget()
    for remaining in (0.75, 0.1):
        assert judge(failure("UNAVAILABLE"), pushback=0.75, remaining=remaining, budget=budget) == GiveUp(
            f"no time left: the next attempt would start after 0.750 s, the deadline is in {remaining:.3f} s"
        )
    assert budget.balance(100.0) == 10
    assert isinstance(judge(failure("UNAVAILABLE"), pushback=0.75, remaining=0.76), Retry)
    assert isinstance(judge(failure("UNAVAILABLE"), pushback=0.75, remaining=None), Retry)


@given(
    st.sampled_from(["UNAVAILABLE", "RESOURCE_EXHAUSTED", "NOT_FOUND", "DEADLINE_EXCEEDED", "UNKNOWN"]),
    st.integers(1, 6),
    st.none() | st.floats(-1, 1),
    st.booleans(),
    st.integers(0, 2),
    st.none() | st.floats(-1, 1),
    st.integers(0, 2**32),
)
def test_every_decision(
    code: str,
    attempt: int,
    remaining: float | None,
    elsewhere: bool,
    tokens: int,
    pushback: float | None,
    seed: int,
) -> None:
    """A retry always costs one token and starts before the deadline; giving up costs none; both say why."""
    budget = RetryBudget(0, tokens)
    decision = judge(
        failure(code),
        attempt=attempt,
        remaining=remaining,
        elsewhere=elsewhere,
        budget=budget,
        pushback=pushback,
        random=random.Random(seed),
    )
    assert decision.reason
    if isinstance(decision, Retry):
        assert budget.balance(100.0) == tokens - 1
        assert attempt < POLICY.max_attempts
        assert code in POLICY.codes
        assert decision.delay >= 0
        assert remaining is None or decision.delay < remaining
    else:
        assert budget.balance(100.0) == tokens


# --- the budget


def test_an_empty_budget() -> None:
    """Without a token there is no retry, and the error says what that means."""
    budget = RetryBudget(0.15, 1)
    assert isinstance(judge(failure("UNAVAILABLE"), budget=budget), Retry)
    assert judge(failure("UNAVAILABLE"), budget=budget) == GiveUp(
        "the retry budget is empty: too many calls failed lately, and retries are kept to 15% of all calls"
    )
    assert "0.15 a call and 1 in reserve, 0 left" in repr(budget)


def test_a_policy_prescribes_its_budget() -> None:
    """The settings of the policy are those of the budget."""
    budget = RetryBudget.of(RetryPolicy(budget_ratio=0.3, budget_reserve=4, budget_window=7.0))
    assert (budget.ratio, budget.reserve, budget.window, budget.balance(0.0)) == (0.3, 4, 7.0, 4)


def test_calls_pay_for_retries() -> None:
    """Twenty calls at 15 % pay for three retries beyond the reserve, exactly."""
    budget = RetryBudget(0.15, 0)
    for _ in range(20):
        budget.deposit(10.0)
    assert [budget.try_withdraw(10.0) for _ in range(4)] == [True, True, True, False]


def test_a_calm_does_not_save_up_for_a_storm() -> None:
    """After an hour of 100 calls a second there is the reserve and two seconds' worth, not more."""
    budget = RetryBudget(0.15, 10, 2.0)
    for number in range(100 * 60):
        budget.deposit(number / 100)
    assert 10 + 15 * 1.8 - 0.2 <= budget.balance(59.99) <= 10 + 15 * 2 + 0.2
    assert budget.balance(63.0) == 10


def test_a_client_with_few_calls_fills_its_reserve() -> None:
    """What a call paid in is not lost when nothing is wanted for a while: it goes into the reserve."""
    budget = RetryBudget(0.15, 10, 2.0, initial=0, trickle=0)
    for number in range(40):
        budget.deposit(number * 60.0)
    assert budget.balance(40 * 60.0) == 6


def test_the_reserve_comes_back_after_a_calm() -> None:
    """A lonely client that used its reserve up has it back some seconds after the last failure."""
    budget = RetryBudget(0.15, 10, 2.0)
    assert [budget.try_withdraw(50.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.balance(52.0) == 0
    assert not budget.affords(52.9)
    assert budget.affords(53.1)
    assert budget.balance(57.0) == 5
    assert budget.balance(1000.0) == 10


@pytest.mark.parametrize("rate", [1, 10, 500])
def test_an_outage_adds_less_than_a_fifth(rate: int) -> None:
    """A minute in which every call fails and wants three retries: they add 15 % and what had been saved."""
    budget = RetryBudget()
    for number in range(10 * rate):
        budget.deposit(number / rate)
    retries = 0
    for number in range(60 * rate):
        now = 10 + number / rate
        budget.deposit(now)
        for step in range(3):
            retries += budget.try_withdraw(now + step * 0.05)
    assert retries <= 0.15 * 60 * rate + 0.15 * 2 * rate + 10
    assert retries <= 0.2 * 60 * rate + 10
    assert retries >= 0.14 * 60 * rate


@given(
    st.floats(0, 0.2),
    st.integers(0, 20),
    st.floats(0.5, 10),
    st.lists(st.tuples(st.floats(0, 0.4), st.integers(0, 6)), max_size=300),
)
def test_an_outage_is_never_amplified(
    ratio: float, reserve: int, window: float, steps: list[tuple[float, int]]
) -> None:
    """As long as retries keep being wanted, they are at most the ratio of the calls, plus the reserve."""
    budget = RetryBudget(ratio, reserve, window)
    now, retries = 1000.0, 0
    for calls, (step, wanted) in enumerate(steps, start=1):
        now += step
        budget.deposit(now)
        for _ in range(wanted + 1):
            retries += budget.try_withdraw(now)
        assert retries <= ratio * calls + reserve


class AnyUse(RuleBasedStateMachine):
    """Calls, retries and pauses in any order and rhythm."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 500.0
        self.paid = 0
        self.taken = 0
        self.calls: list[float] = []
        self.calm = 0.0
        self.wanted_at: float | None = None

    @initialize(
        ratio=st.sampled_from([0.0, 0.1, 0.15, 0.2, 1.0]),
        reserve=st.integers(0, 5),
        window=st.sampled_from([0.5, 2.0, 10.0]),
        trickle=st.sampled_from([0.0, 1.0]),
    )
    def begin(self, ratio: float, reserve: int, window: float, trickle: float) -> None:
        self.budget = RetryBudget(ratio, reserve, window, trickle=trickle)

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 1.0, 2.5, 11.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 40))
    def call(self, count: int) -> None:
        for _ in range(count):
            self.budget.deposit(self.now)
            self.calls.append(self.now)

    @rule()
    def want(self) -> None:
        affordable = self.budget.affords(self.now)
        balance = self.budget.balance(self.now)
        if self.wanted_at is not None:
            self.calm += max(0.0, self.now - self.wanted_at - self.budget.window)
        self.wanted_at = self.now
        got = self.budget.try_withdraw(self.now)
        assert got == affordable == (balance >= 1)
        self.taken += got
        assert self.budget.balance(self.now) == pytest.approx(balance - got, abs=1e-9)

    @invariant()
    def bounded(self) -> None:
        """Never negative, never more than the reserve and the window's calls, never more out than in."""
        budget = self.budget
        # Of the window, and of the slice in which the oldest of them fell.
        lately = sum(at > self.now - budget.window * 1.2 for at in self.calls)
        assert -1e-9 <= budget.balance(self.now) <= budget.reserve + budget.ratio * lately + 1e-5
        assert (
            self.taken <= budget.reserve + budget.ratio * len(self.calls) + budget.trickle * self.calm + 1e-5
        )
        assert min(budget._fresh, budget._kept, budget._stock) >= 0
        assert budget._kept == sum(amount for _, amount in budget._older)
        assert len(budget._older) <= budget.SLICES

    @invariant()
    def never_stuck(self) -> None:
        """However it was emptied, a calm brings the reserve back."""
        budget = self.budget
        if budget.trickle and budget.reserve:
            assert budget._trickled(self.now + budget.window + budget.reserve + 1) + budget._stock >= (
                budget.reserve * 1_000_000 - 1
            )


TestAnyUse = AnyUse.TestCase


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": -0.1}, "ratio must be"),
        ({"ratio": 1.1}, "ratio must be"),
        ({"ratio": math.nan}, "ratio must be"),
        ({"reserve": -1}, "reserve must be"),
        ({"window": 0}, "window must be"),
        ({"window": math.inf}, "window must be"),
        ({"initial": 11}, "initial must be"),
        ({"trickle": -1}, "trickle must be"),
    ],
)
def test_a_budget_that_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    """Settings out of range are refused with their name."""
    with pytest.raises(ValueError, match=message):
        RetryBudget(**arguments)


# --- the policy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"initial_backoff": -1}, "initial_backoff must be"),
        ({"initial_backoff": math.nan}, "initial_backoff must be"),
        ({"initial_backoff": 2}, "max_backoff must be"),
        ({"max_backoff": math.inf}, "max_backoff must be"),
        ({"multiplier": 0.5}, "multiplier must be"),
        ({"codes": "UNAVAILABLE"}, "codes must be a set"),
        ({"codes": {"UNAVAILABLE", "unavailable"}}, r"\['unavailable'\] are none"),
        ({"attempt_timeout": 0}, "attempt_timeout must be"),
        ({"attempt_timeout": math.inf}, "attempt_timeout must be"),
        ({"budget_ratio": 2}, "budget_ratio must be"),
        ({"budget_reserve": -1}, "budget_reserve must be"),
        ({"budget_window": 0}, "budget_window must be"),
    ],
)
def test_a_policy_that_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    """Settings out of range are refused with their name; gRPC would ignore them in silence."""
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**arguments)


def test_a_policy_is_a_value() -> None:
    """Policies compare, hash and pickle by their settings, and cannot be changed."""
    policy = RetryPolicy(codes={"INTERNAL"})  # type: ignore[arg-type]
    assert policy == pickle.loads(pickle.dumps(policy))
    assert hash(policy) == hash(RetryPolicy(codes=frozenset({"INTERNAL"})))
    with pytest.raises(AttributeError):
        policy.max_attempts = 7  # type: ignore[misc]
