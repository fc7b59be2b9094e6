"""What can go wrong with a job's files and columns, beside what goes wrong with its calls.

    ServingError
    └── JobError                          anything that is wrong with a job rather than with a call
        ├── InputError (ValueError)       a file cannot be read: it is broken, cut off, or of another kind
        │   └── InputChanged              a file is not the one that it was when the job looked at it
        ├── ColumnError (InvalidInputError)  columns cannot be given to the model's inputs, whatever the rows
        └── BadRows (ValueError)          some rows have no value that the model's inputs could take

Errors of calls keep their own classes, see `aioserving.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aioserving.errors import InvalidInputError, ServingError

__all__ = ["BadRows", "ColumnError", "InputChanged", "InputError", "JobError"]

#: So many bad rows are told of in a message; `BadRows.rows` has all.
_TOLD = 5


class JobError(ServingError):
    """Something is wrong with a job: its files, its columns or its settings."""


class InputError(JobError, ValueError):
    """A file cannot be read on: it is broken, cut off, not there, or of another format.

    Attributes:
        details: what is wrong.
        url: the file, or None where the error is about all of them.
        row: number of the row in the file, from 0, at or before which reading failed; None if it is
            not about a row.
    """

    def __init__(self, details: str, *, url: str | None = None, row: int | None = None) -> None:
        super().__init__(details)
        self.details = details
        self.url = url
        self.row = row

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_input, (type(self), self.details, self.url, self.row)

    def __str__(self) -> str:
        row = f"row {self.row}" if self.row is not None else None
        where = ", ".join(filter(None, (self.url, row)))
        return f"{where}: {self.details}" if where else self.details


def _rebuild_input(kind: type[InputError], details: str, url: str | None, row: int | None) -> InputError:
    return kind(details, url=url, row=row)


class InputChanged(InputError):  # noqa: N818 - says what happened
    """A file is not the one that it was when the job first looked: replaced, changed, cut off, or gone."""


class ColumnError(JobError, InvalidInputError):
    """Columns cannot be given to the model's inputs, whatever the rows: nothing was read or sent.

    Attributes:
        signature: name of the signature.
        input: name of the input, or None.
        columns: names of the columns that it is about.
    """

    def __init__(
        self,
        details: str,
        *,
        model: str | None = None,
        signature: str | None = None,
        input: str | None = None,
        columns: tuple[str, ...] = (),
    ) -> None:
        super().__init__(details, model=model, method="Predict")
        self.signature = signature
        self.input = input
        self.columns = columns

    def __reduce__(self) -> tuple[object, ...]:
        kept = {
            "model": self.model,
            "signature": self.signature,
            "input": self.input,
            "columns": self.columns,
        }
        return _rebuild_column, (self.details, kept)

    def __str__(self) -> str:
        # Unlike a call's, the details say the model and the signature themselves.
        return self.details


def _rebuild_column(details: str, kept: dict[str, object]) -> ColumnError:
    return ColumnError(details, **kept)  # type: ignore[arg-type]  # what __reduce__ put there


class BadRows(JobError, ValueError):  # noqa: N818 - says what it holds
    """Some rows of a piece have no value that the model's inputs could take; the others have.

    Attributes:
        rows: why, by the row's position in the batch that was given, from 0.
        count: rows of that batch.
    """

    def __init__(self, rows: Mapping[int, str], count: int) -> None:
        self.rows: Mapping[int, str] = MappingProxyType(dict(sorted(rows.items())))
        self.count = count
        told = [f"row {row}: {why}" for row, why in list(self.rows.items())[:_TOLD]]
        more = f"; and {len(self.rows) - _TOLD} more" if len(self.rows) > _TOLD else ""
        super().__init__(f"{len(self.rows)} of {count} rows cannot be sent: {'; '.join(told)}{more}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (dict(self.rows), self.count)
