"""aioserving.testing.status: codes, the error that carries one, and the cut of long messages."""

from __future__ import annotations

import pickle

import pytest

from aioserving.testing.status import MESSAGE_LIMIT, StatusCode, StatusError, truncate


def test_codes_are_the_numbers_grpc_uses() -> None:
    """Every code has gRPC's name and number, so that a status needs no table to be translated."""
    grpc = pytest.importorskip("grpc", reason="compares with gRPC's own enum")
    assert {code.name: int(code) for code in StatusCode} == {
        code.name: code.value[0] for code in grpc.StatusCode
    }


def test_error_prints_as_absl_does() -> None:
    """`str()` is the ``CODE: text`` form that the server quotes inside other messages."""
    error = StatusError(5, "Could not find SavedModel")
    assert error.code is StatusCode.NOT_FOUND
    assert str(error) == "NOT_FOUND: Could not find SavedModel"
    assert repr(error) == "StatusError(NOT_FOUND, 'Could not find SavedModel')"


def test_error_survives_pickling() -> None:
    """An error that crosses a process boundary keeps its code and message."""
    error = pickle.loads(pickle.dumps(StatusError(StatusCode.UNAVAILABLE, "busy")))
    assert (error.code, error.message) == (StatusCode.UNAVAILABLE, "busy")


@pytest.mark.parametrize("code", [0, 17, -1])
def test_error_needs_an_error_code(code: int) -> None:
    """OK and numbers outside the canonical codes are refused."""
    with pytest.raises(ValueError, match=r"OK is not an error|is not a valid StatusCode"):
        StatusError(code, "text")


def test_truncate_keeps_1024_bytes() -> None:
    """A message of exactly the limit passes whole; one more byte is cut and marked."""
    assert truncate("a" * MESSAGE_LIMIT) == "a" * MESSAGE_LIMIT
    assert truncate("a" * (MESSAGE_LIMIT + 1)) == "a" * MESSAGE_LIMIT + "...TRUNCATED"


def test_truncate_counts_bytes_not_characters() -> None:
    """The limit is in bytes; a character cut in two becomes U+FFFD, as a client sees it."""
    assert truncate("é" * 513) == "é" * 512 + "...TRUNCATED"
    assert truncate("a" + "é" * 512) == "a" + "é" * 511 + "\ufffd...TRUNCATED"
