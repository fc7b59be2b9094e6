"""Who is told of events, and what becomes of observers that fail."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from aioserving.attempts import Attempt
from aioserving.events import CallEnded, CircuitOpened, EndpointAdded, Event
from aioserving.observers import Observers


def test_everybody_is_told_and_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each observer gets the fact itself, and the log a sentence with the event's level."""
    first: list[Event] = []
    second: list[Event] = []
    observers = Observers([first.append, second.append])
    with caplog.at_level(logging.INFO, "aioserving"):
        observers.emit(EndpointAdded("a:1", 2.0))
        observers.emit(CircuitOpened("all are down"))
    assert first == second == [EndpointAdded("a:1", 2.0), CircuitOpened("all are down")]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, "endpoint a:1 added, weight 2"),
        (logging.ERROR, "circuit opened: all are down"),
    ]


def test_an_observer_that_fails_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    """The others are told, and the log names the culprit."""
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("no room in the notebook")

    Observers([broken, told.append]).emit(EndpointAdded("a:1", 1.0))
    assert told == [EndpointAdded("a:1", 1.0)]
    assert "no room in the notebook" in caplog.text
    assert "broken" in caplog.text


def test_calls_are_told_but_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A line for every call would be too many."""
    told: list[Event] = []
    event = CallEnded("digits", "Predict", "OK", 0.01, (Attempt("a:1", 0.0, 0.01),))
    with caplog.at_level(logging.DEBUG, "aioserving"):
        Observers([told.append]).emit(event)
    assert told == [event]
    assert caplog.records == []


def test_without_observers_events_of_calls_need_not_be_made() -> None:
    """The log alone is no reason."""
    assert not Observers()
    assert Observers([print])
    assert repr(Observers([print])) == "<Observers: 1>"


def test_importing_the_library_makes_no_events() -> None:
    """Their classes wait for the first event."""
    code = "import sys, aioserving; print('aioserving.events' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
