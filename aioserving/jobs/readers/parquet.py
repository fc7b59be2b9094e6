"""Parquet files, read a row group at a time, each in pieces.

Reading goes on at any row without reading what is before its row group; of the row group itself, the rows
before are decoded and dropped. Memory is that of a piece, and for files that are not local that of a row
group's bytes as they are stored, if these are not too many.

Before pyarrow 26, which Python 3.10 does not get, a null in a column of lists of fixed size made the file
unreadable (apache/arrow#35692). There row groups that have nulls are read as what Parquet itself calls them,
lists of any size, and made the type that was wanted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from aioserving.jobs.errors import InputError
from aioserving.jobs.readers.base import (
    Chunk,
    FileSource,
    Reader,
    ReadOptions,
    failure,
    no_offset,
    require_pyarrow,
)

__all__ = ["open_parquet"]

#: Stored bytes of a row group that are fetched together from a filesystem that is not local.
_FETCHED: Final = 64 << 20
#: Bytes that are read at a time of a column, of files of this machine and of others.
_LOCAL_BUFFER: Final = 1 << 18
_BUFFER: Final = 1 << 20
#: The first version of pyarrow that reads nulls in lists of fixed size.
_READS_NULLS: Final = 26


def open_parquet(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of a Parquet file; only its footer is read.

    Raises:
        InputError: it is none, or a column of `options.types` cannot be made that type.
    """
    file = source.open_arrow()
    try:
        found = _open(file)
        groups = tuple(found.metadata.row_group(i).num_rows for i in range(found.metadata.num_row_groups))
        return _ParquetReader(source, found.schema_arrow, groups, options)
    except InputError:
        raise
    except Exception as error:
        raise failure(error, source, None) from error
    finally:
        file.close()


def _open(file: Any, **settings: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        file, pre_buffer=settings.pop("pre_buffer", False), page_checksum_verification=True, **settings
    )


class _ParquetReader(Reader):
    def __init__(
        self, source: FileSource, schema: Any, groups: tuple[int, ...], options: ReadOptions
    ) -> None:
        super().__init__(source, schema, sum(groups))
        self._groups = groups
        self._options = options

    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        pyarrow = require_pyarrow()
        first, behind = 0, 0
        while first < len(self._groups) and behind + self._groups[first] <= row:
            behind += self._groups[first]
            first += 1
        if first == len(self._groups):
            return
        # A batch without columns forgets how many rows it has: one column is read for that, and dropped.
        wanted = list(columns) or self.schema.names[:1]
        schema = pyarrow.schema([self.schema.field(name) for name in wanted])
        file = self.source.open_arrow(cached=False)
        try:
            plain = _open(file, buffer_size=_LOCAL_BUFFER if self.source.local else _BUFFER)
            ahead = None if self.source.local else _open(file, metadata=plain.metadata, pre_buffer=True)
            loosely = None
            for number in range(first, len(self._groups)):
                stored, loose = _sizes(plain.metadata.row_group(number), set(wanted))
                rows = self._groups[number]
                each = max(loose / max(rows, 1), _width(schema))
                size = max(1, min(piece_rows, int(self._options.piece_bytes / each) if each else piece_rows))
                reader = ahead if ahead is not None and stored <= _FETCHED else plain
                if _has_unreadable_nulls(plain.metadata.row_group(number), schema):
                    loosely = loosely or _open_loosely(file)
                    reader = loosely
                at = behind
                for batch in reader.iter_batches(
                    size, row_groups=[number], columns=wanted, use_threads=False
                ):
                    skipped = min(max(0, row - at), batch.num_rows)
                    if skipped < batch.num_rows:
                        part = batch.slice(skipped) if skipped else batch
                        yield Chunk(part.select(wanted), at + skipped, no_offset)
                    at += batch.num_rows
                if at != behind + rows:
                    raise InputError(
                        f"row group {number} has {at - behind} rows, its footer says {rows}",
                        url=self.source.url,
                        row=at,
                    )
                behind = at
        finally:
            file.close()


def _has_unreadable_nulls(group: Any, schema: Any) -> bool:
    """Whether there may be a null in a list of fixed size, and this pyarrow does not read it."""
    pyarrow = require_pyarrow()
    if int(pyarrow.__version__.partition(".")[0]) >= _READS_NULLS:
        return False
    names = {field.name for field in schema if _has_fixed_lists(field.type)}
    for index in range(group.num_columns if names else 0):
        chunk = group.column(index)
        if chunk.path_in_schema.partition(".")[0] in names:
            known = chunk.statistics
            if known is None or not known.has_null_count or known.null_count:
                return True
    return False


def _has_fixed_lists(kind: Any) -> bool:
    if hasattr(kind, "storage_type"):
        return _has_fixed_lists(kind.storage_type)
    if getattr(kind, "list_size", None) is not None:
        return True
    return any(_has_fixed_lists(kind.field(index).type) for index in range(kind.num_fields))


def _open_loosely(file: Any) -> Any:
    """The file without the note in which Arrow says what it had made its columns of."""
    import pyarrow
    import pyarrow.parquet

    file.seek(file.size() - 8)
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    file.seek(file.size() - 8 - length)
    before, note, after = file.read(length).rpartition(b"ARROW:schema")
    footer = before + note.replace(b":", b"-") + after
    return _open(
        file,
        buffer_size=_BUFFER,
        metadata=pyarrow.parquet.read_metadata(pyarrow.BufferReader(b"PAR1" + footer + end)),
    )


def _sizes(group: Any, columns: set[str]) -> tuple[int, int]:
    """Bytes of a row group's columns, as they are stored and when they are not compressed."""
    stored = loose = 0
    for index in range(group.num_columns):
        chunk = group.column(index)
        path = chunk.path_in_schema
        if path in columns or path.partition(".")[0] in columns:
            stored += chunk.total_compressed_size
            loose += chunk.total_uncompressed_size
    return stored, loose


def _width(schema: Any) -> float:
    """Bytes of a row in memory, of the columns whose type tells; Parquet stores repeated values once."""
    return sum(_type_width(field.type) for field in schema)


def _type_width(kind: Any) -> float:
    if hasattr(kind, "storage_type"):
        return _type_width(kind.storage_type)
    size = getattr(kind, "list_size", None)
    if size is not None:
        return float(size) * _type_width(kind.value_type)
    try:
        return float(kind.bit_width) / 8
    except ValueError:  # of variable width
        return 0.0
