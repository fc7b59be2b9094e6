"""What a client decides, as frozen facts that observers get, and as log lines.

    def observe(event: Event) -> None: ...
    client = AsyncClient(targets, observers=[observe])

No event holds inputs, outputs or credentials. Every event but `CallEnded` is logged as well, with its
`level`; see `observers`, which is also who imports this module when there is a first event: twenty
dataclasses are a tenth of the time that importing the library takes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from aioserving.attempts import Attempt

__all__ = [
    "CallEnded",
    "CallHedged",
    "CallRefused",
    "CallRetried",
    "CircuitClosed",
    "CircuitOpened",
    "ConnectionReplaced",
    "CredentialsRefreshed",
    "EndpointAdded",
    "EndpointEjected",
    "EndpointRemoved",
    "EndpointReturned",
    "Event",
    "ModelFound",
    "ModelMissing",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a client did or noticed."""

    #: The level of its log line, as in `logging`.
    level: ClassVar[int] = logging.INFO
    #: Whether it has one.
    logged: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class EndpointAdded(Event):
    """An endpoint takes part from now on."""

    target: str
    weight: float

    def __str__(self) -> str:
        return f"endpoint {self.target} added, weight {self.weight:g}"


@dataclass(frozen=True, slots=True)
class EndpointRemoved(Event):
    """An endpoint gets no more calls; those under way end."""

    target: str

    def __str__(self) -> str:
        return f"endpoint {self.target} removed"


@dataclass(frozen=True, slots=True)
class EndpointEjected(Event):
    """An endpoint gets no calls for a while."""

    level: ClassVar[int] = logging.WARNING

    target: str
    #: Why.
    reason: str
    #: Seconds, unless it proves sooner, or later, that it is well.
    seconds: float

    def __str__(self) -> str:
        return f"endpoint {self.target} ejected for {self.seconds:.3g} s: {self.reason}"


@dataclass(frozen=True, slots=True)
class EndpointReturned(Event):
    """An endpoint that was ejected gets calls again, few at first."""

    target: str
    #: Seconds that it was out.
    seconds: float

    def __str__(self) -> str:
        return f"endpoint {self.target} is back after {self.seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class ConnectionReplaced(Event):
    """A connection was given up; its calls go elsewhere, and a new one is opened when it is needed."""

    level: ClassVar[int] = logging.WARNING

    target: str
    reason: str
    #: Calls that were under way on it.
    calls: int

    def __str__(self) -> str:
        return f"connection to {self.target} given up with {self.calls} calls under way: {self.reason}"


@dataclass(frozen=True, slots=True)
class ModelMissing(Event):
    """An endpoint does not have a model that others have; it gets no calls for that model."""

    level: ClassVar[int] = logging.WARNING

    target: str
    model: str

    def __str__(self) -> str:
        return f"endpoint {self.target} does not serve {self.model}, which others do"


@dataclass(frozen=True, slots=True)
class ModelFound(Event):
    """An endpoint has a model again that it did not have."""

    target: str
    model: str

    def __str__(self) -> str:
        return f"endpoint {self.target} serves {self.model} again"


@dataclass(frozen=True, slots=True)
class CallRetried(Event):
    """An attempt failed, and the call is tried again."""

    model: str | None
    #: Short name of the RPC.
    method: str
    attempt: Attempt
    #: Seconds until the next attempt.
    delay: float

    def __str__(self) -> str:
        model = f" of {self.model}" if self.model else ""
        return f"{self.method}{model} is tried again in {self.delay * 1e3:.3g} ms: {self.attempt}"


@dataclass(frozen=True, slots=True)
class CallHedged(Event):
    """A call took long, and a second attempt was sent beside the first."""

    level: ClassVar[int] = logging.DEBUG

    model: str | None
    method: str
    #: Where the first one went, and where the second.
    targets: tuple[str, str]
    #: Seconds after which the second one was sent.
    delay: float

    def __str__(self) -> str:
        model = f" of {self.model}" if self.model else ""
        first, second = self.targets
        return f"{self.method}{model} at {first} hedged at {second} after {self.delay * 1e3:.3g} ms"


@dataclass(frozen=True, slots=True)
class CallRefused(Event):
    """A call was refused on this side, because it could not have got its turn."""

    level: ClassVar[int] = logging.WARNING

    model: str | None
    method: str
    reason: str

    def __str__(self) -> str:
        model = f" of {self.model}" if self.model else ""
        return f"{self.method}{model} refused: {self.reason}"


@dataclass(frozen=True, slots=True)
class CallEnded(Event):
    """A call is over. Made only for observers, one for each call, and not logged."""

    level: ClassVar[int] = logging.DEBUG
    logged: ClassVar[bool] = False

    model: str | None
    method: str
    #: ``"OK"`` or the name of the gRPC status that it failed with.
    code: str
    #: Seconds, with waiting and all attempts.
    seconds: float
    attempts: tuple[Attempt, ...]

    def __str__(self) -> str:
        model = f" of {self.model}" if self.model else ""
        return f"{self.method}{model}: {self.code} after {self.seconds * 1e3:.3g} ms"


@dataclass(frozen=True, slots=True)
class CircuitOpened(Event):
    """Nothing answers any more: calls fail at once until something does."""

    level: ClassVar[int] = logging.ERROR

    reason: str

    def __str__(self) -> str:
        return f"circuit opened: {self.reason}"


@dataclass(frozen=True, slots=True)
class CircuitClosed(Event):
    """Something answers again."""

    #: Seconds that the circuit was open.
    seconds: float

    def __str__(self) -> str:
        return f"circuit closed after {self.seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class CredentialsRefreshed(Event):
    """The server refused the credentials, and new ones were fetched."""

    target: str

    def __str__(self) -> str:
        return f"credentials refreshed: {self.target} refused the old ones"
