"""numpy's files: ``.npy`` with one array, ``.npz`` with several, rows along their first axis.

Rows are read where they lie, a piece at a time. Files are not mapped into memory: one that is cut off while
it is read ends in an error here, where a mapping would end the process, and pages that were read would count
as the process's memory. Members of a compressed ``.npz`` have to be decompressed from their beginning to go
on in the middle.

Arrays with inner dimensions are columns of pyarrow's type ``fixed_shape_tensor``; fields of structured arrays
are columns of their own.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np

from aioserving._types import Array
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

__all__ = ["open_npy", "open_npz"]

#: Name of the one column of a ``.npy`` file, where none is said.
_COLUMN: Final = "values"
#: What precedes the name of a member in a zip file, and where the sizes of what follows stand in it.
_LOCAL_HEADER: Final = 30
_LOCAL_SIZES: Final = struct.Struct("<HH")


def open_npy(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of a ``.npy`` file; its header is read.

    Raises:
        InputError: it is none, or cut off, or of a dtype that Arrow has no counterpart for.
    """
    file = source.open()
    try:
        member = _read_header(file, options.column or _COLUMN, source)
        if member.begin + member.bytes > source.size:
            raise InputError(
                f"it is cut off: {source.size} of {member.begin + member.bytes} bytes are there",
                url=source.url,
            )
        return _NumpyReader(source, [member], options, zipped=False)
    except InputError:
        raise
    except Exception as error:
        raise failure(error, source, None) from error
    finally:
        file.close()


def open_npz(source: FileSource, options: ReadOptions) -> Reader:
    """A reader of a ``.npz`` file; its directory and its members' headers are read.

    Raises:
        InputError: it is none, or its arrays differ in length, or have a dtype that Arrow does not know.
    """
    file = source.open()
    try:
        members = []
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                with archive.open(info) as inner:
                    found = _read_header(inner, info.filename.removesuffix(".npy"), source)
                begin: int | None = None
                if info.compress_type == zipfile.ZIP_STORED:
                    file.seek(info.header_offset + _LOCAL_HEADER - _LOCAL_SIZES.size)
                    name, extra = _LOCAL_SIZES.unpack(file.read(_LOCAL_SIZES.size))
                    begin = info.header_offset + _LOCAL_HEADER + name + extra + found.begin
                if found.begin + found.bytes > info.file_size:
                    raise InputError(f"its array {found.name!r} is cut off", url=source.url)
                members.append(
                    _Member(
                        found.name,
                        found.dtype,
                        found.shape,
                        found.fortran,
                        found.begin if begin is None else begin,
                        info.filename if begin is None else None,
                    )
                )
        lengths = {member.name: member.shape[0] for member in members}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
            raise InputError(f"its arrays have different numbers of rows: {told}", url=source.url)
        if not members:
            raise InputError("it has no arrays", url=source.url)
        return _NumpyReader(source, members, options, zipped=True)
    except InputError:
        raise
    except Exception as error:
        raise failure(error, source, None) from error
    finally:
        file.close()


@dataclass(frozen=True)
class _Member:
    """One array in a file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    #: Whether the first axis is the one that changes fastest.
    fortran: bool
    #: Byte at which its values begin: in the file, or in what is decompressed.
    begin: int
    #: Name of the compressed member, or None.
    compressed: str | None = None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        return self.row_bytes * self.shape[0]


def _read_header(file: IO[bytes], name: str, source: FileSource) -> _Member:
    where = f"its array {name!r}" if source.path.lower().endswith(".npz") else "it"
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise InputError(f"{where} is of version {version} of numpy's format", url=source.url)
    except ValueError as error:
        raise InputError(f"{where} is no array in numpy's format: {error}", url=source.url) from error
    if not shape:
        raise InputError(f"{where} is a single value: rows are along the first axis", url=source.url)
    return _Member(name, dtype, tuple(shape), bool(fortran) and len(shape) > 1, file.tell())


class _NumpyReader(Reader):
    def __init__(
        self, source: FileSource, members: list[_Member], options: ReadOptions, *, zipped: bool
    ) -> None:
        pyarrow = require_pyarrow()
        self._members = members
        self._options = options
        self._zipped = zipped
        fields = []
        # By column: the member, and the field of it or None.
        self._columns: dict[str, tuple[int, str | None]] = {}
        for index, member in enumerate(members):
            parts: Sequence[tuple[str | None, np.dtype[Any]]] = [(None, member.dtype)]
            if member.dtype.names is not None:
                parts = [(name, member.dtype[name]) for name in member.dtype.names]
            for part, dtype in parts:
                name = member.name if part is None else part
                if name in self._columns:
                    raise InputError(f"it has two columns {name!r}", url=source.url)
                base, inner = dtype.subdtype or (dtype, ())
                kind = _arrow_type(base, (*member.shape[1:], *inner), name, source)
                fields.append(pyarrow.field(name, kind))
                self._columns[name] = index, part
        super().__init__(source, pyarrow.schema(fields), members[0].shape[0])

    def chunks(
        self, row: int, offset: int | None, columns: Sequence[str], piece_rows: int
    ) -> Iterator[Chunk]:
        pyarrow = require_pyarrow()
        assert self.rows is not None
        wanted = list(columns) or self.schema.names[:1]
        needed = list(dict.fromkeys(self._columns[name][0] for name in wanted))
        each = sum(self._members[index].row_bytes for index in needed)
        size = max(1, min(piece_rows, self._options.piece_bytes // max(each, 1)))
        schema = pyarrow.schema([self.schema.field(name) for name in wanted])
        file = self.source.open()
        zipped, archive = None, None
        readers: dict[int, Callable[[int, int], Array]] = {}
        inners: list[IO[bytes]] = []
        try:
            for index in needed:
                member = self._members[index]
                inner: IO[bytes] = file
                if member.compressed is not None:
                    if archive is None:
                        zipped = self.source.open()
                        archive = zipfile.ZipFile(zipped)
                    inner = archive.open(member.compressed)
                    inners.append(inner)
                readers[index] = self._reader(inner, member)
            for start in range(row, self.rows, size):
                stop = min(self.rows, start + size)
                parts = {index: read(start, stop) for index, read in readers.items()}
                arrays = []
                for name in wanted:
                    index, part = self._columns[name]
                    values = parts[index] if part is None else parts[index][part]
                    arrays.append(_to_arrow(values, self.schema.field(name).type))
                yield Chunk(pyarrow.RecordBatch.from_arrays(arrays, schema=schema), start, no_offset)
        finally:
            for inner in inners:
                inner.close()
            if archive is not None:
                archive.close()
            if zipped is not None:
                zipped.close()
            file.close()

    def _reader(self, file: IO[bytes], member: _Member) -> Callable[[int, int], Array]:
        """What reads the rows between two."""
        if not member.fortran:

            def read(start: int, stop: int) -> Array:
                array = np.empty((stop - start, *member.shape[1:]), member.dtype)
                _seek(file, member.begin + start * member.row_bytes)
                self._fill(file, array, start)
                return array

            return read

        def read_columns(start: int, stop: int) -> Array:
            # Values of one place of all rows lie together: a read for each place.
            inner = math.prod(member.shape[1:])
            array = np.empty((inner, stop - start), member.dtype)
            for place in range(inner):
                _seek(file, member.begin + (place * member.shape[0] + start) * member.dtype.itemsize)
                self._fill(file, array[place], start)
            rows: Array = array.T.reshape((stop - start, *member.shape[1:]), order="F")
            return rows

        return read_columns

    def _fill(self, file: IO[bytes], array: Array, row: int) -> None:
        view = memoryview(array.reshape(-1).view(np.uint8).data)
        done = 0
        while done < len(view):
            got = file.readinto(view[done:])  # type: ignore[attr-defined]  # of files for bytes
            if not got:
                raise InputError("it is cut off", url=self.source.url, row=row)
            done += got


def _seek(file: IO[bytes], place: int) -> None:
    if file.tell() != place:
        file.seek(place)


def _arrow_type(dtype: np.dtype[Any], inner: tuple[int, ...], name: str, source: FileSource) -> Any:
    pyarrow = require_pyarrow()
    if dtype.kind == "O":
        raise InputError(
            f"column {name!r} holds Python objects, which only running their code could read", url=source.url
        )
    try:
        if dtype.kind == "S":
            kind = pyarrow.binary()
        elif dtype.kind == "U":
            kind = pyarrow.string()
        else:
            kind = pyarrow.from_numpy_dtype(dtype.newbyteorder("="))
    except (pyarrow.ArrowNotImplementedError, TypeError) as error:
        raise InputError(
            f"column {name!r} is {dtype}, which Arrow has no type for", url=source.url
        ) from error
    if not inner:
        return kind
    if 0 in inner:
        raise InputError(f"column {name!r} has rows of shape {inner}, without a value", url=source.url)
    if dtype.kind in "SUMm":
        for size in reversed(inner):
            kind = pyarrow.list_(kind, size)
        return kind
    return pyarrow.fixed_shape_tensor(kind, list(inner))


def _to_arrow(array: Array, kind: Any) -> Any:
    pyarrow = require_pyarrow()
    inner = array.shape[1:]
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.dtype.isnative:
        flat = flat.astype(flat.dtype.newbyteorder("="))
    value = kind
    for _ in inner if not hasattr(kind, "storage_type") else ():
        value = value.value_type
    value = getattr(kind, "value_type", value) if hasattr(kind, "storage_type") else value
    found = pyarrow.array(flat.tolist() if flat.dtype.kind in "SU" else flat, type=value)
    if hasattr(kind, "storage_type"):
        storage = pyarrow.FixedSizeListArray.from_arrays(found, math.prod(inner))
        return pyarrow.ExtensionArray.from_storage(kind, storage)
    for size in reversed(inner):
        found = pyarrow.FixedSizeListArray.from_arrays(found, size)
    return found
