"""Exit codes, and errors as one line."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

import click

from aioserving import errors
from aioserving.cli.failures import CommandError, ExitCode, describe

EXPECTED = {
    "CancelledError": ExitCode.SERVER,
    "UnknownError": ExitCode.SERVER,
    "InvalidArgumentError": ExitCode.INVALID,
    "InvalidInputError": ExitCode.INVALID,
    "VersionLabelNotFoundError": ExitCode.NOT_FOUND,
    "DeadlineExceededError": ExitCode.DEADLINE,
    "NotFoundError": ExitCode.NOT_FOUND,
    "ModelNotFoundError": ExitCode.NOT_FOUND,
    "VersionNotFoundError": ExitCode.NOT_FOUND,
    "AlreadyExistsError": ExitCode.SERVER,
    "PermissionDeniedError": ExitCode.DENIED,
    "UnauthenticatedError": ExitCode.DENIED,
    "ResourceExhaustedError": ExitCode.EXHAUSTED,
    "MessageTooLargeError": ExitCode.EXHAUSTED,
    "FailedPreconditionError": ExitCode.PRECONDITION,
    "SignatureNotFoundError": ExitCode.NOT_FOUND,
    "AbortedError": ExitCode.PRECONDITION,
    "OutOfRangeError": ExitCode.SERVER,
    "UnimplementedError": ExitCode.SERVER,
    "InternalError": ExitCode.SERVER,
    "UnavailableError": ExitCode.UNREACHABLE,
    "DataLossError": ExitCode.SERVER,
}


def test_every_error_of_a_call_has_its_code() -> None:
    """A class of errors that is added has to be given an exit code here."""
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.RPCError) and kind is not errors.RPCError
    }
    own = {"InvalidConfigError", "ModelLoadError"}  # made of lists; below
    assert classes.keys() - own == EXPECTED.keys()
    for name, code in EXPECTED.items():
        failure = describe(classes[name]("why", model="m", method="Predict", endpoint="a:1"))
        assert failure.code == code, name
        assert failure.message == f"Predict of m at a:1: {classes[name].default_code}: why"
        assert failure.status == classes[name].default_code
    refused = errors.InvalidConfigError([errors.ConfigProblem("is wrong", line=3, column=1)])
    assert describe(refused).code == ExitCode.INVALID
    failed = errors.ModelLoadError([errors.LoadFailure("a:1", "m", 1, "DATA_LOSS: cut")])
    assert describe(failed).code == ExitCode.PRECONDITION


def test_other_errors() -> None:
    """Files, packages, options and bugs can be told apart by the exit code, too."""
    assert (
        describe(FileNotFoundError(2, "No such file", "x.npy")).message == "x.npy: No such file or directory"
    )
    assert describe(FileNotFoundError(2, "No such file", "x.npy")).code == ExitCode.FILE
    assert describe(errors.DecodeError("cut")).code == ExitCode.FILE
    assert describe(ImportError("pip install 'aioserving[batch]'")).code == ExitCode.MISSING_EXTRA
    assert describe(click.UsageError("no")).code == ExitCode.USAGE
    assert describe(CommandError("no", ExitCode.NEGATIVE, advice="try")).code == ExitCode.NEGATIVE
    assert str(describe(CommandError("no", advice="try this"))) == "no -- try this"
    bug = describe(KeyError("x"))
    assert (bug.code, bug.message) == (ExitCode.INTERNAL, "unexpected KeyError: 'x'")
    assert "--traceback" in bug.advice


def test_it_stays_one_line() -> None:
    """A server's text of several lines is one line here, and a group of one error is that error."""
    error = errors.InvalidArgumentError("Matrix size-incompatible\n\t [[{{node m}}]]")
    assert "\n" not in describe(error).message
    group = type("Group", (Exception,), {"exceptions": (error,)})()
    assert describe(group) == describe(error)


def test_programs_get_the_same() -> None:
    """What --json writes to standard error has the code, the status and the advice apart."""
    found = describe(errors.UnavailableError("gone", endpoint="a:1")).to_dict()
    assert found["exit_code"] == 3
    assert found["status"] == "UNAVAILABLE"
    assert found["kind"] == "unreachable"
    assert "doctor" in str(found["advice"])


def test_codes_are_ones_that_a_shell_can_see() -> None:
    """They fit into a byte, differ, and each says what it means."""
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
    assert all(0 <= code <= 255 and code.meaning for code in ExitCode)
