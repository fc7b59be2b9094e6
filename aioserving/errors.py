"""Every exception that aioserving raises.

    ServingError                          anything this library raises on purpose
    ├── ClientStateError (RuntimeError)   the client cannot be used here and now
    │   ├── ClientClosedError             after `aclose()`
    │   ├── EventLoopError                from a second event loop, or one that is closed
    │   └── ForkError                     in a process forked after the client connected
    ├── DecodeError (ValueError)          bytes that are not the message they should be
    ├── UnsupportedTypeError (TypeError)  a value or dtype that no TensorProto can hold
    └── RPCError                          a call failed; `code` says how
        ├── CancelledError                CANCELLED: the other side cancelled the call
        ├── UnknownError                  UNKNOWN: also a reload whose models failed to load
        ├── InvalidArgumentError (ValueError)
        │   ├── InvalidInputError         inputs refused before sending, or by the server
        │   ├── InvalidConfigError        a configuration refused before sending; lists what is wrong
        │   └── VersionLabelNotFoundError
        ├── DeadlineExceededError (TimeoutError)
        ├── NotFoundError (LookupError)
        │   └── ModelNotFoundError
        │       └── VersionNotFoundError
        ├── AlreadyExistsError
        ├── PermissionDeniedError
        ├── UnauthenticatedError
        ├── ResourceExhaustedError        the server is out of threads, memory or queue
        │   └── MessageTooLargeError      a message beyond this client's limit
        ├── FailedPreconditionError
        │   ├── ModelLoadError            versions that were waited for failed to load; lists which and why
        │   └── SignatureNotFoundError (LookupError)
        ├── AbortedError
        ├── OutOfRangeError
        ├── UnimplementedError
        ├── InternalError
        ├── UnavailableError (ConnectionError)
        └── DataLossError

Errors found before anything is sent have the class that the server's own refusal would have had, so
one ``except`` serves both; `code` is set and `endpoint` is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aioserving.attempts import Attempt, tell

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "CancelledError",
    "ClientClosedError",
    "ClientStateError",
    "ConfigProblem",
    "DataLossError",
    "DeadlineExceededError",
    "DecodeError",
    "EventLoopError",
    "FailedPreconditionError",
    "ForkError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidConfigError",
    "InvalidInputError",
    "LoadFailure",
    "MessageTooLargeError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "RPCError",
    "ResourceExhaustedError",
    "ServingError",
    "SignatureNotFoundError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "UnsupportedTypeError",
    "VersionLabelNotFoundError",
    "VersionNotFoundError",
]


class ServingError(Exception):
    """Anything that aioserving raises on purpose."""


class ClientStateError(ServingError, RuntimeError):
    """The client cannot be used here and now; the caller's code has to change."""


class ClientClosedError(ClientStateError):
    """The client was closed, or is being closed."""


class EventLoopError(ClientStateError):
    """A client belongs to the event loop it was first used on."""


class ForkError(ClientStateError):
    """The process was forked after the client had connected; gRPC does not survive that."""


class DecodeError(ServingError, ValueError):
    """Bytes are not the protobuf message that they should be."""


class UnsupportedTypeError(ServingError, TypeError):
    """A Python value or numpy dtype has no counterpart among TensorFlow's dtypes."""


class RPCError(ServingError):
    """A call failed.

    Attributes:
        code: the gRPC status code's name, such as ``"NOT_FOUND"``.
        details: what the server (or gRPC, or this client's own checks) said.
        model: name of the model called, or None.
        endpoint: the address that answered, or None when nothing was sent.
        method: short name of the RPC, such as ``"Predict"``, or None.
        attempts: the story of the call, an `Attempt` for each time that it was sent.
        gave_up: why it was not sent again, if that may be asked; else empty.
        pushback: seconds after which the server asked to try again, negative for never; None if it
            said nothing.
        withdrawn: whether the last attempt cost no server anything: there was no connection, or the client
            itself ended it because the connection had fallen silent.
    """

    #: The code of errors of this class that do not say otherwise.
    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        details: str,
        *,
        code: str | None = None,
        model: str | None = None,
        endpoint: str | None = None,
        method: str | None = None,
    ) -> None:
        super().__init__(details)
        self.details = details
        self.code = code or self.default_code
        self.model = model
        self.endpoint = endpoint
        self.method = method
        self.attempts: tuple[Attempt, ...] = ()
        self.gave_up = ""
        self.pushback: float | None = None
        self.withdrawn = False

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive Exception's own pickling.
        given = (type(self), self.details, self.code, self.model, self.endpoint, self.method)
        kept = ("attempts", "gave_up", "pushback", "withdrawn")
        return _rebuild, given, {name: getattr(self, name) for name in kept}

    def __str__(self) -> str:
        where = " ".join(
            part
            for part in (
                self.method,
                f"of model {self.model!r}" if self.model else None,
                f"at {self.endpoint}" if self.endpoint else None,
            )
            if part
        )
        text = self.details or "the server gave no reason"
        story = "; ".join(filter(None, (tell(self.attempts), self.gave_up)))
        if story:
            text = f"{text} ({story})"
        return f"{where}: {self.code}: {text}" if where else text


def _rebuild(
    kind: type[RPCError],
    details: str,
    code: str,
    model: str | None,
    endpoint: str | None,
    method: str | None,
) -> RPCError:
    return kind(details, code=code, model=model, endpoint=endpoint, method=method)


class CancelledError(RPCError):
    """The other side cancelled the call; a caller's own cancellation stays `asyncio.CancelledError`."""

    default_code = "CANCELLED"


class UnknownError(RPCError):
    """The server failed without a better code; so a reload ends when models could not be loaded."""

    default_code = "UNKNOWN"


class InvalidArgumentError(RPCError, ValueError):
    """The request is wrong whatever the state of the server; repeating it is no use."""

    default_code = "INVALID_ARGUMENT"


class InvalidInputError(InvalidArgumentError):
    """The inputs do not fit the signature: a name, dtype or shape, or a value nothing can convert."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong with a configuration."""

    #: What is wrong, and what would be right.
    text: str
    #: Name of the model that it is about, or None.
    model: str | None = None
    #: Whether the server is certain to refuse it; else it may, or would do what is hardly meant.
    refused: bool = True
    #: Line of the text that the configuration was read from, counted from 1, or None.
    line: int | None = None
    #: Column in that line, counted from 1, or None.
    column: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}: " if self.line is not None else ""
        return where + (f"model {self.model!r}: {self.text}" if self.model is not None else self.text)


class InvalidConfigError(InvalidArgumentError):
    """A configuration that the server would refuse; nothing was sent or written.

    Attributes:
        problems: what is wrong, a `ConfigProblem` each.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("; ".join(map(str, problems)), method="HandleReloadConfigRequest")
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


class VersionLabelNotFoundError(InvalidArgumentError):
    """The server knows no such version label (it says INVALID_ARGUMENT, also for an unknown model)."""


class DeadlineExceededError(RPCError, TimeoutError):
    """The deadline passed before the answer came."""

    default_code = "DEADLINE_EXCEEDED"


class NotFoundError(RPCError, LookupError):
    """What the request names is not there."""

    default_code = "NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    """The server knows no such model, or none of its versions is available."""


class VersionNotFoundError(ModelNotFoundError):
    """The version asked for, by number or by label, is not available."""


class AlreadyExistsError(RPCError):
    """What should be made exists."""

    default_code = "ALREADY_EXISTS"


class PermissionDeniedError(RPCError):
    """The caller is known and not allowed."""

    default_code = "PERMISSION_DENIED"


class UnauthenticatedError(RPCError):
    """The call carries no valid credentials."""

    default_code = "UNAUTHENTICATED"


class ResourceExhaustedError(RPCError):
    """The server is out of threads, memory or queue space; later or elsewhere may work."""

    default_code = "RESOURCE_EXHAUSTED"


class MessageTooLargeError(ResourceExhaustedError):
    """A message is larger than a limit; a second try would end the same way."""


class FailedPreconditionError(RPCError):
    """The server is not in the state that the request needs."""

    default_code = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """One version of a model that a server could not load."""

    #: The address of the server.
    target: str
    model: str
    version: int
    #: Why, as ``"CODE_NAME: text"``.
    reason: str

    def __str__(self) -> str:
        return f"version {self.version} of {self.model!r} at {self.target} failed to load: {self.reason}"


class ModelLoadError(FailedPreconditionError):
    """Versions that were waited for failed to load, so that waiting longer is no use.

    Attributes:
        failures: which and why, a `LoadFailure` each.
    """

    def __init__(self, failures: Sequence[LoadFailure]) -> None:
        first = failures[0]
        super().__init__(
            "; ".join(map(str, failures)),
            model=first.model if len({failure.model for failure in failures}) == 1 else None,
            endpoint=first.target if len({failure.target for failure in failures}) == 1 else None,
            method="GetModelStatus",
        )
        self.failures = tuple(failures)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.failures,)


class SignatureNotFoundError(FailedPreconditionError, LookupError):
    """The model has no signature of that name."""


class AbortedError(RPCError):
    """The operation was aborted."""

    default_code = "ABORTED"


class OutOfRangeError(RPCError):
    """The operation went past the valid range."""

    default_code = "OUT_OF_RANGE"


class UnimplementedError(RPCError):
    """The server has no such method, or does not support this use of it."""

    default_code = "UNIMPLEMENTED"


class InternalError(RPCError):
    """An invariant of the server or of gRPC broke."""

    default_code = "INTERNAL"


class UnavailableError(RPCError, ConnectionError):
    """The server cannot be reached, is going away, or is too busy to take the call."""

    default_code = "UNAVAILABLE"


class DataLossError(RPCError):
    """Data is lost or corrupt."""

    default_code = "DATA_LOSS"
