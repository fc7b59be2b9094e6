"""What readers of all formats share: a file somewhere, a reader of it, and what the reader gives.

    FileSource    a file on some filesystem, as it was when it was listed; opens it, notices changes
    Chunk         some rows of a file, and where reading goes on behind each of them
    Reader        reads one file, from any of its rows on
    ReadOptions   what the caller said about the files

Which files there are and in which order they are read is `aioserving.jobs.inputs`' business.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aioserving.jobs.errors import InputChanged, InputError

__all__ = ["Chunk", "FileSource", "ReadOptions", "Reader", "failure", "require_pyarrow"]

#: Seconds after which a file that is not local is looked at again; local ones are at every piece.
_LOOK_AGAIN: Final = 5.0
#: Bytes from the beginning and from the end of a file that tell it from others where nothing else does.
_SAMPLE: Final = 1 << 16
#: What filesystems say of a file's content, best first.
_CONTENT_KEYS: Final = (
    "ETag",
    "etag",
    "e_tag",
    "md5Hash",
    "Content-MD5",
    "content_md5",
    "Digest",
    "checksum",
)
#: And of the time of its last change.
_TIME_KEYS: Final = (
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modified",
    "created",
)


def require_pyarrow() -> Any:
    """The module `pyarrow`.

    Raises:
        ImportError: it is not installed; the message says what is to do.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "jobs over files need pyarrow and fsspec: pip install 'aioserving[batch]'"
        ) from error
    return pyarrow


@dataclass(frozen=True)
class ReadOptions:
    """What the caller said about the files; part of the inputs' fingerprint."""

    #: Types of columns by name, where what the files say, or what can be guessed, is not what is meant.
    types: Mapping[str, Any] = field(default_factory=dict)
    #: CSV: what stands between values.
    delimiter: str = ","
    #: CSV: what stands around values with delimiters or line breaks; it is written twice inside. "" for none.
    quote: str = '"'
    #: CSV: names of the columns of files without a header line.
    column_names: tuple[str, ...] | None = None
    #: CSV: what stands for null.
    null_values: tuple[str, ...] = ("",)
    #: ``.npy`` and TFRecord: name of their one column.
    column: str | None = None
    #: Most bytes of a piece, about; a single row may be larger.
    piece_bytes: int = 16 << 20
    #: Types of the first file's columns, for the guesses of others; None for the first file.
    expected: Mapping[str, Any] | None = None

    def told(self) -> list[Any]:
        """Those that decide what the rows are, as JSON can hold them."""
        return [
            {name: str(kind) for name, kind in sorted(self.types.items())},
            self.delimiter,
            self.quote,
            list(self.column_names) if self.column_names is not None else None,
            list(self.null_values),
            self.column,
        ]


@dataclass(frozen=True)
class Chunk:
    """Rows that follow one another in a file."""

    #: A `pyarrow.RecordBatch`.
    batch: Any
    #: Number of its first row in the file.
    row: int
    #: Where reading goes on after its first n rows, in the reader's own terms; None: the row's number does.
    offset_after: Callable[[int], int | None]


def no_offset(_: int) -> None:
    """The `Chunk.offset_after` of formats that find a row by its number."""


class FileSource:
    """A file as it was when it was listed.

    Args:
        fs: an fsspec filesystem.
        path: the file's path there.
        url: its name in messages and fingerprints.
        info: what the filesystem says of it.

    Attributes:
        url: see above.
        path: see above.
        size: bytes.
        fingerprint: what tells this content from any other, as well as the filesystem can.
        local: whether it is a file of this machine.
    """

    def __init__(self, fs: Any, path: str, url: str, info: Mapping[str, Any]) -> None:
        self.fs = fs
        self.path = path
        self.url = url
        self.local = "file" in (fs.protocol if isinstance(fs.protocol, (tuple, list)) else (fs.protocol,))
        if not self.local and not any(info.get(key) for key in _CONTENT_KEYS):
            # Listings may say less than, or something else than, the answer for the one file.
            info = fs.info(path)
        self.size, self.fingerprint = self._look(info)
        self._looked = time.monotonic()

    def __repr__(self) -> str:
        return f"<FileSource {self.url}, {self.size} bytes, {self.fingerprint}>"

    def open(self) -> Any:
        """The file, opened to read bytes, with `seek`; a local one without a buffer.

        Raises:
            InputChanged: it is not the one that was listed.
            InputError: it cannot be opened.
        """
        self.check(force=True)
        try:
            if self.local:
                return open(self.path, "rb", buffering=0)
            return self.fs.open(self.path, "rb")
        except Exception as error:
            raise failure(error, self, None) from error

    def open_arrow(self, *, cached: bool = True) -> Any:
        """The file as a `pyarrow.NativeFile`, which reads a local one without the interpreter.

        Args:
            cached: whether reads go through fsspec's read-ahead, where the file is not local.
        """
        pyarrow = require_pyarrow()
        self.check(force=True)
        try:
            if self.local:
                return pyarrow.OSFile(self.path, "rb")
            # Not memory-mapped: a mapped file that is cut off ends the process instead of raising an error.
            options = {} if cached else {"cache_type": "none"}
            try:
                file = self.fs.open(self.path, "rb", **options)
            except TypeError:  # a filesystem that knows no such option
                file = self.fs.open(self.path, "rb")
            return pyarrow.PythonFile(file, mode="r")
        except Exception as error:
            raise failure(error, self, None) from error

    def check(self, *, force: bool = False) -> None:
        """Look whether the file still is the one that was listed.

        A file that is not local is looked at if the last time is some seconds ago, or if `force` says so.

        Raises:
            InputChanged: it is not, or it is gone.
        """
        if not (force or self.local) and time.monotonic() - self._looked < _LOOK_AGAIN:
            return
        try:
            self._drop_listing()
            size, fingerprint = self._look(None if self.local else self.fs.info(self.path))
        except FileNotFoundError:
            raise InputChanged("the file is gone since the job listed it", url=self.url) from None
        self._looked = time.monotonic()
        if size != self.size:
            raise InputChanged(
                f"the file had {self.size} bytes when the job listed it and has {size} now", url=self.url
            )
        if fingerprint != self.fingerprint:
            raise InputChanged(
                f"the file was replaced or written to since the job listed it ({self.fingerprint} then, "
                f"{fingerprint} now)",
                url=self.url,
            )

    def _drop_listing(self) -> None:
        with contextlib.suppress(Exception):  # only what it remembers; the question itself may still work
            self.fs.invalidate_cache(self.fs._parent(self.path))

    def _look(self, info: Mapping[str, Any] | None) -> tuple[int, str]:
        if self.local:
            stat = os.stat(self.path)
            return stat.st_size, f"mtime:{stat.st_mtime_ns}"
        assert info is not None
        size = info.get("size")
        if size is None:
            raise InputError("its filesystem does not say how large the file is", url=self.url)
        for key in _CONTENT_KEYS:
            if info.get(key):
                return int(size), f"{key.lower()}:{info[key]}"
        for key in _TIME_KEYS:
            found = info.get(key)
            if found:
                told = found.isoformat() if hasattr(found, "isoformat") else str(found)
                return int(size), f"{key.lower()}:{told}"
        return int(size), f"sample:{self._sample(int(size))}"

    def _sample(self, size: int) -> str:
        """A digest of the beginning and the end."""
        digest = hashlib.sha256()
        digest.update(self.fs.cat_file(self.path, start=0, end=min(size, _SAMPLE)))
        if size > _SAMPLE:
            digest.update(self.fs.cat_file(self.path, start=max(_SAMPLE, size - _SAMPLE), end=size))
        return digest.hexdigest()[:32]


def failure(error: BaseException, source: FileSource, row: int | None) -> InputError:
    """`error`, which reading `source` failed with, as the job's: with the file, the row and the cause.

    A file that turns out to have changed is said to have, whatever that led to.
    """
    if isinstance(error, InputError):
        return error
    try:
        source.check(force=True)
    except InputError as changed:
        return changed
    except Exception as again:  # the filesystem does not answer; the first error tells more
        del again
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return InputChanged("the file is gone since the job listed it", url=source.url)
    return InputError(f"it cannot be read: {text}", url=source.url, row=row)


class Reader(abc.ABC):
    """Reads one file.

    Made by a function of the format's module, which looks at as much of the file as it takes to know the
    schema and keeps nothing open.

    Attributes:
        source: the file.
        schema: a `pyarrow.Schema`, of the columns in the file's order.
        rows: how many there are, or None if only reading all of it tells.
    """

    def __init__(self, source: FileSource, schema: Any, rows: int | None) -> None:
        self.source = source
        self.schema = schema
        self.rows = rows

    def __repr__(self) -> str:
        rows = "an unknown number of" if self.rows is None else self.rows
        return f"<{type(self).__name__} of {self.source.url}: {rows} rows, {len(self.schema)} columns>"

    @abc.abstractmethod
    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        """The rows from `row` on, in order, at most `piece_rows` at a time, each chunk with one row at least.

        Args:
            row: number of the first row, at most the number of rows.
            offset: what `Chunk.offset_after` gave for it; None before the first row.
            columns: names of columns of `schema`, in the order of the result.
            piece_rows: see above.

        Raises:
            InputError: the file is broken or cut off; or anything else, which the caller puts into one.
        """
