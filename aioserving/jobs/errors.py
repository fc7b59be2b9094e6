"""What can go wrong with a job's files and columns, beside what goes wrong with its calls.

    ServingError
    └── JobError                          anything that is wrong with a job rather than with a call
        ├── InputError (ValueError)       a file cannot be read: it is broken, cut off, or of another kind
        │   └── InputChanged              a file is not the one that it was when the job looked at it
        ├── ColumnError (InvalidInputError)  columns cannot be given to the model's inputs, whatever the rows
        ├── BadRows (ValueError)          some rows have no value that the model's inputs could take
        ├── RowRefusedError (ValueError)  one row cannot be scored, and bad rows end the job
        ├── TooManyBadRowsError           more rows were refused than the job may leave out
        ├── VersionGoneError              the version that the job began with is no longer served
        ├── OutputError                   the output cannot be written, or not by this job
        │   ├── OutputExistsError         there are files that no job of this kind wrote
        │   └── OutputLockedError         another job is writing there; says which
        └── JobChangedError               it is not the job that began this output; says what differs

Errors of calls keep their own classes, see `aioserving.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aioserving.errors import InvalidInputError, ServingError

__all__ = [
    "BadRows",
    "ColumnError",
    "InputChanged",
    "InputError",
    "JobChangedError",
    "JobError",
    "OutputError",
    "OutputExistsError",
    "OutputLockedError",
    "RowRefusedError",
    "TooManyBadRowsError",
    "VersionGoneError",
]

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


class RowRefusedError(JobError, ValueError):
    """A row cannot be scored, and the job was not told to leave such rows out (``on_error="skip"``, "aside").

    What was scored before it is in the output; the same job goes on with this row.

    Attributes:
        row: its number in the whole input, from 0.
        url: the file that it is in.
        file_row: its number in that file, from 0.
        reason: why; of a row that the server refused, the error that it got is the ``__cause__``.
    """

    def __init__(self, row: int, url: str, file_row: int, reason: str) -> None:
        super().__init__(
            f"row {row} (row {file_row} of {url}) cannot be scored: {reason}; "
            'on_error="skip" or "aside" would leave it out'
        )
        self.row = row
        self.url = url
        self.file_row = file_row
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.row, self.url, self.file_row, self.reason)


class TooManyBadRowsError(JobError):
    """More rows were refused than ``max_bad_rows`` allows.

    Attributes:
        count: rows refused so far.
        limit: how many the job may leave out.
        last: why the last of them was refused.
    """

    def __init__(self, count: int, limit: int, last: str) -> None:
        super().__init__(
            f"{count} rows were refused, and max_bad_rows={limit}; the last one because: {last}. "
            "With a higher max_bad_rows the same job goes on where it stopped"
        )
        self.count = count
        self.limit = limit
        self.last = last

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.count, self.limit, self.last)


class VersionGoneError(JobError):
    """The version of the model that the job began with is no longer served.

    Attributes:
        model: name of the model.
        version: the version that all rows so far were scored with.
        available: the versions that are served instead.
    """

    def __init__(self, model: str, version: int, available: Sequence[int]) -> None:
        served = ", ".join(map(str, available)) or "none"
        super().__init__(
            f"version {version} of model {model!r}, which this job's output was begun with, is no longer "
            f"served (served: {served}). Load it again, for instance with a version label or a "
            "model_version_policy that names it, and run the same job to go on; or run it with another "
            'version and on_change="restart" to score all rows anew, or on_change="continue" to score '
            "only the remaining rows with it"
        )
        self.model = model
        self.version = version
        self.available = tuple(available)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.model, self.version, self.available)


class OutputError(JobError):
    """The output cannot be written, or not by this job; the message says why and what would help."""


class OutputExistsError(OutputError):
    """The output's folder has files that no job wrote, or that are not this kind of output's."""


class OutputLockedError(OutputError):
    """Another job is writing to the same output.

    Attributes:
        holder: what is known of it: ``host``, ``pid``, ``user``, ``since``, ``command``.
    """

    def __init__(self, output: str, holder: Mapping[str, object]) -> None:
        who = ", ".join(f"{key} {value}" for key, value in holder.items()) or "unknown"
        super().__init__(f"another job is writing to {output} ({who}); wait for its end, or end it")
        self.output = output
        self.holder: Mapping[str, object] = MappingProxyType(dict(holder))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.output, dict(self.holder))


class JobChangedError(JobError):
    """The output was begun by a job that differs from this one in what decides the rows.

    Attributes:
        output: where.
        changes: what differs, a sentence each.
    """

    def __init__(self, output: str, changes: Sequence[str], hint: str = "") -> None:
        hint = hint or (
            'on_change="restart" discards the output and begins anew, on_change="continue" scores the '
            "remaining rows as asked now"
        )
        super().__init__(f"{output} was begun by a job that differs: {'; '.join(changes)}. {hint}")
        self.output = output
        self.changes = tuple(changes)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.output, self.changes, self.hint)
