"""How the command line fails: exit codes that mean something, and errors as one line that says what to do.

`describe` is a function of the error; printing and exiting is `group`'s.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["CommandError", "ExitCode", "Failure", "describe"]


class ExitCode(enum.IntEnum):
    """What the program's exit code says; `meaning` is the sentence in the documentation."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:  # noqa: PYI034 - typing.Self needs Python 3.11
        """One code, with its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done; the answer is yes"
    NEGATIVE = 1, "done; the answer is no: not available, not equal, not confirmed, something found"
    USAGE = 2, "the command line, an environment variable or the config file is wrong"
    UNREACHABLE = 3, "no server answers (UNAVAILABLE)"
    DEADLINE = 4, "no answer in time (DEADLINE_EXCEEDED)"
    NOT_FOUND = 5, "the server has no such model, version, label or signature"
    INVALID = 6, "inputs or a configuration that the server refuses, or would (INVALID_ARGUMENT)"
    DENIED = 7, "credentials are missing, wrong or not enough (UNAUTHENTICATED, PERMISSION_DENIED)"
    EXHAUSTED = 8, "the server is out of threads, memory or queue; or a message is too large"
    PRECONDITION = 9, "the server is not in the state for it: a model failed to load, a label is not ready"
    SERVER = 10, "the server failed in another way (UNKNOWN, INTERNAL, UNIMPLEMENTED, ...)"
    FILE = 11, "a file cannot be read or written, or is not what it should be"
    MISSING_EXTRA = 12, "a package that is installed with an extra is missing"
    INTERNAL = 70, "an error in aioserving itself; please report it"
    INTERRUPTED = 130, "stopped by Ctrl-C"
    PIPE = 141, "whoever reads the output has closed it"


class CommandError(Exception):
    """A command cannot do what it was asked to.

    Args:
        message: what is wrong, in one line.
        code: how the program ends.
        advice: what to do next; empty if there is nothing to say.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.NEGATIVE, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice


@dataclass(frozen=True)
class Failure:
    """An error as it is told."""

    #: What happened, in one line.
    message: str
    #: How the program ends.
    code: ExitCode
    #: What to do next; empty if there is nothing to say.
    advice: str = ""
    #: Name of the gRPC status, if it is one.
    status: str | None = None

    def __str__(self) -> str:
        return f"{self.message} -- {self.advice}" if self.advice else self.message

    def to_dict(self) -> dict[str, object]:
        """The same for programs: what ``--json`` writes to standard error."""
        return {
            "error": self.message,
            "advice": self.advice or None,
            "status": self.status,
            "exit_code": int(self.code),
            "kind": self.code.name.lower(),
        }


#: What the library advises, in the words of the command line.
_OPTIONS = {
    "TLS(certificate=, key=)": "--cert and --key",
    "TLS(server_name=...)": "--server-name",
    "TLS(ca=...)": "--ca",
    "tls=TLS(...)": "--tls",
}


def describe(error: BaseException) -> Failure:
    """What an error means to somebody at a command line."""
    while (inner := getattr(error, "exceptions", None)) and len(inner) == 1:
        error = inner[0]  # a task group's, of one task that failed
    if isinstance(error, CommandError):
        return Failure(_line(error.message), error.code, error.advice)
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "aioserving"
        advice = f"'{where} --help' tells how" if error.ctx is not None else ""
        return Failure(_line(error.format_message()), ExitCode.USAGE, advice)
    if isinstance(error, click.FileError):
        return Failure(_line(error.format_message()), ExitCode.FILE)
    if isinstance(error, click.ClickException):
        return Failure(_line(error.format_message()), ExitCode.USAGE)
    from aioserving import errors

    if isinstance(error, errors.RPCError):
        code, advice = _rpc(error)
        return Failure(_line(_rpc_message(error)), code, advice, error.code)
    if isinstance(error, errors.DecodeError):
        return Failure(_line(str(error)), ExitCode.FILE)
    if isinstance(error, errors.ServingError):
        return Failure(_line(str(error)), ExitCode.INVALID)
    if isinstance(error, ImportError):
        return Failure(_line(str(error)), ExitCode.MISSING_EXTRA)
    if isinstance(error, OSError):
        return Failure(_line(_os_error(error)), ExitCode.FILE)
    return Failure(
        _line(f"unexpected {type(error).__name__}: {error}"),
        ExitCode.INTERNAL,
        "with --traceback, it shows where it comes from",
    )


def _rpc(error: BaseException) -> tuple[ExitCode, str]:
    from aioserving import errors

    model = getattr(error, "model", None)
    of = f" {model}" if model else " MODEL"
    if isinstance(error, errors.UnavailableError):
        return ExitCode.UNREACHABLE, "'aioserving doctor' finds out where the way to the server ends"
    if isinstance(error, errors.DeadlineExceededError):
        return ExitCode.DEADLINE, "--timeout gives it more time"
    if isinstance(error, (errors.NotFoundError, errors.VersionLabelNotFoundError)):
        return ExitCode.NOT_FOUND, f"'aioserving status{of}' lists the versions that the server has seen"
    if isinstance(error, errors.SignatureNotFoundError):
        return ExitCode.NOT_FOUND, f"'aioserving metadata{of}' lists the signatures"
    if isinstance(error, errors.InvalidConfigError):
        return ExitCode.INVALID, "'aioserving config check FILE' lists what is wrong, with lines"
    if isinstance(error, errors.InvalidInputError):
        return ExitCode.INVALID, f"'aioserving metadata{of}' tells what the model takes"
    if isinstance(error, errors.InvalidArgumentError):
        return ExitCode.INVALID, ""
    if isinstance(error, errors.UnauthenticatedError):
        return ExitCode.DENIED, "credentials come from --token-file, AIOSERVING_TOKEN or --api-key"
    if isinstance(error, errors.PermissionDeniedError):
        return ExitCode.DENIED, "'aioserving config show' tells whose credentials these are"
    if isinstance(error, errors.ResourceExhaustedError):
        return ExitCode.EXHAUSTED, ""
    if isinstance(error, (errors.FailedPreconditionError, errors.AbortedError)):
        return ExitCode.PRECONDITION, f"'aioserving status{of}' tells how its versions are"
    return ExitCode.SERVER, ""


def _rpc_message(error: Any) -> str:
    """What an `RPCError` says, without the story of every attempt."""
    where = " ".join(
        part
        for part in (
            error.method,
            (f"of {error.model}" if error.method else error.model) if error.model else None,
            f"at {error.endpoint}" if error.endpoint else None,
        )
        if part
    )
    details = error.details or "the server gave no reason"
    for argument, option in _OPTIONS.items():
        details = details.replace(argument, option)
    text = f"{error.code}: {details}"
    tries = f" ({len(error.attempts)} attempts)" if len(error.attempts) > 1 else ""
    return f"{where}: {text}{tries}" if where else f"{text}{tries}"


def _os_error(error: OSError) -> str:
    if error.filename is not None and error.errno is not None:
        return f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}"
    return str(error) or type(error).__name__


def _line(text: str) -> str:
    """`text` on one line: messages of servers may have several."""
    return " ".join(text.split())
