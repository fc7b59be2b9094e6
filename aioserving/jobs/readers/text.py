"""CSV and JSON lines, read in blocks that are cut where rows end.

pyarrow parses the values. Where rows end is found here, so that the byte behind every row is known: from
there reading goes on, without what is before. A compressed file has to be decompressed from its beginning for
that.

Text is UTF-8. A row of CSV ends at a line feed outside quotes (a carriage return before it is left out), one
of JSON lines at any line feed; lines with nothing in them are no rows. Types are guessed from the first block
of the first file, and hold for all that follows.
"""

from __future__ import annotations

import abc
import csv
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from aioserving._types import Array
from aioserving.jobs.errors import InputError
from aioserving.jobs.readers.base import (
    Chunk,
    FileSource,
    Reader,
    ReadOptions,
    failure,
    require_pyarrow,
)

__all__ = ["ByteStream", "open_csv", "open_json_lines"]

#: Bytes that are read at a time, and from which types are guessed.
_BLOCK: Final = 2 << 20
#: A row longer than this is taken for a file of another kind, or a quote that is never closed.
_LONGEST_ROW: Final = 512 << 20

_BOM: Final = b"\xef\xbb\xbf"
_NEWLINE: Final = 10

#: What a file's ending says of its compression, as pyarrow calls it.
_CODECS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


class ByteStream:
    """The bytes of a file from some place on, decompressed if its name says that it is compressed.

    Args:
        source: the file.
        offset: bytes, decompressed, to leave out.
        codec: how it is compressed, where its name does not tell.

    Attributes:
        position: bytes, decompressed, before what `read` gives next.
    """

    def __init__(self, source: FileSource, offset: int = 0, *, codec: str | None = None) -> None:
        self._source = source
        self._codec = codec or next(
            (found for ending, found in _CODECS.items() if source.path.lower().endswith(ending)), None
        )
        self.position = 0
        if self._codec is None:
            self._file = source.open()
            self._file.seek(offset)
            self.position = offset
            return
        pyarrow = require_pyarrow()
        self._file = pyarrow.CompressedInputStream(source.open_arrow(), self._codec)
        while self.position < offset:
            if not self.read(min(_BLOCK, offset - self.position)):
                raise InputError(f"it ends before its byte {offset}, decompressed", url=source.url)

    def __repr__(self) -> str:
        return f"<ByteStream of {self._source.url} at {self.position}>"

    def read(self, size: int) -> bytes:
        """The next bytes, `size` of them at most; none at the end.

        Raises:
            InputError: the file ends before its end.
        """
        data: bytes = self._file.read(size) or b""
        self.position += len(data)
        if not data and self._codec is None and self.position < self._source.size:
            raise InputError(
                f"it ends after {self.position} of {self._source.size} bytes", url=self._source.url
            )
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_csv(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of a CSV file; its header and its first block are read.

    Raises:
        InputError: it has no header, or its first rows cannot be read.
    """
    return _open(_CsvReader(source, options))


def open_json_lines(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of a file with a JSON object in each line; its first block is read.

    Raises:
        InputError: its first rows cannot be read.
    """
    return _open(_JsonReader(source, options))


def _open(reader: _TextReader) -> Reader:
    try:
        reader.look()
    except InputError:
        raise
    except Exception as error:
        raise failure(error, reader.source, None) from error
    return reader


class _TextReader(Reader):
    """What both formats have in common."""

    #: What may be the reason for rows that are not lines.
    _doubt = ""

    def __init__(self, source: FileSource, options: ReadOptions) -> None:
        super().__init__(source, require_pyarrow().schema([]), None)
        self._options = options
        # Byte at which the first row begins.
        self._first = 0

    @abc.abstractmethod
    def look(self) -> None:
        """Set `schema` from the beginning of the file."""

    @abc.abstractmethod
    def _parse(self, data: Any, columns: Sequence[str]) -> Any:
        """The rows in `data`, a buffer that ends with a row, as a `pyarrow.Table`."""

    @abc.abstractmethod
    def _ends(self, data: bytes, last: bool) -> Array:
        """Positions just behind each row of `data`, which begins with one; blank lines are part of the next.

        Args:
            data: bytes.
            last: whether the file ends with them, so that what is behind the last line feed is a row.
        """

    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        if offset is None:
            if row:
                raise InputError("the cursor does not say where its row is", url=self.source.url, row=row)
            offset = self._first
        wanted = list(columns) or self.schema.names[:1]
        for data, ends, at in self._blocks(offset, row):
            begin = 0  # of the rows of this block, and where it begins in its bytes
            behind = 0
            while begin < len(ends):
                stop = min(len(ends), begin + piece_rows)
                limit = int(np.searchsorted(ends, behind + self._options.piece_bytes, side="right"))
                stop = max(begin + 1, min(stop, limit))
                part = memoryview(data)[behind : int(ends[stop - 1])]
                batch = self._batch(part, ends[begin:stop] - behind, row, wanted)
                absolute = ends[begin:stop] + at

                def offset_after(rows: int, absolute: Array = absolute) -> int:
                    return int(absolute[rows - 1])

                yield Chunk(batch, row, offset_after)
                row += stop - begin
                behind = int(ends[stop - 1])
                begin = stop

    def _blocks(self, offset: int, row: int) -> Iterator[tuple[bytes, Array, int]]:
        """Whole rows from `offset` on: bytes, where in them rows end, and where in the file they begin."""
        stream = ByteStream(self.source, offset)
        try:
            rest, size = b"", _BLOCK
            while True:
                data = stream.read(size)
                last = not data
                data = rest + data
                at = stream.position - len(data)
                ends = self._checked_ends(data, last, row)
                if len(ends):
                    yield data, ends, at
                    row += len(ends)
                    rest, size = data[int(ends[-1]) :], _BLOCK
                else:
                    rest = data
                    size = max(
                        size, len(rest)
                    )  # each byte is looked at twice on average, however long the row
                if last:
                    return
                if len(rest) > _LONGEST_ROW:
                    raise InputError(
                        f"a row is longer than {_LONGEST_ROW} bytes", url=self.source.url, row=row
                    )
        finally:
            stream.close()

    def _checked_ends(self, data: bytes, last: bool, row: int) -> Array:
        try:
            return self._ends(data, last)
        except InputError as error:
            raise InputError(error.details, url=self.source.url, row=row) from None

    def _batch(self, part: memoryview, ends: Array, row: int, columns: Sequence[str]) -> Any:
        """The rows of `part`, which are as many as `ends`."""
        pyarrow = require_pyarrow()
        try:
            table = self._parse(part, columns)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError) as error:
            raise self._bad_row(part, ends, row, columns, error) from error
        if table.num_rows != len(ends):
            raise InputError(
                f"{len(ends)} lines were read as {table.num_rows} rows: each line has to be one{self._doubt}",
                url=self.source.url,
                row=row,
            )
        arrays = [
            chunked.chunk(0) if chunked.num_chunks == 1 else _combined(pyarrow, chunked)
            for chunked in (table.column(name) for name in columns)
        ]
        schema = pyarrow.schema([self.schema.field(name) for name in columns])
        return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    def _bad_row(
        self, part: memoryview, ends: Array, row: int, columns: Sequence[str], error: Exception
    ) -> InputError:
        """The error that names the first row that cannot be parsed."""
        pyarrow = require_pyarrow()
        low, high = 0, len(ends)  # rows before `low` are fine, among those up to `high` is a bad one
        while high - low > 1:
            middle = (low + high) // 2
            begin = int(ends[low - 1]) if low else 0
            try:
                self._parse(part[begin : int(ends[middle - 1])], columns)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError) as found:
                high, error = middle, found
            else:
                low = middle
        begin = int(ends[low - 1]) if low else 0
        text = bytes(part[begin : int(ends[low]) if len(ends) else 0]).strip().decode("utf-8", "replace")
        try:
            self._parse(part[begin : int(ends[low])], columns)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError) as found:
            error = found
        hint = ""
        if "conversion" in str(error) or "changed from" in str(error):
            hint = "; types are guessed from the first rows, say others with types="
        told = text if len(text) <= 80 else text[:77] + "..."
        return InputError(f"{error}: {told!r}{hint}", url=self.source.url, row=row + low)

    def _guess(self, offset: int) -> tuple[bytes, int]:
        """Whole rows from `offset` on, one block of them, and how many."""
        for data, ends, _ in self._blocks(offset, 0):
            return data[: int(ends[-1])], len(ends)
        return b"", 0

    def _with_expected(self, schema: Any) -> Any:
        """A guessed schema, with the types that are known from elsewhere."""
        for source in (self._options.expected or {}, self._options.types):
            for name, kind in source.items():
                index = schema.get_field_index(name)
                if index >= 0:
                    schema = schema.set(index, schema.field(index).with_type(_parsed_type(kind)))
        return schema


class _CsvReader(_TextReader):
    _doubt = '; a quote inside a value that is not quoted needs quote=""'

    def __init__(self, source: FileSource, options: ReadOptions) -> None:
        super().__init__(source, options)
        self._quote = options.quote.encode()
        if len(self._quote) > 1 or len(options.delimiter.encode()) != 1:
            raise ValueError("a delimiter is one ASCII character, a quote one or none")
        self._names: list[str] = []

    def look(self) -> None:
        pyarrow = require_pyarrow()
        names, first = self._header()
        self._names, self._first = names, first
        data, rows = self._guess(first)
        fields = [pyarrow.field(name, pyarrow.string()) for name in names]
        if rows:
            try:
                table = self._read(data, column_types={}, names=names)
            except pyarrow.ArrowInvalid as error:
                self.schema = pyarrow.schema(fields)  # with all as text it shows which row it is
                begins = self._ends(data, True)
                raise self._bad_row(memoryview(data), begins, 0, names, error) from error
            # What had no value yet could be anything; text can hold it.
            fields = [
                field.with_type(pyarrow.string()) if pyarrow.types.is_null(field.type) else field
                for field in table.schema
            ]
        else:
            self.rows = 0
        if len(set(names)) == len(names):
            self.schema = self._with_expected(pyarrow.schema(fields))
        else:
            self.schema = pyarrow.schema(fields)

    def _header(self) -> tuple[list[str], int]:
        """Names of the columns, and the byte at which the first row begins."""
        stream = ByteStream(self.source)
        try:
            data = stream.read(max(_BLOCK, len(_BOM)))
            begin = len(_BOM) if data.startswith(_BOM) else 0
            if self._options.column_names is not None:
                return list(self._options.column_names), begin
            ends = self._ends(data[begin:], False)
            while not len(ends):
                more = stream.read(_BLOCK)
                data += more
                ends = self._checked_ends(data[begin:], not more, 0)
                if not len(ends) and not more:
                    raise InputError(
                        "it is empty, not even a header is in it; files without one need column_names=",
                        url=self.source.url,
                    )
        finally:
            stream.close()
        line = data[begin : begin + int(ends[0])].decode("utf-8", "replace").strip("\r\n")
        quoting: dict[str, Any] = (
            {"quotechar": self._options.quote} if self._quote else {"quoting": csv.QUOTE_NONE}
        )
        return next(csv.reader([line], delimiter=self._options.delimiter, **quoting)), begin + int(ends[0])

    def _parse(self, data: Any, columns: Sequence[str]) -> Any:
        kinds = {field.name: field.type for field in self.schema}
        return self._read(data, column_types=kinds, names=self._names, columns=columns)

    def _read(
        self, data: Any, *, column_types: Any, names: Sequence[str], columns: Sequence[str] | None = None
    ) -> Any:
        import pyarrow.csv

        pyarrow = require_pyarrow()
        nulls = list(self._options.null_values)
        return pyarrow.csv.read_csv(
            pyarrow.BufferReader(pyarrow.py_buffer(data)),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(data) + 1, column_names=list(names)
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._options.delimiter,
                quote_char=self._options.quote or False,
                newlines_in_values=bool(self._quote),
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=column_types,
                null_values=nulls,
                # An empty text is a text; what somebody wrote for null is null in every column.
                strings_can_be_null=nulls != [""],
                quoted_strings_can_be_null=False,
                include_columns=list(columns) if columns is not None else None,
            ),
        )

    def _ends(self, data: bytes, last: bool) -> Array:
        array = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(array == _NEWLINE)
        if self._quote and self._quote in data:
            # A line feed ends a row where as many quotes were opened as closed; one inside a value, written
            # twice, changes nothing.
            quotes = np.flatnonzero(array == self._quote[0])
            newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
            if last and len(quotes) % 2:
                raise InputError(f"a quote is opened and never closed{self._doubt}")
        return _without_blanks(data, newlines + 1, last)


class _JsonReader(_TextReader):
    def look(self) -> None:
        pyarrow = require_pyarrow()
        stream = ByteStream(self.source)
        try:
            self._first = len(_BOM) if stream.read(len(_BOM)) == _BOM else 0
        finally:
            stream.close()
        data, rows = self._guess(self._first)
        if not rows:
            self.rows = 0
        if self._options.expected is not None:
            # Objects may leave members out: what the first file has, this one has, if only as nulls.
            known = [pyarrow.field(name, _parsed_type(kind)) for name, kind in self._options.expected.items()]
            self.schema = pyarrow.schema(known)
            return
        fields = []
        if rows:
            try:
                table = self._read(data, None)
            except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
                raise self._bad_row(memoryview(data), self._ends(data, True), 0, (), error) from error
            # JSON has no times: a text that looks like one is a text.
            fields = [
                pyarrow.field(field.name, _without_times(pyarrow, field.type)) for field in table.schema
            ]
        names = {field.name for field in fields}
        fields += [
            pyarrow.field(name, kind) for name, kind in self._options.types.items() if name not in names
        ]
        self.schema = self._with_expected(pyarrow.schema(fields))

    def _parse(self, data: Any, columns: Sequence[str]) -> Any:
        pyarrow = require_pyarrow()
        if not columns:
            return self._read(data, None)
        return self._read(data, pyarrow.schema([self.schema.field(name) for name in columns]))

    def _read(self, data: Any, schema: Any) -> Any:
        import pyarrow.json

        pyarrow = require_pyarrow()
        return pyarrow.json.read_json(
            pyarrow.BufferReader(pyarrow.py_buffer(data)),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
            ),
        )

    def _ends(self, data: bytes, last: bool) -> Array:
        return _without_blanks(data, np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE) + 1, last)


def _without_blanks(data: bytes, ends: Array, last: bool) -> Array:
    """`ends` of lines, without those of blank ones, and with that of a last line that is not ended."""
    begin = int(ends[-1]) if len(ends) else 0
    if last and begin < len(data):
        ends = np.append(ends, len(data))
    if not len(ends):
        return ends
    lengths = np.diff(ends, prepend=0)
    short = np.flatnonzero(lengths <= 2)
    blank = [i for i in short.tolist() if not data[int(ends[i] - lengths[i]) : int(ends[i])].strip(b"\r\n")]
    return np.delete(ends, blank) if blank else ends


def _parsed_type(kind: Any) -> Any:
    """The type that is parsed where `kind` is wanted, and then cast to it."""
    pyarrow = require_pyarrow()
    kind = getattr(kind, "storage_type", kind)
    if pyarrow.types.is_fixed_size_list(kind) or pyarrow.types.is_list(kind):
        return pyarrow.list_(_parsed_type(kind.value_type))
    return kind


def _without_times(pyarrow: Any, kind: Any) -> Any:
    if pyarrow.types.is_timestamp(kind):
        return pyarrow.string()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_without_times(pyarrow, kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, _without_times(pyarrow, field.type)) for field in kind])
    return kind


def _combined(pyarrow: Any, chunked: Any) -> Any:
    found = chunked.combine_chunks()
    if isinstance(found, pyarrow.ChunkedArray):  # which it stays where it has none or too many chunks
        return pyarrow.concat_arrays(found.chunks) if found.num_chunks else pyarrow.array([], found.type)
    return found
