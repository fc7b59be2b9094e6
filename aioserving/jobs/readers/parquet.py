"""Parquet files, read a row group at a time, each in pieces.

Reading goes on at any row without reading what is before its row group; of the row group itself, the rows
before are decoded and dropped. Memory is that of a piece, and for files that are not local that of a row
group's bytes as they are stored, if these are not too many.
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
#: Bytes that are read at a time of a column.
_BUFFER: Final = 1 << 20


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
            plain = _open(file, buffer_size=_BUFFER)
            ahead = None if self.source.local else _open(file, metadata=plain.metadata, pre_buffer=True)
            for number in range(first, len(self._groups)):
                stored, loose = _sizes(plain.metadata.row_group(number), set(wanted))
                rows = self._groups[number]
                each = max(loose / max(rows, 1), _width(schema))
                size = max(1, min(piece_rows, int(self._options.piece_bytes / each) if each else piece_rows))
                reader = ahead if ahead is not None and stored <= _FETCHED else plain
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
