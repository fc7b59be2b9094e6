"""Batch scoring: run a model on every row of a source, as fast as the servers go, in bounded memory.

    async with client.model("digits").score(rows, batch_size=256) as results:
        async for batch in results:
            write(batch.start, batch.outputs["scores"])

Rows are read from the source, put together to batches, and sent with several calls at a time; nothing is read
before there is room for it. Every row is in exactly one result, or in exactly one `BadRow`, or the run ends
with an error that says how far it came.

    Rebatcher        pieces of any size in, batches of one size out
    PreparedBatches  a source whose batches are sent as they come
    InFlightClimber  how many calls to make at a time, from the rate at which rows are answered
    Scoring          reads, sends, waits outages out, finds bad rows, hands out results
    BlockingScoring  the same for plain code

Retries of single calls are the client's (see `aioserving.retry`); what still fails after them is judged here:
an outage is waited for, a request that is refused is divided until the bad rows are found, everything else
ends the run. Files, jobs and what to do with results are left to callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import queue
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from aioserving import errors
from aioserving._types import Array, Inputs, TensorLike
from aioserving.latency import Latency, LatencyHistogram
from aioserving.prediction import PredictResult
from aioserving.signature import Signature

if TYPE_CHECKING:
    from typing_extensions import Self

    from aioserving.tf_examples import Table

__all__ = [
    "BadRow",
    "BlockingScoring",
    "InFlightClimber",
    "Items",
    "OnError",
    "PreparedBatches",
    "Rebatcher",
    "ScoredBatch",
    "Scoring",
    "ScoringProgress",
    "Source",
]

logger = logging.getLogger("aioserving")

T = TypeVar("T")

#: What can be scored: see `Scoring`.
Source: TypeAlias = (
    "Mapping[str, TensorLike] | Array | Table | PreparedBatches | Iterable[Any] | AsyncIterable[Any]"
)

#: What becomes of rows that the model refuses.
OnError: TypeAlias = Literal["raise", "skip", "collect"]

#: What the items of an iterable are.
Items: TypeAlias = Literal["rows", "batches"]

#: A column: an array, or a list of values that only the signature can make an array of.
_Column: TypeAlias = "Array | list[Any]"

#: Columns by name; None is the name of the only input where the source names none.
_Columns: TypeAlias = "dict[str | None, _Column]"

#: Batches that were read, each with its number of rows.
_Found: TypeAlias = "deque[tuple[_Columns, int]]"

#: A batch by its number, its first row and the row after its last, and its columns.
_Batch: TypeAlias = "tuple[int, int, int, _Columns]"

#: The end of a source: what it failed with, or None.
_End: TypeAlias = "tuple[BaseException | None]"

#: Most calls in flight that are found automatically.
_MOST_IN_FLIGHT: Final = 64
#: Bytes that a reading thread may always read ahead: waking it for each small batch costs as much as a call.
_READ_AHEAD: Final = 1 << 20
#: Batches that are cut at once from what is in memory as a whole: views take no memory, and it is faster.
_STRIDE: Final = 32
#: Seconds for which a reading thread goes on when it has something to hand over already.
_READING: Final = 0.002
#: Seconds that the end of a run waits for a source that is in the middle of reading.
_SOURCE_PATIENCE: Final = 5.0
#: Seconds before the first and before any later attempt while nothing answers.
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
#: Seconds over which the present rate is taken, and between its samples.
_RATE_WINDOW, _RATE_STEP = 10.0, 0.25

#: Failures of the servers, or of the way to them; later the same call may succeed.
_TRANSIENT: Final = (
    errors.UnavailableError,
    errors.ResourceExhaustedError,
    errors.DeadlineExceededError,
    errors.CancelledError,
    errors.AbortedError,
)
#: What a server says that has lost a model for a moment, when it had it before.
_ABSENT: Final = (errors.ModelNotFoundError, errors.VersionLabelNotFoundError)
#: Failures that may be about single rows, or about so many of them together.
_OF_ROWS: Final = (
    errors.InvalidArgumentError,
    errors.MessageTooLargeError,
    errors.OutOfRangeError,
    errors.UnsupportedTypeError,
    errors.UnknownError,
    errors.InternalError,
)
#: Those of them that may as well be the server's.
_OF_ROWS_OR_SERVER: Final = (errors.UnknownError, errors.InternalError)


# -- results ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that the model refused when it was asked for it alone."""

    #: Number of the row in the source.
    row: int
    #: Why.
    error: errors.ServingError
    #: What was sent: arrays of one row by input name, or the one array.
    inputs: Inputs = field(repr=False)


@dataclass(eq=False, slots=True)
class ScoredBatch:
    """Some rows that follow one another, and what the model says of them."""

    #: Number of the batch, from 0, in the order of the source.
    index: int
    #: Number of its first row in the source.
    start: int
    #: Number of its last row, plus one: where to go on after this batch.
    stop: int
    #: What was sent: arrays by input name, or the one array where the source names no inputs. Without the
    #: rows that were skipped or set aside.
    inputs: Inputs
    #: Arrays by output name, a `PredictResult` unless the batch was divided; a row for each of `inputs`.
    #: Empty if all rows were refused.
    outputs: Mapping[str, Array]
    #: Columns named by ``keep``, for the same rows.
    kept: Mapping[str, Array | list[Any]]
    #: Rows that were set aside (``on_error="collect"``).
    errors: tuple[BadRow, ...] = ()
    #: Numbers of the rows that were skipped or set aside.
    refused: tuple[int, ...] = ()
    #: Seconds from sending it to its (last) answer.
    seconds: float = 0.0
    _results: tuple[PredictResult, ...] = ()

    def __len__(self) -> int:
        """Rows with a result."""
        return self.stop - self.start - len(self.refused)

    @property
    def rows(self) -> Array:
        """Numbers of the rows that have results: int64, as many as `len`."""
        rows = np.arange(self.start, self.stop)
        return np.delete(rows, [row - self.start for row in self.refused]) if self.refused else rows

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of the model that answered: one, or several if the batch was divided meanwhile."""
        return tuple(dict.fromkeys(result.model_spec.version or 0 for result in self._results))

    def __repr__(self) -> str:
        refused = f", {len(self.refused)} refused" if self.refused else ""
        return f"<ScoredBatch {self.index}: rows {self.start} to {self.stop}{refused}, {self.outputs!r}>"


@dataclass(frozen=True, slots=True)
class ScoringProgress:
    """How far a run is, at one moment; `print` it."""

    #: Rows read from the source.
    rows_read: int
    #: Rows that have a result or were refused.
    rows_done: int
    #: Number of the row before which all were handed out and dealt with; see `Scoring.consumed`.
    consumed: int
    #: Rows of the source, if known before it is read.
    total: int | None
    #: Rows that were skipped or set aside.
    errors: int
    #: Batches that have a result.
    batches: int
    #: Batches being scored.
    in_flight: int
    #: Batches scored and not handed out yet.
    waiting: int
    #: Batches that may be in flight now.
    max_in_flight: int
    #: Attempts beyond each call's first, the client's and this run's.
    retries: int
    #: Seconds for which calls have failed without one that succeeded; 0.0 if all is well.
    failing_for: float
    #: Seconds since the run began.
    seconds: float
    #: Rows done per second in the last ten seconds.
    rows_per_second: float
    #: Seconds from sending a batch to its answer.
    latency: Latency

    @property
    def fraction(self) -> float | None:
        """Share of the rows that are done; None if their number is not known."""
        if self.total is None:
            return None
        return self.rows_done / self.total if self.total else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end at the present rate; None if that cannot be known."""
        if self.total is None or not self.rows_per_second:
            return None
        return max(0, self.total - self.rows_done) / self.rows_per_second

    def __str__(self) -> str:
        of = f" of {self.total}" if self.total is not None else ""
        bad = f", {self.errors} refused" if self.errors else ""
        failing = f", nothing answers for {self.failing_for:.0f} s" if self.failing_for else ""
        return (
            f"{self.rows_done}{of} rows, {self.rows_per_second:.0f} rows/s, {self.in_flight} of "
            f"{self.max_in_flight} in flight, {self.retries} retries{bad}{failing}"
        )


# -- pieces and batches -------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """Columns of equal length, of which rows are cut when they are needed."""

    rows: int
    #: Name, what it is cut from, and how: function of that, the first row and the one after the last.
    columns: list[tuple[str | None, Any, Callable[[Any, int, int], _Column]]]

    def cut(self, start: int, stop: int) -> _Columns:
        return {name: cut(value, start, stop) for name, value, cut in self.columns}


def _cut_plain(column: Any, start: int, stop: int) -> _Column:
    part: _Column = column[start:stop]
    return part


def _cut_mapped(column: Any, start: int, stop: int) -> _Column:
    # A copy: pages are read here, in the reading thread, not when the request is written on the event loop.
    return np.array(column[start:stop])


def _cut_series(series: Any, start: int, stop: int) -> _Column:
    part = series.iloc[start:stop]
    dtype = part.dtype
    if isinstance(dtype, np.dtype):
        return _plain_objects(part.to_numpy())
    missing = np.asarray(part.isna())
    if missing.any():
        return [None if gone else value for value, gone in zip(part.tolist(), missing.tolist(), strict=True)]
    return _plain_objects(part.to_numpy(dtype=getattr(dtype, "numpy_dtype", None)))


def _cut_frame(frame: Any, start: int, stop: int) -> _Column:
    array: Array = frame.iloc[start:stop].to_numpy()
    return array


def _cut_arrow(column: Any, start: int, stop: int) -> _Column:
    part = column.slice(start, stop - start)
    return _from_arrow(part.combine_chunks() if hasattr(part, "combine_chunks") else part)


def _cut_arrows(columns: list[Any], start: int, stop: int) -> _Column:
    parts = [_cut_arrow(column, start, stop) for column in columns]
    if all(isinstance(part, np.ndarray) and part.ndim == 1 for part in parts):
        return np.stack(parts, axis=1)
    return [list(row) for row in zip(*parts, strict=True)]


def _plain_objects(array: Array) -> _Column:
    """Object arrays of strings as they are; what else they hold as an array or a list."""
    if array.dtype.kind != "O" or not len(array) or isinstance(array[0], (str, bytes)):
        return array
    return _column_of(list(array))


def _from_arrow(part: Any) -> _Column:
    """Values of a pyarrow Array: without a copy where numpy can look at them; a list if there are nulls."""
    values: _Column
    if part.null_count:
        values = part.to_pylist()
        return values
    if hasattr(part, "to_numpy_ndarray"):
        values = part.to_numpy_ndarray()
        return values
    if hasattr(part, "dictionary_decode"):
        return _from_arrow(part.dictionary_decode())
    if hasattr(part, "storage"):
        return _from_arrow(part.storage)
    if hasattr(part.type, "value_type") and hasattr(part, "flatten"):
        inner = part.flatten()
        found = _from_arrow(inner) if not inner.null_count else None
        if isinstance(found, np.ndarray):
            size = getattr(part.type, "list_size", None)
            if size is None and len(part):
                sizes = part.value_lengths().to_numpy(zero_copy_only=False)
                size = int(sizes[0]) if (sizes == sizes[0]).all() else None
            if size is not None:
                return found.reshape(len(part), size, *found.shape[1:])
        values = part.to_pylist()
    else:
        values = part.to_numpy(zero_copy_only=False)
    return values


def _column_of(values: list[Any]) -> _Column:
    """One value for each row: an array if they are arrays that fit together, else the list."""
    first = values[0]
    if type(first) is not np.ndarray:
        return values
    dtype, shape = first.dtype, first.shape
    for value in values:
        if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
            return values
    if not shape:
        return np.array(values, dtype)
    return np.concatenate(values).reshape(len(values), *shape)


def _array_of(values: list[Any]) -> Array:
    """A list as an array where no signature says what it should be; strings stay whole."""
    if any(isinstance(value, (str, bytes)) for value in values):
        array: Array = np.empty(len(values), object)
        array[:] = values
        return array
    return np.asarray(values)


def _fit(one: _Columns, other: _Columns) -> bool:
    """Whether rows of both can stand in one array without a change to any."""
    if one.keys() != other.keys():
        return False
    for name, a in one.items():
        b = other[name]
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            if type(a) is not type(b):
                return False
        elif a.shape[1:] != b.shape[1:] or not (
            a.dtype == b.dtype or (a.dtype.kind == b.dtype.kind and a.dtype.kind in "SU")
        ):
            return False
    return True


def _join(parts: list[_Columns]) -> _Columns:
    if len(parts) == 1:
        return parts[0]
    joined: _Columns = {}
    for name, first in parts[0].items():
        columns: list[Any] = [part[name] for part in parts]
        if isinstance(first, np.ndarray):
            joined[name] = np.concatenate(columns)
        else:
            joined[name] = [value for column in columns for value in column]
    return joined


def _is_mapped(array: Array) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


def _is_arrow_column(value: Any) -> bool:
    return hasattr(value, "null_count") and hasattr(value, "to_pylist") and hasattr(value, "slice")


def _is_array_like(value: Any) -> bool:
    """Whether rows can be sliced from it as from an array: datasets of h5py and zarr, tensors."""
    return all(hasattr(value, name) for name in ("dtype", "shape", "__getitem__", "__len__"))


def _is_table(value: Any) -> bool:
    """Whether it is a pandas DataFrame, or a pyarrow Table or RecordBatch, or can be made one."""
    return (
        (hasattr(value, "iloc") and hasattr(value, "columns"))
        or (hasattr(value, "schema") and hasattr(value, "column") and hasattr(value, "slice"))
        or (hasattr(value, "to_arrow") and hasattr(value, "columns"))
    )


def _depth(value: Any) -> int:
    """Dimensions of a value, as its first element tells where it is nested."""
    if type(value) is np.ndarray:
        return value.ndim
    if isinstance(value, (str, bytes)):
        return 0
    if isinstance(value, (list, tuple)):
        return 1 + (_depth(value[0]) if value else 0)
    return np.ndim(value)


class Rebatcher:
    """Puts rows together to batches of one size, in order, whatever pieces they come in.

    `add` what the source gives, `take` batches; `finish` when there is no more. A batch that lies in one
    piece is cut from it without a copy. A batch is smaller than `size` only at the end, or where the next
    piece cannot stand in one array with it (other names, another dtype, another inner shape).

    Args:
        size: rows of a batch.
        signature: the model's; tells rows from batches, and which columns of a table are inputs.
        items: what is added, where the signature cannot tell.
        keep: columns that are no inputs.
    """

    def __init__(
        self,
        size: int,
        signature: Signature | None = None,
        *,
        items: Items | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        self._size = size
        self._signature = signature
        self._items = items
        self._keep = frozenset(keep)
        #: Rows to come, as pieces; and how many of the first piece are gone.
        self._pieces: deque[_Piece] = deque()
        self._offset = 0
        self._rows = 0
        #: Single rows that are no piece yet.
        self._singles: list[Any] = []
        self.finished = False
        self._was_batch = False
        #: Rank of the inputs, the dimension of rows included, where it is known.
        self._ranks: dict[Any, int] = {}
        if signature is not None:
            for name, spec in signature.inputs.items():
                if spec.shape:
                    self._ranks[name] = len(spec.shape)
            names = [name for name, spec in signature.inputs.items() if spec.default is None]
            names = list(signature.inputs) if len(signature.inputs) == 1 else names
            if len(names) == 1 and names[0] in self._ranks:
                self._ranks[None] = self._ranks[names[0]]

    def __repr__(self) -> str:
        state = ", finished" if self.finished else ""
        return f"<Rebatcher to {self._size} rows: {len(self)} rows in {len(self._pieces)} pieces{state}>"

    def __len__(self) -> int:
        """Rows that were added and not taken yet."""
        return self._rows + len(self._singles)

    def add(self, item: Any) -> None:
        """Add a row, or a batch of rows: a dict of names to values, one value, or a table.

        Raises:
            InvalidInputError: columns have different lengths, or it cannot be told whether it is a row.
        """
        if self._items == "rows" or not self._is_batch(item):
            self._singles.append(item)
            if self._rows + len(self._singles) >= self._size:
                self._settle()
        else:
            self._settle()
            self.add_batch(item)

    def add_batch(self, item: Any) -> None:
        """Add a batch of rows."""
        for piece in self._read(item):
            if piece.rows:
                self._pieces.append(piece)
                self._rows += piece.rows

    def finish(self) -> None:
        """There is no more to add."""
        self._settle()
        self.finished = True

    def clear(self) -> None:
        """Forget all rows, and finish."""
        self._pieces.clear()
        self._singles.clear()
        self._rows = self._offset = 0
        self.finished = True

    def take(self) -> tuple[_Columns, int] | None:
        """The next batch and its number of rows; None if there is none (yet)."""
        if self._rows < self._size and not (self.finished and self._rows):
            return None
        pieces, offset, wanted = self._pieces, self._offset, self._size
        piece = pieces[0]
        stop = offset + wanted
        if piece.rows >= stop:  # what nearly every call finds
            self._rows -= wanted
            if piece.rows > stop:
                self._offset = stop
            else:
                pieces.popleft()
                self._offset = 0
            return piece.cut(offset, stop), wanted
        parts: list[_Columns] = []
        while wanted and pieces:
            piece = pieces[0]
            stop = min(piece.rows, self._offset + wanted)
            part = piece.cut(self._offset, stop)
            if parts and not _fit(parts[0], part):
                break
            parts.append(part)
            count = stop - self._offset
            wanted -= count
            self._rows -= count
            if stop == piece.rows:
                pieces.popleft()
                self._offset = 0
            else:
                self._offset = stop
        return _join(parts), self._size - wanted

    def _is_batch(self, item: Any) -> bool:
        if self._items is not None:
            return self._items == "batches"
        ranks = self._ranks
        if isinstance(item, np.ndarray):
            rank = ranks.get(None)
            if rank is not None and item.dtype.names is None:
                return item.ndim == rank
        elif type(item) is dict or isinstance(item, Mapping):
            for name in item:
                rank = ranks.get(name)
                if rank is not None:
                    value = item[name]
                    depth = value.ndim if type(value) is np.ndarray else _depth(value)
                    self._was_batch = depth == rank
                    return self._was_batch
            if ranks and item:
                return self._was_batch  # it has none of the names: bad in the way of those before
        elif _is_table(item):
            return True
        elif None in ranks:
            return _depth(item) == ranks[None]
        if isinstance(item, np.ndarray) and item.dtype.names is not None:
            return item.ndim > 0
        values = item.values() if isinstance(item, Mapping) else [item]
        if all(_depth(value) == 0 for value in values):
            return False
        raise errors.InvalidInputError(
            "the signature does not tell whether the items of the source are rows or batches of rows: "
            'say items="rows" or items="batches"',
            method="Predict",
        )

    def _settle(self) -> None:
        """Make pieces of single rows: one of those in a row that have the same names."""
        rows, self._singles = self._singles, []
        start = 0
        while start < len(rows):
            first = rows[start]
            stop = start + 1
            if isinstance(first, Mapping):
                names, kind = first.keys(), type(first)
                for row in rows[stop:]:
                    if not (type(row) is kind or isinstance(row, Mapping)) or row.keys() != names:
                        break
                    stop += 1
                run = rows[start:stop] if stop - start < len(rows) else rows
                columns: _Columns = {name: _column_of([row[name] for row in run]) for name in names}
            else:
                while stop < len(rows) and not isinstance(rows[stop], Mapping):
                    stop += 1
                columns = {None: _column_of(rows[start:stop])}
            count = stop - start
            self._pieces.append(
                _Piece(count, [(name, column, _cut_plain) for name, column in columns.items()])
            )
            self._rows += count
            start = stop

    # -- reading what is given ------------------------------------------------------------------------

    def _read(self, item: Any) -> Iterable[_Piece]:
        if isinstance(item, np.ndarray):
            if item.dtype.names is not None:
                return [self._read_columns({name: item[name] for name in item.dtype.names})]
            return [self._read_columns({None: item})]
        if isinstance(item, Mapping):
            return [self._read_columns(item)]
        if not _is_table(item):
            return [self._read_columns({None: item})]
        if hasattr(item, "iloc"):
            return [self._read_frame(item)]
        if not hasattr(item, "schema") or not hasattr(item, "column"):
            item = item.to_arrow()
        batches = item.to_batches() if hasattr(item, "to_batches") else [item]
        return [self._read_record_batch(batch) for batch in batches]

    def _read_columns(self, given: Mapping[Any, Any]) -> _Piece:
        columns: list[tuple[str | None, Any, Callable[[Any, int, int], _Column]]] = []
        lengths: dict[Any, int] = {}
        for name, value in given.items():
            cut: Callable[[Any, int, int], _Column] = _cut_plain
            if isinstance(value, np.ndarray):
                if _is_mapped(value):
                    cut = _cut_mapped
                elif value.dtype.kind == "O" and value.ndim == 1 and len(value):
                    value = _plain_objects(value)  # noqa: PLW2901
            elif isinstance(value, (list, tuple)):
                value = _column_of(list(value)) if value else np.empty(0)  # noqa: PLW2901
            elif hasattr(value, "iloc"):
                cut = _cut_series
            elif _is_arrow_column(value):
                cut = _cut_arrow
            elif _is_array_like(value):
                cut = _cut_mapped
            else:
                value = np.asarray(value)  # noqa: PLW2901
            if not getattr(value, "shape", (0,)):
                raise errors.InvalidInputError(
                    f"{f'column {name!r}' if name is not None else 'the source'} is a scalar: "
                    "columns have a value for each row",
                    method="Predict",
                )
            lengths[name] = len(value)
            columns.append((name, value, cut))
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
            raise errors.InvalidInputError(
                f"columns have different numbers of rows: {told}", method="Predict"
            )
        return _Piece(next(iter(lengths.values()), 0), columns)

    def _read_frame(self, frame: Any) -> _Piece:
        names = list(frame.columns)
        if len(set(names)) < len(names):
            raise errors.InvalidInputError("two columns of the table have the same name", method="Predict")
        inputs, together = self._choose(names)
        columns: list[tuple[str | None, Any, Callable[[Any, int, int], _Column]]] = [
            (name, frame[name], _cut_series) for name in names if name in self._keep
        ]
        if together:
            columns.append((None, frame[inputs], _cut_frame))
        else:
            columns += [(name, frame[name], _cut_series) for name in inputs]
        return _Piece(len(frame), columns)

    def _read_record_batch(self, batch: Any) -> _Piece:
        names = list(batch.schema.names)
        if len(set(names)) < len(names):
            raise errors.InvalidInputError("two columns of the table have the same name", method="Predict")
        inputs, together = self._choose(names)
        column = dict(zip(names, batch.columns, strict=True))
        columns: list[tuple[str | None, Any, Callable[[Any, int, int], _Column]]] = [
            (name, column[name], _cut_arrow) for name in names if name in self._keep
        ]
        if together:
            columns.append((None, [column[name] for name in inputs], _cut_arrows))
        else:
            columns += [(name, column[name], _cut_arrow) for name in inputs]
        return _Piece(batch.num_rows, columns)

    def _choose(self, names: list[Any]) -> tuple[list[Any], bool]:
        """Columns of a table that are inputs, and whether all of them together are the only one."""
        others = [name for name in names if name not in self._keep]
        signature = self._signature
        if signature is None:
            return others, False
        needed = [name for name, spec in signature.inputs.items() if spec.default is None]
        if all(name in others for name in needed):
            return [name for name in others if name in signature.inputs], False
        if len(needed) == 1 and self._ranks.get(needed[0]) in (2, None):
            return others, True
        missing = ", ".join(repr(name) for name in needed if name not in others)
        raise errors.InvalidInputError(
            f"the table has no column for the input {missing}; its columns are "
            f"{', '.join(map(repr, others)) or 'none'}",
            model=signature.model or None,
            method="Predict",
        )


class PreparedBatches:
    """A source whose batches are sent as they are: nothing is put together, cut, or guessed.

    For callers that cut batches themselves and know more of them than their rows: the n-th batch of the
    iterable is the one whose `ScoredBatch.index` is n.

    Args:
        batches: dicts of columns by input name; the name None is that of the only input. Each has a row at
            least. Read, and closed, in a thread of its own.
    """

    def __init__(self, batches: Iterable[Mapping[Any, Any]]) -> None:
        self.batches = batches

    def __repr__(self) -> str:
        return f"<PreparedBatches of {self.batches!r}>"


class _AsTheyCome:
    """In place of a `Rebatcher`, for batches that come as they are to be sent."""

    def __init__(self) -> None:
        self._batches: deque[_Columns] = deque()
        self.finished = False

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, item: Any) -> None:
        self._batches.append(item)

    def take(self) -> tuple[_Columns, int] | None:
        if not self._batches:
            return None
        columns = self._batches.popleft()
        return columns, len(next(iter(columns.values())))

    def finish(self) -> None:
        self.finished = True

    def clear(self) -> None:
        self._batches.clear()
        self.finished = True


# -- how many at a time -------------------------------------------------------------------------------


class InFlightClimber:
    """How many batches to have in flight: as many as make it faster, and no more.

    It doubles the number while rows are answered faster by a tenth at least, and goes back to the last number
    that paid. From then on it tries, now and then, a quarter more and a fifth less: more is kept if it is
    faster by half of what it is more, less if it is not slower by a quarter of what it is less. Times in
    which the number was not used up (the source or the consumer is slow) tell nothing and are passed over.

    It is state and arithmetic; the clock is an argument.

    Args:
        initial: the number to begin with.
        minimum: never fewer.
        maximum: never more.
    """

    __slots__ = (
        "_answers",
        "_base",
        "_began",
        "_best",
        "_calm",
        "_climbing",
        "_patience",
        "_peak",
        "_probing",
        "_rows",
        "_skip",
        "_up_next",
        "limit",
        "maximum",
        "minimum",
    )

    #: Seconds that a measurement lasts at least.
    WINDOW = 0.1

    def __init__(self, *, initial: int = 4, minimum: int = 1, maximum: int = _MOST_IN_FLIGHT) -> None:
        if not 1 <= minimum <= initial <= maximum:
            raise ValueError(f"1 <= {minimum=} <= {initial=} <= {maximum=} does not hold")
        self.minimum = minimum
        self.maximum = maximum
        #: Batches that may be in flight now.
        self.limit = initial
        self._climbing = True
        #: The number that was fastest while climbing, and its rows per second.
        self._best = (initial, 0.0)
        #: Rows per second at the present number, when it is not climbing.
        self._base = 0.0
        #: The number before the one that is tried, or None.
        self._probing: int | None = None
        self._up_next = True
        #: Measurements since the last try, and how many there have to be.
        self._calm = 0
        self._patience = 4
        self._restart(0.0, settle=False)

    def __repr__(self) -> str:
        state = "climbing" if self._climbing else "trying" if self._probing is not None else "holding"
        return f"<InFlightClimber {self.limit} of {self.minimum} to {self.maximum}, {state}>"

    def _restart(self, now: float, *, settle: bool) -> None:
        #: Answers that are passed over: they were sent before the number changed.
        self._skip = self.limit if settle else 0
        self._began = now
        self._answers = self._rows = self._peak = 0

    def record(self, rows: int, in_flight: int, now: float) -> None:
        """Learn from a batch that was answered.

        Args:
            rows: its rows.
            in_flight: batches that were in flight when it was answered, with it.
            now: seconds on a monotonic clock.
        """
        if self._skip or not self._began:
            self._skip = max(0, self._skip - 1)
            self._began = now
            self._peak = max(self._peak, in_flight)
            return
        self._answers += 1
        self._rows += rows
        self._peak = max(self._peak, in_flight)
        seconds = now - self._began
        if self._answers < max(8, 2 * self.limit) or seconds < self.WINDOW:
            return
        rate, used = self._rows / seconds, self._peak >= self.limit
        before = self.limit
        if self._climbing:
            self._climb(rate, used)
        else:
            self._hold(rate, used)
        self.limit = min(max(self.limit, self.minimum), self.maximum)
        self._restart(now, settle=self.limit != before)

    def _climb(self, rate: float, used: bool) -> None:
        if not used:
            return
        best, fastest = self._best
        if rate > 1.1 * fastest:
            self._best = (self.limit, rate)
            if self.limit < self.maximum:
                self.limit *= 2
                return
        else:
            self.limit = best
            rate = fastest
        self._climbing = False
        self._base = rate
        self._calm = 0

    def _hold(self, rate: float, used: bool) -> None:
        if self._probing is not None:
            before, self._probing = self._probing, None
            change = self.limit / before - 1
            up = change > 0
            if used and rate >= self._base * (1 + change * (0.5 if up else 0.25)):
                self._base = rate
                self._patience = 1
                self._up_next = up
            else:
                self.limit = before
                self._patience = min(self._patience * 2, 32)
                self._up_next = not up
            self._calm = 0
            return
        self._base = rate
        self._calm += 1
        if self._calm >= self._patience and used:
            self._probing = self.limit
            step = max(1, self.limit // 4) if self._up_next else -max(1, self.limit // 5)
            if not self.minimum <= self.limit + step <= self.maximum:
                step = -max(1, self.limit // 5) if step > 0 else max(1, self.limit // 4)
            self.limit += step


# -- reading sources ----------------------------------------------------------------------------------


class _Inline:
    """A source that never waits, or one whose thread this runs in."""

    def __init__(self, rebatcher: Rebatcher | _AsTheyCome, iterator: Iterator[Any]) -> None:
        self._rebatcher = rebatcher
        self._iterator = iterator
        self._error: BaseException | None = None

    def read(self, found: _Found, want: int, spare: int = 0) -> _End | None:
        """Add up to `want` batches to `found`, and more while all are at most `spare` bytes.

        It comes back early when reading takes its time. What was read before an error comes before the error.
        """
        rebatcher, iterator = self._rebatcher, self._iterator
        begun = time.perf_counter() if want > 1 or spare else 0.0
        while want > 0 or spare > 0:
            try:
                batch = rebatcher.take()
                if batch is not None:
                    found.append(batch)
                    want -= 1
                    if not begun:
                        break
                    if spare > 0:
                        spare -= _size_of(batch[0])
                    if time.perf_counter() - begun > _READING:
                        break
                elif rebatcher.finished:
                    break
                else:
                    rebatcher.add(next(iterator))
            except StopIteration:
                rebatcher.finish()
            except BaseException as error:
                _stop_at(rebatcher)
                self._error = self._error or error
        return (self._error,) if rebatcher.finished and not len(rebatcher) else None

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def _size_of(columns: _Columns) -> int:
    """Bytes of a batch; those of what is no plain array are not known and count as many."""
    size = 0
    for column in columns.values():
        if not isinstance(column, np.ndarray) or column.dtype.kind == "O":
            return _READ_AHEAD
        size += column.nbytes
    return size


def _stop_at(rebatcher: Rebatcher | _AsTheyCome) -> None:
    """Read no more; what was read is still to be taken, unless it is what failed."""
    if rebatcher.finished:
        rebatcher.clear()
        return
    try:
        rebatcher.finish()
    except Exception:
        rebatcher.clear()


class _Threaded:
    """A source that may wait: read in a thread of its own, always the same one."""

    def __init__(self, open_source: Callable[[], _Inline]) -> None:
        self._open = open_source
        #: What was read. The thread adds to it as it reads, so that nothing waits for what comes next.
        self.found: _Found = deque()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        # A run that nobody closed must not keep its thread.
        self._finalizer = weakref.finalize(self, self._jobs.put, None)
        self._finalizer.atexit = False

    def request(
        self, want: int, accept: Callable[[_End | None], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Have up to `want` batches read, and `accept` called on the loop."""
        if self._thread is None:
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run,
                args=(_serve, self._open, self.found, self._jobs, self._ended),
                name="aioserving-scoring-source",
                daemon=True,  # a source that hangs must not keep the interpreter from ending
            )
            self._thread.start()
        self._jobs.put((want, accept, loop))

    def stop(self) -> None:
        """Have the thread close the source and end, once it is done with what it reads."""
        self._finalizer()

    async def stopped(self, patience: float) -> bool:
        """Whether the thread has ended, after so many seconds at the latest."""
        pause = 0.0005
        end = time.monotonic() + patience
        while self._thread is not None and not self._ended.is_set():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)
        return True


#: How many batches to read, what to call with them, and where.
_Job: TypeAlias = "tuple[int, Callable[[_End | None], None], asyncio.AbstractEventLoop]"


def _serve(
    open_source: Callable[[], _Inline],
    found: _Found,
    jobs: queue.SimpleQueue[_Job | None],
    ended: threading.Event,
) -> None:
    """What the reading thread does."""
    source: _Inline | None = None
    try:
        while (job := jobs.get()) is not None:
            want, accept, loop = job
            end: _End | None
            try:
                if source is None:
                    source = open_source()
                end = source.read(found, want, _READ_AHEAD)
            except BaseException as error:
                end = (error,)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it
                loop.call_soon_threadsafe(accept, end)
            del job, accept, loop, end  # while it waits it keeps no run alive
    finally:
        try:
            if source is not None:
                source.close()
        except Exception:
            logger.warning("closing the source of a scoring run failed", exc_info=True)
        ended.set()


class _Asynchronous:
    """An async source; read and closed by one task only, as cancel scopes inside it need."""

    def __init__(self, rebatcher: Rebatcher, source: AsyncIterable[Any]) -> None:
        self._rebatcher = rebatcher
        self._iterator = source.__aiter__()
        self._error: BaseException | None = None

    async def read(self, found: _Found) -> _End | None:
        """Add one batch to `found`. What was read before an error comes before the error."""
        rebatcher, iterator = self._rebatcher, self._iterator
        while True:
            try:
                batch = rebatcher.take()
                if batch is not None:
                    found.append(batch)
                    break
                if rebatcher.finished:
                    break
                rebatcher.add(await iterator.__anext__())
            except StopAsyncIteration:
                rebatcher.finish()
            except Exception as error:
                _stop_at(rebatcher)
                self._error = self._error or error
        return (self._error,) if rebatcher.finished and not len(rebatcher) else None

    async def aclose(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            try:
                await close()
            except Exception:
                logger.warning("closing the source of a scoring run failed", exc_info=True)


_Reader: TypeAlias = "_Inline | _Threaded | _Asynchronous"


def _open(source: Any, rebatcher: Rebatcher, batch_size: int) -> _Reader:
    """How to read a source. Opening what may wait is left to the thread that reads it."""
    if isinstance(source, PreparedBatches):
        prepared = source.batches
        return _Threaded(lambda: _Inline(_AsTheyCome(), iter(prepared)))
    if isinstance(source, Mapping) or any(
        holds(source) for holds in (_is_array_like, _is_table, _is_arrow_column)
    ):
        rebatcher.add_batch(source)
        mapped = any(cut is _cut_mapped for piece in rebatcher._pieces for _, _, cut in piece.columns)
        rebatcher.finish()
        reader = _Inline(rebatcher, iter(()))
        return _Threaded(lambda: reader) if mapped else reader
    if isinstance(source, AsyncIterable):
        return _Asynchronous(rebatcher, source)
    if isinstance(source, (list, tuple)):
        return _Inline(rebatcher, iter(source))

    def opened() -> _Inline:
        if hasattr(source, "iter_batches"):  # pyarrow's ParquetFile
            return _Inline(rebatcher, iter(source.iter_batches(batch_size=batch_size)))
        if hasattr(source, "to_batches"):  # pyarrow's Dataset and Scanner
            return _Inline(rebatcher, iter(source.to_batches()))
        return _Inline(rebatcher, iter(source))

    return _Threaded(opened)


def _check_source(source: Any) -> None:
    if isinstance(source, (str, bytes, bytearray)) or not (
        isinstance(source, (Iterable, AsyncIterable, PreparedBatches))
        or _is_table(source)
        or hasattr(source, "iter_batches")
        or hasattr(source, "to_batches")
    ):
        raise TypeError(
            "a source is an iterable of rows or batches, a dict of columns, an array, a DataFrame or a "
            f"Table; got {type(source).__name__}"
        )


# -- scoring ------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Rows of a batch that were answered by one call."""

    start: int
    stop: int
    result: PredictResult


class Scoring:
    """A run over a source; made by `Model.score`, used as a context manager and an iterator of results.

    ```python
    async with client.model("digits").score(rows, batch_size=256) as results:
        async for batch in results:
            write(batch.start, batch.outputs["scores"])
    ```

    Sources are dicts of columns, arrays (also structured, memory maps, and what slices like an array: h5py,
    zarr), pandas DataFrames, Arrow tables, readers, datasets and Parquet files, and iterables, sync or async,
    of rows or of batches: dicts of values, single values where the model has one input, or tables. The
    signature tells rows from batches (a value with as many dimensions as the input is a batch). Of a table
    the columns that are inputs are sent; if there are none and the model has one input, all columns together
    are its rows. Lists and what is in memory are read on the event loop, memory maps and all other sync
    iterables in a thread of their own.

    An iterator that was given is used up and closed at the end. Leaving the ``async with`` block, however
    that comes about, cancels the calls under way and closes the source; the client stays usable. If the
    source is in the middle of a read that does not end within some seconds, it is closed once it ends.

    Errors come after the results of all rows before them (with ``ordered=False``: after all results to be
    had). `ScoredBatch.stop` and `consumed` tell where to go on.

    Args:
        source: what to score.
        predict: sends one batch.
        signature: fetches the model's signature; None to check nothing and send what is given.
        name: name of the model, for messages.
        batch_size: rows in a call.
        max_in_flight: calls at a time, and batches in memory at a time: those under way and those not handed
            out yet. Of a source that is read in a thread a quarter more is read ahead, or 1 MiB if that is
            more. None finds the number of calls, up to 64, and holds at most twice as many batches.
        ordered: hand out results in the order of the source, else as they are completed.
        on_error: what becomes of rows that the model refuses. They are found by dividing their batch:
            ``"raise"`` raises the first one's error, which names the row; ``"skip"`` leaves them out;
            ``"collect"`` sets them aside in `ScoredBatch.errors`. UNKNOWN and INTERNAL that all rows of a
            batch get are the server's errors, not the rows', and raised.
        outage: seconds for which a batch is tried again while servers cannot be reached or are overloaded,
            after which the error is raised, whatever `on_error`.
        items: whether an iterable gives ``"rows"`` or ``"batches"``, where the signature cannot tell.
        keep: columns that are not sent but come back beside the results, in `ScoredBatch.kept`.
        first_row: number of the first row, for a source that goes on where another run stopped.

    Raises:
        TypeError: `source` cannot be iterated.
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        predict: Callable[[Inputs], Awaitable[PredictResult]],
        *,
        signature: Callable[[], Awaitable[Signature]] | None = None,
        name: str = "",
        batch_size: int = 256,
        max_in_flight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        outage: float = 300.0,
        items: Items | None = None,
        keep: Sequence[str] = (),
        first_row: int = 0,
    ) -> None:
        _check_source(source)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if max_in_flight is not None and (not isinstance(max_in_flight, int) or max_in_flight < 1):
            raise ValueError(f"max_in_flight must be a whole number of at least 1, got {max_in_flight!r}")
        if on_error not in {"raise", "skip", "collect"}:
            raise ValueError(f"on_error must be 'raise', 'skip' or 'collect', got {on_error!r}")
        if not outage >= 0:
            raise ValueError(f"outage must be a number of seconds, at least 0; got {outage!r}")
        if items not in {None, "rows", "batches"}:
            raise ValueError(f"items must be 'rows', 'batches' or None, got {items!r}")
        if isinstance(keep, str):
            keep = (keep,)
        self.name = name
        self._source: Any = source
        self._predict = predict
        self._learn = signature
        self._signature: Signature | None = None
        self._batch_size = batch_size
        self._ordered = ordered
        self._on_error = on_error
        self._outage = outage
        self._items = items
        self._keep = tuple(keep)
        self._climber = InFlightClimber() if max_in_flight is None else None
        self._fixed = max_in_flight or 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock: Callable[[], float] = time.monotonic
        self._reader: _Reader | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        #: Read on the event loop and about to be started; and how many are read at once.
        self._found: _Found = deque()
        self._stride = 1
        #: Whether a thread is reading, and the timer for what it has found meanwhile.
        self._reading = False
        self._look: asyncio.TimerHandle | None = None
        #: Completed batches: by index, or as they came.
        self._ready: dict[int, ScoredBatch] = {}
        self._waiters: set[asyncio.Future[ScoredBatch | None]] = set()
        #: Handed out to a consumer that was cancelled at that moment.
        self._returned: deque[ScoredBatch] = deque()
        self._room_for: asyncio.Future[None] | None = None
        #: The batch that a failure belongs to, and the failure.
        self._failure: tuple[int, BaseException] | None = None
        self._ended = False
        #: The end of the source, if it was met: it counts once all that was read before is under way.
        self._at_end: _End | None = None
        self._closed = False
        #: Batches read, handed out, in flight; rows read.
        self._launched = self._handed = self._in_flight = 0
        #: Batches that `__anext__` gave back.
        self._given = 0
        self._next_row = self._first_row = self._consumed = first_row
        #: The batch handed out last, until the next is asked for; and later ones that are dealt with.
        self._last: ScoredBatch | None = None
        self._later: dict[int, int] = {}
        # Facts.
        self._total: int | None = None
        self._rows_done = self._batches_done = self._refused = self._retries = 0
        self._began = 0.0
        self._stopped: float | None = None
        self._failing_since: float | None = None
        self._latencies = LatencyHistogram()
        self._seconds: list[float] = []
        self._samples: deque[tuple[float, int]] = deque()

    def __repr__(self) -> str:
        if self._loop is None:
            state = "not started"
        else:
            state = "closed, " if self._closed else ""
            state += f"{self._rows_done} rows done, {self._in_flight} batches in flight, "
            state += f"{len(self._ready)} waiting"
        return f"<Scoring by {self.name!r}: {state}>"

    # -- life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("a scoring run is entered once; make another one")
        self._loop = asyncio.get_running_loop()
        # The loop's clock, or the same without the way through the loop.
        self._clock = time.monotonic if abs(self._loop.time() - time.monotonic()) < 1 else self._loop.time
        self._began = self._clock()
        self._samples.append((self._began, 0))
        self._feeder = self._loop.create_task(self._feed())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the run: cancel what is under way, and close the source. Safe to call again."""
        if self._closed or self._loop is None:
            self._closed = True
            return
        self._closed = True
        self._stopped = self._clock()
        self._wake()
        reader = self._reader
        tasks = set(self._tasks.values())
        if self._look is not None:
            self._look.cancel()
        if self._feeder is not None:
            tasks.add(self._feeder)
        for task in tasks:
            task.cancel()
        if isinstance(reader, _Threaded):
            reader.stop()
        elif isinstance(reader, _Inline):
            reader.close()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks.clear()
        self._ready.clear()
        if isinstance(reader, _Threaded) and not await reader.stopped(_SOURCE_PATIENCE):
            logger.warning(
                "the source of a scoring run by %r is still being read %g s after its end",
                self.name,
                _SOURCE_PATIENCE,
            )

    def _abandon(self) -> None:
        """Let go of the source where there is no loop any more."""
        self._closed = True
        if isinstance(self._reader, _Threaded):
            self._reader.stop()

    # -- results --------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ScoredBatch:
        if self._last is not None and not self._closed:
            self._acknowledge(self._last)
            self._last = None
        while (batch := self._take()) is None:
            if self._ended and self._handed == self._launched:
                raise StopAsyncIteration
            batch = await self._change()
            if batch is not None:
                break
        self._last = batch
        self._given += 1
        return batch

    @property
    def consumed(self) -> int:
        """Number of the row before which everything was handed out and dealt with.

        A batch is dealt with when the next one is asked for, or the end is met. So a run that starts with
        this row leaves none out; it repeats the batch that was being dealt with.
        """
        return self._consumed

    def progress(self) -> ScoringProgress:
        """How far the run is, at this moment."""
        now = (self._clock() if self._loop is not None else 0.0) if self._stopped is None else self._stopped
        latencies = self.latencies()
        since, rows = next(
            ((at, done) for at, done in self._samples if at >= now - _RATE_WINDOW - _RATE_STEP),
            (self._began, 0),
        )
        seconds = now - since
        return ScoringProgress(
            rows_read=self._next_row - self._first_row,
            rows_done=self._rows_done,
            consumed=self._consumed,
            total=self._total,
            errors=self._refused,
            batches=self._batches_done,
            in_flight=self._in_flight,
            waiting=len(self._ready) + len(self._returned),
            max_in_flight=self._climber.limit if self._climber is not None else self._fixed,
            retries=self._retries,
            failing_for=0.0 if self._failing_since is None else now - self._failing_since,
            seconds=now - self._began,
            rows_per_second=(self._rows_done - rows) / seconds if seconds > 0 else 0.0,
            latency=latencies.snapshot(),
        )

    def latencies(self) -> LatencyHistogram:
        """Seconds from sending each batch to its answer, so far; from any thread."""
        latencies = LatencyHistogram()  # of its own: this may be another thread than the loop's
        latencies.merge(self._latencies)
        for one in tuple(self._seconds):
            latencies.record(one)
        return latencies

    async def _next(self, received: int) -> ScoredBatch | None:
        """The next batch, or None at the end.

        Args:
            received: batches that the caller has got; one that was lost on the way is given again.
        """
        if self._last is not None and received < self._given:
            return self._last
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            return None

    async def _change(self) -> ScoredBatch | None:
        """Wait for anything that a consumer may wait for; gives a batch, or None to look again."""
        if self._loop is None:
            raise RuntimeError("results come within 'async with' (or 'with', of a blocking client) only")
        waiter: asyncio.Future[ScoredBatch | None] = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and (batch := waiter.result()) is not None:
                self._returned.append(batch)
            raise
        finally:
            self._waiters.discard(waiter)

    def _deliver(self, index: int, batch: ScoredBatch) -> None:
        """Give a result to the consumer that waits for it, which makes room at once, or put it by."""
        if not self._ordered or index == self._handed:
            for waiter in self._waiters:
                if not waiter.done():
                    self._handed += 1
                    waiter.set_result(batch)
                    return
        self._ready[index] = batch

    def _take(self) -> ScoredBatch | None:
        """Hand out a batch, if there is one to be handed out."""
        if self._closed:
            raise errors.ClientStateError("the scoring run was closed")
        if self._returned:
            return self._returned.popleft()
        ready = self._ready
        batch: ScoredBatch | None = None
        if ready:
            batch = ready.pop(self._handed, None) if self._ordered else ready.pop(next(iter(ready)))
        if batch is not None:
            self._handed += 1
            self._fill()
        elif self._failure is not None:
            index, error = self._failure
            if self._handed >= index if self._ordered else not self._in_flight:
                raise error
        return batch

    def _acknowledge(self, batch: ScoredBatch) -> None:
        if batch.start != self._consumed:
            self._later[batch.start] = batch.stop
            return
        self._consumed = batch.stop
        while self._later and (stop := self._later.pop(self._consumed, None)) is not None:
            self._consumed = stop

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- reading --------------------------------------------------------------------------------------

    def _room(self) -> int:
        """Batches that may be read now."""
        if self._failure is not None or self._ended or self._closed:
            return 0
        held = self._launched - self._handed
        if self._climber is None:
            return self._fixed - held
        limit = self._climber.limit
        return min(limit - self._in_flight, 2 * limit - held)

    async def _feed(self) -> None:
        """Read the source as there is room, and start what was read."""
        try:
            await self._begin()
            reader = self._reader
            if not isinstance(reader, _Asynchronous):
                self._fill()
                return
            assert self._loop is not None
            while not self._ended and self._failure is None:
                if self._room() > 0:
                    end = await reader.read(self._found)
                    while self._found:
                        self._start(self._count(*self._found.popleft()))
                    if end is not None:
                        self._end(*end)
                    continue
                self._room_for = self._loop.create_future()
                await self._room_for
        except Exception as error:
            self._fail(self._launched, error)
        finally:
            if isinstance(self._reader, _Asynchronous):
                await self._reader.aclose()

    async def _begin(self) -> None:
        if self._learn is not None:
            self._signature = await self._patiently(self._learn)
        rebatcher = Rebatcher(self._batch_size, self._signature, items=self._items, keep=self._keep)
        source, self._source = self._source, None
        self._reader = _open(source, rebatcher, self._batch_size)
        if rebatcher.finished:
            self._total = len(rebatcher)
            if all(cut is _cut_plain for piece in rebatcher._pieces for _, _, cut in piece.columns):
                self._stride = _STRIDE

    def _accept(self, end: _End | None) -> None:
        """Go on where a reading thread has done its part."""
        self._reading = False
        if self._closed or self._failure is not None:
            return
        if end is not None:
            assert isinstance(self._reader, _Threaded)
            self._reader.stop()
            self._at_end = end
        self._fill()

    def _end(self, error: BaseException | None) -> None:
        """The source ends here."""
        if error is not None:
            self._fail(self._launched, error)
            return
        self._ended = True
        self._total = self._next_row - self._first_row
        self._wake()

    def _fill(self) -> None:
        """Start what there is room for, and have more read."""
        while (batch := self._pick()) is not None:
            self._start(batch)
        reader = self._reader
        if isinstance(reader, _Threaded):
            self._read_on(reader)
        elif self._room_for is not None and not self._room_for.done() and self._room() > 0:
            self._room_for.set_result(None)

    def _pick(self) -> _Batch | None:
        """The next batch, if there is room for it and it was read; it counts as in flight from now on."""
        if self._room() <= 0:
            return None
        reader = self._reader
        if isinstance(reader, _Threaded):
            return self._count(*reader.found.popleft()) if reader.found else None
        found = self._found
        if isinstance(reader, _Inline) and not found:
            self._at_end = reader.read(found, self._stride)
        batch = self._count(*found.popleft()) if found else None
        if self._at_end is not None and not found:
            self._end(*self._at_end)
        return batch

    def _read_on(self, reader: _Threaded) -> None:
        """Have a thread read, if nothing is left of what it has read."""
        if self._closed or self._failure is not None or self._ended:
            return
        assert self._loop is not None
        room = self._room()
        if not self._reading and not reader.found:
            if self._at_end is not None:
                self._end(*self._at_end)
                return
            # A little ahead, so that the next calls need not wait for the source.
            limit = self._climber.limit if self._climber is not None else self._fixed
            self._reading = True
            reader.request(room + max(1, limit // 4), self._accept, self._loop)
        if self._reading and room > 0 and self._look is None:
            # What comes next may take long, or wait for the results of what was read already.
            self._look = self._loop.call_later(2 * _READING, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._fill()

    def _count(self, columns: _Columns, rows: int) -> _Batch:
        start = self._next_row
        self._next_row = stop = start + rows
        self._launched += 1
        self._in_flight += 1
        return self._launched - 1, start, stop, columns

    def _start(self, batch: _Batch) -> None:
        assert self._loop is not None
        self._tasks[batch[0]] = self._loop.create_task(self._work(batch))

    def _fail(self, index: int, error: BaseException) -> None:
        if self._failure is None or index < self._failure[0]:
            self._failure = index, error
        if self._room_for is not None and not self._room_for.done():
            self._room_for.set_result(None)  # to find that there is nothing left to do
        self._wake()

    # -- one batch ------------------------------------------------------------------------------------

    async def _work(self, batch: _Batch) -> None:
        """Score a batch, and further ones for as long as there are any to go on with."""
        key = batch[0]
        following: _Batch | None = batch
        del batch  # which is some rows in memory
        try:
            while following is not None:
                await self._score(*following)
                following = self._pick()
                if following is None or self._climber is not None or type(self._reader) is not _Inline:
                    self._fill()
        finally:
            self._tasks.pop(key, None)

    async def _score(self, index: int, start: int, stop: int, columns: _Columns) -> None:
        begun = self._clock()
        try:
            kept: dict[str, Any] = {}
            if self._keep:
                kept = {name: columns.pop(name) for name in self._keep if name in columns}
            for column in columns.values():
                if type(column) is list:
                    columns = self._arrays(columns)
                    break
            inputs = _bare(columns)
            try:
                result = await self._predict(inputs)
            except errors.ServingError as error:
                bad: list[BadRow] = []
                parts = await self._resolve(columns, start, start, stop, error, bad)
                if not parts and len(bad) > 1 and isinstance(error, _OF_ROWS_OR_SERVER):
                    raise
                batch = self._put_together(index, start, stop, columns, kept, parts, bad)
            else:
                if len(result.attempts) > 1:
                    self._retries += len(result.attempts) - 1
                batch = ScoredBatch(index, start, stop, inputs, result, kept, _results=(result,))
            now = self._clock()
            batch.seconds = now - begun
            self._answered(now, stop - start, batch)
            self._deliver(index, batch)
        except Exception as error:
            self._fail(index, error)
        finally:
            self._in_flight -= 1
            if not self._ordered and not self._in_flight:
                self._wake()

    def _answered(self, now: float, rows: int, batch: ScoredBatch) -> None:
        self._failing_since = None
        self._rows_done += rows
        self._batches_done += 1
        self._refused += len(batch.refused)
        self._seconds.append(batch.seconds)
        if len(self._seconds) >= 256:
            self._fold()
        samples = self._samples
        if now - samples[-1][0] >= _RATE_STEP:
            samples.append((now, self._rows_done))
            while samples[0][0] < now - 2 * _RATE_WINDOW:
                samples.popleft()
        if self._climber is not None:
            self._climber.record(rows, self._in_flight, now)

    def _fold(self) -> None:
        """Put the latest latencies into the histogram: many at once cost a third of what each alone does."""
        seconds, self._seconds = self._seconds, []
        for one in seconds:
            self._latencies.record(one)

    def _arrays(self, columns: _Columns) -> _Columns:
        """Lists as the arrays that are sent; as they are if that fails, so that `predict` tells why."""
        if self._signature is None:
            return {
                name: _array_of(column) if isinstance(column, list) else column
                for name, column in columns.items()
            }
        try:
            prepared = self._signature.prepare(_bare(columns))
        except errors.InvalidInputError:
            return columns
        if None in columns:
            return {None: next(iter(prepared.values()))}
        return dict(prepared.items())

    async def _resolve(
        self,
        columns: _Columns,
        origin: int,
        start: int,
        stop: int,
        error: errors.ServingError | None,
        bad: list[BadRow],
    ) -> list[_Part]:
        """Results of the rows from `start` to `stop`, found by dividing them as often as it takes.

        Args:
            columns: those of the batch, whose first row is number `origin`.
            origin: see there.
            start: number of the first row.
            stop: number of the row after the last.
            error: what these rows got when they were sent; None if they were not yet.
            bad: where refused rows are put.
        """
        part = _slice(columns, start - origin, stop - origin)
        try:
            result = await self._patiently(lambda: self._predict(_bare(self._arrays(part))), error)
        except errors.ServingError as failure:
            if not _is_of_rows(failure):
                raise
            error = failure
        else:
            self._retries += max(0, len(result.attempts) - 1)
            return [_Part(start, stop, result)]
        if stop - start == 1:
            if self._on_error == "raise":
                raise _named(error, start)
            # A copy: a view would keep the whole batch in memory.
            part = {
                name: column.copy() if isinstance(column, np.ndarray) else column
                for name, column in part.items()
            }
            bad.append(BadRow(start, error, _bare(part)))
            return []
        middle = (start + stop) // 2
        parts = await self._resolve(columns, origin, start, middle, None, bad)
        parts += await self._resolve(columns, origin, middle, stop, None, bad)
        return parts

    async def _patiently(
        self, call: Callable[[], Awaitable[T]], error: errors.ServingError | None = None
    ) -> T:
        """What `call` gives, tried again for as long as nothing answers, within limits.

        Args:
            call: what to do.
            error: what it failed with, if it was done already.
        """
        since: float | None = None
        pause = _FIRST_PAUSE
        while True:
            if error is None:
                try:
                    found = await call()
                except errors.ServingError as failure:
                    error = failure
                else:
                    self._failing_since = None
                    return found
            if not self._is_transient(error):
                raise error
            now = self._clock()
            if since is None:
                since = now
            if self._failing_since is None:
                self._failing_since = now
                logger.warning("scoring by %r waits up to %g s: %s", self.name, self._outage, error)
            delay = pause * (0.5 + random.random() / 2)  # noqa: S311 - spreads attempts out, keeps no secret
            pushback = error.pushback if isinstance(error, errors.RPCError) else None
            if pushback is not None and math.isfinite(pushback):
                delay = max(delay, pushback)
            pause = min(pause * 2, _LAST_PAUSE)
            if now + delay - since > self._outage:
                if isinstance(error, errors.RPCError):
                    waited = f"tried again for {now - since:.1f} s, the limit is {self._outage:g} s"
                    error.gave_up = "; ".join(filter(None, (error.gave_up, waited)))
                raise error
            self._retries += 1
            await asyncio.sleep(delay)
            error = None

    def _is_transient(self, error: errors.ServingError) -> bool:
        if isinstance(error, errors.MessageTooLargeError):
            return False
        # A model that was never there is a wrong name; one that was is about to come back.
        return isinstance(error, _TRANSIENT) or (self._batches_done > 0 and isinstance(error, _ABSENT))

    def _put_together(
        self,
        index: int,
        start: int,
        stop: int,
        columns: _Columns,
        kept: dict[str, Any],
        parts: list[_Part],
        bad: list[BadRow],
    ) -> ScoredBatch:
        results = tuple(part.result for part in parts)
        if bad:
            spans = [(part.start - start, part.stop - start) for part in parts]
            columns = _select(columns, spans)
            kept = _select(kept, spans) if kept else kept
        columns = self._arrays(columns) if any(type(one) is list for one in columns.values()) else columns
        return ScoredBatch(
            index,
            start,
            stop,
            _bare(columns),
            results[0] if len(results) == 1 else _joined_outputs(parts, self.name),
            kept,
            tuple(bad) if self._on_error == "collect" else (),
            tuple(row.row for row in bad),
            _results=results,
        )


def _is_of_rows(error: errors.ServingError) -> bool:
    """Whether it may be the fault of single rows, or of their number."""
    return isinstance(error, _OF_ROWS) and not isinstance(error, errors.VersionLabelNotFoundError)


def _named(error: errors.ServingError, row: int) -> errors.ServingError:
    """The error with the number of the row that it is about."""
    if isinstance(error, errors.RPCError):
        error.details = f"row {row}: {error.details}"
    else:
        error.args = (f"row {row}: {error}", *error.args[1:])
    return error


def _bare(columns: Mapping[Any, Any]) -> Inputs:
    """Columns as `predict` takes them: the values alone if they have no name."""
    inputs: Inputs = columns.get(None, columns)
    return inputs


def _slice(columns: _Columns, start: int, stop: int) -> _Columns:
    return {name: column[start:stop] for name, column in columns.items()}


def _select(columns: Any, spans: list[tuple[int, int]]) -> Any:
    """The rows in some spans."""
    return _join([_slice(columns, *span) for span in spans] or [_slice(columns, 0, 0)])


def _joined_outputs(parts: list[_Part], model: str) -> dict[str, Array]:
    """Outputs of the parts of a batch as those of one call."""
    joined: dict[str, Array] = {}
    for name in parts[0].result if parts else ():
        arrays = [part.result[name] for part in parts if name in part.result]
        if len(arrays) == len(parts) and all(
            array.ndim and len(array) == part.stop - part.start
            for array, part in zip(arrays, parts, strict=True)
        ):
            joined[name] = np.concatenate(arrays)
        elif len(arrays) == len(parts) and all(np.array_equal(arrays[0], other) for other in arrays[1:]):
            joined[name] = arrays[0]  # says the same of every call: it is not about rows
        else:
            raise errors.FailedPreconditionError(
                f"output {name!r} has no row for each row of the inputs, so that the answers of a divided "
                "batch cannot be put together: leave it out with output_filter",
                model=model or None,
                method="Predict",
            )
    return joined


class BlockingScoring:
    """A run over a source from plain code; made by `BlockingModel.score`.

    ```python
    with client.model("digits").score(rows, batch_size=256) as results:
        for batch in results:
            write(batch.start, batch.outputs["scores"])
    ```

    Everything is as `Scoring` says. The source is read on the client's own threads, not on the caller's.
    Ctrl-C while a result is waited for loses none: iterating further gives the same as it would have.

    Args:
        run: runs a coroutine on the client's loop and waits for it here.
        scoring: the run.
    """

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], scoring: Scoring) -> None:
        self._run = run
        self._scoring = scoring
        self._received = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._scoring!r}>"

    def __enter__(self) -> Self:
        self._run(self._scoring.__aenter__())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ScoredBatch:
        batch: ScoredBatch | None = self._run(self._scoring._next(self._received))
        if batch is None:
            raise StopIteration
        self._received += 1
        return batch

    @property
    def consumed(self) -> int:
        """Number of the row before which everything was handed out and dealt with.

        A batch is dealt with when the next one is asked for, or the end is met. So a run that starts with
        this row leaves none out; it repeats the batch that was being dealt with.
        """
        return self._scoring.consumed

    def progress(self) -> ScoringProgress:
        """How far the run is, at this moment; from any thread."""
        return self._scoring.progress()

    def close(self) -> None:
        """End the run: cancel what is under way, and close the source. Safe to call again."""
        if self._scoring._loop is None:
            self._scoring._closed = True
            return
        try:
            self._run(self._scoring.aclose())
        except errors.ClientClosedError:
            self._scoring._abandon()  # the client was first, and ended everything
        except BaseException:
            # Ctrl-C while it was being closed, perhaps before that had begun: the thread that reads the
            # source would wait for ever, and the interpreter for it.
            self._scoring._abandon()
            raise
