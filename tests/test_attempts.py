"""The story of a call's attempts, as results and errors tell it."""

from __future__ import annotations

import pickle

import pytest

from aioserving import errors
from aioserving.attempts import Attempt, tell

REFUSED = Attempt("a:1", 0.0, 0.002, "UNAVAILABLE", "Connection refused")
ANSWERED = Attempt("b:1", 0.03, 1.47)
HEDGE = Attempt("c:1", 0.1, 0.25, "SUPERSEDED", "", True)


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (REFUSED, "a:1: UNAVAILABLE after 2 ms"),
        (ANSWERED, "b:1: OK after 1.5 s"),
        (HEDGE, "hedge at c:1: SUPERSEDED after 250 ms"),
    ],
)
def test_an_attempt_says_where_and_how_it_ended(attempt: Attempt, text: str) -> None:
    """Address, status and time, with a unit that suits it; a hedge says that it is one."""
    assert str(attempt) == text


def test_one_attempt_is_no_story() -> None:
    """A call that was sent once, or never, has nothing to tell."""
    assert not tell(())
    assert not tell((REFUSED,))


def test_several_attempts_are_told_in_order_with_the_time_to_the_last_end() -> None:
    """The time is that from the beginning of the call to the end of what ended last."""
    assert tell((REFUSED, HEDGE, ANSWERED)) == (
        "3 attempts in 1.5 s: a:1: UNAVAILABLE after 2 ms, "
        "hedge at c:1: SUPERSEDED after 250 ms, b:1: OK after 1.5 s"
    )


def test_an_attempt_is_a_fact() -> None:
    """It does not change, compares by value and can be sent to other processes."""
    with pytest.raises(AttributeError):
        REFUSED.code = "OK"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(REFUSED)) == REFUSED


def test_an_error_tells_the_story_and_why_there_was_no_other_attempt() -> None:
    """The text of an error has all attempts and the reason to give up; with one attempt, the reason only."""
    error = errors.UnavailableError("Connection refused", endpoint="b:1", method="Predict", model="resnet")
    error.attempts = (REFUSED, ANSWERED)
    error.gave_up = "all 2 attempts are used up"
    assert str(error) == (
        "Predict of model 'resnet' at b:1: UNAVAILABLE: Connection refused (2 attempts in 1.5 s: "
        "a:1: UNAVAILABLE after 2 ms, b:1: OK after 1.5 s; all 2 attempts are used up)"
    )
    error.attempts = (REFUSED,)
    assert str(error).endswith("UNAVAILABLE: Connection refused (all 2 attempts are used up)")
    again = pickle.loads(pickle.dumps(error))
    assert (again.attempts, again.gave_up, str(again)) == (error.attempts, error.gave_up, str(error))
