"""TFRecord files: records of bytes, each a serialized `tf.Example`, plain or compressed with gzip.

A record is its length (8 bytes, little-endian), a checksum of the length, its bytes and a checksum of these;
both checksums are checked. What is in a record is not looked at: the model parses it. Reading goes on at the
byte behind any record; a compressed file has to be decompressed from its beginning for that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from aioserving.jobs.errors import InputError
from aioserving.jobs.readers.base import Chunk, FileSource, Reader, ReadOptions, failure, require_pyarrow
from aioserving.jobs.readers.crc32c import crc32c, crc32c_many, masked
from aioserving.jobs.readers.text import ByteStream

__all__ = ["open_tfrecord", "write_tfrecord"]

#: Name of the one column, where none is said.
_COLUMN: Final = "example"

_HEAD: Final = struct.Struct("<QI")
_TAIL: Final = 4
_GZIP: Final = b"\x1f\x8b"
#: Bytes that are read at a time.
_BLOCK: Final = 2 << 20
#: A record cannot be longer: neither a message nor an Arrow array holds it.
_LONGEST: Final = (1 << 31) - 1


def open_tfrecord(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of a TFRecord file; the head of its first record is read.

    Raises:
        InputError: it is none.
    """
    pyarrow = require_pyarrow()
    try:
        return _TFRecordReader(
            source, pyarrow.schema([pyarrow.field(options.column or _COLUMN, pyarrow.binary())]), options
        )
    except InputError:
        raise
    except Exception as error:
        raise failure(error, source, None) from error


def write_tfrecord(path: str | os.PathLike[str], records: Iterable[bytes], *, gzip: bool = False) -> int:
    """Write a TFRecord file; for tests, and to have something to try things with.

    Args:
        path: where, on this machine.
        records: serialized `tf.Example`s, or any bytes.
        gzip: whether to compress it.

    Returns:
        How many records it has.
    """
    import gzip as compression

    count = 0
    with compression.open(path, "wb") if gzip else open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _checksum(length) + record + _checksum(record))
            count += 1
    return count


def _checksum(data: bytes) -> bytes:
    return masked(np.array([crc32c(data)], np.uint32)).astype("<u4").tobytes()


class _TFRecordReader(Reader):
    def __init__(self, source: FileSource, schema: Any, options: ReadOptions) -> None:
        super().__init__(source, schema, 0 if source.size == 0 else None)
        self._options = options
        self._codec: str | None = None
        stream = source.open()
        try:
            head = stream.read(_HEAD.size)
        finally:
            stream.close()
        # The name need not tell that it is compressed; a plain one begins with a length and its checksum.
        if head.startswith(_GZIP) and not self._head_fits(head):
            self._codec = "gzip"

    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        if offset is None and row:
            raise InputError("the cursor does not say where its row is", url=self.source.url, row=row)
        stream = ByteStream(self.source, offset or 0, codec=self._codec)
        rest = b""
        limit = min(_BLOCK, self._options.piece_bytes)
        wanted = limit
        try:
            while True:
                data = stream.read(wanted)
                at = stream.position - len(data) - len(rest)
                if not data:
                    if rest:
                        raise self._bad(row, at, f"it is cut off: {len(rest)} bytes of it are there")
                    return
                data = rest + data
                starts, lengths, missing, wrong = self._frames(data)
                self._check(data, starts, lengths, row, at)
                if wrong:  # which it may be only because a length before it was
                    behind = int(starts[-1] + lengths[-1]) + _TAIL if len(starts) else 0
                    raise self._bad(row + len(starts), at + behind, wrong)
                for begin in range(0, len(starts), piece_rows):
                    first, count = starts[begin : begin + piece_rows], lengths[begin : begin + piece_rows]
                    ends = (first + count + (at + _TAIL)).tolist()

                    def offset_after(rows: int, ends: list[int] = ends) -> int:
                        return ends[rows - 1]

                    yield Chunk(self._batch(data, first, count), row, offset_after)
                    row += len(first)
                used = int(starts[-1] + lengths[-1]) + _TAIL if len(starts) else 0
                rest = data[used:]
                wanted = max(limit, missing)
        finally:
            stream.close()

    def _frames(self, data: bytes) -> tuple[Any, Any, int, str]:
        """Where the bytes of whole records begin, how long they are, and of the next one what it lacks.

        That is the number of bytes that are still to be read, or what is wrong with its length.
        """
        starts: list[int] = []
        lengths: list[int] = []
        position, size = 0, len(data)
        unpack = _HEAD.unpack_from
        missing, wrong = 0, ""
        while position + _HEAD.size <= size:
            length, _ = unpack(data, position)
            begin = position + _HEAD.size
            if begin + length + _TAIL > size:
                # Before so much is read, it is made sure that it is a length.
                if not self._head_fits(data[position:begin]):
                    wrong = "the checksum of its length does not fit: it is damaged"
                elif length > _LONGEST:
                    wrong = f"it is {length} bytes long"
                missing = begin + length + _TAIL - size
                break
            starts.append(begin)
            lengths.append(length)
            position = begin + length + _TAIL
        return np.array(starts, np.int64), np.array(lengths, np.int64), missing, wrong

    def _check(self, data: bytes, starts: Any, lengths: Any, row: int, at: int) -> None:
        if not len(starts):
            return
        heads = starts - _HEAD.size
        for what, begins, sizes in (
            ("its length", heads, np.full(len(starts), 8)),
            ("its bytes", starts, lengths),
        ):
            found = masked(crc32c_many(data, begins, sizes))
            places = (begins + sizes)[:, None] + np.arange(4)
            told = np.frombuffer(data, np.uint8)[places].view("<u4").ravel()
            wrong = np.flatnonzero(found != told)
            if len(wrong):
                index = int(wrong[0])
                raise self._bad(
                    row + index, at + int(heads[index]), f"the checksum of {what} does not fit: it is damaged"
                )

    @staticmethod
    def _head_fits(head: bytes) -> bool:
        return len(head) == _HEAD.size and _checksum(head[:8]) == head[8:]

    def _batch(self, data: bytes, starts: Any, lengths: Any) -> Any:
        pyarrow = require_pyarrow()
        offsets = np.zeros(len(starts) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        joined = b"".join(
            [
                data[start : start + length]
                for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            ]
        )
        array = pyarrow.Array.from_buffers(
            pyarrow.binary(), len(starts), [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(joined)]
        )
        return pyarrow.RecordBatch.from_arrays([array], schema=self.schema)

    def _bad(self, row: int, byte: int, what: str) -> InputError:
        return InputError(f"the record at byte {byte} cannot be read: {what}", url=self.source.url, row=row)
