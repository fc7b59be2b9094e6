"""Events: frozen facts with a telling text, logged at their level, without secrets."""

from __future__ import annotations

import dataclasses
import inspect
import logging

import pytest

from aioserving import events, security
from aioserving.attempts import Attempt
from aioserving.observers import Observers

FAILED = Attempt("a:1", 0.0, 0.012, "UNAVAILABLE", "Connection refused")

#: One of each kind, its level, and what it says.
EXAMPLES: list[tuple[events.Event, int, str]] = [
    (events.EndpointAdded("a:1", 2.0), logging.INFO, "endpoint a:1 added, weight 2"),
    (events.EndpointRemoved("a:1"), logging.INFO, "endpoint a:1 removed"),
    (
        events.EndpointEjected("a:1", "Connection refused", 0.1),
        logging.WARNING,
        "endpoint a:1 ejected for 0.1 s: Connection refused",
    ),
    (events.EndpointReturned("a:1", 12.34), logging.INFO, "endpoint a:1 is back after 12.3 s"),
    (
        events.ConnectionReplaced("a:1", "no answer", 7),
        logging.WARNING,
        "connection to a:1 given up with 7 calls under way: no answer",
    ),
    (
        events.ModelMissing("a:1", "resnet version 3"),
        logging.WARNING,
        "endpoint a:1 does not serve resnet version 3, which others do",
    ),
    (events.ModelFound("a:1", "resnet"), logging.INFO, "endpoint a:1 serves resnet again"),
    (
        events.CallRetried("resnet", "Predict", FAILED, 0.025),
        logging.INFO,
        "Predict of resnet is tried again in 25 ms: a:1: UNAVAILABLE after 12 ms",
    ),
    (
        events.CallHedged("resnet", "Predict", ("a:1", "b:1"), 0.05),
        logging.DEBUG,
        "Predict of resnet at a:1 hedged at b:1 after 50 ms",
    ),
    (
        events.CallRefused(None, "Predict", "9 callers wait"),
        logging.WARNING,
        "Predict refused: 9 callers wait",
    ),
    (
        events.CallEnded("resnet", "Predict", "OK", 0.0123, (FAILED,)),
        logging.DEBUG,
        "Predict of resnet: OK after 12.3 ms",
    ),
    (
        events.CircuitOpened("every endpoint is down"),
        logging.ERROR,
        "circuit opened: every endpoint is down",
    ),
    (events.CircuitClosed(3.0), logging.INFO, "circuit closed after 3 s"),
    (
        events.CredentialsRefreshed("a:1"),
        logging.INFO,
        "credentials refreshed: a:1 refused the old ones",
    ),
]

every_kind = pytest.mark.parametrize(
    ("event", "level", "text"), EXAMPLES, ids=[type(event).__name__ for event, _, _ in EXAMPLES]
)


def test_every_kind_of_event_has_an_example_here() -> None:
    """A kind that is added is tested like the others, and exported."""
    kinds = {
        name
        for name, kind in vars(events).items()
        if inspect.isclass(kind) and issubclass(kind, events.Event) and kind is not events.Event
    }
    assert kinds == {type(event).__name__ for event, _, _ in EXAMPLES}
    assert kinds | {"Event"} == set(events.__all__)


@every_kind
def test_an_event_is_a_fact(event: events.Event, level: int, text: str) -> None:
    """Nobody changes it; equal facts are equal; it takes no attributes besides its own."""
    for field in dataclasses.fields(event):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            setattr(event, field.name, None)
    with pytest.raises((AttributeError, TypeError)):
        event.other = 1  # type: ignore[attr-defined]
    assert event == dataclasses.replace(event)
    assert hash(event) == hash(dataclasses.replace(event))


@every_kind
def test_an_event_says_what_happened(event: events.Event, level: int, text: str) -> None:
    """Its text is a sentence for people, with every name and number in it."""
    assert str(event) == text


@every_kind
def test_an_event_is_logged_with_its_level(
    event: events.Event, level: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is a line on the logger ``aioserving``, but for the one that every call makes."""
    caplog.set_level(logging.DEBUG, "aioserving")
    Observers().emit(event)
    lines = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    assert lines == ([] if isinstance(event, events.CallEnded) else [("aioserving", level, text)])
    assert event.level == level


@every_kind
def test_an_observer_that_raises_does_no_harm(
    event: events.Event, level: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one is told all the same, and the failure is logged with the event."""
    told: list[events.Event] = []

    def broken(event: events.Event) -> None:
        raise RuntimeError("an observer's own mistake")

    Observers([broken, told.append]).emit(event)
    assert told == [event]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "broken" in record.getMessage()
    assert type(event).__name__ in record.getMessage()


def test_no_event_has_a_place_for_what_is_secret() -> None:
    """Fields are names, numbers, reasons and attempts; none holds metadata, requests or credentials."""
    allowed = {
        "target", "targets", "weight", "reason", "seconds", "calls", "model", "method", "attempt", "attempts",
        "delay", "code",
    }  # fmt: skip
    for event, _, _ in EXAMPLES:
        assert {field.name for field in dataclasses.fields(event)} <= allowed
    assert set(Attempt._fields) == {"target", "started", "seconds", "code", "details", "hedge"}
    assert "s3cret" not in repr(security.StaticToken("s3cret"))
