"""Errors of jobs: what they say, what they carry, and that both survive being sent to another process."""

from __future__ import annotations

import pickle

import pytest

from aioserving.errors import InvalidInputError, ServingError
from aioserving.jobs import errors

EXAMPLES: list[tuple[errors.JobError, list[str], dict[str, object]]] = [
    (errors.JobError("no"), ["no"], {}),
    (
        errors.InputError("is cut off", url="a.csv", row=7),
        ["a.csv, row 7: is cut off"],
        {"url": "a.csv", "row": 7, "details": "is cut off"},
    ),
    (errors.InputChanged("has changed", url="b"), ["b: has changed"], {"url": "b", "row": None}),
    (
        errors.ColumnError("no column", model="m", signature="s", input="x", columns=("a", "b")),
        ["no column"],
        {"model": "m", "signature": "s", "input": "x", "columns": ("a", "b")},
    ),
    (
        errors.BadRows(dict.fromkeys(range(9, 2, -1), "null"), 20),
        ["7 of 20 rows", "row 3: null", "row 7: null", "and 2 more"],
        {"count": 20, "rows": dict.fromkeys(range(3, 10), "null")},
    ),
    (
        errors.RowRefusedError(12, "c.parquet", 2, "too long"),
        ["row 12 (row 2 of c.parquet)", "too long", 'on_error="skip"'],
        {"row": 12, "url": "c.parquet", "file_row": 2, "reason": "too long"},
    ),
    (
        errors.TooManyBadRowsError(11, 10, "null"),
        ["11 rows were refused", "max_bad_rows=10", "goes on"],
        {"count": 11, "limit": 10, "last": "null"},
    ),
    (
        errors.VersionGoneError("m", 1, [2, 3]),
        ["version 1 of model 'm'", "served: 2, 3", "on_change"],
        {"model": "m", "version": 1, "available": (2, 3)},
    ),
    (errors.OutputError("disk full"), ["disk full"], {}),
    (errors.OutputExistsError("foreign files"), ["foreign files"], {}),
    (
        errors.OutputLockedError("out", {"host": "h", "pid": 7}),
        ["another job is writing to out", "host h, pid 7"],
        {"output": "out", "holder": {"host": "h", "pid": 7}},
    ),
    (
        errors.JobChangedError("out", ["batch_size: 1, not 2"]),
        ["out was begun by a job that differs", "batch_size: 1, not 2", "restart"],
        {"output": "out", "changes": ("batch_size: 1, not 2",)},
    ),
]


@pytest.mark.parametrize(("error", "words", "attributes"), EXAMPLES, ids=lambda it: type(it).__name__)
def test_errors_tell_and_survive_pickling(
    error: errors.JobError, words: list[str], attributes: dict[str, object]
) -> None:
    """Engines and process pools send errors to other processes: nothing of them is lost on the way."""
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert type(one) is type(error)
        assert str(one) == str(error)
        for word in words:
            assert word in str(one)
        for name, value in attributes.items():
            assert getattr(one, name) == value


def test_every_error_is_tried_here() -> None:
    """One that is added is held to the same."""
    assert {type(error).__name__ for error, _, _ in EXAMPLES} == set(errors.__all__)


def test_their_places_in_the_tree() -> None:
    """One ``except ServingError`` catches them all; what is wrong with values is a ValueError, too."""
    assert all(isinstance(error, (errors.JobError, ServingError)) for error, _, _ in EXAMPLES)
    assert issubclass(errors.ColumnError, InvalidInputError)
    assert issubclass(errors.InputChanged, errors.InputError)
    for kind in (errors.InputError, errors.BadRows, errors.RowRefusedError, errors.ColumnError):
        assert issubclass(kind, ValueError)
    for kind in (errors.OutputExistsError, errors.OutputLockedError):
        assert issubclass(kind, errors.OutputError)
