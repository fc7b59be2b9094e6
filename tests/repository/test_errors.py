"""Errors of the repository: what they say, and that they survive being sent to another process."""

from __future__ import annotations

import pickle

import pytest

from aioserving.errors import ServingError
from aioserving.repository import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_one_of_aioserving(name: str) -> None:
    """One ``except ServingError`` catches them all."""
    assert issubclass(getattr(errors, name), ServingError)


def test_errors_of_versions_name_them() -> None:
    """The model and the version are in the text and in attributes, also after pickling."""
    error = errors.CorruptVersionError("a file is wrong", model="m", version=7)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.CorruptVersionError
    assert (str(again), again.model, again.version) == ("version 7 of model 'm': a file is wrong", "m", 7)


def test_a_second_process_is_named() -> None:
    """The process that holds a directory is told, also after pickling."""
    again = pickle.loads(pickle.dumps(errors.AlreadyRunningError("busy", pid=7, host="h")))
    assert (str(again), again.pid, again.host) == ("busy", 7, "h")


def test_what_may_go_away_by_itself_says_so() -> None:
    """An upload under way, a store that is down and a full disk may end; a corrupt version does not."""
    transient = {name for name in errors.__all__ if getattr(getattr(errors, name), "transient", False)}
    assert transient >= {"IncompleteVersionError", "StoreUnavailableError", "NoRoomError"}
    assert not transient & {"CorruptVersionError", "UnsafeArchiveError", "InvalidNameError"}
