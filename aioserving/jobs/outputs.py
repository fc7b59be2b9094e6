"""What a model says of rows, as columns in files: Parquet, JSON lines or npy, beside columns of the input.

    OutputColumns   the schema of the output, and record batches of it from what calls gave
    PartWriter      writes the rows of one part, a batch after the other, in bounded memory
    FORMATS         the writers by name

One row of the output is one row of the input. The columns are those that were kept, then the row's number if
that was asked for, then one for each output of the model:

| output of one row | column |
| --- | --- |
| a number or bool | of the same type; bfloat16 and float8 become float32, int4 becomes int8 |
| a string | ``binary``, or ``utf8`` if that was asked for |
| shape (3,) | fixed-size list of 3 |
| shape (2, 3) | fixed-size list of 2 fixed-size lists of 3 |
| a dimension that the signature leaves open | list, of any size |

so the shape can be had back: ``numpy.stack(column.to_numpy(zero_copy_only=False))``, or without a copy by
flattening the column's storage. In JSON lines these are numbers, strings and lists; not-a-number and the
infinities, which JSON does not have, are null; bytes that are no UTF-8 are ``{"b64": "..."}``, as in
TensorFlow Serving's REST interface. In npy every column is a file of its own, ``part-00000.scores.npy``;
strings are of fixed width there, that of the longest in the file.

Where files go and when they count is left to `aioserving.jobs.storage` and `aioserving.jobs.manifest`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final, Literal, TypeAlias
from urllib.parse import quote

import numpy as np

from aioserving._types import Array
from aioserving.dtypes import DataType
from aioserving.jobs.errors import JobError, OutputError
from aioserving.signature import TensorSpec

__all__ = ["FORMATS", "OutputColumns", "OutputFormat", "PartWriter", "Strings"]

#: How output is written.
OutputFormat: TypeAlias = Literal["parquet", "jsonl", "npy"]

#: What strings become.
Strings: TypeAlias = Literal["binary", "utf8"]

#: Bytes of columns in memory, about, that are written as one row group of a Parquet file.
_ROW_GROUP: Final = 8 << 20
#: And rows, at most.
_ROW_GROUP_ROWS: Final = 1 << 17
#: Bytes that the header of a .npy file takes, whatever is in it: its number of rows is known at the end only.
_NPY_HEADER: Final = 192

#: Types that Arrow lacks, and what holds all their values.
_WIDER: Final[Mapping[DataType, np.dtype[Any]]] = {
    DataType.DT_BFLOAT16: np.dtype(np.float32),
    DataType.DT_FLOAT8_E5M2: np.dtype(np.float32),
    DataType.DT_FLOAT8_E4M3FN: np.dtype(np.float32),
    DataType.DT_INT4: np.dtype(np.int8),
    DataType.DT_UINT4: np.dtype(np.uint8),
}


class OutputColumns:
    """The columns of a job's output.

    Args:
        specs: the outputs, as the signature describes them; of unknown rank the first batch decides.
        kept: a `pyarrow.Schema` of the input's columns that come along.
        strings: what strings become.
        row_number: name of a column with the row's number in the input, or None.
        metadata: what is written into the schema, for who finds the file.

    Raises:
        JobError: two columns have the same name, or an output's type has no counterpart in Arrow.
    """

    def __init__(
        self,
        specs: Iterable[TensorSpec],
        kept: Any,
        *,
        strings: Strings = "binary",
        row_number: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        import pyarrow as pa

        self._kept = kept
        self._strings = strings
        self._row_number = row_number
        self._metadata = dict(metadata or {})
        self.specs = tuple(specs)
        #: Types by output; None until the first batch tells the rank.
        self._types: dict[str, Any] = {
            spec.name: None if spec.shape is None else self._type_of(spec, spec.shape[1:])
            for spec in self.specs
        }
        names = [*kept.names, *([row_number] if row_number else ()), *self._types]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise JobError(
                f"two columns of the output would be named {', '.join(map(repr, twice))}: one that is kept "
                "and an output of the model; keep it under another name, as keep={'new name': 'column'}"
            )
        self._pa = pa
        self.schema: Any = None
        self._settle()

    def __repr__(self) -> str:
        return f"<OutputColumns {', '.join(self.schema.names if self.schema is not None else self._types)}>"

    def _settle(self) -> None:
        """Make the schema, if all types are known."""
        if any(kind is None for kind in self._types.values()):
            return
        pa = self._pa
        fields = list(self._kept)
        if self._row_number:
            fields.append(pa.field(self._row_number, pa.int64(), nullable=False))
        fields += [pa.field(name, kind) for name, kind in self._types.items()]
        self.schema = pa.schema(fields, metadata=self._metadata)

    def _type_of(self, spec: TensorSpec, inner: Sequence[int]) -> Any:
        """The Arrow type of one row of an output."""
        import pyarrow as pa

        kind: Any
        if spec.data_type == DataType.DT_STRING:
            kind = pa.utf8() if self._strings == "utf8" else pa.binary()
        else:
            dtype = _WIDER.get(spec.data_type) or spec.dtype
            if dtype.kind not in "biuf":
                raise JobError(
                    f"output {spec.name!r} is {spec.type_name}, which has no counterpart in files; leave it "
                    "out with output_filter"
                )
            kind = pa.from_numpy_dtype(dtype)
        for size in reversed(inner):
            # Lists of no elements are not told apart in files by their size.
            kind = pa.list_(kind, size) if size > 0 else pa.list_(kind)
        return kind

    def check(self, outputs: Mapping[str, Array], rows: int) -> None:
        """See that what came has a row for each row that was sent.

        Raises:
            JobError: an output is missing, or has another number of rows.
        """
        for spec in self.specs:
            array = outputs.get(spec.name)
            if array is None:
                raise JobError(
                    f"the answer has no output {spec.name!r}; it has {', '.join(outputs) or 'none'}"
                )
            if not array.ndim or len(array) != rows:
                raise JobError(
                    f"output {spec.name!r} has the shape {array.shape} for {rows} rows that were sent: it is "
                    "not one result for each row; leave it out with output_filter"
                )

    def batch(self, kept: Any, numbers: Array | None, parts: Sequence[Mapping[str, Array]]) -> Any:
        """A record batch of rows that follow one another.

        Args:
            kept: a `pyarrow.RecordBatch` of the columns that were kept; None if there are none.
            numbers: the rows' numbers in the input; needed if there is such a column.
            parts: what calls gave, in order; together as many rows as `kept`.

        Returns:
            A `pyarrow.RecordBatch`; numeric columns of a single part are views of its arrays.

        Raises:
            JobError: an output does not fit the signature's dtype or shape; or strings are no UTF-8.
        """
        pa = self._pa
        columns = list(kept.columns) if kept is not None else []
        if self._row_number:
            columns.append(pa.array(numbers, pa.int64()))
        for spec in self.specs:
            arrays = [part[spec.name] for part in parts]
            kind = self._types[spec.name]
            if kind is None:
                kind = self._types[spec.name] = self._type_of(spec, (-1,) * (arrays[0].ndim - 1))
                self._settle()
            columns.append(self._column(spec, arrays, kind))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _column(self, spec: TensorSpec, arrays: list[Array], kind: Any) -> Any:
        pa = self._pa
        depth, value_type = 0, kind
        fixed = True
        while pa.types.is_list(value_type) or pa.types.is_fixed_size_list(value_type):
            fixed = fixed and pa.types.is_fixed_size_list(value_type)
            value_type, depth = value_type.value_type, depth + 1
        for array in arrays:
            if array.ndim != depth + 1:
                raise JobError(
                    f"output {spec.name!r} came with the shape {array.shape}; the signature says {spec}"
                )
        if not fixed:
            made = [self._listed(spec, array, kind) for array in arrays]
            return made[0] if len(made) == 1 else pa.concat_arrays(made)
        sizes = _sizes(kind)
        for array in arrays:
            if list(array.shape[1:]) != sizes:
                raise JobError(
                    f"output {spec.name!r} came with the shape {array.shape}; the signature says {spec}"
                )
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        values = self._values(spec, whole, value_type)
        for size, inner in zip(reversed(sizes), _inner_first(kind), strict=True):
            values = pa.FixedSizeListArray.from_arrays(values, type=inner) if size else values
        return values

    def _listed(self, spec: TensorSpec, array: Array, kind: Any) -> Any:
        """An array as (nested) lists whose sizes are open in places."""
        pa = self._pa
        kinds = _inner_first(kind)
        values = self._values(spec, array, _leaf(kind))
        for axis, inner in zip(range(array.ndim - 1, 0, -1), kinds, strict=True):
            size = array.shape[axis]
            count = math.prod(array.shape[:axis])
            if pa.types.is_fixed_size_list(inner):
                if inner.list_size != size:
                    raise JobError(
                        f"output {spec.name!r} came with the shape {array.shape}; the signature says {spec}"
                    )
                values = pa.FixedSizeListArray.from_arrays(values, type=inner)
            else:
                offsets = np.arange(count + 1, dtype=np.int64) * size
                if offsets[-1] > np.iinfo(np.int32).max:
                    raise JobError(
                        f"output {spec.name!r} is too large for one batch: use a smaller batch_size"
                    )
                values = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=inner)
        return values

    def _values(self, spec: TensorSpec, array: Array, kind: Any) -> Any:
        """All elements of an array, one after the other."""
        pa = self._pa
        flat = np.ascontiguousarray(array).reshape(-1)
        if flat.dtype.kind in "OSU" and spec.data_type == DataType.DT_STRING:
            try:
                return pa.array(flat.tolist(), kind)
            except (pa.ArrowInvalid, UnicodeDecodeError, pa.ArrowTypeError) as error:
                raise JobError(
                    f"output {spec.name!r} has strings that are no UTF-8; write them with strings='binary'"
                ) from error
        wider = _WIDER.get(spec.data_type)
        try:
            return pa.array(flat if wider is None else flat.astype(wider), kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise JobError(f"output {spec.name!r} came as {flat.dtype}; the signature says {spec}") from error


def _inner_first(kind: Any) -> list[Any]:
    """The list types of a nested one, the innermost first."""
    import pyarrow as pa

    kinds = []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kinds.append(kind)
        kind = kind.value_type
    return kinds[::-1]


def _sizes(kind: Any) -> list[int]:
    return [inner.list_size for inner in reversed(_inner_first(kind))]


def _leaf(kind: Any) -> Any:
    kinds = _inner_first(kind)
    return kinds[0].value_type if kinds else kind


# -- files --------------------------------------------------------------------------------------------


class PartWriter(ABC):
    """Writes one part. `write` batches, then `close`, or `abort` at any time.

    Args:
        name: the part's name, such as ``part-00000``.
        schema: of all batches.
        scratch: gives the local path to write a file of a name to.
        options: what the format takes.
    """

    #: What file names end with.
    suffix: str

    def __init__(
        self, name: str, schema: Any, scratch: Callable[[str], str], options: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.schema = schema
        #: Names of the files of this part.
        self.files: list[str] = []
        self._scratch = scratch
        self._options = options

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def _file(self, name: str) -> str:
        self.files.append(name)
        return self._scratch(name)

    @abstractmethod
    def write(self, batch: Any) -> None:
        """Add rows."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left; the files are complete."""

    @abstractmethod
    def abort(self) -> None:
        """Let go of the files, whatever is in them."""


class _ParquetWriter(PartWriter):
    """Options are those of `pyarrow.parquet.ParquetWriter`; snappy compresses if they say nothing else."""

    suffix = ".parquet"

    def __init__(
        self, name: str, schema: Any, scratch: Callable[[str], str], options: Mapping[str, Any]
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(name, schema, scratch, options)
        self._pa = pa
        # Dictionaries pay for strings that repeat; of floats they are made in vain, which takes longest.
        texts = [
            field.name
            for field in schema
            if any(
                test(field.type)
                for test in (
                    pa.types.is_string,
                    pa.types.is_binary,
                    pa.types.is_large_string,
                    pa.types.is_dictionary,
                )
            )
        ]
        settings: dict[str, Any] = {"compression": "snappy", "use_dictionary": texts or False, **options}
        self._sink = open(self._file(f"{name}{self.suffix}"), "wb")  # noqa: SIM115 - closed in `close`, `abort`
        self._writer = pq.ParquetWriter(self._sink, schema, **settings)
        self._batches: list[Any] = []
        self._bytes = self._rows = 0

    def write(self, batch: Any) -> None:
        self._batches.append(batch)
        self._bytes += batch.nbytes
        self._rows += batch.num_rows
        if self._bytes >= _ROW_GROUP or self._rows >= _ROW_GROUP_ROWS:
            self._write_row_group()

    def _write_row_group(self) -> None:
        batches, self._batches = self._batches, []
        self._bytes = self._rows = 0
        table = self._pa.Table.from_batches(batches, self.schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        if self._batches:
            self._write_row_group()
        self._writer.close()
        self._sink.close()

    def abort(self) -> None:
        self._batches.clear()
        try:
            self._writer.close()
        except OSError:
            self._writer.is_open = False  # its finalizer would try again
        finally:
            _close_anyway(self._sink)


class _JsonLinesWriter(PartWriter):
    """Takes no options."""

    suffix = ".jsonl"

    def __init__(
        self, name: str, schema: Any, scratch: Callable[[str], str], options: Mapping[str, Any]
    ) -> None:
        super().__init__(name, schema, scratch, options)
        _no_options("jsonl", options)
        self._sink = open(self._file(f"{name}{self.suffix}"), "wb")  # noqa: SIM115 - closed in `close`, `abort`

    def write(self, batch: Any) -> None:
        lines = [
            json.dumps(for_json(row), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            for row in batch.to_pylist()
        ]
        if lines:
            self._sink.write(("\n".join(lines) + "\n").encode())

    def close(self) -> None:
        self._sink.close()

    def abort(self) -> None:
        _close_anyway(self._sink)


class _NpyWriter(PartWriter):
    """Takes no options."""

    suffix = ".npy"

    def __init__(
        self, name: str, schema: Any, scratch: Callable[[str], str], options: Mapping[str, Any]
    ) -> None:
        super().__init__(name, schema, scratch, options)
        _no_options("npy", options)
        self._columns = [
            _NpyColumn(
                field.name,
                open(self._file(f"{name}.{quote(field.name, safe=' ')}{self.suffix}"), "wb"),  # noqa: SIM115
            )
            for field in schema
        ]

    def write(self, batch: Any) -> None:
        for column, values in zip(self._columns, batch.columns, strict=True):
            column.add(values)

    def close(self) -> None:
        for column in self._columns:
            column.close()

    def abort(self) -> None:
        for column in self._columns:
            _close_anyway(column.sink)


class _NpyColumn:
    """One .npy file that grows; its header is written last."""

    def __init__(self, name: str, sink: BinaryIO) -> None:
        self.name = name
        self.sink = sink
        self._rows = 0
        self._dtype: np.dtype[Any] | None = None
        self._inner: tuple[int, ...] = ()
        self._strings: list[Array] = []
        sink.write(bytes(_NPY_HEADER))

    def add(self, values: Any) -> None:
        array = self._array(values)
        self._rows += len(array)
        if self._dtype is None:
            self._dtype, self._inner = array.dtype, array.shape[1:]
        if array.shape[1:] != self._inner:
            raise OutputError(
                f"column {self.name!r} has rows of shape {self._inner} and of {array.shape[1:]}, which a "
                ".npy file cannot hold: use output_format='parquet'"
            )
        if array.dtype.kind == "S":
            self._strings.append(array)
            self._dtype = max(self._dtype, array.dtype, key=lambda dtype: dtype.itemsize)
        elif array.dtype != self._dtype:
            raise OutputError(
                f"column {self.name!r} is {self._dtype} and {array.dtype}, which a .npy file cannot hold: "
                "use output_format='parquet'"
            )
        else:
            self.sink.write(_bytes_of(array))

    def _array(self, values: Any) -> Array:
        import pyarrow as pa

        rows = len(values)
        inner: list[int] = []
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            if values.null_count:
                raise OutputError(
                    f"column {self.name!r} has nulls, which a .npy file cannot hold: "
                    "use output_format='parquet'"
                )
            count = len(values)
            flat = values.flatten()
            size = len(flat) // count if count else getattr(values.type, "list_size", 0)
            if pa.types.is_list(values.type) and count:
                sizes = values.value_lengths().to_numpy()
                if (sizes != size).any():
                    raise OutputError(
                        f"column {self.name!r} has lists of several sizes, which a .npy file cannot hold: "
                        "use output_format='parquet'"
                    )
            inner.append(size)
            values = flat
        if values.null_count:
            raise OutputError(
                f"column {self.name!r} has nulls, which a .npy file cannot hold: use output_format='parquet'"
            )
        array: Array = values.to_numpy(zero_copy_only=False)
        if array.dtype.kind == "O":
            items = [item.encode() if isinstance(item, str) else item for item in array.tolist()]
            if not all(isinstance(item, bytes) for item in items):
                raise OutputError(
                    f"column {self.name!r} is {values.type}, which a .npy file cannot hold: "
                    "use output_format='parquet'"
                )
            if any(item.endswith(b"\0") for item in items):
                raise OutputError(
                    f"column {self.name!r} has a string that ends with a zero byte, which a .npy file would "
                    "lose: use output_format='parquet'"
                )
            array = np.array(items, np.bytes_) if items else np.empty(0, "S1")
        return array.reshape(rows, *inner)

    def close(self) -> None:
        dtype = self._dtype if self._dtype is not None else np.dtype(np.float64)
        if dtype.kind == "S":
            for array in self._strings:
                self.sink.write(_bytes_of(array.astype(dtype)))
            self._strings.clear()
        header = (
            f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {(self._rows, *self._inner)!r}, }}"
        )
        room = _NPY_HEADER - 10
        self.sink.seek(0)
        self.sink.write(
            b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + header.encode().ljust(room - 1) + b"\n"
        )
        self.sink.close()


def _bytes_of(array: Array) -> memoryview:
    """The memory of an array, whatever its dtype."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _no_options(name: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(
            f"output_format={name!r} takes no output_options, got {', '.join(map(repr, options))}"
        )


def _close_anyway(sink: BinaryIO) -> None:
    """Close a file, also one whose last bytes cannot be written."""
    with contextlib.suppress(OSError):
        sink.close()


def for_json(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


#: Writers of the formats that there are.
FORMATS: Final[Mapping[str, type[PartWriter]]] = {
    "parquet": _ParquetWriter,
    "jsonl": _JsonLinesWriter,
    "npy": _NpyWriter,
}
