"""Arrow's own files: Feather (version 2) and IPC files, and IPC streams, one record batch at a time.

Which of them a file is, its first bytes tell, whatever its name. A record batch is read as a whole, as it was
written; pieces are cut from it without a copy. Reading goes on at a record batch without those before, except
in a stream with dictionaries, which are spread over it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from aioserving.jobs.errors import InputError
from aioserving.jobs.readers.base import (
    Chunk,
    FileSource,
    Reader,
    ReadOptions,
    failure,
    require_pyarrow,
)

__all__ = ["open_arrow"]

#: Bits of an offset that hold the row within its record batch; those above hold the batch's place.
_ROW_BITS: Final = 32

#: Headers of record batches that are fetched from another machine to count rows.
_MOST_HEADERS: Final = 2000

#: What IPC files begin with, and files of Feather's first version.
_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"


def open_arrow(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of an IPC file or stream; of a file the footer and the batches' headers are read.

    Raises:
        InputError: it is none of them.
    """
    file = source.open_arrow()
    try:
        magic = bytes(file.read(len(_FILE)))
        file.seek(0)
        if magic.startswith(_FEATHER_1):
            raise InputError(
                "it is a Feather file of version 1, which has no record batches: write it again as version 2",
                url=source.url,
            )
        if magic == _FILE:
            import pyarrow.ipc

            found = pyarrow.ipc.open_file(file)
            return _FileReader(source, found.schema, _count_rows(file, source), options)
        if not magic:
            raise InputError("it is empty, not even a schema is in it", url=source.url)
        return _StreamReader(source, _open_stream(file, source).schema, None, options)
    except InputError:
        raise
    except Exception as error:
        raise failure(error, source, None) from error
    finally:
        file.close()


def _count_rows(file: Any, source: FileSource) -> int | None:
    """Rows of an IPC file, from its footer and its batches' headers: pyarrow would read all of the file.

    The footer is a flatbuffer (``File.fbs`` of Arrow's format), each header another (``Message.fbs``).
    """
    tail = len(_FILE) + 4
    file.seek(source.size - tail)
    (size,) = struct.unpack("<i", file.read(tail)[:4])
    file.seek(source.size - tail - size)
    footer = file.read(size)
    places: list[tuple[int, int]] = []
    batches = _field(footer, _root(footer, 0), 3)
    if batches is not None:
        vector = _root(footer, batches)
        (count,) = struct.unpack_from("<I", footer, vector)
        # A block is a structure: place, length of the header, four bytes of nothing, length of the body.
        places = [struct.unpack_from("<qi", footer, vector + 4 + 24 * i) for i in range(count)]
    if source.local:
        headers = []
        for place, length in places:
            file.seek(place)
            headers.append(file.read(length))
    elif len(places) > _MOST_HEADERS:
        return None
    else:
        headers = source.fs.cat_ranges(
            [source.path] * len(places),
            [place for place, _ in places],
            [place + length for place, length in places],
        )
    return sum(_batch_rows(header) for header in headers)


def _batch_rows(message: bytes) -> int:
    start = 8 if message.startswith(b"\xff\xff\xff\xff") else 4  # in old files only the length is before it
    header = _field(message, _root(message, start), 2)
    if header is None:
        raise ValueError("a record batch without a header")
    length = _field(message, _root(message, header), 0)  # left out where it is 0
    return int(struct.unpack_from("<q", message, length)[0]) if length is not None else 0


def _root(data: bytes, place: int) -> int:
    """Where the table or vector is that the offset at `place` points to."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a table's field is; None if it was left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _open_stream(file: Any, source: FileSource) -> Any:
    import pyarrow.ipc

    try:
        return pyarrow.ipc.open_stream(file)
    except Exception as error:
        raise InputError(f"it is no Arrow file or stream: {error}", url=source.url) from error


def _place(place: int, row: int) -> int:
    return place << _ROW_BITS | row


class _ArrowReader(Reader):
    """A reader of record batches."""

    def __init__(self, source: FileSource, schema: Any, rows: int | None, options: ReadOptions) -> None:
        super().__init__(source, schema, rows)
        self._options = options

    def _cut(
        self, batch: Any, place: int, first: int, row: int, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        """A record batch in chunks.

        Args:
            batch: all of it.
            place: where it is found again.
            first: the first row of it that is wanted.
            row: that row's number in the file.
            columns: see `chunks`.
            piece_rows: see `chunks`.
        """
        batch.validate()
        count = batch.num_rows
        each = batch.nbytes / max(count, 1)
        size = max(1, min(piece_rows, int(self._options.piece_bytes / each) if each else piece_rows))
        batch = batch.select(list(columns) or self.schema.names[:1])
        for start in range(first, count, size):
            part = batch.slice(start, size)

            def offset_after(rows: int, start: int = start) -> int:
                return _place(place, start + rows)

            yield Chunk(part, row + start - first, offset_after)


class _FileReader(_ArrowReader):
    """Offsets hold a record batch's number, and a row of it."""

    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        import pyarrow.ipc

        file = self.source.open_arrow(cached=False)
        try:
            reader = pyarrow.ipc.open_file(file, options=_read_options(self.schema, columns))
            number, first = _split(offset, row, self.source)
            for place in range(number, reader.num_record_batches):
                batch = reader.get_batch(place)
                yield from self._cut(batch, place, first, row, columns, piece_rows)
                row += batch.num_rows - first
                first = 0
        finally:
            file.close()


class _StreamReader(_ArrowReader):
    """Offsets hold the byte at which a record batch's message begins, and a row of it."""

    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        pyarrow = require_pyarrow()
        file = self.source.open_arrow()
        try:
            place, first = _split(offset, row, self.source)
            if place and not _has_dictionaries(pyarrow, self.schema):
                file.seek(place)
                batches = self._messages(file)
            else:
                reader = _open_stream(file, self.source)
                batches = self._batches(reader, file, place)
            for at, batch in batches:
                yield from self._cut(batch, at, first, row, columns, piece_rows)
                row += batch.num_rows - first
                first = 0
        finally:
            file.close()

    def _batches(self, reader: Any, file: Any, place: int) -> Iterator[tuple[int, Any]]:
        """All record batches from `place` on, with the byte at which each begins."""
        while True:
            at = file.tell()
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                self._check_ended(file)
                return
            if at >= place:
                yield at, batch

    def _messages(self, file: Any) -> Iterator[tuple[int, Any]]:
        import pyarrow.ipc

        while True:
            at = file.tell()
            try:
                message = pyarrow.ipc.read_message(file)
            except EOFError:
                self._check_ended(file)
                return
            yield at, pyarrow.ipc.read_record_batch(message, self.schema)

    def _check_ended(self, file: Any) -> None:
        if file.tell() < self.source.size:
            raise InputError(
                f"the stream ends after {file.tell()} of {self.source.size} bytes: several streams in one "
                "file are not read",
                url=self.source.url,
            )


def _split(offset: int | None, row: int, source: FileSource) -> tuple[int, int]:
    if offset is None:
        if row:
            raise InputError("the cursor does not say where in the file its row is", url=source.url, row=row)
        return 0, 0
    return offset >> _ROW_BITS, offset & ((1 << _ROW_BITS) - 1)


def _read_options(schema: Any, columns: Sequence[str]) -> Any:
    """Options that leave out other columns, where pyarrow then still knows which is which."""
    import pyarrow.ipc

    wanted = sorted(schema.get_field_index(name) for name in columns) or [0]
    return pyarrow.ipc.IpcReadOptions(included_fields=wanted)


def _has_dictionaries(pyarrow: Any, schema: Any) -> bool:
    def inside(kind: Any) -> bool:
        kind = getattr(kind, "storage_type", kind)
        if pyarrow.types.is_dictionary(kind):
            return True
        return any(inside(kind.field(i).type) for i in range(getattr(kind, "num_fields", 0)))

    return any(inside(field.type) for field in schema)
