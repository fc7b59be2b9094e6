"""The files that a job reads: which there are, in what order, and their rows, piece by piece.

    inputs = open_inputs("s3://bucket/rows/", storage_options={"anon": True})
    for piece in inputs.pieces(start=cursor, columns=["pixels"]):
        send(piece.batch)               # a pyarrow.RecordBatch
        cursor = piece.end              # from here reading goes on, in this process or in another

Reading is strictly linear: files in a fixed order, the rows of each in theirs. Memory is bounded by the size
of a piece (and of what a format stores as one: a record batch of an Arrow file), whatever the size of a file.
A file that is not the one that was listed raises `InputChanged` before a row of it that was read since is
handed out.

What the formats are is known to `aioserving.jobs.readers`; what the columns mean to a model to
`aioserving.jobs.columns`; when and how often to read to the job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from aioserving.jobs.errors import InputError
from aioserving.jobs.readers.base import Chunk, FileSource, Reader, ReadOptions, failure, require_pyarrow

__all__ = ["FORMATS", "Cursor", "InputFile", "Inputs", "Piece", "Source", "open_inputs"]

#: Where rows are: a path or fsspec URL of a file, a folder or a pattern (``*``, ``?``, ``**``), or several.
Source: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

#: Formats by the endings of files' names.
_ENDINGS: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npy": "npy",
    ".npz": "npz",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
}
#: Endings that say how a file is compressed, and the formats that may be.
_COMPRESSED: Final = (".gz", ".bz2", ".zst")
_COMPRESSIBLE: Final = ("csv", "jsonl", "tfrecord")

#: The formats that can be read.
FORMATS: Final = ("parquet", "arrow", "csv", "jsonl", "npy", "npz", "tfrecord")

#: Files that are opened at a time to see what they are.
_OPENERS: Final = 8

#: What Hive calls a partition of rows without a value.
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"

#: The key of a field's metadata that says it comes from the names of folders.
PARTITION_KEY: Final = b"aioserving.partition"


@dataclass(frozen=True)
class InputFile:
    """One file of the inputs, as it was when they were opened."""

    #: Absolute path of a local file, else its URL.
    url: str
    #: One of `FORMATS`.
    format: str
    #: Bytes.
    size: int
    #: What tells this content from any other, as well as the filesystem can: an etag, a checksum, a time.
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"url": self.url, "format": self.format, "size": self.size, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class Cursor:
    """A place between two rows of the inputs, from which they can be read on."""

    #: Number of the file in `Inputs.files`.
    file: int = 0
    #: Rows of that file that lie before.
    row: int = 0
    #: Where the file's reader finds that row; it means something to the format alone.
    offset: int | None = None

    def to_json(self) -> dict[str, int | None]:
        """As JSON can hold it."""
        return {"file": self.file, "row": self.row, "offset": self.offset}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cursor:
        """The cursor that `to_json` made `value` of.

        Raises:
            ValueError: it made none of the kind.
        """
        try:
            file, row, offset = value["file"], value["row"], value["offset"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a cursor: {value!r}") from error
        for number in (file, row, 0 if offset is None else offset):
            if type(number) is not int or number < 0:
                raise ValueError(f"not a cursor: {value!r}")
        return cls(file, row, offset)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of one file that follow one another."""

    #: A `pyarrow.RecordBatch`, of the columns asked for.
    batch: Any
    #: The place just before its first row.
    start: Cursor
    #: The place just behind its last row.
    end: Cursor
    _offset_after: Callable[[int], int | None] = field(repr=False)

    def __repr__(self) -> str:
        return f"<Piece of file {self.start.file}: rows {self.start.row} to {self.end.row}>"

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def cursor_at(self, rows: int) -> Cursor:
        """The place just behind the first `rows` rows of this piece."""
        if not 0 <= rows <= len(self):
            raise ValueError(f"a piece of {len(self)} rows has no place behind its row {rows}")
        if rows == 0:
            return self.start
        if rows == len(self):
            return self.end
        return Cursor(self.start.file, self.start.row + rows, self._offset_after(rows))


def open_inputs(
    source: Source,
    *,
    format: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    partitioning: Literal["hive"] | None = "hive",
    types: Mapping[str, Any] | None = None,
    delimiter: str | None = None,
    quote: str = '"',
    column_names: Sequence[str] | None = None,
    null_values: Sequence[str] = ("",),
    column: str | None = None,
    piece_bytes: int = 16 << 20,
) -> Inputs:
    """The rows of some files.

    Files are read in the natural order of their paths (``part-2`` before ``part-10``); of several sources, in
    the order in which they are given. In folders and below, files whose path has a part that begins with
    ``_`` or ``.`` are left out, as those are which have none of the endings known (without any ending they
    are read if `format` is given). All files have one format,
    and one schema: columns may stand in another order, and have another type if no value is lost by its
    being made the first file's.

    Args:
        source: path or fsspec URL of a file, a folder or a pattern (``*``, ``?``, ``**``); or several.
        format: ``"parquet"``, ``"arrow"`` (Feather, and IPC files or streams), ``"csv"``, ``"jsonl"``,
            ``"npy"``, ``"npz"`` or ``"tfrecord"``; None: what the files' names end in.
        storage_options: settings of the filesystem, such as credentials.
        partitioning: ``"hive"`` makes columns of folders named ``key=value``, int64 if all values are
            integers, else strings; a column of that name in the files goes before. None leaves names alone.
        types: types of columns by name, as pyarrow types or their names (``"float32"``): for columns whose
            type is a guess (CSV, JSON lines), or that are wanted as another.
        delimiter: CSV: what stands between values; None: a tab in files ``*.tsv``, else a comma.
        quote: CSV: what stands around values that have delimiters or line breaks; ``""`` for nothing.
        column_names: CSV: names of the columns of files without a header line.
        null_values: CSV: what stands for null.
        column: ``.npy``, TFRecord: name of the one column; by default ``"values"`` and ``"example"``.
        piece_bytes: most bytes of a piece, about.

    Raises:
        InputError: there is no such file, or one that cannot be read, or they do not fit together.
        ImportError: `pyarrow` or `fsspec`, or what the filesystem needs, is not installed.
    """
    require_pyarrow()
    if partitioning not in ("hive", None):
        raise ValueError(f"partitioning is 'hive' or None, not {partitioning!r}")
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")
    listed = _list_sources(source, format, storage_options or {}, partitioning == "hive")
    found = format or _only_format(listed)
    if delimiter is None:
        delimiter = "\t" if re.search(r"\.tsv(\.\w+)?$", listed[0].source.path.lower()) else ","
    options = ReadOptions(
        types={name: _as_type(kind) for name, kind in (types or {}).items()},
        delimiter=delimiter,
        quote=quote,
        column_names=tuple(column_names) if column_names is not None else None,
        null_values=tuple(null_values),
        column=column,
        piece_bytes=piece_bytes,
    )
    return Inputs(listed, found, options)


# -- listing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listed:
    source: FileSource
    #: Of its path below the folder that was asked for: the folders' keys and values.
    partition: Mapping[str, str | None]


def _list_sources(
    source: Source, format: str | None, storage_options: Mapping[str, Any], hive: bool
) -> list[_Listed]:
    places = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    listed: list[_Listed] = []
    for place in places:
        listed += _list_source(os.fspath(place), format, storage_options, hive)
    seen: set[str] = set()
    for item in listed:
        if item.source.url in seen:
            raise InputError("the file is named twice: its rows would be scored twice", url=item.source.url)
        seen.add(item.source.url)
    if not listed:
        raise InputError("no files were named")
    return listed


def _list_source(
    place: str, format: str | None, storage_options: Mapping[str, Any], hive: bool
) -> list[_Listed]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(
            "jobs over files need pyarrow and fsspec: pip install 'aioserving[batch]'"
        ) from error
    try:
        fs, root = url_to_fs(place, **storage_options)
    except (ImportError, ValueError) as error:
        kind = ImportError if isinstance(error, ImportError) else InputError
        raise kind(f"{place}: {error}") from error
    try:
        infos = _expand(fs, root, format)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("there is no such file or folder", url=place) from error
    except Exception as error:
        raise InputError(f"it cannot be listed: {error or type(error).__name__}", url=place) from error
    if not infos:
        raise InputError(_nothing_found(root, format), url=place)
    listed = []
    for path, info in infos:
        local = "file" in (fs.protocol if isinstance(fs.protocol, (tuple, list)) else (fs.protocol,))
        url = path if local else fs.unstrip_protocol(path)
        listed.append(_Listed(FileSource(fs, path, url, info), _partition(root, path) if hive else {}))
    return listed


def _expand(fs: Any, root: str, format: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Paths below `root` in natural order, each with what the filesystem says of it."""
    if any(character in root for character in "*?[") and not fs.exists(root):
        matched: dict[str, Mapping[str, Any]] = {}
        for place, told in fs.glob(root, detail=True).items():
            if told["type"] == "file":
                matched[place] = told
            elif told["type"] == "directory":
                below = fs.find(place, detail=True)
                matched |= {path: told for path, told in below.items() if _is_wanted(place, path, format)}
        return _sorted(matched)
    info = fs.info(root)
    if info["type"] == "file":
        return [(root, info)]
    found = fs.find(root, detail=True)
    return _sorted({path: info for path, info in found.items() if _is_wanted(root, path, format)})


def _sorted(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(found.items(), key=lambda item: _natural(item[0]))


def _natural(path: str) -> list[tuple[int, int, str]]:
    """What paths are sorted by: numbers as numbers, folder by folder; by their text where that is equal."""
    parts: list[tuple[int, int, str]] = []
    for segment in path.split("/"):
        for text in re.split(r"(\d+)", segment):
            if text:
                parts.append((1, int(text), text) if text.isdecimal() else (2, 0, text))
        parts.append((0, 0, ""))  # a folder's end goes before whatever a longer name has there
    return parts


def _is_wanted(root: str, path: str, format: str | None) -> bool:
    below = path[len(root) :].strip("/")
    if any(part.startswith(("_", ".")) for part in below.split("/") if "=" not in part):
        return False
    found = _format_of(path)
    if found is None:  # as engines name the parts of text
        return format is not None and "." not in path.rpartition("/")[2]
    return format in (found, None)


def _format_of(path: str) -> str | None:
    name = path.rpartition("/")[2].lower()
    bare = next((name.removesuffix(ending) for ending in _COMPRESSED if name.endswith(ending)), name)
    found = next((kind for ending, kind in _ENDINGS.items() if bare.endswith(ending)), None)
    return found if bare is name or found in _COMPRESSIBLE else None


def _nothing_found(root: str, format: str | None) -> str:
    endings = ", ".join(ending for ending, kind in _ENDINGS.items() if format in (kind, None))
    return f"no files found there whose names end in {endings}"


def _only_format(listed: Sequence[_Listed]) -> str:
    formats = {item.source.url: _format_of(item.source.path) for item in listed}
    for url, kind in formats.items():
        if kind is None:
            raise InputError(
                f"its name does not tell its format: say format= one of {', '.join(FORMATS)}", url=url
            )
    first = next(iter(formats.values()))
    for url, kind in formats.items():
        if kind != first:
            raise InputError(
                f"it is {kind}, {listed[0].source.url} is {first}: say which with format=, or a pattern",
                url=url,
            )
    assert first is not None
    return first


def _partition(root: str, path: str) -> dict[str, str | None]:
    folders = path.split("/")[:-1]
    # Of the folder that was asked for itself, too: it may be one partition of several.
    found: dict[str, str | None] = {}
    for folder in folders:
        key, equals, value = folder.partition("=")
        if equals and key:
            found[urllib.parse.unquote(key)] = None if value == _NO_VALUE else urllib.parse.unquote(value)
    return found


def _as_type(kind: Any) -> Any:
    pyarrow = require_pyarrow()
    if isinstance(kind, str):
        try:
            return pyarrow.type_for_alias(kind)
        except ValueError as error:
            raise ValueError(f"pyarrow knows no type {kind!r}") from error
    if not isinstance(kind, pyarrow.DataType):
        raise TypeError(f"a type is a pyarrow.DataType or its name, not {type(kind).__name__}")
    return kind


# -- reading ------------------------------------------------------------------------------------------


def _opener(format: str) -> Callable[[FileSource, ReadOptions], Reader]:
    """What looks at a file of `format`."""
    from aioserving.jobs.readers import arrays, ipc, parquet, text, tfrecord

    return {
        "parquet": parquet.open_parquet,
        "arrow": ipc.open_arrow,
        "csv": text.open_csv,
        "jsonl": text.open_json_lines,
        "npy": arrays.open_npy,
        "npz": arrays.open_npz,
        "tfrecord": tfrecord.open_tfrecord,
    }[format]


class Inputs:
    """The rows of some files, in a fixed order; made by `open_inputs`.

    It keeps no file open. Several threads may read from it, each on its own.

    Attributes:
        files: the files, in reading order.
        format: their format.
        schema: a `pyarrow.Schema`: the columns of the first file, with types as asked for, and then those of
            the names of folders.
        rows: how many there are, or None if only reading tells (CSV, JSON lines, TFRecord, Arrow streams).
    """

    def __init__(self, listed: Sequence[_Listed], format: str, options: ReadOptions) -> None:
        pyarrow = require_pyarrow()
        self.format = format
        self.files = tuple(
            InputFile(item.source.url, format, item.source.size, item.source.fingerprint) for item in listed
        )
        self._listed = tuple(listed)
        self._options = options
        self._open = _opener(format)
        first, reader = 0, self._look(0)
        while not len(reader.schema) and reader.rows == 0 and first + 1 < len(listed):
            first += 1  # a file of JSON lines without any has no columns
            reader = self._look(first)
        self._own = _with_types(reader.schema, options.types, self.files[first].url)
        self._options = dataclasses.replace(options, expected={field.name: field.type for field in self._own})
        self._reference = self.files[first].url
        self._partitions = _partition_fields(listed, set(self._own.names))
        self.schema = pyarrow.schema([*self._own, *self._partitions], metadata=self._own.metadata)
        # Every file is looked at now: one that does not fit is better found before a night's work than in it.
        if len(listed) == 1:
            counts = [reader.rows]
        else:
            with ThreadPoolExecutor(_OPENERS, thread_name_prefix="aioserving-inputs") as pool:
                counts = list(pool.map(self._count, range(len(listed))))
        self.rows: int | None = None if None in counts else sum(rows or 0 for rows in counts)

    def __repr__(self) -> str:
        rows = "an unknown number of" if self.rows is None else self.rows
        return f"<Inputs: {rows} rows in {len(self.files)} {self.format} files, columns {self.schema.names}>"

    def fingerprint(self) -> str:
        """A digest of the files, their order and how they are read: the same for the same rows.

        It also changes with what does not change a row: with a file's place, or its time where its filesystem
        has nothing better to tell contents apart.
        """
        told = [[file.to_json() for file in self.files], self._options.told(), self._partitions_told()]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _partitions_told(self) -> list[list[str]]:
        return [[field.name, str(field.type)] for field in self._partitions]

    def pieces(
        self,
        *,
        start: Cursor | None = None,
        columns: Sequence[str] | None = None,
        piece_rows: int = 8192,
    ) -> Iterator[Piece]:
        """The rows from a place on, in order, in pieces that each lie in one file.

        A blocking generator; closing it closes the file. Where pieces are cut is of no meaning and may depend
        on `start`; the rows and their order do not.

        Args:
            start: where to begin; None for the first row.
            columns: names of the columns wanted, in their order; None for all.
            piece_rows: most rows of a piece.

        Raises:
            InputChanged: a file is not the one that was listed.
            InputError: a file is broken or cut off; or there is no such column or no such place.
        """
        cursor = start or Cursor()
        names = list(self.schema.names if columns is None else columns)
        for name in names:
            if self.schema.get_field_index(name) < 0:
                raise InputError(f"there is no column {name!r}; there are {', '.join(self.schema.names)}")
        if cursor.file > len(self.files) or (cursor.file == len(self.files) and cursor.row):
            raise InputError(f"there is no place {cursor} in {len(self.files)} files")
        if piece_rows < 1:
            raise ValueError(f"piece_rows must be at least 1, got {piece_rows}")
        return self._pieces(cursor, names, piece_rows)

    def _pieces(self, cursor: Cursor, names: list[str], piece_rows: int) -> Iterator[Piece]:
        for number in range(cursor.file, len(self.files)):
            if number > cursor.file:
                cursor = Cursor(number)
            yield from self._file_pieces(cursor, names, piece_rows)

    def _file_pieces(self, cursor: Cursor, names: list[str], piece_rows: int) -> Iterator[Piece]:
        number, at = cursor.file, cursor.row
        source = self._listed[number].source
        chunks: Iterator[Chunk] = iter(())
        try:
            reader = self._look(number)
            if reader.rows is not None and cursor.row > reader.rows:
                raise InputError(
                    f"the file has {reader.rows} rows, there is no row {cursor.row}", url=source.url
                )
            own = [name for name in names if reader.schema.get_field_index(name) >= 0]
            fit = self._fitting(number, reader, names)
            chunks = reader.chunks(cursor.row, cursor.offset, own, piece_rows)
            while True:
                chunk = next(chunks, None)
                source.check(force=chunk is None)
                if chunk is None:
                    return
                batch = fit(chunk.batch, at)
                rows = batch.num_rows
                end = Cursor(number, at + rows, chunk.offset_after(rows))
                yield Piece(batch, cursor, end, chunk.offset_after)
                cursor, at = end, at + rows
        except (InputError, GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            raise failure(error, source, at) from error
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    # -- one file -------------------------------------------------------------------------------------

    def _look(self, number: int) -> Reader:
        return self._open(self._listed[number].source, self._options)

    def _count(self, number: int) -> int | None:
        """Rows of a file that fits the others, as far as its schema tells."""
        reader = self._look(number)
        self._fitting(number, reader, self.schema.names)
        return reader.rows

    def _fitting(self, number: int, reader: Reader, names: Sequence[str]) -> Callable[[Any, int], Any]:
        """What makes a file's batches ones of `schema`, given the number of their first row."""
        pyarrow = require_pyarrow()
        url = self.files[number].url
        partition = self._listed[number].partition
        steps: list[tuple[str, Any, Any]] = []
        for name in names:
            wanted = self.schema.field(name)
            index = reader.schema.get_field_index(name)
            if index < 0 and wanted.metadata and PARTITION_KEY in wanted.metadata:
                value = partition.get(name)
                text = pyarrow.scalar(value, pyarrow.string())
                steps.append((name, wanted.type, text.cast(wanted.type)))
                continue
            if index < 0:
                if reader.schema.names.count(name) > 1:
                    raise InputError(f"it has two columns {name!r}", url=url)
                raise InputError(
                    f"it has no column {name!r}, which {self._reference} has; its columns are "
                    f"{', '.join(reader.schema.names)}",
                    url=url,
                )
            own = reader.schema.field(index).type
            if own != wanted.type and not _castable(own, wanted.type):
                raise InputError(
                    f"its column {name!r} is {own}, that of {self._reference} is {wanted.type}", url=url
                )
            steps.append((name, wanted.type, None))
        schema = pyarrow.schema([self.schema.field(name) for name in names])

        def fit(batch: Any, row: int) -> Any:
            arrays = []
            for name, kind, constant in steps:
                if constant is not None:
                    arrays.append(pyarrow.repeat(constant, batch.num_rows))
                    continue
                array = batch.column(name)
                if array.type != kind:
                    array = _cast(array, kind, name, url, row)
                arrays.append(array)
            if not arrays:
                raise InputError("no columns were asked for")
            return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

        return fit


def _with_types(schema: Any, types: Mapping[str, Any], url: str) -> Any:
    """`schema` with the types that were asked for."""
    for name, kind in types.items():
        index = schema.get_field_index(name)
        if index < 0:
            raise InputError(
                f"types= names a column {name!r}; there are {', '.join(schema.names) or 'none'}", url=url
            )
        field = schema.field(index)
        if field.type != kind and not _castable(field.type, kind):
            raise InputError(f"its column {name!r} is {field.type}, which cannot be made {kind}", url=url)
        schema = schema.set(index, field.with_type(kind))
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InputError(f"it has two columns {name!r}", url=url)
    return schema


def _castable(source: Any, target: Any) -> bool:
    """Whether there is a cast at all; whether it keeps the values shows row by row."""
    pyarrow = require_pyarrow()
    try:
        pyarrow.array([], source).cast(target)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, pyarrow.ArrowTypeError):
        return False
    return True


def _cast(array: Any, kind: Any, name: str, url: str, row: int) -> Any:
    pyarrow = require_pyarrow()
    try:
        return array.cast(kind)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        low, high = 0, len(array)  # the first row that fails: all before `low` are fine, up to `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            try:
                array.slice(low, middle - low).cast(kind)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
                high = middle
            else:
                low = middle
        raise InputError(
            f"column {name!r} holds {array[low].as_py()!r}, which is no {kind}: {error}",
            url=url,
            row=row + low,
        ) from error


def _partition_fields(listed: Sequence[_Listed], own: set[str]) -> list[Any]:
    """Columns that the names of folders make, in the order of the first file's folders."""
    pyarrow = require_pyarrow()
    names = list(dict.fromkeys(name for item in listed for name in item.partition))
    fields = []
    for name in names:
        if name in own:
            continue
        values = [item.partition.get(name) for item in listed]
        integers = all(value is None or re.fullmatch(r"-?\d{1,18}", value) for value in values)
        kind = (
            pyarrow.int64() if integers and any(value is not None for value in values) else pyarrow.string()
        )
        fields.append(pyarrow.field(name, kind, metadata={PARTITION_KEY: b"hive"}))
    return fields
